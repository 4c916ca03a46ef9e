"""Every routing method: choices and gates, loss terms, gradients. Letters as in doc/methods.md.

A method has three functions:

    route(call, x)                                   -> Routing
    losses(call, routing, load)                      -> {name: weighted sum over tokens}
    backward(call, x, routing, load, dgate, scale, grads) -> dx, and adds to grads

load [E] counts all choices of the micro-batch before anything is dropped, and is a constant of the gradient.
dgate [N, K] is the gradient of the gates, 0 for unused and dropped slots. scale divides the losses.
"""

import numpy as np

from . import counter_random as random
from . import distilled, tables
from .assignment import auction
from .call import Routing, argmax, best, gap
from .layers import sigmoid
from .scores import (balance_loss, balance_slope, centroid, gates_to_experts, masked, probabilities, scores_backward,
                     softmax_backward)
from .sampled import SparseMixer
from .top_choice import Recurrent, TopK

# ---- gates that are the sigmoid of one score: StableMoE, BASE, replay ----


def sigmoid_gates(x, rows, expert, offset=None):
    """sigmoid(E_a x_t + o_a) for each used slot; a score that is not finite gives 0."""
    score = np.einsum("tc,tkc->tk", x, rows[np.maximum(expert, 0)])
    if offset is not None:
        score = score + offset[np.maximum(expert, 0)]
    return np.where((expert >= 0) & np.isfinite(score), sigmoid(score), 0.0)


def sigmoid_backward(call, x, routing, dgate, grads):
    used = routing.expert >= 0
    dscore = np.where(used, dgate * routing.gate * (1 - routing.gate), 0.0)
    at = np.maximum(routing.expert, 0)
    for k in range(at.shape[1]):
        np.add.at(grads[f"{call.prefix}/router/centroid"], at[:, k], dscore[:, k, None] * x)
    return np.einsum("tk,tkc->tc", dscore, centroid(call)[at])


class Stable:
    """StableMoE (Dai et al. 2022): greedy, and distilled for stage 2 and for every evaluation."""

    @staticmethod
    def target(call, score):
        """The choice that stage 1 trains with."""
        return masked(call, argmax(score)), gap(score[call.real])

    def route(self, call, x):
        score = x @ centroid(call).T + call.params.get(f"{call.prefix}/router/bias", 0.0)
        greedy = masked(call, argmax(score))
        distilled_score, cache = distilled.forward(call)
        frozen = masked(call, argmax(distilled_score))
        if call.learning:
            expert, narrow = self.target(call, score)
            narrow = min(narrow, gap(score[call.real]))
        else:
            expert, narrow = frozen, gap(distilled_score[call.real])
        both = call.stage == 1 or not call.training
        offset = call.params.get(f"{call.prefix}/router/gate_offset", np.zeros(len(centroid(call))))
        return Routing(expert[:, None], sigmoid_gates(x, centroid(call), expert[:, None], offset), narrow,
                       greedy if both else None, frozen if both else None,
                       {"greedy": greedy, "score": distilled_score, "distilled": cache})

    @staticmethod
    def excess(load):
        """c_i = (n_i - N / E) / (N / E)."""
        mean = load.sum() / len(load)
        return (load - mean) / mean if mean else np.zeros(len(load))

    def losses(self, call, routing, load):
        if not call.learning:
            return {}
        a, gate = routing.expert[:, 0], routing.gate[:, 0]
        return {"balance": call.config.balance_weight * (self.excess(load)[a] * gate)[a >= 0].sum(),
                "distill": distilled.loss(call, routing.cache["score"], routing.cache["greedy"])}

    def backward(self, call, x, routing, load, dgate, scale, grads):
        if call.learning:
            a = routing.expert
            dgate = dgate + np.where(a >= 0, scale * call.config.balance_weight * self.excess(load)[a], 0.0)
            distilled.backward(call, routing.cache["score"], routing.cache["greedy"], routing.cache["distilled"],
                               scale, grads)
        name = f"{call.prefix}/router/gate_offset"
        if name in grads:
            for e, gate, d in zip(routing.expert.ravel(), routing.gate.ravel(), dgate.ravel()):
                grads[name][e] += gate * (1 - gate) * d if e >= 0 else 0.0
        return sigmoid_backward(call, x, routing, dgate, grads)


