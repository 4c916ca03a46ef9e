"""Tests of the scaling study, its cost model and its forecast, and of jobs/scaling.sh with the program."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import math
import os
import subprocess
import sys
import tempfile
import unittest
from dataclasses import asdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
sys.dont_write_bytecode = True

import analysis

if analysis.missing_modules():
    print(f"skipped: {sys.executable} cannot import {', '.join(analysis.missing_modules())} "
          f"(Debian: {analysis.DEBIAN_PACKAGES})")
    sys.exit(77)

import numpy as np

from analysis import (
    scaling, scaling_forecast, scaling_model, scaling_network, scaling_plan, scaling_planned, scaling_report,
    scaling_study,
)
from analysis.scaling_model import Batch, Costs, Network, Place, Shape
from analysis.settings import parse_settings

SHAPE = Shape(width=256, blocks=6, heads=8, inner=1024, context=256, vocabulary=8192, moe_layers=1, experts=8,
              slots=1, sublayers=2, moe_inner=1024)
BATCH = Batch(sequences=32, micro_batches=1, lanes=16)
PROFILE = tuple(np.array([9, 8, 8, 8, 8, 8, 8, 7]) / 8)
TRUE = Costs(seconds_per_unit={"linear": 1 / 90e9, "attention": 1 / 45e9, "head": 1 / 85e9, "experts": 1 / 80e9,
                               "passes": 2e-9},
             contention=0.06, seconds_per_byte=1 / 8e9, seconds_per_adam=1 / 400e6, waiting=0.02,
             network=Network(1e-6, 4e9, 2e-5, 1.2e8), profile=PROFILE, packed=False)


def bench(ranks: int, per_node: int, costs: Costs = TRUE, batch: Batch = BATCH, cores: int = 4) -> dict[str, Any]:
    """What bench would print if the model were the truth."""
    group = scaling_plan.expert_ranks(ranks, SHAPE.experts)
    place = Place(ranks, min(ranks, per_node), cores, group)
    time = scaling_model.predict(costs, SHAPE, batch, place)
    slow = place.turns * (1 + costs.contention * place.busy)
    amount = scaling_model.work(SHAPE, batch)
    phases = {name: amount[name] * costs.seconds_per_unit[name] / ranks * slow for name in scaling_model.PRODUCTS}
    phases |= dict.fromkeys(scaling_model.PASSES, 0.0)
    phases["norm"] = amount["passes"] * costs.seconds_per_unit["passes"] / ranks * slow
    phases |= {"reduction": time.reduction, "optimizer": time.optimizer, "plan": 0.0,
               "transfer": max(0.0, time.total - sum(phases.values()) - time.reduction - time.optimizer)}
    links = []
    for sent in (1e3, 3e4, 1e6) if ranks > 1 else ():
        links.append({"bytes": sent, "seconds": scaling_model.all_to_all(costs.network, place, group, 1, sent)})
    stage = {"stage": 2, "seconds": time.total, "tokens_per_s": batch.sequences * SHAPE.context / time.total,
             "load_max_over_mean": scaling_model.imbalance(np.array(PROFILE), group, False),
             "update_seconds": [time.total] * 3, "update_processor_seconds": [time.total] * 3, "losses": [9.5, 9.25, 9.125], "loads": [[1024 * x for x in PROFILE]],
             "loss": 9.125, "phase_seconds": phases}
    return {"ranks": ranks, "nodes": math.ceil(ranks / per_node), "cores_per_node": cores, "expert_ranks": group,
            "model": asdict(SHAPE), "batch": asdict(batch), "alltoallv": links, "stages": [stage],
            "gemm_flops_per_s": 90e9}


def made_up(directory: Path, ranks: tuple[int, ...] = (1, 2, 4, 8, 16), mode: str = "strong") -> Path:
    """A study of two repeats in a directory."""
    (directory / "points").mkdir(parents=True)
    about = {"format": 1, "config": "configs/made-up.yml", "config_sha256": "", "mode": mode, "keys": [], "bench": [],
             "cores_per_node": None, "points": []}
    (directory / "study.json").write_text(json.dumps(about))
    for count in ranks:
        for repeat in (1, 2):
            batch = Batch(32 * count, 1, 16 * count) if mode == "weak" else BATCH
            scaling_study.point_file(directory, count, repeat).write_text(json.dumps(bench(count, 4, batch=batch)))
    return directory


class Temporary(unittest.TestCase):
    """A directory per test."""

    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory(prefix="stablemoe-scaling-")
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)

    def change(self, study: Path, ranks: int, repeat: int, losses: list[float]) -> None:
        file = scaling_study.point_file(study, ranks, repeat)
        found = json.loads(file.read_text())
        found["stages"][0]["losses"] = losses
        file.write_text(json.dumps(found))


class StudyFiles(Temporary):
    """Configurations, plans, tables."""

    def test_config(self) -> None:
        text = "a: {b: 1, c: two} # note\nd:\n  e: true\n  f:\n    g: 6e-4 # x\n  h: 3\n"
        self.assertEqual(parse_settings(text),
                         {"a.b": 1, "a.c": "two", "d.e": True, "d.f.g": 6e-4, "d.h": 3})
        settings = scaling_plan.resolved_config(ROOT / "configs" / "bench" / "width256.yml", ["train.lanes=2"])
        self.assertEqual([settings[k] for k in ("model.width", "model.inner", "train.lanes", "moe.experts")],
                         [256, 1024, 2, 8])

    def test_parameters_are_those_the_program_counts(self) -> None:
        tiny = Shape(16, 2, 2, 64, 16, 8192, 1, 4, 1, 1, 64)
        routers = 4 * 16 + 4 * 50 + 8192 * 50  # centroids, and the distilled router's
        self.assertEqual((tiny.shared + routers, tiny.in_experts), (547784, 8640))  # as bench says of configs/tiny

    def test_ranks_that_cannot_be(self) -> None:
        settings = {"train.lanes": 8, "moe.experts": 4, "moe.layers": 1, "comm.expert_ranks": 0}
        with self.assertRaisesRegex(scaling_study.StudyError, r"16 ranks but train.lanes = 8.*train\.lanes=16"):
            scaling_plan.check_ranks(settings, "strong", [1, 16])
        notes = scaling_plan.check_ranks(settings, "weak", [4, 16])
        self.assertEqual(len(notes), 1)
        self.assertIn("4 replicas of 4", notes[0])

    def test_table(self) -> None:
        study = scaling_study.load(made_up(self.folder / "s"))
        rows = scaling_study.table(study)
        self.assertEqual([row.ranks for row in rows], [1, 2, 4, 8, 16])
        self.assertEqual([row.nodes for row in rows], [1, 1, 1, 2, 4])
        self.assertAlmostEqual(rows[2].speedup, rows[0].seconds / rows[2].seconds)
        self.assertAlmostEqual(rows[2].efficiency, rows[2].speedup / 4)
        self.assertAlmostEqual(rows[1].volume, 4 * 32 * 256 * 256 * 4 / 2)  # half of the rows leave their rank
        self.assertEqual(len(scaling_study.text_table(study).splitlines()), 3 + 5)

    def test_disturbed(self) -> None:
        path = made_up(self.folder / "s", (1, 2))
        for repeat in (1, 2):
            file = scaling_study.point_file(path, 2, repeat)
            found = json.loads(file.read_text())
            found["stages"][0]["update_processor_seconds"] = [x / 2 for x in found["stages"][0]["update_seconds"]]
            file.write_text(json.dumps(found))
        study = scaling_study.load(path)
        self.assertEqual([row.disturbed for row in scaling_study.table(study)], [False, True])
        self.assertIn("quieter time", scaling_study.text_table(study))

    def test_losses(self) -> None:
        path = made_up(self.folder / "s", (1, 2, 4))
        self.assertTrue(scaling_study.check_losses(scaling_study.load(path))[0])
        self.change(path, 2, 1, [9.5, 9.25, math.nextafter(9.125, 10)])
        good, lines = scaling_study.check_losses(scaling_study.load(path))
        self.assertFalse(good)
        self.assertIn("NOT the same", lines[0])
        self.change(path, 2, 1, [9.5, 9.25, math.nan])
        self.assertFalse(scaling_study.check_losses(scaling_study.load(path))[0])

    def test_losses_of_replicas_and_of_weak_studies(self) -> None:
        path = made_up(self.folder / "s", (8, 16))
        for repeat in (1, 2):
            self.change(path, 16, repeat, [9.5, 9.25, 9.1250001])
        good, lines = scaling_study.check_losses(scaling_study.load(path))
        self.assertTrue(good, lines)
        self.assertIn("agree to rounding", lines[-1])
        weak = made_up(self.folder / "w", (1, 2), "weak")
        for repeat in (1, 2):
            self.change(weak, 2, repeat, [9.0, 8.0, 7.0])
        good, lines = scaling_study.check_losses(scaling_study.load(weak))
        self.assertTrue(good, lines)
        self.change(weak, 2, 2, [9.0, 8.0, 7.5])
        self.assertFalse(scaling_study.check_losses(scaling_study.load(weak))[0])

    def test_collecting_keeps_everything(self) -> None:
        path = made_up(self.folder / "s", (1, 2))
        with contextlib.redirect_stdout(io.StringIO()):
            self.assertEqual(scaling_plan.main(["collect", str(path)]), 0)
        for file in (path / "points").iterdir():
            file.unlink()
        self.assertEqual(len(scaling_study.load(path).points), 4)
        self.assertGreater((path / "scaling.png").stat().st_size, 10000)
        self.assertIn("<svg", (path / "scaling.svg").read_text()[:2000])


class Model(Temporary):
    """The fit gets back what made the figures; the equations against numbers worked by hand."""

    def setUp(self) -> None:
        super().setUp()
        self.study = scaling_study.load(made_up(self.folder / "s"))

    def test_fit_recovers_the_costs(self) -> None:
        costs = scaling_model.fit(self.study)
        for name, cost in TRUE.seconds_per_unit.items():
            self.assertAlmostEqual(costs.seconds_per_unit[name] / cost, 1, 6, name)
        for name in ("contention", "seconds_per_byte", "seconds_per_adam", "waiting"):
            self.assertAlmostEqual(getattr(costs, name) / getattr(TRUE, name), 1, 2, name)
        for name, value in asdict(TRUE.network).items():
            self.assertAlmostEqual(getattr(costs.network, name) / value, 1, 3, name)
        np.testing.assert_allclose(costs.profile, PROFILE)
        self.assertFalse(costs.packed)

    def test_processor_clock(self) -> None:
        """A machine with other work: all takes three times as long, by one clock."""
        for point in self.study.points:
            stage = point.stage()
            stage["update_seconds"] = [3 * x for x in stage["update_seconds"]]
            stage["phase_seconds"] = {name: 3 * x for name, x in stage["phase_seconds"].items()}
            point.clock = "processor"
        costs = scaling_model.fit(self.study)
        for name, cost in TRUE.seconds_per_unit.items():
            self.assertAlmostEqual(costs.seconds_per_unit[name] / cost, 1, 6, name)

    def test_left_out(self) -> None:
        rows = scaling_model.left_out(self.study)
        self.assertEqual([row[0] for row in rows], [1, 2, 4, 8, 16])
        for ranks, seen, predicted in rows[1:]:
            self.assertLess(abs(predicted / seen - 1), 0.01, ranks)
        self.assertLess(abs(rows[0][2] / rows[0][1] - 1), 0.1)  # without it nothing tells a rank alone from company

    def test_non_negative(self) -> None:
        a = np.array([[1.0, 1], [1, 2], [1, 3]])
        np.testing.assert_allclose(scaling_model.non_negative(a, a @ [2.0, 3.0]), [2, 3])
        np.testing.assert_allclose(scaling_model.non_negative(a, a @ [2.0, -1.0])[1], 0)

    def test_pieces(self) -> None:
        place = Place(8, 4, 4, 8)
        near, far, bytes_near, bytes_far = scaling_model.pieces(place, 8, 1, 800.0)
        self.assertEqual((near, far, bytes_near, bytes_far), (3, 4, 300, 4 * 400))
        # The two ranks with the same experts of two replicas of four are on two nodes.
        self.assertEqual(scaling_model.pieces(Place(8, 4, 4, 4), 2, 4, 100.0), (0, 1, 0, 4 * 50))

    def test_imbalance(self) -> None:
        profile = np.array([3.0, 3, 1, 1])
        self.assertEqual(scaling_model.imbalance(profile, 2, False), 1.5)
        self.assertEqual(scaling_model.imbalance(profile, 2, True), 1.0)
        self.assertEqual(scaling_model.imbalance(profile, 4, True), 1.5)
        self.assertEqual(scaling_model.imbalance(profile, 1, False), 1.0)
        self.assertAlmostEqual(scaling_model.profile_for(profile, 64).mean(), 1)

    def test_lanes(self) -> None:
        """A rank with one lane more than the others holds them up."""
        three, four = (scaling_model.predict(TRUE, SHAPE, Batch(32, 1, 4), Place(r, 1, 4, r)) for r in (3, 4))
        self.assertGreater(three.compute, 1.8 * four.compute)

    def test_turns(self) -> None:
        """More ranks than cores: no faster than the cores allow."""
        quick, late = (scaling_model.predict(TRUE, SHAPE, BATCH, Place(r, r, 2, r)) for r in (2, 8))
        self.assertGreater(late.compute, 0.99 * quick.compute)

    def test_splits(self) -> None:
        self.assertEqual(scaling_forecast.splits(16, 8), [1, 2, 4, 8])
        found = scaling_forecast.forecast(TRUE, SHAPE, Batch(64, 1, 64), 64, 4, 4)
        slowest = max(scaling_model.predict(TRUE, SHAPE, Batch(64, 1, 64), Place(64, 4, 4, g)).total for g in (1, 2, 4, 8))
        self.assertLess(found.time.total, slowest)
        tight = scaling_forecast.forecast(TRUE, SHAPE, Batch(64, 1, 64), 64, 4, 4, memory=1.0)
        self.assertEqual(tight.place.expert_ranks, 8)

    def test_forecasts(self) -> None:
        strong = scaling_forecast.forecasts(TRUE, SHAPE, BATCH, [1, 4, 32, 64], "strong", 4, 4, 1)
        self.assertEqual([f.place.ranks for f in strong], [1, 4, 32])  # 32 sequences
        self.assertAlmostEqual(strong[0].efficiency, 1)
        self.assertLess(strong[2].efficiency, strong[1].efficiency)
        weak = scaling_forecast.forecasts(TRUE, SHAPE, BATCH, [1, 64, 4096], "weak", 4, 4, 16)
        self.assertEqual(weak[1].batch, Batch(128, 1, 64))
        self.assertGreater(weak[2].tokens_per_s, weak[1].tokens_per_s)

    def test_adjusted(self) -> None:
        costs = scaling_report.adjusted(TRUE, self.study, 45e9, 1.5)
        self.assertAlmostEqual(costs.seconds_per_unit["linear"] / costs.seconds_per_unit["head"], 85 / 90)
        self.assertAlmostEqual(max(costs.profile), 1.5)
        other = scaling_report.adjusted(TRUE, self.study, None, None, (5e-6, 1e9))
        self.assertEqual(other.network, Network(1e-6, 4e9, 5e-6, 1e9))

    def test_command(self) -> None:
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            code = scaling.main([str(self.study.path), "--network", "2,100", "--ranks", "1,32,4096", "--config",
                                 str(ROOT / "configs" / "paper-base.yml"), "--per-node", "32", "--base-ranks", "32"])
        self.assertEqual(code, 0)
        self.assertIn("mean error", out.getvalue())
        self.assertRegex(out.getvalue(), r"\n +4096 +128 ")
        self.assertTrue((self.study.path / "forecast-paper-base.svg").exists())

    def test_no_study(self) -> None:
        err = io.StringIO()
        with contextlib.redirect_stderr(err):
            self.assertEqual(scaling.main([str(self.folder / "nowhere")]), 2)
        self.assertIn("jobs/scaling.sh makes one", err.getvalue())


def planned(ranks: int, per_node: int, group: int) -> dict[str, Any]:
    """What the program would print of SHAPE and BATCH on such ranks, as far as the forecast reads it, in the model's terms."""
    place = Place(ranks, min(ranks, per_node), per_node, group)
    nodes, replicas = math.ceil(ranks / per_node), ranks // group
    rows = BATCH.sequences * SHAPE.context * SHAPE.slots / ranks * SHAPE.width * 4.0

    def direct(members: int, stride: int, sent: float, calls: int) -> np.ndarray:
        near, far, bytes_near, bytes_far = scaling_model.pieces(place, members, stride, sent)
        return calls * np.array([ranks * near, ranks * bytes_near, ranks * far, nodes * bytes_far, bytes_far])

    def named(sums: np.ndarray) -> dict[str, float]:
        names = ("messages_within", "bytes_within", "messages_between", "bytes_between", "most_of_a_node_bytes")
        return dict(zip(names, map(float, sums)))

    def ring(members: int, parameters: float, at_once: int) -> np.ndarray:
        sent, between = 4.0 * parameters * (1 - 1 / members), ranks > per_node
        sums = np.array([ranks * (members - 1), ranks * sent, 0, 0, 0], float)
        return sums + np.array([0, 0, 0, 0, at_once * sent if between else 0])

    shared, local = SHAPE.shared, SHAPE.in_experts / group
    nothing = np.zeros(5)
    traffic = {"counts": nothing, "exchange": direct(group, 1, rows, 4), "norms": nothing,
               "reduction": direct(ranks, 1, 4.0 * shared, 1) + (direct(replicas, group, 4.0 * local, 1) if replicas > 1 else 0),
               "sharing": ring(ranks, shared, 1) + (ring(replicas, local, min(per_node, group)) if replicas > 1 else 0)}
    return {"ranks": ranks, "per_node": per_node, "nodes": nodes, "expert_ranks": group,
            "lanes_of_rank": math.ceil(BATCH.lanes / ranks), "lanes": BATCH.lanes, "experts": SHAPE.experts,
            "tokens": BATCH.sequences * SHAPE.context, "precision": "fp32", "work": scaling_model.work(SHAPE, BATCH),
            "reduction_bytes": scaling_model.reduction_bytes(SHAPE, BATCH, place),
            "adam_parameters": scaling_model.optimizer_parameters(SHAPE, place),
            "memory": {"rank_expected_bytes": 2.0 ** 30 / ranks}, "traffic": {n: named(t) for n, t in traffic.items()}}


