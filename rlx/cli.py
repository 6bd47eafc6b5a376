"""The command line: `rlx train ALGO`, `rlx eval RUN`, `rlx render RUN`, `rlx envs`; and `python some/ppo.py`."""

import ast
import atexit
import contextlib
import dataclasses
import difflib
import gc
import importlib
import importlib.util
import io
import os
import pkgutil
import re
import sys
import time
from collections.abc import Callable
from decimal import Decimal
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import jax
import numpy as np
import tyro
from rich.console import Console

import rlx.algos
import rlx.envs
from rlx import hosts, objectives, source, storage, streams
from rlx.algorithm_check import check_algorithm, check_module
from rlx.env import Env, with_params
from rlx.envs.registry import full_name
from rlx.presets import configure, episode_fields, of_episode, origin, settings, variant
from rlx.presets import defaults as defaults_of
from rlx.replay import without_replay
from rlx.run import (
    CHECKPOINT_SECONDS,
    OPTIONS,
    Job,
    best,
    evaluate_run,
    execute,
    identity,
    keys,
    plan,
    read_config,
    read_rows,
    short_name,
    write_json,
)
from rlx.sharding import missing_platform, num_cores, use_devices
from rlx.timings import announced, program_name
from rlx.train import state_shapes, steps_taken

COMMANDS = {
    "train": "train an agent:  rlx train ppo --env CartPole-v1",
    "eval": "evaluate a run:  rlx eval runs/NAME --num-episodes 100",
    "sweep": "train many configurations:  rlx sweep ppo --env CartPole-v1 --learning-rate 1e-4,1e-3 --num-seeds 8",
    "export": "a lane of a sweep as a run:  rlx export runs/SWEEP 17 --out runs/NAME",
    "report": "compare runs and sweeps, with intervals:  rlx report runs/A runs/B",
    "collect": "what policies do, as a file:  rlx collect runs/NAME --output demonstrations.npz",
    "clone": "imitate demonstrations:  rlx clone dppo demonstrations.npz",
    "discover": "learn an objective:  rlx discover lpo --train CartPole-v1 --holdout Acrobot-v1",
    "render": "watch a policy:  rlx render runs/NAME --output episode.gif",
    "plot": "draw runs and sweeps:  rlx plot runs/A runs/B --output curves.png",
    "why": "what made a run end in NaN:  rlx why runs/NAME",
    "envs": "list environments:  rlx envs [brax]",
    "check": "test an algorithm or an environment:  rlx check my_ppo.py --env CartPole-v1",
    "version": "the version:  rlx --version",
    "help": "this list, or the options of a command:  rlx help train",
}

NAMES = ("Clip", "ClipHigher", "DPO", "ForwardKL", "ImportanceWeighted", "ReverseKL", "Rollback", "SPO")
# Fields of Configs that shape the networks, or say what these are told.
NETWORKS = {"hidden_sizes", "conv_features", "activation", "normalize_obs", "num_components", "num_features"}
NETWORKS |= {"denoising_steps", "action_bound", "flow_steps", "noise_loss"}
OBJECTIVES = {name: getattr(objectives, name) for name in NAMES}
MANY = 1024  # environments that are faster on several cores than on one, see benchmarks/scaling.py
LEARNED = ".npz"  # how the file of a learned objective ends


@dataclasses.dataclass(frozen=True)
class Sources:
    """Where the defaults of all other options come from."""

    env: str = ""
    """Name of the environment, `namespace/Name` or `Name` where only one suite has it; `rlx envs` lists them."""
    resume: Path | None = None
    """Run directory to resume, in its own settings; only --total-steps may be raised."""
    objective: str = ""
    """Policy objective to use in place of the algorithm's own: a name such as SPO, whose coefficients become options,
    or the file of a learned one."""
    variant: str = ""
    """Named settings from the algorithm's VARIANTS, such as dapo in grpo; they go over the tuned ones."""
    preset: bool = True
    """Start from the settings that ship for the environment."""
    source: Literal["", "copy", "file"] = ""
    """Which source to resume where the algorithm file has changed: the copy that the run kept, or the file as it is
    now."""


@dataclasses.dataclass(frozen=True)
class TrainSources(Sources):
    """The same of a single run."""

    start_from: Path | None = None
    """Run directory, such as a clone, whose networks, observation statistics and environment the new run starts
    with."""


