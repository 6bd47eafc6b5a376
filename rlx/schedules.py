"""Settings that change over a run: schedules that a traced field of a Config takes in place of a number.

    config = ppo.Config(entropy_coef=linear(0.01, 0), learning_rate=cosine(3e-4, 3e-5))
    config = ppo.Config(entropy_coef="linear:0.01:0")    # the same; so do presets and `--entropy-coef linear:0.01:0`

A schedule is a function of the progress, the share of the run's updates that are made. Update `u` of `U`, counted from
0, has progress `u / U`: the first has the start, the last falls short of the end by one update, and a policy that is
evaluated after the run has the end. The numbers of a schedule are traced: they are vmapped, swept and differentiated
like those in their place.

`rlx.train.now` evaluates them around `init`, `update` and `act`, whose Config has numbers only. A loop of one's own
around `algorithm.update` calls it too.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, TypeGuard, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from rlx.messages import unknown_name

T = TypeVar("T")
Number = float | jax.Array
# What is written of each kind; the names in brackets may be repeated.
FORMS = {
    "linear": "linear:START:END",
    "cosine": "cosine:START:END",
    "exponential": "exponential:START:END",
    "piecewise": "piecewise:START:SHARE:VALUE[:SHARE:VALUE]",
    "piecewise_linear": "piecewise_linear:START:SHARE:VALUE[:SHARE:VALUE]",
}


@jax.tree_util.register_pytree_with_keys_class
class Schedule:
    """A number that follows the progress of a run; `linear` and its neighbors make it, `parse` reads it from text.

    The numbers are `(start, end)`, or `(start, share, value, share, value, ...)`. It prints as it is written:
    `linear:0.01:0`.

    Raises:
        ValueError: for too few or too many numbers, for what is no number, for shares that are not between 0 and 1 and
            ascending, for infinities other than in constant pieces, and for an exponential with numbers that are not
            above 0. Tracers and arrays are not looked at.
    """

    __slots__ = ("kind", "numbers")

    def __init__(self, kind: str, numbers: Sequence[Number]):
        self.kind, self.numbers = kind, tuple(float(x) if _is_plain(x) else x for x in numbers)
        _check(self)

    def __call__(self, progress: Number) -> Number:
        """The value at a progress from 0 to 1; at a plain 0 the start as it was given."""
        if isinstance(progress, int | float) and progress == 0:
            return self.numbers[0]
        start, *rest = self.numbers
        if self.kind == "linear":
            return start + (rest[0] - start) * jnp.asarray(progress)
        if self.kind == "cosine":
            return start + (rest[0] - start) * 0.5 * (1.0 - jnp.cos(jnp.pi * progress))
        if self.kind == "exponential":
            return start * (rest[0] / start) ** jnp.asarray(progress)
        shares, values = rest[::2], rest[1::2]
        if self.kind == "piecewise_linear":
            return jnp.interp(jnp.asarray(progress), jnp.array([0.0, *shares]), jnp.array([start, *values]))
        value: Any = start
        for share, then in zip(shares, values, strict=True):
            value = jnp.where(progress >= share, then, value)
        return value

    @property
    def values(self) -> tuple[Number, ...]:
        """The numbers without the shares."""
        return self.numbers if self.kind in ("linear", "cosine", "exponential") else self.numbers[::2]

    def constant(self, number: Number) -> "Schedule":
        """One of this kind, at the same shares, that is always `number`."""
        shared = self.kind.startswith("piecewise")
        return Schedule(self.kind, [x if shared and i % 2 else number for i, x in enumerate(self.numbers)])

    def __repr__(self) -> str:
        return ":".join([self.kind, *map(_text, self.numbers)])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Schedule) and (self.kind, self.numbers) == (other.kind, other.numbers)

    def __hash__(self) -> int:
        return hash((self.kind, self.numbers))

    def tree_flatten(self):
        return self.numbers, self.kind

    def tree_flatten_with_keys(self):
        names = _names(self.kind, len(self.numbers))
        keys = [name.lower() + (f"_{(i + 1) // 2}" if len(names) > 2 and i else "") for i, name in enumerate(names)]
        return list(zip(map(jax.tree_util.GetAttrKey, keys), self.numbers, strict=True)), self.kind

    @classmethod
    def tree_unflatten(cls, kind, numbers):  # leaves may be anything here, axes of a vmap for one: nothing is checked
        self = object.__new__(cls)
        self.kind, self.numbers = kind, tuple(numbers)
        return self


def linear(start: Number, end: Number) -> Schedule:
    """`start + (end - start) p` at progress `p`."""
    return Schedule("linear", (start, end))


def cosine(start: Number, end: Number) -> Schedule:
    """Half a cosine: `start + (end - start) (1 - cos(pi p)) / 2` at progress `p`.

    Source: Loshchilov and Hutter 2017, SGDR, arXiv:1608.03983, equation 5, without restarts.
    """
    return Schedule("cosine", (start, end))


def exponential(start: Number, end: Number) -> Schedule:
    """`start (end / start)^p` at progress `p`: the same factor in every update. Both are above 0."""
    return Schedule("exponential", (start, end))


def piecewise(start: Number, *pieces: tuple[Number, Number]) -> Schedule:
    """Constant pieces: `start`, and from each share of the run on the value beside it.

    piecewise(1e-3, (0.5, 1e-4), (0.9, 1e-5))
    """
    return Schedule("piecewise", (start, *(number for piece in pieces for number in piece)))


def piecewise_linear(start: Number, *points: tuple[Number, Number]) -> Schedule:
    """Straight lines from `start` at progress 0 through the points `(share, value)`; after the last one its value.

    piecewise_linear(0, (0.1, 1e-3), (1, 0))    # a warmup over a tenth of the run
    """
    return Schedule("piecewise_linear", (start, *(number for point in points for number in point)))


def parse(text: str) -> Schedule:
    """The schedule that is written so: `linear:0.01:0`, `piecewise:1e-3:0.5:1e-4`.

    Raises:
        ValueError: for another text; it says what is missing.
    """
    kind, *words = text.split(":")
    if kind not in FORMS:
        raise ValueError(f"{text}: {unknown_name('schedule', kind, list(FORMS))}")
    numbers = []
    for word in words:
        try:
            numbers.append(float(word))
        except ValueError:
            raise ValueError(f"{text}: {word!r} is no number; give {FORMS[kind]}") from None
    return Schedule(kind, numbers)


def is_written(value: Any) -> TypeGuard[str]:
    """Whether a value is text that is meant as a schedule."""
    return isinstance(value, str) and (":" in value or value in FORMS)


def at(tree: T, progress: Number) -> T:
    """The Config, or any pytree, with the value of every schedule in its place; without schedules it is itself."""
    if not is_scheduled(tree):
        return tree
    return jax.tree.map(lambda x: x(progress) if _is_schedule(x) else x, tree, is_leaf=_is_schedule)


def is_scheduled(tree: Any) -> bool:
    """Whether there is a schedule in a pytree."""
    return any(map(_is_schedule, jax.tree.leaves(tree, is_leaf=_is_schedule)))


def alike(trees: Sequence[T]) -> list[T]:
    """The dataclasses with constant schedules for numbers where others have a schedule, so that they can be stacked.

    A field stays as it is where there are two kinds of schedules, and a number that its kind does not take.
    """
    found: list[Any] = list(trees)
    if len({type(tree) for tree in found}) > 1 or not dataclasses.is_dataclass(found[0]):
        return found
    for name in [field.name for field in dataclasses.fields(found[0])]:
        schedules = [value for tree in found if _is_schedule(value := getattr(tree, name))]
        if len({jax.tree.structure(schedule) for schedule in schedules}) == 1:
            found = [_with_constant(tree, name, schedules[0]) for tree in found]
    return found


def changed_besides(config: Any) -> str:
    """What is to be said where a learning rate is a schedule, and adapted or annealed besides; else nothing."""
    rate = getattr(config, "learning_rate", None)
    if not _is_schedule(rate):
        return ""
    if getattr(config, "adapt_learning_rate", False) is True:
        return f"learning_rate = {rate}: adapt_learning_rate takes only its start"
    if getattr(config, "anneal_learning_rate", False) is True:
        return f"learning_rate = {rate} is multiplied by the fall to 0 of anneal_learning_rate, which can be turned off"
    return ""


def _with_constant(tree: Any, name: str, schedule: Schedule) -> Any:
    value = getattr(tree, name)
    if _is_schedule(value):
        return tree
    try:
        return dataclasses.replace(tree, **{name: schedule.constant(value)})
    except ValueError:
        return tree


def _is_schedule(x: Any) -> bool:
    return isinstance(x, Schedule)


def _is_plain(x: Any) -> bool:
    return isinstance(x, int | float | np.integer | np.floating) and not isinstance(x, bool)


def _text(x: Any) -> str:
    if isinstance(x, jax.Array | np.ndarray) and not isinstance(x, Tracer) and not np.ndim(x):
        x = float(x)
    return str(x).removesuffix(".0")


def _names(kind: str, num: int) -> list[str]:
    """What each of so many numbers is; at least what there has to be, and no more than there may be."""
    form, _, more = FORMS[kind].rstrip("]").partition("[:")
    names, repeated = form.split(":")[1:], more.split(":") if more else []
    while repeated and len(names) < num:
        names += repeated
    return names


def _check(schedule: Schedule) -> None:
    kind, numbers = schedule.kind, schedule.numbers
    names = _names(kind, len(numbers))
    if missing := names[len(numbers) :]:
        raise ValueError(f"{schedule} has no {' and no '.join(missing)}: give {FORMS[kind]}")
    if len(numbers) > len(names):
        raise ValueError(f"{schedule} has {len(numbers)} numbers: give {FORMS[kind]}")
    for number in numbers:
        if not hasattr(number, "dtype") and (type(number) is not float or math.isnan(number)):
            raise ValueError(f"{schedule}: {number!r} is no number; give {FORMS[kind]}")
    values = [x for x in schedule.values if isinstance(x, float)]
    if kind == "exponential" and not all(x > 0 for x in values):
        raise ValueError(f"{schedule}: both numbers of an exponential have to be above 0")
    if kind != "piecewise" and not all(map(math.isfinite, values)):
        raise ValueError(f"{schedule}: give finite numbers")
    shares = [x for x in numbers[1::2] if isinstance(x, float)] if kind.startswith("piecewise") else []
    if shares != sorted({*shares}) or not all(0 < x <= 1 for x in shares):
        raise ValueError(f"{schedule}: shares of the run are above 0, at most 1, and ascend")


__all__ = ["FORMS", "Schedule", "alike", "at", "changed_besides", "cosine", "exponential", "is_scheduled"]
__all__ += ["is_written", "linear", "parse", "piecewise", "piecewise_linear"]
