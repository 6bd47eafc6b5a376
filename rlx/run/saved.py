"""What is made of a run directory: its environment, its job, and the state of one of its checkpoints."""

from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import jax

from rlx.algorithm import saved_algorithm, saved_config
from rlx.devices import hosts
from rlx.env import Env, with_params
from rlx.files import read_config, read_rows
from rlx.hosted import is_hosted
from rlx.replay import without_replay
from rlx.run.evaluations import best
from rlx.run.job import Job, identity
from rlx.train import state_shapes

REGISTRY = "rlx.envs.registry"  # environments are found by name, as algorithms are


def environment(name: str, options: dict[str, Any], params: dict[str, Any]) -> Env:
    """The environment of a name, with options of its suite and with some of its parameters changed.

    Raises:
        ValueError: for an unknown name, and for options or parameters that it does not take.
    """
    try:
        with hosts.local_devices():
            env = import_module(REGISTRY).make(name, **options)
            if options and not is_hosted(env):  # a suite may keep what it is given until it is stepped
                jax.eval_shape(lambda key: env.advance(key, env.reset(key), env.sample_action(key)), jax.random.key(0))
    except ValueError:
        raise
    except Exception as error:  # whatever a suite raises for an option of another kind
        given = ", ".join(f"{name}={value!r}" for name, value in options.items())
        raise ValueError(f"{name} does not take these options: {error or type(error).__name__} ({given})") from error
    return with_params(env, params)


def named(name: str) -> tuple[str, Env]:
    """The full name of an environment, and the environment as the registry makes it.

    Raises:
        ValueError: for an unknown name, naming the closest.
    """
    full = import_module(REGISTRY).full_name(name)
    return full, environment(full, {}, {})


def saved_run(directory: Path, env: Env | None = None, algorithm: ModuleType | None = None) -> Job:
    """The job of a run directory, as far as acting, evaluating and resuming need it.

    Args:
        directory: of the run.
        env: the environment of a run that was given one without a name.
        algorithm: in place of the one that the run has.

    Raises:
        ValueError: where the directory is none of a run, or its environment has no name and none is given.
    """
    saved = read_config(directory)
    algorithm = algorithm or saved_algorithm(directory, saved)
    if env is None:
        if saved["env"] is None:
            raise ValueError(f"{directory} was made in Python with an environment without a name: rlx.load takes env=")
        env = environment(saved["env"], saved["env_options"], saved["env_params"])
    asked = {name: saved[name] for name in ("env_options", "env_params", "seed")}
    config = saved_config(algorithm, saved)
    return Job(algorithm, saved["algorithm"], config, env, env_name=saved["env"], directory=directory, **asked)


def saved_state(job: Job, best_of: bool = False, from_update: int | None = None) -> Any:
    """The State of a run's newest checkpoint, of the one that did best in evaluations, or of that of an update.

    Raises:
        ValueError: where there is no such checkpoint, or it is damaged.
    """
    from rlx.run.checkpoint import restore

    if best_of:
        if from_update is not None:
            raise ValueError("the best checkpoint and that of an update are two: ask for one of them")
        top = best(read_rows(job.directory / "evaluations.jsonl"))
        if top is None:
            raise ValueError(f"{job.directory} has no evaluation yet to tell which weights are best")
        from_update = top["update"]
    like = state_shapes(job.algorithm, job.config, job.env)
    like = like if read_config(job.directory).get("checkpoint_replay", True) else without_replay(like)
    return restore(job.directory / "checkpoints", like, from_update, {"run": identity(job)})
