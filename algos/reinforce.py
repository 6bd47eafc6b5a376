"""The gradient of the return of whole episodes and steps along it, for discrete and continuous actions.

    python algos/reinforce.py --env CartPole-v1

Reference: Williams 1992, Machine Learning 8 (REINFORCE); its relatives are settings:

    plain   normalised steps along the gradient
    igt     normalised steps along momentum of gradients that are taken ahead (Fatkhullin et al. 2023, arXiv:2302.01734)
    harpg   normalised steps along momentum that is corrected by the Hessian (the same)
    polyak  Polyak's step, for which the return that can be had has to be told (Li et al. 2024)

Axes: T time, N episodes, O observation, A action.

(The variant `reinforce` of ppo.py is the gradient of rollouts that are cut, by Adam.)

There is no critic, no baseline and no second use of a rollout: what is compared is the step. Every update plays N
episodes to their ends with the policy as it is. For `harpg` it plays N more with a policy on the way from the one
before, drawn evenly, from which the Hessian comes.

Deviations from the papers:
- The gradient is the mean of N episodes, where the papers often have one.
- The policy with which `igt` acts is the one ahead, also where it is evaluated.
- The learning rate falls linearly to 0 over the run (`anneal_learning_rate`).
- Observations are not normalised by what was seen: statistics that move would make the gradients of before those of
  another policy.

The step count includes padding after an episode's end; `alive_steps` excludes it.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
import optax

from rlx.clipping import global_norm
from rlx.networks import BOUNDED, POLICIES, TORSOS, Actor, Torso, initialize
from rlx.pytree import pytree, static, traced
from rlx.rollout import check_horizon, episode_metrics, episodes, reset
from rlx.spaces import check_spaces, rescale, visible, zeros
from rlx.train import training_progress
from rlx.trajectories import corrected, reweighted_returns
from rlx.transforms import polyak, transported

VARIANTS = {
    "plain": {},
    "igt": {"momentum": "ahead"},
    "harpg": {"momentum": "hessian"},
    "polyak": {"step": "polyak", "learning_rate": 0.01},
}


@pytree
class Config:
    total_steps: int = static(500_000)  # environment steps of the whole run, rounded up to whole updates
    num_envs: int = static(16)  # N, episodes of an update
    num_steps: int = static(500)  # T, has to hold a whole episode
    learning_rate: float = traced(0.1, at_least=0)  # how far a step goes; by Polyak's at most, in gradients
    anneal_learning_rate: bool = True
    gamma: float = traced(0.99, at_least=0, at_most=1)
    momentum: str = static("none", one_of=("none", "ahead", "hessian"))
    eta: float = traced(0.2, above=0, at_most=1)  # weight of the newest gradient in the momentum
    step: str = static("normalized", one_of=("normalized", "polyak"))
    target_return: float = math.inf  # discounted, that can be had: Polyak's step needs it
    polyak_scale: float = traced(1.0, above=0)
    hidden_sizes: tuple[int, ...] = static((64, 64))
    torso: str = static("mlp", one_of=TORSOS)  # convolutions before them, for image observations
    conv_features: tuple[int, ...] = static(())  # their filters; with mlp of 3 x 3 convolutions
    activation: str = static("tanh")
    actor_obs: tuple[str, ...] = static(())  # entries of a Dict that the actor sees; none: all that are not privileged
    policy: str = static("normal", one_of=POLICIES)  # density of continuous actions

    @property
    def steps_per_update(self) -> int:
        return self.num_envs * self.num_steps * (2 if self.momentum == "hessian" else 1)


@pytree
class State:
    params: dict  # of the actor
    before: dict  # its params an update ago
    opt_state: dict  # the momentum
    num_updates: jax.Array
    key: jax.Array


@pytree
class Recorded:
    """What the loss needs of the moment of acting."""

    action: jax.Array  # in unit coordinates, before clipping
    log_prob: jax.Array


def networks(config, env):
    """The actor."""
    space = visible(env.observation_space, config.actor_obs)
    torso = Torso(space, config.hidden_sizes, config.activation, config.conv_features, kind=config.torso)
    return Actor(env.action_space, torso, policy=config.policy)


def optimizer(config, learning_rate):
    """Normalised steps, along momentum that is taken ahead or, with eta = 1, along the gradient."""
    return transported(learning_rate, config.eta if config.momentum == "ahead" else 1.0)


def check(config, env):
    """Raises ValueError for settings that do not fit each other or the environment."""
    check_spaces(env, bounded=config.policy in BOUNDED)
    check_horizon(env, config.num_steps)
    if config.step == "polyak" and config.momentum != "none":
        raise ValueError(f"step = 'polyak' with momentum = {config.momentum!r}: Polyak's step is along the gradient")
    if config.step == "polyak" and isinstance(config.target_return, float) and math.isinf(config.target_return):
        raise ValueError("step = 'polyak' goes by the return that can be had: give target_return, discounted")


def init(config, env, key):
    check(config, env)
    key, params_key = jax.random.split(key)
    params = initialize(params_key, zeros(env.observation_space), actor=(networks(config, env), 0.01))
    opt_state = optimizer(config, config.learning_rate).init(params)
    return State(params, params, opt_state, jnp.int32(0), key)


def act(config, env, state, obs, key, deterministic=False):
    """The environment's action for obs `[N, O]`, and what the loss will need of it."""
    return acting(config, env, state.params, obs, key, deterministic)


