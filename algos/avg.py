"""AVG, action value gradient: a soft actor-critic that learns from each step once, with no replay and no target.

    python algos/avg.py --env Pendulum-v1

Reference: Vasan et al. 2024, Deep Policy Gradient Methods Without Batch Updates, Target Networks, or Replay Buffers,
arXiv:2411.15370; the scale of errors: Schaul et al. 2021, arXiv:2105.05347; time limits: Pardo et al. 2018,
arXiv:1712.00378.

Axes: T time, O observation, A action. A run is one stream; many seeds or settings are lanes of one program.

A step was taken with `a = tanh(mu(s) + std(s) eps)`. With the same eps, and `a'` drawn at the successor,

    delta = r + gamma (1 - terminated) (Q(s', a') - alpha log pi(a' | s')) - Q(s, a)
    critic: (delta / sigma)^2,    actor: alpha log pi(a | s) - Q(s, a), through a

are losses of one gradient step each, by Adam without its first moment; sigma is the spread of returns so far, see
`update_td_scale`.

Deviations from the paper:
- Steps cut by a time limit bootstrap from the value of their true successor. For sigma they end their episode.
- Entropies are those of actions in unit coordinates, where the bounds of every environment are -1 and 1.
- log std is at least -10, and hidden kernels start with a gain of sqrt(2), which the length of features does not show.
- Normalised observations are clipped to [-10, 10].
- Rates and temperature are those of the published code for one task, Humanoid; others need their own.
"""

from functools import partial

import jax
import jax.numpy as jnp
import optax

from rlx.curriculum import as_now
from rlx.env import EnvState
from rlx.networks import TORSOS, Critic, TanhActor, Torso, initialize
from rlx.normalize import Statistics, TDScale, normalize, statistics, td_scale, update_statistics, update_td_scale
from rlx.pytree import pytree, replace, static, traced
from rlx.rollout import episode_metrics, reset, rollout
from rlx.spaces import Box, check_spaces, rescale, visible, zeros
from rlx.steps import check_stream


@pytree
class Config:
    total_steps: int = static(500_000)  # environment steps of the whole run, rounded up to whole updates
    num_steps: int = static(1_000)  # T, steps of an update; each is learned from when it is taken
    learning_rate: float = traced(6.3e-3, at_least=0)  # of the actor
    critic_learning_rate: float = traced(8.7e-3, at_least=0)
    alpha: float = traced(0.07, at_least=0)  # temperature
    gamma: float = traced(0.99, at_least=0, at_most=1)
    normalize_obs: bool = static(True)
    scale_errors: bool = static(True)  # by the spread of returns
    unit_features: bool = static(True)  # before heads, of length 1
    hidden_sizes: tuple[int, ...] = static((256, 256))
    torso: str = static("mlp", one_of=TORSOS)  # convolutions before them, for image observations
    conv_features: tuple[int, ...] = static(())  # their filters; with mlp of 3 x 3 convolutions
    activation: str = static("leaky_relu")
    actor_obs: tuple[str, ...] = static(())  # entries of a Dict that the actor sees; none: all that are not privileged
    critic_obs: tuple[str, ...] = static(())  # entries of a Dict that the critic sees; none: all

    @property
    def steps_per_update(self) -> int:
        return self.num_steps


@pytree
class State:
    params: dict  # of actor and critic
    opt_state: optax.OptState
    env_state: EnvState  # [1]
    obs_stats: Statistics
    td_scale: TDScale
    num_updates: jax.Array
    key: jax.Array


@pytree
class Batch:
    """A batch of one step, `[1, ...]`."""

    obs: jax.Array  # normalised
    noise: jax.Array  # eps of the action
    reward: jax.Array
    terminated: jax.Array
    next_obs: jax.Array
    next_noise: jax.Array  # eps of the action at the successor


def networks(config, env):
    """Actor and critic of the same shape."""
    layers = config.hidden_sizes, config.activation, config.conv_features, False, config.torso
    torso = lambda space: Torso(space, *layers, unit_features=config.unit_features)
    actor = torso(visible(env.observation_space, config.actor_obs))
    critic = torso(visible(env.observation_space, config.critic_obs, privileged=True))
    return TanhActor(env.action_space, actor), Critic(critic)


def optimizer(config):
    # Adam whose beta1 is 0; its epsilon stands within the root, to be differentiable at gradients of 0.
    adam = lambda rate: optax.chain(optax.scale_by_rms(0.999, 1e-16, bias_correction=True), optax.scale(-1.0 * rate))
    rates = {"actor": adam(config.learning_rate), "critic": adam(config.critic_learning_rate)}
    return optax.partition(rates, {"actor": "actor", "critic": "critic"})


def check(config, env):
    """Raises ValueError for settings that cannot work."""
    check_spaces(env, actions=Box, bounded=True, normalized=config.normalize_obs)
    check_stream(env)


