"""PolicyFlow: PPO whose policy is a flow and Gaussian noise on top, by how the flow's velocity varies.

    python algos/policyflow.py --env MultiGoal

Reference: Yang et al. 2026, PolicyFlow: Policy Optimization with Continuous Normalizing Flow in Reinforcement Learning,
arXiv:2602.01156; the rest is PPO, arXiv:1707.06347.

Axes: T time, N environments, B minibatch, O observation, A action.

Deviations from the paper and its code, beside those of ppo.py from its own:
- The Brownian term is a mean over A (the paper has a sum), with the reference's velocity where algorithm 1 has it.
- Kernels are orthogonal, the flow's last ones of gain 0.01; paths are straight; no weight decay.
- Deterministic actions begin at noise 0 and have no Gaussian noise, where the code draws the first in evaluation too.
- The value loss is the larger of the clipped and the plain error; the code has the clipped one alone, without a
  gradient once the value has moved by `value_clip`. The code's loss has no factor 1/2: a `value_coef` of 2 is its 1.
- The code clamps log_std to [-20, 4] (later to [-5, 2]); here it is free.
- The KL that adapts the learning rate is that of an epoch; the code's is the mean over all epochs so far.
- Advantages are standardised in each minibatch, the code's once, over the whole rollout.
- Time limits bootstrap from the value of the true successor, the code's from that of the state before it.

Beware: what shifts the velocity is taken to shift the action by as much. Where one action is best whatever the noise,
the velocity falls ever more steeply towards it, and once its slope exceeds twice flow_steps the midpoint rule spreads
what it should gather: returns collapse. Against that help the Brownian term and more flow steps.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import optax

from rlx.advantages import gae, standardize
from rlx.clipping import clip_by_global_norm, global_norm
from rlx.distributions import Normal
from rlx.env import EnvState
from rlx.flow import brownian_residual, interpolate, midpoint
from rlx.networks import TORSOS, Critic, FourierVelocity, Torso, action_size, initialize
from rlx.normalize import RewardScale, Statistics, normalize, reward_scale, scale_rewards, statistics, update_statistics
from rlx.objectives import Elements, clipped_surrogate, clipped_value_loss, explained_variance, kl_adapted
from rlx.pytree import num_rows, pytree, static, traced
from rlx.rollout import check_divides, episode_metrics, flatten, gather, minibatches, reset, rollout
from rlx.spaces import Box, check_spaces, rescale, visible, zeros
from rlx.train import training_progress


@pytree
class Config:
    total_steps: int = static(500_000)  # environment steps of the whole run, rounded up to whole updates
    num_envs: int = static(4)  # N
    num_steps: int = static(128)  # T, steps of each environment between updates
    num_epochs: int = static(5)
    num_minibatches: int = static(4)
    learning_rate: float = traced(2.5e-4, at_least=0)
    anneal_learning_rate: bool = True
    gamma: float = traced(0.99, at_least=0, at_most=1)
    gae_lambda: float = traced(0.95, at_least=0, at_most=1)
    flow_steps: int = static(10)  # K
    num_features: int = static(64, at_least=8)  # of the embedding of time and observation
    adapt_learning_rate: bool = False  # by the KL of each epoch, towards its target
    target_kl: float = traced(0.01, above=0)
    clip: float = traced(0.2, above=0)
    value_clip: float = traced(0.2, above=0)
    value_coef: float = traced(2.0, at_least=0)
    entropy_coef: float = traced(0.001, at_least=0)  # of the Gaussian noise
    brownian_coef: float = traced(0.25, at_least=0)
    max_grad_norm: float = traced(1.0, above=0)
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
    learning_rate: jax.Array  # before annealing; changes where it is adapted
    num_updates: jax.Array
    key: jax.Array


@pytree
class Recorded:
    """What the loss needs of the moment of acting."""

    start: jax.Array  # of the flow, standard normal
    end: jax.Array  # of the flow; end + noise is the action in unit coordinates, before clipping
    noise: jax.Array


@pytree
class Batch:
    obs: jax.Array  # normalised
    recorded: Recorded
    value: jax.Array
    advantage: jax.Array
    target: jax.Array


def networks(config, env):
    """Velocity of the actor's flow and critic, separate."""
    torso = lambda x: Torso(x, config.hidden_sizes, config.activation, config.conv_features, kind=config.torso)
    actor = torso(visible(env.observation_space, config.actor_obs))
    critic = torso(visible(env.observation_space, config.critic_obs, privileged=True))
    return FourierVelocity(actor, config.num_features), Critic(critic)


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
    params = initialize(
        params_key, zeros(env.observation_space), actor=(actor, 0.01, action, 0.0), critic=(critic, 1.0)
    )
    params["log_std"] = jnp.zeros_like(action)
    return State(
        params=params,
        opt_state=optimizer(config, config.learning_rate).init(params),
        env_state=env_state,
        obs_stats=statistics(env.observation_space),
        reward_scale=reward_scale(config.num_envs * env.num_agents),
        learning_rate=jnp.float32(config.learning_rate),
        num_updates=jnp.int32(0),
        key=key,
    )


