#!/usr/bin/env python3
"""jobs/train.sbatch without a cluster: a stand-in for scontrol, and a launcher that starts one rank."""

import glob
import os
import shutil
import subprocess
import time

import program as p

SCONTROL = """#!/bin/sh
case "$1" in
  show) echo "   JobState=RUNNING Reason=None" ;;
  requeue) kill -9 $PPID ;; # as Slurm ends the script
esac
"""
LAUNCHER = """#!/bin/sh
shift 2
exec "$@"
"""


class Batch(p.ProgramTest):
    settings = ("train.updates=8", "router.stage1_updates=2", "schedule.warmup=1", "train.checkpoint_every=4",
                "train.evaluate_every=0", "train.evaluate_sequences=2")

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        os.makedirs(cls.path("bin"))
        for name, text in (("scontrol", SCONTROL), ("launcher", LAUNCHER)):
            with open(cls.path("bin", name), "w") as file:
                file.write(text)
            os.chmod(cls.path("bin", name), 0o755)

    def job(self, run, attempt, **env):
        script = os.path.join(self.program.source, "jobs", "train.sbatch")
        env = {**p.environment(), "PATH": f"{self.path('bin')}:{os.environ['PATH']}", "SLURM_JOB_ID": "7",
               "SLURM_RESTART_COUNT": str(attempt), "STABLEMOE_HOME": self.program.source, "STABLEMOE_PAUSE": "0",
               "STABLEMOE": self.program.path, "STABLEMOE_LAUNCHER": self.path("bin", "launcher"), **env}
        return subprocess.run(["bash", script, *self.train_args(run)[1:]], env=env, capture_output=True, text=True,
                              timeout=p.TIME_LIMIT * 2)

    def test_killed_before_each_checkpoint(self):
        """Updates that no checkpoint holds are no progress: the third attempt in a row gives up."""
        for attempt in range(3):
            done = self.job("killed", attempt, STABLEMOE_KILL="checkpoint.create@0#1")
            said = done.stdout + done.stderr
            self.assertEqual(p.last_update(self.path("killed")), 4, said)
            self.assertIn("memory ran out" if attempt < 2 else "no further than the checkpoint of update 0: given up", said)
            self.assertEqual(done.returncode, -9 if attempt < 2 else 137, said)
        done = self.job("killed", 3)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        self.assertEqual(p.last_update(self.path("killed")), 8)

    @staticmethod
    def memory_cgroup(name, mib):
        """A cgroup with this limit, of whichever version this machine has; None: that takes other rights."""
        for parent, limit in (("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")):
            path = os.path.join(parent, f"stablemoe-{name}-{os.getpid()}")
            try:
                os.mkdir(path)
                with open(os.path.join(path, limit), "r+") as file:
                    file.write(str(mib << 20))
                return path
            except OSError:
                if os.path.isdir(path):
                    os.rmdir(path)
        return None

    def test_memory_of_the_job(self):
        """What the job may take counts, not what the machine has."""
        # About 1.9 GB for each rank, of which nothing is taken.
        words = [*self.train_args("large", ["train.batch_sequences=65536", "train.micro_batches=1", "model.context=64"]), "--dry-run"]
        for ranks in (1, 2):
            result = self.program.run(*words, ranks=ranks, env={"SLURM_MEM_PER_NODE": "700"})
            self.assertRefused(result, "memory", r"the Slurm job \(--mem: 700 MiB\) leaves ")
            result = self.program.run(*words, ranks=ranks, env={"SLURM_MEM_PER_CPU": "350", "SLURM_CPUS_ON_NODE": "2"})
            self.assertRefused(result, "memory", r"the Slurm job \(--mem-per-cpu, .*: 700 MiB\) leaves ")
        cgroup = self.memory_cgroup("job", 700)
        if not cgroup:
            self.skipTest("no cgroup can be made: not root, or no memory controller")
        try:
            result = self.program.run(*words, before=f"echo $$ >{cgroup}/cgroup.procs")
            self.assertRefused(result, "memory", rf"the cgroup '/{os.path.basename(cgroup)}' \(limit 700 MiB\) leaves ")
        finally:
            deadline = time.monotonic() + p.TIME_LIMIT
            while os.path.isdir(cgroup):  # what MPI started for one rank may be about to end
                try:
                    os.rmdir(cgroup)
                except OSError:
                    if time.monotonic() > deadline:
                        raise
                    time.sleep(0.1)

    def test_numbers(self):
        for name, value in (("STABLEMOE_ATTEMPTS", "few"), ("STABLEMOE_PAUSE", "1.5")):
            done = self.job("numbers", 0, **{name: value})
            self.assertEqual(done.returncode, 2, done)
            self.assertIn(f"{name} is '{value}': a number expected", done.stderr)
            self.assertFalse(os.path.exists(self.path("numbers")))

    def test_variables_in_paths(self):
        """The job's number in a path means the same in the check before the ranks and in them."""
        done = self.job("numbered-$SLURM_JOB_ID", 0)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        self.assertEqual(p.last_update(self.path("numbered-7")), 8)

    def comma_locale(self):
        """Environment of a language with decimal commas, made in a directory of this test; None: that cannot be had."""
        where = self.path("locales")
        os.makedirs(where, exist_ok=True)
        if not shutil.which("localedef"):
            return None
        subprocess.run(["localedef", "--no-archive", "-i", "de_DE", "-f", "UTF-8", os.path.join(where, "de_DE.UTF-8")],
                       capture_output=True, check=False)
        env = {**p.environment(), "LOCPATH": where, "LC_ALL": "de_DE.UTF-8"}
        shown = subprocess.run(["awk", "BEGIN {printf \"%.2f\", 8.9}"], env=env, capture_output=True, text=True, check=True)
        return env if shown.stdout == "8,90" else None

    def test_decimal_commas(self):
        env = self.comma_locale()
        if not env:
            self.skipTest("no language with decimal commas can be made here, or awk knows none (localedef, mawk)")
        submit = ["bash", os.path.join(self.program.source, "jobs", "submit.sh"), "--ranks", "4", "--gflops", "0.5", "--print",
                  *self.train_args("commas", ["train.updates=100000"])[1:]]
        printed = [subprocess.run(submit, env={**e, "STABLEMOE": self.program.path}, capture_output=True, text=True,
                                  timeout=p.TIME_LIMIT, check=False) for e in (p.environment(), env)]
        self.assertEqual(printed[0].returncode, 0, printed)
        self.assertRegex(printed[0].stdout, r"--mem-per-cpu=\d+M --time=\d+ ")
        self.assertEqual(printed[0].stdout, printed[1].stdout)
        done = self.job("commas", 0, LC_ALL=env["LC_ALL"], LOCPATH=env["LOCPATH"])
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)

    def test_scripts_set_the_language(self):
        """Not every script can be run in a test; all have to set it before they calculate."""
        scripts = glob.glob(os.path.join(self.program.source, "jobs", "*.s*")) + glob.glob(
            os.path.join(self.program.source, "jobs", "cluster", "*.sh"))
        self.assertGreater(len(scripts), 10)
        for script in scripts:
            if os.path.basename(script) in ("environment.sh", "arguments.sh", "site.sh"):  # read by the others
                continue
            with open(script) as file:
                commands = [line for line in file.read().split("\n") if line and not line.startswith("#")]
            self.assertRegex(commands[0], "^set -", script)
            self.assertRegex(commands[1], "^export LC_ALL=C ", script)

    def test_numbers_of_submit(self):
        submit = ["bash", os.path.join(self.program.source, "jobs", "submit.sh"), self.program.config, "--print"]
        for words in (["--ranks", "1.5"], ["--ranks", "0"], ["--ranks", "2x"], ["--ranks", "2", "--threads", "0.5"],
                      ["--ranks", "2", "--ranks-per-node", "1e3"], ["--ranks", "2", "--gflops", "1,5"], ["--ranks", "2", "--gflops", "0.0"], ["--ranks", "-1"], ["--ranks", "1000000"],
                      ["--ranks", "2", "--max-time", "0"], ["--ranks", "08"]):
            done = subprocess.run([*submit, *words], env=p.environment(), capture_output=True, text=True, timeout=p.TIME_LIMIT)
            self.assertEqual((done.returncode, done.stdout), (2, ""), done)
            self.assertRegex(done.stderr, f"^submit.sh: {words[-2]} must be (a number|an integer).*, got '{words[-1]}'\\n$")


if __name__ == "__main__":
    p.main()
