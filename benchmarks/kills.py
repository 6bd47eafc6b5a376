"""Survival: runs are killed at random moments and resumed, and have to end as the run that was left alone.

    python benchmarks/kills.py

The command is run once undisturbed. Then, again and again, it is started in an empty folder, gets a signal at a moment
that is uniform over the life of the undisturbed process (imports, compilation, checkpoints and evaluations included),
and what is left is resumed until it ends, or started anew where nothing was written yet. In the end everything that
the command left has to be the same, bit for bit. A moment is so many seconds after a piece of progress: a machine that
others use too would shift all of them to the start otherwise.
"""

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from provenance import RESULTS, commit, machine, versions
from rich.console import Console

from rlx.algorithm import load_algorithm, saved_config
from rlx.files import read_config, read_rows
from rlx.run import checkpoint
from rlx.run.saved import environment
from rlx.sweeps.saved import load_sweep

LOGS = ("metrics.jsonl", "evaluations.jsonl")
POLL = 0.02  # seconds
TRIES = 5  # how often a run may be resumed before it has to have ended


@dataclass(frozen=True)
class Case:
    """A command that leaves a folder behind and can be killed."""

    start: list[str]  # the command, run beside the folder
    resume: list[str]  # the command that goes on with the folder
    folder: str
    begun: Callable[[Path], bool]  # whether the folder holds something to go on with
    ended: Callable[[Path], bool]  # whether nothing is left to do there: the kill came as the process was leaving
    progress: Callable[[Path], int]  # how far a folder is, 0 where nothing is done yet
    found: Callable[[Path], str]  # where a folder stands, in words
    differences: Callable[[Path, Path], list[str]]  # names of what differs between two folders


def training(total_steps: int) -> Case:
    """PPO on CartPole with evaluations and a checkpoint after every chunk."""
    rlx = [sys.executable, "-m", "rlx", "train"]
    often = ["--checkpoint-seconds", "0"]
    options = ["--env", "CartPole-v1", "--total-steps", str(total_steps), "--num-evaluations", "5"]
    return Case(
        start=[*rlx, "ppo", *options, "--out", "run", *often],
        resume=[*rlx, "--resume", "run", *often],
        folder="run",
        begun=lambda run: (run / "config.json").exists(),
        ended=lambda run: (run / "evaluation.json").exists() and (run / "curve.png").exists(),  # its last files
        progress=progress,
        found=stand,
        differences=differences,
    )


def sweeping(total_steps: int) -> Case:
    """Successive halving of PPO on CartPole in two programs, with a checkpoint after every chunk."""
    rlx = [sys.executable, "-m", "rlx", "sweep"]
    often = ["--checkpoint-seconds", "0"]
    grid = ["--learning-rate", "1e-4,1e-3,3e-3", "--num-envs", "4,16", "--num-seeds", "4", "--halving", "3"]
    return Case(
        start=[*rlx, "ppo", "--env", "CartPole-v1", "--total-steps", str(total_steps), *grid, "--out", "run", *often],
        resume=[*rlx, "--resume", "run", *often],
        folder="run",
        begun=lambda run: (run / "sweep.json").exists(),
        ended=lambda run: (run / "summary.json").exists(),
        progress=lambda run: sum(progress(batch) for batch in (run / "batches").glob("*/")),
        found=lambda run: f"{len(list(run.glob('batches/*/result.json')))} batches done" if run.exists() else "nothing",
        differences=sweep_differences,
    )


def sweep_differences(a: Path, b: Path) -> list[str]:
    """The files, lanes and their logs that are not the same, seconds aside; of lanes the final State, bit for bit."""
    found = [
        name
        for name in ("lanes.jsonl", "results.csv", "ranking.json")
        if (a / name).read_bytes() != (b / name).read_bytes()
    ]
    sweeps = [load_sweep(path) for path in (a, b)]
    for lane in range(len(sweeps[0].lanes)):
        states = [bits(sweep.state(lane)) for sweep in sweeps]
        logs = [[row | {"seconds": None} for row in sweep.log(lane)] for sweep in sweeps]
        found += [f"lane {lane}"] if states[0] != states[1] or logs[0] != logs[1] else []
    return found + [f"best: {name}" for name in differences(a / "best", b / "best")]


