"""A right answer to each problem of a pool, which comes back where a group of answers has none.

Axes: M problems of the pool, N groups, G members, T tokens of an answer, L places of a sequence.
"""

from typing import Any

import jax
import jax.numpy as jnp

from rlx.adjustments import outcome_of
from rlx.env import Env, EnvState, Transition
from rlx.groups import Facts, by_group
from rlx.pool import Pool
from rlx.pytree import pytree, replace
from rlx.shapes import right
from rlx.tokens import stride


@pytree
class Successes:
    """The last right answer to each problem, as it was written."""

    known: jax.Array  # whether there is one, bool [M]
    obs: jax.Array  # prompt and answer, [M, L]
    action: jax.Array  # [M, T], as are the next three
    log_prob: jax.Array  # of the policy that wrote it
    reward: jax.Array
    alive: jax.Array


def check_replay(config: Any, env: Env) -> None:
    """Raises ValueError where no right answer could come back."""
    if not config.replay:
        return
    if not config.pool:
        raise ValueError("replay: a right answer comes back with its problem; set pool, too")
    if config.branches:
        raise ValueError("replay: an answer that others have a part of cannot be replaced; set branches = ()")
    if config.given:
        raise ValueError("replay: an answer that was given would come back as the policy's own; set given = 0")
    if config.gate >= 0:
        raise ValueError("replay: a group with an answer that came back imitates none; set gate = -1")
    if config.adapt_learning_rate:
        raise ValueError("replay: the KL of old answers is none of this update's; set adapt_learning_rate = False")
    if stride(env) > 1:
        raise ValueError("replay: the environment replies, so that no answer is right by itself; set replay = False")


def none_yet(config: Any, env: Env) -> Successes | None:
    """No right answers to the problems of the Config's pool; None where they do not come back."""
    if not config.replay:
        return None
    space, shape = env.observation_space, (config.pool, config.num_steps)
    zeros, never = jnp.zeros(shape), jnp.zeros(shape, bool)
    obs = jnp.zeros((config.pool, *space.shape), space.dtype)
    return Successes(never[:, 0], obs, zeros.astype(jnp.int32), zeros, zeros, never)


def replayed(
    config: Any, pool: Pool | None, index: jax.Array | None, end: EnvState, traj: Transition, alive: jax.Array
) -> tuple[EnvState, Transition, jax.Array, Successes | None, jax.Array | None]:
    """Answers of which the first member of a group is a stored one, where none is right and there is one.

    Right is what pays 1. The log-probabilities of a stored answer are those of the policy that wrote it, so that the
    loss sees how far it is from now: once it is as likely as the clip allows, it teaches nothing more, and where it has
    become k times less likely, its gradient has 1 / k of the size. The metrics `approx_kl` and `clip_fraction` contain
    it. Members of a group are drawn alike, so that the first is as good as a random one. Problems have to stay what
    they are. Without `replay` nothing changes.

    Returns the end states, the transitions and `alive` with stored answers, what is stored after this update, and which
    groups have a stored answer, bool `[N]`.

    Args:
        config: with `replay` and `group_size`.
        pool: with `answers`.
        index: which of its problems the groups answer, `[N]`.
        end: the states in which answers end, `[N * G]`.
        traj: transitions `[T, N * G]` of these answers, with what was `recorded`.
        alive: bool `[T, N * G]`.

    Source: ARPO for agents that use screens, 2025, arXiv:2505.16282, from memory. That the last success is kept, and
    not another, is ours.
    """
    if not config.replay or pool is None or index is None:
        return end, traj, alive, None, None
    grouped = lambda x: by_group(x, config.group_size)
    paid = right(outcome_of(Facts(grouped(traj.reward), grouped(alive))))
    first = jnp.arange(len(index)) * config.group_size
    best = first + paid.argmax(axis=1)
    known, kept = paid.any(axis=1), pool.answers
    by_answer = (end.obs, *(x.T for x in (traj.recorded.action, traj.recorded.log_prob, traj.reward, alive)))
    used = ~known & kept.known[index]
    old = (kept.obs, kept.action, kept.log_prob, kept.reward, kept.alive)
    shown = lambda old, new: new.at[first].set(jnp.where(used[:, None], old[index].astype(new.dtype), new[first]))
    obs, action, log_prob, reward, living = map(shown, old, by_answer)
    answers = stored(kept, index, Successes(known, *(x[best] for x in by_answer)))
    recorded = replace(traj.recorded, action=action.T, log_prob=log_prob.T)
    return replace(end, obs=obs), replace(traj, reward=reward.T, recorded=recorded), living.T, answers, used


def stored(successes: Successes, index: jax.Array, found: Successes) -> Successes:
    """What is kept of M problems after answers `[N]` to the problems `index`, right ones where `found.known` says so.

    Of several right ones to one problem the first is kept.
    """
    same = (index[:, None] == index) & found.known  # [N, N]
    source = same.argmax(axis=1)  # the same for all groups with one problem, so that they write the same
    place = jnp.where(same.any(axis=1), index, len(successes.known))  # behind the end: nowhere
    put = lambda old, new: old.at[place].set(new[source].astype(old.dtype), mode="drop")
    return jax.tree.map(put, successes, found)


__all__ = ["Successes", "check_replay", "none_yet", "replayed", "stored"]
