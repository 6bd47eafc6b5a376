"""Deep Q-Networks and their relatives, for discrete actions.

    python algos/dqn.py --env CartPole-v1 --variant rainbow

Reference: Mnih et al. 2015, Human-level control through deep reinforcement learning, Nature 518; time limits as in
Pardo et al. 2018, arXiv:1712.00378. The relatives are settings, see `VARIANTS`:

    double       actions by the online network, values by the target (van Hasselt et al. 2016, arXiv:1509.06461)
    dueling      a value and advantages (Wang et al. 2016, arXiv:1511.06581)
    n_step       several steps at once (Sutton & Barto 2018, equation 7.1)
    prioritized  elements by their errors (Schaul et al. 2016, arXiv:1511.05952)
    noisy        exploration by noise in the weights (Fortunato et al. 2018, arXiv:1706.10295)
    c51, qr, iqn distributions of returns: on atoms, as quantiles, as quantiles at any level (Bellemare et al. 2017,
                 arXiv:1707.06887; Dabney et al. 2018, arXiv:1710.10044 and arXiv:1806.06923)
    munchausen   a soft target with a bonus of log pi (Vieillard et al. 2020, arXiv:2007.14430)
    rainbow      double, dueling, n_step, prioritized, noisy and c51 together (Hessel et al. 2018, arXiv:1710.02298)

Axes: T time, N environments, G gradient steps, B minibatch, O observation, A actions to choose from, K atoms.

Deviations from the papers:
- N environments take T steps each, then the gradient steps for all of these follow.
- Steps of several are cut where a rollout ends, and go on from the value of the state there.
- Kernels start orthogonal, also those of noisy layers. Noise is another for each environment and each pass.
- Quantiles at any level act by those at the midpoints, not by random ones.
- Steps cut by a time limit bootstrap from the value of their true successor.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from rlx.bonuses import begin, pay
from rlx.clipping import clip_by_global_norm, global_norm
from rlx.env import EnvState
from rlx.exploration import epsilon_at, epsilon_greedy, greedy
from rlx.masks import mask_of, random_choices
from rlx.networks import NOISE, TORSOS, ActionReturns, Torso, initialize
from rlx.pytree import num_rows, pytree, static, traced
from rlx.replay import check_ratio, check_replay, draw, insert, replay, reprioritize, take
from rlx.rollout import episode_metrics, flatten, reset, rollout
from rlx.spaces import Discrete, check_spaces, rescale, visible, zeros
from rlx.train import training_progress
from rlx.values import (
    at_actions,
    bins,
    check_n_step,
    legal_values,
    midpoints,
    munchausen_bonus,
    n_step,
    projection,
    quantile_huber,
    soft_value,
)

RAINBOW = {"n_step": 3, "dueling": True, "prioritized": True, "distribution": "atoms", "noise": 0.5}
VARIANTS = {
    "dqn": {"double": False},
    "double": {},
    "dueling": {"dueling": True},
    "n_step": {"n_step": 3},
    "prioritized": {"prioritized": True},
    "noisy": {"noise": 0.5, "epsilon_start": 0.0, "epsilon_end": 0.0},
    "c51": {"double": False, "distribution": "atoms"},
    "qr": {"double": False, "distribution": "quantiles", "max_grad_norm": 1e6},  # the loss is a sum over quantiles
    "iqn": {"double": False, "distribution": "implicit", "max_grad_norm": 1e6},
    "munchausen": {"munchausen_coef": 0.9},
    "rainbow": {**RAINBOW, "epsilon_start": 0.0, "epsilon_end": 0.0},
}


@pytree
class Config:
    total_steps: int = static(500_000)  # environment steps of the whole run, rounded up to whole updates
    warmup_steps: int = static(1_000, at_least=0)  # of these, the first, with random actions and nothing learned
    num_envs: int = static(8)  # N
    num_steps: int = static(8)  # T, steps of each environment between updates
    utd_ratio: float = static(0.125, above=0)  # updates to data: gradient steps per environment step
    capacity: int = static(100_000)  # elements that the buffer keeps
    batch_size: int = static(128)  # B
    learning_rate: float = traced(5e-4, at_least=0)
    adam_epsilon: float = traced(1e-8, above=0)
    max_grad_norm: float = traced(10.0, above=0)
    gamma: float = traced(0.99, at_least=0, at_most=1)
    tau: float = traced(1.0, at_least=0, at_most=1)  # part of the way that the target goes to the values each time
    target_period: int = traced(60, at_least=1)  # gradient steps between two such times
    reward_scale: float = traced(1.0, above=0)
    epsilon_start: float = traced(1.0, at_least=0, at_most=1)
    epsilon_end: float = traced(0.05, at_least=0, at_most=1)
    epsilon_share: float = traced(0.5, above=0, at_most=1)  # of the run, in which epsilon falls
    double: bool = static(True)
    dueling: bool = static(False)
    n_step: int = static(1, at_least=1)
    prioritized: bool = static(False)
    priority_power: float = traced(0.5, at_least=0)
    importance_power: float = traced(0.4, at_least=0, at_most=1)  # at the start; at the end 1
    noise: float = static(0.0, at_least=0)  # of the layers, in shares of their weights; 0 has none
    distribution: str = static("mean", one_of=("mean", "atoms", "quantiles", "implicit"))
    num_atoms: int = static(51, at_least=1)  # K, or quantiles
    lowest_return: float = traced(-10.0)  # of the atoms
    highest_return: float = traced(10.0)
    munchausen_coef: float = static(0.0, at_least=0)  # 0 has the target of DQN
    temperature: float = traced(0.03, above=0)  # of munchausen
    lowest_log_prob: float = -1.0  # of munchausen, with the temperature
    layer_norm: bool = static(False)
    hidden_sizes: tuple[int, ...] = static((128, 128))
    torso: str = static("mlp", one_of=TORSOS)  # convolutions before them, for image observations
    conv_features: tuple[int, ...] = static(())  # their filters; with mlp of 3 x 3 convolutions
    activation: str = static("relu")
    actor_obs: tuple[str, ...] = static(())  # entries of a Dict that are seen; none: all that are not privileged

    @property
    def steps_per_update(self) -> int:
        return self.num_envs * self.num_steps

    @property
    def init_steps(self) -> int:
        return -(-self.warmup_steps // self.num_envs) * self.num_envs

    @property
    def gradient_steps(self) -> int:
        return round(self.utd_ratio * self.steps_per_update)  # G


@pytree
class State:
    params: dict  # of the values
    target_params: dict
    opt_state: optax.OptState
    env_state: EnvState  # [N]
    replay: Any  # with priorities or without
    num_updates: jax.Array
    key: jax.Array
    bonus: Any = None  # what a bonus for what is new has learned


@pytree
class Batch:
    obs: jax.Array
    action: jax.Array
    reward: jax.Array  # of all steps
    discount: jax.Array  # of what follows, 0 after a terminal step
    next_obs: jax.Array


def networks(config, env):
    """The returns of all actions."""
    layers = config.hidden_sizes, config.activation, config.conv_features, config.layer_norm, config.torso
    torso = Torso(visible(env.observation_space, config.actor_obs), *layers, noise=config.noise)
    num, implicit = 0 if config.distribution == "mean" else config.num_atoms, config.distribution == "implicit"
    return ActionReturns(env.action_space, torso, num, config.dueling, implicit, config.noise)


def optimizer(config):
    # The root's epsilon makes it differentiable at gradients of 0.
    adam = optax.adam(config.learning_rate, eps=config.adam_epsilon, eps_root=1e-20)
    return optax.flatten(optax.chain(clip_by_global_norm(config.max_grad_norm), adam))


def check(config, env):
    """Raises ValueError for settings that cannot work."""
    check_spaces(env, actions=Discrete)
    check_replay(config.total_steps, config.init_steps, config.batch_size, config.capacity)
    check_ratio(config.utd_ratio, config.steps_per_update)
    check_n_step(config.n_step, config.num_steps)
    if config.munchausen_coef and config.distribution != "mean":
        raise ValueError("munchausen_coef is of values alone: leave distribution at 'mean'")


def init(config, env, key, bonus=None):
    check(config, env)
    key, params_key, env_key, warmup_key = jax.random.split(key, 4)
    num_steps = config.init_steps // config.num_envs
    env_state, traj = rollout(env, partial(explore, env), reset(env, env_key, config.num_envs), warmup_key, num_steps)
    traj, learned, _ = pay(bonus, env, begin(bonus, env, config.num_envs, key), traj)
    elements = flatten(kept(config, traj))
    example = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), elements)
    buffer = replay(example, config.capacity, config.steps_per_update * env.num_agents, config.prioritized)
    network = networks(config, env), 1.0, midpoints(config.num_atoms)
    params = initialize(params_key, zeros(env.observation_space), values=network)
    opt_state = optimizer(config).init(params)
    return State(params, params, opt_state, env_state, insert(buffer, elements), jnp.int32(0), key, learned)


def kept(config, traj):
    """What the buffer keeps of transitions `[T, N]`."""
    step = n_step(traj.reward, traj.terminated, traj.done, traj.next_obs, config.n_step, config.gamma)
    return Batch(traj.obs, traj.recorded, step.reward, step.discount, step.next_obs)


def support(config):
    """The atoms `[K]`."""
    return bins(config.lowest_return, config.highest_return, config.num_atoms)


def returns(config, env, params, obs, levels, key=None):
    """What actions return, `[B, A]` or `[B, A, K]`, and the mean, that of illegal actions far below all others."""
    rngs = {NOISE: key} if config.noise and key is not None else {}
    found = networks(config, env).apply(params["values"], obs, levels, rngs=rngs)
    mean = jax.nn.softmax(found) @ support(config) if config.distribution == "atoms" else found.mean(-1)
    return found, legal_values(found if config.distribution == "mean" else mean, mask_of(obs))


def explore(env, obs, key):
    """Uniformly random legal actions, as `act` gives them."""
    action = random_choices(env.action_space, obs, key)
    return rescale(env.action_space, action), action


def act(config, env, state, obs, key, deterministic=False):
    """The environment's action for obs `[N, O]`, and the same as a choice, for the loss."""
    noise_key, action_key = jax.random.split(key)
    keys = None if deterministic else jax.random.split(noise_key, num_rows(obs))  # another in each environment
    one = lambda obs, key: returns(config, env, state.params, obs, midpoints(config.num_atoms), key)[1]
    q = jax.vmap(one, (0, None if deterministic else 0))(obs, keys)
    action = greedy(q) if deterministic else epsilon_greedy(q, epsilon(config, state), action_key, mask_of(obs))
    return rescale(env.action_space, action), action


