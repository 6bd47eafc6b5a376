"""Adapter for Brax: its locomotion and control tasks on any of its physics backends."""

import contextlib
import copy
import warnings
from typing import Any

import jax
import jax.numpy as jnp

from rlx.devices.batch_last import batch_last
from rlx.env import Env
from rlx.envs.frames import camera_names, mujoco_frames
from rlx.pytree import uncommitted
from rlx.spaces import Box, Dict

# Listed here so that looking a name up does not import the suite; a test compares with the installed one.
NAMES = (
    *("ant", "fast", "halfcheetah", "hopper", "humanoid", "humanoidstandup", "inverted_pendulum"),
    *("inverted_double_pendulum", "pusher", "reacher", "swimmer", "walker2d"),
)
BACKENDS = ("generalized", "positional", "spring", "mjx")
EPISODE_STEPS = 1000


class Brax:
    """A Brax environment under the contract of `rlx.env.Environment`.

    `params` is the physical system (masses, actuators, solver options), which Brax keeps inside the environment
    object; every call works on a shallow copy that holds the one passed in. Actions are in [-1, 1], as in Brax's
    own training; the task scales them to its actuators.
    """

    def __init__(self, environment: Any):
        self.environment = environment
        start = jax.eval_shape(environment.reset, jax.random.key(0))
        box = lambda x: Box(-jnp.inf, jnp.inf, x.shape)
        self._space = Dict({n: box(x) for n, x in start.obs.items()}) if isinstance(start.obs, dict) else box(start.obs)

    @property
    def default_params(self):
        return getattr(self.environment, "sys", None)

    def _with(self, params):
        environment = copy.copy(self.environment)
        if params is not None:
            environment.sys = params
        return environment

    def reset(self, key, params):
        state = self._with(params).reset(key)
        return state.obs, state

    def step(self, key, state, action, params):
        return batch_last(self._step)(state, action, params)

    def _step(self, state, action, params):
        # Tasks write into the dictionaries of the state that they are given: they get a rebuilt one.
        stepped = self._with(params).step(jax.tree.map(lambda x: x, state), action)
        # Some give back a Python float where the start state has an array.
        stepped = jax.tree.map(lambda new, old: jnp.asarray(new, jnp.result_type(old)), stepped, state)
        return stepped.obs, stepped, stepped.reward, stepped.done > 0.5, False, stepped.metrics

    @property
    def dt(self):
        """Seconds of a control step."""
        return float(self.environment.dt)

    def cameras(self, params):
        return camera_names(self.environment.sys.mj_model)

    def frames(self, env_states, params, width, height, camera):
        def place(data, env_state):
            data.qpos, data.qvel = env_state.state.pipeline_state.q, env_state.state.pipeline_state.qd

        return mujoco_frames(self.environment.sys.mj_model, place, env_states, width, height, camera)

    def html(self, env_states, params):
        """Brax's page, which shows the episode in three dimensions; its viewer comes from the net when it is opened."""
        import brax.io.html

        system = self.environment.sys.tree_replace({"opt.timestep": self.environment.dt})
        return brax.io.html.render(system, [s.state.pipeline_state for s in env_states], colab=False)

    def observation_space(self, params):
        return self._space

    def action_space(self, params):
        return Box(-1.0, 1.0, (self.environment.action_size,))


class _Numpy:
    """`jax.numpy` with the argument names of `clip` that jax has removed and Brax's fluid forces still use."""

    def __getattr__(self, name):
        return getattr(jnp, name)

    def clip(self, x, a_min=None, a_max=None):
        return jnp.clip(x, a_min, a_max)


def make(name: str, *, backend: str | None = None, **options: Any) -> Env:
    """`backend`: generalized, positional, spring or mjx; None is the task's default in Brax."""
    if backend is not None:
        if backend not in BACKENDS:
            raise ValueError(f"backend = {backend!r} is not one of {', '.join(BACKENDS)}")
        options["backend"] = backend
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Brax System, piplines and environments are not actively")
        warnings.filterwarnings("ignore", message="JAXopt is no longer maintained", category=DeprecationWarning)
        with contextlib.redirect_stdout(None):  # MJX prints that its optional Warp backend is not installed
            import brax.envs
        import brax.fluid

        brax.fluid.jp = _Numpy()
        environment = Brax(brax.envs.get_environment(name, **options))
    return Env(environment, uncommitted(environment.default_params), max_steps=EPISODE_STEPS, lazy_starts=True)
