"""CrossQ: SAC without target networks, whose critics are normalised by the batch.

    python algos/crossq.py --env Pendulum-v1

Reference: Bhatt et al. 2024, CrossQ: Batch Normalization in Deep Reinforcement Learning for Greater Sample Efficiency
and Simplicity, arXiv:1902.05605; actor and temperature as in SAC, Haarnoja et al. 2018, arXiv:1812.05905; time limits
as in Pardo et al. 2018, arXiv:1712.00378.

Axes: T time, N environments, G gradient steps, B minibatch, E critics, O observation, A action.

The critics see states and successors as one batch, with the actions of both, so that one set of statistics normalises
both; the values of the second half are the target, and take no gradient. They are wide. The running statistics of all
networks are in `State.stats`; acting goes by them, as does the actor's view of the critics. The actor and the
temperature take one step after each `policy_delay` of the critics.

Deviations from the paper, beside those of sac.py from its own:
- N environments take T steps each, then the gradient steps for all of these follow.
- Kernels start orthogonal.
- Observations may be normalised by running statistics, when they are used: the buffer keeps them raw.
- Targets may be over several steps (`n_step`), as in sac.py.
- Steps cut by a time limit bootstrap from the value of their true successor.
"""

from functools import partial

import jax
import jax.numpy as jnp
import optax

from rlx.env import EnvState
from rlx.networks import STATS, TORSOS, Critic, TanhActor, Torso, initialize
from rlx.normalize import Statistics, normalize, statistics, update_statistics
from rlx.pytree import num_rows, pytree, replace, static, traced
from rlx.replay import Replay, check_delay, check_ratio, check_replay, insert, replay, sample, take
from rlx.rollout import episode_metrics, flatten, reset, rollout
from rlx.spaces import Box, check_spaces, num_free, rescale, size, visible, zeros
from rlx.values import check_n_step, n_step


@pytree
class Config:
    total_steps: int = static(1_000_000)  # environment steps of the whole run, rounded up to whole updates
    warmup_steps: int = static(5_000, at_least=0)  # of these, the first, with random actions and nothing learned
    num_envs: int = static(1)  # N
    num_steps: int = static(60)  # T, steps of each environment between updates
    utd_ratio: float = static(1.0, above=0)  # updates to data: gradient steps per environment step
    policy_delay: int = static(3)  # gradient steps of the critics to one of the actor
    capacity: int = static(1_000_000)  # transitions that the buffer keeps
    batch_size: int = static(256)  # B
    num_critics: int = static(2)  # E
    batch_norm: bool = static(True)
    learning_rate: float = traced(1e-3, at_least=0)
    alpha_learning_rate: float = traced(1e-3, at_least=0)  # 0 keeps the temperature at its initial value
    initial_alpha: float = traced(1.0, at_least=0)
    target_entropy: float = -1.0  # nats per action dimension, in unit coordinates; log 2 = 0.69 is uniform
    gamma: float = traced(0.99, at_least=0, at_most=1)
    n_step: int = static(1)  # rewards of a target before its value, no more than num_steps
    reward_scale: float = traced(1.0, above=0)
    normalize_obs: bool = static(False)
    hidden_sizes: tuple[int, ...] = static((256, 256))  # of the actor
    critic_hidden_sizes: tuple[int, ...] = static((2048, 2048))
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
    stats: dict  # running ones, of actor and critics [E]
    opt_state: dict  # likewise of params
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
    num: jax.Array | None = None  # of more than one step, how many these are


def networks(config, env):
    """Actor and critic; all critics apply one module, to parameters and statistics of their own."""
    layers = config.activation, config.conv_features
    torso = lambda space, sizes: Torso(space, sizes, *layers, kind=config.torso, batch_norm=config.batch_norm)
    actor = torso(visible(env.observation_space, config.actor_obs), config.hidden_sizes)
    seen = visible(env.observation_space, config.critic_obs, privileged=True)
    return TanhActor(env.action_space, actor), Critic(torso(seen, config.critic_hidden_sizes))