@dataclasses.dataclass(frozen=True)
class TrainOptions(TrainSources):
    """Train an agent, with tuned settings where the algorithm ships some for the environment."""

    env_options: tuple[str, ...] = ()
    """Options of the environment as name=value, such as backend=mjx or max_steps=200."""
    env_params: tuple[str, ...] = ()
    """Parameters of the environment as name=value, such as gravity=3.7 or opt.gravity=[0,0,-3.7]."""
    seed: int = 0
    """Random seed of the whole run."""
    out: Path | None = None
    """Run directory to write; by default a new one under runs/."""
    from_update: int | None = None
    """Resume from the checkpoint of this update; newer checkpoints are set aside."""
    num_evaluations: int = 1
    """Number of evaluations, evenly spread over training; the last one is at its end."""
    eval_episodes: int = 32
    """Number of episodes of each evaluation."""
    render_every: int = 0
    """Draw an episode at every so many evaluations, into episodes/ of the run directory; 0 draws none."""
    checkpoint_seconds: float = CHECKPOINT_SECONDS
    """Seconds between checkpoints; every evaluation and the end of the run write one too."""
    checkpoint_replay: bool = True
    """Keep the replay buffer in checkpoints. Without it they are small, and a resumed run starts with a new buffer of
    random actions, so that it is not the run that was never stopped."""
    devices: int | None = None
    """Number of GPUs, or cores of a CPU, that the environments are spread over; by default that of the resumed run,
    else 1, and on a CPU all cores from 1,024 environments on."""
    distributed: bool = False
    """Train together with other processes that are given the same command, on all of their devices."""
    coordinator: str | None = None
    """HOST:PORT of the first process of a distributed run; SLURM, Open MPI and Cloud TPU provide this and the next
    two."""
    num_processes: int | None = None
    """Number of processes of a distributed run."""
    process_id: int | None = None
    """Number of this process in a distributed run, from 0."""
    dry_run: bool = False
    """Print what would run and the memory of its state, and stop."""
    compile_cache: bool = True
    """Keep compiled programs on disk for the next start."""


@dataclasses.dataclass(frozen=True)
class WhyOptions:
    """Replays the update after a checkpoint and names the first operation whose result is not finite."""

    run: tyro.conf.Positional[Path]
    """Run directory to look into."""
    from_update: int | None = None
    """Replay the update after this one; by default the one after the newest checkpoint."""
    output: Path | None = None
    """Folder for the states of environments that diverged; by default one in the run directory."""


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A checkpoint of a run, the newest one where no other is asked for, and how its policy acts."""

    run: tyro.conf.Positional[Path]
    """Run directory whose policy acts."""
    best: bool = False
    """Use the weights that did best in the evaluations during training."""
    from_update: int | None = None
    """Use the weights after this update."""
    seed: int = 0
    """Random seed of start states and of the environment; training uses another stream."""
    stochastic: bool = False
    """Sample actions; by default the policy takes its most likely action."""
    compile_cache: bool = True
    """Keep compiled programs on disk for the next start."""


@dataclasses.dataclass(frozen=True)
class EvalOptions(Checkpoint):
    """Evaluate a checkpoint of a run, the newest one where no other is asked for."""

    num_episodes: int = 32
    """Number of whole episodes to play."""
    output: Path | None = None
    """JSON file to write; by default one in evaluations/ of the run directory, named by update, seed and episodes."""


@dataclasses.dataclass(frozen=True)
class RenderOptions(Checkpoint):
    """Draw an episode of a run's policy, from a start that --seed chooses."""

    output: Path | None = None
    """File to write: .gif, .mp4, .png (a filmstrip) or, for Brax, .html; by default episode.gif in the run
    directory."""
    num_steps: int = 1000
    """Largest number of steps to draw."""
    width: int = 320
    """Width of the picture in pixels, or of each picture of a filmstrip."""
    height: int = 240
    """Height of the picture in pixels, or of each picture of a filmstrip."""
    camera: str | None = None
    """Name of one of the model's cameras; by default its first."""


@dataclasses.dataclass(frozen=True)
class CheckOptions:
    """Test an algorithm, or an environment, against its contract; docs/own-algorithm.md says what that is."""

    target: tyro.conf.Positional[str]
    """Algorithm (a name or the path of a file), or the name of an environment."""
    env: str = ""
    """Environment to check an algorithm on; by default CartPole-v1, or Pendulum-v1 where the algorithm refuses that."""
    compile_cache: bool = True
    """Keep compiled programs on disk for the next start."""


