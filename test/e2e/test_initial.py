#!/usr/bin/env python3
"""Runs that begin with the parameters of another one: train.initial."""

import re
import shutil

import h5py
import numpy as np

import program as p

DENSE = ("model.family=decoder", "moe.sublayers=1", "moe.layers=0")


def values(path):
    """Every parameter of a checkpoint, by name."""
    out = {}
    with h5py.File(path, "r") as file:
        file["param"].visititems(lambda name, item: out.update({name: item[()]}) if isinstance(item, h5py.Dataset) else None)
    return out


class Initial(p.ProgramTest):
    settings = ("train.updates=3", "schedule.warmup=1", "train.evaluate_every=3", "train.checkpoint_every=1",
                "train.keep_last=0")

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.dense = cls.trained("dense", DENSE)
        cls.moe = cls.trained("moe", ("router.method=topk", "moe.identical_experts=false"), ranks=2)

    def begin(self, name, settings, **how):
        """A run whose first update changes nothing: its checkpoint has the values that it began with."""
        run = self.trained(name, (*settings, "train.updates=1", "optimizer.lr=0"), **how)
        return values(f"{run}/checkpoints/latest")

    def test_all_values(self):
        """By name, experts too, on any number of ranks; moments begin at zero."""
        for name, run, settings in (("d", self.dense, DENSE), ("m", self.moe, ("router.method=topk",))):
            wanted = values(f"{run}/checkpoints/latest")
            runs = {f"{name}{r}": lambda n=f"{name}{r}", r=r: self.begin(n, (*settings, f"train.initial={run}"), ranks=r)
                    for r in ((1, 3) if name == "m" else (1,))}
            for key, begun in p.several(runs):
                with self.subTest(key):
                    self.assertEqual(begun.keys(), wanted.keys())
                    for parameter, value in wanted.items():
                        self.assertTrue(np.array_equal(begun[parameter], value), parameter)
        # The first step of Adam from zero moments: m = (1 - beta1) g, v = (1 - beta2) g^2.
        with h5py.File(self.path("d1", "checkpoints", "latest"), "r") as file:
            m, v = file["adam/m/block0/ffn/w2"][()], file["adam/v/block0/ffn/w2"][()]
        self.assertTrue(np.allclose((m / 0.1) ** 2, v / 0.02, rtol=1e-3, atol=1e-12))
        self.assertSameRun(self.path("m3"), self.path("m1"), (1,))

    def test_table_and_rest(self):
        """What the file lacks is drawn; what it has too much of is named, and left out where that is asked for."""
        more = ("model.family=decoder", "moe.sublayers=1", "moe.layers=0", "model.blocks=3")
        result = self.train("more", (*more, f"train.initial={self.dense}/checkpoints/step-000000002.h5"))
        self.assertFine(result)
        for pattern in (r"block1/ffn +\d+  taken", r"block2/attention +\d+  drawn", r"\(2 updates\)"):
            self.assertRegex(result.out + result.err, pattern)
        fewer = ("model.family=decoder", "moe.sublayers=1", "moe.layers=0", "model.blocks=1", f"train.initial={self.dense}")
        self.assertRefused(self.train("fewer", fewer, ranks=2), "config", "fit nowhere.*block1/attention")
        result = self.train("fewer", (*fewer, "train.initial_ignore=block1/*"))
        self.assertFine(result)
        self.assertRegex(result.out + result.err, r"block1/ffn/w1 +in the file, left out")

    def test_refused(self):
        initial = f"train.initial={self.dense}"
        cases = ((("model.heads=4",), "config", "number of heads of 'block0/attention'"),
                 (("model.decoder.rope_base=100",), "config", "rotary positions"),
                 (("model.decoder.norm=layer",), "config", "its norm of 'block0/attention'"),
                 (("model.inner=32",), "config", r"'block0/ffn/w1' is \[128, 16\].*\[64, 16\]"),
                 (("model.context=32",), "config", "model.context is 32.*cannot be extended"),
                 (("train.initial=none",), "io", "none"),
                 (("train.initial_ignore=*",), "config", "nothing of"))
        jobs = {case: lambda c=case, i=i: self.train(f"refused{i}", (*DENSE, initial, *c[0]), ranks=2 if i == 0 else 1)
                for i, case in enumerate(cases)}
        for (settings, kind, pattern), result in p.several(jobs, 3):
            with self.subTest(settings):
                self.assertRefused(result, kind, pattern)

    def test_resume_needs_no_file(self):
        """A run that is resumed takes its own checkpoint."""
        once = self.path("once")
        self.copy(self.dense, once)
        settings = (*DENSE, f"train.initial={once}")
        whole = self.trained("whole", settings)
        part = self.train("part", settings, env={"STABLEMOE_KILL": "checkpoint.close@0#3"})
        self.assertNotEqual(part.code, 0)
        shutil.rmtree(once)
        self.assertFine(self.train("part", settings, resume=True))
        self.assertSameRun(self.path("part"), whole, (2, 3))

    def test_faults(self):
        """A file that cannot be read ends all ranks with one report; a damaged one is refused."""
        settings = (*DENSE, f"train.initial={self.dense}")
        self.assertRefused(self.train("fault", settings, ranks=2, env={"STABLEMOE_FAULT": "checkpoint.load@1"}), "io", "injected")
        self.copy(self.dense, self.path("bad"))
        path = self.path("bad", "checkpoints", "step-000000003.h5")
        with h5py.File(path, "r") as file:
            at = file["param/block1/ffn/w1"].id.get_offset()
        with open(path, "r+b") as file:
            file.seek(at + 5)
            byte = file.read(1)
            file.seek(at + 5)
            file.write(bytes([byte[0] ^ 1]))
        result = self.train("damaged", (*DENSE, f"train.initial={path}"), ranks=2)
        self.assertRefused(result, "format", "checksum of 'param/block1/ffn/w1'")
        self.assertFalse(re.search(r"update 1/", result.out + result.err))


if __name__ == "__main__":
    p.main()
