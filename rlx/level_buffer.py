"""Levels that are worth playing again: scores of levels, and a buffer of those with the highest.

    buffer = empty_levels(level, 4000)
    buffer = inserted(buffer, levels, score, best, now)             # of new levels those that score high
    rows = choose(buffer, key, 32, now, 0.3, 0.3)                   # which to play again
    buffer = rescored(buffer, rows, score, best, now)

Axes: K levels of the buffer, N levels that are played, T time, C copies: environments on each of the N levels.

Sources: Jiang et al. 2021, Prioritized Level Replay, arXiv:2010.03934 (ranks and staleness); Jiang et al. 2021,
Replay-Guided Adversarial Environment Design, arXiv:2110.02439 (robust PLR, both scores of regret); Parker-Holder et al.
2022, Evolving Curricula with Regret-Based Environment Design, arXiv:2203.01302 (ACCEL); Rutherford et al. 2024, No
Regrets, arXiv:2408.15099 (SFL, learnability).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from rlx.pytree import pytree, replace

EMPTY = -jnp.inf  # the score of a row without a level


@pytree
class LevelBuffer:
    """Levels and what is known of them."""

    levels: Any  # leaves [K, ...]
    score: jax.Array  # float32 [K], when they were last played; -inf in rows that are empty
    best: jax.Array  # float32 [K], the highest return of an episode so far
    seen: jax.Array  # int32 [K], the update in which they were last played

    @property
    def filled(self) -> jax.Array:
        """Which rows have a level, bool [K]."""
        return self.score > EMPTY

    def at(self, rows: jax.Array) -> Any:
        """The levels in rows `[N]`, leaves `[N, ...]`."""
        return jax.tree.map(lambda x: x[rows], self.levels)


def empty_levels(level: Any, size: int) -> LevelBuffer:
    """A buffer without levels, with room for `size` of them that are like `level`."""
    levels = jax.tree.map(lambda x: jnp.broadcast_to(x, (size, *jnp.shape(x))), level)
    return LevelBuffer(levels, jnp.full(size, EMPTY), jnp.full(size, EMPTY), jnp.zeros(size, jnp.int32))


def inserted(
    buffer: LevelBuffer, levels: Any, score: jax.Array, best: jax.Array, now: jax.Array, where: Any = True
) -> LevelBuffer:
    """The buffer after `N` new levels were played: the K highest scores of those in it and the new ones `where` True.

    Of equal scores the one that was there stays. A score that is not finite is no reason to keep a level.
    """
    score = jnp.where(jnp.isfinite(score) & where, score, EMPTY)
    new = LevelBuffer(levels, score, best, jnp.broadcast_to(now, score.shape))
    both = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), buffer, new)
    order = jnp.argsort(-both.score, stable=True)[: len(buffer.score)]
    return jax.tree.map(lambda x: x[order], both)


def rescored(
    buffer: LevelBuffer, rows: jax.Array, score: jax.Array, best: jax.Array, now: jax.Array, where: Any = True
) -> LevelBuffer:
    """The buffer after its levels in `rows` `[N]` were played again, those `where` True.

    A level that was played several times has the mean of its scores. One that is not finite is left out.
    """
    size, use = len(buffer.score), jnp.isfinite(score) & where & buffer.filled[rows]
    num = jnp.zeros(size).at[rows].add(jnp.where(use, 1.0, 0.0))
    total = jnp.zeros(size).at[rows].add(jnp.where(use, score, 0.0))
    return replace(
        buffer,
        score=jnp.where(num > 0, total / jnp.maximum(num, 1.0), buffer.score),
        best=buffer.best.at[rows].max(jnp.where(use, best, EMPTY)),
        seen=jnp.where(num > 0, now, buffer.seen),
    )


def replay_probabilities(buffer: LevelBuffer, now: jax.Array, temperature: Any, staleness_coef: Any) -> jax.Array:
    """How likely each level is to be played again, `[K]`; those of empty rows are 0, and all are in an empty buffer.

        P = (1 - rho) P_S + rho P_C,    P_S ~ rank(score)^(-1 / beta),    P_C ~ now - seen

    `temperature` is beta and `staleness_coef` rho; the highest score has rank 1. Where all were seen just now, P_C is
    uniform. With an infinite temperature P_S is uniform.

    Source: arXiv:2010.03934, equations 1 to 3.
    """
    filled = buffer.filled
    rank = 1.0 + jnp.argsort(jnp.argsort(-buffer.score, stable=True))
    by_score = jnp.where(filled, rank ** (-1.0 / temperature), 0.0)
    age = jnp.where(filled, now - buffer.seen, 0).astype(jnp.float32)
    by_age = jnp.where(age.sum() > 0, age, filled)
    share = lambda x: x / jnp.maximum(x.sum(), jnp.finfo(jnp.float32).tiny)
    return (1.0 - staleness_coef) * share(by_score) + staleness_coef * share(by_age)


def choose(
    buffer: LevelBuffer, key: jax.Array, num: int, now: jax.Array, temperature: Any, staleness_coef: Any
) -> jax.Array:
    """Rows of `num` levels, int32 `[num]`, each drawn by `replay_probabilities`; of an empty buffer any rows."""
    probabilities = replay_probabilities(buffer, now, temperature, staleness_coef)
    some = jnp.where(probabilities.sum() > 0, probabilities, 1.0)
    return jax.random.categorical(key, jnp.log(some), shape=(num,)).astype(jnp.int32)


def cleared(buffer: LevelBuffer, where: Any = True) -> LevelBuffer:
    """The buffer without levels, `where` True."""
    return replace(buffer, score=jnp.where(where, EMPTY, buffer.score))


def whole(done: jax.Array) -> jax.Array:
    """Which steps `[T, N]` are of episodes that end within the rollout."""
    return jax.lax.cummax(done.astype(jnp.int32), axis=0, reverse=True) > 0


def best_return(traj: Any, copies: int = 1) -> jax.Array:
    """The highest return `[N]` of the episodes that ended on each level in `[T, N C]`; -inf where none did."""
    return jnp.where(traj.done, traj.episode_return, EMPTY).max(0).reshape(-1, copies).max(1)


def max_monte_carlo(traj: Any, value: jax.Array, advantage: jax.Array, best: jax.Array, copies: int = 1) -> jax.Array:
    """Regret as how far the values fall short of the highest return of the level so far, `[N]`.

        mean over t of  best - V(s_t)

    Source: arXiv:2110.02439, section 4 (MaxMC).
    """
    return _mean(jnp.repeat(best, copies) - value, whole(traj.done), copies)


def positive_value_loss(
    traj: Any, value: jax.Array, advantage: jax.Array, best: jax.Array, copies: int = 1
) -> jax.Array:
    """Regret as what was better than its value, `[N]`.

        mean over t of  max(A_t, 0),  A_t by GAE

    Source: arXiv:2110.02439, equation 2 (PVL).
    """
    return _mean(jnp.maximum(advantage, 0.0), whole(traj.done), copies)


def learnability(traj: Any, value: jax.Array, advantage: jax.Array, best: jax.Array, copies: int = 1) -> jax.Array:
    """How undecided a level is, `[N]`: p (1 - p), with p the share of its episodes that succeeded.

    Raises:
        ValueError: for an environment that does not report `success`.

    Source: arXiv:2408.15099, equation 3.
    """
    if "success" not in traj.reported:
        raise ValueError("learnability is of success, which this environment does not report: take another score")
    p = _mean(traj.reported["success"] > 0, traj.done, copies)
    return p * (1.0 - p)


def _mean(x: jax.Array, where: jax.Array, copies: int) -> jax.Array:
    """Of each level over time and its environments; NaN where there is nothing."""
    total = lambda x: x.sum(0).reshape(-1, copies).sum(1)
    return total(jnp.where(where, x, 0.0)) / total(where)


SCORES: dict[str, Callable] = {
    "max_monte_carlo": max_monte_carlo,
    "positive_value_loss": positive_value_loss,
    "learnability": learnability,
}


__all__ = [
    "SCORES",
    "LevelBuffer",
    "best_return",
    "choose",
    "cleared",
    "empty_levels",
    "inserted",
    "learnability",
    "max_monte_carlo",
    "positive_value_loss",
    "replay_probabilities",
    "rescored",
    "whole",
]