def main(arguments: list[str] | None = None) -> None:
    """The `rlx` command."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["help"] and len(arguments) > 1:
        arguments = [*arguments[1:], "--help"]
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print("usage: rlx COMMAND ...\n\n" + "\n".join(f"  {name:8} {text}" for name, text in COMMANDS.items()))
        print("\nrlx COMMAND --help says more; the algorithms are " + ", ".join(algorithms()))
        sys.exit(0)
    command, rest = arguments[0], arguments[1:]
    with _errors():
        if command == "train":
            _train(rest)
        elif command == "eval":
            _eval(_parse(EvalOptions, rest, "rlx eval"))
        elif command == "render":
            _render(_parse(RenderOptions, rest, "rlx render"))
        elif command in ("sweep", "export", "report", "plot"):
            getattr(importlib.import_module("rlx.cli_sweep"), command)(rest)
        elif command in ("collect", "clone"):
            getattr(importlib.import_module("rlx.cli_demonstrations"), command)(rest)
        elif command == "discover":
            importlib.import_module("rlx.cli_discover").discover(rest)
        elif command == "why":
            _why(_parse(WhyOptions, rest, "rlx why"))
        elif command == "envs":
            _envs(rest)
        elif command == "check":
            _check(_parse(CheckOptions, rest, "rlx check"))
        elif command in ("version", "--version", "-V"):
            print(f"rlx {rlx.__version__}")
        else:
            raise ValueError(_unknown("command", command, [name for name in COMMANDS if name != "version"]))


def run_file(path: str) -> None:
    """The command line of an algorithm file that is run as a script; `path` is its `__file__`."""
    with _errors():
        prog = f"python {sys.argv[0]}"
        check_module(sys.modules["__main__"], path)
        sources, rest = _sources(sys.argv[1:], prog, TrainSources)
        module, file = sys.modules["__main__"], Path(path).resolve()
        module.__sources__ = {file.name: file.read_bytes()} | source.beside(file)
        algorithm, name = module, str(file)
        if sources.resume is not None:
            algorithm, name = _resumed(sources, "config.json", algorithm, name)
        algorithm, name = _with_objective(algorithm, name, sources)
        _train_algorithm(algorithm, name, sources, rest, prog)


def algorithms() -> list[str]:
    """Names of the algorithms that ship with rlx."""
    return sorted(module.name for module in pkgutil.iter_modules(rlx.algos.__path__))


def load_algorithm(name: str) -> ModuleType:
    """The algorithm `name`: one that ships (`ppo`, `rlx.algos.ppo`), or the path of a file; `ppo+SPO` has an objective.

    Raises:
        ValueError: unknown name, naming the closest; or a file that is not an algorithm.
    """
    base, objective = _split(name)
    if objective:
        return _joined(load_algorithm(base), objective)
    short = name.removeprefix("rlx.algos.")
    if short in algorithms():
        return importlib.import_module(f"rlx.algos.{short}")
    path = Path(name)
    if path.suffix != ".py" or not path.exists():
        raise ValueError(_unknown("algorithm", name, algorithms()))
    spec = importlib.util.spec_from_file_location(f"rlx.loaded.{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    content = path.read_bytes()
    module.__sources__ = {path.name: content}
    try:  # what the run keeps a copy of is what is run: not what Python has cached of an earlier second
        with source.importing(path.parent):
            exec(compile(content, str(path), "exec", dont_inherit=True), vars(module))
            module.__sources__ |= source.beside(path)
    except Exception as error:  # whatever a file raises that is not finished
        raise ValueError(f"{path} cannot be imported: {type(error).__name__}: {error}") from error
    check_module(module, str(path))
    return module


def named_algorithm(name: str) -> tuple[ModuleType, str]:
    """The algorithm, see `load_algorithm`, and the name to find it by from anywhere."""
    algorithm = load_algorithm(name)
    shipped = algorithm.__name__.startswith("rlx.algos.")
    return algorithm, algorithm.__name__ if shipped else str(Path(name).resolve())


def _train(arguments: list[str]) -> None:
    _train_algorithm(*_algorithm("train", arguments))


def _algorithm(command: str, arguments: list[str]) -> tuple[ModuleType, str, Sources, list[str], str]:
    """The algorithm that a command is about, its name, the sources of defaults, the other arguments, and the program.

    Without a name it is the algorithm of the directory to resume or to start from.
    """
    of_run = any(argument.startswith(("--resume", "--start-from")) for argument in arguments)
    if arguments and arguments[0].startswith("-") and {"-h", "--help"} & set(arguments) and not of_run:
        print(
            f"usage: rlx {command} ALGORITHM --env NAME ...; `rlx {command} ppo --help` lists the settings of ppo too"
        )
        print(f"algorithms: {', '.join(algorithms())}")
        general = TrainOptions if command == "train" else importlib.import_module("rlx.cli_sweep").SweepOptions
        _parse(general, ["--help"], f"rlx {command} ALGORITHM")
    named = arguments[:1] if arguments and not arguments[0].startswith("-") else []
    prog = " ".join([f"rlx {command}", *named])
    sources, rest = _sources(arguments[len(named) :], prog, TrainSources if command == "train" else Sources)
    before = sources.resume or getattr(sources, "start_from", None)
    if not named and before is None:
        raise ValueError(
            f"rlx {command} needs an algorithm: rlx {command} ppo --env NAME; there are {', '.join(algorithms())}"
        )
    file = "config.json" if command == "train" else "sweep.json"
    if sources.resume is not None:
        algorithm, name = _resumed(sources, file, *(named_algorithm(named[0]) if named else (None, "")))
    elif named:
        algorithm, name = named_algorithm(named[0])
    else:
        saved = read_config(before, file)
        algorithm, name = saved_algorithm(before, saved, whole=False), _split(saved["algorithm"])[0]
    return *_with_objective(algorithm, name, sources, file), sources, rest, prog


def _split(name: str) -> tuple[str, str]:
    """`ppo+SPO` as `ppo` and `SPO`; the second is empty where no objective is named, by its own name or a file's."""
    base, _, objective = name.rpartition("+")
    return (base, objective) if objective in OBJECTIVES or (base and objective.endswith(LEARNED)) else (name, "")


def _objective(name: str) -> Any:
    """The class of a name, or what is in a file of a learned one."""
    return importlib.import_module("rlx.meta.drifts").load(Path(name)) if name.endswith(LEARNED) else OBJECTIVES[name]


def _joined(algorithm: ModuleType, objective: str) -> ModuleType:
    """The algorithm with the objective of this name, or of this file."""
    found = objectives.with_objective(algorithm, _objective(objective))
    if objective.endswith(LEARNED):
        file = Path(objective)
        found.__sources__ = getattr(algorithm, "__sources__", {}) | {file.name: file.read_bytes()}
    return found


