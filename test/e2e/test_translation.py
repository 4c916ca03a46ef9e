#!/usr/bin/env python3
"""Translation, end to end: pairs to a corpus, training, BLEU, translations. The same bits on any number of ranks,
after a resume, with recomputation; the same text on any number of ranks and in batches of any size."""

import json
import math
import os
import re
import sys

sys.path[:0] = [os.path.dirname(os.path.abspath(__file__)), os.path.join(os.path.dirname(__file__), "..", "..")]
import numpy as np  # noqa: E402

import program as p  # noqa: E402
from analysis import score  # noqa: E402

# A language of numbers and one of letters: the translation is a map of words, and their order turned round.
WORDS = {"eins": "one", "zwei": "two", "drei": "three", "vier": "four", "rot": "red", "blau": "blue"}


def sentence(number):
    words = sorted(WORDS)
    picked = []
    for _ in range(2 + number % 5):
        number = (number * 1103515245 + 12345) % (1 << 31)
        picked.append(words[number >> 16 & 0xffff and (number >> 16) % len(words)])
    return picked


CONFIG = """
run: {log_every: 1}
model: {family: translation, width: 32, blocks: 2, heads: 4, inner: 48, context: 32}
moe: {experts: 4, sublayers: 1, inner: 32}
router: {stage1_updates: 3}
train: {updates: 6, batch_tokens: 512, lanes: 4, micro_batches: 2, evaluate_every: 3, checkpoint_every: 3, keep_last: 0}
schedule: {warmup: 2}
optimizer: {lr: 0.01}
log: {load_every: 1}
"""


