"""Tests of the numbers that a report shows: counts by streaming against hand-worked ones and plain NumPy."""

from __future__ import annotations

import contextlib
import io
import re
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
sys.dont_write_bytecode = True

import analysis

if analysis.missing_modules(("numpy", "h5py")):
    print(f"skipped: {sys.executable} cannot import numpy and h5py; jobs/install.sh brings python3-numpy and python3-h5py")
    sys.exit(77)

import h5py
import numpy as np

import synthetic
from analysis import counts, frames, images, routing, series
from analysis.report import collect
from analysis.text import Vocabulary


class Numbers(unittest.TestCase):
    """Functions of arrays."""

    def test_mutual_information(self) -> None:
        for table, mutual, expert in (([[5, 0], [0, 5]], 1, 1), ([[5, 5], [5, 5]], 0, 1), ([[4, 4], [0, 0]], 0, 1),
                                      ([[0, 0], [0, 0]], 0, 0), ([[2, 0], [0, 1], [0, 1]], 1, 1)):
            found = counts.mutual_information(np.array(table))
            np.testing.assert_allclose([found.mutual, found.expert], [mutual, expert], atol=1e-12)
        p = np.array([[0.25, 0.25], [0.0, 0.5]])
        want = 0.25 * np.log2(0.25 / 0.125) + 0.25 * np.log2(0.25 / 0.375) + 0.5 * np.log2(0.5 / 0.375)
        np.testing.assert_allclose(counts.mutual_information((p * 8).astype(int)).mutual, want)

    def test_information_by_chance(self) -> None:
        ids = np.repeat(np.arange(50), 40)
        found, chance = counts.information(np.append(ids, -1), np.append(ids % 4, 3), 4)
        np.testing.assert_allclose(found.share, 1)
        self.assertTrue(0 < chance < 0.2 * found.expert)
        self.assertTrue(np.isnan(counts.information(ids, np.zeros(len(ids), int), 4)[0].share))

    def test_specialisation(self) -> None:
        table = np.array([[90, 10], [0, 100], [1, 0], [0, 0], [9, 90]])
        first, second = counts.specialisation(table, n=4)
        np.testing.assert_array_equal(first.token, [0, 2, 4])  # what occurred once is not before what did often
        np.testing.assert_array_equal(second.token, [1, 4, 0])
        np.testing.assert_allclose(second.share, [1, 90 / 99, 0.1])
        np.testing.assert_allclose(second.lift, np.array([1, 90 / 99, 0.1]) * 300 / 200)
        np.testing.assert_array_equal(second.count, [100, 90, 10])
        self.assertEqual(len(counts.specialisation(np.array([[3, 0]]))[1].token), 0)

    def test_first_choice(self) -> None:
        expert = np.array([[3, 1], [-1, 2], [-1, -1], [-5, 0]])
        np.testing.assert_array_equal(counts.first_choice(expert), [3, 2, -1, 3])

    def test_thin(self) -> None:
        np.testing.assert_allclose(collect.thin(np.array([1.0, 3, np.nan, 5, np.nan, np.nan, 7]), 4), [2, 5, np.nan, 7])
        self.assertEqual(collect.numbers(np.array([1.0, np.nan, np.inf, 0.123456789])), [1, None, None, 0.123457])
        self.assertIsNone(collect.line_of(series.Line(np.arange(3), np.full(3, np.nan))))

    def test_heat_map_is_exact_for_few_rows(self) -> None:
        edges, means = series.heat_columns(np.array([2, 4, 6, 10]), np.array([[1.0, 2], [3, 4], [5, 6], [7, np.nan]]))
        np.testing.assert_array_equal(edges, [1, 3, 5, 7, 9, 11])
        np.testing.assert_array_equal(means.T, [[1, 3, 5, np.nan, np.nan], [2, 4, 6, np.nan, np.nan]])

    def test_text_of_tokens(self) -> None:
        vocabulary = Vocabulary(Path("x"), 1, ("\u2581the", "<0x0A>", "<0xC3>", "ing"), np.zeros(0))
        self.assertEqual([vocabulary.text(i) for i in (0, 1, 2, 3, 4, -1)], [" the", "\n", "\\xc3", "ing", "#4", ""])