def progress(run: Path) -> int:
    """The update of the last line of the log that is whole."""
    log = run / "metrics.jsonl"
    lines = log.read_bytes()[-4096:].split(b"\n")[:-1] if log.exists() else []
    return json.loads(lines[-1])["update"] if lines else 0


def stand(run: Path) -> str:
    """What a killed run has on disk."""
    if not (run / "config.json").exists():
        return "nothing"
    known = checkpoint.numbers(run / "checkpoints")
    steps = {"a checkpoint half written": any((run / "checkpoints").glob("*.partial"))}
    steps |= {name: (run / name).exists() for name in ("evaluation.json", "curve.png")}
    parts = [f"update {known[-1]}" if known else "no checkpoint", f"{len(read_rows(run / LOGS[1]))} evaluations"]
    return ", ".join(parts + [name for name, there in steps.items() if there])


def differences(a: Path, b: Path) -> list[str]:
    """The leaves of the final State, the logs and the last evaluation that are not the same, seconds aside."""
    states = [final_state(run) for run in (a, b)]
    found = [name for name in states[0] | states[1] if states[0].get(name) != states[1].get(name)]
    for log in LOGS:
        rows = [[row | {"seconds": None} for row in read_rows(run / log)] for run in (a, b)]
        found += [log] if rows[0] != rows[1] else []
    texts = [(run / "evaluation.json").read_bytes() for run in (a, b)]
    return found + (["evaluation.json"] if texts[0] != texts[1] else [])


def final_state(run: Path) -> dict[str, tuple]:
    """Dtype, shape and bytes of every leaf of the newest checkpoint."""
    saved = read_config(run)
    algorithm = load_algorithm(saved["algorithm"])
    env = environment(saved["env"], saved["env_options"], saved["env_params"])
    like = jax.eval_shape(algorithm.init, saved_config(algorithm, saved), env, jax.random.key(0))
    return bits(checkpoint.restore(run / "checkpoints", like))


def bits(state: Any) -> dict[str, tuple]:
    """Dtype, shape and bytes of every leaf."""
    leaves = jax.tree_util.tree_leaves_with_path(state)
    raw = lambda x: jax.random.key_data(x) if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) else x
    content = lambda x: (str(x.dtype), x.shape, np.asarray(raw(x)).tobytes())
    return {jax.tree_util.keystr(path, simple=True, separator="."): content(leaf) for path, leaf in leaves}


def launch(command: list[str], folder: Path, log: Path) -> subprocess.Popen:
    """The command in `folder`, with an empty cache of compiled programs there, which a resumed run finds again."""
    environment = os.environ | {"XDG_CACHE_HOME": str(folder / "cache")}
    with open(log, "a") as output:
        return subprocess.Popen(command, cwd=folder, stdout=output, stderr=output, env=environment)


def watch(case: Case, folder: Path, process: subprocess.Popen) -> list[tuple[float, int]]:
    """When each piece of progress was seen, in seconds, until the process ended."""
    start, seen = time.perf_counter(), [(0.0, 0)]
    while process.poll() is None:
        if (now := case.progress(folder / case.folder)) > seen[-1][1]:
            seen.append((time.perf_counter() - start, now))
        time.sleep(POLL)
    return [*seen, (time.perf_counter() - start, sys.maxsize)]


