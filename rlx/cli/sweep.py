"""The commands about many runs: `rlx sweep`, `rlx export`, `rlx report`, `rlx plot`."""

import ast
import dataclasses
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import tyro

from rlx.algorithm import short_name
from rlx.cli.options import (
    Sources,
    algorithm_of,
    assignments,
    check_fields,
    check_seed,
    configure_jax,
    new_directory,
    parse_options,
    tell_settings,
    tuned_settings,
)
from rlx.cli.report import ReportOptions, plain_console, print_report
from rlx.devices.sharding import use_devices
from rlx.envs.registry import full_name
from rlx.files import loose, read_rows
from rlx.messages import unknown_name
from rlx.presets import configure
from rlx.pytree import replace
from rlx.run.evaluations import in_words
from rlx.run.job import CHECKPOINT_SECONDS
from rlx.run.learned_from import given_data
from rlx.run.learned_from import in_words as data_in_words
from rlx.run.saved import environment
from rlx.run.sinks import check_names
from rlx.run.storage import check_empty, owned
from rlx.schedules import changed_besides
from rlx.sweeps.job import SweepJob, apply, check_sizes, plan
from rlx.sweeps.saved import load_sweep, saved_job
from rlx.sweeps.search import Choice, LogUniform, Uniform, parse, points, split
from rlx.sweeps.strategies import STRATEGIES, strategy_of
from rlx.sweeps.train import execute
from rlx.train import now

UNITS = {"": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}


@dataclasses.dataclass(frozen=True)
class SweepOptions(Sources):
    """Train many configurations and seeds as lanes of few compiled programs.

    Every setting takes values separated by commas, which make a grid, or draws: log:LOW:HIGH, uniform:LOW:HIGH,
    choice:A:B:C. A schedule such as linear:0.3:0.1 is a value as well. A setting with one value is set for all. Several
    numbers that are one value, such as layers, are written 64x32 or (64,32): --hidden-sizes 64x32,128x64 compares two
    networks.
    """

    resume: Path | None = None
    """Sweep directory to resume, in its own settings; none of them may change."""

    env_options: tuple[str, ...] = ()
    """Options of the environment as name=value, such as backend=mjx or max_steps=200."""
    env_params: tuple[str, ...] = ()
    """Parameters of the environment as name=VALUES, such as gravity=9.8,12 or length=log:0.3:1."""
    curriculum: tuple[str, ...] = ()
    """Parameters of the environment that change over each run, such as gravity=linear:1:9.8; see rlx train --help."""
    configs: Path | None = None
    """File with a configuration a line, each a JSON object of fields, in place of a grid."""
    data: Path | None = None
    """File of demonstrations that all lanes learn from, for an algorithm such as iql."""
    num_seeds: int = 1
    """Number of seeds of each configuration; each is a lane."""
    seed: int = 0
    """Random seed of the first lane of each configuration and of the draws; the other lanes count on from it."""
    num_samples: int | None = None
    """Number of random draws for each point of the grid."""
    halving: int | None = None
    """Successive halving: one in this many configurations continues, at 1 / n, 1 / n^2, ... of the run."""
    pbt: int | None = None
    """Population-based training with this many generations: the worst lanes copy the best and perturb the fields that
    vary."""
    rank_by: str = "return"
    """What says which lanes are best and which continue: return, or a name that the environment reports, such as
    success."""
    stop_at_return: float | None = None
    """Stop a lane when its training episodes return this much on average over a hundredth of the run, and at least 10
    of them."""
    patience: int | None = None
    """Stop a lane after so many hundredths of the run in a row without a better average return of its episodes."""
    memory: str = ""
    """Memory, such as 4GB, above which lanes run in batches; by default half of the machine's, and 80 % of an
    accelerator's."""
    out: Path | None = None
    """Sweep directory to write; by default a new one under runs/."""
    eval_episodes: int = 32
    """Number of episodes of each lane's evaluation."""
    checkpoint_seconds: float = CHECKPOINT_SECONDS
    """Seconds between checkpoints."""
    log: tuple[str, ...] = ()
    """Logs to write of every lane, as a run of its own: csv, tensorboard, wandb."""
    devices: int | None = None
    """Number of GPUs, or cores of a CPU, that the lanes are spread over; by default all."""
    dry_run: bool = False
    """Print what would run, and stop."""
    compile_cache: bool = True
    """Keep compiled programs on disk for the next start."""