class Experiments(unittest.TestCase):
    """Numbers of the experiments on images (analysis.images)."""

    def test_needed(self) -> None:
        curve = [(10, 50.0), (100, 90.0), (1000, 94.0), (2000, 93.0)]
        self.assertAlmostEqual(images.needed(curve, 70), 10 ** 1.5)
        self.assertAlmostEqual(images.needed(curve, 92), 10 ** 2.5)
        self.assertEqual((images.needed(curve, 95), images.needed(curve, 40), images.needed([], 1)), (None, -10, None))
        self.assertEqual([images.number(v) for v in (None, -10, 1234.4)], ["not reached", "below 10", "1,234"])

    def test_slope(self) -> None:
        self.assertAlmostEqual(images.slope([(n, 3 * n ** -1.7) for n in (1, 2, 4, 16)]), -1.7)

    def test_tables_of_results(self) -> None:
        with tempfile.TemporaryDirectory() as root:
            for name, seed, accuracy in (("cnn", 1, 0.5), ("cnn", 2, 0.7), ("pmoe-separate", 1, 0.8), ("pmoe-joint", 1, 0.9)):
                path = Path(root, "grids", f"{name}-300-{seed}.json")
                path.parent.mkdir(exist_ok=True)
                path.write_text(f'{{"accuracy": {accuracy}, "found": [[[1, 0.2], [0.4, 0.5], [1, 1]]]}}', encoding="utf-8")
            out = io.StringIO()
            with contextlib.redirect_stdout(out):
                images.main(["grids", "patterns", "digits", "--table-only", "--out", root, "--seeds", "1,2"])
        self.assertIn("| 300 | 60.0 ± 14.1 (89.5) | 80.0 (92.3) | 90.0 (94.3) |", out.getvalue())
        self.assertIn("| 300 | 1/1 | 1/1 | 1/1 |", out.getvalue())
        self.assertIn("| 300 | 75.0 | 75.0 |", out.getvalue())  # expert 0 for class 0, expert 1 for class 1; the best of each


