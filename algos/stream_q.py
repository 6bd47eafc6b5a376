"""Stream Q: action values that are learned from each step once, with no replay, no batch and no target.

    python algos/stream_q.py --env CartPole-v1

Reference: Elsayed et al. 2024, Streaming Deep Reinforcement Learning Finally Works, arXiv:2410.14606; time limits as in
Pardo et al. 2018, arXiv:1712.00378. The variant `expected_sarsa` values what the policy does, exploration included, in
place of the best (van Seijen et al. 2009, A Theoretical and Empirical Analysis of Expected Sarsa).

Axes: T time, O observation, A actions to choose from. A run is one stream; many seeds or settings are lanes of one
program.

With `delta = r + gamma (1 - terminated) max_a' Q(s', a') - Q(s, a)` at the parameters that acted,

    z <- gamma lambda z + grad Q(s, a)

and the network moves by `obgd`, whose step is bounded. The trace is 0 after the end of an episode, and after an action
that is not the best one, where values are those of the best.

Deviations from the paper:
- Steps cut by a time limit bootstrap from the value of their true successor.
- A unit with fewer than ten inputs keeps one of them at the start; there it keeps none.
- Normalised observations and scaled rewards are clipped to [-10, 10]. The discounted return by whose deviation rewards
  are scaled is 0 after the end of an episode.
- Epsilon falls between updates: by T steps at a time.
- The time within the episode is observed where the environment shows it: `--env-options time=True`.
"""

from functools import partial

import jax
import jax.numpy as jnp
import optax

from rlx.curriculum import as_now
from rlx.env import EnvState
from rlx.exploration import epsilon_at, epsilon_greedy, greedy
from rlx.masks import mask_of
from rlx.networks import TORSOS, ActionValues, Torso, initialize, sparse
from rlx.normalize import (
    RewardScale,
    Statistics,
    normalize,
    reward_scale,
    scale_rewards,
    statistics,
    update_statistics,
)
from rlx.pytree import pytree, replace, static, traced
from rlx.rollout import episode_metrics, reset, rollout
from rlx.spaces import Discrete, check_spaces, rescale, visible, zeros
from rlx.steps import accumulated, check_stream, cut, obgd
from rlx.train import training_progress
from rlx.values import at_actions, epsilon_value, legal_values

VARIANTS = {"stream_q": {}, "expected_sarsa": {"on_policy": True}}


@pytree
class Config:
    total_steps: int = static(500_000)  # environment steps of the whole run, rounded up to whole updates
    num_steps: int = static(1_000)  # T, steps of an update; each is learned from when it is taken
    learning_rate: float = traced(1.0, at_least=0)  # alpha, where the bound does not bind
    kappa: float = traced(2.0, at_least=0)  # 0 has no bound
    gamma: float = traced(0.99, at_least=0, at_most=1)
    trace_lambda: float = traced(0.8, at_least=0, at_most=1)
    epsilon_start: float = traced(1.0, at_least=0, at_most=1)
    epsilon_end: float = traced(0.01, at_least=0, at_most=1)
    epsilon_share: float = traced(0.2, above=0, at_most=1)  # of the run, in which epsilon falls
    on_policy: bool = static(False)  # values of the policy that explores; else of the best
    normalize_obs: bool = static(True)
    normalize_reward: bool = static(True)
    layer_norm: bool = static(True)  # without scale and shift
    sparsity: float = static(0.9, at_least=0)  # of the kernels at the start
    hidden_sizes: tuple[int, ...] = static((128, 128))
    torso: str = static("mlp", one_of=TORSOS)  # convolutions before them, for image observations
    conv_features: tuple[int, ...] = static(())  # their filters; with mlp of 3 x 3 convolutions
    activation: str = static("leaky_relu")
    actor_obs: tuple[str, ...] = static(())  # entries of a Dict that are seen; none: all that are not privileged

    @property
    def steps_per_update(self) -> int:
        return self.num_steps


@pytree
class State:
    params: dict  # of the values
    trace: dict  # likewise
    env_state: EnvState  # [1]
    obs_stats: Statistics
    reward_scale: RewardScale
    num_updates: jax.Array
    key: jax.Array


def networks(config, env):
    """The values of all actions."""
    layers = config.hidden_sizes, config.activation, config.conv_features, config.layer_norm, config.torso
    torso = Torso(visible(env.observation_space, config.actor_obs), *layers, trained_norm=False)
    return ActionValues(env.action_space, torso)


