#!/usr/bin/env python3
"""A model and a text meet with the tokenizer of the training, or not at all."""

import json
import os
import shutil

import h5py
import numpy as np

import program as p


class Tokenizers(p.ProgramTest):
    settings = ("train.updates=20", "router.stage1_updates=10", "train.checkpoint_every=20", "log.probe_every=0",
                "train.evaluate_every=0", "schedule.kind=constant", "optimizer.lr=0.01")

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.run_path = cls.trained("run")
        cls.checkpoint = cls.path("run", "checkpoints", "latest")
        # The same text and size of vocabulary, other pieces.
        cls.other = cls.prepare("other.h5", "--vocab", 300, "--tokenizer", "unigram")

    @classmethod
    def prepare(cls, name, *options):
        result = cls.program.run("prepare", cls.path("text.txt"), "-o", cls.path(name), *options)
        assert result.code == 0, result
        return cls.path(name)

    def test_another_tokenizer_of_the_same_size(self):
        words = "tokenizer of '.*other.h5' is not the one.*-c FILE.*tokenizer.model"
        for ranks in (1, 2):
            for name, args in (("evaluate", [self.run_path]), ("generate", [self.run_path, "-n", 4]),
                               ("route", [self.run_path, "some text"]),
                               ("export", [self.run_path, "-o", self.path("x.safetensors")])):
                with self.subTest(name, ranks=ranks):
                    result = self.program.run(name, *args, "-c", self.other, ranks=ranks)
                    self.assertRefused(result, "config", words)
        self.assertFalse(os.path.exists(self.path("x.safetensors")))

    def test_embedding_of_a_model(self):
        """Clusters of a model's embeddings are clusters of its own ids."""
        settings = ["router.method=hash", "router.hash.variant=clustered",
                    f"router.hash.model={self.checkpoint}"]
        self.assertFine(self.train("clustered", settings))
        result = self.train("clustered-other", [*settings, f"data.corpus={self.other}"])
        self.assertRefused(result, "config", "tokenizer of '.*other.h5' is not the one")

    def test_corpus_prepared_again(self):
        """To the same path: the run's own tokenizer is the way out."""
        before = json.loads(self.program.run("evaluate", self.run_path, "--json").out)
        kept = shutil.copy(self.corpus, self.path("kept.h5"))
        model = self.path("run", "tokenizer.model")
        try:
            shutil.copy(self.other, self.corpus)
            self.assertRefused(self.program.run("evaluate", self.run_path), "config", "is not the one")
            resumed = self.train("run", ["train.updates=30"], resume=True)
            self.assertRefused(resumed, "config", "corpus.h5' is not what it was when .* another tokenizer")
            again = self.prepare("again.h5", "--model", model)
            after = json.loads(self.program.run("evaluate", self.run_path, "--json", "-c", again).out)
            exported = self.program.run("export", self.run_path, "-o", self.path("warned.safetensors"))
            self.assertFine(exported)
            self.assertIn("no tokenizer is written", exported.err)
            self.assertFalse(os.path.exists(self.path("warned.tokenizer")))
        finally:
            shutil.move(kept, self.corpus)
        self.assertEqual(after["loss"], before["loss"])

    def test_other_text(self):
        """The same tokenizer on other text is what -c is for."""
        p.write_text(self.path("text2.txt"), seed=2)
        result = self.program.run("prepare", self.path("text2.txt"), "-o", self.path("text2.h5"), "--model",
                                  self.path("run", "tokenizer.model"))
        self.assertFine(result)
        self.assertFine(self.program.run("evaluate", self.run_path, "-c", self.path("text2.h5")))

    def test_without_a_record(self):
        """A checkpoint of an earlier version: right with its own corpus, a warning with another."""
        old = self.path("old.h5")
        with h5py.File(self.checkpoint, "r") as source, h5py.File(old, "w") as file:
            for name, value in source.attrs.items():
                file.attrs[name] = value
            for name in source:
                source.copy(name, file)
            for name in ("tokenizer", "corpus_absolute"):
                del file["meta"].attrs[name]
        fine = self.program.run("evaluate", old)
        self.assertFine(fine)
        self.assertNotIn("warning", fine.err)
        warned = self.program.run("evaluate", old, "-c", self.other)
        self.assertFine(warned)
        self.assertIn("the checkpoint does not record its tokenizer", warned.err)

    def test_from_another_directory(self):
        """A corpus that was named from where the training was started."""
        result = self.program.run("train", self.program.config, *sum((["-P", s] for s in (
            "data.corpus=corpus.h5", "run.directory=relative", *self.settings)), []), cwd=self.directory)
        self.assertFine(result)
        os.makedirs(self.path("elsewhere"), exist_ok=True)
        self.assertFine(self.program.run("evaluate", self.path("relative"), cwd=self.path("elsewhere")))
        with h5py.File(self.path("relative", "checkpoints", "latest"), "r") as file:
            self.assertEqual(file["meta"].attrs["corpus"].decode(), "corpus.h5")
            self.assertEqual(file["meta"].attrs["corpus_absolute"].decode(), os.path.realpath(self.corpus))
            self.assertNotEqual(file["meta"].attrs["tokenizer"], np.uint64(0))


if __name__ == "__main__":
    p.main()
