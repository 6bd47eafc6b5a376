"""Owners of directories and files, and errors of a full disk in words.

A run directory has one owner: the process that made it, or that resumes it. The owner holds a lock on the directory
itself (`flock`), which ends with the process however it ends and leaves no file behind.
"""

import contextlib
import errno
import fcntl
import os
import re
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from rlx.devices.hosts import agree, first
from rlx.source import FOLDER

STORAGE = {
    errno.ENOSPC: "no space left on the device",
    errno.EDQUOT: "the disk quota is exceeded",
    errno.EROFS: "the file system is read-only",
    errno.EIO: "the storage device failed",
    errno.EFBIG: "the file would be larger than the limit of this system",
}
NO_LOCKS = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EBADF, errno.EACCES, errno.EPERM}
CLAIM = "claimed.tmp"  # marks an owned directory where the file system has no locks
TRIES = 100


class Full(OSError):
    """Storage that cannot be written, full as a rule; the message says where, why and what is safe."""


@contextlib.contextmanager
def owned(
    directory: Path, *, resume: bool = False, numbered: bool = False, say: Callable[[str], object] = print
) -> Iterator[Path]:
    """A context in which this process alone writes the directory; gives its path.

    Of several processes that train together the first one owns it. What was made here and is empty at the end, as after
    a start that failed, is removed again.

    Args:
        directory: to be made, parents included; one that is there has to be empty, `.tmp` files aside.
        resume: take a directory with what it holds.
        numbered: where it is there already, take the first free one of `directory-2`, `directory-3`, ...
        say: is told where the file system cannot lock.

    Raises:
        ValueError: when another process owns it or it is not empty; in every process.
    """
    path, made, lock, problem = directory, [], None, None
    if first():
        try:
            for _ in range(TRIES):  # until it is still there when it is locked
                path, made = (directory, []) if resume else _made(directory, numbered)
                lock = _lock(path, resume, say)
                if lock is not None:
                    break
            if not resume:
                check_empty(path)
        except (ValueError, OSError) as error:
            problem = str(error)
            _release(lock, path, made)
    problem, name = agree([problem, str(path)])
    if problem is not None:
        raise ValueError(problem)
    try:
        yield Path(str(name))
    finally:
        _release(lock, path, made)


def is_owned(directory: Path) -> bool:
    """Whether a process trains in the directory now; False where that cannot be known."""
    lock = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(lock)
    return False


@contextlib.contextmanager
def reserved(path: Path) -> Iterator[None]:
    """A context in which this process alone writes the file, which is not there before; empty at the end it is removed.

    Raises:
        ValueError: when it is there already, or another process writes it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        _flock(lock, path, "--output")
        if path.stat().st_size:
            raise ValueError(f"{path} is there already: give another --output, or remove it")
        try:
            yield
        finally:
            if path.exists() and not path.stat().st_size:
                path.unlink()
    finally:
        os.close(lock)


def check_empty(directory: Path) -> None:
    """Raises ValueError where something would be overwritten."""
    if directory.exists() and not directory.is_dir():
        raise ValueError(f"{directory} is a file: give another --out")
    if directory.exists() and not _unwritten(directory):
        begun = any((directory / name).exists() for name in ("config.json", "sweep.json", "discovery.json"))
        hint = f"resume it by --resume {directory}, or " if begun else ""
        raise ValueError(f"{directory} is not empty: {hint}give another --out")


def beside(run: Path, name: str, say: Callable[[str], object]) -> Path:
    """Where a command puts a file about a run: into its directory, or into this one where that cannot be written."""
    if os.access(run, os.W_OK):
        return run / name
    elsewhere = Path(f"{run.resolve().name}-{name.replace('/', '-')}")
    say(f"{run} cannot be written: the output goes to {elsewhere.resolve()}, --output says where else")
    return elsewhere


def reason(error: BaseException | None) -> str | None:
    """The fault of the storage that an exception of any library comes from, in words; None for any other exception."""
    seen = []
    while error is not None and error not in seen:
        seen.append(error)
        number = error.errno if isinstance(error, OSError) else None
        if number is None and (found := re.search(r"os_error_code='(\d+)'|\[Errno (\d+)\]", str(error))):
            number = int(found[1] or found[2])
        if number in STORAGE:
            return STORAGE[number]
        if named := [text for code, text in STORAGE.items() if os.strerror(code) in str(error)]:
            return named[0]
        error = error.__cause__ or error.__context__
    return None


@contextlib.contextmanager
def naming(directory: Path, safe: Callable[[], str]) -> Iterator[None]:
    """Turns an error of a full disk within it, raised by any library, into one sentence, with the text of `safe()`.

    Raises:
        Full: where the storage is the reason; every other exception stays as it is.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, Full) or (why := reason(error)) is None:
            raise
        raise Full(f"{directory} cannot be written: {why}; {safe()}") from error


