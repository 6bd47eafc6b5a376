"""Running normalisation of observations and rewards.

Of observations with several entries each is normalised by itself. Categories, booleans and images of bytes, which
torsos divide by 255, stay as they are.
"""

import math
from dataclasses import replace
from typing import Any

import chex
import jax
import jax.numpy as jnp

from rlx.pytree import per_env, pytree
from rlx.spaces import Box, Dict, Tuple, parts

LARGEST = 1e38  # that a return of rewards to be scaled counts with


@pytree
class Statistics:
    """Mean and variance of everything seen so far, per feature."""

    mean: jax.Array
    variance: jax.Array  # population variance; 1 before anything is seen
    count: jax.Array  # float32, number of samples


def statistics(of: Any = ()) -> Any:
    """Statistics of nothing: `normalize` with them is the identity.

    They are for arrays of a shape or for elements of a space; for those of a Dict or Tuple they are a pytree with
    `Statistics` of each part, and None where a part is not normalised.
    """
    if isinstance(of, Dict | Tuple):
        return jax.tree.map(lambda space: statistics(space) if _is_measured(space) else None, parts(of))
    shape = of if isinstance(of, tuple) else of.shape
    return Statistics(jnp.zeros(shape), jnp.ones(shape), jnp.float32(0))


def _is_measured(space: Any) -> bool:
    image = space.dtype == jnp.uint8 and len(space.shape) == 3
    return isinstance(space, Box) and space.dtype != jnp.bool_ and not image


def _each(function: Any, stats: Any, *trees: Any) -> Any:
    """A tree map over the `Statistics` of a tree, and `trees` like it."""
    return jax.tree.map(function, stats, *trees, is_leaf=lambda x: x is None or isinstance(x, Statistics))


def update_statistics(stats: Any, batch: Any, where: jax.Array | None = None) -> Any:
    """The statistics after `batch` `[..., *feature shape]`, all leading axes pooled; those `where` is False left out.

        d = mean_b - mean,  n' = n + n_b,  mean' = mean + d n_b / n'
        var' = (n var + n_b var_b + d^2 n n_b / n') / n'

    Source: Chan, Golub, LeVeque 1979, Updating formulae and a pairwise algorithm for computing sample variances.
    The count is float32: past 2^24 batches it stops growing, when a batch weighs less than 1e-7. Where everything is
    left out, nothing changes.

    Features whose squares overflow are computed in other units, so that means are right up to the largest number; a
    variance above that number is given as that number.
    """
    return _each(lambda stats, x: None if stats is None else _updated(stats, x, where), stats, batch)


def _updated(stats: Statistics, batch: jax.Array, where: jax.Array | None) -> Statistics:
    chex.assert_shape(batch, (..., *stats.mean.shape))
    batch = batch.astype(jnp.float32)
    leading = tuple(range(batch.ndim - stats.mean.ndim))
    num = math.prod(batch.shape[axis] for axis in leading)
    if where is not None:
        num, where = where.sum(), where.reshape(*where.shape, *[1] * stats.mean.ndim)
        batch, where = jnp.where(where, batch, 0.0), where | (num == 0)  # of nothing there are no moments
    largest = jnp.maximum(jnp.abs(batch).max(leading, where=where, initial=0), jnp.abs(stats.mean))
    unit = jnp.where(largest > 1e15, 2.0**-78, 1.0)  # a power of 2: multiplying by it does not round
    batch, old_mean, old_variance = batch * unit, stats.mean * unit, stats.variance * unit * unit
    mean, variance = batch.mean(leading, where=where), batch.var(leading, where=where)
    count = stats.count + num
    delta = mean - old_mean
    weight = num / (count if where is None else jnp.maximum(count, 1.0))
    variance = (1 - weight) * old_variance + weight * variance + delta**2 * weight * (1 - weight)
    return Statistics(
        mean=(old_mean + delta * weight) / unit,
        variance=jnp.minimum(variance / unit / unit, jnp.finfo(jnp.float32).max),
        count=count,
    )


def normalize(stats: Any, x: Any, limit: float = 10.0) -> Any:
    """`clip((x - mean) / sqrt(variance + 1e-8), -limit, limit)`, or a tree of these; see `statistics`."""
    return _each(lambda stats, x: x if stats is None else _normalized(stats, x, limit), stats, x)


