"""SparseMixer (Liu et al. 2023) and SparseMixer-v2 (GRIN, Liu et al. 2024): sampled experts, estimated gradients."""

import numpy as np

from . import counter_random as random
from .call import Routing
from .scores import (balance_slope, centroid, gates_to_experts, probabilities, scores_backward,
                     softmax_backward)
from .top_choice import TopK

# Probability that a drawn expert counts whole; what it counts else, None: uniform; factor of its gate's gradient;
# temperature of the scores.
ESTIMATORS = {"v1": (0.5, 0.5, 2, 1), "v1_first": (1, 1, 2, 1), "v1_uniform": (0.5, None, 2, 1),
              "v2": (0.25, 1 / 3, 1, 1), "v2_star": (0.625, 1 / 3, 2, 2), "plain": (1, 1, 1, 1)}


class SparseMixer(TopK):
    """Balance over batch, lane or sequence and z loss are those of top-k."""

    @staticmethod
    def kept(call, score, best):
        epsilon, top = float(call.config.router["epsilon"]), score[np.arange(len(score)), best][:, None]
        with np.errstate(invalid="ignore", divide="ignore"):
            if call.config.router["mask"] == "paper":
                return np.isfinite(score) & (top - score <= epsilon * (np.abs(score) + np.abs(top)))
            return np.isfinite(score) & ~((top - score) / np.maximum(np.abs(score), top) > 2 * epsilon)

    def numbers(self, call, rounds, j, n_experts, n):
        index = (call.index() * rounds + j)[:, None] * (n_experts + 2) + np.arange(n_experts + 2)
        return random.uniform(call.config.seed, random.ROUTER, call.update, index)

    def route(self, call, x):
        rounds, rows = int(call.config.router["k"]), np.arange(len(x))
        whole, other, _, temperature = ESTIMATORS[call.config.router["version"]]
        score = x @ centroid(call).T + call.params.get(f"{call.prefix}/router/offset", 0.0)
        left, narrow, experts, factors, softmaxes = score.copy(), np.inf, [], [], []
        for j in range(rounds):
            best = np.argmax(left, axis=1)
            kept = self.kept(call, left, best)
            p = probabilities(call, np.where(kept, left / temperature, -np.inf))
            expert, s = best, np.ones(len(x))
            if call.training:
                u = self.numbers(call, rounds, j, score.shape[1], len(x))
                value = np.where(kept, left / temperature - np.log(-np.log1p(-u[:, :score.shape[1]])), -np.inf)
                expert, coin, point = np.argmax(value, axis=1), u[:, -2], u[:, -1]
                s = np.where(coin < whole, 1.0, point if other is None else other)
                if call.config.router["best_whole"] == "true":
                    s = np.where(expert == best, 1.0, s)
                order = -np.sort(-value[call.real], axis=1)
                narrow = min(narrow, (order[:, 0] - order[:, 1]).min(initial=np.inf))
            experts.append(np.where(call.real, expert, -1))
            factors.append(s), softmaxes.append(p)
            left[rows, expert] = -np.inf
        expert, s = np.stack(experts, axis=1), np.stack(factors, axis=1)
        picked = np.stack([p[rows, e] for p, e in zip(softmaxes, np.maximum(expert, 0).T)], axis=1)
        gate = np.where(expert >= 0, s * picked, 0.0)
        on_all = call.config.router["balance_on"] == "all"
        p = probabilities(call, score) if on_all else softmaxes[0]
        return Routing(expert, gate, narrow, cache={"p": p, "draws": softmaxes, "s": s, "picked": picked,
                                                    "score": score, "on_all": on_all})

    def expert_gates(self, call, routing):
        """What gradients are multiplied by on their way into the experts."""
        if call.config.router["expert_gradient"] == "gate":
            return routing.gate
        factor = ESTIMATORS[call.config.router["version"]][2]
        return np.where(routing.expert >= 0, factor * routing.cache["picked"], 0.0)

    def backward(self, call, x, routing, load, dgate, scale, grads):
        _, _, c, temperature = ESTIMATORS[call.config.router["version"]]
        cache, score = routing.cache, routing.cache["score"]
        slope = balance_slope(call, cache["p"], self.share(call, routing, load), scale) if call.training \
            else np.zeros_like(score)
        dscore = softmax_backward(cache["p"], slope) if cache["on_all"] else np.zeros_like(score)
        for j, p in enumerate(cache["draws"]):
            dp = gates_to_experts(c * dgate[:, j:j + 1], routing.expert[:, j:j + 1], p.shape[1])
            if j == 0 and not cache["on_all"]:
                dp = dp + slope
            dscore = dscore + softmax_backward(p, dp) / temperature
        if self.z_weight(call) and call.training:
            log_sum = self.log_sum(call, score)[:, None]
            dscore = dscore + 2 * scale * self.z_weight(call) * log_sum * np.exp(score - log_sum)
        if f"{call.prefix}/router/offset" in grads:
            grads[f"{call.prefix}/router/offset"] += dscore.sum(axis=0)
        return scores_backward(call, x, dscore, grads)
