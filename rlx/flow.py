"""Flow policies: integrating a velocity field, and the losses that train one. Actions are the last axis, `[..., A]`.

One convention of time in all of rlx: **time 0 is noise and time 1 is the action**. Between them lies

    x_t = (1 - t) noise + t action

so the velocity `dx/dt` of a pair is `action - noise`, and sampling integrates from 0 to 1. (FPO's published code runs
from 1, noise, to 0, action: its time is `1 - t`, its velocity the negative of this one, its losses are the same.)
"""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp

Velocity = Callable[[jax.Array, jax.Array], jax.Array]


def euler(velocity: Velocity, x: jax.Array, num_steps: int) -> jax.Array:
    """`x_1` of `dx/dt = velocity(x, t)` from `x_0 = x`, by `x <- x + h velocity(x, t)` at `t = 0, h, ..., 1 - h`.

    `h = 1 / num_steps`; the error is O(h). `t` is a scalar.
    """
    h = 1.0 / num_steps
    return jax.lax.fori_loop(0, num_steps, lambda i, x: x + h * velocity(x, i * h), x)


def midpoint(velocity: Velocity, x: jax.Array, num_steps: int) -> jax.Array:
    """As `euler`, by `x <- x + h velocity(x + h/2 velocity(x, t), t + h/2)`: two evaluations a step, error O(h^2)."""
    h = 1.0 / num_steps

    def step(i, x):
        t = i * h
        return x + h * velocity(x + 0.5 * h * velocity(x, t), t + 0.5 * h)

    return jax.lax.fori_loop(0, num_steps, step, x)


def composed(first: Velocity, second: Velocity, weight: float | jax.Array) -> Velocity:
    """`(1 - w) v_1 + w v_2`: two policies as one, by their velocities or by the noise that they predict.

    Both have to share the schedule, the scale of actions and the normalisation of observations. Of two normal densities
    of one variance it is the one at the mean in between; a mixture it is not.

    Source: Cao et al. 2025, General Policy Composition, arXiv:2510.01068.
    """
    return lambda x, t: (1.0 - weight) * first(x, t) + weight * second(x, t)


def interpolate(noise: jax.Array, action: jax.Array, t: jax.Array) -> jax.Array:
    """`x_t = (1 - t) noise + t action`, `[..., A]`, for `t [...]`."""
    t = jnp.asarray(t)[..., None]
    return (1.0 - t) * noise + t * action


def noise_and_time(draws: jax.Array, num: int, size: int, num_steps: int) -> tuple[jax.Array, jax.Array]:
    """For each key data `[B, 2]`: standard normal noise `[B, num, size]`, and times `[B, num]`.

    Times are uniform over `0, h, ..., 1 - h` with `h = 1 / num_steps`, where `euler` evaluates the velocity. The same
    key data always give the same draws, so that they need not be kept.
    """

    def draw(data):
        noise_key, time_key = jax.random.split(jax.random.wrap_key_data(data))
        step = jax.random.randint(time_key, (num,), 0, num_steps)
        return jax.random.normal(noise_key, (num, size)), step / num_steps

    return jax.vmap(draw)(draws)


def samplewise(loss: Callable[[jax.Array, jax.Array], jax.Array], noise: jax.Array, t: jax.Array) -> jax.Array:
    """`loss(noise, t)`, `[B]`, of each of S samples, `[B, S]`, for noise `[B, S, A]` and times `[B, S]`.

    A CPU takes one sample after another, and once more for the gradient: what lies between the layers of a network
    stays in its cache, which halves the time of the gradient where B is thousands. Others take them at once.
    """
    if jax.default_backend() != "cpu":
        return jax.vmap(loss, 1, 1)(noise, t)
    return jax.lax.map(lambda sample: jax.checkpoint(loss)(*sample), (noise.swapaxes(0, 1), t.T)).T


def velocity_loss(velocity: jax.Array, noise: jax.Array, action: jax.Array) -> jax.Array:
    """Conditional flow-matching loss `mean_i (v_i - (action_i - noise_i))^2`, `[...]`, of `v = velocity(x_t, t)`.

    Source: Lipman et al. 2023, arXiv:2210.02747, equation 9, for straight paths and with a mean over `A` for the sum.
    """
    return jnp.mean((velocity - (action - noise)) ** 2, axis=-1)


def noise_loss(velocity: jax.Array, noise: jax.Array, x: jax.Array, t: jax.Array) -> jax.Array:
    """The same loss of the noise that the velocity implies at `x = x_t`: `mean_i (x_i - t v_i - noise_i)^2`, `[...]`.

    Equal to `t^2 velocity_loss`: nothing is learned at `t = 0`. Source: McAllister et al. 2025, arXiv:2507.21053, the
    epsilon loss of section 3.
    """
    t = jnp.asarray(t)[..., None]
    return jnp.mean((x - t * velocity - noise) ** 2, axis=-1)


def brownian_residual(velocity: jax.Array, reference: jax.Array, x: jax.Array, t: jax.Array) -> jax.Array:
    """`(1 - t) v - (x_t - t v_ref)`, `[..., A]`: 0 where `v` is the velocity of a Brownian motion.

    `(t v_ref - x_t) / (1 - t)` is the score of the reference's density at time t, for a rectified flow, and minus the
    score is the velocity with which diffusion spreads that density. Penalising the square keeps a flow from collapsing.

    Source: Yang et al. 2026, arXiv:2602.01156, algorithm 1, line 20 (equation 16 has the reference in both places).
    """
    chex.assert_equal_shape([velocity, reference, x])
    t = jnp.asarray(t)[..., None]
    return (1.0 - t) * velocity - (x - t * reference)


__all__ = [
    "brownian_residual",
    "composed",
    "euler",
    "interpolate",
    "midpoint",
    "noise_and_time",
    "noise_loss",
    "samplewise",
    "velocity_loss",
]
