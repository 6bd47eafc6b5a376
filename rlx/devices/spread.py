"""What goes where on several devices: lanes of a sweep, and the parts of one run's State."""

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from rlx.devices.sharding import AXIS, num_blocks
from rlx.pytree import is_per_env, is_static

T = TypeVar("T")
LANES, WHOLE = P("lane"), P()


def spread(lane: Callable) -> Callable:
    """A jitted `lanes(each, *shared)` of `lane(one, *shared)`: one program for L lanes, results `[L, ...]`.

    What each lane has of its own is a key, or a pytree of arrays: `each` has leaves `[L, ...]`.
    The lanes are spread over all devices, which work without waiting for each other. Where their number is not a
    multiple of that of the devices, some are done twice.
    """

    @jax.jit
    def lanes(each, *shared):
        mesh = Mesh(np.array(jax.devices()), ("lane",))
        wanted = len(jax.tree.leaves(each)[0])
        order = jnp.arange(math.ceil(wanted / mesh.size) * mesh.size) % wanted
        mapped = mapped_over(mesh, jax.vmap(lane, (0, *[None] * len(shared))), LANES, *[WHOLE] * len(shared))
        found = mapped(jax.tree.map(lambda x: x[order], each), *shared)
        return jax.tree.map(lambda x: x[:wanted], found)

    return lanes


def mapped_over(mesh: Mesh, function: Callable, *specs: P) -> Callable:
    """`jax.shard_map` of a function of trees: of each argument every device has its lanes, or the whole; results `[L]`.

    Arrays without elements, which states of physics have, are not handed over but made anew on each device: jaxlib
    0.11.2 ends the process where they are.
    """

    def call(*trees):
        leaves, structure = jax.tree.flatten(trees)
        at = [spec for spec, tree in zip(specs, trees, strict=True) for _ in jax.tree.leaves(tree)]
        full = [i for i, leaf in enumerate(leaves) if leaf.size]

        def local(*arrays):
            given = dict(zip(full, arrays, strict=True))
            own = [given[i] if i in given else empty(leaf, at[i]) for i, leaf in enumerate(leaves)]
            return function(*jax.tree.unflatten(structure, own))

        def empty(leaf, spec):
            lanes = leaf.shape[0] // mesh.size if spec == LANES else leaf.shape[0]
            return jnp.zeros((lanes, *leaf.shape[1:]), leaf.dtype)

        # Unchecked: the scans of a lane begin with constants, which do not vary over the devices.
        specs_of = {"in_specs": tuple(at[i] for i in full), "out_specs": LANES, "check_vma": False}
        return jax.shard_map(local, mesh=mesh, **specs_of)(*(leaves[i] for i in full))

    return call


def placed(like: T) -> T:
    """The shapes of a State with their shardings on the mesh in use; unchanged without one.

    Fields that `rlx.per_env` marks, in the State and in dataclasses within it, are split along their first axis over
    the mesh axis `env`. Everything else is on every device.
    """
    if num_blocks() == 1:
        return like
    mesh = jax.sharding.get_mesh()
    at = lambda spec: lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, spec))
    whole, split = (partial(jax.tree.map, at(spec)) for spec in (P(), P(AXIS)))

    def place(part):
        if not dataclasses.is_dataclass(part):
            return whole(part)
        children = [field for field in dataclasses.fields(part) if not is_static(field)]
        values = {f.name: getattr(part, f.name) for f in children}
        own = {f.name: split(values[f.name]) if is_per_env(f) else inside(values[f.name]) for f in children}
        return dataclasses.replace(cast(Any, part), **own)

    inside = lambda tree: jax.tree.map(place, tree, is_leaf=dataclasses.is_dataclass)
    return inside(like)
