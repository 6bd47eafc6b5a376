"""rlx: reinforcement-learning research in JAX, environments and learning in one compiled program."""

from importlib import import_module
from typing import TYPE_CHECKING

import rlx.versions  # noqa: F401 (refuses other versions of JAX, before anything of it is imported)
from rlx import schedules as schedules
from rlx.devices import compiler as compiler  # sets a switch of XLA, before anything is compiled
from rlx.env import Env, EnvState, Transition
from rlx.pytree import per_env, pytree, replace, stack, static, traced
from rlx.train import Episodes, evaluate, resume, state_bytes, steps_taken, total_updates, train

if TYPE_CHECKING:
    from rlx import algos, envs, meta
    from rlx.agent import Agent, load
    from rlx.algorithm_check import check_algorithm
    from rlx.devices.sharding import use_devices
    from rlx.devices.spread import spread
    from rlx.run.fit import fit
    from rlx.sweeps.train import sweep

__version__ = "0.1.0"

__all__ = [
    "Agent",
    "Env",
    "EnvState",
    "Episodes",
    "Transition",
    "algos",
    "check_algorithm",
    "envs",
    "evaluate",
    "fit",
    "load",
    "meta",
    "per_env",
    "pytree",
    "replace",
    "resume",
    "schedules",
    "spread",
    "stack",
    "state_bytes",
    "static",
    "steps_taken",
    "sweep",
    "total_updates",
    "traced",
    "train",
    "use_devices",
]

# Imported when they are asked for: the verbs do not wait for what runs, sweeps and devices need.
LATER = {
    "Agent": "rlx.agent",
    "check_algorithm": "rlx.algorithm_check",
    "fit": "rlx.run.fit",
    "load": "rlx.agent",
    "spread": "rlx.devices.spread",
    "sweep": "rlx.sweeps",
    "use_devices": "rlx.devices.sharding",
}

if not TYPE_CHECKING:  # a checker would take every name for one of these

    def __getattr__(name):
        if name in ("envs", "algos", "meta"):
            return import_module(f"rlx.{name}")
        if name in LATER:
            return getattr(import_module(LATER[name]), name)
        raise AttributeError(f"module 'rlx' has no attribute {name!r}")
