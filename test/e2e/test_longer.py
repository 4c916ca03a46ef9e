#!/usr/bin/env python3
"""A run that is resumed with another configuration: another batch, a longer training."""

import re

import program as p


class Longer(p.ProgramTest):
    settings = ("train.checkpoint_every=10", "train.evaluate_every=0", "train.evaluate_sequences=2",
                "train.keep_last=0", "schedule.kind=constant", "schedule.warmup=5")

    def meta(self, run, update):
        with p.h5py.File(self.path(run, "checkpoints", f"step-{update:09d}.h5")) as file:
            return dict(file["meta"].attrs)

    def ids(self, run):
        """Token ids that training read, one sequence after the other."""
        found = []
        for name in p.files_of(self.path(run), "routing"):
            with p.h5py.File(self.path(run, "routing", name)) as file:
                found.append(file["tokens/id"][()].reshape(-1, 16))
        return p.np.concatenate(found)

    def test_another_batch(self):
        """The data goes on where it was, and what is counted is what was seen."""
        settings = ["log.tokens_every=1", "router.stage1_updates=10"]
        for batch, run in ((4, "smaller"), (12, "larger")):
            with self.subTest(run):
                self.trained(run, [*settings, "train.updates=20"])
                more = [*settings, "train.updates=30", f"train.batch_sequences={batch}"]
                result = self.train(run, more, resume=True, ranks=2)
                self.assertFine(result)
                self.assertIn(f"train.batch_sequences: 8 -> {batch}", result.err)
                seen = 20 * 8 + 10 * batch
                self.assertEqual(p.column(self.path(run), "tokens")[-1], seen * 16)
                meta = self.meta(run, 30)
                self.assertEqual((meta["tokens"], meta["sequences"]), (seen * 16, seen))
                # The order of sequences does not depend on the batch: as many in one go are the same ones.
                self.trained(f"{run}-whole", [*settings, "train.batch_sequences=4", f"train.updates={seen // 4}"])
                p.np.testing.assert_array_equal(self.ids(run), self.ids(f"{run}-whole"))
                # And once more, where the offset of the data is not 0 already.
                self.assertFine(self.train(run, [*settings, "train.updates=35"], resume=True))
                self.assertEqual(self.meta(run, 35)["sequences"], seen + 5 * 8)

    def test_stage2_stays(self):
        """A tenth of more updates is later; the router that was frozen stays so, whichever file is given."""
        start = ["router.stage1_updates=-1", "log.probe_every=-1", "train.updates=100"]
        self.trained("frozen", start)
        frozen = p.checkpoint(self.path("frozen"), 100)
        routers = [name for name in frozen if name.startswith("param/moe0/router/")]
        learning = ["param/moe0/router/centroid"]  # it makes the gates
        self.assertIn("param/moe0/router/distilled/centroid", routers)
        self.copy("frozen", "by-used")
        longer = ["train.updates=2400"]
        stop = ["run.max_minutes=0.0001"]
        files = {"frozen": self.train_args("frozen", [*start[:2], *longer, *stop], resume=True),
                 "by-used": ["train", self.path("by-used", "used.yml"), "--resume", "-P",
                             f"run.directory={self.path('by-used')}", "-P", longer[0], "-P", stop[0]]}
        for run, args in files.items():
            with self.subTest(run):
                result = self.program.run(*args)
                self.assertEqual(result.code, p.STOPPED, result)
                self.assertNotIn("stage1_updates", result.err)
                with open(self.path(run, "used.yml")) as file:
                    used = file.read()
                self.assertIn("stage1_updates: 10\n", used)
                self.assertIn("probe_every: 1\n", used)
                self.assertEqual(p.column(self.path(run), "stage"), [1] * 10 + [2] * 91)
                after = p.checkpoint(self.path(run), 101)
                self.assertEqual(p.different({n: frozen[n] for n in routers}, {n: after[n] for n in routers}),
                                 learning)

    def test_stage2_is_not_undone(self):
        self.trained("refrozen", ["train.updates=20"])
        result = self.train("refrozen", ["train.updates=30", "router.stage1_updates=25"], resume=True)
        self.assertFine(result)
        self.assertRegex(result.err, "warning: router.stage1_updates = 25 is not taken: stage 2 of '.*' began at update 10")
        self.assertEqual(p.column(self.path("refrozen"), "stage"), [1] * 10 + [2] * 20)

    def test_stage1_goes_on(self):
        """While stage 1 lasts, its end may be moved."""
        self.trained("longer", ["train.updates=20", "router.stage1_updates=20"])
        result = self.train("longer", ["train.updates=30", "router.stage1_updates=25"], resume=True)
        self.assertFine(result)
        self.assertTrue(re.search("router.stage1_updates: 20 -> 25", result.err), result)
        self.assertEqual(p.column(self.path("longer"), "stage"), [1] * 25 + [2] * 5)


if __name__ == "__main__":
    p.main()
