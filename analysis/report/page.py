"""The page: data, style and scripts of static/ in one file."""

from __future__ import annotations

import html
import json
from pathlib import Path
from typing import Any

from analysis import routing

STATIC = Path(__file__).parent / "static"
SCRIPTS = ("base.js", "save.js", "chart.js", "shapes.js", "table.js", "passage.js", "parts.js", "sections.js",
           "detail.js", "page.js")
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
<script type="application/json" id="data">{data}</script>
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


def render(title: str, runs: list[dict[str, Any]], warnings: list[str]) -> str:
    """The text of the page."""
    data = {"title": title, "warnings": warnings, "runs": runs,
            "paper": {str(percent): share for percent, share in routing.BASE_FLUCTUATION.items()}}
    # In a script element nothing but "</" and "<!" could end or change it; \\u escapes are the same in JSON.
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    text = text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
    scripts = "\n".join((STATIC / name).read_text(encoding="utf-8") for name in SCRIPTS)
    style = (STATIC / "style.css").read_text(encoding="utf-8")
    return PAGE.format(title=html.escape(title), style=style, data=text, scripts=scripts)
