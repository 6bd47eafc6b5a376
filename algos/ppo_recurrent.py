"""Proximal Policy Optimization with memory, for discrete and continuous actions.

    python algos/ppo_recurrent.py --env rlx/HiddenCartPole

Reference: Schulman et al. 2017, Proximal Policy Optimization Algorithms, arXiv:1707.06347; advantages by GAE,
arXiv:1506.02438; time limits as in Pardo et al. 2018, arXiv:1712.00378.

Axes: T time, N environments, L steps of a sequence, B minibatch of sequences, O observation, A action.

Actor and critic see the observation and a memory of those before; a minibatch is of sequences of consecutive steps.

Deviations from the paper:
- Gradients go back through at most `sequence_length` steps, and memories are not renewed between the epochs.
- Actor and critic are separate networks under one optimiser, which clips the global norm of their joint gradient.
- Advantages are standardised in each minibatch.
- The value loss is clipped around the old value (`value_clip`; infinity turns it off).
- The learning rate falls linearly to 0 over the run (`anneal_learning_rate`), or is adapted by the KL after each update
  (`adapt_learning_rate`), or both.
- Observations and rewards may be normalised by running statistics, which change after the gradient steps only.
- Steps cut by a time limit bootstrap from the value of their true successor.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from rlx.advantages import gae, standardize
from rlx.bonuses import begin, pay
from rlx.clipping import clip_by_global_norm, global_norm
from rlx.env import EnvState
from rlx.networks import BOUNDED, CELLS, POLICIES, TORSOS, Actor, Critic, Memory, Torso, empty_memory, initialize
from rlx.normalize import RewardScale, Statistics, normalize, reward_scale, scale_rewards, statistics, update_statistics
from rlx.objectives import Elements, approx_kl, clipped_surrogate, clipped_value_loss, explained_variance, kl_adapted
from rlx.pytree import num_rows, per_env, pytree, replace, static, traced
from rlx.rollout import check_sequences, episode_metrics, gather, minibatches, reset, restarts, rollout, sequences
from rlx.spaces import check_spaces, rescale, visible, zeros
from rlx.train import training_progress


@pytree
class Config:
    total_steps: int = static(500_000)  # environment steps of the whole run, rounded up to whole updates
    num_envs: int = static(4)  # N
    num_steps: int = static(128)  # T, steps of each environment between updates
    num_epochs: int = static(4)
    num_minibatches: int = static(4)
    learning_rate: float = traced(2.5e-4, at_least=0)
    anneal_learning_rate: bool = True
    adapt_learning_rate: bool = static(False)  # by the KL of an update's last epoch, towards its target
    target_kl: float = traced(0.01, above=0)
    gamma: float = traced(0.99, at_least=0, at_most=1)
    gae_lambda: float = traced(0.95, at_least=0, at_most=1)
    clip: float = traced(0.2, above=0)
    value_clip: float = traced(0.2, above=0)
    value_coef: float = traced(0.5, at_least=0)
    entropy_coef: float = traced(0.01, at_least=0)
    max_grad_norm: float = traced(0.5, above=0)
    adam_epsilon: float = traced(1e-5, above=0)
    normalize_advantage: bool = True
    normalize_obs: bool = static(False)
    normalize_reward: bool = static(False)
    hidden_sizes: tuple[int, ...] = static((64,))
    torso: str = static("mlp", one_of=TORSOS)  # convolutions before them, for image observations
    conv_features: tuple[int, ...] = static(())  # their filters; with mlp of 3 x 3 convolutions
    activation: str = static("tanh")
    actor_obs: tuple[str, ...] = static(())  # entries of a Dict that the actor sees; none: all that are not privileged
    critic_obs: tuple[str, ...] = static(())  # entries of a Dict that the critic sees; none: all
    policy: str = static("normal", one_of=POLICIES)  # density of continuous actions
    num_components: int = static(1)  # of the normal mixture over continuous actions
    cell: str = static("gru", one_of=CELLS)  # of the memory
    memory_size: int = static(64)
    sequence_length: int = static(32)  # L, steps that gradients go back through

    @property
    def steps_per_update(self) -> int:
        return self.num_envs * self.num_steps


@pytree
class State:
    params: dict  # of memory, actor and critic
    opt_state: optax.OptState
    env_state: EnvState  # [N]
    memory: object = per_env()  # [N], of the steps before
    obs_stats: Statistics
    reward_scale: RewardScale
    learning_rate: jax.Array | None  # before annealing, where it is adapted
    num_updates: jax.Array
    key: jax.Array
    bonus: Any = None  # what a bonus for what is new has learned


@pytree
class Recorded:
    """What the loss needs of the moment of acting."""

    action: jax.Array  # in unit coordinates, before clipping
    log_prob: jax.Array
    memory: object  # of the steps before


@pytree
class Batch:
    obs: jax.Array  # normalised
    action: jax.Array
    log_prob: jax.Array
    value: jax.Array
    advantage: jax.Array
    target: jax.Array
    memory: object  # before the step
    reset: jax.Array  # bool: an episode begins with the step


def networks(config, env):
    """Memory, actor and critic, the last two of the same shape."""
    torso = lambda x: Torso(x, config.hidden_sizes, config.activation, config.conv_features, kind=config.torso)
    actor = torso(visible(env.observation_space, config.actor_obs))
    critic = torso(visible(env.observation_space, config.critic_obs, privileged=True))
    core = Memory(replace(actor, hidden_sizes=()), config.cell, config.memory_size, config.sequence_length)
    return core, Actor(env.action_space, actor, config.num_components, config.policy), Critic(critic)


def memory(config, env, num):
    """What is remembered at the beginning of `num` episodes: nothing."""
    return empty_memory(config.cell, config.memory_size, num)


def optimizer(config, learning_rate):
    clip = clip_by_global_norm(config.max_grad_norm)
    adam = optax.adam(learning_rate, eps=config.adam_epsilon, eps_root=1e-20)  # to be differentiable at gradients of 0
    return optax.flatten(optax.chain(clip, adam))  # all parameters as one vector: a few large operations


def check(config, env):
    """Raises ValueError for settings that do not fit each other or the environment."""
    check_spaces(env, bounded=config.policy in BOUNDED, normalized=config.normalize_obs)
    check_sequences(config.num_envs, config.num_steps, config.sequence_length, config.num_minibatches)


def init(config, env, key, bonus=None):
    check(config, env)
    key, params_key, env_key = jax.random.split(key, 3)
    core, actor, critic = networks(config, env)
    env_state, h = reset(env, env_key, config.num_envs), jnp.zeros(config.memory_size)
    heads = {"actor": (actor, 0.01, h), "critic": (critic, 1.0, h)}
    one = jax.tree.map(lambda x: x[0], memory(config, env, 1))
    params = initialize(params_key, zeros(env.observation_space), memory=(core, 1.0, one), **heads)
    return State(
        params=params,
        opt_state=optimizer(config, config.learning_rate).init(params),
        env_state=env_state,
        memory=memory(config, env, config.num_envs * env.num_agents),
        obs_stats=statistics(env.observation_space),
        reward_scale=reward_scale(config.num_envs * env.num_agents),
        learning_rate=jnp.float32(config.learning_rate) if config.adapt_learning_rate else None,
        num_updates=jnp.int32(0),
        key=key,
        bonus=begin(bonus, env, config.num_envs, key),
    )


def normalized(config, state, obs):
    """What the networks see of an observation."""
    return normalize(state.obs_stats, obs) if config.normalize_obs else obs


def act(config, env, state, obs, key, memory, deterministic=False):
    """The environment's action for obs `[N, O]`, what the loss will need of it, and the memory after it."""
    core, actor, _ = networks(config, env)
    obs = normalized(config, state, obs)
    h, after = core.apply(state.params["memory"], obs, memory)
    pi = actor.apply(state.params["actor"], obs, h)
    action = jax.lax.stop_gradient(pi.mode() if deterministic else pi.sample(key))
    return rescale(env.action_space, pi.squash(action)), Recorded(action, pi.log_prob(action), memory), after


