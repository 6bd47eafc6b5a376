"""Policy and value losses of trust-region methods, per element: the algorithm takes the mean.

A policy loss is `-(rho A - f)` with the ratio `rho = exp(log_ratio)` of the new policy to the one that acted, its
advantage `A`, and a *drift* `f(rho, A)` that says how far the policy may go. Where `f >= 0`, with value and slope 0 at
`rho = 1`, exact updates never lower the return (Kuba et al. 2022, Mirror Learning, arXiv:2201.02373), and every drift
leaves the same gradient at the policy that acted. Losses are functions of arrays; those that an algorithm may be given
in place of its own are callable pytrees as well, with their coefficients as leaves:

    rlx.train(ppo, config, env, key, objective=SPO(epsilon=0.1))

`with_objective(ppo, SPO)` is an algorithm whose Config has these coefficients, for sweeps and the command line.
"""

from types import ModuleType
from typing import Any

import chex
import jax
import jax.numpy as jnp
import optax

from rlx.given import with_argument
from rlx.pytree import pytree, traced

Number = float | jax.Array  # a coefficient: one of a Config, or of a sweep's lane


def importance_weighted(log_ratio: jax.Array, advantage: jax.Array) -> jax.Array:
    """`-rho A`, any shape: no drift.

    Source: Schulman et al. 2017, arXiv:1707.06347, equation 6 (negated: minimised).
    """
    chex.assert_equal_shape([log_ratio, advantage])
    return -jnp.exp(log_ratio) * advantage


def clipped_surrogate(
    log_ratio: jax.Array, advantage: jax.Array, clip: Number, clip_high: Number | None = None
) -> jax.Array:
    """`-min(rho A, clip(rho, 1 - clip, 1 + clip_high) A)`, any shape; `clip_high` is `clip` unless given.

    The drift is `max(0, (rho - clip(rho, ...)) A)`.

    Source: Schulman et al. 2017, arXiv:1707.06347, equation 7 (negated: minimised); two bounds: Yu et al. 2025, DAPO,
    arXiv:2503.14476, section 3.1.
    """
    chex.assert_equal_shape([log_ratio, advantage])
    ratio, high = jnp.exp(log_ratio), clip if clip_high is None else clip_high
    return -jnp.minimum(ratio * advantage, jnp.clip(ratio, 1.0 - clip, 1.0 + high) * advantage)


def dual_clipped_surrogate(
    log_ratio: jax.Array, advantage: jax.Array, clip: Number, clip_high: Number, bound: Number
) -> jax.Array:
    """`clipped_surrogate`, but for `A < 0` at most `-bound A`, any shape: large ratios of bad actions have no slope.

    Source: Ye et al. 2020, Mastering Complex Control in MOBA Games, arXiv:1912.09729.
    """
    surrogate = clipped_surrogate(log_ratio, advantage, clip, clip_high)
    return jnp.where(advantage < 0, jnp.minimum(surrogate, -bound * advantage), surrogate)


def rollback_surrogate(log_ratio: jax.Array, advantage: jax.Array, clip: Number, slope: Number) -> jax.Array:
    """`-min(rho A, F(rho) A)` with `F(rho) = (1 + slope) clip(rho, 1 - clip, 1 + clip) - slope rho`, any shape.

    Past the clip the slope of the objective in `rho` is `-slope A` where clipping leaves 0: it leads back. The drift is
    `1 + slope` times that of `clipped_surrogate`.

    Source: Wang, He, Tan 2019, Truly Proximal Policy Optimization, arXiv:1903.07940, section 4.1.
    """
    chex.assert_equal_shape([log_ratio, advantage])
    ratio = jnp.exp(log_ratio)
    clipped = jnp.clip(ratio, 1.0 - clip, 1.0 + clip)
    return -jnp.minimum(ratio * advantage, ((1.0 + slope) * clipped - slope * ratio) * advantage)


def quadratic_surrogate(log_ratio: jax.Array, advantage: jax.Array, epsilon: Number) -> jax.Array:
    """`-(rho A - |A| (rho - 1)^2 / (2 epsilon))`, any shape: best at `rho = 1 + epsilon sign(A)`.

    Source: Xie et al. 2024, Simple Policy Optimization, arXiv:2401.16025.
    """
    chex.assert_equal_shape([log_ratio, advantage])
    change = jnp.expm1(log_ratio)
    return importance_weighted(log_ratio, advantage) + jnp.abs(advantage) * change**2 / (2.0 * epsilon)


