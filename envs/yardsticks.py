"""Exact play to measure players by: tic-tac-toe solved, and connect four by alpha-beta search, in numpy and Python."""

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

LINES = [(0, 1, 2), (3, 4, 5), (6, 7, 8), (0, 3, 6), (1, 4, 7), (2, 5, 8), (0, 4, 8), (2, 4, 6)]
POWERS = 3 ** np.arange(9)  # a board's number: the sum over cells of 3^cell, twice for stones of the other


@lru_cache(maxsize=1)
def tic_tac_toe() -> dict[tuple[int, ...], int]:
    """The value of every position that can be reached, by minimax: 1, 0 or -1 for the player to move.

    A position has a number for each of the 9 cells: 0 where it is empty, 1 for a stone of the player to move, 2 for one
    of the other. There are 5,478.
    """
    values: dict[tuple[int, ...], int] = {}

    def value(board: tuple[int, ...]) -> int:
        if board not in values:
            values[board] = -1 if _won(board, 2) else max((-value(_moved(board, i)) for i in _free(board)), default=0)
        return values[board]

    value((0,) * 9)
    return values


def _won(board: tuple[int, ...], stone: int) -> bool:
    return any(all(board[cell] == stone for cell in line) for line in LINES)


def _free(board: tuple[int, ...]) -> list[int]:
    return [cell for cell, stone in enumerate(board) if not stone]


def _moved(board: tuple[int, ...], cell: int) -> tuple[int, ...]:
    """The board after a move, as the other sees it."""
    swap = (0, 2, 1)
    return tuple(2 if i == cell else swap[stone] for i, stone in enumerate(board))


@lru_cache(maxsize=1)
def perfect_moves() -> np.ndarray:
    """Which moves keep the value of each position of tic-tac-toe, bool `[3^9, 9]`, by the number of its board."""
    best = np.zeros((3**9, 9), bool)
    for board, value in tic_tac_toe().items():
        if _won(board, 2):
            continue
        for cell in _free(board):
            best[POWERS @ board, cell] = -tic_tac_toe()[_moved(board, cell)] == value
    return best


def table_move(params: jax.Array, obs: Any, key: jax.Array) -> jax.Array:
    """One of the moves that a table as that of `perfect_moves` has for an observation, each equally probable.

    Args:
        params: bool `[3^9, 9]`.
        obs: of pgx/tic_tac_toe, of one position.
        key: of the draw.
    """
    planes = obs["obs"].reshape(9, 2)
    number = jnp.sum(jnp.asarray(POWERS) * (planes[:, 0] + 2 * planes[:, 1]).astype(jnp.int32))
    return jax.random.categorical(key, jnp.where(params[number], 0.0, -jnp.inf)).astype(jnp.int32)


class Proof(NamedTuple):
    """What playing all moves of the other against a policy has shown."""

    lost: tuple[tuple[int, ...], ...]  # boards, as the policy sees them, in which it has lost
    wins: int  # boards in which it has won
    draws: int  # boards that are full
    num_positions: int  # in which the policy was asked

    @property
    def never_loses(self) -> bool:
        """Whether no play of the other beats the policy, from either seat."""
        return not self.lost


def prove(policy: Callable) -> Proof:
    """Plays every move of the other in tic-tac-toe against a policy, from both seats.

    Args:
        policy: `policy(obs) -> actions`, int `[B]` for observations of pgx/tic_tac_toe with an axis before; it has to
            be deterministic. An illegal move loses.

    Returns the `Proof`. The policy is asked once for each position that it can come to: all at once where the same
    number of stones lie.
    """
    empty = (0,) * 9
    asked = [empty, *(_moved(empty, cell) for cell in range(9))]  # as the policy sees them, it begins or is second
    seen, lost, wins, draws = set(asked), set(), set(), set()
    while asked:
        after = set()
        for board, action in zip(asked, np.asarray(policy(observations(asked))).tolist(), strict=True):
            if action not in _free(board):
                lost.add(board)
                continue
            mine = _moved(board, action)
            if _won(mine, 2) or not _free(mine):
                (wins if _won(mine, 2) else draws).add(mine)
                continue
            after |= {_moved(mine, cell) for cell in _free(mine)}
        lost |= {board for board in after if _won(board, 2)}
        draws |= {board for board in after if not _won(board, 2) and not _free(board)}
        asked = [board for board in sorted(after) if not _won(board, 2) and _free(board) and board not in seen]
        seen |= set(asked)
    return Proof(tuple(sorted(lost)), len(wins), len(draws), len(seen))


