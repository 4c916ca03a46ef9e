#!/usr/bin/env python3
"""The same bits on any number of ranks: metrics, checkpoints and routing logs of whole runs
across the switch of stages, against the run of one rank. Where ranks form replicas the bits may
differ, but must repeat.

    test_invariance.py --program stablemoe --ranks 3
"""

import os
import re
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "e2e"))
import numpy as np  # noqa: E402
import program as p  # noqa: E402

UPDATES = 20

# Name: settings beside those of configs/tiny/stable.yml, and whether experts drop tokens there;
# None: that, and whether there are stages, is the method's.
VARIANTS = {
    "plain": ([], False),
    "micro-batches": (["train.micro_batches=2"], False),
    "capacity": (["moe.capacity_factor=1.0"], True),
    "two-layers": (["moe.layers=2", "moe.position=scattered", "moe.sublayers=2", "train.micro_batches=2",
                    "moe.capacity_factor=1.0", "optimizer.decay=0.1", "schedule.kind=inverse_sqrt"], True),
    # Neither experts nor lanes can be shared out evenly.
    "uneven": (["moe.experts=5", "train.lanes=7", "train.batch_sequences=14", "moe.identical_experts=false"], False),
    # More ranks than experts: replicas of both experts, or of all, that share out the data.
    "replicas": (["moe.experts=2", "train.lanes=8", "moe.capacity_factor=1.0"], True),
    "whole-replicas": (["comm.expert_ranks=1", "optimizer.expert_gradient_factor=4"], False),
    # Long dot products: BLAS takes another path here when the rows of a call are few.
    "wide": (["model.width=64", "model.inner=1024", "moe.inner=1024", "model.context=32"], False),
    # Two threads per rank, in the kernels alone: arrays are large enough for these, products too small for BLAS, whose
    # threads wait for each other by spinning, which takes minutes where other programs keep the cores busy.
    "threads": (["model.width=4", "model.inner=600", "moe.inner=600", "model.context=32", "run.threads=2"], False),
    # Rows travel beside the experts' products, in slices, by way of nodes: other messages, the same bits.
    "overlap": (["comm.overlap=2", "moe.sublayers=2", "train.micro_batches=2"], False),
    "two-level": (["comm.exchange=two_level", "comm.node_ranks=1", "comm.overlap=1", "comm.slice_mib=0.001",
                   "moe.capacity_factor=1.0"], True),
    # Copies of the backbone on every rank; of the ranks of nodes that have several, or other numbers, of ranks.
    "copies": (["comm.share=rank", "train.precision=bf16"], False),
    "nodes": (["comm.node_ranks=2", "train.precision=bf16", "train.micro_batches=2", "comm.exchange=two_level"], False),
    "two-level-sums": (["comm.reduction=two_level", "comm.node_ranks=2", "moe.experts=5", "train.lanes=7",
                        "train.batch_sequences=14", "moe.layers=2", "moe.position=scattered"], False),
    "two-level-sums-node": (["comm.reduction=two_level", "comm.share=rank", "train.precision=bf16"], False),
    "dense": (["moe.layers=0"], None),
    # Products of bf16, rows that travel so, and their copies of experts that move.
    "bf16": (["train.precision=bf16", "moe.layers=2", "moe.position=scattered", "moe.sublayers=2",
              "train.micro_batches=2", "moe.capacity_factor=1.0", "comm.overlap=2"], True),
    "bf16-decoder": (["train.precision=bf16", "model.family=decoder", "moe.sublayers=1", "router.method=topk",
                      "model.decoder.shared_experts=1", "model.decoder.dropout=0.1", "train.recompute=true"], None),
    # Experts in place of feed-forward layers.
    "decoder": (["model.family=decoder", "moe.sublayers=1", "router.method=topk", "model.heads=4",
                 "model.decoder.kv_heads=2", "model.decoder.shared_experts=1", "model.decoder.dropout=0.1",
                 "train.micro_batches=2", "moe.capacity_factor=1.0"], None),
    "decoder-stable": (["model.family=decoder", "moe.sublayers=1", "model.blocks=3", "model.decoder.moe_every=2",
                        "model.decoder.norm=layer", "model.decoder.positions=learned", "model.decoder.activation=gelu",
                        "model.decoder.biases=true", "model.decoder.tied=true", "train.recompute=true",
                        "comm.overlap=2"], False),
}

# Images of four classes (IMAGES: their corpus): filters on patches, whose results are narrow rows, and a Transformer.
CNN = ["data.corpus=IMAGES", "model.family=cnn", "model.heads=1", "model.width=6", "model.context=4",
       "optimizer.method=sgd", "moe.identical_experts=false"]
