"""Games of two players: what a game is, the environment that one of them sees, and matches.

A `Game` is pure functions of positions, seen by whoever is to move. `Versus` makes an environment of it: the other
player belongs to the environment, and its parameters to `env.params`, as a pool from which every episode draws one.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from rlx.env import Env
from rlx.masks import sample
from rlx.pytree import pytree, replace
from rlx.spaces import Dict, Discrete

AGENT = 0  # the player that an environment is seen by; which one begins is drawn with each game
OUTCOMES = ("win", "draw", "loss")


class Game(Protocol):
    """A game of players 0 and 1, who are drawn anew to its sides with each game. Pure functions, without a batch axis.

    Attributes:
        alternates: whether the players move in turns throughout; else one may move several times.
        hidden: whether a player sees less than the position, as in most games of cards.
        observation_space: a Dict with the entry `action_mask`, the legal moves.
        action_space: of moves.
    """

    alternates: bool
    hidden: bool
    observation_space: Dict
    action_space: Discrete

    def start(self, key: jax.Array) -> Any:
        """A position to begin with, which says who begins."""
        ...

    def move(self, key: jax.Array, position: Any, action: jax.Array) -> Any:
        """The position after a move of whoever is to move; after the end of a game it stays, without rewards."""
        ...

    def observe(self, position: Any) -> dict[str, jax.Array]:
        """What the player to move sees, an element of `observation_space`."""
        ...

    def turn(self, position: Any) -> jax.Array:
        """The player to move, int32: 0 or 1."""
        ...

    def rewards(self, position: Any) -> jax.Array:
        """What the last move has brought to each player, float32 `[2]`; they add up to 0."""
        ...

    def over(self, position: Any) -> jax.Array:
        """Whether the game has ended, bool."""
        ...


@pytree
class Opponents:
    """The parameters of a `Versus`: a pool of opponents, and how often each is met."""

    pool: Any  # parameters of the opponent's policy, leaves [P, ...]
    weights: jax.Array  # [P], by which an episode draws one of them, up to a factor


@pytree
class Played:
    """A game under way."""

    position: Any
    opponent: jax.Array  # int32, its place in the pool


def random_move(params: Any, obs: Any, key: jax.Array) -> jax.Array:
    """An opponent that takes any legal move with the same probability; `params` mean nothing."""
    mask = obs["action_mask"]
    return sample(Discrete(mask.shape[-1]), obs, key)


def opened(game: Game, position: Any, key: jax.Array, most: int) -> Any:
    """The position after random moves, whose number is drawn between 0 and `most`, each equally probable.

    So positions are seen to which good play does not lead. A move that would end the game is left out.
    """
    key, num_key = jax.random.split(key)
    num = jax.random.randint(num_key, (), 0, most + 1)

    def move(time, carry):
        key, position = carry
        key, act_key, move_key = jax.random.split(key, 3)
        after = game.move(move_key, position, random_move(None, game.observe(position), act_key))
        plays = (time < num) & ~game.over(after)
        return key, jax.tree.map(lambda new, old: jnp.where(plays, new, old), after, position)

    return jax.lax.fori_loop(0, most, move, (key, position))[1] if most else position


@dataclass(frozen=True)
class Versus:
    """A game of two as an environment of one player, who is `AGENT`.

    A step is the player's move and the opponent's answer to it; the reward is what both have brought to the player. The
    opponent moves by `policy(params, obs, key) -> action`, for one observation, with the parameters that the episode
    has drawn from the pool at its beginning. What the opponent is may therefore change without a new program. A game
    begins after up to `num_random` random moves of both, see `opened`.

    `info` has `win`, `draw` and `loss`, which are results, and `opponent`, its place in the pool.
    """

    game: Game
    policy: Callable = random_move
    num_random: int = 0

    @property
    def default_params(self):
        """One opponent whose policy needs no parameters."""
        return Opponents(pool=jnp.zeros(1), weights=jnp.ones(1))

    def observation_space(self, params):
        return self.game.observation_space

    def action_space(self, params):
        return self.game.action_space

    def reset(self, key, params) -> tuple[Any, Any]:
        start_key, open_key, draw_key, answer_key = jax.random.split(key, 4)
        opponent = jax.random.categorical(draw_key, jnp.log(params.weights)).astype(jnp.int32)
        state = Played(opened(self.game, self.game.start(start_key), open_key, self.num_random), opponent)
        position, _ = self._answered(answer_key, state, params)
        return self.game.observe(position), replace(state, position=position)

    def step(self, key, state, action, params):
        move_key, answer_key = jax.random.split(key)
        moved = replace(state, position=self.game.move(move_key, state.position, action))
        position, answered = self._answered(answer_key, moved, params)
        reward = self.game.rewards(moved.position)[AGENT] + answered
        over = self.game.over(position)
        ends = (reward > 0, reward == 0, reward < 0)
        info = {name: over & end for name, end in zip(OUTCOMES, ends, strict=True)}
        info["opponent"] = state.opponent
        return self.game.observe(position), Played(position, state.opponent), reward, over, jnp.array(False), info

    def _answered(self, key: jax.Array, state: Played, params: Opponents) -> tuple[Any, jax.Array]:
        """The position in which it is the agent's move, or the game is over, and what came to the agent on the way."""
        game, own = self.game, jax.tree.map(lambda leaf: leaf[state.opponent], params.pool)
        theirs = lambda position: (game.turn(position) != AGENT) & ~game.over(position)

        def answer(key, position, reward):
            act_key, move_key = jax.random.split(key)
            after = game.move(move_key, position, self.policy(own, game.observe(position), act_key))
            return after, reward + game.rewards(after)[AGENT]

        def turn(carry):
            key, *before = carry
            key, own_key = jax.random.split(key)
            return key, *answer(own_key, *before)

        start = state.position, jnp.float32(0)
        if not game.alternates:  # a turn ends by the rules of the game, and the loop with it
            return jax.lax.while_loop(lambda carry: theirs(carry[1]), turn, (key, *start))[1:]
        move = theirs(state.position)
        return jax.tree.map(lambda new, old: jnp.where(move, new, old), answer(key, *start), start)


