"""MuJoCo in JAX: a model in MJCF and a few functions of its physics make an environment.

    env = mjcf.task("robot.xml", observe=observe, reward=reward, terminated=fallen, start=start, substeps=4)

The functions are given `data`, an `mjx.Data`, and `params`, of which `params.physics` is the `mjx.Model` (masses,
friction, gains, ...) and `params.task` whatever else the task varies. All of it is traced: a vmap over `params` is a
sweep over robots.

Between steps the state holds positions, velocities, activations, mocap bodies, and the last acceleration, from which
the solver starts. States are small, so that they are cheap to clone and to replace where episodes end; MuJoCo's other
arrays live within a step. Under `vmap` a step is computed with the batch last, see `rlx.devices.batch_last`.
"""

import contextlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

with contextlib.redirect_stdout(None):  # it prints that its optional Warp backend is not installed
    from mujoco import MjModel, mjx  # pyright: ignore[reportAttributeAccessIssue] (compiled)

from rlx.devices.batch_last import batch_last
from rlx.env import Env
from rlx.envs.frames import camera_names, mujoco_frames
from rlx.pytree import pytree, uncommitted
from rlx.spaces import Box


@pytree
class Params:
    physics: Any  # mjx.Model
    task: Any = None


@pytree
class State:
    """The fields of `mjx.Data` that go from one step to the next; Q positions, V velocities, A activations, M mocap."""

    qpos: jax.Array  # [Q]
    qvel: jax.Array  # [V]
    act: jax.Array  # [A]
    mocap_pos: jax.Array  # [M, 3]
    mocap_quat: jax.Array  # [M, 4]
    qacc_warmstart: jax.Array  # [V]
    time: jax.Array  # seconds


def as_modelled(key, data, params):
    """The start that the model itself describes, at rest."""
    return data


def never(data, params):
    return jnp.array(False)


class Mjcf:
    """A task of MuJoCo physics under the contract of `rlx.env.Environment`; see `task`.

    Physics that diverges ends the episode in the last state that was finite, and `info["diverged"]` says so.
    """

    differentiable = False  # the solver of contacts and limits iterates until it converges: JAX has no reverse of that

    def __init__(self, params: Params, model: MjModel, observe, reward, terminated, start, substeps: int):
        self.default_params, self.model, self.substeps = params, model, substeps
        self.observe, self.reward, self.terminated, self.start = observe, reward, terminated, start
        low, high = model.actuator_ctrlrange.astype(np.float32).T
        self._actions = Box(low, high, (model.nu,))
        obs = jax.eval_shape(lambda key: self.reset(key, params)[0], jax.random.key(0))
        if getattr(obs, "ndim", None) != 1:
            raise ValueError("observe must give one vector: concatenate what the policy is to see")
        self._observations = Box(-jnp.inf, jnp.inf, obs.shape)

    def data(self, state: State, params: Params) -> mjx.Data:
        """`mjx.Data` of a state, with positions and velocities of bodies, geoms and sites; no forces or contacts."""
        return _places(mjx.make_data(params.physics).replace(**vars(state)), params)

    # Compiled as a whole where they are called outside of a program: physics is thousands of small operations.
    @partial(jax.jit, static_argnums=0)
    def reset(self, key, params):
        data = _places(self.start(key, mjx.make_data(params.physics), params), params)
        return self.observe(data, params), _state(data)

    @partial(jax.jit, static_argnums=0)
    def step(self, key, state, action, params):
        return batch_last(self._step)(state, action, params)

    def _step(self, state, action, params):
        start = mjx.make_data(params.physics).replace(**vars(state), ctrl=action)
        data = jax.lax.fori_loop(0, self.substeps, lambda _, data: mjx.step(params.physics, data), start)
        finite = jnp.isfinite(data.qpos).all() & jnp.isfinite(data.qvel).all()
        # MuJoCo places bodies at the beginning of a step: those of `data` are a substep behind its positions.
        data = _places(jax.tree.map(lambda new, old: jnp.where(finite, new, old), data, start), params)
        reward = jnp.where(finite, self.reward(data, action, params), 0.0)
        terminated = ~finite | self.terminated(data, params)
        return self.observe(data, params), _state(data), reward, terminated, jnp.array(False), {"diverged": ~finite}

    @property
    def dt(self):
        """Seconds of a control step."""
        return self.substeps * self.model.opt.timestep

    def cameras(self, params):
        return camera_names(self.model)

    def frames(self, env_states, params, width, height, camera):
        def place(data, env_state):
            data.qpos, data.mocap_pos, data.mocap_quat = (
                getattr(env_state.state, name) for name in ("qpos", "mocap_pos", "mocap_quat")
            )

        return mujoco_frames(self.model, place, env_states, width, height, camera)

    def observation_space(self, params):
        return self._observations

    def action_space(self, params):
        return self._actions


def _places(data: mjx.Data, params: Params) -> mjx.Data:
    """With the places and velocities of bodies that belong to its `qpos` and `qvel`; what is not read costs nothing."""
    for compute in (mjx.kinematics, mjx.com_pos, mjx.com_vel):
        data = compute(params.physics, data)
    return data


def _state(data: mjx.Data) -> State:
    return State(**{name: getattr(data, name) for name in State.__dataclass_fields__})


def task(
    model: str | Path | MjModel,
    *,
    observe: Callable[[mjx.Data, Params], jax.Array],
    reward: Callable[[mjx.Data, jax.Array, Params], jax.Array],
    terminated: Callable[[mjx.Data, Params], jax.Array] = never,
    start: Callable[[jax.Array, mjx.Data, Params], mjx.Data] = as_modelled,
    params: Any = None,
    substeps: int = 1,
    max_steps: int = 1000,
) -> Env:
    """The environment of a model.

    Args:
        model: path of an MJCF file, its text, or a compiled model.
        observe: `(data, params) -> [n]`, what the policy sees.
        reward: `(data, action, params) -> []`, of the state that the action led to.
        terminated: `(data, params) -> []`, whether that state is terminal.
        start: `(key, data, params) -> data`, which it gives `qpos`, `qvel`, ... of a start that is drawn with `key`.
        params: what the functions find as `params.task`, a pytree.
        substeps: physics steps of the model's `timestep` a control step.
        max_steps: control steps after which an episode is truncated.

    Raises:
        ValueError: for a model that cannot be read, that has no actuators or one without `ctrlrange`, or an
            observation that is not a vector.
        NotImplementedError: MJX's own, for what it cannot simulate; it names the feature.
    """
    if type(substeps) is not int or substeps < 1:
        raise ValueError(f"substeps = {substeps!r}: give an integer of at least 1")
    compiled: Any = _read(model)
    if not compiled.nu:
        raise ValueError("the model has no actuators: there is nothing for a policy to do; add <actuator> to it")
    for i in np.flatnonzero(~compiled.actuator_ctrllimited.astype(bool)):
        raise ValueError(
            f'actuator {compiled.actuator(i).name or i} has no limits: give it ctrlrange="-1 1" or the like'
        )
    params = Params(uncommitted(mjx.put_model(compiled, impl="jax")), params)
    environment = Mjcf(params, compiled, observe, reward, terminated, start, substeps)
    return Env(environment, params, max_steps=max_steps, lazy_starts=True)


def _read(model: str | Path | MjModel) -> MjModel:
    if isinstance(model, MjModel):
        return model
    if str(model).lstrip().startswith("<"):
        return MjModel.from_xml_string(str(model))
    if not Path(model).exists():
        raise ValueError(f"there is no model {model}")
    return MjModel.from_xml_path(str(model))
