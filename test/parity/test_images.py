#!/usr/bin/env python3
"""Runs of the two-layer CNN and of pMoE against the equations in NumPy (analysis/reference/pmoe.py), update by update.

    test_images.py --program stablemoe

Each update is computed again from the checkpoint before it: which images its batch has, the patches that experts take,
loss, accuracy, the router's loss, and the parameters after one step of gradient descent.
"""

import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "e2e"))
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", ".."))
import h5py  # noqa: E402
import numpy as np  # noqa: E402
import program as p  # noqa: E402
from analysis.reference import counter_random as random  # noqa: E402
from analysis.reference import pmoe as ref  # noqa: E402

UPDATES, BATCH, SEED, LR, TRAIN = 4, 8, 5, 0.2, 30
BASE = {"run.seed": SEED, "model.family": "cnn", "model.heads": 1, "model.cnn.deviation": 0.3, "moe.sublayers": 1,
        "moe.identical_experts": "false", "train.updates": UPDATES, "train.batch_sequences": BATCH, "train.lanes": 2,
        "train.checkpoint_every": 1, "train.keep_last": 0, "train.evaluate_every": 1, "optimizer.method": "sgd",
        "optimizer.lr": LR, "optimizer.clip": 0, "schedule.kind": "constant", "schedule.warmup": 0,
        "data.train_images": TRAIN, "log.tokens_every": 1, "log.load_every": 1}
TWO = {"model.width": 12, "model.context": 6}
FOUR = {"model.width": 6, "model.context": 4}  # digits of four classes
CASES = {
    "cnn": ("two", {**TWO, "moe.layers": 0, "model.inner": 7}),
    "joint": ("two", {**TWO, "router.method": "pmoe", "router.pmoe.patches": 3, "router.pmoe.deviation": 0.5,
                      "moe.experts": 3, "moe.inner": 4}),
    "separate": ("two", {**TWO, "router.method": "pmoe_separate", "router.stage1_updates": 2, "model.cnn.output": "class",
                         "router.pmoe.deviation": 0.5, "model.cnn.pool": "all", "moe.experts": 2, "moe.inner": 4}),
    "joint-four": ("four", {**FOUR, "router.method": "pmoe", "router.pmoe.patches": 2, "router.pmoe.deviation": 0.5,
                            "moe.experts": 3, "moe.inner": 4, "train.micro_batches": 2}),
    "separate-four": ("four", {**FOUR, "router.method": "pmoe_separate", "router.stage1_updates": 2,
                               "model.cnn.output": "class", "router.pmoe.patches": 3, "router.pmoe.deviation": 0.5,
                               "moe.experts": 4, "moe.inner": 2}),
}


def values(path):
    with h5py.File(path) as file:
        found = {}
        file["param"].visititems(lambda name, item: found.update({name: item[()].astype(float)})
                                 if isinstance(item, h5py.Dataset) else None)
        return found


class Images(p.ProgramTest):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.corpora = {name: os.path.join(cls.directory, f"{name}.h5") for name in ("two", "four")}
        done = cls.program.run("prepare", "--synthetic", "patterns", "--patches", 6, "--dimension", 12, "--sets", 3,
                               "--samples", "40,10,10", "-o", cls.corpora["two"])
        assert done.code == 0, done
        rng = np.random.default_rng(3)
        images, labels = os.path.join(cls.directory, "images.npy"), os.path.join(cls.directory, "labels.npy")
        np.save(images, rng.standard_normal((60, 6, 4)).astype(np.float32))
        np.save(labels, np.arange(60) % 4)
        done = cls.program.run("prepare", "--images", images, labels, "--patch", "3x2", "-o", cls.corpora["four"])
        assert done.code == 0, done

    def batch(self, corpus, update):
        """Patches and labels of the update: an epoch is a permutation of the first TRAIN images."""
        place = np.arange(update * BATCH, (update + 1) * BATCH)
        image = [random.permute(SEED, random.ORDER, int(i) // TRAIN, TRAIN, int(i) % TRAIN) for i in place]
        with h5py.File(corpus) as file:
            patches = file["train/patches"][()][image].astype(float) * file.attrs["scale"]
            return np.array(image), patches, file["train/label"][()][image]

    def compute(self, keys, params, patches, label, stage):
        if keys.get("moe.layers") == 0:
            loss, logits, grads = ref.cnn(params, patches, label)
            return loss, logits, grads, 0.0
        l = keys.get("router.pmoe.patches", 2)
        separate = keys["router.method"] == "pmoe_separate"
        divisor = patches.shape[1] if keys.get("model.cnn.pool") == "all" else l
        return ref.pmoe(params, patches, label, l, divisor, not separate, separate and stage == 1)

    def check_log(self, run, update, image, params, patches, l):
        """The recorded experts of each patch are those that choose it."""
        log = p.routing(run)
        score = patches @ params["moe0/router/centroid"].T
        chosen = ref.choose(score, l)
        expert = log["tokens/expert"][update - 1][0].reshape(len(image), patches.shape[1], -1)
        token = log["tokens/id"][update - 1].reshape(len(image), -1)
        np.testing.assert_array_equal(token, image[:, None] * patches.shape[1] + np.arange(patches.shape[1]))
        for i in range(len(image)):
            for e in range(chosen.shape[1]):
                has = np.flatnonzero((expert[i] == e).any(axis=1))
                self.assertEqual(sorted(has), sorted(chosen[i, e]), (update, i, e))

    def test_updates(self):
        for name, (corpus, keys) in CASES.items():
            with self.subTest(name):
                settings = [f"{key}={value}" for key, value in {**BASE, **keys}.items()]
                run = self.trained(name, [*settings, f"data.corpus={self.corpora[corpus]}"])
                for update in range(1, UPDATES):
                    self.check_update(name, run, corpus, keys, update)

    def check_update(self, name, run, corpus, keys, update):
        before, after = (values(os.path.join(run, "checkpoints", f"step-{u:09d}.h5")) for u in (update, update + 1))
        image, patches, label = self.batch(self.corpora[corpus], update)
        stage = int(p.column(run, "stage")[update])
        loss, logits, grads, router = self.compute(keys, before, patches, label, stage)
        self.assertAlmostEqual(p.column(run, "loss")[update], loss, delta=1e-5 * abs(loss))
        predicted = logits[:, 0] > 0 if logits.shape[1] == 1 else logits.argmax(axis=1)
        if stage == 2 or "separate" not in name:
            self.assertAlmostEqual(p.column(run, "accuracy")[update], (predicted == label).mean(), delta=1e-9)
        if "separate" in name:
            self.assertAlmostEqual(p.column(run, "router")[update], router, delta=1e-5 * max(abs(router), 1))
        if "micro" not in "".join(keys) and keys.get("moe.layers") != 0:
            self.check_log(run, update + 1, image, before, patches, keys.get("router.pmoe.patches", 2))
        self.assertEqual(set(before), set(after))
        for parameter, value in before.items():
            expect = value - LR * grads.get(parameter, 0)
            size = np.abs(expect).max()
            np.testing.assert_allclose(after[parameter], expect, rtol=0, atol=1e-5 * size, err_msg=f"{update} {parameter}")
            moved = np.abs(after[parameter] - value).max() > 0
            self.assertEqual(moved, np.abs(grads.get(parameter, np.zeros(1))).max() > 0, parameter)


if __name__ == "__main__":
    p.main()
