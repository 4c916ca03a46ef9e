"""BLEU and chrF: the program's and analysis' are the same to the last bit, and are those of sacreBLEU."""

import contextlib
import gzip
import io
import json
import random
import re
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent.parent))

from analysis import score  # noqa: E402

PROGRAM = sys.argv[sys.argv.index("--program") + 1] if "--program" in sys.argv else None
LETTERS = "abcdefgh ABCXYZ 0123456789 .,-.,-;:!?()[]{}<>&\"'/\\@#$%^*_+=|~` éÉßüÜřŘçÇ ağĞıIiİ ЯяЖж ΣΑΣ σίσΊΣ 中文。、€£"


class Score(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.directory = tempfile.TemporaryDirectory()
        cls.addClassCleanup(cls.directory.cleanup)

    def path(self, name):
        return Path(self.directory.name) / name

    def program(self, reference, hypothesis):
        """signature -> all values, from the C side."""
        result = subprocess.run([PROGRAM, reference, hypothesis], capture_output=True, text=True, check=True)
        return {line.split("\t")[0]: [float(v) for v in line.split("\t")[1:]] for line in result.stdout.splitlines()}

    def python(self, reference, hypothesis, *arguments):
        """signature -> all values, from analysis."""
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            self.assertEqual(score.main([str(reference), str(hypothesis), "--json", *arguments]), 0)
        values = {}
        for result in json.loads(out.getvalue()):
            values[result["signature"]] = [result["score"]]
            if "precisions" in result:
                values[result["signature"]] += [*result["precisions"], result["brevity"],
                                                result["hypothesis_words"], result["reference_words"]]
        return values

    def both(self, reference, hypothesis):
        """The values of both sides, after they were found equal."""
        ours = self.program(reference, hypothesis)
        theirs = self.python(reference, hypothesis) | self.python(reference, hypothesis, "--tokenize", "none")
        self.assertEqual(ours, theirs)
        self.assertEqual(len(ours), 5)
        return ours

    def test_figures(self):
        header, *rows = (HERE / "figures.tsv").read_text("utf-8").splitlines()
        signatures = ["case:mixed|eff:no|tok:13a", "case:lc|eff:no|tok:13a", "case:mixed|eff:no|tok:none", "nc:6"]
        self.assertEqual(len(header.split("\t")), len(signatures) + 1)
        for row in rows:
            language, *figures = row.split("\t")
            values = self.both(HERE / f"ref.{language}", HERE / f"hyp.{language}")
            for part, figure in zip(signatures, figures):
                with self.subTest(language=language, figure=part):
                    found = [value[0] for signature, value in values.items() if part in signature]
                    self.assertEqual(len(found), 1)
                    self.assertLessEqual(abs(found[0] - float(figure)), 0.0001)

    def test_random(self):
        """Text of all kinds of characters, changed a little."""
        draw = random.Random(3)
        for case in range(6):
            references, hypotheses = [], []
            for _ in range(200):
                line = "".join(draw.choice(LETTERS) for _ in range(draw.randrange(0, 60)))
                line = draw.choice(["", "&quot;", "&amp;lt; ", "x<skipped>y", "\u2028", "\u00a0"]) + line
                changed = [c if draw.random() < 0.9 else draw.choice(LETTERS) for c in line]
                references.append(line + draw.choice(["", " ", "\r", "\u3000"]))
                hypotheses.append("".join(changed))
            for name, lines in (("r", references), ("h", hypotheses)):
                self.path(name).write_bytes(("\n".join(lines) + "\n").encode("utf-8"))
            with self.subTest(case=case):
                values = self.both(self.path("r"), self.path("h"))
                self.assertGreater(min(value[0] for value in values.values()), 1)

    def test_lower(self):
        """Every character by itself, in upper case, between letters."""
        points = [c for c in range(0x20, 0x30000) if not 0xD800 <= c < 0xE000]
        lines = [f"a{chr(c)}b x{chr(c)}" for c in points]
        self.path("all").write_bytes(("\n".join(lines) + "\n").encode("utf-8"))
        lower = [line.lower() for line in lines]
        self.path("lower").write_bytes(("\n".join(lower) + "\n").encode("utf-8"))
        values = self.program(self.path("all"), self.path("lower"))
        words = {signature: value[1] for signature, value in values.items() if "case:" in signature and "eff:no" in signature}
        self.assertEqual(len(words), 4)
        for signature, value in words.items():
            if "case:lc" in signature:
                self.assertGreater(value, 99.99)  # Python's Unicode may be of another year than the C library's
            else:
                self.assertLess(value, 99.5)

    def test_edges(self):
        cases = {"nothing in common": ("a b c d e", "f g h i j"), "empty": ("", ""), "empty hypothesis": ("a b", ""),
                 "empty reference": ("", "a b"), "short": ("a b c", "a b c"), "one order missing": ("a b x c d", "a b y c d"),
                 "short hypothesis": ("a b c d e f g h", "a b c d e"), "numbers": ("1,000.5 a.b 3-4 x-y", "1,000.5 a.b 3-4 x-y")}
        for name, (reference, hypothesis) in cases.items():
            with self.subTest(name):
                self.path("r").write_text(reference + "\n", "utf-8")
                self.path("h").write_text(hypothesis + "\n", "utf-8")
                values = self.both(self.path("r"), self.path("h"))
                bleu = values["nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp"]
                if name == "numbers":
                    self.assertAlmostEqual(bleu[0], 100, places=9)
                    self.assertEqual(bleu[6], 8)  # 1,000.5 a . b 3 - 4 x-y
                elif name == "one order missing":  # 4/5, 2/4, smoothed 1/(2*3), 1/(4*2)
                    self.assertAlmostEqual(bleu[0], 100 * (0.8 * 0.5 / 6 / 8) ** 0.25, places=9)
                elif name == "short hypothesis":
                    self.assertAlmostEqual(bleu[0], 100 * 2.718281828459045 ** (1 - 8 / 5), places=9)
                else:
                    self.assertEqual(bleu[0], 0)

    def test_command(self):
        """Compressed files, the figures for people, and errors."""
        packed = self.path("ref.gz")
        packed.write_bytes(gzip.compress((HERE / "ref.cs").read_bytes()))
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            self.assertEqual(score.main([str(packed), str(HERE / "hyp.cs")]), 0)
        self.assertRegex(out.getvalue(), r"BLEU +55\.08  nrefs:1\|case:mixed\|eff:no\|tok:13a\|smooth:exp")
        self.assertRegex(out.getvalue(), r"chrF2 +73\.93  nrefs:1\|case:mixed\|eff:yes\|nc:6\|nw:0\|space:no")
        self.assertRegex(out.getvalue(), r"BLEU lowercased +55\.12  nrefs:1\|case:lc\|")
        self.path("short").write_text("one line\n", "utf-8")
        self.path("latin").write_bytes(b"caf\xe9\n")
        for name, said in (("short", "has 60 lines and .* 1: line n"), ("latin", "cannot read .*utf-8"),
                           ("none", "cannot read .*No such file")):
            error = io.StringIO()
            with self.subTest(name), contextlib.redirect_stderr(error):
                self.assertEqual(score.main([str(HERE / "ref.en"), str(self.path(name))]), 2)
                self.assertTrue(re.search(said, error.getvalue()), error.getvalue())


if __name__ == "__main__":
    if "--program" in sys.argv:
        at = sys.argv.index("--program")
        del sys.argv[at:at + 2]
    unittest.main()
