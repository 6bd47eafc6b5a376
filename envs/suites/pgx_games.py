"""Adapter for the two-player games of pgx (2.6): one player is seen, the other is part of the environment.

An optional extra: `pip install 'rlx[pgx]'`. `params` are the opponents, see `rlx.games.Versus`.
"""

from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any

import jax.numpy as jnp
import numpy as np

from rlx.env import Env
from rlx.envs.frames import COOL, GREY, WARM, matplotlib_frames
from rlx.envs.yardsticks import perfect_moves, table_move
from rlx.games import AGENT, Opponents, Versus, random_move
from rlx.pytree import num_rows
from rlx.spaces import Box, Dict, Discrete

# Listed here so that looking a name up does not import the suite; a test compares with the installed one.
NAMES = (
    *("tic_tac_toe", "connect_four", "othello", "hex", "go_9x9", "go_19x19", "backgammon", "kuhn_poker"),
    *("leduc_holdem", "animal_shogi", "gardner_chess", "chess", "shogi"),
)
TWICE = ("backgammon", "leduc_holdem")  # in these the same player may move again
HIDDEN = ("kuhn_poker", "leduc_holdem")  # cards that the other does not see
BOARDS = ("tic_tac_toe", "connect_four", "othello", "hex", "go_9x9", "go_19x19")  # planes 0 and 1: mine, theirs
BOUNDS = {"backgammon": (-15.0, 15.0)}  # checkers on a point, the other's are negative
LETTERS = "abcdefghijklmnopqrstuvwxyz"
OPPONENTS = {"random": random_move, "perfect": table_move}


class PgxGame:
    """A game of pgx under the contract of `rlx.games.Game`.

    `board` says whether it is played with one kind of stones; those can be drawn, and written by `text`. `move_names`
    are what moves are called there.
    """

    legend = ": you are X, it is O"

    def __init__(self, name: str, game: Any):
        self.name, self.game = name, game
        self.alternates, self.hidden, self.board = name not in TWICE, name in HIDDEN, name in BOARDS
        self.action_space = Discrete(int(game.num_actions))
        planes = Box(*BOUNDS.get(name, (0.0, 1.0)), tuple(map(int, game.observation_shape)))
        mask = Box(0, 1, (self.action_space.n,), jnp.bool_)
        self.observation_space = Dict(obs=planes, action_mask=mask)
        self.move_names = _move_names(name, planes.shape, self.action_space.n)

    def start(self, key):
        return self.game.init(key)

    def move(self, key, position, action):
        return self.game.step(position, action, key)

    def observe(self, position):
        return {"obs": position.observation.astype(jnp.float32), "action_mask": position.legal_action_mask}

    def turn(self, position):
        return position.current_player

    def rewards(self, position):
        return position.rewards

    def over(self, position):
        return position.terminated | position.truncated

    def text(self, position):
        """The board, X for stones of player 0 and O for those of the other, with the names of rows and columns."""
        mine, theirs = stones(self, position)
        columns = range(1, 8) if self.name == "connect_four" else LETTERS[: mine.shape[1]]
        lines = ["   " + " ".join(map(str, columns))]
        for row, (own, other) in enumerate(zip(mine, theirs, strict=True)):
            cells = ("X" if a else "O" if b else "." for a, b in zip(own, other, strict=True))
            head = "  " if self.name == "connect_four" else f"{row + 1:2}"
            lines.append(" " * row * (self.name == "hex") + head + " " + " ".join(cells))
        return "\n".join(lines)


def _move_names(name: str, shape: tuple[int, ...], num: int) -> tuple[str, ...]:
    """Columns of connect four from 1, cells as a1, b1, ... by columns and rows, else numbers."""
    if name == "connect_four":
        return tuple(str(column + 1) for column in range(num))
    if name not in BOARDS:
        return tuple(map(str, range(num)))
    cells = [f"{LETTERS[column]}{row + 1}" for row in range(shape[0]) for column in range(shape[1])]
    return (*cells, "swap" if name == "hex" else "pass")[:num]


class PgxVersus(Versus):
    """A `Versus` whose boards can be drawn."""

    @property
    def frames(self):
        """For games on a board of one kind of stones."""
        if not getattr(self.game, "board", False):
            raise AttributeError("frames")
        return partial(_frames, self.game)


def _frames(game, env_states, params, width, height, camera):
    return matplotlib_frames(partial(_draw, game), env_states, width, height)


def _draw(game: Any, axes: Any, env_state: Any) -> None:
    """The agent's stones are warm, the opponent's cool; the rows of Hex are shifted."""
    mine, theirs = stones(game, env_state.state.position)
    rows, columns = mine.shape
    shift = 0.5 if game.name == "hex" else 0.0
    for row in range(rows):
        for column in range(columns):
            color = WARM if mine[row, column] else COOL if theirs[row, column] else GREY
            axes.plot(column + shift * row, rows - row, "o", color=color, ms=150 / max(rows, columns))
    axes.set_xlim(-1, columns + shift * rows)
    axes.set_ylim(0, rows + 1)


def stones(game: Any, position: Any, player: int = AGENT) -> tuple[np.ndarray, np.ndarray]:
    """The stones of a player and those of the other, bool `[rows, columns]` each, of a position without a batch axis.

    Raises:
        ValueError: for games that are not played with one kind of stones.
    """
    if not getattr(game, "board", False):
        raise ValueError(f"pgx/{game.name} has no board of stones; there is one in {', '.join(BOARDS)}")
    planes = np.asarray(position.observation)[..., :2] > 0.5
    mover, other = planes[..., 0], planes[..., 1]
    return (mover, other) if int(position.current_player) == player else (other, mover)


def make(name: str, opponent: str | Callable = "random", pool: Any = None) -> Env:
    """A game against an opponent.

    Args:
        name: one of `NAMES`.
        opponent: random; perfect, for tic-tac-toe, which takes any of the best moves; or
            `policy(params, obs, key) -> action`.
        pool: parameters of a policy that is given, leaves `[P, ...]`; without them it is given zeros.

    Raises:
        ValueError: for another opponent, or where pgx is not installed.
    """
    known = [*OPPONENTS] if name == "tic_tac_toe" else ["random"]
    if not callable(opponent) and opponent not in known:
        raise ValueError(f"opponent = {opponent!r}: choose {' or '.join(known)}, or give a policy(params, obs, key)")
    try:
        pgx: Any = import_module("pgx")
    except ImportError as error:
        raise ValueError(f"pgx/{name} needs another package: pip install 'rlx[pgx]' ({error})") from error
    game = PgxGame(name, pgx.make(name))
    if opponent == "perfect":
        pool = jnp.asarray(perfect_moves())[None]
    policy = opponent if callable(opponent) else OPPONENTS[opponent]
    environment = PgxVersus(game, policy)
    if pool is None:
        return Env(environment, environment.default_params)
    return Env(environment, Opponents(pool, jnp.ones(num_rows(pool))))
