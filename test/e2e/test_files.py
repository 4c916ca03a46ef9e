#!/usr/bin/env python3
"""Files seen from outside: in what order they are written, flushed and renamed, and whether damage is noticed.

    test_files.py --program stablemoe --watch libwatch_files.so

A preloaded library (watch_files.c) notes the calls and spoils single bytes between writing and reading back.
"""

import os
import shutil
import sys

import program as p

import h5py
import numpy as np

# Taken before the other options: the library to preload.
WATCH = os.path.abspath(sys.argv.pop(sys.argv.index("--watch") + 1))
sys.argv.remove("--watch")

SETTINGS = ("train.updates=2", "train.checkpoint_every=2", "schedule.warmup=1", "router.stage1_updates=1",
            "train.evaluate_every=2", "log.tokens_every=1")
BESIDE = ["train.save=background", "train.checkpoint_every=1"]


class Watched(p.ProgramTest):
    settings = SETTINGS

    @classmethod
    def watched(cls, log=None, spoil=None):
        """The environment of a process that is watched; its sanitizer, where it has one, must not mind."""
        env = {"LD_PRELOAD": WATCH, "ASAN_OPTIONS": os.environ.get("ASAN_OPTIONS", "") + ":verify_asan_link_order=0"}
        return {**env, **({"WATCH_LOG": log} if log else {}), **({"WATCH_SPOIL": spoil} if spoil else {})}


class Order(Watched):
    def calls(self, name):
        with open(self.path(name)) as file:
            return [line.split() for line in file]

    def check(self, calls, final):
        """All writes to the part file, then its fsync, the rename, and the directory's fsync, in this order."""
        part, folder = final + ".part", os.path.dirname(final)
        at = {what: [i for i, call in enumerate(calls) if call == [*what]]
              for what in (("write", part), ("fsync", part), ("rename", part, final), ("fsync", folder))}
        writes, flushes, renames, folders = at.values()
        self.assertTrue(writes and flushes and renames and folders, (final, at))
        self.assertEqual(len(renames), 1, final)
        self.assertLess(max(writes), flushes[-1], f"{part} is written to after its last fsync")
        self.assertLess(flushes[-1], renames[0], f"{part} is renamed before it is flushed")
        self.assertTrue(any(i > renames[0] for i in folders), f"{folder} is not flushed after {final} has its name")
        self.assertNotIn(["write", final], calls, "written to under its final name")

    def test_run(self):
        for ranks in (1, 2):
            with self.subTest(ranks=ranks):
                log = self.path(f"run-{ranks}.log")
                self.assertFine(self.train(f"order-{ranks}", ranks=ranks, env=self.watched(log)))
                run, calls = os.path.realpath(self.path(f"order-{ranks}")), self.calls(log)
                for name in ("checkpoints/step-000000002.h5", "routing/step-000000002.h5"):
                    self.check(calls, os.path.join(run, name))
                # The link changes when the checkpoint has its name, and by a rename.
                final, latest = (os.path.join(run, "checkpoints", n) for n in ("step-000000002.h5", "latest"))
                names = [call[-1] for call in calls if call[0] == "rename"]
                self.assertLess(names.index(final), names.index(latest))

    def test_background(self):
        """The same order where a thread writes: of the checkpoint of update 1, which the next update does not wait for."""
        for ranks in (1, 2):
            with self.subTest(ranks=ranks):
                log = self.path(f"beside-{ranks}.log")
                self.assertFine(self.train(f"beside-{ranks}", BESIDE, ranks=ranks, env=self.watched(log)))
                run, calls = os.path.realpath(self.path(f"beside-{ranks}")), self.calls(log)
                final, latest = (os.path.join(run, "checkpoints", n) for n in ("step-000000001.h5", "latest"))
                self.check(calls, final)
                names = [call[-1] for call in calls if call[0] == "rename"]
                self.assertLess(names.index(final), names.index(latest))
                # Every rank flushes what it has written, and rank 0 the whole.
                self.assertGreaterEqual(calls.count(["fsync", final + ".part"]), ranks + 1)

    def test_corpus(self):
        log, corpus = self.path("corpus.log"), os.path.realpath(self.path("other.h5"))
        self.assertFine(self.program.run("prepare", self.path("text.txt"), "-o", corpus, "--vocab", 300,
                                         env=self.watched(log)))
        self.check(self.calls(log), corpus)

    def test_export(self):
        """Written by way of the C library, whose writes cannot be watched: flushed, then renamed."""
        run, log, final = self.trained("exported"), self.path("export.log"), os.path.realpath(self.path("e.safetensors"))
        self.assertFine(self.program.run("export", run, "-o", final, env=self.watched(log)))
        calls = self.calls(log)
        self.assertLess(calls.index(["fsync", final + ".part"]), calls.index(["rename", final + ".part", final]))


