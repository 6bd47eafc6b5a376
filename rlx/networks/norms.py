"""Normalisation by the batch, whose running statistics are variables beside the parameters, and residual blocks."""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

STATS = "stats"  # the collection of running statistics; where it is mutable, the batch's are used and these follow


def batch_renorm(
    x: jax.Array, mean: jax.Array, variance: jax.Array, bounds: tuple, epsilon: float = 1e-3
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """`x` `[B, n]` normalised by its own statistics, drawn to the running ones; and its mean and variance `[n]`.

        y = (x - m_B) / s_B r + d,    s = sqrt(variance + epsilon),
        r = clip(s_B / s_run, 1 / r_max, r_max),    d = clip((m_B - m_run) / s_run, -d_max, d_max)

    No gradient goes through r and d, that of a whole training neither. `bounds` are r_max and d_max: (1, 0) is batch
    normalisation, and where neither clips y is `(x - m_run) / s_run`.

    Source: Ioffe 2017, Batch Renormalization, arXiv:1702.03275, algorithm 1, with epsilon within both roots.
    """
    r_max, d_max = bounds
    own_mean, own_variance = x.mean(axis=0), x.var(axis=0)
    own, running = jnp.sqrt(own_variance + epsilon), jnp.sqrt(variance + epsilon)
    r = jax.lax.stop_gradient(jnp.clip(own / running, 1.0 / r_max, r_max))
    d = jax.lax.stop_gradient(jnp.clip((own_mean - mean) / running, -d_max, d_max))
    return (x - own_mean) / own * r + d, own_mean, own_variance


class BatchRenorm(nn.Module):
    """Features `[B, n]` normalised by `batch_renorm`, times a scale and plus a bias, both trained.

    Running statistics are in the collection `stats`. Where `apply` makes it mutable, `mutable="stats"`, the batch's
    own are used and the running ones move a part `1 - momentum` of the way to them; else the running ones are used, for
    any leading axes. The first `warmup` batches are normalised without r and d.
    """

    momentum: float = 0.99
    warmup: int = 100_000
    r_max: float = 3.0
    d_max: float = 5.0
    epsilon: float = 1e-3

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        size = x.shape[-1:]
        mean = self.variable(STATS, "mean", jnp.zeros, size)
        variance = self.variable(STATS, "variance", jnp.ones, size)
        count = self.variable(STATS, "count", jnp.zeros, (), jnp.int32)
        scale, bias = self.param("scale", nn.initializers.ones, size), self.param("bias", nn.initializers.zeros, size)
        if self.is_initializing() or not self.is_mutable_collection(STATS):
            return scale * (x - mean.value) / jnp.sqrt(variance.value + self.epsilon) + bias
        warm = count.value >= self.warmup
        bounds = jnp.where(warm, self.r_max, 1.0), jnp.where(warm, self.d_max, 0.0)
        y, own_mean, own_variance = batch_renorm(x, mean.value, variance.value, bounds, self.epsilon)
        mean.value += (1.0 - self.momentum) * (own_mean - mean.value)
        variance.value += (1.0 - self.momentum) * (own_variance - variance.value)
        count.value += 1
        return scale * y + bias


class Dropout(nn.Module):
    """`x / (1 - rate)`, or 0 with probability `rate`, each number by itself; `apply` needs `rngs={"dropout": key}`."""

    rate: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        keys, half = jax.random.split(self.make_rng("dropout"), 2), -(-x.size // 2)
        key = partial(jax.random.wrap_key_data, impl=jax.random.key_impl(keys))
        draw = lambda _, bits: (None, jax.random.bernoulli(key(bits), 1.0 - self.rate, (half,)))
        # In a loop of two: XLA on a CPU compiles the gradient of an actor through masks that are drawn at once, within
        # a scan, for longer than ten minutes. A gradient makes two loops of it, so it is given bits and not keys.
        _, kept = jax.lax.scan(draw, None, jax.random.key_data(keys))
        return jnp.where(kept.reshape(-1)[: x.size].reshape(x.shape), x / (1.0 - self.rate), 0.0)


def unit_length(x: jax.Array) -> jax.Array:
    """`x / |x|` over the last axis, `[..., n]`; zeros stay zeros, and have a gradient.

    Source: Bjorck et al. 2022, Is High Variance Unavoidable in RL?, arXiv:2110.11222 (of penultimate features).
    """
    return x * jax.lax.rsqrt(jnp.sum(x**2, axis=-1, keepdims=True) + 1e-16)


class Residual(nn.Module):
    """`x + W_2 act(W_1 norm(x))`, `[..., n]`, with layer norm and 4 n hidden units.

    Source: Lee et al. 2024, SimBa, arXiv:2410.09754, section 4.
    """

    activation: Callable

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        size = x.shape[-1]
        hidden = self.activation(nn.Dense(4 * size)(nn.LayerNorm()(x)))
        return x + nn.Dense(size)(hidden)


class BroBlock(nn.Module):
    """`x + norm(W_2 act(norm(W_1 x)))`, `[..., n]`, with layer norms and n hidden units.

    Source: Nauman et al. 2024, Bigger, Regularized, Optimistic, arXiv:2405.16158 (BroNet).
    """

    activation: Callable

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        hidden = self.activation(nn.LayerNorm()(nn.Dense(x.shape[-1])(x)))
        return x + nn.LayerNorm()(nn.Dense(x.shape[-1])(hidden))


BLOCKS = {"simba": Residual, "bro": BroBlock}  # of a torso, by the names that `residual` takes

__all__ = ["BLOCKS", "STATS", "BatchRenorm", "BroBlock", "Dropout", "Residual", "batch_renorm", "unit_length"]
