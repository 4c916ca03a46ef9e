#!/usr/bin/env python3
"""Images, end to end: files to a corpus, training, accuracy, the patches that experts take. The same bits after a resume
on another rank count; what is wrong with a corpus or a configuration is said in one message."""

import json
import os
import struct
import subprocess
import sys
import zlib

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import program as p  # noqa: E402
from program import np  # noqa: E402

CONFIG = """
run: {log_every: 5}
model: {family: cnn, width: 16, heads: 1, context: 4}
moe: {experts: 3, sublayers: 1, inner: 5, identical_experts: false}
router: {method: pmoe, pmoe: {patches: 2, deviation: 0.01}}
train: {updates: 60, batch_sequences: 8, lanes: 4, evaluate_every: 20, checkpoint_every: 20, keep_last: 0}
optimizer: {method: sgd, lr: 0.2, clip: 0}
schedule: {kind: constant, warmup: 0}
log: {load_every: 1, tokens_every: 20}
"""

KINDS = {
    "joint": [],
    "cnn": ["moe.layers=0", "model.inner=7"],
    "separate": ["router.method=pmoe_separate", "moe.experts=2", "model.cnn.output=class", "router.stage1_updates=30"],
    "deep": ["model.family=vision", "model.heads=2", "model.blocks=2", "router.method=expert_choice",
             "router.expert_choice.within_sequence=true", "router.expert_choice.evaluation=experts",
             "train.micro_batches=2", "optimizer.method=adam", "optimizer.lr=0.01"],
}


def png(pixels):
    height, width = pixels.shape
    raw = b"".join(b"\0" + row.tobytes() for row in pixels)

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
            + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b""))


