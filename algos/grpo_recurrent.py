"""Group Relative Policy Optimization with memory, for discrete and continuous actions.

    python algos/grpo_recurrent.py --env rlx/HiddenCartPole

Reference: Shao et al. 2024, DeepSeekMath, arXiv:2402.03300; its relatives are settings of Config, see rlx.relatives.

Axes: T time, N groups, G members of a group, B minibatch of episodes, O observation, A action.

There is no critic. Every update plays N groups of G episodes; the members of a group start from the same state and
differ in their actions. The outcome of an episode is compared with those of the others of its group. The actor sees the
observation and a memory of those before, and gradients go back through whole episodes.

Deviations from the paper:
- The environment is one of control or of sequences: a step is an action, and rewards may come at every step.
- The default is not the paper's: return-to-go against the mean of the other members, over the spread of the batch.
  `VARIANTS["grpo"]` is the paper's.
- The KL from the reference is in closed form; the reference is the policy of some updates ago (`reference_interval`).
- Groups may, to compare, not share their start (`same_start`).
- Minibatches are of whole episodes, and the horizon holds every one; what a time limit cuts counts as it is.
- The learning rate falls linearly to 0 over the run (`anneal_learning_rate`), and the norm of the gradient is clipped.
- Observations may be normalised by running statistics, which change after the gradient steps only.

The step count includes padding after an episode's end; `alive_steps` excludes it.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import optax

from rlx import groups
from rlx.clipping import clip_by_global_norm
from rlx.descent import descend
from rlx.facts import gathered
from rlx.networks import BOUNDED, CELLS, POLICIES, TORSOS, Actor, Memory, Torso, empty_memory, initialize
from rlx.normalize import Statistics, normalize, statistics, update_statistics
from rlx.objectives import Elements, approx_kl, clipped_surrogate, kl_adapted
from rlx.pytree import num_rows, pytree, replace, static, traced
from rlx.relatives import ADJUSTMENTS, BASELINES, CREDITS, MASKS, RATIOS, SCALES, SHAPES, WEIGHTS, advantages
from rlx.relatives import VARIANTS as VARIANTS
from rlx.relatives import check as check_stages
from rlx.rollout import check_divides, check_horizon, episode_metrics, episodes, minibatches, reset
from rlx.spaces import check_spaces, rescale, visible, zeros
from rlx.train import training_progress


@pytree
class Config:
    total_steps: int = static(1_000_000)  # environment steps of the whole run, rounded up to whole updates
    num_groups: int = static(8)  # N
    group_size: int = static(8, at_least=2)  # G
    num_steps: int = static(500)  # T, has to hold a whole episode
    num_epochs: int = static(4)
    num_minibatches: int = static(4)
    learning_rate: float = traced(1e-3, at_least=0)
    anneal_learning_rate: bool = True
    adapt_learning_rate: bool = static(False)  # by the KL of an update's last epoch, towards its target
    target_kl: float = traced(0.01, above=0)
    gamma: float = traced(0.99, at_least=0, at_most=1)
    clip: float = traced(0.2, above=0)
    clip_high: float = traced(0.2, above=0)
    kl_coef: float = traced(0.0, at_least=0)
    entropy_coef: float = traced(0.01, at_least=0)
    max_grad_norm: float = traced(0.5, above=0)
    adam_epsilon: float = traced(1e-5, above=0)
    reference_interval: int = traced(1, at_least=1)  # updates
    credit: str = static("to_go", one_of=CREDITS)  # what a step has to do with
    baseline: str = static("others", one_of=BASELINES)  # what is taken off it
    scale: str = static("batch", one_of=SCALES)  # what it is divided by, the spread of the outcomes
    weights: str = static("step", one_of=WEIGHTS)  # what counts the same in the mean
    ratio: str = static("step", one_of=RATIOS)  # what the ratio of probabilities is of
    shape: str = static("none", one_of=SHAPES)  # what an outcome becomes first, beside the others of its group
    adjust: tuple[str, ...] = static((), one_of=ADJUSTMENTS)  # what an advantage becomes at last
    masks: tuple[str, ...] = static((), one_of=MASKS)  # what is left out of the policy loss
    amount: float = traced(1.0)  # the number of a shape, a credit or an adjustment
    same_start: bool = static(True)
    normalize_obs: bool = static(False)
    hidden_sizes: tuple[int, ...] = static((64,))
    torso: str = static("mlp", one_of=TORSOS)  # convolutions before them, for image observations
    conv_features: tuple[int, ...] = static(())  # their filters; with mlp of 3 x 3 convolutions
    activation: str = static("tanh")
    actor_obs: tuple[str, ...] = static(())  # entries of a Dict that the actor sees; none: all that are not privileged
    policy: str = static("normal", one_of=POLICIES)  # density of continuous actions
    cell: str = static("gru", one_of=CELLS)  # of the memory
    memory_size: int = static(64)

    @property
    def num_episodes(self) -> int:
        return self.num_groups * self.group_size

    @property
    def steps_per_update(self) -> int:
        return self.num_episodes * self.num_steps


@pytree
class State:
    params: dict  # of memory and actor
    reference: dict  # its params some updates ago
    opt_state: optax.OptState
    obs_stats: Statistics
    learning_rate: jax.Array | None  # before annealing, where it is adapted
    num_updates: jax.Array
    key: jax.Array


@pytree
class Recorded:
    """What the loss needs of the moment of acting."""

    action: jax.Array  # in unit coordinates, before clipping
    log_prob: jax.Array


@pytree
class Batch:
    obs: jax.Array  # normalised
    action: jax.Array
    log_prob: jax.Array
    reference: object  # the distribution that the reference policy has there
    advantage: jax.Array
    weight: jax.Array  # of the step in the policy loss
    even: jax.Array  # in all other means
    alive: jax.Array


def networks(config, env):
    """Memory and actor."""
    space = visible(env.observation_space, config.actor_obs)
    torso = Torso(space, config.hidden_sizes, config.activation, config.conv_features, kind=config.torso)
    core = Memory(replace(torso, hidden_sizes=()), config.cell, config.memory_size, config.num_steps)
    return core, Actor(env.action_space, torso, policy=config.policy)


def memory(config, env, num):
    """What is remembered at the beginning of `num` episodes: nothing."""
    return empty_memory(config.cell, config.memory_size, num)


def played(config, env, params, obs):
    """The distributions over actions in whole episodes `[B, T]`."""
    core, actor = networks(config, env)
    one_episode = jnp.zeros((num_rows(obs), config.num_steps), bool)  # nothing begins anew within it
    h, _ = core.apply(params["memory"], obs, memory(config, env, num_rows(obs)), one_episode)
    return actor.apply(params["actor"], obs, h)


def optimizer(config, learning_rate):
    clip = clip_by_global_norm(config.max_grad_norm)
    adam = optax.adam(learning_rate, eps=config.adam_epsilon, eps_root=1e-20)  # to be differentiable at gradients of 0
    return optax.flatten(optax.chain(clip, adam))  # all parameters as one vector: a few large operations


def check(config, env):
    """Raises ValueError for settings that do not fit each other or the environment."""
    check_spaces(env, bounded=config.policy in BOUNDED, normalized=config.normalize_obs)
    check_stages(config, env)
    check_horizon(env, config.num_steps)
    check_divides(config.num_episodes, config.num_minibatches, "num_groups * group_size")


def init(config, env, key):
    check(config, env)
    key, params_key, _ = jax.random.split(key, 3)
    core, actor = networks(config, env)
    obs, one = zeros(env.observation_space), jax.tree.map(lambda x: x[0], memory(config, env, 1))
    params = initialize(params_key, obs, memory=(core, 1.0, one), actor=(actor, 0.01, jnp.zeros(config.memory_size)))
    return State(
        params=params,
        reference=params,
        opt_state=optimizer(config, config.learning_rate).init(params),
        obs_stats=statistics(env.observation_space),
        learning_rate=jnp.float32(config.learning_rate) if config.adapt_learning_rate else None,
        num_updates=jnp.int32(0),
        key=key,
    )


def normalized(config, state, obs):
    """What the networks see of an observation."""
    return normalize(state.obs_stats, obs) if config.normalize_obs else obs


def act(config, env, state, obs, key, memory, deterministic=False):
    """The environment's action for obs `[N * G, O]`, what the loss will need of it, and the memory after it."""
    core, actor = networks(config, env)
    obs = normalized(config, state, obs)
    h, after = core.apply(state.params["memory"], obs, memory)
    pi = actor.apply(state.params["actor"], obs, h)
    action = pi.mode() if deterministic else pi.sample(key)
    return rescale(env.action_space, pi.squash(action)), Recorded(action, pi.log_prob(action)), after


