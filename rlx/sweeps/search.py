"""Which configurations to try: grids and random draws over named values.

A space is a dictionary from names to what they may be: a list of values is a grid, `Uniform`, `LogUniform` and `Choice`
are drawn from. `points` turns it into a list of dictionaries with one value a name.
"""

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from rlx.pytree import plain


@dataclass(frozen=True)
class Uniform:
    """A number between `low` and `high`, every one as likely; rounded if `whole`."""

    low: float
    high: float
    whole: bool = False

    def __post_init__(self):
        if not -math.inf < self.low < self.high < math.inf:
            raise ValueError(f"uniform from {self.low} to {self.high}: give two numbers, the lower one first")

    def draw(self, rng: np.random.Generator) -> float:
        value = rng.uniform(self.low, self.high)
        return round(value) if self.whole else float(value)


@dataclass(frozen=True)
class LogUniform:
    """A positive number between `low` and `high`, every order of magnitude as likely; rounded if `whole`."""

    low: float
    high: float
    whole: bool = False

    def __post_init__(self):
        if not 0 < self.low < self.high < math.inf:
            raise ValueError(
                f"log-uniform from {self.low} to {self.high}: give two positive numbers, the lower one first"
            )

    def draw(self, rng: np.random.Generator) -> float:
        value = math.exp(rng.uniform(math.log(self.low), math.log(self.high)))
        return round(value) if self.whole else value


@dataclass(frozen=True)
class Choice:
    """One of `values`, each as likely."""

    values: Sequence[Any]

    def __post_init__(self):
        if len(self.values) == 0:
            raise ValueError("a choice needs at least one value")

    def draw(self, rng: np.random.Generator) -> Any:
        return python(self.values[int(rng.integers(len(self.values)))])


def points(space: Mapping[str, Any], num_samples: int | None = None, seed: int = 0) -> list[dict[str, Any]]:
    """Every combination of the listed values and, where something is drawn, `num_samples` draws for each of them.

    The last name varies fastest. The same space, number and seed give the same points; more samples of the same seed
    begin with the fewer ones, where nothing is listed.

    Raises:
        ValueError: for an empty list, and where draws and `num_samples` do not go together.
    """
    lists = {name: _listed(name, values) for name, values in space.items() if not _is_drawn(values)}
    drawn = {name: values for name, values in space.items() if _is_drawn(values)}
    for name, values in lists.items():
        if not values:
            raise ValueError(f"{name} has no values to try")
        for value in values:
            if values.count(value) > 1:
                raise ValueError(f"{name} = {value} is listed twice")
    if drawn and (num_samples is None or num_samples < 1):
        raise ValueError(
            f"{', '.join(drawn)} is drawn at random: say how many samples, num_samples (--num-samples), at least 1"
        )
    if num_samples is not None and not drawn:
        raise ValueError(f"num_samples = {num_samples} (--num-samples) and nothing is drawn at random: leave it out")
    if type(plain(seed)) is not int or not 0 <= seed < 2**31:
        raise ValueError(f"seed = {seed!r}: the seeds have to be from 0 to 2^31 - 1")
    rng = np.random.default_rng(seed)
    found = []
    for combination in itertools.product(*lists.values()):
        chosen = dict(zip(lists, combination, strict=True))
        for _ in range(num_samples or 1):
            values = chosen | {name: distribution.draw(rng) for name, distribution in drawn.items()}
            found.append({name: values[name] for name in space})
    return found


def _listed(name: str, values: Any) -> list[Any]:
    """The values of a name as a list of Python values. Raises ValueError where it is a single one."""
    array = isinstance(values, np.ndarray | jax.Array) and np.ndim(values)
    if not (array or isinstance(values, list | tuple | range)):
        raise ValueError(f"{name} = {values!r}: give a list of values to try, [{values!r}] for one, or a distribution")
    return [python(value) for value in values]


def python(value: Any) -> Any:
    """The value in Python numbers, words and tuples, as a file of a sweep holds it."""
    if isinstance(value, np.ndarray | jax.Array) and np.ndim(value):
        value = np.asarray(value).tolist()
    return tuple(map(python, value)) if isinstance(value, list | tuple) else plain(value)


def _is_drawn(values: Any) -> bool:
    return isinstance(values, Uniform | LogUniform | Choice)


def parse(text: str) -> list[str] | Uniform | LogUniform | Choice:
    """What the command line says of one name: `1e-4,3e-4` a list, `log:1e-5:1e-2`, `uniform:0.9:1`, `choice:16:64`.

    Values of lists and choices stay text.

    Raises:
        ValueError: for an empty value, or draws that are not understood.
    """
    kind, colon, rest = text.partition(":")
    if colon and kind in ("log", "uniform", "choice"):
        parts = [part.strip() for part in rest.split(":")]
        if kind == "choice":
            return Choice(parts)
        try:
            low, high = map(float, parts)
        except ValueError:
            raise ValueError(f"{text}: give {kind}:LOW:HIGH") from None
        return {"log": LogUniform, "uniform": Uniform}[kind](low, high)
    values = [value.strip() for value in re.split(r",(?![^\[]*\]|[^(]*\))", text)]  # not at commas within brackets
    if not all(values):
        raise ValueError(f"{text!r} has an empty value: separate values by single commas")
    return values


def split(point: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """A point's values of Config fields, and those of environment parameters without the `env.` of their names."""
    own = {name: value for name, value in point.items() if not name.startswith("env.")}
    params = {name.removeprefix("env."): value for name, value in point.items() if name.startswith("env.")}
    return own, params
