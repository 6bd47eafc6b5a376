"""Proximal Robust On-Policy Sampling: PPO on several rollouts, acting so that these look as the policy's own.

    python algos/props.py --env CartPole-v1
    python algos/props.py --env CartPole-v1 --variant remix

Reference: Corrado, Hanna 2023, On-Policy Policy Gradient Reinforcement Learning Without On-Policy Sampling,
arXiv:2311.08290; the rest is PPO, Schulman et al. 2017, arXiv:1707.06347.

Axes: T time, N environments, H rollouts that are learned from, B minibatch, O observation, A action.

All H rollouts count as the policy's own, without importance weights: their log-probabilities are those of the policy at
the start of the update. What makes that right is how the last one is sampled. Every `sampling_steps` steps the behavior
policy begins at the policy, and learns to do what all data so far have too little of. With `behavior_epochs = 0` it is
PPO with a history, and with H = 1 besides it is PPO.

With `on_policy` off, ratios are to the policies that acted, and the clip is around how far the policy has come from
them (ReMix, Squeeze the Soaked Sponge, 2025; its clip is that of Queeney et al. 2021). Rollouts before the last have
`replay_share` of the loss, up to `restart_step`. The KLs from the policy of that step (before it, of the first) and
from that of an update ago hold the policy back (`anchor_coef`); the weight of the former falls from 1 to 1/2.

Deviations from the papers, beside those of ppo.py from its own:
- A share of a loss is a weight of its elements. Nothing is normalised but advantages, and the
  value loss is not clipped.
- ReMix was read in a secondary text: the step of its restart and the weight of its anchors are settings here.
"""

from functools import partial

import jax
import jax.numpy as jnp
import optax

from rlx.advantages import gae, standardize
from rlx.clipping import clip_by_global_norm, global_norm
from rlx.env import EnvState
from rlx.networks import Actor, Critic, Torso, initialize
from rlx.objectives import approx_kl
from rlx.pytree import num_rows, pytree, replace, static, traced
from rlx.rollout import check_divides, episode_metrics, gather, minibatches, reset, rollout
from rlx.sampling import missing_loss, replayed_surrogate
from rlx.spaces import check_spaces, rescale, visible, zeros
from rlx.train import training_progress

VARIANTS = {
    "remix": {"on_policy": False, "behavior_epochs": 0, "num_rollouts": 3, "anchor_coef": 0.1, "restart_step": 50_000}
}


@pytree
class Config:
    total_steps: int = static(500_000)  # environment steps of the whole run, rounded up to whole updates
    num_envs: int = static(4)  # N
    num_steps: int = static(64)  # T, steps of each environment between updates
    num_rollouts: int = static(2, at_least=1)  # H
    num_epochs: int = static(4)
    num_minibatches: int = static(4)
    sampling_steps: int = static(16, at_least=1)  # of each environment, after which the behavior policy learns
    behavior_epochs: int = static(4, at_least=0)  # 0 acts with the policy itself
    behavior_rate: float = traced(1e-3, at_least=0)
    behavior_clip: float = traced(0.3, above=0)
    behavior_kl: float = traced(0.01, above=0)  # beyond which it learns no further
    on_policy: bool = static(True)  # whether all data count as the policy's own; else by ratios to those that acted
    replay_share: float = traced(0.4, at_least=0, at_most=1)  # of the loss, of rollouts before the last, by ratios
    restart_step: int = traced(0, at_least=0)  # environment steps after which these are left out, by ratios; 0 is never
    anchor_coef: float = traced(0.0, at_least=0)  # of the KL from the policies at the restart and an update ago
    learning_rate: float = traced(2.5e-4, at_least=0)
    anneal_learning_rate: bool = True
    gamma: float = traced(0.99, at_least=0, at_most=1)
    gae_lambda: float = traced(0.95, at_least=0, at_most=1)
    clip: float = traced(0.2, above=0)
    value_coef: float = traced(0.5, at_least=0)
    entropy_coef: float = traced(0.01, at_least=0)
    max_grad_norm: float = traced(0.5, above=0)
    hidden_sizes: tuple[int, ...] = static((64, 64))
    activation: str = static("tanh")

    @property
    def steps_per_update(self) -> int:
        return self.num_envs * self.num_steps


@pytree
class State:
    params: dict  # of actor and critic
    base: dict  # of the actor, at first or at the restart
    before: dict  # of the actor, an update ago
    opt_state: optax.OptState
    env_state: EnvState  # [N]
    past: "Kept"  # [H, T, N], the newest last
    num_updates: jax.Array
    key: jax.Array


@pytree
class Kept:
    """What is kept of a rollout."""

    obs: jax.Array
    action: jax.Array  # in unit coordinates, before clipping
    log_prob: jax.Array  # of the policy that acted
    reward: jax.Array
    next_obs: jax.Array
    terminated: jax.Array
    done: jax.Array


@pytree
class Batch:
    obs: jax.Array
    action: jax.Array
    log_prob: jax.Array  # of the policy that the ratio is to
    log_drift: jax.Array  # of the policy at the start of the update to that one
    advantage: jax.Array
    target: jax.Array
    weight: jax.Array


