"""Proximal Policy Optimization on levels that are worth playing: PLR, robust PLR, ACCEL, SFL and uniform levels.

    python algos/ppo_levels.py --env rlx/Maze --method accel

Reference: Schulman et al. 2017, Proximal Policy Optimization Algorithms, arXiv:1707.06347; advantages by GAE,
arXiv:1506.02438; time limits as in Pardo et al. 2018, arXiv:1712.00378; levels by the method:

    uniform     each level anew (domain randomisation, Tobin et al. 2017, arXiv:1703.06907)
    plr         new levels, or by chance those of a buffer of the highest scores (Jiang et al. 2021, arXiv:2010.03934)
    robust_plr  as plr, but new levels are only scored: it learns on those of the buffer (arXiv:2110.02439)
    accel       as robust_plr; levels that were just learned on are changed, and scored (arXiv:2203.01302)
    sfl         times of scoring new levels into an empty buffer, then of learning on both (arXiv:2408.15099)

In each update all environments begin on levels of one kind, and stay on them. Environments are those of `rlx.levels`.

Axes: T time, N environments, L levels, B minibatch, O observation, A action, K levels of the buffer.

Deviations from the papers:
- As in the code of JaxUED (arXiv:2403.13091), all levels of an update are of one kind.
- What scoring takes counts as steps, and so it does in SFL, whose code does it outside of its updates.
- Networks have no memory. Those of `ppo.py`; its normalisation and adapted learning rate are not here.
"""

from functools import partial

import jax
import jax.numpy as jnp
import optax

from rlx.advantages import gae, standardize
from rlx.clipping import clip_by_global_norm, global_norm
from rlx.level_buffer import SCORES, LevelBuffer, best_return, choose, cleared, empty_levels, inserted, rescored
from rlx.levels import begin, can_mutate, draw_levels, has_levels, mutate_levels, pick
from rlx.multiagent import check_one_agent
from rlx.networks import TORSOS, Actor, Critic, Torso, initialize
from rlx.objectives import Elements, approx_kl, clipped_surrogate, clipped_value_loss
from rlx.pytree import num_rows, pytree, static, traced
from rlx.rollout import check_divides, check_horizon, episode_metrics, flatten, gather, minibatches, rollout
from rlx.spaces import check_spaces, rescale, visible, zeros
from rlx.train import training_progress

METHODS = ("uniform", "plr", "robust_plr", "accel", "sfl")
NEW, AGAIN, CHANGED = range(3)  # kinds of levels: drawn, of the buffer, those of the last update with changes


@pytree
class Config:
    total_steps: int = static(500_000)  # environment steps of the whole run, rounded up to whole updates
    num_envs: int = static(32)  # N
    num_steps: int = static(256)  # T, steps of each environment between updates: at least those of an episode
    num_epochs: int = static(4)
    num_minibatches: int = static(4)
    learning_rate: float = traced(2.5e-4, at_least=0)
    anneal_learning_rate: bool = True
    gamma: float = traced(0.99, at_least=0, at_most=1)
    gae_lambda: float = traced(0.95, at_least=0, at_most=1)
    clip: float = traced(0.2, above=0)
    value_clip: float = traced(0.2, above=0)
    value_coef: float = traced(0.5, at_least=0)
    entropy_coef: float = traced(0.01, at_least=0)
    max_grad_norm: float = traced(0.5, above=0)
    adam_epsilon: float = traced(1e-5, above=0)
    method: str = static("accel", one_of=METHODS)  # of choosing levels
    score: str = static("max_monte_carlo", one_of=tuple(SCORES))  # of a level; sfl goes by learnability
    buffer_size: int = static(1000)  # K
    least_filled: float = traced(0.5, at_least=0, at_most=1)  # share of the buffer, before levels are played again
    replay_rate: float = traced(0.5, at_least=0, at_most=1)  # how likely they are; of sfl their share of an update
    temperature: float = traced(0.3, above=0)  # of ranks: near 0 the highest score alone, at infinity all alike
    staleness_coef: float = traced(0.3, at_least=0, at_most=1)  # share of draws by how long a level was not played
    num_changes: int = static(5)  # to a level, of accel
    num_copies: int = static(1)  # C, environments on each level
    scoring_updates: int = static(10)  # of sfl, in each round
    round_updates: int = static(50)  # of sfl, with those
    hidden_sizes: tuple[int, ...] = static((64, 64))
    torso: str = static("mlp", one_of=TORSOS)  # convolutions before them, for image observations
    conv_features: tuple[int, ...] = static(())  # their filters; with mlp of 3 x 3 convolutions
    activation: str = static("tanh")
    actor_obs: tuple[str, ...] = static(())  # entries of a Dict that the actor sees; none: all that are not privileged
    critic_obs: tuple[str, ...] = static(())  # entries of a Dict that the critic sees; none: all

    @property
    def steps_per_update(self) -> int:
        return self.num_envs * self.num_steps

    @property
    def num_levels(self) -> int:
        return self.num_envs // self.num_copies


