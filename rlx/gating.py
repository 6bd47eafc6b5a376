"""The gate of a mixture of policies, and a gradient of its own by values of actions (PMOE).

Likelihoods alone move the weights of a mixture through its density. A gate is told besides which component has the best
action now.

Axes: B batch, K components, A action.
"""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp

from rlx.distributions import NormalMixture


def best_component(pi: NormalMixture, q: Callable, key: jax.Array) -> jax.Array:
    """The component whose action has the greatest value, `argmax_k Q(s, a_k)` with `a_k` one draw of each: int32 `[B]`.

    Args:
        pi: mixtures `[B]`.
        q: `q(actions [B, K, A]) -> values [B, K]`.
        key: of the draws.
    """
    values = q(pi.normals.sample(key))
    chex.assert_shape(values, pi.logits.shape)
    return jnp.argmax(values, axis=-1).astype(jnp.int32)


def gate_loss(weights: jax.Array, best: jax.Array) -> jax.Array:
    """How far the weights `[B, K]` are from the components that were the best: `mean_k (w_k - [k = best])^2`, `[B]`.

    Over many draws it is least where each weight is the frequency with which its component is the best. Those of one
    component are at 0 always.

    Source: Ren et al. 2021, Probabilistic Mixture-of-Experts for Efficient Deep Reinforcement Learning,
    arXiv:2104.09122.
    """
    chex.assert_rank([weights, best], [2, 1])
    return jnp.square(weights - jax.nn.one_hot(best, weights.shape[-1])).mean(axis=-1)


__all__ = ["best_component", "gate_loss"]