def cloning_loss(config, env, params, obs, action, key, reset):
    """Loss `[B, L]` of demonstrated actions in unit coordinates: how unlikely they are; episodes begin at `reset`."""
    core, actor, _ = networks(config, env)
    h, _ = core.apply(params["memory"], obs, memory(config, env, len(reset)), reset)
    pi = actor.apply(params["actor"], obs, h)
    return -pi.log_prob(pi.unsquash(action))


def objective(config, elements, progress):
    """Policy loss of each element `[B]`; `progress` through the run is in [0, 1]."""
    return clipped_surrogate(elements.log_ratio, elements.advantage, config.clip)


def loss(params, config, env, batch, progress, objective=objective):
    """Loss of one minibatch of sequences `[B, L]`, and its metrics."""
    core, actor, critic = networks(config, env)
    first = jax.tree.map(lambda x: x[:, 0], batch.memory)
    h, _ = core.apply(params["memory"], batch.obs, first, batch.reset)
    pi, value = actor.apply(params["actor"], batch.obs, h), critic.apply(params["critic"], batch.obs, h)
    log_prob = pi.log_prob(batch.action)
    log_ratio = log_prob - batch.log_prob
    advantage = jnp.where(config.normalize_advantage, standardize(batch.advantage), batch.advantage)
    policy_loss = objective(config, Elements(log_ratio, advantage, log_prob), progress).mean()
    value_loss = clipped_value_loss(value, batch.value, batch.target, config.value_clip).mean()
    entropy = pi.entropy().mean()
    return policy_loss + config.value_coef * value_loss - config.entropy_coef * entropy, {
        "policy_loss": policy_loss,
        "value_loss": value_loss,
        "entropy": entropy,
        "approx_kl": approx_kl(log_ratio).mean(),
        "clip_fraction": (jnp.abs(jnp.expm1(log_ratio)) > config.clip).mean(),
    }