def epsilon(config, state):
    """How often any action is taken, at the State's progress."""
    return epsilon_at(training_progress(config, state), config.epsilon_start, config.epsilon_end, config.epsilon_share)


def targets(config, env, params, target_params, batch, key):
    """What the action taken should return: values `[B]`, samples `[B, K]`, or probabilities of the atoms `[B, K]`."""
    level_key, now_key, next_key, choice_key = jax.random.split(key, 4)
    levels = jax.random.uniform(level_key, (*batch.reward.shape, config.num_atoms))
    after, mean = returns(config, env, target_params, batch.next_obs, levels, next_key)
    best = returns(config, env, params, batch.next_obs, levels, choice_key)[1] if config.double else mean
    reward, following = config.reward_scale * batch.reward, at_actions(after, greedy(best))
    if config.munchausen_coef:
        _, q = returns(config, env, target_params, batch.obs, levels, now_key)
        coefs = config.temperature, config.munchausen_coef, config.lowest_log_prob
        reward, following = reward + munchausen_bonus(q, batch.action, *coefs), soft_value(mean, config.temperature)
    if config.distribution == "mean":
        return reward + batch.discount * following
    later = lambda x: reward[:, None] + batch.discount[:, None] * x
    if config.distribution == "atoms":
        return projection(jax.nn.softmax(following), later(support(config)), support(config))
    return later(following)