def _unwritten(directory: Path) -> bool:
    """Whether a directory holds only what a process leaves that was killed as it began: temporary files and copies."""
    return all(path.suffix == ".tmp" or path.name == FOLDER for path in directory.iterdir())


def _made(directory: Path, numbered: bool) -> tuple[Path, list[Path]]:
    """A directory and what had to be made for it, outermost first."""
    names = (f"-{i}" for i in range(2, TRIES))
    for suffix in ("", *(names if numbered else ())):
        path = directory.with_name(directory.name + suffix) if suffix else directory
        missing = [parent for parent in path.parents if not parent.exists()][::-1]
        if file := next((parent for parent in path.parents if parent.exists() and not parent.is_dir()), None):
            raise ValueError(f"{path} would be below {file}, which is a file: give another --out")
        if path.is_symlink() and not path.exists():
            raise ValueError(f"{path} is a link to {path.readlink()}, which is not there: give another --out")
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            path.mkdir()
        except FileExistsError:
            if numbered:
                continue
            check_empty(path)
            return path, []
        return path, [*missing, path]
    raise ValueError(f"{directory} and its numbered siblings exist: give --out")


def _lock(path: Path, resume: bool, say: Callable[[str], object]) -> int | None:
    """The descriptor of a locked directory, -1 where there are no locks; None where it has gone."""
    try:
        lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        return None
    try:
        _flock(lock, path, "--out")
        if path.exists() and os.path.samestat(os.fstat(lock), path.stat()):
            return lock
        os.close(lock)
        return None
    except OSError as error:
        os.close(lock)
        if error.errno not in NO_LOCKS:
            raise
    except ValueError:
        os.close(lock)
        raise
    if resume:
        say(f"{path} cannot be locked on this file system: nothing else may resume it at the same time")
        return -1
    try:
        os.close(os.open(path / CLAIM, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    except FileExistsError:
        raise ValueError(
            f"{path} is claimed by another process: if that has ended, remove {path / CLAIM}, or give another --out"
        ) from None
    return -1


def _flock(lock: int, path: Path, flag: str) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ValueError(
            f"{path} is being written by another process: wait until it has ended, or give another {flag}"
        ) from None
    except OSError as error:
        if stat.S_ISDIR(os.fstat(lock).st_mode) or error.errno not in NO_LOCKS:
            raise


def _release(lock: int | None, path: Path, made: list[Path]) -> None:
    """Lets go of a directory, and removes what was made for it where nothing was put there."""
    if lock == -1:
        (path / CLAIM).unlink(missing_ok=True)
    if made and path.exists() and _unwritten(path):
        with contextlib.suppress(OSError):  # of a parent that others use
            for left in path.iterdir():
                shutil.rmtree(left) if left.is_dir() else left.unlink()
            for directory in reversed(made):
                directory.rmdir()
    if lock is not None and lock >= 0:
        os.close(lock)