def optimizer(config):
    """One for each group of parameters."""
    # The root's epsilon makes it differentiable at gradients of 0.
    adam = lambda learning_rate: optax.flatten(optax.adam(learning_rate, b1=0.5, eps_root=1e-20))
    networks = adam(config.learning_rate)
    return {"actor": networks, "critic": networks, "log_alpha": adam(config.alpha_learning_rate)}


def check(config, env):
    """Raises ValueError for settings that cannot work."""
    check_spaces(env, actions=Box, bounded=True, normalized=config.normalize_obs)
    check_replay(config.total_steps, config.init_steps, config.batch_size, config.capacity)
    check_ratio(config.utd_ratio, config.steps_per_update)
    check_delay(config.policy_delay, config.gradient_steps)
    check_n_step(config.n_step, config.num_steps)


def init(config, env, key):
    check(config, env)
    key, actor_key, critic_key, env_key, warmup_key = jax.random.split(key, 5)
    num_steps = config.init_steps // config.num_envs
    env_state, traj = rollout(env, partial(explore, env), reset(env, env_key, config.num_envs), warmup_key, num_steps)
    elements = flatten(kept(config, traj))
    example = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), elements)
    obs_stats = statistics(env.observation_space)
    actor, critic = networks(config, env)
    obs, action = zeros(env.observation_space), zeros(env.action_space)
    params = initialize(actor_key, obs, actor=(actor, 0.01))
    params |= jax.vmap(lambda key: initialize(key, obs, critic=(critic, 1.0, action)))(
        jax.random.split(critic_key, config.num_critics)
    )
    stats = {name: x.pop(STATS, {}) for name, x in params.items()}
    params["log_alpha"] = jnp.log(jnp.float32(config.initial_alpha))
    return State(
        params=params,
        stats=stats,
        opt_state={name: optimizer(config)[name].init(params[name]) for name in params},
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
    pi = actor.apply(with_stats(state.params, state.stats, "actor"), normalized(config, state, obs))
    action = jnp.tanh(pi.mode() if deterministic else pi.sample(key))
    return rescale(env.action_space, action), action


def kept(config, traj):
    """What the buffer keeps of transitions; each with those after it where targets are over several steps."""
    if config.n_step == 1:
        return Batch(traj.obs, traj.recorded, traj.reward, traj.next_obs, traj.terminated)
    ends = traj.next_obs, traj.terminated
    ahead = n_step(traj.reward, traj.terminated, traj.done, ends, config.n_step, config.gamma)
    return Batch(traj.obs, traj.recorded, ahead.reward, *ahead.next_obs, ahead.num)


def with_stats(params, stats, name):
    """The variables of a network: its parameters and its running statistics."""
    return {**params[name], STATS: stats[name]} if stats[name] else params[name]


def critic_loss(critic_params, params, stats, config, env, batch, noise):
    """Loss of the critics, their values `[E, B]` and their statistics after it; the target is that of section 3."""
    actor, critic = networks(config, env)
    pi = actor.apply(with_stats(params, stats, "actor"), batch.next_obs)
    u = pi.mean + jnp.exp(pi.log_std) * noise
    obs = jax.tree.map(lambda *x: jnp.concatenate(x), batch.obs, batch.next_obs)
    action = jnp.concatenate([batch.action, jnp.tanh(u)])
    both = jax.vmap(partial(critic.apply, mutable=STATS), in_axes=(0, None, None))
    # One pass for the compiler: the parameters that the target takes as given are the same.
    next_q = both(with_stats(params, stats, "critic"), obs, action)[0][:, len(u) :].min(axis=0)
    value, after = both(with_stats({"critic": critic_params}, stats, "critic"), obs, action)
    next_value = next_q - jnp.exp(params["log_alpha"]) * pi.log_prob(u)
    gamma = config.gamma if batch.num is None else config.gamma**batch.num
    target = config.reward_scale * batch.reward + gamma * jnp.where(batch.terminated, 0.0, next_value)
    value = value[:, : len(u)]
    loss = jax.vmap(optax.l2_loss, in_axes=(0, None))(value, target).sum(axis=0).mean()
    return loss, (value, after.get(STATS, {}))


def actor_loss(actor_params, params, stats, config, env, batch, noise):
    """Loss of the actor, its log-probabilities `[B]` and its statistics after it."""
    actor, critic = networks(config, env)
    pi, after = actor.apply(with_stats({"actor": actor_params}, stats, "actor"), batch.obs, mutable=STATS)
    u = pi.mean + jnp.exp(pi.log_std) * noise
    log_prob = pi.log_prob(u)
    q = jax.vmap(critic.apply, in_axes=(0, None, None))
    q = q(with_stats(params, stats, "critic"), batch.obs, jnp.tanh(u)).min(axis=0)
    return (jnp.exp(params["log_alpha"]) * log_prob - q).mean(), (log_prob, after.get(STATS, {}))


def alpha_loss(log_alpha, config, env, log_prob):
    """Loss of the temperature, equation 18."""
    free = num_free(env.action_space)  # a dimension that is constant may as well be uniform
    target_entropy = config.target_entropy * free + (size(env.action_space) - free) * jnp.log(2.0)
    return (jnp.exp(log_alpha) * (-log_prob - target_entropy)).mean()


def stepped(config, params, opt_state, grads):
    """Parameters and optimizers after a step of those that have gradients."""
    for name, grad in grads.items():
        change, after = optimizer(config)[name].update(grad, opt_state[name], params[name])
        params = params | {name: optax.apply_updates(params[name], change)}
        opt_state = opt_state | {name: after}
    return params, opt_state


def drawn(config, state, buffer, index):
    """Elements of the buffer as the networks see them."""
    batch = take(buffer, index)
    obs, next_obs = normalized(config, state, batch.obs), normalized(config, state, batch.next_obs)
    return replace(batch, obs=obs, next_obs=next_obs)


def update(config, env, state):
    """One rollout and the gradient steps that belong to it."""
    key, rollout_key, sample_key, noise_key = jax.random.split(state.key, 4)
    env_state, traj = rollout(env, partial(act, config, env, state), state.env_state, rollout_key, config.num_steps)
    buffer = insert(state.replay, flatten(kept(config, traj)))
    shape = config.gradient_steps // config.policy_delay, config.policy_delay
    indices = sample(buffer, sample_key, (*shape, config.batch_size))
    noise = jax.random.normal(noise_key, (*shape, 2, config.batch_size, *env.action_space.shape))

    def critic_step(carry, x):
        params, stats, opt_state = carry
        index, noise = x
        batch = drawn(config, state, buffer, index)
        inputs = params["critic"], params, stats, config, env, batch, noise[0]
        (loss, (value, after)), grad = jax.value_and_grad(critic_loss, has_aux=True)(*inputs)
        params, opt_state = stepped(config, params, opt_state, {"critic": grad})
        return (params, stats | {"critic": after}, opt_state), {"critic_loss": loss, "value": value.mean()}

    def step(carry, x):
        (params, stats, opt_state), metrics = jax.lax.scan(critic_step, carry, x)
        index, noise = jax.tree.map(lambda x: x[-1], x)
        batch = drawn(config, state, buffer, index)
        inputs = params["actor"], params, stats, config, env, batch, noise[1]
        (loss, (log_prob, after)), grad = jax.value_and_grad(actor_loss, has_aux=True)(*inputs)
        grads = {"actor": grad, "log_alpha": jax.grad(alpha_loss)(params["log_alpha"], config, env, log_prob)}
        metrics |= {"actor_loss": loss, "entropy": -log_prob.mean(), "alpha": jnp.exp(params["log_alpha"])}
        params, opt_state = stepped(config, params, opt_state, grads)
        return (params, stats | {"actor": after}, opt_state), metrics

    carry = state.params, state.stats, state.opt_state
    (params, stats, opt_state), metrics = jax.lax.scan(step, carry, (indices, noise))
    metrics = {**episode_metrics(traj), **jax.tree.map(jnp.mean, metrics)}
    obs_stats = update_statistics(state.obs_stats, traj.obs) if config.normalize_obs else state.obs_stats
    return State(params, stats, opt_state, env_state, buffer, obs_stats, state.num_updates + 1, key), metrics


if __name__ == "__main__":
    from rlx.cli import run_file

    run_file(__file__)
