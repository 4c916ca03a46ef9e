"""Made-up runs with the files of real ones, for the tests of analysis/."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

PER_LAYER = ("max_over_mean", "cv", "entropy", "dead", "drop_rate", "gate_mean", "agreement")


@dataclass
class Shape:
    updates: int = 600
    stage1: int = 120
    layers: int = 1
    experts: int = 16
    tokens: int = 4096
    probes: int = 60
    probe_tokens: int = 512
    files: int = 4
    seed: int = 1


def loads(shape: Shape, rng: np.random.Generator) -> np.ndarray:
    """[S, M, E] that begin skewed, even out in stage 1, and jitter in stage 2."""
    skew = rng.normal(size=(shape.layers, shape.experts)) * 1.3
    out = np.zeros((shape.updates, shape.layers, shape.experts), np.int64)
    for s in range(shape.updates):
        for m in range(shape.layers):
            scale = 0.25 + np.exp(-s / (0.3 * shape.stage1)) if s < shape.stage1 else 0.35
            p = np.exp(skew[m] * scale + 0.05 * rng.normal(size=shape.experts))
            out[s, m] = rng.multinomial(shape.tokens, p / p.sum())
    return out


def choices(shape: Shape, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Probe steps [Q], and expert, learned, distilled [Q, M, P]: learned settles, distilled follows."""
    step = np.unique(np.linspace(shape.updates / shape.probes, shape.updates, shape.probes).astype(np.int64))
    size = (shape.layers, shape.probe_tokens)
    learned = np.zeros((len(step), *size), np.int32)
    distilled = np.zeros_like(learned)
    learned[0] = rng.integers(shape.experts, size=size)
    distilled[0] = rng.integers(shape.experts, size=size)
    for q in range(1, len(step)):
        frozen = step[q] > shape.stage1
        moves = rng.random(size) < (0.02 if frozen else 0.5 * np.exp(-step[q] / (0.4 * shape.stage1)))
        learned[q] = np.where(moves, rng.integers(shape.experts, size=size), learned[q - 1])
        follows = rng.random(size) < 0.35
        distilled[q] = distilled[q - 1] if frozen else np.where(follows, learned[q - 1], distilled[q - 1])
    frozen = (step > shape.stage1)[:, None, None]
    return step, np.where(frozen, distilled, learned), np.where(frozen, -1, learned), distilled


def write_routing(run: Path, shape: Shape, version: int = 1, terms: tuple[str, ...] = ()) -> None:
    """RUN/routing/step-*.h5, shape.files stretches of equal length; terms: further loss terms, of 1 % of the update."""
    rng = np.random.default_rng(shape.seed)
    load = loads(shape, rng)
    step = np.arange(1, shape.updates + 1)
    stage = np.where(step > shape.stage1, 2, 1)
    probe_step, expert, learned, distilled = choices(shape, rng)
    token = rng.integers(1000, size=shape.probe_tokens).astype(np.int32)
    token[-3:] = -1  # padding
    (run / "routing").mkdir(parents=True, exist_ok=True)
    bounds = np.linspace(0, shape.updates, shape.files + 1).astype(int)
    for low, high in zip(bounds[:-1], bounds[1:]):
        rows = slice(low, high)
        of_file = (probe_step > low) & (probe_step <= high)
        with h5py.File(run / "routing" / f"step-{high:09d}.h5", "w") as file:
            file.attrs["format"] = np.bytes_(b"stablemoe-routing")
            file.attrs["version"] = np.int64(version)
            file.attrs["method"] = np.bytes_(b"stable")
            file.attrs["n_layers"], file.attrs["n_experts"] = np.int64(shape.layers), np.int64(shape.experts)
            file["step"], file["stage"], file["load"] = step[rows], stage[rows], load[rows]
            size = (high - low, shape.layers)
            file["dropped"] = np.zeros(size, np.int64)
            file["balance"] = np.full(size, 0.01)
            file["distill"] = np.where(stage[rows, None] == 1, 1.0, 0.0) * np.ones(size)
            file["agreement"] = np.where(stage[rows, None] == 1, 0.5, np.nan) * np.ones(size)
            file["gate_mean"] = np.full(size, 0.5)
            for name in terms:
                file[name] = step[rows, None] / 100 * np.ones(size)
                file[name].attrs["units"] = np.bytes_(b"loss per token")
            if not of_file.any():
                continue  # what has no rows is absent
            file["probe/token"], file["probe/step"] = token, probe_step[of_file]
            file["probe/stage"] = np.where(probe_step[of_file] > shape.stage1, 2, 1)
            for name, values in (("expert", expert), ("learned", learned), ("distilled", distilled)):
                file[f"probe/{name}"] = values[of_file].astype(np.int32)


