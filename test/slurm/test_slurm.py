#!/usr/bin/env python3
"""Batch jobs on a virtual Slurm cluster of four nodes: what jobs/train.sbatch and its neighbours promise.

    test_slurm.py --program stablemoe

Every run is that of one configuration, and has to leave the bits of a run on one rank without Slurm.
Without root, namespaces or Slurm's packages: exit status 77, skipped.
"""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "e2e"))
import program as p  # noqa: E402  (the path comes first)

UPDATES = 60
SAVED = (20, 40, 60)
# Of any wait: machines that test are busy, and Slurm looks at its clock rarely.
PATIENCE = 240
ENDS = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL")


class Cluster:
    """A virtual cluster of this test's own, that ends with it whatever happens."""

    def __init__(self, source, directories):
        self.script = os.path.join(source, "jobs", "cluster.sh")
        self.name = f"smoe-test-{os.getpid()}"
        self.env = dict(p.environment(), STABLEMOE_CLUSTER=self.name)
        shares = [word for directory in directories for word in ("--share", directory)]
        self.up = self.command("up", "4", "--with", str(os.getpid()), *shares)

    def command(self, *words, cwd=None, env=None):
        return subprocess.run([self.script, *words], env=dict(self.env, **(env or {})), cwd=cwd, text=True,
                              stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                              timeout=PATIENCE, check=False)

    def down(self):
        return self.command("down")

    def left(self):
        """What there is of the cluster: namespaces, its directory."""
        names = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
        found = [line for line in names.splitlines() if line.startswith(self.name + "-")]
        return found + [path for path in (f"/run/stablemoe/{self.name}",) if os.path.exists(path)]


class Job:
    def __init__(self, cluster, directory, words, env):
        self.cluster = cluster
        self.log = os.path.join(directory, "slurm-%j.out")
        result = cluster.command("run", "sbatch", "--parsable", f"--output={self.log}", *words, cwd=directory, env=env)
        assert result.returncode == 0 and result.stdout.strip().isdigit(), result.stdout
        self.id = result.stdout.strip()
        self.log = self.log.replace("%j", self.id)

    def show(self, key):
        text = self.cluster.command("run", "scontrol", "show", "job", self.id).stdout
        found = re.search(rf"\b{key}=(\S*)", text)
        return found.group(1) if found else ""

    def text(self):
        try:
            with open(self.log, errors="replace") as file:
                return file.read()
        except OSError:
            return ""

    def wait(self):
        """The state in which it ends; a job that is put back into the queue has not ended."""
        limit, ended = time.monotonic() + PATIENCE, 0
        while ended < 2:
            state = self.show("JobState")
            # Seen twice: on its way back into the queue a job may look like one that ended.
            ended = ended + 1 if state in ENDS else 0
            assert time.monotonic() < limit, f"job {self.id} is still {state}:\n{self.text()}"
            time.sleep(0.3)
        return state

    def nodes(self):
        """Host names of its ranks by process id, as this machine numbers processes."""
        found = {}
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                with open(f"/proc/{pid}/comm") as file:
                    if file.read().strip() != "stablemoe":
                        continue
                with open(f"/proc/{pid}/environ", "rb") as file:
                    env = dict(line.split(b"=", 1) for line in file.read().split(b"\0") if b"=" in line)
            except OSError:
                continue
            mine = self.cluster.name.encode() in env.get(b"SLURM_CONF", b"")
            if mine and env.get(b"SLURM_JOB_ID") == self.id.encode() and b"SLURMD_NODENAME" in env:
                found[int(pid)] = env[b"SLURMD_NODENAME"].decode()
        return found


