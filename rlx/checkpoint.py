"""Whole training states on disk, through orbax: written atomically, the newest kept."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

KEEP = 3


def manager(directory: Path) -> ocp.CheckpointManager:
    """A manager of the checkpoints in `directory`, one numbered folder each; close it after use."""
    options = ocp.CheckpointManagerOptions(max_to_keep=KEEP, enable_async_checkpointing=False)
    return ocp.CheckpointManager(directory.resolve(), options=options)


def save(directory: Path, num_updates: int, state: Any) -> None:
    """Writes the whole state as `directory/num_updates`; a checkpoint that is there already is kept."""
    with manager(directory) as checkpoints:
        if num_updates not in checkpoints.all_steps():
            checkpoints.save(num_updates, args=ocp.args.StandardSave(_named(state)))


def restore(directory: Path, like: Any) -> Any:
    """The newest state in `directory`; `like` has its structure, shapes and dtypes (`jax.eval_shape` of `init` does).

    Raises:
        ValueError: when there is no checkpoint, or it does not have this structure.
    """
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), like)
    with manager(directory) as checkpoints:
        newest = checkpoints.latest_step()
        if newest is None:
            raise ValueError(f"{directory} holds no checkpoint")
        try:
            found = checkpoints.restore(newest, args=ocp.args.StandardRestore(_named(like)))
        except (ValueError, KeyError, FileNotFoundError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"checkpoint {directory / str(newest)} does not fit this algorithm: {reason}") from error
    fill = lambda path, x: found[_name(path)] if x.size else jnp.zeros(x.shape, x.dtype)
    return jax.tree_util.tree_map_with_path(fill, like)


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".")


def _named(tree: Any) -> dict[str, Any]:
    """The leaves by name, without the empty ones, which physics states have and orbax does not store."""
    return {_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree) if leaf.size}
