#!/usr/bin/env python3
"""Whole runs of the program against the reference, from the files that they leave.

    test_figures.py --program stablemoe [Runs.test_gshard ...]

Every method trains a few updates where rows do not fit, with several slots, lanes, micro-batches and MoE layers.
From each checkpoint the reference computes the update that follows: every column of metrics.csv, every dataset of
the routing log, and the next checkpoint's values and moments. The first update starts from initial values that
the reference states by itself. The program computes in float, so errors are relative to a tensor's largest value.
"""

import json
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "e2e"))
import program as p  # noqa: E402

import h5py  # noqa: E402
import numpy as np  # noqa: E402

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", ".."))
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from analysis import reference as ref  # noqa: E402
from analysis.reference import figures, gates, initial, tables, upcycle  # noqa: E402
from cases import RUN, RUNS, UPDATES  # noqa: E402

TOLERANCE = 2e-4

# Choices that hang on less would be decided by rounding: then another seed is needed.
NARROWEST = 3e-6


class Run:
    """What a run left, and the corpus."""

    def __init__(self, directory, corpus):
        self.directory = directory
        with open(os.path.join(directory, "used.yml")) as file:
            self.config = ref.Config.from_text(file.read())
        with h5py.File(corpus, "r") as file:
            self.split = {name: file[f"{name}/tokens"][()].astype(np.int64) for name in ("train", "valid", "test")}
            self.count, self.vocabulary = file["count"][()], int(file.attrs["vocabulary"])
        with open(os.path.join(directory, "metrics.csv")) as file:
            rows = [line.rstrip("\n").split(",") for line in file]
        self.metrics = [dict(zip(rows[0], (float(v or "nan") for v in row))) for row in rows[1:]]
        self.log = p.routing(directory) if self.config.moe_layers or gates.names(self.config) else {}

    def checkpoint(self, update):
        """Values and moments (m, v) by name, in double; what never learns has no moments."""
        found = p.checkpoint(self.directory, update)
        params = {n[6:]: v.astype(np.float64) for n, v in found.items() if n.startswith("param/")}
        moments = {n: tuple(found[f"adam/{k}/{n}"].astype(np.float64) for k in "mv") for n in params
                   if f"adam/m/{n}" in found}
        return params, moments

    def initial(self, shapes, embedding=None):
        """Parameters before the first update."""
        params = {name: initial.value(name, shapes, self.config) for name in shapes}
        for name in params:
            if name.endswith("router/table") and self.config.method == "hash":
                layer = int(name[3:].partition("/")[0])
                params[name] = tables.table_of(self.config, layer, self.vocabulary, self.count,
                                               embedding).astype(float)
            if name.endswith("router/visible"):
                layer = int(name[3:].partition("/")[0])
                params[name] = tables.visible(self.config, layer, self.count).astype(float)
        return params

    def evaluated(self, params, update, split, most):
        """An evaluation's mean loss and what its MoE layers did, pass by pass; update: updates done."""
        tokens, targets = ref.sequences(self.split[split], self.config.context)
        tokens, targets = tokens[:most], targets[:most]
        size = self.config.batch_sequences // self.config.micro_batches * self.config.copies
        loss, info = 0.0, []
        for first in range(0, len(tokens), size):
            part = [np.full((size, self.config.context), -1) for _ in range(2)]
            for full, some in zip(part, (tokens, targets)):
                full[: len(some[first: first + size])] = some[first: first + size]
            terms, cache = ref.forward(params, *part, self.config, self.config.stage(update), training=False)
            loss += terms["task"]
            info.append(cache["moe"] + cache["gates"])
        return loss / (targets >= 0).sum(), info


