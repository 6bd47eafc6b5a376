"""`rlx discover`: learn a policy objective by evolution over whole lifetimes, and write it as a file to train with."""

import dataclasses
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import tyro
from rich.console import Console

import rlx
from rlx import meta
from rlx.algorithm import load_algorithm
from rlx.cli.options import assignments, check_seed, configure_jax, parse_options
from rlx.devices.sharding import use_devices
from rlx.envs.registry import full_name
from rlx.files import read_json, read_rows, strict, write_json, write_rows
from rlx.meta import pictures
from rlx.objectives import DPO, SPO, Clip, ImportanceWeighted
from rlx.presets import preset
from rlx.pytree import uncommitted
from rlx.report.statistics import interval
from rlx.run import checkpoint
from rlx.run.job import provenance
from rlx.run.stop import Stop
from rlx.run.storage import naming, owned
from rlx.run.timings import announced, announcement, program_name, remember

CLIP, ppo = 0.2, load_algorithm("ppo")
OTHERS = {"policy gradient": ImportanceWeighted(), "PPO": Clip(CLIP), "DPO": DPO(), "SPO": SPO(CLIP)}
MADE = {"lpo": meta.lpo, "talpo": meta.talpo}
SCALE_SEEDS, LOOK_SEEDS = 16, 8
FREE = ("generations", "chunk", "look_every", "eval_seeds", "resume", "out", "checkpoint_seconds", "compile_cache")
PLAIN_SECONDS = 10.0


@dataclasses.dataclass(frozen=True)
class DiscoverOptions:
    """Learn a drift for PPO by evolution: a population of them trains agents from beginning to end, over and over."""

    kind: tyro.conf.Positional[Literal["", "lpo", "talpo"]] = ""
    """Kind of objective to learn: lpo, or talpo, which is given the progress of the run."""
    train: str = ""
    """Environments to train on, separated by commas; fitness is their mean return, scaled from 0, untrained, to 1, PPO.
    Pendulum-v1:80000 gives an environment lifetimes of its own length."""
    holdout: str = ""
    """Environments that the result is only evaluated on."""
    generations: int = 100
    """Number of generations."""
    population: int = 32
    """Number of candidates in each generation."""
    num_seeds: int = 2
    """Number of lifetimes of a candidate in each environment; all candidates have the same keys."""
    steps: int = 30_000
    """Environment steps of a lifetime where its environment has no length of its own."""
    strategy: Literal["open_es", "snes"] = "open_es"
    """Evolution strategy: open_es samples antithetic pairs, snes has a standard deviation for every weight."""
    sigma: float = 0.04
    """Standard deviation of the candidates at the start."""
    evolution_rate: float | None = None
    """Learning rate of the strategy; by default 0.01 of open_es and 1 of snes."""
    start: Literal["random", "none", "ppo"] = "random"
    """What evolution starts from: a random drift; none, which is plain policy gradient; or ppo, whose clip stays."""
    num_hidden: int = 128
    """Number of hidden units of the drift's network."""
    settings: tuple[str, ...] = (
        "num_envs=16",
        "num_steps=64",
        "num_epochs=10",
        "num_minibatches=4",
        "learning_rate=5e-3",
    )
    """Settings of PPO in every lifetime as name=value, over its tuned ones; many epochs at a high rate make objectives
    differ."""
    chunk: int | None = None
    """Largest number of candidates that train at once, to save memory."""
    look_every: int = 20
    """Number of generations between evaluations of the strategy's mean, with other keys and 8 seeds."""
    eval_seeds: int = 10
    """Number of lifetimes in each environment of the evaluation at the end."""
    seed: int = 0
    """Random seed of the whole search."""
    out: Path | None = None
    """Directory to write; by default a new one under runs/."""
    resume: Path | None = None
    """Directory to resume, in its own settings; only --generations may be raised."""
    checkpoint_seconds: float = 60.0
    """Seconds between checkpoints."""
    compile_cache: bool = True
    """Keep compiled programs on disk for the next start."""