class Streams(unittest.TestCase):
    """Counts over files."""

    def setUp(self) -> None:
        held = tempfile.TemporaryDirectory()
        self.addCleanup(held.cleanup)
        self.path = Path(held.name)
        self.addCleanup(setattr, counts, "BLOCK_ITEMS", counts.BLOCK_ITEMS)

    def test_counts_are_those_of_the_whole(self) -> None:
        synthetic.write_tokens(self.path, experts=5, layers=2, records=7, tokens=300, vocabulary=40, slots=2,
                               dropped=0.1)
        with h5py.File(self.path / "routing/step-000000007.h5", "r+") as file:
            ids, stored = file["tokens/id"][...], file["tokens/expert"][...]
            ids[2, :5] = -1
            stored[3, 1, :9, 1] = -1
            file["tokens/id"][...], file["tokens/expert"][...] = ids, stored
            gate = file["tokens/gate"][...]
        log = routing.load_log(self.path)
        expert = np.where(stored <= -2, -2 - stored, stored)
        used = (expert >= 0) & (ids >= 0)[:, None, :, None]
        want = np.zeros((40, 5), np.int64)
        token = np.broadcast_to(ids[:, None, :, None], expert.shape)
        np.add.at(want, (token[:, 1][used[:, 1]], expert[:, 1][used[:, 1]]), 1)
        flow = np.zeros((5, 5), np.int64)
        np.add.at(flow, (expert[:, 0, :, 0], expert[:, 1, :, 0]), 1)
        told: list[int] = []
        for counts.BLOCK_ITEMS in (2 << 20, 1300, 64, 1):  # all at once, some records, a part of one, single tokens
            found = counts.count_layer(log, 1, vocabulary=3 if counts.BLOCK_ITEMS < 2000 else 40, tick=told.append)
            np.testing.assert_array_equal(found.token_expert, want)
            np.testing.assert_allclose(found.gate_mean, np.arange(1, 6) / 6, rtol=1e-6)
            np.testing.assert_allclose(found.gate_sum.sum(), gate[:, 1][used[:, 1]].sum(), rtol=1e-6)
            self.assertEqual(found.n_dropped, int((stored[:, 1] <= -2).sum()))
            self.assertEqual(sum(told), 7 * 300 * 2)
            told.clear()
            np.testing.assert_array_equal(counts.count_flow(log, 0), flow)
            sizes = [part.size for (part,) in counts.blocks(log, counts.records(log), ("expert",), (0,))]
            self.assertLessEqual(max(sizes), max(counts.BLOCK_ITEMS, 2))
        counts.BLOCK_ITEMS, rows = 2 << 20, np.array([0, 2, 3, 6])  # not all of the file
        parts = [part for (part,) in counts.blocks(log, counts.records(log).rows(rows), ("id",), ())]
        np.testing.assert_array_equal(np.concatenate([part.ravel() for part in parts]), ids[rows].ravel())

    def test_later_file_wins(self) -> None:
        synthetic.write_tokens(self.path, experts=4, records=6, tokens=50)
        first = routing.load_log(self.path).files[0]
        later = first.with_name("step-000000009.h5")
        later.write_bytes(first.read_bytes())
        with h5py.File(later, "r+") as file:
            file["tokens/step"][...] = np.arange(4, 10)
            file["tokens/expert"][...] = 2
        log = routing.load_log(self.path)
        found = counts.records(log)
        np.testing.assert_array_equal(found.step, np.arange(1, 10))
        self.assertEqual(found.n_tokens, 9 * 50)
        table = counts.count_layer(log, 0, found.rows(found.step >= 4)).token_expert
        self.assertEqual(table.sum(0).tolist(), [0, 0, 300, 0])
        np.testing.assert_array_equal(counts.settled(found, 8).step, [8, 9])
        np.testing.assert_array_equal(counts.settled(found, None).step, [5, 6, 7, 8, 9])
        np.testing.assert_array_equal(counts.settled(found, 50).step, [5, 6, 7, 8, 9])

    def test_probe_counts_and_fluctuation(self) -> None:
        shape = synthetic.Shape(updates=100, stage1=20, layers=2, experts=4, tokens=256, probes=20, probe_tokens=40,
                                files=3)
        synthetic.write_routing(self.path, shape)
        log = routing.load_log(self.path)
        rows = np.arange(20)
        token = log.probe_token
        choice = [log.probe_part("expert", m, rows, 0, 40) for m in range(2)]
        want = np.zeros((1000, 4), np.int64)
        np.add.at(want, (token[token >= 0], choice[1][-1][token >= 0]), 1)
        np.testing.assert_array_equal(counts.probe_counts(log, 1, vocabulary=1000), want)
        flow = np.zeros((4, 4), np.int64)
        np.add.at(flow, (choice[0][5][token >= 0], choice[1][5][token >= 0]), 1)
        np.testing.assert_array_equal(counts.probe_flow(log, 0, 5), flow)
        last = routing.last_fluctuation(choice[1][:, token >= 0])
        found = routing.fluctuation_counts(log, 1)
        np.testing.assert_array_equal(found, np.bincount(last + 1, minlength=21))
        curve = series.fluctuation(log, 1, 100)
        for percent in (0, 20, 50):
            late = [0 <= row and log.probe_step[row] > percent for row in last]
            self.assertEqual(routing.share_after(found, log.probe_step, 100, percent), np.mean(late))
            self.assertAlmostEqual(1 - curve.y[np.flatnonzero(curve.x <= percent / 100)[-1]], np.mean(late))

    def test_memory_does_not_grow_with_the_log(self) -> None:
        """5 million assignments of 50 MB in a process of its own, beside 50 thousand."""
        program = ("import sys, resource; sys.dont_write_bytecode = True; sys.path.insert(0, sys.argv[1])\n"
                   "from analysis import counts, routing\n"
                   "counts.BLOCK_ITEMS = 1 << 17\n"
                   "log = routing.load_log(sys.argv[2])\n"
                   "n = sum(int(counts.count_layer(log, m).token_expert.sum()) for m in range(2))\n"
                   "n += int(counts.count_flow(log, 0).sum())\n"
                   "print(n, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)")
        peaks = []
        for records, tokens in ((1, 25_000), (10, 250_000)):
            run = self.path / str(tokens)
            synthetic.write_tokens(run, experts=16, layers=2, records=records, tokens=tokens)
            done = subprocess.run([sys.executable, "-c", program, str(ROOT), str(run)], capture_output=True, text=True,
                                  check=False, timeout=120)
            self.assertEqual(done.returncode, 0, done.stderr)
            n, peak = map(int, done.stdout.split())
            self.assertEqual(n, 3 * records * tokens)
            peaks.append(peak)
        self.assertTrue(peaks[1] - peaks[0] < 24, f"{peaks} MB")


