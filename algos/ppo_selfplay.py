"""Proximal Policy Optimization by self-play, for games of two players.

    python algos/ppo_selfplay.py --env pgx/tic_tac_toe

Reference: Schulman et al. 2017, Proximal Policy Optimization Algorithms, arXiv:1707.06347; advantages by GAE,
arXiv:1506.02438. The opponents are earlier selves, as in Bansal et al. 2018, Emergent Complexity via Multi-Agent
Competition, arXiv:1710.03748; the harder ones may be met more often, as in Vinyals et al. 2019, Nature 575.

Axes: T time, N environments, B minibatch, O observation, P places of the pool.

The opponent is part of the environment, and its parameters are `env.params`: a pool of earlier actors, and the present
one with probability `mirror`. Every episode draws one. The first snapshot is the untrained actor. After each
`snapshot_every` updates the actor takes the oldest place, if it scores at least `snapshot_above` against the pool. Only
the agent's moves are learned from. Evaluations are against the opponent that the environment was made with.

Deviations from the papers:
- Actor and critic are separate networks under one optimiser, which clips the global norm of their joint gradient.
- Advantages are standardised in each minibatch.
- The value loss is clipped around the old value (`value_clip`; infinity turns it off).
- The learning rate falls linearly to 0 over the run (`anneal_learning_rate`), or is adapted by the KL after each update
  (`adapt_learning_rate`), or both.
- Games begin after a few random moves, so that the policy also knows positions that good play does not come to.
- An opponent whose place is taken while a game is under way is replaced within that game.
- The rating `elo` is of the games against the pool, in which an earlier self keeps what it had; it starts at 0.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import optax

from rlx.advantages import gae, standardize
from rlx.clipping import clip_by_global_norm, global_norm
from rlx.env import EnvState
from rlx.games import OUTCOMES, facing, versus
from rlx.networks import TORSOS, Actor, Critic, Torso, initialize
from rlx.objectives import Elements, approx_kl, clipped_surrogate, clipped_value_loss, explained_variance, kl_adapted
from rlx.pytree import num_rows, pytree, static, traced
from rlx.rollout import check_divides, episode_metrics, flatten, gather, minibatches, reset, rollout
from rlx.selfplay import count_results, elo_update, insert, opponent_weights, scores_of, win_rates, with_self
from rlx.spaces import check_spaces, visible, zeros
from rlx.train import training_progress


@pytree
class Config:
    total_steps: int = static(500_000)  # environment steps of the whole run, rounded up to whole updates
    num_envs: int = static(4)  # N
    num_steps: int = static(128)  # T, steps of each environment between updates
    num_epochs: int = static(4)
    num_minibatches: int = static(4)
    learning_rate: float = traced(2.5e-4, at_least=0)
    anneal_learning_rate: bool = True
    adapt_learning_rate: bool = static(False)  # by the KL of an update's last epoch, towards its target
    target_kl: float = traced(0.01, above=0)
    gamma: float = traced(0.99, at_least=0, at_most=1)
    gae_lambda: float = traced(0.95, at_least=0, at_most=1)
    clip: float = traced(0.2, above=0)
    value_clip: float = traced(0.2, above=0)
    value_coef: float = traced(0.5, at_least=0)
    entropy_coef: float = traced(0.01, at_least=0)
    max_grad_norm: float = traced(0.5, above=0)
    adam_epsilon: float = traced(1e-5, above=0)
    normalize_advantage: bool = True
    num_random: int = static(4, at_least=0)  # most random moves before those of a game that is learned from
    pool_size: int = static(8)  # P, earlier selves that are kept
    snapshot_every: int = traced(10, at_least=1)  # updates
    snapshot_above: float = traced(0.0, at_least=0, at_most=1)  # score against the pool that a snapshot needs
    opponent_power: float = traced(0.0, at_least=0)  # how much more often harder ones are met; 0: all as often
    mirror: float = traced(0.2, at_least=0, at_most=1)  # probability that the opponent is the present self
    results_decay: float = traced(0.95, at_least=0, at_most=1)  # of results against the pool, an update
    elo_k: float = traced(1.0, at_least=0)  # points a game
    hidden_sizes: tuple[int, ...] = static((64, 64))
    torso: str = static("mlp", one_of=TORSOS)  # convolutions before them, for image observations
    conv_features: tuple[int, ...] = static(())  # their filters; with mlp of 3 x 3 convolutions
    activation: str = static("tanh")
    actor_obs: tuple[str, ...] = static(())  # entries of a Dict that the actor sees; none: all that are not privileged
    critic_obs: tuple[str, ...] = static(())  # entries of a Dict that the critic sees; none: all

    @property
    def steps_per_update(self) -> int:
        return self.num_envs * self.num_steps


@pytree
class State:
    params: dict  # of actor and critic
    opt_state: optax.OptState
    env_state: EnvState  # [N]
    pool: dict  # of actors, leaves [P, ...]
    pool_elo: jax.Array  # [P], ratings that they had
    results: jax.Array  # [P, 3], wins, draws and losses against each, the older the less
    elo: jax.Array
    num_snapshots: jax.Array
    learning_rate: jax.Array | None  # before annealing, where it is adapted
    num_updates: jax.Array
    key: jax.Array


@pytree
class Recorded:
    """What the loss needs of the moment of acting."""

    action: jax.Array
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
    versus(env)
    check_divides(config.steps_per_update, config.num_minibatches)


def against(config, env, params, pool, weights):
    """The environment with the pool and the present self as opponents."""
    actor, _ = networks(config, env)
    move = lambda own, obs, key: actor.apply(own, obs).sample(key)
    weights = jnp.append((1.0 - config.mirror) * weights, config.mirror)
    return facing(env, move, with_self(pool, params["actor"]), weights, config.num_random)


def init(config, env, key):
    check(config, env)
    key, params_key, env_key = jax.random.split(key, 3)
    actor, critic = networks(config, env)
    params = initialize(params_key, zeros(env.observation_space), actor=(actor, 0.01), critic=(critic, 1.0))
    pool = jax.tree.map(lambda x: jnp.broadcast_to(x, (config.pool_size, *x.shape)), params["actor"])
    only = (jnp.arange(config.pool_size) == 0).astype(jnp.float32)
    return State(
        params=params,
        opt_state=optimizer(config, config.learning_rate).init(params),
        env_state=reset(against(config, env, params, pool, only), env_key, config.num_envs),
        pool=pool,
        pool_elo=jnp.zeros(config.pool_size),
        results=jnp.zeros((config.pool_size, 3)),
        elo=jnp.float32(0),
        num_snapshots=jnp.int32(1),
        learning_rate=jnp.float32(config.learning_rate) if config.adapt_learning_rate else None,
        num_updates=jnp.int32(0),
        key=key,
    )


def act(config, env, state, obs, key, deterministic=False):
    """The move for obs `[N, O]`, and what the loss will need of it."""
    actor, _ = networks(config, env)
    pi = actor.apply(state.params["actor"], obs)
    action = pi.mode() if deterministic else pi.sample(key)
    return action, Recorded(action, pi.log_prob(action))


def judge(config, env, params, obs):
    """The logits of all moves and the value of observations, both for the player to move: what a search needs."""
    actor, critic = networks(config, env)
    return actor.apply(params["actor"], obs).logits, critic.apply(params["critic"], obs)


def cloning_loss(config, env, params, obs, action, key):
    """Loss `[B]` of demonstrated actions: how unlikely they are."""
    actor, _ = networks(config, env)
    return -actor.apply(params["actor"], obs).log_prob(action)


def objective(config, elements, progress):
    """Policy loss of each element `[B]`; `progress` through the run is in [0, 1]."""
    return clipped_surrogate(elements.log_ratio, elements.advantage, config.clip)


def loss(params, config, env, batch, progress, objective=objective):
    """Loss of one minibatch `[B]`, and its metrics."""
    actor, critic = networks(config, env)
    pi, value = actor.apply(params["actor"], batch.obs), critic.apply(params["critic"], batch.obs)
    log_prob = pi.log_prob(batch.action)
    log_ratio = log_prob - batch.log_prob
    advantage = jnp.where(config.normalize_advantage, standardize(batch.advantage), batch.advantage)
    policy_loss = objective(config, Elements(log_ratio, advantage, log_prob), progress).mean()
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


def remembered(config, state, params, new):
    """The fields of the pool after new results `[P, 3]`: the rating, and where it is time a snapshot of `params`."""
    results = config.results_decay * state.results + new
    elo = elo_update(state.elo, state.pool_elo, scores_of(new), new.sum(-1), config.elo_k)
    due = (state.num_updates + 1) % config.snapshot_every == 0
    taken = due & (win_rates(results.sum(0)) >= config.snapshot_above)
    place = state.num_snapshots % config.pool_size
    fields = {"pool": state.pool, "pool_elo": state.pool_elo, "results": results}
    after = insert(fields, {"pool": params["actor"], "pool_elo": elo, "results": jnp.zeros(3)}, place)
    fields = jax.tree.map(lambda a, b: jnp.where(taken, a, b), after, fields)
    return fields | {"elo": elo, "num_snapshots": state.num_snapshots + taken}


def update(config, env, state, *, objective: Callable = objective):
    """One rollout and the epochs of gradient steps on it; `objective` may be any callable pytree of its signature."""
    key, rollout_key, shuffle_key = jax.random.split(state.key, 3)
    policy = partial(act, config, env, state)
    present = jnp.arange(config.pool_size) < state.num_snapshots
    weights = opponent_weights(win_rates(state.results), present, config.opponent_power)
    opposed = against(config, env, state.params, state.pool, weights)
    env_state, traj = rollout(opposed, policy, state.env_state, rollout_key, config.num_steps)
    data = advantages(config, env, state, traj)
    elements = flatten(data)
    progress = training_progress(config, state)
    rate = state.learning_rate if config.adapt_learning_rate else config.learning_rate
    learning_rate = rate * jnp.where(config.anneal_learning_rate, 1.0 - progress, 1.0)

    def step(carry, batch):
        params, opt_state = carry
        grads, metrics = jax.grad(loss, has_aux=True)(params, config, env, batch, progress, objective)
        metrics["grad_norm"] = global_norm(grads)
        updates, opt_state = optimizer(config, learning_rate).update(grads, opt_state)
        return (optax.apply_updates(params, updates), opt_state), metrics

    def epoch(carry, index):
        return jax.lax.scan(step, carry, gather(elements, index))

    indices = minibatches(shuffle_key, num_rows(elements), config.num_minibatches, config.num_epochs)
    (params, opt_state), metrics = jax.lax.scan(epoch, (state.params, state.opt_state), indices)
    rate = kl_adapted(rate, metrics["approx_kl"][-1].mean(), config.target_kl) if config.adapt_learning_rate else None
    kept = remembered(config, state, params, count_results(traj.info, traj.done, config.pool_size))
    shares = kept["results"].sum(0) / jnp.maximum(kept["results"].sum(), 1e-6)
    metrics = {
        **episode_metrics(traj),
        **{f"pool_{name}": share for name, share in zip(OUTCOMES, shares, strict=True)},
        **{name: kept[name] for name in ("elo", "num_snapshots")},
        **jax.tree.map(jnp.mean, metrics),
        "explained_variance": explained_variance(data.value, data.target),
        "learning_rate": learning_rate,
    }
    done = state.num_updates + 1
    return State(params, opt_state, env_state, **kept, learning_rate=rate, num_updates=done, key=key), metrics


if __name__ == "__main__":
    from rlx.cli import run_file

    run_file(__file__)
