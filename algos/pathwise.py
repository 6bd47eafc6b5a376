"""Gradients of returns through a differentiable simulator, for continuous actions.

    python algos/pathwise.py --env mjx/pendulum

Reference: Xu et al. 2022, Accelerated Policy Learning with Parallel Differentiable Simulation, arXiv:2204.07137 (SHAC);
time limits as in Pardo et al. 2018, arXiv:1712.00378. The second variant has no critic:

    shac  returns over a short horizon, and a value beyond it
    apg   the rewards up to the horizon alone (analytic policy gradients, as Brax has them)

Axes: T time, N environments, B minibatch, O observation, A action.

The actor follows the gradient of `horizon_returns` through T steps of the simulator and of itself, and the critic is
fitted to lambda-returns of the same steps. A slow copy of the critic values what is beyond, and successors.

Deviations from the paper:
- Torsos have layer norm where `layer_norm` says so, and kernels start orthogonal.
- Observations may be normalised by running statistics, which change after the gradient steps only.
- An update whose gradient is not finite leaves the actor as it is. Published code calls values that are not finite 0.
- Steps cut by a time limit go on with the value of their true successor. That an end may depend on the actions is not
  in the gradient, so that termination by contact or by falling is learned from the value alone.
- An environment whose rewards have no right gradient is refused, see `check_gradient`.
"""

from functools import partial

import jax
import jax.numpy as jnp
import optax

from rlx.clipping import clip_by_global_norm, global_norm
from rlx.env import EnvState
from rlx.hosted import check_hosted
from rlx.networks import TORSOS, Critic, TanhActor, Torso, initialize
from rlx.normalize import Statistics, normalize, statistics, update_statistics
from rlx.objectives import explained_variance
from rlx.pathwise import check_gradient, horizon_returns
from rlx.pytree import num_rows, pytree, replace, static, traced
from rlx.rollout import check_divides, episode_metrics, flatten, gather, minibatches, reset, rollout
from rlx.spaces import Box, check_spaces, rescale, visible, zeros
from rlx.train import training_progress
from rlx.values import lambda_returns

VARIANTS = {"shac": {}, "apg": {"value": False, "num_epochs": 0}}


@pytree
class Config:
    total_steps: int = static(200_000)  # environment steps of the whole run, rounded up to whole updates
    num_envs: int = static(64)  # N
    num_steps: int = static(32)  # T, the horizon
    num_epochs: int = static(16, at_least=0)  # of the critic over each rollout
    num_minibatches: int = static(4)
    learning_rate: float = traced(2e-3, at_least=0)
    anneal_learning_rate: bool = True
    gamma: float = traced(0.99, at_least=0, at_most=1)
    td_lambda: float = traced(0.95, at_least=0, at_most=1)
    tau: float = traced(0.8, above=0, at_most=1)  # part of the way to the critic that its slow copy goes in an update
    value: bool = static(True)  # whether what is beyond the horizon is valued
    reward_scale: float = traced(1.0, above=0)
    max_grad_norm: float = traced(1.0, above=0)
    normalize_obs: bool = static(False)
    layer_norm: bool = static(False)
    hidden_sizes: tuple[int, ...] = static((64, 64))
    activation: str = static("elu")
    torso: str = static("mlp", one_of=TORSOS)  # convolutions before them, for image observations
    conv_features: tuple[int, ...] = static(())  # their filters; with mlp of 3 x 3 convolutions
    actor_obs: tuple[str, ...] = static(())  # entries of a Dict that the actor sees; none: all that are not privileged
    critic_obs: tuple[str, ...] = static(())  # entries of a Dict that the critic sees; none: all

    @property
    def steps_per_update(self) -> int:
        return self.num_envs * self.num_steps


@pytree
class State:
    params: dict  # of actor and critic
    target_params: dict  # of the slow critic
    opt_state: dict  # of actor and critic
    env_state: EnvState  # [N]
    obs_stats: Statistics
    num_updates: jax.Array
    key: jax.Array


@pytree
class Batch:
    obs: jax.Array  # normalised
    target: jax.Array


def networks(config, env):
    """Actor and critic, separate and of the same shape."""
    layers = config.hidden_sizes, config.activation, config.conv_features, config.layer_norm, config.torso
    actor = Torso(visible(env.observation_space, config.actor_obs), *layers)
    critic = Torso(visible(env.observation_space, config.critic_obs, privileged=True), *layers)
    return TanhActor(env.action_space, actor), Critic(critic)


def optimizer(config, learning_rate):
    """Of the actor and, by itself, of the critic."""
    clip = clip_by_global_norm(config.max_grad_norm)
    adam = optax.adam(learning_rate, b1=0.7, b2=0.95, eps_root=1e-20)  # to be differentiable at gradients of 0
    return optax.flatten(optax.chain(clip, adam))  # all parameters as one vector: a few large operations


def check(config, env):
    """Raises ValueError for settings that do not fit each other or the environment."""
    check_hosted(env, "no gradient goes through its steps: take ppo or sac")
    check_spaces(env, actions=Box, bounded=True, normalized=config.normalize_obs)
    check_divides(config.steps_per_update * env.num_agents, config.num_minibatches)
    if config.value and not config.num_epochs:
        raise ValueError("num_epochs = 0 leaves the critic as it starts: give 1 or more, or value = false")
    check_gradient(env)


