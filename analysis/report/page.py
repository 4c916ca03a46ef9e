"""The page: data, style and scripts of static/ in one file."""

from __future__ import annotations

import html
import json
from pathlib import Path
from typing import Any

from analysis import look, routing, series

STATIC = Path(__file__).parent / "static"
SCRIPTS = ("base.js", "save.js", "chart.js", "shapes.js", "table.js", "passage.js", "parts.js", "sections.js",
           "images.js", "detail.js", "skips.js", "page.js")
"""In the order in which they are read; each defines what the later ones use."""

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="generator" content="StableMoE analysis">
<title>{title}</title>
<link rel="icon" href="data:,">
<style>
{style}
</style>
</head>
<body>
<a class="skip" href="#main">Skip to the figures</a>
<aside id="side"><div class="brand"><span class="mark" aria-hidden="true"></span>StableMoE</div>
<nav id="nav" aria-label="Sections"></nav></aside>
<main id="main"><noscript>This report draws its figures with JavaScript, which is turned off.</noscript></main>
<script type="application/json" id="data">{data}</script>{live}
<script>
"use strict";
{scripts}
</script>
</body>
</html>
"""


def title_of(runs: list[dict[str, Any]]) -> str:
    """What a report is called that was given no title."""
    return runs[0]["name"] if len(runs) == 1 else f"Comparison of {len(runs)} runs"


def content(title: str, runs: list[dict[str, Any]], warnings: list[str]) -> dict[str, Any]:
    """What the scripts of the page draw."""
    return {"title": title, "warnings": warnings, "runs": runs,
            "look": {**look.for_page(), "smoothing": series.SMOOTHING,
                     "balance": [measure._asdict() for measure in series.BALANCE]},
            "paper": {str(percent): share for percent, share in routing.BASE_FLUCTUATION.items()}}


def _in_script(data: dict[str, Any]) -> str:
    """JSON for a script element: nothing but "</" and "<!" could end or change it; \\u escapes are the same in JSON."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def render_content(data: dict[str, Any], live: dict[str, Any] | None = None) -> str:
    """The text of the page. live: version and seconds between two questions for a newer one (analysis.watch)."""
    names = (*SCRIPTS, "watch.js") if live else SCRIPTS
    scripts = "\n".join((STATIC / name).read_text(encoding="utf-8") for name in names)
    style = (STATIC / "style.css").read_text(encoding="utf-8")
    more = f'\n<script type="application/json" id="live">{_in_script(live)}</script>' if live else ""
    return PAGE.format(title=html.escape(data["title"]), style=style, data=_in_script(data), live=more, scripts=scripts)


def render(title: str, runs: list[dict[str, Any]], warnings: list[str]) -> str:
    """The text of the report."""
    return render_content(content(title, runs, warnings))
