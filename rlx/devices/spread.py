"""Lanes over devices: a function of one lane, mapped over all, each device with its own."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

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
