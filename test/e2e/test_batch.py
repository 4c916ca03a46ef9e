#!/usr/bin/env python3
"""jobs/train.sbatch without a cluster: a stand-in for scontrol, and a launcher that starts one rank."""

import os
import subprocess

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


    def test_numbers_of_submit(self):
        submit = ["bash", os.path.join(self.program.source, "jobs", "submit.sh"), self.program.config, "--print"]
        for words in (["--ranks", "1.5"], ["--ranks", "0"], ["--ranks", "2x"], ["--ranks", "2", "--threads", "0.5"],
                      ["--ranks", "2", "--ranks-per-node", "1e3"], ["--ranks", "2", "--gflops", "1,5"]):
            done = subprocess.run([*submit, *words], env=p.environment(), capture_output=True, text=True, timeout=p.TIME_LIMIT)
            self.assertEqual((done.returncode, done.stdout), (2, ""), done)
            self.assertRegex(done.stderr, f"^submit.sh: {words[-2]} wants a (whole )?number.*, not '{words[-1]}'\\n$")


if __name__ == "__main__":
    p.main()
