"""RLPD: Soft Actor-Critic that learns from data and from its own experience, half of each, for continuous actions.

    python algos/rlpd.py --env Pendulum-v1 --data demonstrations.npz

Reference: Ball et al. 2023, Efficient Online Reinforcement Learning with Offline Data, arXiv:2302.02948; the subset of
critics in the target as in REDQ, Chen et al. 2021, arXiv:2101.05982. The rest is SAC, see sac.py.

Axes: T time, N environments, G gradient steps, P critic steps to one of the actor, B minibatch, E critics, O
observation, A action.

Deviations from the paper:
- N environments take T steps each, then the gradient steps for all of these follow.
- Every minibatch is drawn anew, with its own half of the data.
- Entropies are those of actions in unit coordinates, where the bounds of every environment are -1 and 1.
- Kernels start orthogonal.
- Observations may be normalised by running statistics, when they are used: the buffer and the data keep them raw.
- Steps cut by a time limit bootstrap from the value of their true successor.
"""

from functools import partial

import jax
import jax.numpy as jnp
import optax

from rlx.env import EnvState
from rlx.networks import TORSOS, Critic, TanhActor, Torso, initialize
from rlx.normalize import Statistics, normalize, statistics, update_statistics
from rlx.pytree import num_rows, pytree, replace, static, traced
from rlx.replay import Replay, check_ratio, check_replay, insert, replay, sample, take
from rlx.rollout import episode_metrics, flatten, reset, rollout
from rlx.spaces import Box, check_spaces, num_free, rescale, size, visible, zeros


@pytree
class Config:
    total_steps: int = static(1_000_000)  # environment steps of the whole run, rounded up to whole updates
    warmup_steps: int = static(5_000, at_least=0)  # of these, the first, with random actions and nothing learned
    num_envs: int = static(1)  # N
    num_steps: int = static(1)  # T, steps of each environment between updates
    utd_ratio: float = static(20.0, above=0)  # updates to data: gradient steps per environment step
    capacity: int = static(1_000_000)  # transitions that the buffer keeps
    actor_period: int = static(20, at_least=1)  # P
    batch_size: int = static(256)  # B
    data_share: float = static(0.5, at_least=0)  # of each minibatch, that is of the data
    num_critics: int = static(10)  # E
    num_targets: int = static(2, at_least=1)  # of them, drawn anew each time, whose minimum is in the target
    backup_entropy: bool = static(True)  # in the target
    learning_rate: float = traced(3e-4, at_least=0)
    alpha_learning_rate: float = traced(3e-4, at_least=0)  # 0 keeps the temperature at its initial value
    initial_alpha: float = traced(1.0, at_least=0)
    target_entropy: float = -0.5  # nats per action dimension, in unit coordinates; log 2 = 0.69 is uniform
    gamma: float = traced(0.99, at_least=0, at_most=1)
    tau: float = traced(0.005, at_least=0, at_most=1)  # part of the way to the critics that their targets go each time
    reward_scale: float = traced(1.0, above=0)
    normalize_obs: bool = static(False)
    layer_norm: bool = static(True)  # in the critics
    hidden_sizes: tuple[int, ...] = static((256, 256))
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
    opt_state: dict  # of actor, critics and log_alpha
    env_state: EnvState  # [N]
    replay: Replay
    obs_stats: Statistics
    num_updates: jax.Array
    key: jax.Array


@pytree
class Batch:
    obs: jax.Array
    action: jax.Array  # in unit coordinates
    reward: jax.Array
    next_obs: jax.Array
    terminated: jax.Array


def networks(config, env):
    """Actor and critic of the same shape; all critics apply one module, to parameters of their own."""
    layers = config.hidden_sizes, config.activation, config.conv_features
    torso = lambda space, layer_norm=False: Torso(space, *layers, layer_norm, config.torso)
    actor = torso(visible(env.observation_space, config.actor_obs))
    critic = torso(visible(env.observation_space, config.critic_obs, privileged=True), config.layer_norm)
    return TanhActor(env.action_space, actor), Critic(critic)


