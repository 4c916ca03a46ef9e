"""Tests of `python3 -m analysis report`: the page's data, and what is said where something is wrong."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shutil
import sys
import tempfile
import unittest
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
sys.dont_write_bytecode = True

import analysis

if analysis.missing_modules(("numpy", "h5py")):
    print(f"skipped: {sys.executable} cannot import numpy and h5py")
    sys.exit(77)

import h5py
import numpy as np

import synthetic
from analysis.__main__ import main
from analysis.report import compare, names_of
from analysis.run import open_run

TINY = synthetic.Shape(updates=100, stage1=20, layers=2, experts=4, tokens=256, probes=20, probe_tokens=40, files=4)


class Report(unittest.TestCase):
    """Whole reports."""

    def setUp(self) -> None:
        held = tempfile.TemporaryDirectory()
        self.addCleanup(held.cleanup)
        self.root = Path(held.name)
        self.page = self.root / "page.html"
        self.run_a = self.root / "a"
        synthetic.write_run(self.run_a, TINY)

    def call(self, *arguments: object) -> tuple[int, str, str]:
        """Exit status, stdout and stderr of the command."""
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = main(["report", *map(str, arguments), "-o", str(self.page)])
        return status, out.getvalue(), err.getvalue()

    def data(self) -> dict:
        """The data in the page."""
        text = self.page.read_text(encoding="utf-8")
        return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S).group(1))

    def second(self, **change: object) -> Path:
        path = self.root / "b"
        synthetic.write_run(path, synthetic.Shape(**{**TINY.__dict__, **change}))
        return path

    def test_numbers_of_a_run(self) -> None:
        synthetic.write_tokens(self.run_a, experts=4, layers=2, records=10, tokens=400, slots=1)
        status, out, err = self.call(self.run_a)
        self.assertEqual(status, 0, err)
        self.assertIn("1 run)", out)
        self.assertRegex(err, r"a: [\d,]+ assignments in")
        self.assertNotIn("warning", err)
        (run,) = self.data()["runs"]
        self.assertEqual((run["method"], run["n_layers"], run["n_experts"], run["switch"]), ("stable", 2, 4, 21))
        layer = run["layers"][1]
        self.assertEqual(sorted(layer["fluctuation"]["shares"]), ["20", "50", "80"])
        self.assertEqual(layer["fluctuation"]["y"][-1], 100)
        self.assertEqual(layer["fluctuation"]["tokens"], 37)
        self.assertEqual(layer["information_end"]["share"], 100)  # there a token's id decides
        self.assertEqual(run["counted"]["records"], 5)  # of ten of stage 1 the last half
        self.assertEqual(sum(map(sum, run["flow"][0]["counts"])), 2000)
        for e, expert in enumerate(layer["special"]):
            for text, token, _, lift, share in expert["top"]:
                self.assertEqual(((token + 1) % 4, share), (e, 1))
                self.assertAlmostEqual(lift * expert["share"], 1, delta=0.01)
                self.assertEqual(text, "\n" if token == 1 else synthetic.pieces(1000)[token].replace("\u2581", " "))
        heat = np.array(layer["heat"]["rows"])
        np.testing.assert_allclose(heat.mean(0), 1, atol=0.01)
        self.assertEqual(run["baselines"], {"unigram": 6.42, "bigram": 4.87})
        self.assertEqual(len(run["passage"]["steps"]), 20)

    def test_images(self) -> None:
        """Accuracies, the places that experts take, and pictures; nothing of tokens."""
        run = self.root / "images"
        synthetic.write_images_run(run)
        (run / "test.json").write_text('{"accuracy": 0.625}', encoding="utf-8")
        status, _, err = self.call(run)
        self.assertEqual(status, 0)
        self.assertNotIn("warning", err)
        (run,) = self.data()["runs"]
        self.assertTrue(run["images"])
        self.assertAlmostEqual(run["ends"]["accuracy"], 40)
        self.assertEqual((run["ends"]["accuracy_test"], run["losses"]["valid_accuracy"]["y"]), (0.625, [10, 20, 30, 40]))
        self.assertNotIn("term:accuracy", run["losses"])
        self.assertEqual((run["passage"], run["baselines"]), (None, None))
        layer = run["layers"][0]
        self.assertEqual(layer["places"], [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]])
        self.assertEqual(run["layers"][1]["places"], [[0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
        self.assertEqual(layer["information_end"]["share"], 100)  # the place decides
        self.assertEqual([expert["ids"] for expert in layer["special"]], [1, 1, 1])
        pictures = run["pictures"]
        self.assertEqual((pictures["update"], len(pictures["items"])), (4, 12))
        for item in pictures["items"]:
            self.assertEqual(item["experts"], [[[0], [1], [2], []], [[], [0], [1], [2]]])
            self.assertEqual((item["label"], item["place"]), (("cat", "dog")[item["image"] % 2], item["image"] % 4))
            self.assertTrue(item["src"].startswith("data:image/png;base64,"))

    def test_images_without_their_corpus(self) -> None:
        run = self.root / "images"
        synthetic.write_images_run(run)
        (run / "images.h5").unlink()
        status, _, err = self.call(run)
        self.assertEqual(status, 0)
        self.assertIn("images.h5 not found: no images are shown", err)
        (run,) = self.data()["runs"]
        self.assertIsNone(run["pictures"])
        self.assertEqual(run["layers"][0]["places"][0], [1, 0, 0, 0])

    def test_page_is_one_file_that_needs_no_network(self) -> None:
        self.call(self.run_a)
        text = self.page.read_text(encoding="utf-8")
        self.assertNotRegex(text, r"<(link|script|img)[^>]+(src|href)=\"(?!data:)")
        for address in re.findall(r"\w+://[^\"'`\s)]+", text):
            self.assertEqual(address, "http://www.w3.org/2000/svg")
        self.assertEqual(text.count("</script>"), 2)  # no text of a token ends the data
        self.assertIn("prefers-color-scheme: dark", text)

    def test_same_bytes_again(self) -> None:
        self.call(self.run_a)
        first = self.page.read_bytes()
        self.call(self.run_a)
        self.assertEqual(self.page.read_bytes(), first)

    def test_names_of_runs(self) -> None:
        self.assertEqual(names_of([Path("/x/a"), Path("/x/b")]), ["a", "b"])
        self.assertEqual(names_of([Path("/x/a"), Path("/y/a")]), ["x/a", "y/a"])
        self.assertEqual(len(set(names_of([Path("/x/a"), Path("/x/a")]))), 2)

    def test_comparison(self) -> None:
        status, _, err = self.call(self.run_a, self.second(seed=1))
        self.assertEqual(status, 0)
        self.assertNotIn("warning", err)
        self.assertEqual([run["name"] for run in self.data()["runs"]], ["a", "b"])
        self.assertEqual(self.data()["warnings"], [])

    def test_runs_that_differ_in_their_seed_alone_are_a_group(self) -> None:
        base = {"moe.experts": 8, "run.seed": 1}
        data = [{"name": name, "settings": settings} for name, settings in (
            ("base-seed1", base), ("base-seed2", {**base, "run.seed": 2, "run.directory": "x"}),
            ("wide", {**base, "moe.experts": 16}), ("old", {}), ("older", {}))]
        compare.group(data)
        self.assertEqual([entry["group"] for entry in data], [0, 0, 1, 2, 3])
        self.assertEqual([entry["group_name"] for entry in data], ["base (2 runs)"] * 2 + ["wide", "old", "older"])

    def test_different_corpora(self) -> None:
        other = self.second(seed=1)
        synthetic.write_corpus(other / "corpus.h5", fingerprint=8)
        status, _, err = self.call(self.run_a, other, "-q")
        self.assertEqual(status, 0)
        self.assertIn("warning: these runs are over different corpora", err)
        self.assertIn("a / b", self.data()["warnings"][0])
        self.assertEqual(len(self.data()["runs"]), 2)

    def test_different_probes_and_updates(self) -> None:
        _, _, err = self.call(self.run_a, self.second(seed=2, updates=60), "-q")
        self.assertIn("these runs probe different tokens", err)
        self.assertIn("fewer updates than the 100 of the others: b 60", err)

    def test_corpus_of_another_training(self) -> None:
        (self.run_a / "checkpoints").mkdir()
        with h5py.File(self.run_a / "checkpoints/latest", "w") as file:
            file.create_group("meta").attrs["fingerprint"] = np.uint64(99)
        _, _, err = self.call(self.run_a, "-q")
        self.assertIn("is not the corpus of the training any more", err)
        self.assertIn("#", self.data()["runs"][0]["layers"][0]["special"][0]["top"][0][0])
        self.assertIsNone(open_run(self.run_a).baselines, "what counting reaches on another corpus")

    def test_corpus_where_the_training_had_it(self) -> None:
        """From whatever directory, and before another of the same name."""
        elsewhere = self.run_a / "elsewhere.h5"
        synthetic.write_corpus(elsewhere, fingerprint=99)
        (self.run_a / "checkpoints").mkdir()
        with h5py.File(self.run_a / "checkpoints/latest", "w") as file:
            meta = file.create_group("meta")
            meta.attrs["fingerprint"], meta.attrs["corpus_absolute"] = np.uint64(99), np.bytes_(str(elsewhere))
        run = open_run(self.run_a)
        self.assertEqual(run.corpus, elsewhere)
        self.assertIsNotNone(run.baselines)

    def test_damage_is_named_and_the_rest_is_made(self) -> None:
        files = sorted((self.run_a / "routing").glob("*.h5"))
        with h5py.File(files[1], "r+") as file:
            file.attrs["version"] = 9
        files[2].write_bytes(files[2].read_bytes()[:3000])
        with h5py.File(files[3], "r+") as file:
            for name in list(file):
                del file[name]
        status, _, err = self.call(self.run_a, "-q")
        self.assertEqual(status, 0)
        notes = self.data()["runs"][0]["notes"]
        for word in ("has format version 9, this program reads 1", "step-000000075.h5 cannot be read",
                     "step-000000100.h5 has no rows: nothing was recorded in that stretch"):
            self.assertTrue(any(word in note for note in notes), (word, notes))
            self.assertIn(word, err)
        self.assertEqual(self.data()["runs"][0]["layers"][0]["fluctuation"]["probes"], 5)

    def test_unfinished_run(self) -> None:
        text = (self.run_a / "used.yml").read_text().replace("updates: 100", "updates: 500")
        (self.run_a / "used.yml").write_text(text)
        status, _, err = self.call(self.run_a)
        self.assertEqual(status, 0)
        self.assertIn("warning: a: not finished: 100 of 500 updates", err)
        self.assertIn("not finished", self.data()["runs"][0]["notes"][0])

    def test_what_is_missing_is_left_out(self) -> None:
        shutil.rmtree(self.run_a / "routing")
        (self.run_a / "corpus.h5").unlink()
        status, _, err = self.call(self.run_a)
        self.assertEqual(status, 0)
        self.assertIn("no routing files yet", err)
        (run,) = self.data()["runs"]
        self.assertEqual((run["passage"], run["n_layers"]), (None, 2))  # the metrics know the layers
        self.assertIn("cv", run["layers"][0])
        self.assertIsNone(run["layers"][0]["fluctuation"])

    def test_routing_log_alone(self) -> None:
        for name in ("metrics.csv", "used.yml", "corpus.h5"):
            (self.run_a / name).unlink()
        status, _, err = self.call(self.run_a)
        self.assertEqual(status, 0)
        self.assertIn("no metrics.csv", err)
        self.assertEqual(self.data()["runs"][0]["losses"], {})

    def test_dense_run(self) -> None:
        path = self.root / "dense"
        path.mkdir()
        (path / "metrics.csv").write_text("update,stage,tokens,loss,time_linear,time_other\n1,1,10,5.0,0.2,0.1\n"
                                          "2,1,20,4.0,0.4,0.1\n")
        (path / "used.yml").write_text("moe:\n  layers: 0\nrouter:\n  method: stable\ntrain:\n  updates: 2\n")
        status, _, err = self.call(path, "-q")
        self.assertEqual((status, err), (0, ""))
        (run,) = self.data()["runs"]
        self.assertEqual((run["method"], run["n_layers"]), ("dense", 0))
        self.assertEqual(run["time"]["phases"], {"linear": 0.3, "other": 0.1})

    def test_gates(self) -> None:
        """Which rows skip: over records of all tokens, or over the last probe."""
        for whole in (True, False):
            with self.subTest(whole=whole):
                run = self.root / f"gates-{whole}"
                synthetic.write_run(run, TINY)
                shutil.rmtree(run / "routing")
                synthetic.write_gates(run, records=10, tokens=640, whole=whole)
                status, _, err = self.call(run)
                self.assertEqual(status, 0, err)
                (data,) = self.data()["runs"]
                with h5py.File(run / "routing" / "step-000000010.h5") as file:
                    ids = file["tokens/id"][5:].ravel() if whole else file["probe/token"][:-3]
                self.assertEqual((data["n_layers"], data["flow"]), (0, []))
                self.assertEqual(data["skips"]["counted"]["source"], "training tokens" if whole else "probe")
                for g, gate in enumerate(data["skips"]["gates"]):
                    self.assertEqual(gate["tokens"], len(ids))
                    self.assertAlmostEqual(gate["skipped"], 100 * (ids % (g + 2) == 0).mean(), places=2)
                    self.assertEqual(sum(part["tokens"] for part in gate["frequency"]), len(ids))
                    self.assertEqual(sum(part["ids"] for part in gate["frequency"]), len(np.unique(ids)))
                    self.assertGreaterEqual(gate["frequency"][0]["tokens"], len(ids) / 4)
                    skipped = sum(part["tokens"] * (part["skipped"] or 0) for part in gate["frequency"]) / len(ids)
                    self.assertAlmostEqual(skipped, gate["skipped"], places=2)
                    for _, number, times, share in gate["ids"]:
                        self.assertEqual((times, share), ((ids == number).sum(), 100 * (number % (g + 2) == 0)))
                    self.assertEqual(len(gate["share"]["x"]), 10)
                status, _, err = self.call(run, self.run_a)
                self.assertEqual(status, 0, err)
                self.assertIsNone(self.data()["runs"][1]["skips"])

    def test_no_run(self) -> None:
        (self.root / "empty").mkdir()
        for path, what in ((self.root / "absent", "no such directory"), (self.root / "empty", "it has none of")):
            status, out, err = self.call(self.run_a, path)
            self.assertEqual((status, out, err.count("\n")), (2, "", 1))
            self.assertIn(f"'{path}' is no run directory: {what}", err)
        self.assertFalse(self.page.exists())

    def test_output_in_a_new_directory(self) -> None:
        self.page = self.root / "new/below/page.html"
        self.assertEqual(self.call(self.run_a, "-q")[0], 0)
        self.assertTrue(self.page.is_file())

    def test_output_that_cannot_be_written(self) -> None:
        (self.root / "file").touch()
        self.page = self.root / "file/page.html"
        status, _, err = self.call(self.run_a, "-q")
        self.assertEqual((status, err.count("\n")), (3, 1))
        self.assertIn("cannot write the report", err)
        self.assertEqual([path for path in self.root.rglob("*.part")], [])


if __name__ == "__main__":
    unittest.main()
