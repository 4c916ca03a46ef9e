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
