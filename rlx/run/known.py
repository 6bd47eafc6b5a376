"""Programs of the command line that are found again by what they are, without tracing them.

JAX keeps compiled programs, and finds one by its operations: for that they are traced and lowered again at each start,
which takes a second for small networks and many for physics. Here a program is found by what its operations come from:

- the algorithm that ships, the environment's name and options, the static settings, and the kinds of all arguments;
- the device, JAX's settings and flags, and the processor;
- every file that was imported until it was compiled, and those that ship beside the code: their sizes and times.

Whatever differs, it is traced as ever. So are algorithms, objectives and environments in files of one's own, programs
of several devices, and all that is started from Python, where anything may have been replaced by hand. A program is
kept only where no file has changed since the process began.

It is for CPUs. `RLX_COMPILER=off` turns it off, and versions of jaxlib that `TESTED` does not list are left alone.
"""

import hashlib
import os
import pickle
import platform
import re
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import serialize_executable

import rlx
from rlx import source
from rlx.devices import compiler
from rlx.devices.sharding import num_blocks
from rlx.hosted import is_hosted
from rlx.run.job import Job
from rlx.stopping import Stopping

TESTED = ("0.10.2",)
BEGAN = time.time()
SLACK = 2.0  # seconds by which the clock of a file system may be behind
MOST_BYTES = 1 << 30  # of all programs that are kept; those that were used last stay
PLAIN = (bool, int, float, str, type(None))
UNSEEN = ("playground",)  # suites that read files which are no part of a package
# Settings of JAX that change no program, by parts of their names.
NO_MATTER = ("cache", "log", "traceback", "profil", "dump", "explain", "check_tracer", "distributed", "coordinat")


@dataclass(frozen=True)
class Program:
    """A program that was kept, or is to be: `compile` loads it, or has it traced and compiled where that is not so."""

    path: Path | None  # of what is kept; None where nothing is to be
    into: Any  # the structure of its arguments
    lower: Callable[[], Any]

    def compile(self) -> Any:
        if self.path is not None and self.path.exists():
            try:
                return load(self.path, self.into)
            except Exception:  # whatever is wrong with what was kept, it can be made again
                self.path.unlink(missing_ok=True)
        lowered, before = self.lower(), hits()
        compiled = lowered.compile()
        # What JAX found in its own cache lacks the names of its functions, and would not run once it is kept.
        if self.path is not None and hits() == before and compiled.in_tree == self.into and alone(lowered.as_text()):
            keep(self.path, compiled)
        return compiled


class Known:
    """The programs of a job that `text` describes, below `root`; nothing is known, and nothing kept, without them.

    A program is kept by its operations. For a job it is kept which these are, and of which files: so a file that is
    changed and changed back, or changes nothing of a program, costs one start with tracing.
    """

    def __init__(self, root: Path | None, text: str | None):
        self.root = None if text is None else root
        self.about, self.names, self.shapes_kept = None, {}, None
        if root is None or text is None:
            return
        self.about = root / "jobs" / digest(text)
        kept = read(self.about)
        if kept is not None and unchanged(kept["files"]):
            self.names, self.shapes_kept = kept["names"], kept["shapes"]
        if not all(name in self.names and self._path(self.names[name]).exists() for name in ("init", "step")):
            self.names, self.shapes_kept = {}, None

    @property
    def everything(self) -> bool:
        """Whether all that a run needs at once is known."""
        return self.shapes_kept is not None

    def shapes(self, make: Callable[[], Any]) -> Any:
        """What `make` returns, shapes of a State: as it was returned before, where that is known."""
        return make() if self.shapes_kept is None else pickle.loads(self.shapes_kept)

    def program(self, what: str, lower: Callable[[], Any], *args: Any, **keywords: Any) -> Program:
        """What `lower` returns, to be compiled, or what is known of it; `args` are those that are not static."""
        into = jax.tree.structure((args, keywords))
        if self.root is None:
            lowered = lower()
            return Program(None, into, lambda: lowered)
        if self.everything and what in self.names:
            return Program(self._path(self.names[what]), into, lower)
        lowered = lower()
        kinds = jax.tree.leaves(lowered.args_info)  # also of arguments that are not used: they are looked at
        around = (repr(kinds), without_addresses(into), without_addresses(jax.tree.structure(lowered.out_info)))
        self.names[what] = digest((lowered.as_text(), around, machine(), settings_of_jax(), version("jaxlib")))
        return Program(self._path(self.names[what]), into, lambda: lowered)

    def traced(self, shapes: Any) -> None:
        """Keeps shapes of a State and what was traced, now that all is, and of which files it is."""
        if self.about is None or self.everything or (files := imported()) is None:
            return
        try:
            about = {"files": files, "names": self.names, "shapes": pickle.dumps(shapes)}
        except Exception:  # a State may hold what cannot be written
            return
        write(self.about, about)

    def _path(self, name: str) -> Path:
        assert self.root is not None
        return self.root / "programs" / name


