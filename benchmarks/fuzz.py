"""Random command lines: every one ends in a sound run or in one line that says what is wrong.

    python benchmarks/fuzz.py
    python benchmarks/fuzz.py --first 17 --cases 1        # one of them again

Options are drawn from all that the algorithms and commands have, with values that fit, values at the edge and values
that do not fit. A case is at fault where it prints a traceback, does not end, or ends with another status than 0, 1
after training that died of NaN, or 2 with one line. Cases are forks of one process, so none waits for imports.
"""

import dataclasses
import importlib
import json
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path

import numpy as np
from provenance import RESULTS, commit, machine, versions

import rlx.cli  # before the forks; JAX itself is not used before them

ALGORITHMS = ("ppo", "sac", "mdpo", "trpo", "grpo", "grpo_tokens", "dppo", "fpo", "policyflow", "mdpo_offpolicy")
ALGORITHMS += ("sac_discrete", "lpg")
ENVS = ("CartPole-v1", "Pendulum-v1", "rlx/GridWorld", "rlx/MultiGoal", "rlx/Reverse", "Breakout-MinAtar")
SMALL = {
    "total_steps": 256,
    "num_envs": 4,
    "num_steps": 16,
    "num_groups": 2,
    "group_size": 2,
    "num_epochs": 1,
    "num_minibatches": 2,
    "hidden_sizes": "8",
    "critic_sizes": "8",
    "warmup_steps": 64,
    "batch_size": 16,
    "capacity": 512,
    "utd_ratio": 0.25,
    "denoising_steps": 4,
    "trained_steps": 2,
    "flow_steps": 2,
    "embed_size": 8,
    "num_layers": 1,
    "warm_start_steps": 2,
}
ODD = (
    "0",
    "-1",
    "1",
    "2",
    "3",
    "7",
    "0.5",
    "1.5",
    "1e5",
    "1e-8",
    "1e38",
    "inf",
    "-inf",
    "nan",
    "",
    "no",
    "None",
    "True",
)
ODD += ("64,32", "(8,)", "[8]", "8 8", "linear", "relu", "one_hot", "1_000", "٣", "0x10", "--", "1e400", "a=b", "🙂")
GLOBAL = {
    "--seed": ("0", "5", "-1", "2147483648", "1.5"),
    "--eval-episodes": ("2", "0", "-3", "x"),
    "--num-evaluations": ("1", "3", "0", "999"),
    "--render-every": ("0", "1", "-1"),
    "--checkpoint-seconds": ("0", "60", "-1", "nan", "inf"),
    "--devices": ("1", "2", "0", "3"),
    "--env-options": (
        "max_steps=8",
        "max_steps=0",
        "max_steps=x",
        "nothing=1",
        "=",
        "chunk=2",
        "num_starts=2",
        "chunk=0",
    ),
    "--env-params": ("gravity=3.7", "g=5", "x=1", "gravity=word", "gravity=[1,2]", "="),
    "--objective": ("spo", "dpo", "none", "clip", "missing.npz"),
    "--variant": ("dapo", "none", "gspo", ""),
    "--from-update": ("0", "1", "-1"),
    "--start-from": ("RUN", "missing"),
    "--out": ("EMPTY", "RUN", "FILE", "deep/er/folder"),
}
FLAGS = ("--no-preset", "--dry-run", "--no-checkpoint-replay", "--distributed", "--help", "--nothing")
SWEEP = {
    "--num-seeds": ("1", "2", "0", "x"),
    "--num-samples": ("2", "0", "-1"),
    "--halving": ("2", "1", "0", "9"),
    "--pbt": ("2", "1", "0"),
    "--memory": ("1GB", "1KB", "-4GB", "x"),
    "--configs": ("LIST", "FILE", "missing"),
    "--learning-rate": ("1e-3,1e-4", "log:1e-5:1e-2", "uniform:0:1", "log:-1:1", "1e-3,,", "nan,1", "1e-3"),
    "--gamma": ("0.9,0.99", "2,3", "0.9"),
    "--num-envs": ("4,8", "4.5", "log:2:8", "0,4"),
}
OTHERS = (
    "eval RUN --num-episodes 2",
    "eval RUN --num-episodes 0",
    "eval RUN --best --stochastic --num-episodes 2",
    "eval RUN --from-update 99",
    "eval SWEEP",
    "eval FILE",
    "eval missing",
    "eval RUN --best --from-update 0",
    "render RUN --num-steps 3 --output x.png",
    "render RUN --num-steps 3 --output x.nothing",
    "render RUN --num-steps 0",
    "render RUN --width -1",
    "render RUN --camera front --num-steps 2",
    "plot RUN --output x.png",
    "plot RUN missing",
    "plot RUN --output missing/folder/x.png",
    "plot RUN --output x.nothing",
    "plot SWEEP --output x.png",
    "plot",
    "report RUN",
    "report RUN SWEEP",
    "report missing",
    "report RUN --threshold nan",
    "report",
    "export SWEEP 0 --out y",
    "export SWEEP 99 --out y",
    "export SWEEP -1 --out y",
    "export SWEEP x",
    "export RUN 0 --out y",
    "collect RUN --output d.npz --num-episodes 2",
    "collect RUN --output missing/d.npz",
    "collect RUN --num-episodes 0 --output d.npz",
    "clone ppo FILE --env CartPole-v1",
    "clone ppo missing.npz",
    "clone",
    "discover lpo --train CartPole-v1 --dry-run",
    "discover nothing --train CartPole-v1",
    "discover lpo",
    "train --resume RUN",
    "train --resume RUN --total-steps 512",
    "train --resume RUN --learning-rate 1e-2",
    "train --resume RUN --total-steps 1",
    "train --resume SWEEP",
    "train --resume missing",
    "train --resume FILE",
    "train ppo --resume RUN --env Pendulum-v1",
    "sweep --resume SWEEP",
    "sweep --resume RUN",
    "sweep --resume SWEEP --total-steps 1024",
    "envs",
    "envs nothing",
    "envs --x",
    "help",
    "help train",
    "--version",
    "--help",
    "nothing",
    "train",
    "train nothing --env CartPole-v1",
    "train FILE --env CartPole-v1",
    "train ppo",
    "train ppo --env nothing",
    "check ppo --env CartPole-v1 --nothing",
    "why RUN",
    "why missing",
)
LIMIT = 180.0  # seconds