def denormalize(stats: Statistics, x: jax.Array) -> jax.Array:
    """`mean + x sqrt(variance + 1e-8)`: what `normalize` made x of, where it did not clip."""
    return stats.mean + x * jnp.sqrt(stats.variance + 1e-8)


def _normalized(stats: Statistics, x: jax.Array, limit: float) -> jax.Array:
    if x.dtype == jnp.uint8 and stats.mean.ndim == 3:  # bytes of images are scaled by the torso
        return x
    return jnp.clip((x - stats.mean) * jax.lax.rsqrt(stats.variance + 1e-8), -limit, limit)


@pytree
class RewardScale:
    """What scaling rewards by the spread of discounted returns needs to remember."""

    discounted: jax.Array = per_env()  # [N], the discounted return of each environment's episode so far
    stats: Statistics  # of those, pooled over environments


def reward_scale(num_envs: int) -> RewardScale:
    """A scale that has seen nothing."""
    return RewardScale(jnp.zeros(num_envs), statistics())


def scale_rewards(
    scale: RewardScale, reward: jax.Array, done: jax.Array, gamma: float | jax.Array, limit: float = 10.0
) -> tuple[RewardScale, jax.Array]:
    """Rewards `[T, N]` over the running standard deviation of `G_t = r_t + gamma (1 - done_{t-1}) G_{t-1}`.

    Returns the updated scale and `clip(r / sqrt(Var(G) + 1e-8), -limit, limit)`. The mean is not subtracted: that
    would change which policy is best. For learning only: logs and evaluation keep the raw rewards.

    Source: Engstrom et al. 2020, arXiv:2005.12729, section 3; the return is zeroed after the terminal step, not at it.
    """
    chex.assert_rank(reward, 2)
    chex.assert_equal_shape([reward, done])

    def step(discounted, x):
        reward, done = x
        discounted = jnp.clip(reward + gamma * discounted, -LARGEST, LARGEST)
        return jnp.where(done, 0.0, discounted), discounted

    discounted, returns = jax.lax.scan(step, scale.discounted, (reward, done))
    stats = update_statistics(scale.stats, returns)
    scaled = jnp.clip(reward * jax.lax.rsqrt(stats.variance + 1e-8), -limit, limit)
    return replace(scale, discounted=discounted, stats=stats), scaled


@pytree
class TDScale:
    """What scaling temporal-difference errors by the spread of returns needs to remember."""

    total: jax.Array = per_env()  # [N], the undiscounted sum of each environment's episode so far
    reward: Statistics
    discount: Statistics  # gamma, 0 at steps that end an episode
    returns: Statistics  # totals of whole episodes


def td_scale(num_envs: int) -> TDScale:
    """A scale that has seen nothing."""
    return TDScale(jnp.zeros(num_envs), statistics(), statistics(), statistics())


def update_td_scale(
    scale: TDScale, reward: jax.Array, done: jax.Array, gamma: float | jax.Array
) -> tuple[TDScale, jax.Array]:
    """The scale after a step of N environments `[N]`, and sigma, by which errors are divided, without axes.

        sigma^2 = max(Var(r) + Var(gamma_t) E[G^2], 1e-4),    gamma_t = gamma (1 - done)

    over everything so far, the step included; G is the undiscounted return of a whole episode. sigma is 1 while no
    episode has ended and the variance is at most 0.01. Where a policy is paid for its entropy, `reward` includes it.

    Source: Schaul et al. 2021, Return-based Scaling, arXiv:2105.05347; bounds: code of Vasan et al. 2024,
    arXiv:2411.15370.
    """
    chex.assert_rank(reward, 1)
    chex.assert_equal_shape([reward, done])
    total = jnp.clip(scale.total + reward, -LARGEST, LARGEST)
    rewards = update_statistics(scale.reward, reward)
    discounts = update_statistics(scale.discount, jnp.where(done, 0.0, gamma))
    returns = update_statistics(scale.returns, total, where=done)
    square = jnp.where(returns.count > 0, returns.mean**2 + returns.variance, 0.0)
    variance = jnp.maximum(rewards.variance + discounts.variance * square, 1e-4)
    sigma = jnp.where((returns.count == 0) & (variance <= 0.01), 1.0, jnp.sqrt(variance))
    return TDScale(jnp.where(done, 0.0, total), rewards, discounts, returns), sigma
