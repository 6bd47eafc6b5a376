"""Soft Actor-Critic, for discrete actions.

    python algos/sac_discrete.py --env CartPole-v1

Reference: Christodoulou 2019, Soft Actor-Critic for Discrete Action Settings, arXiv:1910.07207; time limits as in
Pardo et al. 2018, arXiv:1712.00378. Where `sac.py` averages over sampled actions, this sums over all of them.

Axes: T time, N environments, G gradient steps, B minibatch, E critics, O observation, A actions to choose from.

Deviations from the paper:
- N environments take T steps each, then the gradient steps for all of these follow.
- Actor, critics and temperature change together: each gradient is taken before any of them has moved.
- Kernels start orthogonal, and the critics may have layer norm.
- Observations may be normalised by running statistics, when they are used: the buffer keeps them raw.
- Steps cut by a time limit bootstrap from the value of their true successor.
"""

from functools import partial

import jax
import jax.numpy as jnp
import optax

from rlx.env import EnvState
from rlx.masks import num_legal, random_choices
from rlx.networks import TORSOS, ActionValues, Actor, Torso, initialize
from rlx.normalize import Statistics, normalize, statistics, update_statistics
from rlx.pytree import pytree, replace, static, traced
from rlx.replay import Replay, check_ratio, check_replay, insert, replay, sample, take
from rlx.rollout import episode_metrics, flatten, reset, rollout
from rlx.spaces import Discrete, check_spaces, rescale, visible, zeros


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
    target_entropy: float = traced(0.98, at_least=0, at_most=1)  # as a part of log A, of uniform legal actions
    gamma: float = traced(0.99, at_least=0, at_most=1)
    tau: float = traced(0.005, at_least=0, at_most=1)  # part of the way to the critics that their targets go each time
    reward_scale: float = traced(1.0, above=0)
    normalize_obs: bool = static(False)
    layer_norm: bool = static(False)  # in the critics
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
    opt_state: optax.OptState
    env_state: EnvState  # [N]
    replay: Replay
    obs_stats: Statistics
    num_updates: jax.Array
    key: jax.Array


@pytree
class Batch:
    obs: jax.Array
    action: jax.Array
    reward: jax.Array
    next_obs: jax.Array
    terminated: jax.Array


def networks(config, env):
    """Actor and critic of the same shape; all critics apply one module, to parameters of their own."""
    layers = config.hidden_sizes, config.activation, config.conv_features
    torso = lambda space, layer_norm=False: Torso(space, *layers, layer_norm, config.torso)
    actor = torso(visible(env.observation_space, config.actor_obs))
    critic = torso(visible(env.observation_space, config.critic_obs, privileged=True), config.layer_norm)
    return Actor(env.action_space, actor), ActionValues(env.action_space, critic)


def optimizer(config):
    # The root's epsilon makes it differentiable at gradients of 0.
    adam = lambda learning_rate: optax.flatten(optax.adam(learning_rate, eps_root=1e-20))
    rates = {"networks": adam(config.learning_rate), "temperature": adam(config.alpha_learning_rate)}
    return optax.partition(rates, {"actor": "networks", "critic": "networks", "log_alpha": "temperature"})


def check(config, env):
    """Raises ValueError for settings that cannot work."""
    check_spaces(env, actions=Discrete, normalized=config.normalize_obs)
    check_replay(config.total_steps, config.init_steps, config.batch_size, config.capacity)
    check_ratio(config.utd_ratio, config.steps_per_update)


