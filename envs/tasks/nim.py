"""Nim with one pile: the smallest game of two, whose best play is known.

Players take 1 to 3 objects in turns, and who takes the last one wins. Who is to move loses against best play if and
only if the number of objects is a multiple of 4: one leaves such a number to the other.
"""

from typing import Any

import jax
import jax.numpy as jnp

from rlx.env import Env
from rlx.games import Versus
from rlx.pytree import pytree
from rlx.spaces import Box, Dict, Discrete

LARGEST, LEAST, TAKEN = 12, 5, 3  # objects to begin with, and most that a move takes


@pytree
class Pile:
    """A position."""

    num: jax.Array  # int32, objects that are left
    turn: jax.Array  # int32, the player to move
    rewards: jax.Array  # float32 [2], of the last move


class Nim:
    """Under the contract of `rlx.games.Game`. Observed is the number of objects, one-hot; who begins is drawn."""

    alternates, hidden, board = True, False, True
    move_names = tuple(str(n + 1) for n in range(TAKEN))
    observation_space = Dict(obs=Box(0.0, 1.0, (LARGEST + 1,)), action_mask=Box(0, 1, (TAKEN,), jnp.bool_))
    action_space = Discrete(TAKEN)

    def start(self, key):
        num_key, turn_key = jax.random.split(key)
        num = jax.random.randint(num_key, (), LEAST, LARGEST + 1)
        return Pile(num, jax.random.randint(turn_key, (), 0, 2), jnp.zeros(2))

    def move(self, key, position, action):
        """An illegal move loses."""
        left, over = position.num - action - 1, self.over(position)
        ends = jnp.where(left == 0, 1.0, jnp.where(left < 0, -1.0, 0.0)) * ~over
        mover = jnp.arange(2) == position.turn
        rewards = jnp.where(mover, ends, -ends).astype(jnp.float32)
        return Pile(jnp.where(over, 0, jnp.maximum(left, 0)), 1 - position.turn, rewards)

    def observe(self, position):
        legal = jnp.arange(1, TAKEN + 1) <= position.num
        return {"obs": jax.nn.one_hot(position.num, LARGEST + 1), "action_mask": legal | self.over(position)}

    def turn(self, position):
        return position.turn

    def rewards(self, position):
        return position.rewards

    def over(self, position):
        return position.num <= 0

    def text(self, position):
        """The pile, as so many marks."""
        return f"pile: {'|' * int(position.num)} {int(position.num)}"


GAME = Nim()


def make(**options: Any) -> Env:
    """Against an opponent that moves at random; `options` are of `rlx.games.Versus`."""
    environment = Versus(GAME, **options)
    return Env(environment, environment.default_params)