def advantages(config, env, state, traj):
    """What there is to learn from a rollout, `[T, N]`, and the reward scale after it."""
    core, _, critic = networks(config, env)
    obs, next_obs = normalized(config, state, traj.obs), normalized(config, state, traj.next_obs)
    h, after = core.apply(state.params["memory"], obs, traj.recorded.memory)
    next_h, _ = core.apply(state.params["memory"], next_obs, after)
    value, next_value = (critic.apply(state.params["critic"], *x) for x in ((obs, h), (next_obs, next_h)))
    scale, reward = state.reward_scale, traj.reward
    if config.normalize_reward:
        scale, reward = scale_rewards(scale, reward, traj.done, config.gamma)
    advantage = gae(reward, value, next_value, traj.terminated, traj.done, config.gamma, config.gae_lambda)
    learned = traj.recorded.action, traj.recorded.log_prob, value, advantage, advantage + value
    return Batch(obs, *learned, traj.recorded.memory, restarts(traj.done)), scale


def update(config, env, state, *, objective: Callable = objective, bonus: Any = None):
    """One rollout and the epochs of gradient steps on it; `objective` may be any callable pytree of its signature.

    `bonus` pays for what is new, see rlx.bonuses.
    """
    key, rollout_key, shuffle_key = jax.random.split(state.key, 3)
    empty = memory(config, env, config.num_envs * env.num_agents)
    policy, memories = partial(act, config, env, state), (state.memory, empty)
    env_state, traj, after = rollout(env, policy, state.env_state, rollout_key, config.num_steps, *memories)
    traj, bonus_state, explored = pay(bonus, env, state.bonus, traj)
    data, scale = advantages(config, env, state, traj)
    elements = sequences(data, config.sequence_length)
    progress = training_progress(config, state)
    rate = state.learning_rate if config.adapt_learning_rate else config.learning_rate
    learning_rate = rate * jnp.where(config.anneal_learning_rate, 1.0 - progress, 1.0)

    def step(carry, batch):
        params, opt_state = carry
        grads, metrics = jax.grad(loss, has_aux=True)(params, config, env, batch, progress, objective)
        metrics["grad_norm"] = global_norm(grads)
        updates, opt_state = optimizer(config, learning_rate).update(grads, opt_state)
        return (optax.apply_updates(params, updates), opt_state), metrics

    def epoch(carry, index):
        return jax.lax.scan(step, carry, gather(elements, index))

    indices = minibatches(shuffle_key, num_rows(elements), config.num_minibatches, config.num_epochs)
    (params, opt_state), metrics = jax.lax.scan(epoch, (state.params, state.opt_state), indices)
    rate = kl_adapted(rate, metrics["approx_kl"][-1].mean(), config.target_kl) if config.adapt_learning_rate else None
    metrics = {
        **episode_metrics(traj),
        **explored,
        **jax.tree.map(jnp.mean, metrics),
        "explained_variance": explained_variance(data.value, data.target),
        "learning_rate": learning_rate,
    }
    obs_stats = update_statistics(state.obs_stats, traj.obs) if config.normalize_obs else state.obs_stats
    num_updates = state.num_updates + 1
    return State(params, opt_state, env_state, after, obs_stats, scale, rate, num_updates, key, bonus_state), metrics


if __name__ == "__main__":
    from rlx.cli import run_file

    run_file(__file__)
