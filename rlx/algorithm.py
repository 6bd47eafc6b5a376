"""What an algorithm is, and algorithms by name: those that ship, files of one's own, either with another objective."""

import dataclasses
import importlib
import importlib.util
import pkgutil
import re
import sys
import zlib
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import jax
import numpy as np

from rlx import batch_objectives, bonuses, kl_objectives, objectives, source, transforms
from rlx.algorithm_check import check_module
from rlx.messages import unknown_name
from rlx.presets import configure
from rlx.schedules import is_written

FOLDER = "rlx.algos"  # the package of those that ship; imported by name, as those of users are
NAMES = ("AWR", "Clip", "ClipHigher", "DPO", "DualClip", "ForwardKL", "ImportanceWeighted", "LogRatio")
NAMES += ("ReverseKL", "Rollback", "SPO")
OF_BATCHES = ("BAPO", "ClipCov", "DHPO", "DropoutClip", "KLCov")
OBJECTIVES = {name: getattr(objectives, name) for name in NAMES}
OBJECTIVES |= {"KLRegularized": kl_objectives.KLRegularized}
OBJECTIVES |= {name: getattr(batch_objectives, name) for name in OF_BATCHES}
BONUSES = {name: getattr(bonuses, name) for name in ("Counts", "RND")}
# What an algorithm is given beside an objective, by the option that asks for it: the classes, and what gives one.
GIVEN = {"bonus": (BONUSES, bonuses.with_bonus), "transform": (transforms.TRANSFORMS, transforms.with_transform)}
LEARNED = ".npz"  # how the file of a learned objective or rule ends
RULES = {"evolved": Path(__file__).parent / "meta" / "evolved.npz"}  # update rules that ship


class Algorithm(Protocol):
    """A module with these names; `docs/guides/own-algorithm.md` has the rules and `rlx.check_algorithm` proves them.

    `Config` has the static field `total_steps` and the property `steps_per_update`, and `init_steps` where `init` takes
    steps that belong to the run. A State counts its updates in `num_updates`. `check(config, env)`, which raises
    ValueError for settings that do not fit, and `VARIANTS` are optional. Where the policy remembers, there is
    `memory(config, env, num)` too, and `act` has another argument and result, see `rlx.policy`.
    """

    Config: type

    def init(self, config: Any, env: Any, key: jax.Array) -> Any:
        """The State before the first update."""
        ...

    def update(self, config: Any, env: Any, state: Any, **kwargs: Any) -> tuple[Any, dict[str, jax.Array]]:
        """The State after one update, and its metrics."""
        ...

    def act(
        self, config: Any, env: Any, state: Any, obs: Any, key: jax.Array, deterministic: bool = False
    ) -> tuple[Any, Any]:
        """Actions for observations `[N, ...]`, and what the loss needs of them."""
        ...


def shipped() -> Path:
    """The folder of the algorithms that ship with rlx."""
    spec = importlib.util.find_spec(FOLDER)
    assert spec is not None
    assert spec.submodule_search_locations is not None  # it is a package
    return Path(spec.submodule_search_locations[0])


def algorithms() -> list[str]:
    """Names of the algorithms that ship with rlx."""
    return sorted(module.name for module in pkgutil.iter_modules([str(shipped())]))


def load_algorithm(name: str) -> ModuleType:
    """The algorithm `name`: one that ships (`ppo`, `rlx.algos.ppo`), or the path of a file; `ppo+SPO` has an objective.

    Raises:
        ValueError: unknown name, naming the closest; or a file that is not an algorithm.
    """
    base, given = split_name(name)
    if given:
        return with_named(load_algorithm(base), given)
    short = name.removeprefix("rlx.algos.")
    if short in algorithms():
        return importlib.import_module(f"{FOLDER}.{short}")
    path = Path(name)
    if path.suffix != ".py" or not path.exists():
        raise ValueError(unknown_name("algorithm", name, algorithms()))
    spec = importlib.util.spec_from_file_location(f"rlx.loaded.{path.stem}", path)
    assert spec is not None  # it ends with .py
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    content = path.read_bytes()
    vars(module)["__sources__"] = {path.name: content}
    try:  # what the run keeps a copy of is what is run: not what Python has cached of an earlier second
        with source.importing(path.parent):
            exec(compile(content, str(path), "exec", dont_inherit=True), vars(module))
            vars(module)["__sources__"] |= source.beside(path)
    except Exception as error:  # whatever a file raises that is not finished
        raise ValueError(f"{path} cannot be imported: {type(error).__name__}: {error}") from error
    check_module(module, str(path))
    return module


