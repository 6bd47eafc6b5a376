"""Which lanes of a sweep continue, and with what: a class each, and a line in `STRATEGIES`.

`Grid` trains every lane by itself. The others are a `Grid` with other answers to some of its questions: when lanes are
compared and how many continue (`rungs`, `kept`), and what lanes do to each other within the compiled program
(`interval`, `generation`).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from rlx.pytree import replace


@dataclass(frozen=True)
class Grid:
    """Every configuration is trained to its end, and no lane knows of another."""

    interacts: ClassVar[bool] = False  # lanes change each other, so that they are one batch of one program

    def check(self, num_configurations: int) -> None:
        """Raises ValueError where the strategy does not fit the number of configurations."""

    def check_programs(self, groups: Sequence[Any]) -> None:
        """Raises ValueError where it does not fit the programs, `rlx.sweeps.lanes.Group`s."""

    def rungs(self, num_configurations: int) -> list[tuple[float, int]]:
        """Shares of the run after which configurations are compared, and how many continue after each."""
        return [(1.0, num_configurations)]

    def kept(self, returns: Mapping[int, Sequence[float]], num: int) -> list[int]:
        """The `num` configurations that continue, from the returns of the seeds of each: those of the highest mean.

        Where a sweep ranks by something else, that is in the place of returns.
        """
        return sorted(returns, key=lambda c: -np.mean(returns[c]))[:num]

    def interval(self, num_updates: int) -> int | None:
        """Updates between two calls of `generation`; None for no call."""
        return None

    def generation(self, carry: dict[str, Any], done: jax.Array, columns: Sequence[Any], num: int) -> dict[str, Any]:
        """The carry of `rlx.sweeps.lanes.Program` after the lanes have acted on each other; runs within the program.

        Args:
            carry: `values` (what varies, a list of `[L, ...]`), `state`, `tally` `[L, 2]` (sum of returns, or of what
                the sweep ranks by, and number of episodes since the last call), `parent` `[L]` and `key` `[L]`.
            done: updates made.
            columns: all values of what varies, `[C, ...]` each.
            num: lanes that count, from the first; others repeat the last one.
        """
        return carry

    @property
    def words(self) -> str:
        """What `--dry-run` says of it."""
        return ""


@dataclass(frozen=True)
class Halving(Grid):
    """Successive halving: one in `factor` configurations continues, at `1 / factor^n`, ..., `1 / factor` of the run.

    `floor(log_factor(C)) + 1` rungs for C configurations. Source: Jamieson and Talwalkar 2016, arXiv:1502.07943,
    algorithm 1.
    """

    factor: int

    def __post_init__(self):
        _check_number("halving", self.factor)

    def check(self, num_configurations: int) -> None:
        if self.factor > num_configurations:
            raise ValueError(
                f"halving = {self.factor} keeps one configuration in {self.factor}, and there are {num_configurations}"
            )

    def rungs(self, num_configurations: int) -> list[tuple[float, int]]:
        last = int(math.log(num_configurations, self.factor) + 1e-9)
        counts = [num_configurations]
        for _ in range(last):
            counts.append(max(1, counts[-1] // self.factor))
        return [(self.factor ** -(last - i), counts[min(i + 1, last)]) for i in range(last + 1)]

    @property
    def words(self) -> str:
        return f"halving by {self.factor}"


@dataclass(frozen=True)
class Population(Grid):
    """Population-based training: `generations - 1` times the lowest lanes copy the highest and perturb what varies.

    Source: Jaderberg et al. 2017, arXiv:1711.09846, with truncation selection (`exploit`) and `explore`.
    """

    generations: int
    interacts: ClassVar[bool] = True

    def __post_init__(self):
        _check_number("pbt", self.generations)

    def check_programs(self, groups: Sequence[Any]) -> None:
        if len(groups) > 1:
            raise ValueError("members of a population share a program: vary only fields that are not static")
        if self.generations > groups[0].updates:
            raise ValueError(
                f"pbt = {self.generations} generations of {groups[0].updates} updates: give at most one an update"
            )
        if not any(jnp.issubdtype(column.dtype, jnp.floating) for column in groups[0].columns):
            raise ValueError(
                "pbt perturbs what varies, and no number does: list values, such as learning_rate 1e-4, 1e-3"
            )

    def interval(self, num_updates: int) -> int | None:
        return max(1, num_updates // self.generations)

    def generation(self, carry: dict[str, Any], done: jax.Array, columns: Sequence[Any], num: int) -> dict[str, Any]:
        exploit_key, explore_key, lane_key, key = jax.random.split(carry["key"][0], 4)
        everyone = jnp.arange(len(carry["key"]))
        returns, num_episodes = carry["tally"].T
        known = (num_episodes > 0) & (carry["state"].num_updates == done)  # it died elsewhere
        scores = jnp.where(known, returns / jnp.maximum(num_episodes, 1), -jnp.inf)
        parent = everyone.at[:num].set(exploit(exploit_key, scores[:num]))
        copied = parent != everyone
        values, state = jax.tree.map(lambda x: x[parent], (carry["values"], carry["state"]))
        fresh = jax.vmap(jax.random.fold_in, (None, 0))(lane_key, everyone)  # a copy goes its own way
        state = replace(state, key=jnp.where(copied, fresh, state.key))
        keys = jax.random.split(explore_key, max(1, len(values)))
        for i, (value, column) in enumerate(zip(values, columns, strict=True)):
            if jnp.issubdtype(value.dtype, jnp.floating):
                perturbed = explore(keys[i], value, column.min(0), column.max(0))
                values[i] = jnp.where(copied.reshape(-1, *[1] * (value.ndim - 1)), perturbed, value)
        key = jax.random.split(key, len(everyone))
        return {"values": values, "state": state, "tally": jnp.zeros_like(carry["tally"]), "parent": parent, "key": key}

    @property
    def words(self) -> str:
        return f"{self.generations} generations"


# By the name of its flag, which takes its only number; `sweep.json` has the number under that name.
STRATEGIES: dict[str, type[Any]] = {"halving": Halving, "pbt": Population}


def strategy_of(numbers: Mapping[str, int | None]) -> Grid:
    """The strategy whose number is given, by the names of `STRATEGIES`; `Grid` where none is.

    Raises:
        ValueError: for more than one number, and for one that is out of range.
    """
    given = {name: number for name, number in numbers.items() if number is not None}
    found = [STRATEGIES[name](number) for name, number in given.items()]
    if len(found) > 1:
        raise ValueError(f"{' and '.join(given)} are two ways to search: give one of them")
    return found[0] if found else Grid()


def numbers_of(strategy: Grid) -> dict[str, int | None]:
    """The number of a strategy under its name, and None under those of the others."""
    return {name: astuple(strategy)[0] if type(strategy) is kind else None for name, kind in STRATEGIES.items()}


def _check_number(name: str, number: Any) -> None:
    if type(number) is not int or number < 2:
        raise ValueError(f"{name} = {number!r}: give an integer of at least 2")


def exploit(key: jax.Array, scores: jax.Array, fraction: float = 0.2) -> jax.Array:
    """Truncation selection: whom every member continues from, int32 `[L]`; most of them from themselves.

    The lowest `fraction` of the members (at least one) each copy a random one of the highest `fraction`, where that one
    scored strictly better. A score that is not finite counts as the lowest of all.

    Args:
        key: of the random choice among the highest.
        scores: `[L]`, higher is better.
        fraction: at most a half.

    Raises:
        ValueError: for fewer than two members, or a fraction outside (0, 0.5].
    """
    num = len(scores)
    if num < 2 or not 0 < fraction <= 0.5:
        raise ValueError(f"{num} members and fraction = {fraction}: give at least 2 members and a fraction in (0, 0.5]")
    cut = max(1, int(fraction * num))
    scores = jnp.where(jnp.isfinite(scores), scores, -jnp.inf)
    order = jnp.argsort(scores)
    lowest, highest = order[:cut], order[-cut:]
    chosen = highest[jax.random.randint(key, (cut,), 0, cut)]
    parents = jnp.where(scores[chosen] > scores[lowest], chosen, lowest)
    return jnp.arange(num).at[lowest].set(parents)


def explore(key: jax.Array, values: jax.Array, low: jax.Array, high: jax.Array) -> jax.Array:
    """`values` multiplied or divided by 1.2, at even odds and independently, and kept within `[low, high]`.

    Where a fifth of the range, in logarithms, is a smaller step, that is taken: a discount between 0.9 and 0.99 does
    not jump from one end to the other. The paper multiplies by 0.8 or 1.2.
    """
    fifth = jnp.where(low > 0, (high / jnp.where(low > 0, low, 1.0)) ** 0.2, 1.2)
    factor = jnp.minimum(1.2, fifth)
    up = jax.random.bernoulli(key, shape=jnp.shape(values))
    return jnp.clip(jnp.where(up, values * factor, values / factor), low, high)