class Slurm(p.ProgramTest):
    settings = ("train.lanes=8", "moe.experts=8", f"train.updates={UPDATES}", "train.checkpoint_every=20",
                "train.keep_last=0", "train.evaluate_every=0", "train.evaluate_sequences=8", "run.log_every=10")

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        source = cls.program.source
        directories = {cls.directory, source, os.path.dirname(cls.program.path)}
        cls.cluster = Cluster(source, sorted(directories))
        cls.addClassCleanup(cls.cluster.down)
        assert cls.cluster.up.returncode == 0, cls.cluster.up.stdout
        cls.env = {"STABLEMOE": cls.program.path, "STABLEMOE_PAUSE": "30"}
        cls.reference = cls.trained("reference")
        # Slurm looks at time limits twice a minute: the other tests go on meanwhile.
        cls.limited = cls.submit("limited", "--nodes=2", "--mincpus=1", "--time=1", "--signal=B:USR1@30")
        cls.hold(cls.limited, "limited", "Slurm asks to stop")

    @classmethod
    def submit(cls, run, *options, settings=(), script="train.sbatch", env=None):
        words = [*options, os.path.join(cls.program.source, "jobs", script), *cls.train_args(run, settings)[1:]]
        return Job(cls.cluster, cls.directory, words, dict(cls.env, **(env or {})))

    @classmethod
    def hold(cls, job, run, words):
        """Stop a run in its middle until these words are in the job's log: it must not be done before."""
        threading.Thread(target=cls.stop_until, args=(job, cls.path(run), words), daemon=True).start()

    @classmethod
    def stop_until(cls, job, run, words):
        limit = time.monotonic() + PATIENCE
        while p.last_update(run) < 5 and time.monotonic() < limit:
            time.sleep(0.005)
        held = list(job.nodes())
        for pid in held:
            os.kill(pid, signal.SIGSTOP)
        while words not in job.text() and time.monotonic() < limit:
            time.sleep(0.1)
        for pid in filter(p.alive, held):
            os.kill(pid, signal.SIGCONT)

    def assertEnded(self, job, state="COMPLETED"):
        self.assertEqual(job.wait(), state, job.text())

    def assertStoppedByHand(self, job):
        self.assertEnded(job, "FAILED")
        self.assertEqual((job.show("ExitCode"), job.show("Restarts")), ("76:0", "0"), job.text())
        self.assertIn("stopped by hand, not requeued; submit it again to resume", job.text())
        self.assertFalse(os.path.exists(self.path("cancelled", "stop")))

    def assertSameBits(self, run):
        self.assertSameRun(self.path(run), self.reference, SAVED)

    def wait_for_update(self, job, run, update):
        limit = time.monotonic() + PATIENCE
        while p.last_update(self.path(run)) < update:
            self.assertLess(time.monotonic(), limit, job.text())
            time.sleep(0.02)

    def test_stopped_by_hand_and_cancelled(self):
        """Nobody wants such a job back: it ends, and goes on when it is submitted again."""
        words = ("cancelled", "--nodes=2", "--mincpus=1")
        settings = ["train.updates=20000"]
        stop = self.path("cancelled", "stop")
        job = self.submit(*words, settings=settings)
        self.wait_for_update(job, "cancelled", 5)
        with open(stop, "w"):
            pass
        self.assertStoppedByHand(job)
        self.assertRegex(job.text(), r"stopped on request \(the file 'stop'\) after update \d+ of 20000")
        done = p.last_update(self.path("cancelled"))
        # The same where the ranks die before they can see it.
        job = self.submit(*words, settings=settings)
        self.wait_for_update(job, "cancelled", done + 5)
        held = list(job.nodes())
        for pid in held:
            os.kill(pid, signal.SIGSTOP)
        with open(stop, "w"):
            pass
        for pid in held:
            os.kill(pid, signal.SIGKILL)
        self.assertStoppedByHand(job)
        self.assertRegex(job.text(), f"resumed from '.*': {done} updates done")
        job = self.submit(*words, settings=settings)
        self.wait_for_update(job, "cancelled", done + 5)
        self.cluster.command("run", "scancel", job.id)
        self.assertEnded(job, "CANCELLED")
        self.assertNotIn("back into the queue", job.text())

    def test_eight_ranks_on_four_nodes(self):
        job = self.submit("eight", "--nodes=4", "--ntasks-per-node=2")
        self.assertEnded(job)
        self.assertIn("8 ranks of 1 threads on n[1-4]; srun --mpi=pmix", job.text())
        self.assertSameBits("eight")

    def test_lost_node(self):
        job = self.submit("lost", "--nodes=2-3", "--mincpus=2", "--exclude=n1")
        self.wait_for_update(job, "lost", 25)
        self.assertEqual(set(job.nodes().values()), {"n2", "n3", "n4"}, job.text())
        self.assertEqual(self.cluster.command("fail", "n4").returncode, 0)
        try:
            self.assertEnded(job)
        finally:
            self.cluster.command("repair", "n4")
        self.assertIn("attempt 1: 6 ranks", job.text())
        self.assertRegex(job.text(), r"attempt \d: 4 ranks of 1 threads on n\[2-3\]")
        self.assertRegex(job.text(), r"resumed from '.*step-000000020.h5'")
        self.assertSameBits("lost")

    def test_mpirun_instead_of_srun(self):
        job = self.submit("mpirun", "--nodes=2", "--mincpus=1", env={"STABLEMOE_LAUNCHER": "mpirun"})
        self.assertEnded(job)
        self.assertIn("2 ranks of 1 threads", job.text())
        self.assertSameBits("mpirun")

    def test_preempted(self):
        job = self.submit("preempted", "--nodelist=n4", "--nodes=1", "--exclusive", "--ntasks-per-node=2")
        self.hold(job, "preempted", " CANCELLED AT ")
        self.wait_for_update(job, "preempted", 5)
        result = self.cluster.command("run", "sbatch", "--partition=urgent", "--nodelist=n4", "--exclusive",
                                      "--output=/dev/null", "--wrap=true", cwd=self.directory)
        self.assertEqual(result.returncode, 0, result.stdout)
        self.assertEnded(job)
        self.assertRegex(job.text(), r"stopped on request \(SIG\w+\) after update \d+ of \d+; checkpoint saved")
        self.assertIn("attempt 2: 2 ranks", job.text())
        self.assertSameBits("preempted")

    def test_ranks_that_do_not_find_each_other(self):
        # Open MPI 4 sees for itself that there is no PMIx, unless it does not see Slurm either; 5 starts single ranks.
        blind = self.path("blind")
        with open(blind, "w") as file:
            file.write("#!/bin/sh\nexec env -i PATH=$PATH HOME=$HOME SLURM_STEP_NUM_TASKS=$SLURM_STEP_NUM_TASKS "
                       f'{self.program.path} "$@"\n')
        os.chmod(blind, 0o755)
        for name, program, message in (("seen", self.program.path, "."),
                                       ("blind", blind, "this Slurm step has 2 tasks, but MPI sees 1 rank")):
            with self.subTest(name):
                job = self.submit("single", "--nodes=2", "--mincpus=1",
                                  env={"STABLEMOE_LAUNCHER": "srun --mpi=none", "STABLEMOE": program})
                self.assertEnded(job, "FAILED")
                self.assertRegex(job.text(), message)
                self.assertIn("the ranks did not start", job.text())
                self.assertEqual(job.show("Restarts"), "0", "trying again cannot mend it")
                self.assertFalse(os.path.exists(self.path("single")))

    def test_sweep(self):
        words = ["--array=0-1", os.path.join(self.program.source, "jobs", "sweep.sbatch"), self.program.config,
                 "--vary", "run.seed=1,2", "-o", self.path("sweep")]
        for setting in (f"data.corpus={self.corpus}", *self.settings):
            words += ["-P", setting]
        result = self.cluster.command("run", "sbatch", "--wait", f"--output={self.path('sweep-%a.out')}", *words,
                                      cwd=self.directory, env=self.env)
        for name in ("sweep-0.out", "sweep-1.out"):
            with open(self.path(name)) as file:
                result.stdout += file.read()
        self.assertEqual(result.returncode, 0, result.stdout)
        self.assertEqual(sorted(os.listdir(self.path("sweep"))), ["stable-run.seed-1", "stable-run.seed-2"])
        self.assertSameBits("sweep/stable-run.seed-1")
        other = p.column(self.path("sweep", "stable-run.seed-2"), "loss")
        self.assertEqual(len(other), UPDATES)
        self.assertNotEqual(other, p.column(self.reference, "loss"))

    def test_scaling_study(self):
        study = self.path("study")
        words = ["run", os.path.join(self.program.source, "jobs", "scaling.sh"), self.program.config, "--ranks", "1,2",
                 "--repeat", "1", "--updates", "2", "--vocab", "300", "-o", study]
        result = self.cluster.command(*words, env=self.env)
        self.assertEqual(result.returncode, 0, result.stdout)
        self.assertRegex(result.stdout, r"scaling: jobs \d+ \d+;")
        with open(os.path.join(study, "study.json")) as file:
            points = json.load(file)["points"]
        self.assertEqual(len(points), 2, result.stdout)
        self.assertIn("losses: ", result.stdout)

    def test_submit(self):
        words = ["run", os.path.join(self.program.source, "jobs", "submit.sh"), "--print", "--ranks", "8",
                 *self.train_args("submitted")[1:]]
        result = self.cluster.command(*words, env=self.env, cwd=self.directory)
        self.assertEqual(result.returncode, 0, result.stdout)
        self.assertRegex(result.stdout, r"--nodes=2 --ntasks-per-node=4 --cpus-per-task=1 --mem-per-cpu=2\d\dM "
                                        r"--time=6 --signal=B:USR1@60 ")
        result = self.cluster.command(*words, "-P", "train.lanes=4", env=self.env, cwd=self.directory)
        self.assertEqual(result.returncode, p.CODES["config"], result.stdout)
        self.assertIn("8 ranks for train.lanes = 4", result.stdout)

    def test_time_limit(self):
        self.assertEnded(self.limited)
        text = self.limited.text()
        self.assertRegex(text, r"stopped on request \(SIG\w+\) after update \d+ of \d+; checkpoint saved")
        self.assertIn("back into the queue", text)
        self.assertRegex(text, r"attempt 2: 2 ranks")
        self.assertRegex(text, r"resumed from '.*': \d+ updates done")
        # One; on a busy machine the time may be over a second time.
        self.assertIn(self.limited.show("Restarts"), ("1", "2", "3"))
        # The checkpoint of the stop is one more than asked for.
        self.assertSameBits("limited")

    def test_wrong_configuration(self):
        job = self.submit("wrong", "--nodes=1", settings=["model.widht=16"])
        self.assertEnded(job, "FAILED")
        self.assertEqual(job.show("ExitCode"), "2:0", job.text())
        self.assertEqual(len(re.findall(r"stablemoe: error \(config\)", job.text())), 1, job.text())


