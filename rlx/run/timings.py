"""How long programs took to compile, kept beside the cache of compiled programs, to say so before the next time."""

import json
import os
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import jax

from rlx.pytree import is_static

FILE = "compile_seconds.json"
MOST = 500  # programs that are remembered, the latest


def program_name(what: str, env_name: str | None, config: Any, *sizes: int) -> str:
    """The name of a program by all that fixes its shapes: the static settings but the length of the run, and sizes."""
    static = [(f.name, getattr(config, f.name)) for f in fields(config) if is_static(f) and f.name != "total_steps"]
    mark = zlib.crc32(repr((static, sizes, jax.devices()[0].device_kind, jax.device_count())).encode())
    return f"{what} on {env_name or 'an environment'} {mark:08x}"


@contextmanager
def announced(name: str, say: Callable[[str], None]) -> Iterator[None]:
    """Prints what the block compiles and how long that took last time, and keeps the new time if it does not fail."""
    say(announcement(name))
    started = time.perf_counter()
    yield
    remember(name, time.perf_counter() - started)


def announcement(name: str) -> str:
    """What to say before the program of this name is compiled."""
    seconds = _read().get(name)
    known = "no program like it is known here" if seconds is None else f"last time it took {seconds:.1f} s"
    return f"compiling {name.rpartition(' ')[0]}: {known}"


def remember(name: str, seconds: float) -> None:
    """Keeps how long the program took; nothing is kept where there is no cache, or it cannot be written."""
    if (path := _path()) is None:
        return
    kept = {key: value for key, value in _read().items() if key != name}
    kept = dict([*kept.items(), (name, round(seconds, 2))][-MOST:])
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(kept))
        temporary.replace(path)
    except OSError:
        return


def _path() -> Path | None:
    directory = jax.config.jax_compilation_cache_dir  # pyright: ignore[reportAttributeAccessIssue] (made by JAX)
    return Path(directory).parent / FILE if directory else None


def _read() -> dict[str, float]:
    """What is kept; nothing where it cannot be read."""
    path = _path()
    try:
        found = json.loads(path.read_text()) if path else {}
        return {name: float(seconds) for name, seconds in found.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


__all__ = ["announced", "announcement", "program_name", "remember"]
