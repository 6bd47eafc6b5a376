"""The commands about demonstrations: `rlx collect`, `rlx clone`."""

import dataclasses
import sys
import time
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import numpy as np
import tyro
from rich.console import Console

from rlx import source
from rlx.algorithm import named_algorithm, short_name
from rlx.cli.options import (
    assignments,
    check_seed,
    configure_jax,
    new_directory,
    parse_options,
    tuned_settings,
)
from rlx.cli.play import Checkpoint, load_checkpoint
from rlx.data.cloning import check_cloning
from rlx.data.cloning import clone as learn
from rlx.data.demonstrations import Demonstrations, load, mixture, save
from rlx.data.demonstrations import collect as play
from rlx.data.quality import coverage, trajectory_quality
from rlx.env import with_params
from rlx.files import read_config, write_json, write_rows
from rlx.objectives import ClipHigher
from rlx.presets import configure
from rlx.run import checkpoint
from rlx.run.evaluations import evaluate_run
from rlx.run.job import OPTIONS, Job, describe, identity, keys
from rlx.run.saved import environment
from rlx.run.storage import check_empty, naming, owned, reserved
from rlx.run.timings import announced, announcement, program_name, remember
from rlx.spaces import Discrete

SIZES = ("gradient_steps", "cloning_batch", "cloning_rate", "validation_share")


@dataclasses.dataclass(frozen=True)
class CollectOptions:
    """Write whole episodes of one or several runs' policies to a file of demonstrations."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Run directories to collect from, all of one environment."""
    output: Path
    """File to write, .npz; rlx/data/demonstrations.py describes its format."""
    episodes: int = 100
    """Number of episodes of all runs together."""
    shares: tuple[float, ...] = ()
    """Share of the episodes of each run, such as 3 1; by default all runs give the same number."""
    noise: tuple[float, ...] = (0.0,)
    """Standard deviation of the noise on actions within [-1, 1]; the probability of a random action where actions are
    discrete; one for all runs or one for each."""
    stochastic: bool = False
    """Sample actions; by default the policy takes its most likely action."""
    best: bool = False
    """Use the weights that did best in the evaluations during training."""
    from_update: tuple[int, ...] = ()
    """Use the weights after this update; one for all runs or one for each."""
    random_return: float | None = None
    """Mean return of a random policy; with --best-return, the quality TQ of the file is told."""
    best_return: float | None = None
    """Mean return of the best policy that is known."""
    reference: Path | None = None
    """File of demonstrations, best all that an online run has seen; the coverage SACo of the file is told."""
    env_params: tuple[str, ...] = ()
    """Parameters of the environment that differ from those of the runs, as name=value."""
    seed: int = 0
    """Random seed of start states, of the environment and of the noise."""
    compile_cache: bool = True
    """Keep compiled programs on disk for the next start."""


@dataclasses.dataclass(frozen=True)
class CloneOptions:
    """Train a policy to do what demonstrations show, and write it as a run directory to evaluate and to train on."""

    file: tyro.conf.Positional[Path]
    """File of demonstrations, as rlx collect writes it."""
    out: Path | None = None
    """Run directory to write; by default a new one under runs/."""
    gradient_steps: int = 20_000
    """Number of gradient steps with Adam."""
    cloning_batch: int = 256
    """Number of environment steps in each gradient step."""
    cloning_rate: float = 1e-3
    """Learning rate of the first gradient step; it falls to a tenth."""
    validation_share: float = 0.1
    """Share of the episodes that is held out; the weights that do best on it are kept."""
    clip_high: float | None = None
    """Bound of how much likelier an action may become before the policy that it is compared with moves on; without it
    the likelihood is maximized freely. PSFT has 0.28."""
    clip_period: int = 8
    """Number of gradient steps after which the policy that --clip-high compares with moves on."""
    env_options: tuple[str, ...] = ()
    """Options of the environment beside those of the demonstrations, such as chunk=4."""
    env_params: tuple[str, ...] = ()
    """Parameters of the environment that differ from those of the demonstrations, as name=value."""
    seed: int = 0
    """Random seed of the whole training."""
    eval_episodes: int = 100
    """Number of episodes of the evaluation at the end."""
    preset: bool = True
    """Start from the settings that ship for the environment."""
    variant: str = ""
    """Named settings from the algorithm's VARIANTS; they go over the tuned ones."""
    compile_cache: bool = True
    """Keep compiled programs on disk for the next start."""


