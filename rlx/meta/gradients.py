"""Meta-gradients: how the outcome of training depends on how it was trained, through the updates themselves."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import optax

from rlx.env import Env
from rlx.objectives import ImportanceWeighted
from rlx.pytree import pytree, replace
from rlx.rollout import flatten, rollout
from rlx.train import now, total_updates


class Detached:
    """Another environment that gradients do not go through: what happens in it counts as given."""

    differentiable = False

    def __init__(self, environment: Any):
        self.environment = environment
        self.default_params = environment.default_params

    def reset(self, key, params):
        return self.environment.reset(key, params)

    def step(self, key, state, action, params):
        return self.environment.step(key, state, jax.lax.stop_gradient(action), params)

    def observation_space(self, params):
        return self.environment.observation_space(params)

    def action_space(self, params):
        return self.environment.action_space(params)

    def horizon(self, params):
        return Env(self.environment, params).horizon


def detached(env: Env) -> Env:
    """The environment without gradients through it: physics need not be differentiable."""
    return replace(env, environment=Detached(env.environment))


def unrolled(algorithm: Any, config: Any, env: Env, state: Any, num_updates: int, **keywords: Any) -> tuple[Any, Any]:
    """`num_updates` updates that can be differentiated in reverse with the memory of one; the State and the metrics.

    Args:
        keywords: go to `algorithm.update`.
    """
    update = jax.checkpoint(lambda state: algorithm.update(now(config, state), env, state, **keywords))
    return jax.lax.scan(lambda state, _: update(state), state, length=num_updates)


def outcome(algorithm: Any, config: Any, env: Env, state: Any, key: jax.Array) -> tuple[jax.Array, Any]:
    """`-E[rho A]` of the policy on fresh steps of its own, whose gradient is that of policy gradient; and the State.

    The steps, and the advantages that `algorithm.advantages` has of them, count as given: the gradient is that of the
    new policy's probabilities alone. The State is the one after these steps, without gradients.

    Args:
        algorithm: one of the family of `rlx.algos.ppo`, with `advantages` and `loss`.
    """
    fixed, config = jax.lax.stop_gradient(state), now(config, state)
    act = partial(algorithm.act, config, env, fixed)
    env_state, traj = rollout(env, act, fixed.env_state, key, config.num_steps)
    batch = flatten(algorithm.advantages(config, env, fixed, traj)[0])
    _, parts = algorithm.loss(state.params, config, env, batch, 1.0, objective=ImportanceWeighted())
    return parts["policy_loss"], replace(fixed, env_state=env_state)


@pytree
class MetaState:
    """A run whose rule is learned along with its policy."""

    state: Any  # of the algorithm
    rule: Any  # what is learned about how to learn
    opt_state: Any
    key: jax.Array


def meta_update(
    algorithm: Any, apply: Callable, config: Any, env: Env, meta: MetaState, num_updates: int, optimizer: Any
) -> tuple[MetaState, Any]:
    """`num_updates` updates under the rule, a look at what they led to, and a step of the rule towards better ones.

    Source: Xu, van Hasselt, Silver 2018, Meta-Gradient Reinforcement Learning, arXiv:1805.09801; here the gradient goes
    through all of the updates since the last step of the rule, not through one.

    Args:
        apply: `(rule, config) -> (config, keywords)`: the settings of the updates, and what else `update` is given.
        optimizer: of the rule.

    Returns the state, and `(metrics, rule, grads)`: of the updates `[num_updates]`, the new rule, its gradients.
    """
    env = detached(env)
    key, outcome_key = jax.random.split(meta.key)

    def loss(rule):
        inner, keywords = apply(rule, config)
        state, metrics = unrolled(algorithm, inner, env, meta.state, num_updates, **keywords)
        value, state = outcome(algorithm, config, env, state, outcome_key)
        return value, (state, metrics)

    grads, (state, metrics) = jax.grad(loss, has_aux=True)(meta.rule)
    updates, opt_state = optimizer.update(grads, meta.opt_state, meta.rule)
    rule = optax.apply_updates(meta.rule, updates)
    return MetaState(state, rule, opt_state, key), (metrics, rule, grads)


def meta_train(
    algorithm: Any,
    apply: Callable,
    config: Any,
    env: Env,
    rule: Any,
    key: jax.Array,
    num_updates: int = 4,
    optimizer: Any = None,
) -> tuple[MetaState, Any]:
    """A whole run whose rule is learned on the way; pure.

    Of every `num_updates + 1` rollouts one is a look, which nothing is learned from but the rule. Together they are
    `config.total_steps`, rounded up to whole groups of them; schedules are those of the updates alone.

    Returns the state, and what `meta_update` returns, with another leading axis, of the steps of the rule.
    """
    optimizer = optax.adam(1e-2) if optimizer is None else optimizer
    init_key, key = jax.random.split(key)
    num_steps = -(-total_updates(config) // (num_updates + 1))  # of the rule
    config = replace(config, total_steps=num_steps * num_updates * config.steps_per_update)
    start = MetaState(algorithm.init(now(config), env, init_key), rule, optimizer.init(rule), key)
    step = lambda meta, _: meta_update(algorithm, apply, config, env, meta, num_updates, optimizer)
    return jax.lax.scan(step, start, length=num_steps)


__all__ = ["MetaState", "detached", "meta_train", "meta_update", "outcome", "unrolled"]
