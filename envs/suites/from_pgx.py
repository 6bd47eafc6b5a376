"""Adapter for pgx: 2048 and the games of MinAtar, which one player plays; those of two are in `pgx_games`.

An optional extra: `pip install 'rlx[pgx]'`.
"""

from dataclasses import replace
from functools import partial
from typing import Any

import jax.numpy as jnp

from rlx.env import Env
from rlx.envs.frames import drawn_by
from rlx.envs.suites import pgx_games
from rlx.envs.suites.gymnax_drawings import channels
from rlx.envs.suites.jumanji_drawings import tiles
from rlx.spaces import MASK, Box, Dict, Discrete

# Listed here so that looking a name up does not import the suite; a test compares with the installed one.
ALONE = (
    *("2048", "minatar-asterix", "minatar-breakout", "minatar-freeway", "minatar-seaquest"),
    "minatar-space_invaders",
)
NAMES = ALONE + pgx_games.NAMES
REFUSED = {
    "bridge_bidding": "it needs a set of deals that pgx downloads",
    "sparrow_mahjong": "it has three players with hidden hands, and rlx plays games of one or two",
}

# Their only end is that of a clock, which is not seen: a time limit.
TIMED = {"minatar-freeway": 2501}  # steps


class Pgx:
    """A game of pgx for one player under the contract of `rlx.env.Environment`.

    Observations are dictionaries of `obs`, planes of booleans `[H, W, C]`, and `action_mask`, the legal actions. The
    end of a clock is a truncation, every other one a termination. In 2048 `info` has `highest_tile`, as its changes:
    their sum over an episode is the last value.
    """

    default_params = None
    differentiable = False

    def __init__(self, environment: Any):
        self.environment = environment
        self.shape, self.num_actions = tuple(environment.observation_shape), int(environment.num_actions)
        self.limit = TIMED.get(environment.id)

    def reset(self, key, params) -> tuple[Any, Any]:
        state = self.environment.init(key)
        return self._seen(state), state

    def step(self, key, state, action, params):
        new = self.environment.step(state, action, key)
        terminated, truncated = new.terminated, new.truncated
        if self.limit is not None:
            terminated, truncated = jnp.zeros_like(terminated), terminated
        return self._seen(new), new, new.rewards[0], terminated, truncated, self._reported(state, new)

    def _seen(self, state):
        return {"obs": state.observation, MASK: state.legal_action_mask}

    def _reported(self, state, new):
        if self.environment.id != "2048":
            return {}
        # Before the first step nothing was reported.
        before = jnp.where(state._step_count == 0, 0, 2 ** state._board.max())
        return {"highest_tile": jnp.float32(2 ** new._board.max() - before)}

    def horizon(self, params):
        return self.limit

    def observation_space(self, params):
        legal = Box(0, 1, (self.num_actions,), jnp.bool_)
        return Dict({"obs": Box(0, 1, self.shape, jnp.bool_), MASK: legal})

    def action_space(self, params):
        return Discrete(self.num_actions)

    @property
    def frames(self):
        return partial(drawn_by(_draw), self)


def _draw(axes: Any, env_state: Any, params: Any) -> None:
    board = getattr(env_state.state, "_board", None)
    if board is None:
        channels(axes, replace(env_state, obs=env_state.obs["obs"]), params)
    else:
        tiles(axes, board.reshape(4, 4))


def make(name: str, **options: Any) -> Env:
    """`options` go to the game's constructor: `sticky_action_prob=0.0` of MinAtar. Games of two: `pgx_games.make`.

    Raises:
        ValueError: when pgx is not installed, or an option is not one of the game's.
    """
    if name in pgx_games.NAMES:
        return pgx_games.make(name, **options)
    try:
        import pgx  # pyright: ignore[reportMissingImports] (an extra)
    except ImportError as error:
        raise ValueError(f"pgx/{name} needs another package: pip install 'rlx[pgx]' ({error})") from error
    game = pgx.make(name)  # pyright: ignore[reportArgumentType] (one of NAMES)
    try:
        environment = Pgx(type(game)(**options) if options else game)
    except TypeError as error:
        raise ValueError(f"pgx/{name}: {error}; options are those of its constructor in pgx") from error
    return Env(environment, None)
