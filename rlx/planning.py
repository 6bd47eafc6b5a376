"""Search in games: the Gumbel policy over true positions, and players that search or do not.

An optional extra: `pip install "rlx[search]"`, which is mctx. What searches is given a `judge(obs) -> logits, value`,
for observations `[N, ...]` of the player to move; algorithms that have one call it `judge(config, env, params, obs)`.
"""

from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any

import jax
import jax.numpy as jnp

from rlx.games import Game, versus
from rlx.policy import remembers
from rlx.pytree import pytree
from rlx.train import now


@pytree
class Plan:
    """What a search has found in positions `[N, ...]`."""

    action: jax.Array  # int32 [N]
    weights: jax.Array  # [N, A], the improved policy
    value: jax.Array  # [N], of the position for the player to move


def search(
    game: Game,
    judge: Callable,
    position: Any,
    key: jax.Array,
    num_simulations: int,
    *,
    gamma: Any = 1.0,
    num_considered: int = 16,
    gumbel_scale: Any = 1.0,
) -> Plan:
    """Searches from positions `[N, ...]` by playing moves in copies of them; no model is learned.

    The value of a position is that for the player to move: what follows counts negatively where it is the other's turn,
    which is the discount's sign, `turn_sign`. A move of chance in a game is drawn once for each position of the tree.

    Args:
        game: whose moves are played. One in which a player sees less than the position is played as if it were seen.
        judge: `judge(obs) -> logits [N, A], value [N]`, for observations of the player to move.
        position: to begin with, leaves `[N, ...]`.
        key: of the Gumbel noise and of chance in the game.
        num_simulations: positions that each search adds to its tree.
        gamma: discount of a move.
        num_considered: of the legal moves, how many sequential halving begins with.
        gumbel_scale: of the noise in the choice of moves; 0 for the strongest play.

    Raises:
        ValueError: where mctx is not installed.

    Source: Danihelka et al. 2022, Policy improvement by planning with Gumbel, ICLR, algorithm 2 and equation 11; the
    search is that of mctx.
    """
    try:
        mctx: Any = import_module("mctx")
    except ImportError as error:
        raise ValueError(f'search needs another package: pip install "rlx[search]" ({error})') from error

    def recurrent(params, key, action, position):
        num = action.shape[0]
        after = jax.vmap(game.move)(jax.random.split(key, num), position, action)
        turn = jax.vmap(game.turn)(position)
        reward = jax.vmap(game.rewards)(after)[jnp.arange(num), turn]
        over = jax.vmap(game.over)(after)
        discount = jnp.where(over, 0.0, gamma * turn_sign(turn, jax.vmap(game.turn)(after)))
        logits, value = judge(jax.vmap(game.observe)(after))
        return mctx.RecurrentFnOutput(reward=reward, discount=discount, prior_logits=logits, value=value), after

    obs = jax.vmap(game.observe)(position)
    logits, value = judge(obs)
    found = mctx.gumbel_muzero_policy(
        params=(),
        rng_key=key,
        root=mctx.RootFnOutput(prior_logits=logits, value=value, embedding=position),
        recurrent_fn=recurrent,
        num_simulations=num_simulations,
        invalid_actions=~obs["action_mask"],
        max_num_considered_actions=num_considered,
        gumbel_scale=gumbel_scale,
    )
    return Plan(found.action, found.action_weights, found.search_tree.summary().value)


def turn_sign(turn: jax.Array, after: jax.Array) -> jax.Array:
    """1 where the same player is to move again, else -1: by it the other's value is one's own."""
    return jnp.where(turn == after, 1.0, -1.0)


def player(
    algorithm: Any, config: Any, env: Any, state: Any, num_simulations: int = 0, greedy: bool = True
) -> Callable:
    """`player(positions, key) -> actions`, int32 `[N]`, of a trained State, for `rlx.games.match`.

    Args:
        algorithm: the module.
        config: its settings.
        env: the game of two that it was trained in.
        state: of the training.
        num_simulations: of a search before each move, which needs `algorithm.judge`; 0 acts by the policy alone.
        greedy: whether it takes the likeliest move, and a search is without noise.

    Raises:
        ValueError: for another environment, for a search of an algorithm without a judge, and for one that remembers.
    """
    game, config = versus(env).game, now(config, state)
    if remembers(algorithm):
        raise ValueError(f"{algorithm.__name__} has a memory, which a player that is shown positions has not")
    if num_simulations and not hasattr(algorithm, "judge"):
        raise ValueError(f"{algorithm.__name__} has no judge(config, env, params, obs), which a search needs")

    @jax.jit
    def act(state, position, key):
        if not num_simulations:
            obs = jax.vmap(game.observe)(position)
            return algorithm.act(config, env, state, obs, key, deterministic=greedy)[0]
        judge = partial(algorithm.judge, config, env, state.params)
        scale = 0.0 if greedy else 1.0
        return search(game, judge, position, key, num_simulations, gumbel_scale=scale).action

    return partial(act, state)


__all__ = ["Plan", "player", "search", "turn_sign"]
