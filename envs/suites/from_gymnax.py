"""Adapter for gymnax (1.0 and later): classic control, bsuite, MinAtar, and its miscellaneous tasks."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer

from rlx import versions
from rlx.env import Env
from rlx.envs.frames import drawn_by
from rlx.envs.suites.gymnax_drawings import GYMNAX, channels
from rlx.spaces import Box, Discrete

# Listed here so that looking a name up does not import the suite; a test compares with the installed one.
NAMES = (
    *("CartPole-v1", "Pendulum-v1", "Acrobot-v1", "MountainCar-v0", "MountainCarContinuous-v0"),
    *("Asterix-MinAtar", "Breakout-MinAtar", "Freeway-MinAtar", "Seaquest-MinAtar", "SpaceInvaders-MinAtar"),
    *("Catch-bsuite", "DeepSea-bsuite", "MemoryChain-bsuite", "UmbrellaChain-bsuite", "DiscountingChain-bsuite"),
    *("MNISTBandit-bsuite", "SimpleBandit-bsuite", "FourRooms-misc", "MetaMaze-misc", "PointRobot-misc"),
    *("BernoulliBandit-misc", "GaussianBandit-misc", "Reacher-misc", "Swimmer-misc", "Pong-misc", "FrozenLake-misc"),
)


# What gymnax imports to draw.
DRAWS_WITH = ("seaborn", "matplotlib", "matplotlib.pyplot", "matplotlib.animation", "matplotlib.colors")

# What gymnax has in `info` for training loops: nothing that a task reports.
NO_RESULTS = ("discount", "final_observation")

# Their observations leave the bounds that they declare: rewards, times and signed bits where 0 to n is written.
WRONG_BOUNDS = ("MemoryChain-bsuite", "MNISTBandit-bsuite", "MetaMaze-misc", "GaussianBandit-misc")


@dataclass(frozen=True)
class Gymnax:
    """A gymnax environment under the contract of `rlx.env.Environment`.

    Observations and rewards are float32 (or int32 for a Discrete observation), whatever number type the environment
    computes them in. Where the declared bounds are wrong, the observation space has none.

    gymnax detaches observations and states from the gradient, but for the environments that can be asked to keep it.
    In those `differentiable` is True; a gradient through the steps of another one raises ValueError.
    """

    environment: Any
    bounded: bool = True

    @property
    def default_params(self):
        return self.environment.default_params

    def reset(self, key, params):
        obs, state = self.environment.reset_env(key, params)
        return self._cast(obs, params), state

    @property
    def differentiable(self):
        return getattr(self.environment, "transition_gradients_enabled", False)

    def step(self, key, state, action, params):
        if not self.differentiable:
            state, action, params = _refusing_gradients(self.environment.name, (state, action, params))
        obs, new, reward, terminated, info = self.environment.step_env(key, state, action, params)
        # Under x64 a start is float64 where a step computes float32.
        state = jax.tree.map(lambda x, old: jnp.asarray(x, jnp.result_type(old)), new, state)
        truncated = self.environment.is_truncated(state, params)
        info = {name: value for name, value in info.items() if name not in NO_RESULTS}
        return self._cast(obs, params), state, jnp.asarray(reward, jnp.float32), terminated, truncated, info

    def observation_space(self, params):
        space = _space(self.environment.observation_space(params), "observation")
        if isinstance(space, Discrete):
            return space
        low, high = (space.low, space.high) if self.bounded else (-jnp.inf, jnp.inf)
        return Box(low, high, space.shape, jnp.float32)

    def action_space(self, params):
        return _space(self.environment.action_space(params), "action")

    @property
    def frames(self):
        """For classic control and what has images `[H, W, C]` as observations, such as MinAtar."""
        draw = GYMNAX.get(self.environment.name)
        if draw is None and len(self.observation_space(self.default_params).shape) == 3:
            draw = channels
        if draw is None:
            raise AttributeError("frames")
        return partial(drawn_by(draw), self)

    def _cast(self, obs, params):
        return obs.astype(self.observation_space(params).dtype)


def _refusing_gradients(name: str, tree: Any) -> Any:
    """The same; a derivative in any floating-point number of it that is traced raises ValueError."""

    @jax.custom_jvp
    def same(*numbers):
        return numbers

    @same.defjvp
    def _(primals, tangents):
        raise ValueError(
            f"gymnax/{name} has no gradients: gymnax detaches its observations and states, and what came out would be "
            "finite and wrong; use jax.lax.stop_gradient on the actions and params that it is given, or an environment "
            "whose `environment.differentiable` is True"
        )

    leaves, structure = jax.tree.flatten(tree)
    traced = [i for i, x in enumerate(leaves) if isinstance(x, Tracer) and jnp.issubdtype(x.dtype, jnp.floating)]
    for i, x in zip(traced, same(*(leaves[i] for i in traced)) if traced else (), strict=True):
        leaves[i] = x
    return jax.tree.unflatten(structure, leaves)


def _space(space: Any, role: str) -> Any:
    match type(space).__name__:
        case "Box":
            return Box(space.low, space.high, tuple(space.shape), space.dtype)
        case "Discrete" if getattr(space, "start", 0) == 0:
            return Discrete(int(space.n))
    raise ValueError(f"{role} space {space} is not supported; rlx works with Box and Discrete")


@contextmanager
def postponed(*names: str) -> Iterator[None]:
    """Within it, importing these modules gives stand-ins: the real ones are imported when they are first used."""
    stand_ins = {name: ModuleType(name) for name in names if name not in sys.modules}
    for name, stand_in in stand_ins.items():
        vars(stand_in)["__getattr__"] = lambda attribute, name=name: getattr(import_module(name), attribute)
        stand_in.__path__ = []
        package, _, part = name.rpartition(".")
        if package in stand_ins:
            setattr(stand_ins[package], part, stand_in)
    sys.modules.update(stand_ins)
    try:
        yield
    finally:
        for name in stand_ins:
            del sys.modules[name]


def make(name: str, **options: Any) -> Env:
    """`options` go to the environment's constructor.

    Raises:
        ValueError: a space that is neither Box nor Discrete, or data that cannot be downloaded.
        ImportError: a version of gymnax that rlx was not tested with.
    """
    versions.check("gymnax")
    with postponed(*DRAWS_WITH):  # it takes longer to import than all else
        import gymnax

    try:
        environment = gymnax.make(name, **options)[0]
    except OSError as error:
        raise ValueError(f"gymnax/{name} downloads its data when it is first made, and that failed: {error}") from error
    if getattr(environment, "supports_transition_gradients", False):
        environment = environment.with_transition_gradients()
    environment = Gymnax(environment, bounded=name not in WRONG_BOUNDS)
    params = environment.default_params
    environment.observation_space(params)  # refuse early, not within a trace
    environment.action_space(params)
    return Env(environment, params)
