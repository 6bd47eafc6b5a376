"""Credit of single steps: steps of a group that were taken in one place are compared, or share what they get.

A credit is `credit(reward, facts, gamma, amount) -> [N, G, T]` of rewards `[N, G, T]`, with `rlx.groups.Facts`, and
numbers that may be traced. Those here have their baseline inside: take none after them. What they hold behind the end
of an episode is of no meaning, and what stands there is never read.

Axes: N groups, G members, T time, M entries that are compared.
"""

import chex
import jax
import jax.numpy as jnp

from rlx.groups import Facts, outcomes, returns_to_go
from rlx.shapes import known

Number = float | jax.Array
NOWHERE = jnp.iinfo(jnp.int32).min  # the place after the last step; no other has this number


def step_groups(reward: jax.Array, facts: Facts, gamma: jax.Array, amount: Number) -> jax.Array:
    """The outcome against the group's, and the return-to-go against that of steps from the same place, `[N, G, T]`.

        A_t = R - mean R + amount (G_t - mean of G over all steps of the group from the same place)

    R is the discounted outcome, G_t the discounted return-to-go. Every visit of a place counts, also several of one
    episode. A step from a place that nobody else was in has a second part of 0. The source has an amount of 1, and
    gamma 0.95 is a known default.

    Source: GiGPO, 2025, arXiv:2505.10978.
    """
    whole, to_go = outcomes(reward, facts.alive, gamma), returns_to_go(reward, facts.alive, gamma)
    of_place = shared(to_go, facts.alive, known(facts, "place"))
    return whole - whole.mean(axis=1, keepdims=True) + amount * (to_go - of_place)


def graph(reward: jax.Array, facts: Facts, gamma: jax.Array, amount: Number) -> jax.Array:
    """`R - mean R` of the episode, and on edges that several steps take the mean of theirs, `[N, G, T]`.

    An edge is a place, what was done there, and the place that came next. Those after the last steps count as one.
    Every step counts, also several of one episode. The sum over all steps of a group is the same as before, so that it
    is 0 where lengths agree.

    Source: SALT, 2025, arXiv:2510.20022, from an account of the paper; that equal triples are what is merged is ours.
    """
    whole = outcomes(reward, facts.alive, gamma)
    goes_on = jnp.roll(facts.alive, -1, axis=-1).at[..., -1].set(False)
    place, token = known(facts, "place"), known(facts, "token")
    then = jnp.where(goes_on, jnp.roll(place, -1, axis=-1), NOWHERE)
    return shared(whole - whole.mean(axis=1, keepdims=True), facts.alive, place, token, then)


def shared(value: jax.Array, alive: jax.Array, *keys: jax.Array) -> jax.Array:
    """The mean of a value over all steps of a group that agree with a step in all keys, `[N, G, T]`.

    It is 0 where a step is not alive. Keys are int32 `[N, G, T]`, any numbers. By sorting: `G T log G T` work a group.
    """
    chex.assert_equal_shape([value, alive, *keys])
    shape, flat = value.shape, (value.shape[0], -1)
    value, alive = value.reshape(flat), alive.reshape(flat)
    entry = jnp.broadcast_to(jnp.arange(value.shape[1]), value.shape)
    compared = (~alive, *(key.reshape(flat) for key in keys))
    *compared, order = jax.lax.sort((*compared, entry), dimension=1, num_keys=len(compared), is_stable=True)
    differs = jnp.stack([x[:, 1:] != x[:, :-1] for x in compared]).any(axis=0)
    number = jnp.pad(jnp.cumsum(differs, axis=1), ((0, 0), (1, 0)))  # of what a sorted entry is equal to
    total = jax.vmap(lambda x, i: jax.ops.segment_sum(x, i, len(x), indices_are_sorted=True))
    num = total(jnp.ones_like(value), number)
    mean = total(jnp.take_along_axis(value, order, axis=1), number) / jnp.maximum(num, 1.0)
    mean = jnp.take_along_axis(jnp.take_along_axis(mean, number, axis=1), jnp.argsort(order, axis=1), axis=1)
    return jnp.where(alive, mean, 0.0).reshape(shape)


def cut_points(log_prob: jax.Array, alive: jax.Array, every: Number, below: Number) -> jax.Array:
    """Where an episode is cut into segments: before a step, bool `[..., T]`.

    Of the steps that had a probability under `below`, it is before the first one and each `every`-th after it. The
    source has 5 and 0.9. With `every` 1 and `below` above 1, before all steps.

    Source: SPO, 2025, arXiv:2505.23564, in the form of its code.
    """
    unsure = alive & (jnp.exp(jnp.where(alive, log_prob, 0.0)) < below)
    number = jnp.cumsum(unsure, axis=-1) - 1
    return unsure & (number % every == 0)


