"""The reference against central differences, and against its equations written out another way."""

import os
import sys
import unittest
from dataclasses import replace

try:
    import numpy as np
except ImportError as missing:
    print(f"skipped: {missing}; jobs/install.sh brings python3-numpy", file=sys.stderr)
    sys.exit(77)

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", ".."))
from analysis import reference as ref
from analysis.reference import assignment, gates, layers, tables
from analysis.reference import counter_random as random

S, T, C, F, FE, V, E, WIDTH = 3, 5, 8, 12, 10, 11, 4, 6
CONFIG = ref.Config(blocks=2, heads=2, scale_embedding=True, moe_layers=2, position="scattered", experts=E,
                    sublayers=2, balance_weight=0.3, distill_weight=0.7)

SMALL = replace(CONFIG, moe_layers=1, position="middle", sublayers=1)


def make_params(config, seed=0, width=C, vocabulary=V, context=T):
    """A model whose every parameter matters: nothing at zero or one."""
    rng = np.random.default_rng(seed)
    shapes = {"embedding/table": (vocabulary, width), "embedding/position": (context, width),
              "norm/gamma": (width,), "norm/beta": (width,)}

    def ffn(prefix, inner, lead=(), of=width):
        forms = ((of,), (of,), (inner, of), (inner,), (of, inner), (of,))
        for name, shape in zip(ref.FFN, forms):
            shapes[f"{prefix}/{name}"] = lead + shape

    for i in range(config.blocks):
        for name, shape in (("norm/gamma", (width,)), ("norm/beta", (width,)),
                            ("qkv/weight", (3 * width, width)), ("qkv/bias", (3 * width,)),
                            ("proj/weight", (width, width)), ("proj/bias", (width,))):
            shapes[f"block{i}/attention/{name}"] = shape
        ffn(f"block{i}/ffn", F)
    def distilled(prefix):
        shapes[f"{prefix}/embedding"] = (vocabulary, WIDTH)
        shapes[f"{prefix}/centroid"] = (config.experts, WIDTH)
        if config.features == "cnn":
            shapes[f"{prefix}/tap"] = (5,)
        if config.features != "transformer":
            return
        shapes[f"{prefix}/position"] = (context, WIDTH)
        for layer in range(config.distill_layers):
            attention = f"{prefix}/layer{layer}/attention"
            shapes.update({f"{attention}/norm/gamma": (WIDTH,), f"{attention}/norm/beta": (WIDTH,),
                           f"{attention}/qkv/weight": (3 * WIDTH, WIDTH),
                           f"{attention}/proj/weight": (WIDTH, WIDTH), f"{attention}/proj/bias": (WIDTH,)})
            ffn(f"{prefix}/layer{layer}/ffn", 4 * WIDTH, of=WIDTH)
        shapes.update({f"{prefix}/norm/gamma": (WIDTH,), f"{prefix}/norm/beta": (WIDTH,)})

    for m in range(config.moe_layers):
        if config.method != "hash":
            shapes[f"moe{m}/router/centroid"] = (config.experts, width)
        if config.method in ("stable", "base_stage2"):
            distilled(f"moe{m}/router/distilled")
        if config.method in ("hash", "replay"):
            shapes[f"moe{m}/router/table"] = (vocabulary, 1)
        for s in range(config.sublayers):
            ffn(f"moe{m}/expert/ffn{s}", FE, (config.experts,))
    params = {name: 0.5 * rng.standard_normal(shape) for name, shape in shapes.items()}
    for name in params:
        if name.endswith("gamma"):
            params[name] += 1.0
        if name.endswith("router/table"):
            params[name] = rng.integers(0, config.experts, shapes[name]).astype(float)
    return params


def make_batch(seed=1, sequences=S, context=T, vocabulary=V):
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, vocabulary, (sequences, context))
    targets = rng.integers(0, vocabulary, (sequences, context))
    return tokens, targets


