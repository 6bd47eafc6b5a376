"""Speed of PPO and SAC against Rejax: the same settings, the same number of steps, on the same machine.

    python benchmarks/speed.py

Every measurement is a process of its own, the libraries take turns, and the persistent compilation cache is off. Each
runs the way its own documentation jits a whole run, in its own environment; Rejax's is made in `.venvs/rejax` from
`peers/rejax.txt`. Nothing is evaluated within the program that is timed.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Literal

from provenance import RESULTS, ROOT, commit, machine
from rich.console import Console
from rich.table import Table

HERE = Path(__file__).resolve().parent
PPO = {
    "num_steps": 128,
    "num_epochs": 4,
    "hidden_sizes": [64, 64],
    "learning_rate": 2.5e-4,
    "anneal_learning_rate": False,
    "gamma": 0.99,
    "gae_lambda": 0.95,
    "clip": 0.2,
    "value_clip": 0.2,
    "value_coef": 0.5,
    "entropy_coef": 0.01,
    "max_grad_norm": 0.5,
    "adam_epsilon": 1e-8,
}
SAC = {
    "env": "Pendulum-v1",
    "total_steps": 2**8 + 2**12,
    "warmup_steps": 2**8,
    "num_envs": 1,
    "num_steps": 64,
    "utd_ratio": 1,
    "batch_size": 256,
    "hidden_sizes": [64, 64],
    "activation": "relu",
    "learning_rate": 3e-4,
    "gamma": 0.99,
    "tau": 0.005,
}
# total_steps are whole updates, and about a second or more of work
CASES = {
    "CartPole-v1": PPO
    | {"env": "CartPole-v1", "total_steps": 2**18, "num_envs": 4, "num_minibatches": 4, "activation": "tanh"},
    "Breakout-MinAtar": PPO
    | {"env": "Breakout-MinAtar", "total_steps": 2**19, "num_envs": 64, "num_minibatches": 8, "activation": "relu"},
    # The buffers of Rejax's settings for this task, of its SAC by default, and of the paper.
    "SAC, buffer 10^4": SAC | {"capacity": 10_000},
    "SAC, buffer 2^17": SAC | {"capacity": 2**17},
    "SAC, buffer 10^6": SAC | {"capacity": 1_000_000},
}
LIBRARIES = ("rlx", "rejax")
QUANTITIES: dict[str, tuple[Callable, str]] = {
    "steps/s": (lambda m: m["steps_per_second"]["median"], ",.0f"),
    "trace + compile, s": (lambda m: m["trace_seconds"] + m["compile_seconds"], ".2f"),
    "trace, s": (lambda m: m["trace_seconds"], ".2f"),
    "compile, s": (lambda m: m["compile_seconds"], ".2f"),
    "import, s": (lambda m: m["import_seconds"], ".2f"),
    "peak memory, MiB": (lambda m: m["peak_memory_bytes"] / 2**20, ",.0f"),
}


def algorithm(case: str) -> str:
    """Which of the algorithms a case measures."""
    return "sac" if case.startswith("SAC") else "ppo"


def rejax_python() -> Path:
    """The interpreter of Rejax's environment, which is made when it is not there or its pins have changed."""
    pins, folder = HERE / "peers" / "rejax.txt", ROOT / ".venvs" / "rejax"
    installed, python = folder / "installed.txt", folder / "bin" / "python"
    if not installed.exists() or installed.read_text() != pins.read_text():
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", "-r", pins], check=True)
        shutil.copy(pins, installed)
    return python


def measurement(python: Path | str, module: str, settings: dict, num_runs: int, platform: str) -> dict:
    """One process of a module of `peers`: what `peers.measure.measure` returns.

    Raises:
        RuntimeError: with the process's own error when it fails.
    """
    variables = os.environ | {"JAX_ENABLE_COMPILATION_CACHE": "false", "JAX_PLATFORMS": platform}
    command = [python, "-m", module, json.dumps(settings), str(num_runs)]
    process = subprocess.run(command, cwd=HERE, env=variables, capture_output=True, text=True)
    if process.returncode:
        raise RuntimeError(f"{module} failed on {settings['env']}:\n{process.stderr}")
    return json.loads(process.stdout.splitlines()[-1])


def rows(result: dict) -> list[tuple[str, str, str, str, str]]:
    """Case, quantity, rlx, Rejax, rlx / Rejax: medians over the repeats; the ratio is of neighbours, with its range."""
    found = []
    for case in result["settings"]:
        pair = [[m for m in result["measurements"] if (m["case"], m["library"]) == (case, name)] for name in LIBRARIES]
        for quantity, (of, form) in QUANTITIES.items():
            ours, theirs = ([of(m) for m in measurements] for measurements in pair)
            ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
            ratio = f"{median(ratios):.2f} [{min(ratios):.2f}, {max(ratios):.2f}]"
            found.append((case, quantity, format(median(ours), form), format(median(theirs), form), ratio))
    return found


def main(
    case: Literal[*CASES] | None = None,
    repeats: int = 3,
    num_runs: int = 5,
    platform: str = "cpu",
    short: bool = False,
    out: Path = RESULTS / "speed.json",
) -> None:
    """Measures, prints the table and writes the result.

    Args:
        case: only this one.
        repeats: processes of each library for each case.
        num_runs: runs of the compiled program in each process.
        platform: what jax runs on.
        short: a few updates each, to see that everything works; writes below runs/ unless told where.
        out: the JSON file.
    """
    cases = {name: settings for name, settings in CASES.items() if case in (None, name)}
    if short:
        few = lambda s: s.get("warmup_steps", 0) + 4 * s["num_envs"] * s["num_steps"]
        cases = {name: s | {"total_steps": few(s)} for name, s in cases.items()}
        out = ROOT / "runs" / "benchmarks" / "speed.json" if out == RESULTS / "speed.json" else out
    console, code = Console(stderr=True), commit()
    with console.status("environment of Rejax"):
        pythons = {"rlx": sys.executable, "rejax": rejax_python()}
    measurements = []
    for name, settings in cases.items():
        for repeat in range(repeats):
            for library, python in pythons.items():
                with console.status(f"{name}, {library}, {repeat + 1} of {repeats}"):
                    measured = measurement(python, f"peers.{library}_{algorithm(name)}", settings, num_runs, platform)
                about = {"case": name, "library": library, "repeat": repeat, "commit": code}
                measurements.append(about | measured)
                speed = measured["steps_per_second"]["median"]
                console.print(f"{name}, {library}, {repeat + 1} of {repeats}: {speed:,.0f} steps/s")
    result = {"machine": machine(), "settings": cases, "measurements": measurements}
    if case is not None and out.exists():  # what was measured of the other cases stays
        before = json.loads(out.read_text())
        others = [m for m in before["measurements"] if m["case"] != case]
        result |= {"settings": before["settings"] | cases, "measurements": others + measurements}
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=1) + "\n")

    ours, theirs = (next(m for m in measurements if m["library"] == name)["versions"] for name in LIBRARIES)
    table = Table("case", "quantity", "rlx", "Rejax", "rlx / Rejax", title=f"on {measurements[0]['device']}")
    for row in rows(result):
        table.add_row(*row)
    Console().print(table)
    for package in ("jax", "jaxlib", "gymnax"):
        console.print(f"{package}: {ours[package]} for rlx, {theirs[package]} for Rejax")


if __name__ == "__main__":
    import tyro

    tyro.cli(main)
