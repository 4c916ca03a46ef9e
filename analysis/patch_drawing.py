"""Draw the patches that experts take on the images of a split.

    python3 -m analysis patches CORPUS TABLE -o FILE.svg [--split test] [--count 12] [--layer 0] [--experts 0,3]

TABLE is what `stablemoe evaluate RUN --images TABLE` writes.
"""

from __future__ import annotations

import argparse
import base64
import struct
import sys
import zlib
from pathlib import Path
from xml.sax.saxutils import escape

import h5py
import numpy as np

from analysis import look

COLORS = (*look.LINES["light"], look.EIGHTH["light"])


def png(pixels: np.ndarray) -> bytes:
    """A PNG of [height, width, channels] uint8; one channel is gray."""
    height, width, channels = pixels.shape
    raw = b"".join(b"\0" + row.tobytes() for row in pixels)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2 if channels == 3 else 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")


class Images:
    """A split of a corpus of images."""

    def __init__(self, path: Path, split: str):
        self.file = h5py.File(path, "r")
        form = self.file.attrs.get("format", "")
        form = form.decode() if isinstance(form, bytes) else form
        if form != "stablemoe-images":
            raise SystemExit(f"'{path}' is not a corpus of images")
        size = self.file.attrs
        self.height, self.width, self.channels = (int(size[k]) for k in ("height", "width", "channels"))
        self.patch_height, self.patch_width = int(size["patch_height"]), int(size["patch_width"])
        self.columns = self.width // self.patch_width
        self.n_patches = self.columns * (self.height // self.patch_height)
        self.patches, self.label, self.place = (self.file[f"{split}/{k}"] for k in ("patches", "label", "place"))
        self.names = bytes(self.file["class_names"][()]).decode().splitlines()

    def pixels(self, i: int) -> np.ndarray:
        """Image i in 8 bits; numbers that are not 8-bit are stretched to their range."""
        rows = self.height // self.patch_height
        cut = self.patches[i].reshape(rows, self.columns, self.patch_height, self.patch_width, self.channels)
        whole = cut.transpose(0, 2, 1, 3, 4).reshape(self.height, self.width, self.channels)
        if whole.dtype != np.uint8:
            low, high = float(whole.min()), float(whole.max())
            whole = np.round(255 * (whole - low) / (high - low or 1)).astype(np.uint8)
        return np.ascontiguousarray(whole if self.channels in (1, 3) else whole[..., :1])

    def corner(self, patch: int) -> tuple[int, int]:
        """Left and top of a patch."""
        return patch % self.columns * self.patch_width, patch // self.columns * self.patch_height


def read_table(path: Path, layer: int) -> list[dict]:
    """Lines of the table; patches: a list for each expert."""
    with open(path, encoding="utf-8") as file:
        names = file.readline().rstrip("\n").split("\t")
        column = f"patches{layer}"
        if column not in names:
            raise SystemExit(f"'{path}' has no column {column}: the model has no such MoE layer")
        lines = [dict(zip(names, line.rstrip("\n").split("\t"))) for line in file]
    for line in lines:
        line["patches"] = [[int(p) for p in part.split(",") if p] for part in line[column].split(";")]
    return lines


LEGEND = 10
"""Experts in a line of the legend."""

FRAMES = 3
"""Experts that frame their patches; more leave small marks, so that the image can be seen."""


def rectangle(x: float, y: float, width: float, height: float, style: str, title: str = "") -> str:
    text = f"<title>{escape(title)}</title>" if title else ""
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(width, 1):.1f}" height="{max(height, 1):.1f}" {style}>{text}</rect>'


def draw_frames(experts: list[int], taken: list[int], box: tuple[float, float, float, float], patch: int) -> list[str]:
    """Frames of the experts that take a patch, inside each other. box: left, top, width, height."""
    x, y, width, height = box
    parts = []
    for inset, e in ((1 + 2.2 * k, e) for k, e in enumerate(e for e in experts if e in taken)):
        parts.append(rectangle(x + inset, y + inset, width - 2 * inset, height - 2 * inset,
                               f'fill="none" stroke="{COLORS[e % len(COLORS)]}" stroke-width="1.8"',
                               f"expert {e}, patch {patch}"))
    return parts


