"""Gymnasium and rlx: what a step costs through the bridge, and whether tasks of one name are the same.

    taskset -c 0 python benchmarks/bridge.py

On one core, since the threads of JAX would else wait for what other programs do. Steps of CartPole are timed for one
environment and for many, through `rlx.envs.bridge` and in Gymnasium's own, in turns in one process; the best of the
rounds counts, with fixed actions and with what resets take. Gymnasium's vectors are its default, which steps one
environment after the other, and the one in NumPy that it has for CartPole.

For the dynamics, CartPole and Pendulum of Gymnasium and of gymnax are put into the same states and given the same
actions: for one step each, and from the same start for a whole episode without looking back. rlx computes in float32
and, with `JAX_ENABLE_X64=1`, in float64 as Gymnasium does: what is left then is not rounding.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
from provenance import RESULTS, commit, machine, versions
from rich.console import Console

import rlx
from rlx.envs.bridge import GymnasiumEnv, GymnasiumVectorEnv

STEPS, ROUNDS, SEED = 2000, 15, 0
MANY = (16, 256)
NUM_STATES, NUM_EPISODES = 2000, 100


def single(env: Any) -> float:
    """Seconds a step of an episode after another, with alternating actions."""
    env.reset(seed=SEED)
    start = time.perf_counter()
    for i in range(STEPS):
        if any(env.step(i % 2)[2:4]):
            env.reset()
    return (time.perf_counter() - start) / STEPS


def vector(envs: Any) -> float:
    """Seconds a step of all environments."""
    envs.reset(seed=SEED)
    actions = np.random.default_rng(SEED).integers(0, 2, (STEPS // 10, envs.num_envs))
    start = time.perf_counter()
    for action in actions:
        envs.step(action)
    return (time.perf_counter() - start) / len(actions)


def timings() -> list[dict]:
    """Microseconds a step of each, by the number of environments."""
    cases = [(1, "rlx.envs.bridge", single, GymnasiumEnv("CartPole-v1"))]
    cases += [(1, "Gymnasium", single, gymnasium.make("CartPole-v1"))]
    for num in MANY:
        cases += [(num, "rlx.envs.bridge", vector, GymnasiumVectorEnv("CartPole-v1", num))]
        for name, mode in (("Gymnasium", "sync"), ("Gymnasium, in NumPy", "vector_entry_point")):
            envs = gymnasium.make_vec("CartPole-v1", num, vectorization_mode=mode)
            cases += [(num, name, vector, envs)]
    best = [
        min(measured) for measured in zip(*([of(env) for *_, of, env in cases] for _ in range(ROUNDS)), strict=True)
    ]
    names = zip(cases, best, strict=True)
    return [{"num_envs": num, "library": name, "microseconds": 1e6 * s} for (num, name, *_), s in names]


def cartpole(env: Any, state: Any, values: np.ndarray) -> Any:
    """gymnax's state with the values `[4]`."""
    x, x_dot, theta, theta_dot = map(jnp.asarray, values)
    return state.replace(x=x, x_dot=x_dot, theta=theta, theta_dot=theta_dot)


def pendulum(env: Any, state: Any, values: np.ndarray) -> Any:
    """gymnax's state with the values `[2]`."""
    return state.replace(theta=jnp.asarray(values[0]), theta_dot=jnp.asarray(values[1]))


# name: gymnax's state of values, half-widths of the states that are compared, and of those at a start
TASKS = {
    "CartPole-v1": (cartpole, (2.0, 2.0, 0.2, 2.0), (0.05,) * 4),
    "Pendulum-v1": (pendulum, (np.pi, 8.0), (np.pi, 1.0)),
}


def dynamics(name: str) -> dict:
    """How far the successors and rewards of the two are apart after a step, and their episodes at the end."""
    placed, wide, start = TASKS[name]
    rng, env, other = np.random.default_rng(SEED), rlx.envs.make(name), gymnasium.make(name)
    begin, step = env.reset(jax.random.key(0)), jax.jit(env.advance)

    def at(values):
        other.reset(seed=SEED)
        other.unwrapped.state = np.array(values)
        return rlx.replace(begin, state=placed(env, begin.state, values))

    def both(env_state, action):
        env_state, ours = step(jax.random.key(0), env_state, action)
        return env_state, jax.device_get(ours), other.step(action)

    def action():
        return rng.integers(2) if name == "CartPole-v1" else rng.uniform(-2, 2, 1).astype(np.float32)

    apart, rewards, ends = [], [], []
    for _ in range(NUM_STATES):
        _, ours, theirs = both(at(rng.uniform(-np.array(wide), wide)), action())
        apart.append(np.abs(ours.next_obs - theirs[0]).max())
        rewards.append(abs(float(ours.reward) - float(theirs[1])))
        ends.append(bool(ours.terminated) == theirs[2])
    drift, lengths, returns = [], [], []
    for _ in range(NUM_EPISODES):
        env_state, totals, done = at(rng.uniform(-np.array(start), start)), np.zeros(2), False
        while not done:
            env_state, ours, theirs = both(env_state, action())
            totals = totals + np.array([ours.reward, theirs[1]])
            ended = [bool(ours.terminated), bool(ours.truncated)], list(theirs[2:4])
            done = any(ended[0] + ended[1])
        drift.append(np.abs(ours.next_obs - theirs[0]).max())
        lengths.append(ended[0] == ended[1])
        returns.append(abs(totals[0] - totals[1]))
    largest = lambda values: float(np.max(values))
    return {
        "task": name,
        "step": {
            "states": NUM_STATES,
            "obs": largest(apart),
            "reward": largest(rewards),
            "same_end": float(np.mean(ends)),
        },
        "episode": {
            "episodes": NUM_EPISODES,
            "obs": {"median": float(np.median(drift)), "max": largest(drift)},
            "return": {"median": float(np.median(returns)), "max": largest(returns)},
            "same_end": float(np.mean(lengths)),
        },
    }


def in_float64() -> list[dict]:
    """`dynamics` of a process whose JAX computes in float64."""
    program = "import json, bridge; print(json.dumps([bridge.dynamics(name) for name in bridge.TASKS]))"
    command = [sys.executable, "-c", program]
    options = {"env": os.environ | {"JAX_ENABLE_X64": "1"}, "cwd": Path(__file__).parent}
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True, **options).stdout)


def main() -> None:
    result = {
        "commit": commit(),
        "machine": machine(),
        "versions": versions("jax", "gymnasium", "gymnax", "numpy"),
        "timings": timings(),
        "dynamics": [dynamics(name) for name in TASKS],
        "dynamics_float64": in_float64(),
    }
    (RESULTS / "bridge.json").write_text(json.dumps(result, indent=1) + "\n")
    Console().print(result)


if __name__ == "__main__":
    main()
