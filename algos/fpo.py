"""Flow Policy Optimization, FPO and FPO++: PPO whose policy is a flow, by flow-matching losses and not its likelihood.

    python algos/fpo.py --env MultiGoal

Reference: McAllister et al. 2025, Flow Matching Policy Gradients, arXiv:2507.21053; FPO++, Yi et al. 2026,
arXiv:2602.02481. Both are settings of Config, see `VARIANTS`.

Axes: T time, N environments, B minibatch, S samples of noise and time, O observation, A action.

Deviations from the papers, beside those of ppo.py from its own:
- Kernels are orthogonal, actions are clipped and not squashed, and time runs from noise, 0, to the action, 1.
- Advantages are those of GAE; the code of FPO has a variant of it, computed anew in every minibatch.
- FPO++ here has the times of the sampler's steps as FPO has, and neither weight decay nor an average of its weights.

Differences to the published code:
- Log-ratios are clamped from above (`log_ratio_clamp`) and keep their gradient. FPO's code clamps those of samples to
  [-3, 3], without a gradient beyond, and those of averaged losses not at all.
- FPO's code has no noise on the flow's actions; that of FPO++ adds 0.02 (`action_noise`), acts with 64 steps of the
  flow and compares 16 samples an action (32 for some robots). It draws times from [0.005, 0.995] in place of a grid.
- FPO++'s code standardises advantages over the whole rollout, not in minibatches, and keeps the learning rate constant.
- The value loss has a factor 1/2, which the code of both has not: a `value_coef` of 2 is their 1.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import optax

from rlx.advantages import gae, standardize
from rlx.clipping import clip_by_global_norm, global_norm
from rlx.env import EnvState
from rlx.flow import euler, interpolate, noise_and_time, noise_loss, samplewise, velocity_loss
from rlx.networks import TORSOS, Critic, Torso, Velocity, action_size, initialize
from rlx.normalize import RewardScale, Statistics, normalize, reward_scale, scale_rewards, statistics, update_statistics
from rlx.objectives import (
    Elements,
    approx_kl,
    asymmetric_surrogate,
    clipped_surrogate,
    clipped_value_loss,
    explained_variance,
    kl_adapted,
)
from rlx.pytree import num_rows, pytree, static, traced
from rlx.rollout import check_divides, episode_metrics, flatten, gather, minibatches, reset, rollout
from rlx.spaces import Box, check_spaces, rescale, visible, zeros
from rlx.train import training_progress

VARIANTS = {
    "fpo": {
        **{"samples_per_action": 8, "flow_steps": 10, "predict_noise": True, "sample_ratios": False},
        **{"loss_scale": 1.0, "root_scale": False, "loss_clamp": float("inf"), "clip": 0.05},
        **{"asymmetric": False, "action_noise": 0.0, "eval_noise": 1.0},
    },
    "fpo_plus_plus": {
        **{"samples_per_action": 16, "flow_steps": 64, "predict_noise": False, "sample_ratios": True},
        **{"loss_scale": 1.0, "root_scale": True, "loss_clamp": 20.0, "log_ratio_clamp": 10.0, "clip": 0.05},
        **{"asymmetric": True, "action_noise": 0.02, "eval_noise": 0.0, "value_clip": float("inf")},
        **{"max_grad_norm": 1.0},
    },
}


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
    flow_steps: int = static(10)
    samples_per_action: int = static(8)  # S
    predict_noise: bool = static(True)  # flow matching of the noise, not of the velocity
    loss_scale: float = traced(1.0, above=0)  # of the flow-matching loss: how fast ratios move
    root_scale: bool = static(False)  # times sqrt(A), for which the loss is the sum over A divided by sqrt(A)
    loss_clamp: float = traced(float("inf"), above=0)  # of that loss; no gradient above
    log_ratio_clamp: float = traced(10.0, at_least=0)  # from above, its gradient stays
    sample_ratios: bool = False  # a ratio for each sample, not for their mean
    asymmetric: bool = static(False)  # a quadratic penalty, not a clip, where the advantage is negative
    action_noise: float = traced(0.0, at_least=0)  # standard deviation of what is added to the flow's actions
    eval_noise: float = traced(1.0, at_least=0)  # standard deviation of the noise in which deterministic actions begin
    clip: float = traced(0.05, above=0)
    value_clip: float = traced(0.2, above=0)
    value_coef: float = traced(0.5, at_least=0)
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


@pytree
class Recorded:
    """What the loss needs of the moment of acting."""

    action: jax.Array  # in unit coordinates, before clipping
    draws: jax.Array  # key data that the noise and times of its S samples are drawn with
    flow_loss: jax.Array  # [S]


@pytree
class Batch:
    obs: jax.Array  # normalised
    recorded: Recorded
    value: jax.Array
    advantage: jax.Array
    target: jax.Array


def networks(config, env):
    """Velocity of the actor's flow and critic, separate and of the same shape."""
    torso = lambda x: Torso(x, config.hidden_sizes, config.activation, config.conv_features, kind=config.torso)
    actor = torso(visible(env.observation_space, config.actor_obs))
    critic = torso(visible(env.observation_space, config.critic_obs, privileged=True))
    return Velocity(actor), Critic(critic)