VARIANTS["images-cnn"] = ([*CNN, "moe.layers=0", "train.micro_batches=2"], None)
VARIANTS["images-joint"] = ([*CNN, "router.method=pmoe", "router.pmoe.patches=3", "router.pmoe.deviation=0.5",
                             "comm.exchange=two_level", "comm.node_ranks=1"], None)
VARIANTS["images-separate"] = ([*CNN, "router.method=pmoe_separate", "model.cnn.output=class", "comm.overlap=2",
                                "train.micro_batches=2"], None)
VARIANTS["images-deep"] = (["data.corpus=IMAGES", "model.family=vision", "model.context=4", "model.vision.dropout=0.1",
                            "router.method=expert_choice", "router.expert_choice.within_sequence=true",
                            "router.expert_choice.evaluation=experts", "comm.overlap=2", "train.recompute=true"], None)

# With --small, on more than two ranks: every way of the exchange, replicas, threads.
SMALL = ("two-layers", "uneven", "replicas", "threads", "overlap", "two-level", "bf16", "copies", "nodes",
         "two-level-sums", "two-level-sums-node")

# Distilled routers that look at more than the word, and choices of methods that draw random numbers.
for features in ("bigram", "cnn", "transformer"):
    VARIANTS[features] = ([f"router.stable.features={features}", "train.micro_batches=2"], False)
VARIANTS["causal"] = (["router.method=expert_choice", "router.expert_choice.causal=true"], None)
VARIANTS["topk-sigmoid"] = (["router.method=topk", "router.topk.scores=sigmoid", "router.topk.bias_rate=0.01",
                            "router.topk.balance_over=sequence", "router.topk.z_loss_weight=0.01",
                            "train.micro_batches=2"], None)
VARIANTS["stable-bias"] = (["router.method=stable", "router.stable.bias_rate=0.01", "router.stable.gate_start=0.9",
                           "train.micro_batches=2"], None)
VARIANTS["hash-gate"] = (["router.method=hash", "router.hash.gate=sigmoid", "optimizer.router_lr_factor=0.5"], None)
VARIANTS["recurrent-depth"] = (["router.method=recurrent", "model.blocks=3", "moe.layers=3", "moe.position=scattered",
                                "moe.experts=5", "train.lanes=7", "train.batch_sequences=14", "moe.capacity_factor=1.0",
                                "router.recurrent.width=24"], None)
VARIANTS["sparsemixer-v2"] = (["router.method=sparsemixer", "router.sparsemixer.version=v2", "router.sparsemixer.k=2",
                               "router.sparsemixer.epsilon=0.6", "router.sparsemixer.expert_gradient=estimator",
                               "moe.layers=2", "moe.position=scattered", "train.micro_batches=2", "moe.experts=5",
                               "train.lanes=7", "train.batch_sequences=14", "moe.capacity_factor=1.0"], None)
VARIANTS["multi-hash"] = (["router.method=hash", "router.hash.segments=2", "moe.inner=16"], None)

VARIANTS["smile"] = (["router.method=smile", "moe.experts=6", "moe.nodes=2", "router.smile.places=per_node",
                      "comm.exchange=two_level", "comm.node_ranks=2", "train.micro_batches=2"], None)
VARIANTS["local"] = (["router.method=local", "moe.nodes=4", "router.local.locality_weight=0.3",
                      "moe.capacity_factor=1.1", "train.micro_batches=2"], None)
VARIANTS["thor"] = (["router.method=thor", "router.thor.draw=token", "router.thor.distinct=true", "moe.experts=5",
                     "router.thor.evaluation=mean", "train.micro_batches=2"], None)


def methods(program):
    """Names of all routing methods, as `stablemoe train --help` lists them."""
    text = program.run("train", "--help").out
    names = re.findall(r"^  (\w+) ", text.partition("Routing methods")[2].partition("\n\n")[0], re.M)
    assert "stable" in names, text
    names.remove("replay")  # needs a run to repeat: test/e2e/test_replay.py
    names.remove("pmoe_separate")  # of images: a variant
    return names


