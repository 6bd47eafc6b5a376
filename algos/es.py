"""Evolution strategies as an agent, for discrete and continuous actions: no gradient passes through the policy.

    python algos/es.py --env CartPole-v1

Reference: Salimans et al. 2017, Evolution Strategies as a Scalable Alternative to Reinforcement Learning,
arXiv:1703.03864.

Axes: T time, P population, E episodes of each candidate, O observation.

An update is one generation. Pairs of actors `theta + sigma z` and `theta - sigma z` play whole episodes, and `theta`
goes the way of their ranks, `sum_i w_i (theta_i - theta) / (P sigma^2)`, by Adam. Only returns are looked at: rewards
may be sparse, and policies of which nothing is differentiable would do. The policy takes its most likely action.

Deviations from the paper:
- All candidates play from the same E starts, new ones in each generation, and differ in what happens after them.
- Nothing is added to actions, and there is no weight decay.
- Observations are normalised by running statistics of what the candidates see (`normalize_obs`), not by batches.
- `num_steps` has to hold the longest episode; where that is not known, it cuts them. `total_steps` counts the steps
  after an end, too.
"""

import jax
import jax.numpy as jnp
import optax

from rlx.clipping import global_norm
from rlx.hosted import check_hosted
from rlx.meta.evolution import antithetic, ascent, centered_ranks, check_pairs
from rlx.multiagent import check_one_agent
from rlx.networks import TORSOS, Actor, Torso, initialize
from rlx.normalize import Statistics, normalize, statistics, update_statistics
from rlx.pytree import pytree, replace, static, traced
from rlx.rollout import check_horizon, episode_metrics, episodes, reset
from rlx.spaces import check_spaces, rescale, visible, zeros


@pytree
class Config:
    total_steps: int = static(3_200_000)  # environment steps of the whole run, rounded up to whole updates
    population: int = static(64)  # P, in pairs
    num_episodes: int = static(1)  # E, of each candidate
    num_steps: int = static(500)  # T, no fewer than an episode may take
    sigma: float = traced(0.1, above=0)  # of the candidates around the mean
    learning_rate: float = traced(0.03, at_least=0)
    adam_epsilon: float = traced(1e-8, above=0)
    normalize_obs: bool = static(False)
    hidden_sizes: tuple[int, ...] = static((32,))
    torso: str = static("mlp", one_of=TORSOS)  # convolutions before them, for image observations
    conv_features: tuple[int, ...] = static(())  # their filters; with mlp of 3 x 3 convolutions
    activation: str = static("tanh")
    actor_obs: tuple[str, ...] = static(())  # entries of a Dict that the actor sees; none: all that are not privileged

    @property
    def steps_per_update(self) -> int:
        return self.population * self.num_episodes * self.num_steps


@pytree
class State:
    params: dict  # of the actor, the mean of the population
    opt_state: optax.OptState
    obs_stats: Statistics
    num_updates: jax.Array
    key: jax.Array


def networks(config, env):
    """The actor."""
    space = visible(env.observation_space, config.actor_obs)
    torso = Torso(space, config.hidden_sizes, config.activation, config.conv_features, kind=config.torso)
    return Actor(env.action_space, torso)


def optimizer(config):
    return optax.flatten(optax.adam(config.learning_rate, eps=config.adam_epsilon, eps_root=1e-20))


def check(config, env):
    """Raises ValueError for settings that do not fit each other or the environment."""
    check_hosted(env, "its episodes cannot begin from starts that all candidates share: take ppo or sac")
    check_one_agent(env, "a candidate")
    check_spaces(env, normalized=config.normalize_obs)
    check_pairs(config.population)
    check_horizon(env, config.num_steps)


def init(config, env, key):
    check(config, env)
    key, params_key = jax.random.split(key)
    params = initialize(params_key, zeros(env.observation_space), actor=(networks(config, env), 0.01))
    return State(params, optimizer(config).init(params), statistics(env.observation_space), jnp.int32(0), key)


def normalized(config, state, obs):
    """What the networks see of an observation."""
    return normalize(state.obs_stats, obs) if config.normalize_obs else obs


def act(config, env, state, obs, key, deterministic=False):
    """The environment's action for obs `[N, O]`, the most likely one; nothing is recorded."""
    pi = networks(config, env).apply(state.params["actor"], normalized(config, state, obs))
    return rescale(env.action_space, pi.squash(pi.mode())), None


def play(config, env, state, candidates, key):
    """An episode of each candidate from each of the starts, `[T, P * E, ...]`, and where it is alive."""
    reset_key, play_key = jax.random.split(key)
    turn = jnp.arange(config.population * config.num_episodes) % config.num_episodes  # a candidate's side by side
    starts = jax.tree.map(lambda x: x[turn], reset(env, reset_key, config.num_episodes))
    of_each = lambda x: x.reshape(config.population, config.num_episodes, *x.shape[1:])

    def policy(obs, key):
        own = lambda params, obs: act(config, env, replace(state, params=params), obs, key)[0]
        action = jax.vmap(own)(candidates, jax.tree.map(of_each, obs))
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), action), None

    return episodes(env, policy, starts, play_key, config.num_steps)[1:]


def update(config, env, state):
    """One generation: candidates, their episodes, and a step of the mean."""
    key, pairs_key, play_key = jax.random.split(state.key, 3)
    candidates = antithetic(pairs_key, state.params, config.population, config.sigma)
    traj, alive = play(config, env, state, candidates, play_key)
    returns = jnp.where(alive, traj.reward, 0.0).sum(axis=0).reshape(config.population, config.num_episodes)
    fitness = jnp.where(traj.diverged.any(axis=0).reshape(returns.shape), -jnp.inf, returns).mean(axis=1)
    upward = ascent(state.params, candidates, centered_ranks(fitness), config.sigma)
    change, opt_state = optimizer(config).update(jax.tree.map(jnp.negative, upward), state.opt_state)
    params = optax.apply_updates(state.params, change)
    metrics = {
        **episode_metrics(traj),
        "best_return": fitness.max(),
        "alive_steps": alive.sum(),
        "grad_norm": global_norm(upward),
    }
    obs_stats = update_statistics(state.obs_stats, traj.obs, alive) if config.normalize_obs else state.obs_stats
    return State(params, opt_state, obs_stats, state.num_updates + 1, key), metrics


if __name__ == "__main__":
    from rlx.cli import run_file

    run_file(__file__)