def objective(config, elements, progress):
    """Policy loss of each step; `progress` through the run is in [0, 1]."""
    return clipped_surrogate(elements.log_ratio, elements.advantage, config.clip, config.clip_high)


def loss(params, config, env, batch, progress, objective=objective):
    """Loss of one minibatch of episodes `[B, T]`, and its metrics."""
    pi = played(config, env, params, batch.obs)
    log_prob = pi.log_prob(batch.action)
    log_ratio_step = jnp.where(batch.alive, log_prob - batch.log_prob, 0.0)
    log_ratio = RATIOS[config.ratio](log_ratio_step, batch.alive)
    mean = lambda x, weight=batch.even: config.num_minibatches * (weight * jnp.where(batch.alive, x, 0.0)).sum()
    elements = Elements(log_ratio, batch.advantage, log_prob, batch.alive)
    policy_loss = mean(objective(config, elements, progress), batch.weight)
    entropy, kl = mean(pi.entropy()), mean(pi.kl(batch.reference))
    return policy_loss + config.kl_coef * kl - config.entropy_coef * entropy, {
        "policy_loss": policy_loss,
        "entropy": entropy,
        "kl_reference": kl,
        "approx_kl": mean(approx_kl(log_ratio_step)),
        "clip_fraction": mean((jnp.expm1(log_ratio) < -config.clip) | (jnp.expm1(log_ratio) > config.clip_high)),
    }


