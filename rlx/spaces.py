"""Observation and action spaces."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class Box:
    """Arrays of `shape` with `low <= x <= high`; the bounds are scalars or of `shape`, and may be infinite."""

    low: Any
    high: Any
    shape: tuple[int, ...]
    dtype: Any = jnp.float32

    def sample(self, key: jax.Array) -> jax.Array:
        """Uniform over a bounded dimension, standard normal over an unbounded one; shape `self.shape`."""
        uniform_key, normal_key = jax.random.split(key)
        low, high, bounded = _bounds(self)
        unit = jax.random.uniform(uniform_key, self.shape)
        normal = jax.random.normal(normal_key, self.shape)
        return jnp.where(bounded, low + (high - low) * unit, jnp.clip(normal, self.low, self.high)).astype(self.dtype)

    def contains(self, x: Any) -> jax.Array:
        """Whether shape and bounds fit, as a boolean scalar."""
        if jnp.shape(x) != self.shape:
            return jnp.array(False)
        return jnp.all((x >= self.low) & (x <= self.high))


@dataclasses.dataclass(frozen=True)
class Discrete:
    """The integers `0, ..., n - 1`, or arrays of them."""

    n: int
    dtype: Any = jnp.int32
    shape: tuple[int, ...] = ()

    def sample(self, key: jax.Array) -> jax.Array:
        """Uniform over the `n` integers, each for itself."""
        return jax.random.randint(key, self.shape, 0, self.n, self.dtype)

    def contains(self, x: Any) -> jax.Array:
        """Whether shape and range fit, as a boolean scalar."""
        if jnp.shape(x) != self.shape:
            return jnp.array(False)
        return jnp.all((x >= 0) & (x < self.n))


Space = Box | Discrete


def _bounds(box: Box) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Low and high with infinities replaced by -1 and 1, and where both bounds are finite."""
    bounded = jnp.isfinite(box.low) & jnp.isfinite(box.high)
    return jnp.where(bounded, box.low, -1.0), jnp.where(bounded, box.high, 1.0), bounded


def rescale(space: Space, action: jax.Array) -> jax.Array:
    """The environment's action for a policy's action in unit coordinates.

    Box: `low + (high - low) (clip(a, -1, 1) + 1) / 2` in every dimension that is bounded on both sides; other
    dimensions, and Discrete actions, pass through. Policies see every bounded action space as `[-1, 1]`, so one
    initial standard deviation fits all. Log-probabilities stay those of the unclipped action.
    """
    if isinstance(space, Discrete):
        return action
    low, high, bounded = _bounds(space)
    return jnp.where(bounded, low + (high - low) * (jnp.clip(action, -1.0, 1.0) + 1.0) / 2.0, action)


def unit(space: Space, action: jax.Array) -> jax.Array:
    """A policy's action in unit coordinates for an environment's action: the inverse of `rescale`.

    Box: `2 (a - low) / (high - low) - 1` in every dimension that is bounded on both sides; what is clipped there cannot
    be had back.
    """
    if isinstance(space, Discrete):
        return action
    low, high, bounded = _bounds(space)
    return jnp.where(bounded, 2.0 * (action - low) / (high - low) - 1.0, action)


def size(space: Space) -> int:
    """Number of inputs that a network needs for the space: elements of a Box, categories of each of a Discrete."""
    return int(np.prod(space.shape, dtype=int)) * (space.n if isinstance(space, Discrete) else 1)