def optimizer(config):
    """The optimizers of critics, actor and temperature, by name."""
    # The root's epsilon makes it differentiable at gradients of 0.
    adam = lambda learning_rate: optax.flatten(optax.adam(learning_rate, eps_root=1e-20))
    rates = {"actor": config.learning_rate, "critic": config.learning_rate, "log_alpha": config.alpha_learning_rate}
    return {name: adam(rate) for name, rate in rates.items()}


def check(config, env):
    """Raises ValueError for settings that cannot work."""
    check_spaces(env, actions=Box, bounded=True, normalized=config.normalize_obs)
    check_replay(config.total_steps, config.init_steps, config.batch_size, config.capacity)
    check_ratio(config.utd_ratio, config.steps_per_update)
    if config.data_share > 1:
        raise ValueError(f"data_share = {config.data_share}: give at most 1")
    if config.num_targets > config.num_critics:
        raise ValueError(f"num_targets = {config.num_targets} of num_critics = {config.num_critics}: give at most that")
    if config.gradient_steps % config.actor_period:
        raise ValueError(
            f"utd_ratio * num_envs * num_steps = {config.gradient_steps} is not a multiple of actor_period = "
            f"{config.actor_period}"
        )


def init(config, env, key):
    check(config, env)
    key, actor_key, critic_key, env_key, warmup_key = jax.random.split(key, 5)
    num_steps = config.init_steps // config.num_envs
    env_state, traj = rollout(env, partial(explore, env), reset(env, env_key, config.num_envs), warmup_key, num_steps)
    elements = flatten(kept(traj))
    example = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), elements)
    obs_stats = statistics(env.observation_space)
    actor, critic = networks(config, env)
    obs, action = zeros(env.observation_space), zeros(env.action_space)
    params = initialize(actor_key, obs, actor=(actor, 0.01))
    params |= jax.vmap(lambda key: initialize(key, obs, critic=(critic, 1.0, action)))(
        jax.random.split(critic_key, config.num_critics)
    )
    params["log_alpha"] = jnp.log(jnp.float32(config.initial_alpha))
    return State(
        params=params,
        target_params=params["critic"],
        opt_state={name: adam.init(params[name]) for name, adam in optimizer(config).items()},
        env_state=env_state,
        replay=insert(replay(example, config.capacity, spare=config.steps_per_update * env.num_agents), elements),
        obs_stats=update_statistics(obs_stats, traj.obs) if config.normalize_obs and num_steps else obs_stats,
        num_updates=jnp.int32(0),
        key=key,
    )


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


def kept(traj):
    """What the buffer keeps of transitions."""
    return Batch(traj.obs, traj.recorded, traj.reward, traj.next_obs, traj.terminated)


def critic_loss(params, fixed, target_params, config, env, batch, key):
    """Loss of the critics, and their values `[E, B]`; the target is that of SAC's equations 3 and 5."""
    actor, critic = networks(config, env)
    q = jax.vmap(critic.apply, in_axes=(0, None, None))
    noise_key, subset_key = jax.random.split(key)
    pi = actor.apply(fixed["actor"], batch.next_obs)
    u = pi.sample(noise_key)
    chosen = jax.random.permutation(subset_key, config.num_critics)[: config.num_targets]
    next_value = q(jax.tree.map(lambda x: x[chosen], target_params), batch.next_obs, jnp.tanh(u)).min(axis=0)
    if config.backup_entropy:
        next_value -= jnp.exp(fixed["log_alpha"]) * pi.log_prob(u)
    target = config.reward_scale * batch.reward + config.gamma * jnp.where(batch.terminated, 0.0, next_value)
    value = q(params, batch.obs, batch.action)
    return jax.vmap(optax.l2_loss, in_axes=(0, None))(value, target).sum(axis=0).mean(), value


def actor_loss(params, fixed, config, env, batch, key):
    """Loss of the actor, SAC's equation 9 with the mean of all critics, and its log-probabilities `[B]`."""
    actor, critic = networks(config, env)
    pi = actor.apply(params, batch.obs)
    u = pi.sample(key)
    log_prob = pi.log_prob(u)
    q = jax.vmap(critic.apply, in_axes=(0, None, None))(fixed["critic"], batch.obs, jnp.tanh(u)).mean(axis=0)
    return (jnp.exp(fixed["log_alpha"]) * log_prob - q).mean(), log_prob


