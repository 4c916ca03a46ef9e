#!/usr/bin/env python3
"""stablemoe import: what export wrote comes back bit for bit; models in the layouts of GPT-2 and Llama give the losses of
their equations in NumPy."""

import json
import math
import os
import struct

import numpy as np

import program as p

V, C, H, L, T, F = 300, 16, 4, 2, 16, 24
TINY = ("model.family=decoder", "moe.sublayers=1", "model.scale_embedding=false", "train.updates=2", "schedule.warmup=1",
        "train.evaluate_every=2")
TYPES = {np.dtype("float32"): "F32", np.dtype("float16"): "F16", np.dtype("float64"): "F64"}


def write(path, tensors, metadata=None):
    """A safetensors file."""
    header, data = ({"__metadata__": metadata} if metadata else {}), b""
    for name, value in tensors.items():
        header[name] = {"dtype": TYPES[value.dtype], "shape": list(value.shape), "data_offsets": [len(data), len(data) + value.nbytes]}
        data += np.ascontiguousarray(value).tobytes()
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text + data)


def read(path):
    with open(path, "rb") as file:
        header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
        data = file.read()
    return {name: np.frombuffer(data[slice(*item["data_offsets"])], "<f4").reshape(item["shape"])
            for name, item in header.items() if name != "__metadata__"}


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def attend(q, k, v):
    """Causal attention of one head."""
    scores = q @ k.T / math.sqrt(q.shape[1])
    scores[np.triu_indices(len(q), 1)] = -np.inf
    return softmax(scores) @ v