@pytree
class State:
    params: dict  # of actor and critic
    opt_state: optax.OptState
    buffer: LevelBuffer  # [K]
    kind: jax.Array  # of the last update's levels
    rows: jax.Array  # [L], of the buffer, where they were of it
    num_updates: jax.Array
    key: jax.Array


@pytree
class Recorded:
    """What the loss needs of the moment of acting."""

    action: jax.Array  # in unit coordinates, before clipping
    log_prob: jax.Array


@pytree
class Batch:
    obs: jax.Array
    action: jax.Array
    log_prob: jax.Array
    value: jax.Array
    advantage: jax.Array
    target: jax.Array


def networks(config, env):
    """Actor and critic, separate and of the same shape."""
    torso = lambda x: Torso(x, config.hidden_sizes, config.activation, config.conv_features, kind=config.torso)
    actor = torso(visible(env.observation_space, config.actor_obs))
    critic = torso(visible(env.observation_space, config.critic_obs, privileged=True))
    return Actor(env.action_space, actor), Critic(critic)


def optimizer(config, learning_rate):
    clip = clip_by_global_norm(config.max_grad_norm)
    adam = optax.adam(learning_rate, eps=config.adam_epsilon, eps_root=1e-20)  # to be differentiable at gradients of 0
    return optax.flatten(optax.chain(clip, adam))  # all parameters as one vector: a few large operations


def check(config, env):
    """Raises ValueError for settings that do not fit each other or the environment."""
    check_spaces(env)
    check_divides(config.steps_per_update, config.num_minibatches)
    check_one_agent(env, "a buffer of levels")
    if not has_levels(env):
        raise ValueError(
            "no levels are seen in this environment: give levels=true, and no hide, remember, stack or chunk"
        )
    if config.method == "accel" and not can_mutate(env):
        raise ValueError("method = 'accel' changes levels, and this environment has no changes: take robust_plr")
    if config.num_envs % config.num_copies:
        raise ValueError(f"num_copies = {config.num_copies} does not divide num_envs = {config.num_envs}")
    scored = config.scoring_updates * config.num_levels
    if config.method == "sfl" and config.buffer_size >= scored:
        raise ValueError(f"buffer_size = {config.buffer_size}: sfl scores {scored} levels a round, and keeps fewer")
    check_horizon(env, config.num_steps)


def init(config, env, key):
    check(config, env)
    key, params_key, level_key = jax.random.split(key, 3)
    actor, critic = networks(config, env)
    params = initialize(params_key, zeros(env.observation_space), actor=(actor, 0.01), critic=(critic, 1.0))
    return State(
        params=params,
        opt_state=optimizer(config, config.learning_rate).init(params),
        buffer=empty_levels(jax.tree.map(lambda x: x[0], draw_levels(env, level_key, 1)), config.buffer_size),
        kind=jnp.int32(NEW),
        rows=jnp.zeros(config.num_levels, jnp.int32),
        num_updates=jnp.int32(0),
        key=key,
    )


def act(config, env, state, obs, key, deterministic=False):
    """The environment's action for obs `[N, O]`, and what the loss will need of it."""
    actor, _ = networks(config, env)
    pi = actor.apply(state.params["actor"], obs)
    action = jax.lax.stop_gradient(pi.mode() if deterministic else pi.sample(key))
    return rescale(env.action_space, pi.squash(action)), Recorded(action, pi.log_prob(action))


def cloning_loss(config, env, params, obs, action, key):
    """Loss `[B]` of demonstrated actions in unit coordinates: how unlikely they are."""
    actor, _ = networks(config, env)
    pi = actor.apply(params["actor"], obs)
    return -pi.log_prob(pi.unsquash(action))


def objective(config, elements, progress):
    """Policy loss of each element `[B]`; `progress` through the run is in [0, 1]."""
    return clipped_surrogate(elements.log_ratio, elements.advantage, config.clip)


def loss(params, config, env, batch, progress, objective=objective):
    """Loss of one minibatch `[B]`, and its metrics."""
    actor, critic = networks(config, env)
    pi, value = actor.apply(params["actor"], batch.obs), critic.apply(params["critic"], batch.obs)
    log_prob = pi.log_prob(batch.action)
    log_ratio = log_prob - batch.log_prob
    policy_loss = objective(config, Elements(log_ratio, standardize(batch.advantage), log_prob), progress).mean()
    value_loss = clipped_value_loss(value, batch.value, batch.target, config.value_clip).mean()
    entropy = pi.entropy().mean()
    return policy_loss + config.value_coef * value_loss - config.entropy_coef * entropy, {
        "policy_loss": policy_loss,
        "value_loss": value_loss,
        "entropy": entropy,
        "approx_kl": approx_kl(log_ratio).mean(),
        "clip_fraction": (jnp.abs(jnp.expm1(log_ratio)) > config.clip).mean(),
    }


