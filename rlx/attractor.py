"""Actions as parameters of a movement: a spring that is pulled to a goal, and pushed on the way.

A policy gives a goal and weights, `decode` makes a path of them, and the environment is given the path: see
`rlx.around.decoded` and `rlx.wrappers.chunked`. Axes: A dimensions that move, F pushes, K steps.
"""

import chex
import jax
import jax.numpy as jnp

STIFFNESS = 25.0  # a_z
DECAY = 1.0  # a_x, of the phase


def pushes(phase: jax.Array, num: int) -> jax.Array:
    """`psi_i(x) / sum_j psi_j(x)`, `[..., F]`, with `psi_i = exp(-h_i (x - c_i)^2)` of a phase x that falls from 1.

    Centres are evenly spaced in time, `c_i = exp(-i / (F - 1))`, and widths `h_i = F^1.5 / c_i`.

    Source: code of Bahl et al. 2020, Neural Dynamic Policies, arXiv:2012.02788.
    """
    centre = jnp.exp(-jnp.arange(num) / max(num - 1, 1))
    return jax.nn.softmax(-(num**1.5) / centre * (phase[..., None] - centre) ** 2, axis=-1)


def movement(
    start: jax.Array, goal: jax.Array, weights: jax.Array, num_steps: int, dt: float, velocity: jax.Array | None = None
) -> jax.Array:
    """The path of K steps from a start to a goal, `[K, A]`, by Euler steps of a dynamic movement primitive.

        dz = (a (a / 4 (g - y) - z) + f) dt,    dy = z dt,    f = sum_i w_i psi_i(x) / sum_i psi_i(x) x (g - y_0)

    `a = 25`, so that without weights the spring is critically damped and goes to the goal without overshoot. The phase
    falls by `dx = -x dt` from 1, and with it the push: every path ends at its goal. The push is in the direction of the
    goal and as strong as it is far: nothing moves where the goal is the start.

    Args:
        start: y_0, `[A]`.
        goal: g, `[A]`.
        weights: w, `[A, F]`; those that shape a path are of the order of 100.
        num_steps: K.
        dt: a step's share of the time that a movement has, below 2 / 25.
        velocity: z_0, `[A]`; 0 unless given.

    Source: Bahl et al. 2020, Neural Dynamic Policies, arXiv:2012.02788, after Ijspeert et al. 2013.

    Raises:
        ValueError: for steps that Euler's method does not hold at.
    """
    if not 0 < dt * STIFFNESS < 2:
        raise ValueError(f"dt = {dt}: a movement needs steps above 0 and below {2 / STIFFNESS}")
    chex.assert_equal_shape([start, goal])

    def step(carry, _):
        y, z, phase = carry
        force = (weights * pushes(phase, weights.shape[-1])).sum(-1) * phase * (goal - start)
        y, z = y + z * dt, z + (STIFFNESS * (STIFFNESS / 4 * (goal - y) - z) + force) * dt
        return (y, z, phase * (1.0 - DECAY * dt)), y

    begin = start, jnp.zeros_like(start) if velocity is None else velocity, jnp.float32(1)
    return jax.lax.scan(step, begin, length=num_steps)[1]


__all__ = ["movement", "pushes"]