def optimizer(config, learning_rate):
    clip = clip_by_global_norm(config.max_grad_norm)
    adam = optax.adam(learning_rate, eps=config.adam_epsilon, eps_root=1e-20)  # to be differentiable at gradients of 0
    return optax.flatten(optax.chain(clip, adam))  # all parameters as one vector: a few large operations


def check(config, env):
    """Raises ValueError for settings that do not fit each other or the environment."""
    check_spaces(env, actions=Box, normalized=config.normalize_obs)
    check_divides(config.steps_per_update, config.num_minibatches)


def init(config, env, key):
    check(config, env)
    key, params_key, env_key = jax.random.split(key, 3)
    actor, critic = networks(config, env)
    env_state = reset(env, env_key, config.num_envs)
    action = jnp.zeros(action_size(env.action_space))
    params = initialize(params_key, zeros(env.observation_space), actor=(actor, 1.0, action, 0.0), critic=(critic, 1.0))
    return State(
        params=params,
        opt_state=optimizer(config, config.learning_rate).init(params),
        env_state=env_state,
        obs_stats=statistics(env.observation_space),
        reward_scale=reward_scale(config.num_envs * env.num_agents),
        learning_rate=jnp.float32(config.learning_rate) if config.adapt_learning_rate else None,
        num_updates=jnp.int32(0),
        key=key,
    )


def normalized(config, state, obs):
    """What the networks see of an observation."""
    return normalize(state.obs_stats, obs) if config.normalize_obs else obs


def act(config, env, state, obs, key, deterministic=False):
    """The environment's action for obs `[N, O]`, and what the loss will need of it."""
    actor, _ = networks(config, env)
    velocity, obs = partial(actor.apply, state.params["actor"]), normalized(config, state, obs)
    noise_key, draws_key = jax.random.split(key)
    start, noise = jax.random.normal(noise_key, (2, num_rows(obs), action_size(env.action_space)))
    start_std, noise_std = (config.eval_noise, 0.0) if deterministic else (1.0, config.action_noise)
    action = euler(partial(velocity, obs), start_std * start, config.flow_steps) + noise_std * noise
    draws = jax.random.key_data(jax.random.split(draws_key, num_rows(obs)))
    recorded = Recorded(action, draws, flow_loss(config, velocity, obs, action, draws))
    return rescale(env.action_space, action), recorded


def flow_loss(config, velocity, obs, action, draws):
    """Conditional flow-matching loss of actions `[B, A]` at the noise and times that they drew, `[B, S]`."""

    def loss(noise, t):
        x = interpolate(noise, action, t)
        v = velocity(obs, x, t)
        return noise_loss(v, noise, x, t) if config.predict_noise else velocity_loss(v, noise, action)

    noise, t = noise_and_time(draws, config.samples_per_action, action.shape[-1], config.flow_steps)
    scale = config.loss_scale * (action.shape[-1] ** 0.5 if config.root_scale else 1.0)
    return jnp.minimum(scale * samplewise(loss, noise, t), config.loss_clamp)


