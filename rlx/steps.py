"""Steps of an optimizer that learns from each step of experience once: eligibility traces and a bound on their step.

Everything is on trees of arrays, such as the parameters of a network, and on numbers without axes.
"""

from typing import TypeVar

import jax
import jax.numpy as jnp

from rlx.env import Env
from rlx.hosted import check_hosted
from rlx.multiagent import check_one_agent

T = TypeVar("T")
Number = float | jax.Array


def accumulated(trace: T, grads: T, decay: Number) -> T:
    """The eligibility trace after one more gradient, `z' = decay z + g`; `decay` is gamma lambda.

    Source: Sutton & Barto 2018, Reinforcement Learning, equation 12.5.
    """
    return jax.tree.map(lambda z, g: decay * z + g, trace, grads)


def cut(trace: T, where: jax.Array) -> T:
    """The trace, or zeros where a bool without axes is True, as at the end of an episode."""
    return jax.tree.map(lambda z: jnp.where(where, 0.0, z), trace)


def obgd(trace: T, error: jax.Array, learning_rate: Number, kappa: Number) -> T:
    """Updates of the parameters by overshooting-bounded gradient descent, for `optax.apply_updates`.

        alpha' delta z,    M = alpha kappa max(|delta|, 1) |z|_1,    alpha' = alpha / max(M, 1)

    The norm is over all numbers of the trace, so that each network needs a call of its own. With kappa above 0 the
    updates have an L1 norm of at most 1 / kappa, whatever trace and error are; kappa = 0 is TD(lambda) with a step of
    alpha.

    Args:
        trace: z, a tree like the parameters.
        error: delta, the temporal-difference error, without axes.
        learning_rate: alpha, the step where the bound does not bind.
        kappa: how much smaller than 1 the bound is.

    Source: Elsayed et al. 2024, Streaming Deep Reinforcement Learning Finally Works, arXiv:2410.14606.
    """
    norm = sum(jnp.abs(z).sum() for z in jax.tree.leaves(trace))
    bound = learning_rate * kappa * jnp.maximum(jnp.abs(error), 1.0) * norm
    step = learning_rate / jnp.maximum(bound, 1.0) * error
    return jax.tree.map(lambda z: step * z, trace)


def check_stream(env: Env) -> None:
    """Raises ValueError for an environment whose steps cannot be learned from one after another."""
    check_one_agent(env, "a stream of experience")
    check_hosted(env, "a stream changes its policy with every step, within the compiled program: take ppo or sac there")


__all__ = ["accumulated", "check_stream", "cut", "obgd"]
