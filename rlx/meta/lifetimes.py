"""Lifetimes: whole training runs as the thing that is measured, many of them as lanes of one program."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rlx.devices.spread import spread
from rlx.env import Env
from rlx.pytree import pytree, replace
from rlx.train import evaluate, now, train

EPISODES = 16  # that a policy is judged by


@pytree
class Lifetime:
    """What an agent lives through: the settings of its training and an environment.

    Fitness is its return, where `low` counts as 0 and `high` as 1, so that environments can be averaged.
    """

    config: Any
    env: Env
    low: float = 0.0
    high: float = 1.0


def last_return(metrics: dict[str, jax.Array], share: float = 0.25) -> jax.Array:
    """Mean return of the episodes that ended in the last `share` of the updates `[U]` of a run; -inf where none did."""
    num = len(metrics["num_episodes"])
    last = slice(num - max(1, round(share * num)), None)
    episodes = metrics["num_episodes"][last]
    total = jnp.sum(jnp.where(episodes > 0, metrics["episode_return"][last] * episodes, 0.0))
    return jnp.where(episodes.sum() > 0, total / jnp.maximum(episodes.sum(), 1), -jnp.inf)


def lived(algorithm: Any, keyword: str = "objective") -> Callable:
    """A jitted `returns(each, config, env)`: what the policies at the end of lifetimes return, `[L]`.

    Each plays `EPISODES` whole episodes, acting as in training: those that end within training are rather the short
    ones. It is -inf where an episode diverged. `each` is `(objectives, keys)` with leaves `[L, ...]`. The lanes are
    spread over all devices.

    Args:
        keyword: as what `update` takes an objective; `rule` of `rlx.algos.lpg`.
    """

    def life(each, config, env):
        objective, key = each
        train_key, play_key = jax.random.split(key)
        state, _ = train(algorithm, config, env, train_key, **{keyword: objective})
        episodes = evaluate(algorithm, config, env, state, play_key, EPISODES, deterministic=False)
        return jnp.where(episodes.diverged, -jnp.inf, episodes.returns).mean()

    return spread(life)


def trial(
    algorithm: Any,
    lifetimes: Sequence[Lifetime],
    num_seeds: int,
    chunk: int | None = None,
    keyword: str = "objective",
) -> Callable[[Any, jax.Array], np.ndarray]:
    """A function `returns(objectives, key)` that has P objectives, leaves `[P, ...]`, live: `[lifetimes, P, seeds]`.

    All of them are given the same keys: what is compared are the objectives and not their luck. One program is
    compiled for each lifetime.

    Args:
        algorithm: whose `update` takes an objective.
        lifetimes: of each objective.
        num_seeds: of each objective in each of them.
        chunk: at most so many objectives at once, which bounds the memory; None for all.
        keyword: as what `update` takes an objective.
    """
    program = lived(algorithm, keyword)

    def returns(objectives, key):
        leaves = jax.tree.leaves(objectives)
        num = len(leaves[0]) if leaves else 1  # what has no numbers is one objective
        size = min(chunk or num, num)
        found = np.empty((len(lifetimes), num, num_seeds))
        for i, lifetime in enumerate(lifetimes):
            keys = jnp.tile(jax.random.split(jax.random.fold_in(key, i), num_seeds), size)
            for first in range(0, num, size):
                rows = np.minimum(np.arange(first, first + size), num - 1)  # the last ones repeat: one program for all
                lanes = jax.tree.map(lambda x, rows=rows: jnp.repeat(x[rows], num_seeds, axis=0), objectives)
                chunked = np.asarray(program((lanes, keys), lifetime.config, lifetime.env)).reshape(size, num_seeds)
                found[i, first : first + size] = chunked[: num - first]
        return found

    return returns


def fitness(lifetimes: Sequence[Lifetime], returns: np.ndarray) -> np.ndarray:
    """`(return - low) / (high - low)`, mean over lifetimes and seeds: `[P]` of `returns [lifetimes, P, seeds]`.

    NaN, and so the least of all, where a return is not finite.
    """
    low, high = (np.array([getattr(x, name) for x in lifetimes])[:, None, None] for name in ("low", "high"))
    return ((np.where(np.isfinite(returns), returns, np.nan) - low) / (high - low)).mean(axis=(0, 2))


def alone(objective: Any) -> Any:
    """One objective as a population of one."""
    return jax.tree.map(lambda x: jnp.asarray(x)[None], objective)


def scaled(algorithm: Any, lifetime: Lifetime, objective: Any, key: jax.Array, num_seeds: int = 16) -> Lifetime:
    """The lifetime with the return of an agent that has not learned as `low`, and that after `objective` as `high`.

    Raises:
        ValueError: when the objective did not better the return, so that there is no scale.
    """
    init_key, play_key, live_key = jax.random.split(key, 3)
    state = jax.jit(lambda *args: algorithm.init(*args))(now(lifetime.config), lifetime.env, init_key)
    played = evaluate(algorithm, lifetime.config, lifetime.env, state, play_key, 64, deterministic=False)
    low = float(played.returns.mean())
    high = float(trial(algorithm, [lifetime], num_seeds)(alone(objective), live_key).mean())
    if not high > low:
        raise ValueError(f"{objective} does not learn: a return of {high:.4g} after training and {low:.4g} before")
    return replace(lifetime, low=low, high=high)


__all__ = ["Lifetime", "alone", "fitness", "last_return", "lived", "scaled", "trial"]
