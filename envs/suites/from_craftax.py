"""Adapter for Craftax: Crafter in JAX (Classic), and the larger game with nine floors.

An optional extra: `pip install 'rlx[craftax]'`.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rlx.env import Env
from rlx.envs.frames import drawn_by
from rlx.envs.suites.craftax_drawing import draw
from rlx.envs.suites.from_gymnax import postponed
from rlx.spaces import Box, Discrete

# name -> where the suite has the class that does not reset by itself, and the achievements
HOMES = {
    "Craftax-Classic-Symbolic-v1": ("craftax.craftax_classic", "CraftaxClassicSymbolicEnvNoAutoReset"),
    "Craftax-Symbolic-v1": ("craftax.craftax", "CraftaxSymbolicEnvNoAutoReset"),
}
NAMES = tuple(HOMES)
_pixels = (
    "the suite prints, and writes textures into its own installation, when it draws pixels: use {}, and rlx render"
)
REFUSED = {name.replace("Symbolic", "Pixels"): _pixels.format(name) for name in NAMES}

NEVER = np.iinfo(np.int32).max  # as a time limit
DRAWS_WITH = ("matplotlib", "matplotlib.pyplot", "imageio", "imageio.v3")  # what the suite imports to draw
PREFIX = "Achievements/"  # before the names of achievements in `info`, as the suite has them


@dataclass(frozen=True)
class Craftax:
    """A game of Craftax under the contract of `rlx.env.Environment`.

    The suite's `done` does not tell death from its time limit, `params.max_timesteps`. Here the game is stepped without
    a limit: what ends it then is `terminated`, and the limit is `truncated`.

    `info` has each achievement under the suite's name, 100 in the step in which it is first reached, 0 in all others:
    summed over an episode and averaged over episodes it is the success rate in percent. The suite's `score` is left
    out, see `crafter_score`.
    """

    game: Any
    achievements: tuple[str, ...]

    reuses_keys = "the suite draws with a key and splits the same one later, both where it makes a world and in a step"
    frames = drawn_by(draw)
    differentiable = False

    @property
    def default_params(self):
        return self.game.default_params

    def reset(self, key, params):
        return self.game.reset_env(key, params)

    def step(self, key, state, action, params):
        endless = params.replace(max_timesteps=NEVER)
        obs, new, reward, terminated, _ = self.game.step_env(key, state, action, endless)
        truncated = new.timestep >= params.max_timesteps
        reached = 100.0 * (new.achievements & ~state.achievements)
        info = {f"{PREFIX}{name}": reached[i] for i, name in enumerate(self.achievements)}
        return obs, new, jnp.asarray(reward, jnp.float32), terminated, truncated, info

    def observation_space(self, params):
        return Box(0.0, 1.0, tuple(self.game.observation_space(params).shape))

    def action_space(self, params):
        return Discrete(int(self.game.num_actions))


def crafter_score(reported: Mapping[str, Any]) -> float:
    """The score of Crafter, in percent: `exp(mean_i log(1 + s_i)) - 1` of the success rates `s_i` of the achievements.

    The rates are over many episodes, and their geometric mean counts rare achievements as much as common ones. The mean
    of what the suite calls `score`, the same of single episodes, is another and smaller number.

    Args:
        reported: what episodes reported, as `rlx.evaluate(...).reported` has it (`[E]` each) or `evaluation.json`
            (means over episodes, in percent). Names that are no achievements are passed over.

    Raises:
        ValueError: there is no achievement among the names.

    Source: Hafner 2021, arXiv:2109.06780, section 3.3.
    """
    rates = [np.mean(value) for name, value in reported.items() if name.startswith(PREFIX)]
    if not rates:
        raise ValueError(f"no name begins with {PREFIX}: give what episodes of Craftax reported")
    return float(np.expm1(np.mean(np.log1p(rates))))


def make(name: str, **options: Any) -> Env:
    """`options` are sizes that fix shapes, of the suite's `StaticEnvParams`: `map_size=(32, 32)`, `max_zombies=5`, ...

    A new world takes as long as 13 steps (Classic) or 30: a rollout draws 16, once the first of its episodes ends.

    Raises:
        ValueError: Craftax is not installed, it has no such option, or no world can be made with it.
    """
    package, kind = HOMES[name]
    try:
        with postponed(*DRAWS_WITH):  # they take longer to import than the game
            games = import_module(f"{package}.envs.craftax_symbolic_env")
            constants = import_module(f"{package}.constants")
    except ImportError as error:
        raise ValueError(f"craftax/{name} needs another package: pip install 'rlx[craftax]' ({error})") from error
    known = [field.name for field in dataclasses.fields(games.StaticEnvParams)]
    if unknown := [option for option in options if option not in known]:
        raise ValueError(f"craftax/{name} has no option {unknown[0]}: there are {', '.join(known)}")
    sizes = {option: tuple(value) if isinstance(value, list) else value for option, value in options.items()}
    game = getattr(games, kind)(games.StaticEnvParams(**sizes))
    achievements = sorted(constants.Achievement, key=lambda achievement: achievement.value)
    environment = Craftax(game, tuple(achievement.name.lower() for achievement in achievements))
    params = environment.default_params
    if options:
        try:
            jax.eval_shape(partial(environment.reset, params=params), jax.random.key(0))
        except (TypeError, ValueError) as error:
            given = ", ".join(f"{option} = {value}" for option, value in sizes.items())
            raise ValueError(f"craftax/{name} makes no world with {given}: {error}") from error
    return Env(environment, params, num_starts=16, lazy_starts=True)