def saved_algorithm(directory: Path, saved: dict[str, Any], whole: bool = True) -> ModuleType:
    """The algorithm of a run or a sweep, with its objective where `whole`.

    Where its files have become others since, it is made of the copies in the directory, which is said.
    """
    changed = source.changes(saved["algorithm"], saved)
    for file, what in changed.items():
        print(f"{file} {what} since {directory} began: its copy in {directory / source.FOLDER} is used")
    base, objective = source.kept(directory, saved) if changed else _split(saved["algorithm"])
    return _joined(load_algorithm(base), objective) if whole and objective else load_algorithm(base)


def _resumed(sources: Sources, file: str, given: ModuleType | None, name: str) -> tuple[ModuleType, str]:
    """The algorithm that a directory goes on with and its name: the one that is given, else the directory's own.

    Raises:
        ValueError: where its files have changed, unless --source says what to go on with.
    """
    directory, saved = sources.resume, read_config(sources.resume, file)
    own, objective = _split(saved["algorithm"])
    objective = "" if sources.objective else objective
    code, drift = source.changes(name or own, saved, given), source.changes(objective, saved)
    changed = [str(path) for path, what in (code | drift).items() if what == "has changed"]
    if changed and (not sources.source or (drift and sources.source == "file")):
        other = "" if drift else ", --source file with the file as it is now"
        raise ValueError(
            f"{', '.join(changed)} has changed since {directory} began: --source copy goes on with its copy{other}"
        )
    if sources.source == "copy" and not (directory / source.FOLDER).exists():
        raise ValueError(f"--source copy: {directory} keeps no copy, as it is not of a file of one's own")
    if source.hashes(own, {}).items() - saved.get("source", source.hashes(own, {})).items():
        print(f"{own} is another version than {directory} began with: it goes on with this one")
    if sources.source == "copy" or "is gone" in (code | drift).values():
        return saved_algorithm(directory, saved, bool(objective)), saved["algorithm"] if objective else own
    if given is None:
        given, name = named_algorithm(own)
    return (_joined(given, objective), f"{name}+{objective}") if objective else (given, name)


def _with_objective(
    algorithm: ModuleType, name: str, sources: Sources, file: str = "config.json"
) -> tuple[ModuleType, str]:
    """The algorithm and its name with the objective asked for, or that of what is resumed; else as they are."""
    known = {objective.lower(): objective for objective in OBJECTIVES}
    objective = known.get(sources.objective.replace("-", "").lower(), "")
    if sources.objective.endswith(LEARNED):
        objective = str(Path(sources.objective).resolve())
        if "+" in objective:
            raise ValueError(f"{objective}: a run is named with a + before its objective, so give a path without one")
    if sources.objective and not objective:
        raise ValueError(_unknown("objective", sources.objective, list(known)))
    if not objective and sources.resume is not None:
        objective = _split(read_config(sources.resume, file)["algorithm"])[1]
    if not objective or objective == _split(name)[1]:
        return algorithm, name
    return _joined(algorithm, objective), f"{name}+{objective}"


def _sources(arguments: list[str], prog: str, options: type[Sources] = Sources) -> tuple[Sources, list[str]]:
    """The options that the defaults of the others depend on, and the arguments without them."""
    return _parse(options, arguments, prog, return_unknown_args=True, add_help=False)


