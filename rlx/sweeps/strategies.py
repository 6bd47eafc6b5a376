"""Which lanes go on, and with what: successive halving, population-based training."""

import math

import jax
import jax.numpy as jnp


def rungs(num_configurations: int, factor: int | None) -> list[tuple[float, int]]:
    """Successive halving: the share of a run after which configurations are compared, and how many go on from there.

    `floor(log_factor(C)) + 1` rungs, at shares `..., 1 / factor^2, 1 / factor, 1`; every rung keeps one in `factor`.
    Reference: Jamieson and Talwalkar 2016, arXiv:1502.07943, algorithm 1. Without a factor, one rung of everything.
    """
    if factor is None:
        return [(1.0, num_configurations)]
    last = int(math.log(num_configurations, factor) + 1e-9)
    counts = [num_configurations]
    for _ in range(last):
        counts.append(max(1, counts[-1] // factor))
    return [(factor ** -(last - i), counts[min(i + 1, last)]) for i in range(last + 1)]


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
