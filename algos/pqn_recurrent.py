"""Parallelised Q-Network with memory: Q(lambda) on fresh data, without a replay buffer and a target network.

    python algos/pqn_recurrent.py --env rlx/Recall-8

Reference: Gallici et al. 2024, Simplifying Deep Temporal Difference Learning, arXiv:2407.04811; time limits as in
Pardo et al. 2018, arXiv:1712.00378.

Axes: T time, N environments, L steps of a sequence, B minibatch of sequences, O observation, A actions to choose from.

Values are of the observation and a memory of those before; a minibatch is of sequences of consecutive steps.

With `v'_t = max_a Q(s'_t, a)` of the true successor, at the parameters that acted, targets are

    G_t = r_t + gamma (1 - terminated_t) ((1 - lambda) v'_t + lambda G_{t+1}),    G_t = r_t + gamma (...) v'_t at ends

Traces are not cut at exploring actions, which is Peng's Q(lambda).

Deviations from the paper:
- Targets are computed once for each rollout, at the parameters that acted, and every step of it is learned from;
  published code computes them anew in each minibatch, and leaves out its last step.
- A sequence begins with the memory that there was when its first step was taken; published code has some steps of the
  rollout before ahead of it.
- Gradients go back through at most `sequence_length` steps, and memories are not renewed between the epochs.
- The memory is not told the action before.
- Kernels start orthogonal.
- Observations may be normalised by running statistics, which change after the gradient steps only.
- Environments may explore unequally (`unequal_epsilon`): epsilon^(1 + 7 i / (N - 1)) in the i-th, arXiv:1803.00933.
- Steps cut by a time limit bootstrap from the value of their true successor.
"""

from functools import partial

import jax
import jax.numpy as jnp
import optax

from rlx.clipping import clip_by_global_norm, global_norm
from rlx.env import EnvState
from rlx.exploration import epsilon_at, epsilon_greedy, greedy
from rlx.masks import mask_of
from rlx.networks import CELLS, TORSOS, ActionValues, Memory, Torso, empty_memory, initialize
from rlx.normalize import Statistics, normalize, statistics, update_statistics
from rlx.objectives import explained_variance
from rlx.pytree import num_rows, per_env, pytree, replace, static, traced
from rlx.rollout import check_sequences, episode_metrics, gather, minibatches, reset, restarts, rollout, sequences
from rlx.spaces import Discrete, check_spaces, rescale, visible, zeros
from rlx.train import training_progress
from rlx.values import at_actions, lambda_returns, legal_values


@pytree
class Config:
    total_steps: int = static(500_000)  # environment steps of the whole run, rounded up to whole updates
    num_envs: int = static(32)  # N
    num_steps: int = static(64)  # T, steps of each environment between updates
    num_epochs: int = static(4)
    num_minibatches: int = static(16)
    learning_rate: float = traced(2.5e-4, at_least=0)
    anneal_learning_rate: bool = True
    gamma: float = traced(0.99, at_least=0, at_most=1)
    td_lambda: float = traced(0.95, at_least=0, at_most=1)
    epsilon_start: float = traced(1.0, at_least=0, at_most=1)
    epsilon_end: float = traced(0.05, at_least=0, at_most=1)
    epsilon_share: float = traced(0.2, above=0, at_most=1)  # of the run, in which epsilon falls
    unequal_epsilon: bool = static(False)
    reward_scale: float = traced(1.0, above=0)
    max_grad_norm: float = traced(10.0, above=0)
    normalize_obs: bool = static(False)
    layer_norm: bool = static(True)
    hidden_sizes: tuple[int, ...] = static((128,))
    torso: str = static("mlp", one_of=TORSOS)  # convolutions before them, for image observations
    conv_features: tuple[int, ...] = static(())  # their filters; with mlp of 3 x 3 convolutions
    activation: str = static("relu")
    actor_obs: tuple[str, ...] = static(())  # entries of a Dict that are seen; none: all that are not privileged
    cell: str = static("gru", one_of=CELLS)  # of the memory
    memory_size: int = static(128)
    sequence_length: int = static(32)  # L, steps that gradients go back through

    @property
    def steps_per_update(self) -> int:
        return self.num_envs * self.num_steps


@pytree
class State:
    params: dict  # of memory and values
    opt_state: optax.OptState
    env_state: EnvState  # [N]
    memory: object = per_env()  # [N], of the steps before
    obs_stats: Statistics
    num_updates: jax.Array
    key: jax.Array


@pytree
class Recorded:
    action: jax.Array
    memory: object  # of the steps before


@pytree
class Batch:
    obs: jax.Array  # normalised
    action: jax.Array
    target: jax.Array
    memory: object  # before the step
    reset: jax.Array  # bool: an episode begins with the step


def networks(config, env):
    """Memory, and the values of all actions."""
    space = visible(env.observation_space, config.actor_obs)
    layers = config.hidden_sizes, config.activation, config.conv_features, config.layer_norm, config.torso
    torso = Torso(space, *layers)
    core = Memory(replace(torso, hidden_sizes=()), config.cell, config.memory_size, config.sequence_length)
    return core, ActionValues(env.action_space, torso)


def memory(config, env, num):
    """What is remembered at the beginning of `num` episodes: nothing."""
    return empty_memory(config.cell, config.memory_size, num)


