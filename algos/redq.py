"""Randomized Ensembled Double Q-learning, and DroQ: SAC that takes many gradient steps for each step of experience.

    python algos/redq.py --env Pendulum-v1
    rlx train redq --env Pendulum-v1 --variant droq

Reference: Chen et al. 2021, Randomized Ensembled Double Q-Learning, arXiv:2101.05982; DroQ, Hiraoka et al. 2022,
Dropout Q-Functions for Doubly Efficient Reinforcement Learning, arXiv:2110.02034; actor and temperature as in SAC,
Haarnoja et al. 2018, arXiv:1812.05905; time limits as in Pardo et al. 2018, arXiv:1712.00378. Both are settings of
Config, see `VARIANTS`.

Axes: T time, N environments, G gradient steps, B minibatch, E critics, O observation, A action.

REDQ has many critics. A target is the minimum over a few of them, drawn anew for each gradient step; the actor goes by
the mean of all. DroQ has two, with dropout and layer norm, whose masks are drawn anew for each pass. The actor and the
temperature take one step after each `policy_delay` of the critics.

Deviations from the papers, beside those of sac.py from its own:
- N environments take T steps each, then the gradient steps for all of these follow.
- Entropies are those of actions in unit coordinates, where the bounds of every environment are -1 and 1, so that a
  target entropy means the same everywhere. In its own coordinates they are greater by sum_i log((high_i - low_i) / 2).
- Kernels start orthogonal, and the critics may have layer norm.
- Observations may be normalised by running statistics, when they are used: the buffer keeps them raw.
- Steps cut by a time limit bootstrap from the value of their true successor.
- Targets may be over several steps (`n_step`), as in sac.py.
"""

from functools import partial

import jax
import jax.numpy as jnp
import optax

from rlx.env import EnvState
from rlx.networks import TORSOS, Critic, TanhActor, Torso, initialize
from rlx.normalize import Statistics, normalize, statistics, update_statistics
from rlx.pytree import num_rows, pytree, replace, static, traced
from rlx.replay import Replay, check_delay, check_ratio, check_replay, insert, replay, sample, take
from rlx.rollout import episode_metrics, flatten, reset, rollout
from rlx.spaces import Box, check_spaces, num_free, rescale, size, visible, zeros
from rlx.values import check_n_step, n_step

VARIANTS = {
    "redq": {"num_critics": 10, "num_target_critics": 2, "dropout": 0.0, "layer_norm": False},
    "droq": {"num_critics": 2, "num_target_critics": 2, "dropout": 0.01, "layer_norm": True},
}


@pytree
class Config:
    total_steps: int = static(1_000_000)  # environment steps of the whole run, rounded up to whole updates
    warmup_steps: int = static(5_000, at_least=0)  # of these, the first, with random actions and nothing learned
    num_envs: int = static(1)  # N
    num_steps: int = static(64)  # T, steps of each environment between updates
    utd_ratio: float = static(20.0, above=0)  # updates to data: gradient steps per environment step
    policy_delay: int = static(20)  # gradient steps of the critics to one of the actor
    capacity: int = static(1_000_000)  # transitions that the buffer keeps
    batch_size: int = static(256)  # B
    num_critics: int = static(10)  # E
    num_target_critics: int = static(2)  # M, of which a target is the minimum
    dropout: float = static(0.0, at_least=0)  # share of the critics' hidden units that is dropped
    learning_rate: float = traced(3e-4, at_least=0)
    alpha_learning_rate: float = traced(3e-4, at_least=0)  # 0 keeps the temperature at its initial value
    initial_alpha: float = traced(1.0, at_least=0)
    target_entropy: float = -1.0  # nats per action dimension, in unit coordinates; log 2 = 0.69 is uniform
    gamma: float = traced(0.99, at_least=0, at_most=1)
    tau: float = traced(0.005, at_least=0, at_most=1)  # part of the way to the critics that their targets go each time
    n_step: int = static(1)  # rewards of a target before its value, no more than num_steps
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
    """Actor and critic of the same shape; all critics apply one module, to parameters of their own."""
    layers = config.hidden_sizes, config.activation, config.conv_features
    torso = lambda space, layer_norm=False, dropout=0.0: Torso(space, *layers, layer_norm, config.torso, dropout)
    actor = torso(visible(env.observation_space, config.actor_obs))
    seen = visible(env.observation_space, config.critic_obs, privileged=True)
    critic = torso(seen, config.layer_norm, config.dropout)
    return TanhActor(env.action_space, actor), Critic(critic)


def optimizer(config):
    """One for each group of parameters."""
    # The root's epsilon makes it differentiable at gradients of 0.
    adam = lambda learning_rate: optax.flatten(optax.adam(learning_rate, eps_root=1e-20))
    networks = adam(config.learning_rate)
    return {"actor": networks, "critic": networks, "log_alpha": adam(config.alpha_learning_rate)}


