"""Soft Actor-Critic, for continuous actions.

    python algos/sac.py --env Pendulum-v1

Reference: Haarnoja et al. 2018, Soft Actor-Critic Algorithms and Applications, arXiv:1812.05905; time limits as in
Pardo et al. 2018, arXiv:1712.00378.

Axes: T time, N environments, G gradient steps, B minibatch, E critics, O observation, A action.

Deviations from the paper:
- N environments take T steps each, then the gradient steps for all of these follow.
- Actor, critics and temperature change together: each gradient is taken before any of them has moved.
- Entropies are those of actions in unit coordinates, where the bounds of every environment are -1 and 1, so that a
  target entropy means the same everywhere. In its own coordinates they are greater by sum_i log((high_i - low_i) / 2).
- Kernels start orthogonal, and the critics may have layer norm.
- Observations may be normalised by running statistics, when they are used: the buffer keeps them raw.
- Steps cut by a time limit bootstrap from the value of their true successor.
- Three things beyond the paper are settings: targets over several steps (`n_step`; off-policy, without the entropies
  between, biased for n above 1), new networks at given steps (`resets`; Nikishin et al. 2022, arXiv:2205.07802: buffer
  and temperature stay) and residual blocks (`residual`; SimBa, Lee et al. 2024, arXiv:2410.09754, and BroNet, Nauman
  et al. 2024, arXiv:2405.16158).
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from rlx.bonuses import begin, pay
from rlx.env import EnvState
from rlx.networks import BLOCKS, TORSOS, Critic, TanhActor, Torso, initialize
from rlx.normalize import Statistics, normalize, statistics, update_statistics
from rlx.pytree import num_rows, pytree, replace, static, traced
from rlx.replay import Replay, check_ratio, check_replay, insert, replay, sample, take
from rlx.rollout import episode_metrics, flatten, reset, rollout
from rlx.spaces import Box, check_spaces, num_free, rescale, size, visible, zeros
from rlx.values import check_n_step, n_step


@pytree
class Config:
    total_steps: int = static(1_000_000)  # environment steps of the whole run, rounded up to whole updates
    warmup_steps: int = static(5_000, at_least=0)  # of these, the first, with random actions and nothing learned
    num_envs: int = static(1)  # N
    num_steps: int = static(64)  # T, steps of each environment between updates
    utd_ratio: float = static(1.0, above=0)  # updates to data: gradient steps per environment step
    capacity: int = static(1_000_000)  # transitions that the buffer keeps
    batch_size: int = static(256)  # B
    num_critics: int = static(2)  # E
    learning_rate: float = traced(3e-4, at_least=0)
    alpha_learning_rate: float = traced(3e-4, at_least=0)  # 0 keeps the temperature at its initial value
    initial_alpha: float = traced(1.0, at_least=0)
    target_entropy: float = -1.0  # nats per action dimension, in unit coordinates; log 2 = 0.69 is uniform
    gamma: float = traced(0.99, at_least=0, at_most=1)
    tau: float = traced(0.005, at_least=0, at_most=1)  # part of the way to the critics that their targets go each time
    n_step: int = static(1)  # rewards of a target before its value, no more than num_steps
    resets: tuple[int, ...] = static(())  # environment steps at which actor and critics start anew
    reward_scale: float = traced(1.0, above=0)
    normalize_obs: bool = static(False)
    layer_norm: bool = static(False)  # in the critics
    hidden_sizes: tuple[int, ...] = static((256, 256))
    residual: str = static("", one_of=("", *BLOCKS))  # of them, all but the first are residual blocks of this kind
    torso: str = static("mlp", one_of=TORSOS)  # convolutions before them, for image observations
    conv_features: tuple[int, ...] = static(())  # their filters; with mlp of 3 x 3 convolutions
    activation: str = static("relu")
    actor_obs: tuple[str, ...] = static(())  # entries of a Dict that the actor sees; none: all that are not privileged
    critic_obs: tuple[str, ...] = static(())  # entries of a Dict that the critic sees; none: all

    @property
    def steps_per_update(self) -> int:
        return self.num_envs * self.num_steps

    @property
    def init_steps(self) -> int:
        return -(-self.warmup_steps // self.num_envs) * self.num_envs

    @property
    def gradient_steps(self) -> int:
        return round(self.utd_ratio * self.steps_per_update)  # G


@pytree
class State:
    params: dict  # of actor, critics [E] and log_alpha
    target_params: dict  # of critics [E]
    opt_state: optax.OptState
    env_state: EnvState  # [N]
    replay: Replay
    obs_stats: Statistics
    num_updates: jax.Array
    key: jax.Array
    bonus: Any = None  # what a bonus for what is new has learned


@pytree
class Batch:
    obs: jax.Array
    action: jax.Array  # in unit coordinates
    reward: jax.Array
    next_obs: jax.Array
    terminated: jax.Array
    num: jax.Array | None = None  # of more than one step, how many these are


def networks(config, env):
    """Actor and critic of the same shape; all critics apply one module, to parameters of their own."""
    layers = config.hidden_sizes, config.activation, config.conv_features
    torso = lambda space, layer_norm=False: Torso(space, *layers, layer_norm, config.torso, residual=config.residual)
    actor = torso(visible(env.observation_space, config.actor_obs))
    critic = torso(visible(env.observation_space, config.critic_obs, privileged=True), config.layer_norm)
    return TanhActor(env.action_space, actor), Critic(critic)


def optimizer(config):
    # The root's epsilon makes it differentiable at gradients of 0.
    adam = lambda learning_rate: optax.flatten(optax.adam(learning_rate, eps_root=1e-20))
    rates = {"networks": adam(config.learning_rate), "temperature": adam(config.alpha_learning_rate)}
    return optax.partition(rates, {"actor": "networks", "critic": "networks", "log_alpha": "temperature"})


def check(config, env):
    """Raises ValueError for settings that cannot work."""
    check_spaces(env, actions=Box, bounded=True, normalized=config.normalize_obs)
    check_replay(config.total_steps, config.init_steps, config.batch_size, config.capacity)
    check_ratio(config.utd_ratio, config.steps_per_update)
    check_n_step(config.n_step, config.num_steps)
    if any(not config.init_steps <= step < config.total_steps for step in config.resets):
        raise ValueError(
            f"resets = {config.resets} have to be within the steps that are learned in, from {config.init_steps} up to "
            f"{config.total_steps}"
        )


def init(config, env, key, bonus=None):
    check(config, env)
    key, actor_key, critic_key, env_key, warmup_key = jax.random.split(key, 5)
    num_steps = config.init_steps // config.num_envs
    env_state, traj = rollout(env, partial(explore, env), reset(env, env_key, config.num_envs), warmup_key, num_steps)
    traj, bonus_state, _ = pay(bonus, env, begin(bonus, env, config.num_envs, key), traj)
    elements = flatten(kept(config, traj))
    example = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), elements)
    obs_stats = statistics(env.observation_space)
    params = first(config, env, actor_key, critic_key)
    return State(
        params=params,
        target_params=params["critic"],
        opt_state=optimizer(config).init(params),
        env_state=env_state,
        replay=insert(replay(example, config.capacity, spare=config.steps_per_update * env.num_agents), elements),
        obs_stats=update_statistics(obs_stats, traj.obs) if config.normalize_obs and num_steps else obs_stats,
        num_updates=jnp.int32(0),
        key=key,
        bonus=bonus_state,
    )


def first(config, env, actor_key, critic_key):
    """Parameters that nothing was learned by."""
    actor, critic = networks(config, env)
    obs, action = zeros(env.observation_space), zeros(env.action_space)
    params = initialize(actor_key, obs, actor=(actor, 0.01))
    params |= jax.vmap(lambda key: initialize(key, obs, critic=(critic, 1.0, action)))(
        jax.random.split(critic_key, config.num_critics)
    )
    return params | {"log_alpha": jnp.log(jnp.float32(config.initial_alpha))}


def renewed(config, env, state):
    """The state, at a reset with new networks and optimizer; the temperature stays."""
    due = [-(-(step - config.init_steps) // config.steps_per_update) for step in config.resets]

    def anew():
        params = first(config, env, *jax.random.split(jax.random.fold_in(state.key, 4)))  # after those of the update
        params["log_alpha"] = state.params["log_alpha"]
        return params, params["critic"], optimizer(config).init(params)

    old = state.params, state.target_params, state.opt_state
    params, target_params, opt_state = jax.lax.cond(jnp.isin(state.num_updates, jnp.array(due)), anew, lambda: old)
    return replace(state, params=params, target_params=target_params, opt_state=opt_state)


def normalized(config, state, obs):
    """What the networks see of an observation."""
    return normalize(state.obs_stats, obs) if config.normalize_obs else obs


def explore(env, obs, key):
    """Uniformly random actions, as `act` gives them."""
    action = jax.random.uniform(key, (num_rows(obs), *env.action_space.shape), minval=-1.0, maxval=1.0)
    return rescale(env.action_space, action), action


def act(config, env, state, obs, key, deterministic=False):
    """The environment's action for obs `[N, O]`, and the same in unit coordinates."""
    actor, _ = networks(config, env)
    pi = actor.apply(state.params["actor"], normalized(config, state, obs))
    action = jnp.tanh(pi.mode() if deterministic else pi.sample(key))
    return rescale(env.action_space, action), action


