"""Parallelised Q-Network: Q(lambda) on fresh data, with layer norm in place of a replay buffer and a target network.

    python algos/pqn.py --env CartPole-v1

Reference: Gallici et al. 2024, Simplifying Deep Temporal Difference Learning, arXiv:2407.04811; time limits as in
Pardo et al. 2018, arXiv:1712.00378.

Axes: T time, N environments, B minibatch, O observation, A actions to choose from.

With `v'_t = max_a Q(s'_t, a)` of the true successor, at the parameters that acted, targets are

    G_t = r_t + gamma (1 - terminated_t) ((1 - lambda) v'_t + lambda G_{t+1}),    G_t = r_t + gamma (...) v'_t at ends

Traces are not cut at exploring actions, which is Peng's Q(lambda).

Deviations from the paper:
- Kernels start orthogonal.
- Observations may be normalised by running statistics, which change after the gradient steps only.
- Environments may explore unequally (`unequal_epsilon`): epsilon^(1 + 7 i / (N - 1)) in the i-th, arXiv:1803.00933.
- Steps cut by a time limit bootstrap from the value of their true successor.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from rlx.bonuses import begin, pay
from rlx.clipping import clip_by_global_norm, global_norm
from rlx.env import EnvState
from rlx.exploration import epsilon_at, epsilon_greedy, greedy
from rlx.masks import mask_of
from rlx.networks import TORSOS, ActionValues, Torso, initialize
from rlx.normalize import Statistics, normalize, statistics, update_statistics
from rlx.objectives import explained_variance
from rlx.pytree import num_rows, pytree, static, traced
from rlx.rollout import check_divides, episode_metrics, flatten, gather, minibatches, reset, rollout
from rlx.spaces import Discrete, check_spaces, rescale, visible, zeros
from rlx.train import training_progress
from rlx.values import at_actions, lambda_returns, legal_values


@pytree
class Config:
    total_steps: int = static(500_000)  # environment steps of the whole run, rounded up to whole updates
    num_envs: int = static(32)  # N
    num_steps: int = static(64)  # T, steps of each environment between updates
    num_epochs: int = static(4)
    num_minibatches: int = static(16)
    learning_rate: float = traced(2.5e-4, at_least=0)
    anneal_learning_rate: bool = True
    gamma: float = traced(0.99, at_least=0, at_most=1)
    td_lambda: float = traced(0.95, at_least=0, at_most=1)
    epsilon_start: float = traced(1.0, at_least=0, at_most=1)
    epsilon_end: float = traced(0.05, at_least=0, at_most=1)
    epsilon_share: float = traced(0.2, above=0, at_most=1)  # of the run, in which epsilon falls
    unequal_epsilon: bool = static(False)
    reward_scale: float = traced(1.0, above=0)
    max_grad_norm: float = traced(10.0, above=0)
    normalize_obs: bool = static(False)
    layer_norm: bool = static(True)
    hidden_sizes: tuple[int, ...] = static((128, 128))
    torso: str = static("mlp", one_of=TORSOS)  # convolutions before them, for image observations
    conv_features: tuple[int, ...] = static(())  # their filters; with mlp of 3 x 3 convolutions
    activation: str = static("relu")
    actor_obs: tuple[str, ...] = static(())  # entries of a Dict that are seen; none: all that are not privileged

    @property
    def steps_per_update(self) -> int:
        return self.num_envs * self.num_steps


@pytree
class State:
    params: dict  # of the values
    opt_state: optax.OptState
    env_state: EnvState  # [N]
    obs_stats: Statistics
    num_updates: jax.Array
    key: jax.Array
    bonus: Any = None  # what a bonus for what is new has learned


@pytree
class Batch:
    obs: jax.Array  # normalised
    action: jax.Array
    target: jax.Array


def networks(config, env):
    """The values of all actions."""
    space = visible(env.observation_space, config.actor_obs)
    layers = config.hidden_sizes, config.activation, config.conv_features, config.layer_norm, config.torso
    return ActionValues(env.action_space, Torso(space, *layers))


def optimizer(config, learning_rate):
    clip = clip_by_global_norm(config.max_grad_norm)
    radam = optax.radam(learning_rate, eps_root=1e-20)  # to be differentiable at gradients of 0
    return optax.flatten(optax.chain(clip, radam))  # all parameters as one vector: a few large operations


def check(config, env):
    """Raises ValueError for settings that do not fit each other or the environment."""
    check_spaces(env, actions=Discrete, normalized=config.normalize_obs)
    check_divides(config.steps_per_update * env.num_agents, config.num_minibatches)


def init(config, env, key, bonus=None):
    check(config, env)
    key, params_key, env_key = jax.random.split(key, 3)
    params = initialize(params_key, zeros(env.observation_space), values=(networks(config, env), 1.0))
    return State(
        params=params,
        opt_state=optimizer(config, config.learning_rate).init(params),
        env_state=reset(env, env_key, config.num_envs),
        obs_stats=statistics(env.observation_space),
        num_updates=jnp.int32(0),
        key=key,
        bonus=begin(bonus, env, config.num_envs, key),
    )


def normalized(config, state, obs):
    """What the networks see of an observation."""
    return normalize(state.obs_stats, obs) if config.normalize_obs else obs


def epsilon(config, state, num):
    """How often each of so many rows explores, `[num]`, at the State's progress."""
    now = epsilon_at(training_progress(config, state), config.epsilon_start, config.epsilon_end, config.epsilon_share)
    return now ** (1.0 + 7.0 * jnp.arange(num) / max(num - 1, 1)) if config.unequal_epsilon else jnp.full(num, now)


