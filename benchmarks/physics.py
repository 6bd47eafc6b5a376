"""Steps/s of physics environments at several numbers of them, and the share of training that physics takes.

    python benchmarks/physics.py                # rlx's own, Brax's, and Playground's where that is installed
    python benchmarks/physics.py --task mjx/hopper "brax/hopper, spring"

Bare physics: environments are stepped with random actions that are drawn beforehand, time limits and statistics
included; they are not restarted. A step is a control step, and the table says how many of physics it has. Playground's
tasks are stepped by its own wrapper for training too, and models of rlx by MuJoCo in C, with a thread a core. The share
of physics is the time of stepping, with restarts, in a PPO update with the shipped settings, of 8,192 steps at most,
over that of the update. What is compared takes turns.
"""

import json
import os
import time
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from statistics import median

import jax
import mujoco
import numpy as np
from mujoco.rollout import Rollout
from provenance import RESULTS, commit, machine, versions
from rich.console import Console

import rlx
from rlx.algos import ppo
from rlx.envs.mjcf import Mjcf
from rlx.presets import preset
from rlx.rollout import reset, rollout

NUM_ENVS = (64, 512, 2048)
CHUNK = 8192  # environment steps a call, at least one of each environment; published updates have up to a million
TASKS = {
    **{f"mjx/{name}": {} for name in ("pendulum", "cartpole", "reacher", "hopper", "ant")},
    "brax/inverted_pendulum, mjx": {"backend": "mjx"},
    "brax/reacher, generalized": {"backend": "generalized"},
    **{f"brax/hopper, {backend}": {"backend": backend} for backend in ("spring", "generalized", "mjx")},
    **{f"brax/ant, {backend}": {"backend": backend} for backend in ("spring", "generalized", "mjx")},
    **{
        f"playground/{name}": {}
        for name in ("PendulumSwingup", "CartpoleBalance", "CartpoleSwingup", "ReacherEasy", "HopperHop", "CheetahRun")
    },
}


def stepping(env: rlx.Env, num_envs: int, length: int):
    """A compiled program that steps the environments, `state -> state`, and its first state."""
    keys = jax.random.split(jax.random.key(1), num_envs)
    actions = jax.vmap(jax.vmap(env.action_space.sample))(jax.random.split(jax.random.key(2), (length, num_envs)))

    def run(env, state, actions):
        return jax.lax.scan(lambda s, a: (jax.vmap(env.advance)(keys, s, a)[0], None), state, actions)[0]

    state = jax.jit(reset, static_argnums=2)(env, jax.random.key(0), num_envs)
    compiled = jax.jit(run).lower(env, state, actions).compile()
    return lambda state: compiled(env, state, actions), state


def wrapped(env: rlx.Env, num_envs: int, length: int):
    """The same by Playground's own wrapper for training."""
    from mujoco_playground._src.wrapper import wrap_for_brax_training

    task = env.environment.environment
    wrapper = wrap_for_brax_training(task, episode_length=env.max_steps, action_repeat=1)
    actions = jax.random.uniform(jax.random.key(2), (length, num_envs, task.action_size), minval=-1.0)
    keys = jax.random.key_data(jax.random.split(jax.random.key(0), num_envs))  # it counts environments by their axes
    state = jax.jit(wrapper.reset)(keys)
    run = lambda state, actions: jax.lax.scan(lambda s, a: (wrapper.step(s, a), None), state, actions)[0]
    compiled = jax.jit(run).lower(state, actions).compile()
    return lambda state: compiled(state, actions), state


def in_c(env: rlx.Env, num_envs: int, length: int):
    """The same model and number of steps by MuJoCo itself, with a thread for each core."""
    model, substeps = env.environment.model, env.environment.substeps
    cores = os.cpu_count() or 1
    data = mujoco.MjData(model)
    kind = mujoco.mjtState.mjSTATE_FULLPHYSICS
    first = np.zeros(mujoco.mj_stateSize(model, kind))
    mujoco.mj_getState(model, data, first, kind)
    low, high = model.actuator_ctrlrange.T
    actions = np.random.default_rng(0).uniform(low, high, (num_envs, length, model.nu)).repeat(substeps, 1)
    pool = Rollout(nthread=cores)
    each = [mujoco.MjData(model) for _ in range(cores)]
    return lambda state: pool.rollout(model, each, state, actions)[0][:, -1], np.tile(first, (num_envs, 1))


