"""DSRL-NA: SAC that steers a frozen policy by its noise, from values of the actions that the policy makes of it.

    env = rlx.steering.steered(env, fpo, config_of_fpo, state_of_fpo)
    state, metrics = rlx.train(dsrl, dsrl.Config(), env, key)

Reference: Wagenmaker et al. 2025, Steering Your Diffusion Policy with Latent Space Reinforcement Learning,
arXiv:2506.15799, the form with noise aliasing; actor and temperature as in SAC, Haarnoja et al. 2018, arXiv:1812.05905.

Axes: T time, N environments, G gradient steps, B minibatch, E critics, O observation, A noise, D action.

The frozen policy f makes an action of an observation and noise, a = f(s, w), and the agent acts by w. Critics learn
values of a. A critic of noise imitates them, Q^W(s, w) = min_j Q_j(s, f(s, w)), and the actor maximises that. f is
`env.params.decode` of an environment of `rlx.around.decoded`, see `rlx.steering.steered`, and gets no key. SAC on that
environment is the paper's other form, whose critics learn values of w. The command line makes no such environment.

Deviations from the paper, beside those of sac.py from its own:
- The noise of N(0, I) that the critic of noise learns from is of those within the bounds: a truncated normal.
- There is one critic of noise, and what it imitates is the minimum of the critics, which SAC's actor maximises.
- It takes as many steps as the others, and all networks change together: each gradient is taken before any has moved.
- Noise of the first steps is uniform within the bounds, as in sac.py, not that of the frozen policy itself.
- N environments take T steps each, then the gradient steps follow; steps cut by a time limit bootstrap.
- Entropies are those of noise in unit coordinates, where its bounds are -1 and 1. They say nothing of actions.
- Observations may be normalised by running statistics: the buffer keeps them raw, and the frozen policy sees them raw.
"""

from functools import partial

import jax
import jax.numpy as jnp
import optax

from rlx.around import BetweenParams
from rlx.env import EnvState
from rlx.networks import TORSOS, Critic, TanhActor, Torso, initialize
from rlx.normalize import Statistics, normalize, statistics, update_statistics
from rlx.pytree import num_rows, pytree, replace, static, traced
from rlx.replay import Replay, check_ratio, check_replay, insert, replay, sample, take
from rlx.rollout import episode_metrics, flatten, reset, rollout
from rlx.spaces import Box, check_spaces, num_free, rescale, size, unit, visible, zeros


@pytree
class Config:
    total_steps: int = static(1_000_000)  # environment steps of the whole run, rounded up to whole updates
    warmup_steps: int = static(5_000, at_least=0)  # of these, the first, with random noise and nothing learned
    num_envs: int = static(1)  # N
    num_steps: int = static(64)  # T, steps of each environment between updates
    utd_ratio: float = static(1.0, above=0)  # updates to data: gradient steps per environment step
    capacity: int = static(1_000_000)  # transitions that the buffer keeps
    batch_size: int = static(256)  # B
    num_critics: int = static(2)  # E
    learning_rate: float = traced(3e-4, at_least=0)
    alpha_learning_rate: float = traced(3e-4, at_least=0)  # 0 keeps the temperature at its initial value
    initial_alpha: float = traced(1.0, at_least=0)
    target_entropy: float = -1.0  # nats per dimension of noise, in unit coordinates; log 2 = 0.69 is uniform
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
    params: dict  # of actor, critics [E], noise_critic and log_alpha
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
    action: jax.Array  # that the frozen policy made, in unit coordinates
    reward: jax.Array
    next_obs: jax.Array
    terminated: jax.Array
    raw: tuple | None = None  # obs and next_obs as the frozen policy sees them


def networks(config, env):
    """Actor and critic of the same shape; all critics, also that of noise, apply one module, each to its parameters."""
    layers = config.hidden_sizes, config.activation, config.conv_features
    torso = lambda space, layer_norm=False: Torso(space, *layers, layer_norm, config.torso)
    actor = torso(visible(env.observation_space, config.actor_obs))
    critic = torso(visible(env.observation_space, config.critic_obs, privileged=True), config.layer_norm)
    return TanhActor(env.action_space, actor), Critic(critic)


