"""What flow policies are for: several good actions in one state. Trains every method on a task, and measures.

    python experiments/flow_policies/run.py                                  # all of it
    python experiments/flow_policies/run.py --task MultiGoal --method policyflow

All methods get the same number of environment steps of a task. The seeds of a method train as lanes of one program,
spread over the cores. Each method writes results/TASK-METHOD.json; what is there already is skipped. `draw.py` makes
the pictures and the tables of the README from these files.
"""

import contextlib
import itertools
import json
import math
import time
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

import rlx
from rlx import replace
from rlx.algos import dppo, fpo, policyflow, ppo
from rlx.devices.sharding import use_devices
from rlx.devices.spread import spread
from rlx.envs.tasks.gridworld import observe
from rlx.envs.tasks.multigoal import coverage, goal_entropy, goal_shares, goals_reached
from rlx.envs.tasks.pointmaze import State as PointMazeState
from rlx.presets import preset
from rlx.rollout import reset, rollout

RESULTS = Path(__file__).resolve().parent / "results"
NUM_TRAJECTORIES, NUM_DRAWN, NUM_ACTIONS = 1000, 40, 200
APART = 2**30  # of keys that are split as well: small numbers would give the same ones
MULTI_GOAL_AT = ((0.0, 0.0), (0.0, 4.0))  # equally far from six goals, and from two
FORK = ((1.5, 4.5), (5.5, 5.5))  # start and goal in PointMaze-medium, m
PACKAGES = ("rlx", "jax", "jaxlib", "flax", "optax", "gymnax", "brax", "mujoco-mjx", "playground")


@dataclass(frozen=True)
class Method:
    algorithm: ModuleType
    changes: dict[str, Any]  # of the tuned settings


FPO_PUBLISHED = {"sample_ratios": False, "asymmetric": False, "predict_noise": True, "loss_scale": 1.0}
FPO_PUBLISHED |= {"loss_clamp": math.inf, "eval_noise": 1.0, "clip": 0.05}
METHODS = {
    "ppo": Method(ppo, {}),
    "ppo-mixture": Method(ppo, {"num_components": 6, "entropy_coef": 0.01}),
    "fpo": Method(fpo, FPO_PUBLISHED),
    "fpo++": Method(fpo, {}),
    "policyflow": Method(policyflow, {}),
    "policyflow-unregularised": Method(policyflow, {"brownian_coef": 0.0}),
    "dppo": Method(dppo, {}),
}


def from_the_start(algorithm, config, env, state, start, key):
    """Episodes from `start [E]`: transitions `[T, E]`, the last step of each, and which steps are up to it."""
    _, traj = rollout(env, partial(algorithm.act, config, env, state), start, key, env.max_steps)
    last = jnp.argmax(traj.done, axis=0)
    return traj, last, jnp.arange(env.max_steps)[:, None] <= last


def ways(positions, under_way):
    """Some of the `positions [T, E, 2]`, NaN after the end."""
    return jnp.where(under_way[..., None], positions, jnp.nan)[:, :NUM_DRAWN]


def actions_at(algorithm, config, env, state, obs, key):
    """Actions of one policy at the chosen `obs [O, D]`: `[O, samples, A]`."""
    obs = jnp.repeat(obs, NUM_ACTIONS, axis=0)
    return algorithm.act(config, env, state, obs, key)[0].reshape(-1, NUM_ACTIONS, 2)


def multi_goal(algorithm, config, env, state, key):
    """Episodes that begin in the middle: return, goals, some of the ways, and actions at rest at `MULTI_GOAL_AT`."""
    env = replace(env, params=replace(env.params, start=0.0))
    reset_key, key = jax.random.split(key)
    start = reset(env, reset_key, NUM_TRAJECTORIES)
    traj, last, under_way = from_the_start(algorithm, config, env, state, start, key)
    at_end = lambda x: x[last, jnp.arange(NUM_TRAJECTORIES)]
    shares = goal_shares(goals_reached(at_end(traj.next_obs)[:, :2], env.params))
    at = jnp.concatenate([jnp.array(MULTI_GOAL_AT), jnp.zeros((len(MULTI_GOAL_AT), 2))], axis=-1)
    return {
        "return": at_end(traj.episode_return).mean(),
        "shares": shares,
        "coverage": coverage(shares),
        "coverage_5_percent": coverage(shares, 0.05),
        "entropy": goal_entropy(shares),
        "ways": ways(traj.next_obs[..., :2], under_way)[::2],
        "actions": actions_at(algorithm, config, env, state, at, jax.random.fold_in(key, APART)),
    }