def discovered_surrogate(log_ratio: jax.Array, advantage: jax.Array, alpha: Number, beta: Number) -> jax.Array:
    """`-(rho A - f)` with a drift that was found by meta-learning and then written in closed form, any shape.

        f = max(0, u - alpha tanh(u / alpha))  with u = (rho - 1) A     where A >= 0
        f = max(0, u - beta tanh(u / beta))    with u = A log rho       where A < 0

    Source: Lu et al. 2022, Discovered Policy Optimisation, arXiv:2210.05639, which has alpha = 2, beta = 0.6.
    """
    chex.assert_equal_shape([log_ratio, advantage])
    gain = jnp.where(advantage >= 0, jnp.expm1(log_ratio), log_ratio) * advantage
    scale = jnp.where(advantage >= 0, alpha, beta)
    return importance_weighted(log_ratio, advantage) + jnp.maximum(gain - scale * jnp.tanh(gain / scale), 0.0)


def k1(log_ratio: jax.Array) -> jax.Array:
    """`-log r`, an estimate of `KL(q || p)` from `x ~ q`, where `log_ratio = log r = log p(x) - log q(x)`.

    As a value it is unbiased, of either sign. What its gradient estimates depends on which of the two is learned:

    | loss | mean of the gradient in p's parameters, q fixed | in q's parameters, p fixed, samples not differentiated |
    |---|---|---|
    | k1 | of `KL(q || p)` | 0 |
    | k2 | of `E_q[(log r)^2] / 2` | of `KL(q || p)` |
    | k3 | of `KL(q || p)` | of `KL(p || q)` |

    The middle column is a penalty on the policy `p` that moves away from the one `q` that acted; the last is a penalty
    on the policy `q` that acts, to stay near a reference `p`.

    Source: J. Schulman, Approximating KL divergence, 2020 (joschu.net/blog/kl-approx.html), for the values.
    """
    return -log_ratio


def k2(log_ratio: jax.Array) -> jax.Array:
    """`(log r)^2 / 2`: never negative, biased, and of low variance. Gradients: see `k1`."""
    return 0.5 * log_ratio**2


def k3(log_ratio: jax.Array) -> jax.Array:
    """`(r - 1) - log r`: never negative and unbiased. Gradients: see `k1`.

    With the ratio `rho` of the new policy to the one that acted it estimates `KL(pi_old || pi)`.
    """
    return jnp.expm1(log_ratio) - log_ratio


approx_kl = k3


def reverse_kl(log_ratio: jax.Array) -> jax.Array:
    """`rho log rho - (rho - 1) = rho k3(1 / rho)`: estimates `KL(pi || pi_old)` for actions drawn from `pi_old`.

    Never negative; unbiased, and so is its gradient.
    """
    return jnp.exp(log_ratio) * log_ratio - jnp.expm1(log_ratio)


def penalized(log_ratio: jax.Array, advantage: jax.Array, kl: jax.Array, coef: Number, target: Number) -> jax.Array:
    """`-rho A + c kl` with `c = coef (1 + mean(kl) / target)`, in which gradients do not see `c`.

    An infinite target leaves `c = coef`. Else the coefficient answers the divergence that the batch has at the moment:
    it is twice `coef` at the target, and the gradient is that of `coef (KL + KL^2 / (2 target))` in the mean `KL`. That
    needs no memory of earlier updates, unlike `adapted_coef`.

    Source: Schulman et al. 2017, arXiv:1707.06347, equation 8 (negated), for the fixed coefficient; a quadratic term
    beside the linear one: Heess et al. 2017, arXiv:1707.02286, algorithm 1 (there only above twice the target).
    """
    chex.assert_equal_shape([log_ratio, advantage, kl])
    return importance_weighted(log_ratio, advantage) + jax.lax.stop_gradient(coef * (1.0 + kl.mean() / target)) * kl


def adapted_coef(coef: jax.Array, kl: jax.Array, target: jax.Array) -> jax.Array:
    """The coefficient for the next update after one whose mean divergence was `kl`, a scalar.

        coef / 2 where kl < target / 1.5,    2 coef where kl > 1.5 target

    An objective is a pytree, so the loop over updates can carry it: `replace(objective, kl_coef=adapted_coef(...))`.

    Source: Schulman et al. 2017, arXiv:1707.06347, section 4.
    """
    return coef * jnp.where(kl < target / 1.5, 0.5, jnp.where(kl > 1.5 * target, 2.0, 1.0))