def optimizer(config):
    # The root's epsilon makes it differentiable at gradients of 0.
    adam = lambda learning_rate: optax.flatten(optax.adam(learning_rate, eps_root=1e-20))
    rates = {"networks": adam(config.learning_rate), "temperature": adam(config.alpha_learning_rate)}
    learned = dict.fromkeys(("actor", "critic", "noise_critic"), "networks")
    return optax.partition(rates, learned | {"log_alpha": "temperature"})


def check(config, env):
    """Raises ValueError for settings that cannot work, and for an environment without a frozen policy."""
    if not isinstance(env.params, BetweenParams) or env.params.decode is None:
        raise ValueError(
            "dsrl learns the noise of a frozen policy, and none makes the actions of this environment: in Python, make "
            "another by rlx.steering.steered(env, fpo, config, state); for the actions themselves use sac"
        )
    check_spaces(env.params.env, actions=Box)
    check_spaces(env, actions=Box, bounded=True, normalized=config.normalize_obs)
    check_replay(config.total_steps, config.init_steps, config.batch_size, config.capacity)
    check_ratio(config.utd_ratio, config.steps_per_update)
    try:
        policy = lambda obs, noise: env.params.decode(obs, noise, None)
        jax.eval_shape(policy, zeros(env.observation_space), zeros(env.action_space))
    except TypeError as error:
        raise ValueError(f"dsrl gives the decoder no key, so that noise is all that it draws from: {error}") from error


def init(config, env, key):
    check(config, env)
    key, actor_key, critic_key, noise_key, env_key, warmup_key = jax.random.split(key, 6)
    num_steps = config.init_steps // config.num_envs
    env_state, traj = rollout(env, partial(explore, env), reset(env, env_key, config.num_envs), warmup_key, num_steps)
    elements = flatten(kept(env, traj))
    example = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), elements)
    obs_stats = statistics(env.observation_space)
    actor, critic = networks(config, env)
    obs, action = zeros(env.observation_space), zeros(env.params.env.action_space)
    params = initialize(actor_key, obs, actor=(actor, 0.01))
    params |= jax.vmap(lambda key: initialize(key, obs, critic=(critic, 1.0, action)))(
        jax.random.split(critic_key, config.num_critics)
    )
    params |= initialize(noise_key, obs, noise_critic=(critic, 1.0, zeros(env.action_space)))
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
    """Uniformly random noise, as `act` gives it."""
    action = jax.random.uniform(key, (num_rows(obs), *env.action_space.shape), minval=-1.0, maxval=1.0)
    return rescale(env.action_space, action), action


def act(config, env, state, obs, key, deterministic=False):
    """The noise for obs `[N, O]`, and the same in unit coordinates."""
    actor, _ = networks(config, env)
    pi = actor.apply(state.params["actor"], normalized(config, state, obs))
    action = jnp.tanh(pi.mode() if deterministic else pi.sample(key))
    return rescale(env.action_space, action), action


def acted(env, obs, noise):
    """Actions `[B, D]` that the frozen policy makes of noise at raw observations, both in unit coordinates."""
    policy = jax.lax.stop_gradient(env.params.decode)  # what it has learned is given, however a loss is differentiated
    action = jax.vmap(lambda obs, w: policy(obs, w, None))(obs, rescale(env.action_space, noise))
    return unit(env.params.env.action_space, action)


def prior(env, key, shape):
    """Noise of N(0, I) within the bounds, `[..., A]` in unit coordinates."""
    box = env.action_space
    return unit(box, jax.random.truncated_normal(key, box.low, box.high, (*shape, *box.shape)))


def kept(env, traj):
    """What the buffer keeps of transitions, with the actions that the frozen policy made."""
    action = jax.vmap(partial(acted, env))(traj.obs, traj.recorded)
    return Batch(traj.obs, action, traj.reward, traj.next_obs, traj.terminated)


def critic_loss(params, fixed, target_params, config, env, batch, noise):
    """Loss of the critics, and their values `[E, B]`; the target is SAC's, with the action made of the next noise w'.

    y = r + gamma (1 - terminated) (min_j Q'_j(s', f(s', w')) - alpha log pi(w' | s'))
    """
    actor, critic = networks(config, env)
    q = jax.vmap(critic.apply, in_axes=(0, None, None))
    pi = actor.apply(fixed["actor"], batch.next_obs)
    u = pi.mean + jnp.exp(pi.log_std) * noise
    next_q = q(target_params, batch.next_obs, acted(env, batch.raw[1], jnp.tanh(u))).min(axis=0)
    next_value = next_q - jnp.exp(fixed["log_alpha"]) * pi.log_prob(u)
    target = config.reward_scale * batch.reward + config.gamma * jnp.where(batch.terminated, 0.0, next_value)
    value = q(params["critic"], batch.obs, batch.action)
    return jax.vmap(optax.l2_loss, in_axes=(0, None))(value, target).sum(axis=0).mean(), value


