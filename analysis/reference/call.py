"""One call of a router: what it may look at beside the hidden states, and what it decides."""

from dataclasses import dataclass, field

import numpy as np

from . import counter_random as random


@dataclass
class Call:
    """A micro-batch of one MoE layer."""

    config: object
    params: dict
    prefix: str  # "moe0"
    layer: int
    token: np.ndarray  # [N] ids, -1: padding
    context: int  # T
    stage: int = 1
    training: bool = True
    update: int = 0
    micro_batch: int = 0
    recorded: np.ndarray = None  # [N, K] of the log that is replayed
    previous: object = None  # Call of the MoE layer before
    state: np.ndarray = None  # [N, P] that the router hands on to that of the next MoE layer
    dstate: np.ndarray = None  # its gradient, from the next MoE layer; None: there is none

    @property
    def real(self):
        return self.token >= 0

    @property
    def learning(self):
        """Whether the routing itself is learned: stage 1 of the methods with two stages."""
        return self.training and self.stage == 1

    @property
    def vocabulary(self):
        return self.params["embedding/table"].shape[0]

    def lanes(self):
        """Rows of each lane: lanes are equal parts of a micro-batch, one after the other."""
        return np.split(np.arange(len(self.token)), self.config.lanes)

    def before(self, back):
        """The token id `back` places before each row in its sequence; -1 where there is none."""
        row = np.arange(len(self.token))
        return np.where(row % self.context >= back, self.token[np.maximum(row - back, 0)], -1)

    def index(self):
        """A number for each row that no other token of the update has in any MoE layer."""
        n = len(self.token)
        return (self.micro_batch * n + np.arange(n)) * self.config.moe_layers + self.layer

    def uniform(self, purpose):
        return random.uniform(self.config.seed, purpose, self.update, self.index())


@dataclass
class Routing:
    """What a router decides, before capacity: expert [N, K] (-1: slot unused) and gate [N, K]."""

    expert: np.ndarray
    gate: np.ndarray
    gap: float = np.inf  # narrowest difference that decided a choice
    learned: np.ndarray = None  # [N] where a method has both choices and both are computed
    distilled: np.ndarray = None
    cache: dict = field(default_factory=dict)


def argmax(score):
    """Expert of the largest score, the lower one on ties; what is not finite counts as -inf."""
    return np.argmax(np.where(np.isfinite(score), score, -np.inf), axis=-1)


def gap(score, k=1):
    """Smallest distance in a row between two of its k + 1 best scores: how safe choice and order are."""
    k = min(k, score.shape[1] - 1)
    if score.shape[0] == 0 or k < 1:
        return np.inf
    top = -np.sort(-score, axis=-1)[:, : k + 1]
    finite = np.isfinite(top[:, 1:])  # the others are never chosen
    return float(np.where(finite, top[:, :-1] - np.where(finite, top[:, 1:], 0), np.inf).min())


def best(score, k):
    """The k experts of the largest scores of each row in falling order, the lower expert on ties."""
    return np.argsort(-score, axis=-1, kind="stable")[:, :k]