def total(params, batches, config, stage):
    n_targets = sum((targets >= 0).sum() for _, targets in batches)
    loss = 0.0
    for number, (tokens, targets) in enumerate(batches):
        terms, _ = ref.forward(params, tokens, targets, config, stage, micro_batch=number)
        loss += terms["task"] + terms["balance"] + terms["distill"]
    return loss / n_targets


class Gradients(unittest.TestCase):
    def check(self, config, stage, padded=False, below=""):
        """Against central differences; below: only parameters whose names begin so."""
        params = make_params(config)
        batches = [make_batch(1), make_batch(2)]
        if padded:
            batches[1][0][-1, 3:] = -1
            batches[1][1][-1, 2:] = -1
        _, grads, info = ref.gradients(params, batches, config, stage)
        step, rng = 1e-5, np.random.default_rng(3)
        for name, grad in grads.items():
            if not name.startswith(below):
                continue
            value = params[name]
            picks = rng.choice(value.size, min(value.size, 4), replace=False)
            picks = np.append(picks, np.argmax(np.abs(grad)))
            for index in picks:
                place = np.unravel_index(index, value.shape)
                kept, sides = value[place], []
                for offset in (step, -step):
                    value[place] = kept + offset
                    sides.append(total(params, batches, config, stage))
                value[place] = kept
                slope = (sides[0] - sides[1]) / (2 * step)
                scale = max(np.abs(grad).max(), 1e-3)
                self.assertLessEqual(abs(slope - grad[place]) / scale, 1e-6, f"{name}{list(place)}")
        return params, grads, info

    def test_stage_1(self):
        _, grads, _ = self.check(CONFIG, 1)
        for name, grad in grads.items():
            self.assertGreater(np.abs(grad).max(), 0, name)

    def test_stage_1_dropping_and_padding(self):
        _, _, info = self.check(replace(CONFIG, capacity_factor=1.0), 1, padded=True)
        self.assertGreater(sum(layer["dropped"] for micro in info for layer in micro), 0)

    def test_stage_2(self):
        _, grads, _ = self.check(replace(CONFIG, scale_embedding=False), 2, padded=True)
        self.assertFalse([name for name in grads if "/distilled/" in name])

    def test_stage_2_dropping(self):
        self.check(replace(CONFIG, capacity_factor=0.5), 2)

    def test_positions(self):
        for position in ("middle", "top", "bottom"):
            self.check(replace(CONFIG, position=position, moe_layers=1), 1)

    def test_dense(self):
        self.check(replace(CONFIG, moe_layers=0, experts=0), 1)

    def test_features(self):
        for features in ("bigram", "cnn", "transformer"):
            with self.subTest(features):
                config = replace(SMALL, features=features, distill_layers=2, capacity_factor=1.0)
                _, grads, _ = self.check(config, 1, padded=True, below="moe0/router")
                for name, grad in grads.items():
                    self.assertGreater(np.abs(grad).max(), 0, name)

    def test_methods(self):
        """Choices are constants of the gradient; what a method draws at random is the same on both sides."""
        cases = {
            "base": {}, "base_stage2": {}, "switch": {"jitter": "0.3"}, "hash": {"variant": "random"},
            "gshard": {"second": "random"}, "topk": {"k": "3", "normalise": "true"}, "replay": {"gate": "sigmoid"},
            "expert_choice": {"capacity": "1.5", "max_experts": "2", "causal": "false"}}
        for method, keys in cases.items():
            with self.subTest(method):
                config = replace(SMALL, method=method, router=keys, lanes=3, capacity_factor=0.8, seed=3)
                _, grads, info = self.check(config, 1, padded=True, below="moe0/router")
                dropped = sum(layer["dropped"] for micro in info for layer in micro)
                self.assertEqual(dropped > 0, method != "expert_choice", "experts that choose need not drop")
                for name, grad in grads.items():
                    self.assertGreater(np.abs(grad).max(), 0, name)
        for method, keys in {"topk": {"k": "2", "normalise": "false"},
                             "expert_choice": {"capacity": "2", "causal": "true"}}.items():
            with self.subTest(method, keys=keys):
                self.check(replace(SMALL, method=method, router=keys), 1, below="moe0/router")
        self.check(replace(SMALL, method="topk", router={"k": "2", "normalise": "true"}), 1, below="embedding")


