"""`python3 -m analysis score REFERENCE HYPOTHESIS`: BLEU and chrF of a translation, with sacreBLEU's numbers.

Three figures: BLEU (tokenizer 13a, case kept), chrF2, and BLEU of lowercased text, which published results on
Multi30k are. The program computes the same ones (src/data/bleu.c, chrf.c); both agree to the last bit.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import re
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

BLEU_ORDERS = 4
CHRF_ORDERS = 6
CHRF_FACTOR = 4
"""beta squared: recall counts twice as much as precision"""

_STEPS = [(re.compile(r"([{-~\[-` -&(-+:-@/])"), r" \1 "),       # symbols
          (re.compile(r"([^0-9])([.,])"), r"\1 \2 "),            # a stop after something that is not a digit
          (re.compile(r"([.,])([^0-9])"), r" \1 \2"),            # and before such a thing
          (re.compile(r"([0-9])(-)"), r"\1 \2 ")]                # a dash after a digit
_ENTITIES = [("<skipped>", ""), ("&quot;", '"'), ("&amp;", "&"), ("&lt;", "<"), ("&gt;", ">")]


def tokenize_13a(line: str) -> list[str]:
    """Words of a line as mteval-v13a has them."""
    for entity, character in _ENTITIES:
        line = line.replace(entity, character)
    line = f" {line} "
    for pattern, replacement in _STEPS:
        line = pattern.sub(replacement, line)
    return line.split()


def _matches(a: Counter, b: Counter) -> int:
    return sum(min(count, b[gram]) for gram, count in a.items() if gram in b)


@dataclass
class Bleu:
    """Counts of BLEU, which add up over segments."""

    tokenizer: str = "13a"  # or "none": words are what is between blanks
    lowercase: bool = False
    hypothesis_words: int = 0
    reference_words: int = 0
    correct: list[int] = field(default_factory=lambda: [0] * BLEU_ORDERS)
    total: list[int] = field(default_factory=lambda: [0] * BLEU_ORDERS)

    def words(self, line: str) -> list[str]:
        if self.lowercase:
            line = line.lower()
        line = line.rstrip()
        return tokenize_13a(line) if self.tokenizer == "13a" else line.split()

    def add(self, reference: str, hypothesis: str) -> None:
        """Count one segment."""
        h, r = self.words(hypothesis), self.words(reference)
        self.hypothesis_words += len(h)
        self.reference_words += len(r)
        for n in range(1, BLEU_ORDERS + 1):
            grams = [Counter(tuple(w[i:i + n]) for i in range(len(w) - n + 1)) for w in (h, r)]
            self.correct[n - 1] += _matches(*grams)
            self.total[n - 1] += max(0, len(h) - n + 1)

    @property
    def brevity(self) -> float:
        if self.hypothesis_words >= self.reference_words:
            return 1.0
        return math.exp(1 - self.reference_words / self.hypothesis_words) if self.hypothesis_words else 0.0

    @property
    def precisions(self) -> list[float]:
        """In percent, smoothed: an order without a match counts half of a match, the next one a quarter, ..."""
        values, halved = [0.0] * BLEU_ORDERS, 1.0
        for n in range(BLEU_ORDERS):
            if self.total[n] == 0:
                break
            if self.correct[n] == 0:
                halved *= 2
                values[n] = 100 / (halved * self.total[n])
            else:
                values[n] = 100 * self.correct[n] / self.total[n]
        return values

    @property
    def score(self) -> float:
        precisions = self.precisions
        if not any(self.correct) or not all(precisions):
            return 0.0
        total = 0.0
        for precision in precisions:  # one after the other, as the program adds
            total += math.log(precision)
        return self.brevity * math.exp(total / BLEU_ORDERS)

    @property
    def signature(self) -> str:
        return f"nrefs:1|case:{'lc' if self.lowercase else 'mixed'}|eff:no|tok:{self.tokenizer}|smooth:exp"


@dataclass
class Chrf:
    """Counts of chrF2, which add up over segments."""

    hypothesis: list[int] = field(default_factory=lambda: [0] * CHRF_ORDERS)
    reference: list[int] = field(default_factory=lambda: [0] * CHRF_ORDERS)
    match: list[int] = field(default_factory=lambda: [0] * CHRF_ORDERS)

    def add(self, reference: str, hypothesis: str) -> None:
        """Count one segment."""
        h, r = "".join(hypothesis.split()), "".join(reference.split())
        for n in range(1, CHRF_ORDERS + 1):
            grams = [Counter(text[i:i + n] for i in range(len(text) - n + 1)) for text in (h, r)]
            self.hypothesis[n - 1] += max(0, len(h) - n + 1) if grams[1] else 0
            self.reference[n - 1] += max(0, len(r) - n + 1)
            self.match[n - 1] += _matches(*grams)

    @property
    def score(self) -> float:
        precision, recall, n = 0.0, 0.0, 0
        for h, r, match in zip(self.hypothesis, self.reference, self.match):
            if h and r:
                precision, recall, n = precision + match / h, recall + match / r, n + 1
        if n == 0 or precision + recall == 0:
            return 0.0
        precision, recall = precision / n, recall / n
        return 100 * ((1 + CHRF_FACTOR) * precision * recall / (CHRF_FACTOR * precision + recall))

    @property
    def signature(self) -> str:
        return f"nrefs:1|case:mixed|eff:yes|nc:{CHRF_ORDERS}|nw:0|space:no"


def read_lines(path: Path) -> list[str]:
    """Lines of a text, plain or compressed by gzip, without their ends."""
    data = path.read_bytes()
    if data[:2] == b"\x1f\x8b":
        data = gzip.decompress(data)
    lines = data.decode("utf-8").split("\n")
    return lines[:-1] if lines[-1] == "" else lines


def _score(references: list[str], hypotheses: list[str], tokenizer: str) -> list[dict]:
    measures = [("BLEU", Bleu(tokenizer)), ("chrF2", Chrf()), ("BLEU lowercased", Bleu(tokenizer, lowercase=True))]
    for reference, hypothesis in zip(references, hypotheses):
        for _, measure in measures:
            measure.add(reference, hypothesis)
    results = []
    for name, measure in measures:
        result = {"name": name, "score": measure.score, "signature": measure.signature}
        if isinstance(measure, Bleu):
            result |= {"precisions": measure.precisions, "brevity": measure.brevity,
                       "hypothesis_words": measure.hypothesis_words, "reference_words": measure.reference_words}
        results.append(result)
    return results


def _line(result: dict) -> str:
    details = ""
    if "precisions" in result:
        precisions = "/".join(f"{value:.1f}" for value in result["precisions"])
        details = (f"  ({precisions}, brevity {result['brevity']:.3f}, {result['hypothesis_words']:,} words for "
                   f"{result['reference_words']:,})")
    return f"{result['name']:<16}{result['score']:7.2f}  {result['signature']}{details}"


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python3 -m analysis score", description="BLEU and chrF of a translation, with sacreBLEU's numbers.",
        epilog="The files have one segment per line and may be compressed (.gz). Exit status: 2 for files that "
               "cannot be read, are not UTF-8 or have different numbers of lines.")
    parser.add_argument("reference", metavar="REFERENCE", type=Path)
    parser.add_argument("hypothesis", metavar="HYPOTHESIS", type=Path)
    parser.add_argument("--tokenize", choices=("13a", "none"), default="13a",
                        help="words of BLEU; none: the text is tokenized already (default 13a)")
    parser.add_argument("--json", action="store_true", help="the same as JSON, with all digits")
    options = parser.parse_args(arguments)
    texts = []
    for path in (options.reference, options.hypothesis):
        try:
            texts.append(read_lines(path))
        except (OSError, EOFError, UnicodeDecodeError) as error:
            print(f"analysis score: cannot read '{path}': {error}", file=sys.stderr)
            return 2
    if len(texts[0]) != len(texts[1]):
        print(f"analysis score: '{options.reference}' has {len(texts[0]):,} lines and '{options.hypothesis}' "
              f"{len(texts[1]):,}: line n of one must be the translation of line n of the other", file=sys.stderr)
        return 2
    results = _score(*texts, options.tokenize)
    print(json.dumps(results, indent=2) if options.json else "\n".join(map(_line, results)))
    return 0
