"""Tables of jobs/reproduce.sh that compare routing methods of all papers at one size and one budget.

Experts of methods with two experts per token are twice as many and half as wide: all rows of a table with MoE
layers then have the same experts' parameters and the same multiplications of a token.
"""

from __future__ import annotations

import dataclasses

from analysis.paper_tables import PAPER_TABLES, Row, Settings, Size, Table, experts_of, main_rows


def _halves(settings: Settings, *more: str) -> tuple[str, ...]:
    experts, _, inner = experts_of(settings)
    return (f"moe.experts={2 * experts}", f"moe.inner={inner // 2}", *more)


NODES = "moe.nodes=4"
"""Nodes that experts and lanes are counted in, for the share of rows that stay on one; alters no other method."""


def _on_nodes(row: Row) -> Row:
    """A row that counts rows on nodes as well."""
    return dataclasses.replace(row, name=f"{row.name}-nodes4", settings=(*row.settings, NODES), paper={})


def relatives_rows(size: Size, settings: Settings) -> list[Row]:
    """All methods for one MoE layer."""
    def row(name: str, label: str, *more: str) -> Row:
        return _on_nodes(Row(name, label, more))

    def two(name: str, label: str, *more: str) -> Row:
        return row(name, label + ", 2 of twice as many", *_halves(settings, *more))

    paper = {main.name: main for main in main_rows(size, settings)}
    return [
        paper["standard"],
        *(_on_nodes(paper[name]) for name in ("switch", "base", "hash", f"stable-{size.stage1_percent}")),
        two("multi-hash", "MultiHash", "router.method=hash", "router.hash.segments=2"),
        two("gshard", "GShard", "router.method=gshard"),
        two("topk", "top-k", "router.method=topk", "router.topk.k=2"),
        two("topk-bias", "top-k, sigmoid, bias in place of a balance loss", "router.method=topk", "router.topk.k=2",
            "router.topk.scores=sigmoid", "router.topk.bias_rate=0.001", "router.topk.balance_weight=0"),
        # One lane, so that at each place of a sequence the experts choose among the tokens of all sequences; there
        # are no nodes then, which count lanes.
        Row("expert-choice", "Expert Choice, causal",
            ("router.method=expert_choice", "router.expert_choice.causal=true", "router.expert_choice.capacity=1",
             "train.lanes=1")),
        row("mask", "MaskMoE", "router.method=mask"),
        row("sparsemixer", "SparseMixer", "router.method=sparsemixer"),
        two("sparsemixer-v2", "SparseMixer-v2 as in GRIN", "router.method=sparsemixer", "router.sparsemixer.version=v2",
            "router.sparsemixer.k=2", "router.sparsemixer.omega=false", "router.sparsemixer.bias=false",
            "router.sparsemixer.balance_on=all"),
        row("smile", "SMILE", "router.method=smile"),
        row("local", "LocMoE", "router.method=local"),
        row("thor", "THOR, two copies of the batch", "router.method=thor", "router.thor.draw=sequence"),
    ]


def gate_rows(size: Size, settings: Settings) -> list[Row]:
    """Hash and StableMoE in their parts: the table of tokens, the gate, and how fast the router learns."""
    paper = {row.name: _on_nodes(row) for row in main_rows(size, settings)}
    stable = paper[f"stable-{size.stage1_percent}"]

    def table(name: str, label: str, gate: str) -> Row:
        row = Row(name, label, ("router.method=hash", "router.hash.table={needs}", f"router.hash.gate={gate}"),
                  needs=stable.name)
        return _on_nodes(row)

    return [
        paper["hash"],
        _on_nodes(Row("hash-sigmoid", "Hash, learned gate", ("router.method=hash", "router.hash.gate=sigmoid"))),
        stable,
        table("stable-table", "StableMoE's final table from the first update, gate one", "one"),
        table("stable-table-sigmoid", "StableMoE's final table from the first update, learned gate", "sigmoid"),
        dataclasses.replace(stable, name="stable-gate90-nodes4", label="StableMoE, gates that begin at 0.9",
                            settings=(*stable.settings, "router.stable.gate_start=0.9")),
        dataclasses.replace(stable, name="stable-bias-nodes4", label="StableMoE, balanced by bias, without the loss",
                            settings=(*stable.settings, "router.stable.balance_weight=0",
                                      "router.stable.bias_rate=0.001")),
        dataclasses.replace(stable, name="stable-router2-nodes4", label="StableMoE, routers at twice the learning rate",
                            settings=(*stable.settings, "optimizer.router_lr_factor=2")),
    ]


def depth_rows(size: Size, settings: Settings) -> list[Row]:
    """Routers of several MoE layers: experts in place of all six feed-forward layers."""
    experts, _, inner = experts_of(settings)
    common = ("model.family=decoder", "model.blocks=6", f"moe.experts={experts}", f"moe.inner={inner // 4}",
              "moe.sublayers=1", "model.scale_embedding=false")

    def row(name: str, label: str, *more: str) -> Row:
        return Row(f"depth-{name}", label, (*common, *more))

    def recurrent(name: str, label: str, *more: str) -> Row:
        return row(name, label, "router.method=recurrent", "router.recurrent.width=32", *more)

    return [
        recurrent("rmoe", "RMoE"),
        recurrent("detach", "RMoE, no gradient between layers", "router.recurrent.recurrence=detach"),
        recurrent("np", "RMoE, no state between layers (NP)", "router.recurrent.recurrence=none"),
        recurrent("mlp", "a router with one hidden layer", "router.recurrent.cell=mlp"),
        row("topk", "top-k", "router.method=topk", "router.topk.k=2"),
    ]


TABLES = {
    **PAPER_TABLES,
    "relatives": Table("The methods of all papers", "several papers", relatives_rows, routing=True,
                       against="switch-nodes4"),
    "gates": Table("Tables and gates", "a question of this project", gate_rows, routing=True, against="hash-nodes4"),
    "depth": Table("Routers over depth", "RMoE, Qiu et al. 2024", depth_rows, routing=True, against="depth-topk"),
}
