#!/usr/bin/env python3
"""What one does with a trained model: texts, exports and evaluations, the same on any number of ranks."""

import json
import math
import os
import re
import stat
import subprocess
import sys
import unittest

import h5py
import numpy as np

import program as p

CONTEXT = 16


class Using(p.ProgramTest):
    settings = ("train.updates=40", "router.stage1_updates=20", "train.checkpoint_every=40",
                "train.evaluate_every=0", "schedule.kind=constant", "optimizer.lr=0.01", "log.probe_every=0")

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.run_path = cls.trained("run")
        cls.checkpoint = cls.path("run", "checkpoints", "latest")

    def on_ranks(self, *args, ranks=(1, 2, 3)):
        results = dict(p.several({n: lambda r=n: self.program.run(*args, ranks=r) for n in ranks}))
        for n, result in results.items():
            self.assertFine(result)
            self.assertEqual(result.out, results[ranks[0]].out, f"on {n} ranks: {result}")
        return results[ranks[0]].out

    def text(self, *args):
        result = self.program.run(*args)
        self.assertFine(result)
        return result.out


class Generate(Using):
    def test_same_without_the_cache(self):
        """The same tokens with and without kept keys and values, far beyond the context."""
        for name, more in (("greedy", ["-t", 0]), ("warm", ["--seed", 3]), ("top", ["-k", 20, "--top-p", 0.9]),
                           ("long prompt", ["-p", "the quick brown fox jumps over it " * 3])):
            with self.subTest(name):
                args = ["generate", self.run_path, "-n", 5 * CONTEXT, "--json", *more]
                fast, slow = json.loads(self.text(*args)), json.loads(self.text(*args, "--no-cache"))
                self.assertEqual(fast, slow)
                self.assertTrue(len(fast["tokens"]) == 5 * CONTEXT or fast["end"])

    def test_same_on_any_number_of_ranks(self):
        text = self.on_ranks("generate", self.run_path, "-p", "ab", "-p", "cd", "-n", 2 * CONTEXT, "-s", 2)
        self.assertEqual(re.findall("==> (.*) <==", text),
                         [f"prompt {a} of 2, sample {b} of 2" for a in (1, 2) for b in (1, 2)])

    def test_a_text_depends_on_nothing_else(self):
        """Not on the prompts and samples beside it, nor on how it is printed."""
        with open(self.path("prompts.txt"), "w") as file:
            file.write("ab\n\nsome other words\r\n")
        lines = self.text("generate", self.run_path, "-f", self.path("prompts.txt"), "-s", 3, "-n", 20, "--json")
        found = {(t["prompt"], t["sample"]): t for t in map(json.loads, lines.splitlines())}
        self.assertEqual(sorted(found), [(w, n) for w in ("ab", "some other words") for n in (1, 2, 3)])
        alone = self.text("generate", self.run_path, "-p", "some other words", "-n", 20)
        self.assertEqual(alone, "some other words" + found["some other words", 1]["text"] + "\n")
        self.assertEqual(len({t["text"] for t in found.values()}), 6)

    def test_sampling(self):
        def tokens(*more):
            return json.loads(self.text("generate", self.run_path, "-p", "ab", "-n", 30, "--json", *more))["tokens"]

        cold = tokens("-t", 0)
        self.assertEqual(tokens("--top-p", 0), cold)
        self.assertEqual(tokens("-k", 1), cold)
        self.assertEqual(tokens("--top-p", 1), tokens())
        self.assertNotEqual(tokens("--seed", 2), tokens())
        self.assertLess(len(set(tokens("-t", 5, "--top-p", 0.02))), len(set(tokens("-t", 5))))

    def test_no_capacity(self):
        """A capacity of the training drops no token of a text."""
        run = self.trained("capacity", ["moe.capacity_factor=1", "train.updates=10", "train.checkpoint_every=10"])
        args = ["generate", run, "-p", "ab", "-n", 2 * CONTEXT]
        self.assertEqual(self.on_ranks(*args, ranks=(1, 2)), self.text(*args, "--no-cache"))

    def test_few_sequences_under_a_capacity(self):
        """One sequence has fewer tokens than there are experts: each takes one all the same."""
        run = self.trained("tight", ["moe.experts=64", "moe.capacity_factor=1", "train.updates=2", "schedule.warmup=1",
                                     "router.stage1_updates=1"])
        for ranks in (1, 2):
            result = self.program.run("evaluate", run, "-n", 1, "--json", ranks=ranks)
            self.assertFine(result)
            self.assertLess(json.loads(result.out)["drop_rate"], 0.95)

    def test_state_over_depth(self):
        """Routers whose state goes from MoE layer to MoE layer: kept keys and values give what whole passes give."""
        run = self.trained("depth", ["router.method=recurrent", "model.blocks=3", "moe.layers=3", "moe.position=scattered",
                                     "train.updates=10", "train.checkpoint_every=10", "optimizer.router_lr_factor=5"])
        args = ["generate", run, "-p", "ab", "-n", 2 * CONTEXT]
        self.assertEqual(self.on_ranks(*args, ranks=(1, 3)), self.text(*args, "--no-cache"))

    def test_experts_that_look_ahead(self):
        run = self.trained("ahead", ["router.method=expert_choice", "router.expert_choice.evaluation=experts",
                                     "train.updates=5", "train.checkpoint_every=5"])
        result = self.program.run("generate", run, "-p", "ab", "-n", 2 * CONTEXT)
        self.assertFine(result)
        self.assertIn("looks at later tokens", result.err)
        self.assertEqual(self.text("generate", run, "-p", "ab", "-n", 2 * CONTEXT, "--no-cache"), result.out)

    def test_whole_characters(self):
        """What comes at any moment is whole UTF-8, whatever bytes the model makes."""
        command = [self.program.path, *map(str, ("generate", self.run_path, "-p", "é日本", "-t", 50, "-n", 1500))]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                              env=p.environment()) as process:
            pieces = list(iter(lambda: os.read(process.stdout.fileno(), 1 << 16), b""))
            self.assertEqual(process.wait(p.TIME_LIMIT), 0)
        for piece in pieces:
            piece.decode("utf-8")
        text = b"".join(pieces).decode("utf-8")
        self.assertTrue(text.startswith("é日本"), text[:40])
        self.assertGreater(len(text), 100)
        found = json.loads(self.text("generate", self.run_path, "-p", "é日本", "-t", 50, "-n", 1500, "--json"))
        self.assertEqual(text, "é日本" + found["text"] + "\n")
        # Characters that the model spells in bytes come whole; what is none is left out of the comparison.
        with h5py.File(self.corpus, "r") as file:
            piece, place = bytes(file["tokenizer/piece"][...]), file["tokenizer/piece_offset"][...]
        spelled = b""
        for token in found["tokens"]:
            word = piece[place[token]:place[token + 1]]
            byte = re.fullmatch(rb"<0x(..)>", word)
            spelled += bytes([int(byte[1], 16)]) if byte else b" ".join(word.split("\u2581".encode()))
        spelled = spelled.replace(b"<unk>", b"").decode("utf-8", "ignore")
        self.assertTrue(any(ord(c) > 0x7f for c in spelled), "no character of several bytes came")
        letters = [c for c in found["text"] if c not in "\ufffd\u2047\0"]
        wanted = [c for c in spelled if c != "\0"]
        self.assertEqual("".join("".join(letters).split()), "".join("".join(wanted).split()))

    def test_errors(self):
        empty, broken = self.path("empty.txt"), self.path("broken.txt")
        for path, data in ((empty, b"\n\n"), (broken, b"fine\nnot \xff fine\n")):
            with open(path, "wb") as file:
                file.write(data)
        for name, args, kind, words in (
                ("empty prompt", ["-p", ""], "config", "prompt is empty.*leave --prompt out"),
                ("no UTF-8", ["-p", b"a\xffb".decode("utf-8", "surrogateescape")], "config", "not UTF-8.*byte 1"),
                ("no such file", ["-f", self.path("none")], "io", "cannot open '.*none'"),
                ("no prompt in it", ["-f", empty], "config", "has no prompt"),
                ("bad line", ["-f", broken], "config", "line 2 of .*not UTF-8"),
                ("temperature", ["-t", "-1"], "config", "--temperature -1: expected a number from 0 to 100"),
                ("top-p", ["--top-p", "1.5"], "config", "--top-p 1.5: expected a number from 0 to 1")):
            ranks = 2 if name in ("empty prompt", "bad line") else 1
            with self.subTest(name, ranks=ranks):
                self.assertRefused(self.program.run("generate", self.run_path, *args, ranks=ranks), kind, words)

    def test_no_tokenizer(self):
        corpus = self.path("bare.h5")
        with h5py.File(self.corpus, "r") as source, h5py.File(corpus, "w") as bare:
            for name, value in source.attrs.items():
                bare.attrs[name] = value
            for name in ("train", "valid", "test", "count"):
                source.copy(name, bare)
        result = self.program.run("generate", self.run_path, "-c", corpus)
        self.assertRefused(result, "config", "holds no tokenizer.*--corpus")