def gpt2_logits(w, ids):
    def norm(x, name):
        x = x - x.mean(-1, keepdims=True)
        return x / np.sqrt((x ** 2).mean(-1, keepdims=True) + 1e-5) * w[name + ".weight"] + w[name + ".bias"]

    gelu = np.vectorize(lambda x: 0.5 * x * (1 + math.erf(x / math.sqrt(2))))
    x = w["wte.weight"][ids] + w["wpe.weight"][:len(ids)]
    for b in range(L):
        h = f"h.{b}."
        q, k, v = np.split(norm(x, h + "ln_1") @ w[h + "attn.c_attn.weight"] + w[h + "attn.c_attn.bias"], 3, axis=1)
        heads = [attend(*(m[:, i * C // H:(i + 1) * C // H] for m in (q, k, v))) for i in range(H)]
        x = x + np.concatenate(heads, 1) @ w[h + "attn.c_proj.weight"] + w[h + "attn.c_proj.bias"]
        inner = gelu(norm(x, h + "ln_2") @ w[h + "mlp.c_fc.weight"] + w[h + "mlp.c_fc.bias"])
        x = x + inner @ w[h + "mlp.c_proj.weight"] + w[h + "mlp.c_proj.bias"]
    return norm(x, "ln_f") @ w["wte.weight"].T


def llama_logits(w, ids, kv=2, base=500.0):
    d = C // H

    def norm(x, name):
        return x / np.sqrt((x ** 2).mean(-1, keepdims=True) + 1e-5) * w[name]

    angle = np.arange(len(ids))[:, None] * base ** (-np.arange(d // 2) * 2.0 / d)
    cos, sin = np.cos(angle), np.sin(angle)

    def turn(x):
        a, b = x[:, :d // 2], x[:, d // 2:]
        return np.concatenate([a * cos - b * sin, b * cos + a * sin], 1)

    x = w["model.embed_tokens.weight"][ids]
    for layer in range(L):
        h = f"model.layers.{layer}."
        a = norm(x, h + "input_layernorm.weight")
        q, k, v = (a @ w[h + f"self_attn.{m}_proj.weight"].T for m in "qkv")
        heads = []
        for i in range(H):
            j = i // (H // kv)
            heads.append(attend(turn(q[:, i * d:(i + 1) * d]), turn(k[:, j * d:(j + 1) * d]), v[:, j * d:(j + 1) * d]))
        x = x + np.concatenate(heads, 1) @ w[h + "self_attn.o_proj.weight"].T
        a = norm(x, h + "post_attention_layernorm.weight")
        gate = a @ w[h + "mlp.gate_proj.weight"].T
        x = x + (gate / (1 + np.exp(-gate)) * (a @ w[h + "mlp.up_proj.weight"].T)) @ w[h + "mlp.down_proj.weight"].T
    return norm(x, "model.norm.weight") @ w["lm_head.weight"].T


def gpt2_weights(rng):
    w = {"wte.weight": (V, C), "wpe.weight": (T, C), "ln_f.weight": (C,), "ln_f.bias": (C,)}
    for b in range(L):
        for name, shape in (("ln_1.weight", (C,)), ("ln_1.bias", (C,)), ("attn.c_attn.weight", (C, 3 * C)),
                            ("attn.c_attn.bias", (3 * C,)), ("attn.c_proj.weight", (C, C)), ("attn.c_proj.bias", (C,)),
                            ("ln_2.weight", (C,)), ("ln_2.bias", (C,)), ("mlp.c_fc.weight", (C, F)), ("mlp.c_fc.bias", (F,)),
                            ("mlp.c_proj.weight", (F, C)), ("mlp.c_proj.bias", (C,))):
            w[f"h.{b}.{name}"] = shape
    return {name: (0.3 * rng.standard_normal(shape) + ("ln_" in name and "weight" in name)).astype("f4") for name, shape in w.items()}


def llama_weights(rng, kv=2):
    d = C // H
    w = {"model.embed_tokens.weight": (V, C), "model.norm.weight": (C,), "lm_head.weight": (V, C)}
    for b in range(L):
        for name, shape in (("input_layernorm", (C,)), ("self_attn.q_proj", (C, C)), ("self_attn.k_proj", (kv * d, C)),
                            ("self_attn.v_proj", (kv * d, C)), ("self_attn.o_proj", (C, C)), ("post_attention_layernorm", (C,)),
                            ("mlp.gate_proj", (F, C)), ("mlp.up_proj", (F, C)), ("mlp.down_proj", (C, F))):
            w[f"model.layers.{b}.{name}.weight"] = shape
    return {name: (0.3 * rng.standard_normal(shape) + ("norm" in name)).astype("f4") for name, shape in w.items()}


GPT2 = {"model_type": "gpt2", "n_embd": C, "n_layer": L, "n_head": H, "n_positions": T, "n_inner": F, "activation_function": "gelu"}
LLAMA = {"model_type": "llama", "hidden_size": C, "num_hidden_layers": L, "num_attention_heads": H, "num_key_value_heads": 2,
         "intermediate_size": F, "max_position_embeddings": T, "rope_theta": 500.0, "rms_norm_eps": 1e-5, "hidden_act": "silu"}


class Import(p.ProgramTest):
    settings = ()

    def put(self, name, config, tensors):
        os.makedirs(self.path(name), exist_ok=True)
        with open(self.path(name, "config.json"), "w") as file:
            json.dump(config, file)
        write(self.path(name, "model.safetensors"), tensors)
        return self.path(name, "model.safetensors")

    def check_losses(self, name, logits):
        """Every token's loss against NumPy, in the sequences that are known whole."""
        table = self.path(f"{name}.tsv")
        self.assertFine(self.program.run("evaluate", self.path(f"{name}.h5"), "-c", self.corpus, "-s", "valid", "-n", "4",
                                         "--tokens", table))
        place, token, nats = np.loadtxt(table, skiprows=1).T
        at = {int(a): int(b) for a, b in zip(place, token)}
        for s in (1, 2, 3):
            ids = np.array([at[s * T + i] for i in range(T)])
            targets = [at[s * T + i + 1] for i in range(T - 1)]
            probability = softmax(logits(ids))[np.arange(T - 1), targets]
            own = [nats[list(place).index(s * T + i + 1)] for i in range(T - 1)]
            self.assertTrue(np.allclose(own, -np.log(probability), rtol=2e-5, atol=2e-5), f"{name}, sequence {s}")

    def test_back_again(self):
        """Experts, a stage, names: all of it, to the bit."""
        for name, settings in (("dense", (*TINY, "moe.layers=0")), ("moe", (*TINY, "router.method=topk", "moe.identical_experts=false")),
                               ("stable", ("train.updates=2", "router.stage1_updates=1", "schedule.warmup=1"))):
            with self.subTest(name):
                run = self.trained(name, settings)
                self.assertFine(self.program.run("export", run, "-o", self.path(f"{name}.safetensors")))
                self.assertFine(self.program.run("import", self.path(f"{name}.safetensors")))
                back = p.datasets(self.path(f"{name}.h5"), ("param/", "checksum/param", "meta"))
                there = p.datasets(f"{run}/checkpoints/latest", ("param/", "checksum/param", "meta"))
                self.assertEqual(p.different(back, there), [])
                self.assertFine(self.program.run("info", self.path(f"{name}.h5"), "--verify"))
                losses = [self.program.run("evaluate", path, "-c", self.corpus, "-n", "2", "--json").out
                          for path in (run, self.path(f"{name}.h5"))]
                self.assertEqual(*[json.loads(text)["loss"] for text in losses])

    def test_gpt2(self):
        w = gpt2_weights(np.random.default_rng(1))
        path = self.put("gpt2", GPT2, {**w, "h.0.attn.bias": np.tril(np.ones((T, T), "f4"))})
        self.assertFine(self.program.run("import", path, "-o", self.path("gpt2.h5")))
        self.check_losses("gpt2", lambda ids: gpt2_logits({k: v.astype("f8") for k, v in w.items()}, ids))
        os.makedirs(self.path("out"), exist_ok=True)
        self.assertFine(self.program.run("export", self.path("gpt2.h5"), "--layout", "gpt2", "-o", self.path("out", "m.safetensors")))
        again = read(self.path("out", "m.safetensors"))
        self.assertEqual({"transformer." + name for name in w}, set(again))
        for name, value in w.items():
            self.assertTrue(np.array_equal(again["transformer." + name], value), name)

    def test_llama(self):
        w = llama_weights(np.random.default_rng(2))
        path = self.put("llama", LLAMA, w)
        self.assertFine(self.program.run("import", path, "-o", self.path("llama.h5")))
        self.check_losses("llama", lambda ids: llama_logits({k: v.astype("f8") for k, v in w.items()}, ids))
        os.makedirs(self.path("llama2"), exist_ok=True)
        self.assertFine(self.program.run("export", self.path("llama.h5"), "--layout", "llama", "-o",
                                         self.path("llama2", "model.safetensors")))
        again = read(self.path("llama2", "model.safetensors"))
        self.assertEqual(set(w), set(again))
        for name, value in w.items():
            self.assertTrue(np.array_equal(again[name], value), name)
        # What this program wrote is read again by its own config.json; half precision is read, too.
        self.assertFine(self.program.run("import", self.path("llama2", "model.safetensors"), "-o", self.path("again.h5")))
        self.assertEqual(p.different(p.datasets(self.path("again.h5"), ("param/",)), p.datasets(self.path("llama.h5"), ("param/",))), [])
        half = {name: value.astype("f2") for name, value in w.items()}
        self.assertFine(self.program.run("import", self.put("half", LLAMA, half), "-o", self.path("half.h5")))
        table = p.datasets(self.path("half.h5"), ("param/",))["param/embedding/table"]
        self.assertTrue(np.array_equal(table, half["model.embed_tokens.weight"].astype("f4")))

    def test_refused(self):
        w = gpt2_weights(np.random.default_rng(3))
        less = {name: value for name, value in w.items() if name != "h.1.mlp.c_fc.bias"}
        cases = (("less", GPT2, less, "format", "lacks the tensor 'transformer.h.1.mlp.c_fc.bias'"),
                 ("more", GPT2, {**w, "h.2.ln_1.weight": w["ln_f.weight"]}, "format", "'h.2.ln_1.weight', which the configured"),
                 ("shape", {**GPT2, "n_inner": 32}, w, "format", "'h.0.mlp.c_fc.weight' has another shape"),
                 ("kind", {"model_type": "bert"}, w, "config", "model_type 'bert'"),
                 ("scaled", {**LLAMA, "rope_scaling": {"factor": 8}}, w, "config", "rope_scaling"))
        for name, config, tensors, kind, pattern in cases:
            with self.subTest(name):
                result = self.program.run("import", self.put(name, config, tensors), "-o", self.path(f"{name}.h5"))
                self.assertRefused(result, kind, pattern)
                self.assertFalse(os.path.exists(self.path(f"{name}.h5")) or os.path.exists(self.path(f"{name}.h5.part")))
        path = self.put("cut", GPT2, w)
        with open(path, "rb") as file:
            whole = file.read()
        for n, pattern in ((4, "not a safetensors file"), (100, "within its header"), (len(whole) - 10, "cut off")):
            with open(path, "wb") as file:
                file.write(whole[:n])
            self.assertRefused(self.program.run("import", path), "format", pattern)
        run = self.trained("plain", ("train.updates=1", "schedule.warmup=1"))
        self.assertRefused(self.program.run("export", run, "--layout", "llama", "-o", self.path("x.safetensors")), "config", "family decoder")


if __name__ == "__main__":
    p.main()