@dataclasses.dataclass(frozen=True)
class ExportOptions:
    """Write a lane of a sweep as a run directory, to evaluate and to resume."""

    sweep: tyro.conf.Positional[Path]
    """Sweep directory to read."""
    lane: tyro.conf.Positional[int]
    """Number of the lane, as in results.csv."""
    out: Path
    """Run directory to write."""


def sweep(arguments: list[str]) -> None:
    """`rlx sweep`."""
    algorithm, name, sources, rest, prog = algorithm_of("sweep", arguments, SweepOptions)
    check_fields(algorithm.Config, SweepOptions, prog)
    console, resume = plain_console(), sources.resume is not None
    default = SweepOptions(**vars(sources))
    if {"-h", "--help"} & set(rest):
        _help(algorithm, sources, prog)
    options, given = parse_options(SweepOptions, rest, prog, default=default, return_unknown_args=True)
    if not options.checkpoint_seconds >= 0:
        raise ValueError(f"--checkpoint-seconds {options.checkpoint_seconds}: give 0 or more")
    check_names(options.log)
    configure_jax(options.compile_cache)
    if options.devices is not None and options.devices < 1:
        raise ValueError(f"--devices {options.devices}: give at least 1")
    if use_devices(options.devices) < (options.devices or 1):
        raise ValueError(f"--devices {options.devices}: there are {jax.device_count()}")
    if sources.resume is None:
        job = _new_job(algorithm, name, options, given, prog)
    else:
        free = ("checkpoint_seconds", "memory", "devices", "dry_run", "compile_cache", "source", "log")
        changed = [n for n, value in vars(options).items() if n not in free and value != getattr(default, n)]
        if changed or given:
            flags = [f"--{name.replace('_', '-')}" for name in changed]
            raise ValueError(f"a resumed sweep keeps its settings: remove {' '.join([*flags, *given])}")
        job = saved_job(sources.resume, algorithm)
        job = dataclasses.replace(job, algorithm_name=name, checkpoint_seconds=options.checkpoint_seconds)
        job = dataclasses.replace(job, memory=_bytes(options.memory) or job.memory, sinks=options.log or job.sinks)
    if not resume:
        tell_settings(console, algorithm, str(job.env_name), job.env, job.preset, told=sources.preset)
    usual = vars(configure(algorithm.Config, job.preset))
    if chosen := [f"{name}={value}" for name, value in vars(job.config).items() if value != usual[name]]:
        console.print(f"your settings, of all lanes: {', '.join(chosen)}")
    if text := next(filter(None, (changed_besides(config) for config, _ in job.settings)), ""):
        console.print(text)
    if job.data_about is not None:
        console.print(f"data: {data_in_words(job.data_about)}")
    if options.dry_run:
        console.print(f"{short_name(name)} on {job.env_name}, {plan(job)}")
        return
    console.print(f"{short_name(name)} on {job.env_name}")
    numbered = options.out is None and not resume
    with owned(job.directory, resume=resume, numbered=numbered, say=console.print) as directory:
        job = dataclasses.replace(job, directory=directory)
        status, found = execute(job, console, resume)
    if found is None:
        sys.exit(status)
    print_report(ReportOptions((job.directory,), rank_by=job.rank_by, limit=10), console)
    if found.best is None:
        console.print("every lane died or has a return that is not finite: there is no best one")
    else:
        best = found.lanes[found.best]
        reported = in_words(best["evaluation"].get("reported", {}))
        mean = f"mean return {float(best['return_mean']):.1f}{reported}"
        console.print(f"best lane {best['lane']}, {mean}: {job.directory / 'best'}")
    for picture in sorted(job.directory.glob("*.png")):
        console.print(f"picture: {picture}")