def collect(arguments: list[str]) -> None:
    """`rlx collect`."""
    options = parse_options(CollectOptions, arguments, "rlx collect")
    if not options.runs:
        raise ValueError("rlx collect needs a run: rlx collect runs/NAME --output demonstrations.npz")
    if options.output.suffix != ".npz":
        raise ValueError(f"--output {options.output}: the name has to end in .npz")
    shares = np.array(options.shares or [1.0] * len(options.runs))
    if len(shares) != len(options.runs) or not (shares > 0).all():
        raise ValueError(f"--shares {' '.join(map(str, options.shares))}: give a positive number for each of the runs")
    for flag, values in (("noise", options.noise), ("from-update", options.from_update)):
        if not all(value >= 0 for value in values):
            raise ValueError(f"--{flag} {' '.join(map(str, values))}: give 0 or more")
        if len(values) not in {1, len(options.runs)} and values:
            raise ValueError(f"--{flag} {' '.join(map(str, values))}: give one for all runs, or one for each")
    if (options.random_return is None) != (options.best_return is None):
        raise ValueError("--random-return and --best-return make a scale together: give both")
    if options.best_return is not None and not options.best_return > options.random_return:
        raise ValueError(f"--best-return {options.best_return}: give more than --random-return")
    reference = None if options.reference is None else load(options.reference)
    ends = np.cumsum(shares / shares.sum() * options.episodes).round().astype(int)
    counts = np.diff(ends, prepend=0).tolist()
    if min(counts) < 1:
        raise ValueError(f"--episodes {options.episodes}: give at least one for each of the {len(counts)} runs")
    with reserved(options.output), naming(options.output, lambda: "the runs are as they were"):
        _collect(options, counts, reference)


def _collect(options: CollectOptions, counts: list[int], reference: Demonstrations | None) -> None:
    asked = {"best": options.best, "stochastic": options.stochastic}
    num = len(options.runs)
    noises = ((options.noise or (0.0,)) * num)[:num]
    froms: tuple[int | None, ...] = ((options.from_update or (None,)) * num)[:num]
    parts, policies, where = [], [], {}
    changed = assignments("--env-params", options.env_params)
    for run in options.runs:  # all of them before any is played
        saved = read_config(run)
        here = {name: saved[name] for name in ("env", "env_options")} | {"env_params": saved["env_params"] | changed}
        other = [
            f"{name} {value} and not {where[name]}" for name, value in here.items() if value != where.get(name, value)
        ]
        if other:
            raise ValueError(f"{run} is of another environment than {options.runs[0]}: {', '.join(other)}")
        if "chunk" in saved["env_options"]:
            raise ValueError(f"{run} acts in chunks: demonstrations are of single actions, collect from a run without")
        where = here
    for run, count, noise, update in zip(options.runs, counts, noises, froms, strict=True):
        chosen = Checkpoint(run, **asked, from_update=update, seed=options.seed, compile_cache=options.compile_cache)
        job, state, key = load_checkpoint(chosen)
        env = with_params(job.env, changed)
        if isinstance(env.action_space, Discrete) and noise > 1:
            raise ValueError(f"--noise {noise}: of discrete actions it is a probability, give at most 1")
        key = jax.random.fold_in(key, len(parts))
        deterministic = not options.stochastic
        program = program_name(f"episodes of {short_name(job.algorithm_name)}", job.env_name, job.config, count)
        with announced(program, partial(print, flush=True)):
            part = play(job.algorithm, job.config, env, state, key, count, noise, deterministic)
        returns = part.returns
        parts.append(part)
        policies.append(
            {
                "run": run.name,
                "algorithm": short_name(job.algorithm_name),
                "update": int(state.num_updates),
                "episodes": count,
                "noise": noise,
                "deterministic": deterministic,
                "mean_return": float(returns.mean()),
                "std_return": float(returns.std()),
            }
        )
        print(f"{run}: {count} episodes, mean return {returns.mean():.1f}, standard deviation {returns.std():.1f}")
    found = mixture(parts, where | {"policies": policies, "seed": options.seed})
    if quality := _quality(found, options, reference):
        found = dataclasses.replace(found, about=found.about | {"quality": quality})
    save(options.output, found)
    size = options.output.stat().st_size / 2**20
    print(f"{options.output}: {len(found.ends)} episodes, {len(found.reward):,} steps, {size:.1f} MiB")
    if quality:
        print(f"quality: {', '.join(f'{name} {value:.3g}' for name, value in quality.items())}")


def _quality(found: Demonstrations, options: CollectOptions, reference: Demonstrations | None) -> dict[str, float]:
    """The measures of `rlx.data.quality` that were asked for."""
    quality = {} if reference is None else coverage(found, reference)
    if options.random_return is not None and options.best_return is not None:
        quality = {"tq": trajectory_quality(found, options.random_return, options.best_return)} | quality
    return quality


def clone(arguments: list[str]) -> None:
    """`rlx clone`."""
    prog = "rlx clone"
    if arguments[:1] in (["-h"], ["--help"]):
        print(f"usage: {prog} ALGORITHM FILE ...; `{prog} dppo --help` lists the options of dppo")
        sys.exit(0)
    if not arguments or arguments[0].startswith("-"):
        raise ValueError(f"{prog} needs an algorithm and a file: {prog} dppo demonstrations.npz")
    algorithm, name = named_algorithm(arguments[0])
    check_cloning(algorithm)
    options, tuned, demonstrations = _clone_options(algorithm, f"{prog} {short_name(name)}", arguments[1:])
    check_seed(options.seed)
    configure_jax(options.compile_cache)
    job = _clone_job(algorithm, name, options, tuned, demonstrations.about)
    check_empty(job.directory)
    console = Console(highlight=False, markup=False, soft_wrap=True)
    shown = f"{len(demonstrations.ends)} episodes, {len(demonstrations.reward):,} steps, "
    console.print(f"{short_name(name)} from {options.file}: {shown}mean return {demonstrations.returns.mean():.1f}")
    safe = lambda: f"{options.file} is as it was: free some space, and clone again"
    with owned(job.directory, numbered=options.out is None, say=console.print) as directory, naming(directory, safe):
        job = dataclasses.replace(job, directory=directory)
        _clone(job, options, demonstrations, console)
    console.print(f"{job.directory}: continue with rlx train {arguments[0]} --start-from {job.directory}")


