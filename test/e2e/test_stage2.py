#!/usr/bin/env python3
"""What makes stage 2 cheap changes no bit: experts that are placed by their loads, plans made ahead,
tables of choices, activations computed again.

    test_stage2.py --program stablemoe
"""

import os
import re
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import program as p  # noqa: E402

IMBALANCE = r"placement: largest/mean rank load ([0-9.]+) -> ([0-9.]+)"


class Stage2(p.ProgramTest):
    # Twelve experts, so that frequencies of tokens allow an even share.
    settings = ("moe.experts=12", "moe.identical_experts=false", "moe.inner=32")

    def test_placement(self):
        """By load or in order, on any number of ranks, before and after a resume: the run of one rank."""
        order, load = "comm.placement=order", "comm.placement=load"
        runs = {"one": ([order], 1), "two-order": ([order], 2), "two": ([load], 2), "three": ([load], 3),
                "four": ([load, "train.recompute=true"], 4), "replicas": ([load, "comm.expert_ranks=2"], 4)}
        jobs = {name: lambda n=name, s=s, r=r: self.train(n, s, ranks=r) for name, (s, r) in runs.items()}
        for name, result in p.several(jobs, 2):
            with self.subTest(name):
                self.assertFine(result)
                found = re.findall(IMBALANCE, result.err)
                self.assertEqual(len(found), 0 if name in ("one", "two-order") else 1, result)
                for before, after in found:
                    self.assertLessEqual(float(after), min(float(before), 1.05), "largest over mean rank load")
        for name in ("two-order", "two", "three", "four"):
            with self.subTest(name):
                self.assertSameRun(self.path(name), self.path("one"), (10, 20))
        # Replicas round otherwise: what is placed has to be what is not.
        self.trained("replicas-order", [order, "comm.expert_ranks=2"], ranks=4)
        self.assertSameRun(self.path("replicas"), self.path("replicas-order"), (10, 20))
        self.check_resumed()

    def check_resumed(self):
        """A run that was placed on four ranks goes on on other ranks, from the middle of stage 2."""
        for ranks in (3, 2):
            run = f"resumed-{ranks}"
            self.trained(run, ["train.checkpoint_every=5", "train.keep_last=0"], ranks=4)
            os.unlink(os.path.join(self.path(run), "checkpoints", "step-000000020.h5"))
            result = self.train(run, ranks=ranks, resume=True)
            self.assertFine(result)
            self.assertIn("step-000000015.h5': 15 updates done", result.err)
            self.assertEqual(len(re.findall(IMBALANCE, result.err)), 1, result)
            self.assertSameRun(self.path(run), self.path("one"), (10, 20))

    def test_deployed(self):
        """evaluate and generate look the choice up in stage 2, and say the same on any number of ranks."""
        run = self.trained("deployed", ranks=2)
        for command in (["evaluate", run, "--json"], ["generate", run, "-p", "the", "-n", "8"]):
            results = [self.program.run(*command, ranks=ranks) for ranks in (1, 2)]
            for result in results:
                self.assertFine(result)
            self.assertTrue(results[0].out.strip(), results[0])
            self.assertEqual(results[0].out, results[1].out)

    def test_plan(self):
        """The plan says what libraries take, and that recomputation takes less."""
        peaks = []
        for recompute in ("false", "true"):
            result = self.program.run(*self.train_args("plan", [f"train.recompute={recompute}"]), "--dry-run")
            self.assertFine(result)
            self.assertRegex(result.err, r"libraries per rank, in memory already: [1-9][0-9.]* MiB")
            peaks.append(float(p.found(r"tape ([0-9.]+)", result)[1]))
        self.assertLess(peaks[1], peaks[0])


if __name__ == "__main__":
    p.main()
