"""Stream AC: an actor and a critic that learn from each step once, with no replay, no batch and no target.

    python algos/stream_ac.py --env CartPole-v1

Reference: Elsayed et al. 2024, Streaming Deep Reinforcement Learning Finally Works, arXiv:2410.14606; time limits as in
Pardo et al. 2018, arXiv:1712.00378.

Axes: T time, O observation, A action. A run is one stream; many seeds or settings are lanes of one program.

With `delta = r + gamma (1 - terminated) V(s') - V(s)` at the parameters that acted, traces of actor and critic are

    z <- gamma lambda z + grad (log pi(a | s) + c sign(delta) H(pi(. | s))),    z <- gamma lambda z + grad V(s)

and each network moves by `obgd`, whose step is bounded. Traces are 0 after the end of an episode.

Deviations from the paper:
- Steps cut by a time limit bootstrap from the value of their true successor.
- A unit with fewer than ten inputs keeps one of them at the start; there it keeps none.
- Normalised observations and scaled rewards are clipped to [-10, 10]. The discounted return by whose deviation rewards
  are scaled is 0 after the end of an episode.
- Continuous actions are in unit coordinates, and clipped after that.
- The time within the episode is observed where the environment shows it: `--env-options time=True`.
"""

from functools import partial

import jax
import jax.numpy as jnp
import optax

from rlx.curriculum import as_now
from rlx.env import EnvState
from rlx.networks import BOUNDED, POLICIES, TORSOS, Actor, Critic, Torso, initialize, sparse
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
from rlx.spaces import Box, check_spaces, named, rescale, visible, zeros
from rlx.steps import accumulated, check_stream, cut, obgd


@pytree
class Config:
    total_steps: int = static(500_000)  # environment steps of the whole run, rounded up to whole updates
    num_steps: int = static(1_000)  # T, steps of an update; each is learned from when it is taken
    learning_rate: float = traced(1.0, at_least=0)  # alpha, where the bound does not bind
    actor_kappa: float = traced(3.0, at_least=0)  # 0 has no bound
    critic_kappa: float = traced(2.0, at_least=0)  # likewise
    gamma: float = traced(0.99, at_least=0, at_most=1)
    trace_lambda: float = traced(0.8, at_least=0, at_most=1)
    entropy_coef: float = traced(0.01, at_least=0)
    normalize_obs: bool = static(True)
    normalize_reward: bool = static(True)
    layer_norm: bool = static(True)  # without scale and shift
    sparsity: float = static(0.9, at_least=0)  # of the kernels at the start
    hidden_sizes: tuple[int, ...] = static((128, 128))
    torso: str = static("mlp", one_of=TORSOS)  # convolutions before them, for image observations
    conv_features: tuple[int, ...] = static(())  # their filters; with mlp of 3 x 3 convolutions
    activation: str = static("leaky_relu")
    actor_obs: tuple[str, ...] = static(())  # entries of a Dict that the actor sees; none: all that are not privileged
    critic_obs: tuple[str, ...] = static(())  # entries of a Dict that the critic sees; none: all
    policy: str = static("softplus_std", one_of=POLICIES)  # density of continuous actions

    @property
    def steps_per_update(self) -> int:
        return self.num_steps


@pytree
class State:
    params: dict  # of actor and critic
    traces: dict  # likewise
    env_state: EnvState  # [1]
    obs_stats: Statistics
    reward_scale: RewardScale
    num_updates: jax.Array
    key: jax.Array


def networks(config, env):
    """Actor and critic, separate and of the same shape."""
    layers = config.hidden_sizes, config.activation, config.conv_features, config.layer_norm, config.torso
    torso = lambda x: Torso(x, *layers, trained_norm=False)
    actor = torso(visible(env.observation_space, config.actor_obs))
    critic = torso(visible(env.observation_space, config.critic_obs, privileged=True))
    continuous = any(isinstance(space, Box) for space in named(env.action_space).values())
    policy = (
        config.policy if continuous or config.policy != "softplus_std" else "normal"
    )  # of choices there is no other
    return Actor(env.action_space, actor, policy=policy), Critic(critic)


def check(config, env):
    """Raises ValueError for settings that cannot work."""
    check_spaces(env, bounded=config.policy in BOUNDED, normalized=config.normalize_obs)
    check_stream(env)
    if config.sparsity >= 1:
        raise ValueError(f"sparsity = {config.sparsity}: give less than 1, or no unit sees anything")


def init(config, env, key):
    check(config, env)
    key, params_key, sparse_key, env_key = jax.random.split(key, 4)
    actor, critic = networks(config, env)
    params = initialize(params_key, zeros(env.observation_space), actor=(actor, 1.0), critic=(critic, 1.0))
    params = sparse(sparse_key, params, config.sparsity)
    env_state = reset(env, env_key, 1)
    obs_stats = statistics(env.observation_space)
    return State(
        params=params,
        traces=jax.tree.map(jnp.zeros_like, params),
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


def act(config, env, state, obs, key, deterministic=False):
    """The environment's action for obs `[N, O]`, and the same in unit coordinates, before clipping."""
    actor, _ = networks(config, env)
    pi = actor.apply(state.params["actor"], normalized(config, state, obs))
    action = pi.mode() if deterministic else pi.sample(key)
    return rescale(env.action_space, pi.squash(action)), action


def value_of(params, config, env, obs):
    """The value of an observation `[1, O]`, without axes."""
    _, critic = networks(config, env)
    return critic.apply(params, obs)[0]


def preference(params, config, env, obs, action, sign):
    """What the actor's trace has the gradient of, for one step `[1]`, and the entropy; `sign` is that of the error."""
    actor, _ = networks(config, env)
    pi = actor.apply(params, obs)
    entropy = pi.entropy()[0]
    return pi.log_prob(action)[0] + config.entropy_coef * sign * entropy, entropy


def learn(config, env, state, obs, next_obs, traj):
    """The State after the changes that a step `[1]` makes to the networks, and what it measured."""
    scale, reward = state.reward_scale, traj.reward
    if config.normalize_reward:
        scale, (reward,) = scale_rewards(scale, reward[None], traj.done[None], config.gamma)
    params, traces = state.params, state.traces
    value, critic_grads = jax.value_and_grad(value_of)(params["critic"], config, env, obs)
    next_value = jnp.where(traj.terminated[0], 0.0, value_of(params["critic"], config, env, next_obs))
    error = reward[0] + config.gamma * next_value - value
    inputs = params["actor"], config, env, obs, traj.recorded, jnp.sign(error)
    actor_grads, entropy = jax.grad(preference, has_aux=True)(*inputs)
    traces = accumulated(traces, {"actor": actor_grads, "critic": critic_grads}, config.gamma * config.trace_lambda)
    updates = {
        "actor": obgd(traces["actor"], error, config.learning_rate, config.actor_kappa),
        "critic": obgd(traces["critic"], error, config.learning_rate, config.critic_kappa),
    }
    params, traces = optax.apply_updates(params, updates), cut(traces, traj.done[0])
    metrics = {"error": jnp.abs(error), "value": value, "entropy": entropy}
    return replace(state, params=params, traces=traces, reward_scale=scale), metrics


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
    metrics = {**episode_metrics(traj), **jax.tree.map(jnp.mean, metrics)}
    return replace(state, num_updates=state.num_updates + 1, key=key), metrics


if __name__ == "__main__":
    from rlx.cli import run_file

    run_file(__file__)
