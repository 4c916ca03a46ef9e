"""The equations of sublayers that models other than the paper's are made of, in NumPy and double precision.

As in reference.py: every backward function stands behind its forward function, written
from the equations and for reading.

Letters: N rows, S sequences, T rows of a sequence, C width, F inner width, H heads,
D width of a head, V vocabulary.
"""

import math

import numpy as np

RMS_EPSILON = 1e-5


def rms_norm_forward(x, gamma):
    """x / sqrt(mean of x^2) over the last axis, times gamma."""
    rrms = 1 / np.sqrt((x**2).mean(axis=-1, keepdims=True) + RMS_EPSILON)
    return x * rrms * gamma, (x, rrms)


def rms_norm_backward(dy, gamma, cache):
    x, rrms = cache
    xhat = x * rrms
    dxhat = dy * gamma
    # The length of xhat is fixed: remove what dxhat has along it.
    dx = rrms * (dxhat - xhat * (dxhat * xhat).mean(axis=-1, keepdims=True))
    return dx, (dy * xhat).sum(axis=tuple(range(dy.ndim - 1)))


def normal_distribution(x):
    return np.vectorize(lambda v: math.erfc(-v / math.sqrt(2)) / 2, otypes=[float])(x)


def gelu_forward(x):
    """x Phi(x), in the exact form."""
    return x * normal_distribution(x), x


def gelu_backward(dy, x):
    return dy * (normal_distribution(x) + x * np.exp(-(x**2) / 2) / np.sqrt(2 * np.pi))


def swiglu_forward(ab):
    """silu(a) b for rows [a, b] of 2 F."""
    a, b = np.split(ab, 2, axis=-1)
    gate = 1 / (1 + np.exp(-a))
    return a * gate * b, (a, b, gate)


def swiglu_backward(dh, cache):
    a, b, gate = cache
    da = dh * b * (gate + a * gate * (1 - gate))
    return np.concatenate([da, dh * a * gate], axis=-1)


def rope_angles(position, d, base=10000.0):
    """[N, D / 2] for positions [N]."""
    return position[:, None] * base ** (-2 * np.arange(d // 2) / d)


def rope_forward(x, angles):
    """x [N, H, D] turned by angles [N, D / 2], number i of a head paired with i + D / 2.

    The gradient of x is the gradient of the result turned by -angles.
    """
    a, b = np.split(x, 2, axis=-1)
    cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)
