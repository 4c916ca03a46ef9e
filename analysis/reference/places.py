"""Methods of two levels, and random experts: SMILE, LocMoE, THOR. As routers.py describes methods."""

import numpy as np

from . import counter_random as random
from .call import Routing, argmax, gap
from .routers import Switch
from .scores import balance_loss, balance_slope, gates_to_experts, masked, probabilities, softmax_backward


class Smile(Switch):
    """SMILE (He et al. 2022): the likeliest node, then the likeliest place on it."""

    @staticmethod
    def parts(call):
        """W_node [n, C], W_place [m or n m, C], whether each node has its own places, m."""
        nodes, experts, width = call.config.nodes, call.config.experts, call.params["embedding/table"].shape[1]
        node, place = (call.params.get(f"{call.prefix}/router/{name}", np.zeros((1, width)))
                       for name in ("node", "place"))
        return node, place, call.config.router["places"] == "per_node" and nodes < experts, experts // nodes

    def route(self, call, x):
        w_node, w_place, own, m = self.parts(call)
        u = x @ w_node.T
        node = argmax(u)
        v = x @ w_place.T
        if own:
            v = np.take_along_axis(v.reshape(len(x), -1, m), node[:, None, None], 1)[:, 0]
        place, p, q = argmax(v), probabilities(call, u), probabilities(call, v)
        expert = masked(call, node * m + place)[:, None]
        at = np.arange(len(x))
        gate = np.where(call.real, p[at, node] * q[at, place], 0.0)[:, None]
        narrow = min(gap(u[call.real]), gap(v[call.real]))
        return Routing(expert, gate, narrow, cache={"p": p, "q": q, "node": node, "place": place})

    def shares(self, call, routing, load):
        """f of the nodes [n], and h of the places for each row [N, m]."""
        m = self.parts(call)[3]
        table = load.reshape(-1, m)
        of_node = table.sum(axis=1, keepdims=True)
        if call.config.router["place_balance_over"] == "all":
            h = np.broadcast_to(table.sum(axis=0) / max(load.sum(), 1), table.shape)
        else:
            h = table / np.maximum(of_node, 1)
        return of_node[:, 0] / max(load.sum(), 1), h[routing.cache["node"]]

    @staticmethod
    def place_weight(call):
        return float(call.config.router["place_balance_weight"])

    def losses(self, call, routing, load):
        if not call.training:
            return {"place_balance": 0.0}
        (f, h), q = self.shares(call, routing, load), routing.cache["q"]
        return {"balance": balance_loss(call, routing.cache["p"], f),
                "place_balance": self.place_weight(call) * q.shape[1] * (h * q).sum()}

    def backward(self, call, x, routing, load, dgate, scale, grads):
        w_node, w_place, own, m = self.parts(call)
        p, q, node, place = (routing.cache[name] for name in ("p", "q", "node", "place"))
        f, h = self.shares(call, routing, load)
        at, d = np.arange(len(x)), np.where(call.real, dgate[:, 0], 0.0)
        dp, dq = balance_slope(call, p, f, scale).copy(), scale * self.place_weight(call) * m * h
        dp[at, node] += d * q[at, place]
        dq[at, place] += d * p[at, node]
        du, dv = softmax_backward(p, dp), softmax_backward(q, dq)
        if own:
            spread = np.zeros((len(x), len(w_node), m))
            spread[at, node] = dv
            dv = spread.reshape(len(x), -1)
        for name, d in (("node", du), ("place", dv)):
            if f"{call.prefix}/router/{name}" in grads:  # one choice is none, and has no parameter
                grads[f"{call.prefix}/router/{name}"] += d.T @ x
        return du @ w_node + dv @ w_place


