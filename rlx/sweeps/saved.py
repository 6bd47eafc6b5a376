"""What is made of a sweep directory: the job of the sweep, and what it found."""

from pathlib import Path
from types import ModuleType

from rlx.algorithm import learned, saved_algorithm, saved_config
from rlx.env import Env
from rlx.files import loose, read_config, read_rows
from rlx.run.learned_from import saved_data
from rlx.run.saved import environment
from rlx.sweeps.job import SweepJob
from rlx.sweeps.results import Sweep
from rlx.sweeps.strategies import STRATEGIES, strategy_of


def saved_job(
    directory: Path, algorithm: ModuleType | None = None, env: Env | None = None, trains: bool = True
) -> SweepJob:
    """The sweep that a directory was made by, of its own algorithm and environment unless others are given.

    Where it only is to be read, and `trains` is False, the data that it learned from need not be there.

    Raises:
        ValueError: when it is none, or was made in Python with an environment that has no name.
    """
    saved = read_config(directory, "sweep.json")
    if env is None and saved["env"] is None:
        raise ValueError(f"{directory} was made in Python: call rlx.sweep again, as it was called, to resume it")
    algorithm = algorithm or saved_algorithm(directory, saved)
    if learned(algorithm) != {name: saved[name] for name in ("objective",) if name in saved}:
        raise ValueError(
            f"the objective in {saved['algorithm'].rpartition('+')[2]} is another than that of {directory}"
        )
    strategy = strategy_of({name: saved.get(name) for name in STRATEGIES})
    if saved.get("strategy", repr(strategy)) != repr(strategy):
        raise ValueError(f"{directory} has a strategy of its own, {saved['strategy']}: call rlx.sweep again, as it was")
    env = env or environment(saved["env"], saved["env_options"], saved["env_params"])
    names = ("env_options", "env_params", "num_seeds", "seed", "eval_episodes", "memory", "preset")
    return SweepJob(
        algorithm=algorithm,
        algorithm_name=saved["algorithm"],
        config=saved_config(algorithm, saved),
        env=env,
        env_name=saved["env"],
        points=[{name: loose(value) for name, value in point.items()} for point in saved["points"]],
        directory=directory,
        strategy=strategy,
        rank_by=saved.get("rank_by", "return"),
        sinks=tuple(saved.get("log", ())),
        stop_at_return=saved.get("stop_at_return"),
        patience=saved.get("patience"),
        **(saved_data(saved, env) if trains else {"data_about": saved.get("data")}),
        **{name: saved[name] for name in names},
    )


def load_sweep(directory: Path, env: Env | None = None, algorithm: ModuleType | None = None) -> Sweep:
    """A sweep that has come to its end, from its directory; `env` is for one that was given it in Python.

    Raises:
        ValueError: when it is none, or has not ended.
    """
    job = saved_job(directory, algorithm, env, trains=False)
    rows = read_rows(directory / "lanes.jsonl")
    if len(rows) < len(job.points) * job.num_seeds:
        raise ValueError(f"{directory} has not ended: resume it by rlx sweep --resume {directory}")
    return Sweep(job, rows)
