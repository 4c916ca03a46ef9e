#!/usr/bin/env python3
"""File systems as clusters have them: long paths, no locks, no symbolic links, and one that cannot be written."""

import os
import shutil

import program as p


class FileSystems(p.ProgramTest):
    settings = ("train.updates=4", "router.stage1_updates=2", "schedule.warmup=1", "train.checkpoint_every=2",
                "train.evaluate_every=0", "train.evaluate_sequences=2", "train.keep_last=0")

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.poor = {"LD_PRELOAD": os.environ["POOR_FILES"]} if "POOR_FILES" in os.environ else None

    def poorly(self, **variables):
        if not self.poor:
            self.skipTest("POOR_FILES does not name poor_files.so of the build directory")
        return {**self.poor, **variables}

    def test_long_path(self):
        """Open MPI's lockedfile component has 256 bytes for the name of a file; nothing here has a limit below 1,000."""
        for length in (200, 215, 260, 500, 1000):
            run = self.directory
            while len(run) < length - 110:
                run = os.path.join(run, "d" * 100)
            run = os.path.join(run, "r" * (length - len(run) - 1))
            self.assertEqual(len(run), length)
            for ranks in (1, 2):
                with self.subTest(length=length, ranks=ranks):
                    shutil.rmtree(run, ignore_errors=True)
                    # As where nobody sourced environment.sh.
                    result = self.train(run, ranks=ranks)
                    self.assertFine(result)
                    self.assertNotIn("buffer overflow", result.err)
                    self.assertFine(self.train(run, ["train.updates=6"], ranks=ranks, resume=True))
            self.assertSound(run)
            self.assertFine(self.program.run("evaluate", run, "-n", 1))

    def test_long_path_refused(self):
        """Where somebody selected the component with the 256 bytes, a message comes before its buffer overflow."""
        run = os.path.join(self.directory, "d" * 100, "r" * 100)
        result = self.train(run, env={"OMPI_MCA_sharedfp": "lockedfile"})
        self.assertRefused(result, "mpi", r"export OMPI_MCA_sharedfp=\^lockedfile")
        self.assertNotIn("buffer overflow", result.err)
        self.assertFine(self.train(run, resume="start-or-resume", env={"OMPI_MCA_sharedfp": "individual"}))

    def test_no_locks(self):
        for number in (37, 95, 524):
            for ranks in (1, 2):
                run = f"unlocked-{number}-{ranks}"
                with self.subTest(run):
                    env = self.poorly(POOR_FILES_LOCKS=str(number))
                    self.assertFine(self.train(run, ranks=ranks, env=env))
                    result = self.program.run("prepare", self.path("text.txt"), "-o", self.path(f"{run}.h5"), "--vocab", 300,
                                              env=env)
                    self.assertFine(result)
                    self.assertSound(self.path(run))

    def test_no_symbolic_links(self):
        for ranks in (1, 2):
            run = f"unlinked-{ranks}"
            with self.subTest(ranks=ranks):
                env = self.poorly(POOR_FILES_LINKS="1")
                result = self.train(run, ranks=ranks, env=env)
                self.assertFine(result)
                self.assertEqual(result.err.count("'latest' is left out"), 1, result)
                self.assertIn(f"the model is '{self.path(run)}/checkpoints/step-000000004.h5'", result.err)
                self.assertFalse(os.path.lexists(self.path(run, "checkpoints", "latest")))
                for args in (("evaluate", self.path(run), "-n", 1), ("info", self.path(run), "--verify"),
                             ("info", self.path(run, "checkpoints", "latest"))):
                    shown = self.program.run(*args)
                    self.assertFine(shown)
                    self.assertIn("step-000000004.h5", shown.out + shown.err)
                self.assertFine(self.train(run, ["train.updates=6"], ranks=ranks, resume=True, env=env))

    def test_stale_copy_of_the_link(self):
        """Tools that follow links make a file of it: after the next checkpoint it must not stand for the newest."""
        self.trained("followed", ["train.updates=2"])
        latest = self.path("followed", "checkpoints", "latest")
        os.remove(latest)
        shutil.copy(self.path("followed", "checkpoints", "step-000000002.h5"), latest)
        self.assertFine(self.train("followed", resume=True, env=self.poorly(POOR_FILES_LINKS="95")))
        result = self.program.run("info", self.path("followed"))
        self.assertRegex(result.out, r"update +4\n", result)

    def test_found_out_first(self):
        """What a checkpoint cannot be written to shows before the first update."""
        for ranks in (1, 2):
            for site in ("create", "open", "verify"):
                with self.subTest(site, ranks=ranks):
                    run = f"early-{site}-{ranks}"
                    result = self.train(run, ranks=ranks, env={"STABLEMOE_FAULT": f"probe.{site}@{ranks - 1}"})
                    self.assertRefused(result, "io", f"injected fault at probe.{site}")
                    self.assertIn("stablemoe doctor", result.err)
                    self.assertEqual(p.last_update(self.path(run)), 0)
                    self.assertEqual([n for n in os.listdir(self.path(run)) if "probe" in n], [])


if __name__ == "__main__":
    p.main()
