"""`rlx.fit`: what `rlx train` does, from Python."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
from rich.console import Console

from rlx import source
from rlx.agent import PRECISION, Agent, load
from rlx.algorithm import checksum, load_algorithm, name_of
from rlx.data.demonstrations import Demonstrations
from rlx.data.steps import Columns
from rlx.env import Env
from rlx.files import read_config, read_rows, strict
from rlx.run.job import CHECKPOINT_SECONDS, Job, identity
from rlx.run.learned_from import check_data, given_data
from rlx.run.loop import execute
from rlx.run.pause import Hook
from rlx.run.saved import named
from rlx.run.sinks import check_names
from rlx.run.storage import owned
from rlx.run.watching import LIMIT
from rlx.train import check, check_arguments, total_updates


@dataclass(frozen=True)
class Run:
    """A run that has come to its end, or was stopped by a rule or a hook.

    Attributes:
        agent: its policy, and the State that it ended with.
        metrics: rows of `metrics.jsonl`.
        evaluations: rows of `evaluations.jsonl`.
        complete: whether it made all its updates.
        died: whether an update turned its State into NaN or infinity: the agent is of the one before.
        directory: that it left behind.
    """

    agent: Agent
    metrics: list[dict[str, Any]]
    evaluations: list[dict[str, Any]]
    complete: bool
    died: bool
    directory: Path


def fit(
    algorithm: ModuleType | str,
    config: Any,
    env: Env | str,
    *,
    directory: str | Path,
    seed: int = 0,
    after: Hook | None = None,
    every: int = 1,
    env_name: str | None = None,
    num_evaluations: int = 1,
    eval_episodes: int = 32,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
    checkpoint_replay: bool = True,
    render_every: int = 0,
    stop_at_return: float | None = None,
    patience: int | None = None,
    max_seconds: float | None = None,
    log: Sequence[str] = (),
    devices: int = 1,
    host_timeout: float = LIMIT,
    overlap: bool = False,
    data: Demonstrations | Columns | str | Path | None = None,
    console: Console | None = None,
) -> Run:
    """Trains in a run directory as `rlx train` does: with logs, evaluations and checkpoints; resumes what it holds.

        def halve(pause):
            if pause.metrics["episode_return"] is not None and pause.metrics["episode_return"] > 400:
                pause.change(learning_rate=pause.config.learning_rate / 2)

        run = rlx.fit(ppo, ppo.Config(total_steps=500_000), "CartPole-v1", directory="runs/a", after=halve, every=50)
        run.agent.act(obs)

    A run of the same settings in `directory` is resumed, bitwise: also after Ctrl-C, and after a hook has raised. So is
    one with a larger `total_steps`.

    Args:
        algorithm: the module, or its name.
        config: its Config, as it is: tuned settings are not looked up.
        env: an environment, or a name that `rlx.envs.make` takes.
        directory: of the run; new, empty, or of the same run.
        seed: of the whole run.
        after: a hook: is called with a `rlx.run.Pause` after every `every` updates and may stop the run or change its
            traced settings. What it does has to follow from what it is given, if a resumed run is to be the same one.
        every: updates between two calls of the hook.
        env_name: by which `rlx.envs.make` makes the environment that is given as an object; without a name the command
            line cannot use the run.
        num_evaluations: evenly spread over the run, the last one at its end.
        eval_episodes: of each evaluation.
        checkpoint_seconds: between two checkpoints.
        checkpoint_replay: whether they hold the replay buffer.
        render_every: draw an episode at every so many evaluations; 0 for never.
        stop_at_return: stop where training episodes return this much, see `rlx.stopping`.
        patience: stop after so many hundredths of the run without a better return, see there.
        max_seconds: of this call, after which the run stops.
        log: sinks beside the log of record, such as csv.
        devices: that the environments are spread over.
        host_timeout: seconds that a step of an environment on the host may take.
        overlap: step it while the device learns, with the policy of one update before.
        data: what to learn from, for an algorithm such as iql: demonstrations, columns of them or the name of a file.
        console: where progress is shown; by default nowhere.

    Raises:
        Fault: where an environment on the host fails (`rlx.hosted.Fault`), when everything is saved.
        ValueError: for settings that do not fit; for a directory that holds something else.
        KeyboardInterrupt: after Ctrl-C, when everything is saved: the same call resumes the run.
    """
    algorithm = load_algorithm(algorithm) if isinstance(algorithm, str) else algorithm
    env_name, env = _named(env, env_name)
    check_arguments("init update act", algorithm, config, env, kwargs={"data": None if data is None else 0})
    check(algorithm, config, env)
    _check_numbers(every=every, num_evaluations=num_evaluations, eval_episodes=eval_episodes, devices=devices)
    _check_rest(seed, checkpoint_seconds, render_every, after, log, max_seconds=max_seconds, host_timeout=host_timeout)
    job = Job(
        algorithm=algorithm,
        algorithm_name=name_of(algorithm),
        config=config,
        env=env,
        env_name=env_name,
        env_options={},
        seed=seed,
        directory=Path(directory),
        num_evaluations=num_evaluations,
        eval_episodes=eval_episodes,
        checkpoint_seconds=checkpoint_seconds,
        checkpoint_replay=checkpoint_replay,
        devices=devices,
        render_every=render_every,
        sinks=tuple(log),
        stop_at_return=stop_at_return,
        patience=patience,
        max_seconds=max_seconds,
        after=after,
        every=every,
        host_timeout=host_timeout,
        overlap=overlap,
        **given_data(data, env),
    )
    check_data(job, job.devices)
    return _ran(job, console or Console(quiet=True))


def _named(env: Env | str, env_name: str | None) -> tuple[str | None, Env]:
    """The full name of an environment, if it has one, and the environment."""
    if isinstance(env, str):
        return named(env)
    if env_name is None:
        return None, env
    env_name, same = named(env_name)
    if checksum(same) != checksum(env):
        raise ValueError(f"env is not as rlx.envs.make makes {env_name}: leave env_name out")
    return env_name, env


def _check_numbers(**numbers: Any) -> None:
    for name, number in numbers.items():
        if type(number) is not int or number < 1:
            raise ValueError(f"{name} = {number!r}: give an integer of at least 1")


def _check_rest(seed: Any, checkpoint_seconds: Any, render_every: Any, after: Any, log: Any, **seconds: Any) -> None:
    check_names(log)
    if type(seed) is not int or not 0 <= seed < 2**31:
        raise ValueError(f"seed = {seed!r}: give an integer from 0 to 2^31 - 1")
    if not checkpoint_seconds >= 0:
        raise ValueError(f"checkpoint_seconds = {checkpoint_seconds}: give 0 or more")
    if type(render_every) is not int or render_every < 0:
        raise ValueError(f"render_every = {render_every!r}: give 0 for never, or a number of evaluations")
    for name, number in seconds.items():
        if number is not None and not number > 0:
            raise ValueError(f"{name} = {number}: give more than 0, or None")
    if after is not None and not callable(after):
        raise ValueError(f"after = {after!r} is no function of a rlx.run.Pause")


def _ran(job: Job, console: Console) -> Run:
    """Runs the job, or what is left of it."""
    resume = _resumes(job)
    # As `rlx train` has it: on GPUs JAX would else multiply with fewer digits, which changes what is learned.
    precision = jax.default_matmul_precision(jax.config.jax_default_matmul_precision or PRECISION)  # pyright: ignore[reportAttributeAccessIssue]
    with owned(job.directory, resume=resume), precision:
        status = 0 if resume and _finished(job) else execute(job, console, resume)
    if status > 1:
        raise KeyboardInterrupt(f"status {status}: {job.directory} holds everything; the same call resumes it")
    rows, evaluations = (read_rows(job.directory / f"{kind}.jsonl") for kind in ("metrics", "evaluations"))
    agent = load(job.directory, env=job.env, algorithm=job.algorithm)
    complete = agent.num_updates >= total_updates(job.config)
    return Run(agent, rows, evaluations, complete, status == 1, job.directory)


def _resumes(job: Job) -> bool:
    """Whether the directory holds a run, which has to be the same one."""
    path = job.directory / "config.json"
    if not job.directory.exists() or not any(job.directory.iterdir()):
        return False
    if not path.exists():
        raise ValueError(f"{job.directory} is not empty and not a run: give another directory")
    saved = read_config(job.directory)
    now = identity(job) | {"algorithm": job.algorithm_name, "env_checksum": checksum(job.env)}
    before = saved | {"config": {name: value for name, value in saved["config"].items() if name != "total_steps"}}
    now = json.loads(json.dumps(strict(now)))
    changed = [f"{name} = {before.get(name)} -> {value}" for name, value in now.items() if before.get(name) != value]
    changed += [f"{file} {what}" for file, what in source.changes(job.algorithm_name, saved, job.algorithm).items()]
    if (saved.get("data") or {}).get("checksum") != (job.data_about or {}).get("checksum"):
        changed.append("data is not what it learned from")
    if changed:
        raise ValueError(f"{job.directory} holds another run: {'; '.join(changed)}")
    return True


def _finished(job: Job) -> bool:
    """Whether nothing is left to do in the directory of a run."""
    from rlx.run.checkpoint import numbers

    made = all((job.directory / name).exists() for name in ("evaluation.json", "curve.png"))
    return made and max(numbers(job.directory / "checkpoints"), default=0) >= total_updates(job.config)