class Translation(p.ProgramTest):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.source, cls.target = cls.path("text.de"), cls.path("text.en")
        with open(cls.source, "w", encoding="utf-8") as de, open(cls.target, "w", encoding="utf-8") as en:
            for i in range(400):
                words = sentence(i)
                de.write(" ".join(words) + "\n")
                en.write(" ".join(WORDS[w] for w in reversed(words)) + "\n")
        cls.corpus, cls.config = cls.path("pairs.h5"), cls.path("translation.yml")
        with open(cls.config, "w", encoding="utf-8") as out:
            out.write(CONFIG)

    def prepared(self):
        if not os.path.exists(self.corpus):
            self.assertFine(self.program.run("prepare", "--pair", "de-en", self.source, self.target, "-o", self.corpus,
                                             "--vocab", "300"))
        return self.corpus

    def trained(self, name, *settings, ranks=1, resume=False):
        run = self.path(name)
        if os.path.exists(run) and not resume:
            return run
        keys = [f"data.corpus={self.prepared()}", f"run.directory={run}", *settings]
        words = ["train", self.config, *(w for key in keys for w in ("-P", key)), *(["--resume"] if resume else [])]
        self.assertFine(self.program.run(*words, ranks=ranks))
        return run

    def test_same_bits(self):
        one = self.trained("one")
        for name, settings, ranks in (("two", [], 2), ("four", [], 4), ("three", ["train.recompute=true"], 3)):
            with self.subTest(name):
                self.assertSameRun(self.trained(name, *settings, ranks=ranks), one, (3, 6))
        self.assertEqual(p.column(one, "stage"), [1.0] * 3 + [2.0] * 3)
        self.assertTrue(all(x > 0 for x in p.column(one, "moe0_max_over_mean") + p.column(one, "moe1_max_over_mean")))

    def test_resume(self):
        one, parts = self.trained("one"), self.trained("parts", "train.updates=3", "router.stage1_updates=3", ranks=2)
        self.trained("parts", "train.updates=6", ranks=4, resume=True)
        last = "checkpoints/step-000000006.h5"
        with p.h5py.File(os.path.join(one, last)) as a, p.h5py.File(os.path.join(parts, last)) as b:
            names = []
            a["param"].visititems(lambda name, item: names.append(name) if isinstance(item, p.h5py.Dataset) else None)
            self.assertGreater(len(names), 20)
            # The schedule differs: it ends at train.updates. Names and shapes are those of the same model.
            for name in names:
                self.assertEqual(a["param"][name].shape, b["param"][name].shape, name)

    def probe(self, run):
        """The probe of a run over all its routing logs, and what its tokens are."""
        parts = []
        for name in p.files_of(run, "routing"):
            with p.h5py.File(os.path.join(run, "routing", name)) as file:
                self.assertEqual(file.attrs["languages"].decode(), "de en")
                self.assertEqual(file.attrs["layer_sides"].decode(), "source target")
                parts.append({name: item[()] for name, item in file["probe"].items()})
        for name in ("token", "side", "language"):
            self.assertTrue(all((part[name] == parts[0][name]).all() for part in parts), name)
        return {name: parts[0][name] if name in ("token", "side", "language") else np.concatenate(
            [part[name] for part in parts]) for name in parts[0]}

    def test_probe(self):
        """Choices of both MoE layers in the log: those that the frozen routers make, of every token of their side."""
        run = self.trained("one")
        probe = self.probe(run)
        self.assertEqual(probe["step"].tolist(), [1, 2, 3, 4, 5, 6])
        self.assertEqual(probe["stage"].tolist(), [1, 1, 2, 2, 2, 2])
        for language in ("side", "language"):
            self.assertEqual(sorted(set(probe[language].tolist())), [0, 1])
        # Pairs spread over the validation split, each its source and then the decoder's input.
        with p.h5py.File(self.corpus) as file:
            languages = file.attrs["languages"].decode().split()
            n = len(file["valid/direction"])
            texts = {side: np.split(file[f"valid/{side}/tokens"][()], file[f"valid/{side}/offset"][1:-1])
                     for side in ("source", "target")}
        expected, sides = [], []
        for pair in (i * n // min(8, n) for i in range(min(8, n))):
            source, target = texts["source"][pair], texts["target"][pair]
            expected += [*source, target[-1], *target[:-1]]
            sides += [0] * len(source) + [1] * len(target)
        self.assertEqual((probe["token"].tolist(), probe["side"].tolist()), (expected, sides))
        self.assertEqual([languages[i] for i in probe["language"]], ["de" if side == 0 else "en" for side in sides])
        frozen = probe["stage"] == 2
        with p.h5py.File(os.path.join(run, "checkpoints", "latest")) as file:
            for layer in (0, 1):
                own, expert = probe["side"] == layer, probe["expert"][:, layer]
                self.assertTrue((expert[:, ~own] == -1).all() and (expert[:, own] >= 0).all(), layer)
                # Fluctuation in stage 1, none in stage 2.
                self.assertTrue((expert[0, own] != expert[-1, own]).any(), layer)
                self.assertTrue((expert[frozen] == expert[-1]).all(), layer)
                router = file[f"param/moe{layer}/router/distilled"]
                scores = router["embedding"][()][probe["token"][own]].astype("f8") @ router["centroid"][()].T
                self.assertTrue((scores.argmax(1) == expert[-1, own]).all(), layer)

    def test_analysis(self):
        """The analysis sees zero fluctuation after stage 1, and the experts of each language."""
        sys.path.insert(0, self.program.source)
        from analysis import counts, routing
        log = routing.load_log(self.trained("one"))
        self.assertEqual((log.notes, log.languages, log.layer_sides), ([], ["de", "en"], ["source", "target"]))
        for layer in (0, 1):
            last = routing.fluctuation_counts(log, layer)
            self.assertEqual(last.sum(), (log.probe_side == layer).sum())
            # Row 1 + i: the expert at probe i is the last one that differs. Stage 2 begins with the third probe.
            self.assertEqual(last[3:].tolist(), [0, 0, 0, 0])
            self.assertGreater(last[1:3].sum(), 0)
            table = counts.probe_languages(log, layer)
            self.assertEqual(table.sum(1).tolist(), [(log.probe_side == 0).sum(), 0] if layer == 0
                             else [0, (log.probe_side == 1).sum()])
            self.assertEqual(table.sum(0).tolist(), counts.probe_counts(log, layer).sum(0).tolist())

    def learned(self):
        """A model that has learned the map."""
        return self.trained("learned", "train.updates=400", "train.batch_tokens=1024", "train.micro_batches=1",
                            "router.stage1_updates=50", "schedule.warmup=40", "train.evaluate_every=0",
                            "train.checkpoint_every=400", "model.translation.dropout=0")

    def judged_by_bleu(self, name, **how):
        return self.trained(name, "train.updates=400", "train.batch_tokens=1024", "train.micro_batches=1",
                            "router.stage1_updates=50", "schedule.warmup=40", "model.translation.dropout=0",
                            "train.evaluate_every=20", "train.checkpoint_every=90", "train.patience=2",
                            "train.patience_metric=bleu", "train.patience_pairs=0", **how)

    def test_best_by_bleu(self):
        """train.patience_metric bleu: the score is that of the translations, with experts wherever they are; the best is
        kept and the run ends, after a resume on another number of ranks at the same update with the same bits."""
        run = self.judged_by_bleu("by-bleu", ranks=3)
        valid = {int(update): bleu for update, bleu in zip(p.column(run, "update"), p.column(run, "valid_bleu"))
                 if not math.isnan(bleu)}
        last = max(valid)
        best = max((update for update in valid if update >= 50), key=lambda update: (valid[update], -update))
        self.assertEqual(last, best + 40, valid)
        self.assertGreater(valid[best], 5, valid)
        kept = os.path.join(run, "checkpoints")
        self.assertEqual(os.readlink(os.path.join(kept, "best")), f"step-{best:09d}.h5")
        with p.h5py.File(os.path.join(kept, "latest")) as file:
            named = [file["meta"].attrs[f"best_{name}"] for name in ("metric", "update", "since")]
            self.assertEqual(named, [2, best, 2])
            self.assertAlmostEqual(file["meta"].attrs["best_value"], valid[best], delta=1e-7)
        # The same score of the texts that `translate` prints, computed in Python.
        table = self.path("valid.tsv")
        self.assertFine(self.program.run("evaluate", run, "--split", "valid", "--translations", table))
        with open(table, encoding="utf-8") as file:
            rows = [line.rstrip("\n").split("\t") for line in file]
        text = self.translate(run, "--best", "--beam", "1", lines=[row[1] for row in rows])
        bleu = score.Bleu()
        for (_, _, reference, _), line in zip(rows, text.splitlines(), strict=True):
            bleu.add(reference, line)
        self.assertAlmostEqual(bleu.score, valid[best], delta=1e-6)
        # From a checkpoint between two evaluations that brought nothing.
        self.copy("by-bleu", "by-bleu-parts")
        parts = self.path("by-bleu-parts", "checkpoints")
        for name in ("latest", f"step-{last:09d}.h5"):
            os.unlink(os.path.join(parts, name))
        self.judged_by_bleu("by-bleu-parts", ranks=2, resume=True)
        self.assertSameRun(self.path("by-bleu-parts"), run, (best, last))

    def translate(self, run, *options, ranks=1, lines=None):
        lines = lines or [" ".join(sentence(i)) for i in range(1000, 1030)]
        path = self.path("input.de")
        with open(path, "w", encoding="utf-8") as out:
            out.write("\n".join(lines) + "\n")
        result = self.program.run("translate", run, path, *options, ranks=ranks)
        self.assertFine(result)
        return result.out

    def test_translations(self):
        run = self.learned()
        lines = [" ".join(sentence(i)) for i in range(1000, 1030)]
        right = [" ".join(WORDS[w] for w in reversed(line.split())) for line in lines]
        text = self.translate(run, lines=lines)
        good = sum(a == b for a, b in zip(text.splitlines(), right))
        self.assertGreaterEqual(good, 15, text)
        for ranks in (2, 3, 4):
            self.assertEqual(self.translate(run, ranks=ranks, lines=lines), text, f"{ranks} ranks")
        for batch in ("1", "3", "40"):
            self.assertEqual(self.translate(run, "--batch", batch, lines=lines), text, f"--batch {batch}")
        # An empty line stays in its place.
        holes = self.translate(run, lines=[lines[0], "", lines[1]])
        self.assertEqual(holes.splitlines(), [text.splitlines()[0], "", text.splitlines()[1]])

    def test_speed(self):
        """translate and bench say how fast they are, bench with the share of padding that train prints, too."""
        run = self.trained("one")
        result = self.program.run("translate", run, self.source, ranks=2)
        self.assertRegex(result.err, r"400 sentences in [\d.]+ s: [\d.]+ sentences/s")
        result = self.program.run("bench", self.config, "-P", f"data.corpus={self.corpus}", "-n", "1", "-w", "0", "--json")
        self.assertFine(result)
        figures = json.loads(result.out)
        said = self.program.run("train", self.config, "-P", f"data.corpus={self.corpus}", "--dry-run").err
        for side in ("source", "target"):
            percent = float(re.search(rf"([\d.]+) % of the {side} rows", said)[1])
            self.assertAlmostEqual(100 * figures[f"{side}_padding"], percent, delta=0.051)

    def test_scores(self):
        """The score of an n-best list is that of the same text, forced."""
        run = self.learned()
        line = " ".join(sentence(1003))
        out = json.loads(self.translate(run, "--json", "--n-best", "3", "--beam", "4", lines=[line]))
        best = out["translations"]
        self.assertEqual(len(best), 3)
        self.assertEqual([t["score"] for t in best], sorted((t["score"] for t in best), reverse=True))
        compared = 0
        for t in best:
            if not t["text"]:
                continue
            source, target, corpus = self.path("forced.de"), self.path("forced.en"), self.path("forced.h5")
            with open(source, "w", encoding="utf-8") as de, open(target, "w", encoding="utf-8") as en:
                de.write(line + "\n"), en.write(t["text"] + "\n")
            self.assertFine(self.program.run("prepare", "--pair", "de-en", self.source, self.target, "--test-pair",
                                             "de-en", source, target, "-o", corpus, "--model", self.tokenizer(run)))
            with p.h5py.File(corpus) as file:
                forced = file["test/target/tokens"][()].tolist()
            if forced[:-1] != t["tokens"]:
                continue  # the text can be cut into pieces in another way, which has its own probability
            result = self.program.run("evaluate", run, "--corpus", corpus, "--json")
            self.assertFine(result)
            figures = json.loads(result.out)
            log_p = -figures["loss"] * figures["targets"]
            self.assertTrue(abs(log_p - t["log_p"]) <= 2e-4 * (1 + abs(log_p)), f"{log_p}, {t}")
            compared += 1
        self.assertGreater(compared, 0, best)

    def tokenizer(self, run):
        found = [name for name in os.listdir(run) if name.startswith("tokenizer")]
        self.assertEqual(len(found), 1, os.listdir(run))
        return os.path.join(run, found[0])

    def test_evaluate(self):
        run = self.learned()
        result = self.program.run("evaluate", run, "--json", ranks=2)
        self.assertFine(result)
        figures = json.loads(result.out)
        self.assertGreater(figures["directions"]["de-en"]["bleu"], 30)
        self.assertEqual(figures["signature"], "nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp")
        self.assertEqual(self.program.run("evaluate", run, "--json").out, result.out)
        # A mean of one checkpoint is that checkpoint.
        self.assertFine(self.program.run("average", run, "-k", "1"))
        mean = os.path.join(run, "average.h5")
        self.assertEqual(self.program.run("evaluate", mean, "--json").out, result.out)
        self.assertEqual(self.translate(mean), self.translate(run))

    def test_table_of_translations(self):
        """evaluate --translations: each pair of the split with the translation that its BLEU is of."""
        run, table = self.learned(), self.path("test.tsv")
        result = self.program.run("evaluate", run, "--translations", table, "--json", ranks=2)
        self.assertFine(result)
        with open(table, encoding="utf-8") as file:
            rows = [line.rstrip("\n").split("\t") for line in file]
        self.assertEqual(len(rows), json.loads(result.out)["directions"]["de-en"]["pairs"])
        self.assertTrue(all(len(row) == 4 and row[0] == "de-en" for row in rows), rows[:3])
        for _, source, reference, _ in rows:
            self.assertEqual(" ".join(WORDS[w] for w in reversed(source.split())), reference)
        text = self.translate(run, lines=[row[1] for row in rows])
        self.assertEqual(text.splitlines(), [row[3] for row in rows])

    def test_methods(self):
        """Each routing method trains both MoE layers, with the same figures on one rank and on two."""
        for method, keys in (("switch", ["moe.capacity_factor=1.25"]), ("base", []), ("gshard", ["moe.capacity_factor=1"]),
                             ("hash", ["router.hash.variant=balanced"]), ("topk", []), ("recurrent", []), ("sparsemixer", []),
                             ("expert_choice", []),
                             ("thor", ["router.thor.draw=sequence", "router.thor.consistency=5",
                                       "model.translation.dropout=0.1", "moe.experts=3"])):
            with self.subTest(method):
                settings = [f"router.method={method}", "train.updates=2", "train.evaluate_every=2",
                            "train.checkpoint_every=2", "router.stage1_updates=-1", *keys]
                one = self.trained(f"{method}-one", *settings)
                self.assertSameRun(self.trained(f"{method}-two", *settings, ranks=2), one, (2,))
                self.assertEqual(len(p.column(one, "loss")), 2)

    def test_bad_input(self):
        run = self.trained("one")
        for words, expected in (
                (("translate", run, "--to", "fr", self.source), "does not translate to 'fr'; --to may be: en"),
                (("translate", run, self.path("missing.de")), "cannot read"),
                (("generate", run, "--prompt", "x"), "translation model"),
                (("train", self.config, "-P", f"data.corpus={self.prepared()}", "-P", "model.family=stablemoe", "-P",
                  f"run.directory={self.path('no')}"), "pairs"),
                (("train", self.config, "-P", f"data.corpus={self.prepared()}", "-P", "model.family=stablemoe", "-P",
                  "train.patience_metric=bleu"), "train.patience_metric bleu needs translations"),
                (("train", self.config, "-P", f"data.corpus={self.prepared()}", "-P", "train.batch_tokens=64", "-P",
                  f"run.directory={self.path('no')}"), "train.batch_tokens 64 leaves a lane"),
                (("train", self.config, "-P", f"data.corpus={self.prepared()}", "-P", "model.context=4", "-P",
                  f"run.directory={self.path('no')}"), "model.context is 4")):
            for ranks in (1, 2):
                with self.subTest(words[0], expected=expected, ranks=ranks):
                    result = self.program.run(*words, ranks=ranks)
                    self.assertNotEqual(result.code, 0, str(result))
                    self.assertIsNotNone(result.code, str(result))
                    self.assertIn(expected, result.err)
        # Too long for the model: an error line, and the line stays empty; or cut.
        long = " ".join(["eins"] * 60)
        result = self.translate(run, lines=["rot", long, "blau"])
        self.assertEqual(result.splitlines()[1], "")
        self.assertEqual(len(result.splitlines()), 3)
        self.translate(run, "--truncate", lines=[long])


if __name__ == "__main__":
    p.main()