def networks(config, env):
    """Actor and critic, separate and of the same shape."""
    torso = lambda x: Torso(x, config.hidden_sizes, config.activation)
    return Actor(env.action_space, torso(visible(env.observation_space))), Critic(torso(visible(env.observation_space)))


def optimizer(config, learning_rate):
    clip = clip_by_global_norm(config.max_grad_norm)
    adam = optax.adam(learning_rate, eps=1e-5, eps_root=1e-20)  # to be differentiable at gradients of 0
    return optax.flatten(optax.chain(clip, adam))  # all parameters as one vector: a few large operations


def check(config, env):
    """Raises ValueError for settings that do not fit each other or the environment."""
    check_spaces(env)
    check_divides(config.steps_per_update * config.num_rollouts, config.num_minibatches, "elements of all rollouts")
    if config.num_steps % config.sampling_steps:
        raise ValueError(f"sampling_steps = {config.sampling_steps} does not divide num_steps = {config.num_steps}")


def init(config, env, key):
    check(config, env)
    key, params_key, env_key = jax.random.split(key, 3)
    actor, critic = networks(config, env)
    env_state = reset(env, env_key, config.num_envs)
    params = initialize(params_key, zeros(env.observation_space), actor=(actor, 0.01), critic=(critic, 1.0))
    state = State(
        params=params,
        base=params["actor"],
        before=params["actor"],
        opt_state=optimizer(config, config.learning_rate).init(params),
        env_state=env_state,
        past=None,
        num_updates=jnp.int32(0),
        key=key,
    )
    one = jax.eval_shape(lambda: kept(rollout(env, partial(act, config, env, state), env_state, key, 1)[1]))
    shape = config.num_rollouts, config.num_steps
    return replace(state, past=jax.tree.map(lambda x: jnp.zeros((*shape, *x.shape[1:]), x.dtype), one))


def kept(traj):
    """What is kept of a rollout `[T, N]`."""
    recorded = traj.recorded
    return Kept(traj.obs, *recorded, traj.reward, traj.next_obs, traj.terminated, traj.done)


def act(config, env, state, obs, key, deterministic=False):
    """The environment's action for obs `[N, O]`; the same in unit coordinates and its log-probability."""
    pi = networks(config, env)[0].apply(state.params["actor"], obs)
    action = pi.mode() if deterministic else pi.sample(key)
    return rescale(env.action_space, pi.squash(action)), (action, pi.log_prob(action))


def behavior(config, env, state, held, weight, key):
    """Parameters of an actor that does more of what data `[M]` with these weights have too little of, and the KL."""
    actor = networks(config, env)[0]
    obs, action = held.obs, held.action
    mine = actor.apply(state.params["actor"], obs).log_prob(action)
    adam = optimizer(config, config.behavior_rate)

    def missing(params, obs, action, mine, weight):
        log_ratio = actor.apply(params, obs).log_prob(action) - mine
        mean = lambda x: (weight * x).sum() / jnp.maximum(weight.sum(), 1.0)
        return mean(missing_loss(log_ratio, config.behavior_clip)), mean(approx_kl(log_ratio))

    def step(carry, index):
        params, opt_state, go = carry
        grads, kl = jax.grad(missing, has_aux=True)(params, *gather((obs, action, mine, weight), index))
        go &= kl <= config.behavior_kl
        updates, new_state = adam.update(grads, opt_state)
        new = optax.apply_updates(params, updates)
        kept = lambda new, old: jax.tree.map(partial(jnp.where, go), new, old)
        return (kept(new, params), kept(new_state, opt_state), go), kl

    indices = minibatches(key, num_rows(action), config.num_minibatches, config.behavior_epochs)
    first = state.params["actor"]
    start = first, adam.init(first), jnp.array(True)
    (params, *_), kl = jax.lax.scan(step, start, indices.reshape(-1, indices.shape[-1]))
    return params, kl[-1]


def collected(config, env, state, key):
    """A rollout, in pieces before each of which the behavior policy learns: `[T, N]`, and how far it went."""
    pieces = config.num_steps // config.sampling_steps
    first = jax.tree.map(lambda x: jnp.roll(x, -1, axis=0), state.past)  # the new one takes the place of the oldest
    age = config.num_rollouts - 1 - jnp.arange(config.num_rollouts)[:, None, None]
    there = age <= state.num_updates

    def piece(carry, x):
        env_state, held = carry
        number, key = x
        learn_key, play_key = jax.random.split(key)
        time = number * config.sampling_steps
        weight = there & ((age > 0) | (jnp.arange(config.num_steps) < time)[:, None])
        weight = jnp.broadcast_to(weight, held.done.shape).astype(jnp.float32)
        acting, kl = state, jnp.float32(0)
        if config.behavior_epochs:
            flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[3:]), (held, weight))
            params, kl = behavior(config, env, state, *flat, learn_key)
            acting = replace(state, params=state.params | {"actor": params})
        policy = partial(act, config, env, acting)
        env_state, traj = rollout(env, policy, env_state, play_key, config.sampling_steps)
        put = lambda x, new: jax.lax.dynamic_update_slice_in_dim(x, new[None], time, axis=1)
        last = jax.tree.map(lambda x, new: put(x[-1:], new), held, kept(traj))
        held = jax.tree.map(lambda x, new: x.at[-1:].set(new), held, last)
        return (env_state, held), (traj, kl)

    keys = jax.random.split(key, pieces)
    (env_state, held), (traj, kl) = jax.lax.scan(piece, (state.env_state, first), (jnp.arange(pieces), keys))
    traj = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), traj)
    return env_state, traj, held, there, kl.mean()


