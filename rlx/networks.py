"""Flax networks: a torso for vectors or images, and on top of it an actor, a critic, the velocity of a flow."""

import math
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from rlx.distributions import Categorical, Normal, NormalMixture, TanhNormal
from rlx.spaces import Box, Discrete, Space

if TYPE_CHECKING:

    class Module(nn.Module):
        """A flax module whose `apply` gives what it computes; the other form, a pair, is that of `mutable` alone."""

        def apply(self, variables: Any, *args: Any, **kwargs: Any) -> Any: ...
else:
    Module = nn.Module


def initialize(key: jax.Array, obs: jax.Array, **networks: tuple) -> dict[str, Any]:
    """Parameters of several networks for inputs like `obs`, with orthogonal kernels, by name.

        params = initialize(key, obs, actor=(actor, 0.01), critic=(critic, 1.0))

    The number is the gain of the layer called `head`; all other kernels have gain sqrt(2), and what is not a kernel
    starts as the module says. What follows the number are further inputs of the network, after `obs`. All kernels are
    drawn together, so that they compile to one loop.
    """
    params = {name: module.init(key, obs, *inputs) for name, (module, _, *inputs) in networks.items()}
    leaves, structure = jax.tree_util.tree_flatten_with_path(params)
    names = [[entry.key for entry in path] for path, _ in leaves]
    kernels = [i for i, name in enumerate(names) if name[-1] == "kernel"]
    matrices = orthogonal(key, [leaves[i][1].shape for i in kernels])
    values = [leaf.astype(matrices[0].dtype) for _, leaf in leaves]  # all float64 under jax_enable_x64
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
        ValueError: when there is none, or it does not map an array to one of its shape.
    """
    function: Any
    found: Any
    function, like = getattr(jax.nn, name, None), jax.ShapeDtypeStruct((2, 3), jnp.float32)
    try:
        found = jax.eval_shape(function, like)
    except (TypeError, ValueError, AssertionError):  # the last of glu, which halves an axis
        found = None
    if getattr(found, "shape", None) != like.shape or found.dtype != like.dtype:
        raise ValueError(
            f"activation = {name!r} is not a function of jax.nn that keeps shapes; use tanh, relu, swish, gelu or elu"
        )
    return function


def join(*vectors: jax.Array) -> jax.Array:
    """Vectors `[..., n_i]` as one `[..., sum n_i]`; their leading axes are broadcast."""
    batch_shape = jnp.broadcast_shapes(*(x.shape[:-1] for x in vectors))
    return jnp.concatenate([jnp.broadcast_to(x, (*batch_shape, x.shape[-1])) for x in vectors], axis=-1)


def action_size(space: Space) -> int:
    """Number `A` of a continuous action's dimensions.

    Raises:
        ValueError: for Discrete actions, and for a Box that has not exactly one axis.
    """
    if isinstance(space, Discrete):
        raise ValueError("this policy needs continuous actions (a Box), the environment's are Discrete")
    if len(space.shape) != 1:
        raise ValueError(f"actions of shape {space.shape} are not supported: give the Box one axis")
    return space.shape[0]


class Torso(Module):
    """Observations `[..., *observation shape]` to features `[..., hidden_sizes[-1]]`.

    Categories are one-hot encoded. Images `[H, W, C]` go through 3 x 3 convolutions when there are
    `conv_features`; everything is then flattened, joined by what else is given (vectors `[..., n]`, leading axes are
    broadcast), and goes through dense layers, with `layer_norm` before each activation.
    """

    observation_space: Space
    hidden_sizes: tuple[int, ...] = (64, 64)
    activation: str = "tanh"
    conv_features: tuple[int, ...] = ()
    layer_norm: bool = False

    @nn.compact
    def __call__(self, obs: jax.Array, *others: jax.Array) -> jax.Array:
        space, act = self.observation_space, activation(self.activation)
        if isinstance(space, Discrete) and not jnp.issubdtype(obs.dtype, jnp.integer):
            raise ValueError(f"categories (Discrete) are {obs.dtype}: give integers, and leave normalize_obs off")
        batch_shape = obs.shape[: obs.ndim - len(space.shape)]
        if isinstance(space, Discrete):  # those of an image's channels one after another
            one_hot = jax.nn.one_hot(obs, space.n)
            obs = one_hot.reshape(*obs.shape[:-1], -1) if space.shape else one_hot
        x = obs.astype(jnp.float32)
        if self.conv_features and len(space.shape) != 3:
            raise ValueError(
                f"conv_features = {self.conv_features} needs observations [height, width, channels], "
                f"these have shape {space.shape}; leave conv_features empty"
            )
        if self.conv_features and min(space.shape[:2]) <= 2 * len(self.conv_features):
            raise ValueError(
                f"conv_features = {self.conv_features}: each 3 x 3 convolution takes 2 off height and width, "
                f"and these observations have shape {space.shape}; give fewer"
            )
        for features in self.conv_features:
            x = act(nn.Conv(features, (3, 3), padding="VALID")(x))
        x = join(x.reshape(*batch_shape, -1), *others)
        for features in self.hidden_sizes:
            x = nn.Dense(features)(x)
            x = act(nn.LayerNorm()(x) if self.layer_norm else x)
        return x


class Actor(Module):
    """`pi(. | obs)`: `Categorical` over Discrete actions; over a Box, `Normal` in unit coordinates `[-1, 1]`.

    The normal's log_std is one free parameter a dimension, the same for every observation, and starts at 0. With
    more than one component it is a `NormalMixture`, whose means start at random places around 0.
    """

    action_space: Space
    torso: Torso
    num_components: int = 1  # of a Box's density

    @nn.compact
    def __call__(self, obs: jax.Array) -> Categorical | Normal | NormalMixture:
        x = self.torso(obs)
        if isinstance(self.action_space, Discrete):
            if self.num_components != 1:
                raise ValueError(f"num_components = {self.num_components} needs continuous actions: leave it at 1")
            return Categorical(nn.Dense(self.action_space.n, name="head")(x))
        num_actions = action_size(self.action_space)
        if self.num_components == 1:
            mean = nn.Dense(num_actions, name="head")(x)
            log_std = self.param("log_std", nn.initializers.zeros, (num_actions,))
            return Normal(mean, jnp.broadcast_to(log_std, mean.shape))  # so that a batch of them can be indexed
        shape = (self.num_components, num_actions)
        logits, mean = jnp.split(nn.Dense(shape[0] * (1 + shape[1]), name="head")(x), shape[:1], axis=-1)
        mean = mean.reshape(*mean.shape[:-1], *shape) + self.param("centers", nn.initializers.normal(1.0), shape)
        return NormalMixture(logits, mean, self.param("log_std", nn.initializers.zeros, shape))


class TanhActor(Module):
    """`pi(. | obs)` over a Box: `TanhNormal` in unit coordinates, log_std a function of the observation in [-10, 2]."""

    action_space: Space
    torso: Torso

    @nn.compact
    def __call__(self, obs: jax.Array) -> TanhNormal:
        mean, log_std = jnp.split(
            nn.Dense(2 * action_size(self.action_space), name="head")(self.torso(obs)), 2, axis=-1
        )
        return TanhNormal(mean, jnp.clip(log_std, -10.0, 2.0))


class Critic(Module):
    """`V(obs)`, or `Q(obs, action)`, `[...]`."""

    torso: Torso

    @nn.compact
    def __call__(self, obs: jax.Array, *action: jax.Array) -> jax.Array:
        return nn.Dense(1, name="head")(self.torso(obs, *action))[..., 0]


class ActionValues(Module):
    """`Q(obs, .)` of every Discrete action, `[..., A]`."""

    action_space: Discrete
    torso: Torso

    @nn.compact
    def __call__(self, obs: jax.Array) -> jax.Array:
        return nn.Dense(self.action_space.n, name="head")(self.torso(obs))


class Velocity(Module):
    """Velocity `v(x, t; obs)` of a flow, `[..., A]`: FPO's network. Leading axes of obs, x and t are broadcast.

    The torso sees `[obs, x, cos(2^j t), sin(2^j t)]` with j < 4, and its head's output is scaled down, so that the flow
    begins near the identity and moves slowly. Source: code of McAllister et al. 2025, arXiv:2507.21053.
    """

    torso: Torso
    scale: float = 0.25

    @nn.compact
    def __call__(self, obs: jax.Array, x: jax.Array, t: jax.Array) -> jax.Array:
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
    def __call__(self, obs: jax.Array, x: jax.Array, t: jax.Array) -> jax.Array:
        torso, dense = self.torso, partial(nn.Dense, self.num_features)
        frequencies = self.param("frequencies", nn.initializers.normal(16.0), (self.num_features // 8,))
        waves = 2.0 * jnp.pi * jnp.asarray(t)[..., None] * jax.lax.stop_gradient(frequencies)
        time = jax.nn.mish(dense(name="time_0")(join(jnp.cos(waves), jnp.sin(waves))))
        seen = Torso(torso.observation_space, (), torso.activation, torso.conv_features, name="encoder")(obs)
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
    def __call__(self, obs: jax.Array, x: jax.Array, t: jax.Array) -> jax.Array:
        half = self.num_features // 2
        waves = jnp.asarray(t, jnp.float32)[..., None] * 10_000.0 ** (-jnp.arange(half) / max(half - 1, 1))
        hidden = jax.nn.mish(nn.Dense(2 * self.num_features, name="time_0")(join(jnp.sin(waves), jnp.cos(waves))))
        features = self.torso(obs, x, nn.Dense(self.num_features, name="time_1")(hidden))
        return nn.Dense(x.shape[-1], name="head")(features)


__all__ = [
    "ActionValues",
    "Actor",
    "Critic",
    "Denoiser",
    "FourierVelocity",
    "TanhActor",
    "Torso",
    "Velocity",
    "action_size",
    "activation",
    "initialize",
    "join",
    "orthogonal",
]
