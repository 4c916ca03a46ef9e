"""The parts of a report on a model of images: which places of an image experts take, and pictures with their patches."""

from __future__ import annotations

import base64
from typing import Any

import h5py
import numpy as np

from analysis import counts
from analysis.patch_drawing import Images, png
from analysis.run import Run, trained_on

PICTURES, SIDE = 12, 224
"""Images that are drawn, and pixels that one has at most each way."""

Data = dict[str, Any]


def patches(run: Run) -> int:
    """Patches of an image; 0 where the run is not of images."""
    context = run.settings.get("model.context")
    return context if run.is_images and isinstance(context, int) else 0


def places(table: np.ndarray) -> list[list[float]]:
    """Of each expert the share of every place's assignments that are its own. table: [T, E]. Returns [E][T]."""
    total = np.maximum(table.sum(1, keepdims=True), 1)
    return [[float(f"{share:.3g}") for share in column] for column in (table / total).T.tolist()]


def _last_record(run: Run, settled: counts.Records) -> tuple[np.ndarray, np.ndarray] | None:
    """Ids [n] and experts [M, n, K] of the first PICTURES images of the last record."""
    if not len(settled.step):
        return None
    number, row = settled.place[-1]
    n = PICTURES * patches(run)
    with h5py.File(run.log.files[number], "r") as file:
        return file["tokens/id"][row, :n], counts.chosen(file["tokens/expert"][row, :, :n])


def _source(images: Images, i: int) -> str:
    pixels = images.pixels(i)
    step = -(-max(pixels.shape[:2]) // SIDE)
    return "data:image/png;base64," + base64.b64encode(png(np.ascontiguousarray(pixels[::step, ::step]))).decode()


def _corpus(run: Run, notes: list[str]) -> Images | None:
    """The training images, if they are those that the run was trained with."""
    if run.corpus is None:
        notes.append(f"corpus {run.settings.get('data.corpus', '')} not found: no images are shown")
        return None
    try:
        images = Images(run.corpus, "train")
        known, trained = int(np.uint64(images.file.attrs["fingerprint"])), trained_on(run.path)
    except (OSError, KeyError, ValueError, RuntimeError, SystemExit) as error:
        notes.append(f"{run.corpus}: cannot be read: {error}; no images are shown")
        return None
    if trained and trained != known:
        notes.append(f"{run.corpus} is not the corpus of the training any more (its fingerprint differs): no images "
                     "are shown")
        return None
    return images


def pictures(run: Run, settled: counts.Records, notes: list[str]) -> Data | None:
    """Images of the last record with the experts of their patches; None where nothing was recorded, or no corpus."""
    found = _last_record(run, settled)
    images = _corpus(run, notes) if found else None
    if images is None or images.n_patches != patches(run):
        return None
    ids, expert = found
    items = []
    for first in range(0, len(ids) - images.n_patches + 1, images.n_patches):
        i = int(ids[first]) // images.n_patches
        if ids[first] < 0 or i >= len(images.label):
            continue
        part = expert[:, first:first + images.n_patches]
        items.append({"image": i, "label": images.names[int(images.label[i])], "place": int(images.place[i]),
                      "src": _source(images, i),
                      "experts": [[[int(e) for e in row if e >= 0] for row in layer] for layer in part.tolist()]})
    return {"update": int(settled.step[-1]), "width": images.width, "height": images.height,
            "patch_width": images.patch_width, "patch_height": images.patch_height, "items": items}
