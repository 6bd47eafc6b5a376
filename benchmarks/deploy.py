"""Deployed policies in Gymnasium: returns on the starts of an evaluation in rlx, sizes, differences, time of a step.

    python benchmarks/deploy.py

Needs the extra `onnx`. Trains every algorithm shortly, where there is no run yet, writes its policy in every form, and
plays 20 episodes from the starts that `rlx.evaluate` has, with the noise that it draws: in the environment of rlx, and
in Gymnasium's own CartPole or Pendulum. Gymnasium computes in float64 and rlx in float32, see `benchmarks/bridge.py`:
returns differ by that, and so do those of another compiled program of rlx. A step is timed for one observation, in
turns in one process; the median of the rounds counts.
"""

import json
import statistics
import time
from pathlib import Path
from typing import Any

import gymnasium
import jax
import numpy as np
import tyro
from provenance import RESULTS, commit, machine, versions
from rich.console import Console

import rlx
from rlx.agent import Agent
from rlx.algorithm import load_algorithm
from rlx.deploy import Program, deploy, opened
from rlx.deploy.runner import Policy
from rlx.presets import configure, settings
from rlx.rollout import reset
from rlx.run.job import keys
from rlx.train import EVALUATION

CASES = dict.fromkeys(("ppo", "grpo", "ppo_recurrent"), "CartPole-v1")
CASES |= dict.fromkeys(("sac", "fpo", "dppo", "policyflow"), "Pendulum-v1")
STEPS = {"sac": 12_000}  # of training; others
DEFAULT_STEPS = 60_000
TARGETS = ("numpy", "stablehlo", "onnx")
EPISODES, CALLS, ROUNDS = 20, 300, 5


def started(env_name: str, state: Any, row: int) -> gymnasium.Env:
    """Gymnasium's environment in the state of an episode of gymnax."""
    env = gymnasium.make(env_name)
    env.reset(seed=0)
    names = ("x", "x_dot", "theta", "theta_dot") if env_name.startswith("CartPole") else ("theta", "theta_dot")
    env.unwrapped.state = np.array([float(getattr(state, name)[row]) for name in names])
    return env


def play(agent: Agent, program: Program, policy: Policy, env_name: str) -> list[float]:
    """Returns of whole episodes in Gymnasium, which begin as those of `agent.evaluate(EPISODES)` do."""
    key = jax.random.fold_in(jax.random.fold_in(keys(agent.seed)[1], 1), EVALUATION)
    reset_key, steps_key = jax.random.split(key)
    starts = reset(agent.env, reset_key, EPISODES)
    envs = [started(env_name, starts.state, row) for row in range(EPISODES)]
    obs, returns, done = np.array(starts.obs), np.zeros(EPISODES), np.zeros(EPISODES, bool)
    policy.reset()
    for step in range(10_000):
        act_key, _ = jax.random.split(jax.random.fold_in(steps_key, step))
        actions = policy.act(obs, noise=program.draw(act_key, EPISODES) if program.noise else [])
        for row in np.flatnonzero(~done):
            found, reward, terminated, truncated, _ = envs[row].step(actions[row])
            obs[row], returns[row], done[row] = found, returns[row] + reward, terminated or truncated
        if done.all():
            break
    return returns.tolist()


def play_here(agent: Agent, program: Program, policy: Policy) -> list[float]:
    """Returns of the same episodes in the environment of rlx."""
    key = jax.random.fold_in(jax.random.fold_in(keys(agent.seed)[1], 1), EVALUATION)
    reset_key, steps_key = jax.random.split(key)
    state, advance = reset(agent.env, reset_key, EPISODES), jax.jit(jax.vmap(agent.env.advance))
    returns, done = np.zeros(EPISODES), np.zeros(EPISODES, bool)
    policy.reset()
    for step in range(10_000):
        act_key, env_key = jax.random.split(jax.random.fold_in(steps_key, step))
        actions = policy.act(np.array(state.obs), noise=program.draw(act_key, EPISODES) if program.noise else [])
        state, transition = advance(jax.random.split(env_key, EPISODES), state, actions)
        returns = np.where(done, returns, transition.episode_return)
        done |= np.asarray(transition.done)
        if done.all():
            break
    return returns.tolist()


def microseconds(act: Any, obs: np.ndarray) -> float:
    """Of one call, the mean of many."""
    start = time.perf_counter()
    for _ in range(CALLS):
        act(obs)
    return 1e6 * (time.perf_counter() - start) / CALLS


def measured(name: str, folder: Path, console: Console) -> list[dict]:
    """A row for each form of the policy of an algorithm."""
    env_name, algorithm = CASES[name], load_algorithm(name)
    steps = STEPS.get(name, DEFAULT_STEPS)
    config = configure(algorithm.Config, settings(algorithm, f"gymnax/{env_name}") | {"total_steps": steps})
    agent = rlx.fit(algorithm, config, f"gymnax/{env_name}", directory=folder / name, console=console).agent
    program, expected = Program(agent), agent.evaluate(EPISODES).returns.tolist()
    rows, acts = [], {"rlx.load": agent.act}
    for found in deploy(agent, folder / f"{name}-deployed", TARGETS):
        with opened(found.path) as policy:
            here = np.abs(np.subtract(play_here(agent, program, policy), expected))
            returns = play(agent, program, policy, env_name)
            policy.reset()
            acts[found.target] = policy.act
        difference = np.abs(np.subtract(returns, expected))
        rows.append(
            {
                "algorithm": name,
                "env": env_name,
                "target": found.target,
                "bytes": found.path.stat().st_size,
                "largest_difference": found.largest_difference,
                "equal_returns_in_rlx": int((here <= 1e-3 * np.abs(expected)).sum()),
                "mean_return": statistics.fmean(returns),
                "mean_return_rlx": statistics.fmean(expected),
                "return_difference": float(difference.max()),
                "equal_returns": int((difference <= 1e-3 * np.abs(expected)).sum()),
            }
        )
    agent.reset()
    obs = np.zeros(agent.observation_space.shape, np.float32)
    for act in acts.values():
        act(obs)
    times = {key: [] for key in acts}
    for _ in range(ROUNDS):
        for key, act in acts.items():
            times[key].append(microseconds(act, obs))
    for row in rows:
        row["microseconds"] = statistics.median(times[row["target"]])
        row["microseconds_rlx"] = statistics.median(times["rlx.load"])
    return rows


def main(folder: Path = Path("runs/deploy")) -> None:
    """Measures all algorithms.

    Args:
        folder: of runs and policies; runs that are there already are used.
    """
    jax.config.update("jax_default_matmul_precision", "float32")
    console, rows = Console(), []
    for name in CASES:
        rows += measured(name, folder, console)
        for row in rows[-len(TARGETS) :]:
            console.print(row)
    packages = ("rlx", "jax", "jaxlib", "numpy", "gymnasium", "jax2onnx", "onnxruntime")
    result = {"episodes": EPISODES, "rows": rows, "versions": versions(*packages)}
    result |= {"machine": machine(), "commit": commit()}
    (RESULTS / "deploy.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    tyro.cli(main)
