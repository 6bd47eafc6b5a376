"""Trust Region Policy Optimization, for discrete and continuous actions.

    python algos/trpo.py --env CartPole-v1

Reference: Schulman et al. 2015, Trust Region Policy Optimization, arXiv:1502.05477; advantages by GAE,
arXiv:1506.02438; time limits as in Pardo et al. 2018, arXiv:1712.00378.

Axes: T time, N environments, B minibatch, O observation, A action.

Every update makes one step of the policy on the whole batch: the natural gradient by conjugate gradients, as long as
a quadratic model of the mean KL from the policy that acted allows, then shortened until the KL itself is within
`max_kl` and the loss has fallen. Epochs, minibatches and the learning rate are the critic's.

Deviations from the paper:
- Actor and critic are separate networks; the critic is fitted by Adam, which clips the global norm of its gradient.
- The Fisher information is of the whole batch, and damped.
- Advantages are standardised over the batch, and there may be an entropy bonus (`entropy_coef`).
- The value loss is clipped around the old value (`value_clip`; infinity turns it off).
- The critic's learning rate falls linearly to 0 over the run (`anneal_learning_rate`).
- Observations and rewards may be normalised by running statistics, which change after the gradient steps only.
- Steps cut by a time limit bootstrap from the value of their true successor.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import optax

from rlx.advantages import gae, standardize
from rlx.clipping import clip_by_global_norm
from rlx.env import EnvState
from rlx.networks import BOUNDED, POLICIES, TORSOS, Actor, Critic, Torso, initialize
from rlx.normalize import RewardScale, Statistics, normalize, reward_scale, scale_rewards, statistics, update_statistics
from rlx.objectives import Elements, clipped_value_loss, explained_variance, importance_weighted
from rlx.pytree import num_rows, pytree, static, traced
from rlx.rollout import check_divides, episode_metrics, flatten, gather, minibatches, reset, rollout
from rlx.spaces import check_spaces, rescale, visible, zeros
from rlx.train import training_progress
from rlx.trust_region import line_search, longest_step, natural_gradient


@pytree
class Config:
    total_steps: int = static(500_000)  # environment steps of the whole run, rounded up to whole updates
    num_envs: int = static(4)  # N
    num_steps: int = static(128)  # T, steps of each environment between updates
    num_epochs: int = static(4)
    num_minibatches: int = static(4)
    learning_rate: float = traced(2.5e-4, at_least=0)
    anneal_learning_rate: bool = True
    gamma: float = traced(0.99, at_least=0, at_most=1)
    gae_lambda: float = traced(0.95, at_least=0, at_most=1)
    max_kl: float = traced(0.01, above=0)
    damping: float = traced(0.1, at_least=0)
    cg_iterations: int = static(10)
    line_search_trials: int = static(10)
    line_search_shrink: float = traced(0.5, above=0, at_most=1)
    value_clip: float = traced(0.2, above=0)
    entropy_coef: float = traced(0.0, at_least=0)
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

    @property
    def steps_per_update(self) -> int:
        return self.num_envs * self.num_steps


@pytree
class State:
    params: dict  # of actor and critic
    opt_state: optax.OptState  # of the critic
    env_state: EnvState  # [N]
    obs_stats: Statistics
    reward_scale: RewardScale
    num_updates: jax.Array
    key: jax.Array


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
    return Actor(env.action_space, actor, policy=config.policy), Critic(critic)


def optimizer(config, learning_rate):
    clip = clip_by_global_norm(config.max_grad_norm)
    adam = optax.adam(learning_rate, eps=config.adam_epsilon, eps_root=1e-20)  # to be differentiable at gradients of 0
    return optax.flatten(optax.chain(clip, adam))  # all parameters as one vector: a few large operations


def check(config, env):
    """Raises ValueError for settings that do not fit each other or the environment."""
    check_spaces(env, bounded=config.policy in BOUNDED, normalized=config.normalize_obs)
    check_divides(config.steps_per_update, config.num_minibatches)


def init(config, env, key):
    check(config, env)
    key, params_key, env_key = jax.random.split(key, 3)
    actor, critic = networks(config, env)
    env_state = reset(env, env_key, config.num_envs)
    params = initialize(params_key, zeros(env.observation_space), actor=(actor, 0.01), critic=(critic, 1.0))
    return State(
        params=params,
        opt_state=optimizer(config, config.learning_rate).init(params["critic"]),
        env_state=env_state,
        obs_stats=statistics(env.observation_space),
        reward_scale=reward_scale(config.num_envs * env.num_agents),
        num_updates=jnp.int32(0),
        key=key,
    )


def normalized(config, state, obs):
    """What the networks see of an observation."""
    return normalize(state.obs_stats, obs) if config.normalize_obs else obs


def act(config, env, state, obs, key, deterministic=False):
    """The environment's action for obs `[N, O]`, and what the loss will need of it."""
    actor, _ = networks(config, env)
    pi = actor.apply(state.params["actor"], normalized(config, state, obs))
    action = pi.mode() if deterministic else pi.sample(key)
    return rescale(env.action_space, pi.squash(action)), Recorded(action, pi)