def check(config, env):
    """Raises ValueError for settings that cannot work."""
    check_spaces(env, actions=Box, bounded=True, normalized=config.normalize_obs)
    check_replay(config.total_steps, config.init_steps, config.batch_size, config.capacity)
    check_ratio(config.utd_ratio, config.steps_per_update)
    check_delay(config.policy_delay, config.gradient_steps)
    check_n_step(config.n_step, config.num_steps)
    if config.num_target_critics > config.num_critics:
        raise ValueError(
            f"num_target_critics = {config.num_target_critics} are chosen among num_critics = {config.num_critics}: "
            "lower the first, or raise the second"
        )
    if config.dropout >= 1:
        raise ValueError(f"dropout = {config.dropout} leaves nothing: give a share below 1")


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
    params["log_alpha"] = jnp.log(jnp.float32(config.initial_alpha))
    return State(
        params=params,
        target_params=params["critic"],
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


def q_values(params, config, env, obs, action, key):
    """Values `[E, B]` of as many critics as there are parameters, each with dropout of its own."""
    _, critic = networks(config, env)
    apply = lambda params, key: critic.apply(params, obs, action, rngs={"dropout": key} if config.dropout else None)
    return jax.vmap(apply)(params, jax.random.split(key, num_rows(params)))


def critic_loss(critic_params, params, target_params, config, env, batch, noise, key):
    """Loss of the critics, and their values `[E, B]`; the target is that of algorithm 1."""
    actor, _ = networks(config, env)
    which_key, next_key, key = jax.random.split(key, 3)
    which = jax.random.permutation(which_key, config.num_critics)[: config.num_target_critics]
    chosen = jax.tree.map(lambda x: x[which], target_params)
    pi = actor.apply(params["actor"], batch.next_obs)
    u = pi.mean + jnp.exp(pi.log_std) * noise
    next_q = q_values(chosen, config, env, batch.next_obs, jnp.tanh(u), next_key).min(axis=0)
    next_value = next_q - jnp.exp(params["log_alpha"]) * pi.log_prob(u)
    gamma = config.gamma if batch.num is None else config.gamma**batch.num
    target = config.reward_scale * batch.reward + gamma * jnp.where(batch.terminated, 0.0, next_value)
    value = q_values(critic_params, config, env, batch.obs, batch.action, key)
    return jax.vmap(optax.l2_loss, in_axes=(0, None))(value, target).sum(axis=0).mean(), value


def actor_loss(actor_params, params, config, env, batch, noise, key):
    """Loss of the actor, with the mean of all critics, and its log-probabilities `[B]`."""
    actor, _ = networks(config, env)
    pi = actor.apply(actor_params, batch.obs)
    u = pi.mean + jnp.exp(pi.log_std) * noise
    log_prob = pi.log_prob(u)
    q = q_values(params["critic"], config, env, batch.obs, jnp.tanh(u), key).mean(axis=0)
    return (jnp.exp(params["log_alpha"]) * log_prob - q).mean(), log_prob


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
    key, rollout_key, sample_key, noise_key, loss_key = jax.random.split(state.key, 5)
    env_state, traj = rollout(env, partial(act, config, env, state), state.env_state, rollout_key, config.num_steps)
    buffer = insert(state.replay, flatten(kept(config, traj)))
    shape = config.gradient_steps // config.policy_delay, config.policy_delay
    indices = sample(buffer, sample_key, (*shape, config.batch_size))
    noise = jax.random.normal(noise_key, (*shape, 2, config.batch_size, *env.action_space.shape))
    keys = jax.random.split(loss_key, (shape[0], shape[1] + 1))

    def critic_step(carry, x):
        params, target_params, opt_state = carry
        index, noise, key = x
        batch = drawn(config, state, buffer, index)
        inputs = params["critic"], params, target_params, config, env, batch, noise[0], key
        (loss, value), grad = jax.value_and_grad(critic_loss, has_aux=True)(*inputs)
        params, opt_state = stepped(config, params, opt_state, {"critic": grad})
        target_params = optax.incremental_update(params["critic"], target_params, config.tau)
        return (params, target_params, opt_state), {"critic_loss": loss, "value": value.mean()}

    def step(carry, x):
        *x, actor_key = x
        (params, target_params, opt_state), metrics = jax.lax.scan(critic_step, carry, x)
        batch, noise = drawn(config, state, buffer, x[0][-1]), x[1][-1, 1]
        inputs = params["actor"], params, config, env, batch, noise, actor_key
        (loss, log_prob), grad = jax.value_and_grad(actor_loss, has_aux=True)(*inputs)
        grads = {"actor": grad, "log_alpha": jax.grad(alpha_loss)(params["log_alpha"], config, env, log_prob)}
        metrics |= {"actor_loss": loss, "entropy": -log_prob.mean(), "alpha": jnp.exp(params["log_alpha"])}
        params, opt_state = stepped(config, params, opt_state, grads)
        return (params, target_params, opt_state), metrics

    carry = state.params, state.target_params, state.opt_state
    (params, target_params, opt_state), metrics = jax.lax.scan(step, carry, (indices, noise, keys[:, 1:], keys[:, 0]))
    metrics = {**episode_metrics(traj), **jax.tree.map(jnp.mean, metrics)}
    obs_stats = update_statistics(state.obs_stats, traj.obs) if config.normalize_obs else state.obs_stats
    return State(params, target_params, opt_state, env_state, buffer, obs_stats, state.num_updates + 1, key), metrics


if __name__ == "__main__":
    from rlx.cli import run_file

    run_file(__file__)