def advantages(config, env, state, held, there):
    """What there is to learn from rollouts `[H, T, N]`, of which some are not there yet."""
    actor, critic = networks(config, env)
    value, next_value = (critic.apply(state.params["critic"], x) for x in (held.obs, held.next_obs))
    of = jax.vmap(gae, (0, 0, 0, 0, 0, None, None))
    advantage = of(held.reward, value, next_value, held.terminated, held.done, config.gamma, config.gae_lambda)
    mine = actor.apply(state.params["actor"], held.obs).log_prob(held.action)
    weight = jnp.broadcast_to(there, held.done.shape).astype(jnp.float32)
    if config.on_policy:
        return Batch(held.obs, held.action, mine, jnp.zeros_like(mine), advantage, advantage + value, weight)
    over = (config.restart_step > 0) & (state.num_updates * config.steps_per_update >= config.restart_step)
    old, num = jnp.where(over, 0.0, config.replay_share), jnp.maximum(there.sum() - 1, 1)
    share = jnp.full((config.num_rollouts, 1, 1), old / num).at[-1].set(1.0 - jnp.where(there.sum() > 1, old, 0.0))
    drift = mine - held.log_prob
    return Batch(held.obs, held.action, held.log_prob, drift, advantage, advantage + value, weight * share)


def loss(params, config, env, batch, anchors, anchor_share):
    """Loss of one minibatch `[B]`, and its metrics; `anchors` are the actors' parameters that the KLs are from."""
    actor, critic = networks(config, env)
    pi, value = actor.apply(params["actor"], batch.obs), critic.apply(params["critic"], batch.obs)
    log_ratio = pi.log_prob(batch.action) - batch.log_prob
    advantage = standardize(batch.advantage, where=batch.weight > 0)
    mean = lambda x: (batch.weight * x).sum() / jnp.maximum(batch.weight.sum(), 1e-8)
    policy_loss = mean(replayed_surrogate(log_ratio, advantage, batch.log_drift, config.clip))
    value_loss, entropy = mean(optax.l2_loss(value, batch.target)), mean(pi.entropy())
    base, before = (mean(pi.kl(actor.apply(anchor, batch.obs))) for anchor in anchors)
    held = config.anchor_coef * (anchor_share * base + (1.0 - anchor_share) * before)
    return policy_loss + held + config.value_coef * value_loss - config.entropy_coef * entropy, {
        "policy_loss": policy_loss,
        "value_loss": value_loss,
        "entropy": entropy,
        "kl_base": base,
        "approx_kl": mean(approx_kl(log_ratio - batch.log_drift)),
    }


def update(config, env, state):
    """One rollout and the epochs of gradient steps on it and on those before."""
    key, play_key, shuffle_key = jax.random.split(state.key, 3)
    env_state, traj, held, there, behavior_kl = collected(config, env, state, play_key)
    elements = jax.tree.map(lambda x: x.reshape(-1, *x.shape[3:]), advantages(config, env, state, held, there))
    progress = training_progress(config, state)
    learning_rate = config.learning_rate * jnp.where(config.anneal_learning_rate, 1.0 - progress, 1.0)
    anchors = state.base, state.before

    def step(carry, index):
        params, opt_state = carry
        batch = gather(elements, index)
        grads, metrics = jax.grad(loss, has_aux=True)(params, config, env, batch, anchors, 1.0 - progress / 2)
        metrics["grad_norm"] = global_norm(grads)
        updates, opt_state = optimizer(config, learning_rate).update(grads, opt_state)
        return (optax.apply_updates(params, updates), opt_state), metrics

    indices = minibatches(shuffle_key, num_rows(elements), config.num_minibatches, config.num_epochs)
    indices = indices.reshape(-1, indices.shape[-1])
    (params, opt_state), metrics = jax.lax.scan(step, (state.params, state.opt_state), indices)
    num_updates, before = state.num_updates + 1, state.num_updates * config.steps_per_update
    again = (before < config.restart_step) & (num_updates * config.steps_per_update >= config.restart_step)
    base = jax.tree.map(partial(jnp.where, again), params["actor"], state.base)
    metrics = {**episode_metrics(traj), **jax.tree.map(jnp.mean, metrics), "behavior_kl": behavior_kl}
    return State(params, base, state.params["actor"], opt_state, env_state, held, num_updates, key), metrics


if __name__ == "__main__":
    from rlx.cli import run_file

    run_file(__file__)
