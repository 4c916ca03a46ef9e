"""Tests of analysis/: numbers against hand-worked ones, and whole runs that are made up here."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
sys.dont_write_bytecode = True

import analysis

if analysis.missing_modules():
    print(f"skipped: {sys.executable} cannot import {', '.join(analysis.missing_modules())} "
          f"(Debian: {analysis.DEBIAN_PACKAGES})")
    sys.exit(77)

import h5py
import numpy as np

import synthetic
from analysis import figures, look, routing, series
from analysis import run as runs
from analysis.__main__ import main, summary
from analysis.report import collect, page

TINY = synthetic.Shape(updates=100, stage1=20, layers=2, experts=4, tokens=256, probes=20, probe_tokens=40,
                       files=3)


class Numbers(unittest.TestCase):
    """Functions of arrays."""

    def test_last_fluctuation(self) -> None:
        expert = np.array([[0, 1, 2, 3],
                           [0, 0, 2, 1],
                           [0, 1, 3, 1],
                           [0, 1, 2, 1]])
        np.testing.assert_array_equal(routing.last_fluctuation(expert), [-1, 1, 2, 0])
        np.testing.assert_array_equal(routing.last_fluctuation(expert[:1]), [-1, -1, -1, -1])
        self.assertEqual(routing.last_fluctuation(np.zeros((3, 0))).shape, (0,))
        self.assertRaises(ValueError, routing.last_fluctuation, np.zeros((0, 3)))

    def test_share_after(self) -> None:
        counts, step = np.array([1, 1, 1, 1, 0]), np.array([20, 50, 80, 100])
        shares = [routing.share_after(counts, step, 100, percent) for percent in (10, 20, 50, 80)]
        self.assertEqual(shares, [0.75, 0.5, 0.25, 0.0])  # "exceeds": not the step at the limit itself
        self.assertTrue(np.isnan(routing.share_after(np.zeros(5, int), step, 100, 20)))

    def test_balance(self) -> None:
        even = routing.balance(np.array([[5, 5, 5, 5], [20, 0, 0, 0], [0, 0, 0, 0], [10, 10, 0, 0]]))
        np.testing.assert_allclose(even.max_over_mean, [1, 4, np.nan, 2])
        np.testing.assert_allclose(even.cv, [0, np.sqrt(3), np.nan, 1])
        np.testing.assert_allclose(even.entropy, [1, 0, np.nan, 0.5])
        np.testing.assert_allclose(even.dead, [0, 3, np.nan, 2])

    def test_load_share(self) -> None:
        share = routing.load_share(np.array([[[1, 3], [0, 0]]]))
        np.testing.assert_allclose(share, [[[0.25, 0.75], [np.nan, np.nan]]])

    def test_agreement(self) -> None:
        learned = np.array([[0, 1, 2, -1], [3, 3, 3, 3], [-1, -1, -1, -1]])
        distilled = np.array([[0, 2, -1, -1], [3, 3, 3, 0], [0, 0, 0, 0]])
        np.testing.assert_allclose(routing.agreement(learned, distilled), [0.5, 0.75, np.nan])

    def test_latest_rows(self) -> None:
        np.testing.assert_array_equal(routing.latest_rows(np.array([1, 2, 3, 2, 3, 4])), [0, 3, 4, 5])

    def test_smooth(self) -> None:
        values = np.array([1.0, 2, 3, 4, np.nan, 6, 10, 10, 10])
        np.testing.assert_allclose(series.smooth(values, 3, np.array([6])),
                                   [1, 2, 3, 3.5, np.nan, 6, 10, 10, 10])

    def test_heat_columns(self) -> None:
        edges, means = series.heat_columns(np.array([1, 2, 3, 4]), np.array([[1.0], [3], [5], [7]]), limit=2)
        np.testing.assert_allclose(edges, [0.5, 2.5, 4.5])
        np.testing.assert_allclose(means, [[2], [6]])
        edges, means = series.heat_columns(np.array([10, 20, 40, 50]), np.array([[1.0], [2], [4], [5]]))
        np.testing.assert_allclose(means, [[1], [2], [np.nan], [4], [5]])

    def test_settings(self) -> None:
        text = r"""# a comment
