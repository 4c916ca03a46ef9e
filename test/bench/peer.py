"""StableMoE against PyTorch on the same model, in alternation.

usage: /usr/bin/python3 test/bench/peer.py --program build/src/app/stablemoe [--ranks N] [--rounds 5] [--shape NAME ...]

Trains the model of a configuration in configs/bench, once with its experts and once
without (dense), with this program and with PyTorch (Debian: python3-torch): the same
blocks, tied embeddings, loss, clipping and Adam, the same number
of parameters. With experts both are in stage 2, where nine tenths of a training are:
the expert follows from the token id, the gate is learned. Rounds alternate, so that other
work meets both; the figure to look at is the median of the rounds' ratios. It takes
minutes and is no part of any suite.

With one rank (the default) it is one thread against one thread, both measured by the
processor's clock, so that waiting for a core that others use does not count.

With --ranks N it is N cores as people use them: N ranks of one thread here; in PyTorch one
process with N threads, and N processes of one thread under DistributedDataParallel over
gloo, all on the same global batch. The faster of the two is the peer. PyTorch has no expert
parallelism of its own: its processes each hold all experts, and their gradients are summed.
What waits for others is part of such a figure, so the clock is the one on the wall, and the
machine must have nothing else to do: the load average is printed with every round (the
programs measured are part of it).

Peak memory is that of updates at the speed measured, from the kernel (ru_maxrss, VmHWM),
libraries included, summed over processes; here it is the largest rank's times the ranks,
after updates of both stages.

With --precision bf16 this program trains with train.precision=bf16, and PyTorch in fp32 or under
bf16 autocast, whatever is faster for it. What pins kernels to another CPU is taken out of
the environment for both.

The peer is meant to be a good one (peer_model.py), and is run with the piece of the batch,
the form of Adam and the waiting of threads that are fastest here, found before the rounds.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
CONFIGS = HERE.parents[1] / "configs" / "bench"
SHAPES = {"width256-dense": ("width256", False), "width256-experts": ("width256", True),
          "width768-dense": ("width768", False), "width768-experts": ("width768", True)}
TARGETS = {False: 1.2, True: 1.4}  # on one rank; none is set for several
BF16_TARGETS = {"width256-experts": 2.2}  # in bf16, over PyTorch's best of fp32 and bf16
# Each side chooses its kernels by the CPU that it finds.
PINS = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE", "DNNL_MAX_CPU_ISA", "MKL_DEBUG_CPU_TYPE")
MIB = 1 << 20
# The rounding of sums in another order, and what Adam makes of it in two updates.
TOLERANCE = 1e-4


class Team:
    """Processes of PyTorch (peer_worker.py) that train one model together; a context."""

    def __init__(self, facts: dict[str, Any], processes: int, threads: int, clock: str, passive: bool = False) -> None:
        self.model, self.sequences = facts["model"], facts["batch"]["sequences"]
        self.processes, self.threads, self.clock, self.passive = processes, threads, clock, passive
        self.piece, self.foreach, self.autocast = self.sequences, True, False
        self.workers: list[subprocess.Popen[str]] = []

    def __enter__(self) -> Team:
        with contextlib.ExitStack() as stack:
            self.directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="stablemoe-"))
            stack.callback(self._end)
            self.workers = [self._start(rank) for rank in range(self.processes)]
            self.hello = [self._answer(worker) for worker in self.workers]
            self.stack = stack.pop_all()
        return self

    def __exit__(self, *what: object) -> None:
        self.stack.close()

    def __str__(self) -> str:
        several = self.processes > 1
        number, noun = (self.processes, "process") if several else (self.threads, "thread")
        return f"{number} {noun}" + ("es" if several else "s" if number > 1 else "")

    def _start(self, rank: int) -> subprocess.Popen[str]:
        facts = {"model": self.model, "sequences": self.sequences, "processes": self.processes, "rank": rank,
                 "threads": self.threads, "store": os.path.join(self.directory, "store")}
        # Threads of OpenBLAS are counted when it is loaded; gloo would look up the machine's name to find itself.
        env = {"GLOO_SOCKET_IFNAME": "lo", **os.environ, "OMP_NUM_THREADS": str(self.threads)}
        if self.passive:
            env["OMP_WAIT_POLICY"] = "PASSIVE"
        return subprocess.Popen([sys.executable, "-B", str(HERE / "peer_worker.py"), json.dumps(facts)], env=env,
                                text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def _end(self) -> None:
        for worker in self.workers:
            worker.kill()
        for worker in self.workers:
            worker.communicate()

    def _answer(self, worker: subprocess.Popen[str]) -> dict[str, Any]:
        line = worker.stdout.readline()
        if not line:
            # One that cannot start says why on standard error.
            sys.exit(f"peer: PyTorch in {self} has ended with status {worker.wait()}")
        return json.loads(line)

    def ask(self, do: str, **how: Any) -> list[dict[str, Any]]:
        """Let all processes do something; their answers."""
        for worker in self.workers:
            with contextlib.suppress(BrokenPipeError):
                print(json.dumps({"do": do, **how}), file=worker.stdin, flush=True)
        return [self._answer(worker) for worker in self.workers]

    def tokens_per_s(self, updates: int) -> float:
        """Rate over some updates, by the slowest process."""
        seconds = max(answer[self.clock] for answer in self.ask("run", updates=updates))
        return updates * self.sequences * self.model["context"] / seconds

    def use(self, piece: int, foreach: bool, autocast: bool = False) -> None:
        """Sequences at a time, the form of Adam, and whether products are of bf16 (autocast)."""
        self.piece, self.foreach, self.autocast = piece, foreach, autocast
        self.ask("set", piece=piece, foreach=foreach, autocast=autocast)

    def _rate_with(self, piece: int, foreach: bool = True, autocast: bool = False) -> tuple[float, int, bool]:
        self.use(piece, foreach, autocast)
        return self.tokens_per_s(1), piece, autocast

    def tune(self, bf16: bool = False) -> None:
        """Choose the fastest piece of the batch and form of Adam; bf16: also of fp32 and autocast."""
        self.ask("run", updates=1)
        share = self.sequences // self.processes
        rate, piece, autocast = max(self._rate_with(n, True, half) for half in ((False, True) if bf16 else (False,))
                                    for n in (1, 2, 4, 8, 16) if n <= share and share % n == 0)
        self._rate_with(piece, False, autocast)
        foreach = not self.tokens_per_s(1) > rate
        self.use(piece, foreach, autocast)
        self.ask("forget_peak")

    def settings(self) -> str:
        """What it is run with."""
        return (f"{'bf16 autocast' if self.autocast else 'fp32'}, "
                f"{self.piece} sequence{'s' if self.piece > 1 else ''} at a time, "
                + ("foreach" if self.foreach else "plain") + " Adam"
                + (", passive waiting" if self.passive else ""))

    @property
    def peak_bytes(self) -> int:
        """Peak memory since it was tuned, all processes together."""
        return sum(answer["peak_bytes"] for answer in self.ask("peak"))


def ours(options: argparse.Namespace, config: Path, keys: list[str], updates: int) -> dict[str, Any]:
    """What `stablemoe bench --json` says."""
    launcher = [options.mpirun, "--bind-to", "none", "-n", str(options.ranks)] if options.ranks > 1 else []
    command = [*launcher, options.program, "bench", str(config), "--json", "-n", str(updates), "-w", "1",
               "--vocab", str(options.vocab)]
    for key in keys:
        command += ["-P", key]
    try:
        result = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    except OSError as error:
        sys.exit(f"peer: {error}")
    if result.returncode:
        sys.exit(f"peer: {' '.join(command)} failed:\n{result.stderr}")
    return json.loads(result.stdout)


def passive_is_faster(facts: dict[str, Any], threads: int) -> bool:
    """Whether idle threads should sleep rather than spin, which a busy machine makes very slow; set at the start."""
    if "OMP_WAIT_POLICY" in os.environ:
        return False
    rates = []
    for passive in (False, True):
        with Team(facts, 1, threads, "wall", passive) as team:
            team.ask("run", updates=1)
            rates.append(team.tokens_per_s(1))
    return rates[1] > rates[0]


def our_rate(figures: dict[str, Any], clock: str) -> float:
    """Tokens/s: the mean over the updates, as for the peer; tokens of an update are rate times time."""
    stage = figures["stages"][-1]
    seconds = stage["update_processor_seconds" if clock == "processor" else "update_seconds"]
    return stage["tokens_per_s"] * stage["seconds"] / statistics.mean(seconds)


def check(name: str, counted: int, teams: list[Team]) -> bool:
    """That the first peer learns, and that the others compute what it computes."""
    one = teams[0].ask("repeat", updates=8)[0]
    losses = one["losses"]
    good = losses[-1] < losses[0] - 0.1
    print(f"{name}: {counted:,} parameters each; peer's loss on one batch {losses[0]:.3f} -> {losses[-1]:.3f}"
          + ("" if good else ": DOES NOT FALL"), flush=True)
    for team in teams[1:]:
        team.use(max(1, team.sequences // team.processes // 2), True)  # several pieces make a batch
        answers = team.ask("repeat", updates=3)
        pairs = [(statistics.mean(loss), wanted) for loss, wanted in zip(zip(*(a["losses"] for a in answers)), losses)]
        pairs += [pair for a in answers for pair in zip(a["norms"], one["norms"])]
        same = all(abs(value / wanted - 1) <= TOLERANCE for value, wanted in pairs)
        good = good and same
        print(f"  in {team}: loss after two updates {pairs[2][0]:.6f}, in one thread {losses[2]:.6f}; losses and "
              f"gradient norms differ by at most {max(abs(value / wanted - 1) for value, wanted in pairs):.1e}"
              + ("" if same else ": NOT THE SAME UPDATE"), flush=True)
    return good


def print_memory(teams: list[Team], figures: list[dict[str, Any]]) -> None:
    """Peak memory of either side, and the ratio to each peer: the faster one need not be the smaller."""
    mine = max(f["peak_bytes"] * f["ranks"] for f in figures)
    theirs = [team.peak_bytes for team in teams]
    listed = ", ".join((f"in {team} " if len(teams) > 1 else "") + f"{peak / MIB:,.0f} MiB"
                       for team, peak in zip(teams, theirs))
    libraries = statistics.mean(hello["base_bytes"] for team in teams for hello in team.hello)
    print(f"  peak memory: stablemoe {mine / MIB:,.0f} MiB, PyTorch {listed} (each process {libraries / MIB:.0f} MiB "
          f"before it has a model): " + ", ".join(f"{mine / peak:.2f}" for peak in theirs))


def measure(options: argparse.Namespace, name: str, keys: list[str], teams: list[Team]) -> bool:
    """Rounds, and what came of them; returns whether the target is reached."""
    file, experts = SHAPES[name]
    bf16 = options.precision == "bf16"
    if bf16:
        keys = [*keys, "train.precision=bf16"]
    for team in teams:
        team.tune(bf16)
    several, clock, blas = len(teams) > 1, teams[0].clock, teams[0].hello[0]["blas"]
    how = ("peer with " + teams[0].settings() if not several
           else "PyTorch " + ", ".join(f"in {team} with {team.settings()}" for team in teams))
    print(f"{name}: {teams[0].hello[0]['parameters']:,} parameters each; {how}, {blas}", flush=True)
    figures, mine, theirs = [], [], {team: [] for team in teams}
    for number in range(1, options.rounds + 1):
        figures.append(ours(options, CONFIGS / f"{file}.yml", keys, options.updates))
        mine.append(our_rate(figures[-1], clock))
        for team in teams:
            theirs[team].append(team.tokens_per_s(options.updates))
        rates = ", ".join((f"in {team} " if several else "") + f"{theirs[team][-1]:8.0f}" for team in teams)
        ratios = ", ".join(f"{mine[-1] / theirs[team][-1]:.2f}" for team in teams)
        print(f"  round {number}: stablemoe {mine[-1]:8.0f} tokens/s, PyTorch {rates}: {ratios}"
              + (f" (load {os.getloadavg()[0]:.1f})" if several else ""), flush=True)
    best = max(teams, key=lambda team: statistics.median(theirs[team]))
    middle = statistics.median(a / b for a, b in zip(mine, theirs[best]))
    target = None if several else BF16_TARGETS.get(name) if bf16 else TARGETS[experts]
    print(f"  {name}: {middle:.2f} times PyTorch {best.hello[0]['torch']}" + (f" in {best}" if several else "")
          + f" (median of {len(mine)}; best of both {max(mine) / max(theirs[best]):.2f})"
          + (f"; target {target}: {'reached' if middle >= target else 'missed'}" if target else ""))
    print_memory(teams, figures)
    return target is None or middle >= target


def compare(options: argparse.Namespace, name: str) -> bool:
    """Measure or check one shape; returns whether all is well."""
    file, experts = SHAPES[name]
    keys = options.keys + ([] if experts else ["moe.layers=0"])
    if options.check:
        # Less of everything but for the width.
        lanes = max(4, options.ranks)
        options.vocab = min(options.vocab, 1024)
        keys = ["model.blocks=2", "model.inner=128", "model.context=32", "moe.inner=64", f"moe.experts={lanes}",
                f"train.lanes={lanes}", f"train.batch_sequences={2 * lanes}", *keys]
    facts = ours(options, CONFIGS / f"{file}.yml", keys, 1)
    n, lanes = options.ranks, facts["batch"]["lanes"]
    if n > lanes:  # nor sequences, then
        sys.exit(f"peer: {n} ranks cannot share out {lanes} lanes; give -P train.lanes={n} or more")
    kinds = [(1, 1, "processor")]
    if n > 1:
        threads = (1, n, "wall", not options.check and passive_is_faster(facts, n))
        kinds = [*(kinds if options.check else []), threads, (n, 1, "wall")]
    counted = facts["parameters"]["shared"] + facts["parameters"]["experts"]
    with contextlib.ExitStack() as stack:
        teams = [stack.enter_context(Team(facts, *kind)) for kind in kinds]
        made = teams[0].hello[0]["parameters"]
        if made != counted:
            sys.exit(f"peer: {made:,} parameters, but stablemoe has {counted:,}: not the same model")
        return check(name, counted, teams) if options.check else measure(options, name, keys, teams)


def main() -> int:
    """Measure the shapes asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", default=str(HERE.parents[1] / "build" / "src" / "app" / "stablemoe"))
    parser.add_argument("--mpirun", default="mpirun")
    parser.add_argument("--ranks", type=int, default=1, help="cores of either side, one rank each here (default 1)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--updates", type=int, default=2, help="timed updates of each program in a round")
    parser.add_argument("--vocab", type=int, default=8192)
    parser.add_argument("--shape", action="append", choices=SHAPES, help="default: all")
    parser.add_argument("--check", action="store_true",
                        help="no rates: only that the peer learns, is as large, and computes the same on N cores")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32",
                        help="bf16: train.precision=bf16 here, in PyTorch fp32 or autocast, whatever is faster")
    parser.add_argument("-P", dest="keys", metavar="KEY=VALUE", action="append", default=[],
                        help="of the configuration")
    options = parser.parse_args()
    if options.ranks < 1 or options.rounds < 1 or options.updates < 1:
        parser.error("--ranks, --rounds and --updates are at least 1")
    cores = len(os.sched_getaffinity(0))
    if options.ranks > cores and not options.check:
        parser.error(f"--ranks {options.ranks} on {cores} cores: times would mean nothing; only --check works")
    os.environ["OMP_NUM_THREADS"] = "1"
    for pin in PINS:
        os.environ.pop(pin, None)
    if options.ranks > 1 and not options.check:
        print(f"{cores} cores; load average at the start {os.getloadavg()[0]:.2f}")
    reached = [compare(options, name) for name in options.shape or SHAPES]
    return 0 if all(reached) else 1


if __name__ == "__main__":
    sys.exit(main())
