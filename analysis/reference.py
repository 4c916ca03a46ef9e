"""The equations of StableMoE in NumPy, in double precision: a reference to compare with.

Written from the equations (Dai et al. 2022, sections 3.1 and 3.2), not from the C
sources, and for reading rather than speed. Every backward function stands behind its
forward function and quotes the line it differentiates where that is not obvious.

A model is a dict of parameters by their names in a checkpoint (below /param) and a
`Config`. `forward` gives loss terms as sums over the tokens of one micro-batch,
`backward` adds gradients; whoever calls divides once, by the targets of the update:

    terms, cache = forward(params, tokens, targets, config, stage=1)
    backward(grads, params, cache, config, 1 / n_targets)

Letters: S sequences, T context, N = S T tokens, C width, F inner width, H heads,
D = C / H, V vocabulary, E experts, L blocks, M MoE layers.
"""

from dataclasses import dataclass

import numpy as np

NORM_EPSILON = 1e-5


@dataclass
class Config:
    """What the equations need to know beside the parameters' shapes."""

    blocks: int
    heads: int
    scale_embedding: bool = False
    moe_layers: int = 0
    position: str = "middle"
    experts: int = 0
    sublayers: int = 0
    capacity_factor: float = 0.0  # 0: no token is ever dropped
    balance_weight: float = 0.3
    distill_weight: float = 1.0
    lr: float = 1e-3
    beta1: float = 0.9
    beta2: float = 0.98
    epsilon: float = 1e-8
    decay: float = 0.0
    clip: float = 0.0  # 0: gradients are not clipped
    expert_gradient_factor: float = 1.0
    schedule: str = "linear"
    warmup: int = 0
    updates: int = 1

    def moe_after(self):
        """Number of blocks that stand before each MoE layer."""
        count, blocks = self.moe_layers, self.blocks
        if self.position == "scattered":
            return [(i + 1) * blocks // (count + 1) for i in range(count)]
        return [{"middle": blocks // 2, "top": blocks, "bottom": 0}[self.position]] * count

    @staticmethod
    def from_text(text):
        """From the configuration text of a run: used.yml, or the one in a checkpoint."""
        return Config.from_keys(read_keys(text))

    @staticmethod
    def from_keys(key):
        """From dotted names and values, text or JSON's: those of an export."""
        key = {name: str(value).lower() if isinstance(value, bool) else value for name, value in key.items()}
        return Config(
            blocks=int(key["model.blocks"]), heads=int(key["model.heads"]),
            scale_embedding=key["model.scale_embedding"] == "true",
            moe_layers=int(key["moe.layers"]), position=key["moe.position"],
            experts=int(key["moe.experts"]), sublayers=int(key["moe.sublayers"]),
            capacity_factor=float(key["moe.capacity_factor"]),
            balance_weight=float(key["router.stable.balance_weight"]),
            distill_weight=float(key["router.stable.distill_weight"]),
            lr=float(key["optimizer.lr"]), beta1=float(key["optimizer.beta1"]),
            beta2=float(key["optimizer.beta2"]), epsilon=float(key["optimizer.epsilon"]),
            decay=float(key["optimizer.decay"]), clip=float(key["optimizer.clip"]),
            expert_gradient_factor=float(key["optimizer.expert_gradient_factor"]),
            schedule=key["schedule.kind"], warmup=int(key["schedule.warmup"]),
            updates=int(key["train.updates"]))


def read_keys(text):
    """Dotted names and values (as text) of nested `key: value` lines, the YAML that a run writes."""
    keys, path = {}, []
    for line in text.splitlines():
        body = line.split(" #")[0].rstrip()
        name, colon, value = body.strip().partition(":")
        if not colon or name.startswith("#"):
            continue
        indent = len(body) - len(body.lstrip())
        path = [p for p in path if p[0] < indent] + [(indent, name)]
        if value.strip():
            keys[".".join(p[1] for p in path)] = value.strip().strip("'\"")
    return keys


# ---- pieces ----


def sigmoid(x):
    return np.where(x >= 0, 1 / (1 + np.exp(-np.abs(x))), np.exp(-np.abs(x)) / (1 + np.exp(-np.abs(x))))


def log_softmax(x):
    x = x - x.max(axis=-1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))


def norm_forward(x, gamma, beta):
    """Layer norm over the last axis."""
    centred = x - x.mean(axis=-1, keepdims=True)
    rstd = 1 / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + NORM_EPSILON)
    return centred * rstd * gamma + beta, (centred * rstd, rstd)


def norm_backward(dy, gamma, cache):
    xhat, rstd = cache
    dxhat = dy * gamma
    # xhat has mean 0 and length fixed: remove what dxhat has along those two directions.
    dx = rstd * (dxhat - dxhat.mean(axis=-1, keepdims=True)
                 - xhat * (dxhat * xhat).mean(axis=-1, keepdims=True))
    rows = tuple(range(dy.ndim - 1))
    return dx, (dy * xhat).sum(axis=rows), dy.sum(axis=rows)


FFN = ("norm/gamma", "norm/beta", "w1", "b1", "w2", "b2")


def ffn_arrays(params, prefix, expert=None):
    """Parameters of one FFN sublayer, or their views of one expert."""
    arrays = [params[f"{prefix}/{name}"] for name in FFN]
    return arrays if expert is None else [a[expert] for a in arrays]


def ffn_forward(z, arrays):
    """z + W2 relu(W1 LN(z) + b1) + b2, for rows z [N, C]."""
    gamma, beta, w1, b1, w2, b2 = arrays
    u, norm = norm_forward(z, gamma, beta)
    h = np.maximum(u @ w1.T + b1, 0)
    return z + h @ w2.T + b2, (u, norm, h)


def ffn_backward(dy, arrays, grads, cache):
    """The gradient of z; the parameters' are added to grads, arrays in the same order."""
    gamma, _, w1, _, w2, _ = arrays
    u, norm, h = cache
    dpre = (dy @ w2) * (h > 0)
    dx, dgamma, dbeta = norm_backward(dpre @ w1, gamma, norm)
    for grad, value in zip(grads, (dgamma, dbeta, dpre.T @ u, dpre.sum(0), dy.T @ h, dy.sum(0))):
        grad += value
    return dy + dx


def attention_forward(qkv, heads):
    """Causal softmax(q k^T / sqrt(D)) v; qkv [S, T, 3 C], the result [S, T, C]."""
    s, t, c = qkv.shape[0], qkv.shape[1], qkv.shape[2] // 3
    q, k, v = np.moveaxis(qkv.reshape(s, t, 3, heads, c // heads), 2, 0)
    score = np.einsum("sihd,sjhd->shij", q, k) / np.sqrt(c // heads)
    score = np.where(np.tri(t, dtype=bool), score, -np.inf)
    p = np.exp(log_softmax(score))
    return np.einsum("shij,sjhd->sihd", p, v).reshape(s, t, c), (q, k, v, p)


def attention_backward(dout, cache):
    q, k, v, p = cache
    s, t, heads, d = q.shape
    dout = dout.reshape(s, t, heads, d)
    dv = np.einsum("shij,sihd->sjhd", p, dout)
    dp = np.einsum("sihd,sjhd->shij", dout, v)
    dscore = p * (dp - (dp * p).sum(axis=-1, keepdims=True)) / np.sqrt(d)
    dq = np.einsum("shij,sjhd->sihd", dscore, k)
    dk = np.einsum("shij,sihd->sjhd", dscore, q)
    return np.stack([dq, dk, dv], axis=2).reshape(s, t, 3 * heads * d)


# ---- blocks ----


def block_forward(x, params, prefix, heads):
    """x += proj(attention(LN(x))); x += FFN(LN(x)); x [S, T, C]."""
    gamma, beta = (params[f"{prefix}/attention/norm/{name}"] for name in ("gamma", "beta"))
    u, norm = norm_forward(x, gamma, beta)
    qkv = u @ params[f"{prefix}/attention/qkv/weight"].T + params[f"{prefix}/attention/qkv/bias"]
    a, attention = attention_forward(qkv, heads)
    x = x + a @ params[f"{prefix}/attention/proj/weight"].T + params[f"{prefix}/attention/proj/bias"]
    y, ffn = ffn_forward(x.reshape(-1, x.shape[-1]), ffn_arrays(params, f"{prefix}/ffn"))
    return y.reshape(x.shape), (u, norm, a, attention, ffn)


def block_backward(dy, grads, params, prefix, cache):
    u, norm, a, attention, ffn = cache
    c = dy.shape[-1]
    dx = ffn_backward(dy.reshape(-1, c), ffn_arrays(params, f"{prefix}/ffn"),
                      ffn_arrays(grads, f"{prefix}/ffn"), ffn).reshape(dy.shape)
    grads[f"{prefix}/attention/proj/weight"] += np.tensordot(dx, a, axes=((0, 1), (0, 1)))
    grads[f"{prefix}/attention/proj/bias"] += dx.sum(axis=(0, 1))
    dqkv = attention_backward(dx @ params[f"{prefix}/attention/proj/weight"], attention)
    grads[f"{prefix}/attention/qkv/weight"] += np.tensordot(dqkv, u, axes=((0, 1), (0, 1)))
    grads[f"{prefix}/attention/qkv/bias"] += dqkv.sum(axis=(0, 1))
    dnorm, dgamma, dbeta = norm_backward(dqkv @ params[f"{prefix}/attention/qkv/weight"],
                                         params[f"{prefix}/attention/norm/gamma"], norm)
    grads[f"{prefix}/attention/norm/gamma"] += dgamma
    grads[f"{prefix}/attention/norm/beta"] += dbeta
    return dx + dnorm


# ---- the MoE layer ----


def argmax(score):
    """Expert of the largest score, the lower one on ties; what is not finite counts as -inf."""
    return np.argmax(np.where(np.isfinite(score), score, -np.inf), axis=-1)


def gap(score):
    """Smallest distance of a token's best score from its second best: how safe the choice is."""
    top = np.sort(score, axis=-1)
    return float((top[:, -1] - top[:, -2]).min()) if score.shape[0] and score.shape[1] > 1 else np.inf


def keep_first(expert, n_experts, capacity_factor):
    """Which tokens are kept: the first floor(factor T / E) of every expert, in token order."""
    if capacity_factor == 0:
        return expert >= 0
    capacity = int(np.floor(capacity_factor * (expert >= 0).sum() / n_experts))
    kept = np.zeros(expert.shape, dtype=bool)
    for e in range(n_experts):
        kept[np.flatnonzero(expert == e)[:capacity]] = True
    return kept


def moe_forward(x, token, params, prefix, config, stage, frozen_routing):
    """y = x + gate (f(x) - x) for rows x [N, C] of the whole micro-batch (equations 5 to 15).

    frozen_routing: the distilled router chooses, as in stage 2 and in evaluation.
    Returns y, the loss terms (weighted sums over tokens) and the cache.
    """
    real = token >= 0  # padding is routed nowhere
    centroid = params[f"{prefix}/router/centroid"]
    score = x @ centroid.T
    feature = params[f"{prefix}/router/distilled/embedding"][np.where(real, token, 0)]
    distilled_score = feature @ params[f"{prefix}/router/distilled/centroid"].T
    learned, distilled = argmax(score), argmax(distilled_score)
    expert = np.where(real, distilled if frozen_routing else learned, -1)
    rows = np.flatnonzero(real)
    gate = np.zeros(len(x))
    gate[rows] = sigmoid(score[rows, expert[rows]])

    load = np.bincount(expert[rows], minlength=config.experts)
    excess = np.zeros(config.experts)  # c_i, a constant of the loss
    if len(rows):
        excess = (load - len(rows) / config.experts) / (len(rows) / config.experts)
    learning = stage == 1 and not frozen_routing
    terms = {"balance": 0.0, "distill": 0.0}
    if learning:
        terms["balance"] = config.balance_weight * (excess[expert[rows]] * gate[rows]).sum()
        log_p = log_softmax(distilled_score[rows])
        terms["distill"] = -config.distill_weight * log_p[np.arange(len(rows)), learned[rows]].sum()

    kept = keep_first(expert, config.experts, config.capacity_factor)
    delta, caches = np.zeros_like(x), {}
    for e in range(config.experts):
        mine = np.flatnonzero(kept & (expert == e))
        z = x[mine]
        for s in range(config.sublayers):
            z, caches[e, s] = ffn_forward(z, ffn_arrays(params, f"{prefix}/expert/ffn{s}", e))
        delta[mine] = z - x[mine]
    info = {"load": load, "dropped": len(rows) - int(kept.sum()), "expert": expert, "kept": kept,
            "gate": gate, "gap": gap((distilled_score if frozen_routing else score)[rows])}
    cache = (x, token, expert, gate, kept, delta, caches, excess, learned, feature, distilled_score,
             learning)
    return x + gate[:, None] * delta, terms, info, cache


def moe_backward(dy, grads, params, prefix, config, scale, cache):
    (x, token, expert, gate, kept, delta, caches, excess, learned, feature, distilled_score,
     learning) = cache
    rows = np.flatnonzero(token >= 0)
    dx = dy.copy()
    ddelta = gate[:, None] * dy
    for e in range(config.experts):
        mine = np.flatnonzero(kept & (expert == e))
        dz = ddelta[mine]
        for s in reversed(range(config.sublayers)):
            name = f"{prefix}/expert/ffn{s}"
            dz = ffn_backward(dz, ffn_arrays(params, name, e), ffn_arrays(grads, name, e), caches[e, s])
        dx[mine] += dz - ddelta[mine]  # delta = f(x) - x

    dgate = (dy * delta).sum(axis=-1)  # zero where the token was dropped: delta is
    if learning:
        dgate[rows] += scale * config.balance_weight * excess[expert[rows]]
    dscore = np.zeros((len(x), config.experts))
    dscore[rows, expert[rows]] = dgate[rows] * gate[rows] * (1 - gate[rows])
    dx += dscore @ params[f"{prefix}/router/centroid"]
    grads[f"{prefix}/router/centroid"] += dscore.T @ x
    if not learning:
        return dx

    dr = np.exp(log_softmax(distilled_score[rows]))
    dr[np.arange(len(rows)), learned[rows]] -= 1
    dr *= scale * config.distill_weight
    grads[f"{prefix}/router/distilled/centroid"] += dr.T @ feature[rows]
    np.add.at(grads[f"{prefix}/router/distilled/embedding"], token[rows],
              dr @ params[f"{prefix}/router/distilled/centroid"])
    return dx


# ---- the language model ----


def embedding_scale(params, config):
    return np.sqrt(params["embedding/table"].shape[1]) if config.scale_embedding else 1.0


def forward(params, tokens, targets, config, stage, training=True):
    """Loss terms of one micro-batch: sums over tokens, in nats.

    tokens, targets: [S, T]; -1 stands for no token, no target.
    In evaluation, as in stage 2, the distilled router chooses.
    """
    table = params["embedding/table"]
    x = np.where(tokens[..., None] >= 0, embedding_scale(params, config) * table[tokens], 0.0)
    x = x + params["embedding/position"][: tokens.shape[1]]
    steps, terms, info = [], {"task": 0.0, "balance": 0.0, "distill": 0.0}, []
    places = config.moe_after()
    for i in range(config.blocks + 1):
        for m in (m for m, place in enumerate(places) if place == i):
            y, more, seen, cache = moe_forward(x.reshape(-1, x.shape[-1]), tokens.ravel(), params, f"moe{m}",
                                               config, stage, frozen_routing=stage == 2 or not training)
            x = y.reshape(x.shape)
            steps.append((moe_backward, f"moe{m}", cache))
            info.append(seen)
            for name, value in more.items():
                terms[name] += value
        if i < config.blocks:
            x, cache = block_forward(x, params, f"block{i}", config.heads)
            steps.append((block_backward, f"block{i}", cache))
    hidden, norm = norm_forward(x, params["norm/gamma"], params["norm/beta"])
    log_p = log_softmax(hidden @ table.T)
    real = targets >= 0
    target_log_p = np.take_along_axis(log_p, np.maximum(targets, 0)[..., None], -1)[..., 0]
    token_loss = np.where(real, -target_log_p, 0.0)
    terms["task"] = token_loss.sum()
    terms["n_targets"] = int(real.sum())
    return terms, {"tokens": tokens, "targets": targets, "steps": steps, "hidden": hidden, "norm": norm,
                   "log_p": log_p, "token_loss": token_loss, "moe": info}


def backward(grads, params, cache, config, scale):
    """Add scale times the gradient of (task + balance + distill) to grads."""
    table = params["embedding/table"]
    tokens, targets = cache["tokens"], cache["targets"]
    s, t = np.nonzero(targets >= 0)
    dlogits = np.zeros_like(cache["log_p"])
    dlogits[s, t] = np.exp(cache["log_p"][s, t])
    dlogits[s, t, targets[s, t]] -= 1
    dlogits *= scale
    grads["embedding/table"] += np.tensordot(dlogits, cache["hidden"], axes=((0, 1), (0, 1)))
    dx, dgamma, dbeta = norm_backward(dlogits @ table, params["norm/gamma"], cache["norm"])
    grads["norm/gamma"] += dgamma
    grads["norm/beta"] += dbeta
    for step, prefix, step_cache in reversed(cache["steps"]):
        if step is moe_backward:
            rows = dx.reshape(-1, dx.shape[-1])
            dx = moe_backward(rows, grads, params, prefix, config, scale, step_cache).reshape(dx.shape)
        else:
            dx = block_backward(dx, grads, params, prefix, step_cache)
    s, t = np.nonzero(tokens >= 0)
    np.add.at(grads["embedding/table"], tokens[s, t], embedding_scale(params, config) * dx[s, t])
    grads["embedding/position"][: tokens.shape[1]] += dx.sum(axis=0)


# ---- one update ----


def is_frozen(name, stage):
    """Stage 2 freezes the distilled router: no gradient, no step, no part in the norm."""
    return stage == 2 and "/router/distilled/" in name


def gradients(params, micro_batches, config, stage):
    """Mean losses and gradients of one update; micro_batches is a list of (tokens, targets)."""
    n_targets = sum(int((targets >= 0).sum()) for _, targets in micro_batches)
    grads = {name: np.zeros_like(value) for name, value in params.items() if not is_frozen(name, stage)}
    losses, info = {"task": 0.0, "balance": 0.0, "distill": 0.0}, []
    for tokens, targets in micro_batches:
        terms, cache = forward(params, tokens, targets, config, stage)
        backward(grads, params, cache, config, 1 / n_targets)
        info.append(cache["moe"])
        for name in losses:
            losses[name] += terms[name] / n_targets
    for name, grad in grads.items():
        if "/expert/" in name:
            grad *= config.expert_gradient_factor
    return losses, grads, info


def learning_rate(config, update):
    """Of the zero-based update."""
    if update < config.warmup:
        return config.lr * (update + 1) / config.warmup
    if config.schedule == "linear":
        return config.lr * (config.updates - update) / (config.updates - config.warmup)
    if config.schedule == "inverse_sqrt":
        return config.lr * np.sqrt(max(config.warmup, 1) / (update + 1))
    return config.lr


def gradient_norm(grads):
    return np.sqrt(sum((grad**2).sum() for grad in grads.values()))


def clip_factor(norm, config):
    return min(1.0, config.clip / norm) if config.clip > 0 and norm > 0 else 1.0


def adam(params, grads, moments, decayed, config, update, factor):
    """One Adam step in place, with decoupled decay of the parameters named in decayed.

    moments: dict of (m, v) by name, begun empty; factor: of the gradients, from clipping.
    """
    lr, step = learning_rate(config, update), update + 1
    for name, grad in grads.items():
        w, g = params[name], factor * grad
        m, v = moments.setdefault(name, (np.zeros_like(w), np.zeros_like(w)))
        m[...] = config.beta1 * m + (1 - config.beta1) * g
        v[...] = config.beta2 * v + (1 - config.beta2) * g**2
        decay = lr * config.decay * w if name in decayed else 0.0
        mhat, vhat = m / (1 - config.beta1**step), v / (1 - config.beta2**step)
        w -= lr * mhat / (np.sqrt(vhat) + config.epsilon) + decay
