"""Read what `stablemoe export` writes, with NumPy alone.

    from analysis import export, reference

    params, about = export.load("model.safetensors")
    config = reference.Config.from_keys(about["configuration"])
    terms, cache = reference.forward(params, tokens, targets, config, about["stage"], training=False)

tokens and targets are [S, T] ids; cache["log_p"] are the log-probabilities of the tokens that follow.
"""

import json
import os
import re
import struct

import numpy as np

DTYPES = {"F32": "<f4", "F64": "<f8"}


def read_file(path):
    """Name -> array of one safetensors file (mapped, not read), and its metadata."""
    with open(path, "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    data = np.memmap(path, mode="r", offset=8 + length, dtype="u1")
    metadata = header.pop("__metadata__", {})
    tensors = {}
    for name, about in header.items():
        begin, end = about["data_offsets"]
        tensors[name] = data[begin:end].view(DTYPES[about["dtype"]]).reshape(about["shape"])
    return tensors, metadata


def load(path):
    """Parameters by their names, and what the export says of the model (its JSON file).

    Experts in files of their own are put together again, so names and shapes are those of a whole
    export: "moe0/expert/ffn0/w1" is [E, F, C].
    """
    tensors, metadata = read_file(path)
    about = json.loads(metadata["config"])
    index = path + ".index.json"
    if os.path.exists(index):
        with open(index) as file:
            where = json.load(file)["weight_map"]
        for name in sorted(set(where.values()) - {os.path.basename(path)}):
            tensors.update(read_file(os.path.join(os.path.dirname(path), name))[0])
    return join_experts(tensors), about


def join_experts(tensors):
    """"moe0/expert/<e>/ffn0/w1" of every e as one "moe0/expert/ffn0/w1" with the experts first."""
    whole, parts = {}, {}
    for name, values in tensors.items():
        match = re.fullmatch(r"(.*/expert)/(\d+)/(.*)", name)
        if match:
            parts.setdefault(f"{match[1]}/{match[3]}", {})[int(match[2])] = values
        else:
            whole[name] = values
    for name, experts in parts.items():
        whole[name] = np.stack([experts[e] for e in range(len(experts))])
    return whole
