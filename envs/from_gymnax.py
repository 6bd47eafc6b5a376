"""Adapter for gymnax (1.0 and later): classic control, bsuite, MinAtar, and its miscellaneous tasks."""

from dataclasses import dataclass
from typing import Any

from rlx.env import Env
from rlx.spaces import Box, Discrete, Space

# Listed here so that looking a name up does not import the suite; a test compares with the installed one.
NAMES = (
    *("CartPole-v1", "Pendulum-v1", "Acrobot-v1", "MountainCar-v0", "MountainCarContinuous-v0"),
    *("Asterix-MinAtar", "Breakout-MinAtar", "Freeway-MinAtar", "Seaquest-MinAtar", "SpaceInvaders-MinAtar"),
    *("Catch-bsuite", "DeepSea-bsuite", "MemoryChain-bsuite", "UmbrellaChain-bsuite", "DiscountingChain-bsuite"),
    *("MNISTBandit-bsuite", "SimpleBandit-bsuite", "FourRooms-misc", "MetaMaze-misc", "PointRobot-misc"),
    *("BernoulliBandit-misc", "GaussianBandit-misc", "Reacher-misc", "Swimmer-misc", "Pong-misc", "FrozenLake-misc"),
)


@dataclass(frozen=True)
class Gymnax:
    """A gymnax environment under the contract of `rlx.env.Environment`."""

    environment: Any

    @property
    def default_params(self):
        return self.environment.default_params

    def reset(self, key, params):
        return self.environment.reset_env(key, params)

    def step(self, key, state, action, params):
        obs, state, reward, terminated, info = self.environment.step_env(key, state, action, params)
        return obs, state, reward, terminated, self.environment.is_truncated(state, params), info

    def observation_space(self, params):
        return _space(self.environment.observation_space(params), "observation")

    def action_space(self, params):
        return _space(self.environment.action_space(params), "action")


def _space(space: Any, role: str) -> Space:
    match type(space).__name__:
        case "Box":
            return Box(space.low, space.high, tuple(space.shape), space.dtype)
        case "Discrete":
            return Discrete(int(space.n))
    raise ValueError(f"{role} space {space} is not supported; rlx works with Box and Discrete")


def make(name: str, **options: Any) -> Env:
    import gymnax

    environment = Gymnax(gymnax.make(name, **options)[0])
    params = environment.default_params
    environment.observation_space(params), environment.action_space(params)  # refuse early, not within a trace
    return Env(environment, params)
