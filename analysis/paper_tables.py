"""Tables of jobs/reproduce.sh as lists of runs; those of the StableMoE paper with the figures it printed.

The paper is Dai et al., ACL 2022; tables of the other methods are in relative_tables. A row is a set of
configuration keys over one of the sizes; rows that several tables share are one run. What a row sets depends on the
size: the larger dense models have the parameters of its experts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

Settings = dict[str, bool | int | float | str]


@dataclass(frozen=True)
class Size:
    """A configuration that all rows of a table start from."""

    name: str
    config: str
    """Path in the project."""
    stage1_percent: int
    """Length of stage 1 where a table does not say it, of all updates."""
    column: str
    """Which of the paper's columns stands beside it."""


SIZES = {size.name: size for size in (
    # On 4 million tokens a tenth is some hundred updates, too few for a router on token ids to learn
    # what the gates decide; the paper's second row has a quarter.
    Size("small", "configs/reproduce/small.yml", 25, "base"),
    Size("base", "configs/paper-base.yml", 10, "base"),
    Size("large", "configs/paper-large.yml", 10, "large"),
    Size("captions", "configs/reproduce/captions.yml", 12, "translation"),
)}


@dataclass(frozen=True)
class Row:
    """One model of a table."""

    name: str
    """Of its run directories, with the seed."""
    label: str
    settings: tuple[str, ...]
    """-P of stablemoe train."""
    paper: dict[str, tuple[float | None, ...]] = field(default_factory=dict)
    """Column -> perplexity in validation and test as published; of translation: BLEU by PAPER_DIRECTIONS."""
    needs: str | None = None
    """Row whose run of the same seed comes first; {needs} in settings is its directory."""


@dataclass(frozen=True)
class Table:
    """What jobs/reproduce.sh runs under one name."""

    title: str
    source: str
    """Where in the paper."""
    rows: Callable[[Size, Settings], list[Row]]
    routing: bool = False
    """Whether the table shows how the methods route and what they cost, in place of published figures."""
    against: str | None = None
    """Row that the others' perplexities are compared with; None: StableMoE."""
    size: str | None = None
    """The only size of the table, and not one of text; None: sizes of language models."""


