"""What the stages of `rlx.relatives` get to see of an update's episodes.

Axes: N groups, G members, T time.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from rlx.branching import writers
from rlx.distributions import Categorical
from rlx.env import Env, Transition
from rlx.groups import Facts, by_group
from rlx.spaces import Discrete
from rlx.step_credits import classes, prefixes


def gathered(
    env: Env,
    traj: Transition,
    alive: jax.Array,
    group_size: int,
    policy: Any,
    given: jax.Array | None = None,
    branches: tuple[int, ...] = (),
) -> Facts:
    """The facts of episodes that were played group by group, as `rlx.rollout.episodes` returns them.

    The place of a step is `info["place"]` where the environment reports it, the number of the state where observations
    are one, else what was done before, where actions are numbers. The kind of an outcome is all that was done.

    Args:
        env: the environment.
        traj: transitions `[T, N * G, ...]`, whose `recorded` has `log_prob`.
        alive: bool `[T, N * G]`.
        group_size: G.
        policy: the distribution that it acted by, at every step `[N * G, T]`.
        given: `[N * G, T]`, 0 where the policy was free.
        branches: of a group whose answers are a tree: what a member copied from another one it did not play.
    """
    grouped = partial(by_group, group_size=group_size)
    reward, alive, log_prob = map(grouped, (traj.reward, alive, traj.recorded.log_prob))
    token = grouped(jnp.int32(traj.recorded.action)) if is_number(env.action_space) else None
    place, kind = (None, None) if token is None else (prefixes(token, alive), classes(token, alive))
    place = grouped(traj.obs) if is_number(env.observation_space) else place
    place = grouped(traj.info["place"]) if isinstance(traj.info, dict) and "place" in traj.info else place
    entropy, by_member = policy.entropy().reshape(alive.shape), lambda x: x.reshape(alive.shape)
    collision = (
        by_member((jax.nn.softmax(policy.logits) ** 2).sum(axis=-1)) if isinstance(policy, Categorical) else None
    )
    played = None if given is None else (given == 0).reshape(alive.shape)
    if branches:
        member = jnp.arange(group_size)[:, None]
        played = jnp.broadcast_to(member == writers(branches, alive.shape[-1]).T, alive.shape)
    return Facts(reward, alive, log_prob, entropy, collision, token, place, kind, played, branches)


def is_number(space: object) -> bool:
    """Whether a space has single numbers of a finite set."""
    return isinstance(space, Discrete) and space.shape == ()


__all__ = ["gathered", "is_number"]
