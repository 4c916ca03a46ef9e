"""A progress bar on stderr."""

from __future__ import annotations

import sys
import time

WIDTH = 28


class Progress:
    """How far a long reading is: a bar on a terminal, elsewhere a line now and then."""

    def __init__(self, label: str, total: int, quiet: bool = False) -> None:
        """label: what is read. total: assignments to be read."""
        self.label, self.total, self.done, self.quiet = label, max(1, total), 0, quiet
        self.terminal = sys.stderr.isatty()
        self.shown = self.begun = time.monotonic()

    def tick(self, n: int) -> None:
        """So many more were read."""
        self.done += n
        now = time.monotonic()
        if not self.quiet and now - self.shown >= (0.1 if self.terminal else 5.0):
            self.shown = now
            self._show()

    def _show(self) -> None:
        share = min(1.0, self.done / self.total)
        if self.terminal:
            bar = "\u2588" * int(share * WIDTH)
            line = f"\r{self.label} \u2595{bar:<{WIDTH}}\u258f {100 * share:3.0f} %"
            print(line, end="", file=sys.stderr, flush=True)
        else:
            print(f"{self.label}: {100 * share:.0f} %", file=sys.stderr, flush=True)

    def end(self) -> None:
        """All is read: the bar makes way for a line."""
        if self.quiet:
            return
        if self.terminal:
            print("\r\033[K", end="", file=sys.stderr)
        print(f"{self.label}: {self.done:,} assignments in {time.monotonic() - self.begun:.1f} s", file=sys.stderr,
              flush=True)
