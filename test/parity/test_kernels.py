"""Results of the C kernels (kernels.c) against their equations in NumPy.

    test_kernels.py PROGRAM TOLERANCE
"""

import os
import subprocess
import sys
import tempfile
import unittest

try:
    import numpy as np
except ImportError as missing:
    print(f"skipped: {missing}; jobs/install.sh brings python3-numpy", file=sys.stderr)
    sys.exit(77)

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", ".."))
from analysis.reference import sublayers as ref


def read_cases(program):
    """Case -> name -> array, of what the program writes."""
    cases = {}
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "kernels.bin")
        subprocess.run([program, path], check=True)
        with open(path, "rb") as file:
            for line in file:
                name, count = line.decode().split()
                case, array = name.split("/")
                cases.setdefault(case, {})[array] = np.frombuffer(file.read(8 * int(count)))
    return cases


class Kernels(unittest.TestCase):
    cases, tolerance = {}, 0.0

    def near(self, what, got, expect):
        """The largest difference over the largest magnitude of the expected array."""
        expect = np.asarray(expect).ravel()
        self.assertEqual(got.shape, expect.shape, what)
        error = np.abs(got - expect).max() / np.abs(expect).max()
        self.assertTrue(error <= self.tolerance, f"{what}: error {error:.3g}")

    def test_rms_norm(self):
        a = self.cases["rms_norm"]
        rows = (-1, int(a["width"][0]))
        y, cache = ref.rms_norm_forward(a["x"].reshape(rows), a["gamma"])
        dx, dgamma = ref.rms_norm_backward(a["dy"].reshape(rows), a["gamma"], cache)
        self.near("y", a["y"], y)
        self.near("dx", a["dx"], dx)
        self.near("dgamma", a["dgamma"], dgamma)

    def test_gelu(self):
        a = self.cases["gelu"]
        y, cache = ref.gelu_forward(a["x"].reshape(-1, int(a["width"][0])) + a["b"])
        self.near("y", a["y"], y)
        self.near("dx", a["dx"], ref.gelu_backward(a["dy"].reshape(y.shape), cache))

    def test_swiglu(self):
        a = self.cases["swiglu"]
        h, cache = ref.swiglu_forward(a["ab"].reshape(-1, 2 * int(a["width"][0])))
        self.near("h", a["h"], h)
        self.near("dab", a["dab"], ref.swiglu_backward(a["dh"].reshape(h.shape), cache))

    def test_rope(self):
        a = self.cases["rope"]
        x = a["x"].reshape(len(a["position"]), int(a["heads"][0]), -1)
        angles = ref.rope_angles(np.maximum(a["position"], 0), x.shape[-1], a["base"][0])  # of -1: not turned
        self.near("y", a["y"], ref.rope_forward(x, angles))

    def attention(self, case):
        a = self.cases[case]
        s, tq, tk, h, hkv, causal = (int(x) for x in a["shape"])
        mask = ref.attention_mask(tq, tk, causal, *a["length"].reshape(3, s))
        k, v = np.moveaxis(a["kv"].reshape(s, tk, 2, hkv, -1), 2, 0)
        out, cache = ref.attention_forward(a["q"].reshape(s, tq, h, -1), k, v, mask)
        dq, dk, dv = ref.attention_backward(a["dout"].reshape(out.shape), cache)
        self.near("out", a["out"], out)
        self.near("dq", a["dq"], dq)
        self.near("dk and dv", a["dkv"], np.stack([dk, dv], axis=2))

    def test_attention_cross(self):
        self.attention("attend_cross")

    def test_attention_grouped(self):
        self.attention("attend_grouped")

    def test_dropout(self):
        a = self.cases["dropout"]
        share, seed, update, site, first = a["about"]
        x = a["x"].reshape(-1, int(a["width"][0]))
        factor = ref.dropout_factor(share, int(seed), int(update), int(site), int(first) + np.arange(len(x)),
                                    x.shape[1])
        self.near("y", a["y"], x * factor)

    def test_smoothing(self):
        a = self.cases["smoothing"]
        target = a["target"].astype(int)
        loss, nll, dx = ref.smoothed_cross_entropy(a["x"].reshape(len(target), -1), target, a["epsilon"][0])
        self.near("loss", a["loss"], loss)
        self.near("nll", a["nll"], nll)
        self.near("dx", a["dx"], a["scale"][0] * dx)


if __name__ == "__main__":
    Kernels.cases, Kernels.tolerance = read_cases(sys.argv[1]), float(sys.argv[2])
    unittest.main(argv=sys.argv[:1])
