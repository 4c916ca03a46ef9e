"""StableMoE against PyTorch on the same model, in alternation on one thread.

usage: /usr/bin/python3 test/bench/peer.py --program build/src/app/stablemoe [--rounds 5] [--shape NAME ...]

Trains the model of a configuration in configs/bench, once with its experts and once
without (dense), with this program and with PyTorch (Debian: python3-torch): the same
blocks, tied embeddings, loss, clipping and Adam, the same number
of parameters. With experts both are in stage 2, where nine tenths of a training are:
the expert follows from the token id, the gate is learned. Both are measured by the
processor's clock, so that waiting for a core that others use does not count, and rounds
alternate, so that other work meets both; the figure to look at is the median of the
rounds' ratios. It takes minutes and is no part of any suite.

The peer is meant to be a good one. It has one product for queries, keys and values,
adds mask and scale inside the product of queries and keys, sorts tokens by expert
and gathers each expert's once, and is run with the piece of the batch and the form of
Adam that are fastest here, found before the rounds.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

try:
    import torch
    import torch.nn.functional as F
    from torch import Tensor, nn
except ImportError as error:
    sys.exit(f"skipped: {error}; install python3-torch")

ROOT = Path(__file__).resolve().parents[2]
DISTILLED_WIDTH = 50
SHAPES = {"width256-dense": ("width256", False), "width256-experts": ("width256", True),
          "width768-dense": ("width768", False), "width768-experts": ("width768", True)}
TARGETS = {False: 1.2, True: 1.4}


class Block(nn.Module):
    """x + attention(LN(x)), then that plus FFN(LN(.))."""

    def __init__(self, width: int, heads: int, inner: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x: [B, T, C]; mask: [T, T], 0 or minus infinity."""
        b, t, c = x.shape
        d = c // self.heads
        q, k, v = self.qkv(self.norm1(x)).view(b, t, 3, self.heads, d).permute(2, 0, 3, 1, 4).reshape(3, -1, t, d)
        scores = torch.baddbmm(mask, q, k.transpose(1, 2), alpha=1 / math.sqrt(d))
        attended = torch.bmm(torch.softmax(scores, -1), v)
        x = x + self.proj(attended.view(b, self.heads, t, d).transpose(1, 2).reshape(b, t, c))
        return x + self.down(F.relu(self.up(self.norm2(x))))


class Expert(nn.Module):
    """Some FFN sublayers; gives the sum of their outputs."""

    def __init__(self, width: int, inner: int, sublayers: int) -> None:
        super().__init__()
        self.norm = nn.ModuleList(nn.LayerNorm(width) for _ in range(sublayers))
        self.up = nn.ModuleList(nn.Linear(width, inner) for _ in range(sublayers))
        self.down = nn.ModuleList(nn.Linear(inner, width) for _ in range(sublayers))

    def forward(self, x: Tensor) -> Tensor:
        """x: [n, C]."""
        z = x
        for norm, up, down in zip(self.norm, self.up, self.down):
            z = z + down(F.relu(up(norm(z))))
        return z - x


class Experts(nn.Module):
    """The MoE layer in stage 2: a frozen table from token id to expert, a learned gate."""

    def __init__(self, model: dict[str, int]) -> None:
        super().__init__()
        width, n = model["width"], model["experts"]
        self.expert = nn.ModuleList(Expert(width, model["moe_inner"], model["sublayers"]) for _ in range(n))
        self.centroid = nn.Parameter(0.1 * torch.randn(n, width) / math.sqrt(width))
        self.word = nn.Parameter(torch.randn(model["vocabulary"], DISTILLED_WIDTH), requires_grad=False)
        self.side = nn.Parameter(torch.randn(n, DISTILLED_WIDTH), requires_grad=False)
        self.register_buffer("table", (self.word @ self.side.T).argmax(1))

    def forward(self, x: Tensor, token: Tensor) -> Tensor:
        """x: [B, T, C]; token: [B, T]."""
        rows, choice = x.view(-1, x.shape[-1]), self.table[token.reshape(-1)]
        order = torch.argsort(choice)
        load = torch.bincount(choice, minlength=len(self.expert)).tolist()
        parts = torch.split(rows.index_select(0, order), load)
        delta = torch.cat([expert(part) for expert, part in zip(self.expert, parts)])
        back = torch.empty_like(order)
        back[order] = torch.arange(len(order))
        gate = torch.sigmoid((rows * self.centroid.index_select(0, choice)).sum(1, keepdim=True))
        return (rows + gate * delta.index_select(0, back)).view_as(x)