def normalized(config, state, obs):
    """What the networks see of an observation."""
    return normalize(state.obs_stats, obs) if config.normalize_obs else obs


def act(config, env, state, obs, key, deterministic=False):
    """The environment's action for obs `[N, O]`, and what the loss will need of it."""
    actor, _ = networks(config, env)
    velocity = partial(actor.apply, state.params["actor"], normalized(config, state, obs))
    start, noise = jax.random.normal(key, (2, num_rows(obs), *state.params["log_std"].shape)) * (not deterministic)
    noise *= jnp.exp(state.params["log_std"])
    end = midpoint(velocity, start, config.flow_steps)
    return rescale(env.action_space, end + noise), Recorded(start, end, noise)


def objective(config, elements, progress):
    """Policy loss of each element `[B]`; `progress` through the run is in [0, 1]."""
    return clipped_surrogate(elements.log_ratio, elements.advantage, config.clip)


def loss(params, reference, config, env, batch, t, progress, objective=objective):
    """Loss of one minibatch `[B]`, and its metrics; `reference` are the parameters that acted, `t` times on paths."""
    actor, critic = networks(config, env)
    value, recorded = critic.apply(params["critic"], batch.obs), batch.recorded
    x = interpolate(recorded.start, recorded.end, t)
    velocity, old_velocity = (actor.apply(p["actor"], batch.obs, x, t) for p in (params, reference))
    pi = Normal(velocity - old_velocity, params["log_std"])  # of the noise, if the action is to be the same
    old = Normal(jnp.zeros_like(velocity), reference["log_std"])
    log_ratio = pi.log_prob(recorded.noise) - old.log_prob(recorded.noise)
    advantage = jnp.where(config.normalize_advantage, standardize(batch.advantage), batch.advantage)
    policy_loss = objective(config, Elements(log_ratio, advantage), progress).mean()
    value_loss = clipped_value_loss(value, batch.value, batch.target, config.value_clip).mean()
    entropy = pi.entropy().mean()
    brownian = jnp.mean(brownian_residual(velocity, old_velocity, x, t) ** 2)
    regularizers = config.brownian_coef * brownian - config.entropy_coef * entropy
    return policy_loss + config.value_coef * value_loss + regularizers, {
        "policy_loss": policy_loss,
        "brownian": brownian,
        "value_loss": value_loss,
        "entropy": entropy,
        "kl": old.kl(pi).mean(),
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
    key, rollout_key, shuffle_key, time_key = jax.random.split(state.key, 4)
    policy = partial(act, config, env, state)
    env_state, traj = rollout(env, policy, state.env_state, rollout_key, config.num_steps)
    data, scale = advantages(config, env, state, traj)
    elements = flatten(data)
    progress = training_progress(config, state)
    learning_rate = jnp.where(config.adapt_learning_rate, state.learning_rate, config.learning_rate)
    anneal = jnp.where(config.anneal_learning_rate, 1.0 - progress, 1.0)

    def step(carry, x):
        (params, opt_state, learning_rate), (batch, t) = carry, x
        grads, metrics = jax.grad(loss, has_aux=True)(params, state.params, config, env, batch, t, progress, objective)
        metrics["grad_norm"] = global_norm(grads)
        updates, opt_state = optimizer(config, anneal * learning_rate).update(grads, opt_state)
        return (optax.apply_updates(params, updates), opt_state, learning_rate), metrics

    def epoch(carry, x):
        index, t = x
        (*carry, learning_rate), metrics = jax.lax.scan(step, carry, (gather(elements, index), t))
        adapted = kl_adapted(learning_rate, metrics["kl"].mean(), config.target_kl)
        return (*carry, jnp.where(config.adapt_learning_rate, adapted, learning_rate)), metrics

    indices = minibatches(shuffle_key, num_rows(elements), config.num_minibatches, config.num_epochs)
    times = jax.random.randint(time_key, indices.shape, 0, 2 * config.flow_steps + 1) / (2 * config.flow_steps)
    carry = (state.params, state.opt_state, learning_rate)
    (params, opt_state, learning_rate), metrics = jax.lax.scan(epoch, carry, (indices, times))
    metrics = {
        **episode_metrics(traj),
        **jax.tree.map(jnp.mean, metrics),
        "explained_variance": explained_variance(data.value, data.target),
        "learning_rate": anneal * learning_rate,
    }
    obs_stats = update_statistics(state.obs_stats, traj.obs) if config.normalize_obs else state.obs_stats
    return State(params, opt_state, env_state, obs_stats, scale, learning_rate, state.num_updates + 1, key), metrics


if __name__ == "__main__":
    from rlx.cli import run_file

    run_file(__file__)