def advantages(config, env, state, traj):
    """What there is to learn from a rollout, `[T, N]`."""
    _, critic = networks(config, env)
    value, next_value = (critic.apply(state.params["critic"], x) for x in (traj.obs, traj.next_obs))
    advantage = gae(traj.reward, value, next_value, traj.terminated, traj.done, config.gamma, config.gae_lambda)
    return Batch(traj.obs, traj.recorded.action, traj.recorded.log_prob, value, advantage, advantage + value)


def next_levels(config, env, state, key):
    """The levels of an update `[L]`, their kind, their rows in the buffer, and which of them are from there."""
    kind_key, draw_key, row_key, change_key = jax.random.split(key, 4)
    all_, buffer, now = jnp.ones(config.num_levels, bool), state.buffer, state.num_updates
    levels = draw_levels(env, draw_key, config.num_levels)
    if config.method == "uniform":
        return levels, jnp.int32(NEW), state.rows, ~all_
    if config.method == "sfl":
        again = now % config.round_updates >= config.scoring_updates
        share, by = config.replay_rate, (jnp.inf, 0.0)
    else:
        ready = buffer.filled.mean() >= config.least_filled
        again = ready & jax.random.bernoulli(kind_key, config.replay_rate)
        share, by = 1.0, (config.temperature, config.staleness_coef)
    rows = choose(buffer, row_key, config.num_levels, now, *by)
    of_buffer = again & (jnp.arange(config.num_levels) < share * config.num_levels)
    levels, kind = pick(of_buffer, buffer.at(rows), levels), jnp.where(again, AGAIN, NEW)
    if config.method == "accel":
        change = state.kind == AGAIN
        changed = mutate_levels(env, change_key, buffer.at(state.rows), config.num_changes)
        levels, kind = pick(change & all_, changed, levels), jnp.where(change, CHANGED, kind)
    return levels, kind, rows, of_buffer & (kind == AGAIN)


def next_buffer(config, state, kind, rows, of_buffer, levels, traj, data):
    """The buffer with what the rollout `[T, N]` says of its levels, and their scores `[L]`."""
    buffer, now = state.buffer, state.num_updates
    best = best_return(traj, config.num_copies)
    best = jnp.where(of_buffer, jnp.maximum(best, buffer.best[rows]), best)
    by = SCORES["learnability" if config.method == "sfl" else config.score]
    score = by(traj, data.value, data.advantage, best, config.num_copies)
    if config.method == "uniform":
        return buffer, score
    if config.method == "sfl":
        buffer = cleared(buffer, now % config.round_updates == 0)
        return inserted(buffer, levels, score, best, now, kind == NEW), score
    played = rescored(buffer, rows, score, best, now, of_buffer)
    return inserted(played, levels, score, best, now, ~of_buffer), score


def update(config, env, state, *, objective=objective):
    """One rollout on levels, and epochs of gradient steps where these are to learn on; `objective` as in `ppo.py`."""
    key, level_key, rollout_key, shuffle_key = jax.random.split(state.key, 4)
    levels, kind, rows, of_buffer = next_levels(config, env, state, level_key)
    starts = begin(env, jax.tree.map(lambda x: jnp.repeat(x, config.num_copies, axis=0), levels))
    _, traj = rollout(env, partial(act, config, env, state), starts, rollout_key, config.num_steps, starts=starts)
    data, progress = advantages(config, env, state, traj), training_progress(config, state)
    buffer, score = next_buffer(config, state, kind, rows, of_buffer, levels, traj, data)
    elements = flatten(data)
    learning_rate = config.learning_rate * jnp.where(config.anneal_learning_rate, 1.0 - progress, 1.0)

    def step(carry, batch):
        params, opt_state = carry
        grads, metrics = jax.grad(loss, has_aux=True)(params, config, env, batch, progress, objective)
        metrics["grad_norm"] = global_norm(grads)
        updates, opt_state = optimizer(config, learning_rate).update(grads, opt_state)
        return (optax.apply_updates(params, updates), opt_state), metrics

    def epoch(carry, index):
        return jax.lax.scan(step, carry, gather(elements, index))

    def learn():
        indices = minibatches(shuffle_key, num_rows(elements), config.num_minibatches, config.num_epochs)
        carry, metrics = jax.lax.scan(epoch, (state.params, state.opt_state), indices)
        return *carry, jax.tree.map(jnp.mean, metrics)

    def keep():
        return state.params, state.opt_state, jax.tree.map(jnp.zeros_like, jax.eval_shape(learn)[2])

    learns = (kind == AGAIN) | (config.method in ("uniform", "plr"))
    params, opt_state, metrics = jax.lax.cond(learns, learn, keep)
    metrics = {
        **episode_metrics(traj),
        **metrics,
        "learning_rate": learning_rate,
        "learned": learns * 1.0,
        "level_score": score.mean(),
        "buffer_score": jnp.where(buffer.filled, buffer.score, 0.0).sum() / jnp.maximum(buffer.filled.sum(), 1),
        "buffer_filled": buffer.filled.mean(),
    }
    return State(params, opt_state, buffer, kind, rows, state.num_updates + 1, key), metrics


if __name__ == "__main__":
    from rlx.cli import run_file

    run_file(__file__)