class Equations(unittest.TestCase):
    def test_places(self):
        def after(position, blocks, layers):
            return ref.Config(blocks=blocks, heads=1, moe_layers=layers, position=position).moe_after()

        self.assertEqual(after("middle", 12, 1), [6])
        self.assertEqual(after("top", 12, 1), [12])
        self.assertEqual(after("bottom", 12, 1), [0])
        self.assertEqual(after("scattered", 12, 3), [3, 6, 9])
        self.assertEqual(after("scattered", 5, 2), [1, 3])

    def test_attention_by_loops(self):
        rng = np.random.default_rng(5)
        qkv, heads = rng.standard_normal((2, 4, 3 * C)), 2
        d = C // heads
        out, _ = ref.attention_forward(qkv, heads)
        for s in range(2):
            for h in range(heads):
                q, k, v = (qkv[s, :, part * C + h * d: part * C + (h + 1) * d] for part in range(3))
                for i in range(4):
                    weight = np.array([np.exp(q[i] @ k[j] / np.sqrt(d)) for j in range(i + 1)])
                    expect = sum(w * v[j] for j, w in enumerate(weight)) / weight.sum()
                    np.testing.assert_allclose(out[s, i, h * d: (h + 1) * d], expect, rtol=1e-12)

    def test_moe_token_by_token(self):
        """Equations 5 to 7, 8 and 10 with loops over tokens and experts."""
        config = replace(CONFIG, moe_layers=1, capacity_factor=1.0)
        params = make_params(config)
        rng = np.random.default_rng(7)
        n = 14
        x, token = rng.standard_normal((n, C)), rng.integers(0, V, n)
        y, terms, info, _ = ref.moe_forward(ref.Call(config, params, "moe0", 0, token, n), x)
        centroid = params["moe0/router/centroid"]
        chosen = [max(range(E), key=lambda i, t=t: centroid[i] @ x[t]) for t in range(n)]
        used, balance, distill, dropped = [0] * E, 0.0, 0.0, 0
        for t in range(n):
            a = chosen[t]
            gate = 1 / (1 + np.exp(-centroid[a] @ x[t]))
            balance += (chosen.count(a) - n / E) / (n / E) * gate
            feature = params["moe0/router/distilled/embedding"][token[t]]
            r = [params["moe0/router/distilled/centroid"][i] @ feature for i in range(E)]
            distill -= np.log(np.exp(r[a]) / np.exp(r).sum())
            z = x[t].copy()
            used[a] += 1
            if used[a] > n // E:
                dropped += 1
            else:
                for s in range(config.sublayers):
                    gamma, beta, w1, b1, w2, b2 = ref.ffn_arrays(params, f"moe0/expert/ffn{s}", a)
                    u = (z - z.mean()) / np.sqrt(z.var() + 1e-5) * gamma + beta
                    z = z + w2 @ np.maximum(w1 @ u + b1, 0) + b2
            np.testing.assert_allclose(y[t], gate * z + (1 - gate) * x[t], rtol=1e-12)
        self.assertGreater(dropped, 0)
        self.assertEqual(info["dropped"], dropped)
        self.assertAlmostEqual(terms["balance"], 0.3 * balance, places=12)
        self.assertAlmostEqual(terms["distill"], 0.7 * distill, places=12)

    def test_gates_row_by_row(self):
        """What runs behind a gate, with loops over sequences and tokens, padding behind one of them."""
        for unit, mean in (("token", "running"), ("sequence", "running"), ("sequence", "whole")):
            config = replace(CONFIG, moe_layers=0, blocks=2, skip_what="ffn", skip_layers=1, skip_unit=unit,
                             skip_mean=mean, skip_target=0.05, skip_weight=0.6, micro_batches=2)
            params, rng = make_params(config), np.random.default_rng(6)
            params["block0/ffn/gate"] = w = rng.standard_normal(C)
            x, tokens = rng.standard_normal((S, T, C)), rng.integers(0, V, (S, T))
            tokens[1, 3:] = -1
            y, loss, infos, _ = gates.block_forward(x, tokens, params, 0, config, True, 0, 0)
            mid, _ = layers.attention_layer_forward(x, params, "block0/attention", config.heads)
            whole, _ = layers.ffn_layer_forward(mid, params, "block0/ffn")
            gamma, beta = params["block0/ffn/norm/gamma"], params["block0/ffn/norm/beta"]
            ran = 0
            for s in range(S):
                length = 3 if s == 1 else T
                a = [(z - z.mean()) / np.sqrt(z.var() + 1e-5) * gamma + beta for z in mid[s]]
                for t in range(length):
                    seen = {"token": a[t:t + 1], "running": a[:t + 1], "whole": a[:length]}[unit if unit == "token" else mean]
                    runs = w @ (sum(seen) / len(seen)) >= 0
                    ran += runs
                    np.testing.assert_array_equal(y[s, t], whole[s, t] if runs else mid[s, t])
            self.assertTrue(0 < ran < 2 * T + 3)
            self.assertEqual(infos[0]["ran"].sum(), ran)
            self.assertAlmostEqual(loss, 0.6 * (ran / (2 * T + 3) - 0.05) / 2)

    def call(self, method, keys, score, lanes=1, training=True):
        """A call whose scores are given: the hidden states are the scores, the centroids the identity."""
        n, e = score.shape
        config = replace(CONFIG, method=method, router=keys, lanes=lanes, experts=e, moe_layers=1)
        params = {"moe0/router/centroid": np.eye(e), "embedding/table": np.zeros((V, C))}
        return ref.Call(config, params, "moe0", 0, np.zeros(n, int), n // lanes, training=training)

    def test_choices_by_hand(self):
        score = np.log(np.array([[5.0, 3, 2], [1, 6, 3], [2, 3, 5], [4, 5, 1]]))
        route = ref.METHODS["topk"].route(self.call("topk", {"k": "2", "normalise": "true"}, score), score)
        self.assertEqual(route.expert.tolist(), [[0, 1], [1, 2], [2, 1], [1, 0]])
        np.testing.assert_allclose(route.gate, [[5 / 8, 3 / 8], [6 / 9, 3 / 9], [5 / 8, 3 / 8], [5 / 9, 4 / 9]])

        call = self.call("expert_choice", {"capacity": "1.5", "causal": "false"}, score)  # 4 * 1.5 / 3 = 2 each
        route = ref.METHODS["expert_choice"].route(call, score)
        self.assertEqual(route.expert.tolist(), [[0, -1, -1], [1, 2, -1], [2, -1, -1], [1, 0, -1]])
        np.testing.assert_allclose(route.gate[1, :2], [0.6, 0.3])
        call = self.call("expert_choice", {"capacity": "1.5", "causal": "false", "evaluation": "tokens"}, score,
                         training=False)  # rounded: two for each
        self.assertEqual(ref.METHODS["expert_choice"].route(call, score).expert.tolist(),
                         [[0, 1, -1], [1, 2, -1], [2, 1, -1], [1, 0, -1]])

        call = self.call("gshard", {"second": "always"}, score, lanes=2)
        route = ref.METHODS["gshard"].route(call, score)
        share = ref.METHODS["gshard"].shares(call, route)
        np.testing.assert_allclose(share, [[0.5, 0.5, 0]] * 2 + [[0, 0.5, 0.5]] * 2)
        p = np.exp(score) / np.exp(score).sum(axis=1, keepdims=True)
        self.assertAlmostEqual(ref.METHODS["gshard"].losses(call, route, np.array([4, 3, 1]))["balance"],
                               0.3 * 3 * (p * share).sum())

    def test_auction(self):
        rng = np.random.default_rng(2)
        for n, e in ((12, 4), (11, 4), (3, 5), (1, 3), (0, 3), (7, 1)):
            score = rng.standard_normal((n, e))
            expert = assignment.auction(score)
            np.testing.assert_array_equal(np.bincount(expert, minlength=e), assignment.shares(score))
        score = rng.standard_normal((8, 2))  # the best half by the difference of scores is the exact solution
        order = np.argsort(score[:, 1] - score[:, 0])
        best = score[order[:4], 0].sum() + score[order[4:], 1].sum()
        got = score[np.arange(8), assignment.auction(score)].sum()
        self.assertGreaterEqual(got, best - 8 * (score.max() - score.min()) / 50)

    def test_tables(self):
        count = np.array([5, 9, 0, 7, 1, 7])
        table = tables.balanced(count, 2, 1, 0)  # 9, 7, 7, 5, 1: 1 -> 0, 3 -> 1, 5 -> 1, 0 -> 0, 4 -> 0 or 1 at 14
        self.assertEqual(table[[1, 3, 5, 0, 4]].tolist(), [0, 1, 1, 0, 0])
        spread = tables.dispersed(count, np.array([0, 0, 0, 0, 1, 1]), 2)
        self.assertEqual(sorted(spread[:4].tolist()), [0, 0, 1, 1])
        x = np.array([[0.0], [0.1], [5.0], [5.1], [9.0]])
        cluster = tables.clusters(x, 3, 4, 0)
        self.assertEqual(len({*cluster[:2]}), 1)
        self.assertEqual(len({*cluster[2:4]}), 1)
        self.assertEqual(len({*cluster}), 3)
        self.assertNotEqual(tables.drawn(50, 4, 1, 0).tolist(), tables.drawn(50, 4, 1, 1).tolist())

    def test_random_numbers(self):
        """Known answers of Random123 (kat_vectors): philox4x32-10."""
        def words(seed, purpose, update, index):
            return [int(w) for w in random.philox(seed, purpose, update, index)]

        self.assertEqual(words(0, 0, 0, 0), [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8])
        ones = 0xFFFFFFFF
        self.assertEqual(words(2**64 - 1, ones, ones, 2**64 - 1),
                         [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD])
        self.assertEqual(words(0x299F31D0A4093822, 0x03707344, 0x13198A2E, 0x85A308D3243F6A88),
                         [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1])
        image = [random.permute(3, random.ORDER, 2, 21, i) for i in range(21)]
        self.assertEqual(sorted(image), list(range(21)))
        self.assertNotEqual(image, sorted(image))
        self.assertEqual(random.hash_text("a"), 0xE40C292C)

    def test_stage_2_follows_the_token_id(self):
        params = make_params(CONFIG)
        tokens, targets = make_batch(3, sequences=8)
        terms, cache = ref.forward(params, tokens, targets, CONFIG, 2)
        self.assertEqual((terms["balance"], terms["distill"]), (0.0, 0.0))
        for info in cache["moe"]:
            for word in range(V):
                self.assertLessEqual(len(set(info["expert"][tokens.ravel() == word, 0])), 1)
        evaluated, _ = ref.forward(params, tokens, targets, CONFIG, 1, training=False)
        self.assertAlmostEqual(evaluated["task"], terms["task"], places=10)

    def test_causal(self):
        """A token changes its own place and what follows it, and nothing before.

        Up to rounding: the changed token may take another expert, so that the others there are
        multiplied in a matrix of other height, whose rows a BLAS may round otherwise.
        """
        params, (tokens, targets) = make_params(CONFIG), make_batch()
        _, one = ref.forward(params, tokens, targets, CONFIG, 1)
        for place in range(T):
            changed = tokens.copy()
            changed[:, place] = (changed[:, place] + 1) % V
            _, other = ref.forward(params, changed, targets, CONFIG, 1)
            change = np.abs(one["log_p"] - other["log_p"]).max(axis=2)  # [S, T]
            self.assertLessEqual(change[:, :place].max(initial=0.0), 1e-12, f"before place {place}: {change}")
            self.assertGreater(change[:, place:].min(), 1e-6, f"from place {place} on: {change}")

    def test_argmax(self):
        score = np.array([[1.0, 2, 2], [np.nan, -5, -6], [np.inf, 0, 0]])
        self.assertEqual(list(ref.argmax(score)), [1, 1, 1])

    def test_keep_first(self):
        kept = ref.keep_first(np.array([0, 0, -1, 1, 0, 0]), 2, 1.0)  # floor(5 / 2) = 2 each
        self.assertEqual(list(kept), [True, True, False, True, False, False])

    def test_micro_batches_accumulate(self):
        config = replace(CONFIG, balance_weight=0.0)  # the only term that sees the micro-batch
        params, (tokens, targets) = make_params(CONFIG), make_batch(sequences=4)
        whole, once, _ = ref.gradients(params, [(tokens, targets)], config, 1)
        halves = [(tokens[:2], targets[:2]), (tokens[2:], targets[2:])]
        parts, twice, _ = ref.gradients(params, halves, config, 1)
        self.assertAlmostEqual(whole["task"], parts["task"], places=12)
        for name in once:
            np.testing.assert_allclose(once[name], twice[name], atol=1e-13, err_msg=name)

    def test_read_keys(self):
        text = ("# of a run\nrun:\n  seed: 3  # any\nrouter:\n  method: stable\n  stable:\n    width: 50\n"
                "moe:\n  layers: 2\n")
        self.assertEqual(ref.read_keys(text), {"run.seed": "3", "router.method": "stable",
                                               "router.stable.width": "50", "moe.layers": "2"})


class Optimizer(unittest.TestCase):
    def test_learning_rate(self):
        config = ref.Config(blocks=1, heads=1, lr=2.0, warmup=4, updates=14)
        self.assertEqual([ref.learning_rate(config, u) for u in (0, 3, 4, 9, 13)], [0.5, 2.0, 2.0, 1.0, 0.2])
        config = replace(config, schedule="inverse_sqrt")
        self.assertEqual([ref.learning_rate(config, u) for u in (1, 3, 15)], [1.0, 2.0, 1.0])
        self.assertEqual(ref.learning_rate(replace(config, schedule="constant"), 9), 2.0)
        config = replace(config, schedule="cosine", floor=0.5)  # down from 2 to 1
        np.testing.assert_allclose([ref.learning_rate(config, u) for u in (3, 4, 9, 14)], [2, 2, 1.5, 1])
        config = replace(config, schedule="wsd", decay_share=0.3)  # 4 of 14 updates
        np.testing.assert_allclose([ref.learning_rate(config, u) for u in (3, 10, 11, 13)], [2, 2, 1.75, 1.25])

    def test_clip(self):
        grads = {"a": np.array([3.0]), "b": np.array([[4.0]])}
        self.assertEqual(ref.gradient_norm(grads), 5.0)
        config = ref.Config(blocks=1, heads=1, clip=0.1)
        self.assertEqual(ref.clip_factor(5.0, config), 0.1 / 5)
        self.assertEqual(ref.clip_factor(0.05, config), 1.0)
        self.assertEqual(ref.clip_factor(5.0, replace(config, clip=0.0)), 1.0)

    def test_adam_by_hand(self):
        config = ref.Config(blocks=1, heads=1, lr=0.1, beta1=0.5, beta2=0.75, epsilon=1.0, decay=0.2,
                            schedule="constant")
        params, moments = {"w": np.array([1.0]), "b": np.array([1.0])}, {}
        ref.adam(params, {"w": np.array([4.0]), "b": np.array([4.0])}, moments, {"w"}, config, 0, 0.5)
        # g = 2: m = 1, v = 1, corrected 2 and 4: step 0.1 * 2 / 3, decay 0.1 * 0.2 * 1
        self.assertAlmostEqual(params["b"][0], 1 - 0.2 / 3, places=15)
        self.assertAlmostEqual(params["w"][0], 1 - 0.2 / 3 - 0.02, places=15)
        ref.adam(params, {"b": np.array([1.0])}, moments, {"w"}, config, 1, 1.0)
        # m = 1, v = 1, corrections 0.75 and 0.4375
        expect = 1 - 0.2 / 3 - 0.1 * (1 / 0.75) / (np.sqrt(1 / 0.4375) + 1)
        self.assertAlmostEqual(params["b"][0], expect, places=15)


if __name__ == "__main__":
    unittest.main()
