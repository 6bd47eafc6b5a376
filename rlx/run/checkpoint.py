"""Whole training states on disk, through orbax: atomic, checked when they are read, the newest and the best kept.

A checkpoint is a folder named by its number of updates. It holds the arrays (`state/`) and `about.json`: the shape and
dtype of every leaf, a checksum of every file, and what the caller wants to be told back. It is written under another
name and renamed when it is complete, and renamed again before it is deleted, so a folder with a number is always whole.
"""

import contextlib
import itertools
import json
import logging
import shutil
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from functools import reduce
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from rlx.devices.hosts import agree, barrier, first
from rlx.env import EnvState
from rlx.pytree import replace
from rlx.run.storage import reason

KEEP = 3
FORMAT = 1
SHOWN = 6  # differences in one message


class Damaged(ValueError):
    """A checkpoint whose files are not what was written."""


def save(
    directory: Path, num_updates: int, state: Any, about: dict[str, Any] | None = None, keep: Iterable[int] = ()
) -> None:
    """Writes the whole state as `directory/num_updates`; a checkpoint that is there already is left as it is.

    Where several processes train together, all of them call it, and `directory` is one that all of them see.

    Afterwards the newest `KEEP` checkpoints are there and, whatever their age, those of the updates in `keep`.

    Args:
        directory: of all checkpoints of a run.
        num_updates: names the checkpoint.
        state: any pytree of arrays, typed keys and empty ones included.
        about: strict JSON to keep beside it, see `read` and `restore`.
        keep: checkpoints that are not to be deleted, such as the best.

    Raises:
        OSError: where the disk is full or cannot be written; what was there before is left as it was.
    """
    final, partial = directory / str(num_updates), directory / f"{num_updates}.partial"
    if not agree(final.exists()):
        if first():
            for leftover in directory.glob("*.partial"):  # of a process that was killed
                shutil.rmtree(leftover)
        barrier(f"room for checkpoint {num_updates}")
        partial = partial.resolve()
        with _failing_quietly(partial):
            with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as checkpointer:
                checkpointer.save(partial / "state", args=ocp.args.StandardSave(_stored(state)))
            if first():
                _complete(partial, final, state, about)
    if first():
        kept = {*numbers(directory)[-KEEP:], *keep}
        for number in numbers(directory):
            if number not in kept:
                shutil.rmtree((directory / str(number)).rename(directory / f"{number}.partial"))
    barrier(f"checkpoint {num_updates}")


@contextlib.contextmanager
def _failing_quietly(partial: Path) -> Iterator[None]:
    """Where the disk is why a checkpoint cannot be written, its rest is removed and orbax prints no tracebacks."""
    logger, hook = logging.getLogger("absl"), sys.unraisablehook
    calm = lambda record: record.levelno < logging.ERROR

    def quiet(unraisable):  # of futures that end after their loop
        if not isinstance(unraisable.exc_value, RuntimeError) or "loop is closed" not in str(unraisable.exc_value):
            hook(unraisable)

    logger.addFilter(calm)
    sys.unraisablehook = quiet
    try:
        yield
    except Exception as error:
        if (why := reason(error)) is None:
            sys.unraisablehook = hook
            raise
        shutil.rmtree(partial, ignore_errors=True)
        raise OSError(f"{partial}: {why}") from error
    else:
        sys.unraisablehook = hook
    finally:
        logger.removeFilter(calm)


def _complete(partial: Path, final: Path, state: Any, about: dict[str, Any] | None) -> None:
    """Writes what a checkpoint says about itself, and gives it its name."""
    content = {
        "format": FORMAT,
        "rlx": version("rlx"),
        "leaves": _leaves(state),
        "files": _checksums(partial),
        "about": about or {},
    }
    text = json.dumps({**content, "checksum": _checksum(content)}, allow_nan=False)
    (partial / "about.json").write_text(text)
    partial.rename(final)