def objective(config, elements, progress):
    """Policy loss of each element `[B]`; `progress` through the run is in [0, 1]."""
    return importance_weighted(elements.log_ratio, elements.advantage)


def loss(params, config, env, batch, progress, objective=objective):
    """The actor's loss on a batch `[B]`, and its metrics."""
    actor, _ = networks(config, env)
    pi = actor.apply(params, batch.obs)
    log_prob = pi.log_prob(batch.action)
    log_ratio = log_prob - batch.pi.log_prob(batch.action)
    advantage = jnp.where(config.normalize_advantage, standardize(batch.advantage), batch.advantage)
    policy_loss = objective(config, Elements(log_ratio, advantage, log_prob), progress).mean()
    entropy = pi.entropy().mean()
    kl = batch.pi.kl(pi).mean()
    return policy_loss - config.entropy_coef * entropy, {"policy_loss": policy_loss, "entropy": entropy, "kl": kl}


def policy_step(params, config, env, batch, progress, objective=objective):
    """The actor after one natural gradient step within the trust region, and the metrics of its loss there."""
    policy_loss = partial(loss, config=config, env=env, batch=batch, progress=progress, objective=objective)
    (before, _), gradient = jax.value_and_grad(policy_loss, has_aux=True)(params)
    kl = lambda params: policy_loss(params)[1]["kl"]
    direction, product = natural_gradient(kl, params, gradient, config.damping, config.cg_iterations)
    step = longest_step(direction, product, config.max_kl)

    def accept(params):
        after, metrics = policy_loss(params)
        return (after < before) & (metrics["kl"] <= config.max_kl)

    params, fraction = line_search(accept, params, step, config.line_search_shrink, config.line_search_trials)
    return params, {**policy_loss(params)[1], "step_fraction": fraction}


def value_loss(params, config, env, batch):
    """The critic's loss on a minibatch `[B]`."""
    _, critic = networks(config, env)
    return clipped_value_loss(critic.apply(params, batch.obs), batch.value, batch.target, config.value_clip).mean()


def advantages(config, env, state, traj):
    """What there is to learn from a rollout, `[T, N]`, and the reward scale after it."""
    _, critic = networks(config, env)
    obs, next_obs = normalized(config, state, traj.obs), normalized(config, state, traj.next_obs)
    value, next_value = (critic.apply(state.params["critic"], x) for x in (obs, next_obs))
    scale, reward = state.reward_scale, traj.reward
    if config.normalize_reward:
        scale, reward = scale_rewards(scale, reward, traj.done, config.gamma)
    advantage = gae(reward, value, next_value, traj.terminated, traj.done, config.gamma, config.gae_lambda)
    return Batch(obs, traj.recorded.action, traj.recorded.pi, value, advantage, advantage + value), scale


def update(config, env, state, *, objective: Callable = objective):
    """One rollout, a step of the policy and epochs of the critic's; `objective` may be any callable pytree like it."""
    key, rollout_key, shuffle_key = jax.random.split(state.key, 3)
    policy = partial(act, config, env, state)
    env_state, traj = rollout(env, policy, state.env_state, rollout_key, config.num_steps)
    data, scale = advantages(config, env, state, traj)
    elements = flatten(data)
    progress = training_progress(config, state)
    learning_rate = config.learning_rate * jnp.where(config.anneal_learning_rate, 1.0 - progress, 1.0)

    actor, metrics = policy_step(state.params["actor"], config, env, elements, progress, objective)

    def step(carry, batch):
        params, opt_state = carry
        critic_loss, grads = jax.value_and_grad(value_loss)(params, config, env, batch)
        updates, opt_state = optimizer(config, learning_rate).update(grads, opt_state)
        return (optax.apply_updates(params, updates), opt_state), critic_loss

    def epoch(carry, index):
        return jax.lax.scan(step, carry, gather(elements, index))

    indices = minibatches(shuffle_key, num_rows(elements), config.num_minibatches, config.num_epochs)
    (critic, opt_state), losses = jax.lax.scan(epoch, (state.params["critic"], state.opt_state), indices)
    metrics = {
        **episode_metrics(traj),
        **metrics,
        "value_loss": losses.mean(),
        "explained_variance": explained_variance(data.value, data.target),
        "learning_rate": learning_rate,
    }
    obs_stats = update_statistics(state.obs_stats, traj.obs) if config.normalize_obs else state.obs_stats
    params = {"actor": actor, "critic": critic}
    return State(params, opt_state, env_state, obs_stats, scale, state.num_updates + 1, key), metrics


if __name__ == "__main__":
    from rlx.cli import run_file

    run_file(__file__)