def _help(algorithm: ModuleType, sources: Sources, prog: str) -> None:
    """Prints the options of a sweep and the settings of its algorithm, with their defaults, and ends."""
    tuned = tuned_settings(algorithm, full_name(sources.env) if sources.env else "", sources)
    config = tyro.conf.FlagConversionOff[tyro.conf.OmitArgPrefixes[algorithm.Config]]
    setting = ("config", config, dataclasses.field(default=configure(algorithm.Config, tuned)))
    both = dataclasses.make_dataclass("Options", [setting], bases=(SweepOptions,), frozen=True)
    both.__doc__ = SweepOptions.__doc__
    parse_options(both, ["--help"], prog)


def _new_job(
    algorithm: ModuleType, algorithm_name: str, options: SweepOptions, given: list[str], prog: str
) -> SweepJob:
    if not options.env:
        raise ValueError(f"{prog} needs an environment: --env NAME; `rlx envs` lists them")
    for flag, number, least in (
        ("eval-episodes", options.eval_episodes, 1),
        ("num-seeds", options.num_seeds, 1),
        *((name, getattr(options, name, None), 2) for name in STRATEGIES),
    ):
        if number is not None and number < least:
            raise ValueError(f"--{flag} {number}: give at least {least}")
    check_seed(options.seed)
    env_name = full_name(options.env)
    env_options = assignments("--env-options", options.env_options)
    env = environment(env_name, env_options, {}) if options.preset else None
    tuned = tuned_settings(algorithm, env_name, options, env)
    config = configure(algorithm.Config, tuned)
    space = _space(config, options, given, prog)
    single = {key: values[0] for key, values in space.items() if isinstance(values, list) and len(values) == 1}
    space = {key: values for key, values in space.items() if key not in single}
    own, env_params = split(single)
    env_params |= assignments("--curriculum", options.curriculum)
    config, env = replace(config, **own), environment(env_name, env_options, env_params)
    if options.configs is None:
        found = points(space, options.num_samples, options.seed)
    elif space:
        raise ValueError(f"--configs lists the configurations: remove {', '.join(space)}")
    else:
        found = _listed(options.configs)
    if options.num_samples is not None and options.configs is not None:
        raise ValueError("--configs lists the configurations and --num-samples draws them: give one of them")
    strategy = strategy_of({name: getattr(options, name, None) for name in STRATEGIES})
    check_sizes(len(found), options.num_seeds, options.seed, options.eval_episodes, strategy)
    for point in found:  # bounds of fields and names of parameters, before anything else
        apply(config, env, point)
    directory = options.out or new_directory(f"sweep-{short_name(algorithm_name)}", env_name, options.seed)
    check_empty(directory)
    return SweepJob(
        *(algorithm, algorithm_name, config, env, env_name),
        env_options=env_options,
        env_params=env_params,
        points=found,
        num_seeds=options.num_seeds,
        seed=options.seed,
        directory=directory,
        eval_episodes=options.eval_episodes,
        strategy=strategy,
        memory=_bytes(options.memory),
        checkpoint_seconds=options.checkpoint_seconds,
        preset=tuned,
        rank_by=options.rank_by,
        stop_at_return=options.stop_at_return,
        patience=options.patience,
        sinks=options.log,
        **given_data(options.data, env),
    )


def _space(config: Any, options: SweepOptions, given: list[str], prog: str) -> dict[str, Any]:
    """Values or distributions by the name of their Config field or, as `env.NAME`, environment parameter."""
    space = {name: _values(config, name, text, prog) for name, text in _flags(given, prog).items()}
    for text in options.env_params:
        name, equals, values = text.partition("=")
        if not (name and equals):
            raise ValueError(f"--env-params {text}: give name=VALUES")
        if f"env.{name}" in space:
            raise ValueError(f"--env-params {name} is given twice: separate its values by commas")
        try:
            space[f"env.{name}"] = _numbers(text, parse(values))
        except ValueError as error:
            raise ValueError(f"--env-params {name}: {error}") from None
    return space


def _listed(file: Path) -> list[dict[str, Any]]:
    """The configurations of a file, one a line."""
    if not file.is_file():
        raise ValueError(f"--configs {file}: there is no such file")
    rows = read_rows(file)
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise ValueError(f"{file}: configuration {number} is {row!r}: give a JSON object of fields in every line")
    if not rows:
        raise ValueError(f"{file} lists no configuration")
    return [{name: loose(value) for name, value in row.items()} for row in rows]