def restore(directory: Path, like: Any, num_updates: int | None = None, about: dict[str, Any] | None = None) -> Any:
    """The state of a checkpoint in `directory`, bit for bit; the newest one where `num_updates` is not given.

    Reads only: nothing on disk changes. Sums of what an environment reports that the checkpoint has not, because it was
    written before the environment reported that, begin at 0.

    Args:
        directory: of all checkpoints of a run.
        like: has the structure, shapes and dtypes of the state (`jax.eval_shape` of `init` does), and where its leaves
            have a sharding, the state gets that.
        num_updates: which checkpoint.
        about: what the checkpoint's own `about` has to agree with, as far as both say something.

    Raises:
        ValueError: when there is no checkpoint, when it is damaged, naming the newest one that is intact, or when it is
            of another structure or about something else, naming the differences.
    """
    path = _find(directory, num_updates)
    content = _verified(path)
    written = "" if content["rlx"] == version("rlx") else f" (written by rlx {content['rlx']})"
    if different := _differences(content["about"], about or {}):
        raise ValueError(f"checkpoint {path} is of another run{written}: {_list(different)}")
    new = _reported(like) - content["leaves"].keys()
    if different := _structure(content["leaves"], {name: x for name, x in _leaves(like).items() if name not in new}):
        raise ValueError(f"checkpoint {path} does not fit this algorithm{written}: {_list(different)}")
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    place = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=getattr(x, "sharding", None) or device)
    like = jax.tree.map(place, like)
    stored = {name: x for name, x in _stored(like).items() if name not in new}
    with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as checkpointer:
        found = checkpointer.restore(path.resolve() / "state", args=ocp.args.StandardRestore(stored))
    zeros = lambda x: jnp.zeros(x.shape, x.dtype, device=x.sharding)
    fill = lambda path, x: found[_name(path)] if _name(path) in stored else zeros(x)
    return jax.tree_util.tree_map_with_path(fill, like)


def newest_intact(directory: Path, like: Any, say: Callable[[str], Any]) -> tuple[Any, int]:
    """The newest state that is intact and its number of updates; None and -1 where there is none.

    For what is computed again to the same bits: going on from an older one costs time only. `say` is told of each that
    is damaged.
    """
    for number in reversed(numbers(directory)):
        try:
            return restore(directory, like, number), number
        except Damaged as error:
            say(f"{str(error).partition(';')[0]}; going on from before it")
    return None, -1


def read(directory: Path, num_updates: int | None = None) -> dict[str, Any]:
    """What `save` was told about a checkpoint: the newest one where `num_updates` is not given.

    Raises:
        ValueError: like `restore`.
    """
    return _verified(_find(directory, num_updates))["about"]


def numbers(directory: Path) -> list[int]:
    """The numbers of updates of the checkpoints in `directory`, ascending; of damaged ones too."""
    if not directory.exists():
        return []
    return sorted(int(path.name) for path in directory.iterdir() if path.name.isdecimal())


def set_aside(directory: Path, num_updates: int) -> None:
    """Moves the checkpoints after `num_updates` out of the way, into `directory` with `-set-aside` to its name."""
    for number in reversed(numbers(directory)):
        if number > num_updates:
            aside = directory.with_name(f"{directory.name}-set-aside")
            aside.mkdir(exist_ok=True)
            names = itertools.chain([str(number)], (f"{number}-{i}" for i in itertools.count(2)))
            free = next(aside / name for name in names if not (aside / name).exists())
            (directory / str(number)).rename(free)


def _find(directory: Path, num_updates: int | None) -> Path:
    known = numbers(directory)
    if not known:
        raise ValueError(f"{directory} holds no checkpoint")
    if num_updates is not None and num_updates not in known:
        raise ValueError(f"{directory} holds no checkpoint of update {num_updates}: there are {_list(map(str, known))}")
    return directory / str(known[-1] if num_updates is None else num_updates)


