"""What methods share that route by a softmax over the experts: scores, balance loss, gradients."""

import numpy as np


def centroid(call):
    return call.params[f"{call.prefix}/router/centroid"]


def masked(call, expert):
    return np.where(call.real, expert, -1)


def probabilities(call, score):
    """softmax over the experts; 0 for padding and where no score is finite."""
    score = np.where(np.isfinite(score), score, -np.inf)
    top = score.max(axis=1, keepdims=True)
    used = call.real & np.isfinite(top[:, 0])
    p = np.zeros_like(score)
    p[used] = np.exp(score[used] - top[used])
    p[used] /= p[used].sum(axis=1, keepdims=True)
    return p


def softmax_backward(p, dp):
    return p * (dp - (p * dp).sum(axis=1, keepdims=True))


def balance_loss(call, p, share):
    """weight E sum_i f_i P_i, as a sum over tokens: weight E sum_t sum_i f_i p_{t,i}."""
    return call.config.balance_weight * p.shape[1] * (p * share).sum()


def balance_slope(call, p, share, scale):
    return scale * call.config.balance_weight * p.shape[1] * np.broadcast_to(share, p.shape)


def scores_backward(call, x, dscore, grads):
    grads[f"{call.prefix}/router/centroid"] += dscore.T @ x
    return dscore @ centroid(call)


def gates_to_experts(dgate, expert, n_experts):
    """Gradients of p_{t,i} from those of the slots whose gate it is."""
    dp = np.zeros((len(expert), n_experts))
    rows, slots = np.nonzero(expert >= 0)
    dp[rows, expert[rows, slots]] += dgate[rows, slots]
    return dp
