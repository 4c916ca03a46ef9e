#!/usr/bin/env python3
"""router.method replay: a run with the experts that another run has recorded."""

import os
import shutil

import h5py
import numpy as np

import program as p

UPDATES = 8
# Two files, two micro-batches, a stage that ends in the middle, and tokens without room.
RECORD = ("log.tokens_every=1", "train.micro_batches=2", "moe.layers=2", "moe.position=scattered",
          "moe.capacity_factor=1.1")


def replay(log, *more):
    return (*RECORD, "router.method=replay", f"router.replay.log={log}", *more)


class Replay(p.ProgramTest):
    settings = (f"train.updates={UPDATES}", "router.stage1_updates=4", "schedule.warmup=1", "train.checkpoint_every=5", "train.keep_last=0",
                "train.evaluate_every=4")

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.record = cls.trained("record", RECORD, ranks=2)
        cls.same = cls.trained("same", replay(cls.record))

    def test_same_assignments(self):
        record, same = p.routing(self.record), p.routing(self.same)
        self.assertEqual(list(record["tokens/step"]), list(range(1, UPDATES + 1)))
        self.assertGreater(np.sum(record["tokens/expert"] < -1), 0, "no token was dropped: the test shows less")
        self.assertGreater(len(np.unique(p.chosen(record["tokens/expert"]))), 2)
        for name in ("tokens/step", "tokens/id", "tokens/expert", "load", "dropped"):
            self.assertTrue(np.array_equal(record[name], same[name]), name)
        self.assertNotEqual(p.column(self.record, "loss"), p.column(self.same, "loss"))

    def test_ranks_and_resume(self):
        """The same bits on other ranks, after a stop, and from the directory of the logs."""
        jobs = {"four": lambda: self.train("four", replay(os.path.join(self.record, "routing")), ranks=4),
                "part": lambda: self.train("part", replay(self.record), ranks=2, env={"STABLEMOE_KILL": "checkpoint.close@0#2"})}
        results = dict(p.several(jobs))
        self.assertFine(results["four"])
        self.assertNotEqual(results["part"].code, 0)
        self.assertFine(self.train("part", replay(self.record), resume=True))
        for run in ("four", "part"):
            self.assertSameRun(self.path(run), self.same, (5, UPDATES))

    def test_evaluation(self):
        """Tokens without a record have their usual expert; the checkpoint needs the log no more."""
        with h5py.File(os.path.join(self.same, "checkpoints", "latest"), "r") as file:
            table = file["param/moe1/router/table"][:, 0]
        record = p.routing(self.record)
        ids, experts = record["tokens/id"].ravel(), p.chosen(record["tokens/expert"])[:, 1, :, 0].ravel()
        for token in np.unique(ids):
            self.assertEqual(table[token], np.argmax(np.bincount(experts[ids == token])), f"token {token}")
        shutil.move(self.record, self.path("away"))
        try:
            result = self.program.run("evaluate", self.same, "--split", "valid", ranks=2)
        finally:
            shutil.move(self.path("away"), self.record)
        self.assertFine(result)

    def test_gate_of_one(self):
        run = self.trained("one", replay(self.record, "router.replay.gate=one"), ranks=2)
        gates = p.routing(run)["tokens/gate"]
        self.assertEqual(set(np.unique(gates)), {0.0, 1.0} if np.any(gates == 0) else {1.0})

    def test_two_experts(self):
        two = ("log.tokens_every=1", "router.method=gshard", "train.updates=2")
        record = self.trained("two", two, ranks=2)
        settings = ("log.tokens_every=1", "router.method=replay", f"router.replay.log={record}", "router.replay.slots=2",
                    "train.updates=2")
        run = self.trained("two-again", settings, ranks=2)
        self.assertTrue(np.array_equal(p.routing(record)["tokens/expert"], p.routing(run)["tokens/expert"]))

    def test_refused(self):
        sparse = self.trained("sparse", (*RECORD, "log.tokens_every=3", "train.updates=4"))
        silent = self.trained("silent", (*RECORD, "log.tokens_every=0", "train.updates=1"))
        p.write_text(self.path("other.txt"), seed=2)
        other = self.path("other.h5")
        self.assertFine(self.program.run("prepare", self.path("other.txt"), "-o", other, "--vocab", 300))
        cases = {
            "no-log": (replay(""), "config", "set router.replay.log to the run directory"),
            "missing": (replay(self.path("nowhere")), "io", "cannot read the routing logs in '.*nowhere': No such file"),
            "no-logs": (replay(self.path("record", "checkpoints")), "format", "is not a routing log"),
            "empty": (replay(self.directory), "io", "no routing log .* in"),
            "no-tokens": (replay(silent), "config", "records no tokens: make that run with log.tokens_every=1"),
            "update": (replay(sparse), "config", "has no record of update 1, .*log.tokens_every=1"),
            "longer": (replay(self.record, "train.updates=9"), "config", "no record of update 9, .* it has 8"),
            "experts": (replay(self.record, "moe.experts=2"), "config", "with moe.experts = 4, this run has 2"),
            "layers": (replay(self.record, "moe.layers=1"), "config", "with moe.layers = 2, this run has 1"),
            "slots": (replay(self.record, "router.replay.slots=2"), "config", "experts per token .* = 1, this run has 2"),
            "batch": (replay(self.record, "train.batch_sequences=16", "train.micro_batches=1"), "config",
                      "records batches of .* tokens"),
            "corpus": (replay(self.record, f"data.corpus={other}"), "config", "has other tokens here|records token"),
            "seed": (replay(self.record, "run.seed=9"), "config", "update 1 has other tokens here"),
        }
        on_two = ("missing", "update", "seed")
        with_ranks = [(name, 2 if name in on_two else 1, case[0]) for name, case in cases.items()]
        jobs = {name: lambda s=settings, r=r: self.train("refused", s, ranks=r) for name, r, settings in with_ranks}
        for name, result in p.several(jobs):
            with self.subTest(name):
                self.assertRefused(result, cases[name][1], cases[name][2])
        dry = self.program.run(*self.train_args("refused", replay(sparse)), "--dry-run")
        self.assertRefused(dry, "config", "has no record of update 1")
        self.assertFalse(os.path.exists(self.path("refused")), "a refused run left its directory")


if __name__ == "__main__":
    p.main()