def discover(arguments: list[str]) -> None:
    """`rlx discover`."""
    options = parse_options(DiscoverOptions, arguments, "rlx discover")
    saved = None
    if options.resume is not None:
        if not (options.resume / "discovery.json").exists():
            raise ValueError(f"{options.resume} is not a directory of rlx discover: it has no discovery.json")
        if options.out is not None:
            raise ValueError("--resume goes on in its own directory: leave out --out")
        saved = read_json(options.resume / "discovery.json")
        before: dict[str, Any] = {name: tuple(x) if isinstance(x, list) else x for name, x in saved["options"].items()}
        options = parse_options(DiscoverOptions, arguments, "rlx discover", default=DiscoverOptions(**before))
        changed = [name for name, x in before.items() if name not in FREE and getattr(options, name) != x]
        if changed:
            raise ValueError(f"{options.resume} was begun with other settings: leave out {', '.join(changed)}")
    _check(options)
    configure_jax(options.compile_cache)
    use_devices()
    console = Console(highlight=False, markup=False, soft_wrap=True)
    names = {name: _lifetime(name, steps, options) for name, steps in _named(options.train, options.holdout)}
    directory = options.resume or options.out or _directory(options.kind)
    resume = saved is not None
    fresh = {"resume": resume, "numbered": options.out is None and not resume, "say": console.print}
    with owned(directory, **fresh) as directory, naming(directory, lambda: _safe(directory)):
        _discover(options, saved, names, directory, console)


def _discover(options, saved, names, directory, console):
    """Begins or resumes evolution in a directory, and evaluates what it found."""
    start_key, scale_key, evolve_key, look_key, final_key = jax.random.split(jax.random.key(options.seed), 5)
    start = MADE[options.kind](
        start_key if options.start == "random" else None, options.num_hidden, CLIP if options.start == "ppo" else np.inf
    )
    numbers = {} if options.evolution_rate is None else {"learning_rate": options.evolution_rate}
    settings = {name: dataclasses.asdict(lifetime.config) for name, lifetime in names.items()}
    settings = {name: {k: list(v) if isinstance(v, tuple) else v for k, v in x.items()} for name, x in settings.items()}
    strategy = meta.STRATEGIES[options.strategy](start, options.population, options.sigma, **numbers)
    if saved is None:
        lifetimes = {}
        for i, (name, _) in enumerate(_named(options.train)):
            try:
                key = jax.random.fold_in(scale_key, i)
                program = program_name("lifetimes of PPO", name, names[name].config, SCALE_SEEDS)
                with announced(program, console.print):
                    lifetimes[name] = meta.scaled(ppo, names[name], OTHERS["PPO"], key, SCALE_SEEDS)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error
        scales = {name: [lifetime.low, lifetime.high] for name, lifetime in lifetimes.items()}
        kept = dataclasses.asdict(options) | {"out": None, "resume": None}
        about = {"options": kept, "scales": scales, "settings": settings}
        write_json(directory / "discovery.json", about | provenance())
    else:
        if saved["settings"] != strict(settings):
            raise ValueError(f"{directory} was begun with other settings of PPO, tuned ones of another version perhaps")
        lifetimes = {n: rlx.replace(names[n], low=low, high=high) for n, (low, high) in saved["scales"].items()}
    for name, lifetime in lifetimes.items():
        console.print(f"{name}: return {lifetime.low:.4g} untrained, {lifetime.high:.4g} after PPO")
    generation = meta.first(strategy, start, evolve_key)
    if saved is not None:
        intact, number = checkpoint.newest_intact(directory / "checkpoints", generation, console.print)
        checkpoint.set_aside(directory / "checkpoints", number)
        generation = generation if number < 0 else uncommitted(intact)
    rows = read_rows(directory / "generations.jsonl")[: int(generation.number)]
    found = _evolve(options, strategy, generation, list(lifetimes.values()), look_key, rows, directory, console)
    meta.save(directory / "objective.npz", found, {"generations": len(rows), "train": options.train})
    _evaluate(options, names, lifetimes, found, final_key, rows, directory, console)


