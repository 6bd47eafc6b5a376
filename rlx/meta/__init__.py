"""Learning the learning rule: objectives with weights, whole lifetimes to measure them by, and how to improve them."""

from rlx.meta.curriculum import Buffer, choose, fill, record
from rlx.meta.drifts import LPO, TALPO, drift_features, learned_surrogate, lpo, talpo
from rlx.meta.evolution import (
    STRATEGIES,
    Generation,
    Strategy,
    antithetic,
    ascent,
    centered_ranks,
    evolve,
    first,
    mean,
    open_es,
    snes,
)
from rlx.meta.gradients import MetaState, detached, meta_train, meta_update, outcome, unrolled
from rlx.meta.lifetimes import Lifetime, alone, fitness, last_return, lived, scaled, trial
from rlx.meta.rules import LPG, lpg, with_rule
from rlx.meta.saved import load, save

__all__ = [
    "LPG",
    "LPO",
    "STRATEGIES",
    "TALPO",
    "Buffer",
    "Generation",
    "Lifetime",
    "MetaState",
    "Strategy",
    "alone",
    "antithetic",
    "ascent",
    "centered_ranks",
    "choose",
    "detached",
    "drift_features",
    "evolve",
    "fill",
    "first",
    "fitness",
    "last_return",
    "learned_surrogate",
    "lived",
    "load",
    "lpg",
    "lpo",
    "mean",
    "meta_train",
    "meta_update",
    "open_es",
    "outcome",
    "record",
    "save",
    "scaled",
    "snes",
    "talpo",
    "trial",
    "unrolled",
    "with_rule",
]