def _train_algorithm(
    algorithm: ModuleType, algorithm_name: str, sources: Sources, arguments: list[str], prog: str
) -> None:
    console = Console(highlight=False, markup=False, soft_wrap=True)
    saved = None if sources.resume is None else read_config(sources.resume)
    start = None if sources.start_from is None else read_config(sources.start_from)
    env_name = full_name(sources.env) if sources.env else (start or {}).get("env", "")
    if saved is None:
        tuned = _tuned(algorithm, env_name, sources)
        defaults = {"config": configure(algorithm.Config, tuned)}
        if start is not None:
            _check_same_algorithm(sources.start_from, _split(start["algorithm"])[0], _split(algorithm_name)[0])
            trained = "cloned" not in start or (sources.start_from / "metrics.jsonl").exists()
            kept = NETWORKS | {"trained_steps"} if trained else NETWORKS  # a clone is the same actor at every step
            shaped = {name: getattr(saved_config(algorithm, start), name) for name in kept & set(start["config"])}
            defaults = {"config": configure(algorithm.Config, tuned | shaped)}
    else:
        if start is not None:
            raise ValueError("--resume goes on with a run and --start-from begins a new one: give one of them")
        _check_same_algorithm(sources.resume, saved["algorithm"], algorithm_name)
        tuned, env_name = saved["preset"], env_name or saved["env"]
        defaults = {name: saved[name] for name in ("seed", *OPTIONS) if name in saved}
        defaults |= {name: _texts(saved[name]) for name in ("env_options", "env_params")}
        defaults["config"] = saved_config(algorithm, saved)
    options = _parse_train(algorithm, prog, arguments, vars(sources) | defaults)
    if options.source and saved is None:
        raise ValueError("--source says which algorithm file to go on with: it needs --resume RUN")
    if not env_name:
        raise ValueError(f"{prog} needs an environment: --env NAME; `rlx envs` lists them")
    _check_numbers(options)
    _configure(options.compile_cache)
    devices = _devices(options, saved)
    console.quiet = not hosts.first()
    own = start if start and start["env"] == env_name else {"env_options": {}, "env_params": {}}
    env_options = own["env_options"] | _assignments("--env-options", options.env_options)
    env_params = own["env_params"] | _assignments("--env-params", options.env_params)
    env = make(env_name, env_options, env_params)
    if saved is None and (of_kind := _tuned(algorithm, env_name, sources, env)) != tuned:
        tuned = of_kind
        defaults["config"] = configure(algorithm.Config, tuned | (shaped if start is not None else {}))
        options = _parse_train(algorithm, prog, arguments, vars(sources) | defaults)
    job = Job(
        algorithm,
        algorithm_name,
        options.config,
        env=env,
        env_name=env_name,
        env_options=env_options,
        env_params=env_params,
        seed=options.seed,
        directory=sources.resume or options.out or _new_directory(algorithm_name, env_name, options.seed),
        devices=devices,
        preset=tuned,
        num_evaluations=options.num_evaluations,
        eval_episodes=options.eval_episodes,
        checkpoint_seconds=options.checkpoint_seconds,
        checkpoint_replay=options.checkpoint_replay,
        render_every=options.render_every,
        start_from=sources.start_from,
    )
    if start is not None:
        now = dataclasses.asdict(job.config)
        if changed := [name for name, value in shaped.items() if now[name] != value]:
            raise ValueError(f"a run keeps the networks that it starts from: leave out {', '.join(changed)}")
        learned = _load(Checkpoint(sources.start_from, compile_cache=options.compile_cache))[1]
        job = dataclasses.replace(job, learned=learned)
    if saved is None:
        _check_new(job.directory, options)
    else:
        _check_resume(saved, job, options)
    chosen = {name: value for name, value in vars(job.config).items() if value != vars(defaults["config"])[name]}
    kind = f"{f'{devices} x ' if devices > 1 else ''}{jax.devices()[0].device_kind}"
    console.print(f"{short_name(algorithm_name)} on {env_name}, seed {job.seed}, {kind}")
    _tell_settings(console, algorithm, env_name, job.env, tuned, told=saved is None and sources.preset)
    for title, values in (("your settings", chosen), ("environment", env_params)):
        if values:
            console.print(f"{title}: {', '.join(f'{k}={v}' for k, v in values.items())}")
    if options.dry_run:
        console.print(plan(job))
        return
    fresh = {"resume": saved is not None, "numbered": options.out is None and saved is None}
    with storage.owned(job.directory, **fresh, say=console.print) as directory:
        job = dataclasses.replace(job, directory=directory)
        status = execute(job, console, resume=saved is not None, from_update=options.from_update)
    if status:
        sys.exit(status)


def _tell_settings(
    console: Console, algorithm: ModuleType, env_name: str, env: Env, tuned: dict[str, Any], told: bool = True
) -> None:
    """Prints the settings that the options start from and where they are from; `told`, also where there are none."""
    if tuned:
        values = ", ".join(f"{name}={value}" for name, value in tuned.items())
        console.print(f"{_origin(algorithm, env_name, env)}: {values}")
    if not told:
        return
    if others := _tuned_elsewhere(algorithm, env_name):
        name = Path(algorithm.__file__).with_suffix(".toml").name
        console.print(f"no tuned settings: there is no {name}; {env_name} is in {others}")
    elif not tuned:
        console.print(f"no tuned settings for {env_name}: the defaults of the Config")
    if (fields := episode_fields(_preset_file(algorithm))) and env.horizon is None:
        console.print(
            f"how many steps an episode of {env_name} takes is not known: one has to fit in {' and '.join(fields)}"
        )


def _devices(options: TrainOptions, saved: dict[str, Any] | None) -> int:
    """How many devices the run has; jax has not been used yet."""
    if options.distributed:
        if options.devices not in (None, (saved or {}).get("devices")):
            raise ValueError("--devices is of a run of one process: with --distributed it has all devices")
        hosts.join(options.coordinator, options.num_processes, options.process_id)
        return jax.device_count()
    for name in ("coordinator", "num_processes", "process_id"):
        if getattr(options, name) is not None:
            raise ValueError(f"--{name.replace('_', '-')} is of a run of several processes: give --distributed too")
    if options.devices is not None:
        use_devices(max(1, options.devices))
        return options.devices
    if saved is not None or (cores := _cores(options.config)) == 1:
        return 1
    return cores if use_devices() >= cores and jax.default_backend() == "cpu" else 1


def _cores(config: Any) -> int:
    """Over how many cores the environments are spread where they are so many that it is faster."""
    num_envs, num_minibatches = (getattr(config, name, 0) for name in ("num_envs", "num_minibatches"))
    if num_envs < MANY or not num_minibatches:
        return 1
    fits = lambda n: num_envs % n == 0 and config.steps_per_update // n % num_minibatches == 0
    return max(n for n in range(1, num_cores() + 1) if fits(n))


def _parse_train(algorithm, prog, arguments, defaults):
    config = ("config", tyro.conf.OmitArgPrefixes[algorithm.Config], dataclasses.field(default=defaults["config"]))
    both = dataclasses.make_dataclass("Options", [config], bases=(TrainOptions,), frozen=True)
    both.__doc__ = TrainOptions.__doc__
    return _parse(both, arguments, prog, default=both(**defaults))


