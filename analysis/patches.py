"""`python3 -m analysis patches`: finds an interpreter with NumPy and h5py, and goes to patch_drawing."""

from __future__ import annotations

import sys

import analysis


def main(arguments: list[str]) -> int:
    """Run the command; returns the exit status."""
    message = analysis.ensure_modules(["-m", "analysis", "patches", *arguments])
    if message is not None:
        print(message, file=sys.stderr)
        return 2
    from analysis import patch_drawing

    return patch_drawing.main(arguments)
