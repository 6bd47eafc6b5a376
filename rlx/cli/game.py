"""`rlx play`."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from rlx.cli.options import parse_options
from rlx.cli.play import Checkpoint, load_checkpoint
from rlx.env import Env
from rlx.games import AGENT, versus
from rlx.planning import player

QUIT = ("q", "quit", "exit")


@dataclasses.dataclass(frozen=True)
class PlayOptions(Checkpoint):
    """Play a game of two against a run's policy, in the terminal; q ends it."""

    search: int = 0
    """Number of simulations of a search before each move of the policy; it needs the extra search."""


def play(arguments: list[str]) -> None:
    """`rlx play`."""
    options = parse_options(PlayOptions, arguments, "rlx play")
    if options.search < 0:
        raise ValueError(f"--search {options.search}: give at least 0")
    job, state, key = load_checkpoint(options, playable)
    game = versus(job.env).game
    other = player(job.algorithm, job.config, job.env, state, options.search, greedy=not options.stochastic)
    print(f"{job.env_name}, against the policy of {options.run}{getattr(game, 'legend', '')}; q ends the game")
    print(played(game, other, key))


def playable(env: Env) -> None:
    """Raises ValueError where an environment is no game of two, or its positions cannot be written as text."""
    game: Any = versus(env).game
    if not getattr(game, "board", False):
        raise ValueError(f"{getattr(game, 'name', type(game).__name__)} has no text of its board: rlx play needs one")


def played(game: Any, other: Callable, key: jax.Array) -> str:
    """Plays a game between whoever answers on stdin, player `AGENT`, and the other; returns how it ended."""
    position = jax.jit(game.start)(key)
    move, look = jax.jit(game.move), jax.jit(lambda p: (game.turn(p), game.over(p), game.rewards(p)[AGENT]))
    score = 0.0
    for time in range(10_000):
        turn, over, _ = look(position)
        if over:
            break
        act_key, move_key = jax.random.split(jax.random.fold_in(key, time))
        if turn == AGENT:
            print(f"\n{game.text(position)}")
            if (action := asked(game, position)) is None:
                return "the game is not finished"
        else:
            action = int(other(jax.tree.map(lambda x: x[None], position), act_key)[0])
            print(f"the policy moves {game.move_names[action]}")
        position = move(move_key, position, action)
        score += float(look(position)[2])
    print(f"\n{game.text(position)}")
    return "you win" if score > 0 else "you lose" if score < 0 else "a draw"


def asked(game: Any, position: Any) -> int | None:
    """A legal move that is read from stdin, which is asked for until there is one; None where that ends the game."""
    legal = {game.move_names[i]: i for i, may in enumerate(game.observe(position)["action_mask"]) if may}
    print(f"moves: {' '.join(legal)}")
    while True:
        try:
            word = input("your move: ").strip().lower()
        except EOFError:
            return None
        if word in QUIT:
            return None
        if word in legal:
            return legal[word]
        print(f"{word or 'nothing'} is no legal move: give one of {' '.join(legal)}, or q")


__all__ = ["PlayOptions", "asked", "play", "playable", "played"]
