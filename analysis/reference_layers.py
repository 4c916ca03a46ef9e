"""The equations of sublayers that models other than the paper's are made of, in NumPy and double precision.

As in reference.py: every backward function stands behind its forward function, written
from the equations and for reading.

Letters: N rows, S sequences, T rows of a sequence, C width, F inner width, H heads,
D width of a head, V vocabulary.
"""

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
