"""Legal actions: the entry `action_mask` of an observation, and policies that take no others.

An environment of Discrete actions whose observation is a `Dict` may have the entry `action_mask`: booleans, True where
an action is legal. It is of shape `[n]` for `Discrete(n)` and `[*shape, n]` for `Discrete(n, shape)`; of several
Discretes it is a `Tuple` with a mask for each, in the order of the leaves of the action space. Its space is
`Box(0, 1, shape, jnp.bool_)` or `Discrete(2, shape=shape)`.

Heads fold it into the logits, so that probabilities of illegal actions are exactly 0 and log-ratios, entropies and
divergences are those of distributions over the legal ones. Where nothing is legal nothing is masked.
"""

from typing import Any

import jax
import jax.numpy as jnp

from rlx.pytree import num_rows
from rlx.spaces import MASK, Dict, Discrete, parts

ILLEGAL = -1e9  # logit of an illegal action: its probability is 0 and its logarithm finite


def mask_of(obs: Any) -> Any:
    """The masks of an observation, a pytree; None where it has none."""
    return obs.get(MASK) if isinstance(obs, dict) else None


def masked(logits: jax.Array, mask: jax.Array | None) -> jax.Array:
    """Logits `[..., n]`, those of illegal actions at `ILLEGAL`, unless all of them are; without a mask as they are.

    Raises:
        ValueError: for a mask of another shape.
    """
    if mask is None:
        return logits
    if mask.shape != logits.shape:
        raise ValueError(f"a mask of shape {mask.shape} for choices of shape {logits.shape}: make them equal")
    return jnp.where(allowed(mask), logits, ILLEGAL)


def allowed(mask: jax.Array) -> jax.Array:
    """What may be taken, bool `[..., n]`: the mask, and everything where nothing is legal."""
    mask = mask.astype(bool)
    return mask | ~mask.any(axis=-1, keepdims=True)


def masks_of(space: Any, obs: Any) -> list[jax.Array | None]:
    """For each Box and Discrete of an action space, in the order of its leaves, its mask in the observation or None."""
    leaves = jax.tree.leaves(parts(space))
    given = iter(jax.tree.leaves(mask_of(obs)))
    return [next(given, None) if isinstance(leaf, Discrete) else None for leaf in leaves]


def num_unmasked(obs: Any) -> jax.Array:
    """How many of the observations `[T, N]` have a choice of which nothing is legal, int32."""
    masks = jax.tree.leaves(mask_of(obs))
    none = [~mask.astype(bool).any(axis=-1) for mask in masks]
    return jnp.sum(jnp.stack([x.reshape(*x.shape[:2], -1).any(axis=-1) for x in none]).any(axis=0))


def sample(space: Any, obs: Any, key: jax.Array) -> Any:
    """A random action of the space for one observation: of Discretes a legal one, each equally probable."""
    leaves, structure = jax.tree.flatten(parts(space))
    keys, actions = [key] if len(leaves) == 1 else jax.random.split(key, len(leaves)), []
    for leaf, mask, own_key in zip(leaves, masks_of(space, obs), keys, strict=True):
        if mask is None:
            actions.append(leaf.sample(own_key))
        else:
            logits = masked(jnp.zeros(mask.shape), mask)
            actions.append(jax.random.categorical(own_key, logits).astype(leaf.dtype))
    return jax.tree.unflatten(structure, actions)


def random_choices(space: Discrete, obs: Any, key: jax.Array) -> jax.Array:
    """Random legal actions for observations `[N, ...]`, int32 `[N]`."""
    if mask_of(obs) is None:
        return jax.random.randint(key, (num_rows(obs),), 0, space.n)
    logits = jnp.where(allowed(jax.tree.leaves(mask_of(obs))[0]), 0.0, ILLEGAL)
    return jax.random.categorical(key, logits)


def num_legal(space: Discrete, obs: Any) -> Any:
    """How many actions may be taken, `[...]`; without a mask the number of all."""
    mask = mask_of(obs)
    return space.n if mask is None else allowed(jax.tree.leaves(mask)[0]).sum(axis=-1)


def check_mask(observed: Any, taken: Any) -> None:
    """Raises ValueError where the entry `action_mask` of an observation space does not fit the action space."""
    if not isinstance(observed, Dict) or MASK not in observed.spaces:
        return
    choices = [space for space in jax.tree.leaves(parts(taken)) if isinstance(space, Discrete)]
    masks = jax.tree.leaves(parts(observed.spaces[MASK]))
    wanted = [(*space.shape, space.n) for space in choices]
    boolean = all(m.dtype == jnp.bool_ or (isinstance(m, Discrete) and m.n == 2) for m in masks)
    if [m.shape for m in masks] != wanted or not wanted or not boolean:
        shapes = " and ".join(map(str, wanted)) or "none, since no action is Discrete"
        raise ValueError(
            f"the entry {MASK} of the observation is {observed.spaces[MASK]}; say of each Discrete which actions are "
            f"legal, by Box(0, 1, shape, jnp.bool_) or Discrete(2, shape=shape) of shape {shapes}"
        )


__all__ = [
    "ILLEGAL",
    "allowed",
    "check_mask",
    "mask_of",
    "masked",
    "masks_of",
    "num_legal",
    "num_unmasked",
    "random_choices",
]
__all__ += ["random_choices", "sample"]
