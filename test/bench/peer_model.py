"""The model of StableMoE's stage 2 in PyTorch: what peer.py measures against.

Blocks, experts, tied embeddings and loss are those of this program, and so is the number
of parameters; peer_worker.py trains it. It is meant to be a good peer: one product for
queries, keys and values, mask and scale inside the product of queries and keys, tokens
sorted by expert and gathered once for each.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

DISTILLED_WIDTH = 50


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
