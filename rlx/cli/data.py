"""`rlx data`: files of demonstrations, datasets of Minari, and the best episodes."""

import dataclasses
from pathlib import Path
from typing import Literal

import tyro

from rlx.cli.options import parse_options
from rlx.data.demonstrations import best, load, save
from rlx.data.exchange import from_minari, to_minari
from rlx.data.steps import columns
from rlx.envs.gymnasium_spaces import to_gymnasium
from rlx.envs.registry import full_name
from rlx.run.saved import environment
from rlx.run.storage import naming, reserved


@dataclasses.dataclass(frozen=True)
class DataOptions:
    """Exchange files of demonstrations with local datasets of Minari, or keep the best episodes of one."""

    what: tyro.conf.Positional[Literal["import", "export", "best"]]
    """Whether a dataset is imported, a file is exported, or its best episodes are written to another."""
    source: tyro.conf.Positional[str]
    """Name of the dataset to import, such as pendulum/noisy-v0, or file of demonstrations."""
    env: str = ""
    """Name of the environment of rlx that an imported dataset is of."""
    output: Path | None = None
    """File to write in an import, and with best, .npz."""
    name: str = ""
    """Name of the dataset to write in an export, such as pendulum/noisy-v0."""
    share: float | None = None
    """Share of the episodes to keep with best, those with the greatest returns; 0.1 when it is not given."""


def data(arguments: list[str]) -> None:
    """`rlx data import`, `rlx data export` and `rlx data best`."""
    options = parse_options(DataOptions, arguments, "rlx data")
    if options.output is not None and options.output.suffix != ".npz":
        raise ValueError(f"--output {options.output}: the name has to end in .npz")
    {"import": _import, "export": _export, "best": _best}[options.what](options)


def _import(options: DataOptions) -> None:
    if options.output is None or not options.env or options.name or options.share is not None:
        raise ValueError("rlx data import NAME needs --env ENV and --output FILE.npz, and nothing else")
    name = full_name(options.env)
    shown = from_minari(options.source, name)
    columns(environment(name, {}, {}), shown)  # has its say on shapes and bounds
    with reserved(options.output), naming(options.output, lambda: "the dataset is as it was"):
        save(options.output, shown)
    print(f"{options.output}: {len(shown.ends)} episodes, {len(shown.reward):,} steps, of {name}")


def _export(options: DataOptions) -> None:
    if not options.name or options.env or options.output is not None or options.share is not None:
        raise ValueError("rlx data export FILE needs --name NAME, such as pendulum/noisy-v0, and nothing else")
    shown = load(Path(options.source))
    env = environment(*(shown.about[name] for name in ("env", "env_options", "env_params")))
    to_minari(shown, options.name, to_gymnasium(env.observation_space), to_gymnasium(env.action_space))
    print(f"{options.name}: {len(shown.ends)} episodes, {len(shown.reward):,} steps")


def _best(options: DataOptions) -> None:
    if options.output is None or options.env or options.name:
        raise ValueError("rlx data best FILE needs --output FILE.npz, and takes --share and nothing else")
    shown = load(Path(options.source))
    found = best(shown, 0.1 if options.share is None else options.share)
    with reserved(options.output), naming(options.output, lambda: "the file it is taken from is as it was"):
        save(options.output, found)
    print(
        f"{options.output}: {len(found.ends)} of {len(shown.ends)} episodes, {len(found.reward):,} steps, mean return "
        f"{found.returns.mean():.1f} in place of {shown.returns.mean():.1f}"
    )