def fields(algorithm: str) -> list[dataclasses.Field]:
    return list(dataclasses.fields(importlib.import_module(f"rlx.algos.{algorithm}").Config))


def option(name: str, value: object) -> list[str]:
    flag = name.replace("_", "-")
    if isinstance(value, bool):
        return [f"--{flag}" if value else f"--no-{flag}"]
    return [f"--{flag}", *str(value).split(" ")]


def near(field: dataclasses.Field, rng: np.random.Generator) -> object:
    """A value of the kind that the field has, near to its default or at an edge."""
    default = field.default
    if isinstance(default, bool):
        return bool(rng.integers(2))
    if isinstance(default, int):
        return int(rng.choice([1, 2, 3, 4, 8, 0, -1]))
    if isinstance(default, float):
        return float(rng.choice([default, default * 2, default / 2, 0.0, 1.0, -1.0, 1e-3, 10.0, 1e9]))
    if isinstance(default, tuple):
        return str(rng.choice(["8", "8 4", "0", "-1", "4 4 4"]))
    return str(default)


def case(number: int, seed: int) -> list[str]:
    """The arguments of one command line."""
    rng = np.random.default_rng([seed, number])
    kind = rng.choice(["train", "train", "train", "sweep", "other"])
    if kind == "other":
        return str(rng.choice(OTHERS)).split()
    algorithm, env = str(rng.choice(ALGORITHMS)), str(rng.choice(ENVS))
    if algorithm == "grpo_tokens" and rng.random() < 0.8:
        env = "rlx/Reverse"
    own = fields(algorithm)
    chosen = {field.name: SMALL[field.name] for field in own if field.name in SMALL}
    for field in rng.choice(np.array(own, object), size=rng.integers(0, 4), replace=False):
        chosen[field.name] = near(field, rng)
    arguments = [kind, algorithm, "--env", env]
    for name, value in chosen.items():
        arguments += option(name, value)
    if rng.random() < 0.25:  # a value that is of no kind
        arguments += [f"--{rng.choice(np.array([f.name for f in own])).replace('_', '-')}", str(rng.choice(ODD))]
    if algorithm.startswith("grpo") and algorithm != "grpo_tokens":
        arguments += ["--env-options", "max_steps=16"]
    pool = GLOBAL if kind == "train" else SWEEP
    for flag in rng.choice(np.array(list(pool)), size=rng.integers(0, 3), replace=False):
        arguments += [str(flag), str(rng.choice(pool[flag]))]
    if rng.random() < 0.15:
        arguments.append(str(rng.choice(FLAGS)))
    if kind == "sweep" and rng.random() < 0.5 and "--learning-rate" not in arguments:
        arguments += ["--learning-rate", "1e-3,1e-4"]
    return arguments