class Everywhere(Using):
    """Wrong files and outputs that cannot be written, for all three."""

    COMMANDS = (("generate", []), ("evaluate", []), ("export", ["-o", "x.safetensors"]))

    def test_wrong_files(self):
        text = self.path("text.txt")
        cases = {}
        for command, more in self.COMMANDS:
            for path, kind, words in ((self.path("nothing.h5"), "io", "nothing.h5"), (text, "format", "text.txt"),
                                      (self.corpus, "format", "not a StableMoE checkpoint"),
                                      (self.directory, "io", "checkpoints/latest")):
                cases[command, path] = ([command, path, *more], kind, words)
        jobs = {name: lambda a=args: self.program.run(*a, cwd=self.directory) for name, (args, _, _) in cases.items()}
        for name, result in p.several(jobs, 3):
            with self.subTest(name):
                self.assertRefused(result, *cases[name][1:])
        self.assertFalse(os.path.exists(self.path("x.safetensors")))

    def test_other_version(self):
        path = self.path("version.h5")
        with h5py.File(self.checkpoint, "r") as source, h5py.File(path, "w") as other:
            for name, value in source.attrs.items():
                other.attrs[name] = value
            for name in source:
                source.copy(name, other)
            other.attrs["version"] = 99
        for command, more in self.COMMANDS:
            with self.subTest(command):
                result = self.program.run(command, path, *more, cwd=self.directory)
                self.assertRefused(result, "format", "format version 99, this program reads version 1")

    def test_full_disk(self):
        for args in (["generate", self.run_path], ["generate", self.run_path, "--json"], ["evaluate", self.run_path],
                     ["evaluate", self.run_path, "--json"], ["route", self.run_path, "x", "--json"],
                     ["bench", self.program.config, "-n", 1, "-w", 0, "--json"], ["info", self.run_path],
                     ["--version"]):
            with self.subTest(args[0], json=args[-1] == "--json"):
                result = self.program.run(*args, before="exec >/dev/full")
                self.assertRefused(result, "io", "cannot write the output: No space left")
        result = self.program.run("evaluate", self.run_path, "--tokens", "/dev/full")
        self.assertRefused(result, "io", "cannot write '/dev/full': No space left")
        self.assertTrue(stat.S_ISCHR(os.stat("/dev/full").st_mode), "the device is still one")

    def test_unwritable(self):
        os.makedirs(self.path("d.safetensors"), exist_ok=True)
        result = self.program.run("export", self.run_path, "-o", self.path("d.safetensors"))
        self.assertRefused(result, "io", "d.safetensors': it is a directory")

    @unittest.skipUnless(os.geteuid() == 0, "a small file system can be mounted by root only")
    def test_no_room(self):
        """A full file system: a report, and nothing left, neither whole nor half."""
        small = self.path("small")
        os.makedirs(small)
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=60k", "none", small], capture_output=True, text=True)
        if done.returncode != 0:
            self.skipTest(f"cannot mount a file system: {done.stderr.strip()}")
        self.addCleanup(subprocess.run, ["umount", small], check=True)
        for args in (["export", self.run_path, "-o"], ["export", self.run_path, "--split-experts", "-o"],
                     ["evaluate", self.run_path, "-s", "train", "--tokens"]):
            with self.subTest(args=args):
                result = self.program.run(*args, os.path.join(small, "x.safetensors"))
                self.assertRefused(result, "io", "(cannot take|cannot write).*No space left")
                self.assertEqual(os.listdir(small), [])