class Compared(p.ProgramTest):
    def near(self, what, got, expect, tolerance=TOLERANCE):
        got, expect = np.asarray(got, dtype=float), np.asarray(expect, dtype=float)
        self.assertEqual(got.shape, expect.shape, what)
        if got.size == 0:
            return
        np.testing.assert_array_equal(np.isnan(got), np.isnan(expect), err_msg=what)
        worst = np.abs(np.nan_to_num(got) - np.nan_to_num(expect)).max()
        size = np.abs(np.nan_to_num(expect)).max()
        self.assertTrue(worst <= tolerance * max(size, 1e-6), f"{what}: {worst:.3g} off where {size:.3g} is largest")

    def same(self, what, got, expect):
        np.testing.assert_array_equal(np.asarray(got), np.asarray(expect), err_msg=what)

    def run_of(self, name, ranks=1):
        settings = [f"{key}={value}" for key, value in {**RUN, **RUNS[name]}.items()]
        return Run(self.trained(name, settings, ranks=ranks), self.corpus)

    def check(self, name, run, recorded=None):
        config, narrow, dropped, ran = run.config, np.inf, 0, []
        self.assertEqual(len(run.metrics), UPDATES)
        shapes = {n: v.shape for n, v in run.checkpoint(1)[0].items()}
        params, moments = run.initial(shapes), {n: (np.zeros(s), np.zeros(s)) for n, s in shapes.items()}
        for update in range(UPDATES):
            stage, batches = config.stage(update), ref.batch(run.split["train"], config, update)
            losses, grads, info = ref.gradients(params, batches, config, stage, update,
                                                None if recorded is None else recorded[update])
            narrow = min([narrow] + [layer["gap"] for micro in info for layer in micro])
            layers = [figures.of_layer(info, m, config.batch_sequences * config.context)
                      for m in range(config.moe_layers)]
            for m, layer in enumerate(layers):
                layer["local_rate"] = figures.local_rate(config, [micro[m] for micro in info])
            dropped += sum(layer["dropped"] for layer in layers)
            norms = self.check_log(f"{name}, update {update + 1}", run, update, stage, batches, info, layers, grads)
            self.step(name, run, params, grads, moments, update, norms, info)
            params, moments = run.checkpoint(update + 1)
            shares = [np.mean([micro[config.moe_layers + g]["ran"].mean() for micro in info])
                      for g in range(len(gates.names(config)))]
            ran += shares
            self.check_metrics(f"{name}, update {update + 1}", run, update, stage, losses, layers, norms, params, shares)
            self.check_probe(f"{name}, probe {update + 1}", run, update, params)
        self.assertGreater(narrow, NARROWEST, "a choice hangs on rounding: change the seed")
        if config.moe_layers:
            self.assertEqual(dropped > 0, config.capacity_factor > 0, "what is dropped is what this is for")
        if ran:
            self.assertTrue(max(ran) == 1 and any(0 < share < 1 for share in ran), f"some rows skip, some do not: {ran}")

    def check_log(self, what, run, update, stage, batches, info, layers, grads):
        log, config = run.log, run.config
        norms = {"grad_norm": ref.gradient_norm(grads)}
        for part, mine in (("shared", False), ("expert", True)):
            norms[f"grad_norm_{part}"] = ref.gradient_norm({n: g for n, g in grads.items()
                                                            if ("/expert/" in n) == mine})
        if not log:
            return norms
        self.assertEqual((log["step"][update], log["stage"][update]), (update + 1, stage), what)
        if layers:
            self.same(f"{what}: load", log["load"][update], [layer["load"] for layer in layers])
        for key in ("assigned", "dropped") if layers else ():
            self.same(f"{what}: {key}", log[key][update], [layer[key] for layer in layers])
        for key in (*layers[0]["terms"], "agreement", "gate_mean") if layers else ():
            for m, layer in enumerate(layers):
                self.near(f"{what}: {key} of layer {m}", log[key][update, m], layer[key])
        # Every token.
        self.assertEqual(log["tokens/step"][update], update + 1)
        self.same(f"{what}: ids", log["tokens/id"][update], np.concatenate([np.repeat(t, config.copies, axis=0).ravel() for t, _ in batches]))
        for m in range(config.moe_layers):
            expert = np.concatenate([np.where(micro[m]["kept"] | (micro[m]["expert"] < 0), micro[m]["expert"],
                                              -2 - micro[m]["expert"]) for micro in info])
            self.same(f"{what}: experts of layer {m}", log["tokens/expert"][update, m], expert)
            self.near(f"{what}: gates of layer {m}", log["tokens/gate"][update, m],
                      np.concatenate([micro[m]["gate"] for micro in info]))
        for g in range(len(gates.names(config))):
            ran = np.concatenate([micro[config.moe_layers + g]["ran"].ravel() for micro in info])
            self.same(f"{what}: what ran behind gate {g}", log["tokens/ran"][update, g], ran)
            self.near(f"{what}: share behind gate {g}", log["ran"][update, g], ran.mean())
        return norms

    def step(self, name, run, params, grads, moments, update, norms, info):
        """The parameters and moments that the checkpoint after the update must have."""
        factor = ref.clip_factor(norms["grad_norm"], run.config)
        before = {n: v.copy() for n, v in params.items()}
        ref.adam(params, grads, moments, {n for n in params if ref.is_decayed(n)}, run.config, update, factor)
        ref.after_update(params, run.config, info, run.config.stage(update))
        after, after_moments = run.checkpoint(update + 1)
        self.assertEqual(set(after), set(params))
        for n in sorted(params):
            where = f"{name}, after update {update + 1}: {n}"
            self.near(where, after[n], params[n])
            self.assertTrue(n in after_moments or n not in grads, f"{where} has no moments")
            for k, moment in enumerate(after_moments.get(n, ())):
                self.near(f"{where}, moment {k + 1}", moment, moments[n][k], 1e-3)
            if n not in grads and not n.endswith("/router/bias"):
                self.same(f"{where} is frozen", after[n].astype("f4"), before[n].astype("f4"))

    def check_metrics(self, what, run, update, stage, losses, layers, norms, params, shares):
        """Every column of the line; params: after the update; shares: of rows that ran behind the gates."""
        config, row = run.config, dict(run.metrics[update])
        n_targets = config.batch_sequences * config.context
        expect = {"update": update + 1, "stage": stage, "tokens": (update + 1) * n_targets, "loss": losses["task"],
                  "lr": ref.learning_rate(config, update),
                  "clip": ref.clip_factor(norms["grad_norm"], config), "valid_loss": np.nan,
                  "valid_perplexity": np.nan, **norms, **{n: losses[n] for n in losses if n != "task"}}
        if (update + 1) % 2 == 0 or update + 1 == UPDATES:
            loss, _ = run.evaluated(params, update + 1, "valid", RUN["train.evaluate_sequences"])
            expect.update(valid_loss=loss, valid_perplexity=np.exp(loss))
        for m, layer in enumerate(layers):
            for key in ("max_over_mean", "cv", "entropy", "dead", "drop_rate", "gate_mean", "agreement"):
                expect[f"moe{m}_{key}"] = layer[key]
            if config.nodes > 1:
                expect[f"moe{m}_local_rate"] = layer["local_rate"]
        expect.update({f"{name.replace('/', '_')}_run": share for name, share in zip(gates.names(config), shares)})
        times = {key: row.pop(key) for key in [*row] if key.startswith("time_")}
        seconds, rate = row.pop("seconds"), row.pop("tokens_per_s")
        self.assertEqual(set(row), set(expect))
        for key, value in expect.items():
            self.near(f"{what}: {key}", row[key], value)
        # Printed with four digits after the point.
        self.assertLessEqual(abs(rate * seconds - n_targets), 0.06 * seconds + rate * 6e-5)
        self.assertTrue(0 < sum(times.values()) <= seconds + 1e-4 + 1e-6 * len(times), (times, seconds))

    def check_probe(self, what, run, update, params):
        if not run.log:
            return
        config, log, n = run.config, run.log, RUN["log.probe_sequences"] * RUN["model.context"]
        self.same(f"{what}: tokens", log["probe/token"], run.split["valid"][:n])
        stage = config.stage(update + 1)
        self.assertEqual((log["probe/step"][update], log["probe/stage"][update]), (update + 1, stage))
        _, info = run.evaluated(params, update + 1, "valid", RUN["log.probe_sequences"])
        for m in range(config.moe_layers):
            first = np.concatenate([part[m]["expert"][:, 0] for part in info])[:n]
            both = [np.concatenate([part[m][key] if part[m][key] is not None else np.full(len(part[m]["expert"]), -1)
                                    for part in info])[:n] for key in ("learned", "distilled")]
            # What training uses: in stage 1 the learned choice, where there is one.
            used = both[0] if stage == 1 and (both[0] >= 0).any() else first
            for key, expect in (("expert", used), ("learned", both[0]), ("distilled", both[1])):
                self.same(f"{what}: {key} of layer {m}", log[f"probe/{key}"][update, m], expect)
        for g in range(len(gates.names(config))):
            ran = np.concatenate([part[config.moe_layers + g]["ran"].ravel() for part in info])[:n]
            self.same(f"{what}: what ran behind gate {g}", log["probe/ran"][update, g], ran)