def seconds(program, state, budget: float) -> float:
    """Of one call, over as many as fit into the budget; each goes on from where the last one came to."""
    num, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < budget or num == 0:
        state = jax.block_until_ready(program(state))
        num += 1
    return elapsed / num


def speeds(env: rlx.Env, num_envs: int, own: bool, turns: int, budget: float) -> dict[str, float]:
    """Steps/s of the environments, and those of their own wrapper where there is one."""
    length = max(1, CHUNK // num_envs)
    programs = {"steps_per_second": stepping(env, num_envs, length)}
    if own:
        programs["own_wrapper"] = wrapped(env, num_envs, length)
    if isinstance(env.environment, Mjcf):
        programs["in_c"] = in_c(env, num_envs, length)
    times = {name: [] for name in programs}
    for program, state in programs.values():
        seconds(program, state, 0.0)
    for _ in range(turns):
        for name, (program, state) in programs.items():
            times[name].append(seconds(program, state, budget))
    return {name: num_envs * length / median(found) for name, found in times.items()}


def share(env: rlx.Env, name: str, turns: int, budget: float) -> dict[str, float]:
    """What of a PPO update is stepping: a rollout whose policy is free, over the whole update."""
    config = rlx.replace(preset(ppo, name), total_steps=1)
    config = rlx.replace(config, num_steps=min(config.num_steps, max(1, CHUNK // config.num_envs)))
    state = jax.jit(ppo.init)(config, env, jax.random.key(0))
    actions = jax.vmap(env.action_space.sample)(jax.random.split(jax.random.key(1), config.num_envs))

    def step(state, env):
        return rollout(env, lambda obs, key: (actions, None), state.env_state, state.key, config.num_steps)[0]

    def update(state, env):
        return ppo.update(config, env, state)[0].params

    compiled = [jax.jit(f).lower(state, env).compile() for f in (step, update)]

    def again(program, state):
        jax.block_until_ready(program(state, env))
        return state

    times = [[], []]
    for _ in range(1 + turns):
        for found, program in zip(times, compiled, strict=True):
            found.append(seconds(partial(again, program), state, budget))
    shares = [a / b for a, b in zip(times[0][1:], times[1][1:], strict=True)]
    num_steps = config.num_envs * config.num_steps
    return {
        "num_envs": config.num_envs,
        "training_steps_per_second": num_steps / median(times[1][1:]),
        "share_of_physics": {"median": median(shares), "low": min(shares), "high": max(shares)},
    }


def measure(case: str, turns: int, budget: float) -> dict:
    name = case.partition(",")[0]
    env = rlx.envs.make(name, **TASKS[case])
    environment = getattr(env.environment, "environment", env.environment)
    substeps = (
        getattr(environment, "substeps", None) or getattr(environment, "n_substeps", None) or environment._n_frames
    )
    own = name.startswith("playground/")
    return {
        "case": case,
        "physics_steps": int(substeps),
        "speeds": {str(n): speeds(env, n, own, turns, budget) for n in NUM_ENVS},
        "training": share(env, name, turns, budget),
    }


def main(task: tuple[str, ...] = (), turns: int = 7, budget: float = 2.0, out: Path = RESULTS / "physics.json") -> None:
    """Measures every task, and keeps what other runs have measured.

    Args:
        task: only these.
        turns: of what is compared.
        budget: seconds of a program in a turn.
        out: the JSON file.
    """
    if unknown := [name for name in task if name not in TASKS]:
        raise SystemExit(f"there is no task {unknown[0]}: {', '.join(TASKS)}")
    console = Console()
    chosen = [name for name in task or TASKS if not name.startswith("playground/") or find_spec("mujoco_playground")]
    old = json.loads(out.read_text()) if out.exists() else {}
    cases = {case["case"]: case for case in old.get("cases", ())}
    for name in chosen:
        cases[name] = measure(name, turns, budget) | {"commit": commit()}
        console.print(cases[name])
        packages = versions("rlx", "jax", "jaxlib", "mujoco", "mujoco-mjx", "brax", "playground")
        found = {"cases": [cases[n] for n in TASKS if n in cases], "versions": packages}
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(found | {"machine": machine()}, indent=1) + "\n")


if __name__ == "__main__":
    import tyro

    tyro.cli(main)