class Planned(Temporary):
    """Updates that the program planned, at the costs of a study."""

    def plan(self, name: str, counts: dict[str, Any]) -> Path:
        path = self.folder / f"{name}.json"
        path.write_text(json.dumps(counts))
        return path

    def test_same_as_by_hand(self) -> None:
        """Counted by the program or by the equations of the model: the same time, part by part."""
        for ranks, per_node, group in ((1, 4, 1), (4, 4, 4), (8, 4, 8), (16, 4, 8), (16, 8, 2)):
            with self.subTest(ranks=ranks, per_node=per_node, group=group):
                plan = scaling_planned.read(self.plan("plan", planned(ranks, per_node, group)))
                seen = asdict(scaling_planned.predict(TRUE, plan))
                place = Place(ranks, min(ranks, per_node), per_node, group)
                by_hand = scaling_model.predict(TRUE, SHAPE, BATCH, place)
                counts = scaling_model.tree(TRUE.network, place, ranks, 4.0 * ranks * (SHAPE.experts + 1))
                norms = 3 * scaling_model.tree(TRUE.network, place, ranks, 8 * SHAPE.shared / 1024)
                for name, seconds in asdict(by_hand).items():
                    left_out = {"exchange": counts, "reduction": norms}.get(name, 0.0) if ranks > 1 else 0.0
                    self.assertAlmostEqual(seen[name], seconds - left_out, 9, name)

    def test_gathered(self) -> None:
        """Rounds at the latency of the slowest link, bytes by the node's link where it has the most."""
        sent = {"messages_within": 8.0, "messages_between": 8.0, "bytes_within": 800.0, "bytes_between": 800.0,
                "most_of_a_node_bytes": 400.0}
        counts = dict(planned(8, 4, 8), traffic=dict(planned(8, 4, 8)["traffic"], counts=sent))
        with_counts, without = (scaling_planned.predict(TRUE, scaling_planned.read(self.plan("plan", c))).exchange
                                for c in (counts, planned(8, 4, 8)))
        self.assertAlmostEqual(with_counts - without, 2 * 2e-5 + 400 / 1.2e8, 12)

    def test_dense(self) -> None:
        counts = dict(planned(4, 4, 4), expert_ranks=0, experts=0)
        time = scaling_planned.predict(TRUE, scaling_planned.read(self.plan("plan", counts)))
        self.assertEqual(time.imbalance, 0)

    def test_command(self) -> None:
        study = made_up(self.folder / "s")
        paths = [self.plan(str(ranks), planned(ranks, 4, min(ranks, 8))) for ranks in (16, 4)]
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            code = scaling.main([str(study), "--plan", *map(str, paths), "--memory", "0.1"])
        self.assertEqual(code, 0)
        lines = [line.split() for line in out.getvalue().splitlines()]
        rows = [line for line in lines if line and line[0] in ("4", "16")]
        rows = rows[-2:]
        self.assertEqual([row[:4] for row in rows], [["4", "1", "4", "8192"], ["16", "4", "8", "8192"]])
        fitted = scaling_model.fit(scaling_study.load(study))
        seconds = [scaling_planned.predict(fitted, scaling_planned.read(path)).total for path in reversed(paths)]
        self.assertEqual([row[4] for row in rows], [f"{1e3 * s:.1f}" for s in seconds])
        self.assertEqual([row[6] for row in rows], ["1.00", f"{seconds[0] / seconds[1] / 4:.2f}"])
        self.assertEqual([row[-1] == "*" for row in rows], [True, False])
        self.assertNotIn("written", out.getvalue())
        other = self.plan("other", dict(planned(4, 4, 4), precision="bf16"))
        with contextlib.redirect_stdout(out):
            self.assertEqual(scaling.main([str(study), "--plan", str(other)]), 0)
        self.assertIn("planned in bf16; the study's rates are those of fp32", out.getvalue())

    def test_refused(self) -> None:
        study = made_up(self.folder / "s", (1, 2))
        older = {name: value for name, value in planned(4, 4, 4).items() if name != "work"}
        for counts, said in ((older, "lacks work"), ({"ranks": 4}, "is no plan"), ([], "is no plan")):
            err = io.StringIO()
            with contextlib.redirect_stderr(err), contextlib.redirect_stdout(io.StringIO()):
                self.assertEqual(scaling.main([str(study), "--plan", str(self.plan("p", counts))]), 2)
            self.assertIn(said, err.getvalue())
        with contextlib.redirect_stderr(io.StringIO()), self.assertRaises(SystemExit):
            scaling.main([str(study), "--plan", "p.json", "--per-node", "2"])


