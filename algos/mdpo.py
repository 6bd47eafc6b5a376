"""Mirror Descent Policy Optimization, on-policy, for discrete and continuous actions.

    python algos/mdpo.py --env CartPole-v1

Reference: Tomar et al. 2022, Mirror Descent Policy Optimization, arXiv:2005.09814; advantages by GAE,
arXiv:1506.02438; time limits as in Pardo et al. 2018, arXiv:1712.00378.

Axes: T time, N environments, B minibatch, O observation, A action.

Update k maximises `E[rho A] - KL(pi || pi_k) / t_k` by several gradient steps from the policy pi_k that acted, with
the KL in closed form and the step size `t_k` falling linearly over the run. `tsallis` puts the Bregman divergence of
another entropy in the place of the KL.

Deviations from the paper:
- Actor and critic are separate networks under one optimiser, which clips the global norm of their joint gradient.
- The step size falls from 1 to 1/n in n updates (times `step_size`); the code's from 1 + 1/n to 2/n.
- The value loss has a factor 1/2 and shares its minibatches with the policy's; the code's has none, and is minimised on
  its own, after the policy's, in 5 epochs of minibatches of 128.
- Gradient steps are on minibatches; one minibatch is the paper's full batch, and `num_epochs` then its number of steps.
- Advantages are standardised in each minibatch, and there is an entropy bonus (`entropy_coef`; 0 turns it off).
- The value loss is clipped around the old value (`value_clip`; infinity turns it off).
- The learning rate falls linearly to 0 over the run (`anneal_learning_rate`).
- Observations and rewards may be normalised by running statistics, which change after the gradient steps only.
- Steps cut by a time limit bootstrap from the value of their true successor.
- The Tsallis divergence has no gradient at pi_k. The estimate in the authors' code, the mean of
  `log_q pi - log_q pi_k`, has one there.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from rlx.action_tokens import discounts
from rlx.advantages import gae, standardize
from rlx.bonuses import begin, pay
from rlx.clipping import clip_by_global_norm, global_norm
from rlx.env import EnvState
from rlx.networks import BOUNDED, POLICIES, TORSOS, Actor, Critic, Torso, initialize
from rlx.normalize import RewardScale, Statistics, normalize, reward_scale, scale_rewards, statistics, update_statistics
from rlx.objectives import Elements, approx_kl, clipped_value_loss, explained_variance, importance_weighted, kl_adapted
from rlx.pytree import num_rows, pytree, static, traced
from rlx.rollout import check_divides, episode_metrics, flatten, gather, minibatches, reset, rollout
from rlx.spaces import check_spaces, rescale, visible, zeros
from rlx.train import total_updates, training_progress
from rlx.values import midpoints, quantile_huber


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
    step_size: float = traced(1.0, above=0)  # t_0
    step_size_decay: float = traced(1.0, at_least=0)  # power of the share of the run that is left; 0: constant
    tsallis: float = traced(1.0, above=0)  # index of the entropy; 1 is Shannon's, whose divergence is the KL
    value_clip: float = traced(0.2, above=0)
    value_coef: float = traced(0.5, at_least=0)
    entropy_coef: float = traced(0.01, at_least=0)
    max_grad_norm: float = traced(0.5, above=0)
    adam_epsilon: float = traced(1e-5, above=0)
    normalize_advantage: bool = True
    normalize_obs: bool = static(False)
    normalize_reward: bool = static(False)
    hidden_sizes: tuple[int, ...] = static((64, 64))
    torso: str = static("mlp", one_of=TORSOS)  # convolutions before them, for image observations
    conv_features: tuple[int, ...] = static(())  # their filters; with mlp of 3 x 3 convolutions
    activation: str = static("tanh")
    actor_obs: tuple[str, ...] = static(())  # entries of a Dict that the actor sees; none: all that are not privileged
    critic_obs: tuple[str, ...] = static(())  # entries of a Dict that the critic sees; none: all
    policy: str = static("normal", one_of=POLICIES)  # density of continuous actions
    num_quantiles: int = static(0, at_least=0)  # of returns, that the critic learns; 0 for a value alone

    @property
    def steps_per_update(self) -> int:
        return self.num_envs * self.num_steps


@pytree
class State:
    params: dict  # of actor and critic
    opt_state: optax.OptState
    env_state: EnvState  # [N]
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
    pi: object  # the distribution it is from


@pytree
class Batch:
    obs: jax.Array  # normalised
    action: jax.Array
    pi: object
    value: jax.Array
    advantage: jax.Array
    target: jax.Array


def networks(config, env):
    """Actor and critic, separate and of the same shape."""
    torso = lambda x: Torso(x, config.hidden_sizes, config.activation, config.conv_features, kind=config.torso)
    actor = torso(visible(env.observation_space, config.actor_obs))
    critic = torso(visible(env.observation_space, config.critic_obs, privileged=True))
    return Actor(env.action_space, actor, policy=config.policy), Critic(critic, config.num_quantiles)


def optimizer(config, learning_rate, transform=None):
    clip = clip_by_global_norm(config.max_grad_norm)
    adam = optax.adam(learning_rate, eps=config.adam_epsilon, eps_root=1e-20)  # to be differentiable at gradients of 0
    inner = optax.flatten(optax.chain(clip, adam))  # all parameters as one vector: a few large operations
    return inner if transform is None else transform(config, inner, learning_rate)


def check(config, env):
    """Raises ValueError for settings that do not fit each other or the environment."""
    check_spaces(env, bounded=config.policy in BOUNDED, normalized=config.normalize_obs)
    check_divides(config.steps_per_update, config.num_minibatches)


def init(config, env, key, bonus=None, transform=None):
    check(config, env)
    key, params_key, env_key = jax.random.split(key, 3)
    actor, critic = networks(config, env)
    env_state = reset(env, env_key, config.num_envs)
    params = initialize(params_key, zeros(env.observation_space), actor=(actor, 0.01), critic=(critic, 1.0))
    return State(
        params=params,
        opt_state=optimizer(config, config.learning_rate, transform).init(params),
        env_state=env_state,
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


def act(config, env, state, obs, key, deterministic=False):
    """The environment's action for obs `[N, O]`, and what the loss will need of it."""
    actor, _ = networks(config, env)
    pi = actor.apply(state.params["actor"], normalized(config, state, obs))
    action = jax.lax.stop_gradient(pi.mode() if deterministic else pi.sample(key))
    return rescale(env.action_space, pi.squash(action)), Recorded(action, pi)


