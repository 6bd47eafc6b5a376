"""`rlx profile`: where the time and the memory of a run go."""

import dataclasses
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console
from rich.table import Table

from rlx.algorithm import short_name
from rlx.cli.options import (
    Sources,
    algorithm_of,
    assignments,
    check_fields,
    configure_jax,
    parse_options,
    tuned_settings,
)
from rlx.envs.registry import full_name
from rlx.files import write_json
from rlx.presets import configure
from rlx.profile.counts import ceilings
from rlx.profile.phases import fastest, profile
from rlx.run.saved import environment, saved_run
from rlx.train import takes_data

AROUND = (0.25, 0.5, 1, 2, 4)  # the number of environments that it has


@dataclasses.dataclass(frozen=True)
class ProfileOptions(Sources):
    """Measure where the time and the memory of a run go, by its run directory or by an algorithm and its settings."""

    env_options: tuple[str, ...] = ()
    """Options of the environment as name=value, such as backend=mjx or max_steps=200."""
    env_params: tuple[str, ...] = ()
    """Parameters of the environment as name=value, such as gravity=3.7."""
    turns: int = 3
    """Number of times that each phase is measured; medians count."""
    budget: float = 0.5
    """Seconds of each measurement."""
    try_num_envs: tuple[int, ...] | None = None
    """Numbers of environments to compare; by default a quarter of the setting to four times it."""
    max_seconds: float = 60.0
    """Seconds after which no further number of environments is tried; 0 tries none."""
    json: Path | None = None
    """JSON file to write, with everything that is printed."""


def measure(arguments: list[str]) -> None:
    """`rlx profile`."""
    options, algorithm, name, config, env, env_name = _asked(arguments)
    if takes_data(algorithm):
        raise ValueError(f"{short_name(name)} learns from data: rlx profile measures algorithms that need none")
    if options.turns < 1 or not options.budget > 0:
        raise ValueError("--turns and --budget: give at least 1 turn and more than 0 seconds")
    configure_jax(compile_cache=False)  # what is found in a cache is not compiled
    console = Console(highlight=False, markup=False, soft_wrap=True)
    console.print(f"{short_name(name)} on {env_name}: compiling its programs and measuring an update")
    found = profile(algorithm, config, env, options.turns, options.budget)
    found |= {"algorithm": name, "env": env_name, "ceilings": ceilings(min(options.budget, 0.5))}
    _print(console, found)
    numbers = options.try_num_envs or _around(config)
    if options.max_seconds > 0 and numbers:
        found["num_envs"] = _compared(console, algorithm, config, env, numbers, options)
    if options.json is not None:
        write_json(options.json, found)
        console.print(f"written: {options.json}")


def _asked(arguments: list[str]) -> tuple[Any, ...]:
    """The options, the algorithm with its name, its config, the environment with its name."""
    if arguments and (Path(arguments[0]) / "config.json").exists():
        run = saved_run(Path(arguments[0]))
        options = parse_options(ProfileOptions, arguments[1:], f"rlx profile {arguments[0]}")
        return options, run.algorithm, run.algorithm_name, run.config, run.env, run.env_name
    algorithm, name, sources, rest, prog = algorithm_of("profile", arguments, ProfileOptions)
    check_fields(algorithm.Config, ProfileOptions, prog)
    if sources.resume is not None:
        raise ValueError(f"{prog} trains nothing: give the run directory in place of the algorithm")
    env_name = full_name(sources.env) if sources.env else ""
    start = configure(algorithm.Config, tuned_settings(algorithm, env_name, sources))
    config = ("config", tyro.conf.OmitArgPrefixes[algorithm.Config], dataclasses.field(default=start))
    both = dataclasses.make_dataclass("Options", [config], bases=(ProfileOptions,), frozen=True)
    both.__doc__ = ProfileOptions.__doc__
    options = parse_options(both, rest, prog, default=both(**vars(sources), config=start))
    if not env_name:
        raise ValueError(f"{prog} needs an environment: --env NAME; `rlx envs` lists them")
    given = [assignments(f"--env-{kind}", getattr(options, f"env_{kind}")) for kind in ("options", "params")]
    return options, algorithm, name, options.config, environment(env_name, *given), env_name


def _around(config: Any) -> list[int]:
    """Numbers of environments around that of the settings; none where there is no such setting."""
    num = getattr(config, "num_envs", 0)
    return sorted({max(1, int(num * factor)) for factor in AROUND}) if num else []


def _print(console: Console, found: dict[str, Any]) -> None:
    milliseconds = 1e3 * found["seconds"]
    console.print(
        f"an update of {found['steps']:,} steps takes {milliseconds:.3g} ms: {found['steps_per_second']:,.0f} steps/s"
    )
    table = _table("phase", "ms", "share")
    for name, took in found["phases"].items():
        table.add_row(name, f"{1e3 * took:.3g}", f"{took / found['seconds']:.0%}")
    console.print(table)
    table = _table("program", "trace, s", "lower, s", "compile, s", "in, MiB", "out", "temporary")
    for part in found["programs"]:
        sizes = [f"{part[name] / 2**20:.2f}" for name in ("arguments", "outputs", "temporaries")]
        table.add_row(part["name"], *(f"{part[name]:.2f}" for name in ("trace", "lower", "compile")), *sizes)
    console.print(table)
    state = sorted(found["state"].items(), key=lambda item: -item[1])
    console.print("state: " + ", ".join(f"{name} {size / 2**20:.2f} MiB" for name, size in state if size >= 2**10))
    if (counts := found["counts"]) is None:
        console.print("operations cannot be counted in what the compiler made of this update")
        return
    machine, took = found["ceilings"], found["seconds"]
    table = _table("an update", "number", "a second", "share of the ceiling here")
    for name, ceiling in (("operations", machine["layers_flops"]), ("bytes", machine["copy_bytes_per_second"])):
        rate = counts[name] / took
        share = f"{rate / ceiling:.1%}" if rate <= ceiling else "above that of memory: most are from caches"
        table.add_row(name, f"{counts[name]:.3g}", f"{rate:.3g}", share)
    rate = counts["kernels"] / took
    share = rate * machine["seconds_per_kernel"]
    table.add_row("kernels", f"{counts['kernels']:.3g}", f"{rate:.3g}", f"{share:.1%} of the time, if they were empty")
    console.print(table)


def _compared(console, algorithm, config, env, numbers, options) -> list[dict[str, Any]]:
    """Prints the steps/s of each number of environments as it is measured, and the best."""
    rows = []
    for row in fastest(algorithm, config, env, numbers, options.budget, options.max_seconds):
        rows.append(row)
        said = f"{row['steps_per_second']:,.0f} steps/s" if "steps_per_second" in row else row["refused"]
        console.print(f"num_envs {row['num_envs']:,}: {said}")
    if left := [num for num in numbers if all(row["num_envs"] != num for row in rows)]:
        console.print(f"{options.max_seconds:g} seconds are over: {', '.join(map(str, left))} were not tried")
    known = [row for row in rows if "steps_per_second" in row]
    if known:
        best = max(known, key=lambda row: row["steps_per_second"])
        console.print(f"fastest here: num_envs {best['num_envs']:,}; how well it learns is another question")
    return rows


def _table(*names: str) -> Table:
    table = Table()
    for i, name in enumerate(names):
        table.add_column(name, justify="right" if i else "left")
    return table
