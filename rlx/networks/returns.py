"""Heads over what actions return: values, distributions on atoms, quantiles, and what follows an action."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from rlx.networks.noisy import NoisyDense
from rlx.networks.torso import Module, Torso, activation, is_separate, separate
from rlx.spaces import Discrete

NUM_COSINES = 64  # of the embedding of quantile levels


class ActionReturns(Module):
    """Values `[..., A]`, or with `num_atoms` K numbers for each action, `[..., A, K]`: logits or quantiles.

    dueling   V(s) + Q(s, a) - mean_a Q(s, a), also of each atom; Wang et al. 2016, arXiv:1511.06581, equation 9
    implicit  quantiles at given levels `[..., K]`: features times relu(Dense(cos(pi i level))), i from 0 to 63;
              Dabney et al. 2018, arXiv:1806.06923, equation 4
    noise     layers are `NoisyDense` with this scale, as those of the torso should be
    """

    action_space: Discrete
    torso: Torso
    num_atoms: int = 0
    dueling: bool = False
    implicit: bool = False
    noise: float = 0.0

    @nn.compact
    def __call__(self, obs: jax.Array, levels: Any = None) -> jax.Array:
        if is_separate(self.torso):
            return separate(self, obs, levels)
        x, num = self.torso(obs), self.action_space.n
        dense = lambda features, name: (
            NoisyDense(features, self.noise, name=name) if self.noise else nn.Dense(features, name=name)
        )
        if self.implicit:
            waves = jnp.cos(jnp.pi * levels[..., None] * jnp.arange(NUM_COSINES))
            x = x[..., None, :] * jax.nn.relu(dense(x.shape[-1], "levels")(waves))  # [..., K, F]
        each = 1 if self.implicit else max(self.num_atoms, 1)
        split = lambda y: y.reshape(*y.shape[:-1], -1, each)
        q = split(dense(num * each, "head")(x))
        if self.dueling:
            q = split(dense(each, "state")(x)) + q - q.mean(axis=-2, keepdims=True)
        if self.implicit:
            return jnp.swapaxes(q[..., 0], -1, -2)
        return q if self.num_atoms else q[..., 0]


class PredictiveCritic(Module):
    """Of an observation and an action what they return, their features, and a guess at what follows.

    Returns:
        `[..., K]` numbers for the return, as the logits of its bins, the features `[..., F]` of the torso, and a guess
        at the features and the reward of the next step, `[..., F + 1]`. Both heads have one layer of the torso's size,
        with layer norm where the torso has it.

    Source: Voelcker et al. 2025, Relative Entropy Pathwise Policy Optimization, arXiv:2507.11019, section 4.2.
    """

    torso: Torso
    num_values: int

    @nn.compact
    def __call__(self, obs: Any, *action: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        if is_separate(self.torso):
            return separate(self, obs, *action)
        features = self.torso(obs, *action)
        size, act = features.shape[-1], activation(self.torso.activation)

        def layer(name):
            x = nn.Dense(size, name=name)(features)
            return act(nn.LayerNorm(name=f"{name}_norm")(x) if self.torso.layer_norm else x)

        returns = nn.Dense(self.num_values, name="head")(layer("returns"))
        return returns, features, nn.Dense(size + 1, name="guess")(layer("next"))


__all__ = ["NUM_COSINES", "ActionReturns", "PredictiveCritic"]
