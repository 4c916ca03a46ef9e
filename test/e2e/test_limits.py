#!/usr/bin/env python3
"""Limits in which a routing method has to equal another one, bit for bit: whole runs are compared."""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import program as p  # noqa: E402

SAME = {
    # Every id sees one expert: Hash layers. The router's weights have no gradient.
    "mask-hash": (["router.method=mask", "router.mask.frequent_visible=1"], ["router.method=hash"]),
    # Every id sees all: Switch without noise.
    "mask-switch": (["router.method=mask", "router.mask.frequent_visible=4", "router.mask.rare_visible=4",
                     "router.mask.balance_weight=0.02"],
                    ["router.method=switch", "router.switch.jitter=0", "router.switch.balance_weight=0.02"]),
    # And visits several: top-k, with gates that add up to 1 and with those that are probabilities.
    "mask-topk": (["router.method=mask", "router.mask.k=3", "router.mask.normalise=true", "router.mask.rare_visible=4",
                   "router.mask.balance_weight=0.02"],
                  ["router.method=topk", "router.topk.k=3", "router.topk.balance_weight=0.02"]),
    "mask-topk-plain": (["router.method=mask", "router.mask.k=2", "router.mask.rare_visible=4"],
                        ["router.method=topk", "router.topk.k=2", "router.topk.normalise=false"]),
    # The best expert alone takes part: top-1 with gate 1, whose router has no gradient.
    "sparsemixer-top-1": (["router.method=sparsemixer", "router.sparsemixer.epsilon=0", "router.sparsemixer.omega=false",
                           "router.sparsemixer.bias=false", "router.sparsemixer.balance_weight=0"],
                          ["router.method=topk", "router.topk.k=1", "router.topk.balance_weight=0"]),
}
# Methods with more than one router's parameters to keep.
RESUMED = {
    "recurrent": ["router.method=recurrent", "router.recurrent.bias_rate=0.01"],
    "sparsemixer": ["router.method=sparsemixer", "router.sparsemixer.k=2", "router.sparsemixer.epsilon=0.5"],
}
FORM = ["moe.layers=2", "moe.position=scattered", "train.micro_batches=2", "moe.capacity_factor=1.2"]


class Limits(p.ProgramTest):
    settings = ("train.updates=12", "train.checkpoint_every=12", "schedule.warmup=2")

    def test_limits(self):
        for name, sides in SAME.items():
            runs = [self.path(f"{name}-{i}") for i in range(2)]
            for i, settings in enumerate(sides):
                self.assertFine(self.train(f"{name}-{i}", FORM + settings, ranks=1 + i))
            with self.subTest(name):
                for column in ("loss", "balance", "valid_loss", "moe0_max_over_mean", "moe1_drop_rate"):
                    one, other = (p.column(run, column) for run in runs)
                    if column == "balance" and name == "mask-hash":
                        continue  # a loss without a gradient, which Hash does not have
                    self.assertEqual([str(x) for x in one], [str(x) for x in other], column)
                a, b = (p.checkpoint(run, 12) for run in runs)
                shared = [n for n in a if n.startswith("param/") and n in b]
                self.assertGreater(len(shared), 20)
                for n in shared:
                    if not (name == "mask-hash" and n.endswith("router/centroid")):
                        self.assertTrue((a[n] == b[n]).all(), n)

    def test_more_than_any_id_sees(self):
        result = self.train("mask-k", FORM + ["router.method=mask", "router.mask.k=3", "router.mask.frequent_visible=2"])
        self.assertEqual(result.code, 2, result)
        self.assertRegex(result.err, "router.mask.k 3 is more than any token id sees: 2 of moe.experts 4")

    def test_table_of_another_run(self):
        """Hash layers whose table is another run's distilled router: its experts of stage 2, learned gates."""
        stable = FORM + ["router.method=stable", "router.stage1_updates=8", "log.tokens_every=1"]
        self.assertFine(self.train("table-of", stable))
        for name, more in (("path", []), ("checkpoint", ["router.hash.gate=sigmoid"])):
            path = self.path("table-of") + ("" if name == "path" else "/checkpoints/latest")
            self.assertFine(self.train(f"table-{name}", FORM + more + ["router.method=hash", f"router.hash.table={path}"],
                                       ranks=2))
        source = p.routing(self.path("table-of"))
        values = [p.checkpoint(self.path(f"table-{name}"), 12) for name in ("path", "checkpoint")]
        last = source["stage"][-len(source["tokens/step"]):] == 2
        for m in range(2):
            table = values[0][f"param/moe{m}/router/table"]
            self.assertTrue((table == values[1][f"param/moe{m}/router/table"]).all())
            expert = p.chosen(source["tokens/expert"][last][:, m].reshape(-1))
            self.assertTrue((table[source["tokens/id"][last].reshape(-1)] == expert).all())
            self.assertGreater(len(set(expert)), 1)
        self.assertFine(self.train("table-bigram", stable + ["router.stable.features=bigram"]))
        for wrong, expected in (
                (["router.hash.table=" + self.path("table-bigram")], "features word"),
                (["router.hash.table=" + self.path("table-of"), "moe.experts=5"], "moe.experts 5 as here"),
                (["router.hash.table=" + self.path("table-path")], "that one has method hash"),
                (["router.hash.table=" + self.path("table-of"), "router.hash.variant=balanced"], "takes the place"),
                (["router.hash.table=" + self.path("nothing")], "nothing")):
            with self.subTest(expected):
                result = self.train("table-wrong", FORM + ["router.method=hash"] + wrong, ranks=2)
                self.assertNotIn(result.code, (0, None), result)
                self.assertRegex(result.err, expected)

    def test_resume(self):
        """A run goes on from its checkpoint, on other ranks, as if nothing had been."""
        for name, settings in RESUMED.items():
            settings = FORM + settings + ["train.checkpoint_every=6", "train.keep_last=0"]
            self.assertFine(self.train(name, settings))
            self.assertFine(self.train(f"{name}-again", settings))
            run = self.path(f"{name}-again")
            for folder in ("checkpoints", "routing"):
                os.remove(os.path.join(run, folder, f"step-{12:09d}.h5"))
            os.remove(os.path.join(run, "checkpoints", "latest"))
            os.symlink(f"step-{6:09d}.h5", os.path.join(run, "checkpoints", "latest"))
            result = self.train(f"{name}-again", settings, ranks=2, resume=True)
            with self.subTest(name):
                self.assertFine(result)
                self.assertIn("6 updates done", result.err)
                self.assertSameRun(run, self.path(name), (6, 12))


if __name__ == "__main__":
    p.main()