def _clone_options(algorithm: ModuleType, prog: str, arguments: list[str]) -> tuple[Any, dict[str, Any], Any]:
    """The options, the tuned settings that they start from, and the demonstrations, which name the environment."""
    config = tyro.conf.OmitArgPrefixes[algorithm.Config]
    setting = ("config", config, dataclasses.field(default=algorithm.Config()))
    both = dataclasses.make_dataclass("Options", [setting], bases=(CloneOptions,), frozen=True)
    both.__doc__ = CloneOptions.__doc__
    early = parse_options(both, arguments, prog)
    if early.clip_high is not None and not early.clip_high > 0:
        raise ValueError(f"--clip-high {early.clip_high}: give more than 0")
    for flag in ("gradient_steps", "cloning_batch", "eval_episodes", "clip_period"):
        if getattr(early, flag) < 1:
            raise ValueError(f"--{flag.replace('_', '-')} {getattr(early, flag)}: give at least 1")
    demonstrations = load(early.file)
    tuned = tuned_settings(algorithm, demonstrations.about["env"], early)
    defaults = vars(early) | {"config": configure(algorithm.Config, tuned)}
    return parse_options(both, arguments, prog, default=both(**defaults)), tuned, demonstrations


def _clone_job(algorithm: ModuleType, name: str, options: Any, tuned: dict[str, Any], about: dict[str, Any]) -> Job:
    """The job of a run whose first State is the clone."""
    env_options = about["env_options"] | assignments("--env-options", options.env_options)
    outer = "params." if "chunk" in env_options.keys() - about["env_options"].keys() else ""  # of an environment inside
    env_params = {f"{outer}{name}": value for name, value in about["env_params"].items()}
    env_params |= assignments("--env-params", options.env_params)
    return Job(
        algorithm,
        name,
        options.config,
        environment(about["env"], env_options, env_params),
        env_name=about["env"],
        env_options=env_options,
        env_params=env_params,
        seed=options.seed,
        directory=options.out or new_directory(f"clone-{short_name(name)}", about["env"], options.seed),
        preset=tuned,
        eval_episodes=options.eval_episodes,
    )


def _clone(job: Job, options: Any, demonstrations: Any, console: Console) -> None:
    """Trains the clone and writes it as a run directory."""
    program = program_name(
        f"imitation by {short_name(job.algorithm_name)}", job.env_name, job.config, options.cloning_batch
    )
    console.print(announcement(program))
    began, (train_key, evaluate_key) = time.perf_counter(), keys(job.seed)

    def show(row):
        if row["number"] == 1:
            remember(program, time.perf_counter() - began)
        if row["number"] % 5 == 0:
            text = "gradient step {gradient_step:,}: loss {loss:.4g}, held out {validation_loss:.4g}"
            console.print(text.format(**row))

    sizes = (getattr(options, name) for name in SIZES)
    near = None if options.clip_high is None else ClipHigher(clip_high=options.clip_high)
    how = {"show": show, "objective": near, "period": options.clip_period}
    state, rows = learn(job.algorithm, job.config, job.env, demonstrations, train_key, *sizes, **how)
    cloned = {"file": options.file.name, **{key: getattr(options, key) for key in SIZES}, **demonstrations.about}
    cloned |= {} if near is None else {"clip_high": options.clip_high, "clip_period": options.clip_period}
    directory = job.directory
    source.keep(directory, source.read(job.algorithm_name, job.algorithm))
    write_json(directory / "config.json", describe(job, *OPTIONS) | {"cloned": cloned})
    write_rows(directory / "cloning.jsonl", rows)
    log = {"seconds": 0.0, "count": 0, "sums": {}}
    checkpoint.save(directory / "checkpoints", 0, state, {"run": identity(job), "log": log})
    result = evaluate_run(job, state, evaluate_key, job.eval_episodes, console)
    write_rows(directory / "evaluations.jsonl", [result])
    write_json(directory / "evaluation.json", result)
    _draw_losses(rows, directory / "cloning.png", console)


def _draw_losses(rows: list[dict[str, float]], path: Path, console: Console) -> None:
    try:
        from rlx.plot.curves import losses

        losses(rows, path)
    except Exception as error:  # whatever a plotting library raises, the policy is there
        console.print(f"no {path.name}: {' '.join(str(error).split())}")