def _verified(path: Path) -> dict[str, Any]:
    """The content of about.json, after every checksum agreed."""
    if damage := _damage(path):
        older = [path.with_name(str(n)) for n in reversed(numbers(path.parent)) if n < int(path.name)]
        found = next((candidate.name for candidate in older if not _damage(candidate)), None)
        hint = "no older one is intact" if found is None else f"--from-update {found} takes the newest intact one"
        raise Damaged(f"checkpoint {path} is damaged: {damage}; {hint}")
    content = json.loads((path / "about.json").read_text())
    if content["format"] != FORMAT:
        raise ValueError(
            f"checkpoint {path} has format {content['format']}, written by rlx {content['rlx']}; "
            f"this is rlx {version('rlx')}, which reads format {FORMAT}"
        )
    return content


def _damage(path: Path) -> str | None:
    """What is wrong with the files of a checkpoint."""
    if not (path / "about.json").exists():
        return "about.json is missing"
    try:
        content = json.loads((path / "about.json").read_text())
        if content.pop("checksum") != _checksum(content):
            return "about.json has changed"
    except (ValueError, KeyError, AttributeError):
        return "about.json cannot be read"
    found = _checksums(path)
    wrong = [
        f"{name} {'has changed' if name in found else 'is missing'}"
        for name, checksum in content["files"].items()
        if found.get(name) != checksum
    ]
    return _list(wrong) if wrong else None


def _checksums(path: Path) -> dict[str, int]:
    """CRC-32 of every file of the arrays, by its path below `path`."""
    found = {}
    for name in sorted((path / "state").rglob("*")):
        if name.is_file():
            with open(name, "rb") as file:
                blocks = iter(lambda file=file: file.read(1 << 24), b"")
                found[name.relative_to(path).as_posix()] = reduce(lambda crc, block: zlib.crc32(block, crc), blocks, 0)
    return found


def _checksum(content: Any) -> int:
    return zlib.crc32(json.dumps(content, sort_keys=True).encode())


def _leaves(tree: Any) -> dict[str, str]:
    """Dtype and shape of every leaf, such as `float32[4, 64]`."""
    found = jax.tree_util.tree_leaves_with_path(tree)
    named = {_name(path): f"{leaf.dtype}{list(leaf.shape)}" for path, leaf in found}
    if len(named) < len(found):
        raise ValueError("two leaves of this state have the same dotted name: rename one")
    return named


def _reported(like: Any) -> set[str]:
    """The names of the leaves that are sums of what environments report."""
    is_state = lambda x: isinstance(x, EnvState)
    bare = lambda x: replace(x, reported={}, state=without(x.state)) if is_state(x) else x
    without = lambda tree: jax.tree.map(bare, tree, is_leaf=is_state)
    return _leaves(like).keys() - _leaves(without(like)).keys()


def _structure(saved: dict[str, str], wanted: dict[str, str]) -> list[str]:
    """Differences between the leaves of a checkpoint and those that are wanted."""
    missing = [f"it has no {name}" for name in wanted if name not in saved]
    unexpected = [f"it has {name}, which is not wanted" for name in saved if name not in wanted]
    both = [name for name in wanted if name in saved and saved[name] != wanted[name]]
    return missing + unexpected + [f"{name} is {saved[name]}, not {wanted[name]}" for name in both]


def _differences(saved: Any, wanted: Any, name: str = "") -> list[str]:
    """Where two JSON values differ, as far as both say something."""
    if isinstance(saved, dict) and isinstance(wanted, dict):
        inner = [_differences(saved[key], wanted[key], f"{name}.{key}") for key in wanted if key in saved]
        return list(itertools.chain.from_iterable(inner))
    return [] if saved == wanted else [f"{name.removeprefix('.')} is {saved}, not {wanted}"]


def _list(items: Iterable[str]) -> str:
    items = list(items)
    return ", ".join(items[:SHOWN]) + (f" and {len(items) - SHOWN} more" if len(items) > SHOWN else "")


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".")


def _stored(tree: Any) -> dict[str, Any]:
    """The leaves by name, without the empty ones, which physics states have and orbax does not store."""
    return {_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree) if leaf.size}
