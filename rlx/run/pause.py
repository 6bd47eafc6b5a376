"""Hooks: what a function of one's own is given between two compiled chunks of a run, and may do there."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any

import jax
import jax.numpy as jnp

from rlx.files import loose
from rlx.messages import unknown_name
from rlx.pytree import is_static, replace


@dataclass
class Pause:
    """A run that waits for a hook, after `update` of its updates.

    Attributes:
        update: updates made.
        step: environment steps taken.
        state: the whole State. Its arrays are the run's until the hook returns: copy what is to be kept.
        metrics: means over the updates since the last call, as a row of `metrics.jsonl` has them; `episode_*` are
            over the episodes that ended since, and None where none did.
        evaluations: rows of `evaluations.jsonl` so far.
        config: the settings in force.
        reason: why the run is to stop; empty where it is not.
    """

    update: int
    step: int
    state: Any
    metrics: dict[str, Any]
    evaluations: list[dict[str, Any]]
    config: Any
    reason: str = ""
    changes: dict[str, Any] = field(default_factory=dict)

    def stop(self, reason: str = "") -> None:
        """Ends the run here: it is evaluated and saved, and can be resumed."""
        self.reason = reason or "a hook stopped it"

    def change(self, **settings: Any) -> None:
        """Gives traced settings of the Config other values for the rest of the run, which `config.json` keeps.

        Raises:
            ValueError: for a name that is none, for a setting that shapes the program, and for a value that it does not
                take.
        """
        self.config = changed(self.config, settings)
        self.changes |= settings


Hook = Callable[[Pause], None]


def changed(config: Any, settings: dict[str, Any]) -> Any:
    """The Config with other values of traced settings, for the same compiled program.

    Raises:
        ValueError: as `Pause.change`.
    """
    known = {f.name: f for f in fields(config)}
    for name in settings:
        if name not in known:
            raise ValueError(unknown_name("setting", name, list(known)))
        if is_static(known[name]):
            raise ValueError(f"{name} shapes the compiled program and cannot change within a run: begin another one")
    new = replace(config, **settings)
    for name in settings:
        before, after = getattr(config, name), getattr(new, name)
        if _kind(before) != _kind(after):
            raise ValueError(f"{name} = {after} in place of {before}: give a value of the same kind")
    return new


def given(config: Any, changes: list[dict[str, Any]], done: float = math.inf) -> Any:
    """The Config with the changes that hooks had made to it until `done` updates, see `config.json`."""
    for change in changes:
        if change["update"] <= done:
            config = changed(config, {name: loose(value) for name, value in change["settings"].items()})
    return config


def _kind(value: Any) -> Any:
    """What of a traced setting the compiled program knows."""
    leaves, structure = jax.tree.flatten(value)
    return structure, [(jnp.shape(leaf), jnp.result_type(leaf)) for leaf in leaves]