def loss(params, config, env, batch, target, weight, key):
    """Loss of one minibatch `[B]`, the priorities of its elements and their values."""
    level_key, noise_key = jax.random.split(key)
    levels = jax.random.uniform(level_key, (*batch.reward.shape, config.num_atoms))
    found, mean = returns(config, env, params, batch.obs, levels, noise_key)
    taken, value = at_actions(found, batch.action), at_actions(mean, batch.action)
    if config.distribution == "mean":
        each, priority = optax.l2_loss(value, target), jnp.abs(value - target)
    elif config.distribution == "atoms":
        each = priority = -jnp.sum(target * jax.nn.log_softmax(taken), axis=-1)
    else:
        at = levels if config.distribution == "implicit" else midpoints(config.num_atoms)
        each = priority = quantile_huber(taken, target, jnp.broadcast_to(at, taken.shape))
    return (weight * each).mean(), (priority, value)


def update(config, env, state, bonus=None):
    """One rollout and the gradient steps that belong to it; `bonus` pays for what is new, see rlx.bonuses."""
    key, rollout_key, sample_key = jax.random.split(state.key, 3)
    env_state, traj = rollout(env, partial(act, config, env, state), state.env_state, rollout_key, config.num_steps)
    traj, learned, new = pay(bonus, env, state.bonus, traj)
    buffer = insert(state.replay, flatten(kept(config, traj)))
    beta = epsilon_at(training_progress(config, state), config.importance_power, 1.0, 1.0)

    def step(carry, x):
        (params, target_params, opt_state, buffer), (i, key) = carry, x
        draw_key, target_key, loss_key = jax.random.split(key, 3)
        index, weight = draw(buffer, draw_key, config.batch_size, beta)
        batch = take(buffer, index)
        target = targets(config, env, params, target_params, batch, target_key)
        inputs = params, config, env, batch, target, weight, loss_key
        (q_loss, (priority, value)), grads = jax.value_and_grad(loss, has_aux=True)(*inputs)
        updates, opt_state = optimizer(config).update(grads, opt_state)
        params = optax.apply_updates(params, updates)
        steps = state.num_updates * config.gradient_steps + i + 1
        rate = jnp.where(steps % config.target_period == 0, config.tau, 0.0)
        target_params = optax.incremental_update(params, target_params, rate)
        buffer = reprioritize(buffer, index, (priority + 1e-6) ** config.priority_power)
        metrics = {"value_loss": q_loss, "value": value.mean(), "grad_norm": global_norm(grads)}
        if config.distribution == "atoms":  # what is beyond the atoms goes to the first and the last
            metrics["mass_at_ends"] = target[:, 0].mean() + target[:, -1].mean()
        return (params, target_params, opt_state, buffer), metrics

    carry = state.params, state.target_params, state.opt_state, buffer
    xs = jnp.arange(config.gradient_steps), jax.random.split(sample_key, config.gradient_steps)
    (params, target_params, opt_state, buffer), metrics = jax.lax.scan(step, carry, xs)
    metrics = {**episode_metrics(traj), **new, **jax.tree.map(jnp.mean, metrics), "epsilon": epsilon(config, state)}
    return State(params, target_params, opt_state, env_state, buffer, state.num_updates + 1, key, learned), metrics


if __name__ == "__main__":
    from rlx.cli import run_file

    run_file(__file__)
