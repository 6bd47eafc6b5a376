"""Parameters of an environment that change over a run: by its progress, or as its episodes succeed.

    env = with_params(env, {"gravity": linear(1, 9.8)})             # a schedule of rlx.schedules
    env = with_params(env, {"gravity": by_success(1, 9.8, 400)})    # goes on while episodes return at least 400

    rlx train ppo --env CartPole-v1 --curriculum gravity=linear:1:9.8
    rlx train ppo --env CartPole-v1 --curriculum gravity=success:1:9.8:400

Parameters change between updates, also for episodes under way. Everything that is not training, such as an evaluation,
is in the environment that the curriculum ends in.

Whole levels that differ from one episode to the next are in `rlx.levels`.

Source of the rule of success: Akkaya et al. 2019, arXiv:1910.07113, section 5.2 (automatic domain randomisation), with
one number a parameter, which never goes back.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer

from rlx.schedules import FORMS, Schedule, parse

FORM = "success:START:END:THRESHOLD[:STEP]"
STEP = 0.05


@jax.tree_util.register_pytree_with_keys_class
class Success:
    """A number that goes from a start to an end by how episodes do; `by_success` makes it. Prints as it is written."""

    __slots__ = ("numbers",)

    def __init__(self, start: Any, end: Any, threshold: Any, step: Any = STEP):
        self.numbers = (start, end, threshold, step)
        plain = [x for x in self.numbers if isinstance(x, int | float)]
        if not all(map(math.isfinite, plain)):
            raise ValueError(f"{self}: give finite numbers")
        if isinstance(step, int | float) and not 0 < step <= 1:
            raise ValueError(f"{self}: STEP is above 0 and at most 1")

    def __call__(self, pace: Any) -> Any:
        """The value at a pace from 0 to 1."""
        start, end = self.numbers[:2]
        return start + (end - start) * jnp.asarray(pace)

    def moved(self, pace: jax.Array, score: jax.Array, num: jax.Array) -> jax.Array:
        """The pace after `num` episodes ended with a mean score: larger by STEP where that reaches the threshold."""
        _, _, threshold, step = self.numbers
        return jnp.where((num > 0) & (score >= threshold), jnp.minimum(pace + step, 1.0), pace)

    def __repr__(self) -> str:
        usual = not isinstance(self.numbers[3], Tracer) and self.numbers[3] == STEP
        shown = self.numbers[:3] if usual else self.numbers
        return ":".join(["success", *(str(x).removesuffix(".0") for x in shown)])

    def tree_flatten(self):
        return self.numbers, None

    def tree_flatten_with_keys(self):
        names = map(jax.tree_util.GetAttrKey, ("start", "end", "threshold", "step"))
        return list(zip(names, self.numbers, strict=True)), None

    @classmethod
    def tree_unflatten(cls, _, numbers):  # leaves may be anything here: nothing is checked
        self = object.__new__(cls)
        self.numbers = tuple(numbers)
        return self


def by_success(start: float, end: float, threshold: float, step: float = STEP) -> Success:
    """A parameter that goes from `start` to `end`, by `step` of the way after each rollout that did well enough.

    Args:
        start, end: values of the parameter.
        threshold: what the episodes that ended in a rollout have to reach on average: of `success`, a result from 0 to
            1, where the environment reports one, else of their return.
        step: share of the way.
    """
    return Success(start, end, threshold, step)


def is_moving(value: Any) -> bool:
    """Whether a value of a parameter changes over a run, also where it is written as text."""
    if isinstance(value, str):
        return value.partition(":")[0] in (*FORMS, "success")
    return isinstance(value, Schedule | Success)


def moving(value: Any) -> Schedule | Success:
    """The parameter that changes as it is written. Raises ValueError for another text; it says what is missing."""
    if not isinstance(value, str):
        return value
    kind, *words = value.split(":")
    if kind != "success":
        return parse(value)
    try:
        numbers = [float(word) for word in words]
    except ValueError:
        raise ValueError(f"{value}: give {FORM}") from None
    if len(numbers) not in (3, 4):
        raise ValueError(f"{value} has {len(numbers)} numbers: give {FORM}")
    return Success(*numbers)


def ends(value: Schedule | Success) -> tuple[Any, Any]:
    """The first and the last value."""
    if isinstance(value, Success):
        return value.numbers[:2]
    return value.values[0], value.values[-1]


def has_pace(tree: Any) -> bool:
    """Whether a parameter goes by success."""
    return any(map(_is_success, jax.tree.leaves(tree, is_leaf=_is_success)))


def at_pace(tree: Any, pace: Any) -> Any:
    """The tree with the value of every parameter that goes by success, at a pace from 0 to 1."""
    return jax.tree.map(lambda x: x(pace) if _is_success(x) else x, tree, is_leaf=_is_success)


def as_now(env: Any, env_state: Any) -> Any:
    """The environment at the pace that its episodes have come to; without a parameter that goes by success itself."""
    return at_pace(env, env_state.pace.mean()) if has_pace(env.params) else env


def settled(tree: Any) -> Any:
    """The tree with the last value of every parameter that changes; without any it is itself."""
    moves = lambda x: isinstance(x, Schedule | Success)
    if not any(map(moves, jax.tree.leaves(tree, is_leaf=moves))):
        return tree
    return jax.tree.map(lambda x: x(1.0) if moves(x) else x, tree, is_leaf=moves)


def next_pace(tree: Any, pace: jax.Array, traj: Any) -> jax.Array:
    """The pace after a rollout `[T, N]`: by the strictest of the parameters that go by success."""
    score = traj.reported.get("success", traj.episode_return)
    num = traj.done.sum()
    mean = jnp.where(traj.done, score, 0.0).sum() / jnp.maximum(num, 1)
    rules = [x for x in jax.tree.leaves(tree, is_leaf=_is_success) if _is_success(x)]
    return jnp.min(jnp.stack([rule.moved(pace, mean, num) for rule in rules]))


def _is_success(x: Any) -> bool:
    return isinstance(x, Success)


__all__ = [
    "Success",
    "as_now",
    "at_pace",
    "by_success",
    "ends",
    "has_pace",
    "is_moving",
    "moving",
    "next_pace",
    "settled",
]
