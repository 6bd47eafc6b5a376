"""The gradient of returns through a simulator: what is summed up to a horizon, and whether the simulator has one.

Axes: T time, N environments.
"""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from rlx.env import Env
from rlx.spaces import rescale
from rlx.values import Number

STEPS = 4, 16  # that a gradient is compared over: the later ones where rewards follow actions from afar
WIDTH = 1e-2  # of a finite difference, in unit coordinates: float32 has 1e-5 of a difference left
CLOSE = 0.1  # share of the larger of two derivatives by which they may differ


def horizon_returns(
    reward: jax.Array, next_value: jax.Array, terminated: jax.Array, done: jax.Array, gamma: Number
) -> jax.Array:
    """What each environment returns over a rollout, `[N]`: its episodes one by one, discounted from their starts.

        sum over episodes of  sum_{t < h} gamma^t r_t + gamma^h (1 - terminated) V(s_h)

    `h` is where an episode ends or the rollout does. An episode that began before counts from where the rollout begins.

    Args:
        reward, next_value: `r_t` and `V(s'_t)` of the true successors, `[T, N]`; values of 0 leave the second term out.
        terminated, done: bool `[T, N]`.
        gamma: discount.

    Source: Xu et al. 2022, Accelerated Policy Learning with Parallel Differentiable Simulation, arXiv:2204.07137,
    equation 5, without the mean over steps.
    """
    chex.assert_equal_shape([reward, next_value, terminated, done])
    last = jnp.arange(len(reward))[:, None] == len(reward) - 1
    ahead = jnp.where((done | last) & ~terminated, next_value, 0.0)

    def step(discount, x):
        reward, ahead, done = x
        return jnp.where(done, 1.0, gamma * discount), discount * (reward + gamma * ahead)

    return jax.lax.scan(step, jnp.ones_like(reward[0]), (reward, ahead, done))[1].sum(axis=0)


def check_gradient(env: Env) -> None:
    """Raises ValueError where the gradient of a few rewards by the actions is not what small changes of these tell.

    One environment takes a few steps with random actions, and the derivative of the summed reward along a random
    direction is compared with a central difference: a simulator that cuts gradients gives a wrong number and no error.
    Where neither tells of a change, as with actions that take effect later, more steps are taken. Nothing is compared
    where the parameters are traced.
    """
    if any(isinstance(x, Tracer) for x in jax.tree.leaves(env)):
        return
    for num_steps in STEPS:
        with jax.ensure_compile_time_eval():
            slope, difference, size = (float(x) for x in jax.jit(_slopes, static_argnums=1)(env, num_steps))
        noise = 8 * float(jnp.finfo(jnp.float32).eps) * size / WIDTH  # of the difference of two sums of this size
        if abs(slope) > noise or abs(difference) > noise or not np.isfinite(slope):
            _check_slopes(num_steps, slope, difference, noise)
            return
    raise ValueError(
        f"the rewards of the first {STEPS[-1]} steps of this environment depend on its actions by no more than they "
        "are rounded: there is no gradient to follow"
    )


def _check_slopes(num_steps: int, slope: float, difference: float, noise: float) -> None:
    """Raises ValueError where a derivative and a difference are further apart than is explained by rounding."""
    wrong = f"{abs(slope):.2g} by its gradient, {abs(difference):.2g} by a small change"
    if not np.isfinite(slope) or abs(slope - difference) > CLOSE * max(abs(slope), abs(difference)) + noise:
        raise ValueError(
            f"the rewards of this environment have no gradient by its actions that is right: over {num_steps} steps "
            f"they change by {wrong}; choose an environment such as Pendulum-v1, or an algorithm that learns "
            "from rewards alone"
        )


def _slopes(env: Env, num_steps: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The derivative of summed rewards along a direction, by the gradient and by a difference, and the sum's size."""
    start_key, step_key, action_key = jax.random.split(jax.random.key(0), 3)
    start, keys = env.reset(start_key), jax.random.split(step_key, num_steps)
    shape = (*((env.num_agents,) if env.has_agents else ()), *env.action_space.shape)
    draws = jax.random.uniform(action_key, (2, num_steps, *shape), minval=-0.5, maxval=0.5)
    actions, direction = draws[0], jnp.sign(draws[1])

    def total(actions: Any) -> tuple[jax.Array, jax.Array]:
        def step(env_state, x):
            key, action = x
            env_state, transition = env.advance(key, env_state, rescale(env.action_space, action))
            return env_state, transition.reward

        rewards = jax.lax.scan(step, start, (keys, actions))[1]
        return rewards.sum(), jnp.abs(rewards).sum()

    (_, size), grad = jax.value_and_grad(total, has_aux=True)(actions)
    difference = (total(actions + WIDTH * direction)[0] - total(actions - WIDTH * direction)[0]) / (2 * WIDTH)
    return jnp.sum(grad * direction), difference, size


__all__ = ["check_gradient", "horizon_returns"]