def act(config, env, state, obs, key, deterministic=False):
    """The environment's action for obs `[N, O]`, and the same as a choice, for the loss."""
    q, mask = networks(config, env).apply(state.params["values"], normalized(config, state, obs)), mask_of(obs)
    rate = None if deterministic else epsilon(config, state, q.shape[0])
    action = greedy(q, mask) if deterministic else epsilon_greedy(q, rate, key, mask)
    return rescale(env.action_space, action), action


def loss(params, config, env, batch):
    """Loss of one minibatch `[B]`, and its metrics."""
    value = at_actions(networks(config, env).apply(params["values"], batch.obs), batch.action)
    metrics = {"value": value.mean(), "explained_variance": explained_variance(value, batch.target)}
    return optax.l2_loss(value, batch.target).mean(), metrics


def targets(config, env, state, traj):
    """What there is to learn from a rollout `[T, N]`."""
    obs, next_obs = normalized(config, state, traj.obs), normalized(config, state, traj.next_obs)
    next_q = networks(config, env).apply(state.params["values"], next_obs)
    next_value = legal_values(next_q, mask_of(traj.next_obs)).max(-1)
    reward = config.reward_scale * traj.reward
    target = lambda_returns(reward, next_value, traj.terminated, traj.done, config.gamma, config.td_lambda)
    return Batch(obs, traj.recorded, target)


def update(config, env, state, bonus=None):
    """One rollout and the epochs of gradient steps on it; `bonus` pays for what is new, see rlx.bonuses."""
    key, rollout_key, shuffle_key = jax.random.split(state.key, 3)
    env_state, traj = rollout(env, partial(act, config, env, state), state.env_state, rollout_key, config.num_steps)
    traj, bonus_state, explored = pay(bonus, env, state.bonus, traj)
    elements = flatten(targets(config, env, state, traj))
    progress = training_progress(config, state)
    learning_rate = config.learning_rate * jnp.where(config.anneal_learning_rate, 1.0 - progress, 1.0)

    def step(carry, batch):
        params, opt_state = carry
        (value_loss, metrics), grads = jax.value_and_grad(loss, has_aux=True)(params, config, env, batch)
        metrics |= {"value_loss": value_loss, "grad_norm": global_norm(grads)}
        updates, opt_state = optimizer(config, learning_rate).update(grads, opt_state)
        return (optax.apply_updates(params, updates), opt_state), metrics

    def epoch(carry, index):
        return jax.lax.scan(step, carry, gather(elements, index))

    indices = minibatches(shuffle_key, num_rows(elements), config.num_minibatches, config.num_epochs)
    (params, opt_state), metrics = jax.lax.scan(epoch, (state.params, state.opt_state), indices)
    metrics = {
        **episode_metrics(traj),
        **explored,
        **jax.tree.map(jnp.mean, metrics),
        "epsilon": epsilon(config, state, config.num_envs).mean(),
        "learning_rate": learning_rate,
    }
    obs_stats = update_statistics(state.obs_stats, traj.obs) if config.normalize_obs else state.obs_stats
    return State(params, opt_state, env_state, obs_stats, state.num_updates + 1, key, bonus_state), metrics


if __name__ == "__main__":
    from rlx.cli import run_file

    run_file(__file__)