def asymmetric_surrogate(log_ratio: jax.Array, advantage: jax.Array, clip: jax.Array) -> jax.Array:
    """`clipped_surrogate` where `A > 0`, else `quadratic_surrogate` with `clip` for its epsilon, any shape.

    The penalty, unlike the clip, pulls the ratios of bad actions back to `1 - clip`, where it is smallest.

    Source: ASPO, Yi et al. 2026, arXiv:2602.02481; the penalty is SPO's, Xie et al. 2024, arXiv:2401.16025.
    """
    chex.assert_equal_shape([log_ratio, advantage])
    good = advantage > 0
    penalty = quadratic_surrogate(jnp.where(good, 0.0, log_ratio), advantage, clip)  # its square must not overflow
    return jnp.where(good, clipped_surrogate(log_ratio, advantage, clip), penalty)


def weighted_likelihood(
    log_ratio: jax.Array, advantage: jax.Array, temperature: Number, largest_weight: Number
) -> jax.Array:
    """`-w log rho` with `w = min(exp(A / temperature), largest_weight)`, any shape: regression on the better actions.

    It is no surrogate of the return: its slope is `-w` however far the policy has gone, and all actions that were taken
    become likelier, the better ones more so. As the temperature grows it clones what was done.

    Source: Peng et al. 2019, Advantage-Weighted Regression, arXiv:1910.00177, algorithm 1.
    """
    chex.assert_equal_shape([log_ratio, advantage])
    # The cap before the exponential, which would overflow.
    return -jnp.exp(jnp.minimum(advantage / temperature, jnp.log(largest_weight))) * log_ratio


def clipped_value_loss(value: jax.Array, old_value: jax.Array, target: jax.Array, clip: jax.Array) -> jax.Array:
    """`max((V - R)^2, (V_old + clip(V - V_old, -clip, clip) - R)^2) / 2`, any shape.

    An infinite clip leaves `(V - R)^2 / 2`. Source: the PPO implementation of openai/baselines; not in the paper.
    """
    chex.assert_equal_shape([value, old_value, target])
    clipped = old_value + jnp.clip(value - old_value, -clip, clip)
    return 0.5 * jnp.maximum((value - target) ** 2, (clipped - target) ** 2)


def clipped_huber_loss(
    value: jax.Array, old_value: jax.Array, target: jax.Array, clip: jax.Array, delta: jax.Array
) -> jax.Array:
    """`max(h(V - R), h(V_old + clip(V - V_old, -clip, clip) - R))`, any shape, with the Huber loss h.

        h(e) = e^2 / 2 where |e| <= delta, else delta (|e| - delta / 2)

    Source: Yu et al. 2022, arXiv:2103.01955, the loss of the value function in its appendix A and its code.
    """
    chex.assert_equal_shape([value, old_value, target])
    clipped = old_value + jnp.clip(value - old_value, -clip, clip)
    return jnp.maximum(optax.huber_loss(value, target, delta=delta), optax.huber_loss(clipped, target, delta=delta))


def kl_adapted(learning_rate: jax.Array, kl: jax.Array, target: jax.Array) -> jax.Array:
    """The learning rate after an epoch: over 1.5 where `kl > 2 target`, times 1.5 where `kl < target / 2`.

    Between 1e-6 and 1e-2. Source: the adaptive rate of Heess et al. 2017, arXiv:1707.02286, as implemented in skrl.
    """
    factor = jnp.where(kl > 2.0 * target, 1.0 / 1.5, jnp.where(kl < 0.5 * target, 1.5, 1.0))
    return jnp.clip(factor * learning_rate, 1e-6, 1e-2)


def explained_variance(value: jax.Array, target: jax.Array) -> jax.Array:
    """`1 - Var(target - value) / Var(target)`: 1 for a perfect critic, 0 for a constant one and without variance."""
    variance = jnp.var(target)
    return jnp.where(variance > 0, 1.0 - jnp.var(target - value) / jnp.where(variance > 0, variance, 1.0), 0.0)


@pytree
class Elements:
    """What an objective is given of a minibatch: all elements, so that it may look at their statistics.

    An objective returns a loss for each, 0 for those that it leaves out: the algorithm takes the mean.
    """

    log_ratio: jax.Array  # of the new policy to the one that acted, [B], as are all of these
    advantage: jax.Array
    log_prob: Any = None  # of the action under the new policy; None where the policy has none
    alive: Any = None  # bool, the elements that count; None where all do


@pytree
class ImportanceWeighted:
    """`importance_weighted`: nothing holds the policy back."""

    def __call__(self, config, elements, progress):
        return importance_weighted(elements.log_ratio, elements.advantage)


