#!/usr/bin/env python3
"""What people bring as a corpus: what is read, where it goes, what is refused and by what name."""

import bz2
import gzip
import json
import lzma
import os
import random
import re
import shutil
import struct
import subprocess
import unittest

import h5py
import numpy as np

import program as p

SPLITS = ("train", "valid", "test")


def sentence(rng, marker="word", n=30):
    return " ".join(f"{marker}{rng.randint(0, 60)}" for _ in range(n)) + "."


class Corpora(p.ProgramTest):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.model = cls.path("model")
        with h5py.File(cls.corpus, "r") as file:
            cls.write("model", file["tokenizer/model"][...].tobytes())

    @classmethod
    def write(cls, name, data):
        path = cls.path(name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
        return path

    def prepare(self, *args, model=True):
        return self.program.run("prepare", *args, "-o", self.path("made.h5"), *(["--model", self.model] if model else []))

    def made(self, *args, model=True):
        """Prepare: what was said, and documents, tokens and bytes of each split."""
        result = self.prepare(*args, model=model)
        self.assertFine(result)
        with h5py.File(self.path("made.h5"), "r") as file:
            sizes = {s: (len(file[s]["document"]) - 1, len(file[s]["tokens"]), int(file[s].attrs["n_bytes"]))
                     for s in SPLITS}
        self.assertFine(self.program.run("info", self.path("made.h5"), "--verify"))
        return result.err, sizes

    def documents(self, split):
        with h5py.File(self.path("made.h5"), "r") as file:
            tokens, ends = file[split]["tokens"][...], file[split]["document"][...]
        return [tuple(tokens[a:b]) for a, b in zip(ends[:-1], ends[1:])]

    def n_documents(self, *args, **how):
        return sum(n for n, _, _ in self.made(*args, **how)[1].values())

    # ---- the same text twice ----

    def test_links_to_one_file(self):
        """A cache with its blobs and the names that lead to them."""
        rng = random.Random(1)
        os.makedirs(self.path("hub", "snapshots", "main"))
        for i in range(12):
            self.write(f"hub/blobs/{i:040x}", json.dumps({"text": sentence(rng)}) + "\n")
            os.symlink(f"../../blobs/{i:040x}", self.path("hub", "snapshots", "main", f"part{i}.jsonl"))
        said, sizes = self.made(self.path("hub"), "--valid", 0.2, "--test", 0.2)
        self.assertEqual(sum(n for n, _, _ in sizes.values()), 12)
        self.assertIn("12 names of files that were there under another name left out", said)
        # By the names that say what is in them: documents, not their markup.
        self.assertLess(sum(b for _, _, b in sizes.values()), 12 * 30 * 8)

    def test_equal_documents(self):
        rng = random.Random(2)
        texts = [sentence(rng) for _ in range(20)]
        path = self.write("twice.txt", "\n".join(texts + texts) + "\n")
        said, sizes = self.made(path, "--lines", "--valid", 0.25, "--test", 0.25)
        found = {s: set(self.documents(s)) for s in SPLITS}
        wanted = [sum(d in found["train"] for d in self.documents(s)) for s in SPLITS[1:]]
        self.assertGreater(sum(wanted), 0, "the test needs some in two splits")
        self.assertIn(f"{wanted[0]} of {sizes['valid'][0]} documents of validation and {wanted[1]} of "
                      f"{sizes['test'][0]} of the test are in training too", said)
        said, sizes = self.made(path, "--lines", "--dedup", "--valid", 0.25, "--test", 0.25)
        self.assertEqual(sum(n for n, _, _ in sizes.values()), 20)
        self.assertIn("dropped 20 documents", said)
        self.assertEqual(len(set().union(*(self.documents(s) for s in SPLITS))), 20)

    def test_dedup_keeps_the_test(self):
        """Of equal documents training loses its own."""
        rng = random.Random(3)
        texts = [sentence(rng) for _ in range(10)]
        train, test = self.write("a.txt", "\n".join(texts)), self.write("b.txt", "\n".join(texts[:4]))
        _, sizes = self.made("--lines", "--train-text", train, "--test-text", test, "--dedup")
        self.assertEqual([sizes[s][0] for s in SPLITS], [6, 0, 4])
        tokens = self.shard("equal.bin", [[i, i + 1] for i in range(10)])
        tests = self.shard("equal_test.bin", [[i, i + 1] for i in range(4)])
        _, sizes = self.made(tokens, tests, "--dedup", "--valid", 0, model=False)
        self.assertEqual([sizes[s][0] for s in SPLITS], [6, 0, 4])

    def test_one_file_for_two_splits(self):
        os.symlink(self.path("text.txt"), self.path("again.txt"))
        result = self.prepare("--train-text", self.path("text.txt"), "--test-text", self.path("again.txt"))
        self.assertRefused(result, "config", "are the same file, and are given to two splits")

    # ---- whose split ----

    def own(self):
        rng = random.Random(4)
        return [self.write(f"own/wiki.{s}.tokens", "\n\n".join(sentence(rng, s) for _ in range(40))) for s in SPLITS]

    def check_own(self, said):
        with h5py.File(self.path("made.h5"), "r") as file:
            pieces, offset = file["tokenizer/piece"][...].tobytes(), file["tokenizer/piece_offset"][...]
            for s in SPLITS:
                ids = file[s]["tokens"][...]
                text = "".join(pieces[offset[i]:offset[i + 1]].decode() for i in ids)
                self.assertEqual({w for w in SPLITS if w in text}, {s})
        for s in SPLITS:
            self.assertRegex(said, f"{s}: 1 file, '.*wiki.{s}.tokens'")

    def test_own_splits(self):
        train, valid, test = self.own()
        for name, args in (("options", ["--train-text", train, "--valid-text", valid, "--test-text", test]),
                           ("names", [train, valid, test]), ("names in a directory", [self.path("own")])):
            with self.subTest(name):
                self.check_own(self.made(*args)[0])

    def test_names_of_some_files(self):
        """A word in the name of one file among others means nothing."""
        rng = random.Random(5)
        for name in ("test_parser", "trainer", "lattest", "valuation"):
            self.write(f"code/{name}.py", "\n".join(sentence(rng) for _ in range(20)))
        said, _ = self.made(self.path("code"), "--lines")
        self.assertIn("divided among the splits: 4 files", said)

    def test_shares_of_zero_and_one(self):
        text = self.path("text.txt")
        _, sizes = self.made(text, "--valid", 0, "--test", 1)
        self.assertEqual((sizes["train"], sizes["valid"]), ((0, 0, 0), (0, 0, 0)))
        self.assertEqual(sizes["test"][2], os.path.getsize(text))
        self.assertRefused(self.prepare(text, "--test", 1, "--valid", 0, model=False), "config", "give the model's with --model")
        self.assertRefused(self.prepare(text, "--test", 0.7, "--valid", 0.7), "config", "together at most 1")
        self.assertRefused(self.program.run("train", self.program.config, "-P", f"data.corpus={self.path('made.h5')}",
                                            "-P", f"run.directory={self.path('none')}"), "config", "training split")

    def test_evaluate_all_of_a_text(self):
        settings = ["train.updates=4", "router.stage1_updates=2", "schedule.warmup=1", "train.checkpoint_every=4"]
        run = self.trained("whole", settings)
        self.made(self.path("text.txt"), "--valid", 0, "--test", 1)
        whole = json.loads(self.program.run("evaluate", run, "-c", self.path("made.h5"), "--json").out)
        self.assertEqual(whole["tokens"], self.made(self.path("text.txt"), "--valid", 0, "--test", 1)[1]["test"][1] - 1)
        self.assertRefused(self.program.run("evaluate", run, "-c", self.path("made.h5"), "-s", "valid"), "config",
                           "to evaluate is empty")

    def test_train_without_validation(self):
        self.made(self.path("text.txt"), "--valid", 0)
        settings = ["train.updates=4", "router.stage1_updates=2", "schedule.warmup=1", f"data.corpus={self.path('made.h5')}"]
        run = self.trained("unvalidated", settings)
        self.assertTrue(all(np.isnan(p.column(run, "valid_loss"))))

    def test_passes(self):
        """How often a run reads its text is printed before it begins; too often is a warning."""
        self.assertRegex(self.program.run("prepare", self.path("text.txt"), "-o", self.path("made.h5"), "--model",
                                          self.model).out, r"One pass over the training split is [\d.]+ updates")
        for updates, warns in ((20, False), (20000, True)):
            result = self.program.run(*self.train_args("passes", [f"train.updates={updates}"]), "--dry-run")
            self.assertFine(result)
            passes = float(re.search(r"data: ([\d.e+]+) passes over the training split", result.err)[1])
            self.assertEqual(passes > 4, warns, result)
            self.assertEqual("passes over the training split are many" in result.err, warns, result)

    # ---- documents ----

    def test_long_lines(self):
        """A line is one document, however long it is."""
        rng = random.Random(6)
        long = " ".join(sentence(rng) for _ in range(2500))
        self.assertGreater(len(long), 1 << 18)
        path = self.write("long.txt", "\n".join([sentence(rng) for _ in range(60)] + [long]) + "\n")
        _, sizes = self.made(path, "--lines")
        self.assertEqual(sum(n for n, _, _ in sizes.values()), 61)

    def test_separator(self):
        rng = random.Random(7)
        text = "\n<|endoftext|>\n".join(sentence(rng) for _ in range(50)) + "\n<|endoftext|>\n"
        path = self.write("stories.txt", text)
        said, sizes = self.made(path, "--separator", "<|endoftext|>")
        self.assertEqual(sum(n for n, _, _ in sizes.values()), 50)
        self.assertEqual(sum(b for _, _, b in sizes.values()), len(text) - 50 * len("<|endoftext|>\n"))
        self.assertNotIn("warning", said)
        said, _ = self.made(path)
        self.assertRegex(said, r"warning: the text holds '<\|endoftext\|>' and the like 50 times.*--separator")

    def test_json(self):
        rng = random.Random(8)
        objects = [{"id": i, "text": sentence(rng), "meta": {"text": ["no"], "big": 10**30}} for i in range(30)]
        wanted = sum(len(o["text"]) for o in objects)
        lines = "".join(json.dumps(o) + "\n" for o in objects)
        compress = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress, "zst": self.zstd}
        files = {"lines.jsonl": lines, "array.json": json.dumps(objects, indent=1), "lines.json": lines,
                 **{f"lines.jsonl.{end}": pack(lines.encode()) for end, pack in compress.items()}}
        for name, data in files.items():
            with self.subTest(name):
                _, sizes = self.made(self.write(f"json/{name}", data))
                self.assertEqual(sum(n for n, _, _ in sizes.values()), 30)
                self.assertEqual(sum(b for _, _, b in sizes.values()), wanted)
        other = self.write("content.jsonl", lines.replace('"text"', '"content"'))
        self.assertEqual(self.n_documents(other, "--field", "content"), 30)
        self.assertIn("--field does nothing", self.made(self.path("text.txt"), "--field", "content")[0])
        for data, words in ((lines.replace('"text"', '"content"'), "line 1 of .* no text field 'text' .its texts: 'content'.*--field"),
                            (lines + "{\"text\": 3}", "line 31 of .* no text field"), (lines + "[1, 2", "line 31 of"),
                            (lines + "{\"text\": \"cut", "line 31 of .* is not JSON")):
            with self.subTest(words):
                self.assertRefused(self.prepare(self.write("bad.jsonl", data)), "format", words)

    def test_json_beside_code(self):
        """Settings in a directory of source code are text like the rest."""
        self.write("project/package.json", json.dumps({"name": "x", "scripts": {}}, indent=1))
        shutil.copy(self.path("text.txt"), self.path("project", "a.txt"))
        _, sizes = self.made(self.path("project"))
        wanted = os.path.getsize(self.path("text.txt")) + os.path.getsize(self.path("project", "package.json"))
        self.assertEqual(sum(b for _, _, b in sizes.values()), wanted)

    @staticmethod
    def zstd(data):
        if not shutil.which("zstd"):
            raise unittest.SkipTest("no zstd program")
        return subprocess.run(["zstd", "-c"], input=data, stdout=subprocess.PIPE, check=True).stdout

    def test_compressed_text(self):
        with open(self.path("text.txt"), "rb") as file:
            data = file.read()
        _, plain = self.made(self.path("text.txt"), "--document-bytes", 4000)
        plain_tokens = self.documents("train")
        _, packed = self.made(self.write("text.txt.gz", gzip.compress(data)), "--document-bytes", 4000)
        self.assertEqual((packed, self.documents("train")), (plain, plain_tokens))
        os.makedirs(self.path("packed"), exist_ok=True)
        shutil.copy(self.path("text.txt.gz"), self.path("packed"))
        self.assertEqual(self.made(self.path("packed"), "--ext", ".txt", "--document-bytes", 4000)[1], plain)
        cut = self.write("cut.txt.gz", gzip.compress(data)[:2000])
        self.assertRefused(self.prepare(cut), "io", "cannot read '.*cut.txt.gz'")

    def test_byte_order_mark(self):
        with open(self.path("text.txt"), "rb") as file:
            data = file.read()
        _, plain = self.made(self.path("text.txt"))
        _, marked = self.made(self.write("marked.txt", b"\xef\xbb\xbf" + data))
        self.assertEqual(marked["train"], plain["train"])
        self.assertEqual(sum(b for _, _, b in marked.values()), len(data))

    def test_named_for_what_they_are(self):
        text = "some text\n" * 200
        for name, data, words in (("a.txt", text.encode("utf-16"), "UTF-16 text: convert it with 'iconv"),
                                  ("b.txt", text.encode("utf-16-le"), "UTF-16 text: convert it with 'iconv"),
                                  ("c.parquet", b"PAR1" + bytes(range(256)), "a Parquet file: write its text column"),
                                  ("d.zip", b"PK\3\4" + bytes(range(256)), "a zip archive")):
            with self.subTest(name):
                self.assertRefused(self.prepare(self.write(name, data)), "format", words)
        shutil.copy(self.path("text.txt"), self.path("mixed.txt"))
        self.write("mixed/c.parquet", b"PAR1" + bytes(range(256)))
        shutil.copy(self.path("text.txt"), self.path("mixed"))
        self.assertIn("c.parquet' (a Parquet file", self.made(self.path("mixed"))[0])
        tokenizer = self.write("tokenizer.json", json.dumps({"version": "1.0", "model": {"type": "BPE"}}))
        result = self.program.run("prepare", self.path("text.txt"), "-o", self.path("x.h5"), "--model", tokenizer)
        self.assertRefused(result, "format", "is JSON, perhaps a tokenizer.json of Hugging Face")

    # ---- tokenizers ----

    def bytes_per_token(self, text, *args):
        said, sizes = self.made(self.write("bars.txt", text), *args, "--vocab", 300, model=False)
        return said, sum(b for _, _, b in sizes.values()) / sum(t for _, t, _ in sizes.values())

    def test_reserved_character(self):
        """The character that SentencePiece's trainer skips sentences for."""
        rng = random.Random(9)
        lines = [sentence(rng, n=12) for _ in range(400)]
        _, best = self.bytes_per_token("\n".join(lines))
        for every in (1, 40):
            with self.subTest(every=every):
                barred = [("\u2585" if i % every == 0 else "#") + line for i, line in enumerate(lines)]
                said, found = self.bytes_per_token("\n".join(barred))
                self.assertRegex(said, r"\d+ times U\+2585")
                # Every such character takes three bytes' pieces more.
                self.assertGreater(found, 0.85 * best)
        # And nothing is lost.
        self.assertNotIn("changes text", said)

    def test_many_characters(self):
        rng = random.Random(10)
        signs = [chr(0x4E00 + i) for i in range(3000)]
        text = "\n".join("".join(rng.choice(signs) for _ in range(40)) for _ in range(600))
        path = self.write("signs.txt", text)
        said, sizes = self.made(path, "--vocab", 2000, model=False)
        self.assertRegex(said, r"the \d+ rarest characters")
        self.assertEqual(sum(b for _, _, b in sizes.values()), len(text.encode()))
        self.assertNotIn("changes text", said)
        result = self.prepare(path, "--vocab", 2000, "--coverage", 1, model=False)
        self.assertRefused(result, "config", "too small for the characters of this text")
        said, _ = self.made(path, "--vocab", 2000, "--coverage", 0.3, model=False)
        self.assertRegex(said, r"the \d+ rarest characters")

    def test_sample(self):
        text = self.path("text.txt")
        with open(text, encoding="utf-8") as file:
            big = self.write("big.txt", file.read() * 40)
        said, _ = self.made(big, "--sample", 1, "--vocab", 300, model=False)
        self.assertIn("on 1.0 MiB of the training text", said)

    def test_lossy_tokenizer(self):
        """Bytes are counted that the tokens hold."""
        with open(self.model, "rb") as file:
            model = file.read()
        # No byte pieces any more; and protocol buffers merge what is appended: no byte fallback, blanks are collapsed.
        model = re.sub(rb"(\n\x06<0x[0-9A-F]{2}>\x15.{4}\x18)\x06", lambda m: m[1] + b"\1", model, flags=re.DOTALL)
        lossy = self.write("lossy.model", model + b"\x12\x03\x98\x02\x00" + b"\x1a\x02\x20\x01")
        lines = [f"one  two   three {i} caf\u00e9 \u4e2d" for i in range(200)]
        path = self.write("blanks.txt", "\n".join(lines) + "\n")
        args = ["prepare", path, "-o", self.path("made.h5"), "--lines", "--model"]
        self.assertFine(self.program.run(*args, self.model))
        result = self.program.run(*args, lossy)
        self.assertFine(result)
        self.assertIn("warning: this tokenizer changes text: 200 of 200 documents", result.err)
        with open(self.path("text.txt"), encoding="utf-8") as file:
            known = set(file.read())
        kept = ["".join(c for c in re.sub(" +", " ", line) if c in known) for line in lines]
        with h5py.File(self.path("made.h5"), "r") as file:
            found = sum(int(file[s].attrs["n_bytes"]) for s in SPLITS)
        wanted = sum(len(line) for line in kept)
        self.assertEqual(found, wanted)
        self.assertLess(found, 0.85 * os.path.getsize(path))

    # ---- token files ----

    def shard(self, name, documents, magic=20240520, version=1, kind="<u2", mark=50256, after=False):
        ids = sum(([*d, mark] if after else [mark, *d] for d in documents), [])
        head = struct.pack("<3i", magic, version, len(ids)).ljust(1024, b"\0")
        return self.write(name, head + np.array(ids, kind).tobytes())

    def test_shards(self):
        rng = random.Random(11)
        documents = [[rng.randint(0, 99) for _ in range(rng.randint(5, 40))] for _ in range(200)]
        llama = dict(magic=20240801, version=7, kind="<u4", mark=128000)
        for name, path in (("GPT-2", self.shard("news_train_1.bin", documents)),
                           ("Llama 3", self.shard("llama.bin", documents, **llama)),
                           ("behind", self.shard("behind.bin", documents, after=True))):
            with self.subTest(name):
                _, sizes = self.made(path, model=False)
                self.assertEqual(sum(n for n, _, _ in sizes.values()), 200)
                found = sum((self.documents(s) for s in SPLITS), [])
                marks = (50256, 128000)
                self.assertEqual([[t for t in d if t not in marks] for d in found], documents)
        with open(self.path("llama.bin"), "rb") as file:
            packed = self.write("packed.bin.gz", gzip.compress(file.read()))
        self.assertEqual(self.n_documents(packed, model=False), 200)
        self.made(self.path("behind.bin"), model=False)
        self.assertEqual([len(d) for d in self.documents("train")][:3], [len(d) + 1 for d in documents[:3]])

    def test_names_of_shards(self):
        documents = [[i % 90, 1, 2] for i in range(100)]
        files = [self.shard(f"shards/{name}.bin", [[d[0], i, *d] for d in documents])
                 for i, name in enumerate(("news_train_000001", "retrieval_train_000001", "fineweb_val_000000"))]
        said, sizes = self.made(*files, "--test", 0, model=False)
        self.assertEqual([sizes[s][0] for s in SPLITS], [200, 100, 0])
        self.assertRegex(said, "retrieval_train_000001.bin: .*, train")
        self.assertRegex(said, "fineweb_val_000000.bin: .*, valid")
        _, directory = self.made(self.path("shards"), "--test", 0, model=False)
        self.assertEqual(directory, sizes)
        _, given = self.made("--test-text", files[0], "--train-text", files[2], "--valid-text", files[1], model=False)
        self.assertEqual([given[s][0] for s in SPLITS], [100, 100, 100])

    def test_shard_without_separators(self):
        ids = np.arange(1000) % 100
        path = self.write("whole.bin", struct.pack("<3i", 20240520, 1, 1000).ljust(1024, b"\0") + ids.astype("<u2").tobytes())
        said, sizes = self.made(path, model=False)
        self.assertRegex(said, "whole.bin: no document ends in it .token 50256.: it is one document")
        self.assertEqual([sizes[s][1] for s in SPLITS], [900, 50, 50])

    def test_raw_ids(self):
        documents = [[i % 90, 1, 2] for i in range(100)]
        ids = np.array(sum(([*d, 50256] for d in documents), []), "<u2")
        path = self.write("raw/train.bin", ids.tobytes())
        self.assertRefused(self.prepare(path, model=False), "format", "as nanoGPT writes them, give --raw uint16")
        self.assertEqual(self.n_documents(path, "--raw", "uint16", model=False), 100)
        characters = self.write("raw/characters.bin", (np.arange(3000) % 65).astype("<u2").tobytes())
        said, sizes = self.made(characters, "--raw", "uint16", "--vocab", 65, model=False)
        self.assertEqual(sum(t for _, t, _ in sizes.values()), 3000)
        wide = self.write("raw/wide.bin", ids.astype("<u4").tobytes())
        self.assertEqual(self.n_documents(wide, "--raw", "uint32", "--separator", 50256, model=False), 100)
        odd = self.write("raw/odd.bin", ids.tobytes()[:-1])
        self.assertRefused(self.prepare(odd, "--raw", "uint16", model=False), "format", "not a multiple")
        shard = self.shard("headed.bin", documents)
        self.assertRefused(self.prepare(shard, "--raw", "uint16", model=False), "config", "leave --raw out")

    def test_megatron(self):
        rng = random.Random(12)
        documents = [[rng.randint(0, 999) for _ in range(rng.randint(1, 30))] + [1000] for _ in range(80)]
        sequences = [part for d in documents for part in (d[:5], d[5:]) if part]
        firsts = [0]
        for d in documents:
            firsts.append(firsts[-1] + (2 if len(d) > 5 else 1))
        for code, kind in ((8, "<u2"), (4, "<i4")):
            with self.subTest(kind):
                name = f"megatron-{code}"
                path = self.write(f"{name}.bin", np.array(sum(documents, []), kind).tobytes())
                sizes = [len(s) for s in sequences]
                pointers = np.cumsum([0, *sizes[:-1]]) * np.dtype(kind).itemsize
                index = b"MMIDIDX\0\0" + struct.pack("<QBQQ", 1, code, len(sequences), len(firsts))
                index += np.array(sizes, "<i4").tobytes() + np.array(pointers, "<i8").tobytes()
                index += np.array(firsts, "<i8").tobytes()
                self.write(f"{name}.idx", index)
                _, found = self.made(path, model=False)
                self.assertEqual(sum(n for n, _, _ in found.values()), 80)
                self.assertEqual(sum((self.documents(s) for s in SPLITS), []), [tuple(d) for d in documents])
                with h5py.File(self.path("made.h5"), "r") as file:
                    self.assertEqual((file.attrs["end_id"], file.attrs["vocabulary"]), (1000, 1001))
                self.write(f"{name}.idx", index[:-20])
                self.assertRefused(self.prepare(path, model=False), "format", "is not an index of Megatron")


if __name__ == "__main__":
    p.main()