def noise_critic_loss(params, fixed, config, env, batch, noise):
    """Loss of the critic of noise, `(Q^W(s, w) - min_j Q_j(s, f(s, w)))^2 / 2`; `noise` is of the prior."""
    _, critic = networks(config, env)
    action = acted(env, batch.raw[0], noise)
    q = jax.vmap(critic.apply, in_axes=(0, None, None))(fixed["critic"], batch.obs, action).min(axis=0)
    return optax.l2_loss(critic.apply(params["noise_critic"], batch.obs, noise), q).mean()


def actor_loss(params, fixed, config, env, batch, noise):
    """Loss of the actor, equation 9 of SAC with the critic of noise, and its log-probabilities `[B]`."""
    actor, critic = networks(config, env)
    pi = actor.apply(params["actor"], batch.obs)
    u = pi.mean + jnp.exp(pi.log_std) * noise
    log_prob = pi.log_prob(u)
    q = critic.apply(fixed["noise_critic"], batch.obs, jnp.tanh(u))
    return (jnp.exp(fixed["log_alpha"]) * log_prob - q).mean(), log_prob


def alpha_loss(log_alpha, config, env, log_prob):
    """Loss of the temperature, equation 18."""
    free = num_free(env.action_space)  # a dimension that is constant may as well be uniform
    target_entropy = config.target_entropy * free + (size(env.action_space) - free) * jnp.log(2.0)
    return (jnp.exp(log_alpha) * (-log_prob - target_entropy)).mean()


def loss(params, fixed, target_params, config, env, batch, noise):
    """The losses of all networks for one minibatch `[B]`, none with a gradient for another's parameters.

    `fixed` are the same parameters where a loss takes them as given.
    """
    q_loss, value = critic_loss(params, fixed, target_params, config, env, batch, noise[0])
    pi_loss, log_prob = actor_loss(params, fixed, config, env, batch, noise[1])
    noise_loss = noise_critic_loss(params, fixed, config, env, batch, noise[2])
    metrics = {
        "critic_loss": q_loss,
        "actor_loss": pi_loss,
        "noise_critic_loss": noise_loss,
        "value": value.mean(),
        "entropy": -log_prob.mean(),
        "alpha": jnp.exp(params["log_alpha"]),
    }
    return q_loss + pi_loss + noise_loss, (log_prob, metrics)


def update(config, env, state):
    """One rollout and the gradient steps that belong to it."""
    key, rollout_key, sample_key, noise_key, prior_key = jax.random.split(state.key, 5)
    env_state, traj = rollout(env, partial(act, config, env, state), state.env_state, rollout_key, config.num_steps)
    buffer = insert(state.replay, flatten(kept(env, traj)))
    indices = sample(buffer, sample_key, (config.gradient_steps, config.batch_size))
    noise = jax.random.normal(noise_key, (config.gradient_steps, 2, config.batch_size, *env.action_space.shape))
    drawn = prior(env, prior_key, (config.gradient_steps, 1, config.batch_size))
    noise = jnp.concatenate([noise, drawn], axis=1)

    def step(carry, x):
        params, target_params, opt_state = carry
        index, noise = x
        batch = take(buffer, index)
        obs, next_obs = normalized(config, state, batch.obs), normalized(config, state, batch.next_obs)
        batch = replace(batch, obs=obs, next_obs=next_obs, raw=(batch.obs, batch.next_obs))
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
    metrics = {**episode_metrics(traj), **jax.tree.map(jnp.mean, metrics)}
    metrics["saturated"] = jnp.mean(jnp.abs(traj.recorded) > 0.9)  # share of the noise that is near a bound
    obs_stats = update_statistics(state.obs_stats, traj.obs) if config.normalize_obs else state.obs_stats
    return State(params, target_params, opt_state, env_state, buffer, obs_stats, state.num_updates + 1, key), metrics


if __name__ == "__main__":
    from rlx.cli import run_file

    run_file(__file__)