class Frames(unittest.TestCase):
    """Tables of pandas and data sets of xarray, where these are installed."""

    def setUp(self) -> None:
        held = tempfile.TemporaryDirectory()
        self.addCleanup(held.cleanup)
        self.path = Path(held.name)
        shape = synthetic.Shape(updates=60, stage1=20, layers=2, experts=4, tokens=256, probes=20, probe_tokens=40,
                                files=3)
        synthetic.write_run(self.path, shape)
        synthetic.write_tokens(self.path, experts=4, layers=2, records=5, tokens=30)
        self.log = routing.load_log(self.path)

    def test_pandas(self) -> None:
        if analysis.missing_modules(("pandas",)):
            self.skipTest("no pandas")
        loads = frames.loads(self.path)
        self.assertEqual(loads.loc[(7, 1)].tolist(), self.log.load[6, 1].tolist())
        self.assertEqual(frames.metrics(self.path).loc[20, "stage"], 1)
        np.testing.assert_allclose(frames.balance(self.path).loc[(60, 0), "cv"], routing.balance(self.log.load[-1, 0]).cv)
        self.assertEqual(frames.fluctuation(self.path).shape, (2, 3))
        self.assertEqual(set(frames.specialisation(self.path, n=3)["expert"]), {0, 1, 2, 3})

    def test_xarray(self) -> None:
        if analysis.missing_modules(("xarray",)):
            self.skipTest("no xarray")
        data = frames.open_xarray(self.path, tokens=True)
        np.testing.assert_array_equal(data["load"].sel(step=7, layer=1), self.log.load[6, 1])
        self.assertEqual(data["probe_expert"].dims, ("probe_step", "layer", "probe"))
        self.assertEqual(dict(data["tokens_expert"].sizes), {"tokens_step": 5, "layer": 2, "place": 30, "slot": 1})
        np.testing.assert_array_equal(data["tokens_expert"].sel(layer=1)[..., 0], (data["tokens_id"] + 1) % 4)
        self.assertEqual(data["load"].attrs["units"], "tokens")

    def test_tutorial_runs(self) -> None:
        """The code of doc/analysis.md does what it says."""
        if analysis.missing_modules(("pandas", "xarray")):
            self.skipTest("no pandas or xarray")
        text = (ROOT / "doc/analysis.md").read_text(encoding="utf-8").replace("runs/tiny", str(self.path))
        code = re.findall(r"```python\n(.*?)```", text, re.S)
        space: dict = {}
        with contextlib.redirect_stdout(io.StringIO()):
            for part in code:
                exec(compile(part.replace("loc[100]", "loc[50]"), "doc/analysis.md", "exec"), space)
        self.assertEqual(len(code), 2)
        self.assertAlmostEqual(routing.mutual_information(space["layer"].token_expert).share, 1)
        self.assertEqual(space["data"].sizes["step"], 60)

    def test_no_log(self) -> None:
        self.assertRaises(routing.LogError, frames._log, self.path.parent)


if __name__ == "__main__":
    unittest.main()