def _safe(directory: Path) -> str:
    """The parts of an evolution that are safe on disk, in words."""
    done = max(checkpoint.numbers(directory / "checkpoints"), default=None)
    if done is None or not (directory / "discovery.json").exists():
        return f"nothing was saved yet: free some space, and begin again ({directory} may be removed)"
    return f"generation {done} is safe: free some space, and resume with --resume {directory}"


def _draw(console: Console, picture: Callable, *arguments: Any) -> None:
    """Draws a picture whose path is the second argument, or says why it cannot be."""
    try:
        picture(*arguments)
    except Exception as error:  # whatever a plotting library raises, a picture is not worth a run
        console.print(f"no {arguments[1].name}: {' '.join(str(error).split())}")


def _check(options: DiscoverOptions) -> None:
    for name in ("generations", "num_seeds", "steps", "num_hidden", "look_every", "eval_seeds"):
        if getattr(options, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} {getattr(options, name)}: give at least 1")
    if options.chunk is not None and options.chunk < 1:
        raise ValueError(f"--chunk {options.chunk}: give at least 1")
    for name in ("sigma", "evolution_rate"):
        if getattr(options, name) is not None and not getattr(options, name) > 0:
            raise ValueError(f"--{name.replace('_', '-')} {getattr(options, name)}: give a number above 0")
    if not options.kind:
        raise ValueError(
            f"rlx discover needs to know what: rlx discover lpo --train NAMES; there are {', '.join(MADE)}"
        )
    settings = assignments("--settings", options.settings)
    if "clip" in settings:
        raise ValueError(f"objectives have a clip of their own, {CLIP}: leave it out of --settings")
    if "total_steps" in settings:
        raise ValueError("--steps says how long a lifetime is: leave total_steps out of --settings")
    if not options.train:
        raise ValueError("rlx discover needs environments: --train CartPole-v1,Acrobot-v1")
    names = [full_name(name) for name, _ in _named(options.train, options.holdout)]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"{', '.join(twice)} is named twice: what is held out is not trained on")
    check_seed(options.seed)


def _named(*lists: str) -> list[tuple[str, str]]:
    """Environments and the lengths of their lifetimes, empty where none is given: `Pendulum-v1:80000`."""
    texts = [text.strip() for texts in lists for text in texts.split(",") if text.strip()]
    return [(name, steps) for name, _, steps in (text.partition(":") for text in texts)]


def _lifetime(name: str, steps: str, options: DiscoverOptions) -> meta.Lifetime:
    if steps and not steps.isdecimal():
        raise ValueError(f"{name}:{steps}: after the colon give a number of steps")
    settings: dict[str, Any] = assignments("--settings", options.settings)
    settings |= {"total_steps": int(steps or options.steps)}
    env = rlx.envs.make(name)
    return meta.Lifetime(preset(ppo, full_name(name), env, **settings), env)


def _directory(kind: str) -> Path:
    return Path("runs") / f"discover-{kind}-{time.strftime('%Y%m%d-%H%M%S')}"


