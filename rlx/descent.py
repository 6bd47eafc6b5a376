"""Gradient steps on the minibatches of an update, as one compiled loop."""

from collections.abc import Callable
from typing import Any

import jax
import optax

from rlx.clipping import global_norm
from rlx.rollout import gather


def descend(
    loss: Callable, optimizer: optax.GradientTransformation, params: Any, opt_state: Any, data: Any, indices: jax.Array
) -> tuple[Any, Any, dict[str, jax.Array]]:
    """Params and optimizer state after a gradient step on each minibatch, and the metrics of every step, `[E, M]`.

    To the metrics of the loss comes `grad_norm`, the norm of the gradient before the optimizer.

    Args:
        loss: `loss(params, batch) -> scalar, metrics`.
        optimizer: of the params.
        params: to begin with.
        opt_state: of the optimizer.
        data: arrays `[n, ...]`.
        indices: which elements of the data each minibatch has, `[E, M, B]`, of E epochs with M minibatches, as
            `rlx.rollout.minibatches` gives them.
    """

    def step(carry, batch):
        params, opt_state = carry
        grads, metrics = jax.grad(loss, has_aux=True)(params, batch)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), metrics | {"grad_norm": global_norm(grads)}

    def epoch(carry, index):
        return jax.lax.scan(step, carry, gather(data, index))

    (params, opt_state), metrics = jax.lax.scan(epoch, (params, opt_state), indices)
    return params, opt_state, metrics


__all__ = ["descend"]
