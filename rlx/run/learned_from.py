"""The data that a run or a sweep learns from: given, described, found again, and refused where it does not fit."""

from pathlib import Path
from typing import Any

import jax

from rlx.algorithm import checksum, short_name
from rlx.data.demonstrations import Demonstrations, load
from rlx.data.steps import Columns, columns
from rlx.env import Env
from rlx.hosted import host_of, is_hosted
from rlx.pytree import num_rows
from rlx.train import takes_data


def given_data(data: Demonstrations | Columns | str | Path | None, env: Env) -> dict[str, Any]:
    """The fields `data` and `data_about` of a job; none without data.

    Raises:
        ValueError: for a file that is none of demonstrations, or for data that does not fit the environment.
    """
    if data is None:
        return {}
    file = str(Path(data).resolve()) if isinstance(data, str | Path) else ""
    shown: Any = load(Path(data)) if isinstance(data, str | Path) else data
    found = shown if isinstance(shown, Columns) else columns(env, shown)
    of = shown.about.get("env", "") if isinstance(shown, Demonstrations) else ""
    return {"data": found, "data_about": described(found, file, of)}


def described(data: Any, file: str, env: str) -> dict[str, Any]:
    """What `config.json` says of columns of data: the file that they are from, its environment, their size, a checksum.

    The file is an empty text where they were given in Python.
    """
    returns = data.returns
    found = {"file": file, "env": env, "checksum": checksum(data), "episodes": len(returns), "steps": num_rows(data)}
    return found | {"mean_return": float(returns.mean())}


def saved_data(saved: dict[str, Any], env: Env) -> dict[str, Any]:
    """The same as `given_data` of a run or a sweep, from what it says of itself; none where it learned from none.

    Raises:
        ValueError: where the file is gone, has become another, or there was none.
    """
    if "data" not in saved:
        return {}
    if not saved["data"]["file"]:
        raise ValueError("the data was given in Python: resume it by the call that it was begun with")
    found = given_data(Path(saved["data"]["file"]), env)
    check_same(saved, found["data_about"])
    return found


def check_same(saved: dict[str, Any], now: dict[str, Any] | None) -> None:
    """Raises ValueError where the data is not that of the run whose `config.json` this is."""
    before = saved.get("data")
    if (before or {}).get("checksum") != (now or {}).get("checksum"):
        was, given = (x["file"] if x else "no data" for x in (before, now))
        raise ValueError(f"the run learned from {was} and the data in {given} is not the same: give --data of that")


def check_data(job: Any, devices: int = 1) -> None:
    """Raises ValueError where data is missing, or is there for what cannot learn from it.

    That is what steps on the host, and what is spread over several devices.
    """
    name = short_name(job.algorithm_name)
    if takes_data(job.algorithm) and job.data is None:
        raise ValueError(f"{name} learns from data: give --data FILE (data= in Python)")
    if job.data is not None and not takes_data(job.algorithm):
        raise ValueError(f"{name} does not learn from data: leave --data out")
    if job.data is not None and is_hosted(job.env):
        raise ValueError(f"{host_of(job.env).name} steps on the host, and {name} needs an environment of JAX")
    if job.data is not None and (devices > 1 or jax.process_count() > 1):
        raise ValueError(f"{name} learns from data on one device: leave --devices out")


def keywords_of(job: Any) -> dict[str, Any]:
    """What the algorithm's `update` is given beside the State."""
    return {} if job.data is None else {"data": job.data}


def in_words(data: dict[str, Any]) -> str:
    """What is said of the data of a run, from `data_about`."""
    of = f"{data['episodes']:,} episodes{' of ' * bool(data['env'])}{data['env']}, {data['steps']:,} steps"
    return f"{Path(data['file']).name or 'data'}, {of}, mean return {data['mean_return']:.1f}"
