"""Advantage estimators, time-major `[T, N]`."""

import chex
import jax
import jax.numpy as jnp


def gae(
    reward: jax.Array,
    value: jax.Array,
    next_value: jax.Array,
    terminated: jax.Array,
    done: jax.Array,
    gamma: float | jax.Array,
    gae_lambda: float | jax.Array,
) -> jax.Array:
    """Generalised advantage estimates `[T, N]`.

        delta_t = r_t + gamma (1 - terminated_t) V(s'_t) - V(s_t)
        A_t     = delta_t + gamma lambda (1 - done_t) A_{t+1},    A_T = 0

    `s'_t` is the true successor of step t, also where an episode was cut by a time limit: such a step bootstraps,
    a terminal one does not, and neither lets the trace run on into the next episode. `A + V` is the lambda-return.

    Args:
        reward, value, next_value: `r_t`, `V(s_t)`, `V(s'_t)`.
        terminated: the successor is terminal.
        done: the episode ended with this step, for either reason.
        gamma, gae_lambda: scalars in [0, 1]; gamma may be `[T, N]`, and negative where the successor is seen by the
            other player of a game, whose value is the negative of one's own.

    Source: Schulman et al. 2016, arXiv:1506.02438, equation 16; time limits: Pardo et al. 2018, arXiv:1712.00378,
    equation 6.
    """
    chex.assert_rank(reward, 2)
    chex.assert_equal_shape([reward, value, next_value, terminated, done])
    delta = reward + gamma * jnp.where(terminated, 0.0, next_value) - value
    decay = gamma * gae_lambda * jnp.where(done, 0.0, 1.0)

    def step(advantage, x):
        delta, decay = x
        advantage = delta + decay * advantage
        return advantage, advantage

    return jax.lax.scan(step, jnp.zeros_like(value[0]), (delta, decay), reverse=True)[1]


def standardize(x: jax.Array, epsilon: float = 1e-8, where: jax.Array | None = None) -> jax.Array:
    """`(x - mean) / (std + epsilon)` over all elements, with the population standard deviation.

    With `where`, bool of x's shape, mean and deviation are those of the elements where it is True, if it is anywhere. A
    single element has no spread to be measured by, and is returned as it is.
    """
    if x.size == 1:
        return x
    if where is not None:
        where = where | ~where.any()  # of none of them there is no mean
    return (x - jnp.mean(x, where=where)) / (std(x, where=where) + epsilon)


def std(
    x: jax.Array,
    axis: int | tuple[int, ...] | None = None,
    ddof: int = 0,
    keepdims: bool = False,
    where: jax.Array | None = None,
) -> jax.Array:
    """The standard deviation, as `jnp.std` has it; where it is 0, so is its gradient, which there is NaN."""
    variance = jnp.var(x, axis=axis, ddof=ddof, keepdims=keepdims, where=where)
    return jnp.where(variance == 0, 0.0, jnp.sqrt(jnp.where(variance == 0, 1.0, variance)))