def write_gates(run: Path, gates: tuple[str, ...] = ("block1/attention", "block2/attention"), records: int = 10,
                tokens: int = 4096, vocabulary: int = 1000, whole: bool = True) -> None:
    """RUN/routing/step-<records>.h5 of a dense model with gates: behind gate g a token skips where its id modulo
    (g + 2) is 0.

    whole: records of every token; else of a probe, whose last three tokens are padding.
    """
    rng = np.random.default_rng(7)
    (run / "routing").mkdir(parents=True, exist_ok=True)
    with h5py.File(run / "routing" / f"step-{records:09d}.h5", "w") as file:
        file.attrs["format"], file.attrs["version"] = np.bytes_(b"stablemoe-routing"), np.int64(1)
        file.attrs["method"], file.attrs["gates"] = np.bytes_(b"none"), np.bytes_(" ".join(gates).encode())
        file.attrs["n_layers"], file.attrs["n_experts"] = np.int64(0), np.int64(0)
        ids = np.stack([zipf_tokens(rng, tokens, vocabulary) for _ in range(records)])
        ran = np.stack([(ids % (g + 2) != 0).astype(np.int32) for g in range(len(gates))], 1)
        file["gate"], file["step"] = np.arange(len(gates)), np.arange(1, records + 1)
        file["stage"], file["ran"] = np.ones(records, np.int32), ran.mean(-1)
        if whole:
            file["tokens/step"], file["tokens/place"] = np.arange(1, records + 1), np.arange(tokens)
            file["tokens/id"], file["tokens/ran"] = ids, ran
        else:
            ids, ran = ids[0].copy(), ran[:1].copy()
            ids[-3:], ran[..., -3:] = -1, -1
            file["probe/token"], file["probe/step"], file["probe/stage"] = ids, np.array([records]), np.array([1])
            file["probe/ran"] = ran


def zipf_tokens(rng: np.random.Generator, n: int, vocabulary: int) -> np.ndarray:
    """[n] int32 token ids of which few are frequent and many rare."""
    return np.minimum(vocabulary - 1, (vocabulary + 1) ** rng.random(n) - 1).astype(np.int32)


def write_tokens(run: Path, experts: int = 16, layers: int = 2, records: int = 10, tokens: int = 4096,
                 vocabulary: int = 1000, slots: int = 1, dropped: float = 0.0) -> None:
    """RUN/routing/step-<records>.h5 with records of every token and nothing else.

    Layer 0: expert = id modulo experts, layer 1 and on: one more than in the layer before, so that every
    figure is known; a second slot has the expert of the first, plus one. Gates are (expert + 1) / (experts + 1).
    dropped: share of assignments that are stored as without room.
    """
    rng = np.random.default_rng(5)
    (run / "routing").mkdir(parents=True, exist_ok=True)
    with h5py.File(run / "routing" / f"step-{records:09d}.h5", "w") as file:
        file.attrs["format"], file.attrs["version"] = np.bytes_(b"stablemoe-routing"), np.int64(1)
        file.attrs["method"] = np.bytes_(b"hash")
        file.attrs["n_layers"], file.attrs["n_experts"] = np.int64(layers), np.int64(experts)
        file["tokens/step"] = np.arange(1, records + 1)
        file["tokens/place"] = np.arange(tokens)
        ids = file.create_dataset("tokens/id", (records, tokens), "<i4")
        expert = file.create_dataset("tokens/expert", (records, layers, tokens, slots), "<i4")
        gate = file.create_dataset("tokens/gate", (records, layers, tokens, slots), "<f4")
        for z in range(records):
            ids[z] = token = zipf_tokens(rng, tokens, vocabulary)
            for m in range(layers):
                choice = (token[:, None] + m + np.arange(slots)) % experts
                gate[z, m] = (choice + 1) / (experts + 1)
                full = rng.random(choice.shape) < dropped
                expert[z, m] = np.where(full, -2 - choice, choice)


