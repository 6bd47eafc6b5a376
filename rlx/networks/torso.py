"""What networks have in common: how observations are encoded, their layers and their first parameters."""

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from rlx.networks.convolution import convolve
from rlx.networks.noisy import NOISE, NoisyDense
from rlx.networks.norms import BLOCKS, STATS, BatchRenorm, Dropout, unit_length
from rlx.spaces import Dict, Discrete, Space, named, seen

TORSOS = ("mlp", "nature", "impala")  # by the convolutions that come before its layers
SEPARATE = "separate"  # in the names of parameters: one leading axis of networks, see `separate`
FILTERS = {"nature": (32, 64, 64), "impala": (16, 32, 32)}
Conv = partial(nn.Conv, conv_general_dilated=convolve)

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
    # Of separate networks each has kernels of its own.
    copies = [leaves[i][1].shape[0] if SEPARATE in names[i] else 1 for i in kernels]
    shapes = [leaves[i][1].shape[SEPARATE in names[i] :] for i in kernels]
    drawn = orthogonal(key, [shape for shape, num in zip(shapes, copies, strict=True) for _ in range(num)])
    real = lambda leaf: leaf.astype(drawn[0].dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf
    values = [real(leaf) for _, leaf in leaves]  # all float64 under jax_enable_x64
    for i, num in zip(kernels, copies, strict=True):
        own, drawn = drawn[:num], drawn[num:]
        matrix = jnp.stack(own) if SEPARATE in names[i] else own[0]
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


def sparse(key: jax.Array, params: dict[str, Any], sparsity: float = 0.9) -> dict[str, Any]:
    """The parameters with new kernels, of which each unit keeps few inputs; what is not a kernel stays.

        k ~ U(-1 / sqrt(n), 1 / sqrt(n)),    of each column ceil(sparsity n) at random places are 0, n - 1 at most

    `n` are the inputs of a unit, the product of all axes of its kernel but the last.

    Source: Elsayed et al. 2024, arXiv:2410.14606. There a unit with fewer than ten inputs keeps none.
    """
    leaves, structure = jax.tree_util.tree_flatten_with_path(params)
    names, values = [[entry.key for entry in path] for path, _ in leaves], [leaf for _, leaf in leaves]
    kernels = [i for i, name in enumerate(names) if name[-1] == "kernel"]
    drawn = jax.random.uniform(key, (2 * sum(values[i].size for i in kernels),), values[kernels[0]].dtype)
    start = 0
    for i in kernels:
        shape, separate = values[i].shape, SEPARATE in names[i]
        num, size = math.prod(shape[separate:-1]), values[i].size
        flat = drawn[start : start + 2 * size].reshape(2, -1, num, shape[-1])
        rank = jnp.argsort(jnp.argsort(flat[0], axis=1), axis=1)
        kept = rank >= min(math.ceil(sparsity * num), num - 1)
        values[i] = jnp.where(kept, (2.0 * flat[1] - 1.0) / num**0.5, 0.0).reshape(shape)
        start += 2 * size
    return jax.tree.unflatten(structure, values)


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


def separate(network: Any, obs: Any, *others: Any) -> Any:
    """What a network gives that has parameters of its own for each category of an entry, `[..., ]`; see `Dict`.

    All of them are computed, and of each row that of its category is taken. Is called within a compact `__call__`.
    """
    space = network.torso.observation_space
    entry, num = space.separate
    shared = Dict(space.spaces, privileged=space.privileged)
    fields = {f.name: getattr(network, f.name) for f in dataclasses.fields(network) if f.name not in ("parent", "name")}
    fields["torso"] = network.torso.clone(observation_space=shared, parent=None)
    kind = nn.vmap(
        type(network),
        variable_axes={"params": 0, STATS: 0},
        split_rngs={"params": True, "dropout": True, NOISE: True},
        in_axes=None,  # pyright: ignore[reportArgumentType] (of all inputs)
        axis_size=num,
    )
    found = kind(**fields, name=SEPARATE)(obs, *others)
    which = obs[entry]

    def chosen(x):
        index = which.reshape(1, *which.shape, *[1] * (x.ndim - 1 - which.ndim))
        return jnp.take_along_axis(x, index, axis=0)[0]

    return jax.tree.map(chosen, found)


def is_separate(torso: Any) -> bool:
    """Whether networks on a torso have parameters of their own for the categories of an entry; see `Dict`.

    A torso without a space, such as one of your own, has none of them.
    """
    space = getattr(torso, "observation_space", None)
    return isinstance(space, Dict) and space.separate is not None


class Torso(Module):
    """Observations of a space to features `[..., hidden_sizes[-1]]`.

    Categories are one-hot encoded, and bytes of images divided by 255. Images `[H, W, C]` go through convolutions;
    everything is then flattened, joined by what else is given (vectors `[..., n]`, leading axes are broadcast), and
    goes through dense layers. `layer_norm` comes before each activation, also of 3 x 3 convolutions, and with `noise`
    the dense layers are `NoisyDense`. Of an observation with more entries than the space has, those of the space are
    seen.

    `kind` names the convolutions, and `conv_features` are their filters:

        mlp     3 x 3, one after another, where there are `conv_features`
        nature  8 x 8 by 4, 4 x 4 by 2, 3 x 3: 32, 64 and 64 filters; Mnih et al. 2015, Nature 518
        impala  for each of 16, 32 and 32 filters 3 x 3, the maximum of 3 x 3 by 2, and two residual blocks of two
                3 x 3 each; Espeholt et al. 2018, arXiv:1802.01561

    `dropout` is the share of the hidden units that is dropped, before the layer norm; `apply` then needs
    `rngs={"dropout": key}`. With `batch_norm` what the layers are given, and what each gives, is normalised by the
    batch, see `BatchRenorm`. With `residual` the first of `hidden_sizes` is a layer, and each further one, which has to
    be the same, a block: of "simba" a `Residual` block, where the first layer has no activation and a layer norm is
    last; of "bro" a `BroBlock`, where layer norm and activation follow the first layer. Layer norms have no scale and
    no shift where they are not `trained_norm`. With `unit_features` what comes out is divided by its length.
    """

    observation_space: Space
    hidden_sizes: tuple[int, ...] = (64, 64)
    activation: str = "tanh"
    conv_features: tuple[int, ...] = ()
    layer_norm: bool = False
    kind: str = "mlp"
    dropout: float = 0.0
    batch_norm: bool = False
    residual: str = ""
    noise: float = 0.0
    trained_norm: bool = True
    unit_features: bool = False

    @nn.compact
    def __call__(self, obs: Any, *others: jax.Array) -> jax.Array:
        act, spaces = activation(self.activation), named(self.observation_space)
        arrays = jax.tree.leaves(seen(self.observation_space, obs))
        self._check_images([space.shape for space in spaces.values()])
        x = join(*(self._encoded(*pair, act) for pair in zip(spaces.values(), arrays, strict=True)), *others)
        if self.residual:
            return self._residual(x, act)
        x = BatchRenorm()(x) if self.batch_norm else x
        for features in self.hidden_sizes:
            x = (NoisyDense(features, self.noise) if self.noise else nn.Dense(features))(x)
            x = Dropout(self.dropout)(x) if self.dropout else x
            x = act(self._norm()(x) if self.layer_norm else x)
            x = BatchRenorm()(x) if self.batch_norm else x
        return unit_length(x) if self.unit_features else x

    def _norm(self) -> nn.LayerNorm:
        return nn.LayerNorm(use_scale=self.trained_norm, use_bias=self.trained_norm)

    def _residual(self, x: jax.Array, act: Callable) -> jax.Array:
        """Residual blocks in place of layers."""
        if not self.hidden_sizes or len(set(self.hidden_sizes)) > 1:
            raise ValueError(
                f"hidden_sizes = {self.hidden_sizes} of residual blocks: give one size, once for the first layer and "
                "once for each block"
            )
        if self.layer_norm or self.batch_norm or self.dropout:
            raise ValueError("residual blocks have layer norms of their own: leave layer_norm and the like off")
        if self.residual not in BLOCKS:
            raise ValueError(f"residual = {self.residual!r} has to be one of {', '.join(BLOCKS)}, or empty")
        x = nn.Dense(self.hidden_sizes[0])(x)
        if self.residual == "bro":
            x = act(nn.LayerNorm()(x))
        for _ in self.hidden_sizes[1:]:
            x = BLOCKS[self.residual](act)(x)
        return x if self.residual == "bro" else nn.LayerNorm()(x)

    def _encoded(self, space: Any, obs: jax.Array, act: Callable) -> jax.Array:
        """One part of the observation as a vector."""
        if isinstance(space, Discrete) and not jnp.issubdtype(obs.dtype, jnp.integer):
            raise ValueError(f"categories (Discrete) are {obs.dtype}: give integers, and leave normalize_obs off")
        batch_shape = obs.shape[: obs.ndim - len(space.shape)]
        if isinstance(space, Discrete):  # those of an image's channels one after another
            one_hot = jax.nn.one_hot(obs, space.n)
            obs = one_hot.reshape(*obs.shape[:-1], -1) if space.shape else one_hot
        x = obs.astype(jnp.float32)
        if len(space.shape) != 3:
            return x.reshape(*batch_shape, -1)
        if obs.dtype == jnp.uint8:
            x = x / 255.0
        filters = self.conv_features or FILTERS.get(self.kind, ())
        if self.kind == "nature":
            for features, size, stride in zip(filters, (8, 4, 3), (4, 2, 1), strict=True):
                x = act(Conv(features, (size, size), stride, padding="VALID")(x))
        elif self.kind == "impala":
            for features in filters:
                x = nn.max_pool(Conv(features, (3, 3))(x), (3, 3), (2, 2), padding="SAME")
                for _ in range(2):
                    x = x + Conv(features, (3, 3))(act(Conv(features, (3, 3))(act(x))))
            x = act(x)
        else:
            for features in filters:
                x = Conv(features, (3, 3), padding="VALID")(x)
                x = act(self._norm()(x) if self.layer_norm else x)
        return x.reshape(*batch_shape, -1)

    def _check_images(self, shapes: list[tuple[int, ...]]) -> None:
        """Raises ValueError for convolutions that the observation has no image for, or one that is too small."""
        if self.kind not in TORSOS:
            raise ValueError(f"torso = {self.kind!r}: choose among {', '.join(TORSOS)}")
        given = f"conv_features = {self.conv_features}" if self.kind == "mlp" else f"torso = {self.kind!r}"
        if self.kind == "mlp" and not self.conv_features:
            return
        images = [shape for shape in shapes if len(shape) == 3]
        if not images:
            way = "leave conv_features empty" if self.kind == "mlp" else "leave it at 'mlp'"
            found = f"these have shape {shapes[0]}" if len(shapes) == 1 else f"these have shapes {shapes}"
            raise ValueError(f"{given} needs observations [height, width, channels], {found}; {way}")
        smallest = min(min(shape[:2]) for shape in images)
        if self.kind == "mlp" and smallest <= 2 * len(self.conv_features):
            raise ValueError(
                f"{given}: each 3 x 3 convolution takes 2 off height and width, "
                f"and these observations have shape {images[0]}; give fewer"
            )
        if self.kind == "nature" and (smallest < 36 or len(self.conv_features or FILTERS["nature"]) != 3):
            raise ValueError(f"{given}: it needs images of 36 x 36 or more, and three conv_features or none")


__all__ = [
    "FILTERS",
    "TORSOS",
    "Module",
    "Torso",
    "activation",
    "initialize",
    "is_separate",
    "join",
    "orthogonal",
    "separate",
    "sparse",
]
