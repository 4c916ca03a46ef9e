"""Methods that send a token to the k best of some scores: top-k, and RMoE, which makes them by a recurrent cell."""

import numpy as np

from .call import Routing, best, gap
from .layers import sigmoid
from .scores import (balance_loss, balance_slope, centroid, gates_to_experts, probabilities, scores_backward,
                     softmax_backward)


class TopK:
    """The k likeliest experts (Shazeer et al. 2017), with the balance loss of Switch over all choices.

    And what came later: gates of sigmoids, shares of the load over a lane or a sequence, a bias on the choice in
    place of a loss (Wang et al. 2024), the z loss (Zoph et al. 2022), experts in turn.
    """

    @staticmethod
    def option(call, name, default):
        return call.config.router.get(name, default)

    def score(self, call, x):
        return x @ centroid(call).T

    def is_sigmoid(self, call):
        return self.option(call, "scores", "softmax") == "sigmoid"

    def route(self, call, x):
        k, score = int(call.config.router["k"]), self.score(call, x)
        usable = call.real[:, None] & np.isfinite(score)
        s = np.where(usable, sigmoid(np.where(usable, score, 0)), 0.0) if self.is_sigmoid(call) \
            else probabilities(call, score)
        order = score
        if float(self.option(call, "bias_rate", 0)):
            order = np.where(usable, s + call.params[f"{call.prefix}/router/bias"], -np.inf)
        expert, narrow = best(order, k), gap(order[call.real], k)
        if self.option(call, "forced_balance", "false") == "true":
            place = call.micro_batch * len(x) + np.arange(len(x))
            expert, narrow = (place[:, None] * k + np.arange(k)) % score.shape[1], np.inf
        expert = np.where(call.real[:, None], expert, -1)
        gate = np.where(expert >= 0, np.take_along_axis(s, np.maximum(expert, 0), 1), 0.0)
        if call.config.router["normalise"] == "true":
            gate = gate / np.where(call.real, gate.sum(axis=1), 1)[:, None]
        p = s / np.where(call.real, s.sum(axis=1), 1)[:, None]
        return Routing(expert, gate, narrow, cache={"p": p, "s": s, "score": score})

    def share(self, call, routing, load):
        """f of each row [N, E] or of all [E]: shares of the load among the tokens that the loss evens out."""
        over = self.option(call, "balance_over", "batch")
        if over == "batch":
            return load / max(load.sum(), 1)
        rows = np.arange(len(routing.expert))
        f = np.zeros(routing.cache["p"].shape)
        for part in call.lanes() if over == "lane" else rows.reshape(-1, call.context):
            expert = routing.expert[part]
            f[part] = np.bincount(expert[expert >= 0], minlength=f.shape[1]) / max((expert >= 0).sum(), 1)
        return f

    def z_weight(self, call):
        return float(self.option(call, "z_loss_weight", 0))

    @staticmethod
    def log_sum(call, score):
        """log sum_e exp(z_e) [N]; 0 for padding."""
        return np.where(call.real, np.log(np.exp(score).sum(axis=1)), 0.0)

    def losses(self, call, routing, load):
        if not call.training:
            return {"z_loss": 0.0} if self.z_weight(call) else {}
        terms = {"balance": balance_loss(call, routing.cache["p"], self.share(call, routing, load))}
        if self.z_weight(call):
            terms["z_loss"] = self.z_weight(call) * (self.log_sum(call, routing.cache["score"])**2).sum()
        return terms

    def backward(self, call, x, routing, load, dgate, scale, grads):
        p, s, score, gate = (*(routing.cache[name] for name in ("p", "s", "score")), routing.gate)
        dp = balance_slope(call, p, self.share(call, routing, load), scale) if call.training else np.zeros_like(p)
        if call.config.router["normalise"] == "true":
            chosen = np.where(routing.expert >= 0, np.take_along_axis(s, np.maximum(routing.expert, 0), 1), 1)
            ds = (dgate - (gate * dgate).sum(axis=1, keepdims=True)) * gate / chosen
        else:
            ds = dgate
        ds = gates_to_experts(ds, routing.expert, p.shape[1])
        if self.is_sigmoid(call):  # p = s / sum s
            total = np.where(call.real, s.sum(axis=1), 1)[:, None]
            dscore = s * (1 - s) * (ds + (dp - (p * dp).sum(axis=1, keepdims=True)) / total)
        else:
            dscore = softmax_backward(p, dp + ds)
        if self.z_weight(call) and call.training:
            log_sum = self.log_sum(call, score)[:, None]
            dscore = dscore + 2 * scale * self.z_weight(call) * log_sum * np.exp(score - log_sum)
        return self.to_input(call, x, routing, dscore, grads)

    @staticmethod
    def to_input(call, x, routing, dscore, grads):
        return scores_backward(call, x, dscore, grads)