def named_algorithm(name: str) -> tuple[ModuleType, str]:
    """The algorithm, see `load_algorithm`, and the name to find it by from anywhere."""
    algorithm = load_algorithm(name)
    shipped = algorithm.__name__.startswith("rlx.algos.")
    return algorithm, algorithm.__name__ if shipped else str(Path(name).resolve())


def name_of(algorithm: ModuleType) -> str:
    """The name that `load_algorithm` finds a module by: its own where it ships, else the path of its file."""
    if algorithm.__name__.startswith(f"{FOLDER}."):
        return algorithm.__name__
    return "".join([str(Path(algorithm.__file__ or "").resolve()), *algorithm.__name__.partition("+")[1:]])


def split_name(name: str) -> tuple[str, str]:
    """`ppo+SPO+RND` as `ppo` and `SPO+RND`: an objective, by its name or its file, a bonus, a transform."""
    base, _, last = name.rpartition("+")
    if kind_of(last) == "objective" and last not in OBJECTIVES and not (base and last.endswith(LEARNED)):
        return name, ""
    base, others = split_name(base)
    return base, f"{others}+{last}" if others else last


def kind_of(name: str) -> str:
    """What a name is given as: objective, which files are too, bonus or transform."""
    return next((kind for kind, (known, _) in GIVEN.items() if name in known), "objective")


def load_objective(name: str) -> Any:
    """The class of a name, or what is in a file of a learned one."""
    return importlib.import_module("rlx.meta.saved").load(Path(name)) if name.endswith(LEARNED) else OBJECTIVES[name]


def with_named(algorithm: ModuleType, given: str) -> ModuleType:
    """The algorithm with the objective of this name, the objective or rule of this file, or several: `SPO+RND`."""
    for name in given.split("+"):
        if (kind := kind_of(name)) in GIVEN:
            known, give = GIVEN[kind]
            algorithm = give(algorithm, known[name])
            continue
        before, found = algorithm, load_objective(name)
        if not name.endswith(LEARNED):
            algorithm = objectives.with_objective(algorithm, found)
        else:
            rules: Any = importlib.import_module("rlx.meta.rules")
            give = rules.with_rule if isinstance(found, rules.LPG) else objectives.with_objective
            algorithm, file = give(algorithm, found), Path(name)
            vars(algorithm)["__sources__"] = getattr(before, "__sources__", {}) | {file.name: file.read_bytes()}
    return algorithm


def saved_algorithm(directory: Path, saved: dict[str, Any], whole: bool = True) -> ModuleType:
    """The algorithm of a run or a sweep, with what it is given, such as an objective, where `whole`.

    Where its files have become others since, it is made of the copies in the directory, which is said.
    """
    changed = source.changes(saved["algorithm"], saved)
    for file, what in changed.items():
        print(f"{file} {what} since {directory} began: its copy in {directory / source.FOLDER} is used")
    base, given = source.kept(directory, saved) if changed else split_name(saved["algorithm"])
    return with_named(load_algorithm(base), given) if whole and given else load_algorithm(base)


def saved_config(algorithm: ModuleType, saved: dict[str, Any]) -> Any:
    """The Config that a run directory was made with."""
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in saved["config"].items()}
    for field in dataclasses.fields(algorithm.Config):
        if type(field.default) is float and field.name in values and not is_written(values[field.name]):
            values[field.name] = float(values[field.name])  # infinity is written as "inf"
    return configure(algorithm.Config, values)


def preset_file(algorithm: ModuleType) -> Path:
    """The TOML file beside an algorithm, else the one that ships for an algorithm of the same name."""
    beside = Path(algorithm.__file__ or "").resolve().with_suffix(".toml")
    return beside if beside.exists() else shipped() / beside.name


def learned(algorithm: ModuleType) -> dict[str, int]:
    """A checksum of the algorithm's objective, where that is of a file, which may be written again; else nothing."""
    return {"objective": checksum(algorithm.learned)} if hasattr(algorithm, "learned") else {}


def checksum(tree: Any) -> int:
    """CRC-32 of all numbers of a pytree."""
    return zlib.crc32(b"".join(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)))


def short_name(algorithm_name: str) -> str:
    """`ppo` for `rlx.algos.ppo` and for `/somewhere/ppo.py`; `ppo+SPO` with another objective, by its name or file."""
    base, _, given = algorithm_name.rpartition("+")
    if given.endswith(LEARNED):
        return f"{short_name(base)}+{Path(given).stem}"
    if kind_of(given) in GIVEN:
        return f"{short_name(base)}+{given}"
    return re.sub(r"\.py(?=\+|$)", "", Path(algorithm_name.removeprefix("rlx.algos.")).name)
