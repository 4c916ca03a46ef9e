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


def draw_image(images: Images, line: dict, experts: list[int], x: float, y: float, scale: float) -> list[str]:
    """One image with a frame for each patch and expert; frames of several experts lie inside each other."""
    i = int(line["image"])
    data = base64.b64encode(png(images.pixels(i))).decode()
    width, height = images.width * scale, images.height * scale
    right = line["class"] == line["predicted"]
    parts = [f'<image x="{x}" y="{y}" width="{width}" height="{height}" preserveAspectRatio="none" '
             f'style="image-rendering:pixelated" href="data:image/png;base64,{data}"/>']
    taken: dict[int, int] = {}
    for e in experts:
        for patch in line["patches"][e]:
            left, top = images.corner(patch)
            inset = 1 + 2.2 * taken.get(patch, 0)
            taken[patch] = taken.get(patch, 0) + 1
            parts.append(
                f'<rect x="{x + left * scale + inset:.1f}" y="{y + top * scale + inset:.1f}" '
                f'width="{max(images.patch_width * scale - 2 * inset, 1):.1f}" '
                f'height="{max(images.patch_height * scale - 2 * inset, 1):.1f}" fill="none" '
                f'stroke="{COLORS[e % len(COLORS)]}" stroke-width="1.8"><title>expert {e}, patch {patch}</title></rect>')
    place = int(line["place"])
    if place >= 0:
        left, top = images.corner(place)
        parts.append(f'<circle cx="{x + (left + images.patch_width) * scale - 5:.1f}" cy="{y + top * scale + 5:.1f}" '
                     'r="3.5" fill="#fff" stroke="#000"><title>the patch that decides the class</title></circle>')
    name, predicted = (escape(images.names[int(line[k])]) for k in ("class", "predicted"))
    parts.append(f'<text x="{x}" y="{y + height + 13}">image {i}: {name}, predicted {predicted}'
                 f'{"" if right else " (wrong)"}</text>')
    return parts


def drawing(images: Images, lines: list[dict], experts: list[int], columns: int) -> str:
    scale = 160 / max(images.width, images.height)
    step_x, step_y = max(images.width * scale, 175) + 14, images.height * scale + 30
    rows = -(-len(lines) // columns)
    width, height = 14 + columns * step_x, 34 + rows * step_y
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" '
             f'font-family="sans-serif" font-size="11"><rect width="100%" height="100%" fill="#fff"/>']
    for k, e in enumerate(experts):
        parts.append(f'<rect x="{14 + 74 * k}" y="8" width="10" height="10" fill="none" stroke-width="2" '
                     f'stroke="{COLORS[e % len(COLORS)]}"/><text x="{28 + 74 * k}" y="17">expert {e}</text>')
    for k, line in enumerate(lines):
        parts += draw_image(images, line, experts, 14 + k % columns * step_x, 28 + k // columns * step_y, scale)
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
