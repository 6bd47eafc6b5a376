"""Bonuses of exploration: rewards for what is new, in place of nothing, from what a rollout has visited.

A bonus is a pytree with two functions, and what it learns is part of the State:

    start(env, num, key) -> state                            of `num` environments times agents
    __call__(env, state, traj) -> (bonus [T, N], state, metrics)

The algorithm learns from `reward + bonus`; what is logged as an episode's return stays the environment's reward.

    ppo_rnd = with_bonus(ppo, RND)          # or, on the command line, --bonus RND
    state, metrics = rlx.train(ppo_rnd, ppo_rnd.Config(bonus_coef=0.1), env, key)

Axes: T time, N environments times agents, O observation, F features.

Deviations from the papers:
- One critic values rewards and bonuses together, with one discount, and an episode's end ends both. The paper of RND
  has a critic for each, and its bonuses go on through ends.
- Off policy an element keeps the bonus that it had when it was visited.
- The predictor of RND takes its gradient steps on the whole rollout, once that has been paid for.
- Counts include all of the rollout, also what comes later in it.
"""

from dataclasses import replace
from types import ModuleType
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from rlx.env import Transition
from rlx.given import with_argument
from rlx.networks import Torso, initialize
from rlx.networks.torso import Module
from rlx.normalize import RewardScale, normalize, reward_scale, scale_rewards, statistics, update_statistics
from rlx.pytree import pytree, static, traced
from rlx.rollout import flatten
from rlx.spaces import visible, zeros

STREAM = 0x626F6E  # names the random stream of what bonuses begin with


class Features(Module):
    """Observations to F numbers, one dense layer after a torso."""

    torso: Torso
    num_features: int

    @nn.compact
    def __call__(self, obs: Any) -> jax.Array:
        return nn.Dense(self.num_features, name="head")(self.torso(obs))


@pytree
class Distilled:
    """What `RND` has learned."""

    params: Any  # of the predictor
    target: Any  # of the random network
    opt_state: optax.OptState
    obs_stats: Any
    scale: RewardScale


@pytree
class RND:
    """Random Network Distillation: how badly a network predicts the features of another one, which is random.

        bonus = coef e / std(G),    e = mean_F (predictor(s') - target(s'))^2

    Both see observations that are normalised by running statistics and clipped to [-5, 5]; G is the discounted sum of
    all e so far of an environment, through ends of episodes.

    Source: Burda et al. 2018, Exploration by Random Network Distillation, arXiv:1810.12894.
    """

    bonus_coef: float = traced(0.5, at_least=0)  # to rewards as in the paper, 1 to 2
    bonus_learning_rate: float = traced(1e-3, at_least=0)
    bonus_steps: int = static(4, at_least=1)  # gradient steps of the predictor on a rollout
    bonus_sizes: tuple[int, ...] = static((64, 64))
    bonus_features: int = static(32, at_least=1)  # F

    def start(self, env: Any, num: int, key: jax.Array) -> Distilled:
        network = self._network(env.observation_space)
        nets = {"predictor": (network, 1.0), "target": (network, 1.0)}
        params = initialize(key, zeros(env.observation_space), **nets)
        stats = statistics(env.observation_space)
        predictor = params["predictor"]
        return Distilled(predictor, params["target"], self._optimizer().init(predictor), stats, reward_scale(num))

    def _network(self, space: Any) -> Features:
        return Features(Torso(visible(space), self.bonus_sizes, "relu"), self.bonus_features)

    def _optimizer(self) -> optax.GradientTransformation:
        return optax.flatten(optax.adam(self.bonus_learning_rate, eps_root=1e-20))

    def __call__(self, env: Any, state: Distilled, traj: Any) -> tuple[jax.Array, Distilled, dict[str, jax.Array]]:
        network, stats = self._network(env.observation_space), update_statistics(state.obs_stats, traj.next_obs)
        obs = normalize(stats, traj.next_obs, 5.0)
        target = network.apply(state.target, obs)
        error = lambda params, obs, target: jnp.mean((network.apply(params, obs) - target) ** 2, axis=-1)
        scale, paid = scale_rewards(
            state.scale, error(state.params, obs, target), jnp.zeros_like(traj.done), 0.99, jnp.inf
        )
        elements = flatten((obs, target))

        def step(carry, _):
            params, opt_state = carry
            loss, grads = jax.value_and_grad(lambda params: error(params, *elements).mean())(params)
            updates, opt_state = self._optimizer().update(grads, opt_state)
            return (optax.apply_updates(params, updates), opt_state), loss

        (params, opt_state), losses = jax.lax.scan(step, (state.params, state.opt_state), length=self.bonus_steps)
        learned = Distilled(params, state.target, opt_state, stats, scale)
        return self.bonus_coef * paid, learned, {"bonus_loss": losses[-1]}