class Local(Switch):
    """LocMoE (Li et al. 2024): means of groups of the hidden state are the scores; losses keep rows on their node."""

    def route(self, call, x):
        router, mean = call.config.router, x.reshape(len(x), call.config.experts, -1).mean(axis=2)
        relu = router["relu"] == "true"
        score = np.maximum(mean, 0) if relu else mean
        by = mean if router["ties"] == "mean" else score
        p, expert = probabilities(call, score), masked(call, argmax(by))[:, None]
        gate = np.where(expert >= 0, np.take_along_axis(p, np.maximum(expert, 0), 1), 0.0)
        clear = call.real & ((by > 0).any(axis=1) | (not relu) | (router["ties"] == "mean"))
        narrow = gap(by[clear])
        if relu:
            narrow = min(narrow, np.abs(mean[call.real]).min())
        return Routing(expert, gate, narrow, cache={"p": p, "slope": (mean > 0) if relu else np.ones(mean.shape)})

    @staticmethod
    def wanted(call, lane):
        """D_l [E] of a lane; None where its node has no expert."""
        config, e = call.config, call.config.experts
        local = np.arange(e) * config.nodes // e == lane * config.nodes // config.lanes
        if not local.any():
            return None
        share = float(config.router["remote_share"]) if not local.all() else 0.0
        return np.where(local, (1 - share) / local.sum(), share / max((~local).sum(), 1))

    def locality(self, call, routing):
        """KL(D_c || D_l) times its rows, summed over lanes, and log(D_c / D_l) of each row."""
        p, total, slope = routing.cache["p"], 0.0, np.zeros(routing.cache["p"].shape)
        for lane, rows in enumerate(call.lanes()):
            wanted, n = self.wanted(call, lane), call.real[rows].sum()
            if wanted is None or n == 0:
                continue
            mean = p[rows].sum(axis=0) / n
            slope[rows] = np.log(mean / wanted)
            total += n * (mean * np.log(mean / wanted)).sum()
        return total, slope

    @staticmethod
    def weight(call):
        return float(call.config.router["locality_weight"])

    def losses(self, call, routing, load):
        if not call.training:
            return {"locality": 0.0}
        return {"balance": balance_loss(call, routing.cache["p"], self.share(load)),
                "locality": self.weight(call) * self.locality(call, routing)[0]}

    def backward(self, call, x, routing, load, dgate, scale, grads):
        p = routing.cache["p"]
        dp = gates_to_experts(dgate, routing.expert, p.shape[1]) + balance_slope(call, p, self.share(load), scale)
        dp = dp + scale * self.weight(call) * self.locality(call, routing)[1]
        dmean = softmax_backward(p, dp) * routing.cache["slope"]
        group = x.shape[1] // p.shape[1]
        return np.repeat(dmean / group, group, axis=1)


class Thor:
    """THOR (Zuo et al. 2021): experts drawn at random, in training apart for two copies of each sequence."""

    EVALUATION = 0xFFFFFFFF  # in place of the update

    @staticmethod
    def option(call, name):
        return call.config.router[name]

    def draw(self, call, unit, number, n):
        update = call.update if call.training else self.EVALUATION
        index = (np.asarray(unit) * 2 + number) * call.config.moe_layers + call.layer
        u = random.uniform(call.config.seed, random.ROUTER, update, index)
        return np.minimum((u * n).astype(int), n - 1)

    def trained(self, call):
        """The expert of each row: copies of a sequence follow one another."""
        n, t, copies, experts = len(call.token), call.context, call.config.copies, call.config.experts
        row = np.arange(n)
        copy, first = row // t % copies, row // (t * copies) * (t * copies)
        unit = {"batch": np.full(n, call.micro_batch),
                "lane": call.micro_batch * call.config.lanes + row // (n // call.config.lanes),
                "sequence": call.micro_batch * n + first,
                "token": call.micro_batch * n + first + row % t}[self.option(call, "draw")]
        drawn = self.draw(call, unit, copy, experts)
        if self.option(call, "distinct") == "false":
            return drawn
        other = (self.draw(call, unit, 0, experts) + 1 + self.draw(call, unit, copy, experts - 1)) % experts
        return np.where(copy == 0, drawn, other)

    def evaluated(self, call):
        t, row = call.context, np.arange(len(call.token))
        unit = {"sequence": row // t, "place": row % t,
                "token": row // t * call.config.context + row % t}[self.option(call, "evaluation_draw")]
        return self.draw(call, unit, 0, call.config.experts)

    def route(self, call, x):
        evaluation, experts = self.option(call, "evaluation"), call.config.experts
        expert = np.full((len(x), experts if evaluation == "mean" else 1), -1)
        if call.training:
            expert[:, 0] = self.trained(call)
        elif evaluation == "mean":
            expert[:] = np.arange(experts)
        else:
            expert[:, 0] = int(self.option(call, "expert")) if evaluation == "one" else self.evaluated(call)
        expert = np.where(call.real[:, None], expert, -1)
        return Routing(expert, np.where(expert >= 0, 1 if call.training else 1 / expert.shape[1], 0.0))

    def losses(self, call, routing, load):
        return {"consistency": 0.0} if call.config.copies > 1 else {}

    def backward(self, call, x, routing, load, dgate, scale, grads):
        return np.zeros_like(x)