class Export(Using):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        sys.path.insert(0, cls.program.source)
        from analysis import export, reference
        cls.export, cls.reference = export, reference

    def make(self, name, *more, ranks=1, run=None):
        path = self.path(name + ".safetensors")
        self.assertFine(self.program.run("export", run or self.run_path, "-o", path, *more, ranks=ranks))
        return path

    def test_values(self):
        """Every parameter, bit for bit; split or not."""
        whole, split = self.make("whole"), self.make("split", "--split-experts")
        names = {os.path.basename(n) for n in os.listdir(self.directory) if n.startswith("split")}
        self.assertEqual(names, {"split.safetensors", "split.safetensors.index.json", "split.json",
                                 "split.tokenizer", *(f"split.expert-{e:05d}.safetensors" for e in range(4))})
        with h5py.File(self.checkpoint, "r") as file:
            for path in (whole, split):
                params, about = self.export.load(path)
                self.assertEqual((about["update"], about["stage"], about["end_id"]), (40, 2, 1))
                self.assertEqual(about["configuration"]["model.width"], 16)
                known = []
                file["param"].visititems(lambda n, v: known.append(n) if isinstance(v, h5py.Dataset) else None)
                self.assertEqual(sorted(params), sorted(known))
                for name, values in params.items():
                    stored = file["param"][name][...]
                    self.assertEqual((values.shape, values.dtype), (stored.shape, stored.dtype), name)
                    self.assertEqual(values.tobytes(), stored.tobytes(), name)
                with open(path.replace(".safetensors", ".json")) as text:
                    self.assertEqual(json.load(text), about)
        with h5py.File(self.corpus, "r") as file, open(self.path("whole.tokenizer"), "rb") as tokenizer:
            self.assertEqual(tokenizer.read(), file["tokenizer/model"][...].tobytes())

    def test_format(self):
        """What the format demands: aligned, complete, nothing overlaps, text metadata."""
        path = self.make("format", ranks=2)
        with open(path, "rb") as file:
            data = file.read()
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8:8 + length])
        self.assertEqual((8 + length) % 8, 0)
        self.assertTrue(all(isinstance(v, str) for v in header.pop("__metadata__").values()))
        places = sorted(t["data_offsets"] for t in header.values())
        self.assertEqual([begin for begin, _ in places], [0] + [end for _, end in places[:-1]])
        self.assertEqual(places[-1][1], len(data) - 8 - length)
        for name, t in header.items():
            self.assertEqual(t["dtype"], "F32")
            self.assertEqual(t["data_offsets"][1] - t["data_offsets"][0], 4 * math.prod(t["shape"]), name)

    def test_same_predictions(self):
        """NumPy on the exported values gives the losses that the program gives."""
        table = self.path("tokens.tsv")
        for run in (self.run_path, self.trained("dense", ["moe.layers=0", "train.updates=10"])):
            params, about = self.export.load(self.make("again", run=run))
            self.assertFine(self.program.run("evaluate", run, "-s", "valid", "--tokens", table))
            config = self.reference.Config.from_keys(about["configuration"])
            with h5py.File(self.corpus, "r") as file:
                tokens = file["valid/tokens"][...].astype(int)
            n = (len(tokens) - 1) // CONTEXT * CONTEXT
            _, cache = self.reference.forward({k: v.astype("f8") for k, v in params.items()},
                                              tokens[:n].reshape(-1, CONTEXT), tokens[1:n + 1].reshape(-1, CONTEXT),
                                              config, about["stage"], training=False)
            found = np.loadtxt(table, skiprows=1, usecols=2)[:n]
            self.assertEqual(found.shape, (n,))
            worst = np.abs(found - cache["token_loss"].ravel()).max()
            self.assertTrue(worst <= 1e-5, f"losses differ by {worst}")

    def test_over_another(self):
        """A whole export in the place of a split one leaves no index that leads to the old experts."""
        self.make("twice", "--split-experts")
        self.make("twice")
        self.assertFalse(os.path.exists(self.path("twice.safetensors.index.json")))

    def test_damage(self):
        path = self.path("damaged.h5")
        with open(self.checkpoint, "rb") as file:
            data = bytearray(file.read())
        with h5py.File(self.checkpoint, "r") as file:
            place = file["param/moe0/expert/ffn0/w1"].id.get_offset()
        data[place + 100] ^= 4
        with open(path, "wb") as file:
            file.write(data)
        result = self.program.run("export", path, "-o", self.path("bad.safetensors"))
        self.assertRefused(result, "format", "damaged.*moe0/expert/ffn0/w1")
        self.assertEqual([n for n in os.listdir(self.directory) if n.startswith("bad")], [])

    def test_options(self):
        result = self.program.run("export", self.run_path, "-o", self.path("model.bin"))
        self.assertRefused(result, "config", "should end in .safetensors")
        os.rename(self.corpus, self.corpus + ".away")
        try:
            result = self.program.run("export", self.run_path, "-o", self.path("plain.safetensors"))
        finally:
            os.rename(self.corpus + ".away", self.corpus)
        self.assertFine(result)
        self.assertIn("no tokenizer is written", result.err)
        self.assertIsNone(self.export.load(self.path("plain.safetensors"))[1]["tokenizer"])