class Invariance(p.ProgramTest):
    """STABLEMOE_TEST_PRODUCTS=other: with the library of products that run.products: auto does not choose."""

    settings = ("log.tokens_every=5", f"train.updates={UPDATES}", "router.stage1_updates=10",
                "train.checkpoint_every=10", "train.keep_last=0")

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.images = cls.path("images.h5")
        rng = np.random.default_rng(7)
        np.savez(cls.path("images.npz"), images=rng.standard_normal((60, 4, 6)), labels=np.arange(60) % 4)
        done = cls.program.run("prepare", "--images", cls.path("images.npz"), "--patch", "2x3", "-o", cls.images)
        assert done.code == 0, done
        if os.environ.get("STABLEMOE_TEST_PRODUCTS") == "other":
            version = cls.program.run("--version").out
            chosen, other = ("oneDNN", "openblas") if "BLAS           oneDNN" in version else ("OpenBLAS", "onednn")
            assert chosen in version, version
            cls.settings = (*cls.settings, f"run.products={other}")

    def test_variants(self):
        for method in methods(self.program):
            VARIANTS[f"method-{method}"] = ([f"router.method={method}", "train.micro_batches=2"], None)
        # On one rank that is a repetition: a few show it.
        variants = [*VARIANTS] if self.ranks > 1 else ["plain", "two-layers", "method-gshard"]
        if self.small and self.ranks > 2:
            variants = SMALL
        runs = {}
        for variant in variants:
            settings = [setting.replace("IMAGES", self.images) for setting in VARIANTS[variant][0]]
            for name, ranks in ((f"{variant}-one", 1), (f"{variant}-many", self.ranks)):
                # The run of one rank is repeated under the launcher where that is what is asked for.
                launcher = name.endswith("many")
                runs[name] = lambda n=name, s=settings, r=ranks, by=launcher: self.train(n, s, ranks=r, launcher=by)
        for name, result in p.several(runs, 3):
            with self.subTest(name):
                self.assertFine(result)
        for variant in variants:
            with self.subTest(variant, ranks=self.ranks):
                self.check(variant, VARIANTS[variant][1])

    def check(self, variant, drops):
        run, reference = self.path(f"{variant}-many"), self.path(f"{variant}-one")
        self.assertEqual(len(p.metrics(run)), 1 + UPDATES)
        self.assertEqual(p.files_of(run, "checkpoints"), [f"step-{u:09d}.h5" for u in (10, 20)])
        if self.replicas(variant) == 1:
            self.assertSameRun(run, reference, (10, 20))
        else:
            self.check_replicas(variant, run, reference)
        # What a variant is for has to happen, or it shows nothing.
        losses = p.column(run, "loss")
        # Separate training of a router leaves the model's outputs at zero until it has ended.
        self.assertEqual(len(set(losses)), 11 if variant == "images-separate" else UPDATES, "losses of the updates")
        if drops is None:
            dense = p.files_of(run, "routing") == []
            self.assertEqual(dense, variant in ("dense", "images-cnn"))
            return
        self.assertEqual(p.column(run, "stage"), [1.0] * 10 + [2.0] * 10)
        log = p.routing(run)
        self.assertEqual(list(log["step"]), list(range(1, UPDATES + 1)))
        self.assertEqual(list(log["tokens/step"]), [5, 10, 15, 20])
        for stage in (1, 2):
            dropped = log["dropped"][log["stage"] == stage].sum()
            self.assertEqual(dropped > 0, drops, f"{dropped} tokens dropped in stage {stage}")

    def replicas(self, variant):
        """How many ranks hold each expert: all ranks by the largest divisor that is no more than the experts."""
        values = dict(setting.split("=") for setting in VARIANTS[variant][0])
        experts = int(values.get("moe.experts", 4))
        wish = int(values.get("comm.expert_ranks", 0))
        largest = max(n for n in range(1, experts + 1) if self.ranks % n == 0)
        return 1 if values.get("moe.layers") == "0" else self.ranks // (wish or largest)

    def check_replicas(self, variant, run, reference):
        """Sums over replicas round otherwise: a run repeats itself, and is near that of one rank."""
        again = self.trained(f"{variant}-again", VARIANTS[variant][0], ranks=self.ranks)
        self.assertSameRun(again, run, (10, 20))
        # Nothing was added over replicas yet when the first loss was computed.
        self.assertEqual(p.column(run, "loss")[0], p.column(reference, "loss")[0])
        for name, tolerance in (("loss", 1e-3), ("grad_norm", 1e-2), ("grad_norm_expert", 1e-2)):
            for update, (one, other) in enumerate(zip(p.column(run, name), p.column(reference, name)), 1):
                self.assertTrue(abs(one - other) <= tolerance * abs(other), f"{name} {one}, {other} at {update}")


if __name__ == "__main__":
    p.main()