class Spoiled(Watched):
    """A byte that is not on the disk as it was written is seen before the file has its name."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.good = cls.trained("good")

    def places(self, path, only):
        """(dataset, offset in the file): of the first one four bytes, of the others the last."""
        with h5py.File(path, "r") as file:
            for name in only:
                data = file[name]
                begin, size = data.id.get_offset(), data.id.get_storage_size()  # from the file's first byte
                for at in (0, 9, size // 2, size - 1) if name == only[0] else (size - 1,):
                    yield name, begin + at

    def check(self, folder, datasets, good="good", settings=(), update=2):
        name = f"{folder}/step-{update:09d}.h5"
        jobs = {}
        for dataset, offset in self.places(self.path(good, name), datasets):
            run = f"{folder}-{update}-{len(jobs)}"
            jobs[dataset, offset] = lambda r=run, o=offset: (
                r, self.train(r, settings, env=self.watched(self.path(r + ".log"), f"{name}.part@{o}")))
        for (dataset, offset), (run, result) in p.several(jobs, 2):
            with self.subTest(dataset, offset=offset):
                with open(self.path(run + ".log")) as file:
                    self.assertIn("spoil ", file.read(), "nothing was spoiled")
                self.assertRefused(result, "io", "does not read back as it was written|do not read back")
                self.assertFalse(os.path.exists(self.path(run, name)))
                self.assertEqual(p.part_files(self.path(run)), [])

    def test_checkpoint(self):
        self.check("checkpoints", ["param/embedding/table", "param/moe0/expert/ffn0/w1", "adam/v/norm/beta",
                                   "checksum/param/moe0/expert/ffn0/w1"])

    def test_background(self):
        self.trained("beside", BESIDE)
        self.check("checkpoints", ["param/embedding/table", "checksum/param/moe0/expert/ffn0/w1"], "beside", BESIDE, 1)

    def test_routing_log(self):
        self.check("routing", ["load", "probe/distilled", "tokens/expert", "tokens/gate"])


class Tokens(p.ProgramTest):
    """One token that is another one: the seal leaves tokens out, their fingerprint does not."""

    settings = SETTINGS

    def test_flipped(self):
        with h5py.File(self.corpus, "r") as file:
            splits = {name: (file[f"{name}/tokens"].id.get_offset(), file[f"{name}/tokens"][()])
                      for name in ("train", "valid", "test")}
        for split, (offset, tokens) in splits.items():
            for place in (0, len(tokens) // 2, len(tokens) - 1):
                with self.subTest(split, place=place):
                    path = self.path(f"{split}-{place}.h5")
                    shutil.copy(self.corpus, path)
                    other = tokens[place] ^ 1  # a token too: only the fingerprint can tell
                    with open(path, "r+b") as file:
                        file.seek(offset + 2 * place)
                        file.write(np.array([other], "<u2").tobytes())
                    with h5py.File(path, "r") as file:
                        self.assertEqual(int(file[f"{split}/tokens"][place]), other)
                    self.assertRefused(self.program.run("info", path, "--verify"), "format", "fingerprint")
                    if place == 0:
                        self.assertRefused(self.train("refused", [f"data.corpus={path}"]), "format", "fingerprint")

    def test_swapped(self):
        """The same tokens, shared out otherwise between the splits, are another corpus."""
        with h5py.File(self.corpus, "r") as file:
            valid, test = file["valid/tokens"], file["test/tokens"]
            places = [(d.id.get_offset(), d[0]) for d in (valid, test)]
        if places[0][1] == places[1][1]:
            self.fail("both splits begin with the same token: another text")
        path = self.path("swapped.h5")
        shutil.copy(self.corpus, path)
        with open(path, "r+b") as file:
            for (offset, _), (_, token) in zip(places, reversed(places)):
                file.seek(offset)
                file.write(np.array([token], "<u2").tobytes())
        self.assertRefused(self.program.run("info", path, "--verify"), "format", "fingerprint")


class Blocks(p.ProgramTest):
    """Values of a checkpoint that changed places: each checksum is a sum over blocks of 1024, and knows their order."""

    settings = SETTINGS

    def test_swapped(self):
        name = "param/embedding/table"
        run = self.trained("swapped")
        path = os.path.join(run, "checkpoints", "step-000000002.h5")
        with h5py.File(path, "r") as file:
            offset, size = file[name].id.get_offset(), file[name].size
            checksum = int(file[f"checksum/{name}"][()])
        self.assertGreater(size, 2 * 1024)
        with open(path, "r+b") as file:
            file.seek(offset)
            blocks = file.read(2 * 4096)
            file.seek(offset)
            file.write(blocks[4096:] + blocks[:4096])
        with h5py.File(path, "r") as file:
            self.assertEqual(int(file[f"checksum/{name}"][()]), checksum)
            self.assertEqual(file[name][()].tobytes()[:8192], blocks[4096:] + blocks[:4096])
        self.assertRefused(self.program.run("info", path, "--verify"), "format", "damaged: 1 of")


if __name__ == "__main__":
    p.main()