class Evaluate(Using):
    def evaluated(self, run, *more, ranks=(1, 2, 4)):
        return json.loads(self.on_ranks("evaluate", run, "--json", "-d", 3, *more, ranks=ranks))

    def table(self, run, *more):
        """The tokens' table on one and on three ranks: place, token, loss, experts."""
        texts = []
        for ranks in (1, 3):
            path = self.path(f"table-{ranks}.tsv")
            self.assertFine(self.program.run("evaluate", run, "--tokens", path, *more, ranks=ranks))
            with open(path) as file:
                texts.append(file.read())
        self.assertEqual(texts[0], texts[1])
        return [line.split("\t") for line in texts[0].splitlines()[1:]]

    def test_parts_are_the_whole(self):
        found, rows = self.evaluated(self.run_path), self.table(self.run_path)
        place, token = (np.array([int(row[i]) for row in rows]) for i in (0, 1))
        loss, expert = np.array([float(row[2]) for row in rows]), np.array([int(row[3]) for row in rows])
        with h5py.File(self.corpus, "r") as file:
            tokens, count, bounds = file["test/tokens"][...], file["count"][...], file["test/document"][...]
        self.assertTrue(np.array_equal(place, np.arange(1, len(tokens))))
        self.assertTrue(np.array_equal(token, tokens[1:]))
        self.assertAlmostEqual(found["loss"], loss.mean(), delta=1e-6)
        for e, t in enumerate(found["experts"][0]):
            self.assertEqual(t["tokens"], (expert == e).sum())
            self.assertAlmostEqual(t["loss"], loss[expert == e].mean(), delta=1e-6)
        for t in found["frequency"]:
            mine = (count[token] >= t["least"]) & (count[token] <= t["most"])
            self.assertEqual(t["tokens"], mine.sum())
            self.assertAlmostEqual(t["loss"], loss[mine].mean(), delta=1e-6)
        self.assertEqual(sum(t["tokens"] for t in found["frequency"]), len(loss))
        document = np.searchsorted(bounds, place, side="right") - 1
        means = np.array([loss[document == d].mean() for d in range(document.max() + 1)])
        self.assertEqual(found["documents"]["number"], len(means))
        self.assertAlmostEqual(found["documents"]["mean_loss"], means.mean(), delta=1e-6)
        worst = [t["document"] for t in found["documents"]["worst"]]
        self.assertEqual(worst, list(np.argsort(-means, kind="stable")[:3]))
        with open(self.path("text.txt")) as file:
            self.assertIn(found["documents"]["worst"][0]["beginning"].strip(), file.read())

    def test_another_way_of_evaluation(self):
        """-P gives what a run has whose configuration said so; only what changes no parameter can be set."""
        thor = ("router.method=thor", "router.thor.draw=sequence", "train.updates=10", "train.checkpoint_every=10")
        drawn = self.trained("thor-random", thor)
        mean = self.trained("thor-mean", (*thor, "router.thor.evaluation=mean"))
        way = ("-P", "router.thor.evaluation=mean")
        for command in (("evaluate", "--json"), ("generate", "-t", 0, "-n", 20, "-p", "ab"), ("route", "ab cd")):
            with self.subTest(command[0]):
                def args(run):
                    return (command[0], run, *command[1:])

                plain = self.text(*args(drawn))
                self.assertEqual(self.text(*args(drawn), *way), self.text(*args(mean)))
                if command[0] == "evaluate":
                    self.assertNotEqual(plain, self.text(*args(mean)))
        for setting, pattern in (("train.updates=3", "train.updates is what the model was trained with; of a trained "
                                                     "model these can be set: .*router.thor.evaluation"),
                                 ("router.thor.evaluate=mean", "router.thor.evaluation"),
                                 ("router.thor.evaluation=all", "random, mean or one"),
                                 ("moe.capacity_factor=1", "mean needs room for every token in every expert")):
            with self.subTest(setting):
                result = self.program.run("evaluate", drawn, *way, "-P", setting, ranks=2)
                self.assertRefused(result, "config", pattern)

    def test_capacity_and_several_experts(self):
        run = self.trained("topk", ["router.method=topk", "router.topk.k=2", "moe.capacity_factor=0.6",
                                    "train.updates=5", "train.checkpoint_every=5"])
        found, rows = self.evaluated(run, "-n", 20, ranks=(1, 2)), self.table(run, "-n", "20")
        slots = [word for row in rows for word in row[3].split(",") if word]
        self.assertEqual(found["tokens"], 20 * CONTEXT)
        self.assertEqual(sum(t["tokens"] for t in found["experts"][0]), len(slots))
        self.assertAlmostEqual(found["drop_rate"], sum(w.startswith("-") for w in slots) / len(slots), delta=1e-9)
        self.assertGreater(found["drop_rate"], 0)

    def test_text(self):
        text = self.on_ranks("evaluate", self.run_path, "-d", 2, "-e")
        for words in ("perplexity +[0-9.]+ per token", "per byte", "occurrences in training", "expert 3", "document 0"):
            self.assertRegex(text, words)
        short = self.text("evaluate", self.run_path)
        self.assertLess(len(short.splitlines()), 16)
        self.assertNotRegex(short, "worst documents")


if __name__ == "__main__":
    p.main()
