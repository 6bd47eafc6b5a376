"""When a run stops by itself, decided inside of the compiled program: by what its episodes return.

Training returns are looked at `LOOKS` times in a run of full length, each time over the episodes that ended since: at
least `EPISODES` of them, so that a look waits where episodes are long.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp

from rlx.pytree import pytree, replace

LOOKS = 100
EPISODES = 10


@pytree
class Stopping:
    """A rule and what it has seen; all leaves are scalars, or `[L]` of lanes.

    Attributes:
        at_return: stop where the mean return of a look is at least this.
        patience: stop after this many looks in a row without a mean above the best so far.
        every: int32, the least updates of a look.
        total: float32, sum of the returns of the look under way.
        episodes: float32, their number.
        updates: int32, updates of the look under way.
        best: float32, the best mean of a look.
        waited: int32, looks since that.
        stopped: bool, whether the run has come to its end.
    """

    at_return: Any = math.inf
    patience: Any = math.inf
    every: Any = 1
    total: Any = 0.0
    episodes: Any = 0.0
    updates: Any = 0
    best: Any = -math.inf
    waited: Any = 0
    stopped: Any = False


def stopping(at_return: float | None, patience: int | None, num_updates: int) -> Stopping | None:
    """The rule for a run of `num_updates` updates, before anything is seen; None where neither number is given.

    Raises:
        ValueError: for a patience below 1, and for a return that is not finite.
    """
    if at_return is None and patience is None:
        return None
    if at_return is not None and not math.isfinite(at_return):
        raise ValueError(f"stop_at_return = {at_return}: give a finite number, or None for no such rule")
    if patience is not None and not patience >= 1:
        raise ValueError(f"patience = {patience}: give at least 1 look, a hundredth of the run each")
    limits = [math.inf if x is None else x for x in (at_return, patience)]
    return arrays(Stopping(*limits, every=max(1, math.ceil(num_updates / LOOKS))))


def arrays(rule: Stopping) -> Stopping:
    """The rule with arrays for Python numbers, as compiled programs take it."""
    whole = {name: jnp.int32(getattr(rule, name)) for name in ("every", "updates", "waited")}
    real = {name: jnp.float32(getattr(rule, name)) for name in ("at_return", "patience", "total", "episodes", "best")}
    return Stopping(**whole, **real, stopped=jnp.bool_(rule.stopped))


def seen(rule: Stopping, episode_return: jax.Array, num_episodes: jax.Array) -> Stopping:
    """The rule after one more update.

    A look ends with the first update after which it has `every` updates and `EPISODES` episodes. Its mean is the sum of
    the returns of its episodes over their number. The run is stopped where the mean is at least `at_return`, or where
    `patience` looks in a row had none above the best before them.

    Args:
        rule: before the update.
        episode_return: mean return of the episodes that ended in the update; of no meaning where there are none.
        num_episodes: their number.
    """
    num = num_episodes.astype(jnp.float32)
    total = rule.total + jnp.where(num > 0, num * episode_return, 0.0)
    episodes, updates = rule.episodes + num, rule.updates + 1
    due = (updates >= rule.every) & (episodes >= EPISODES)
    mean = total / jnp.maximum(episodes, 1.0)
    better = due & (mean > rule.best)
    waited = jnp.where(better, 0, rule.waited + due)
    stop = due & ((mean >= rule.at_return) | (waited >= rule.patience))
    return replace(
        rule,
        total=jnp.where(due, 0.0, total),
        episodes=jnp.where(due, 0.0, episodes),
        updates=jnp.where(due, 0, updates),
        best=jnp.where(better, mean, rule.best),
        waited=waited,
        stopped=rule.stopped | stop,
    )


def why(rule: Stopping) -> str:
    """Why a run of numbers, not arrays, was stopped, in words."""
    if rule.best >= rule.at_return:
        return f"the mean return of its episodes reached {float(rule.best):.6g}, asked for were {rule.at_return:.6g}"
    return f"in {int(rule.waited)} looks its episodes returned no more than the best before, {float(rule.best):.6g}"