def check(config, env):
    """Raises ValueError for settings that cannot work."""
    check_spaces(env, actions=Discrete, normalized=config.normalize_obs)
    check_stream(env)
    if config.sparsity >= 1:
        raise ValueError(f"sparsity = {config.sparsity}: give less than 1, or no unit sees anything")


def init(config, env, key):
    check(config, env)
    key, params_key, sparse_key, env_key = jax.random.split(key, 4)
    params = initialize(params_key, zeros(env.observation_space), values=(networks(config, env), 1.0))
    params = sparse(sparse_key, params, config.sparsity)
    env_state = reset(env, env_key, 1)
    obs_stats = statistics(env.observation_space)
    return State(
        params=params,
        trace=jax.tree.map(jnp.zeros_like, params),
        env_state=env_state,
        obs_stats=update_statistics(obs_stats, env_state.obs) if config.normalize_obs else obs_stats,
        reward_scale=reward_scale(1),
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


def epsilon(config, state):
    """How often any action is taken, at the State's progress."""
    progress = training_progress(config, state)
    return epsilon_at(progress, config.epsilon_start, config.epsilon_end, config.epsilon_share)


def act(config, env, state, obs, key, deterministic=False):
    """The environment's action for obs `[N, O]`, and the same as a choice."""
    q, mask = networks(config, env).apply(state.params["values"], normalized(config, state, obs)), mask_of(obs)
    action = greedy(q, mask) if deterministic else epsilon_greedy(q, epsilon(config, state), key, mask)
    return rescale(env.action_space, action), action


def taken_value(params, config, env, obs, action):
    """The value of one action `[1]`, without axes, and those of all, `[1, A]`."""
    q = networks(config, env).apply(params["values"], obs)
    return at_actions(q, action)[0], q


def learn(config, env, state, obs, next_obs, traj):
    """The State after the change that a step `[1]` makes to the network, and what it measured."""
    scale, reward = state.reward_scale, traj.reward
    if config.normalize_reward:
        scale, (reward,) = scale_rewards(scale, reward[None], traj.done[None], config.gamma)
    (value, q), grads = jax.value_and_grad(taken_value, has_aux=True)(state.params, config, env, obs, traj.recorded)
    next_q = networks(config, env).apply(state.params["values"], next_obs)
    if config.on_policy:
        following = epsilon_value(next_q, epsilon(config, state), mask_of(traj.next_obs))[0]
    else:
        following = legal_values(next_q, mask_of(traj.next_obs)).max(-1)[0]
    error = reward[0] + config.gamma * jnp.where(traj.terminated[0], 0.0, following) - value
    trace = accumulated(state.trace, grads, config.gamma * config.trace_lambda)
    params = optax.apply_updates(state.params, obgd(trace, error, config.learning_rate, config.kappa))
    explored = (traj.recorded != greedy(q, mask_of(traj.obs)))[0] & (not config.on_policy)
    metrics = {"error": jnp.abs(error), "value": value, "explored": explored.astype(jnp.float32)}
    trace = cut(trace, traj.done[0] | explored)
    return replace(state, params=params, trace=trace, reward_scale=scale), metrics


def update(config, env, state):
    """T steps, each learned from before the next one is taken."""
    key, start_key, turn_key, step_key = jax.random.split(state.key, 4)
    starts = reset(as_now(env, state.env_state), start_key, env.num_starts)  # drawn at once, outside of the loop
    turns = jax.random.randint(turn_key, (config.num_steps,), 0, env.num_starts)
    one = replace(env, num_starts=1)

    def step(state, x):
        turn, key = x
        start = jax.tree.map(lambda leaf: leaf[turn][None], starts)
        obs = normalized(config, state, state.env_state.obs)
        env_state, traj = rollout(one, partial(act, config, env, state), state.env_state, key, 1, starts=start)
        traj = jax.tree.map(lambda x: x[0], traj)
        state = observed(config, state, traj, env_state)
        state, metrics = learn(config, env, state, obs, normalized(config, state, traj.next_obs), traj)
        return replace(state, env_state=env_state), (traj, metrics)

    xs = turns, jax.random.split(step_key, config.num_steps)
    state, (traj, metrics) = jax.lax.scan(step, state, xs)
    metrics = {**episode_metrics(traj), **jax.tree.map(jnp.mean, metrics), "epsilon": epsilon(config, state)}
    return replace(state, num_updates=state.num_updates + 1, key=key), metrics


if __name__ == "__main__":
    from rlx.cli import run_file

    run_file(__file__)