def observations(boards: list[tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Positions of tic-tac-toe as pgx/tic_tac_toe shows them, with an axis `[B]` before."""
    cells = np.asarray(boards)
    planes = np.stack([cells == 1, cells == 2], axis=-1).reshape(-1, 3, 3, 2)
    return {"obs": planes.astype(np.float32), "action_mask": cells == 0}


ROWS, COLUMNS = 6, 7
HEIGHT = ROWS + 1  # bits of a column of connect four: its cells from below, and one that stays empty
ORDER = (3, 2, 4, 1, 5, 0, 6)  # the middle first: better moves come earlier, and more is cut
FULL = sum(1 << (column * HEIGHT + row) for column in range(COLUMNS) for row in range(ROWS))
LARGE = 1_000


def four(stones: int) -> bool:
    """Whether four of the stones of a bitboard lie in a line."""
    for step in (1, HEIGHT - 1, HEIGHT, HEIGHT + 1):
        pairs = stones & (stones >> step)
        if pairs & (pairs >> (2 * step)):
            return True
    return False


def bitboards(planes: np.ndarray) -> tuple[int, int]:
    """The stones of the player to move and of the other as bitboards, of planes `[6, 7, 2]` of pgx/connect_four."""
    bits = 1 << (np.arange(COLUMNS, dtype=object) * HEIGHT + np.arange(ROWS - 1, -1, -1, dtype=object)[:, None])
    mine, theirs = (int(np.sum(bits[planes[..., i] > 0.5])) for i in range(2))
    return mine, theirs


def legal_columns(mine: int, theirs: int) -> list[int]:
    """The columns of connect four that are not full, the middle first."""
    taken = mine | theirs
    return [column for column in ORDER if not taken >> (column * HEIGHT + ROWS - 1) & 1]


def dropped(mine: int, theirs: int, column: int) -> int:
    """The stones of the player to move after a move."""
    taken, below = mine | theirs, 1 << (column * HEIGHT)
    return mine | (taken + below & ~taken & ((1 << HEIGHT) - 1) << (column * HEIGHT))


def alpha_beta(mine: int, theirs: int, depth: int, alpha: int = -LARGE, beta: int = LARGE) -> int:
    """The value of a position of connect four for the player to move, looking `depth` moves ahead.

    A win is `43 - n` after `n` stones, a loss its negative, so that earlier wins are better; a draw is 0. Where the
    depth ends it is 0 too: nothing is known.

    Source: Knuth and Moore 1975, An analysis of alpha-beta pruning, Artificial Intelligence 6.
    """
    if not depth or (mine | theirs) == FULL:
        return 0
    columns = legal_columns(mine, theirs)
    for column in columns:
        if four(moved := dropped(mine, theirs, column)):
            return 43 - (moved | theirs).bit_count()
    for column in columns:
        value = -alpha_beta(theirs, dropped(mine, theirs, column), depth - 1, -beta, -alpha)
        alpha = max(alpha, value)
        if alpha >= beta:
            break
    return alpha


def connect_four_move(planes: np.ndarray, depth: int, rng: np.random.Generator) -> int:
    """One of the best moves that alpha-beta search of a depth finds, each equally probable; planes `[6, 7, 2]`.

    Raises:
        ValueError: for a depth below 1.
    """
    if depth < 1:
        raise ValueError(f"depth = {depth}: give at least 1")
    mine, theirs = bitboards(planes)
    values = {}
    for column in legal_columns(mine, theirs):
        moved = dropped(mine, theirs, column)
        if four(moved):
            values[column] = 43 - (moved | theirs).bit_count()
        else:
            values[column] = -alpha_beta(theirs, moved, depth - 1)
    best = max(values.values())
    return int(rng.choice([column for column, value in values.items() if value == best]))


__all__ = ["Proof", "alpha_beta", "bitboards", "connect_four_move", "dropped", "four", "legal_columns"]
__all__ += ["observations", "perfect_moves", "prove", "table_move", "tic_tac_toe"]