def balanced_choice(call, score):
    """The auction lane by lane, and its narrowest margin."""
    expert, margins = np.full(len(call.token), -1), []
    for rows in call.lanes():
        rows = rows[call.real[rows]]
        expert[rows] = auction(score[rows], margins)
    return expert, min(margins, default=np.inf)


class Base:
    """BASE (Lewis et al. 2021): balanced in training, greedy in evaluation; no loss."""

    def route(self, call, x):
        score = x @ centroid(call).T
        if call.training:
            expert, narrow = balanced_choice(call, score)
        else:
            expert, narrow = masked(call, argmax(score)), gap(score[call.real])
        return Routing(expert[:, None], sigmoid_gates(x, centroid(call), expert[:, None]), narrow)

    def losses(self, call, routing, load):
        return {}

    def backward(self, call, x, routing, load, dgate, scale, grads):
        return sigmoid_backward(call, x, routing, dgate, grads)


class BaseStage2(Stable):
    """BASE in stage 1, while the distilled router learns its greedy choice; frozen in stage 2."""

    @staticmethod
    def target(call, score):
        return balanced_choice(call, score)

    def losses(self, call, routing, load):
        if not call.learning:
            return {}
        return {"distill": distilled.loss(call, routing.cache["score"], routing.cache["greedy"])}

    def backward(self, call, x, routing, load, dgate, scale, grads):
        return super().backward(call, x, routing, np.ones(len(load)), dgate, scale, grads)


# ---- gates that are probabilities: Switch, GShard, top-k, Expert Choice ----


