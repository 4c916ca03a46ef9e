"""The program's random numbers: functions of (seed, purpose, update, index), written from the definition.

Philox4x32-10: J. Salmon, M. Moraes, R. Dror, D. Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
The counter is (index low, index high, update, purpose), the key is the seed.
"""

import numpy as np

INIT, ORDER, JITTER, ROUTER = 1, 2, 3, 8  # purposes; include/stablemoe/random.h has all

_MULTIPLIER = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (0x9E3779B9, 0xBB67AE85)
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)


def philox(seed, purpose, update, index):
    """The four 32-bit words (as uint64) of each index."""
    index = np.asarray(index, dtype=np.uint64)
    c = [index & _LOW, index >> _HALF, np.full_like(index, update & 0xFFFFFFFF), np.full_like(index, purpose)]
    key = [seed & 0xFFFFFFFF, seed >> 32]
    for _ in range(10):
        p0, p1 = c[0] * _MULTIPLIER[0], c[2] * _MULTIPLIER[1]
        c = [(p1 >> _HALF) ^ c[1] ^ np.uint64(key[0]), p1 & _LOW,
             (p0 >> _HALF) ^ c[3] ^ np.uint64(key[1]), p0 & _LOW]
        key = [(k + w) & 0xFFFFFFFF for k, w in zip(key, _WEYL)]
    return c


def bits(seed, purpose, update, index):
    """64 random bits of each index."""
    c = philox(seed, purpose, update, index)
    return c[1] << _HALF | c[0]


def _unit(word):
    return (word >> np.uint64(11)).astype(np.float64) * 2.0**-53


def uniform(seed, purpose, update, index):
    """In [0, 1), 53 bits."""
    return _unit(bits(seed, purpose, update, index))


def normal(seed, purpose, update, index):
    """Standard normal, by Box and Muller."""
    c = philox(seed, purpose, update, index)
    radius = np.sqrt(-2 * np.log(1 - _unit(c[1] << _HALF | c[0])))
    return radius * np.cos(2 * np.pi * _unit(c[3] << _HALF | c[2]))


def permute(seed, purpose, update, n, i):
    """Image of i under a permutation of 0 .. n - 1: six Feistel rounds on the next power of four, walked
    until the image is below n."""
    half = 1
    while 4**half < n:
        half += 1
    mask = 2**half - 1
    while True:
        left, right = i >> half, i & mask
        for turn in range(6):
            mixed = int(bits(seed, purpose, update, turn << 32 | right)) & mask
            left, right = right, left ^ mixed
        i = left << half | right
        if i < n:
            return i


def hash_text(text):
    """32-bit FNV-1a."""
    value = 2166136261
    for byte in text.encode():
        value = (value ^ byte) * 16777619 & 0xFFFFFFFF
    return value
