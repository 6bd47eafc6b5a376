"""Learned Policy Gradient: an agent whose targets come from a rule that sees the trajectory, for discrete actions.

    python algos/lpg.py --env rlx/Levels

Reference: Oh et al. 2020, Discovering Reinforcement Learning Algorithms, arXiv:2007.08794; agents and losses as in the
code of Jackson et al. 2023, arXiv:2310.02782.

The agent has a policy `pi(a | s)` and a prediction `y(s)`, a distribution over M values that mean nothing until a rule
gives them a meaning. From a rollout the rule makes a number for each action, by which its log-probability goes down,
and a target for each prediction. Learned rules are in `rlx.meta.rules` and take the place of this file's own, which is
REINFORCE with the return to go and needs no predictions: `rlx.train(lpg, config, env, key, rule=learned)`.

Axes: T time, N environments, O observation, M values of a prediction.

Deviations from the paper:
- The policy goes *down* the rule's number, as in the code; in the paper it goes up.
- Policy and prediction are separate networks under one Adam; tabular agents of the code have plain gradient descent.
- The last layers have biases, which tabular agents of the code have not.
- Steps cut by a time limit are followed by the prediction of their true successor; only terminal states have none.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import optax

from rlx.advantages import gae
from rlx.clipping import clip_by_global_norm, global_norm
from rlx.env import EnvState
from rlx.networks import TORSOS, Actor, Torso, initialize
from rlx.pytree import pytree, static, traced
from rlx.rollout import episode_metrics, reset, rollout
from rlx.spaces import Discrete, check_spaces, rescale, visible, zeros
from rlx.train import training_progress


@pytree
class Config:
    total_steps: int = static(500_000)  # environment steps of the whole run, rounded up to whole updates
    num_envs: int = static(64)  # N
    num_steps: int = static(20)  # T, steps of each environment between updates
    learning_rate: float = traced(1e-2, at_least=0)
    prediction_coef: float = traced(0.5, at_least=0)
    gamma: float = traced(0.99, at_least=0, at_most=1)  # of the rule of this file; a learned one has none
    max_grad_norm: float = traced(0.5, above=0)
    adam_epsilon: float = traced(1e-5, above=0)
    num_values: int = static(8)  # M
    hidden_sizes: tuple[int, ...] = static(())  # none: a table, where observations are categories
    torso: str = static("mlp", one_of=TORSOS)  # convolutions before them, for image observations
    conv_features: tuple[int, ...] = static(())  # their filters; with mlp of 3 x 3 convolutions
    activation: str = static("tanh")

    @property
    def steps_per_update(self) -> int:
        return self.num_envs * self.num_steps


@pytree
class State:
    params: dict  # of actor and predictor
    opt_state: optax.OptState
    env_state: EnvState  # [N]
    num_updates: jax.Array
    key: jax.Array


@pytree
class Seen:
    """What a rule is told of a rollout, without gradients."""

    reward: jax.Array  # [T, N]
    terminated: jax.Array  # bool [T, N]
    done: jax.Array  # bool [T, N]: another episode follows
    prob: jax.Array  # [T, N], of the action taken
    prediction: jax.Array  # [T, N, M], probabilities
    next_prediction: jax.Array  # [T, N, M], of the true successor; 0 where that is terminal


def networks(config, env):
    """Policy and predictor, separate and of the same shape."""
    space = visible(env.observation_space)
    torso = partial(Torso, space, config.hidden_sizes, config.activation, config.conv_features, kind=config.torso)
    return Actor(env.action_space, torso()), Actor(Discrete(config.num_values), torso(), legal=False)


def optimizer(config):
    clip = clip_by_global_norm(config.max_grad_norm)
    adam = optax.adam(config.learning_rate, eps=config.adam_epsilon, eps_root=1e-20)  # differentiable at gradients of 0
    return optax.flatten(optax.chain(clip, adam))


def check(config, env):
    """Raises ValueError for an environment that does not fit."""
    check_spaces(env, actions=Discrete)


def init(config, env, key):
    check(config, env)
    key, params_key, env_key = jax.random.split(key, 3)
    actor, predictor = networks(config, env)
    env_state = reset(env, env_key, config.num_envs)
    params = initialize(params_key, zeros(env.observation_space), actor=(actor, 0.01), predictor=(predictor, 0.01))
    return State(params, optimizer(config).init(params), env_state, jnp.int32(0), key)


def act(config, env, state, obs, key, deterministic=False):
    """The environment's action for obs `[N, O]`; nothing is recorded."""
    actor, _ = networks(config, env)
    pi = actor.apply(state.params["actor"], obs)
    action = pi.mode() if deterministic else pi.sample(key)
    return rescale(env.action_space, action), None


def rule(config, seen, progress):
    """By how much `log pi` goes down `[T, N]`: REINFORCE; and what to predict `[T, N, M]`: what is predicted now."""
    zero = jnp.zeros_like(seen.reward)
    to_go = gae(seen.reward, zero, zero, seen.terminated, seen.done, config.gamma, 1.0)
    return to_go.mean() - to_go, seen.prediction


def look(config, env, params, traj):
    """What the rule is told of a rollout."""
    actor, predictor = networks(config, env)
    pi = actor.apply(params["actor"], traj.obs)
    prediction, successor = (
        jax.nn.softmax(predictor.apply(params["predictor"], x).logits) for x in (traj.obs, traj.next_obs)
    )
    successor = jnp.where(traj.terminated[..., None], 0.0, successor)
    seen = Seen(traj.reward, traj.terminated, traj.done, jnp.exp(pi.log_prob(traj.action)), prediction, successor)
    return jax.lax.stop_gradient(seen)


def loss(params, config, env, traj, direction, target):
    """`mean(log pi direction) + c mean(KL(y || target))`, and its metrics."""
    actor, predictor = networks(config, env)
    pi, prediction = actor.apply(params["actor"], traj.obs), predictor.apply(params["predictor"], traj.obs)
    policy_loss = jnp.mean(pi.log_prob(traj.action) * direction)
    log_y = jax.nn.log_softmax(prediction.logits)
    prediction_loss = jnp.sum(jnp.exp(log_y) * (log_y - jnp.log(target + 1e-8)), axis=-1).mean()
    return policy_loss + config.prediction_coef * prediction_loss, {
        "policy_loss": policy_loss,
        "prediction_loss": prediction_loss,
        "entropy": pi.entropy().mean(),
    }


def update(config, env, state, *, rule: Callable = rule):
    """One rollout and one gradient step on it; `rule` may be any callable pytree of its signature."""
    key, rollout_key = jax.random.split(state.key)
    env_state, traj = rollout(env, partial(act, config, env, state), state.env_state, rollout_key, config.num_steps)
    progress = training_progress(config, state)
    direction, target = rule(config, look(config, env, state.params, traj), progress)
    grads, metrics = jax.grad(loss, has_aux=True)(state.params, config, env, traj, direction, target)
    updates, opt_state = optimizer(config).update(grads, state.opt_state)
    params = optax.apply_updates(state.params, updates)
    metrics["grad_norm"] = global_norm(grads)
    return State(params, opt_state, env_state, state.num_updates + 1, key), {**episode_metrics(traj), **metrics}


if __name__ == "__main__":
    from rlx.cli import run_file

    run_file(__file__)
