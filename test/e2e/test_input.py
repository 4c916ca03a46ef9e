#!/usr/bin/env python3
"""Wrong input of every kind ends with one report that says what is wrong and what to do, with the
exit code of its kind, without a hang and without leaving anything, on one rank and on two.
"""

import os
import shutil
import subprocess

import h5py
import numpy as np

import program as p

RANKS = (1, 2)


class Input(p.ProgramTest):
    settings = ("train.updates=2", "schedule.warmup=1", "router.stage1_updates=1", "train.checkpoint_every=1")

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.run_path = cls.trained("done")
        cls.checkpoint = cls.path("done", "checkpoints", "step-000000002.h5")
        cls.log = cls.path("done", "routing", "step-000000002.h5")
        cls.text = cls.path("text.txt")
        cls.make_files()

    @classmethod
    def make_files(cls):
        """Files that are not what they should be."""
        with open(cls.corpus, "rb") as file:
            whole = file.read()
        cls.write("truncated.h5", whole[:len(whole) * 2 // 3])
        cls.write("stump.h5", whole[:100])
        middle = len(whole) - 500
        cls.write("flipped.h5", whole[:middle] + bytes(b ^ 0x55 for b in whole[middle:middle + 8]) + whole[middle + 8:])
        with h5py.File(cls.corpus, "r") as file:
            tokens = file["train/tokens"].id.get_offset()
        cls.write("tokens.h5", whole[:tokens] + bytes([whole[tokens] ^ 1]) + whole[tokens + 1:])
        cls.write("empty", b"")
        cls.write("binary.txt", bytes(range(256)) * 10)
        cls.write("list.yml", b"- run\n- model\n")
        cls.write("twice.yml", b"model:\n  width: 16\nmodel:\n  width: 32\n")
        cls.write("indent.yml", b"model:\n  width: 16\n   heads: 2\n")
        cls.write("unknown.yml", b"model:\n  widht: 16\n")
        cls.write("type.yml", b"model:\n  width: wide\n")
        with h5py.File(cls.path("foreign.h5"), "w") as file:
            file["tokens"] = np.arange(10)
        # As another program might make it: no seal, and a format of the future.
        with h5py.File(cls.corpus, "r") as old, h5py.File(cls.path("future.h5"), "w") as new:
            new.attrs.update(old.attrs)
            new.attrs["format_version"] = np.int64(2)
            for name in old:
                old.copy(name, new)
        shutil.copy(cls.path("future.h5"), cls.path("strange.h5"))
        with h5py.File(cls.path("strange.h5"), "r+") as file:
            file.attrs["format_version"] = np.int64(1)
            file["train/tokens"][...] = 60000
        p.write_text(cls.path("other.txt"), seed=2)
        result = cls.program.run("prepare", cls.path("other.txt"), "-o", cls.path("other.h5"), "--vocab", 310)
        assert result.code == 0, result

    @classmethod
    def write(cls, name, data):
        with open(cls.path(name), "wb") as file:
            file.write(data)

    def check(self, cases):
        """cases: name -> (arguments, kind of report, what it must say); each on every rank count."""
        before = self.tree()
        jobs = {(name, ranks): lambda a=args, r=ranks: self.program.run(*a, ranks=r)
                for name, (args, _, _) in cases.items() for ranks in RANKS}
        for (name, ranks), result in p.several(jobs, 4):
            with self.subTest(name, ranks=ranks):
                _, kind, pattern = cases[name]
                self.assertRefused(result, kind, pattern)
        self.assertEqual(self.tree(), before, "wrong input left or changed something")

    def tree(self):
        """Every file below the test's directory with its size and time of change."""
        found = {}
        for directory, _, names in os.walk(self.directory):
            for name in names:
                path = os.path.join(directory, name)
                about = os.lstat(path)
                found[path] = (about.st_size, about.st_mtime_ns)
        return found

    def train_with(self, *settings, config=None, more=(), run="new"):
        args = self.train_args(run, settings)
        if config:
            args[1] = self.path(config)
        return [*args, *more]

    def test_command_line(self):
        self.check({
            "no-subcommand": (["trian"], "config", "unknown subcommand 'trian': it is prepare, train"),
            "no-config": (["train"], "config", "CONFIG is missing; see train --help"),
            "two-configs": (self.train_with(more=["again.yml"]), "config", "one CONFIG, and got"),
            "option": (self.train_with(more=["--resmue"]), "config", "'--resmue' is unknown.*see train --help"),
            "both": (self.train_with(more=["--resume", "--overwrite"]), "config", "exclude each other"),
            "letters": (self.train_with(more=["-zq"]), "config", "option '-z' is unknown"),
            "no-value": (["train", self.program.config, "-P"], "config", "option '-P' lacks its value"),
            "value": (self.train_with(more=["--resume=3"]), "config", "option '--resume=3' takes no value"),
            "assignment": (self.train_with("model.width"), "config", "section.key=value expected"),
            "section": (self.train_with("model=3"), "config", "model is a section: name one of its keys"),
            "evaluate": (["evaluate"], "config", "takes one CHECKPOINT or run directory; see evaluate --help"),
            "split": (["evaluate", self.run_path, "-s", "tset"], "config", "train, valid or test"),
            "sequences": (["evaluate", self.run_path, "-n", "-1"], "config", "--sequences -1: expected a whole number"),
            "generate": (["generate"], "config", "takes one CHECKPOINT or run directory"),
            "tokens": (["generate", self.run_path, "-n", "0"], "config", "--tokens 0: expected a whole number from 1"),
            "cold": (["generate", self.run_path, "-t", "warm"], "config", "--temperature warm: expected a number"),
            "info": (["info"], "config", "takes one FILE or run directory; see info --help"),
        })

    def test_configuration(self):
        def refused(pattern, *settings, config=None):
            return self.train_with(*settings, config=config), "config", pattern

        self.check({
            "missing": (self.train_with(config="nothing.yml"), "io", "cannot open the configuration .*nothing.yml"),
            "directory": (self.train_with(config="."), "io", "cannot read the configuration .*Is a directory"),
            "text": refused("text.txt:1: sections with keys expected, as in", config="text.txt"),
            "binary": refused("not a text file in UTF-8", config="binary.txt"),
            "corpus": refused("corpus.h5:.*not a text file|control characters", config="corpus.h5"),
            "list": refused("list.yml:1: sections with keys expected", config="list.yml"),
            "twice": refused("twice.yml:3: model is there twice; the first one is in line 1", config="twice.yml"),
            "indent": refused("indent.yml:2: model.width: '16 heads", config="indent.yml"),
            "unknown": refused("unknown.yml:2: unknown key 'model.widht', did you mean 'model.width'",
                               config="unknown.yml"),
            "type": refused("type.yml:2: model.width: 'wide' is not an integer", config="type.yml"),
            "unknown-P": refused("unknown key 'train.lr', did you mean 'optimizer.lr'", "train.lr=1"),
            "range": refused("train.updates: '0' is out of range: 1 to", "train.updates=0"),
            "real": refused("optimizer.lr: '1e999' is out of range: 0 to 1", "optimizer.lr=1e999"),
            "nan": refused("optimizer.lr: 'nan' is not a number", "optimizer.lr=nan"),
            "choice": refused("moe.position: 'midle' is not a choice there is: middle, top", "moe.position=midle"),
            "method": refused("router.method is 'stabel'; the methods are: ", "router.method=stabel"),
            "heads": refused("model.heads 3 does not divide model.width 16", "model.heads=3"),
            "batch": refused("9 cannot be cut into train.lanes 4 times train.micro_batches 1 .* nearest that can is 8",
                             "train.batch_sequences=9"),
            "micro-batches": refused("8 cannot be cut into train.lanes 4 times train.micro_batches 3",
                                     "train.micro_batches=3"),
            "places": refused("only moe.position scattered takes more than one", "moe.layers=2"),
            "layers": refused("moe.layers 3 do not fit between model.blocks 2", "moe.layers=3",
                              "moe.position=scattered"),
            "nodes-lanes": refused("moe.nodes 3 does not divide train.lanes 4", "moe.nodes=3"),
            "nodes-experts": refused("moe.nodes 2 does not divide moe.experts 3", "router.method=smile", "moe.nodes=2",
                                     "moe.experts=3"),
            "nodes-local": refused("moe.nodes 4 does not divide moe.experts 6", "router.method=local", "moe.nodes=4",
                                   "moe.experts=6", "model.width=18", "model.heads=2"),
            "groups": refused("moe.experts 3 does not divide model.width 16: every expert scores by an equal group",
                              "router.method=local", "moe.experts=3"),
            "thor-expert": refused("router.thor.expert 4: there are moe.experts 4, numbered from 0",
                                   "router.method=thor", "router.thor.evaluation=one", "router.thor.expert=4",
                                   "moe.experts=4"),
            "thor-distinct": refused("two copies have different experts only where", "router.method=thor",
                                     "router.thor.distinct=true", "router.thor.copies=1"),
            "thor-room": refused("mean needs room for every token in every expert", "router.method=thor",
                                 "router.thor.evaluation=mean", "moe.capacity_factor=1"),
            "warmup": refused("schedule.warmup 9 is longer than train.updates 2", "schedule.warmup=9"),
            "context": refused("too few for one sequence of model.context = 65000: use more text or a shorter context",
                               "model.context=65000"),
            "dry-model": (self.train_with("router.method=hash", "router.hash.variant=clustered",
                                          f"router.hash.model={self.path('nothing.h5')}", more=["--dry-run"]),
                          "io", "nothing.h5.*No such file"),
            "no-corpus": refused("data.corpus is not set: make one with `stablemoe prepare", "data.corpus="),
        })

    def test_ranks(self):
        """What only the number of ranks makes wrong."""
        cases = {
            "lanes": (2, ["train.lanes=1"], "2 ranks for train.lanes = 1: .*set train.lanes to a multiple"),
            "expert-ranks": (4, ["moe.experts=2", "comm.expert_ranks=4"],
                             "comm.expert_ranks = 4 for moe.experts = 2: at most one rank per expert"),
            "divide": (3, ["comm.expert_ranks=2"], "comm.expert_ranks = 2 does not divide the 3 ranks: .*set it to 0"),
        }
        for name, (ranks, settings, pattern) in cases.items():
            with self.subTest(name):
                words = self.train_with(*settings, run="ranks")
                self.assertRefused(self.program.run(*words, ranks=ranks), "config", pattern)
                self.assertFalse(os.path.exists(self.path("ranks")))

    def test_corpus(self):
        def corpus(name, kind, pattern):
            return self.train_with(f"data.corpus={self.path(name)}"), kind, pattern

        self.check({
            "missing": corpus("nothing.h5", "io", "cannot open '.*nothing.h5': No such file.*stablemoe prepare"),
            "below-file": corpus("text.txt/corpus.h5", "io", "Not a directory"),
            "text": corpus("text.txt", "format", "text.txt' is not an HDF5 file"),
            "empty": corpus("empty", "format", "empty' is not an HDF5 file"),
            "truncated": corpus("truncated.h5", "format", "truncated"),
            "stump": corpus("stump.h5", "format", "truncated|damaged"),
            "flipped": corpus("flipped.h5", "format", "is damaged"),
            "tokens": corpus("tokens.h5", "format", "tokens.h5' is damaged: its tokens are not those of its fingerprint"),
            "checkpoint": (self.train_with(f"data.corpus={self.checkpoint}"), "format", "no corpus: make one with"),
            "routing": (self.train_with(f"data.corpus={self.log}"), "format", "no corpus: make one with"),
            "foreign": corpus("foreign.h5", "format", "no corpus: make one with .stablemoe prepare"),
            "future": corpus("future.h5", "format", "format version 2, this program reads version 1: prepare it again"),
        })
        for ranks in RANKS:
            result = self.program.run(*corpus("strange.h5", "", "")[0], ranks=ranks)
            # Each rank may be the first to meet a token that is none, in mid-step.
            self.assertEqual(result.code, p.CODES["format"], result)
            self.assertRegex(result.err, "is damaged: token .* of train is 60000, the vocabulary 300")
            shutil.rmtree(self.path("new"))

    def test_run_directory(self):
        self.check({
            "taken": (self.train_with(run="done"), "config",
                      "holds a run already: add --resume to continue it, --overwrite to start anew"),
            "below-file": (self.train_with(run="text.txt/run"), "io", "cannot make the directory.*Not a directory"),
            "file": (self.train_with(run="text.txt"), "io", "text.txt.*Not a directory"),
        })

    def test_resume(self):
        """Going on with what does not fit to the run."""
        for name, setting, kind, pattern in (
                ("corpus", f"data.corpus={self.path('other.h5')}", "config", "trained on another corpus"),
                ("seed", "run.seed=2", "config", "was trained with run.seed = 1: resume with that seed"),
                ("width", "model.width=32", "format", "shape"),
                ("layers", "moe.layers=0", "format", "which this model does not have: it is of another configuration"),
                ("blocks", "model.blocks=3", "format", "damaged, or of another configuration")):
            for ranks in RANKS:
                with self.subTest(name, ranks=ranks):
                    self.copy("done", f"{name}-{ranks}")
                    left = [p.checkpoint(self.path(f"{name}-{ranks}"), update) for update in (1, 2)]
                    result = self.train(f"{name}-{ranks}", [setting], ranks=ranks, resume=True)
                    self.assertRefused(result, kind, pattern)
                    for update, mark in zip((1, 2), left):
                        self.assertEqual(p.different(p.checkpoint(self.path(f"{name}-{ranks}"), update), mark), [])

    def test_trained_model(self):
        """What evaluate, generate and info say to files that are no checkpoint."""
        nothing, bare = self.path("nothing"), self.path("bare")
        os.makedirs(bare, exist_ok=True)
        cases = {}
        for command in ("evaluate", "generate"):
            cases |= {
                f"{command}-missing": ([command, nothing], "io", "No such file"),
                f"{command}-bare": ([command, bare], "io", "bare/checkpoints/latest': No such file"),
                f"{command}-text": ([command, self.text], "format", "is not an HDF5 file"),
                f"{command}-corpus": ([command, self.corpus], "format", "is not a StableMoE checkpoint"),
                f"{command}-foreign": ([command, self.path("foreign.h5")], "format", "is not a StableMoE checkpoint"),
                f"{command}-other": ([command, self.run_path, "-c", self.path("other.h5")], "config",
                                     "tokenizer of .*other.h5. is not the one"),
                f"{command}-no-corpus": ([command, self.run_path, "-c", nothing], "io", "No such file"),
            }
        cases |= {
            "info-missing": (["info", nothing], "io", "No such file"),
            "info-text": (["info", self.text], "format", "is not an HDF5 file"),
            "info-truncated": (["info", self.path("truncated.h5")], "format", "truncated"),
            "info-tokens": (["info", self.path("tokens.h5"), "--verify"], "format", "tokens.h5' is damaged"),
            "info-foreign": (["info", self.path("foreign.h5")], "format", "no checkpoint, routing log or corpus"),
        }
        self.check(cases)

    def test_prepare(self):
        text = self.text

        def prepare(kind, pattern, *args):
            return ["prepare", *args], kind, pattern

        output = ["-o", self.path("made.h5")]
        self.check({
            "nothing": prepare("config", "no text is named; see prepare --help", *output),
            "no-output": prepare("config", "-o CORPUS.h5 is missing; see prepare --help", text),
            "missing": prepare("io", "cannot read .*nothing.txt.*No such file", self.path("nothing.txt"), *output),
            "empty": prepare("config", "there is no text in", self.path("empty"), *output),
            "binary": prepare("format", "is not UTF-8 text", self.path("binary.txt"), *output),
            "below-file": prepare("io", "cannot write.*Not a directory", text, "-o", f"{text}/made.h5"),
            "directory": prepare("config", "exists and is not a regular file", text, "-o", self.directory),
            "itself": prepare("config", "is one of the texts, and would replace it", text, "-o", text),
            "vocabulary": prepare("config", "vocabulary of 7 pieces is not between 260", text, *output, "--vocab", 7),
            "too-large": prepare("config", "does not allow a vocabulary of 90000 pieces: the largest it allows is",
                                 text, *output, "--vocab", 90000),
            "tokenizer": prepare("config", "--tokenizer word: expected bpe or unigram", text, *output,
                                 "--tokenizer", "word"),
            "model": prepare("format", "is no SentencePiece model|text.txt", text, *output, "--model", text),
            "share": prepare("config", "together at most 1", text, *output, "--valid", "0.99"),
        })

    def test_prepare_pairs(self):
        text = self.text
        short, latin = self.path("short.txt"), self.path("latin.tsv")
        self.write("short.txt", b"one\ntwo\n")
        self.write("latin.tsv", b"one\tun\ntwo\tdeux \xe9\n")

        def prepare(kind, pattern, *args):
            return ["prepare", *args, "-o", self.path("made.h5")], kind, pattern

        self.check({
            "no-files": prepare("config", "--pair de-en: expected SRC-TGT SOURCE", "--pair", "de-en"),
            "languages": prepare("config", "'de' is not the languages of a pair", "--pair", "de", text, text),
            "third": prepare("config", "'c' is one file too many", "--pair", "de-en", "a", "b", "c"),
            "text-too": prepare("config", "is one file too many", text, "--pair", "de-en", text, text),
            "lines": prepare("config", "are of text, not of pairs", "--lines", "--pair", "de-en", text, text),
            "no-training": prepare("config", "no training pairs are named", "--test-pair", "de-en", text, text),
            "unequal": prepare("config", f"has [0-9]+ lines and '{short}' 2: line n", "--pair", "de-en", text, short),
            "missing": prepare("io", "nothing.gz': No such file", "--pair", "de-en", text, self.path("nothing.gz")),
            "columns": prepare("format", "line 1 of '.*' has 1 column, expected two", "--pair", "de-en", short),
            "latin": prepare("format", "latin.tsv' is not UTF-8 text: line 2, byte 10 is 0xE9", "--pair", "de-en",
                             latin),
            "untrained": prepare("config", "no training pairs of fr-en", "--pair", "de-en", text, text,
                                 "--valid-pair", "fr-en", text, text),
        })

    def test_submit(self):
        """jobs/submit.sh where no Slurm answers, and with more ranks than lanes, few and many."""
        os.mkdir(self.path("slurm"))
        self.write(os.path.join("slurm", "sinfo"), b"#!/bin/sh\necho 'no cluster here' >&2\nexit 1\n")
        os.chmod(self.path("slurm", "sinfo"), 0o755)
        env = {**p.environment(), "STABLEMOE": self.program.path,
               "PATH": self.path("slurm") + os.pathsep + os.environ["PATH"]}
        for ranks, lanes, code, said in ((2, 4, 0, "--ntasks-per-node=2 "),
                                         (6, 4, 2, "6 ranks for train.lanes = 4 .* -P train.lanes=6"),
                                         (17, 16, 2, "17 ranks for train.lanes = 16 ")):
            with self.subTest(ranks=ranks):
                settings = (f"train.lanes={lanes}", f"train.batch_sequences={lanes}")
                words = [*self.train_args("asked", settings)[1:], "--ranks", str(ranks), "--print"]
                result = subprocess.run(["bash", os.path.join(self.program.source, "jobs", "submit.sh"), *words],
                                        env=env, cwd=self.directory, capture_output=True, text=True, check=False,
                                        timeout=p.TIME_LIMIT)
                self.assertEqual(result.returncode, code, result)
                self.assertRegex(result.stdout + result.stderr, said)


if __name__ == "__main__":
    p.main()