def cloning_loss(config, env, params, obs, action, key):
    """Loss `[B]` of demonstrated actions `[B, A]` in unit coordinates: flow matching, at noise and times drawn anew."""
    actor, _ = networks(config, env)
    draws = jax.random.key_data(jax.random.split(key, num_rows(obs)))
    return flow_loss(config, partial(actor.apply, params["actor"]), obs, action, draws).mean(-1)


def objective(config, elements, progress):
    """Policy loss of each element and sample `[B, S]`; `progress` through the run is in [0, 1]."""
    surrogate = asymmetric_surrogate if config.asymmetric else clipped_surrogate
    return surrogate(elements.log_ratio, elements.advantage, config.clip)


def loss(params, config, env, batch, progress, objective=objective):
    """Loss of one minibatch `[B]`, and its metrics."""
    actor, critic = networks(config, env)
    velocity, value = partial(actor.apply, params["actor"]), critic.apply(params["critic"], batch.obs)
    matching = flow_loss(config, velocity, batch.obs, batch.recorded.action, batch.recorded.draws)
    log_ratio = batch.recorded.flow_loss - matching
    log_ratio = jnp.where(config.sample_ratios, log_ratio, log_ratio.mean(-1, keepdims=True))
    log_ratio += jax.lax.stop_gradient(jnp.minimum(log_ratio, config.log_ratio_clamp) - log_ratio)
    advantage = jnp.where(config.normalize_advantage, standardize(batch.advantage), batch.advantage)
    advantage = jnp.broadcast_to(advantage[:, None], log_ratio.shape)
    policy_loss = objective(config, Elements(log_ratio, advantage), progress).mean()
    value_loss = clipped_value_loss(value, batch.value, batch.target, config.value_clip).mean()
    return policy_loss + config.value_coef * value_loss, {
        "policy_loss": policy_loss,
        "value_loss": value_loss,
        "flow_loss": matching.mean(),
        "approx_kl": approx_kl(log_ratio).mean(),
        "clip_fraction": (jnp.abs(jnp.expm1(log_ratio)) > config.clip).mean(),
    }


def advantages(config, env, state, traj):
    """What there is to learn from a rollout, `[T, N]`, and the reward scale after it."""
    _, critic = networks(config, env)
    obs, next_obs = normalized(config, state, traj.obs), normalized(config, state, traj.next_obs)
    value, next_value = (critic.apply(state.params["critic"], x) for x in (obs, next_obs))
    scale, reward = state.reward_scale, traj.reward
    if config.normalize_reward:
        scale, reward = scale_rewards(scale, reward, traj.done, config.gamma)
    advantage = gae(reward, value, next_value, traj.terminated, traj.done, config.gamma, config.gae_lambda)
    return Batch(obs, traj.recorded, value, advantage, advantage + value), scale


def update(config, env, state, *, objective: Callable = objective):
    """One rollout and the epochs of gradient steps on it; `objective` may be any callable pytree of its signature."""
    key, rollout_key, shuffle_key = jax.random.split(state.key, 3)
    policy = partial(act, config, env, state)
    env_state, traj = rollout(env, policy, state.env_state, rollout_key, config.num_steps)
    data, scale = advantages(config, env, state, traj)
    elements = flatten(data)
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
        **jax.tree.map(jnp.mean, metrics),
        "explained_variance": explained_variance(data.value, data.target),
        "learning_rate": learning_rate,
    }
    obs_stats = update_statistics(state.obs_stats, traj.obs) if config.normalize_obs else state.obs_stats
    return State(params, opt_state, env_state, obs_stats, scale, rate, state.num_updates + 1, key), metrics


if __name__ == "__main__":
    from rlx.cli import run_file

    run_file(__file__)
