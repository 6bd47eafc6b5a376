"""Shallow Q-Iteration via Reinforcement Learning: random rollouts, k steps of value iteration, and the next time step.

    python algos/sqirl.py --env CartPole-v1 --env-options max_steps=50 time=True

Reference: Laidlaw et al. 2023, A Theoretical Explanation of Deep RL Performance in Stochastic Environments,
arXiv:2312.08369.

Axes: T time steps of an episode, N episodes, k steps of value iteration, B minibatch, O observation, A actions.

Update t, from 0 on, learns what to do at step t of an episode. It plays N episodes from fresh starts, greedily with
what was learned for the steps before t, and at random from t on. Head 1 learns the returns to go of these; head j + 1
learns `r + gamma max_a' Q_j(s', a')`. Head k is kept for step t, and for the later ones until their turn comes. Updates
beyond the last step learn for that again. The least k for which this is optimal is the effective horizon of an
environment, up to noise.

Deviations from the paper:
- The networks see the time (`time=True` of an environment), and each update begins with those of the one before; only
  its own episodes are learned from.
- All heads learn at once, from the targets that the heads before have at that gradient step.
- Minibatches are a fixed number of each epoch's elements; what is before step t, or after an episode's end, weighs 0.
- A time limit ends an episode as any end does: the task is the episode, whose time is observed.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from rlx.clipping import clip_by_global_norm, global_norm
from rlx.exploration import greedy
from rlx.masks import mask_of, random_choices
from rlx.networks import TORSOS, ActionReturns, Torso, initialize
from rlx.objectives import explained_variance
from rlx.partial import Timed
from rlx.pytree import num_rows, pytree, static, traced
from rlx.rollout import check_divides, check_horizon, episode_metrics, episodes, flatten, gather, minibatches, reset
from rlx.spaces import Discrete, check_spaces, rescale, visible, zeros
from rlx.values import at_actions, legal_values, returns_to_go


@pytree
class Config:
    total_steps: int = static(160_000)  # environment steps of the whole run, rounded up to whole updates
    num_envs: int = static(64)  # N, episodes of an update
    num_steps: int = static(50)  # T, steps of the longest episode
    num_iterations: int = static(1, at_least=1)  # k, of value iteration; 1 is greedy on the random policy's values
    num_epochs: int = static(10)
    num_minibatches: int = static(25)
    learning_rate: float = traced(1e-3, at_least=0)
    gamma: float = traced(1.0, at_least=0, at_most=1)
    reward_scale: float = traced(1.0, above=0)
    max_grad_norm: float = traced(10.0, above=0)
    layer_norm: bool = static(False)
    hidden_sizes: tuple[int, ...] = static((64, 64))
    torso: str = static("mlp", one_of=TORSOS)  # convolutions before them, for image observations
    conv_features: tuple[int, ...] = static(())  # their filters; with mlp of 3 x 3 convolutions
    activation: str = static("relu")

    @property
    def steps_per_update(self) -> int:
        return self.num_envs * self.num_steps


@pytree
class State:
    params: dict  # of the values that are learned
    opt_state: optax.OptState
    kept: Any  # of those that act, [T]
    num_updates: jax.Array
    key: jax.Array


@pytree
class Batch:
    obs: jax.Array
    action: jax.Array
    reward: jax.Array
    next_obs: jax.Array
    done: jax.Array
    to_go: jax.Array
    weight: jax.Array


def networks(config, env):
    """Values of all actions, `[..., A, k]`."""
    layers = config.hidden_sizes, config.activation, config.conv_features, config.layer_norm, config.torso
    return ActionReturns(env.action_space, Torso(visible(env.observation_space), *layers), config.num_iterations)


def optimizer(config):
    clip = clip_by_global_norm(config.max_grad_norm)
    adam = optax.adam(config.learning_rate, eps_root=1e-20)  # to be differentiable at gradients of 0
    return optax.flatten(optax.chain(clip, adam))


def check(config, env):
    """Raises ValueError for settings that do not fit each other or the environment."""
    check_spaces(env, actions=Discrete)
    if not isinstance(env.environment, Timed):
        raise ValueError("sqirl has a policy for each step of an episode: make the environment with time=True")
    check_horizon(env, config.num_steps)
    check_divides(config.steps_per_update, config.num_minibatches)


def init(config, env, key):
    check(config, env)
    key, params_key = jax.random.split(key)
    params = initialize(params_key, zeros(env.observation_space), values=(networks(config, env), 1.0))
    return State(
        params=params,
        opt_state=optimizer(config).init(params),
        kept=jax.tree.map(lambda x: jnp.broadcast_to(x, (config.num_steps, *x.shape)), params["values"]),
        num_updates=jnp.int32(0),
        key=key,
    )


def time_of(env, obs):
    """Which step of its episode an observation is of, int32 `[N]`."""
    return jnp.round(obs[..., -1] * env.environment.limit).astype(jnp.int32)


def act(config, env, state, obs, key, deterministic=False):
    """The environment's action for obs `[N, O]`, and the same as a choice, for the loss."""
    step = jnp.minimum(time_of(env, obs), config.num_steps - 1)
    own = jax.tree.map(lambda x: x[step], state.kept)
    q = jax.vmap(networks(config, env).apply)(own, obs)[..., -1]
    action = greedy(q, mask_of(obs))
    return rescale(env.action_space, action), action