class Runs(Compared):
    """One test for each case, test_<name>."""


for case in RUNS:
    setattr(Runs, f"test_{case}", lambda self, name=case: self.check(name, self.run_of(name)))


class Evaluation(p.ProgramTest):
    """What `stablemoe evaluate` says of each split."""

    settings = [f"{key}={value}" for key, value in {**RUN, "moe.capacity_factor": 0}.items()]

    def test_splits(self):
        run = Run(self.trained("evaluated", ["router.stage1_updates=1"]), self.corpus)
        params, _ = run.checkpoint(UPDATES)
        seen = set()
        with h5py.File(self.corpus, "r") as file:
            size = {name: int(file[name].attrs["n_bytes"]) for name in run.split}
        for split, tokens in run.split.items():
            result = self.program.run("evaluate", run.directory, "--split", split, "--json")
            self.assertFine(result)
            got = json.loads(result.out)
            loss, _ = run.evaluated(params, UPDATES, split, None)
            self.assertEqual((got["split"], got["tokens"]), (split, len(tokens) - 1))
            for key, expect in (("loss", loss), ("perplexity", np.exp(loss)), ("drop_rate", 0),
                                ("bits_per_byte", figures.bits_per_byte(loss, len(tokens), size[split]))):
                self.assertTrue(abs(got[key] - expect) <= 1e-5 * max(expect, 1), (split, key, got[key], expect))
            seen.add(round(got["bits_per_byte"] / got["loss"], 6))
        self.assertEqual(len(seen), 3, "the splits differ in bytes per token, or a wrong one would not show")


