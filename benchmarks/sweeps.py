"""Sweeps: against single processes, against Rejax's vmap, in memory, and what successive halving finds.

    python benchmarks/sweeps.py
    python benchmarks/sweeps.py --part halving --force

Every part is written to the result as soon as it is measured; a part that is there is skipped.
"""

import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Literal

import speed
from provenance import RESULTS, ROOT, commit, machine
from rich.console import Console

PARTS = ("lanes", "grid", "memory", "halving")
GRID = {"learning_rate": (3e-4, 1e-3, 3e-3), "clip": (0.1, 0.2), "num_envs": (4, 16)}
RATES = {"learning_rate": (1e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2), "entropy_coef": (0.0, 0.01), "clip": (0.1, 0.3)}
NUM_SEEDS, NUM_LANES = 8, 32


def command(*arguments: Any) -> tuple[str, float]:
    """What `rlx ...` prints, and its seconds.

    Raises:
        RuntimeError: with the command's own error when it fails.
    """
    start = time.perf_counter()
    process = subprocess.run(
        [Path(sys.executable).parent / "rlx", *map(str, arguments)], capture_output=True, text=True, cwd=ROOT
    )
    if process.returncode:
        raise RuntimeError(f"rlx {' '.join(map(str, arguments))}:\n{process.stdout}{process.stderr}")
    return process.stdout, time.perf_counter() - start


def flags(settings: dict[str, Any]) -> list[str]:
    """Settings as flags; several values of one become a grid."""
    text = lambda value: ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
    return [f"--{name.replace('_', '-')}={text(value)}" for name, value in settings.items()]


def summary(directory: Path) -> dict[str, Any]:
    return json.loads((directory / "summary.json").read_text())


def lanes_part(folder: Path, short: bool) -> dict[str, Any]:
    """Steps a second of many seeds, beside Rejax's vmap over as many; the libraries take turns."""
    settings = speed.CASES["CartPole-v1"][0] | {"total_steps": 2**11 if short else 2**16, "num_lanes": NUM_LANES}
    pythons = {"rlx_lanes": sys.executable, "rejax_lanes": speed.interpreter("rejax")}
    measured: dict[str, list[dict[str, Any]]] = {name: [] for name in pythons}
    for _ in range(1 if short else 3):
        for name, python in pythons.items():
            measured[name].append(speed.measurement(python, f"peers.{name}", settings, 3, "cpu"))
    of = lambda m: m["steps_per_second"]["median"]
    ratios = [of(a) / of(b) for a, b in zip(*measured.values(), strict=True)]
    return {"settings": settings, "measurements": measured, "ratios": ratios}


def grid_part(folder: Path, short: bool) -> dict[str, Any]:
    """One command for a grid, and the same lanes as one process after another."""
    fixed = {"env": "CartPole-v1", "total_steps": 2_000 if short else 100_000}
    _, together = command("sweep", "ppo", *flags(fixed | GRID), f"--num-seeds={NUM_SEEDS}", f"--out={folder / 'sweep'}")
    lanes = [dict(zip(GRID, values, strict=True)) for values in itertools.product(*GRID.values())]
    runs = [lane | {"seed": seed} for lane in lanes for seed in range(NUM_SEEDS)][: 2 if short else None]
    seconds = []
    for i, run in enumerate(runs):
        _, taken = command("train", "ppo", *flags(fixed | run), f"--out={folder / f'run{i}'}")
        seconds.append(round(taken, 3))
    apart = sum(seconds)
    return {
        "settings": fixed | {name: list(values) for name, values in GRID.items()} | {"num_seeds": NUM_SEEDS},
        "sweep": summary(folder / "sweep") | {"wall_seconds": together},
        "processes": {"seconds": seconds, "wall_seconds": apart},
        "ratio": apart / together,
    }


def memory_part(folder: Path, short: bool) -> dict[str, Any]:
    """Peak memory of short and long sweeps of the same lanes."""
    found = {}
    for updates in (10, 20 if short else 1000):
        out = folder / f"updates{updates}"
        settings = {"env": "CartPole-v1", "total_steps": updates * 4 * 128, "num_envs": 4, "num_steps": 128}
        command("sweep", "ppo", *flags(settings), "--num-seeds=8", f"--out={out}")
        found[str(updates)] = summary(out)["peak_memory_bytes"]
    short_run, long_run = found.values()
    return {"peak_memory_bytes": found, "ratio": long_run / short_run}


def halving_part(folder: Path, short: bool) -> dict[str, Any]:
    """What halving by 3 finds, beside the best of the full grid over the same lanes; 5 repetitions with other seeds."""
    repetitions = []
    fixed = {"env": "CartPole-v1", "total_steps": 4_000 if short else 100_000, "num_seeds": 4}
    for repetition in range(1 if short else 5):
        seed = f"--seed={100 * repetition}"
        full, halved = folder / f"full{repetition}", folder / f"halved{repetition}"
        command("sweep", "ppo", *flags(fixed | RATES), seed, f"--out={full}")
        command("sweep", "ppo", *flags(fixed | RATES), seed, "--halving=3", f"--out={halved}")
        scores = {row["configuration"]: row for row in json.loads((full / "ranking.json").read_text())}
        chosen = json.loads((halved / "ranking.json").read_text())[0]["configuration"]
        best = max(row["mean"] for row in scores.values())
        repetitions.append(
            {
                "best_of_grid": best,
                "found": scores[chosen]["mean"],
                "share": scores[chosen]["mean"] / best,
                "configuration": scores[chosen]["varied"],
                "steps_share": summary(halved)["steps"] / summary(full)["steps"],
                "steps_share_with_evaluation": (summary(halved)["steps"] + summary(halved)["evaluation_steps"])
                / (summary(full)["steps"] + summary(full)["evaluation_steps"]),
            }
        )
    settings = fixed | {name: list(values) for name, values in RATES.items()}
    return {"settings": settings, "repetitions": repetitions}


def main(
    part: Literal["lanes", "grid", "memory", "halving"] | None = None,
    force: bool = False,
    short: bool = False,
    out: Path = RESULTS / "sweeps.json",
) -> None:
    """Measures the parts that have no result yet.

    Args:
        part: only this one.
        force: measure also what is done.
        short: a few updates, to see that everything works; writes below runs/ unless told where.
        out: the JSON file.
    """
    if short:
        out = ROOT / "runs" / "benchmarks" / "sweeps.json" if out == RESULTS / "sweeps.json" else out
    out.parent.mkdir(parents=True, exist_ok=True)
    console, code = Console(), commit()
    for name in PARTS if part is None else (part,):
        result = json.loads(out.read_text()) if out.exists() else {}
        if name in result and not force:
            console.print(f"{name}: done, {out}")
            continue
        folder = Path(tempfile.mkdtemp(prefix="rlx-sweeps-"))
        os.environ["XDG_CACHE_HOME"] = str(folder / "cache")  # programs are compiled anew, and kept within a part
        with console.status(name):
            result[name] = globals()[f"{name}_part"](folder, short) | {"commit": code, "machine": machine()}
        shutil.rmtree(folder)
        partial = out.with_suffix(".partial")
        partial.write_text(json.dumps(result, indent=1) + "\n")
        partial.replace(out)
        console.print(f"{name}:", {k: v for k, v in result[name].items() if k in ("ratio", "ratios", "repetitions")})


if __name__ == "__main__":
    import tyro

    tyro.cli(main)
