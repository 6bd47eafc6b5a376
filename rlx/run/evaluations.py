"""Evaluations of a run, and the pictures that are drawn of it."""

import math
from contextlib import suppress
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console

from rlx.devices.hosts import fetch
from rlx.files import strict
from rlx.run.job import Job
from rlx.run.playing import evaluate
from rlx.run.render import record, write
from rlx.run.streams import importing_matplotlib
from rlx.train import Episodes, steps_taken

SHOWN = 4  # of what an environment reported, in the line of an evaluation


def evaluate_run(
    job: Job,
    state: Any,
    key: jax.Array,
    num_episodes: int,
    console: Console,
    deterministic: bool = True,
    program: Any = None,
) -> dict[str, Any]:
    """Evaluates on whole episodes and prints the result. Returns it as strict JSON.

    A `program` is that of `rlx.train.play` for these episodes, compiled.
    """
    if program is None:
        found = evaluate(job.algorithm, job.config, job.env, state, key, num_episodes, deterministic, job.host_timeout)
    else:
        found = program(job.config, job.env, state, key)
    episodes = fetch(found)
    result = evaluation(episodes, int(state.num_updates), job.config, deterministic)
    console.print(
        f"evaluation after {result['step']:,} steps: mean return {float(result['mean']):.1f}, "
        f"standard deviation {float(result['std']):.1f}, {num_episodes} episodes{in_words(result['reported'])}"
    )
    if result["diverged"]:
        console.print(
            f"{result['diverged']} episodes ended in an observation or a reward that is not finite and count in no mean"
        )
    if result["unfinished"]:
        console.print(
            f"{result['unfinished']} episodes did not end within the evaluation's step limit and count in part"
        )
    return result


def in_words(reported: dict[str, Any]) -> str:
    """A few of the means of what the environment reported, in words, successes first."""
    names = sorted(reported, key=lambda name: ("success" not in name, name))[:SHOWN]
    return "".join(f", {name} {float(reported[name]):.3g}" for name in names)


def render_episode(job: Job, state: Any, key: jax.Array, step: int, console: Console) -> None:
    """Draws an episode into the run directory; training continues where that fails, for example without a display."""
    path = job.directory / "episodes" / f"{step}.gif"
    temporary = path.with_name(f"{step}.tmp.gif")  # a sink finds whole pictures only
    try:
        write(job.env, record(job.algorithm, job.config, job.env, state, key)[0], temporary)
        temporary.replace(path)
    except Exception as error:  # whatever a renderer raises, a picture is not worth a run
        console.print(f"no picture of an episode: {error}")
    else:
        console.print(f"an episode: {path}")


def evaluation(episodes: Episodes, num_updates: int, config: Any, deterministic: bool = True) -> dict[str, Any]:
    """What is kept of an evaluation after `num_updates` updates, as strict JSON.

    Episodes that diverged have no return: they are counted, and mean and deviation are of the others, NaN without any.
    So are the means of what the environment reported, each over the episodes in which it is finite.
    """
    diverged = np.asarray(episodes.diverged)
    returns = np.where(diverged, np.nan, np.asarray(episodes.returns, np.float64))
    whole = returns[~diverged]
    found = {
        "mean": float(whole.mean()) if len(whole) else math.nan,
        "std": float(whole.std()) if len(whole) and np.isfinite(whole).all() else math.nan,
        "num_episodes": len(returns),
        "mean_length": float(np.mean(episodes.lengths)),
        "unfinished": int((~np.asarray(episodes.finished)).sum()),
        "diverged": int(diverged.sum()),
        "reported": {name: mean_of_finite(x, ~diverged) for name, x in episodes.reported.items()},
        "deterministic": deterministic,
        "update": num_updates,
        "step": steps_taken(config, num_updates),
        "returns": returns.tolist(),
    }
    return strict(found)


def mean_of_finite(x: Any, chosen: np.ndarray) -> float:
    """The mean of the finite ones of those chosen, in double precision; NaN where there is none."""
    values = np.asarray(x, np.float64)[chosen]
    values = values[np.isfinite(values)]
    return float(values.mean()) if values.size else math.nan


def best(evaluations: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The evaluation with the highest finite mean return, of equal ones the last; None where there is none at all."""
    rank = lambda row: (mean if math.isfinite(mean := float(row["mean"])) else -math.inf, row["update"])
    return max(evaluations, key=rank, default=None)


def draw(directory: Path, console: Console) -> bool:
    """Draws `curve.png` of a run directory, or says why it cannot be; returns whether it is there."""
    temporary = directory / "curve.tmp.png"
    try:
        with importing_matplotlib():
            from rlx.plot.curves import curve

        curve([directory], temporary)
        temporary.replace(directory / "curve.png")
    except Exception as error:  # whatever a plotting library raises, a picture is not worth a run
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        console.print(f"no curve.png, everything else is in {directory}: {' '.join(str(error).split())}")
        return False
    return True