def kept(config, traj):
    """What the buffer keeps of transitions; each with those after it where targets are over several steps."""
    if config.n_step == 1:
        return Batch(traj.obs, traj.recorded, traj.reward, traj.next_obs, traj.terminated)
    ends = traj.next_obs, traj.terminated
    ahead = n_step(traj.reward, traj.terminated, traj.done, ends, config.n_step, config.gamma)
    return Batch(traj.obs, traj.recorded, ahead.reward, *ahead.next_obs, ahead.num)


def critic_loss(params, fixed, target_params, config, env, batch, noise):
    """Loss of the critics, and their values `[E, B]`; the target is that of equations 3 and 5."""
    actor, critic = networks(config, env)
    q = jax.vmap(critic.apply, in_axes=(0, None, None))
    pi = actor.apply(fixed["actor"], batch.next_obs)
    u = pi.mean + jnp.exp(pi.log_std) * noise
    next_q = q(target_params, batch.next_obs, jnp.tanh(u)).min(axis=0)
    next_value = next_q - jnp.exp(fixed["log_alpha"]) * pi.log_prob(u)
    gamma = config.gamma if batch.num is None else config.gamma**batch.num
    target = config.reward_scale * batch.reward + gamma * jnp.where(batch.terminated, 0.0, next_value)
    value = q(params["critic"], batch.obs, batch.action)
    return jax.vmap(optax.l2_loss, in_axes=(0, None))(value, target).sum(axis=0).mean(), value