def trial(
    case: Case, number: signal.Signals, moment: float, seen: list[tuple[float, int]], folder: Path, reference: Path
) -> dict[str, Any]:
    """One run that gets the signal at a moment of the undisturbed run, and is resumed until it has ended.

    That is, as long after the latest piece of progress as there, or at the next piece where that is there before.
    """
    later = next(i for i, (seconds, _) in enumerate(seen) if seconds > moment)
    (since, reached), (_, beyond) = seen[later - 1], seen[later]
    folder.mkdir()
    log, run = folder / "output.txt", folder / case.folder
    process, start = launch(case.start, folder, log), None
    while process.poll() is None:
        now = case.progress(run)
        start = time.perf_counter() if start is None and now >= reached else start
        if now >= beyond or (start is not None and time.perf_counter() - start >= moment - since):
            process.send_signal(number)
            break
        time.sleep(POLL)
    result: dict[str, Any] = {"signal": number.name, "moment": round(moment, 3), "statuses": [process.wait()]}
    result["found"] = case.found(run)
    while not case.ended(run) and len(result["statuses"]) <= TRIES:
        command = case.resume if case.begun(run) else case.start
        result["statuses"].append(launch(command, folder, log).wait())
    ended = case.ended(run)
    result["differences"] = case.differences(reference / case.folder, run) if ended else ["it never ended"]
    if result["differences"]:
        result["output"] = log.read_text()[-2000:]
    return result


def survive(case: Case, signals: dict[signal.Signals, int], seed: int, console: Console) -> dict[str, Any]:
    """Every signal so many times; the result as it is written to its file."""
    rng, results = random.Random(seed), []
    with tempfile.TemporaryDirectory() as temporary:
        reference = Path(temporary) / "undisturbed"
        reference.mkdir()
        process = launch(case.start, reference, reference / "output.txt")
        seen = watch(case, reference, process)
        if process.wait():
            raise RuntimeError(f"the undisturbed run failed: {(reference / 'output.txt').read_text()[-2000:]}")
        life = seen[-1][0]
        console.print(f"undisturbed: {life:.1f} s")
        for number, trials in signals.items():
            left = trials
            for i in range(2 * trials):  # where a run ended before its moment came, there is another one
                folder = Path(temporary) / f"{number.name}-{i}"
                results.append(trial(case, number, rng.uniform(0, life), seen, folder, reference))
                console.print(json.dumps(results[-1]))
                left -= results[-1]["statuses"] != [0]
                if not left:
                    break
    return {
        "start": ["rlx", *case.start[3:]],
        "resume": ["rlx", *case.resume[3:]],
        "undisturbed_seconds": round(life, 1),
        "seed": seed,
        "trials": len(results),
        "stopped": sum(result["statuses"] != [0] for result in results),
        "survived": sum(not result["differences"] for result in results),
        "statuses": {
            number.name: Counter(str(result["statuses"][0]) for result in results if result["signal"] == number.name)
            for number in signals
        },
        "results": results,
    }


def main(
    kills: int = 20,
    terminations: int = 5,
    sweep_kills: int = 3,
    seed: int = 0,
    total_steps: int = 1_000_000,
    sweep_steps: int = 200_000,
    out: Path = RESULTS / "kills.json",
) -> None:
    """Kills trainings and sweeps and says how many survived; the exit status is 1 where not all did.

    Args:
        kills: how many get SIGKILL.
        terminations: how many get SIGTERM.
        sweep_kills: how many sweeps get SIGKILL.
        seed: of the moments.
        total_steps: of each training.
        sweep_steps: of each lane of a sweep.
        out: file of the result.
    """
    console, code = Console(highlight=False, markup=False, soft_wrap=True), commit()
    cases = {
        "training": (training(total_steps), {signal.SIGKILL: kills, signal.SIGTERM: terminations}),
        "sweep": (sweeping(sweep_steps), {signal.SIGKILL: sweep_kills}),
    }
    found = {name: survive(case, signals, seed, console) for name, (case, signals) in cases.items()}
    about = {"versions": versions("rlx", "jax", "orbax-checkpoint"), "machine": machine(), "commit": code}
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(found | about, indent=1) + "\n")
    for name, result in found.items():
        stopped = f"{result['stopped']} of them after a signal"
        console.print(
            f"{name}: {result['survived']} of {result['trials']} ended as the undisturbed one, {stopped}: {out}"
        )
    if any(result["survived"] < result["trials"] for result in found.values()):
        sys.exit(1)


if __name__ == "__main__":
    import tyro

    tyro.cli(main)