class Model(nn.Module):
    """The language model; forward gives the sum of the losses over the tokens."""

    def __init__(self, model: dict[str, int]) -> None:
        super().__init__()
        width, context = model["width"], model["context"]
        self.embedding = nn.Parameter(torch.randn(model["vocabulary"], width) / math.sqrt(width))
        self.position = nn.Parameter(torch.randn(context, width) / math.sqrt(width))
        self.block = nn.ModuleList(Block(width, model["heads"], model["inner"]) for _ in range(model["blocks"]))
        self.experts = Experts(model) if model["moe_layers"] else None
        self.norm = nn.LayerNorm(width)
        self.scale = math.sqrt(width)
        self.register_buffer("mask", torch.full((context, context), -math.inf).triu(1))

    def forward(self, token: Tensor, target: Tensor) -> Tensor:
        """token, target: [B, T]."""
        x = F.embedding(token, self.embedding) * self.scale + self.position
        for i, block in enumerate(self.block):
            if self.experts is not None and i == len(self.block) // 2:
                x = self.experts(x, token)
            x = block(x, self.mask)
        logits = F.linear(self.norm(x).view(-1, x.shape[-1]), self.embedding)
        return F.cross_entropy(logits, target.reshape(-1), reduction="sum")


class Peer:
    """A model with its optimizer and its data."""

    def __init__(self, facts: dict[str, Any]) -> None:
        torch.manual_seed(1)
        self.model_facts, self.sequences = facts["model"], facts["batch"]["sequences"]
        self.model = Model(self.model_facts)
        self.piece, self.foreach = self.sequences, True
        self.trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = self._adam()

    def _adam(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.trained, lr=6e-4, betas=(0.9, 0.98), weight_decay=0.0, foreach=self.foreach)

    @property
    def n_parameters(self) -> int:
        """All parameters, the frozen router's too."""
        return sum(p.numel() for p in self.model.parameters())

    def batch(self) -> Tensor:
        """[B, T + 1] token ids by Zipf's law."""
        context, vocabulary = self.model_facts["context"], self.model_facts["vocabulary"]
        frequency = 1 / torch.arange(1, vocabulary + 1, dtype=torch.float)
        return torch.multinomial(frequency, self.sequences * (context + 1), replacement=True).view(self.sequences, -1)

    def update(self, batch: Tensor) -> float:
        """One update over pieces of the batch; returns the loss per token."""
        self.optimizer.zero_grad(set_to_none=True)
        n_tokens, total = self.sequences * self.model_facts["context"], 0.0
        for part in batch.split(self.piece):
            loss = self.model(part[:, :-1], part[:, 1:]) / n_tokens
            loss.backward()
            total += loss.item()
        gradients = [p.grad for p in self.trained]
        norm = torch.norm(torch.stack(torch._foreach_norm(gradients))).item()
        torch._foreach_mul_(gradients, min(1.0, 0.1 / norm))
        self.optimizer.step()
        return total

    def tokens_per_s(self, updates: int) -> float:
        """Rate over some updates; the data is made beforehand."""
        batches = [self.batch() for _ in range(updates)]
        begin = time.process_time()
        for batch in batches:
            self.update(batch)
        return updates * self.sequences * self.model_facts["context"] / (time.process_time() - begin)

    def tune(self) -> None:
        """Choose the fastest piece of the batch and form of Adam."""
        self.update(self.batch())
        rate, self.piece = max(self._rate_with(piece) for piece in self._pieces())
        plain = Peer.__new__(Peer)
        plain.__dict__ |= self.__dict__
        plain.foreach = False
        plain.optimizer = plain._adam()
        plain.update(self.batch())
        if plain.tokens_per_s(1) > rate:
            self.foreach, self.optimizer = False, plain.optimizer

    def _pieces(self) -> list[int]:
        return [n for n in (1, 2, 4, 8, 16) if n <= self.sequences and self.sequences % n == 0]

    def _rate_with(self, piece: int) -> tuple[float, int]:
        self.piece = piece
        return self.tokens_per_s(1), piece