run:
  seed: 7
  directory: "runs/a # \"b\"" # unit
router:
  method: stable
  stable:
    width: 50
    weight: 3e-1
  stage1_updates: -1
empty:
train:
  on: true
"""
        self.assertEqual(runs.parse_settings(text),
                         {"run.seed": 7, "run.directory": 'runs/a # "b"', "router.method": "stable",
                          "router.stable.width": 50, "router.stable.weight": 0.3, "router.stage1_updates": -1,
                          "train.on": True})
        text = "a: {b: True, c: FALSE, d: yes, e: 6e-4, f: .5, g: '12', h: 1_000, i: 0x10}\n\u00e4: \"\u00e9 # x\"\n"
        self.assertEqual(runs.parse_settings(text),
                         {"a.b": True, "a.c": False, "a.d": "yes", "a.e": 0.0006, "a.f": 0.5, "a.g": "12", "a.h": "1_000",
                          "a.i": "0x10", "\u00e4": "\u00e9 # x"})
        self.assertEqual(runs.parse_settings("# nothing\n"), {})
        with self.assertRaisesRegex(ValueError, "not YAML: while .* line 2"):
            runs.parse_settings("a:\n\tb: 1\n")


class InDirectory(unittest.TestCase):
    """Tests that need a directory of their own."""

    def setUp(self) -> None:
        held = tempfile.TemporaryDirectory()
        self.addCleanup(held.cleanup)
        self.path = Path(held.name) / "run"
        self.path.mkdir()

    def call(self, *arguments: str) -> tuple[int, str, str]:
        """Exit status, stdout and stderr of the command."""
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = main([str(argument) for argument in arguments])
        return status, out.getvalue(), err.getvalue()

    def figures(self) -> list[str]:
        return sorted(path.name for path in (self.path / "figures").iterdir())


class Reading(InDirectory):
    """Files of a run."""

    def test_log_in_order_of_update(self) -> None:
        synthetic.write_routing(self.path, TINY)
        log = routing.load_log(self.path)
        self.assertEqual([path.name for path in log.files],
                         ["step-000000033.h5", "step-000000066.h5", "step-000000100.h5"])
        np.testing.assert_array_equal(log.step, np.arange(1, 101))
        np.testing.assert_array_equal(log.load, synthetic.loads(TINY, np.random.default_rng(TINY.seed)))
        self.assertEqual((log.n_layers, log.n_experts, log.n_probe, log.method), (2, 4, 40, "stable"))
        self.assertEqual(log.notes, [])

    def test_further_loss_terms(self) -> None:
        """Terms that a method has besides balance and distill, by their names, in log, metrics and figure."""
        synthetic.write_routing(self.path, TINY, terms=("z_loss",))
        log = routing.load_log(self.path)
        np.testing.assert_allclose(log.terms["z_loss"], np.repeat(np.arange(1, 101)[:, None] / 100, 2, 1))
        self.assertEqual(list(log.terms), [*routing.LAYER_TERMS, "z_loss"])
        with h5py.File(log.files[0], "r+") as file:
            del file["z_loss"]  # a stretch before the method had it
        values = routing.load_log(self.path).terms["z_loss"]
        self.assertTrue(np.isnan(values[:33]).all() and np.isfinite(values[33:]).all())
        synthetic.write_metrics(self.path, TINY)
        self.assertEqual(runs.read_metrics(self.path / "metrics.csv").further_terms, [])
        synthetic.write_metrics(self.path, TINY, terms=("z_loss", "locality", "valid_bleu"))
        metrics = runs.read_metrics(self.path / "metrics.csv")
        self.assertEqual(metrics.further_terms, ["z_loss", "locality"])
        titles = [term.title for term in series.loss_terms(runs.open_run(self.path))]
        self.assertEqual([(term.key, term.title) for term in series.further(runs.open_run(self.path))],
                         [("valid_bleu", "Validation BLEU"), ("grad_norm", "Gradient norm")])
        self.assertEqual(titles, ["Balance loss", "Distillation loss", "Loss term z_loss", "Loss term locality"])

    def test_probe_blocks_are_the_whole(self) -> None:
        synthetic.write_routing(self.path, TINY)
        log = routing.load_log(self.path)
        rng = np.random.default_rng(TINY.seed)
        synthetic.loads(TINY, rng)
        step, expert, learned, distilled = synthetic.choices(TINY, rng)
        np.testing.assert_array_equal(log.probe_step, step)
        before = routing.BLOCK_BYTES
        self.addCleanup(setattr, routing, "BLOCK_BYTES", before)
        for routing.BLOCK_BYTES in (before, 4 * len(step) * 7):  # all at once, and 7 tokens at a time
            blocks = [block for (block,) in log.probe_blocks(("expert",), 1)]
            np.testing.assert_array_equal(np.concatenate(blocks, axis=1), expert[:, 1, :-3])
            np.testing.assert_array_equal(
                routing.fluctuation_counts(log, 1),
                np.bincount(routing.last_fluctuation(expert[:, 1, :-3]) + 1, minlength=len(step) + 1))
            np.testing.assert_allclose(routing.probe_agreement(log, 0),
                                       routing.agreement(learned[:, 0, :-3], distilled[:, 0, :-3]))

    def test_probes_without_loads(self) -> None:
        synthetic.write_routing(self.path, TINY)
        for path in (self.path / "routing").iterdir():
            with h5py.File(path, "r+") as file:
                for name in ("step", "stage", "load", *routing.LAYER_TERMS):
                    del file[name]
        log = routing.load_log(self.path)
        self.assertEqual((log.load.shape, len(log.probe_step), log.notes), ((0, 2, 4), 20, []))
        self.assertEqual(self.call(self.path)[0], 0)
        self.assertEqual(self.figures(), ["agreement.png", "fluctuation.png"])

    def test_later_file_wins(self) -> None:
        synthetic.write_routing(self.path, TINY)
        with h5py.File(self.path / "routing/step-000000066.h5", "r+") as file:
            file["step"][:2] = [32, 33]  # as if the run had gone back and repeated these
            file["probe/step"][0] = 30
            file["load"][0] = 77
            file["probe/expert"][0] = 3
        log = routing.load_log(self.path)
        self.assertEqual(len(log.step), 98)
        self.assertTrue(np.all(log.load[log.step == 32] == 77))
        row = int(np.flatnonzero(log.probe_step == 30)[0])
        (expert,) = next(log.probe_blocks(("expert",), 0, np.array([row])))
        self.assertTrue(np.all(expert == 3))

    def test_other_version_is_left_out(self) -> None:
        synthetic.write_routing(self.path, TINY)
        with h5py.File(self.path / "routing/step-000000066.h5", "r+") as file:
            file.attrs["version"] = 9
        (self.path / "routing/step-000000100.h5").write_bytes(b"not HDF5")
        (self.path / "routing/step-000000120.h5.part").write_bytes(b"unfinished")
        log = routing.load_log(self.path)
        self.assertEqual(len(log.files), 1)
        self.assertIn("step-000000066.h5 has format version 9, this program reads 1", log.notes[0])
        self.assertIn("step-000000100.h5 cannot be read", log.notes[1])

    def test_two_runs_in_one_directory(self) -> None:
        synthetic.write_routing(self.path, TINY)
        with h5py.File(self.path / "routing/step-000000100.h5", "r+") as file:
            file["probe/token"][0] = 999999
        self.assertIn("two runs", routing.load_log(self.path).notes[0])
        with h5py.File(self.path / "routing/step-000000066.h5", "r+") as file:
            file.attrs["format"] = "stablemoe-checkpoint"
        self.assertIn("is no routing log", routing.load_log(self.path).notes[0])

    def test_metrics(self) -> None:
        lines = ["update,stage,loss,valid_loss,new", "1,1,3.5,,x", "1,1,3.5,,1", "2,1,3.25,3.5,2",
                 "3,1,2,,text", "3,2,2.5,,2", "4,2,2.2"]
        (self.path / "metrics.csv").write_text("\n".join(lines))
        metrics = runs.read_metrics(self.path / "metrics.csv")
        np.testing.assert_array_equal(metrics.columns["update"], [1, 2, 3])
        np.testing.assert_array_equal(metrics.columns["loss"], [3.5, 3.25, 2.5])
        np.testing.assert_array_equal(metrics.column("valid_loss"), [np.nan, 3.5, np.nan])
        self.assertTrue(np.isnan(metrics.column("balance")).all())
        self.assertIn("1 incomplete", metrics.notes[0])
        np.testing.assert_array_equal(metrics.column("new"), [1, 2, 2])


class Command(InDirectory):
    """python3 -m analysis."""

    def test_whole_run(self) -> None:
        synthetic.write_run(self.path, TINY)
        status, out, err = self.call(self.path)
        self.assertEqual((status, err), (0, ""))
        names = ["agreement.png", "fluctuation.png", "load-moe0.png", "load-moe1.png", "losses.png"]
        self.assertEqual(self.figures(), names)
        for name in names:
            self.assertIn(f"figures/{name}", out)
        self.assertRegex(out, r"BASE, as published +40\.9 % +29\.1 % +15\.4 %")
        self.assertRegex(out, r"moe1 \(37 tokens, 20 probes\) +0\.0 % +0\.0 % +0\.0 %")
        self.assertIn("stage 2 from update 21", out)
        self.assertIn("unigram 6.4200, bigram 4.8700", out)
        self.assertNotIn("not made", out)

    def test_same_bytes_again(self) -> None:
        synthetic.write_run(self.path, TINY)
        self.call(self.path)
        again = self.path.parent / "again"
        self.call(self.path, "-o", again)
        for name in self.figures():
            self.assertEqual((again / name).read_bytes(), (self.path / "figures" / name).read_bytes(), name)

    def test_no_routing_files_yet(self) -> None:
        synthetic.write_metrics(self.path, TINY)
        status, out, _ = self.call(self.path)
        self.assertEqual(status, 0)
        self.assertIn("no routing files yet", out)
        self.assertIn("fluctuation.png: no routing log", out)
        self.assertEqual(self.figures(), ["agreement.png", "load-moe0.png", "load-moe1.png", "losses.png"])

    def test_other_version_still_makes_the_rest(self) -> None:
        synthetic.write_run(self.path, TINY)
        synthetic.write_routing(self.path, TINY, version=2)
        status, out, _ = self.call(self.path)
        self.assertEqual(status, 0)
        self.assertIn("has format version 2, this program reads 1", out)
        self.assertIn("losses.png", self.figures())
        self.assertNotIn("fluctuation.png", self.figures())

    def test_unfinished_run_of_one_stage(self) -> None:
        shape = synthetic.Shape(updates=3, stage1=50, probes=1, probe_tokens=8, files=1, experts=2)
        synthetic.write_run(self.path, shape)
        text = (self.path / "used.yml").read_text().replace("updates: 3", "updates: 500")
        (self.path / "used.yml").write_text(text)
        status, out, _ = self.call(self.path)
        self.assertEqual(status, 0)
        self.assertIn("3 of 500 updates (not finished", out)
        self.assertIn("fluctuation.png: 1 of the 2 probes", out)

    def test_routing_log_alone(self) -> None:
        synthetic.write_routing(self.path, TINY)
        status, out, _ = self.call(self.path)
        self.assertEqual(status, 0)
        self.assertEqual(self.figures(),
                         ["agreement.png", "fluctuation.png", "load-moe0.png", "load-moe1.png"])
        self.assertIn("losses.png: no metrics", out)

    def test_dense_run(self) -> None:
        (self.path / "metrics.csv").write_text("update,stage,tokens,loss\n1,1,10,5.0\n2,1,20,4.0\n")
        status, _, _ = self.call(self.path)
        self.assertEqual((status, self.figures()), (0, ["losses.png"]))

    def test_nothing_there(self) -> None:
        status, out, err = self.call(self.path)
        self.assertEqual((status, out), (3, ""))
        self.assertIn("nothing to draw", err)
        status, out, err = self.call(self.path / "absent")
        self.assertEqual((status, out, err.count("\n")), (2, "", 1))
        self.assertIn("no run directory", err)

    def test_output_that_cannot_be_made(self) -> None:
        synthetic.write_metrics(self.path, TINY)
        (self.path / "figures").write_text("a file")
        status, _, err = self.call(self.path)
        self.assertEqual(status, 3)
        self.assertIn("cannot write the figures", err)


class SameNumbers(InDirectory):
    """Static figures, report page and summary of one run say the same."""

    def setUp(self) -> None:
        super().setUp()
        synthetic.write_run(self.path, TINY)
        synthetic.write_metrics(self.path, TINY, terms=("z_loss",))
        self.run_ = runs.open_run(self.path)
        self.data = collect.collect(self.run_, "a", quiet=True)
        self.summary = summary(self.run_)

    def draw(self, figure: object, *arguments: object) -> tuple[list, list[str]]:
        """The axes of a figure that is not saved, and all that is written in it."""
        kept = []
        save = figures._save
        self.addCleanup(setattr, figures, "_save", save)
        self.addCleanup(figures.plt.close, "all")
        figures._save = lambda drawing, _: kept.append(drawing)
        with figures.plt.style.context(["default", look.STYLE]):
            figure(self.run_, *arguments, self.path / "x.png")
        figures._save = save
        texts = [text.get_text() for text in kept[0].findobj(figures.matplotlib.text.Text)]
        return kept[0].axes, texts

    def same(self, drawn: object, told: dict, scale: float = 1) -> None:
        """A running mean of a figure is that of the page."""
        np.testing.assert_allclose(drawn.get_xdata(), told["x"], rtol=1e-5)
        np.testing.assert_allclose(scale * drawn.get_ydata(), told["mean"]["0.02"], rtol=1e-4)  # which has five digits

    def test_losses(self) -> None:
        axes, texts = self.draw(figures.losses)
        told, ends = self.data["losses"], self.data["ends"]
        self.same(axes[0].lines[1], told["loss"])
        np.testing.assert_allclose(axes[0].lines[2].get_ydata(), told["valid"]["y"], rtol=1e-7)
        self.assertIn(f"training {ends['train']:.3f}", texts)
        self.assertIn(f"training {ends['train']:.4f} nats", self.summary)
        self.assertIn(f"validation {ends['valid']:.4f}", self.summary)
        self.assertIn(f"best {ends['best']:.4f}", self.summary)
        self.assertIn(f"{look.LABELS['unigram']} {self.data['baselines']['unigram']:.3f}", texts)
        terms = [told[key] for key in ("balance", "distill", "term:z_loss")]
        for ax, term in zip(axes[1:], terms, strict=True):
            mean = ax.lines[1].get_ydata()
            np.testing.assert_allclose(mean[np.isfinite(mean)], term["mean"]["0.02"], rtol=1e-5)
            self.assertEqual((ax.get_title("left"), ax.get_ylabel()), (term["title"], term["unit"]))
            self.assertEqual(ax.lines[1].get_color(), look.LINES["light"][term["place"]])
        self.assertEqual(axes[0].lines[-1].get_xdata()[0], self.data["switch_at"]["update"])

    def test_loads(self) -> None:
        for m, layer in enumerate(self.data["layers"]):
            axes, texts = self.draw(figures.load, m)
            mesh = axes[0].collections[0]
            np.testing.assert_allclose(mesh.get_array().reshape(TINY.experts, -1), layer["heat"]["rows"], rtol=6e-3)
            self.assertAlmostEqual(mesh.norm.vmax, layer["heat"]["highest"], delta=1e-3)
            for ax, key in zip(axes[1:3], ("max_over_mean", "cv")):
                self.same(ax.lines[1], layer[key])
                self.assertIn(f"{layer['end_' + key]:.2f}", texts)
                self.assertIn(f"{layer['end_' + key]:.2f}", self.summary)
            self.assertIn(f"dropped {layer['end_drop']:.2f} %", self.summary)

    def test_fluctuation(self) -> None:
        (ax,), _ = self.draw(figures.fluctuation)
        for line, layer in zip(ax.lines, self.data["layers"]):
            np.testing.assert_allclose(100 * line.get_xdata(), layer["fluctuation"]["x"], rtol=1e-5)
            np.testing.assert_allclose(100 * line.get_ydata(), layer["fluctuation"]["y"], rtol=1e-5)
            self.assertIn("".join(f"{share:>6.1f} %" for share in layer["fluctuation"]["shares"].values()),
                          self.summary)
        self.assertAlmostEqual(100 * ax.lines[-1].get_xdata()[0], self.data["switch_at"]["share"])

    def test_agreement(self) -> None:
        (ax,), texts = self.draw(figures.agreement)
        for m, layer in enumerate(self.data["layers"]):
            self.same(ax.lines[3 * m + 1], layer["agreement"]["train"])
            np.testing.assert_allclose(ax.lines[3 * m + 2].get_ydata(), layer["agreement"]["probe"]["y"], rtol=1e-5)
            self.assertIn(f"MoE layer {m} {layer['agreement']['end']:.1f} %", texts)
            self.assertIn(f"training tokens {layer['agreement']['end']:.1f} %", self.summary)

    def test_look(self) -> None:
        told = page.content("x", [self.data], [])["look"]
        self.assertEqual(told["lines"]["light"][:6], figures.LAYER_COLOURS)
        self.assertEqual([one["key"] for one in told["balance"]], list(routing.Balance._fields))
        scripts = "".join((page.STATIC / name).read_text("utf-8") for name in page.SCRIPTS)
        for word in ("published", "fluctuation", "training", "agreement", "loads", "heat", "loss", "unigram", "bigram"):
            self.assertIn(f"LABELS.{word}", scripts)
            self.assertNotIn(f'"{look.LABELS[word]}"', scripts, "written a second time")


class Interpreter(InDirectory):
    """Interpreters that lack packages."""

    def bare(self, *arguments: str, python: str) -> subprocess.CompletedProcess[str]:
        """Run the command with an interpreter that sees no packages beside its own library."""
        program = (f"import sys, runpy; sys.path.insert(0, {str(ROOT)!r}); sys.dont_write_bytecode = True; "
                   f"sys.argv[1:] = {list(arguments)!r}; runpy.run_module('analysis', run_name='__main__')")
        return subprocess.run([sys.executable, "-I", "-S", "-c", program], capture_output=True, text=True,
                              env={**os.environ, "STABLEMOE_PYTHON": python}, check=False, timeout=120)

    def test_help_needs_no_packages(self) -> None:
        done = self.bare("--help", python="/nonexistent")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn("fluctuation.png", done.stdout)

    def test_packages_missing(self) -> None:
        done = self.bare(str(self.path), python="/nonexistent")
        self.assertEqual(done.returncode, 2)
        self.assertIn("python3-numpy python3-h5py python3-matplotlib", done.stderr)
        self.assertIn("STABLEMOE_PYTHON=/nonexistent", done.stderr)
        self.assertNotIn("Traceback", done.stderr)

    def test_other_interpreter_takes_over(self) -> None:
        synthetic.write_metrics(self.path, TINY)
        done = self.bare(str(self.path), python=sys.executable)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn("losses.png", self.figures())


if __name__ == "__main__":
    unittest.main()
