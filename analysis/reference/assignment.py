"""The auction of BASE layers (Lewis et al. 2021) as doc/methods/base.md states it."""

import numpy as np

ROUNDS, RETENTION = 500, 100


def shares(score):
    """How many tokens each expert takes: an even share, and one more for those wanted most."""
    n, e = score.shape
    size = np.full(e, n // e)
    wanted = np.bincount(score.argmax(axis=1), minlength=e)
    size[np.argsort(-wanted, kind="stable")[: n % e]] += 1
    return size


def auction(score, margins=None):
    """Expert of each row of score [n, E]; all experts take shares(score).

    margins: a list that gets the narrowest differences that decided a bid or a sale.
    """
    n, e = score.shape
    finite = np.where(np.isfinite(score), score, np.nan)
    low, high = (np.nanmin(finite), np.nanmax(finite)) if np.isfinite(finite).any() else (0.0, 0.0)
    value = np.where(np.isfinite(score), score, low) - high
    size = shares(np.where(np.isfinite(score), score, low))
    if n == 0 or e == 1 or n == 1:
        return np.argsort(-size, kind="stable")[np.zeros(n, int)]
    eps = max((high - low) / 50, 1e-4)
    price, holder = np.zeros(n), np.full(n, -1)
    for turn in range(ROUNDS):
        highest, winner = np.zeros(n), np.full(n, -1)
        for i in range(e):
            if size[i] == 0:
                continue
            held, strict = holder == i, turn < RETENTION
            worth = np.where(held, np.inf if strict else value[:, i], value[:, i] - price)
            order = np.argsort(-worth, kind="stable")
            taken, left_out = order[: size[i]], worth[order[size[i]]]
            bid = np.where(held[taken] & strict, eps, worth[taken] - left_out + eps)
            if margins is not None and np.isfinite(worth[taken[-1]]):
                margins.append(worth[taken[-1]] - left_out)
            if margins is not None:
                other = highest[taken] > 0
                margins.extend(np.abs(bid - highest[taken])[other])
            better = bid > highest[taken]
            highest[taken[better]], winner[taken[better]] = bid[better], i
        price, holder = price + highest, winner
        if (winner >= 0).all():
            return winner
    room = size - np.bincount(winner[winner >= 0], minlength=e)
    for t in np.flatnonzero(winner < 0):
        winner[t] = np.argmax(np.where(room > 0, value[t], -np.inf))
        room[winner[t]] -= 1
    return winner
