"""Whole training states on disk, through orbax: written atomically, the newest kept."""

from pathlib import Path
from typing import Any

import jax
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
            checkpoints.save(num_updates, args=ocp.args.StandardSave(state))


def restore(directory: Path, like: Any) -> Any:
    """The newest state in `directory`; `like` has its structure, shapes and dtypes (`jax.eval_shape` of `init` does).

    Raises:
        ValueError: when there is no checkpoint, or it does not have this structure.
    """
    with manager(directory) as checkpoints:
        newest = checkpoints.latest_step()
        if newest is None:
            raise ValueError(f"{directory} holds no checkpoint")
        device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), like)
        try:
            return checkpoints.restore(newest, args=ocp.args.StandardRestore(like))
        except (ValueError, KeyError, FileNotFoundError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"checkpoint {directory / str(newest)} does not fit this algorithm: {reason}") from error
