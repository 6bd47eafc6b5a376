"""What streams learn, what is lost without each of their parts, and their speed beside loops in numpy.

    python benchmarks/streaming.py
    python benchmarks/streaming.py --only "without the bound" --force
    python benchmarks/streaming.py --only speed --force

All seeds of a case are lanes of one program, over one virtual device a core. Then every seed plays whole episodes,
deterministically. Settings are those of the TOML files. A case whose result is there is skipped.

The loops of `peers/numpy_streams.py` have one stream, in CartPole and Pendulum of Gymnasium. They and the lanes take
turns; each loop is a process of its own with one thread.
"""

import json
import os
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path
from statistics import median

import jax
import numpy as np
from provenance import RESULTS, commit, machine, versions
from rich.console import Console

import rlx
from rlx.devices.spread import spread
from rlx.files import read_json
from rlx.presets import preset
from rlx.report import interval

NUM_LANES, NUM_EPISODES = 32, 32
CARTPOLE, PENDULUM = ("gymnax/CartPole-v1", 50_000), ("gymnax/Pendulum-v1", 200_000)
SGD = {"learning_rate": 1e-3, "actor_kappa": 0.0, "critic_kappa": 0.0}
PLAIN = SGD | {"layer_norm": False, "normalize_reward": False, "normalize_obs": False, "sparsity": 0.0}
CASES = {
    "stream_ac": ("stream_ac", *CARTPOLE, {}),
    "without layer norm": ("stream_ac", *CARTPOLE, {"layer_norm": False}),
    "without the bound": ("stream_ac", *CARTPOLE, SGD),
    "without reward scaling": ("stream_ac", *CARTPOLE, {"normalize_reward": False}),
    "plain": ("stream_ac", *CARTPOLE, PLAIN),
    "stream_q": ("stream_q", *CARTPOLE, {}),
    "expected_sarsa": ("stream_q", *CARTPOLE, {"on_policy": True}),
    "stream_ac on Pendulum": ("stream_ac", *PENDULUM, {}),
    "avg": ("avg", "gymnax/Pendulum-v1", 100_000, {}),
}
SPEED = {"stream_ac": CARTPOLE[0], "avg": PENDULUM[0]}
KINDS = ("wall", "cpu")  # of time
LOOP_STEPS, LANE_STEPS = 4_000, 2_000


def learned(name: str, num_seeds: int) -> dict:
    """What a case came to: the mean return of each seed, their mean with an interval."""
    algorithm_name, task, total_steps, changes = CASES[name]
    algorithm, env = import_module(f"rlx.algos.{algorithm_name}"), rlx.envs.make(task)
    config = preset(algorithm, task, **{"total_steps": total_steps, **changes})

    def lane(key):
        train_key, evaluate_key = jax.random.split(key)
        state, metrics = rlx.train(algorithm, config, env, train_key)
        found = rlx.evaluate(algorithm, config, env, state, evaluate_key, num_episodes=NUM_EPISODES)
        return found.returns.mean(), metrics["episode_return"], metrics["num_episodes"]

    keys = jax.random.split(jax.random.key(0), num_seeds)
    program = spread(lane).lower(keys).compile()
    start = time.perf_counter()
    returns, trained, num = map(np.asarray, jax.block_until_ready(program(keys)))
    seconds = time.perf_counter() - start
    last = slice(-max(1, num.shape[1] // 10), None)
    return {
        "algorithm": algorithm_name,
        "env": task,
        "steps": rlx.steps_taken(config, rlx.total_updates(config)),
        "settings": changes,
        "returns": [round(float(x), 3) for x in returns],
        "mean": interval([returns.tolist()]),
        "training_return_of_last_tenth": float((trained * num)[:, last].sum() / max(num[:, last].sum(), 1)),
        "seconds": seconds,
    }


def loop(name: str, hidden: int) -> tuple[float, ...]:
    """Environment steps a second of the loop in numpy, and those a second of processor time."""
    file = Path(__file__).parent / "peers" / "numpy_streams.py"
    one = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    command = [sys.executable, str(file), name, str(LOOP_STEPS), str(hidden)]
    out = subprocess.run(command, env=os.environ | one, capture_output=True, text=True, check=True).stdout
    return tuple(map(float, out.split()[:2]))


def speeds(name: str, repeats: int) -> dict:
    """Environment steps a second of all lanes together, and of the loop, taking turns; also of processor time.

    On a machine that others use, the second says more.
    """
    algorithm, env = import_module(f"rlx.algos.{name}"), rlx.envs.make(SPEED[name])
    config = preset(algorithm, SPEED[name], total_steps=LANE_STEPS)
    keys = jax.random.split(jax.random.key(0), NUM_LANES)
    program = spread(lambda key: rlx.train(algorithm, config, env, key)[1]["episode_return"]).lower(keys).compile()
    jax.block_until_ready(program(keys))
    lanes, loops = [], []
    for _ in range(repeats):
        wall, cpu = time.perf_counter(), time.process_time()
        jax.block_until_ready(program(keys))
        seconds = time.perf_counter() - wall, time.process_time() - cpu
        lanes.append([NUM_LANES * LANE_STEPS / x for x in seconds])
        loops.append(loop(name, config.hidden_sizes[0]))
    found = {"env": SPEED[name], "hidden_sizes": config.hidden_sizes, "num_lanes": NUM_LANES}
    for i, kind in enumerate(KINDS):
        ours, theirs = ([x[i] for x in speeds] for speeds in (lanes, loops))
        found[kind] = {"lanes": ours, "loop": theirs, "ratios": [a / b for a, b in zip(ours, theirs, strict=True)]}
    return found


def main(
    out: Path = RESULTS / "streaming.json",
    only: tuple[str, ...] = (*CASES, "speed"),
    num_seeds: int = 32,
    repeats: int = 5,
    force: bool = False,
) -> None:
    """Measures what is not in the file yet.

    Args:
        out: the JSON file.
        only: cases to measure, or `speed`.
        num_seeds: seeds of each case.
        repeats: of the speeds.
        force: measure again.
    """
    jax.config.update("jax_num_cpu_devices", machine()["cpus"])
    console, code = Console(), commit()
    found = read_json(out) if out.exists() else {"cases": {}, "speed": {}}
    about = {"machine": machine(), "versions": versions("jax", "jaxlib", "gymnax", "gymnasium", "numpy")}
    for name in CASES:
        if name in only and (force or name not in found["cases"]):
            found["cases"][name] = learned(name, num_seeds) | about | {"commit": code}
            console.print(name, found["cases"][name]["mean"], f"{found['cases'][name]['seconds']:.0f} s")
            out.write_text(json.dumps(found, indent=1) + "\n")
    for name in SPEED:
        if "speed" in only and (force or name not in found["speed"]):
            found["speed"][name] = speeds(name, repeats) | about | {"commit": code}
            told = {kind: {k: round(median(x), 1) for k, x in found["speed"][name][kind].items()} for kind in KINDS}
            console.print(name, told)
            out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    import tyro

    tyro.cli(main)