def init(config, env, key):
    check(config, env)
    key, params_key, env_key = jax.random.split(key, 3)
    actor, critic = networks(config, env)
    obs, action = zeros(env.observation_space), zeros(env.action_space)
    params = initialize(params_key, obs, actor=(actor, 1.0), critic=(critic, 1.0, action))
    env_state = reset(env, env_key, 1)
    obs_stats = statistics(env.observation_space)
    return State(
        params=params,
        opt_state=optimizer(config).init(params),
        env_state=env_state,
        obs_stats=update_statistics(obs_stats, env_state.obs) if config.normalize_obs else obs_stats,
        td_scale=td_scale(1),
        num_updates=jnp.int32(0),
        key=key,
    )


def normalized(config, state, obs):
    """What the networks see of an observation."""
    return normalize(state.obs_stats, obs) if config.normalize_obs else obs


def observed(config, state, traj, env_state):
    """The State with statistics that know the successor of a step, and the first observation of a new episode."""
    if not config.normalize_obs:
        return state
    both = jax.tree.map(lambda *x: jnp.stack(x), traj.next_obs, env_state.obs)
    seen = jnp.stack([jnp.ones_like(traj.done), traj.done])
    return replace(state, obs_stats=update_statistics(state.obs_stats, both, where=seen))


def act(config, env, state, obs, key, deterministic=False):
    """The environment's action for obs `[N, O]`, and the noise that it was made with."""
    actor, _ = networks(config, env)
    pi = actor.apply(state.params["actor"], normalized(config, state, obs))
    noise = jnp.zeros_like(pi.mean) if deterministic else jax.random.normal(key, pi.mean.shape)
    return rescale(env.action_space, jnp.tanh(pi.mean + jnp.exp(pi.log_std) * noise)), noise


def noisy_action(params, config, env, obs, noise):
    """The action that the noise makes, in unit coordinates, and its log-probability."""
    actor, _ = networks(config, env)
    pi = actor.apply(params["actor"], obs)
    u = pi.mean + jnp.exp(pi.log_std) * noise
    return jnp.tanh(u), pi.log_prob(u)


def loss(params, fixed, config, env, batch, sigma):
    """The losses of critic and actor, neither with a gradient for the other's parameters, and metrics.

    `fixed` are the same parameters where a loss takes them as given.
    """
    _, critic = networks(config, env)
    action, log_prob = noisy_action(params, config, env, batch.obs, batch.noise)
    taken, _ = noisy_action(fixed, config, env, batch.obs, batch.noise)
    next_action, next_log_prob = noisy_action(fixed, config, env, batch.next_obs, batch.next_noise)
    next_value = critic.apply(fixed["critic"], batch.next_obs, next_action) - config.alpha * next_log_prob
    target = batch.reward + config.gamma * jnp.where(batch.terminated, 0.0, next_value)
    value = critic.apply(params["critic"], batch.obs, taken)
    error = target - value
    actor_loss = config.alpha * log_prob - critic.apply(fixed["critic"], batch.obs, action)
    metrics = {"error": jnp.abs(error).mean(), "value": value.mean(), "entropy": -log_prob.mean(), "sigma": sigma}
    return ((error / sigma) ** 2 + actor_loss).mean(), metrics


def update(config, env, state):
    """T steps, each learned from before the next one is taken."""
    key, start_key, turn_key, noise_key, step_key = jax.random.split(state.key, 5)
    starts = reset(as_now(env, state.env_state), start_key, env.num_starts)  # drawn at once, outside of the loop
    turns = jax.random.randint(turn_key, (config.num_steps,), 0, env.num_starts)
    one = replace(env, num_starts=1)
    noise = jax.random.normal(noise_key, (config.num_steps, 1, *env.action_space.shape))

    def step(state, x):
        turn, noise, key = x
        start = jax.tree.map(lambda leaf: leaf[turn][None], starts)
        obs, params = normalized(config, state, state.env_state.obs), state.params
        env_state, traj = rollout(one, partial(act, config, env, state), state.env_state, key, 1, starts=start)
        traj = jax.tree.map(lambda x: x[0], traj)
        state = observed(config, state, traj, env_state)
        _, log_prob = noisy_action(params, config, env, obs, traj.recorded)
        paid = traj.reward - config.alpha * log_prob
        scale, sigma = update_td_scale(state.td_scale, paid, traj.done, config.gamma)
        inputs = obs, traj.recorded, traj.reward, traj.terminated, normalized(config, state, traj.next_obs), noise
        # What a loss takes as given is an argument of its own, no stop_gradient: gradients through training see it.
        given = params, config, env, Batch(*inputs), sigma if config.scale_errors else jnp.float32(1)
        grads, metrics = jax.grad(loss, has_aux=True)(params, *given)
        updates, opt_state = optimizer(config).update(grads, state.opt_state)
        params = optax.apply_updates(params, updates)
        return replace(state, params=params, opt_state=opt_state, env_state=env_state, td_scale=scale), (traj, metrics)

    xs = turns, noise, jax.random.split(step_key, config.num_steps)
    state, (traj, metrics) = jax.lax.scan(step, state, xs)
    metrics = {**episode_metrics(traj), **jax.tree.map(jnp.mean, metrics)}
    return replace(state, num_updates=state.num_updates + 1, key=key), metrics


if __name__ == "__main__":
    from rlx.cli import run_file

    run_file(__file__)
