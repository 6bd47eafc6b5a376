"""Diffusion policies: schedules of noise, the chain of denoising steps, and its likelihood. Actions are the last axis.

The index of time is that of the literature: `x_K` is noise, `x_0` the action, and step `t = K - 1, ..., 0` consumes
`x_{t+1}` and produces `x_t`, by

    x0  = clip(sqrt(1 / abar_t) x - sqrt(1 / abar_t - 1) eps(x, t), -1, 1)
    x' ~ N(from_clean x0 + from_noisy x, std^2)

Arrays over steps are in the order in which steps are made, the noisiest first: the last K' of them are `[-K':]`.

Sources: Ho et al. 2020, arXiv:2006.11239 (DDPM); Song et al. 2021, arXiv:2010.02502 (DDIM); Nichol and Dhariwal 2021,
arXiv:2102.09672 (the cosine schedule); Ren et al. 2024, arXiv:2409.00588 (DPPO).
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from rlx.pytree import pytree

Predict = Callable[[jax.Array, jax.Array], jax.Array]


@pytree
class Schedule:
    """What each denoising step does, float32 `[S]` in the order of the steps; see the module."""

    time: jax.Array  # int32, t: what the network is told
    scale: jax.Array  # sqrt(1 / abar_t)
    noise: jax.Array  # sqrt(1 / abar_t - 1)
    from_clean: jax.Array
    from_noisy: jax.Array
    std: jax.Array


def cosine_betas(num_steps: int) -> np.ndarray:
    """`beta_t`, float64 `[K]`, `t = 0, ..., K - 1`: `clip(1 - f(t + 1) / f(t), 0, 0.999)`.

    `f(j) = cos^2((j / K + s) / (1 + s) pi / 2)` with `s = 0.008`. Source: arXiv:2102.09672, equation 17.
    """
    f = np.cos((np.arange(num_steps + 1) / num_steps + 0.008) / 1.008 * np.pi / 2) ** 2
    return np.clip(1.0 - f[1:] / f[:-1], 0.0, 0.999)


def ddpm(num_steps: int) -> Schedule:
    """All K steps, with the posterior's mean and variance `beta_t (1 - abar_{t-1}) / (1 - abar_t)`.

    Source: arXiv:2006.11239, equations 6 and 7. It is DDIM over all steps with `eta = 1`.
    """
    return ddim(num_steps, num_steps, eta=1.0)


def ddim(num_steps: int, num_visited: int, eta: float) -> Schedule:
    """S of the K steps, `t = j (K // S)`; `eta` scales the noise of each, 0 makes the chain deterministic.

        std        = eta sqrt((1 - abar') / (1 - abar) (1 - abar / abar'))
        from_noisy = sqrt((1 - abar' - std^2) / (1 - abar)),    from_clean = sqrt(abar') - from_noisy sqrt(abar)

    with abar' of the step visited next, and 1 after the last. The noise is that which the clipped `x0` implies.
    Source: arXiv:2010.02502, equations 12 and 16.

    Raises:
        ValueError: unless 1 <= S <= K.
    """
    if not 1 <= num_visited <= num_steps:
        raise ValueError(f"num_visited = {num_visited}: of {num_steps} steps, between 1 and {num_steps} can be visited")
    # In float64: 1 - abar for little noise and 1 / abar for much would lose their digits.
    time = np.arange(num_visited)[::-1] * (num_steps // num_visited)
    products = np.cumprod(1.0 - cosine_betas(num_steps))
    abar = products[time]
    after = np.append(abar[1:], 1.0)
    std = eta * np.sqrt((1.0 - after) / (1.0 - abar) * (1.0 - abar / after))
    from_noisy = np.sqrt(np.maximum(1.0 - after - std**2, 0.0) / (1.0 - abar))
    from_clean = np.sqrt(after) - from_noisy * np.sqrt(abar)
    parts = (np.sqrt(1.0 / abar), np.sqrt(1.0 / abar - 1.0), from_clean, from_noisy, std)
    return Schedule(jnp.asarray(time, jnp.int32), *(jnp.asarray(part, jnp.float32) for part in parts))


def clean(step: Schedule, x: jax.Array, noise: jax.Array, bound: float = 1.0) -> jax.Array:
    """`x0` that the predicted noise implies, clipped to `[-bound, bound]`; fields of `step` broadcast against `x`."""
    return jnp.clip(step.scale * x - step.noise * noise, -bound, bound)


def denoised_mean(step: Schedule, x: jax.Array, noise: jax.Array, bound: float = 1.0) -> jax.Array:
    """`from_clean x0 + from_noisy x`, the mean of what a step makes of `x [..., A]`, given the noise predicted."""
    return step.from_clean * clean(step, x, noise, bound) + step.from_noisy * x


def mean_log_prob(deviation: jax.Array, std: jax.Array, low: float = -5.0, high: float = 2.0) -> jax.Array:
    """Mean over A of `log N(deviation; 0, std^2)`, each clipped to `[low, high]`: `[...]`, for `std [...]`.

    A mean and not a sum: the ratio of two policies is the geometric mean of the ratios of the elements of the action,
    so that a clip means the same for chunks of any length. Source: code of Ren et al. 2024, arXiv:2409.00588.
    """
    std = std[..., None]
    each = -0.5 * (deviation / std) ** 2 - jnp.log(std) - 0.5 * math.log(2 * math.pi)
    return jnp.clip(each, low, high).mean(axis=-1)


def denoise(
    schedule: Schedule,
    predict: Predict,
    x: jax.Array,
    noise: jax.Array,
    least_std: jax.Array,
    bound: float = 1.0,
) -> tuple[jax.Array, jax.Array]:
    """Runs the steps of a schedule `[S]` from `x [..., A]`, with standard noise `[S, ..., A]`.

    The std of each step is at least `least_std [S]`, the clean actions are within `bound`; `predict(x, t)` gives the
    noise in `x` at the integer time `t`. Returns where it ends, and the chain `[S + 1, ..., A]`, which begins with `x`.
    """

    def step(x, inputs):
        step, noise, least = inputs
        x = denoised_mean(step, x, predict(x, step.time), bound) + jnp.maximum(step.std, least) * noise
        return x, x

    end, after = jax.lax.scan(step, x, (schedule, noise, least_std))
    return end, jnp.concatenate([x[None], after])


def shifted(chunk: jax.Array, num: int) -> jax.Array:
    """A chunk of actions `[..., H, A]` that begins `num` later; the last action stands for those that are not known.

    Denoising may begin there, with the last steps of a schedule only, in place of noise and all of them.

    Source: Duan et al. 2025, Real-Time Iteration Scheme for Diffusion Policy, arXiv:2508.05396.
    """
    later = jnp.minimum(jnp.arange(chunk.shape[-2]) + num, chunk.shape[-2] - 1)
    return jnp.take(chunk, later, axis=-2)


def add_noise(num_steps: int, x: jax.Array, noise: jax.Array, t: jax.Array) -> jax.Array:
    """What noise leaves of actions `x [..., A]` at the times `t [...]`: `sqrt(abar_t) x + sqrt(1 - abar_t) noise`.

    It is what step `t` consumes. Source: arXiv:2006.11239, equation 4.
    """
    abar = jnp.asarray(np.cumprod(1.0 - cosine_betas(num_steps)), jnp.float32)[t][..., None]
    return jnp.sqrt(abar) * x + jnp.sqrt(1.0 - abar) * noise


def step_clips(num_steps: int, first: float, last: float, rate: float) -> jax.Array:
    """How far the ratio of each trained step may go `[K']`: `first` for the noisiest, exponentially to `last`.

        first + (last - first) (exp(rate i / (K' - 1)) - 1) / (exp(rate) - 1)

    Source: arXiv:2409.00588, section 4.3, in the form of its code; a single step has `last`, where the code has NaN.
    """
    if num_steps == 1:
        return jnp.asarray(last)[None]
    share = jnp.expm1(rate * jnp.arange(num_steps) / (num_steps - 1)) / jnp.expm1(rate)
    return first + (last - first) * share


__all__ = [
    "Schedule",
    "add_noise",
    "clean",
    "cosine_betas",
    "ddim",
    "ddpm",
    "denoise",
    "denoised_mean",
    "mean_log_prob",
    "shifted",
    "step_clips",
]
