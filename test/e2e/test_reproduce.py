#!/usr/bin/env python3
"""jobs/reproduce.sh: its runs are made once, and its tables say what the runs measured."""

import csv
import json
import math
import os
import re
import subprocess
import sys
import time

import program as p

CONFIG = """\
model: {width: 8, blocks: 4, heads: 2, context: 16}
moe: {experts: 4, sublayers: 1}
train: {updates: 12, batch_sequences: 4, lanes: 4, checkpoint_every: 4}
schedule: {warmup: 2}
log: {probe_every: 2, probe_sequences: 2}
"""
MAIN = ("standard", "deeper", "wider", "switch", "base", "hash", "stable-25")


def wait_for(condition, seconds=60):
    """Whether it comes true in that time."""
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)
    return condition()


class Reproduce(p.ProgramTest):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        with open(cls.path("small.yml"), "w", encoding="utf-8") as file:
            # One line for every section: the tables read configurations of this project's own form.
            for line in CONFIG.splitlines():
                section, _, keys = line.partition(": ")
                file.write(section + ":\n")
                for key in keys.strip("{}").split(", "):
                    file.write(f"  {key}\n")

    def reproduce(self, *arguments, out="out", corpus=None, config="small.yml"):
        environment = {**p.environment(), "PYTHONDONTWRITEBYTECODE": "1"}
        return subprocess.run(
            [sys.executable, "-m", "analysis.reproduce", *arguments, "--config", self.path(config), "--corpus",
             corpus or self.corpus, "--out", self.path(out), "--program", self.program.path, "--launcher",
             "env", "--parallel", "2"],
            cwd=self.program.source, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True,
            check=False, timeout=900)

    def result(self, row, seed):
        with open(self.path("out", "small", f"{row}-seed{seed}", "evaluation.json"), encoding="utf-8") as file:
            return json.load(file)

    def times(self):
        """When each result of a run was written."""
        folder = self.path("out", "small")
        return {name: os.stat(os.path.join(folder, name, "evaluation.json")).st_mtime_ns
                for name in sorted(os.listdir(folder))
                if os.path.exists(os.path.join(folder, name, "evaluation.json"))}

    def test_tables(self):
        done = self.reproduce("main", "fluctuation", "--seeds", "1,2")
        self.assertEqual(done.returncode, 0, done)
        self.assertIn("14 runs, 0 of them finished already", done.stdout)
        with open(self.path("out", "small", "main.json"), encoding="utf-8") as file:
            figures = {row["row"]: row for row in json.load(file)}
        self.assertEqual(tuple(figures), MAIN)
        for row in MAIN:
            values = [self.result(row, seed)["test"]["perplexity"] for seed in (1, 2)]
            self.assertEqual(figures[row]["test"], values)
            with open(self.path("out", "small", f"{row}-seed1", "test.json"), encoding="utf-8") as file:
                self.assertEqual(json.load(file)["perplexity"], values[0])
            self.assertTrue(all(1 < value < 1000 for value in values), f"{row}: {values}")
            self.assertNotEqual(*values, "two seeds, one result")
        # What the table compares at equal parameters and equal cost is equal.
        costs = {row: figures[row]["multiply_adds_per_token"] for row in MAIN}
        self.assertEqual(len({costs[row] for row in MAIN[3:]}), 1, costs)
        self.assertLess(costs["standard"], costs["stable-25"])
        self.assertLess(costs["stable-25"], min(costs["deeper"], costs["wider"]))
        sizes = {row: figures[row]["experts"] for row in MAIN}
        self.assertEqual(sizes["standard"], 0)
        self.assertGreater(sizes["stable-25"], 1000)
        self.assertGreater(figures["standard"]["shared"], 1000)
        self.assertEqual(sizes["deeper"], sizes["stable-25"])
        self.assertTrue(math.isclose(sizes["wider"], sizes["stable-25"], rel_tol=0.15), sizes)
        with open(self.path("out", "small", "main.md"), encoding="utf-8") as file:
            table = file.read()
        mean = sum(figures["stable-25"]["test"]) / 2
        self.assertRegex(table, rf"(?m)^\| StableMoE \|.*\| {mean:.2f} ± [0-9.]+ \| 18\.93 \|$")
        with open(self.path("out", "small", "fluctuation.json"), encoding="utf-8") as file:
            late = {row["row"]: row["still_changing_percent"] for row in json.load(file)}
        self.assertEqual(late["hash"]["20"], [0, 0])
        self.assertEqual(late["stable-25"]["50"], [0, 0])
        self.assertGreater(os.path.getsize(self.path("out", "small", "fluctuation.svg")), 1000)

        # A second call runs what is missing only: a run that lacks its result goes on where it was.
        before = self.times()
        lost = self.result("stable-25", 2)
        os.remove(self.path("out", "small", "stable-25-seed2", "evaluation.json"))
        again = self.reproduce("main", "--seeds", "1,2")
        self.assertEqual(again.returncode, 0, again)
        self.assertIn("14 runs, 13 of them finished already", again.stdout)
        after = self.times()
        self.assertEqual([name for name in before if before[name] != after[name]], ["stable-25-seed2"])
        self.assertEqual(self.result("stable-25", 2)["test"], lost["test"])
        with open(self.path("out", "small", "stable-25-seed2.out"), encoding="utf-8") as file:
            self.assertIn("all 12 updates are done: raise", file.read())

        # Results of other settings are not taken for these.
        with open(self.path("small.yml"), "a", encoding="utf-8") as file:
            file.write("optimizer:\n  lr: 0.001\n")
        other = self.reproduce("main", "--seeds", "1")
        self.assertEqual(other.returncode, 1, other)
        self.assertIn("holds a run with other settings", other.stderr)

    def test_methods(self):
        """A table of other methods: what needs another run comes after it, and columns say how a run routed."""
        done = self.reproduce("gates", "--seeds", "1", out="methods")
        self.assertEqual(done.returncode, 0, done)
        with open(self.path("methods", "small", "gates.json"), encoding="utf-8") as file:
            figures = {row["row"]: row for row in json.load(file)}
        self.assertEqual(list(figures), ["hash-nodes4", "hash-sigmoid-nodes4", "stable-25-nodes4",
                                         "stable-table-nodes4", "stable-table-sigmoid-nodes4",
                                         "stable-gate90-nodes4", "stable-bias-nodes4", "stable-router2-nodes4"])
        self.assertEqual(len({row["test"][0] for row in figures.values()}), 8, "two rows, one result")
        for row in figures.values():
            self.assertEqual((row["dropped"], row["tokens_per_s"]), ([0], None))
        self.assertEqual(figures["hash-nodes4"]["still_changing"], [0])
        self.assertEqual(figures["stable-25-nodes4"]["still_changing"], [0])
        # Six for each product of the forward pass: four blocks with attention over half of the square, head, expert.
        products = 4 * (4 * 8 * 8 + 2 * 8 * 32 + 2 * 8 * 17 // 2) + 300 * 8 + 2 * 8 * 32
        self.assertEqual(figures["hash-nodes4"]["flops_per_token"], 6 * products)
        # The same columns, taken from the run's own file: the last tenth of 12 updates is one.
        with open(self.path("methods", "small", "stable-table-nodes4-seed1", "metrics.csv"), encoding="utf-8") as file:
            last = list(csv.DictReader(file))[-1]
        self.assertAlmostEqual(figures["stable-table-nodes4"]["local"][0], float(last["moe0_local_rate"]), places=9)
        # Known results: the same table without a run, whole or in part; results of other settings are not known.
        results = self.path("methods", "small", "results.json")
        known = self.reproduce("gates", "--seeds", "1", "--known", results, out="known")
        self.assertEqual(known.returncode, 0, known)
        self.assertIn("8 runs, 8 of them finished already", known.stdout)
        self.assertEqual(known.stdout.split("###")[1], done.stdout.split("###")[1])
        self.assertRegex(known.stdout, r"(?m)^\| Hash \|( [0-9.]+ \|)+$")
        with open(self.path("known", "small", "results.json"), encoding="utf-8") as file, \
                open(results, encoding="utf-8") as first:
            self.assertEqual(json.load(file), json.load(first))
        other = self.reproduce("gates", "--seeds", "2", "--table-only", "--known", results, out="known")
        self.assertEqual(other.returncode, 1, other)
        self.assertIn("8 runs are missing", other.stdout)
        bad = self.reproduce("gates", "--known", self.path("text.txt"), out="known")
        self.assertEqual((bad.returncode, "cannot read the known results" in bad.stderr), (2, True), bad)
        # What an earlier version measured is completed, without training anew.
        path = self.path("methods", "small", "hash-nodes4-seed1", "evaluation.json")
        with open(path, encoding="utf-8") as file:
            whole = json.load(file)
        with open(path, "w", encoding="utf-8") as file:
            json.dump({key: value for key, value in whole.items() if key not in ("routing", "flops_per_token")}, file)
        again = self.reproduce("gates", "--seeds", "1", out="methods")
        self.assertEqual(again.returncode, 0, again)
        self.assertIn("8 runs, 7 of them finished already", again.stdout)
        self.assertEqual(again.stdout.split("###")[1], done.stdout.split("###")[1])
        # The table of tokens is the one that the run of StableMoE ended with: after training both route alike.
        with open(self.path("text.txt"), encoding="utf-8") as file:
            sample = file.read(600)
        chosen = {}
        for row in ("stable-25-nodes4", "stable-table-nodes4"):
            text = self.program.run("route", self.path("methods", "small", row + "-seed1"), sample)
            chosen[row] = [line.split("\t")[7] for line in text.out.splitlines()[1:]]
        self.assertGreater(len(chosen["stable-table-nodes4"]), 100)
        self.assertEqual(chosen["stable-25-nodes4"], chosen["stable-table-nodes4"])

    def test_translation(self):
        """BLEU by direction of a corpus of pairs, as evaluate prints it; no table of text beside it."""
        side = {}
        for language, words in (("de", "eins zwei drei vier fünf sechs sieben acht neun"),
                                ("en", "one two three four five six seven eight nine")):
            words = words.split()
            side[language] = self.path("pairs." + language)
            with open(side[language], "w", encoding="utf-8") as file:
                file.writelines(" ".join(words[(i * k + k) % 9] for k in range(3 + i % 4)) + "\n" for i in range(120))
        pairs = self.path("pairs.h5")
        made = self.program.run("prepare", "--pair", "de-en", side["de"], side["en"], "--pair", "en-de", side["en"],
                                side["de"], "--vocab", 290, "--valid", 0.1, "--test", 0.1, "-o", pairs)
        self.assertEqual(made.code, 0, made)
        with open(self.path("captions.yml"), "w", encoding="utf-8") as file:
            file.write("model:\n  family: translation\n  width: 8\n  blocks: 2\n  heads: 2\n  context: 64\n"
                       "moe:\n  experts: 4\n  sublayers: 1\ntrain:\n  updates: 8\n  batch_tokens: 256\n"
                       "  lanes: 2\nschedule:\n  warmup: 2\nlog:\n  probe_every: 1\n")
        done = self.reproduce("translation", "--seeds", "1", out="pairs-out", corpus=pairs, config="captions.yml")
        self.assertEqual(done.returncode, 0, done)
        with open(self.path("pairs-out", "captions", "translation.json"), encoding="utf-8") as file:
            figures = {row["row"]: row for row in json.load(file)}
        self.assertEqual(list(figures), ["standard", "larger", "switch", "base", "hash", "stable-12"])
        for row, figure in figures.items():
            self.assertEqual(list(figure["test"][0]["directions"]), ["de-en", "en-de"])
            with open(self.path("pairs-out", "captions", f"{row}-seed1", "test.json"), encoding="utf-8") as file:
                self.assertEqual(json.load(file), figure["test"][0])
        self.assertEqual(figures["larger"]["flops"], figures["hash"]["flops"])
        self.assertLess(figures["standard"]["flops"], figures["hash"]["flops"])
        # Stage 1 is one update of eight here; after it nothing fluctuates in either MoE layer.
        self.assertEqual(figures["stable-12"]["still_changing"], [0])
        both = self.reproduce("translation", "main", "--seeds", "1", out="pairs-out", corpus=pairs)
        self.assertEqual(both.returncode, 2, both)
        self.assertIn("need corpora of their own", both.stderr)

    def test_rates(self):
        """Tokens per second of a row, of the batch as it is read: bench's seconds, weighted by the stages' lengths."""
        measure = """
import sys
from pathlib import Path
from analysis import reproduce as r
from analysis.paper_tables import SIZES
import dataclasses
size = dataclasses.replace(SIZES["small"], config=sys.argv[1])
jobs = r.jobs_of(size, ["gates"], [1], Path(sys.argv[3]), Path(sys.argv[2]))
runner = r.Runner([sys.argv[4]], ["env"])
r.Runner._call = (lambda own: lambda self, log, *a: own(self, log, *a) if a[0] != "bench" else
                  '{"stages": [{"stage": 1, "seconds": 0.5}, {"stage": 2, "seconds": 0.1}]}')(r.Runner._call)
r.measure_rates(runner, [job for job in jobs if job.row.name == "stable-25-nodes4"], Path(sys.argv[3]) / "rates.json")
"""
        os.makedirs(self.path("rates"), exist_ok=True)
        done = subprocess.run([sys.executable, "-c", measure, self.path("small.yml"), self.corpus, self.path("rates"),
                               self.program.path], cwd=self.program.source, capture_output=True, text=True, check=False,
                              env={**p.environment(), "PYTHONDONTWRITEBYTECODE": "1"}, timeout=60)
        self.assertEqual(done.returncode, 0, done)
        with open(self.path("rates", "rates.json"), encoding="utf-8") as file:
            # Three of twelve updates in stage 1, 64 tokens each.
            self.assertEqual(json.load(file), {"stable-25-nodes4": 64 / (0.25 * 0.5 + 0.75 * 0.1)})

    def test_dry_run(self):
        plan = self.reproduce("all", "--seeds", "1", "--dry-run", out="dry")
        self.assertEqual(plan.returncode, 0, plan)
        self.assertGreater(len(re.findall("memory per rank", plan.stdout)), 12, plan.stdout)
        self.assertFalse(os.path.isdir(self.path("dry", "small", "base-seed1")))

    def test_stop(self):
        """A table that is asked to stop leaves no process behind, and goes on where it was; two do not meet."""
        command = ["main", "--seeds", "3", "--config", self.path("long.yml"), "--corpus", self.corpus, "--out",
                   self.path("stop"), "--program", self.program.path, "--launcher", "env"]
        with open(self.path("small.yml"), encoding="utf-8") as source, \
                open(self.path("long.yml"), "w", encoding="utf-8") as file:
            file.write(source.read().replace("updates: 12", "updates: 100000"))
        table = subprocess.Popen([sys.executable, "-m", "analysis.reproduce", *command], cwd=self.program.source,
                                 env={**p.environment(), "PYTHONDONTWRITEBYTECODE": "1"}, stdin=subprocess.DEVNULL,
                                 stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        run = self.path("stop", "long", "standard-seed3")
        self.assertTrue(wait_for(lambda: p.last_update(run) > 4), "the first run does not begin")
        below = p.descendants(table.pid)
        second = self.reproduce("main", "--seeds", "3", config="long.yml", out="stop")
        table.terminate()
        output, errors = table.communicate(timeout=60)
        self.assertEqual(table.returncode, 75, errors)
        self.assertIn("the same command goes on", errors)
        self.assertFalse([pid for pid in below if p.alive(pid)], "processes are left")
        self.assertTrue(p.files_of(run, "checkpoints"), "no checkpoint is left")
        self.assertNotIn("error", output)
        self.assertEqual(second.returncode, 1, second)
        self.assertIn("another call is at work", second.stderr)

    def test_failure(self):
        """Every run fails: said of each, with the program's own words, and by the exit status."""
        bad = self.reproduce("fluctuation", "--seeds", "1", corpus=self.path("text.txt"), out="bad")
        self.assertEqual(bad.returncode, 1, bad)
        self.assertEqual(len(re.findall(r"seed 1: exit status 4: stablemoe: error \(format\)", bad.stderr)), 4, bad)
        missing = self.reproduce("main", corpus=self.path("none.h5"))
        self.assertEqual(missing.returncode, 2, missing)
        self.assertIn("stablemoe prepare", missing.stderr)


if __name__ == "__main__":
    p.main()
