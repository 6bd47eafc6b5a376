"""Environments around others, that are acted on through something, paid for otherwise or begun elsewhere.

    env = decoded(env, decode, action_space)     an action is what `decode` makes of it
    env = rewarded(env, reward)                  another reward
    env = restarted(env, states, 0.5)            half of the episodes begin from states that were kept

What is put between is a pytree among the params: it can be traced, vmapped over and differentiated. A function becomes
one by itself. O observation, A action, M kept states.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from rlx.env import Env, EnvState, Transition
from rlx.multiagent import check_one_agent
from rlx.pytree import pytree
from rlx.spaces import Discrete

DECODING = 0x646563  # names the random stream of decoders
OF_TOKENS = ("prompt_size", "reply_size", "solved", "right_answer")  # what an environment of tokens has, see rlx.tokens


def of_inner(outer: Any, name: str) -> Any:
    """What an environment around another one does not change, as its `__getattr__`."""
    if name == "environment":  # of a copy that is being made
        raise AttributeError(name)
    return getattr(outer.environment, name)


def unchanged(outer: Any, name: str) -> Any:
    """Of these what takes no state and no params, for an environment that has its own."""
    if name not in ("num_agents", "differentiable", "dt", "reuses_keys"):
        raise AttributeError(name)
    return getattr(outer.environment, name)


def of_inner_env(outer: Any, name: str) -> Any:
    """The same of one whose state is an `EnvState` and whose params hold the whole environment, `params.env`."""
    if name not in (*("differentiable", "dt", "reuses_keys", "frames", "html", "cameras"), *OF_TOKENS):
        raise AttributeError(name)
    inner = getattr(outer.default_params.env.environment, name)
    if name in ("frames", "html"):
        return lambda env_states, params, *rest: inner([s.state for s in env_states], params.env.params, *rest)
    if name == "solved":
        return lambda key, params: inner(key, params.env.params)
    if name == "right_answer":
        return lambda state, params: inner(state.state, params.env.params)
    return (lambda params: inner(params.env.params)) if name == "cameras" else inner


def told(made: Transition) -> Any:
    """The info of an environment around another one: that of the step inside, and whether it diverged."""
    return made.info | {"diverged": made.diverged} if isinstance(made.info, dict) else made.info


def as_pytree(function: Any) -> Any:
    """A callable pytree as it is, and a function as one."""
    return function if jax.tree.leaves(function) != [function] else jax.tree_util.Partial(function)


@pytree
class BetweenParams:
    """An environment, and what stands between it and an agent, each None where nothing does."""

    env: Env
    decode: Any = None
    reward: Any = None


class Between:
    """Another environment with something in between; see `decoded` and `rewarded`. Its state is an `EnvState` of it."""

    __getattr__ = of_inner_env

    def __init__(self, params: BetweenParams, space: Any = None):
        self.default_params, self.space = params, space

    def reset(self, key, params):
        env_state = params.env.reset(key)
        return env_state.obs, env_state

    def step(self, key, state, action, params):
        if params.decode is not None:
            action = params.decode(state.obs, action, jax.random.fold_in(key, DECODING))
        state, made = params.env.advance(key, state, action)
        reward = made.reward if params.reward is None else params.reward(made)
        return state.obs, state, reward, made.terminated, made.truncated, told(made)

    def reported(self, state):
        """What the inner episode reported so far, and its own return where rewards are others."""
        own = {} if self.default_params.reward is None else {"own_return": state.episode_return}
        return own | state.reported

    def observation_space(self, params):
        return params.env.observation_space

    def action_space(self, params):
        return params.env.action_space if self.space is None else self.space

    def horizon(self, params):
        return params.env.horizon


def decoded(env: Env, decode: Any, action_space: Any) -> Env:
    """The environment with other actions, each of which `decode(obs, action, key)` turns into one of its own.

        push = lambda obs, action, key: jnp.where(action == 0, -1.0, 1.0)[None]
        env = decoded(env, push, Discrete(2))

    A frozen policy that is steered by its noise, controllers of which one is chosen (`chosen`), a range around a policy
    that was written by hand: whatever stands between an agent and the environment. `obs` is raw: a policy with its own
    normalisation brings that along. Time limits stay those of the environment. `env.params.decode` is the decoder, and
    gradients reach its parameters where the environment is differentiable.

    Args:
        env: one agent's.
        decode: a callable pytree, or a function.
        action_space: what the agent chooses from.

    Raises:
        ValueError: for an environment of several agents.
    """
    check_one_agent(env, "an environment that is acted on through a function")
    params = BetweenParams(env, decode=as_pytree(decode))
    return replace(env, environment=Between(params, action_space), params=params, max_steps=None)


@pytree
class Choice:
    """A decoder of `Discrete(M)`: the action of the controller that is chosen, `controllers[i](obs, key)`."""

    controllers: tuple

    def __call__(self, obs, action, key):
        return jax.lax.switch(action, list(self.controllers), obs, key)


def chosen(env: Env, controllers: Sequence[Callable]) -> Env:
    """The environment in which an action says which controller acts, `Discrete(M)`.

    PPO on it is the actor-critic of improper reinforcement learning, and TRPO its natural form. With several actions a
    step, see `rlx.wrappers.chunked`, it switches less often, which is another method.

    Source: Zaki et al. 2022, Actor-Critic based Improper Reinforcement Learning.

    Args:
        env: one agent's.
        controllers: `action = controller(obs, key)` each, functions or callable pytrees.

    Raises:
        ValueError: of less than two controllers.
    """
    if len(controllers) < 2:
        raise ValueError(f"{len(controllers)} controllers to choose from: give at least 2")
    return decoded(env, Choice(tuple(map(as_pytree, controllers))), Discrete(len(controllers)))


def rewarded(env: Env, reward: Any) -> Env:
    """The environment with another reward, `reward(transition)`, of the `Transition` that was made.

        cheap = rewarded(env, lambda step: step.reward - 0.1 * jnp.sum(step.action**2))

    Returns of episodes are of this reward; the environment's own is reported as `own_return`.

    Args:
        env: one agent's.
        reward: a callable pytree, or a function.

    Raises:
        ValueError: for an environment of several agents.
    """
    check_one_agent(env, "an environment with another reward")
    params = BetweenParams(env, reward=as_pytree(reward))
    return replace(env, environment=Between(params), params=params, max_steps=None)


@pytree
class RestartedParams:
    """The params of an environment, and where its episodes begin."""

    params: Any
    states: EnvState  # [M]
    share: jax.Array


class Restarted:
    """Another environment some of whose episodes begin from kept states; see `restarted`."""

    __getattr__ = unchanged

    def __init__(self, environment: Any, params: RestartedParams):
        self.environment, self.default_params = environment, params

    def reset(self, key, params):
        fresh_key, which_key, share_key = jax.random.split(key, 3)
        fresh = self.environment.reset(fresh_key, params.params)
        which = jax.random.randint(which_key, (), 0, len(params.states.time))
        kept = jax.tree.map(lambda x: x[which], (params.states.obs, params.states.state))
        again = jax.random.uniform(share_key) < params.share
        return jax.tree.map(lambda a, b: jnp.where(again, a, b), kept, fresh)

    def step(self, key, state, action, params):
        return self.environment.step(key, state, action, params.params)

    def observation_space(self, params):
        return self.environment.observation_space(params.params)

    def action_space(self, params):
        return self.environment.action_space(params.params)

    def horizon(self, params):
        return Env(self.environment, params.params).horizon

    @property
    def frames(self):
        """The inner environment's, where it has one."""
        draw = self.environment.frames
        return lambda env_states, params, *size: draw(env_states, params.params, *size)

    @property
    def cameras(self):
        """The inner environment's, where it has some."""
        names = self.environment.cameras
        return lambda params: names(params.params)


