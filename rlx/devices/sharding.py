"""One run on several devices: the sharding of its parts.

The program is that of one device. Environments are split into one block a device along the mesh axis `env`, and so are
rollouts, minibatches and the rows of a replay buffer. Parameters are on every device. The compiler finds the sums over
devices, such as those of gradients and statistics, and adds the reductions.

    with jax.set_mesh(rlx.devices.sharding.mesh()):
        state, metrics = rlx.train(ppo, config, env, key)

No data changes its device: shuffling and sampling stay within the blocks, so every minibatch has the same number of
elements of each. Without a mesh, or on one device, there is one block, and a minibatch is any elements.
"""

import math
import os
import re
import warnings
from collections.abc import Sequence
from typing import TypeVar

import jax
from jax.sharding import AxisType, Mesh
from jax.sharding import PartitionSpec as P

T = TypeVar("T")

AXIS = "env"
COLLECTIVES = ("all-reduce", "all-gather", "all-to-all", "ragged-all-to-all", "reduce-scatter", "collective-permute")
COLLECTIVES += ("collective-broadcast",)


def num_cores() -> int:
    """Of the CPU, that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def use_devices(num: int | None = None) -> int:
    """Has jax see `num` devices, before it is used: virtual ones of a CPU, or the first GPUs. Returns how many it sees.

    Without a number these are all, and of a CPU one for each core.
    """
    wanted = num or num_cores()
    try:
        jax.config.update("jax_num_cpu_devices", wanted)
        for name in ("jax_cuda_visible_devices", "jax_rocm_visible_devices"):
            if num:
                chosen = getattr(jax.config, name, "all")
                visible = map(str, range(num)) if chosen == "all" else chosen.split(",")[:num]
                jax.config.update(name, ",".join(visible))
    except RuntimeError:  # jax is in use already
        if jax.default_backend() == "cpu" and jax.device_count() < wanted:
            text = f"use_devices comes too late: jax is in use, with {jax.device_count()} devices and not {wanted}"
            warnings.warn(text, stacklevel=2)
    return jax.device_count()


def missing_platform() -> str:
    """What to say where JAX has no device, since `JAX_PLATFORMS` names a platform that is not here; else nothing."""
    try:
        jax.devices()
    except (RuntimeError, AssertionError):  # an assertion of JAX's own where its plugin is there and the device is not
        named = jax.config.jax_platforms  # pyright: ignore[reportAttributeAccessIssue] (made by JAX)
        return f"JAX_PLATFORMS={named}: no such device is here; leave it out, or give cpu"
    return ""


def mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:  # pyright: ignore[reportInvalidTypeForm] (compiled)
    """A mesh of these devices, all of them without an argument, for `jax.set_mesh`."""
    devices = jax.devices() if devices is None else devices
    return jax.make_mesh((len(devices),), (AXIS,), axis_types=(AxisType.Auto,), devices=devices)


def num_blocks() -> int:
    """Into how many blocks environments are cut: the size of axis `env` of the mesh in use, 1 without it."""
    return dict(jax.sharding.get_abstract_mesh().shape).get(AXIS, 1)


def split(tree: T, axis: int = 0) -> T:
    """The tree, with that axis of its arrays cut into blocks, one a device; whole where it does not divide."""
    return jax.tree.map(
        lambda x: _constrain(x, P(*[None] * axis, AXIS) if x.shape[axis] % num_blocks() == 0 else P()), tree
    )


def whole(tree: T) -> T:
    """The tree, with all of it on every device."""
    return jax.tree.map(lambda x: _constrain(x, P()), tree)


def collectives(program: jax.stages.Compiled) -> list[tuple[str, int]]:
    """What a compiled program sends between devices: kind, such as `all-reduce`, and bytes, of every operation.

    One that stands in a loop is listed once. Of one that is started and waited for, as on accelerators, the bytes that
    go in and those that come out are counted.
    """
    found = []
    for line in (program.as_text() or "").splitlines():
        if match := re.search(rf"= (.*?) ({'|'.join(COLLECTIVES)})(-start)?\(", line):
            shapes = re.findall(r"([a-z]+)(\d*)\[([\d,]*)\]", match[1])
            sizes = (
                math.prod(int(n) for n in dims.split(",") if n) * max(8, int(bits or 8)) for _, bits, dims in shapes
            )
            found.append((match[2], sum(sizes) // 8))
    return found


def blocks(size: int, what: str) -> int:
    """The size of each of `num_blocks()` blocks.

    Raises:
        ValueError: where it does not divide; `what` is what has that size.
    """
    num = num_blocks()
    if size % num:
        raise ValueError(
            f"{what} = {size} does not split over {num} devices: use {math.gcd(size, num)} of them, or change it"
        )
    return size // num


def _constrain(x: jax.Array, spec: P) -> jax.Array:
    return jax.lax.with_sharding_constraint(x, spec) if num_blocks() > 1 else x