def _bytes(text: str) -> int | None:
    """`4GB` and `512 MiB` as numbers; None where nothing is said."""
    if not text:
        return None
    found = re.fullmatch(r"([\d._]+(?:e\d\d?)?)\s*([a-z]*)", text.strip().lower())
    try:
        if found and (size := int(float(found[1]) * UNITS[found[2]])) > 0:
            return size
        raise ValueError
    except (ValueError, KeyError):
        raise ValueError(f"--memory {text}: give a size such as 4GB or 512MiB") from None


def _flags(arguments: list[str], prog: str) -> dict[str, str]:
    """`--clip 0.1,0.2 --hidden-sizes 64 64` as names and texts."""
    found: dict[str, list[str]] = {}
    for argument in arguments:
        if argument.startswith("--"):
            flag, equals, value = argument.partition("=")
            name = flag[2:].replace("-", "_")
            if name in found:
                raise ValueError(f"{flag} is given twice: separate its values by commas")
            found[name] = [value] if equals else []
        elif found:
            found[name].append(argument)
        else:
            raise ValueError(f"{prog} does not understand {argument!r}: settings are --name VALUES")
    return {name: " ".join(words) for name, words in found.items()}


def _values(config: Any, name: str, text: str, prog: str) -> Any:
    """The values of a Config field, each read as `rlx train` reads it; or its distribution."""
    known = [f.name for f in dataclasses.fields(config)]
    if name not in known:
        raise ValueError(
            unknown_name("setting", f"--{name.replace('_', '-')}", [f"--{k.replace('_', '-')}" for k in known])
        )
    if not text:
        raise ValueError(f"--{name.replace('_', '-')} needs values")
    try:
        found, kind = parse(text), type(getattr(now(config), name))
    except ValueError as error:
        raise ValueError(f"--{name.replace('_', '-')}: {error}") from None
    if isinstance(found, Uniform | LogUniform):
        if kind not in (int, float):
            raise ValueError(f"--{name.replace('_', '-')} {text}: only numbers can be drawn from a range")
        return dataclasses.replace(found, whole=kind is int)

    flag = f"--{name.replace('_', '-')}"
    if kind is tuple and isinstance(found, list) and len(found) > 1 and all(re.fullmatch(r"[\d_e]+", v) for v in found):
        one, many = f"{flag} {'x'.join(found)}", f"{flag} {','.join(f'({v})' for v in found)}"
        raise ValueError(f"{flag} {text} is one value of {len(found)} numbers, {one}, or {len(found)} values, {many}?")

    def read(value):
        words = re.split(r"[x,\s]+", value.strip("()[] ")) if kind is tuple else value.split()
        whole = tyro.conf.FlagConversionOff[tyro.conf.OmitArgPrefixes[type(config)]]
        return getattr(parse_options(whole, [flag, *filter(None, words)], prog, default=config), name)

    if isinstance(found, Choice):
        return Choice([read(value) for value in found.values])
    return [read(value) for value in found]


def _numbers(text: str, found: Any) -> Any:
    """Values of an environment parameter: numbers, or nested lists of them."""
    try:
        if isinstance(found, Choice):
            return Choice([ast.literal_eval(value) for value in found.values])
        return [ast.literal_eval(value) for value in found] if isinstance(found, list) else found
    except (ValueError, SyntaxError):
        raise ValueError(f"{text}: parameters are numbers, or lists of them") from None


def export(arguments: list[str]) -> None:
    """`rlx export`."""
    options = parse_options(ExportOptions, arguments, "rlx export")
    found = load_sweep(options.sweep)
    if not 0 <= options.lane < len(found.lanes):
        raise ValueError(f"{options.sweep} has lanes 0 to {len(found.lanes) - 1}, not {options.lane}")
    found.export(options.lane, options.out)
    print(f"lane {options.lane}: {options.out}; continue with rlx train --resume {options.out} --total-steps N")