def write_metrics(run: Path, shape: Shape, terms: tuple[str, ...] = ()) -> None:
    """RUN/metrics.csv, one row per update, validation every twentieth of the run."""
    rng = np.random.default_rng(shape.seed)
    load = loads(shape, rng)
    names = ("update,stage,tokens,loss,balance,distill,lr,grad_norm,grad_norm_shared,grad_norm_expert,clip,"
             "valid_loss,valid_perplexity").split(",")
    names += [f"moe{m}_{name}" for m in range(shape.layers) for name in PER_LAYER]
    names += [*terms, "seconds", "tokens_per_s"]
    lines = [",".join(names)]
    for u in range(1, shape.updates + 1):
        first = u <= shape.stage1
        x = u / shape.updates
        loss = 3.1 + 5.2 * np.exp(-x * 18) + 1.4 * np.exp(-x * 3.2) + rng.normal() * 0.07
        valid = loss + 0.12 if u % max(1, shape.updates // 20) == 0 else None
        distill = np.log(shape.experts) * np.exp(-u / (0.5 * max(1, shape.stage1))) + 0.3 + 0.03 * rng.normal()
        balance = 0.002 + 0.06 * np.exp(-u / (0.2 * max(1, shape.stage1))) + 0.001 * rng.random()
        row = [u, 1 if first else 2, u * shape.tokens, loss, balance if first else 0, distill if first else 0]
        row += [6e-4, 0.4, 0.3, 0.2, 0.25, valid, None if valid is None else np.exp(valid)]
        for m in range(shape.layers):
            mean = load[u - 1, m].mean()
            agree = 0.9 - 0.8 * np.exp(-u / (0.3 * shape.stage1)) + 0.02 * rng.normal() if first else None
            row += [load[u - 1, m].max() / mean, load[u - 1, m].std() / mean, 2.7, 0, 0, 0.55, agree]
        row += [u / 100] * len(terms) + [0.4, 10000]
        lines.append(",".join("" if value is None else f"{value:.7g}" for value in row))
    run.mkdir(parents=True, exist_ok=True)
    (run / "metrics.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")


def pieces(vocabulary: int) -> list[str]:
    """A vocabulary of made-up words, with what could break a page among them."""
    odd = ["\u2581", "<0x0A>", "</script>", "<!--", "\u2581\u00fcber", '"', "\u2581it's", "&amp;", ",", "\u2581\U0001f600"]
    syllables = ["ka", "lo", "mi", "nu", "re", "sa", "ti", "vo", "we", "zo"]
    words = [("\u2581" if i % 3 else "") + syllables[i % 10] + syllables[i // 10 % 10] + syllables[i // 100 % 10]
             for i in range(len(odd), vocabulary)]
    return odd + words


def write_corpus(path: Path, vocabulary: int = 1000, fingerprint: int = 7) -> None:
    """A corpus as far as reports read it: reference losses, fingerprint, pieces and their counts."""
    texts = [piece.encode() for piece in pieces(vocabulary)]
    with h5py.File(path, "w") as file:
        file.attrs["unigram_nats"], file.attrs["bigram_nats"] = 6.42, 4.87
        file.attrs["fingerprint"] = np.uint64(fingerprint)
        file["tokenizer/piece"] = np.frombuffer(b"".join(texts), np.uint8)
        file["tokenizer/piece_offset"] = np.cumsum([0] + [len(text) for text in texts])
        file["count"] = np.arange(vocabulary, 0, -1)


def write_run(run: Path, shape: Shape) -> None:
    """All files of a finished run, with a corpus beside them."""
    write_metrics(run, shape)
    write_routing(run, shape)
    write_corpus(run / "corpus.h5")
    (run / "used.yml").write_text(f"""\
# what this run used
run:
  directory: {run.name}
  seed: {shape.seed}
data:
  corpus: corpus.h5  # relative
model:
  width: 128
  blocks: 4
moe:
  experts: {shape.experts}
router:
  method: stable
  stage1_updates: {shape.stage1}
  stable:
    width: 50
train:
  updates: {shape.updates}
""", encoding="utf-8")


def write_images_run(run: Path, experts: int = 3, layers: int = 2, records: int = 4, images: int = 20) -> None:
    """A run of a model of images of 4 x 4 pixels in 4 patches. Expert e takes patch e of every image; layer 1: patch
    e + 1; the last patch of layer 0 is nobody's."""
    shape = Shape(updates=40, stage1=0, layers=layers, experts=experts, tokens=4 * images, probes=1, files=2)
    write_metrics(run, shape)
    lines = (run / "metrics.csv").read_text(encoding="utf-8").splitlines()
    more = ["accuracy,valid_accuracy"] + [f"{u / 80:g},{u / 100 if u % 10 == 0 else ''}" for u in range(1, 41)]
    write_at = lines[0].split(",").index("seconds")
    rows = [line.split(",") for line in lines]
    text = "\n".join(",".join([*row[:write_at], new, *row[write_at:]]) for row, new in zip(rows, more))
    (run / "metrics.csv").write_text(text + "\n", encoding="utf-8")
    write_routing(run, shape)
    for path in (run / "routing").glob("*.h5"):
        with h5py.File(path, "a") as file:
            if "probe" in file:
                del file["probe"]  # there is no probe of images
    rng = np.random.default_rng(5)
    with h5py.File(run / "images.h5", "w") as file:
        file.attrs["format"], file.attrs["fingerprint"] = np.bytes_(b"stablemoe-images"), np.uint64(9)
        for name, value in (("height", 4), ("width", 4), ("channels", 1), ("patch_height", 2), ("patch_width", 2)):
            file.attrs[name] = np.int64(value)
        file["class_names"] = np.void(b"cat\ndog\n")
        file["train/patches"] = rng.integers(256, size=(images, 4, 4), dtype=np.uint8)
        file["train/label"], file["train/place"] = np.arange(images) % 2, np.arange(images) % 4
    with h5py.File(run / "routing" / "step-000000041.h5", "w") as file:
        file.attrs["format"], file.attrs["version"] = np.bytes_(b"stablemoe-routing"), np.int64(1)
        file.attrs["method"] = np.bytes_(b"stable")
        file.attrs["n_layers"], file.attrs["n_experts"] = np.int64(layers), np.int64(experts)
        file["tokens/step"], file["tokens/place"] = np.arange(1, records + 1), np.arange(4 * images)
        order = np.stack([rng.permutation(images) for _ in range(records)])
        file["tokens/id"] = (4 * order[..., None] + np.arange(4)).reshape(records, -1).astype(np.int32)
        expert = np.stack([np.where((np.arange(4) - m) % 4 < experts, (np.arange(4) - m) % 4, -1) for m in range(layers)])
        file["tokens/expert"] = np.broadcast_to(np.tile(expert, images)[None, :, :, None],
                                                (records, layers, 4 * images, 1)).astype(np.int32)
        file["tokens/gate"] = np.full((records, layers, 4 * images, 1), 0.5, np.float32)
    (run / "used.yml").write_text(f"data:\n  corpus: images.h5\nmodel:\n  family: vision\n  context: 4\nmoe:\n  experts: "
                                  f"{experts}\nrouter:\n  method: stable\ntrain:\n  updates: 40\n", encoding="utf-8")
