"""One process of PyTorch that trains peer_model's model for peer.py, which starts it and tells it what to do.

The only argument is a JSON object: model, sequences, processes, rank, threads, store (a file
where the processes find each other). Commands come as lines of JSON on standard input, and
each is answered by one on standard output; the first answer, without a command, says what
was made. All processes get the same commands, draw the same batches, and each trains on its
share of the sequences. At the end of the input the process ends.
"""

from __future__ import annotations

import contextlib
import ctypes
import datetime
import gc
import json
import os
import sys
import time
from typing import Any

try:
    import torch
    import torch.distributed
    from torch import Tensor
    from torch.nn.parallel import DistributedDataParallel
except ImportError as error:
    sys.exit(f"skipped: {error}; install python3-torch")

from peer_model import Model

# A process that waits longer for the others ends: no update takes that long.
PATIENCE = datetime.timedelta(minutes=10)


def memory(name: str) -> int:
    """Bytes of this process: VmRSS (now) or VmHWM (at most so far)."""
    with open("/proc/self/status", encoding="ascii") as file:
        return next(1024 * int(line.split()[1]) for line in file if line.startswith(name + ":"))


def blas() -> str:
    """The library that the products run in."""
    with open("/proc/self/maps", encoding="utf-8") as file:
        names = {os.path.basename(line.split()[-1]) for line in file if "blas" in line}
    return ", ".join(sorted(names)) or "none found"


class Peer:
    """A model with its optimizer and its data."""

    def __init__(self, facts: dict[str, Any]) -> None:
        self.base_bytes = memory("VmRSS")
        torch.manual_seed(1)
        self.facts, self.sequences = facts["model"], facts["sequences"]
        self.rank, self.processes = facts["rank"], facts["processes"]
        self.model: torch.nn.Module = Model(self.facts)
        self.piece = self.sequences
        self.autocast = False
        self.trained = [p for p in self.model.parameters() if p.requires_grad]
        self.n_parameters = sum(p.numel() for p in self.model.parameters())
        if self.processes > 1:
            self._join(facts["store"])
        self.optimizer = torch.optim.AdamW(self.trained, lr=6e-4, betas=(0.9, 0.98), weight_decay=0.0, foreach=True)

    def _join(self, store: str) -> None:
        """Experts and all are replicated. Gradients stay in the buckets they are summed in: no copies of them."""
        torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=self.rank,
                                             world_size=self.processes, timeout=PATIENCE)
        self.model = DistributedDataParallel(self.model, broadcast_buffers=False, gradient_as_bucket_view=True)

    def hello(self) -> dict[str, Any]:
        """What was made; all parameters count, the frozen router's too."""
        return {"parameters": self.n_parameters, "torch": torch.__version__, "blas": blas(),
                "base_bytes": self.base_bytes}

    def set(self, piece: int, foreach: bool, autocast: bool = False) -> dict[str, Any]:
        """Sequences at a time, the form of Adam (its moments stay), and whether products are of bf16."""
        self.piece, self.autocast = piece, autocast
        for group in self.optimizer.param_groups:
            group["foreach"] = foreach
        return {}

    def batch(self) -> Tensor:
        """[B, T + 1] token ids by Zipf's law."""
        context, vocabulary = self.facts["context"], self.facts["vocabulary"]
        frequency = 1 / torch.arange(1, vocabulary + 1, dtype=torch.float)
        return torch.multinomial(frequency, self.sequences * (context + 1), replacement=True).view(self.sequences, -1)

    def _backward(self, part: Tensor, last: bool) -> float:
        """Adds gradients; with the last piece of the batch they are summed over the processes."""
        # DDP takes the mean over the processes, where the sum is wanted.
        n_tokens = self.sequences * self.facts["context"] / self.processes
        whole = last or not isinstance(self.model, DistributedDataParallel)
        with contextlib.nullcontext() if whole else self.model.no_sync():
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.autocast):
                loss = self.model(part[:, :-1], part[:, 1:]) / n_tokens
            loss.backward()
        return loss.item()

    def update(self, batch: Tensor) -> tuple[float, float]:
        """One update over pieces of the batch: loss per token (its mean over the processes) and gradient norm."""
        self.optimizer.zero_grad(set_to_none=True)
        parts = batch.tensor_split(self.processes)[self.rank].split(self.piece)
        loss = sum(self._backward(part, part is parts[-1]) for part in parts)
        gradients = [p.grad for p in self.trained]
        norm = torch.norm(torch.stack(torch._foreach_norm(gradients))).item()
        torch._foreach_mul_(gradients, min(1.0, 0.1 / norm))
        self.optimizer.step()
        return loss, norm

    def run(self, updates: int) -> dict[str, Any]:
        """Seconds of some updates by both clocks; the data is made beforehand."""
        batches = [self.batch() for _ in range(updates)]
        if self.processes > 1:
            torch.distributed.barrier()
        wall, processor = time.perf_counter(), time.process_time()
        for batch in batches:
            self.update(batch)
        return {"processor": time.process_time() - processor, "wall": time.perf_counter() - wall}

    def repeat(self, updates: int) -> dict[str, Any]:
        """Losses and gradient norms of updates on one batch."""
        batch = self.batch()
        losses, norms = zip(*(self.update(batch) for _ in range(updates)))
        return {"losses": losses, "norms": norms}

    def forget_peak(self) -> dict[str, Any]:
        """Peak memory counts from here on, without what earlier updates left to the allocator."""
        self.optimizer.zero_grad(set_to_none=True)
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
            file.write("5")
        return {}

    def peak(self) -> dict[str, Any]:
        """Most memory since forget_peak."""
        return {"peak_bytes": memory("VmHWM")}


def main() -> int:
    """Make the peer, then do what one is told."""
    facts = json.loads(sys.argv[1])
    torch.set_num_threads(facts["threads"])
    peer = Peer(facts)
    does = {f.__name__: f for f in (peer.set, peer.run, peer.repeat, peer.forget_peak, peer.peak)}
    print(json.dumps(peer.hello()), flush=True)
    for line in sys.stdin:
        command = json.loads(line)
        print(json.dumps(does[command.pop("do")](**command)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