def forked(arguments: list[str], folder: Path) -> tuple[int | None, str, str]:
    """Status (None for no end), standard output and error of a command line in a process of its own."""
    out, err = folder / "stdout.txt", folder / "stderr.txt"
    started = time.monotonic()
    child = os.fork()
    if child == 0:
        os.setsid()
        os.chdir(folder)
        for path, number in ((out, 1), (err, 2)):
            os.dup2(os.open(path, os.O_CREAT | os.O_WRONLY), number)
        status = 0
        try:
            rlx.cli.main(arguments)
        except SystemExit as stop:
            status = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        except BaseException:
            traceback.print_exc()
            status = 70
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            break
        if time.monotonic() - started > LIMIT:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            status = None
            break
        time.sleep(0.02)
    texts = [path.read_text(errors="replace") for path in (out, err)]
    code = None if status is None else os.waitstatus_to_exitcode(status)
    return code, *texts


def fault(code: int | None, out: str, err: str) -> str:
    """What is wrong with how a command line ended; nothing where it is right."""
    if code is None:
        return "no end"
    if "Traceback (most recent call last)" in err:
        return "traceback"
    own = [line for line in err.splitlines() if line.startswith("rlx: ")]
    if code == 2 and len(own) != 1:
        return f"status 2 with {len(own)} lines"
    if code == 1 and "NaN or infinity" not in out:
        return "status 1"
    return "" if code in (0, 1, 2) else f"status {code}"


def prepare(folder: Path) -> None:
    """What the command lines are about: a run, a sweep, a file that is none of these, a list of settings."""
    sizes = [
        text for name in ("total_steps", "num_envs", "num_steps", "hidden_sizes") for text in option(name, SMALL[name])
    ]
    start = ["--env", "CartPole-v1", *sizes, "--eval-episodes", "2"]
    for arguments in (
        ["train", "ppo", *start, "--out", "RUN"],
        ["sweep", "ppo", *start, "--gamma", "0.9,0.99", "--out", "SWEEP"],
    ):
        code, _, err = forked(arguments, folder)
        if code:
            raise RuntimeError(f"rlx {' '.join(arguments)}: {err}")
    (folder / "FILE").write_text("no settings\n")
    (folder / "LIST").write_text('{"learning_rate": 1e-3}\n{"learning_rate": 1e-4}\n')
    (folder / "EMPTY").mkdir()


def main(cases: int = 500, first: int = 0, seed: int = 0, out: Path = RESULTS / "fuzz.json") -> None:
    """Runs the cases and prints each that is at fault; exit status 1 where one is.

    Args:
        cases: how many.
        first: the number of the first.
        seed: of the command lines.
        out: the JSON file; none is written for fewer than 100 cases.
    """
    faults, statuses, started = [], {}, time.monotonic()
    with tempfile.TemporaryDirectory() as temporary:
        temporary = Path(temporary)
        os.environ["XDG_CACHE_HOME"] = str(temporary / "cache")
        prepared = temporary / "prepared"
        prepared.mkdir()
        prepare(prepared)
        for number in range(first, first + cases):
            arguments, folder = case(number, seed), temporary / str(number)
            shutil.copytree(prepared, folder)
            code, stdout, stderr = forked(arguments, folder)
            shutil.rmtree(folder)
            statuses[str(code)] = statuses.get(str(code), 0) + 1
            if why := fault(code, stdout, stderr):
                faults.append({"number": number, "arguments": arguments, "fault": why, "stderr": stderr[-2000:]})
                print(f"{number}: {why}: rlx {' '.join(arguments)}\n{stderr[-1500:]}", flush=True)
            elif (number + 1 - first) % 25 == 0:
                print(
                    f"{number + 1 - first} of {cases}, {time.monotonic() - started:.0f} s, {len(faults)} faults",
                    flush=True,
                )
    about = {"commit": commit(), "machine": machine(), "versions": versions("jax"), "seed": seed, "cases": cases}
    if cases >= 100:
        out.write_text(json.dumps({"statuses": statuses, "faults": faults, **about}, indent=1) + "\n")
    print(f"{cases} command lines: statuses {statuses}, {len(faults)} at fault")
    sys.exit(bool(faults))


if __name__ == "__main__":
    import tyro

    tyro.cli(main)