class Beginning(p.ProgramTest):
    """Initial values: with a learning rate of 0 the first checkpoint has them."""

    def check(self, name, settings, embedding=None):
        settings = {**RUN, "optimizer.lr": 0, "train.updates": 1, "schedule.warmup": 0,
                    "train.evaluate_every": 0, "log.tokens_every": 0, "log.probe_every": 0, **settings}
        run = Run(self.trained(name, [f"{key}={value}" for key, value in settings.items()]), self.corpus)
        found, _ = run.checkpoint(1)
        expect = run.initial({n: v.shape for n, v in found.items()}, embedding)
        for n in sorted(found):
            size = np.abs(expect[n]).max()
            worst = np.abs(found[n] - expect[n]).max()
            self.assertTrue(worst <= 1e-6 * size, f"{name}: {n} is off by {worst:.3g} where {size:.3g} is largest")
        return run, found

    def test_values(self):
        for name in ("stable", "stable-cnn", "stable-transformer", "switch", "hash-balanced", "hash-segments",
                     "hash-position", "recurrent", "sparsemixer", "dense"):
            with self.subTest(name):
                self.check(f"begin-{name}", RUNS[name])

    def test_many_experts(self):
        """More experts than the width has dimensions: columns are orthogonal then."""
        for method in ("switch", "topk", "gshard", "base", "expert_choice"):
            with self.subTest(method):
                self.check(f"many-{method}", {"router.method": method, "model.width": 4, "moe.experts": 7,
                                              "moe.capacity_factor": 0})

    def test_clusters(self):
        """Tables from a trained model's embeddings."""
        run = self.trained("embeds", ["moe.layers=0", "train.updates=2", "schedule.warmup=0"])
        model = os.path.join(run, "checkpoints", "latest")
        embedding = p.checkpoint(run, 2)["param/embedding/table"].astype(np.float64)
        for variant in ("clustered", "dispersed"):
            with self.subTest(variant):
                self.check(f"hash-{variant}", {"router.method": "hash", "router.hash.variant": variant,
                                               "router.hash.model": model}, embedding)