@pytree
class Visited:
    """What `Counts` has seen."""

    directions: jax.Array  # [O, K]
    counts: jax.Array  # int32 [2^K]
    obs_stats: Any


@pytree
class Counts:
    """Counts of visits, of observations that a random hash takes for the same.

        bonus = coef / sqrt(n(h(s'))),    h(s') = the K signs of s' A,    A ~ N(0, 1)

    s' is flat, categories one-hot, normalised by running statistics.

    Source: Tang et al. 2017, #Exploration, arXiv:1611.04717, with SimHash.
    """

    bonus_coef: float = traced(0.1, at_least=0)
    bonus_bits: int = static(12, at_least=1)  # K

    def start(self, env: Any, num: int, key: jax.Array) -> Visited:
        if self.bonus_bits > 24:
            raise ValueError(f"bonus_bits = {self.bonus_bits}: counts are a table of 2^bits numbers; give up to 24")
        size = self._flat(env, zeros(env.observation_space)).shape[-1]
        directions = jax.random.normal(key, (size, self.bonus_bits))
        return Visited(directions, jnp.zeros(2**self.bonus_bits, jnp.int32), statistics(env.observation_space))

    def _flat(self, env: Any, obs: Any) -> jax.Array:
        return jnp.asarray(Torso(visible(env.observation_space), ()).apply({}, obs))

    def __call__(self, env: Any, state: Visited, traj: Any) -> tuple[jax.Array, Visited, dict[str, jax.Array]]:
        stats = update_statistics(state.obs_stats, traj.next_obs)
        signs = self._flat(env, normalize(stats, traj.next_obs)) @ state.directions > 0
        cell = signs @ 2 ** jnp.arange(self.bonus_bits)
        counts = state.counts.at[cell].add(1)
        paid = self.bonus_coef * jax.lax.rsqrt(counts[cell].astype(jnp.float32))
        return paid, Visited(state.directions, counts, stats), {"visited": (counts > 0).sum()}


def begin(bonus: Any, env: Any, num_envs: int, key: jax.Array) -> Any:
    """What the bonus has learned before the first rollout; None of no bonus."""
    return None if bonus is None else bonus.start(env, num_envs * env.num_agents, jax.random.fold_in(key, STREAM))


def pay(bonus: Any, env: Any, state: Any, traj: Transition) -> tuple[Transition, Any, dict[str, jax.Array]]:
    """Transitions `[T, N]` with `reward + bonus` for their rewards, the bonus's new state, and metrics.

    `bonus` is the mean of what was paid. Returns of episodes stay as they are. Without a bonus nothing changes.
    """
    if bonus is None or not len(traj.reward):
        return traj, state, {}
    paid, state, metrics = bonus(env, state, traj)
    return replace(traj, reward=traj.reward + paid), state, {"bonus": paid.mean(), **metrics}


def with_bonus(algorithm: ModuleType, bonus: Any) -> ModuleType:
    """The algorithm with a bonus for what is new.

        explorer = with_bonus(ppo, RND)
        state, metrics = rlx.train(explorer, explorer.Config(bonus_coef=0.5), env, key)

    Of a class, the coefficients become fields of its Config. The algorithm returned is called `rlx.algos.ppo+RND`.

    Raises:
        ValueError: when the algorithm takes no bonus.
    """
    return with_argument(algorithm, "bonus", bonus, "takes no bonus for exploration")


__all__ = ["RND", "Counts", "begin", "pay", "with_bonus"]