def _evolve(options, strategy, generation, lifetimes, look_key, rows, directory, console):
    """Runs the generations that are left, and keeps the log; returns what evolution proposes."""
    measure = meta.trial(ppo, lifetimes, options.num_seeds, options.chunk)
    look = meta.trial(ppo, lifetimes, LOOK_SEEDS)
    config, sizes = lifetimes[0].config, (len(lifetimes), options.population, options.num_seeds)
    program = program_name(f"generations of {options.kind}", options.train, config, *sizes)
    console.print(announcement(program))
    began = told = saved = time.perf_counter()
    first, parts = len(rows), {}

    def fitness(candidates, key):
        returns = measure(candidates, key)
        parts["returns"] = np.where(np.isfinite(returns), returns, np.nan)
        return meta.fitness(lifetimes, returns)

    def save(generation):
        write_rows(directory / "generations.jsonl", rows)
        checkpoint.save(directory / "checkpoints", len(rows), generation)
        meta.save(directory / "objective.npz", meta.mean(strategy, generation), {"generations": len(rows)})
        _draw(console, pictures.generations, rows, directory / "curve.png")

    def after(generation, scores):
        nonlocal told, saved
        number = int(generation.number)
        row = {"generation": number, "fitness": float(np.nanmean(scores)), "best_fitness": float(np.nanmax(scores))}
        row |= {"undefined": int(np.isnan(scores).sum()), "returns": np.nanmean(parts["returns"], axis=(1, 2)).tolist()}
        last = number == options.generations
        if number % options.look_every == 0 or last:
            returns = look(meta.alone(meta.mean(strategy, generation)), jax.random.fold_in(look_key, number))
            row |= {"proposed": float(meta.fitness(lifetimes, returns)[0])}
        rows.append(row)
        now = time.perf_counter()
        if len(rows) == first + 1:
            remember(program, now - began)
        if now - told > PLAIN_SECONDS or "proposed" in row:
            told, each = now, (now - began) / (len(rows) - first)
            text = f"generation {number} of {options.generations}: fitness {row['fitness']:.3f}, best"
            text += f" {row['best_fitness']:.3f}" + (f", proposed {row['proposed']:.3f}" if "proposed" in row else "")
            console.print(f"{text}; {each:.1f} s each, {each * (options.generations - number):.0f} s left")
        if now - saved > options.checkpoint_seconds or last or stop.asked:
            saved = now
            save(generation)
        if stop.asked:
            console.print(f"stopped; resume with rlx discover {options.kind} --resume {directory}")
            sys.exit(128 + stop.asked)

    with Stop() as stop:
        generation = meta.evolve(strategy, generation, fitness, options.generations, after)
    return meta.mean(strategy, generation)


def _evaluate(options, names, lifetimes, found, key, rows, directory, console):
    """Lifetimes of what was found and of the others in all environments, what they say, and pictures."""
    objectives = {options.kind.upper(): found} | OTHERS
    results, means = [], {}
    for i, (env, lifetime) in enumerate(names.items()):
        for name, objective in objectives.items():
            returns = meta.trial(ppo, [lifetime], options.eval_seeds)(
                meta.alone(objective), jax.random.fold_in(key, i)
            )[0, 0]
            known = returns[np.isfinite(returns)]
            mean = interval([known]) if len(known) else None
            result = {"env": env, "held_out": env not in lifetimes, "objective": name, "mean": mean}
            results.append(result | {"returns": [float(x) if np.isfinite(x) else None for x in returns]})
            if env in lifetimes:
                means.setdefault(name, []).append(meta.fitness([lifetimes[env]], returns[None, None])[0])
        shown = results[-len(objectives) :]
        line = ", ".join(f"{r['objective']} {r['mean']['value']:.4g}" for r in shown if r["mean"])
        console.print(f"{env}{' (held out)' if env not in lifetimes else ''}: {line or 'no return is a number'}")
    write_json(directory / "evaluation.json", results)
    fitness = {name: float(np.mean(values)) for name, values in means.items()}
    _draw(console, pictures.generations, rows, directory / "curve.png", {name: fitness[name] for name in OTHERS})
    learned = {f"TALPO at {share:.0%}": (found, share) for share in (0.0, 0.5, 1.0)}
    shown = learned if options.kind == "talpo" else {"LPO": found}
    shown |= {name: OTHERS[name] for name in ("PPO", "DPO", "SPO")}
    _draw(console, pictures.drifts, shown, directory / "drift.png")
    console.print(f"{directory / 'objective.npz'}: rlx train ppo --env NAME --objective {directory / 'objective.npz'}")