def grid_world(algorithm, config, env, state, key):
    """Moves at the saddle, which has a goal equally near above and below, ways from there, returns from anywhere."""
    act_key, key = jax.random.split(key)
    saddle = jnp.array([12, 12])
    obs = jnp.broadcast_to(observe(saddle), (NUM_TRAJECTORIES, 2))
    action, _ = algorithm.act(config, env, state, obs, act_key)
    move = jnp.round(action[:, 1])
    up, down = jnp.mean(move > 0), jnp.mean(move < 0)
    episodes = rlx.evaluate(algorithm, config, env, state, key, num_episodes=200, deterministic=False)
    start = reset(env, key, NUM_DRAWN)  # all of it is replaced but the clock
    start = replace(start, state=jnp.broadcast_to(saddle, start.state.shape), obs=obs[:NUM_DRAWN])
    traj, _, under_way = from_the_start(algorithm, config, env, state, start, jax.random.fold_in(key, APART))
    return {
        "up": up,
        "down": down,
        "rarer": jnp.minimum(up, down),
        "actions": action[:NUM_ACTIONS],
        "ways": ways(traj.next_obs, under_way)[:40],
        "return": episodes.returns.mean(),
        "length": episodes.lengths.mean(),
    }


def point_maze(algorithm, config, env, state, key):
    """Whole episodes from anywhere to anywhere: share that comes to the goal at any time, and return.

    Then from `FORK[0]` to `FORK[1]`, to which two ways are equally long: the share of the rarer one among those that
    come there, some of the ways, and actions at the fork.
    """
    reset_key, key = jax.random.split(key)
    start = reset(env, reset_key, 500)
    traj, _, _ = from_the_start(algorithm, config, env, state, start, key)
    here, goal = jnp.array(FORK)
    middle = jnp.array(env.params.walls.shape) / 2.0
    at = jnp.concatenate([here - middle, jnp.zeros(2), goal - middle])
    same = lambda x: jnp.broadcast_to(x, (500, *x.shape))
    inner = PointMazeState(same(here), same(jnp.zeros(2)), same(goal))
    fork_key, act_key = jax.random.split(jax.random.fold_in(key, APART))
    forked, _, under_way = from_the_start(
        algorithm, config, env, state, replace(start, state=inner, obs=same(at)), fork_key
    )
    arrived = forked.info["success"].any(0)
    right = (forked.next_obs[..., 1] + middle[1] > 6.0).any(0)
    by_right = jnp.sum(arrived & right) / jnp.sum(arrived)
    return {
        "success": traj.info["success"].any(0).mean(),
        "return": traj.episode_return[-1].mean(),
        "success_from_fork": arrived.mean(),
        "rarer": jnp.minimum(by_right, 1.0 - by_right),
        "ways": ways(forked.next_obs[..., :2] + middle, under_way)[:60:2],
        "actions": actions_at(algorithm, config, env, state, at[None], act_key),
    }


def control(algorithm, config, env, state, key):
    """Return of whole episodes, acting deterministically."""
    return {"return": rlx.evaluate(algorithm, config, env, state, key, num_episodes=32).returns.mean()}


def endurance(algorithm, config, env, state, key):
    """Whether every weight is a number at the end, and the return. A NaN never leaves the weights again."""
    return {"finite": jnp.isfinite(ravel_pytree(state.params)[0]).all()} | control(algorithm, config, env, state, key)


@dataclass(frozen=True)
class Task:
    env: str
    total_steps: int
    seeds: int
    measure: Any
    methods: tuple[str, ...]
    options: dict[str, Any] = field(default_factory=dict)  # of the environment


CONTROL = ("ppo", "fpo", "fpo++", "policyflow")
TASKS = {
    "MultiGoal": Task("rlx/MultiGoal", 1_500_000, 5, multi_goal, tuple(METHODS)),
    "GridWorld": Task("rlx/GridWorld", 300_000, 5, grid_world, ("ppo", "ppo-mixture", "fpo", "fpo++", "policyflow")),
    "PointMaze": Task("rlx/PointMaze-medium", 1_000_000, 5, point_maze, ("ppo", "fpo++", "policyflow")),
    "Pendulum": Task("gymnax/Pendulum-v1", 300_000, 5, control, CONTROL),
    "CartpoleSwingup": Task("playground/CartpoleSwingup", 1_000_000, 5, control, CONTROL),
    "CheetahRun": Task("playground/CheetahRun", 500_000, 5, control, CONTROL),
    "hopper": Task("brax/hopper", 500_000, 5, control, CONTROL, {"backend": "spring"}),
    "Endurance": Task("rlx/MultiGoal", 2_000_000, 20, endurance, ("fpo++",)),
}


