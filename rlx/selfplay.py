"""Self-play: ratings, a pool of earlier selves, and which of them are met."""

from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

T = TypeVar("T")
SCALE = 400.0 / np.log(10.0)  # of ratings: 400 points are odds of 10 to 1


def expected_score(rating: jax.Array, other: jax.Array) -> jax.Array:
    """The score that is expected against another, a draw counting half: `1 / (1 + 10^((other - rating) / 400))`.

    Source: Elo 1978, The Rating of Chessplayers, section 8.4.
    """
    return jax.nn.sigmoid((rating - other) / SCALE)


def elo_update(rating: jax.Array, others: jax.Array, scores: jax.Array, games: jax.Array, k: Any) -> jax.Array:
    """The rating after games with others, whose ratings stay: `rating + k sum_i (scores_i - games_i E(rating, i))`.

    Args:
        rating: before them, `[]`.
        others: ratings `[P]`.
        scores: wins and half of the draws against each, `[P]`.
        games: how many there were, `[P]`.
        k: points a game; the sum is over all games, so that many at once need a small one.

    Source: Elo 1978, The Rating of Chessplayers, equation 2.
    """
    return rating + k * jnp.sum(scores - games * expected_score(rating, others))


def bradley_terry(wins: np.ndarray, prior: float = 0.0, tolerance: float = 1e-9, most: int = 100_000) -> np.ndarray:
    """Ratings in Elo points `[P]`, their mean 0, under which the results are most likely.

        P(i beats j) = 1 / (1 + 10^((r_j - r_i) / 400)),    by   g_i <- W_i / sum_j n_ij / (g_i + g_j),  r = 400 log10 g

    Args:
        wins: `[P, P]`, how often the row beat the column; a draw is half a win for each of the two.
        prior: draws that are added for each pair that has met, which keeps ratings finite.
        tolerance: of the logarithm of a strength in the last step.
        most: steps.

    Raises:
        ValueError: where wins are no square of numbers of at least 0, and where the most likely ratings are infinite:
            some players have beaten all others, or never met them.

    Source: Hunter 2004, MM algorithms for generalized Bradley-Terry models, Annals of Statistics 32, equation 3.
    """
    wins = np.array(wins, np.float64)
    if wins.ndim != 2 or wins.shape[0] != wins.shape[1] or not (wins >= 0).all():
        raise ValueError(f"wins of shape {wins.shape}: give a square of numbers of at least 0")
    np.fill_diagonal(wins, 0.0)
    wins = wins + prior / 2 * ((wins + wins.T) > 0)
    reach = np.linalg.matrix_power((wins > 0) + np.eye(len(wins)), len(wins)) > 0
    if not reach.all():
        raise ValueError("some players lost to none or won of none of the others: give a prior, such as prior=1")
    games, strength = wins + wins.T, np.ones(len(wins))
    for _ in range(most):
        new = wins.sum(1) / (games / (strength[:, None] + strength)).sum(1)
        new /= np.exp(np.log(new).mean())
        if np.abs(np.log(new / strength)).max() < tolerance:
            break
        strength = new
    return SCALE * np.log(new)


def scores_of(results: jax.Array) -> jax.Array:
    """Wins and half of the draws of results `[..., 3]`, counts of wins, draws and losses."""
    return results[..., 0] + 0.5 * results[..., 1]


def win_rates(results: jax.Array, prior: float = 2.0) -> jax.Array:
    """The share of scores `[...]` in results `[..., 3]`, with `prior` draws that are added."""
    return (scores_of(results) + 0.5 * prior) / (results.sum(axis=-1) + prior)


def opponent_weights(win_rate: jax.Array, present: jax.Array, power: Any) -> jax.Array:
    """How often each of a pool is met, `[P]`, adding up to 1: as `(1 - win_rate)^power`, uniform where power is 0.

    Args:
        win_rate: against each, `[P]`; where it is 1 against all, they are met uniformly.
        present: which places of the pool are filled, bool `[P]`, at least one.
        power: how much more often the harder ones are met, at least 0.

    Source: Vinyals et al. 2019, Grandmaster level in StarCraft II, Nature 575, prioritized fictitious self-play,
    `f_hard`.
    """
    harder = jnp.where(present, jnp.maximum(1.0 - win_rate, 0.0) ** power, 0.0)
    weights = jnp.where(harder.sum() > 0, harder, present.astype(jnp.float32))
    return weights / weights.sum()


def insert(pool: T, params: T, place: jax.Array) -> T:
    """The pool, leaves `[P, ...]`, with these parameters at a place, int32."""
    return jax.tree.map(lambda leaf, new: leaf.at[place].set(new), pool, params)


def with_self(pool: T, params: T) -> T:
    """The pool and after it the parameters of the present, leaves `[P + 1, ...]`."""
    return jax.tree.map(lambda leaf, new: jnp.concatenate([leaf, new[None]]), pool, params)


def count_results(info: Any, done: jax.Array, num: int) -> jax.Array:
    """Counts of wins, draws and losses `[num, 3]` of the games that ended, by the opponent's place in the pool.

    Args:
        info: of a `rlx.games.Versus`, `[T, N]`; opponents from `num` on are not counted.
        done: where an episode ended, bool `[T, N]`.
        num: places of the pool.
    """
    ends = jnp.stack([info[name] & done for name in ("win", "draw", "loss")], axis=-1).astype(jnp.float32)
    return jnp.einsum("tnp,tne->pe", jax.nn.one_hot(info["opponent"], num), ends)


__all__ = ["bradley_terry", "count_results", "elo_update", "expected_score", "insert", "opponent_weights"]
__all__ += ["scores_of", "win_rates", "with_self"]
