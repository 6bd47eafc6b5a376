"""Tasks of rlx's own on MuJoCo physics: pendulum, cartpole and reacher, and two that walk.

The models are in `models/`, with what was chosen for speed and why. Rewards are at most 1 a step and of the order of 1
where a task is done well. Units: m, rad, s, kg; actions are in [-1, 1].
"""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from rlx.env import Env
from rlx.pytree import pytree

NAMES = ("pendulum", "cartpole", "reacher", "hopper", "ant")
MODELS = Path(__file__).parents[1] / "models"


# --- pendulum: swing a pole up that is too heavy to be lifted, and hold it there; the angle is 0 when it is up


def pendulum_start(key, data, params):
    return data.replace(qpos=jax.random.uniform(key, (1,), minval=-jnp.pi, maxval=jnp.pi))


def pendulum_observe(data, params):
    return jnp.stack([jnp.cos(data.qpos[0]), jnp.sin(data.qpos[0]), data.qvel[0]])


def pendulum_reward(data, action, params):
    """How high the pole is, squared so that standing is worth more than swinging; turning fast is worth nothing."""
    return (0.5 + 0.5 * jnp.cos(data.qpos[0])) ** 2 * jnp.exp(-((data.qvel[0] / 8.0) ** 2))


# --- cartpole: the same with a cart that is pushed along a rail; the pole hangs at first


def cartpole_start(key, data, params):
    place, angle = jax.random.uniform(key, (2,), minval=-1.0, maxval=1.0)
    return data.replace(qpos=jnp.stack([0.5 * place, jnp.pi + 0.3 * angle]))


def cartpole_observe(data, params):
    (place, angle), (speed, turning) = data.qpos, data.qvel
    return jnp.stack([place, jnp.cos(angle), jnp.sin(angle), speed, turning])


def cartpole_reward(data, action, params):
    """How high the pole is, more so in the middle of the rail and without turning."""
    (place, angle), turning = data.qpos, data.qvel[1]
    middle, still = jnp.exp(-(place**2)), jnp.exp(-((turning / 5.0) ** 2))
    return (0.5 + 0.5 * jnp.cos(angle)) * (0.5 + 0.5 * middle) * (0.5 + 0.5 * still)


# --- reacher: two links in a plane bring their tip to a target


@pytree
class Reach:
    least: float = 0.04  # m, distance of targets from the shoulder
    most: float = 0.2  # m; the arm is 0.22 m
    tolerance: float = 0.02  # m, what counts as there


def reacher_start(key, data, params):
    joints_key, radius_key, angle_key = jax.random.split(key, 3)
    joints = jax.random.uniform(joints_key, (2,), minval=-1.0, maxval=1.0) * jnp.array([jnp.pi, 2.5])
    radius = jax.random.uniform(radius_key, minval=params.task.least, maxval=params.task.most)
    angle = jax.random.uniform(angle_key, minval=-jnp.pi, maxval=jnp.pi)
    target = jnp.stack([radius * jnp.cos(angle), radius * jnp.sin(angle), 0.0])
    return data.replace(qpos=joints, mocap_pos=target[None])


def reacher_gap(data):
    """From tip to target `[2]`, m."""
    return (data.mocap_pos[0] - data.site_xpos[0])[:2]


def reacher_observe(data, params):
    angles = [jnp.cos(data.qpos), jnp.sin(data.qpos), data.qvel]
    return jnp.concatenate([*angles, 10.0 * data.mocap_pos[0, :2], 10.0 * reacher_gap(data)])


def reacher_reward(data, action, params):
    """1 at the target, falling off over the tolerance, with a slope that is felt from afar; less for effort."""
    distance = jnp.linalg.norm(reacher_gap(data))
    there = jnp.exp(-0.5 * (distance / params.task.tolerance) ** 2)
    return 0.7 * there + 0.3 * jnp.exp(-distance / 0.1) - 0.01 * jnp.mean(action**2)


# --- hopper and ant: go forward, which is +x, and do not fall


@pytree
class Walk:
    speed: float  # m/s, faster than which is not worth more
    lowest: float  # m, height of the torso below which it has fallen
    effort: float = 0.1  # weight of the mean squared action
    shake: float = 0.0  # half-width of what start positions and velocities are shifted by


def walk_start(key, data, params):
    position_key, velocity_key = jax.random.split(key)
    shake = lambda key, x: x + params.task.shake * jax.random.uniform(key, x.shape, minval=-1.0, maxval=1.0)
    return data.replace(qpos=shake(position_key, data.qpos), qvel=shake(velocity_key, data.qvel))


def walk_reward(data, action, params):
    """The share of the speed that is wanted, less the effort, and something for not falling."""
    pace = jnp.clip(data.qvel[0] / params.task.speed, -1.0, 1.0)
    return 0.7 * pace + 0.3 - params.task.effort * jnp.mean(action**2)


def hopper_observe(data, params):
    return jnp.concatenate([data.qpos[1:], jnp.clip(data.qvel, -10.0, 10.0)])


def hopper_fell(data, params):
    return (data.qpos[1] < params.task.lowest) | (jnp.abs(data.qpos[2]) > 1.0)


def ant_observe(data, params):
    return jnp.concatenate([data.qpos[2:], jnp.clip(data.qvel, -10.0, 10.0)])


def ant_fell(data, params):
    """Too low, or on its back: the torso's own z axis points downwards."""
    return (data.qpos[2] < params.task.lowest) | (data.xmat[1, 2, 2] < 0.0)


def make(name: str, **options: Any) -> Env:
    """`options`: those of `mjcf.task`, in place of the task's own, such as `substeps=2` or `model="heavier.xml"`."""
    from rlx.envs import mjcf

    tasks = {
        "pendulum": {
            "start": pendulum_start,
            "observe": pendulum_observe,
            "reward": pendulum_reward,
            "substeps": 2,
            "max_steps": 500,
        },
        "cartpole": {
            "start": cartpole_start,
            "observe": cartpole_observe,
            "reward": cartpole_reward,
            "substeps": 2,
            "max_steps": 500,
        },
        "reacher": {
            "start": reacher_start,
            "observe": reacher_observe,
            "reward": reacher_reward,
            "params": Reach(),
            "substeps": 2,
            "max_steps": 150,
        },
        "hopper": {
            "start": walk_start,
            "observe": hopper_observe,
            "reward": walk_reward,
            "terminated": hopper_fell,
            "params": Walk(speed=1.5, lowest=0.7, shake=0.01),
            "substeps": 4,
        },
        "ant": {
            "start": walk_start,
            "observe": ant_observe,
            "reward": walk_reward,
            "terminated": ant_fell,
            "params": Walk(speed=2.0, lowest=0.2, shake=0.05),
            "substeps": 4,
        },
    }
    given: dict[str, Any] = {"model": MODELS / f"{name}.xml"} | tasks[name] | options
    return mjcf.task(**given)