class Leaves(p.ProgramTest):
    """A cluster that goes down, also where it was interrupted, leaves nothing."""

    def test_nothing(self):
        cluster = Cluster(self.program.source, [self.directory])
        self.addCleanup(cluster.down)
        self.assertEqual(cluster.up.returncode, 0, cluster.up.stdout)
        self.assertEqual(len(cluster.left()), 6, "five namespaces and a directory")
        twice = cluster.command("up")
        self.assertNotEqual(twice.returncode, 0)
        self.assertIn("is up already", twice.stdout)
        self.assertEqual((cluster.down().returncode, cluster.left()), (0, []))
        self.assertEqual(cluster.down().returncode, 0, "down twice")
        status = cluster.command("status")
        self.assertEqual((status.returncode, status.stdout), (1, f"cluster: '{cluster.name}' is down\n"))
        # Killed on its way up: half a cluster, that the next `up` does away with.
        half = subprocess.Popen([cluster.script, "up", "2"], env=cluster.env, stdout=subprocess.DEVNULL)
        while not any("login" in name for name in cluster.left()):
            time.sleep(0.002)
        half.kill()
        half.wait()
        again = cluster.command("up", "1", "--bandwidth", "200mbit", "--latency", "1ms")
        self.assertEqual(again.returncode, 0, again.stdout)
        self.assertIn("1 nodes of 4 CPUs are up; bandwidth 200mbit", again.stdout)
        self.assertEqual((cluster.down().returncode, cluster.left()), (0, []))


def skip_unless_possible():
    script = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "jobs", "cluster.sh")
    result = subprocess.run([script, "check"], capture_output=True, text=True, check=False)
    if result.returncode:
        print(f"skipped: {result.stderr.strip()}", file=sys.stderr)
        sys.exit(77)


if __name__ == "__main__":
    skip_unless_possible()
    p.main()
