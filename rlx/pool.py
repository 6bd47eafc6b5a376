"""A pool of problems that are met again: how often each was solved, which come next, and how many answers each gets.

A problem is a key of the environment's reset, so that a pool is an array of keys. Axes: M problems of the pool, N
problems of an update, G answers to each.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from rlx.env import Env, EnvState
from rlx.groups import Facts, clone, outcomes
from rlx.pytree import pytree, replace
from rlx.rollout import reset


@pytree
class Pool:
    """Problems with what is known of them."""

    keys: jax.Array  # [M], of the environment's reset
    tries: jax.Array  # [M], answers so far, of which older ones count less
    successes: jax.Array  # [M], of them
    distinct: jax.Array  # [M], share of different ones among the last group of answers
    answers: Any = None  # a right one to each problem, where they come back: `rlx.successes`

    @property
    def rate(self) -> jax.Array:
        """Share of answers that were right, `[M]`, with one that is half right before all: 1/2 of a new problem."""
        return (self.successes + 0.5) / (self.tries + 1.0)


def unknown(key: jax.Array, size: int, answers: Any = None) -> Pool:
    """A pool of `size` problems of which nothing is known, with room for right answers where they come back."""
    zeros = jnp.zeros(size)
    return Pool(jax.random.split(key, size), zeros, zeros, jnp.ones(size), answers)


def check_pool(config: Any) -> None:
    """Raises ValueError for settings that do not fit each other."""
    if config.pool and not config.same_start:
        raise ValueError("pool: a group answers one problem of it; leave same_start as it is")
    if config.graded and not (config.pool and config.given):
        raise ValueError("graded: how often a problem is solved is known of a pool; set pool and given, too")


def counted(pool: Pool, index: jax.Array, right: jax.Array, distinct: jax.Array, keep: float | jax.Array) -> Pool:
    """The pool after answers to the problems `index` `[N]`: bool `right` `[N, G]`, and their share that is different.

    What was known of these problems counts `keep` times as much as before; 1 - 1 / n makes it a window of about n
    groups of answers. A problem that is drawn several times is counted with all its answers.
    """
    size, num = len(pool.keys), right.shape[1]
    total = lambda x: jnp.zeros(size).at[index].add(x)
    drawn = total(jnp.ones(len(index)))
    kept = jnp.where(drawn > 0, keep, 1.0)
    mean_distinct = total(distinct) / jnp.maximum(drawn, 1.0)
    return replace(
        pool,
        tries=kept * pool.tries + num * drawn,
        successes=kept * pool.successes + total(right.sum(axis=1)),
        distinct=jnp.where(drawn > 0, mean_distinct, pool.distinct),
    )


def answered_right(facts: Facts) -> jax.Array:
    """Which answers are right, bool `[N, G]`: those that pay more than 1/2."""
    return outcomes(facts.reward, facts.alive, jnp.float32(1.0))[..., 0] > 0.5


def observed(
    pool: Pool,
    index: jax.Array,
    facts: Facts,
    keep: float | jax.Array,
    answers: Any = None,
    replayed: jax.Array | None = None,
) -> Pool:
    """The pool after an update's answers to the problems `index` `[N]`, see `answered_right`.

    Answers that were given a part of a right one count as tries, too.

    Args:
        pool: as it was.
        index: which problems were answered.
        facts: the answers.
        keep: see `counted`.
        answers: right ones that are kept from now on.
        replayed: groups whose first answer is an earlier one that came back, bool `[N]`: a wrong one stood there.
    """
    right = answered_right(facts)
    if replayed is not None:
        right = right.at[:, 0].set(right[:, 0] & ~replayed)
    first = facts.kind == jnp.arange(right.shape[1])  # the kind is the first member with the same answer
    return replace(counted(pool, index, right, first.mean(axis=1), keep), answers=answers)


def uniform(pool: Pool) -> jax.Array:
    """1, `[M]`."""
    return jnp.ones(len(pool.keys))


def variance(pool: Pool) -> jax.Array:
    """`0.8 p (1 - p) + 0.2 D`, `[M]`, with p the share of right answers and D that of different ones.

    Source: MMR1, arXiv:2509.21268 (VAS), and its code, which measures D by n-grams of the answers; the share of
    different ones is ours.
    """
    return 0.8 * pool.rate * (1 - pool.rate) + 0.2 * pool.distinct


def failures(pool: Pool) -> jax.Array:
    """`1 - p`, `[M]`: problems that were answered wrongly come again. Ours."""
    return 1.0 - pool.rate


def unsettled(pool: Pool, least: float = 8.0) -> jax.Array:
    """0 for a problem of whose last answers, `least` or more, all or none were right, else 1: `[M]`.

    It is the filter that trainers of language models set before training, kept up to date. Ours in this form.
    """
    settled = (pool.successes <= 0.01 * pool.tries) | (pool.successes >= 0.99 * pool.tries)
    return jnp.where(settled & (pool.tries >= least), 0.0, 1.0)


SAMPLERS: dict[str, Callable[[Pool], jax.Array]] = {
    "uniform": uniform,
    "variance": variance,
    "failures": failures,
    "unsettled": unsettled,
}


def draw(key: jax.Array, score: jax.Array, num: int, share: float | jax.Array) -> jax.Array:
    """Numbers `[num]` of problems, each by its score `[M]` with probability `share`, else uniform; with replacement.

    Where all scores are 0, all are uniform. Source: MMR1, arXiv:2509.21268, and its code: half of a batch each.
    """
    score_key, even_key, choice_key = jax.random.split(key, 3)
    logits = jnp.where(score.sum() > 0, jnp.log(jnp.maximum(score, 1e-30)), 0.0)
    scored = jax.random.categorical(score_key, logits, shape=(num,))
    even = jax.random.randint(even_key, (num,), 0, len(score))
    return jnp.where(jax.random.uniform(choice_key, (num,)) < share, scored, even)


def chosen(config: Any, pool: Pool, key: jax.Array) -> jax.Array:
    """Numbers `[N]` of the problems of an update, drawn by the `sampler` of the Config and its `sampled_share`."""
    return draw(key, SAMPLERS[config.sampler](pool), config.num_groups, config.sampled_share)


def starts(config: Any, env: Env, pool: Pool | None, key: jax.Array, index: jax.Array | None = None) -> EnvState:
    """The states `[N * G]` that the answers of an update start from, group by group; of problems `[N]` of the pool."""
    if not config.same_start:
        return reset(env, key, config.num_episodes)
    if pool is None or index is None:
        return clone(reset(env, key, config.num_groups), config.group_size)
    return clone(jax.vmap(env.reset)(pool.keys[index]), config.group_size)


def gain(rate: jax.Array, tries: jax.Array) -> jax.Array:
    """What one more answer adds to the value of `tries` answers to a problem, `[...]`.

        value(n) = (1 - p^n - (1 - p)^n) p (1 - p)^2,    gain(n) = (p^n (1 - p) + (1 - p)^n p) p (1 - p)^2

    The first factor is the probability that not all answers agree; the second is the paper's estimate of what a
    success teaches. Source: Knapsack RL, arXiv:2509.25849.
    """
    chance = rate**tries * (1 - rate) + (1 - rate) ** tries * rate
    return chance * rate * (1 - rate) ** 2


def allot(rate: jax.Array, budget: int, least: int, most: int) -> jax.Array:
    """How many answers each of N problems gets, int `[N]`, of `budget` in all: what makes the sum of values largest.

    Gains fall with every answer, so that giving the next one where it gains most is optimal. Where nothing gains, the
    problem with the fewest answers is next.

    Args:
        rate: p, share of right answers so far, `[N]`.
        budget: answers in all, between `least * N` and `most * N`.
        least: answers that every problem gets.
        most: answers that none exceeds.

    Source: Knapsack RL, arXiv:2509.25849, which gives what is left over to problems that were never solved.

    Raises:
        ValueError: for a budget that does not fit.
    """
    num = len(rate)
    if not least * num <= budget <= most * num:
        raise ValueError(
            f"budget = {budget}: {num} problems with {least} to {most} answers take {least * num} to {most * num}"
        )

    def give(_, sizes):
        room = sizes < most
        gains = jnp.where(room, gain(rate, sizes), -1.0)
        useful = gains.max() > 1e-12
        unsolved = jnp.where(room, -sizes - rate, -jnp.inf)  # the fewest answers, and of these the lowest rate
        return sizes.at[jnp.where(useful, gains.argmax(), unsolved.argmax())].add(1)

    sizes = jnp.full(num, least)
    return jax.lax.fori_loop(0, budget - least * num, give, sizes)


def spread_over(sizes: jax.Array, total: int) -> jax.Array:
    """Which problem each of `total` rows is an answer to, int `[total]`, where problem i has `sizes[i]` of them."""
    return jnp.repeat(jnp.arange(len(sizes)), sizes, total_repeat_length=total)


def centred(outcome: jax.Array, problem: jax.Array, num: int) -> jax.Array:
    """`R_i` less the mean over the answers to the same problem, `[B]`: the advantage in groups of several sizes.

    Args:
        outcome: R, `[B]`.
        problem: which problem each is an answer to, int `[B]`.
        num: N.
    """
    total, count = (jax.ops.segment_sum(x, problem, num) for x in (outcome, jnp.ones_like(outcome)))
    return outcome - (total / jnp.maximum(count, 1.0))[problem]


__all__ = [
    "SAMPLERS",
    "Pool",
    "allot",
    "answered_right",
    "centred",
    "check_pool",
    "chosen",
    "counted",
    "draw",
    "failures",
    "gain",
    "observed",
]
__all__ += ["spread_over", "starts", "uniform", "unknown", "unsettled", "variance"]
