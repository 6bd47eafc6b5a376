"""PPO of a mixture whose gate learns which component has the best value: PMOE.

Reference: Ren et al. 2021, Probabilistic Mixture-of-Experts for Efficient Deep Reinforcement Learning,
arXiv:2104.09122.

What ppo.py does, and beside it a critic of actions, fitted to the same targets as the values, and the gate's loss.

Deviations from the paper, of which a third party's code was read:
- Which component is the best is drawn once an update, by the critic of actions as it was before.
- The gate's loss reaches the weights of the head alone, so that components do not move with it.
- It begins after a part of the run (`gate_warmup`): a critic that has learned nothing chooses one component for good.
"""

from functools import partial

import jax
import jax.numpy as jnp
import optax

import rlx
from rlx.algos import ppo
from rlx.descent import descend
from rlx.envs.tasks.multigoal import coverage, goal_entropy, goal_shares, goals_reached
from rlx.gating import best_component, gate_loss
from rlx.networks import Critic, Torso, initialize
from rlx.normalize import update_statistics
from rlx.presets import configure, settings
from rlx.pytree import num_rows, pytree, replace, static, traced
from rlx.rollout import episode_metrics, flatten, minibatches, reset, rollout
from rlx.spaces import zeros
from rlx.train import training_progress


@pytree
class Config(ppo.Config):
    num_components: int = static(5, at_least=2)  # K
    gate_coef: float = traced(1.0, at_least=0)
    gate_warmup: float = traced(0.2, at_least=0, at_most=1)  # part of the run before the gate's loss begins


@pytree
class Batch:
    """What a gradient step sees: that of PPO, and the component that was the best."""

    own: ppo.Batch
    best: jax.Array


State, act = ppo.State, ppo.act
BEST = 0x62657374  # names the random stream of the draws


def action_critic(config, env):
    """Q(s, a), of the critic's shape."""
    return Critic(Torso(env.observation_space, config.hidden_sizes, config.activation))


def init(config, env, key):
    state = ppo.init(config, env, key)
    inputs = zeros(env.observation_space), zeros(env.action_space)
    critic = initialize(jax.random.fold_in(key, BEST), inputs[0], q=(action_critic(config, env), 1.0, inputs[1]))
    params = state.params | critic
    return replace(state, params=params, opt_state=ppo.optimizer(config, config.learning_rate).init(params))


def chosen(config, env, params, obs, key):
    """The best component at each of obs `[B, O]`, by the critic of actions."""
    pi = ppo.networks(config, env)[0].apply(params["actor"], obs)
    q = partial(action_critic(config, env).apply, params["q"])
    return best_component(pi, jax.vmap(partial(q, obs), in_axes=1, out_axes=1), key)


def gate(config, env, params, obs):
    """The weights `[B, K]` of the mixture, as a function of the head's parameters alone."""
    layers = jax.lax.stop_gradient(params["actor"]["params"]) | {"head": params["actor"]["params"]["head"]}
    return jax.nn.softmax(ppo.networks(config, env)[0].apply({"params": layers}, obs).logits)


def loss(params, config, env, batch, progress):
    """PPO's, those of the critic of actions and of the gate, and their metrics."""
    total, metrics = ppo.loss(params, config, env, batch.own, progress)
    q = action_critic(config, env).apply(params["q"], batch.own.obs, batch.own.action)
    q_loss = optax.l2_loss(q, batch.own.target).mean()
    weights = gate(config, env, params, batch.own.obs)
    own = gate_loss(weights, batch.best).mean()
    coef = jnp.where(progress >= config.gate_warmup, config.gate_coef, 0.0)
    gate_entropy = jax.scipy.special.entr(weights).sum(axis=-1).mean()
    more = {"q_loss": q_loss, "gate_loss": own, "gate_entropy": gate_entropy}
    return total + config.value_coef * q_loss + coef * own, metrics | more


def update(config, env, state):
    """One rollout and the epochs of gradient steps on it."""
    key, rollout_key, shuffle_key = jax.random.split(state.key, 3)
    env_state, traj = rollout(env, partial(act, config, env, state), state.env_state, rollout_key, config.num_steps)
    data, scale = ppo.advantages(config, env, state, traj)
    elements = flatten(data)
    best = chosen(config, env, state.params, elements.obs, jax.random.fold_in(rollout_key, BEST))
    progress = training_progress(config, state)
    optimizer = ppo.optimizer(
        config, config.learning_rate * jnp.where(config.anneal_learning_rate, 1.0 - progress, 1.0)
    )
    indices = minibatches(shuffle_key, num_rows(elements), config.num_minibatches, config.num_epochs)
    of_batch = lambda params, batch: loss(params, config, env, batch, progress)
    learned = state.params, state.opt_state
    params, opt_state, metrics = descend(of_batch, optimizer, *learned, Batch(elements, best), indices)
    metrics = {**episode_metrics(traj), **jax.tree.map(jnp.mean, metrics)}
    obs_stats = update_statistics(state.obs_stats, traj.obs) if config.normalize_obs else state.obs_stats
    changed = {"params": params, "opt_state": opt_state, "env_state": env_state, "obs_stats": obs_stats}
    return replace(state, **changed, reward_scale=scale, num_updates=state.num_updates + 1, key=key), metrics


def from_the_middle(algorithm, shipped, total_steps, **changed):
    """Trains on MultiGoal with the settings that ship with an algorithm.

    Measured are the number of goals that the policy gets to from the middle, how evenly, and its return from there.
    """

    def measured(env, seed):
        own = settings(shipped, "rlx/MultiGoal") | {"total_steps": total_steps} | changed
        config = configure(algorithm.Config, own)
        keys = jax.random.split(jax.random.key(seed), 3)
        state, _ = rlx.train(algorithm, config, env, keys[0])
        middle = replace(env, params=replace(env.params, start=0.0))
        start = reset(middle, keys[1], 1000)
        _, traj = rollout(middle, partial(algorithm.act, config, middle, state), start, keys[2], env.max_steps)
        at_end = lambda x: x[jnp.argmax(traj.done, axis=0), jnp.arange(1000)]
        shares = goal_shares(goals_reached(at_end(traj.next_obs)[:, :2], env.params))
        found = {"goals": coverage(shares), "goal_entropy": goal_entropy(shares)}
        return found | {"return": at_end(traj.episode_return).mean()}

    return measured