def starts(config, env, key):
    """The states `[N * G]` that the episodes of an update start from, group by group."""
    if not config.same_start:
        return reset(env, key, config.num_episodes)
    return groups.clone(reset(env, key, config.num_groups), config.group_size)


def update(config, env, state, *, objective: Callable = objective):
    """Groups of episodes and the epochs of gradient steps on them; `objective` may be any callable pytree like it."""
    key, start_key, play_key, shuffle_key = jax.random.split(state.key, 4)
    start, empty = starts(config, env, start_key), memory(config, env, config.num_episodes)
    _, traj, alive = episodes(env, partial(act, config, env, state), start, play_key, config.num_steps, empty)
    by_episode = lambda tree: jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), tree)  # [T, N * G] as [N * G, T]
    obs, recorded, alive_by_episode = by_episode((normalized(config, state, traj.obs), traj.recorded, alive))
    actor, reference = (played(config, env, params, obs) for params in (state.params, state.reference))
    *found, degenerate = advantages(config, gathered(env, traj, alive, config.group_size, actor))
    flat = [x.reshape(config.num_episodes, -1) for x in found]
    data = Batch(obs, recorded.action, recorded.log_prob, reference, *flat, alive_by_episode)
    progress = training_progress(config, state)
    rate = state.learning_rate if config.adapt_learning_rate else config.learning_rate
    learning_rate = rate * jnp.where(config.anneal_learning_rate, 1.0 - progress, 1.0)
    of_batch = lambda params, batch: loss(params, config, env, batch, progress, objective)
    indices = minibatches(shuffle_key, config.num_episodes, config.num_minibatches, config.num_epochs)
    optimize = optimizer(config, learning_rate)
    params, opt_state, metrics = descend(of_batch, optimize, state.params, state.opt_state, data, indices)
    rate = kl_adapted(rate, metrics["approx_kl"][-1].mean(), config.target_kl) if config.adapt_learning_rate else None
    metrics = {
        **episode_metrics(traj),
        **jax.tree.map(jnp.mean, metrics),
        "degenerate_fraction": degenerate.mean(),
        "alive_steps": alive.sum(),
        "learning_rate": learning_rate,
    }
    fresh = (state.num_updates + 1) % config.reference_interval == 0
    reference = jax.tree.map(lambda new, old: jnp.where(fresh, new, old), params, state.reference)
    obs_stats = update_statistics(state.obs_stats, traj.obs, alive) if config.normalize_obs else state.obs_stats
    return State(params, reference, opt_state, obs_stats, rate, state.num_updates + 1, key), metrics


if __name__ == "__main__":
    from rlx.cli import run_file

    run_file(__file__)
