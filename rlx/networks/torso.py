"""What networks have in common: how observations are encoded, their layers and their first parameters."""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from rlx.spaces import Discrete, Space, named, seen

TORSOS = ("mlp", "nature", "impala")  # by the convolutions that come before its layers
FILTERS = {"nature": (32, 64, 64), "impala": (16, 32, 32)}

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


class Torso(Module):
    """Observations of a space to features `[..., hidden_sizes[-1]]`.

    Categories are one-hot encoded, and bytes of images divided by 255. Images `[H, W, C]` go through convolutions;
    everything is then flattened, joined by what else is given (vectors `[..., n]`, leading axes are broadcast), and
    goes through dense layers, with `layer_norm` before each activation. Of an observation with more entries than the
    space has, those of the space are seen.

    `kind` names the convolutions, and `conv_features` are their filters:

        mlp     3 x 3, one after another, where there are `conv_features`
        nature  8 x 8 by 4, 4 x 4 by 2, 3 x 3: 32, 64 and 64 filters; Mnih et al. 2015, Nature 518
        impala  for each of 16, 32 and 32 filters 3 x 3, the maximum of 3 x 3 by 2, and two residual blocks of two
                3 x 3 each; Espeholt et al. 2018, arXiv:1802.01561
    """

    observation_space: Space
    hidden_sizes: tuple[int, ...] = (64, 64)
    activation: str = "tanh"
    conv_features: tuple[int, ...] = ()
    layer_norm: bool = False
    kind: str = "mlp"

    @nn.compact
    def __call__(self, obs: Any, *others: jax.Array) -> jax.Array:
        act, spaces = activation(self.activation), named(self.observation_space)
        arrays = jax.tree.leaves(seen(self.observation_space, obs))
        self._check_images([space.shape for space in spaces.values()])
        x = join(*(self._encoded(*pair, act) for pair in zip(spaces.values(), arrays, strict=True)), *others)
        for features in self.hidden_sizes:
            x = nn.Dense(features)(x)
            x = act(nn.LayerNorm()(x) if self.layer_norm else x)
        return x

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
                x = act(nn.Conv(features, (size, size), stride, padding="VALID")(x))
        elif self.kind == "impala":
            for features in filters:
                x = nn.max_pool(nn.Conv(features, (3, 3))(x), (3, 3), (2, 2), padding="SAME")
                for _ in range(2):
                    x = x + nn.Conv(features, (3, 3))(act(nn.Conv(features, (3, 3))(act(x))))
            x = act(x)
        else:
            for features in filters:
                x = act(nn.Conv(features, (3, 3), padding="VALID")(x))
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


__all__ = ["FILTERS", "TORSOS", "Module", "Torso", "activation", "initialize", "join", "orthogonal"]