def _stable(size: Size, settings: Settings, percent: int, label: str, *more: str, name: str = "stable",
            paper: dict | None = None) -> Row:
    updates = max(1, int(settings["train.updates"]) * percent // 100)
    return Row(f"{name}-{percent}", label, ("router.method=stable", f"router.stage1_updates={updates}", *more),
               paper or {})


def experts_of(settings: Settings) -> tuple[int, int, int]:
    """Experts, sublayers of each, inner width."""
    inner = int(settings.get("moe.inner", 0)) or 4 * int(settings["model.width"])
    return int(settings["moe.experts"]), int(settings["moe.sublayers"]), inner


def _base() -> Row:
    return Row("base", "BASE", ("router.method=base",), {"base": (20.04, 19.69), "large": (16.36, 15.75)})


def main_rows(size: Size, settings: Settings) -> list[Row]:
    """Table 2: dense models and the methods, at equal FLOPs of all MoE models."""
    experts, sublayers, inner = experts_of(settings)
    return [
        Row("standard", "Standard Transformer", ("moe.layers=0",), {"base": (23.02, 22.58), "large": (18.86, 18.19)}),
        Row("deeper", "Larger Transformer, deeper",
            ("router.method=hash", "moe.experts=1", f"moe.sublayers={experts * sublayers}"), {"base": (17.93, 17.63)}),
        Row("wider", "Larger Transformer, wider",
            ("router.method=hash", "moe.experts=1", f"moe.inner={experts * inner}"), {"base": (18.31, 18.01)}),
        Row("switch", "Switch", ("router.method=switch",), {"base": (19.79, 19.20), "large": (16.62, 16.21)}),
        _base(),
        Row("hash", "Hash", ("router.method=hash",), {"base": (19.63, 19.25), "large": (16.37, 15.79)}),
        _stable(size, settings, size.stage1_percent, "StableMoE",
                paper={"base": (19.28, 18.93), "large": (16.22, 15.59)}),
    ]


PAPER_DIRECTIONS = ("de-en", "fr-en", "cs-en")
"""Directions of the paper's table 3 that Multi30k has, too."""


def translation_rows(size: Size, settings: Settings) -> list[Row]:
    """Table 3, of three of its nine languages: the larger model has the FLOPs of those with experts."""
    def row(name: str, label: str, paper: tuple[float, float, float], *more: str) -> Row:
        return Row(name, label, more, {"translation": paper})

    updates = max(1, int(settings["train.updates"]) * size.stage1_percent // 100)
    return [
        row("standard", "Standard Transformer", (39.8, 32.5, 29.1), "moe.layers=0"),
        row("larger", "Larger Transformer", (40.6, 33.7, 29.8), "router.method=hash", "moe.experts=1"),
        row("switch", "Switch", (42.3, 33.8, 31.0), "router.method=switch"),
        row("base", "BASE", (42.6, 34.2, 31.0), "router.method=base"),
        row("hash", "Hash", (42.7, 34.6, 31.3), "router.method=hash"),
        row(f"stable-{size.stage1_percent}", "StableMoE", (43.0, 34.7, 31.5), "router.method=stable",
            f"router.stage1_updates={updates}"),
    ]


def fixed_rows(size: Size, settings: Settings) -> list[Row]:
    """Table 5: what freezing the routing is worth."""
    updates = max(1, int(settings["train.updates"]) * size.stage1_percent // 100)
    return [
        _base(),
        Row(f"base-stage2-{size.stage1_percent}", "BASE with stage 2",
            ("router.method=base_stage2", f"router.stage1_updates={updates}"), {"base": (19.41, None)}),
        _stable(size, settings, 100, "StableMoE, stage 1 only", paper={"base": (19.48, None)}),
        _stable(size, settings, size.stage1_percent, "StableMoE", paper={"base": (19.28, None)}),
    ]


def position_rows(size: Size, settings: Settings) -> list[Row]:
    """Table 4: where the MoE layer stands."""
    percent = size.stage1_percent
    scattered = ("moe.layers=3", "moe.position=scattered", "moe.sublayers=1")
    return [
        _stable(size, settings, percent, "stacked, top", "moe.position=top", name="top", paper={"base": (19.55, None)}),
        _stable(size, settings, percent, "stacked, middle", paper={"base": (19.28, None)}),
        _stable(size, settings, percent, "stacked, bottom", "moe.position=bottom", name="bottom",
                paper={"base": (22.82, None)}),
        _stable(size, settings, percent, "scattered: three layers of one sublayer", *scattered, name="scattered",
                paper={"base": (20.56, None)}),
    ]


def router_rows(size: Size, settings: Settings) -> list[Row]:
    """Table 6, lower part: what the distilled router sees; stage 1 is a quarter of the training."""
    def features(name: str, label: str, value: float | None, *more: str) -> Row:
        kind = name.rstrip("123")
        return _stable(size, settings, 25, label, f"router.stable.features={kind}", *more, name=name,
                       paper={"base": (value, None)} if value else None)

    return [
        _stable(size, settings, 25, "word embedding", paper={"base": (19.34, None)}),
        features("bigram", "bigram (in the paper's code only)", None),
        features("cnn", "CNN", 19.39),
        features("transformer1", "Transformer of 1 layer", 19.42, "router.stable.layers=1"),
        features("transformer2", "Transformer of 2 layers", 19.38, "router.stable.layers=2"),
        features("transformer3", "Transformer of 3 layers", 19.65, "router.stable.layers=3"),
    ]


def stage_rows(size: Size, settings: Settings) -> list[Row]:
    """Table 6, upper part: how long stage 1 lasts."""
    published = {10: 19.28, 25: 19.34, 50: 19.41, 100: 19.48}
    return [_stable(size, settings, percent, f"stage 1 for {percent} % of the training",
                    paper={"base": (value, None)}) for percent, value in published.items()]


def fluctuation_rows(size: Size, settings: Settings) -> list[Row]:
    """Figures 1 and 7: whose routing keeps changing."""
    wanted = ("switch", "base", "hash", f"stable-{size.stage1_percent}")
    return [row for row in main_rows(size, settings) if row.name in wanted]


PAPER_TABLES = {
    "main": Table("Perplexity of the methods", "table 2", main_rows),
    "fixed-routing": Table("What freezing the routing is worth", "table 5", fixed_rows),
    "position": Table("Where the MoE layer stands", "table 4", position_rows),
    "router": Table("What the distilled router sees", "table 6", router_rows),
    "stage-split": Table("How long stage 1 lasts", "tables 5 and 6", stage_rows),
    "fluctuation": Table("Routing fluctuation", "figures 1 and 7", fluctuation_rows),
    "translation": Table("BLEU of the methods", "table 3", translation_rows, size="captions"),
}


def multiply_adds(settings: Settings, vocabulary: int) -> float:
    """Multiply-accumulates of the forward pass per token: the paper's FLOPs over the sequence's length.

    Attention is counted as the full square, as the paper does. Every token visits one expert.
    """
    d, context = int(settings["model.width"]), int(settings["model.context"])
    inner = int(settings.get("model.inner", 0)) or 4 * d
    layers = int(settings.get("moe.layers", 1))
    _, sublayers, expert_inner = experts_of(settings)
    blocks = int(settings["model.blocks"]) * (4 * d * d + 2 * d * inner + 2 * context * d)
    return blocks + vocabulary * d + layers * sublayers * 2 * d * expert_inner
