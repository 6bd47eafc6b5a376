"""Flax networks: a torso for vectors or images, an actor and a critic on top of it."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from rlx.distributions import Categorical, Normal
from rlx.spaces import Discrete, Space


def orthogonal(scale: float) -> Callable:
    """Initialiser of kernels `[..., m, n]`, seen as matrices with `n` columns: uniform over orthonormal ones, times `scale`.

    The product of Householder reflections of Gaussian vectors is uniform over the orthogonal group (Stewart 1980,
    The efficient generation of random orthogonal matrices, SIAM J. Numer. Anal. 17(3)). A LAPACK QR would do the
    same, but a vmap over several of them deadlocks XLA's thread pool on a CPU with few cores.
    """

    def init(key: jax.Array, shape: tuple[int, ...], dtype=jnp.float32) -> jax.Array:
        num_columns = shape[-1]
        num_rows = 1
        for n in shape[:-1]:
            num_rows *= n
        tall, wide = max(num_rows, num_columns), min(num_rows, num_columns)
        noise = jax.random.normal(key, (wide, tall), dtype)
        rows = jnp.arange(tall)

        def reflect(i, q):
            k = wide - 1 - i
            x = jnp.where(rows >= k, noise[k], 0.0)
            sign = jnp.where(x[k] < 0, -1.0, 1.0)
            v = x.at[k].add(sign * jnp.linalg.norm(x))
            q = q - jnp.outer(v, (v @ q) * (2.0 / (v @ v)))
            return q.at[:, k].multiply(-sign)  # the column of a reflection whose pivot is positive

        q = jax.lax.fori_loop(0, wide, reflect, jnp.eye(tall, wide, dtype=dtype))
        return scale * (q if num_rows >= num_columns else q.T).reshape(shape)

    return init


def activation(name: str) -> Callable:
    """The function of `jax.nn` with this name.

    Raises:
        ValueError: when there is none.
    """
    function = getattr(jax.nn, name, None)
    if not callable(function):
        raise ValueError(f"activation = {name!r} is not a function of jax.nn; use tanh, relu, swish, gelu or elu")
    return function


class Torso(nn.Module):
    """Observations `[..., *observation shape]` to features `[..., hidden_sizes[-1]]`.

    Integer observations are one-hot encoded. Images `[H, W, C]` go through 3 x 3 convolutions when there are
    `conv_features`; everything is then flattened and goes through dense layers. Kernels are orthogonal with gain
    sqrt(2), biases 0.
    """

    observation_space: Space
    hidden_sizes: tuple[int, ...] = (64, 64)
    activation: str = "tanh"
    conv_features: tuple[int, ...] = ()

    @nn.compact
    def __call__(self, obs: jax.Array) -> jax.Array:
        space, act, init = self.observation_space, activation(self.activation), orthogonal(2**0.5)
        if isinstance(space, Discrete):
            obs = jax.nn.one_hot(obs, space.n)
        batch_shape = obs.shape[: obs.ndim - max(len(space.shape), 1)] if space.shape or isinstance(space, Discrete) else obs.shape
        x = obs.astype(jnp.float32)
        if self.conv_features and len(space.shape) != 3:
            raise ValueError(
                f"conv_features = {self.conv_features} needs observations [height, width, channels], "
                f"these have shape {space.shape}; leave conv_features empty"
            )
        for features in self.conv_features:
            x = act(nn.Conv(features, (3, 3), padding="VALID", kernel_init=init)(x))
        x = x.reshape(*batch_shape, -1)
        for features in self.hidden_sizes:
            x = act(nn.Dense(features, kernel_init=init)(x))
        return x


class Actor(nn.Module):
    """`pi(. | obs)`: `Categorical` over Discrete actions; over a Box, `Normal` in unit coordinates `[-1, 1]`.

    The head is orthogonal with gain 0.01, so that the first policy is near uniform (mean near 0). The normal's
    log_std is one free parameter a dimension, not a function of the observation, and starts at `log_std`.
    """

    action_space: Space
    torso: Torso
    log_std: float = 0.0

    @nn.compact
    def __call__(self, obs: jax.Array) -> Categorical | Normal:
        x = self.torso(obs)
        if isinstance(self.action_space, Discrete):
            return Categorical(nn.Dense(self.action_space.n, kernel_init=orthogonal(0.01))(x))
        (num_actions,) = self.action_space.shape
        mean = nn.Dense(num_actions, kernel_init=orthogonal(0.01))(x)
        return Normal(mean, self.param("log_std", nn.initializers.constant(self.log_std), (num_actions,)))


class Critic(nn.Module):
    """`V(obs)`, `[...]`; the head is orthogonal with gain 1."""

    torso: Torso

    @nn.compact
    def __call__(self, obs: jax.Array) -> jax.Array:
        return nn.Dense(1, kernel_init=orthogonal(1.0))(self.torso(obs))[..., 0]


__all__ = ["Actor", "Critic", "Torso", "activation", "orthogonal"]
