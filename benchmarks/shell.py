"""Seconds from the shell to the exit: one run beside a script that uses Rejax, and many seeds beside many processes.

    python benchmarks/shell.py

Each is measured with a warm compilation cache, after a first time that is not counted. The script with Rejax trains on
the same settings for as many steps, evaluates once at the end, keeps its programs on disk as rlx does, and writes
nothing; rlx evaluates as well, and writes its log, its checkpoints and its curve. Of the processes, which come one
after another, some are measured, and their mean stands for the others.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from statistics import mean
from typing import Any

from provenance import RESULTS, ROOT, commit, machine, versions
from rich.console import Console
from speed import CASES, HERE, interpreter

from rlx.algos import ppo
from rlx.presets import preset

STEPS, NUM_SEEDS, LIFE = 100_000, 128, 50_000


def wall(command: list[Any], folder: Path) -> float:
    """Seconds of a command.

    Raises:
        RuntimeError: with its own error when it fails.
    """
    cached = {"XDG_CACHE_HOME": str(folder / "cache"), "JAX_COMPILATION_CACHE_DIR": str(folder / "cache" / "peer")}
    start = time.perf_counter()
    process = subprocess.run([*map(str, command)], cwd=HERE, env=os.environ | cached, capture_output=True, text=True)
    if process.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))}:\n{process.stdout}{process.stderr}")
    return time.perf_counter() - start


def script(folder: Path, turns: int, steps: int) -> dict[str, Any]:
    """`python algos/ppo.py` beside a script that does the same with Rejax."""
    shipped = asdict(preset(ppo, "gymnax/CartPole-v1"))
    settings = {name: shipped.get(name, value) for name, value in CASES["CartPole-v1"][0].items()}
    settings |= {"total_steps": steps}
    ours = [sys.executable, ROOT / "algos" / "ppo.py", "--env", settings["env"], "--total-steps", steps]
    commands = {
        "rlx": lambda i: [*ours, "--out", folder / f"run{i}"],
        "the other": lambda i: [interpreter("rejax"), "-m", "peers.rejax_script", json.dumps(settings)],
    }
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for i in range(1 + turns):
        for name, command in commands.items():
            seconds[name].append(wall(command(i), folder))
    first = {name: found.pop(0) for name, found in seconds.items()}
    what = {"case": f"PPO on CartPole-v1, {steps:,} steps", "beside": "a script with Rejax", "at_most": 0.5}
    return what | {"first_seconds": first, "seconds": seconds}


def processes(folder: Path, num_processes: int, num_seeds: int, steps: int) -> dict[str, Any]:
    """One command for many seeds beside one process after another."""
    rlx = Path(sys.executable).parent / "rlx"
    fixed = ["--env", "CartPole-v1", "--total-steps", steps]
    sweep = lambda i: wall([rlx, "sweep", "ppo", *fixed, "--num-seeds", num_seeds, "--out", folder / f"s{i}"], folder)
    train = lambda i: wall([rlx, "train", "ppo", *fixed, "--seed", i, "--out", folder / f"t{i}"], folder)
    first = {"rlx": sweep(0), "the other": train(0)}
    together, apart = sweep(1), [train(1 + i) for i in range(num_processes)]
    what = {"case": f"{num_seeds} seeds of PPO on CartPole-v1, {steps:,} steps each, in one program"}
    what |= {"beside": f"as many processes, of which {num_processes} are measured", "at_most": 1 / 8}
    seconds = {"rlx": [together], "the other": [num_seeds * mean(apart)]}
    return what | {"first_seconds": first, "seconds": seconds, "process_seconds": apart}


def main(turns: int = 5, num_processes: int = 16, short: bool = False, out: Path = RESULTS / "shell.json") -> None:
    """Measures and writes the result.

    Args:
        turns: of the two scripts.
        num_processes: that are measured.
        short: few steps and one turn, to see that everything works; writes below runs/ unless told where.
        out: the JSON file.
    """
    if short:
        turns, num_processes = 1, 1
        out = ROOT / "runs" / "benchmarks" / "shell.json" if out == RESULTS / "shell.json" else out
    code, console = commit(), Console()
    with tempfile.TemporaryDirectory() as folder:
        cases = [script(Path(folder), turns, 2048 if short else STEPS)]
        console.print(cases[0])
        sizes = (4, 2048) if short else (NUM_SEEDS, LIFE)
        cases.append(processes(Path(folder), num_processes, *sizes))
        console.print(cases[1])
    about = {"commit": code, "machine": machine(), "versions": versions("rlx", "jax", "jaxlib")}
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({"cases": cases} | about, indent=1) + "\n")


if __name__ == "__main__":
    import tyro

    tyro.cli(main)