def _check_same_algorithm(run: Path, saved: str, algorithm_name: str) -> None:
    was, given = short_name(saved), short_name(algorithm_name)
    if was != given:
        raise ValueError(f"{run} is a run of {was}, not of {given}: leave the algorithm out")


def _check_numbers(options: Any) -> None:
    _check_seed(options.seed)
    for flag, number in (("eval-episodes", options.eval_episodes), ("num-evaluations", options.num_evaluations)):
        if number < 1:
            raise ValueError(f"--{flag} {number}: give at least 1")
    if options.render_every < 0:
        raise ValueError(f"--render-every {options.render_every}: give 0 for never, or a number of evaluations")
    if not options.checkpoint_seconds >= 0:
        raise ValueError(f"--checkpoint-seconds {options.checkpoint_seconds}: give 0 or more")


def _check_new(directory: Path, options: Any) -> None:
    if options.from_update is not None:
        raise ValueError("--from-update says where to go on: it needs --resume RUN")
    storage.check_empty(directory)


def _check_resume(saved: dict[str, Any], job: Job, options: Any) -> None:
    """Raises ValueError where a resumed run would become another one."""
    now = identity(job)
    pairs = [(name, saved[name], now[name]) for name in ("env", "env_options", "env_params", "seed")]
    pairs += [("out", job.directory, options.out or job.directory)]
    pairs += [("checkpoint_replay", saved.get("checkpoint_replay", True), job.checkpoint_replay)]
    pairs += [(name, saved["config"].get(name, value), value) for name, value in now["config"].items()]
    changed = [f"{name} = {old} -> {new}" for name, old, new in pairs if old != new]
    changed += [] if options.preset else ["--no-preset"]
    changed += [f"--variant {options.variant}"] if options.variant else []
    if changed:
        raise ValueError(f"a resumed run keeps its settings (only --total-steps may change): {', '.join(changed)}")


def _eval(options: EvalOptions) -> None:
    if options.num_episodes < 1:
        raise ValueError(f"--num-episodes {options.num_episodes}: give at least 1")
    job, state, key = _load(options)
    console = Console(highlight=False, markup=False, soft_wrap=True)
    name = program_name(
        f"evaluation of {short_name(job.algorithm_name)}", job.env_name, job.config, options.num_episodes
    )
    with announced(name, console.print):
        result = evaluate_run(job, state, key, options.num_episodes, console, deterministic=not options.stochastic)
    how = "-stochastic" * options.stochastic
    name = f"evaluations/update-{int(state.num_updates)}-seed-{options.seed}-episodes-{options.num_episodes}{how}.json"
    output = options.output or storage.beside(options.run, name, console.print)
    with storage.naming(output, lambda: f"{options.run} is as it was; --output says where else"):
        output.parent.mkdir(parents=True, exist_ok=True)
        write_json(output, result | {"run": str(options.run), "seed": options.seed})
    console.print(f"evaluation: {output}")


def _render(options: RenderOptions) -> None:
    from rlx.render import check_output, record, write

    for name in ("num_steps", "width", "height"):
        if getattr(options, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} {getattr(options, name)}: give at least 1")
    output = options.output or storage.beside(options.run, "episode.gif", print)
    job, state, key = _load(options, lambda env: check_output(env, output, options.camera))
    deterministic = not options.stochastic
    name = program_name(f"episode of {short_name(job.algorithm_name)}", job.env_name, job.config, options.num_steps)
    with announced(name, partial(print, flush=True)):
        episode, total = record(job.algorithm, job.config, job.env, state, key, options.num_steps, deterministic)
    with storage.naming(output, lambda: f"{options.run} is as it was; --output says where else"):
        write(job.env, episode, output, options.width, options.height, options.camera)
    after = steps_taken(job.config, int(state.num_updates))
    print(f"{output}: an episode of {len(episode) - 1} steps, return {total:.1f}, after {after:,} steps of training")


def _load(options: Checkpoint, check: Callable[[Env], None] = lambda env: None) -> tuple[Job, Any, jax.Array]:
    """The job of a run, the state that is asked for, and a key; `check` is given the environment before."""
    from rlx.checkpoint import restore

    _configure(options.compile_cache)
    _check_seed(options.seed)
    saved, update = read_config(options.run), options.from_update
    if options.best:
        if update is not None:
            raise ValueError("--best and --from-update are two checkpoints: give one of them")
        top = best(read_rows(options.run / "evaluations.jsonl"))
        if top is None:
            raise ValueError(f"{options.run} has no evaluation yet to tell which weights are best")
        update = top["update"]
    algorithm = saved_algorithm(options.run, saved)
    config, env = saved_config(algorithm, saved), make(saved["env"], saved["env_options"], saved["env_params"])
    check(env)
    asked = {name: saved[name] for name in ("env_options", "env_params", "seed")}
    job = Job(algorithm, saved["algorithm"], config, env, env_name=saved["env"], directory=options.run, **asked)
    like = state_shapes(algorithm, config, env)
    like = like if saved.get("checkpoint_replay", True) else without_replay(like)
    state = restore(options.run / "checkpoints", like, update, {"run": identity(job)})
    return job, state, jax.random.fold_in(keys(saved["seed"])[1], options.seed + 1)