def init(config, env, key):
    check(config, env)
    key, actor_key, critic_key, env_key, warmup_key = jax.random.split(key, 5)
    num_steps = config.init_steps // config.num_envs
    env_state, traj = rollout(env, partial(explore, env), reset(env, env_key, config.num_envs), warmup_key, num_steps)
    elements = flatten(kept(traj))
    example = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), elements)
    obs_stats = statistics(env.observation_space)
    actor, critic = networks(config, env)
    obs = zeros(env.observation_space)
    params = initialize(actor_key, obs, actor=(actor, 0.01))
    params |= jax.vmap(lambda key: initialize(key, obs, critic=(critic, 1.0)))(
        jax.random.split(critic_key, config.num_critics)
    )
    params["log_alpha"] = jnp.log(jnp.float32(config.initial_alpha))
    return State(
        params=params,
        target_params=params["critic"],
        opt_state=optimizer(config).init(params),
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
    """Uniformly random legal actions, as `act` gives them."""
    return rescale(env.action_space, random_choices(env.action_space, obs, key)), None


def act(config, env, state, obs, key, deterministic=False):
    """The environment's action for obs `[N, O]`; nothing else is recorded."""
    actor, _ = networks(config, env)
    pi = actor.apply(state.params["actor"], normalized(config, state, obs))
    action = pi.mode() if deterministic else pi.sample(key)
    return rescale(env.action_space, action), None


def kept(traj):
    """What the buffer keeps of transitions."""
    return Batch(traj.obs, traj.action, traj.reward, traj.next_obs, traj.terminated)


def critic_loss(params, fixed, target_params, config, env, batch):
    """Loss of the critics, and their values of the taken actions `[E, B]`; soft values are those of equation 10."""
    actor, critic = networks(config, env)
    q = jax.vmap(critic.apply, in_axes=(0, None))
    log_p = jax.nn.log_softmax(actor.apply(fixed["actor"], batch.next_obs).logits)
    next_q = q(target_params, batch.next_obs).min(axis=0)
    next_value = jnp.sum(jnp.exp(log_p) * (next_q - jnp.exp(fixed["log_alpha"]) * log_p), axis=-1)
    target = config.reward_scale * batch.reward + config.gamma * jnp.where(batch.terminated, 0.0, next_value)
    taken = batch.action[:, None] == jnp.arange(env.action_space.n)
    value = jnp.where(taken, q(params["critic"], batch.obs), 0.0).sum(axis=-1)
    return jax.vmap(optax.l2_loss, in_axes=(0, None))(value, target).sum(axis=0).mean(), value


def actor_loss(params, fixed, config, env, batch):
    """Loss of the actor, equation 12, and its entropy `[B]`."""
    actor, critic = networks(config, env)
    pi = actor.apply(params["actor"], batch.obs)
    log_p = jax.nn.log_softmax(pi.logits)
    q = jax.vmap(critic.apply, in_axes=(0, None))(fixed["critic"], batch.obs).min(axis=0)
    loss = jnp.sum(jnp.exp(log_p) * (jnp.exp(fixed["log_alpha"]) * log_p - q), axis=-1)
    return loss.mean(), pi.entropy()


def alpha_loss(log_alpha, config, env, obs, entropy):
    """Loss of the temperature, equation 11."""
    target_entropy = config.target_entropy * jnp.log(num_legal(env.action_space, obs))
    return (jnp.exp(log_alpha) * (entropy - target_entropy)).mean()


def loss(params, fixed, target_params, config, env, batch):
    """The losses of critics and actor for one minibatch `[B]`, neither with a gradient for the other's parameters.

    `fixed` are the same parameters where a loss takes them as given.
    """
    q_loss, value = critic_loss(params, fixed, target_params, config, env, batch)
    pi_loss, entropy = actor_loss(params, fixed, config, env, batch)
    metrics = {
        "critic_loss": q_loss,
        "actor_loss": pi_loss,
        "value": value.mean(),
        "entropy": entropy.mean(),
        "alpha": jnp.exp(params["log_alpha"]),
    }
    return q_loss + pi_loss, (entropy, metrics)


def update(config, env, state):
    """One rollout and the gradient steps that belong to it."""
    key, rollout_key, sample_key = jax.random.split(state.key, 3)
    env_state, traj = rollout(env, partial(act, config, env, state), state.env_state, rollout_key, config.num_steps)
    buffer = insert(state.replay, flatten(kept(traj)))
    indices = sample(buffer, sample_key, (config.gradient_steps, config.batch_size))

    def step(carry, index):
        params, target_params, opt_state = carry
        batch = take(buffer, index)
        obs, next_obs = normalized(config, state, batch.obs), normalized(config, state, batch.next_obs)
        batch = replace(batch, obs=obs, next_obs=next_obs)
        # What a loss takes as given is an argument of its own, no stop_gradient: gradients through training see it.
        inputs = params, params, target_params, config, env, batch
        grads, (entropy, metrics) = jax.grad(loss, has_aux=True)(*inputs)
        grads["log_alpha"] = jax.grad(alpha_loss)(params["log_alpha"], config, env, obs, entropy)
        updates, opt_state = optimizer(config).update(grads, opt_state)
        params = optax.apply_updates(params, updates)
        target_params = optax.incremental_update(params["critic"], target_params, config.tau)
        return (params, target_params, opt_state), metrics

    carry = state.params, state.target_params, state.opt_state
    (params, target_params, opt_state), metrics = jax.lax.scan(step, carry, indices)
    metrics = {**episode_metrics(traj), **jax.tree.map(jnp.mean, metrics)}
    obs_stats = update_statistics(state.obs_stats, traj.obs) if config.normalize_obs else state.obs_stats
    return State(params, target_params, opt_state, env_state, buffer, obs_stats, state.num_updates + 1, key), metrics


if __name__ == "__main__":
    from rlx.cli import run_file

    run_file(__file__)