@pytree
class Mirrored:
    """A game under way in a `Mirror`."""

    position: Any
    began: jax.Array  # int32, the player who moved first


@dataclass(frozen=True)
class Mirror:
    """A game of two in which one policy moves for both players: a step is one move.

    Observed is the position itself, a pytree, so that it can be searched from: what a player sees of it is
    `game.observe(position)`. The reward is that of the player who moved. `info` has `first` and `second`, which tell
    who has won, `draw`, and `turn`, the player who moved.

    A game begins after up to `num_random` random moves, see `opened`.
    """

    game: Game
    num_random: int = 0

    @property
    def default_params(self):
        """Nothing."""
        return ()

    def observation_space(self, params):
        """Not told: a position is of the game."""
        return None

    def action_space(self, params):
        return self.game.action_space

    def reset(self, key, params) -> tuple[Any, Any]:
        start_key, moves_key = jax.random.split(key)
        start = self.game.start(start_key)
        position = opened(self.game, start, moves_key, self.num_random)
        return position, Mirrored(position, self.game.turn(start))

    def step(self, key, state, action, params):
        turn, position = self.game.turn(state.position), self.game.move(key, state.position, action)
        reward, over = self.game.rewards(position)[turn], self.game.over(position)
        first = self.game.rewards(position)[state.began]
        info = {"first": over & (first > 0), "draw": over & (first == 0), "second": over & (first < 0), "turn": turn}
        return position, replace(state, position=position), reward, over, jnp.array(False), info


def versus(env: Env) -> Versus:
    """The environment of an `Env`, which has to be a game of two. Raises ValueError where it is none.

    One that is only looked at, see `rlx.run.why`, is the environment itself.
    """
    environment = getattr(env.environment, "looked_at", env.environment)
    if not isinstance(environment, Versus):
        name = type(environment).__name__
        raise ValueError(f"{name} is no game of two players: give one such as pgx/tic_tac_toe, without wrappers")
    return environment


def facing(env: Env, policy: Callable, pool: Any, weights: Any = None, num_random: int = 0) -> Env:
    """The environment with other opponents.

    Args:
        env: a game of two.
        policy: `policy(params, obs, key) -> action`, for one observation without axes before it.
        pool: parameters of the opponents, leaves `[P, ...]`.
        weights: `[P]`, how often each is met, up to a factor; without them each is as often.
        num_random: most random moves that a game begins with.

    Raises:
        ValueError: where the environment is no `Versus`.
    """
    if weights is None:
        weights = jnp.ones(len(jax.tree.leaves(pool)[0]))
    environment = Versus(versus(env).game, policy, num_random)
    return replace(env, environment=environment, params=Opponents(pool, weights))


class Match(NamedTuple):
    """What came of games of two players, each for the first of them."""

    scores: np.ndarray  # float32 [N], the sum of its rewards
    began: np.ndarray  # bool [N], whether it made the first move
    lengths: np.ndarray  # int32 [N], moves of both

    @property
    def rates(self) -> dict[str, float]:
        """The shares of games that the first player won, drew and lost."""
        ends = (self.scores > 0, self.scores == 0, self.scores < 0)
        return {name: float(end.mean()) for name, end in zip(OUTCOMES, ends, strict=True)}


@lru_cache(maxsize=16)
def _rules(game: Game) -> tuple[Callable, Callable, Callable]:
    """Programs for many games: to start, to move, and whose turn it is, whether it is over, what the move brought."""
    look = lambda position: (game.turn(position), game.over(position), game.rewards(position))
    compiled = lambda rule: jax.jit(jax.vmap(rule))
    return compiled(game.start), compiled(game.move), compiled(look)


def match(game: Game, first: Callable, second: Callable, key: jax.Array, num_games: int, most: int = 1000) -> Match:
    """Plays games between two players, `player(positions, key) -> actions`, int32 `[N]` for positions `[N, ...]`.

    A player is asked for moves in all games and those count in which it is to move, so it may be a compiled function
    as well as one of the host. Who begins is drawn by the game. A game that is not over after `most` moves is a draw.

    Raises:
        ValueError: for no games.
    """
    if num_games < 1:
        raise ValueError(f"num_games = {num_games}: give at least 1")
    start, move, look = _rules(game)
    start_key, key = jax.random.split(key)
    position = start(jax.random.split(start_key, num_games))
    began = np.asarray(look(position)[0]) == 0
    scores, lengths = np.zeros(num_games, np.float32), np.zeros(num_games, np.int32)
    for time in range(most):
        turn, over = (np.asarray(x) for x in look(position)[:2])
        if over.all():
            break
        keys = jax.random.split(jax.random.fold_in(key, time), 2 + num_games)
        asked = [(player, k) for player, k in ((0, keys[0]), (1, keys[1])) if (turn[~over] == player).any()]
        actions = {player: np.asarray((first, second)[player](position, k)) for player, k in asked}
        action = np.zeros(num_games, np.int32)
        for player, own in actions.items():
            action = np.where(turn == player, own, action)
        position = move(keys[2:], position, action)
        scores += np.where(over, 0, np.asarray(look(position)[2])[:, 0])
        lengths += ~over
    return Match(scores, began, lengths)


__all__ = ["AGENT", "OUTCOMES", "Game", "Match", "Mirror", "Mirrored", "Opponents", "Played", "Versus"]
__all__ += ["facing", "match", "opened", "random_move", "versus"]