def _why(options: WhyOptions) -> None:
    from rlx.why import diverged, why

    job, state, _ = _load(Checkpoint(options.run, from_update=options.from_update))
    if not read_config(options.run).get("checkpoint_replay", True):
        raise ValueError(f"{options.run} keeps no replay buffer in its checkpoints: its updates cannot be replayed")
    done = int(state.num_updates)
    lines = why(job.algorithm, job.config, job.env, state)
    print("\n".join([f"update {done + 1}:", *lines] if lines else [f"update {done + 1} is finite"]))
    steps = diverged(job.algorithm, job.config, job.env, state) if lines else []
    folder = options.output or (storage.beside(options.run, "diverged", print) if steps else Path())
    for number, step in enumerate(steps):
        file = folder / f"update-{done + 1}-{number}.npz"
        with storage.naming(file, lambda: f"{options.run} is as it was; --output says where else"):
            folder.mkdir(parents=True, exist_ok=True)
            np.savez_compressed(file, **step.named())
        print(f"environment {step.index} diverged in step {step.step} of the update; its state before that: {file}")


def _envs(arguments: list[str]) -> None:
    from rlx.envs.registry import names

    if any(argument.startswith("-") for argument in arguments):
        print("usage: rlx envs [part of a name]")
        sys.exit(0 if arguments[0] in ("-h", "--help") else 2)
    found = [name for name in names() if all(part.lower() in name.lower() for part in arguments)]
    if not found:
        raise ValueError(f"no environment has {' and '.join(arguments)} in its name")
    print("\n".join(found))


def _check(options: CheckOptions) -> None:
    _configure(options.compile_cache)
    shipped = options.target.removeprefix("rlx.algos.") in algorithms()
    if not (shipped or options.target.endswith(".py") or _split(options.target)[1]):
        try:
            name = full_name(options.target)
        except ValueError as error:
            raise ValueError(f"{error}; an algorithm is one of {', '.join(algorithms())}, or a file.py") from error
        if options.env:
            raise ValueError(f"{name} is an environment: leave --env out, or give an algorithm in its place")
        print("\n".join(_proven(name, lambda: rlx.envs.check(make(name, {}, {})))))
        return
    algorithm = load_algorithm(options.target)
    for name in [options.env] if options.env else ["gymnax/CartPole-v1", "gymnax/Pendulum-v1"]:
        env, refused = make(full_name(name), {}, {}), ""
        try:
            state_shapes(algorithm, algorithm.Config(), env)
            break
        except ValueError as error:
            refused = f"{name}: {error}"
        except Exception:  # the clauses say what is wrong
            break
    if refused:
        raise ValueError(f"{options.target} refuses {refused}; give --env NAME of an environment that it is made for")
    print(f"{options.target} on {name}; updates are compiled, which may take a minute")
    print("\n".join(_proven(options.target, lambda: check_algorithm(algorithm, env))))


def _proven(target: str, check: Callable[[], list[str]]) -> list[str]:
    try:
        return check()
    except AssertionError as error:  # AlgorithmError or ContractError
        raise ValueError(f"{target} breaks its contract: {error}") from error


def make(env_name: str, env_options: dict[str, Any], env_params: dict[str, Any]) -> Env:
    """The environment, with bad options reported as ValueError."""
    try:
        with hosts.local_devices():
            env = rlx.envs.make(env_name, **env_options)
            if env_options:  # a suite may keep what it is given until it is stepped
                jax.eval_shape(
                    lambda key: env.advance(key, env.reset(key), env.action_space.sample(key)), jax.random.key(0)
                )
    except ValueError:
        raise
    except Exception as error:  # whatever a suite raises for an option of another kind
        given = ", ".join(f"{name}={value!r}" for name, value in env_options.items())
        raise ValueError(
            f"{env_name} does not take these options: {error or type(error).__name__} ({given})"
        ) from error
    return with_params(env, env_params)


def saved_config(algorithm: ModuleType, saved: dict[str, Any]) -> Any:
    """The Config that a run directory was made with."""
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in saved["config"].items()}
    for field in dataclasses.fields(algorithm.Config):
        if type(field.default) is float and field.name in values:
            values[field.name] = float(values[field.name])  # infinity is written as "inf"
    return configure(algorithm.Config, values)


def _origin(algorithm: ModuleType, env_name: str, env: Any) -> str:
    """What is said of the settings that the options start from."""
    file = _preset_file(algorithm)
    found = settings(file, env_name)
    return origin(file, env_name) if found else f"default settings for {defaults_of(file, env)[1]}"


def _tuned(algorithm: ModuleType, env_name: str, sources: Sources, env: Any = None) -> dict[str, Any]:
    """What the options start from: settings for the environment or its kind, and those of the variant asked for."""
    file = _preset_file(algorithm)
    tuned = settings(file, env_name) if env_name and sources.preset else {}
    if env is not None and sources.preset:
        tuned = (tuned or defaults_of(file, env)[0]) | of_episode(file, env)
    if unknown := tuned.keys() - {field.name for field in dataclasses.fields(algorithm.Config)}:
        raise ValueError(f"{file} sets {', '.join(sorted(unknown))} for {env_name}, and the Config has no such field")
    return tuned | (variant(algorithm, sources.variant) if sources.variant else {})


