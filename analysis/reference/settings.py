"""What the equations need of a run's configuration."""

from __future__ import annotations

from dataclasses import dataclass, field, fields


@dataclass
class Config:
    """Sizes and weights, with the defaults of the program's keys where a test does not name them."""

    blocks: int
    heads: int
    scale_embedding: bool = False
    moe_layers: int = 0
    position: str = "middle"
    experts: int = 0
    sublayers: int = 0
    identical_experts: bool = True
    capacity_factor: float = 0.0  # 0: no token is ever dropped
    seed: int = 1
    lanes: int = 1
    method: str = "stable"
    stage1_updates: int = 0
    balance_weight: float = 0.3
    distill_weight: float = 1.0
    features: str = "word"
    distill_heads: int = 2
    distill_layers: int = 1
    router: dict = field(default_factory=dict)  # the method's other keys, by their last name
    lr: float = 1e-3
    beta1: float = 0.9
    beta2: float = 0.98
    epsilon: float = 1e-8
    decay: float = 0.0
    clip: float = 0.0  # 0: gradients are not clipped
    expert_gradient_factor: float = 1.0
    router_lr_factor: float = 1.0
    schedule: str = "linear"
    warmup: int = 0
    floor: float = 0.1
    decay_share: float = 0.1
    updates: int = 1
    micro_batches: int = 1
    batch_sequences: int = 1
    context: int = 0
    nodes: int = 1  # of lanes and experts
    copies: int = 1  # of each sequence in training
    consistency: float = 0.0  # weight of the divergence between two copies
    skip_what: str = "none"  # model.skip.*
    skip_layers: int = 0  # 0: half of the blocks
    skip_unit: str = "sequence"
    skip_mean: str = "running"
    skip_gradient: str = "full"
    skip_choice: str = "gate"
    skip_target: float = 0.5
    skip_weight: float = 0.01
    skip_share: float = 0.5
    only: str = ""  # patterns with commas between
    frozen: str = ""

    def moe_after(self):
        """Number of blocks that stand before each MoE layer."""
        count, blocks = self.moe_layers, self.blocks
        if self.position == "scattered":
            return [(i + 1) * blocks // (count + 1) for i in range(count)]
        return [{"middle": blocks // 2, "top": blocks, "bottom": 0}[self.position]] * count

    def two_stages(self):
        return self.moe_layers > 0 and self.method in ("stable", "base_stage2")

    def stage(self, update):
        """Stage of the zero-based update."""
        return 2 if self.two_stages() and update >= self.stage1_updates else 1

    @staticmethod
    def from_text(text):
        """From the configuration text of a run: used.yml, or the one in a checkpoint."""
        return Config.from_keys(read_keys(text))

    @staticmethod
    def from_keys(key):
        """From dotted names and values, text or JSON's: those of an export."""
        key = {name: ",".join(value) if isinstance(value, list) else value for name, value in key.items()}
        key = {name: str(value).lower() if isinstance(value, bool) else str(value) for name, value in key.items()}
        method = key["router.method"]
        own = {name.split(".")[2]: value for name, value in key.items() if name.startswith(f"router.{method}.")}
        thor = method == "thor" and int(key["moe.layers"]) > 0
        values = {
            "nodes": key.get("moe.nodes", 1),
            "copies": own["copies"] if thor else "1", "consistency": own["consistency"] if thor else "0",
            "blocks": key["model.blocks"], "heads": key["model.heads"],
            "scale_embedding": key["model.scale_embedding"], "moe_layers": key["moe.layers"],
            "position": key["moe.position"], "experts": key["moe.experts"], "sublayers": key["moe.sublayers"],
            "identical_experts": key["moe.identical_experts"], "capacity_factor": key["moe.capacity_factor"],
            "seed": key["run.seed"], "lanes": key["train.lanes"], "method": method,
            "stage1_updates": key["router.stage1_updates"], "lr": key["optimizer.lr"],
            "beta1": key["optimizer.beta1"], "beta2": key["optimizer.beta2"], "epsilon": key["optimizer.epsilon"],
            "decay": key["optimizer.decay"], "clip": key["optimizer.clip"],
            "expert_gradient_factor": key["optimizer.expert_gradient_factor"], "schedule": key["schedule.kind"],
            "router_lr_factor": key.get("optimizer.router_lr_factor", 1),
            "warmup": key["schedule.warmup"],
            "floor": key.get("schedule.floor", 0.1), "decay_share": key.get("schedule.decay_share", 0.1),
            "updates": key["train.updates"],
            "micro_batches": key["train.micro_batches"], "batch_sequences": key["train.batch_sequences"],
            "context": key["model.context"], "balance_weight": own.pop("balance_weight", "0"),
            "distill_weight": own.pop("distill_weight", "0"), "features": own.pop("features", "word"),
            "distill_heads": own.pop("heads", "1"), "distill_layers": own.pop("layers", "1")}
        values |= {f"skip_{name[11:]}": value for name, value in key.items() if name.startswith("model.skip.")}
        values |= {name: key.get(f"train.{name}", "") for name in ("only", "frozen")}
        types = {f.name: f.type for f in fields(Config)}
        convert = {"int": int, "float": float, "str": str, "bool": lambda text: text == "true"}
        return Config(**{name: convert[types[name]](value) for name, value in values.items()}, router=own)


def read_keys(text):
    """Dotted names and values (as text) of the YAML that a run writes."""
    import yaml

    keys = {}

    def add(section, before):
        for name, value in section.items():
            if isinstance(value, dict):
                add(value, f"{before}{name}.")
            elif value:
                keys[before + name] = value

    add(yaml.load(text, yaml.BaseLoader) or {}, "")  # BaseLoader: every value stays a text
    return keys