def draw_marks(experts: list[int], taken: list[int], box: tuple[float, float, float, float], patch: int) -> list[str]:
    """A small square for each expert that takes a patch, at a place of its own along the lower edge."""
    x, y, width, height = box
    size = min(6.0, (width - 4) / 4)
    columns = max(1, int((width - 4) // (size + 1)))
    rows = -(-len(experts) // columns)
    parts = [rectangle(x + 2 + k % columns * (size + 1), y + height - 2 - (rows - k // columns) * (size + 1), size, size,
                       f'fill="{COLORS[e % len(COLORS)]}" stroke="#000" stroke-width="0.6"', f"expert {e}, patch {patch}")
             for k, e in enumerate(experts) if e in taken]
    return parts or [rectangle(x, y, width, height, 'fill="#000" opacity="0.55"')]


def draw_image(images: Images, line: dict, experts: list[int], x: float, y: float, scale: float) -> list[str]:
    """One image with the patches that experts take: frames of a few, marks of more, which dim the patches of nobody."""
    i = int(line["image"])
    data = base64.b64encode(png(images.pixels(i))).decode()
    width, height = images.width * scale, images.height * scale
    right = line["class"] == line["predicted"]
    parts = [f'<image x="{x}" y="{y}" width="{width}" height="{height}" preserveAspectRatio="none" '
             f'style="image-rendering:pixelated" href="data:image/png;base64,{data}"/>']
    draw = draw_frames if len(experts) <= FRAMES else draw_marks
    for patch in range(images.n_patches):
        left, top = images.corner(patch)
        box = (x + left * scale, y + top * scale, images.patch_width * scale, images.patch_height * scale)
        parts += draw(experts, [e for e in experts if patch in line["patches"][e]], box, patch)
    place = int(line["place"])
    if place >= 0:
        left, top = images.corner(place)
        parts.append(f'<circle cx="{x + (left + images.patch_width) * scale - 5:.1f}" cy="{y + top * scale + 5:.1f}" '
                     'r="3.5" fill="#fff" stroke="#000"><title>the patch that decides the class</title></circle>')
    name, predicted = (escape(images.names[int(line[k])]) for k in ("class", "predicted"))
    colour, sign = ("", "") if right else (' fill="#c00"', " \u2717")
    parts.append(f'<text x="{x}" y="{y + height + 13}"{colour}>image {i}: class {name}, predicted {predicted}{sign}</text>')
    return parts


def drawing(images: Images, lines: list[dict], experts: list[int], columns: int) -> str:
    scale = 160 / max(images.width, images.height)
    step_x, step_y = max(images.width * scale, 175) + 14, images.height * scale + 30
    rows = -(-len(lines) // columns)
    width = max(14 + columns * step_x, 14 + 74 * min(len(experts), LEGEND))
    below = 18 * (-(-len(experts) // LEGEND))
    height = below + 16 + rows * step_y
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" '
             f'font-family="sans-serif" font-size="11"><rect width="100%" height="100%" fill="#fff"/>']
    for k, e in enumerate(experts):
        left, top = 14 + 74 * (k % LEGEND), 8 + 18 * (k // LEGEND)
        parts.append(f'<rect x="{left}" y="{top}" width="10" height="10" fill="{COLORS[e % len(COLORS)]}"/>'
                     f'<text x="{left + 14}" y="{top + 9}">expert {e}</text>')
    for k, line in enumerate(lines):
        parts += draw_image(images, line, experts, 14 + k % columns * step_x, below + 10 + k // columns * step_y, scale)
    return "\n".join(parts) + "\n</svg>\n"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python3 -m analysis patches", description=__doc__.split("\n")[0])
    parser.add_argument("corpus", type=Path)
    parser.add_argument("table", type=Path, help="of stablemoe evaluate RUN --images TABLE")
    parser.add_argument("-o", "--output", type=Path, required=True, help="the drawing, an SVG file")
    parser.add_argument("--split", default="test", choices=("train", "valid", "test"), help="that was evaluated")
    parser.add_argument("--count", type=int, default=12, help="images (default 12)")
    parser.add_argument("--layer", type=int, default=0, help="MoE layer (default 0)")
    parser.add_argument("--experts", help="numbers of experts to draw, such as 0,3 (default: all)")
    options = parser.parse_args(argv)
    images, lines = Images(options.corpus, options.split), read_table(options.table, options.layer)
    if not lines or max(int(line["image"]) for line in lines) >= len(images.label):
        print(f"'{options.table}' is not of the {options.split} split of '{options.corpus}'", file=sys.stderr)
        return 2
    n_experts = len(lines[0]["patches"])
    experts = [int(e) for e in options.experts.split(",")] if options.experts else list(range(n_experts))
    if not all(0 <= e < n_experts for e in experts):
        print(f"--experts {options.experts}: the layer has experts 0 to {n_experts - 1}", file=sys.stderr)
        return 2
    options.output.write_text(drawing(images, lines[: options.count], experts, 4), encoding="utf-8")
    print(f"{options.output}: {min(options.count, len(lines))} images, {len(experts)} experts")
    return 0