def acting(config, env, params, obs, key, deterministic=False):
    """The same of a policy that need not be that of the State."""
    pi = networks(config, env).apply(params["actor"], obs)
    action = pi.mode() if deterministic else pi.sample(key)
    return rescale(env.action_space, pi.squash(action)), Recorded(action, pi.log_prob(action))


def loss(params, config, env, traj, alive):
    """Minus the discounted return of episodes `[T, N]`, as a function of the policy, and its metrics."""
    pi = networks(config, env).apply(params["actor"], traj.obs)
    log_ratio = pi.log_prob(traj.recorded.action) - traj.recorded.log_prob
    entropy = jnp.where(alive, pi.entropy(), 0.0).sum() / alive.sum()
    return -reweighted_returns(log_ratio, traj.reward, alive, config.gamma).mean(), {"entropy": entropy}


def whole_episodes(config, env, params, key):
    """N episodes of a policy, and which of their steps are of an episode."""
    start_key, play_key = jax.random.split(key)
    start = reset(env, start_key, config.num_envs)
    return episodes(env, partial(acting, config, env, params), start, play_key, config.num_steps)[1:]


def hessian(config, env, state, key):
    """The Hessian of the loss times the last step, by episodes of a policy on the way of that step."""
    share_key, play_key = jax.random.split(key)
    share = jax.random.uniform(share_key)
    between = jax.tree.map(lambda new, old: share * new + (1.0 - share) * old, state.params, state.before)
    last = jax.tree.map(jnp.subtract, state.params, state.before)
    traj, alive = whole_episodes(config, env, between, play_key)
    gradient = jax.grad(lambda params: loss(params, config, env, traj, alive)[0])
    return jax.jvp(gradient, (between,), (last,))[1]


def update(config, env, state):
    """Episodes of the policy as it is, and one step."""
    key, play_key, hessian_key = jax.random.split(state.key, 3)
    traj, alive = whole_episodes(config, env, state.params, play_key)
    (minus_return, metrics), grads = jax.value_and_grad(loss, has_aux=True)(state.params, config, env, traj, alive)
    progress = training_progress(config, state)
    learning_rate = config.learning_rate * jnp.where(config.anneal_learning_rate, 1.0 - progress, 1.0)
    opt_state = state.opt_state
    if config.step == "polyak":
        upwards = jax.tree.map(jnp.negative, grads)
        updates = polyak(upwards, -minus_return, config.target_return, learning_rate, config.polyak_scale)
    else:
        direction = grads
        if config.momentum == "hessian":
            product = hessian(config, env, state, hessian_key)
            eta = jnp.where(state.num_updates == 0, 1.0, config.eta)
            direction = corrected(opt_state.direction, product, grads, eta)
        updates, opt_state = optimizer(config, learning_rate).update(direction, opt_state)
    params = optax.apply_updates(state.params, updates)
    metrics = {
        **episode_metrics(traj),
        **metrics,
        "discounted_return": -minus_return,
        "grad_norm": global_norm(grads),
        "step_size": global_norm(updates),
        "alive_steps": alive.sum(),
        "learning_rate": learning_rate,
    }
    return State(params, state.params, opt_state, state.num_updates + 1, key), metrics


if __name__ == "__main__":
    from rlx.cli import run_file

    run_file(__file__)
