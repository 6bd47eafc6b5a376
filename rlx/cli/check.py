"""The commands that look for faults: `rlx check`, `rlx why`."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import tyro

import rlx.envs
from rlx.algorithm import algorithms, load_algorithm, split_name
from rlx.algorithm_check import check_algorithm
from rlx.cli.options import configure_jax, parse_options
from rlx.cli.play import Checkpoint, load_checkpoint
from rlx.data.steps import with_data
from rlx.envs.registry import full_name
from rlx.files import read_config
from rlx.run import storage
from rlx.run.learned_from import saved_data
from rlx.run.saved import environment
from rlx.train import state_shapes


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
class CheckOptions:
    """Test an algorithm, or an environment, against its contract; docs/guides/own-algorithm.md says what that is."""

    target: tyro.conf.Positional[str]
    """Algorithm (a name or the path of a file), or the name of an environment."""
    env: str = ""
    """Environment to check an algorithm on; by default CartPole-v1, or Pendulum-v1 where the algorithm refuses that."""
    compile_cache: bool = True
    """Keep compiled programs on disk for the next start."""


def why(arguments: list[str]) -> None:
    """`rlx why`."""
    from rlx.run.why import diverged, why

    options = parse_options(WhyOptions, arguments, "rlx why")
    job, state, _ = load_checkpoint(Checkpoint(options.run, from_update=options.from_update))
    if not read_config(options.run).get("checkpoint_replay", True):
        raise ValueError(f"{options.run} keeps no replay buffer in its checkpoints: its updates cannot be replayed")
    done, data = int(state.num_updates), saved_data(read_config(options.run), job.env)
    if data:
        job = dataclasses.replace(job, algorithm=with_data(job.algorithm, data["data"]))
    lines = why(job.algorithm, job.config, job.env, state)
    print("\n".join([f"update {done + 1}:", *lines] if lines else [f"update {done + 1} is finite"]))
    steps = diverged(job.algorithm, job.config, job.env, state) if lines else []
    folder = options.output or (storage.beside(options.run, "diverged", print) if steps else Path())
    for number, step in enumerate(steps):
        file = folder / f"update-{done + 1}-{number}.npz"
        with storage.naming(file, lambda: f"{options.run} is as it was; --output says where else"):
            folder.mkdir(parents=True, exist_ok=True)
            np.savez_compressed(file, allow_pickle=True, **step.named())
        print(f"environment {step.index} diverged in step {step.step} of the update; its state before that: {file}")


def check(arguments: list[str]) -> None:
    """`rlx check`."""
    options = parse_options(CheckOptions, arguments, "rlx check")
    configure_jax(options.compile_cache)
    shipped = options.target.removeprefix("rlx.algos.") in algorithms()
    if not (shipped or options.target.endswith(".py") or split_name(options.target)[1]):
        try:
            name = full_name(options.target)
        except ValueError as error:
            raise ValueError(f"{error}; an algorithm is one of {', '.join(algorithms())}, or a file.py") from error
        if options.env:
            raise ValueError(f"{name} is an environment: leave --env out, or give an algorithm in its place")
        print("\n".join(_proven(name, lambda: rlx.envs.check(environment(name, {}, {})))))
        return
    algorithm = load_algorithm(options.target)
    for name in [options.env] if options.env else ["gymnax/CartPole-v1", "gymnax/Pendulum-v1"]:
        env, refused = environment(full_name(name), {}, {}), ""
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