def segment_advantages(value: jax.Array, cut: jax.Array, outcome: jax.Array) -> jax.Array:
    """What a step's segment gained, `[..., T]`: the value at the next cut, or the outcome, less that at its own cut.

    Args:
        value: of the states where a cut is, `[..., T]`; others are not read.
        cut: before which steps there is a cut, bool `[..., T]`, none behind the end.
        outcome: `[...]`.

    Steps before the first cut get 0, and so do all where there is none. From the first cut on, segments sum up to the
    outcome less its value. With a cut before each step these are the advantages of VinePPO, undiscounted.

    Source: SPO, 2025, arXiv:2505.23564.
    """
    chex.assert_equal_shape([value, cut])
    num, axis = cut.shape[-1], cut.ndim - 1
    time = jnp.broadcast_to(jnp.arange(num), cut.shape)
    own = jax.lax.cummax(jnp.where(cut, time, -1), axis)
    then = jax.lax.cummin(jnp.where(cut, time, num), axis, reverse=True)
    then = jnp.concatenate([then[..., 1:], jnp.full_like(then[..., :1], num)], axis=-1)
    at = lambda time: jnp.take_along_axis(value, jnp.clip(time, 0, num - 1), axis=-1)
    return jnp.where(own < 0, 0.0, jnp.where(then < num, at(then), outcome[..., None]) - at(own))


def branch_shares(facts: Facts) -> jax.Array:
    """Weights that let a step count once where several episodes of a group have it, `[N, G, T]`; 0 after their ends.

    Episodes that branch off from another one hold copies of its first steps, which they did not play. What was done at
    one time in one place counts as often as it was played, and all that have it share that. Steps that all were played
    keep 1, also where they agree; those that nobody of the group has played get 0.

    Source: ARPO, 2025, arXiv:2507.19849, for the branches. The weights are ours. The mean advantage of branches on
    shared steps, which the paper is said to take, is what `graph` gives.
    """
    time = jnp.broadcast_to(jnp.arange(facts.alive.shape[-1], dtype=jnp.int32), facts.alive.shape)
    played = known(facts, "played").astype(facts.reward.dtype)
    return shared(played, facts.alive, known(facts, "place"), known(facts, "token"), time)


def prefixes(token: jax.Array, alive: jax.Array) -> jax.Array:
    """A key of what was done before each step, int32 `[N, G, T]`, of tokens `[N, G, T]`.

    Two members of a group have the same key at a time exactly if all their tokens before it agree. Keys of different
    times differ.
    """
    first = _first_alike(token, alive)[..., :-1]
    return first + token.shape[1] * jnp.arange(token.shape[2], dtype=jnp.int32)


def classes(token: jax.Array, alive: jax.Array) -> jax.Array:
    """A key of the whole answer, int32 `[N, G]`: the first member of the group that has the same one.

    Answers are the same if they are equally long and agree in all tokens.
    """
    return _first_alike(token, alive)[..., -1]


def _first_alike(token: jax.Array, alive: jax.Array) -> jax.Array:
    """The first member of a group that agrees in the first t tokens, t = 0 ... T, int32 `[N, G, T + 1]`."""
    chex.assert_equal_shape([token, alive])
    alike = lambda x: x[:, :, None] == x[:, None, :]

    def step(first, x):
        token, alive = x
        same = alike(first) & alike(alive) & (alike(token) | ~alive[:, :, None])
        return (jnp.argmax(same, axis=2).astype(jnp.int32), first)

    start = jnp.zeros(token.shape[:2], jnp.int32)
    last, first = jax.lax.scan(step, start, (jnp.moveaxis(token, -1, 0), jnp.moveaxis(alive, -1, 0)))
    return jnp.moveaxis(jnp.concatenate([first, last[None]]), 0, -1)


def score_norm(credit: jax.Array, log_prob: jax.Array, sum_of_squares: jax.Array, alive: jax.Array) -> jax.Array:
    """The baseline of a step that weighs members by the squared norm of their score so far, `[N, 1, T]`.

        B_t = sum_i W_t C_t / sum_i W_t,    W_t = sum_{j <= t} (1 - 2 pi_j + sum_a pi_j(a)^2)

    The sums over i are over the members that are alive at t. The summand of W is the squared norm of the gradient of
    `log pi_j` in the logits, so that with one step no constant leaves a gradient of less variance. Where all W are 0,
    there is no gradient and B is 0. It depends on what the member itself did, and is not unbiased.

    Args:
        credit: C, of rewards to go, `[N, G, T]`.
        log_prob: of what was done, `[N, G, T]`.
        sum_of_squares: of the probabilities of all that could be done, `[N, G, T]`.
        alive: bool `[N, G, T]`.

    Source: the optimal token baseline (OTB) in the code of verl.
    """
    norm = jnp.where(alive, 1.0 - 2.0 * jnp.exp(log_prob) + sum_of_squares, 0.0)
    weight = jnp.where(alive, jnp.cumsum(jnp.maximum(norm, 0.0), axis=-1), 0.0)  # rounding may be below 0
    total = weight.sum(axis=1, keepdims=True)
    sure = total < 1e-12
    mean = (weight * jnp.where(alive, credit, 0.0)).sum(axis=1, keepdims=True) / jnp.where(sure, 1.0, total)
    return jnp.where(sure, 0.0, mean)


def start_value(credit: jax.Array, value: jax.Array, alpha: Number) -> jax.Array:
    """The baseline `alpha V_i + mean_j (C_j - alpha V_j)`, `[N, G, T]`, of credit `[N, G, T]`.

    `V` `[N, G]` is the value of the state that a member began in, where members of a group begin in different ones.
    Alpha 0, or one value for all, is `rlx.groups.group_mean`. The source has 0.5.

    Source: Tree-OPO, 2025, arXiv:2509.09284, from an account of the paper.
    """
    value = alpha * value[..., None]
    return value + (credit - value).mean(axis=1, keepdims=True)
