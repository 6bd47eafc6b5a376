"""Returns of Rejax on tasks of the learning table: the same settings, steps, number of seeds and of episodes.

    python benchmarks/peer_returns.py
    python benchmarks/peer_returns.py --task CartPole-v1 --force

The settings are those with which rlx was measured there, as far as Rejax has them: it has no annealing of the learning
rate, clips the value loss by the policy's clip, and gradients element by element. It is evaluated as rlx is, at the
mode of its policy. A task whose result is there is skipped.
"""

import json
import os
import subprocess
from pathlib import Path

import numpy as np
from provenance import RESULTS, commit, machine
from rich.console import Console
from speed import HERE, interpreter

from rlx.files import read_json
from rlx.report import interval, iqm

TASKS = ("ppo-CartPole-v1", "ppo-Acrobot-v1", "ppo-Pendulum-v1", "ppo-Breakout-MinAtar", "sac-Pendulum-v1")


def measure(ours: dict) -> dict:
    """What Rejax comes to where rlx has come to `ours`, a result of returns.py.

    Raises:
        RuntimeError: with the process's own error when it fails.
    """
    settings = ours["config"] | {"env": ours["env"].removeprefix("gymnax/")}
    command = [interpreter("rejax"), "-m", "peers.rejax_returns", ours["algorithm"], json.dumps(settings)]
    command += [str(len(ours["seeds"])), str(ours["episodes_per_seed"])]
    variables = os.environ | {"JAX_PLATFORMS": "cpu"}
    process = subprocess.run(command, cwd=HERE, env=variables, capture_output=True, text=True)
    if process.returncode:
        raise RuntimeError(f"Rejax failed on {settings['env']}:\n{process.stderr}")
    found = json.loads(process.stdout.splitlines()[-1])
    returns = np.array(found["returns"])
    about = {"task": ours["task"], "algorithm": ours["algorithm"], "library": "Rejax", "settings": settings}
    return about | found | {"mean": interval([returns]), "iqm": interval([returns], iqm)}


def main(task: str | None = None, force: bool = False, out: Path = RESULTS / "peer_returns") -> None:
    """Measures the tasks that have no result yet.

    Args:
        task: only this one.
        force: measure also what is done.
        out: folder of the JSON files.
    """
    console, code = Console(), commit()
    out.mkdir(parents=True, exist_ok=True)
    for name in TASKS:
        path = out / f"{name}.json"
        if task not in (None, name.partition("-")[2]) or (path.exists() and not force):
            continue
        found = measure(read_json(RESULTS / "returns" / f"{name}.json"))
        path.write_text(json.dumps(found | {"machine": machine(), "commit": code}, indent=1) + "\n")
        console.print(f"{name}: mean return {found['mean']['value']:.1f} after {found['steps']:,} steps")


if __name__ == "__main__":
    import tyro

    tyro.cli(main)