class Switch:
    """Switch (Fedus, Zoph, Shazeer 2021): the likeliest expert of a noisy input."""

    @staticmethod
    def noise(call, width):
        """Factors in (1 - jitter, 1 + jitter): 16 bits each, four of one draw."""
        jitter = float(call.config.router.get("jitter", 0))
        if not call.training or jitter == 0:
            return 1.0
        draws = -(-width // 4)
        index = call.index()[:, None] * draws + np.arange(draws)
        word = random.bits(call.config.seed, random.JITTER, call.update, index)
        parts = np.stack([word >> np.uint64(16 * j) & np.uint64(0xFFFF) for j in range(4)], axis=-1)
        u = (parts.reshape(len(index), -1)[:, :width].astype(float) + 0.5) / 65536
        return 1 + jitter * (2 * u - 1)

    def route(self, call, x):
        noise = self.noise(call, x.shape[1])
        score = (x * noise) @ centroid(call).T
        p, expert = probabilities(call, score), masked(call, argmax(score))[:, None]
        gate = np.where(expert >= 0, np.take_along_axis(p, np.maximum(expert, 0), 1), 0.0)
        return Routing(expert, gate, gap(score[call.real]), cache={"p": p, "noise": noise})

    @staticmethod
    def share(load):
        return load / max(load.sum(), 1)

    def losses(self, call, routing, load):
        return {"balance": balance_loss(call, routing.cache["p"], self.share(load))} if call.training else {}

    def backward(self, call, x, routing, load, dgate, scale, grads):
        p, noise = routing.cache["p"], routing.cache["noise"]
        dp = gates_to_experts(dgate, routing.expert, p.shape[1])
        if call.training:
            dp = dp + balance_slope(call, p, self.share(load), scale)
        return noise * scores_backward(call, x * noise, softmax_backward(p, dp), grads)


class GShard:
    """GShard (Lepikhin et al. 2020): the two likeliest, the second one at random in training."""

    def route(self, call, x):
        score = x @ centroid(call).T
        p, both = probabilities(call, score), np.where(call.real[:, None], best(score, 2), -1)
        pair = np.where(both >= 0, np.take_along_axis(p, np.maximum(both, 0), 1), 0.0)
        pair = pair / np.where(call.real, pair.sum(axis=1), 1)[:, None]
        expert, gate, narrow = both.copy(), pair.copy(), gap(score[call.real], 2)
        if call.training and call.config.router["second"] == "random":
            u = call.uniform(random.ROUTER)
            narrow = min(narrow, np.abs(2 * pair[:, 1] - u)[call.real].min(initial=np.inf))
            stays_away = ~(2 * pair[:, 1] > u)
            expert[stays_away, 1], gate[stays_away, 1] = -1, 0
        return Routing(expert, gate, narrow, cache={"p": p, "both": both, "pair": pair})

    @staticmethod
    def shares(call, routing):
        """f of each row's lane: the share of the lane's tokens whose first choice is an expert."""
        f = np.zeros_like(routing.cache["p"])
        for rows in call.lanes():
            first = routing.cache["both"][rows, 0]
            count = np.bincount(first[first >= 0], minlength=f.shape[1])
            f[rows] = count / max(count.sum(), 1)
        return f

    def losses(self, call, routing, load):
        if not call.training:
            return {}
        return {"balance": balance_loss(call, routing.cache["p"], self.shares(call, routing))}

    def backward(self, call, x, routing, load, dgate, scale, grads):
        p, both, pair = (routing.cache[name] for name in ("p", "both", "pair"))
        dp = balance_slope(call, p, self.shares(call, routing), scale) if call.training else np.zeros_like(p)
        d = pair[:, 0] * pair[:, 1] * (dgate[:, 0] - dgate[:, 1])
        slope = gates_to_experts(np.stack([d, -d], axis=1), both, p.shape[1])
        return scores_backward(call, x, softmax_backward(p, dp) + slope, grads)


class ExpertChoice:
    """Expert Choice (Zhou et al. 2022): experts take the tokens of their largest probabilities."""

    @staticmethod
    def slots(config):
        most = int(config.router.get("max_experts", 0))
        return most if 0 < most < config.experts else config.experts

    @staticmethod
    def groups(call):
        """A lane, with `within_sequence` a sequence, or with `causal` the tokens at one position of a lane's sequences."""
        for rows in call.lanes():
            if call.config.router.get("within_sequence") == "true":
                yield from rows.reshape(-1, call.context)
            elif call.config.router["causal"] == "true":
                yield from rows.reshape(-1, call.context).T
            else:
                yield rows

    def takes(self, call, p):
        """Which expert takes which token [N, E], and the narrowest margin."""
        taken, narrow = np.zeros(p.shape, bool), np.inf
        for rows in self.groups(call):
            rows = rows[call.real[rows]]
            share = max(1, int(len(rows) * float(call.config.router["capacity"]) / p.shape[1]))
            for e in range(p.shape[1] if len(rows) else 0):
                order = rows[np.argsort(-p[rows, e], kind="stable")]
                taken[order[:share], e] = p[order[:share], e] > 0
                if share < len(order):
                    narrow = min(narrow, p[order[share - 1], e] - p[order[share], e])
        return taken, narrow

    def route(self, call, x):
        score, k = x @ centroid(call).T, self.slots(call.config)
        p = probabilities(call, score)
        if not call.training and call.config.router["evaluation"] == "tokens":
            each = min(max(int(float(call.config.router["capacity"]) + 0.5), 1), k)
            taken, narrow = np.zeros(p.shape, bool), gap(score[call.real], each)
            np.put_along_axis(taken, best(score, each), True, 1)
            taken &= call.real[:, None]
        else:
            taken, narrow = self.takes(call, p)
        order = best(np.where(taken, p, -1), k)  # by falling gates; what is beyond k falls away
        expert = np.where(np.take_along_axis(taken, order, 1), order, -1)
        gate = np.where(expert >= 0, np.take_along_axis(p, order, 1), 0.0)
        return Routing(expert, gate, narrow, cache={"p": p})

    def losses(self, call, routing, load):
        return {}

    def backward(self, call, x, routing, load, dgate, scale, grads):
        p = routing.cache["p"]
        dp = gates_to_experts(dgate, routing.expert, p.shape[1])
        return scores_backward(call, x, softmax_backward(p, dp), grads)


# ---- choices that are fixed: Hash, replay ----


class Hash:
    """Hash layers (Roller et al. 2021): a function of token ids, gate 1 or the sigmoid of a learned score."""

    @staticmethod
    def slots(config):
        return int(config.router.get("segments", 1))

    def route(self, call, x):
        variant, segments = call.config.router["variant"], self.slots(call.config)
        each = call.config.experts // segments
        own, before = np.maximum(call.token, 0), call.before(1)
        before = np.where(before < 0, own, before)
        expert = np.full((len(own), segments), -1)
        for m in range(segments):
            if variant == "bigram":
                choice = tables.pair(before, own, call.vocabulary, each, call.config.seed, call.layer, m)
            else:
                table = call.params[f"{call.prefix}/router/table"].astype(int).reshape(segments, -1)[m]
                place = np.arange(len(own)) % call.context
                choice = table[{"previous": before, "position": place}.get(variant, own)]
            expert[:, m] = masked(call, m * each + choice)
        if self.learns(call):
            return Routing(expert, sigmoid_gates(x, centroid(call), expert))
        return Routing(expert, (expert >= 0).astype(float))

    @staticmethod
    def learns(call):
        return call.config.router.get("gate", "one") == "sigmoid"

    def losses(self, call, routing, load):
        return {}

    def backward(self, call, x, routing, load, dgate, scale, grads):
        return sigmoid_backward(call, x, routing, dgate, grads) if self.learns(call) else np.zeros_like(x)


class Mask(Switch):
    """MaskMoE (Su et al. 2024): Switch, or top-k, among the experts that a token id sees."""

    @staticmethod
    def slots(config):
        return int(config.router.get("k", 1))

    def route(self, call, x):
        seen = call.params[f"{call.prefix}/router/visible"].astype(int)[np.maximum(call.token, 0)]
        score = np.full((len(x), len(centroid(call))), -np.inf)
        for column in seen.T:
            rows = np.flatnonzero(column >= 0)
            score[rows, column[rows]] = (x[rows] * centroid(call)[column[rows]]).sum(axis=1)
        k = self.slots(call.config)
        p, order = probabilities(call, score), best(score, k)
        expert = np.where(call.real[:, None] & np.isfinite(np.take_along_axis(score, order, 1)), order, -1)
        gate = np.where(expert >= 0, np.take_along_axis(p, np.maximum(expert, 0), 1), 0.0)
        if call.config.router.get("normalise") == "true":
            gate = gate / np.where(call.real, gate.sum(axis=1), 1)[:, None]
        several = (seen >= 0).sum(axis=1) > 1
        return Routing(expert, gate, gap(score[call.real & several], k), cache={"p": p, "several": several})

    def balanced(self, call, routing):
        """Probabilities in the balance loss: those of tokens with one expert are left out where the key says so."""
        with_rare = call.config.router["rare_balance"] == "true"
        return np.where(with_rare | routing.cache["several"][:, None], routing.cache["p"], 0.0)

    def losses(self, call, routing, load):
        if not call.training:
            return {}
        return {"balance": balance_loss(call, self.balanced(call, routing), self.share(load))}

    def backward(self, call, x, routing, load, dgate, scale, grads):
        p, gate = routing.cache["p"], routing.gate
        normalised = call.config.router.get("normalise") == "true"
        dp = np.zeros_like(p) if normalised else gates_to_experts(dgate, routing.expert, p.shape[1])
        if call.training:
            slope = balance_slope(call, p, self.share(load), scale)
            with_rare = call.config.router["rare_balance"] == "true"
            dp = dp + np.where(with_rare | routing.cache["several"][:, None], slope, 0.0)
        dscore = softmax_backward(p, dp)
        if normalised:
            d = gate * (dgate - (gate * dgate).sum(axis=1, keepdims=True))
            dscore = dscore + gates_to_experts(d, routing.expert, p.shape[1])
        return scores_backward(call, x, dscore, grads)


class Replay:
    """The choices of another run's log; what the log does not have goes by the table."""

    def route(self, call, x):
        if call.training and call.recorded is not None:
            expert = np.where(call.recorded < -1, -2 - call.recorded, call.recorded)
        else:
            expert = call.params[f"{call.prefix}/router/table"].astype(int)[np.maximum(call.token, 0)]
        expert = np.where(call.real[:, None], expert, -1)
        sigmoids = call.config.router["gate"] == "sigmoid"
        gate = sigmoid_gates(x, centroid(call), expert) if sigmoids else (expert >= 0).astype(float)
        return Routing(expert, gate)

    def losses(self, call, routing, load):
        return {}

    def backward(self, call, x, routing, load, dgate, scale, grads):
        if call.config.router["gate"] == "one":
            return np.zeros_like(x)
        return sigmoid_backward(call, x, routing, dgate, grads)
