"""Tuned settings: a TOML file beside each algorithm, `algos/ppo.toml` beside `algos/ppo.py`.

Every table is named by an environment or a pattern, `["brax/*"]`, and holds Config fields. All tables that match apply,
in the order of the file, later ones over earlier ones; fields that none sets keep the Config's defaults. A table may be
for several patterns, with spaces between them. One with `published = "SOURCE"` has the settings of that source, as near
as the Config comes to them, with which nothing was trained here. `measured_on = "NAMES"` names the environments of a
pattern for which there is a result. `sizes_of = "NAME"` says that they are those of another algorithm, and not tuned.

Where no table matches, `[defaults.continuous]` or `[defaults.discrete]` applies, by the action space, and where
observations are images `[defaults.image]`, if the file has it. `[defaults.episode]` names fields that are given the
most steps of an episode, where these are known.
"""

import tomllib
import warnings
from dataclasses import fields
from fnmatch import fnmatchcase
from pathlib import Path
from types import ModuleType
from typing import Any

import jax

from rlx.env import Env
from rlx.spaces import Box, parts

NOTES = ("published", "measured_on", "sizes_of")  # what a table says of its fields

# Fields of shipped Configs that had another name in 0.1: files and runs of then are still read.
RENAMED = {"cloning_coef": "imitation_coef", "noise_loss": "predict_noise", "num_samples": "samples_per_action"}


def settings(algorithm: ModuleType | Path, env_name: str) -> dict[str, Any]:
    """The tuned Config fields of an algorithm (its module, or its TOML file) for a full environment name.

    Empty where there is no file, or nothing in it matches.

    Raises:
        ValueError: when the file names a field that the Config does not have.
    """
    found = {name: value for table in _tables(algorithm, env_name) for name, value in table.items()}
    return {n: tuple(v) if isinstance(v, list) else v for n, v in found.items() if n not in NOTES}


def origin(algorithm: ModuleType | Path, env_name: str) -> str:
    """What is said of these settings: tuned for the environment, of a pattern and measured on others, or published."""
    if source := published(algorithm, env_name):
        return f"published settings, not tried here ({source})"
    patterns, table = _matching(algorithm, env_name)[-1]
    if other := table.get("sizes_of"):
        return f"sizes of {other}, not tuned for this algorithm"
    measured_on = table.get("measured_on", "")
    if env_name in (*patterns.split(), *measured_on.split()):
        return "tuned settings"
    return f"settings for {patterns}, measured on {measured_on or 'none of them'}"


def defaults(algorithm: ModuleType | Path, env: Env) -> tuple[dict[str, Any], str]:
    """The Config fields for an environment that no table is for, and what kind of environment they are for.

    Empty where the file has none for the kind.
    """
    leaves = lambda space: jax.tree.leaves(parts(space))
    kind = "continuous" if any(isinstance(space, Box) for space in leaves(env.action_space)) else "discrete"
    tables = _file(algorithm).get("defaults", {})
    images = [space for space in leaves(env.observation_space) if len(getattr(space, "shape", ())) == 3]
    if images and "image" in tables:
        kind = "image"
    title = "image observations" if kind == "image" else f"{kind} actions"
    return {n: tuple(v) if isinstance(v, list) else v for n, v in tables.get(kind, {}).items()}, title


def of_episode(algorithm: ModuleType | Path, env: Env) -> dict[str, int]:
    """The Config fields that are the most steps of an episode; empty where these are not known, or no field is."""
    return {} if env.horizon is None else dict.fromkeys(episode_fields(algorithm), env.horizon)


def episode_fields(algorithm: ModuleType | Path) -> tuple[str, ...]:
    """The Config fields that have to hold a whole episode."""
    return tuple(_file(algorithm).get("defaults", {}).get("episode", {}).get("fields", ()))


def published(algorithm: ModuleType | Path, env_name: str) -> str:
    """The source of these settings where they were taken over and not tried, by the last table; else an empty text."""
    return next((table.get("published", "") for table in reversed(_tables(algorithm, env_name))), "")


def _tables(algorithm: ModuleType | Path, env_name: str) -> list[dict[str, Any]]:
    return [table for _, table in _matching(algorithm, env_name)]


def _matching(algorithm: ModuleType | Path, env_name: str) -> list[tuple[str, dict[str, Any]]]:
    """The tables for an environment with their patterns, in the order of the file."""
    tables = _file(algorithm).items()
    return [(names, table) for names, table in tables if any(fnmatchcase(env_name, name) for name in names.split())]


def _file(algorithm: ModuleType | Path) -> dict[str, Any]:
    path = algorithm if isinstance(algorithm, Path) else Path(algorithm.__file__ or "").with_suffix(".toml")
    try:
        tables = tomllib.loads(path.read_text()) if path.exists() else {}
    except ValueError as error:
        raise ValueError(f"{path} is no TOML file: {error}") from error
    if loose := [name for name, table in tables.items() if not isinstance(table, dict)]:
        raise ValueError(f'{path}: {loose[0]} stands outside of a table: put it under an environment, ["brax/*"]')
    return tables


def preset(algorithm: ModuleType, env_name: str, env: Env | None = None, **overrides: Any) -> Any:
    """The algorithm's Config with its tuned settings for an environment, and `overrides` on top.

        config = preset(ppo, "gymnax/Pendulum-v1", total_steps=200_000)
        config = preset(ppo, "my/Robot", rlx.envs.make("my/Robot"))

    Where there are none for the name, the defaults for the kind of environment that `env` is are taken, if it is given;
    without it the Config's own, which hardly learn continuous control, and a warning says so.

    Raises:
        ValueError: for a field that the Config does not have.
    """
    found = settings(algorithm, env_name)
    if not found and env is not None:
        found = defaults(algorithm, env)[0]
    elif not found and _file(algorithm).get("defaults", {}).keys() - {"episode"}:
        text = f"no tuned settings for {env_name}: give preset the Env too, to start from the defaults of its kind"
        warnings.warn(text, stacklevel=2)
    return configure(algorithm.Config, found | ({} if env is None else of_episode(algorithm, env)) | overrides)


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


def renamed(config_class: type, values: dict[str, Any]) -> dict[str, Any]:
    """The values under the names, and of the kinds, that the Config's fields have now."""
    known = {field.name for field in fields(config_class)}
    if isinstance(values.get("residual"), bool):  # as it was when there was one kind of block
        values = values | {"residual": "simba" if values["residual"] else ""}
    if "drop_degenerate" in values and "masks" in known:  # as it was when there was one mask
        values = dict(values)
        if values.pop("drop_degenerate"):
            values["masks"] = ("degenerate",)
    return {RENAMED[n] if n not in known and RENAMED.get(n) in known else n: value for n, value in values.items()}


def configure(config_class: type, values: dict[str, Any]) -> Any:
    """`config_class(**values)`, naming the fields that it does not have. Raises ValueError for these."""
    known, values = [field.name for field in fields(config_class)], renamed(config_class, values)
    unknown = [name for name in values if name not in known]
    if unknown:
        raise ValueError(f"no such field: {', '.join(unknown)}; the Config has {', '.join(known)}")
    return config_class(**values)
