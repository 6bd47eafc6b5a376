"""Population-based training: which members copy which, and how the copied settings are perturbed.

Reference: Jaderberg et al. 2017, Population Based Training of Neural Networks, arXiv:1711.09846, section 4.1.
"""

import jax
import jax.numpy as jnp


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
