"""Modes of JAX that a caller may have set, and what rlx does under each.

`jax_enable_x64`: all parameters and losses are float64. `jax_numpy_dtype_promotion="strict"` and
`jax_numpy_rank_promotion="raise"`: rlx and its environments, most of which mix dtypes, are traced without them (see
`ordinary`). `jax_debug_nans` and `jax_disable_jit` hold as everywhere. `jax.shard_map` needs `check_vma=False`.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar, cast

import jax

F = TypeVar("F", bound=Callable)


def ordinary(function: F) -> F:
    """The function, traced under JAX's ordinary promotion of dtypes and ranks, whatever its caller has set."""

    @wraps(function)
    def call(*args, **kwargs):
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            return function(*args, **kwargs)

    return cast(F, call)


def check_unvarying(tree: Any) -> None:
    """Raises ValueError inside a `jax.shard_map` that checks which values vary over its devices.

    The loops of a run begin with constants, which do not vary over devices, and continue with values that do. JAX
    refuses the first such loop.
    """
    arrays = [leaf for leaf in jax.tree.leaves(tree) if isinstance(leaf, jax.Array)]
    types = [getattr(jax.typeof(array), "mat", None) for array in arrays]
    if any(getattr(kind, "varying", ()) for kind in types):
        raise ValueError(
            "a run inside of jax.shard_map: give jax.shard_map check_vma=False, since the loops of a run begin with "
            "constants, which do not vary over its devices"
        )