def optimizer(config, learning_rate):
    clip = clip_by_global_norm(config.max_grad_norm)
    radam = optax.radam(learning_rate, eps_root=1e-20)  # to be differentiable at gradients of 0
    return optax.flatten(optax.chain(clip, radam))  # all parameters as one vector: a few large operations


def check(config, env):
    """Raises ValueError for settings that do not fit each other or the environment."""
    check_spaces(env, actions=Discrete, normalized=config.normalize_obs)
    check_sequences(config.num_envs, config.num_steps, config.sequence_length, config.num_minibatches)


def init(config, env, key):
    check(config, env)
    key, params_key, env_key = jax.random.split(key, 3)
    core, values = networks(config, env)
    one = jax.tree.map(lambda x: x[0], memory(config, env, 1))
    heads = {"memory": (core, 1.0, one), "values": (values, 1.0, jnp.zeros(config.memory_size))}
    params = initialize(params_key, zeros(env.observation_space), **heads)
    return State(
        params=params,
        opt_state=optimizer(config, config.learning_rate).init(params),
        env_state=reset(env, env_key, config.num_envs),
        memory=memory(config, env, config.num_envs * env.num_agents),
        obs_stats=statistics(env.observation_space),
        num_updates=jnp.int32(0),
        key=key,
    )


def normalized(config, state, obs):
    """What the networks see of an observation."""
    return normalize(state.obs_stats, obs) if config.normalize_obs else obs


def epsilon(config, state, num):
    """How often each of so many rows explores, `[num]`, at the State's progress."""
    now = epsilon_at(training_progress(config, state), config.epsilon_start, config.epsilon_end, config.epsilon_share)
    return now ** (1.0 + 7.0 * jnp.arange(num) / max(num - 1, 1)) if config.unequal_epsilon else jnp.full(num, now)


def act(config, env, state, obs, key, memory, deterministic=False):
    """The environment's action for obs `[N, O]`, what the loss will need of it, and the memory after it."""
    core, values = networks(config, env)
    seen, mask = normalized(config, state, obs), mask_of(obs)
    h, after = core.apply(state.params["memory"], seen, memory)
    q = values.apply(state.params["values"], seen, h)
    rate = None if deterministic else epsilon(config, state, q.shape[0])
    action = greedy(q, mask) if deterministic else epsilon_greedy(q, rate, key, mask)
    return rescale(env.action_space, action), Recorded(action, memory), after


def loss(params, config, env, batch):
    """Loss of one minibatch of sequences `[B, L]`, and its metrics."""
    core, values = networks(config, env)
    first = jax.tree.map(lambda x: x[:, 0], batch.memory)
    h, _ = core.apply(params["memory"], batch.obs, first, batch.reset)
    value = at_actions(values.apply(params["values"], batch.obs, h), batch.action)
    metrics = {"value": value.mean(), "explained_variance": explained_variance(value, batch.target)}
    return optax.l2_loss(value, batch.target).mean(), metrics


def targets(config, env, state, traj):
    """What there is to learn from a rollout `[T, N]`."""
    core, values = networks(config, env)
    obs, next_obs = normalized(config, state, traj.obs), normalized(config, state, traj.next_obs)
    _, after = core.apply(state.params["memory"], obs, traj.recorded.memory)
    next_h, _ = core.apply(state.params["memory"], next_obs, after)
    next_q = values.apply(state.params["values"], next_obs, next_h)
    next_value = legal_values(next_q, mask_of(traj.next_obs)).max(-1)
    reward = config.reward_scale * traj.reward
    target = lambda_returns(reward, next_value, traj.terminated, traj.done, config.gamma, config.td_lambda)
    return Batch(obs, traj.recorded.action, target, traj.recorded.memory, restarts(traj.done))


def update(config, env, state):
    """One rollout and the epochs of gradient steps on it."""
    key, rollout_key, shuffle_key = jax.random.split(state.key, 3)
    empty = memory(config, env, config.num_envs * env.num_agents)
    policy, memories = partial(act, config, env, state), (state.memory, empty)
    env_state, traj, after = rollout(env, policy, state.env_state, rollout_key, config.num_steps, *memories)
    elements = sequences(targets(config, env, state, traj), config.sequence_length)
    progress = training_progress(config, state)
    learning_rate = config.learning_rate * jnp.where(config.anneal_learning_rate, 1.0 - progress, 1.0)

    def step(carry, batch):
        params, opt_state = carry
        (value_loss, metrics), grads = jax.value_and_grad(loss, has_aux=True)(params, config, env, batch)
        metrics |= {"value_loss": value_loss, "grad_norm": global_norm(grads)}
        updates, opt_state = optimizer(config, learning_rate).update(grads, opt_state)
        return (optax.apply_updates(params, updates), opt_state), metrics

    def epoch(carry, index):
        return jax.lax.scan(step, carry, gather(elements, index))

    indices = minibatches(shuffle_key, num_rows(elements), config.num_minibatches, config.num_epochs)
    (params, opt_state), metrics = jax.lax.scan(epoch, (state.params, state.opt_state), indices)
    metrics = {
        **episode_metrics(traj),
        **jax.tree.map(jnp.mean, metrics),
        "epsilon": epsilon(config, state, config.num_envs).mean(),
        "learning_rate": learning_rate,
    }
    obs_stats = update_statistics(state.obs_stats, traj.obs) if config.normalize_obs else state.obs_stats
    return State(params, opt_state, env_state, after, obs_stats, state.num_updates + 1, key), metrics


if __name__ == "__main__":
    from rlx.cli import run_file

    run_file(__file__)
