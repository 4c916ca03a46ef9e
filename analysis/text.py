"""Token ids as text: the pieces of a corpus."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("HDF5_USE_FILE_LOCKING", "FALSE")

import h5py
import numpy as np

BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
SPACE = "\u2581"
"""What SentencePiece writes for a space."""


@dataclass(frozen=True)
class Vocabulary:
    """Pieces of a corpus, and what its tokens are known by."""

    path: Path
    fingerprint: int
    pieces: tuple[str, ...]
    """By token id; empty where the corpus has no tokenizer."""
    count: np.ndarray
    """[V] int64: occurrences in the training split; empty where the corpus does not say."""

    def text(self, token: int) -> str:
        """A token as it stands in running text, with its leading space; "#<id>" where it is not known."""
        if not 0 <= token < len(self.pieces):
            return f"#{token}" if token >= 0 else ""
        piece = self.pieces[token]
        match = BYTE.fullmatch(piece)
        if match:
            value = int(match.group(1), 16)
            return chr(value) if value < 128 else f"\\x{value:02x}"
        return piece.replace(SPACE, " ")


def read_vocabulary(path: Path) -> Vocabulary:
    """Read what a corpus file says of its tokens. Raises OSError where it cannot be read."""
    with h5py.File(path, "r") as file:
        pieces: list[str] = []
        if "tokenizer/piece" in file:
            data, offset = file["tokenizer/piece"][...].tobytes(), file["tokenizer/piece_offset"][...]
            pieces = [data[a:b].decode("utf-8", "replace") for a, b in zip(offset[:-1], offset[1:])]
        count = np.zeros(0, np.int64)
        if isinstance(file.get("count"), h5py.Group):  # of sentence pairs: one count of either side
            count = sum((side[...] for side in file["count"].values()), np.int64(0))
        elif "count" in file:
            count = file["count"][...]
        fingerprint = int(np.uint64(file.attrs["fingerprint"])) if "fingerprint" in file.attrs else 0
    return Vocabulary(path, fingerprint, tuple(pieces), count)
