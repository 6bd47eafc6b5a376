"""Answers of a group that grow as a tree: what they share, and what each of its edges is worth.

`branches` has the number of children of a node at each level, such as `(2, 2, 2)`: a group of 8 answers, of which 4
and 4 have their first third in common, and pairs of these their second third. The levels split the T steps that an
answer may have as evenly as can be: answers that are shorter have more in common. Tokens are copied, so that the
environment has to be deterministic.

Axes: N groups, G members, T tokens of an answer.
"""

from itertools import pairwise
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rlx.groups import Facts, outcomes

Number = float | jax.Array
OF_ANSWERS = ("best_and_worst", "spread_subset", "short_right_long_wrong")  # masks that choose whole answers


def check_branches(config: Any) -> None:
    """Raises ValueError for a tree that does not have the members of a group as its leaves."""
    if not config.branches:
        if config.credit == "tree":
            raise ValueError("credit = tree: answers are no tree; give branches, such as branches = 2 2 2")
        return
    if config.credit != "tree":
        raise ValueError(
            f"branches: credit = {config.credit} gives what answers share to one of them alone; set credit = tree"
        )
    if some := [name for name in config.masks if name in OF_ANSWERS]:
        raise ValueError(f"branches: the mask {some[0]} would leave answers out whose beginnings others share")
    if min(config.branches) < 1 or prod(config.branches) != config.group_size:
        raise ValueError(f"branches = {config.branches}: their product has to be group_size = {config.group_size}")
    if len(config.branches) > config.num_steps:
        raise ValueError(f"branches = {config.branches}: more levels than num_steps = {config.num_steps}")
    if not config.same_start:
        raise ValueError("branches: a group has one root; leave same_start as it is")
    if config.given:
        raise ValueError("branches: what a tree shares is chosen by the policy; use given = 0")


def level_of(branches: tuple[int, ...], num_steps: int) -> np.ndarray:
    """The level of the edge that a step belongs to, int `[T]`."""
    return np.arange(num_steps) * len(branches) // num_steps


def sharing(branches: tuple[int, ...]) -> list[int]:
    """How many members have an edge of each level in common."""
    return [prod(branches[level + 1 :]) for level in range(len(branches))]


def writers(branches: tuple[int, ...], num_steps: int) -> np.ndarray:
    """Which member writes the tokens of which, int `[T, G]`: the first of those that have them in common."""
    member, size = np.arange(prod(branches)), np.array(sharing(branches))[level_of(branches, num_steps)]
    return member - member % size[:, None]


def tree(reward: jax.Array, facts: Facts, gamma: jax.Array, amount: Number) -> jax.Array:
    """What the edge of a step is worth, `[N, G, T]`: the value of its lower node less that of its upper one.

        A = V(child) - V(parent),    V(node) = mean of V over its children,    V(leaf) = R

    With as many children everywhere, V is the mean outcome of the leaves below a node. The edges of an answer sum up to
    `R - mean R` of its group, and those below one node to 0, so that a baseline is inside. R is the discounted outcome.
    All tokens of an edge have its advantage. Those that several answers share count once, for the one that wrote them,
    so that lower levels, which have more edges, weigh more in the mean. The baseline has the edge itself in it: of b
    children the gradient is `(b - 1) / b` of the true one.

    Source: SPO, 2025, arXiv:2505.23564, its tree form without a division by the spread. The source has 6 children
    everywhere and edges of 30 tokens, and drops those that gain nothing; here they keep their share of the mean.
    """
    if not facts.branches:
        raise ValueError("the credit tree is of answers that were played as one: give branches, or another credit")
    leaf = outcomes(reward, facts.alive, gamma)[..., 0]
    node = lambda size: jnp.repeat(leaf.reshape(len(leaf), -1, size).mean(axis=-1), size, axis=1)
    values = [node(size) for size in (leaf.shape[1], *sharing(facts.branches))]
    edges = jnp.stack([lower - upper for upper, lower in pairwise(values)], axis=-1)
    return edges[..., level_of(facts.branches, facts.alive.shape[-1])]


__all__ = ["check_branches", "level_of", "sharing", "tree", "writers"]
