#!/usr/bin/env python3
"""jobs/reproduce.sh: its runs are made once, and its tables say what the runs measured."""

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
train: {updates: 12, batch_sequences: 4, lanes: 2, checkpoint_every: 4}
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
            check=False, timeout=300)

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