def blas() -> str:
    """The library that the peer's products run in."""
    with open("/proc/self/maps", encoding="utf-8") as file:
        names = {os.path.basename(line.split()[-1]) for line in file if "blas" in line}
    return ", ".join(sorted(names)) or "none found"


def ours(program: str, config: Path, keys: list[str], updates: int, vocabulary: int) -> dict[str, Any]:
    """What `stablemoe bench --json` says."""
    command = [program, "bench", str(config), "--json", "-n", str(updates), "-w", "1", "--vocab", str(vocabulary)]
    for key in keys:
        command += ["-P", key]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        sys.exit(f"peer: {' '.join(command)} failed:\n{result.stderr}")
    return json.loads(result.stdout)


def compare(options: argparse.Namespace, name: str) -> bool:
    """Measure one shape; returns whether the target is reached."""
    file, experts = SHAPES[name]
    config = ROOT / "configs" / "bench" / f"{file}.yml"
    keys = options.keys + ([] if experts else ["moe.layers=0"])
    facts = ours(options.program, config, keys, 1, options.vocab)
    peer = Peer(facts)
    counted = facts["parameters"]["shared"] + facts["parameters"]["experts"]
    if peer.n_parameters != counted:
        sys.exit(f"peer: {peer.n_parameters:,} parameters, but stablemoe has {counted:,}: not the same model")
    if options.check:
        batch = peer.batch()
        losses = [peer.update(batch) for _ in range(8)]
        good = losses[-1] < losses[0] - 0.1
        print(f"{name}: {counted:,} parameters each; peer's loss on one batch {losses[0]:.3f} -> {losses[-1]:.3f}"
              + ("" if good else ": DOES NOT FALL"))
        return good
    peer.tune()
    print(f"{name}: {counted:,} parameters each; peer with {peer.piece} sequences at a time, "
          f"{'foreach' if peer.foreach else 'plain'} Adam, {blas()}", flush=True)
    ratios, rates = [], []
    for number in range(1, options.rounds + 1):
        mine = ours(options.program, config, keys, options.updates, options.vocab)["stages"][-1]
        # The mean over the updates, as for the peer; tokens of an update are rate times time.
        mine_rate = mine["tokens_per_s"] * mine["seconds"] / statistics.mean(mine["update_processor_seconds"])
        theirs = peer.tokens_per_s(options.updates)
        ratios.append(mine_rate / theirs)
        rates.append((mine_rate, theirs))
        print(f"  round {number}: stablemoe {mine_rate:8.0f} tokens/s, PyTorch {theirs:8.0f}: {ratios[-1]:.2f}", flush=True)
    middle, target = statistics.median(ratios), TARGETS[experts]
    print(f"  {name}: {middle:.2f} times PyTorch {torch.__version__} (median of {len(ratios)}; best of both "
          f"{max(r[0] for r in rates) / max(r[1] for r in rates):.2f}); target {target}: "
          + ("reached" if middle >= target else "missed"))
    return middle >= target


def main() -> int:
    """Measure the shapes asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", default=str(ROOT / "build" / "src" / "app" / "stablemoe"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--updates", type=int, default=2, help="timed updates of each program in a round")
    parser.add_argument("--vocab", type=int, default=8192)
    parser.add_argument("--shape", action="append", choices=SHAPES, help="default: all")
    parser.add_argument("--check", action="store_true", help="no rates: only that the peer learns and is as large")
    parser.add_argument("-P", dest="keys", metavar="KEY=VALUE", action="append", default=[], help="of the configuration")
    options = parser.parse_args()
    torch.set_num_threads(1)
    reached = [compare(options, name) for name in options.shape or SHAPES]
    return 0 if all(reached) else 1


if __name__ == "__main__":
    sys.exit(main())
