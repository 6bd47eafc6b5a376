"""Networks of policies that generate their actions: velocities of flows, and the noise of a diffusion."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from rlx.networks.torso import Module, Torso, join
from rlx.spaces import Box


class Velocity(Module):
    """Velocity `v(x, t; obs)` of a flow, `[..., A]`: FPO's network. Leading axes of obs, x and t are broadcast.

    The torso sees `[obs, x, cos(2^j t), sin(2^j t)]` with j < 4, and its head's output is scaled down, so that the flow
    begins near the identity and moves slowly. Source: code of McAllister et al. 2025, arXiv:2507.21053.
    """

    torso: Torso
    scale: float = 0.25

    @nn.compact
    def __call__(self, obs: Any, x: jax.Array, t: jax.Array) -> jax.Array:
        waves = jnp.asarray(t)[..., None] * 2.0 ** jnp.arange(4)
        features = self.torso(obs, x, jnp.cos(waves), jnp.sin(waves))
        return self.scale * nn.Dense(x.shape[-1], name="head")(features)


class FourierVelocity(Module):
    """Velocity `v(x, t; obs)` of a flow, `[..., A]`: PolicyFlow's network. Leading axes of obs, x and t are broadcast.

        emb  = W_2 mish(W_1 [cos(2 pi f t), sin(2 pi f t)]) + W_3 obs,    f ~ N(0, 16^2), never trained
        v    = head(torso layers([x, emb]))

    Source: code of Yang et al. 2026, arXiv:2602.01156; Fourier features: Tancik et al. 2020, arXiv:2006.10739.
    """

    torso: Torso  # of it: how observations are encoded, and the layers
    num_features: int = 64  # of the embedding

    @nn.compact
    def __call__(self, obs: Any, x: jax.Array, t: jax.Array) -> jax.Array:
        torso, dense = self.torso, partial(nn.Dense, self.num_features)
        frequencies = self.param("frequencies", nn.initializers.normal(16.0), (self.num_features // 8,))
        waves = 2.0 * jnp.pi * jnp.asarray(t)[..., None] * jax.lax.stop_gradient(frequencies)
        time = jax.nn.mish(dense(name="time_0")(join(jnp.cos(waves), jnp.sin(waves))))
        encoder = Torso(
            torso.observation_space, (), torso.activation, torso.conv_features, kind=torso.kind, name="encoder"
        )
        seen = encoder(obs)
        embedding = dense(name="time_1")(time) + dense(name="condition")(seen)
        layers = Torso(Box(-jnp.inf, jnp.inf, x.shape[-1:]), torso.hidden_sizes, torso.activation, name="layers")
        return nn.Dense(x.shape[-1], name="head")(layers(x, embedding))


class Denoiser(Module):
    """The noise in `x` at the integer time `t`, `[..., A]`: a diffusion policy. Leading axes are broadcast.

        emb = W_2 mish(W_1 [sin(t f), cos(t f)]),    f_j = 10000^(-j / (d / 2 - 1)), j < d / 2
        eps = head(torso([obs, x, emb]))

    Source: code of Ren et al. 2024, arXiv:2409.00588, whose trunk is a residual block.
    """

    torso: Torso
    num_features: int = 16  # d, of the embedding of time

    @nn.compact
    def __call__(self, obs: Any, x: jax.Array, t: jax.Array) -> jax.Array:
        half = self.num_features // 2
        waves = jnp.asarray(t, jnp.float32)[..., None] * 10_000.0 ** (-jnp.arange(half) / max(half - 1, 1))
        hidden = jax.nn.mish(nn.Dense(2 * self.num_features, name="time_0")(join(jnp.sin(waves), jnp.cos(waves))))
        features = self.torso(obs, x, nn.Dense(self.num_features, name="time_1")(hidden))
        return nn.Dense(x.shape[-1], name="head")(features)


__all__ = ["Denoiser", "FourierVelocity", "Velocity"]
