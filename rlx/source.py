"""The source of a run's algorithm: hashes that tell versions apart, and copies that a run keeps of files of its own.

An algorithm's name is that of a module that ships, `rlx.algos.ppo`, or the path of a file; after a `+` comes an
objective, by its name or as the file of a learned one. The copies are in `source/` of the run directory. The modules
that a file imports from its own folder are kept with it.
"""

import hashlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

FOLDER = "source"


def parts(name: str) -> list[str]:
    """`/a/mine.py+/b/lpo.npz+RND` as its algorithm and what is given to it: an objective, a bonus, a transform."""
    base, plus, last = name.rpartition("+")
    if plus and (last.endswith(".npz") or not last.endswith(".py")):
        return [*parts(base), last]
    return [name]


def files(name: str) -> list[Path]:
    """The files of one's own in an algorithm's name: its code, a learned objective."""
    return [Path(part) for part in parts(name) if part.endswith((".py", ".npz"))]


@contextmanager
def importing(folder: Path) -> Iterator[None]:
    """Imports in the block find the modules of `folder` first, as those of a script do, and read them anew."""
    folder, bytecode = folder.resolve(), sys.dont_write_bytecode
    names = {path.stem for path in folder.glob("*.py")}
    others = {name: sys.modules[name] for name in names & sys.modules.keys() if _is_own(sys.modules[name])}
    for name in others:
        del sys.modules[name]
    sys.path.insert(0, str(folder))
    sys.dont_write_bytecode = True
    try:
        yield
    finally:
        sys.dont_write_bytecode = bytecode
        sys.path.remove(str(folder))
        for name in others:
            sys.modules[name] = others[name]


def beside(file: Path) -> dict[str, bytes]:
    """The content of the modules from the folder of an algorithm's file that are imported, by the names of files."""
    folder, found = file.resolve().parent, {}
    for module in list(sys.modules.values()):
        path = _file(module)
        if path is not None and path.parent == folder and path.suffix == ".py" and path != file.resolve():
            found[path.name] = path.read_bytes()
    return found


def _is_own(module: ModuleType) -> bool:
    """Whether a module is a file of one's own: neither of a package nor Python's."""
    path, packages = _file(module), ("site-packages", "dist-packages", os.path.dirname(os.__file__))
    return path is not None and not any(part in str(path) for part in packages)


def _file(module: ModuleType) -> Path | None:
    file = getattr(module, "__file__", None)
    return Path(file).resolve() if file and "." not in module.__name__ and Path(file).exists() else None


def read(name: str, algorithm: ModuleType) -> dict[str, bytes]:
    """The content of the files of one's own by their names, as it was loaded where the module says so."""
    loaded = getattr(algorithm, "__sources__", {})
    return loaded | {path.name: path.read_bytes() for path in files(name) if path.name not in loaded and path.exists()}


def hashes(name: str, kept: dict[str, bytes]) -> dict[str, str]:
    """SHA-256 of each of the algorithm's files by its name; of one that ships that of its module."""
    found = {file: _hash(content) for file, content in kept.items()}
    base = parts(name)[0]
    if base.startswith("rlx.algos.") and (spec := find_spec(base)) is not None:
        found[f"{base.removeprefix('rlx.algos.')}.py"] = _hash(Path(spec.origin or "").read_bytes())
    return found


def package() -> str:
    """SHA-256 of all of rlx's own code and data that a run may depend on: every file, by its name in the package."""
    found = hashlib.sha256()
    for name in ("rlx", "rlx.algos", "rlx.envs"):
        spec = find_spec(name)
        folder = Path(spec.origin or "").parent if spec is not None else Path()
        inner = {"rlx": ("algos", "envs")}.get(name, ())  # where it is installed these are below it
        paths = (path for pattern in ("*.py", "*.toml", "*.xml") for path in folder.rglob(pattern))
        for path in sorted(path for path in paths if path.relative_to(folder).parts[0] not in inner):
            found.update(f"{name}/{path.relative_to(folder).as_posix()}\n{_hash(path.read_bytes())}\n".encode())
    return found.hexdigest()


def keep(directory: Path, kept: dict[str, bytes]) -> None:
    """Writes the copies into a run directory; a copy of another content gets its hash into its name and stays."""
    for file, content in kept.items():
        path = directory / FOLDER / file
        path.parent.mkdir(exist_ok=True)
        if path.exists() and (before := path.read_bytes()) != content:
            path.replace(path.with_name(f"{path.stem}-{_hash(before)[:8]}{path.suffix}"))
        partial = path.with_name(f"{file}.tmp")
        partial.write_bytes(content)
        partial.replace(path)


def changes(name: str, saved: dict[str, Any], loaded: ModuleType | None = None) -> dict[Path, str]:
    """The files of one's own that a run knows and that have become others since: `has changed` or `is gone`."""
    known, found, base = saved.get("source", {}), {}, Path(parts(name)[0])
    now = {} if loaded is None else read(name, loaded)
    own = {path.name: path for path in files(name)}
    imported = [base.parent / file for file in known if base.suffix == file[-3:] == ".py" and file not in own]
    for path in [*own.values(), *imported]:
        if path.name in known and path.name not in now and not path.exists():
            found[path] = "is gone"
        elif path.name in known and _hash(now.get(path.name) or path.read_bytes()) != known[path.name]:
            found[path] = "has changed"
    return found


def kept(directory: Path, saved: dict[str, Any]) -> tuple[str, str]:
    """The names of a run's algorithm and of what is given to it, with its copies in place of the files of one's own.

    Raises:
        ValueError: when a copy is not what the run began with, or is missing.
    """
    found, known = [], saved.get("source", {})
    for part in parts(saved["algorithm"]):
        path = directory / FOLDER / Path(part).name
        own = part.endswith((".py", ".npz")) and path.name in known
        if own and (not path.exists() or _hash(path.read_bytes()) != known[path.name]):
            what = "has changed" if path.exists() else "is missing"
            raise ValueError(f"{path}, the run's copy of its source, {what}: put back what the run began with")
        found.append(str(path.resolve()) if own else part)
    return found[0], "+".join(found[1:])


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
