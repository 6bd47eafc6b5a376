"""What an hour gives on tasks that take PPO tens of millions of steps, beside what is published.

    python benchmarks/hours.py
    python benchmarks/hours.py --task brax/ant

Each is one seed of `rlx train ppo --env TASK` in its own directory, with the shipped settings except where some are
given here: those for CheetahRun are for fewer steps. One that was stopped is gone on with, and one that has come to its
end is only evaluated, on 128 whole episodes at the mode of its policy.
"""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from provenance import RESULTS, ROOT, commit, machine, versions
from rich.console import Console

from rlx.files import read_json, read_rows
from rlx.report import interval

MORE = ["--total-steps", 5_000_000, "--num-envs", 256, "--num-steps", 64, "--num-epochs", 8, "--num-minibatches", 16]
MORE += ["--learning-rate", 1e-3]
# Options of the environment, settings; and what is published, of others: return, steps, and where it is said.
TASKS = {
    "playground/CheetahRun": ([], MORE, 883.0, 100_000_000, "SLM-Lab, docs/BENCHMARKS.md, 4 seeds"),
    "brax/ant": (["backend=spring"], [], 6517.3, 30_000_000, "learn-rl-algorithms, configs.py, backend=positional"),
}
NUM_EPISODES = 128


def measure(task: str, folder: Path) -> dict:
    """Trains, or goes on, evaluates, and returns what came of it.

    Raises:
        subprocess.CalledProcessError: when a command fails; what it says has been shown.
    """
    rlx, run = Path(sys.executable).parent / "rlx", folder / task.replace("/", "-")
    begun = (run / "checkpoints").exists()
    ended = begun and read_rows(run / "metrics.jsonl")[-1]["update"] == read_json(run / "config.json")["updates"]
    options, settings, *published = TASKS[task]
    new = ["--env", task, "--env-options", *options, "--out", run, "--num-evaluations", 12, *settings]
    which = ["--resume", run] if begun else new
    for command in [["train", "ppo", *which]] * (not ended) + [["eval", run, "--num-episodes", NUM_EPISODES]]:
        subprocess.run([rlx, *map(str, command)], check=True)
    config, found = read_json(run / "config.json"), read_json(run / "evaluation.json")
    last = read_rows(run / "metrics.jsonl")[-1]
    curve = [{name: row[name] for name in ("step", "mean")} for row in read_rows(run / "evaluations.jsonl")]
    return {
        "task": task,
        "options": options,
        "config": config["config"],
        "steps": last["step"],
        "hours": last["seconds"] / 3600,
        "return": interval([np.array(found["returns"])]),
        "curve": curve,
        "published": dict(zip(("return", "steps", "source"), published, strict=True)),
    }


def main(task: str | None = None, folder: Path = ROOT / "runs" / "benchmarks" / "hours") -> None:
    """Trains and evaluates, and writes `hours.json`.

    Args:
        task: only this one.
        folder: of the run directories.
    """
    console, code, path = Console(), commit(), RESULTS / "hours.json"
    for name in TASKS if task is None else [task]:
        found = measure(name, folder) | {"commit": code}
        rows = {row["task"]: row for row in read_json(path)["tasks"]} if path.exists() else {}
        rows = list((rows | {name: found}).values())
        about = {"machine": machine(), "versions": versions("rlx", "jax", "jaxlib", "brax", "playground")}
        path.write_text(json.dumps({"tasks": rows} | about, indent=1) + "\n")
        console.print(f"{name}: {found['return']['value']:.1f} after {found['steps']:,} steps")


if __name__ == "__main__":
    import tyro

    tyro.cli(main)