def load(path: Path, into: Any) -> Any:
    """A program that was kept."""
    kept = pickle.loads(path.read_bytes())
    os.utime(path)  # it was used
    find_lapack()
    out = jax.tree.structure(pickle.loads(kept["out"]))
    return serialize_executable.deserialize_and_load(kept["program"], into, out, execution_devices=jax.devices()[:1])


def keep(path: Path, compiled: Any) -> None:
    """Keeps a compiled program, unless it holds what cannot be written, such as a function of the host."""
    try:
        program, _, out = serialize_executable.serialize(compiled)
        kept = {"program": program, "out": pickle.dumps(jax.tree.unflatten(out, [0] * out.num_leaves))}
    except Exception:
        return
    write(path, kept)
    make_room(path.parent)


HITS = threading.local()


def hits() -> int:
    """How many programs this thread has found in JAX's own cache."""
    listen()
    return getattr(HITS, "num", 0)


@cache
def listen() -> None:
    """Has JAX tell when it finds a program in its cache, in the thread that compiles."""

    def heard(event: str, **_: Any) -> None:
        if event == "/jax/compilation_cache/cache_hits":
            HITS.num = getattr(HITS, "num", 0) + 1

    jax.monitoring.register_event_listener(heard)


def alone(text: str) -> bool:
    """Whether a lowered program calls nothing that has to be made ready in each process, but for LAPACK."""
    return all(name.startswith("lapack_") for name in re.findall(r"custom_call @([\w.]+)", text))


@cache
def find_lapack() -> None:
    """Has JAX find the functions of LAPACK, which it does when it lowers one: a loaded program calls them at once."""
    jax.jit(jnp.linalg.cholesky).lower(jax.ShapeDtypeStruct((2, 2), jnp.float32))


def known(job: Job, rule: Stopping | None, length: int) -> Known:
    """What is known of the programs of a job: chunks of `length` updates, with a rule that stops it or without."""
    root = programs_folder()
    text = None if root is None else described(job, rule, length)
    return Known(root, text)


def programs_folder() -> Path | None:
    """Where programs are kept, beside JAX's; None where they are not."""
    directory = jax.config.jax_compilation_cache_dir  # pyright: ignore[reportAttributeAccessIssue] (made by JAX)
    tested = version("jaxlib") in TESTED and jax.default_backend() == "cpu" and os.environ.get(compiler.SWITCH) != "off"
    return Path(directory).parent / "known" if directory and tested and from_shell() else None


def from_shell() -> bool:
    """Whether this process is the command `rlx`, in which nothing was replaced by hand."""
    program = Path(sys.argv[0])
    return program.name in ("rlx", "rlx.exe") or program == Path(rlx.__file__).parent / "__main__.py"


def described(job: Job, rule: Stopping | None, length: int) -> str | None:
    """All that fixes the programs of a job but for the files that they come from; None where that cannot be said."""
    name, env, options = job.env_name, job.env, job.env_options
    if name is None or name.endswith(".py") or ".py:" in name or name.split("/")[0] in UNSEEN or is_hosted(env):
        return None
    if source.files(job.algorithm_name) or num_blocks() > 1 or jax.process_count() > 1 or job.after is not None:
        return None
    if not all(isinstance(value, PLAIN) and not is_file(value) for value in options.values()):
        return None
    told = (job.config, env, job.data, rule)
    kinds = [(leaf.shape, str(leaf.dtype), leaf.weak_type) for leaf in map(jax.typeof, jax.tree.leaves(told))]
    structure = without_addresses(jax.tree.structure(told))
    parts = (job.algorithm_name, name, sorted(options.items()), sorted(job.env_params), structure, kinds, length)
    return repr((parts, job.eval_episodes, machine(), compiler.active(), settings_of_jax(), installed()))


