"""Flax networks: a torso for vectors or images, an actor and a critic on top of it."""

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from rlx.distributions import Categorical, Normal, TanhNormal
from rlx.spaces import Discrete, Space


def initialize(key: jax.Array, *inputs: jax.Array, **networks: tuple[nn.Module, float]) -> dict[str, Any]:
    """Parameters of several networks for `inputs` like these, with orthogonal kernels, by name.

        params = initialize(key, obs, actor=(actor, 0.01), critic=(critic, 1.0))

    The number is the gain of the layer called `head`; all other kernels have gain sqrt(2), and what is not a kernel
    starts as the module says. All kernels are drawn together, so that they compile to one loop.
    """
    params = {name: module.init(key, *inputs) for name, (module, _) in networks.items()}
    leaves, structure = jax.tree_util.tree_flatten_with_path(params)
    names = [[entry.key for entry in path] for path, _ in leaves]
    kernels = [i for i, name in enumerate(names) if name[-1] == "kernel"]
    values = [leaf for _, leaf in leaves]
    matrices = orthogonal(key, [values[i].shape for i in kernels])
    for i, matrix in zip(kernels, matrices, strict=True):
        values[i] = matrix * (networks[names[i][0]][1] if "head" in names[i] else 2**0.5)
    return jax.tree.unflatten(structure, values)


def orthogonal(key: jax.Array, shapes: list[tuple[int, ...]]) -> list[jax.Array]:
    """Random orthogonal kernels of the given shapes `[..., n]`, seen as matrices `[m, n]`.

    The columns are orthonormal (the rows, where `m < n`) and uniformly distributed: Gram-Schmidt, done twice for
    accuracy, on Gaussian matrices. LAPACK's QR gives the same, but a vmap over several of them deadlocks XLA's thread
    pool on a CPU with few cores.

    Source: Saxe et al. 2014, arXiv:1312.6120 (the initialisation); Giraud et al. 2005, The loss of orthogonality in
    the Gram-Schmidt orthogonalization process, Computers & Mathematics with Applications 50 (that twice is enough).
    """
    sizes = [(math.prod(shape[:-1]), shape[-1]) for shape in shapes]
    tall, wide = max(map(max, sizes)), max(map(min, sizes))
    lengths = jnp.array([max(size) for size in sizes])
    # Drawn as one row: XLA on a CPU unrolls the generator over the short axes of anything else, which takes it long.
    noise = jax.random.normal(key, (wide * len(shapes) * tall,)).reshape(wide, len(shapes), tall)
    noise *= jnp.arange(tall) < lengths[:, None]

    def step(basis, x):  # basis [L, wide, tall], one more vector of each matrix at a time
        k, vector = x
        for _ in range(2):
            vector -= jnp.einsum("lw,lwt->lt", jnp.einsum("lwt,lt->lw", basis, vector), basis)
        vector /= jnp.sqrt(jnp.sum(vector**2, axis=-1, keepdims=True) + 1e-30)
        return basis.at[:, k].set(vector), None

    basis, _ = jax.lax.scan(step, jnp.zeros((len(shapes), wide, tall)), (jnp.arange(wide), noise))
    return [
        (q[: min(m, n), : max(m, n)].T if m >= n else q[: min(m, n), : max(m, n)]).reshape(shape)
        for q, (m, n), shape in zip(basis, sizes, shapes, strict=True)
    ]


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
    `conv_features`; everything is then flattened, joined by the `action` `[..., A]` if one is given, and goes through
    dense layers, with `layer_norm` before each activation.
    """

    observation_space: Space
    hidden_sizes: tuple[int, ...] = (64, 64)
    activation: str = "tanh"
    conv_features: tuple[int, ...] = ()
    layer_norm: bool = False

    @nn.compact
    def __call__(self, obs: jax.Array, action: jax.Array | None = None) -> jax.Array:
        space, act = self.observation_space, activation(self.activation)
        if isinstance(space, Discrete):
            if not jnp.issubdtype(obs.dtype, jnp.integer):
                raise ValueError("categories (Discrete) cannot be normalised: leave normalize_obs off")
            obs = jax.nn.one_hot(obs, space.n)
        batch_shape = obs.shape[: obs.ndim - (len(space.shape) or 1)]
        x = obs.astype(jnp.float32)
        if self.conv_features and len(space.shape) != 3:
            raise ValueError(
                f"conv_features = {self.conv_features} needs observations [height, width, channels], "
                f"these have shape {space.shape}; leave conv_features empty"
            )
        for features in self.conv_features:
            x = act(nn.Conv(features, (3, 3), padding="VALID")(x))
        x = x.reshape(*batch_shape, -1)
        if action is not None:
            x = jnp.concatenate([x, action], axis=-1)
        for features in self.hidden_sizes:
            x = nn.Dense(features)(x)
            x = act(nn.LayerNorm()(x) if self.layer_norm else x)
        return x


class Actor(nn.Module):
    """`pi(. | obs)`: `Categorical` over Discrete actions; over a Box, `Normal` in unit coordinates `[-1, 1]`.

    The normal's log_std is one free parameter a dimension, not a function of the observation, and starts at 0.
    """

    action_space: Space
    torso: Torso

    @nn.compact
    def __call__(self, obs: jax.Array) -> Categorical | Normal:
        x = self.torso(obs)
        if isinstance(self.action_space, Discrete):
            return Categorical(nn.Dense(self.action_space.n, name="head")(x))
        if len(self.action_space.shape) != 1:
            raise ValueError(f"actions of shape {self.action_space.shape} are not supported: give the Box one axis")
        (num_actions,) = self.action_space.shape
        mean = nn.Dense(num_actions, name="head")(x)
        return Normal(mean, self.param("log_std", nn.initializers.zeros, (num_actions,)))


class TanhActor(nn.Module):
    """`pi(. | obs)` over a Box: `TanhNormal` in unit coordinates, log_std a function of the observation in [-10, 2]."""

    action_space: Space
    torso: Torso

    @nn.compact
    def __call__(self, obs: jax.Array) -> TanhNormal:
        (num_actions,) = self.action_space.shape
        mean, log_std = jnp.split(nn.Dense(2 * num_actions, name="head")(self.torso(obs)), 2, axis=-1)
        return TanhNormal(mean, jnp.clip(log_std, -10.0, 2.0))


class Critic(nn.Module):
    """`V(obs)`, or `Q(obs, action)`, `[...]`."""

    torso: Torso

    @nn.compact
    def __call__(self, obs: jax.Array, action: jax.Array | None = None) -> jax.Array:
        return nn.Dense(1, name="head")(self.torso(obs, action))[..., 0]


class ActionValues(nn.Module):
    """`Q(obs, .)` of every Discrete action, `[..., A]`."""

    action_space: Space
    torso: Torso

    @nn.compact
    def __call__(self, obs: jax.Array) -> jax.Array:
        return nn.Dense(self.action_space.n, name="head")(self.torso(obs))


__all__ = ["ActionValues", "Actor", "Critic", "TanhActor", "Torso", "activation", "initialize", "orthogonal"]
