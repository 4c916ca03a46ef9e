#!/usr/bin/env python3
"""Checkpoints that are written while the training goes on (train.save: background) against those that it waits for."""

import json
import os
import re

import program as p

BESIDE = ["train.save=background"]


class Saving(p.ProgramTest):
    settings = ("train.updates=12", "router.stage1_updates=5", "train.checkpoint_every=2", "train.evaluate_every=3",
                "train.evaluate_sequences=8", "schedule.warmup=2", "train.keep_last=0")

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.waited = cls.trained("waited")

    def test_same_files(self):
        """On any number of ranks, in bf16, with several MoE layers, recomputed, and with replicas."""
        several = ["moe.layers=2", "moe.position=scattered"]
        forms = {"bf16": ["train.precision=bf16", *several],
                 "replicas": ["comm.expert_ranks=1", "train.best=true", "train.keep_last=2", *several]}
        # Replicas agree to rounding only: their run is compared with one on as many ranks.
        whole = {"bf16": 1, "replicas": 4}
        beside = [("plain", n) for n in (1, 2, 3, 4)] + [("bf16", 3), ("replicas", 4)]
        jobs = {(name, "waited"): lambda s=settings, r=name: self.train(r, s, ranks=whole[r]) for name, settings in forms.items()}
        jobs |= {job: lambda s=forms.get(job[0], []), r=f"{job[0]}-{job[1]}", n=job[1]: self.train(r, s + BESIDE, ranks=n)
                 for job in beside}
        for (name, ranks), result in p.several(jobs):
            with self.subTest(name, ranks=ranks):
                self.assertFine(result)
                if ranks == "waited":
                    continue
                run, other = self.path(f"{name}-{ranks}"), self.waited if name == "plain" else self.path(name)
                names = p.files_of(other, "checkpoints")
                self.assertEqual(p.files_of(run, "checkpoints"), names)
                self.assertSameRun(run, other, [int(file[5:-3]) for file in names])
                for link in ("latest", "best"):
                    pair = [os.path.join(r, "checkpoints", link) for r in (run, other)]
                    self.assertEqual(*(os.path.islink(path) and os.readlink(path) for path in pair))
        self.assertSound(self.path("replicas-4"))

    def test_killed(self):
        """In the middle of it: what was there before is sound, and the rest goes with the next save."""
        run = self.path("killed")
        for number, (site, ranks, rank) in enumerate((("write", 2, 1), ("rename", 3, 2), ("latest", 2, 0), ("close", 1, 0))):
            with self.subTest(site):
                before = set(p.files_of(run, "checkpoints")) if number else set()
                result = self.train("killed", BESIDE, ranks=ranks, resume="start-or-resume",
                                    env={"STABLEMOE_KILL": f"checkpoint.{site}@{rank}#2"})
                self.assertNotIn(result.code, (0, None), result)
                self.assertLess(before, set(p.files_of(run, "checkpoints")))
                self.assertSound(run)
        self.assertFine(self.train("killed", BESIDE, ranks=4, resume=True))
        self.assertSameRun(run, self.waited, [12])

    def test_failure(self):
        """It is said at the next checkpoint, and ends the run there, or not."""
        fault = {"STABLEMOE_FAULT": "checkpoint.write@1#2"}
        result = self.train("failed", BESIDE, ranks=2, env=fault)
        self.assertRefused(result, "io", "on rank 1 of 2: injected fault at checkpoint.write")
        self.assertIn("an error ends the run after update 6 of 12; the newest checkpoint is of update 2", result.err)
        self.assertEqual(p.files_of(self.path("failed"), "checkpoints"), ["step-000000002.h5"])
        self.assertEqual(p.part_files(self.path("failed")), [])
        self.assertFine(self.train("failed", BESIDE, ranks=2, resume=True))
        self.assertSameRun(self.path("failed"), self.waited, [2, 4, 6, 12])
        result = self.train("patient", [*BESIDE, "train.on_save_error=continue"], ranks=2, env=fault)
        self.assertFine(result)
        self.assertIn("warning: update 4: on rank 1 of 2: injected fault at checkpoint.write", result.err)
        self.assertNotIn("step-000000004.h5", p.files_of(self.path("patient"), "checkpoints"))
        self.assertSameRun(self.path("patient"), self.waited, [2, 6, 8, 10, 12])

    def test_ends(self):
        """What is under way is complete when a run stops, also by an error."""
        result = self.train("timed", [*BESIDE, "train.checkpoint_every=1", "run.max_minutes=0.0001"], ranks=2)
        self.assertEqual((result.code, result.reports), (p.STOPPED, []), result)
        self.assertSound(self.path("timed"))
        # The routers leave the range of numbers in update 2; what update 1 began is completed.
        result = self.train("broken", [*BESIDE, "train.checkpoint_every=1", "optimizer.router_lr_factor=1e37"], ranks=2)
        self.assertRefused(result, "numeric")
        self.assertIn("an error ends the run after update 1 of 12; the newest checkpoint is of update 1", result.err)
        self.assertEqual(p.files_of(self.path("broken"), "checkpoints"), ["step-000000001.h5"])
        self.assertSound(self.path("broken"))

    def test_no_memory(self):
        """A copy that does not fit is done without, aloud."""
        result = self.train("small", BESIDE, ranks=2, env={"STABLEMOE_FAULT": "arena.reserve@1#4"})
        self.assertFine(result)
        self.assertRegex(result.err, "not written in the background, updates wait for them: on rank 1 of 2: injected")
        self.assertSameRun(self.path("small"), self.waited, [2, 12])
        words = [*self.train_args("plan", [*BESIDE, "model.width=512", "train.batch_sequences=4"]), "--dry-run"]
        plan = self.program.run(*words)
        self.assertFine(plan)
        copied = float(p.found(r"of these ([\d.]+) MiB for the copy", plan)[1])
        needed, libraries = (float(p.found(pattern, plan)[1]) for pattern in
                             (r"([\d.]+) MiB expected", r"libraries per rank, in memory already: ([\d.]+)"))
        # Slurm grants the job what the plan takes without half of the copy.
        granted = {"SLURM_MEM_PER_NODE": str(round(needed + libraries - copied / 2))}
        less = self.program.run(*words, env=granted)
        self.assertFine(less)
        self.assertRegex(less.err, rf"updates wait for checkpoints.* a copy of {copied} MiB")
        self.assertNotIn("of these", less.err)
        self.assertAlmostEqual(float(p.found(r"([\d.]+) MiB expected", less)[1]), needed - copied, delta=0.11)

    def test_plan(self):
        """The plan for ranks that are not there knows the copy, and what would fit without it."""
        words = [*self.train_args("plan", BESIDE), "--dry-run", "--ranks", "4", "--per-node", "2"]
        plans = [json.loads(self.program.run(*words, "--json", *more).out)["memory"]
                 for more in ([], ["-P", "train.save=wait"])]
        self.assertEqual(plans[1]["copy_bytes"], 0)
        self.assertGreater(plans[0]["copy_bytes"], 0)
        for name in ("rank_expected_bytes", "rank_most_bytes"):
            self.assertAlmostEqual(plans[0][name] - plans[1][name], plans[0]["copy_bytes"],
                                   delta=0.2 * plans[1]["library_bytes"])
        self.assertIn("copy for saving", self.program.run(*words).out)
        # A node of 1 GiB has room for the parameters of 8 experts in each of 2 ranks, and not for a copy of them.
        large = [*words, "-P", "model.width=512", "-P", "train.batch_sequences=4", "-P", "moe.experts=16", "-P",
                 "moe.inner=4096"]
        self.assertRefused(self.program.run(*large, "--node-gib", "1"), "memory", r"it would fit with train\.save=wait")

    def test_bench(self):
        """What a checkpoint costs, in both ways; nothing of it is left."""
        os.mkdir(self.path("scratch"))
        words = ["bench", self.program.config, "-n", "2", "-w", "1", "--save", self.path("scratch")]
        table = self.program.run(*words, ranks=2)
        self.assertFine(table)
        self.assertTrue(re.search(r"checkpoint +updates wait [\d.]+ ms \([\d.]+ updates\); written in the background they wait "
                                  r"[\d.]+ ms .*\n +the next \d+ take -?[\d.]+ ms", table.out), table)
        found = json.loads(self.program.run(*words, "--json").out)["checkpoint"]
        self.assertGreater(found["wait_seconds"], 0)
        self.assertGreater(found["background_wait_seconds"], 0)
        self.assertGreaterEqual(found["background_updates"], 1)
        self.assertGreater(found["copy_bytes"], 8640 * 12)  # three numbers for each parameter of the experts
        self.assertEqual(os.listdir(self.path("scratch")), [])
        for ranks in (1, 2):
            self.assertRefused(self.program.run(*words[:-1], self.path("text.txt"), ranks=ranks), "io", "cannot make")


if __name__ == "__main__":
    p.main()