class Images(p.ProgramTest):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.text, cls.corpus, cls.config = cls.corpus, cls.path("images.h5"), cls.path("images.yml")
        with open(cls.config, "w", encoding="utf-8") as out:
            out.write(CONFIG)
        # One patch of four, at a random place, has a bar: upright in class `one`, flat in class `zero`.
        rng = np.random.default_rng(1)
        for i in range(160):
            name = ("zero", "one")[i % 2]
            pixels = rng.integers(0, 60, (8, 8), dtype=np.uint8)
            x, y = 4 * rng.integers(0, 2, 2)
            if i % 2:
                pixels[y: y + 4, x + 1] = 255
            else:
                pixels[y + 1, x: x + 4] = 255
            os.makedirs(cls.path("files", name), exist_ok=True)
            with open(cls.path("files", name, f"{i:03}.png"), "wb") as out:
                out.write(png(pixels))
        done = cls.program.run("prepare", "--images", cls.path("files"), "--patch", "4", "-o", cls.corpus)
        assert done.code == 0, done
        cls.prepared = done

    @classmethod
    def command(cls, run, *settings, config=None, corpus=None):
        words = ["train", config or cls.config]
        for setting in (f"data.corpus={corpus or cls.corpus}", f"run.directory={cls.path(run)}", *settings):
            words += ["-P", setting]
        return words

    def whole(self):
        if not os.path.exists(self.path("whole")):
            self.assertFine(self.program.run(*self.command("whole")))
        return self.path("whole")

    def test_learns(self):
        self.assertIn("model.context=4, and model.width=16", self.prepared.out)
        self.assertRegex(self.program.run("info", self.corpus, "--verify").out, r"train +112 .*\n.*valid +16 .*\n.*test +32")
        run = self.whole()
        accuracy = p.column(run, "valid_accuracy")[-1]
        self.assertGreater(accuracy, 0.8)
        results = {}
        for ranks in (1, 2):
            table = self.path(f"table-{ranks}.tsv")
            done = self.program.run("evaluate", run, "--json", "--images", table, ranks=ranks)
            self.assertFine(done)
            with open(table, encoding="utf-8") as file:
                results[ranks] = json.loads(done.out), file.read()
        self.assertEqual(results[1], results[2])
        found, text = results[1]
        lines = [line.split("\t") for line in text.splitlines()]
        self.assertEqual(lines[0], ["image", "class", "predicted", "nats", "place", "patches0"])
        self.assertEqual(len(lines), 33)
        right = sum(line[1] == line[2] for line in lines[1:])
        self.assertAlmostEqual(found["accuracy"], right / 32)
        for line in lines[1:]:
            patches = [part.split(",") for part in line[5].split(";")]
            self.assertEqual([len(taken) for taken in patches], [2, 2, 2])
        drawing = self.path("patches.svg")
        done = subprocess.run([sys.executable, "-m", "analysis", "patches", self.corpus, self.path("table-1.tsv"), "-o",
                               drawing], cwd=self.program.source, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self.assertEqual(done.returncode, 0, done.stdout)
        with open(drawing, encoding="utf-8") as file:
            svg = file.read()
        self.assertEqual((svg.count("<image"), svg.count("<title>expert")), (12, 12 * 6))

    def test_resume(self):
        for kind, settings in KINDS.items():
            with self.subTest(kind):
                whole, half = f"whole-{kind}", f"half-{kind}"
                self.assertFine(self.program.run(*self.command(whole, *settings)))
                self.assertFine(self.program.run(*self.command(half, *settings, "train.updates=20"), ranks=3))
                self.assertFine(self.program.run(*self.command(half, *settings), "--resume", ranks=2))
                self.assertSameRun(self.path(half), self.path(whole), (20, 40, 60))

    def test_words_are_of_images(self):
        done = self.program.run(*self.command("dry"), "--dry-run")
        self.assertFine(done)
        self.assertRegex(done.err, r"60 updates of 8 images in 4 lanes")
        self.assertRegex(done.err, r"data: 4\.29 passes over 112 training images")
        self.assertNotRegex(done.err, r"padding|nan")
        done = self.program.run("bench", self.config, "-P", f"data.corpus={self.corpus}", "-n", "2", "-w", "1", ranks=2)
        self.assertFine(done)
        self.assertRegex(done.out, r"width 16, context 4, 1 MoE layer of 3 experts\n.* images/s")
        with p.h5py.File(os.path.join(self.whole(), "routing", "step-000000060.h5")) as log:
            self.assertNotIn("layer_sides", log.attrs)
        done = self.program.run("export", self.whole(), "-o", self.path("images.safetensors"))
        self.assertFine(done)

    def test_refused_of_a_run(self):
        whole, text = self.whole(), self.path("text")
        self.assertFine(self.program.run(*self.command("text", "train.updates=10", config=self.program.config,
                                                       corpus=self.text)))
        self.assertFine(self.program.run("prepare", "--images", self.path("files"), "--patch", "2", "-o",
                                         self.path("other.h5")))
        cases = {
            "generate": (["generate", whole], "model of images"),
            "route": (["route", whole, self.config], "model of images"),
            "translate": (["translate", whole, self.config], "model of images"),
            "tokens": (["evaluate", whole, "--tokens", self.path("bad.tsv")], "--tokens"),
            "documents": (["evaluate", whole, "--documents", "3"], "--documents"),
            "experts": (["evaluate", whole, "--experts"], "--experts"),
            "images": (["evaluate", text, "--images", self.path("bad.tsv")], "language model, which reads none"),
            "another corpus": (["evaluate", whole, "-c", self.text], "corpus of text"),
            "other patches": (["evaluate", whole, "-c", self.path("other.h5")], "prepared as that of the training"),
            "bench": (["bench", self.config], "set data.corpus"),
        }
        for ranks in (1, 2):
            jobs = {name: lambda c=case: self.program.run(*c[0], ranks=ranks) for name, case in cases.items()}
            for name, result in p.several(jobs, 2):
                with self.subTest(name, ranks=ranks):
                    self.assertRefused(result, "format" if name == "another corpus" else "config", cases[name][1])
                    self.assertFalse(os.path.exists(self.path("bad.tsv")))

    def test_refused(self):
        cases = {
            "a text corpus": (self.command("bad", corpus=self.text), "format", "corpus of text"),
            "a text model": (["train", self.program.config, "-P", f"data.corpus={self.corpus}", "-P",
                              f"run.directory={self.path('bad')}"], "format", "corpus of images"),
            "patches": (self.command("bad", "model.context=5"), "config", "model.context=4"),
            "width": (self.command("bad", "model.width=8"), "config", "model.width=16"),
            "l": (self.command("bad", "router.pmoe.patches=5"), "config", "more patches than an image has"),
            "method": (self.command("bad", "router.method=switch"), "config", "pmoe"),
            "classes": (self.command("bad", "router.method=pmoe_separate", "moe.experts=4"), "config", "2 classes"),
            "samples": (self.command("bad", "data.train_images=113"), "config", "112 training images"),
            "capacity": (self.command("bad", "moe.capacity_factor=1"), "config", "set it to 0"),
            "ids": (self.command("bad", "model.family=vision", "router.method=hash"), "config", "token ids"),
            "sizes": (["prepare", "--images", self.path("files"), "--patch", "3", "-o", self.path("bad.h5")], "config",
                      "divide"),
        }
        jobs = {name: lambda c=case: self.program.run(*c[0]) for name, case in cases.items()}
        for name, result in p.several(jobs, 3):
            with self.subTest(name):
                self.assertRefused(result, *cases[name][1:])
            if name != "sizes":
                with self.subTest(name, ranks=2):
                    self.assertRefused(self.program.run(*cases[name][0], ranks=2), *cases[name][1:])


if __name__ == "__main__":
    p.main()
