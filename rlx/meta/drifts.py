"""Drifts that are learned: policy objectives `-(rho A - f)` whose `f` is a small network.

Whatever the weights, `f` is never negative, and 0 with slope 0 where the ratio `rho` is 1: the inputs vanish there, the
layers have no biases, and a margin keeps a neighbourhood at 0. These are the conditions under which exact updates never
lower the return (Kuba et al. 2022, arXiv:2201.02373). The objectives are pytrees, so a population of them is one with
another leading axis, and plug into any algorithm that takes an `objective`:

    rlx.train(ppo, config, env, key, objective=rlx.meta.lpo(key))
"""

import chex
import jax
import jax.numpy as jnp

from rlx.objectives import importance_weighted
from rlx.pytree import pytree, static

MARGIN = 1e-4
FARTHEST = 20.0  # log-ratios beyond it look like this one: their exponential must not overflow


def drift_features(log_ratio: jax.Array, advantage: jax.Array) -> jax.Array:
    """`[x, A x]` with `x = (log rho, (log rho)^2, 1 - rho, (1 - rho)^2)`: `[..., 8]`, all 0 where `rho = 1`.

    Source: Lu et al. 2022, Discovered Policy Optimisation, arXiv:2210.05639, section 4, and its code for the order.
    """
    chex.assert_equal_shape([log_ratio, advantage])
    log_ratio = jnp.clip(log_ratio, -FARTHEST, FARTHEST)
    change = -jnp.expm1(log_ratio)
    x = jnp.stack([log_ratio, log_ratio**2, change, change**2], axis=-1)
    return jnp.concatenate([x, advantage[..., None] * x], axis=-1)


def learned_surrogate(
    log_ratio: jax.Array,
    advantage: jax.Array,
    features: jax.Array,
    hidden: jax.Array,
    out: jax.Array,
    clip: float | jax.Array,
) -> jax.Array:
    """`-(rho A - f)` with `f = max(0, f_clip + out . tanh(features hidden) - 1e-4)`, of any shape `[...]`.

    `f_clip` is the drift of PPO, `max(0, (rho - clip(rho, 1 - clip, 1 + clip)) A)`; an infinite clip leaves it out.

    Args:
        features: `[..., F]`, 0 where the log-ratio is.
        hidden, out: weights `[F, H]` and `[H]`.

    Source: Lu et al. 2022, arXiv:2210.05639, section 4, and its code: there with PPO's drift or without.
    """
    chex.assert_equal_shape([log_ratio, advantage])
    chex.assert_equal_shape_prefix([features, log_ratio], log_ratio.ndim)
    ratio = jnp.exp(log_ratio)
    clipped = jnp.maximum((ratio - jnp.clip(ratio, 1.0 - clip, 1.0 + clip)) * advantage, 0.0)
    drift = jnp.maximum(clipped + jnp.tanh(features @ hidden) @ out - MARGIN, 0.0)
    return importance_weighted(log_ratio, advantage) + drift


@pytree
class LPO:
    """Learned Policy Optimisation: `learned_surrogate` of `drift_features`."""

    hidden: jax.Array  # [8, H]
    out: jax.Array  # [H]
    clip: float = static(float("inf"))  # of PPO's drift, to which the learned one is added; without, nothing is

    def __call__(self, config, elements, progress):
        log_ratio, advantage = elements.log_ratio, elements.advantage
        features = drift_features(log_ratio, advantage)
        return learned_surrogate(log_ratio, advantage, features, self.hidden, self.out, self.clip)


@pytree
class TALPO:
    """Temporally-aware LPO: the features a second time, times the progress through the run, so that it may change.

    Source: Jackson et al. 2024, Discovering Temporally-Aware RL Algorithms, arXiv:2402.05828.
    """

    hidden: jax.Array  # [16, H]
    out: jax.Array  # [H]
    clip: float = static(float("inf"))

    def __call__(self, config, elements, progress):
        log_ratio, advantage = elements.log_ratio, elements.advantage
        features = drift_features(log_ratio, advantage)
        features = jnp.concatenate([features, progress * features], axis=-1)
        return learned_surrogate(log_ratio, advantage, features, self.hidden, self.out, self.clip)


def lpo(key: jax.Array | None = None, num_hidden: int = 128, clip: float = float("inf")) -> LPO:
    """LPO with random weights, of variance 1 over their inputs; without a key those of the second
    layer are 0, and so is the drift. (Were all of them, every pair of antithetic candidates would be one function.)
    """
    return LPO(*_weights(key, 8, num_hidden), clip)


def talpo(key: jax.Array | None = None, num_hidden: int = 128, clip: float = float("inf")) -> TALPO:
    """TA-LPO, see `lpo`."""
    return TALPO(*_weights(key, 16, num_hidden), clip)


def _weights(key, num_inputs, num_hidden):
    if key is None:
        return _weights(jax.random.key(0), num_inputs, num_hidden)[0], jnp.zeros(num_hidden)
    hidden_key, out_key = jax.random.split(key)
    hidden = jax.random.normal(hidden_key, (num_inputs, num_hidden)) / jnp.sqrt(num_inputs)
    return hidden, jax.random.normal(out_key, (num_hidden,)) / jnp.sqrt(num_hidden)


__all__ = ["LPO", "TALPO", "drift_features", "learned_surrogate", "lpo", "talpo"]
