"""Speed of PPO, SAC, FPO and learners of values beside what there is to compare with, on the same settings and machine.

    python benchmarks/speed.py
    python benchmarks/speed.py --case CartPole-v1
    JAXMARL=CHECKOUT python benchmarks/speed.py --case "IPPO, simple_spread"

Beside Rejax, Stable-Baselines3, SBX and JaxMARL, each the way its own documentation runs it and in an environment of
its own, which is made in `.venvs` from the pins in `peers`; beside random actions in the bare environment, for physics;
and FPO beside PPO; the last two from environments that have been started. Every measurement is a process of its own,
what is compared takes turns, and programs are compiled anew unless it says so. Nothing is evaluated within the program
that is timed. JaxMARL's package has no baselines: that case needs a checkout of its repository.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
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
# Replay and target as in Rejax, whose networks have two layers of 64; a gradient step follows every step.
VALUES = {key: x for key, x in SAC.items() if key != "env"} | {"capacity": 100_000, "tau": 0.01}
PQN = {
    "algorithm": "PQN",
    "env": "CartPole-v1",
    "total_steps": 2**18,
    "num_envs": 16,
    "num_steps": 128,
    "num_epochs": 5,
    "num_minibatches": 16,
    "hidden_sizes": [64, 64],
    "activation": "relu",
    "learning_rate": 3e-4,
    "anneal_learning_rate": False,
    "gamma": 0.99,
    "td_lambda": 0.9,
}
PHYSICS = PPO | {"total_steps": 2**16, "num_envs": 512, "num_steps": 16, "num_minibatches": 4, "activation": "tanh"}
# Networks, minibatches and epochs as published, spec of FPO, but two minibatches in a rollout and not 32.
PUBLISHED = {
    "env": "playground/CartpoleBalance",
    "total_steps": 2 * 2048 * 30,
    "num_envs": 2048,
    "num_steps": 30,
    "num_epochs": 16,
    "num_minibatches": 2,
    "learning_rate": 3e-4,
    "anneal_learning_rate": False,
    "gamma": 0.995,
    "gae_lambda": 0.95,
    "normalize_obs": True,
    "hidden_sizes": [32, 32, 32, 32],
    "critic_sizes": [256, 256, 256, 256, 256],
    "activation": "swish",
}


@dataclass(frozen=True)
class Side:
    """One of those that a case compares."""

    module: str  # of `peers`
    venv: str = ""  # the environment that it runs in, by its pins in `peers`; empty: this one
    settings: dict = field(default_factory=dict)  # of its own, over those of the case


REJAX, LOOP = Side("rejax_ppo", "rejax"), {"total_steps": 2**13}
OURS = {"rlx": Side("rlx_ppo")}
RESUMED_PPO = Side("rlx_resumed", settings={"algorithm": "ppo"})
# total_steps are whole updates, and about a second or more of work. The first of a case is set beside the others.
CASES: dict[str, tuple[dict, dict[str, Side]]] = {
    "CartPole-v1": (
        PPO | {"env": "CartPole-v1", "total_steps": 2**18, "num_envs": 4, "num_minibatches": 4, "activation": "tanh"},
        OURS
        | {"Rejax": REJAX}
        | {"Stable-Baselines3": Side("sb3_ppo", "sb3", LOOP), "SBX": Side("sbx_ppo", "sb3", LOOP)},
    ),
    "Breakout-MinAtar": (
        PPO
        | {"env": "Breakout-MinAtar", "total_steps": 2**19, "num_envs": 64, "num_minibatches": 8, "activation": "relu"},
        OURS | {"Rejax": REJAX},
    ),
    # The buffers of Rejax's settings for this task, of its SAC by default, and of the paper.
    **{
        f"SAC, buffer {name}": (SAC | {"capacity": n}, {"rlx": Side("rlx_sac"), "Rejax": Side("rejax_sac", "rejax")})
        for name, n in (("10^4", 10_000), ("2^17", 2**17), ("10^6", 1_000_000))
    },
    **{
        name: (settings, {"rlx": Side("rlx_values"), "Rejax": Side("rejax_values", "rejax")})
        for name, settings in {
            "PQN, CartPole-v1": PQN,
            "DQN, buffer 10^5": VALUES | {"algorithm": "DQN", "env": "CartPole-v1", "target_period": 1},
            "IQN, buffer 10^5": VALUES
            | {"algorithm": "IQN", "env": "CartPole-v1", "target_period": 1, "num_atoms": 64},
            "TD3, buffer 10^5": VALUES | {"algorithm": "TD3", "env": "Pendulum-v1"},
        }.items()
    },
    # The settings of its own file. Steps are those of the environment, in each of which three agents act.
    "IPPO, simple_spread": (
        PPO
        | {
            "env": "jaxmarl/MPE_simple_spread_v3",
            "total_steps": 2**17,
            "num_envs": 16,
            "num_minibatches": 4,
            "activation": "tanh",
            "anneal_learning_rate": True,
            "adam_epsilon": 1e-5,
        },
        {"rlx": Side("rlx_ppo", "worlds"), "JaxMARL": Side("jaxmarl_ppo", "jaxmarl")},
    ),
    "brax/hopper, spring": (
        PHYSICS | {"env": "brax/hopper", "options": {"backend": "spring"}},
        {"rlx": RESUMED_PPO, "random actions": Side("rlx_random")},
    ),
    "playground/CheetahRun": (
        PHYSICS | {"env": "playground/CheetahRun"},
        {"rlx": replace(RESUMED_PPO, venv="playground"), "random actions": Side("rlx_random", "playground")},
    ),
    "FPO, playground/CartpoleBalance": (
        PUBLISHED,
        {
            "rlx": Side("rlx_resumed", "playground", {"algorithm": "fpo"}),
            "PPO": replace(RESUMED_PPO, venv="playground"),
        },
    ),
}
# What a case is meant to reach: at least so many times the steps/s, at most so much of the time to trace and compile.
AIMS = {
    ("CartPole-v1", "Rejax", "steps/s"): 1.25,
    ("CartPole-v1", "Rejax", "trace + compile, s"): 0.6,
    ("CartPole-v1", "Stable-Baselines3", "steps/s"): 25,
    ("CartPole-v1", "SBX", "steps/s"): 25,
    ("Breakout-MinAtar", "Rejax", "steps/s"): 1.5,
    **{(f"SAC, buffer {name}", "Rejax", "steps/s"): 3 for name in ("10^4", "2^17", "10^6")},
    ("PQN, CartPole-v1", "Rejax", "steps/s"): 1.3,
    **{(f"{name}, buffer 10^5", "Rejax", "steps/s"): 1.5 for name in ("DQN", "IQN", "TD3")},
    ("IPPO, simple_spread", "JaxMARL", "steps/s"): 1.2,
    ("brax/hopper, spring", "random actions", "steps/s"): 0.6,
    ("playground/CheetahRun", "random actions", "steps/s"): 0.75,
    ("FPO, playground/CartpoleBalance", "PPO", "steps/s"): 0.75,
}
QUANTITIES: dict[str, tuple[Callable, str]] = {
    "steps/s": (lambda m: m["steps_per_second"]["median"], ",.0f"),
    "trace + compile, s": (lambda m: m["trace_seconds"] + m["compile_seconds"], ".2f"),
    "trace, s": (lambda m: m["trace_seconds"], ".2f"),
    "compile, s": (lambda m: m["compile_seconds"], ".2f"),
    "compile, cached, s": (lambda m: m["cached_seconds"], ".2f"),
    "import, s": (lambda m: m["import_seconds"], ".2f"),
    "peak memory, MiB": (lambda m: m["peak_memory_bytes"] / 2**20, ",.0f"),
}
LIBRARIES = (
    "Rejax",
    "Stable-Baselines3",
    "SBX",
    "JaxMARL",
)  # the others are of rlx: their speed is all that there is to compare


EXTRAS = {"playground": "mujoco_playground", "worlds": "jaxmarl"}  # what shows that an extra is installed here


def interpreter(venv: str) -> Path | str:
    """That of an environment, which is made when it is not there or its pins have changed; ours where it will do."""
    if not venv or ((package := EXTRAS.get(venv)) and find_spec(package)):
        return sys.executable
    pins, folder = HERE / "peers" / f"{venv}.txt", ROOT / ".venvs" / venv
    installed, python = folder / "installed.txt", folder / "bin" / "python"
    if not installed.exists() or installed.read_text() != pins.read_text():
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", "-r", pins], check=True, cwd=ROOT)
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


def rows(result: dict) -> list[tuple[str, str, str, str, str, str, str]]:
    """Case, what rlx is beside, quantity, that of rlx, of the other, ratio of the two, and what the ratio is to be.

    Medians over the repeats; the ratio is of neighbours in time, with its range.
    """
    found = []
    for case in result["settings"]:
        sides: dict[str, list[dict]] = {}
        for m in result["measurements"]:
            if m["case"] == case:
                sides.setdefault(m["library"], []).append(m)
        ours = sides.pop("rlx")
        for other, theirs in sides.items():
            if failed := [m for m in theirs if "error" in m]:
                found.append((case, other, "does not run", "", failed[0]["error"], "", ""))
                continue
            for quantity in QUANTITIES if other in LIBRARIES else ["steps/s"]:
                of, form = QUANTITIES[quantity]
                try:
                    left, right = [of(m) for m in ours], [of(m) for m in theirs]
                except KeyError:  # what compiles as it goes does not know how long that takes
                    continue
                ratios = [a / b for a, b in zip(left, right, strict=True)]
                ratio = f"{median(ratios):.2f} [{min(ratios):.2f}, {max(ratios):.2f}]"
                cells = format(median(left), form), format(median(right), form), ratio
                found.append((case, other, quantity, *cells, aim(case, other, quantity, median(ratios))))
    return found


def aim(case: str, other: str, quantity: str, ratio: float) -> str:
    """What a ratio is to be, and whether it is; empty where nothing is asked."""
    if (wanted := AIMS.get((case, other, quantity))) is None:
        return ""
    fewer = quantity.endswith(", s")
    reached = ratio <= wanted if fewer else ratio >= wanted
    return f"at {'most' if fewer else 'least'} {wanted:g}: {'reached' if reached else 'missed'}"


def shortened(settings: dict) -> dict:
    """The same case for four updates."""
    before, steps = settings.get("warmup_steps", 0), settings["num_envs"] * settings["num_steps"]
    return settings | {"total_steps": before + 4 * steps}


def main(
    case: tuple[Literal[*CASES], ...] = (),
    repeats: int = 3,
    num_runs: int = 5,
    platform: str = "cpu",
    short: bool = False,
    force: bool = False,
    out: Path = RESULTS / "speed.json",
) -> None:
    """Measures the cases that have no result yet, writes each as soon as it is there, and prints the table.

    Args:
        case: only these.
        repeats: processes of each side of a case.
        num_runs: runs of the compiled program in each process.
        platform: what jax runs on.
        short: four updates each, to see that everything works; writes below runs/ unless told where.
        force: measure also what is done.
        out: the JSON file.
    """
    if short:
        out = ROOT / "runs" / "benchmarks" / "speed.json" if out == RESULTS / "speed.json" else out
    console, code = Console(stderr=True), commit()
    result = json.loads(out.read_text()) if out.exists() else {"settings": {}, "measurements": []}
    for name in case or CASES:
        settings, sides = CASES[name]
        done = {m["library"] for m in result["measurements"] if m["case"] == name}
        if done == sides.keys() and not force:
            console.print(f"{name}: done, {out}")
            continue
        measurements = []
        for repeat in range(repeats):
            for library, side in sides.items():
                of_side = settings | side.settings
                with console.status(f"{name}, {library}, {repeat + 1} of {repeats}"):
                    about = {"case": name, "library": library, "repeat": repeat, "commit": code}
                    try:
                        python = interpreter(side.venv)
                        of_side = shortened(of_side) if short else of_side
                        about |= measurement(python, f"peers.{side.module}", of_side, num_runs, platform)
                        told = f"{about['steps_per_second']['median']:,.0f} steps/s"
                    except (RuntimeError, subprocess.CalledProcessError) as error:  # it fails, or to install it
                        if library == "rlx":
                            raise
                        about |= {"error": str(error).splitlines()[-1]}
                        told = about["error"]
                measurements.append(about)
                console.print(f"{name}, {library}, {repeat + 1} of {repeats}: {told}")
        result["settings"][name] = settings
        result["measurements"] = [m for m in result["measurements"] if m["case"] != name] + measurements
        result["machine"] = machine()
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(result, indent=1) + "\n")
    table = Table("case", "beside", "quantity", "rlx", "the other", "ratio", "aim")
    for row in rows(result):
        table.add_row(*row)
    Console().print(table)


if __name__ == "__main__":
    import tyro

    tyro.cli(main)