class NetworkTable(Temporary):
    """The table of jobs/network.sh."""

    def run_of(self, name: str, seconds: float, loss: float = 9.5) -> None:
        stage = {"update_seconds": [seconds, 2 * seconds], "seconds": 2 * seconds, "losses": [loss],
                 "phase_seconds": {"transfer": seconds / 4}}
        (self.folder / f"{name}.json").write_text(json.dumps({"stages": [stage]}))

    def test_table(self) -> None:
        for name, seconds in (("1gbit-direct-0-1", 0.5), ("1gbit-direct-0-2", 0.4), ("1gbit-two_level-2-1", 0.2),
                              ("200mbit-direct-0-1", 2.0)):
            self.run_of(name, seconds)
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            self.assertEqual(scaling_network.main([str(self.folder)]), 0)
        lines = [line.split() for line in out.getvalue().splitlines()]
        self.assertEqual(lines[1], ["1gbit", "direct", "0", "2", "400.0", "900.0", "100.0", "1.00"])
        self.assertEqual(lines[2][-1], "2.00")
        self.assertEqual(lines[3][0], "200mbit")
        self.run_of("1gbit-direct-2-1", 0.5, loss=math.nextafter(9.5, 10))
        with contextlib.redirect_stdout(out):
            self.assertEqual(scaling_network.main([str(self.folder)]), 1)

    def test_nothing(self) -> None:
        with contextlib.redirect_stderr(io.StringIO()):
            self.assertEqual(scaling_network.main([str(self.folder)]), 2)