@pytree
class Clip:
    """`clipped_surrogate`."""

    clip: float = traced(0.2, above=0)

    def __call__(self, config, elements, progress):
        return clipped_surrogate(elements.log_ratio, elements.advantage, self.clip)


@pytree
class ClipHigher:
    """`clipped_surrogate` with a bound of its own for ratios above 1."""

    clip: float = traced(0.2, above=0)
    clip_high: float = traced(0.28, above=0)

    def __call__(self, config, elements, progress):
        return clipped_surrogate(elements.log_ratio, elements.advantage, self.clip, self.clip_high)


@pytree
class DualClip:
    """`dual_clipped_surrogate`."""

    clip: float = traced(0.2, above=0)
    clip_high: float = traced(0.28, above=0)
    dual_clip: float = traced(3.0, above=1)

    def __call__(self, config, elements, progress):
        bounds = self.clip, self.clip_high, self.dual_clip
        return dual_clipped_surrogate(elements.log_ratio, elements.advantage, *bounds)


@pytree
class LogRatio:
    """`-A log rho`: A2C's loss, the linear part of all others; with the ratios of `fpo` advantage-weighted matching.

    For `A < 0` it has no lower bound: take one gradient step an update, or few.

    Source: Xue et al. 2025, Advantage Weighted Matching, arXiv:2509.25050.
    """

    def __call__(self, config, elements, progress):
        chex.assert_equal_shape([elements.log_ratio, elements.advantage])
        return -elements.log_ratio * elements.advantage


@pytree
class Rollback:
    """`rollback_surrogate`: past the clip the gradient leads back."""

    clip: float = traced(0.2, above=0)
    slope: float = traced(0.3, at_least=0)

    def __call__(self, config, elements, progress):
        return rollback_surrogate(elements.log_ratio, elements.advantage, self.clip, self.slope)


@pytree
class SPO:
    """Simple Policy Optimization, `quadratic_surrogate`."""

    epsilon: float = traced(0.2, above=0)

    def __call__(self, config, elements, progress):
        return quadratic_surrogate(elements.log_ratio, elements.advantage, self.epsilon)


@pytree
class DPO:
    """Discovered Policy Optimisation, `discovered_surrogate`; not the Direct Preference Optimization of tokens."""

    alpha: float = traced(2.0, above=0)
    beta: float = traced(0.6, above=0)

    def __call__(self, config, elements, progress):
        return discovered_surrogate(elements.log_ratio, elements.advantage, self.alpha, self.beta)


@pytree
class ForwardKL:
    """`penalized` by `KL(pi_old || pi)`, estimated by `k3`."""

    kl_coef: float = traced(1.0, at_least=0)
    kl_target: float = traced(float("inf"), above=0)

    def __call__(self, config, elements, progress):
        kl = k3(elements.log_ratio)
        return penalized(elements.log_ratio, elements.advantage, kl, self.kl_coef, self.kl_target)


@pytree
class ReverseKL:
    """`penalized` by `KL(pi || pi_old)`, estimated by `reverse_kl`."""

    kl_coef: float = traced(1.0, at_least=0)
    kl_target: float = traced(float("inf"), above=0)

    def __call__(self, config, elements, progress):
        return penalized(
            elements.log_ratio, elements.advantage, reverse_kl(elements.log_ratio), self.kl_coef, self.kl_target
        )


@pytree
class AWR:
    """Advantage-Weighted Regression, `weighted_likelihood`, on the data of one rollout."""

    temperature: float = traced(1.0, above=0)
    largest_weight: float = traced(20.0, above=0)

    def __call__(self, config, elements, progress):
        return weighted_likelihood(elements.log_ratio, elements.advantage, self.temperature, self.largest_weight)


def with_objective(algorithm: ModuleType, objective: Any) -> ModuleType:
    """The algorithm with `objective` in place of its own.

        spo = with_objective(ppo, SPO)
        state, metrics = rlx.train(spo, spo.Config(learning_rate=1e-3, epsilon=0.1), env, key)

    Of a class, the coefficients become fields of its Config; one that the Config has already, such as PPO's `clip`, is
    that field, with the Config's default. The algorithm returned is called `rlx.algos.ppo+SPO`. An object, such as a
    learned objective, is taken as it is.

    Raises:
        ValueError: when the algorithm's `update` takes no objective.
    """
    module = with_argument(algorithm, "objective", objective, "has no policy objective that could be replaced")
    if not isinstance(objective, type):
        vars(module)["learned"] = objective
    return module
