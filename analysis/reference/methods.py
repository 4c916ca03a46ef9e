"""Every routing method by its name in router.method."""

from .places import Local, Smile, Thor
from .routers import (Base, BaseStage2, ExpertChoice, GShard, Hash, Mask, Recurrent, Replay, SparseMixer, Stable,
                      Switch, TopK)

METHODS = {"stable": Stable(), "base": Base(), "base_stage2": BaseStage2(), "switch": Switch(), "topk": TopK(),
           "gshard": GShard(), "expert_choice": ExpertChoice(), "hash": Hash(), "mask": Mask(), "recurrent": Recurrent(),
           "sparsemixer": SparseMixer(), "smile": Smile(), "local": Local(), "thor": Thor(), "replay": Replay()}