def alpha_loss(log_alpha, config, env, log_prob):
    """Loss of the temperature, SAC's equation 18."""
    free = num_free(env.action_space)  # a dimension that is constant may as well be uniform
    target_entropy = config.target_entropy * free + (size(env.action_space) - free) * jnp.log(2.0)
    return (jnp.exp(log_alpha) * (-log_prob - target_entropy)).mean()


def update(config, env, state, data):
    """One rollout and the gradient steps that belong to it, on the buffer and on `data`, columns `[M, ...]`."""
    key, rollout_key, sample_key, data_key, noise_key = jax.random.split(state.key, 5)
    env_state, traj = rollout(env, partial(act, config, env, state), state.env_state, rollout_key, config.num_steps)
    buffer, adams = insert(state.replay, flatten(kept(traj))), optimizer(config)
    shape = config.gradient_steps // config.actor_period, config.actor_period
    num = round(config.data_share * config.batch_size)
    own = sample(buffer, sample_key, (*shape, config.batch_size - num))
    shown = jax.random.randint(data_key, (*shape, num), 0, num_rows(data))
    columns = Batch(data.obs, data.action, data.reward, data.next_obs, data.terminated)

    def batch_of(own, shown):
        both = take(buffer, own), jax.tree.map(lambda x: x[shown], columns)
        batch = jax.tree.map(lambda a, b: jnp.concatenate([a, b.astype(a.dtype)]), *both)
        obs, next_obs = normalized(config, state, batch.obs), normalized(config, state, batch.next_obs)
        return replace(batch, obs=obs, next_obs=next_obs)

    def critic_step(carry, x):
        critic, target_params, opt_state, fixed = carry
        *index, key = x
        inputs = critic, fixed, target_params, config, env, batch_of(*index), key
        (q_loss, value), grads = jax.value_and_grad(critic_loss, has_aux=True)(*inputs)
        updates, opt_state = adams["critic"].update(grads, opt_state)
        critic = optax.apply_updates(critic, updates)
        target_params = optax.incremental_update(critic, target_params, config.tau)
        return (critic, target_params, opt_state, fixed), (q_loss, value.mean())

    def step(carry, x):
        params, target_params, opt_state = carry
        own, shown, keys = x
        inner = params["critic"], target_params, opt_state["critic"], params
        (critic, target_params, critic_opt, _), (q_loss, value) = jax.lax.scan(
            critic_step, inner, (own, shown, keys[:-1])
        )
        params, opt_state = params | {"critic": critic}, opt_state | {"critic": critic_opt}
        inputs = params["actor"], params, config, env, batch_of(own[-1], shown[-1]), keys[-1]
        (pi_loss, log_prob), grads = jax.value_and_grad(actor_loss, has_aux=True)(*inputs)
        alpha_grad = jax.grad(alpha_loss)(params["log_alpha"], config, env, log_prob)
        for name, grad in (("actor", grads), ("log_alpha", alpha_grad)):
            updates, opt = adams[name].update(grad, opt_state[name])
            params = params | {name: optax.apply_updates(params[name], updates)}
            opt_state = opt_state | {name: opt}
        metrics = {"critic_loss": q_loss.mean(), "actor_loss": pi_loss, "value": value.mean()}
        metrics |= {"entropy": -log_prob.mean(), "alpha": jnp.exp(params["log_alpha"])}
        return (params, target_params, opt_state), metrics

    keys = jax.random.split(noise_key, (shape[0], shape[1] + 1))
    carry = state.params, state.target_params, state.opt_state
    (params, target_params, opt_state), metrics = jax.lax.scan(step, carry, (own, shown, keys))
    metrics = {**episode_metrics(traj), **jax.tree.map(jnp.mean, metrics)}
    obs_stats = update_statistics(state.obs_stats, traj.obs) if config.normalize_obs else state.obs_stats
    return State(params, target_params, opt_state, env_state, buffer, obs_stats, state.num_updates + 1, key), metrics


if __name__ == "__main__":
    from rlx.cli import run_file

    run_file(__file__)