def without_addresses(structure: Any) -> str:
    """A structure in words, in which functions and objects are named without their place in memory."""
    return re.sub(r" at 0x[0-9a-f]+", "", str(structure))


def machine() -> tuple:
    """What a program is compiled for."""
    device = jax.devices()[0]
    return device.platform, device.device_kind, device.client.platform_version, os.cpu_count(), processor()


def is_file(value: Any) -> bool:
    """Whether an option names a file, or is the text of one."""
    return isinstance(value, str) and (value.lstrip().startswith("<") or Path(value).exists())


def processor() -> str:
    """What the processor can do, for which programs are compiled."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())


def settings_of_jax() -> list[tuple[str, str]]:
    """JAX's settings and flags, but for those that change no program."""
    values = jax.config.values  # pyright: ignore[reportAttributeAccessIssue] (made by JAX)
    found = {name: repr(value) for name, value in values.items() if not any(part in name for part in NO_MATTER)}
    return sorted((found | {name: os.environ.get(name, "") for name in ("XLA_FLAGS", "LIBTPU_INIT_ARGS")}).items())


def installed() -> list[str]:
    """The distributions that this process may import from, by name and version."""
    folders = [Path(folder) for folder in sys.path if folder.endswith(("site-packages", "dist-packages"))]
    return [platform.python_version(), *sorted(p.name for folder in folders for p in folder.glob("*.dist-info"))]


def imported() -> dict[str, tuple[int, int]] | None:
    """Files that programs come from, with their sizes and times: those imported so far, and what ships beside them.

    None where one has changed since the process began, so that what was imported may be another version.
    """
    modules = [getattr(module, "__file__", None) for module in list(sys.modules.values())]
    rooms = [sys.modules[name] for name in ("rlx", "rlx.envs", "rlx.algos") if name in sys.modules]
    shipped = [path for room in rooms for folder in room.__path__ for path in assets(Path(folder))]
    files = {}
    for name in sorted({*filter(None, modules), *shipped}):
        if (stamp := stamped(name)) is not None:
            files[name] = stamp
    newest = max(time_of for _, time_of in files.values())
    return None if newest / 1e9 > BEGAN - SLACK else files


def assets(folder: Path) -> list[str]:
    """Files of a folder and of those in it that are no code."""
    kinds = (".xml", ".toml", ".npz", ".json")
    return [str(path) for path in folder.rglob("*") if path.suffix in kinds] if folder.exists() else []


def stamped(name: str) -> tuple[int, int] | None:
    """Size and time of a file; None where there is none."""
    try:
        found = os.stat(name)
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns


def unchanged(files: dict[str, tuple[int, int]]) -> bool:
    """Whether all files are what they were."""
    return all(stamped(name) == stamp for name, stamp in files.items())


def digest(what: Any) -> str:
    """A short name of what has a repr that says it all."""
    return hashlib.sha256(repr(what).encode()).hexdigest()[:24]


def read(path: Path) -> Any:
    """What was kept in a file; None where it cannot be read."""
    try:
        return pickle.loads(path.read_bytes())
    except Exception:  # written by another version, or half of it by a disk that is full
        return None


def write(path: Path, what: Any) -> None:
    """Keeps something in a file, whole or not at all."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(pickle.dumps(what))
        temporary.replace(path)
    except OSError:
        return


def make_room(root: Path, most: int = MOST_BYTES) -> None:
    """Removes the files that were used least recently, until the others are small enough together."""
    found = []
    for path in root.glob("*"):
        if (stamp := stamped(str(path))) is not None:
            found.append((stamp[1], stamp[0], path))
    total = sum(size for _, size, _ in found)
    for _, size, path in sorted(found):
        if total <= most:
            return
        path.unlink(missing_ok=True)
        total -= size


__all__ = ["Known", "Program", "known"]