class Recurrent(TopK):
    """RMoE (Qiu et al. 2024): top-k on scores of a state that a token carries from MoE layer to MoE layer."""

    CELL = "moe/router/cell"

    def cell(self, call):
        return call.config.router["cell"]

    def before(self, call, n):
        """The state of the MoE layer before; None: zero."""
        carried = self.cell(call) != "mlp" and call.config.router["recurrence"] != "none"
        return call.previous.state if carried and call.previous is not None else None

    def score(self, call, x):
        projection, head = (call.params[f"{call.prefix}/router/{name}"] for name in ("projection", "head"))
        v, h = x @ projection.T, self.before(call, len(x))
        h = np.zeros((len(x), len(projection))) if h is None else h
        if self.cell(call) == "mlp":
            call.state, call.kept = np.tanh(v), (v,)
            return call.state @ head.T
        w, b, u, c = (call.params[f"{self.CELL}/{name}"] for name in
                      ("input/weight", "input/bias", "hidden/weight", "hidden/bias"))
        own, old = v @ w.T + b, h @ u.T + c
        if self.cell(call) == "rnn":
            call.state, call.kept = np.tanh(own + old), (v, h)
        else:
            (a_r, a_z, a_n), (b_r, b_z, b_n) = (np.split(part, 3, axis=1) for part in (own, old))
            r, z = sigmoid(a_r + b_r), sigmoid(a_z + b_z)
            n = np.tanh(a_n + r * b_n)
            call.state, call.kept = (1 - z) * n + z * h, (v, h, r, z, n, b_n)
        return call.state @ head.T

    def to_input(self, call, x, routing, dscore, grads):
        projection, head = (call.params[f"{call.prefix}/router/{name}"] for name in ("projection", "head"))
        grads[f"{call.prefix}/router/head"] += dscore.T @ call.state
        dh = dscore @ head + (0.0 if call.dstate is None else call.dstate)
        if self.cell(call) == "mlp":
            v, = call.kept
            dv = dh * (1 - call.state**2)
        else:
            v, h = call.kept[:2]
            if self.cell(call) == "rnn":
                dold = down = dh * (1 - call.state**2)
                direct = 0.0
            else:
                _, _, r, z, n, b_n = call.kept
                d_n, d_z = dh * (1 - z) * (1 - n**2), dh * (h - n) * z * (1 - z)
                d_r = d_n * b_n * r * (1 - r)
                down, dold = np.hstack([d_r, d_z, d_n]), np.hstack([d_r, d_z, d_n * r])
                direct = dh * z
            for name, gradient in (("input/weight", down.T @ v), ("input/bias", down.sum(0)),
                                   ("hidden/weight", dold.T @ h), ("hidden/bias", dold.sum(0))):
                grads[f"{self.CELL}/{name}"] += gradient
            dv = down @ call.params[f"{self.CELL}/input/weight"]
            if call.config.router["recurrence"] == "full" and call.previous is not None:
                call.previous.dstate = direct + dold @ call.params[f"{self.CELL}/hidden/weight"]
        grads[f"{call.prefix}/router/projection"] += dv.T @ x
        return dv @ projection
