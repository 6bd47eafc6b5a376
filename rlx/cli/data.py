"""Data that algorithms learn from, as commands are given it, and `rlx data`, which exchanges it with Minari."""

import dataclasses
from pathlib import Path
from typing import Any, Literal

import tyro

from rlx.cli.options import parse_options
from rlx.data.demonstrations import load, save
from rlx.data.exchange import from_minari, to_minari
from rlx.data.steps import columns
from rlx.env import Env
from rlx.envs.gymnasium_spaces import to_gymnasium
from rlx.envs.registry import full_name
from rlx.run.job import described
from rlx.run.saved import environment
from rlx.run.storage import naming, reserved


def given_data(file: Path | None, env: Env) -> dict[str, Any]:
    """The fields of a `Job` about the data in a file; none without a file.

    Raises:
        ValueError: for a file that is none of demonstrations, or that does not fit the environment.
    """
    if file is None:
        return {}
    demonstrations = load(file)
    data = columns(env, demonstrations)
    return {"data": data, "data_about": described(data, str(file.resolve()), demonstrations.about["env"])}


def saved_data(saved: dict[str, Any], env: Env) -> dict[str, Any]:
    """The same of a run, from its `config.json`; none where it learned from none.

    Raises:
        ValueError: where the file is gone, or has become another.
    """
    if "data" not in saved:
        return {}
    found = given_data(Path(saved["data"]["file"]), env)
    check_same(saved, found["data_about"])
    return found


def check_same(saved: dict[str, Any], now: dict[str, Any] | None) -> None:
    """Raises ValueError where the data is not that of the run whose `config.json` this is."""
    before = saved.get("data")
    if (before or {}).get("checksum") != (now or {}).get("checksum"):
        was, given = (x["file"] if x else "no data" for x in (before, now))
        raise ValueError(f"the run learned from {was} and the data in {given} is not the same: give --data of that")


def in_words(data: dict[str, Any]) -> str:
    """What is said of the data of a run."""
    return (
        f"{Path(data['file']).name}, {data['episodes']:,} episodes of {data['env']}, {data['steps']:,} steps, "
        f"mean return {data['mean_return']:.1f}"
    )


@dataclasses.dataclass(frozen=True)
class DataOptions:
    """Write a local dataset of Minari as a file of demonstrations, or the other way round."""

    what: tyro.conf.Positional[Literal["import", "export"]]
    """Whether a dataset is imported or a file is exported."""
    source: tyro.conf.Positional[str]
    """Name of the dataset to import, such as pendulum/noisy-v0, or file of demonstrations to export."""
    env: str = ""
    """Name of the environment of rlx that an imported dataset is of."""
    output: Path | None = None
    """File to write in an import, .npz."""
    name: str = ""
    """Name of the dataset to write in an export, such as pendulum/noisy-v0."""


def data(arguments: list[str]) -> None:
    """`rlx data import` and `rlx data export`."""
    options = parse_options(DataOptions, arguments, "rlx data")
    (_import if options.what == "import" else _export)(options)


def _import(options: DataOptions) -> None:
    if options.output is None or not options.env or options.name:
        raise ValueError("rlx data import NAME needs --env ENV and --output FILE.npz, and nothing else")
    if options.output.suffix != ".npz":
        raise ValueError(f"--output {options.output}: the name has to end in .npz")
    name = full_name(options.env)
    shown = from_minari(options.source, name)
    columns(environment(name, {}, {}), shown)  # has its say on shapes and bounds
    with reserved(options.output), naming(options.output, lambda: "the dataset is as it was"):
        save(options.output, shown)
    print(f"{options.output}: {len(shown.ends)} episodes, {len(shown.reward):,} steps, of {name}")


def _export(options: DataOptions) -> None:
    if not options.name or options.env or options.output is not None:
        raise ValueError("rlx data export FILE needs --name NAME, such as pendulum/noisy-v0, and nothing else")
    shown = load(Path(options.source))
    env = environment(*(shown.about[name] for name in ("env", "env_options", "env_params")))
    to_minari(shown, options.name, to_gymnasium(env.observation_space), to_gymnasium(env.action_space))
    print(f"{options.name}: {len(shown.ends)} episodes, {len(shown.reward):,} steps")
