"""Several processes that train one run, each with devices of its own: all run the same program, the first one writes.

They are the processes of `jax.distributed`. Values known to one process only (the time, a signal, files on disk) are
broadcast before any process acts on them. If processes took different branches, they would deadlock.
"""

import contextlib
import json
import os
import sys
import traceback
from collections.abc import Iterator
from typing import NoReturn, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from rlx.devices.compiler import in_use

T = TypeVar("T")

HEARTBEAT = 30  # seconds without a sign of life after which a process counts as lost
LOST = ("gloo", "nccl", "unavailable", "deadline", "connection", "coordination", "heartbeat", "socket")


def join(coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None) -> None:
    """Joins the other processes, before jax is used; arguments that are not given come from the environment.

    SLURM, Open MPI and Cloud TPU say all of them; elsewhere they are to be given.

    Args:
        coordinator: address and port of the first process, as `10.0.0.1:1234`.
        num_processes: how many there are.
        process_id: which one this is, from 0.

    Raises:
        ValueError: when something is not known, the others cannot be reached, or jax is in use already.
    """
    if in_use():
        raise ValueError("--distributed: the algorithm's file has used jax before the processes have met: let it not")
    given = {"coordinator_address": coordinator, "num_processes": num_processes, "process_id": process_id}
    # JAX would answer SIGTERM itself; a run answers it with a checkpoint.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(**given, heartbeat_timeout_seconds=HEARTBEAT)
    except (ValueError, RuntimeError) as error:
        raise ValueError(
            f"--distributed: {error} Without SLURM, Open MPI or Cloud TPU give --coordinator HOST:PORT, "
            "--num-processes and --process-id to every process"
        ) from error


def first() -> bool:
    """Whether this is the process that writes."""
    return jax.process_index() == 0


def barrier(name: str) -> None:
    """Waits until every process has come here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def most(*numbers: int) -> tuple[int, ...]:
    """The largest of each number in all processes."""
    if jax.process_count() == 1:
        return numbers
    return tuple(map(int, multihost_utils.process_allgather(np.array(numbers, np.int32)).max(axis=0)))


def agree(value: T) -> T:
    """What the first process has, which JSON has to be able to say."""
    if jax.process_count() == 1:
        return value
    text = json.dumps(value).encode() if first() else b""
    (size,) = most(len(text))
    padded = np.frombuffer(text.ljust(size, b" "), np.uint8)
    return json.loads(bytes(multihost_utils.broadcast_one_to_all(padded)))


def fetch(tree: T) -> T:
    """The whole of the tree as numpy arrays, in every process."""
    here = lambda x: getattr(x, "is_fully_addressable", True) or x.is_fully_replicated
    return jax.tree.map(lambda x: np.asarray(x) if here(x) else multihost_utils.process_allgather(x, tiled=True), tree)


@contextlib.contextmanager
def local_devices() -> Iterator[None]:
    """Within it `jax.devices()` are those of this process.

    MuJoCo and Brax put models on the first device, which otherwise is one of another process.
    """
    everywhere = jax.devices
    if jax.process_count() > 1:
        jax.devices = jax.local_devices
    try:
        yield
    finally:
        jax.devices = everywhere


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Where one of several processes fails, it ends at once, and so do the others: none waits for another for ever."""
    try:
        yield
    except (ValueError, OSError, KeyboardInterrupt):  # whoever called says what it is, and leaves
        raise
    except Exception as error:
        if not jax.distributed.is_initialized():
            raise
        if isinstance(error, jax.errors.JaxRuntimeError) and any(word in str(error).lower() for word in LOST):
            print(
                f"rlx: process {jax.process_index()} of {jax.process_count()} ends, as another one cannot be reached: "
                f"{' '.join(str(error).split())}\nrlx: start all of them again with --resume: the run goes on from its "
                "last checkpoint, also with another number of processes",
                file=sys.stderr,
            )
        else:
            traceback.print_exc()
        leave(1)


def leave(status: int) -> NoReturn:
    """Ends this process, of several at once: a proper end would wait for the others."""
    if jax.distributed.is_initialized():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)
