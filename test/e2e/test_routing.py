#!/usr/bin/env python3
"""What routing promises over a whole run: nothing moves after the switch of stages, and the
extremes (an expert without tokens, a rank without rows, all tokens to one expert) train alike
on any number of ranks.
"""

import ctypes
import ctypes.util
import os

import h5py
import numpy as np

import program as p

# Checksums are taken over blocks of this many numbers.
BLOCK = 1024


def checksum(values, hash64):
    """As stablemoe makes it: the sum of a hash per block, seeded with the block's number."""
    total = 0
    flat = np.ascontiguousarray(values).ravel()
    for i in range(0, len(flat), BLOCK):
        data = flat[i:i + BLOCK].tobytes()
        total += hash64(data, len(data), i // BLOCK)
    return total % 2**64


def xxh3():
    name = ctypes.util.find_library("xxhash")
    if not name:
        return None
    function = ctypes.CDLL(name).XXH3_64bits_withSeed
    function.argtypes = [ctypes.c_char_p, ctypes.c_size_t, ctypes.c_uint64]
    function.restype = ctypes.c_uint64
    return function


def unseal(path):
    """Write a file anew without its seal, which would tell that another program has changed it."""
    with h5py.File(path, "r") as old, h5py.File(f"{path}.new", "w") as new:
        new.attrs.update(old.attrs)
        for name in old:
            old.copy(name, new)
    os.replace(f"{path}.new", path)


class SecondStage(p.ProgramTest):
    """Two MoE layers, on two ranks, with decay and dropped tokens: nothing of that may move the routing."""

    settings = ("train.updates=20", "router.stage1_updates=10", "train.checkpoint_every=5", "train.keep_last=0",
                "log.tokens_every=1", "moe.layers=2", "moe.position=scattered", "moe.capacity_factor=1.0",
                "optimizer.decay=0.1", "optimizer.lr=0.01")

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.run_path = cls.trained("run", ranks=2)
        cls.log = p.routing(cls.run_path)

    def test_every_token_keeps_its_expert(self):
        token_id, expert = self.log["tokens/id"], p.chosen(self.log["tokens/expert"][..., 0])
        step = self.log["tokens/step"]
        self.assertEqual(list(step), list(range(1, 21)))
        self.assertTrue((self.log["tokens/expert"][step > 10] < -1).any(), "no token was dropped in stage 2")
        for layer in range(expert.shape[1]):
            table = {}
            for row in np.flatnonzero(step > 10):
                for token, choice in zip(token_id[row], expert[row, layer]):
                    self.assertEqual(table.setdefault(token, choice), choice,
                                     f"layer {layer}, update {step[row]}: token {token} has another expert")
            self.assertGreater(len(table), 20)
            self.assertGreater(len(set(table.values())), 1, "all tokens have one expert: that shows nothing")
            self.check_probe(layer, table)

    def check_probe(self, layer, table):
        """Held-out tokens go where the same tokens go in training."""
        last = self.log["probe/expert"][-1, layer]
        shared = [(token, choice) for token, choice in zip(self.log["probe/token"], last) if token in table]
        self.assertGreater(len(shared), 20)
        for token, choice in shared:
            self.assertEqual(table[token], choice, f"layer {layer}: token {token} of the probe")

    def test_no_fluctuation_after_the_switch(self):
        step, expert = self.log["probe/step"], self.log["probe/expert"]
        self.assertEqual(list(step), list(range(1, 21)))
        # Row 10 was taken when update 10 was done: stage 2 has begun then.
        after = expert[step >= 10]
        self.assertEqual(int((after != after[0]).sum()), 0, "choices changed after the switch")
        self.assertTrue((after == self.log["probe/distilled"][step >= 10]).all())
        before = expert[step < 10]
        self.assertGreater(int((before != before[0]).sum()), 0, "no choice changed in stage 1: that shows nothing")

    def test_only_the_distilled_router_is_frozen(self):
        marks = {update: p.checkpoint(self.run_path, update) for update in (5, 10, 15, 20)}
        frozen = [name for name in marks[20] if "/router/distilled/" in name and not name.startswith("checksum/")]
        # Two layers, two parameters each: values and both moments.
        self.assertEqual(len(frozen), 12, frozen)
        for name in frozen:
            self.assertEqual(p.different({name: marks[5][name]}, {name: marks[10][name]}), [name], "stage 1 trains it")
            for update in (15, 20):
                self.assertEqual(p.different({name: marks[10][name]}, {name: marks[update][name]}), [],
                                 f"update {update}")
        for name in marks[20]:
            if name.startswith(("param/", "adam/")) and name not in frozen:
                for one, other in ((10, 15), (15, 20)):
                    self.assertFalse(np.array_equal(marks[one][name], marks[other][name]),
                                     f"{name} is the same at updates {one} and {other}")
        centroid = "param/moe1/router/centroid"
        self.assertIn(centroid, marks[20])


class OtherSecondStages(p.ProgramTest):
    """Distilled routers that look at a token's neighbours too, and of another method."""

    settings = ("train.updates=12", "router.stage1_updates=6", "train.checkpoint_every=6", "train.keep_last=0",
                "optimizer.decay=0.1", "optimizer.lr=0.01")

    def test_frozen(self):
        methods = {features: [f"router.stable.features={features}"] for features in ("bigram", "cnn", "transformer")}
        methods["base_stage2"] = ["router.method=base_stage2"]
        jobs = {name: lambda n=name, s=settings: self.train(n, s, ranks=2) for name, settings in methods.items()}
        for name, result in p.several(jobs):
            with self.subTest(name):
                self.assertFine(result)
                run = self.path(name)
                begin, end = p.checkpoint(run, 6), p.checkpoint(run, 12)
                frozen = [n for n in end if "/router/distilled/" in n]
                self.assertGreaterEqual(len(frozen), 6, frozen)
                self.assertEqual(p.different({n: begin[n] for n in frozen}, {n: end[n] for n in frozen}), [])
                log = p.routing(run)
                after = log["probe/expert"][log["probe/step"] >= 6]
                self.assertEqual(len(after), 7)
                self.assertEqual(int((after != after[0]).sum()), 0, "choices changed after the switch")
                self.assertGreater(len(np.unique(after)), 1, "all tokens have one expert: that shows nothing")


class Extremes(p.ProgramTest):
    # The second stage from the first update on: where tokens go follows from the distilled router alone.
    settings = ("train.updates=6", "router.stage1_updates=0", "train.checkpoint_every=2", "train.keep_last=0",
                "schedule.kind=constant", "schedule.warmup=1", "log.tokens_every=2")

    def on_ranks(self, name, settings, base=None):
        """Runs of 1, 2, 3 and 4 ranks that must agree; the path of the first."""
        jobs = {}
        for ranks in (1, 2, 3, 4):
            if base:
                self.copy(base, f"{name}-{ranks}")
            jobs[ranks] = lambda r=ranks: self.train(f"{name}-{r}", settings, ranks=r, resume=bool(base))
        for ranks, result in p.several(jobs):
            with self.subTest(name, ranks=ranks):
                self.assertFine(result)
                self.assertSameRun(self.path(f"{name}-{ranks}"), self.path(f"{name}-1"), [4, 6])
        return self.path(f"{name}-1")

    def test_experts_without_tokens(self):
        """With one number per token the scores are its multiples: only the largest and the smallest win."""
        run = self.on_ranks("idle", ["router.stable.width=1"])
        load = p.routing(run)["load"][:, 0]
        self.assertEqual(load.shape, (6, 4))
        busy = np.flatnonzero(load.sum(axis=0))
        self.assertEqual(len(busy), 2, f"two of four experts, and so of four ranks, get rows: {load}")
        self.assertTrue((load[:, busy] > 0).all())
        self.assertEqual(p.column(run, "moe0_dead"), [2.0] * 6)
        first, last = p.checkpoint(run, 2), p.checkpoint(run, 6)
        for name in (name for name in last if "/moe0/expert/" in name and not name.startswith("checksum/")):
            for e in range(4):
                moved = not np.array_equal(first[name][e], last[name][e])
                self.assertEqual(moved, e in busy, f"{name} of expert {e}")
                if name.startswith("adam/") and e not in busy:
                    self.assertFalse(last[name][e].any(), f"{name} of expert {e}, which no gradient reached")

    def test_all_tokens_to_one_expert(self):
        hash64 = xxh3()
        if not hash64:
            self.skipTest("libxxhash is not found, which a changed checkpoint's checksums need; jobs/install.sh brings it")
        self.trained("one-base", ["router.stable.width=1", "train.updates=2"])
        path = self.path("one-base", "checkpoints", "step-000000002.h5")
        unseal(path)
        with h5py.File(path, "r+") as file:
            for name in p.datasets(path, ("param/", "adam/")):
                stored = file["checksum/" + name.replace("adam/", "adam_")][()]
                values = file[name][()]
                sums = [checksum(v, hash64) for v in values] if stored.shape else checksum(values, hash64)
                self.assertEqual(np.asarray(stored).tolist(), sums, f"checksum of {name}")
            # Scores 1 for expert 3, the last rank's, and 0 for the others, whatever the token.
            for name, value in (("embedding", 1), ("centroid", [[0], [0], [0], [1]])):
                name = f"param/moe0/router/distilled/{name}"
                file[name][...] = value
                file[f"checksum/{name}"][...] = np.uint64(checksum(file[name][()], hash64))
        self.assertFine(self.program.run("info", path, "--verify"))
        for name, settings, dropped in (("one", [], 0), ("one-capacity", ["moe.capacity_factor=1.0"], 0.75)):
            run = self.on_ranks(name, ["router.stable.width=1", *settings], base="one-base")
            log = p.routing(run)
            n = log["tokens/id"].shape[1]
            self.assertEqual(log["load"][log["step"] > 2, 0].tolist(), [[0, 0, 0, n]] * 4)
            self.assertTrue((p.chosen(log["tokens/expert"][log["tokens/step"] > 2]) == 3).all())
            self.assertEqual(p.column(run, "moe0_drop_rate")[2:], [dropped] * 4)

    def test_ranks_without_tokens(self):
        """Evaluation and generation take more ranks than there are lanes."""
        run = self.trained("lanes", ["train.lanes=2"])
        for args in (["evaluate", run, "--json"], ["generate", run, "-p", "a", "-n", "5"]):
            results = {n: self.program.run(*args, ranks=n) for n in (1, 4)}
            for ranks, result in results.items():
                with self.subTest(args[0], ranks=ranks):
                    self.assertFine(result)
                    self.assertTrue(result.out.strip(), result)
                    self.assertEqual(result.out, results[1].out)


if __name__ == "__main__":
    p.main()
