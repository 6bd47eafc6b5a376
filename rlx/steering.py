"""A frozen policy of a flow or of diffusion that is steered by the noise that it begins with.

    env = steered(env, fpo, config, state)       any algorithm for continuous actions learns the noise
    state, metrics = rlx.train(sac, sac.Config(), env, key)

Nothing of the policy changes, and whatever is learned stays within what it can do. Where its actions hardly depend on
the noise there is nothing to steer by: look at `spread` first.
"""

from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp

from rlx.around import decoded
from rlx.diffusion import ddim, denoise
from rlx.env import Env
from rlx.flow import euler
from rlx.networks import Denoiser, Velocity, action_size
from rlx.normalize import normalize
from rlx.pytree import pytree, static
from rlx.spaces import Box, rescale


@pytree
class Steered:
    """A decoder: the action of a frozen policy at an observation, `[A]`, that begins at the noise `[A]`.

    A flow goes from it by Euler's steps (FPO), a chain of denoising by DDIM over all of its steps without noise (DPPO).
    """

    env: Env
    params: Any
    pretrained: Any
    obs_stats: Any  # None where observations are as they are
    action_bound: Any  # of the clean actions of a chain
    apply: Callable = static()  # the networks of the policy
    is_flow: bool = static()
    num_steps: int = static()
    num_trained: int = static()  # of them, the last, by `params`; those before by `pretrained`

    def __call__(self, obs: Any, noise: jax.Array, key: Any = None) -> jax.Array:
        obs = jax.tree.map(lambda x: x[None], obs)
        obs = obs if self.obs_stats is None else normalize(self.obs_stats, obs)
        predict = partial(self.apply, self.params, obs)
        if self.is_flow:
            return rescale(self.env.action_space, euler(predict, noise[None], self.num_steps))[0]
        if self.num_trained < self.num_steps:
            after, before = predict, partial(self.apply, self.pretrained, obs)
            predict = lambda x, t: jnp.where(t >= self.num_trained, before(x, t), after(x, t))
        schedule, none = ddim(self.num_steps, self.num_steps, eta=0.0), jnp.zeros(self.num_steps)
        still = jnp.zeros((self.num_steps, 1, *noise.shape))
        action, _ = denoise(schedule, predict, noise[None], still, none, self.action_bound)
        return rescale(self.env.action_space, action)[0]


def steering(env: Env, algorithm: ModuleType, config: Any, state: Any) -> Steered:
    """The decoder of a policy.

    Args:
        env: that the policy acts in.
        algorithm: `rlx.algos.fpo` or `rlx.algos.dppo`.
        config: its Config.
        state: a State with the policy, such as a clone.

    Raises:
        ValueError: for a policy that does not begin with noise.
    """
    actor = algorithm.networks(config, env)[0]
    if not isinstance(actor, Velocity | Denoiser):
        raise ValueError(f"{algorithm.__name__} has no noise to be steered by: give a policy of fpo or dppo")
    num_steps = config.flow_steps if isinstance(actor, Velocity) else config.denoising_steps
    return Steered(
        apply=partial(type(actor).apply, actor),  # told apart by what it is, not by what it equals
        is_flow=isinstance(actor, Velocity),
        num_steps=num_steps,
        num_trained=getattr(config, "trained_steps", num_steps),
        env=env,
        params=state.params["actor"],
        pretrained=getattr(state, "pretrained", None),
        obs_stats=state.obs_stats if config.normalize_obs else None,
        action_bound=getattr(config, "action_bound", None),
    )


def steered(env: Env, algorithm: ModuleType, config: Any, state: Any, bound: float = 1.5) -> Env:
    """The environment whose actions are the noise that a frozen policy begins with, `Box(-bound, bound, (A,))`.

    SAC on it is DSRL-SAC, which learns values of the noise. `rlx.algos.dsrl` on it is DSRL-NA, which learns values of
    the actions and distils them into values of the noise.

    Source: Wagenmaker et al. 2025, Steering Your Diffusion Policy with Latent Space Reinforcement Learning,
    arXiv:2506.15799.

    Args:
        env: that the policy acts in.
        algorithm: `rlx.algos.fpo` or `rlx.algos.dppo`.
        config: its Config.
        state: a State with the policy.
        bound: of each number of the noise; 1.5 has 87 % of a normal one.

    Raises:
        ValueError: for a policy that does not begin with noise, or a bound that is not above 0.
    """
    if not bound > 0:
        raise ValueError(f"bound = {bound}: give more than 0")
    policy = steering(env, algorithm, config, state)
    return decoded(env, policy, Box(-bound, bound, (action_size(env.action_space),)))


def spread(policy: Steered, obs: Any, key: jax.Array, num: int = 64) -> jax.Array:
    """Standard deviation of a policy's actions over normal noise, `[B, A]` at observations `[B, ...]`."""
    noise = jax.random.normal(key, (num, action_size(policy.env.action_space)))
    actions = jax.vmap(lambda x: jax.vmap(lambda w: policy(x, w))(noise))(obs)
    return actions.std(axis=1)


__all__ = ["Steered", "spread", "steered", "steering"]
