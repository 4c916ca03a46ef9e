#!/usr/bin/env python3
"""Runs that begin with the parameters of another one: train.initial."""

import os
import re
import shutil

import h5py
import numpy as np

import program as p

LOGGED = ("log.load_every=1", "log.probe_every=1", "log.tokens_every=1")
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
        more = ("model.family=decoder", "moe.layers=0", "model.blocks=3")
        result = self.train("more", (*more, f"train.initial={self.dense}/checkpoints/step-000000002.h5"))
        self.assertFine(result)
        for pattern in (r"block1/ffn +\d+  taken", r"block2/attention +\d+  drawn", r"\(2 updates\)"):
            self.assertRegex(result.out + result.err, pattern)
        fewer = ("model.family=decoder", "moe.layers=0", "model.blocks=1", f"train.initial={self.dense}")
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

    def test_frozen(self):
        """What learns has the gradients that it has in a run where all learn; the rest has neither gradient nor moments."""
        wide = ("model.blocks=3", "moe.identical_experts=false", "optimizer.clip=0", "train.updates=1", "train.micro_batches=2")
        moe = ("model.family=decoder", "moe.sublayers=1", "model.decoder.moe_every=2", "model.decoder.biases=true",
               "model.decoder.norm=layer", "model.decoder.shared_experts=1", "router.method=topk")
        cases = {"upper": (moe, "train.frozen=embedding/*,block0/*,moe0/router/*,moe0/shared/*", ("embedding", "block0", "moe0/router", "moe0/shared")),
                 "experts": (moe, "train.frozen=moe0/expert/*,*norm/gamma", ("moe0/expert", "norm/gamma")),
                 "router": (moe, "train.only=moe0/router/*", None),
                 "stable": ((), "train.frozen=moe0/router/*,block1/attention/qkv/*", ("moe0/router", "block1/attention/qkv")),
                 "one": (("moe.layers=0",), "train.only=block1/ffn/b1", None)}
        jobs = {}
        for case, (family, pattern, _) in cases.items():
            for name, more, ranks in ((case, (), 1), (f"{case}-all", None, 1), (f"{case}-two", ("train.recompute=true",), 2)):
                settings = (*wide, *family, *((pattern, *more) if more is not None else ()))
                jobs[name] = lambda n=name, s=settings, r=ranks: self.train(n, s, ranks=r)
        for name, result in p.several(jobs, 3):
            with self.subTest(name):
                self.assertFine(result)
        for case, (_, pattern, parts) in cases.items():
            with self.subTest(case):
                free, held = (p.datasets(self.path(run, "checkpoints", "latest")) for run in (f"{case}-all", case))
                moments = {name for name in held if name.startswith("adam/m/")}
                self.assertEqual(p.column(self.path(case), "loss"), p.column(self.path(f"{case}-all"), "loss"))
                learned = {name for name in free if name.startswith("adam/m/")}
                wanted = {name for name in learned if parts and not any(part in name for part in parts)} if parts else \
                    {name for name in learned if "block1/ffn/b1" in name or "moe0/router" in name}
                self.assertEqual(moments, wanted)
                for name in moments:
                    self.assertTrue(np.array_equal(held[name], free[name]), name)
                self.assertSameRun(self.path(f"{case}-two"), self.path(case), (1,))
        # A frozen parameter keeps the value that it was drawn with.
        begun = values(self.trained("begun", (*wide, *moe, "optimizer.lr=0")) + "/checkpoints/latest")
        held = values(self.path("upper", "checkpoints", "latest"))
        for name, value in held.items():
            self.assertEqual(np.array_equal(value, begun[name]), any(part in name for part in cases["upper"][2]), name)

    def test_frozen_refused(self):
        """Patterns that hit nothing, or leave nothing; moments that are not there."""
        cases = {"train.frozen=blok0/*": "no parameter matches 'blok0/", "train.only=none": "no parameter matches 'none'",
                 "train.frozen=*": "leave no parameter to learn"}
        for setting, pattern in cases.items():
            self.assertRefused(self.train("frozen", (*DENSE, setting)), "config", pattern)
        self.trained("thaw", (*DENSE, "train.frozen=block0/*", "train.updates=1"))
        self.assertRefused(self.train("thaw", (*DENSE, "train.updates=2"), resume=True), "format", "lacks 'adam/m/block0/")
        self.assertFine(self.train("thaw", (*DENSE, "train.frozen=block*", "train.updates=2"), resume=True))

    def test_upcycled(self):
        """Before the first update the upcycled model has the dense model's losses; on other ranks the same experts."""
        topk = ("model.family=decoder", "moe.sublayers=1", "router.method=topk", "optimizer.lr=0", "train.updates=1",
                "train.evaluate_every=1", f"train.initial={self.dense}", "moe.from=ffn")
        cases = {"copies": ("moe.inner=64",), "halves": ("moe.inner=32",),
                 "quarters": ("moe.inner=16", "moe.experts=8", "router.topk.k=8"),
                 "drawn": ("moe.inner=32", "moe.from_redrawn=0.5", "moe.from_noise=0.1")}
        jobs = {"dense0": lambda: self.train("dense0", (*DENSE, *topk[3:-1]))}
        for name, settings in cases.items():
            for ranks in (1, 2) if name in ("halves", "drawn") else (1,):
                jobs[f"{name}{ranks}"] = lambda n=f"{name}{ranks}", s=settings, r=ranks: self.train(n, (*topk, *s), ranks=r)
        for name, result in p.several(jobs, 3):
            with self.subTest(name):
                self.assertFine(result)
        for column in ("loss", "valid_loss"):
            dense = p.column(self.path("dense0"), column)[0]
            for name in cases:
                own = p.column(self.path(f"{name}1"), column)[0]
                self.assertEqual(abs(own - dense) < 2e-6 * dense, name != "drawn", f"{column} of {name}: {own}, {dense}")
        for name in ("halves", "drawn"):
            self.assertSameRun(self.path(f"{name}2"), self.path(f"{name}1"), (1,))
        # What the drawn experts are made of: half of the units as they were but for the noise, and each expert its own.
        dense, drawn = (values(self.path(run, "checkpoints", "latest")) for run in ("dense0", "drawn1"))
        w1, experts = dense["block0/ffn/w1"], drawn["moe0/expert/ffn0/w1"]
        kept = np.zeros(4)
        for e in range(4):
            whole = np.concatenate([w1[h * 64 + e % 2 * 32:h * 64 + e % 2 * 32 + 32] for h in (0, 1)])
            near = np.abs(experts[e] - whole).max(axis=1) < 0.6 * np.sqrt((w1 ** 2).mean())
            self.assertTrue(np.array_equal(near[:32], near[32:]), "both rows of a unit are drawn anew, or none")
            kept[e] = near.mean()
        self.assertTrue(np.all((kept > 0.15) & (kept < 0.85)), kept)
        self.assertFalse(np.array_equal(experts[0], experts[2]))

    def test_upcycling_refused(self):
        base = ("model.family=decoder", "moe.sublayers=1", "router.method=topk", "moe.from=ffn")
        initial = f"train.initial={self.dense}"
        cases = ((("moe.inner=64",), "name it by train.initial"), (("moe.inner=48", initial), "has to divide"),
                 (("moe.inner=16", initial), "have to be multiples"),
                 (("moe.inner=64", "model.decoder.shared_experts=1", initial), "shared_experts=0"),
                 (("moe.inner=64", "model.decoder.biases=true", initial), "use of biases"))
        jobs = {case: lambda c=case, i=i: self.train(f"upcycle{i}", (*base, *c[0])) for i, case in enumerate(cases)}
        for (_, pattern), result in p.several(jobs, 3):
            with self.subTest(pattern):
                self.assertRefused(result, "config", pattern)

    def test_skipping(self):
        """Gates of zero change nothing; tuned ones are the same on any ranks and after a resume, and generation uses them."""
        tune = (*DENSE, "model.blocks=4", "train.only=*/gate", "model.skip.target=0.2", "model.skip.weight=5",
                "optimizer.lr=0.05", "train.updates=6", "train.micro_batches=2", "train.checkpoint_every=3", *LOGGED)
        deep = self.trained("deep", (*DENSE, "model.blocks=4", "train.updates=3"))
        jobs = {"plain": lambda: self.train("plain", (*DENSE, "model.blocks=4", f"train.initial={deep}", "train.updates=1"))}
        variants = {"attention": ("model.skip.what=attention",), "whole": ("model.skip.what=attention", "model.skip.mean=whole"),
                    "ffn": ("model.skip.what=ffn", "model.skip.unit=token", "model.skip.gradient=active"),
                    "block": ("model.skip.what=block", "model.skip.gradient=masked")}
        for name, settings in variants.items():
            for ranks in (1, 3):
                jobs[f"{name}{ranks}"] = lambda n=f"{name}{ranks}", s=settings, r=ranks: self.train(
                    n, (*tune, *s, f"train.initial={deep}", *(("train.recompute=true",) if r == 3 else ())), ranks=r)
        for name, result in p.several(jobs, 3):
            with self.subTest(name):
                self.assertFine(result)
        first = p.column(self.path("plain"), "loss")[0]
        for name in variants:
            with self.subTest(name):
                run = self.path(f"{name}1")
                self.assertSameRun(self.path(f"{name}3"), run, (3, 6))
                self.assertEqual(p.column(run, "loss")[0], first)
                columns = [c for c in p.metrics(run)[0] if c.endswith("_run")]
                self.assertEqual(len(columns), 2)
                shares = np.array([p.column(run, c) for c in columns])
                self.assertTrue(np.all(shares[:, 0] == 1), shares)
                self.assertTrue(np.any(shares[:, -1] < 1), f"{name}: nothing was skipped, the test shows less: {shares}")
                self.check_log(run, shares, mixed=name != "whole")  # there all sequences of the small probe may agree
        # A resume in the middle on other ranks, and texts that skipping changes the speed of, not whether there are any.
        part = self.train("gated", (*tune, *variants["attention"], f"train.initial={deep}"),
                          env={"STABLEMOE_KILL": "checkpoint.close@0#2"})
        self.assertNotEqual(part.code, 0)
        self.assertFine(self.train("gated", (*tune, *variants["attention"], f"train.initial={deep}"), resume=True, ranks=2))
        self.assertSameRun(self.path("gated"), self.path("attention1"), (3, 6))
        texts = [self.program.run("generate", self.path("attention1"), "-n", "12", "--prompt", "the", "-t", "0", *more).out
                 for more in ((), ("--no-cache",))]
        self.assertEqual(texts[0], texts[1])

    def check_log(self, run, shares, mixed):
        """The routing log of a dense model with two gates; shares: [2, updates] of metrics.csv; mixed: some tokens of
        the probe skip, and some do not."""
        log = p.routing(run)
        self.assertFalse([name for name in log if "expert" in name or name in ("layer", "load", "slot")])
        self.assertEqual((log["ran"].shape, log["tokens/ran"].shape[:2], log["probe/ran"].shape[1]), ((6, 2), (6, 2), 2))
        self.assertTrue(np.allclose(log["ran"].T, shares, rtol=1e-9))
        self.assertTrue(np.allclose(log["tokens/ran"].mean(axis=2), log["ran"], rtol=1e-12))
        self.assertEqual(log["tokens/id"].shape, log["tokens/ran"][:, 0].shape)
        self.assertTrue(np.isin(log["probe/ran"], (0, 1)).all())
        self.assertTrue(not mixed or len(np.unique(log["probe/ran"])) == 2)
        text = self.program.run("info", os.path.join(run, "routing", p.files_of(run, "routing")[0]))
        self.assertFine(text)
        self.assertIn("/tokens/ran", text.out)

    def test_skipping_bf16(self):
        """In bf16 the same: any ranks, a resume on others, evaluation and generation; and a failure in a log of gates."""
        tune = (*DENSE, "model.blocks=4", "train.precision=bf16", "train.only=*/gate", "model.skip.target=0.2",
                "model.skip.weight=5", "optimizer.lr=0.05", "train.updates=4", "train.micro_batches=2",
                "train.checkpoint_every=2", *LOGGED)
        deep = self.trained("deep16", (*DENSE, "model.blocks=4", "train.precision=bf16", "train.updates=2"))
        begin = f"train.initial={deep}"
        variants = {"attention16": ("model.skip.what=attention",),
                    "block16": ("model.skip.what=block", "model.skip.unit=token")}
        for name, settings in variants.items():
            with self.subTest(name):
                jobs = {ranks: lambda r=ranks: self.train(f"{name}-{r}", (*tune, *settings, begin), ranks=r) for ranks in (1, 4)}
                jobs["killed"] = lambda: self.train(f"{name}-killed", (*tune, *settings, begin), ranks=3,
                                                    env={"STABLEMOE_KILL": "checkpoint.close@0#2"})
                jobs["fault"] = lambda: self.train(f"{name}-fault", (*tune, *settings, begin), ranks=2,
                                                   env={"STABLEMOE_FAULT": "routing.write@1#2"})
                results = dict(p.several(jobs, 2))
                self.assertFine(results[1])
                self.assertFine(results[4])
                self.assertSameRun(self.path(f"{name}-4"), self.path(f"{name}-1"), (2, 4))
                runs = np.array([p.column(self.path(f"{name}-1"), c) for c in p.metrics(self.path(f"{name}-1"))[0]
                                 if c.endswith("_run")])
                self.assertTrue(np.any(runs[:, -1] < 1), f"nothing was skipped, the test shows less: {runs}")
                # Killed on three ranks, and failed on two: both go on with others.
                self.assertNotEqual(results["killed"].code, 0)
                self.assertRefused(results["fault"], "io", "injected")
                for other, ranks in (("killed", 2), ("fault", 1)):
                    self.assertFine(self.train(f"{name}-{other}", (*tune, *settings, begin), resume=True, ranks=ranks))
                    self.assertSameRun(self.path(f"{name}-{other}"), self.path(f"{name}-1"), (2, 4))
                # Masked rows in training, skipped ones in evaluation: the text is that of every row computed again.
                texts = [self.program.run("generate", self.path(f"{name}-1"), "-n", "12", "--prompt", "the", "-t", "0", *more)
                         for more in ((), ("--no-cache",))]
                self.assertFine(texts[0])
                self.assertEqual(texts[0].out, texts[1].out)

    def test_skipping_refused(self):
        """A family without gates."""
        self.assertRefused(self.train("skipless", ("model.family=translation", "model.skip.what=attention")), "config",
                           "family 'translation' has no gates")


if __name__ == "__main__":
    p.main()
