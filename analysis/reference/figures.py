"""The figures that metrics.csv and the routing log show, from the choices of an update's micro-batches."""

import numpy as np


def local_rate(config, parts):
    """Share of the rows sent, of all micro-batches, that stay on the node of their lane."""
    stay = sent = 0
    for part in parts:
        lane = np.arange(len(part["expert"])) // (len(part["expert"]) // config.lanes)
        here = part["expert"] * config.nodes // config.experts == (lane * config.nodes // config.lanes)[:, None]
        stay, sent = stay + (here & part["kept"]).sum(), sent + part["kept"].sum()
    return stay / sent


def of_layer(info, layer, n_targets):
    """Figures of one MoE layer over all micro-batches of an update; info: of training.gradients."""
    parts = [micro[layer] for micro in info]
    expert = np.concatenate([part["expert"] for part in parts])
    gate = np.concatenate([part["gate"] for part in parts])
    used = expert >= 0
    load = np.bincount(expert[used], minlength=len(parts[0]["load"]))
    dropped = sum(part["dropped"] for part in parts)
    figures = balance(load)
    figures.update(load=load, assigned=int(load.sum()), dropped=dropped, drop_rate=dropped / load.sum(),
                   gate_mean=gate[used].mean(), agreement=np.nan,
                   terms=[*parts[0]["terms"]],
                   **{name: sum(part[name] for part in parts) / n_targets for name in parts[0]["terms"]})
    if parts[0]["learned"] is not None:
        learned, distilled = (np.concatenate([part[name] for part in parts]) for name in ("learned", "distilled"))
        figures["agreement"] = (learned == distilled)[learned >= 0].mean()
    return figures


def balance(load):
    """Of the loads of one layer: largest over mean, deviation over mean, entropy over its largest, idle experts."""
    share = load[load > 0] / load.sum()
    entropy = -(share * np.log(share)).sum() / np.log(len(load)) if len(load) > 1 else 1.0
    return {"max_over_mean": load.max() / load.mean(), "cv": load.std() / load.mean(), "entropy": entropy,
            "dead": int((load == 0).sum())}


def bits_per_byte(loss, n_tokens, n_bytes):
    """Of a split's whole text, by the mean loss in nats of its tokens."""
    return loss / np.log(2) * n_tokens / n_bytes