def explore(config, env, state, obs, key, step):
    """The same: greedy before `step` of an episode, and random from there on."""
    action = jnp.where(
        time_of(env, obs) < step,
        act(config, env, state, obs, key)[1],
        random_choices(env.action_space, obs, key),
    )
    return rescale(env.action_space, action), action


def loss(params, fixed, config, env, batch):
    """Loss of the heads for one minibatch `[B]`; `fixed` are the same parameters, which give the targets."""
    apply = networks(config, env).apply
    q = at_actions(apply(params["values"], batch.obs), batch.action)
    next_q = jnp.swapaxes(apply(fixed["values"], batch.next_obs), -1, -2)[..., :-1, :]
    mask = mask_of(batch.next_obs)
    next_value = legal_values(next_q, None if mask is None else mask[:, None]).max(-1)
    later = batch.reward[:, None] + config.gamma * jnp.where(batch.done[:, None], 0.0, next_value)
    target = jnp.concatenate([batch.to_go[:, None], later], axis=1)
    error = optax.l2_loss(q, target).mean(axis=1)
    metrics = {"value": q[:, -1].mean(), "explained_variance": explained_variance(q[:, 0], batch.to_go)}
    return (batch.weight * error).sum() / jnp.maximum(batch.weight.sum(), 1.0), metrics


def update(config, env, state):
    """N episodes, and the epochs of gradient steps on them, for one step of an episode."""
    key, reset_key, play_key, shuffle_key = jax.random.split(state.key, 4)
    step = jnp.minimum(state.num_updates, config.num_steps - 1)
    policy = partial(explore, config, env, state, step=step)
    _, traj, alive = episodes(env, policy, reset(env, reset_key, config.num_envs), play_key, config.num_steps)
    reward = config.reward_scale * traj.reward
    weight = (alive & (time_of(env, traj.obs) >= step)).astype(jnp.float32)
    to_go = returns_to_go(reward, traj.done, config.gamma)
    elements = flatten(Batch(traj.obs, traj.recorded, reward, traj.next_obs, traj.done, to_go, weight))

    def learn(carry, batch):
        params, opt_state = carry
        (value_loss, metrics), grads = jax.value_and_grad(loss, has_aux=True)(params, params, config, env, batch)
        metrics |= {"value_loss": value_loss, "grad_norm": global_norm(grads)}
        updates, opt_state = optimizer(config).update(grads, opt_state)
        return (optax.apply_updates(params, updates), opt_state), metrics

    def epoch(carry, index):
        return jax.lax.scan(learn, carry, gather(elements, index))

    indices = minibatches(shuffle_key, num_rows(elements), config.num_minibatches, config.num_epochs)
    (params, opt_state), metrics = jax.lax.scan(epoch, (state.params, state.opt_state), indices)
    later = jnp.arange(config.num_steps) >= step
    kept = jax.tree.map(
        lambda old, new: jax.vmap(jnp.where, (0, None, 0))(later, new, old), state.kept, params["values"]
    )
    metrics = {**episode_metrics(traj), **jax.tree.map(jnp.mean, metrics), "learned_step": step}
    return State(params, opt_state, kept, state.num_updates + 1, key), metrics


if __name__ == "__main__":
    from rlx.cli import run_file

    run_file(__file__)