class Script(Temporary):
    """jobs/scaling.sh, with the program."""

    program: str | None = None

    def script(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        env = dict(os.environ, STABLEMOE=str(self.program))
        env["PATH"] = os.pathsep.join(["/usr/bin", env.get("PATH", "")])
        command = ["bash", str(ROOT / "jobs" / "scaling.sh"), str(ROOT / "configs" / "tiny" / "stable.yml"), *arguments,
                   "--updates", "2", "--vocab", "256", "-o", str(self.folder / "study")]
        return subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)

    def test_study(self) -> None:
        if not self.program:
            self.skipTest("no --program")
        result = self.script("--ranks", "1,2", "--repeat", "1")
        self.assertEqual(result.returncode, 0, result)
        self.assertRegex(result.stdout, r"losses: ranks 1, 2: 4 losses in each of 2 runs, the same bit for bit")
        self.assertTrue((self.folder / "study" / "scaling.png").exists())
        point = scaling_study.point_file(self.folder / "study", 2, 1)
        self.assertRegex(point.read_text(), r'"losses": \[\d\.\d{14}', "too few digits to tell two losses apart")
        figures = json.loads(point.read_text())
        stage = figures["stages"][-1]
        self.assertEqual((figures["ranks"], figures["nodes"], figures["expert_ranks"]), (2, 1, 2))
        self.assertAlmostEqual(sum(stage["loads"][0]), 8 * 16, 6)  # rows of an update: tokens
        self.assertEqual([link["bytes"] for link in figures["alltoallv"]][:2], [2 * 64, 4 * 2 * 64])
        spent = sum(stage["phase_seconds"].values())
        # Ranks that wait for each other between updates book that too, so more is possible.
        self.assertGreater(spent, 0.5 * sum(stage["update_seconds"]) / 2, "phases add up to the update")
        shape = scaling_model.Shape(**figures["model"])
        self.assertEqual(shape.in_experts, figures["parameters"]["experts"])
        point.unlink()  # as if it had been interrupted
        again = self.script("--ranks", "1,2", "--repeat", "1")
        self.assertIn("scaling: 1 runs to do", again.stdout, again)
        other = self.script("--ranks", "1,2", "--repeat", "1", "-P", "run.seed=5")
        self.assertEqual(other.returncode, 2, other)
        self.assertIn("another study (keys differ)", other.stderr)

    def test_plan(self) -> None:
        """The program's own plan: its work by kind is what it counts in all, and what the model's equations count."""
        if not self.program:
            self.skipTest("no --program")
        config = ROOT / "configs" / "bench" / "width256.yml"
        command = [str(self.program), "train", str(config), "--dry-run", "--ranks", "8", "--per-node", "4", "--vocab", "8192",
                   "--json", "-P", f"run.directory={self.folder / 'run'}", "-P", "train.lanes=8", "-P",
                   "comm.share=rank", "-P", "comm.reduction=direct"]
        result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        self.assertEqual(result.returncode, 0, result)
        counts = json.loads(result.stdout)
        path = self.folder / "plan.json"
        path.write_text(result.stdout)
        work = counts["work"]
        self.assertAlmostEqual(sum(work[name] for name in scaling_model.PRODUCTS) / counts["flops"], 1, 6)
        settings = scaling_plan.resolved_config(config, ["train.lanes=8"])
        shape, batch = scaling_model.shape_of_config(settings, 8192)
        for name, amount in scaling_model.work(shape, batch).items():
            self.assertAlmostEqual(work[name] / amount, 1, 9, name)
        # Routers, which the equations leave out, are 6 % of the parameters here.
        place = Place(8, 4, 4, 8)
        by_hand = (scaling_model.optimizer_parameters(shape, place), scaling_model.reduction_bytes(shape, batch, place))
        for name, amount in zip(("adam_parameters", "reduction_bytes"), by_hand):
            self.assertAlmostEqual(counts[name] / amount, 1, delta=0.08)
        planned_time = asdict(scaling_planned.predict(TRUE, scaling_planned.read(path)))
        for name, seconds in asdict(scaling_model.predict(TRUE, shape, batch, place)).items():
            self.assertAlmostEqual(planned_time[name] / seconds, 1, delta=0.1, msg=name)

    def test_refused(self) -> None:
        if not self.program:
            self.skipTest("no --program")
        result = self.script("--ranks", "1,8")
        self.assertEqual(result.returncode, 2, result)
        self.assertIn("8 ranks but train.lanes = 4", result.stderr)
        self.assertEqual(self.script("--mode", "sideways").returncode, 2)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--program", help="path of stablemoe, for the tests of jobs/scaling.sh")
    known, rest = parser.parse_known_args()
    Script.program = known.program and os.path.abspath(known.program)
    unittest.main(argv=[sys.argv[0], *rest])
