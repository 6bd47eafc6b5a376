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
    from rlx.algorithm_check import check_algorithm
    from rlx.devices.sharding import use_devices
    from rlx.devices.spread import spread
    from rlx.sweeps.train import sweep

__version__ = "0.1.0"

__all__ = [
    "Env",
    "EnvState",
    "Episodes",
    "Transition",
    "algos",
    "check_algorithm",
    "envs",
    "evaluate",
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

if not TYPE_CHECKING:  # a checker would take every name for one of these

    def __getattr__(name):
        if name in ("envs", "algos", "meta"):
            return import_module(f"rlx.{name}")
        if name == "check_algorithm":
            return import_module("rlx.algorithm_check").check_algorithm
        if name == "sweep":
            return import_module("rlx.sweeps").sweep
        if name == "use_devices":
            return import_module("rlx.devices.sharding").use_devices
        if name == "spread":
            return import_module("rlx.devices.spread").spread
        raise AttributeError(f"module 'rlx' has no attribute {name!r}")
