"""Adapter for MuJoCo Playground: the DeepMind Control Suite, locomotion and manipulation, on MuJoCo in JAX.

An optional extra: `pip install 'rlx[playground]'`. Locomotion and manipulation need models of robots, which Playground
downloads when the first of them is made.
"""

import contextlib
import copy
import subprocess
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from rlx.devices.batch_last import batch_last
from rlx.env import Env, is_finite
from rlx.envs.frames import camera_names, mujoco_frames
from rlx.pytree import uncommitted
from rlx.spaces import Box, Dict

# Listed here so that looking a name up does not import the suite; a test compares with the installed one.
CONTROL = (
    *("AcrobotSwingup", "AcrobotSwingupSparse", "BallInCup", "CartpoleBalance", "CartpoleBalanceSparse"),
    *("CartpoleSwingup", "CartpoleSwingupSparse", "CheetahRun", "FingerSpin", "FingerTurnEasy", "FingerTurnHard"),
    *("FishSwim", "HopperHop", "HopperStand", "HumanoidStand", "HumanoidWalk", "HumanoidRun", "PendulumSwingup"),
    *("PointMass", "ReacherEasy", "ReacherHard", "SwimmerSwimmer6", "WalkerRun", "WalkerStand", "WalkerWalk"),
)
LOCOMOTION = (
    *("ApolloJoystickFlatTerrain", "BarkourJoystick", "BerkeleyHumanoidJoystickFlatTerrain"),
    *("BerkeleyHumanoidJoystickRoughTerrain", "G1JoystickFlatTerrain", "G1JoystickRoughTerrain", "Go1Footstand"),
    *("Go1Getup", "Go1Handstand", "Go1JoystickFlatTerrain", "Go1JoystickRoughTerrain", "H1InplaceGaitTracking"),
    *("H1JoystickGaitTracking", "Op3Joystick", "SpotFlatTerrainJoystick", "SpotGetup", "SpotJoystickGaitTracking"),
    *("T1JoystickFlatTerrain", "T1JoystickRoughTerrain"),
)
MANIPULATION = (
    *("AeroCubeRotateZAxis", "AlohaHandOver", "AlohaSinglePegInsertion", "LeapCubeReorient", "LeapCubeRotateZAxis"),
    *(
        "PandaOpenCabinet",
        "PandaPickCube",
        "PandaPickCubeCartesian",
        "PandaPickCubeOrientation",
        "PandaRobotiqPushCube",
    ),
)
NAMES = CONTROL + LOCOMOTION + MANIPULATION


class Playground:
    """A Playground environment under the contract of `rlx.env.Environment`.

    `params` is the physical model (`mjx.Model`: masses, friction, gains, ...), which Playground keeps inside the
    environment object; every call works on a shallow copy that holds the one passed in. Actions are in [-1, 1]. An
    action is repeated as often as the task's configuration says, and the rewards are added up. Of observations with
    several entries, those called "privileged..." are for critics. Where physics diverges the episode ends, with the
    last observation that was finite and without a reward, and `info["diverged"]` says so.
    """

    def __init__(self, environment: Any):
        self.environment, self.repeat = environment, int(environment._config.get("action_repeat", 1))
        start = jax.eval_shape(environment.reset, jax.random.key(0))
        self._space = _space(start.obs)

    @property
    def default_params(self):
        return self.environment.mjx_model

    @property
    def dt(self):
        """Seconds of a step."""
        return self.environment.dt * self.repeat

    def cameras(self, params):
        return camera_names(self.environment.mj_model)

    def frames(self, env_states, params, width, height, camera):
        def place(data, env_state):
            data.qpos, data.mocap_pos, data.mocap_quat = (
                getattr(env_state.state.data, name) for name in ("qpos", "mocap_pos", "mocap_quat")
            )

        return mujoco_frames(self.environment.mj_model, place, env_states, width, height, camera)

    def _with(self, params):
        environment = copy.copy(self.environment)
        environment._mjx_model = params
        return environment

    def reset(self, key, params):
        state = self._with(params).reset(key)
        return state.obs, state

    def step(self, key, state, action, params):
        return batch_last(self._step)(state, action, params)

    def _step(self, state, action, params):
        environment = self._with(params)

        def once(carry, _):
            state, total, ended = carry
            until = lambda new, old: jnp.where(ended, old, jnp.asarray(new, jnp.result_type(old)))
            # Tasks write into the dictionaries of the state that they are given: they get a rebuilt one.
            stepped = environment.step(jax.tree.map(lambda x: x, state), action)
            stepped = jax.tree.map(lambda new, old: old if new is old else until(new, old), stepped, state)
            total = total + jnp.where(ended, 0.0, stepped.reward)
            return (stepped, total, ended | (stepped.done > 0.5)), None

        (stepped, reward, ended), _ = jax.lax.scan(once, (state, jnp.float32(0), jnp.array(False)), length=self.repeat)
        finite = is_finite((stepped.obs, reward))
        obs = jax.tree.map(lambda new, old: jnp.where(finite, new, old), stepped.obs, state.obs)
        reward = jnp.where(finite, reward, 0.0)
        return obs, stepped, reward, ended | ~finite, jnp.array(False), stepped.metrics | {"diverged": ~finite}

    def observation_space(self, params):
        return self._space

    def action_space(self, params):
        return Box(-1.0, 1.0, (self.environment.action_size,))


def _space(obs: Any) -> Any:
    """The space of observations like `obs`, arrays or dictionaries of them."""
    if not isinstance(obs, Mapping):
        bounds = (0, 255) if obs.dtype == jnp.uint8 else (-jnp.inf, jnp.inf)
        return Box(*bounds, tuple(obs.shape), obs.dtype)
    privileged = [entry for entry in obs if entry.startswith("privileged")]
    return Dict({entry: _space(x) for entry, x in obs.items()}, privileged=privileged)


def make(name: str, **options: Any) -> Env:
    """`options` go into the task's configuration: `action_repeat=4`, `impl="warp"`, `sim_dt=0.005`, ...

    The physics are MuJoCo's own in JAX, unless an accelerator is there, on which the faster implementation is left to
    Playground.

    Raises:
        ValueError: when Playground is not installed, an option is not one of the task's, or models of robots cannot be
            downloaded.
    """
    try:
        with contextlib.redirect_stdout(None):  # MJX prints that its optional Warp backend is not installed
            from mujoco_playground import registry  # pyright: ignore[reportMissingImports] (an extra)
    except ImportError as error:
        raise ValueError(f"playground/{name} needs another package: pip install 'rlx[playground]' ({error})") from error
    config = registry.get_default_config(name)
    if jax.default_backend() == "cpu" and "impl" in config:
        config.impl = "jax"
    if unknown := [option for option in options if option not in config]:
        raise ValueError(f"playground/{name} has no option {unknown[0]}: there are {', '.join(sorted(config))}")
    for option, value in options.items():
        config[option] = value
    try:
        environment = Playground(registry.load(name, config=config))
    except (OSError, subprocess.CalledProcessError) as error:
        raise ValueError(
            f"playground/{name} downloads models of robots when it is first made, and that failed: {error}"
        ) from error
    max_steps = config.episode_length // environment.repeat
    return Env(environment, uncommitted(environment.default_params), max_steps=max_steps, lazy_starts=True)
