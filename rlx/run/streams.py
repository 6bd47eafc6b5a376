"""Standard output and error that may go away, and a home that may be missing: neither ends a run."""

import atexit
import contextlib
import importlib.util
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any


class Stream:
    """A text stream whose end is no error: what cannot be written any more is dropped, and `say` is told once.

    Characters that its encoding does not have become question marks. `stream` may be None, which is a closed one.
    """

    def __init__(self, stream: Any, say: Callable[[str], object] = lambda text: None):
        self.stream, self.say, self.lost = stream, say, stream is None

    def write(self, text: str) -> int:
        with self._lasting():
            try:
                self.stream.write(text)
            except UnicodeEncodeError:
                encoding = self.stream.encoding or "ascii"
                self.stream.write(text.encode(encoding, "replace").decode(encoding))
        return len(text)

    def flush(self) -> None:
        with self._lasting():
            self.stream.flush()

    def isatty(self) -> bool:
        found = False
        with self._lasting():
            found = self.stream.isatty()
        return found

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    @contextlib.contextmanager
    def _lasting(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError, AttributeError) as error:
            if self.lost:
                return
            self.lost = True
            name = getattr(self.stream, "name", "the output")
            with contextlib.suppress(OSError, ValueError):  # what is still in its buffer would fail again at exit
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self.stream.fileno())
                os.close(nowhere)
            self.say(f"rlx: {name} cannot be written any more ({error}): going on without it")


@contextlib.contextmanager
def lasting() -> Iterator[None]:
    """A context in which a closed or broken standard output or error raises nothing."""
    before = sys.stdout, sys.stderr
    sys.stderr = Stream(before[1])
    sys.stdout = Stream(before[0], lambda text: print(text, file=sys.stderr))
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        sys.stdout, sys.stderr = before


@contextlib.contextmanager
def drawing_to_files() -> Iterator[None]:
    """A context in which libraries that are imported draw into files, whatever a notebook's environment names."""
    before = os.environ.get("MPLBACKEND")
    os.environ["MPLBACKEND"] = "Agg"
    try:
        yield
    finally:
        del os.environ["MPLBACKEND"]
        if before is not None:
            os.environ["MPLBACKEND"] = before


def importing_matplotlib() -> contextlib.AbstractContextManager:
    """A context in which matplotlib can be imported also where MPLBACKEND names a module that is not installed."""
    kind, module, name = os.environ.get("MPLBACKEND", "").partition("module://")
    try:
        there = kind or not module or importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        there = False
    return contextlib.nullcontext() if there else drawing_to_files()


def find_home() -> None:
    """Gives this process a temporary home where it has none: libraries look for theirs when they are imported."""
    try:
        Path.home()
    except RuntimeError:
        os.environ["HOME"] = tempfile.mkdtemp(prefix="home-")
        atexit.register(shutil.rmtree, os.environ["HOME"], ignore_errors=True)


def cache_folder() -> Path | None:
    """Where compiled programs are kept for the next start; None where nothing can be written there."""
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rlx" / "jax"
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):
        return None
    return folder if os.access(folder, os.W_OK) else None
