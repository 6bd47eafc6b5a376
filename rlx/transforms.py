"""Steps of optimisers, as transformations of optax: stepping back, momentum that is not stale, Polyak's step.

They go where `optax.adam` goes; `update` has to be given the parameters. Those that are classes here go to an
algorithm by name:

    slow = with_transform(ppo, SFPO)        # or, on the command line, --transform sfpo
    state, metrics = rlx.train(slow, slow.Config(reposition=0.5), env, key)

Such a class is a pytree, `transform(config, inner, learning_rate)`, which returns what takes the steps in place of the
algorithm's own optimizer, `inner`.
"""

from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from rlx.clipping import global_norm
from rlx.given import with_argument
from rlx.pytree import pytree, static, traced

Number = float | jax.Array


class Repositioned(NamedTuple):
    """The state of `repositioned`."""

    inner: Any
    start: Any  # the parameters before the fast steps
    count: jax.Array  # int32, steps since


def repositioned(inner: optax.GradientTransformation, num_fast: int, alpha: Number) -> optax.GradientTransformation:
    """Slow-fast steps: after `num_fast` of them the parameters go part of the way back; then comes one slow step.

        theta~ = theta_0 + alpha (theta_K - theta_0),    theta_0' = theta~ + u(g(theta~))

    so that a cycle has `num_fast + 1` steps. With SGD a cycle is `-eta (alpha sum_k g(theta_k) + g(theta~))`.
    alpha = 1 is the inner optimiser up to rounding. Adam's moments go on through the reposition: the paper keeps no
    second state. The paper also turns alpha to 0 where entropy moves by too much; that is left out.

    Args:
        inner: the optimiser of every step.
        num_fast: K, at least 1.
        alpha: which part of the way is kept, from 0 to 1.

    Source: Slow-Fast Policy Optimization, 2025, arXiv:2510.04072.

    Raises:
        ValueError: for fewer than 1 fast step, and in `update` without parameters.
    """
    if num_fast < 1:
        raise ValueError(f"{num_fast} fast steps: a cycle needs at least 1, and one slow step")

    def init(params):
        return Repositioned(inner.init(params), params, jnp.int32(0))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        if params is None:
            raise ValueError("repositioned steps go by the parameters: call update(grads, state, params)")
        updates, inner_state = inner.update(updates, state.inner, params)
        start = jax.tree.map(lambda now, then: jnp.where(state.count == 0, now, then), params, state.start)
        back = lambda s, p, u: jnp.where(state.count == num_fast - 1, s + alpha * (p + u - s) - p, u)
        updates = jax.tree.map(back, start, params, updates)
        return updates, Repositioned(inner_state, start, (state.count + 1) % (num_fast + 1))

    return optax.GradientTransformation(init, update)


class Transported(NamedTuple):
    """The state of `transported`."""

    direction: Any  # d
    step: Any  # D, the step before
    count: jax.Array


def transported(learning_rate: Number, eta: Number) -> optax.GradientTransformation:
    """Normalised steps along momentum whose gradients are taken ahead, so that it is not stale (N-PG-IGT).

        y_t = theta_t + c (theta_t - theta_{t-1}),   c = (1 - eta) / eta
        d_t = (1 - eta) d_{t-1} + eta g(y_t),        theta_{t+1} = theta_t - learning_rate d_t / |d_t|

    The parameters that are trained, acted with and differentiated at are y; `theta` is what to evaluate, see
    `evaluated`. On a quadratic d is the exact gradient at theta. eta = 1 is the normalised gradient. The norm is over
    all parameters.

    Source: Fatkhullin et al. 2023, Stochastic Policy Gradient Methods: Improved Sample Complexity for Fisher-non-
    degenerate Policies, arXiv:2302.01734; here for a loss, so with the other sign.
    """

    def init(params):
        zeros = jax.tree.map(jnp.zeros_like, params)
        return Transported(zeros, zeros, jnp.int32(0))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        mixed = lambda d, g: jnp.where(state.count == 0, g, (1.0 - eta) * d + eta * g)
        direction = jax.tree.map(mixed, state.direction, updates)
        norm = global_norm(direction)
        scale = -learning_rate / jnp.where(norm > 0, norm, 1.0)
        step = jax.tree.map(lambda d: scale * d, direction)
        ahead = (1.0 - eta) / eta
        updates = jax.tree.map(lambda new, old: (1.0 + ahead) * new - ahead * old, step, state.step)
        return updates, Transported(direction, step, state.count + 1)

    return optax.GradientTransformation(init, update)


def evaluated(params: Any, state: Transported, eta: Number) -> Any:
    """The parameters theta of `transported`, of those that are trained: `y - c D`."""
    ahead = (1.0 - eta) / eta
    return jax.tree.map(lambda y, step: y - ahead * step, params, state.step)


def polyak(grads: Any, value: Number, best: Number, most: Number, scale: Number = 1.0) -> Any:
    """Updates by Polyak's step of a return that is maximised, for `optax.apply_updates`.

        gamma = min(most, max(best - value, 0) / (scale |g|^2)),    gamma g

    Args:
        grads: g, of the return.
        value: the return J of these parameters.
        best: the return J* that can be had, or the best so far.
        most: the largest step; near J* noise, and a gradient that is nearly 0, make others too large.
        scale: c, in the paper 1 or 2.

    Source: Li et al. 2024, Enhancing Policy Gradient with the Polyak Step-Size Adaption.
    """
    square = global_norm(grads) ** 2
    step = jnp.maximum(best - value, 0.0) / (scale * jnp.where(square > 0, square, 1.0))
    step = jnp.where(square > 0, jnp.minimum(step, most), 0.0)
    return jax.tree.map(lambda g: step * g, grads)


@pytree
class SFPO:
    """Slow-fast steps, `repositioned`, around the optimizer of an algorithm.

    Raises:
        ValueError: where the steps of an update are not whole cycles.
    """

    num_fast: int = static(3, at_least=1)  # fast steps of a cycle, after which one slow step follows
    reposition: float = traced(0.8, at_least=0, at_most=1)  # part of the way of the fast steps that is kept

    def __call__(self, config: Any, inner: optax.GradientTransformation, learning_rate: Number) -> Any:
        steps = config.num_epochs * config.num_minibatches
        if steps % (self.num_fast + 1):
            raise ValueError(
                f"num_fast = {self.num_fast}: a cycle of {self.num_fast + 1} steps does not divide the {steps} "
                "gradient steps of an update"
            )
        return repositioned(inner, self.num_fast, self.reposition)


@pytree
class IGT:
    """Momentum that is not stale, `transported`, in place of the optimizer of an algorithm; its rate is kept.

    The policy acts with the parameters that are differentiated at. Data of one gradient step are what it is made for:
    give num_epochs and num_minibatches of 1.
    """

    eta: float = traced(0.5, above=0, at_most=1)  # weight of the newest gradient

    def __call__(self, config: Any, inner: optax.GradientTransformation, learning_rate: Number) -> Any:
        return transported(learning_rate, self.eta)


TRANSFORMS = {"IGT": IGT, "SFPO": SFPO}


def with_transform(algorithm: ModuleType, transform: Any) -> ModuleType:
    """The algorithm with other steps. Of a class, the coefficients become fields of its Config.

    Raises:
        ValueError: when the algorithm takes no transform.
    """
    return with_argument(algorithm, "transform", transform, "takes no transform of its steps")


__all__ = [
    "IGT",
    "SFPO",
    "TRANSFORMS",
    "Repositioned",
    "Transported",
    "evaluated",
    "polyak",
    "repositioned",
    "transported",
    "with_transform",
]