def init(config, env, key):
    check(config, env)
    key, params_key, env_key = jax.random.split(key, 3)
    actor, critic = networks(config, env)
    params = initialize(params_key, zeros(env.observation_space), actor=(actor, 0.01), critic=(critic, 1.0))
    return State(
        params=params,
        target_params=params["critic"],
        opt_state={name: optimizer(config, config.learning_rate).init(x) for name, x in params.items()},
        env_state=reset(env, env_key, config.num_envs),
        obs_stats=statistics(env.observation_space),
        num_updates=jnp.int32(0),
        key=key,
    )


def normalized(config, state, obs):
    """What the networks see of an observation."""
    return normalize(state.obs_stats, obs) if config.normalize_obs else obs


def act(config, env, state, obs, key, deterministic=False):
    """The environment's action for obs `[N, O]`, and the same in unit coordinates."""
    actor, _ = networks(config, env)
    pi = actor.apply(state.params["actor"], normalized(config, state, obs))
    action = jnp.tanh(pi.mode() if deterministic else pi.sample(key))
    return rescale(env.action_space, action), action


def valued(config, env, state, obs):
    """The values that the slow critic gives."""
    return networks(config, env)[1].apply(state.target_params, normalized(config, state, obs))


def actor_loss(actor_params, config, env, state, key):
    """Minus what a step of a rollout returns on average, with where it came to and its transitions."""
    acting = replace(state, params=state.params | {"actor": actor_params})
    env_state, traj = rollout(env, partial(act, config, env, acting), state.env_state, key, config.num_steps)
    reward = config.reward_scale * traj.reward
    next_value = valued(config, env, state, traj.next_obs) if config.value else jnp.zeros_like(reward)
    returns = horizon_returns(reward, next_value, traj.terminated, traj.done, config.gamma)
    return -returns.mean() / config.num_steps, (env_state, traj)


def critic_loss(params, config, env, batch):
    """Loss of one minibatch `[B]`, and its metrics."""
    value = networks(config, env)[1].apply(params, batch.obs)
    metrics = {"value": value.mean(), "explained_variance": explained_variance(value, batch.target)}
    return optax.l2_loss(value, batch.target).mean(), metrics


def targets(config, env, state, traj):
    """What there is to learn for the critic from a rollout `[T, N]`."""
    next_value, reward = valued(config, env, state, traj.next_obs), config.reward_scale * traj.reward
    target = lambda_returns(reward, next_value, traj.terminated, traj.done, config.gamma, config.td_lambda)
    return Batch(normalized(config, state, traj.obs), target)


def update(config, env, state):
    """One rollout, whose gradient moves the actor, and the epochs of the critic on it."""
    key, rollout_key, shuffle_key = jax.random.split(state.key, 3)
    progress = training_progress(config, state)
    learning_rate = config.learning_rate * jnp.where(config.anneal_learning_rate, 1.0 - progress, 1.0)
    inputs = state.params["actor"], config, env, state, rollout_key
    (pi_loss, (env_state, traj)), grad = jax.value_and_grad(actor_loss, has_aux=True)(*inputs)
    size = global_norm(grad)
    finite = jnp.isfinite(size)
    updates, after = optimizer(config, learning_rate).update(grad, state.opt_state["actor"])
    moved = optax.apply_updates(state.params["actor"], updates), after
    before = state.params["actor"], state.opt_state["actor"]
    actor, actor_state = jax.tree.map(lambda new, old: jnp.where(finite, new, old), moved, before)

    def step(carry, batch):
        params, opt_state = carry
        (value_loss, metrics), grads = jax.value_and_grad(critic_loss, has_aux=True)(params, config, env, batch)
        updates, opt_state = optimizer(config, learning_rate).update(grads, opt_state)
        return (optax.apply_updates(params, updates), opt_state), metrics | {"value_loss": value_loss}

    def epoch(carry, index):
        return jax.lax.scan(step, carry, gather(elements, index))

    metrics = {"actor_loss": pi_loss, "grad_norm": size, "share_skipped": 1.0 - finite, "learning_rate": learning_rate}
    critic, critic_state, target_params = state.params["critic"], state.opt_state["critic"], state.target_params
    if config.num_epochs:
        elements = flatten(targets(config, env, state, traj))
        indices = minibatches(shuffle_key, num_rows(elements), config.num_minibatches, config.num_epochs)
        (critic, critic_state), found = jax.lax.scan(epoch, (critic, critic_state), indices)
        target_params = optax.incremental_update(critic, target_params, config.tau)
        metrics |= jax.tree.map(jnp.mean, found)
    metrics = {**episode_metrics(traj), **metrics}
    obs_stats = update_statistics(state.obs_stats, traj.obs) if config.normalize_obs else state.obs_stats
    params, opt_state = {"actor": actor, "critic": critic}, {"actor": actor_state, "critic": critic_state}
    return State(params, target_params, opt_state, env_state, obs_stats, state.num_updates + 1, key), metrics


if __name__ == "__main__":
    from rlx.cli import run_file

    run_file(__file__)