def _preset_file(algorithm: ModuleType) -> Path:
    """The TOML file beside an algorithm, else the one that ships for an algorithm of the same name."""
    beside = Path(algorithm.__file__).resolve().with_suffix(".toml")
    return beside if beside.exists() else Path(rlx.algos.__path__[0]) / beside.name


def _tuned_elsewhere(algorithm: ModuleType, env_name: str) -> str:
    """For an algorithm without a TOML file: the files that ship with settings for the environment."""
    files = [] if _preset_file(algorithm).exists() else sorted(Path(rlx.algos.__path__[0]).glob("*.toml"))
    return ", ".join(file.name for file in files if settings(file, env_name))


def _new_directory(algorithm_name: str, env_name: str, seed: int) -> Path:
    """The name of a new directory, by the clock; `owned` gives it a number where it is there already."""
    name = f"{short_name(algorithm_name)}-{env_name.replace('/', '-')}-{seed}-{time.strftime('%Y%m%d-%H%M%S')}"
    return Path("runs") / name


def _assignments(flag: str, texts: tuple[str, ...]) -> dict[str, Any]:
    """`("a=1", "b=x")` as `{"a": 1, "b": "x"}`."""
    found = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not (name and equals):
            raise ValueError(f"{flag} {text}: give name=value")
        try:
            read = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            read = value
        whole = type(read) is float and "e" in value.lower() and read.is_integer()  # 1e3 is meant as 1000
        found[name] = int(read) if whole else read
    return found


def _texts(values: dict[str, Any]) -> tuple[str, ...]:
    """What `_assignments` reads as these values."""
    return tuple(f"{name}={value!r}" for name, value in values.items())


def _check_seed(seed: int) -> None:
    if not 0 <= seed < 2**31:
        raise ValueError(f"--seed {seed}: give a number from 0 to 2^31 - 1")


def _parse(options: type, arguments: list[str], prog: str, **how: Any) -> Any:
    """tyro's result; its errors as one line."""
    output = io.StringIO()
    try:
        with contextlib.redirect_stderr(output):
            return tyro.cli(options, args=arguments, prog=prog, registry=WHOLE_NUMBERS, **how)
    except SystemExit as stop:
        if not stop.code:
            raise
        text = re.sub(r"[│╭╮╰╯─]+|-{5,}", " ", output.getvalue())
        lines = [" ".join(line.split()) for line in text.splitlines()]
        lines = [line for line in lines if line and not line.startswith("For full helptext")]
        raise ValueError(" ".join(lines[1:] or lines) + f"; {prog} --help lists the options") from None


def _whole(text: str) -> int:
    """`100000`, `100_000` and `1e5` as an integer."""
    try:
        number = Decimal(text)
        if number.adjusted() < 19 and number == number.to_integral_value():
            return int(number)
    except ArithmeticError:
        pass
    raise ValueError(f"{text} is not a whole number")


WHOLE_NUMBERS = tyro.constructors.ConstructorRegistry()


@WHOLE_NUMBERS.primitive_rule
def _integer(info: tyro.constructors.PrimitiveTypeInfo) -> tyro.constructors.PrimitiveConstructorSpec | None:
    """How tyro reads every integer option."""
    if info.type is not int:
        return None
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="INT",
        instance_from_str=lambda texts: _whole(texts[0]),
        is_instance=lambda value: type(value) is int,
        str_from_instance=lambda value: [str(value)],
    )


def _unknown(kind: str, name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(close)}?" if close else f"there are {', '.join(known)}"
    return f"unknown {kind} {name!r}: {hint}"


def _configure(compile_cache: bool) -> None:
    """Full float32 products (TF32 changes what is learned), the compilation cache, and less looking for garbage."""
    jax.config.update("jax_default_matmul_precision", "float32")
    if compile_cache:
        cache = streams.cache_folder()
        if cache is None:
            print("rlx: compiled programs are not kept: the cache folder cannot be written", file=sys.stderr)
        else:
            jax.config.update("jax_compilation_cache_dir", str(cache))
            jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.02)
    # Tracing makes hundreds of thousands of objects that stay: to go through them again and again took up to a second.
    gc.set_threshold(50_000)
    atexit.register(gc.freeze)  # and most of another one before the process ends


@contextlib.contextmanager
def _errors():
    """Bad input is one line on stderr and exit status 2; so is a disk that is full."""
    streams.find_home()
    with streams.lasting(), streams.drawing_to_files():
        try:
            with hosts.together():
                yield
        except KeyboardInterrupt:
            print("rlx: interrupted", file=sys.stderr)
            hosts.leave(130)
        except Exception as error:
            if os.environ.get("RLX_TRACEBACK") or not (said := _said(error)):
                raise
            print(f"rlx: {' '.join(said.split())}", file=sys.stderr)
            hosts.leave(2)


def _said(error: Exception) -> str:
    """What a user is told of an error that is none of the program; nothing where it is one."""
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
        first = str(error).strip().partition("\n")[0]
        return f"out of memory ({first}): --dry-run says how much a state takes; lower num_envs or capacity"
    if isinstance(error, ValueError | OSError) or storage.reason(error):
        return str(error)
    return missing_platform() if isinstance(error, RuntimeError | AssertionError) else ""
