"""Heads: distributions of actions, and values, on top of a torso."""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from rlx.distributions import Beta, Categorical, Joint, Normal, NormalMixture, TanhNormal
from rlx.masks import masked, masks_of
from rlx.networks.torso import Module, Torso, is_separate, separate
from rlx.spaces import Box, Discrete, Space, named, parts

POLICIES = ("normal", "state_std", "tanh_normal", "beta", "softplus_std")  # densities over a Box
BOUNDED = ("tanh_normal", "beta")  # of these, those that act within bounds


def action_size(space: Any) -> int:
    """Number `A` of a continuous action's dimensions.

    Raises:
        ValueError: for other spaces, and for a Box that has not exactly one axis.
    """
    if not isinstance(space, Box):
        raise ValueError(f"this policy needs continuous actions (a Box), the environment's are {type(space).__name__}")
    if len(space.shape) != 1:
        raise ValueError(f"actions of shape {space.shape} are not supported: give the Box one axis")
    return space.shape[0]


class Actor(Module):
    """`pi(. | obs)`: `Categorical` over Discrete actions; over a Box a density in unit coordinates `[-1, 1]`.

    Illegal actions, by the entry `action_mask` of the observation, have probability 0 where `legal`. The density is

        normal       `Normal`; log_std is one free parameter a dimension, the same for every observation, from 0
        state_std    `Normal`; log_std is a function of the observation, within [-5, 2], from 0
        tanh_normal  `TanhNormal`, log_std as in state_std
        softplus_std `Normal`; std is 1e-5 + softplus of a function of the observation
        beta         `Beta`; alpha and beta are 1 + softplus of a function of the observation

    With more than one component it is a `NormalMixture`, whose means start at random places around 0. Over a Dict, a
    Tuple or an array of categories it is the `Joint` of one for each part.
    """

    action_space: Space
    torso: Torso
    num_components: int = 1  # of a Box's density
    policy: str = "normal"
    legal: bool = True

    @nn.compact
    def __call__(self, obs: Any, *others: jax.Array) -> Any:
        if is_separate(self.torso):
            return separate(self, obs, *others)
        x = self.torso(obs, *others)
        spaces = named(self.action_space)
        self._check(list(spaces.values()))
        masks = masks_of(self.action_space, obs) if self.legal else [None] * len(spaces)
        sizes = [self._size(space) for space in spaces.values()]
        outputs = nn.Dense(sum(sizes), name="head")(x)
        found, start = [], 0
        for (name, space), mask, size in zip(spaces.items(), masks, sizes, strict=True):
            own = outputs if len(sizes) == 1 else outputs[..., start : start + size]
            if isinstance(space, Discrete):
                found.append(Categorical(masked(own.reshape(*own.shape[:-1], *space.shape, space.n), mask)))
            else:
                found.append(self._density(own, "_".join(filter(None, ("log_std", name)))))
            start += size
        if isinstance(self.action_space, Box) or (
            isinstance(self.action_space, Discrete) and not sum(choice_axes(spaces))
        ):
            return found[0]
        structure = jax.tree.structure(parts(self.action_space))
        return Joint(jax.tree.unflatten(structure, found), choice_axes(spaces))

    def _size(self, space: Any) -> int:
        """How many outputs the distribution over a part of the action takes."""
        if isinstance(space, Discrete):
            return space.n * math.prod(space.shape)
        if self.num_components > 1:
            return self.num_components * (1 + action_size(space))
        return action_size(space) * (1 if self.policy == "normal" else 2)

    def _density(self, outputs: jax.Array, log_std_name: str) -> Any:
        if self.num_components > 1:
            return self._mixture(outputs)
        if self.policy == "normal":
            log_std = self.param(log_std_name, nn.initializers.zeros, outputs.shape[-1:])
            return Normal(outputs, jnp.broadcast_to(log_std, outputs.shape))  # so that a batch of them can be indexed
        first, second = jnp.split(outputs, 2, axis=-1)
        if self.policy == "beta":
            return Beta(1.0 + jax.nn.softplus(first), 1.0 + jax.nn.softplus(second))
        if self.policy == "softplus_std":
            return Normal(first, jnp.log(1e-5 + jax.nn.softplus(second)))
        kind = TanhNormal if self.policy == "tanh_normal" else Normal
        return kind(first, jnp.clip(second, -5.0, 2.0))

    def _mixture(self, outputs: jax.Array) -> NormalMixture:
        shape = (self.num_components, outputs.shape[-1] // self.num_components - 1)
        logits, mean = jnp.split(outputs, shape[:1], axis=-1)
        mean = mean.reshape(*mean.shape[:-1], *shape) + self.param("centers", nn.initializers.normal(1.0), shape)
        return NormalMixture(logits, mean, self.param("log_std", nn.initializers.zeros, shape))

    def _check(self, spaces: list[Any]) -> None:
        """Raises ValueError for a density that the actions have no use for."""
        if self.policy not in POLICIES:
            raise ValueError(f"policy = {self.policy!r}: choose among {', '.join(POLICIES)}")
        if self.num_components != 1 and not isinstance(self.action_space, Box):
            raise ValueError(f"num_components = {self.num_components} needs continuous actions: leave it at 1")
        if self.num_components != 1 and self.policy != "normal":
            raise ValueError(f"num_components = {self.num_components} is of normals: leave policy at 'normal'")
        if self.policy != "normal" and all(isinstance(space, Discrete) for space in spaces):
            raise ValueError(f"policy = {self.policy!r} needs continuous actions: leave it at 'normal'")


def choice_axes(spaces: dict[str, Any]) -> tuple[int, ...]:
    """Of each part of an action, how many choices a Categorical of it has side by side, in axes."""
    return tuple(len(space.shape) if isinstance(space, Discrete) else 0 for space in spaces.values())


class TanhActor(Module):
    """`pi(. | obs)` over a Box: `TanhNormal` in unit coordinates, log_std a function of the observation in [-10, 2]."""

    action_space: Space
    torso: Torso

    @nn.compact
    def __call__(self, obs: Any, *others: jax.Array) -> TanhNormal:
        if is_separate(self.torso):
            return separate(self, obs, *others)
        mean, log_std = jnp.split(
            nn.Dense(2 * action_size(self.action_space), name="head")(self.torso(obs, *others)), 2, axis=-1
        )
        return TanhNormal(mean, jnp.clip(log_std, -10.0, 2.0))


class DeterministicActor(Module):
    """An action in unit coordinates for each observation, `[..., A]`, the tanh of a linear layer."""

    action_space: Space
    torso: Torso

    @nn.compact
    def __call__(self, obs: Any, *others: jax.Array) -> jax.Array:
        if is_separate(self.torso):
            return separate(self, obs, *others)
        return jnp.tanh(nn.Dense(action_size(self.action_space), name="head")(self.torso(obs, *others)))


class Critic(Module):
    """`V(obs)`, or `Q(obs, action)`, `[...]`; what is given beside the observation is a vector of any kind.

    With `num_values` K, above 0, there are as many numbers for each, `[..., K]`: the quantiles of a return, or the
    logits of its atoms.
    """

    torso: Torso
    num_values: int = 0

    @nn.compact
    def __call__(self, obs: Any, *action: jax.Array) -> jax.Array:
        if is_separate(self.torso):
            return separate(self, obs, *action)
        if self.num_values:
            return nn.Dense(self.num_values, name="head")(self.torso(obs, *action))
        return nn.Dense(1, name="head")(self.torso(obs, *action))[..., 0]


class ActionValues(Module):
    """`Q(obs, .)` of every Discrete action, `[..., A]`."""

    action_space: Discrete
    torso: Torso

    @nn.compact
    def __call__(self, obs: Any, *others: jax.Array) -> jax.Array:
        if is_separate(self.torso):
            return separate(self, obs, *others)
        return nn.Dense(self.action_space.n, name="head")(self.torso(obs, *others))


__all__ = ["BOUNDED", "POLICIES", "ActionValues", "Actor", "Critic", "DeterministicActor", "TanhActor", "action_size"]
