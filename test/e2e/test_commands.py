#!/usr/bin/env python3
"""What the other subcommands say of a trained model: the same text on any number of ranks."""

import json
import math
import re
from pathlib import Path

import program as p


class Commands(p.ProgramTest):
    settings = ("train.updates=40", "router.stage1_updates=20", "train.checkpoint_every=10", "train.keep_last=0",
                "train.evaluate_every=10", "schedule.kind=constant", "optimizer.lr=0.01")

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.run_path = cls.trained("run", ranks=2)
        cls.early = cls.path("run", "checkpoints", "step-000000010.h5")

    def on_ranks(self, *args, ranks=(1, 2, 4)):
        """The text that a command prints on every number of ranks."""
        results = dict(p.several({n: lambda r=n: self.program.run(*args, ranks=r) for n in ranks}))
        for n, result in results.items():
            self.assertFine(result)
            self.assertEqual(result.out, results[1].out, f"on {n} ranks: {result}")
        return results[1].out

    def test_evaluate(self):
        text = self.on_ranks("evaluate", self.run_path, "--split", "valid")
        found = {name: float(p.found(rf"{name} +([0-9.]+)", text)[1])
                 for name in ("cross entropy", "perplexity", "bits per byte")}
        # What training itself wrote of the same model and the same tokens.
        loss = p.column(self.run_path, "valid_loss")[-1]
        self.assertAlmostEqual(found["cross entropy"], loss, delta=1e-4)
        self.assertAlmostEqual(found["perplexity"], math.exp(loss), delta=1e-2)
        self.assertGreater(found["bits per byte"], 0)

    def test_evaluate_json(self):
        for which, update, stage in ((self.run_path, 40, 2), (self.early, 10, 1)):
            for split in ("train", "valid", "test"):
                with self.subTest(update=update, split=split):
                    ranks = (1, 2, 4) if split == "test" else (1, 2)
                    more = ["-n", "12"] if split == "train" else []
                    found = json.loads(self.on_ranks("evaluate", which, "-s", split, "--json", *more, ranks=ranks))
                    self.assertEqual((found["split"], found["update"], found["stage"]), (split, update, stage))
                    self.assertAlmostEqual(found["perplexity"], math.exp(found["loss"]), delta=1e-4)
                    if split == "train":
                        self.assertEqual(found["tokens"], 12 * 16)
                    if split == "valid":
                        rows = p.metrics(self.run_path)
                        written = float(rows[update][rows[0].index("valid_loss")])
                        self.assertAlmostEqual(found["loss"], written, delta=1e-7)

    def test_products(self):
        """Log and checkpoints carry the library of products; the head of the log compares it with the core."""
        log = Path(self.run_path, "log.txt").read_text("utf-8")
        first, second = log.splitlines()[:2]
        self.assertRegex(first, r"^2 ranks, float, GEMM by (oneDNN|OpenBLAS) \d+\.\d+.*; L2 \d+ KiB, L3 \d+ KiB")
        self.assertRegex(second, r"GEMM makes \d+\.\d GFLOP/s .* peak of \d+\.\d")
        facts = first.partition("GEMM by ")[2]
        self.assertIn(f"  products     {facts}\n", self.on_ranks("info", self.early, ranks=(1,)))
        with p.h5py.File(self.early) as file:
            self.assertEqual(p.np.bytes_(file["meta"].attrs["products"]).decode(), facts)
        refused = self.program.run("train", self.program.config, "-P", "run.products=mkl", "-P", f"data.corpus={self.corpus}")
        self.assertRefused(refused, "config", "products")

    def averaged(self, *args, out, ranks=1):
        result = self.program.run("average", *args, "-o", self.path(out), ranks=ranks)
        self.assertFine(result)
        return self.path(out), result

    def test_average(self):
        """The mean of checkpoints is a checkpoint: values rounded once, the newest one's meta data, no moments."""
        steps = [self.path("run", "checkpoints", f"step-0000000{update}.h5") for update in (20, 30, 40)]
        path, result = self.averaged(self.run_path, out="mean.h5")
        self.assertIn("the mean of 3 checkpoints, of updates 20 to 40", result.err)
        with p.h5py.File(path) as file:
            self.assertEqual((file["meta"].attrs["averaged"], file["meta"].attrs["update"]), (3, 40))
            self.assertNotIn("adam", file)
        mean, values = p.datasets(path, ("param/",)), [p.datasets(step, ("param/",)) for step in steps]
        self.assertEqual(sorted(mean), sorted(values[-1]))
        expected = {name: (sum(v[name].astype("f8") for v in values) / 3).astype("f4") for name in mean}
        self.assertEqual(p.different(mean, expected), [])
        changed = p.different(mean, values[-1])
        self.assertGreater(len(changed), 5)
        # What stage 2 has frozen is the same in all of them, and in the mean.
        self.assertFalse([name for name in changed if "distilled" in name])
        with open(path, "rb") as file:
            bits = file.read()
        # In any order, on any number of ranks, chosen by number or by name.
        for out, args, ranks in (("b.h5", [self.run_path, "-k", "3"], 2), ("c.h5", [steps[2], steps[0], steps[1]], 1)):
            with open(self.averaged(*args, out=out, ranks=ranks)[0], "rb") as file:
                self.assertEqual(file.read(), bits, args)
        self.assertIn("mean of      3 checkpoints", self.on_ranks("info", path, "--verify", ranks=(1,))
                      + self.on_ranks("info", path, ranks=(1,)))
        # One checkpoint's mean is itself.
        alone = self.averaged(steps[2], out="alone.h5")[0]
        texts = [self.on_ranks("evaluate", which, "--json", ranks=ranks)
                 for which, ranks in ((alone, (1,)), (self.run_path, (1,)), (path, (1, 2)))]
        self.assertEqual(texts[0], texts[1])
        self.assertNotEqual(texts[0], texts[2])
        self.on_ranks("generate", path, "-p", "ab", "-n", 5, "-t", 0, ranks=(1, 2))
        self.assertFine(self.program.run("export", path, "-o", self.path("mean.safetensors")))

    def test_average_refused(self):
        first = self.path("run", "checkpoints", "step-000000010.h5")
        last = self.path("run", "checkpoints", "step-000000040.h5")
        other = self.path("damaged.h5")
        with open(last, "rb") as file:
            content = bytearray(file.read())
        with p.h5py.File(last) as file:
            at = file["param/norm/gamma"].id.get_offset()
        content[at] ^= 1
        with open(other, "wb") as file:
            file.write(content)
        out = self.path("refused.h5")
        for args, kind, said in (([self.run_path, "-k", 5], "config", "has 4 checkpoints, --last asks for 5"),
                                 ([self.run_path, "-k", 4], "config", "only checkpoints of one stage"),
                                 ([first, first], "config", "of the same update, 10"),
                                 ([last, "-k", 1], "config", "--last chooses"),
                                 ([other], "format", "the checksum of 'param/norm/gamma' is wrong"),
                                 ([self.path("nothing")], "io", "nothing")):
            with self.subTest(said):
                self.assertRefused(self.program.run("average", *args, "-o", out, ranks=2), kind, said)
                self.assertFalse(Path(out).exists() or Path(out + ".part").exists())
        self.assertRefused(self.program.run("average", last), "config", "--output is missing")

    # A learning rate at which the validation loss soon gets no better; stage 2 begins after update 6.
    STOPS = ("train.updates=60", "train.evaluate_every=2", "train.evaluate_sequences=2", "router.stage1_updates=6",
             "train.checkpoint_every=5", "optimizer.lr=0.05", "optimizer.clip=0", "train.keep_last=2")

    def test_early_stop(self):
        """train.patience: the best is kept and the run ends, after a resume at the same update with the same bits."""
        whole = self.train("patient", [*self.STOPS, "train.patience=3"], ranks=2)
        self.assertFine(whole)
        run = self.path("patient")
        rows = p.metrics(run)
        valid = {int(row[0]): float(row[rows[0].index("valid_loss")]) for row in rows[1:]
                 if row[rows[0].index("valid_loss")] and int(row[0]) >= 6}
        best, last = min(valid, key=valid.get), p.last_update(run)
        self.assertEqual(last, best + 6, valid)
        self.assertRegex(whole.err, rf"early stop: the validation loss has not improved in 3 evaluations; the best is "
                                    rf"{valid[best]:.4f} at update {best} ")
        self.assertIn(f"done: {last} of 60 updates", whole.err)
        kept = p.files_of(run, "checkpoints")
        self.assertEqual(kept[0], f"step-{best:09d}.h5")
        self.assertEqual(Path(run, "checkpoints", "best").resolve().name, kept[0])
        # --best is that checkpoint, for whatever reads one.
        file = Path(run, "checkpoints", kept[0])
        found = json.loads(self.on_ranks("evaluate", run, "--best", "--json", "-s", "valid", "-n", 2, ranks=(1, 2)))
        self.assertEqual(found["update"], best)
        self.assertAlmostEqual(found["loss"], valid[best], delta=1e-7)
        self.assertEqual(self.on_ranks("generate", run, "--best", "-p", "ab", "-n", 9, "-t", 0, ranks=(1,)),
                         self.on_ranks("generate", file, "-p", "ab", "-n", 9, "-t", 0, ranks=(1,)))
        # From a checkpoint between two evaluations that brought nothing.
        self.copy("patient", "parts")
        for name in ("latest", f"step-{last:09d}.h5"):
            Path(self.path("parts", "checkpoints", name)).unlink()
        self.assertLess(best, int(p.files_of(self.path("parts"), "checkpoints")[-1][5:14]))
        self.assertFine(self.train("parts", [*self.STOPS, "train.patience=3"], ranks=3, resume=True))
        self.assertEqual(p.last_update(self.path("parts")), last)
        self.assertEqual(p.different(p.checkpoint(run, last), p.checkpoint(self.path("parts"), last)), [])
        with p.h5py.File(file.parent / "latest") as a, p.h5py.File(self.path("parts", "checkpoints", "latest")) as b:
            for name in ("best_metric", "best_update", "best_since", "best_value"):
                self.assertEqual(a["meta"].attrs[name], b["meta"].attrs[name], name)
        # Once more: nothing is left; with more patience it goes on.
        again = self.train("patient", [*self.STOPS, "train.patience=3"], resume=True)
        self.assertFine(again)
        self.assertIn(f"nothing is left to do after update {last}", again.err)
        self.assertEqual(p.last_update(run), last)
        self.assertFine(self.train("patient", [*self.STOPS, "train.patience=4"], resume=True))
        self.assertGreater(p.last_update(run), last)

    def test_best_refused(self):
        for args, said in ((["evaluate", self.run_path, "--best"], "without train.best and train.patience"),
                           (["evaluate", self.early, "--best"], "is not a run directory"),
                           (["train", self.program.config, "-P", f"data.corpus={self.corpus}", "-P", "train.patience=2",
                             "-P", "train.evaluate_every=0", "-P", f"run.directory={self.path('no')}"],
                            "train.patience needs evaluations")):
            with self.subTest(said):
                self.assertRefused(self.program.run(*args, ranks=2), "config", said)

    def test_training_learns(self):
        losses = p.column(self.run_path, "valid_loss")
        at = [loss for loss in losses if not math.isnan(loss)]
        self.assertEqual(len(at), 4)
        self.assertLess(at[-1], at[0] - 0.5, f"validation losses {at}")

    def test_generate(self):
        texts = {}
        for name, args in (("first", []), ("seed", ["--seed", 2]), ("cold", ["-t", 0]), ("top", ["-k", 1])):
            with self.subTest(name):
                ranks = (1, 2, 4) if name == "first" else (1, 2)
                texts[name] = self.on_ranks("generate", self.run_path, "-p", "ab", "-n", 30, *args, ranks=ranks)
                self.assertTrue(texts[name].startswith("ab"), texts[name])
                self.assertGreater(len(texts[name]), 3)
        self.assertNotEqual(texts["first"], texts["seed"])
        # The likeliest token always, said in two ways.
        self.assertEqual(texts["cold"], texts["top"])

    def test_info(self):
        for name, path, said in (("checkpoint", self.early, "update +10"), ("corpus", self.corpus, "vocabulary 300"),
                                 ("run", self.path("run"), "update +40"),
                                 ("routing", self.path("run", "routing", "step-000000040.h5"), "method stable")):
            with self.subTest(name):
                self.assertRegex(self.on_ranks("info", path, ranks=(1, 2)), said)
        self.assertRegex(self.on_ranks("info", self.early, "--verify", ranks=(1, 2)), "datasets are valid")

    def test_help_and_version(self):
        self.assertRegex(self.on_ranks("--version", ranks=(1, 2)), r"^stablemoe \d+\.\d+\.\d+ \(commit .+\)\n(  \w+ +.+\n)+$")
        text = self.on_ranks("--help", ranks=(1, 2))
        commands = re.findall(r"stablemoe ([a-z]+) ", text)
        self.assertGreaterEqual(set(commands), {"prepare", "train", "evaluate", "generate", "info"})
        for command in sorted(set(commands)):
            for option in ("--help", "-h"):
                with self.subTest(command, option=option):
                    ranks = (1, 2) if option == "--help" and command in ("train", "info", "man") else (1,)
                    self.assertRegex(self.on_ranks(command, option, ranks=ranks), rf"^usage: .*stablemoe {command} ")
        listed = self.on_ranks("train", "--help", ranks=(1,))
        for key in ("checkpoint_every", "balance_weight", "stable"):
            self.assertIn(key, listed)

    def test_plan_for_ranks(self):
        """One process says what the ranks themselves would, and what would make a plan fit."""
        words = [*self.train_args("plan", ["train.lanes=4", "train.batch_sequences=8", "comm.node_ranks=2"]), "--dry-run"]
        real = self.program.run(*words, ranks=4)
        self.assertFine(real)
        plan = self.program.run(*words, "--ranks", "4", "--per-node", "2", "--json")
        self.assertFine(plan)
        figures = json.loads(plan.out)
        self.assertEqual((figures["ranks"], figures["nodes"]), (4, 2))
        memory = figures["memory"]
        of_rank = [(memory[name] - memory["library_bytes"]) / 2**20 for name in ("rank_expected_bytes", "rank_most_bytes")]
        self.assertIn("{:.1f} MiB expected with balanced routing; at most {:.1f} MiB".format(*of_rank), real.err)
        self.assertIn("shared parameters: {:.1f} MiB, once for the ranks of each of 2 nodes".format(
            memory["shared_memory_bytes"] / 2**20), real.err)
        self.assertGreater(figures["traffic"]["exchange"]["messages_between"], 0)
        # An update is the same work on any number of ranks, also where they have different numbers of lanes.
        uneven = self.program.run(*words, "--ranks", "3", "--json")
        self.assertEqual(json.loads(uneven.out)["flops"], figures["flops"])
        gflop = [self.program.run(*words, ranks=ranks).err.split(" GFLOP each")[0].split()[-1] for ranks in (1, 3)]
        self.assertEqual(gflop[0], gflop[1])
        tight = self.program.run(*words, "-P", "train.batch_sequences=65536", "-P", "model.context=64", "--ranks", "4",
                                 "--per-node", "2", "--node-gib", "1")
        self.assertIn("does not fit", tight.out)
        self.assertRefused(tight, "memory", r"1\.00: it would fit with train\.micro_batches=\d+")
        wrong = ((["--ranks", "5"], "5 ranks for train.lanes = 4"), (["--json"], "give --dry-run --ranks N"),
                 (["--ranks", "4", "--vocab", "1"], "--vocab"))
        for options, pattern in wrong:
            self.assertRefused(self.program.run(*words, *options), "config", pattern)
        self.assertRefused(self.program.run(*words[:-1], "--ranks", "4"), "config", "give --dry-run")
        self.assertRefused(self.program.run(*words, "--ranks", "4", ranks=2), "config", "without mpirun")

    def test_dry_run(self):
        for ranks in (1, 2):
            result = self.program.run(*self.train_args("dry"), "--dry-run", ranks=ranks)
            self.assertFine(result)
            self.assertRegex(result.err, "memory per rank .*MiB")
            self.assertIn("nothing was started", result.err)
        with self.assertRaises(FileNotFoundError):
            p.files_of(self.path("dry"), "checkpoints")

    def test_used_configuration(self):
        """used.yml repeats the run."""
        again = self.program.run("train", self.path("run", "used.yml"), "-P", f"run.directory={self.path('again')}")
        self.assertFine(again)
        self.assertSameRun(self.path("again"), self.run_path, (10, 20, 30, 40))

    def test_overwrite(self):
        """A new run in an old one's place leaves nothing of the old one, and what is no run's own."""
        self.copy("run", "place")
        own = [self.path("place", "mylog.txt"), self.path("place", "checkpoints", "best.h5")]
        for path in own:
            Path(path).write_text("mine", encoding="utf-8")
        settings = ["train.updates=10", "train.checkpoint_every=5"]
        self.assertFine(self.program.run(*self.train_args("place", settings), "--overwrite", ranks=2))
        for path in own:
            self.assertEqual(Path(path).read_text(encoding="utf-8"), "mine")
        Path(own[1]).unlink()
        self.assertEqual(p.files_of(self.path("place"), "checkpoints"), [f"step-{u:09d}.h5" for u in (5, 10)])
        self.assertEqual(p.files_of(self.path("place"), "routing"), [f"step-{u:09d}.h5" for u in (5, 10)])
        self.assertEqual(len(p.metrics(self.path("place"))), 11)
        self.assertSound(self.path("place"))


if __name__ == "__main__":
    p.main()
