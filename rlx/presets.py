"""Tuned settings: a TOML file beside each algorithm, `algos/ppo.toml` beside `algos/ppo.py`.

Every table is named by an environment or a pattern, `["brax/*"]`, and holds Config fields. All tables that match apply,
in the order of the file, later ones over earlier ones; fields that none sets keep the Config's defaults.
"""

import tomllib
from dataclasses import fields
from fnmatch import fnmatchcase
from pathlib import Path
from types import ModuleType
from typing import Any


def settings(algorithm: ModuleType | Path, env_name: str) -> dict[str, Any]:
    """The tuned Config fields of an algorithm (its module, or its TOML file) for a full environment name.

    Empty where there is no file, or nothing in it matches.

    Raises:
        ValueError: when the file names a field that the Config does not have.
    """
    path = algorithm if isinstance(algorithm, Path) else Path(algorithm.__file__).with_suffix(".toml")
    if not path.exists():
        return {}
    found: dict[str, Any] = {}
    for pattern, table in tomllib.loads(path.read_text()).items():
        if fnmatchcase(env_name, pattern):
            found |= table
    return {name: tuple(value) if isinstance(value, list) else value for name, value in found.items()}


def preset(algorithm: ModuleType, env_name: str, **overrides: Any) -> Any:
    """The algorithm's Config with its tuned settings for an environment, and `overrides` on top.

        config = preset(ppo, "gymnax/Pendulum-v1", total_steps=200_000)

    Raises:
        ValueError: for a field that the Config does not have.
    """
    return configure(algorithm.Config, settings(algorithm, env_name) | overrides)


def variant(algorithm: ModuleType, name: str) -> dict[str, Any]:
    """The Config fields that the algorithm's `VARIANTS` has under a name.

    Raises:
        ValueError: for a name that it does not have.
    """
    known = getattr(algorithm, "VARIANTS", {})
    if name not in known:
        there = f"there are {', '.join(known)}" if known else "this algorithm has none"
        raise ValueError(f"unknown variant {name!r}: {there}")
    return dict(known[name])


def configure(config_class: type, values: dict[str, Any]) -> Any:
    """`config_class(**values)`, naming the fields that it does not have. Raises ValueError for these."""
    known = [field.name for field in fields(config_class)]
    unknown = [name for name in values if name not in known]
    if unknown:
        raise ValueError(f"no such field: {', '.join(unknown)}; the Config has {', '.join(known)}")
    return config_class(**values)