def without_noise(algorithm, state):
    """The state whose flow is as it was and whose Gaussian noise is gone."""
    if algorithm is not policyflow:
        return None
    return replace(state, params=state.params | {"log_std": jnp.full_like(state.params["log_std"], -jnp.inf)})


def versions() -> dict[str, str]:
    """Of the packages that are installed; Playground is an extra."""
    found = {}
    for package in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def measure(task: Task, method: Method, short: bool) -> dict[str, Any]:
    """Trains and measures all seeds; the result as it is written to its file."""
    algorithm = method.algorithm
    steps = task.total_steps // 100 if short else task.total_steps
    config = preset(algorithm, task.env, **method.changes | {"total_steps": steps})
    env = rlx.envs.make(task.env, **task.options)

    def lane(key):
        train_key, measure_key = jax.random.split(key)
        state, metrics = rlx.train(algorithm, config, env, train_key)
        measured = {"": state, "_without_noise": without_noise(algorithm, state)}
        found = {
            name + suffix: value
            for suffix, state in measured.items()
            if state is not None
            for name, value in task.measure(algorithm, config, env, state, measure_key).items()
            if not suffix or value.ndim == 0
        }
        return found, jnp.where(metrics["num_episodes"] > 0, metrics["episode_return"], jnp.nan)

    keys = jax.vmap(jax.random.key)(np.arange(task.seeds))
    started = time.process_time()  # of all cores; others may be using the machine
    program = spread(lane).lower(keys).compile()
    compiled = time.process_time()
    found, curve = jax.device_get(program(keys))
    done = time.process_time()
    points = np.linspace(0, curve.shape[1], min(20, curve.shape[1]) + 1).astype(int)
    return {
        "env": task.env,
        "options": task.options,
        "versions": versions(),
        "algorithm": algorithm.__name__.removeprefix("rlx.algos."),
        "config": {name: value if value != math.inf else "inf" for name, value in asdict(config).items()},
        "steps": rlx.total_updates(config) * config.steps_per_update,
        "seeds": list(range(task.seeds)),
        "cpu_seconds": {"compile": round(compiled - started, 1), "run": round(done - compiled, 1)},
        "curve": [_plain([np.nanmean(seed[a:b]) for a, b in itertools.pairwise(points)]) for seed in curve],
        **{name: _plain(value if value.ndim < 3 else value[0]) for name, value in found.items()},
    }


def _plain(x: Any) -> Any:
    """Nested lists of numbers with four digits; None for NaN."""
    if np.ndim(x):
        return [_plain(y) for y in x]
    return None if np.isnan(x) else float(f"{float(x):.4g}")


def main(
    task: Literal[*TASKS] | None = None,
    method: Literal[*METHODS] | None = None,
    force: bool = False,
    short: bool = False,
) -> None:
    """Measures what has no result yet.

    Args:
        task: only this one.
        method: only this one.
        force: measure also what is done.
        short: a hundredth of the steps, to see that everything works; nothing is written.
    """
    use_devices()
    for task_name, chosen in TASKS.items():
        if chosen.env.startswith("playground/") and not find_spec("mujoco_playground"):
            print(f"{task_name}: needs another package, pip install 'rlx[playground]'", flush=True)
            continue
        for name in chosen.methods:
            path = RESULTS / f"{task_name}-{name}.json"
            if (
                task not in (None, task_name)
                or method not in (None, name)
                or (path.exists() and not force and not short)
            ):
                continue
            result = measure(chosen, METHODS[name], short)
            if not short:
                path.parent.mkdir(exist_ok=True)
                path.write_text(json.dumps({"task": task_name, "method": name} | result) + "\n")
            summary = {
                k: v for k, v in result.items() if isinstance(v, list) and len(v) == chosen.seeds and k != "seeds"
            }
            print(
                task_name,
                name,
                f"{result['steps']:,} steps, {result['cpu_seconds']['run']:.0f} s",
                json.dumps(summary),
                flush=True,
            )


if __name__ == "__main__":
    import tyro

    tyro.cli(main)