def actor_loss(params, fixed, config, env, batch, noise):
    """Loss of the actor, equation 9, and its log-probabilities `[B]`."""
    actor, critic = networks(config, env)
    pi = actor.apply(params["actor"], batch.obs)
    u = pi.mean + jnp.exp(pi.log_std) * noise
    log_prob = pi.log_prob(u)
    q = jax.vmap(critic.apply, in_axes=(0, None, None))(fixed["critic"], batch.obs, jnp.tanh(u)).min(axis=0)
    return (jnp.exp(fixed["log_alpha"]) * log_prob - q).mean(), log_prob


def alpha_loss(log_alpha, config, env, log_prob):
    """Loss of the temperature, equation 18."""
    free = num_free(env.action_space)  # a dimension that is constant may as well be uniform
    target_entropy = config.target_entropy * free + (size(env.action_space) - free) * jnp.log(2.0)
    return (jnp.exp(log_alpha) * (-log_prob - target_entropy)).mean()


def loss(params, fixed, target_params, config, env, batch, noise):
    """The losses of critics and actor for one minibatch `[B]`, neither with a gradient for the other's parameters.

    `fixed` are the same parameters where a loss takes them as given.
    """
    q_loss, value = critic_loss(params, fixed, target_params, config, env, batch, noise[0])
    pi_loss, log_prob = actor_loss(params, fixed, config, env, batch, noise[1])
    metrics = {
        "critic_loss": q_loss,
        "actor_loss": pi_loss,
        "value": value.mean(),
        "entropy": -log_prob.mean(),
        "alpha": jnp.exp(params["log_alpha"]),
    }
    return q_loss + pi_loss, (log_prob, metrics)


def update(config, env, state, bonus=None):
    """One rollout and the gradient steps that belong to it; `bonus` pays for what is new, see rlx.bonuses."""
    state = renewed(config, env, state) if config.resets else state
    key, rollout_key, sample_key, noise_key = jax.random.split(state.key, 4)
    env_state, traj = rollout(env, partial(act, config, env, state), state.env_state, rollout_key, config.num_steps)
    traj, bonus_state, explored = pay(bonus, env, state.bonus, traj)
    buffer = insert(state.replay, flatten(kept(config, traj)))
    indices = sample(buffer, sample_key, (config.gradient_steps, config.batch_size))
    noise = jax.random.normal(noise_key, (config.gradient_steps, 2, config.batch_size, *env.action_space.shape))

    def step(carry, x):
        params, target_params, opt_state = carry
        index, noise = x
        batch = take(buffer, index)
        obs, next_obs = normalized(config, state, batch.obs), normalized(config, state, batch.next_obs)
        batch = replace(batch, obs=obs, next_obs=next_obs)
        # What a loss takes as given is an argument of its own, no stop_gradient: gradients through training see it.
        inputs = params, params, target_params, config, env, batch, noise
        grads, (log_prob, metrics) = jax.grad(loss, has_aux=True)(*inputs)
        grads["log_alpha"] = jax.grad(alpha_loss)(params["log_alpha"], config, env, log_prob)
        updates, opt_state = optimizer(config).update(grads, opt_state)
        params = optax.apply_updates(params, updates)
        target_params = optax.incremental_update(params["critic"], target_params, config.tau)
        return (params, target_params, opt_state), metrics

    carry = state.params, state.target_params, state.opt_state
    (params, target_params, opt_state), metrics = jax.lax.scan(step, carry, (indices, noise))
    metrics = {**episode_metrics(traj), **explored, **jax.tree.map(jnp.mean, metrics)}
    obs_stats = update_statistics(state.obs_stats, traj.obs) if config.normalize_obs else state.obs_stats
    num_updates = state.num_updates + 1
    state = State(params, target_params, opt_state, env_state, buffer, obs_stats, num_updates, key, bonus_state)
    return state, metrics


if __name__ == "__main__":
    from rlx.cli import run_file

    run_file(__file__)