def objective(config, elements, progress):
    """Policy loss of each element `[B]`; `progress` through the run is in [0, 1]."""
    return importance_weighted(elements.log_ratio, elements.advantage)


def loss(params, config, env, batch, progress, objective=objective):
    """Loss of one minibatch `[B]`, and its metrics."""
    actor, critic = networks(config, env)
    pi, value = actor.apply(params["actor"], batch.obs), critic.apply(params["critic"], batch.obs)
    log_prob = pi.log_prob(batch.action)
    log_ratio = log_prob - batch.pi.log_prob(batch.action)
    advantage = jnp.where(config.normalize_advantage, standardize(batch.advantage), batch.advantage)
    policy_loss = objective(config, Elements(log_ratio, advantage, log_prob), progress).mean()
    step_size = config.step_size * jnp.maximum(1.0 - progress, 1.0 / total_updates(config)) ** config.step_size_decay
    divergence = pi.tsallis(batch.pi, config.tsallis).mean()
    if config.num_quantiles:
        value_loss = quantile_huber(value, batch.target[:, None], midpoints(config.num_quantiles)).mean()
    else:
        value_loss = clipped_value_loss(value, batch.value, batch.target, config.value_clip).mean()
    entropy = pi.entropy().mean()
    return policy_loss + divergence / step_size + config.value_coef * value_loss - config.entropy_coef * entropy, {
        "policy_loss": policy_loss,
        "value_loss": value_loss,
        "entropy": entropy,
        "approx_kl": approx_kl(log_ratio).mean(),
        "divergence": divergence,
    }


def advantages(config, env, state, traj):
    """What there is to learn from a rollout, `[T, N]`, and the reward scale after it."""
    _, critic = networks(config, env)
    obs, next_obs = normalized(config, state, traj.obs), normalized(config, state, traj.next_obs)
    value, next_value = (critic.apply(state.params["critic"], x) for x in (obs, next_obs))
    value, next_value = (x.mean(-1) if config.num_quantiles else x for x in (value, next_value))
    scale, reward = state.reward_scale, traj.reward
    if config.normalize_reward:
        scale, reward = scale_rewards(scale, reward, traj.done, config.gamma)
    gamma, gae_lambda = discounts(traj.info, config.gamma, config.gae_lambda)
    advantage = gae(reward, value, next_value, traj.terminated, traj.done, gamma, gae_lambda)
    return Batch(obs, traj.recorded.action, traj.recorded.pi, value, advantage, advantage + value), scale


def update(config, env, state, *, objective: Callable = objective, bonus: Any = None, transform: Any = None):
    """One rollout and the epochs of gradient steps on it; `objective` may be any callable pytree of its signature.

    `bonus` pays for what is new, see rlx.bonuses; `transform` changes the steps of the optimizer, see rlx.transforms.
    """
    key, rollout_key, shuffle_key = jax.random.split(state.key, 3)
    policy = partial(act, config, env, state)
    env_state, traj = rollout(env, policy, state.env_state, rollout_key, config.num_steps)
    traj, bonus_state, explored = pay(bonus, env, state.bonus, traj)
    data, scale = advantages(config, env, state, traj)
    elements = flatten(data)
    progress = training_progress(config, state)
    rate = state.learning_rate if config.adapt_learning_rate else config.learning_rate
    learning_rate = rate * jnp.where(config.anneal_learning_rate, 1.0 - progress, 1.0)

    def step(carry, batch):
        params, opt_state = carry
        grads, metrics = jax.grad(loss, has_aux=True)(params, config, env, batch, progress, objective)
        metrics["grad_norm"] = global_norm(grads)
        updates, opt_state = optimizer(config, learning_rate, transform).update(grads, opt_state, params)
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
    return State(params, opt_state, env_state, obs_stats, scale, rate, num_updates, key, bonus_state), metrics


if __name__ == "__main__":
    from rlx.cli import run_file

    run_file(__file__)