def restarted(env: Env, states: EnvState, share: float | jax.Array = 0.5) -> Env:
    """The environment in which this share of the episodes begins from states that were kept, each as likely.

    They come from any rollout of the environment: `EnvState`s of demonstrations that are worth going on from. Time and
    return of such an episode begin at 0; a suite's own clock in the state goes on. Evaluate in the environment itself.
    `env.params.share` and `env.params.states` are traced.

    Source: Chang et al. 2024, Dataset Reset Policy Optimization, arXiv:2404.08495. There the policy loss leaves out
    what came before a restart; here nothing did.

    Args:
        env: the environment.
        states: leaves `[M, ...]`.
        share: between 0 and 1.

    Raises:
        ValueError: for states of another environment, and a share beyond 0 and 1.
    """
    if isinstance(share, int | float) and not 0 <= share <= 1:
        raise ValueError(f"a share of {share} of the episodes: give a number from 0 to 1")
    kinds = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), jax.eval_shape(lambda x: x, tree))
    one = jax.eval_shape(env.reset, jax.random.key(0))
    first = jax.eval_shape(lambda tree: jax.tree.map(lambda x: x[0], tree), states)
    if jax.tree.structure(one) != jax.tree.structure(first) or kinds(one) != kinds(first):
        raise ValueError("states are of another environment: give EnvStates of this one, stacked")
    params = RestartedParams(env.params, states, jnp.float32(share))
    return replace(env, environment=Restarted(env.environment, params), params=params)


__all__ = [
    "Choice",
    "as_pytree",
    "chosen",
    "decoded",
    "of_inner",
    "of_inner_env",
    "restarted",
    "rewarded",
    "told",
    "unchanged",
]