class Upcycled(p.ProgramTest):
    """Experts made of a dense model's feed-forward layers, before the first update."""

    def check(self, name, settings, ranks):
        """settings: of both models; "inner", "slices", "experts", "k" and the moe.from_* keys of the experts."""
        own = {key: settings.pop(key) for key in [*settings] if not key.startswith("model.decoder")}
        slices, n_experts = own.pop("slices"), own.pop("experts")
        base = {**RUN, "model.family": "decoder", "moe.sublayers": 1, "moe.capacity_factor": 0, "log.tokens_every": 0,
                "log.probe_every": 0, "train.evaluate_every": 0, "train.updates": 2, **settings}
        every = settings.get("model.decoder.moe_every", 1)
        dense = self.trained(f"{name}-dense", [f"{k}={v}" for k, v in {**base, "moe.layers": 0}.items()])
        keys = {**base, "train.initial": dense, "moe.from": "ffn", "moe.experts": n_experts, "run.seed": 9,
                "moe.inner": RUN["model.inner"] // slices, "router.method": "topk", "router.topk.k": slices,
                "optimizer.lr": 0, "train.updates": 1, "schedule.warmup": 0, **own}
        run = Run(self.trained(name, [f"{k}={v}" for k, v in keys.items()], ranks=ranks), self.corpus)
        source = {n[6:]: v.astype(np.float64) for n, v in p.checkpoint(dense, 2).items() if n.startswith("param/")}
        found, _ = run.checkpoint(1)
        layers = [f"block{b}/ffn" for b in range(RUN["model.blocks"]) if (b + 1) % every == 0]
        halves = 1 if settings.get("model.decoder.activation") else 2
        made = set()
        for n, value in found.items():
            origin = upcycle.source(n, layers)
            if "/router/" in n:
                drawn = initial.value(n, {n: value.shape}, run.config)
                expect = upcycle.tied(drawn, slices)
                self.assertTrue(slices == 1 or not np.array_equal(drawn, expect), n)
            elif origin and "/expert/" in n:
                made.add(n.rpartition("/")[2])
                expect = upcycle.experts(n, origin[0], source[origin[1]], n_experts, slices, halves, 9,
                                         float(own.get("moe.from_noise", 0)), float(own.get("moe.from_redrawn", 0)))
            else:
                expect = source[origin[1] if origin else n]
            self.assertEqual(value.shape, expect.shape, n)
            size = np.abs(expect).max()
            worst = np.abs(value - expect).max()
            self.assertTrue(worst <= 1e-6 * size, f"{name}: {n} is off by {worst:.3g} where {size:.3g} is largest")
        return made

    def test_experts(self):
        plain = {"model.decoder.activation": "gelu", "model.decoder.norm": "layer", "model.decoder.biases": "true"}
        cases = {"copies": {"slices": 1, "experts": 3}, "halves": {"slices": 2, "experts": 6},
                 "quarters": dict(plain, slices=4, experts=8),
                 "drawn": {"slices": 2, "experts": 6, "moe.from_noise": 0.2, "moe.from_redrawn": 0.4},
                 "drawn-plain": dict(plain, slices=2, experts=4, **{
                     "moe.from_noise": 0.1, "moe.from_redrawn": 0.5, "model.decoder.moe_every": 2})}
        for number, (name, settings) in enumerate(cases.items()):
            with self.subTest(name):
                made = self.check(f"up-{name}", dict(settings), 1 + number % 3)
                self.assertEqual(made, {"w1", "w2", "b1", "b2"} if "plain" in name or name == "quarters" else {"w1", "w2"})


class Replayed(Compared):
    """A replay of gshard's choices: other gates, and a table of what its log has most often."""

    def test_replay(self):
        settings = {**RUN, **RUNS["gshard"], "moe.capacity_factor": 0.8}
        recorded = Run(self.trained("recorded", [f"{k}={v}" for k, v in settings.items()]), self.corpus)
        source = {m: p.chosen(recorded.log["tokens/expert"][:, m].reshape(-1, 2)) for m in range(2)}
        ids = recorded.log["tokens/id"].ravel()
        for gate in ("sigmoid", "one"):
            with self.subTest(gate):
                settings = {**RUN, "router.method": "replay", "router.replay.log": recorded.directory,
                            "router.replay.slots": 2, "router.replay.gate": gate, "run.seed": RUN["run.seed"]}
                run = Run(self.trained(f"replay-{gate}", [f"{k}={v}" for k, v in settings.items()]), self.corpus)
                begin = run.initial

                def initial_with_tables(shapes, run=run, begin=begin):
                    params = begin(shapes)
                    for m, expert in source.items():
                        params[f"moe{m}/router/table"] = tables.replayed(
                            ids, expert, run.vocabulary, run.config.experts, run.config.seed, m).astype(float)
                    return params

                run.initial = initial_with_tables
                self.check(f"replay, gate {gate}", run, recorded.log["tokens/expert"].astype(int))


if __name__ == "__main__":
    p.main()
