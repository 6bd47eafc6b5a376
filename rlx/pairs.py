"""Losses of whole answers, which need all answers of a group at once: regressions, contrasts, preferences.

Each is a function `[..., G] -> [...]`, one loss a group; the algorithm takes the mean. `LOSSES` has them under their
names with one signature, `loss(answers, temperature, amount)`: what to look at is in `Answers`, `temperature` is the
beta or tau of the paper, and `amount` the second number of those that have one.

Several are one regression. With `u_i = beta lr_i - R_i`, where `lr` is the log-ratio of whole answers to a reference,
they are the spread of `u` in a group (`regression`), and it is smallest, 0, at `pi_ref exp(R / beta) / Z`:

| loss | reference of lr | factor |
|---|---|---|
| rebel | the policy that acts | 1 / beta^2 |
| gvpo | any | 1 / 4 |
| copg | the first policy | 1 / (2 beta), less a constant |
| ipo | the first policy | 1 / beta^2, with shares of wins for R, less a constant |
| inpo | both, mixed | as ipo |

Axes: G answers to one prompt, T tokens; i and j are two answers of a group.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from rlx import groups
from rlx.advantages import std
from rlx.objectives import Number, clipped_surrogate
from rlx.pytree import pytree

RIGHT = 0.5  # outcomes above are those of right answers, where answers are right or wrong


@pytree
class Answers:
    """Groups of whole answers `[..., G]`, as the losses see them. Log-probabilities are sums over tokens."""

    log_prob: jax.Array  # of the policy that is learned
    old: jax.Array  # of the policy that wrote them
    reference: jax.Array  # of the reference
    mean_ratio: jax.Array  # of the first two, the mean over tokens
    length: jax.Array
    cost: jax.Array  # that right answers are told apart by: the length over the longest there can be
    outcome: jax.Array
    preference: jax.Array  # P(i, j), how probably i is preferred to j, [..., G, G]
    value: jax.Array  # V* of the prompt, [...]

    @property
    def log_ratio(self) -> jax.Array:
        return self.log_prob - self.reference

    @property
    def right(self) -> jax.Array:
        return self.outcome > RIGHT


def whole(log_prob: jax.Array, old: jax.Array, reference: jax.Array, alive: jax.Array, **others: Any) -> Answers:
    """`Answers` from log-probabilities of tokens `[..., G, T]`, of which those count that are `alive`."""
    total = lambda x: jnp.where(alive, x, 0.0).sum(axis=-1)
    length = alive.sum(axis=-1)
    mean_ratio = total(jnp.exp(jnp.where(alive, log_prob - old, 0.0))) / length
    sums = {"log_prob": total(log_prob), "old": total(old), "reference": total(reference)}
    return Answers(**sums, mean_ratio=mean_ratio, length=length, cost=length / alive.shape[-1], **others)


def _differences(x: jax.Array) -> jax.Array:
    """`x_i - x_j`, `[..., G, G]`."""
    return x[..., :, None] - x[..., None, :]


def _over_pairs(x: jax.Array) -> jax.Array:
    """The mean over `i != j` of `[..., G, G]`."""
    size = x.shape[-1]
    return jnp.where(jnp.eye(size, dtype=bool), 0.0, x).sum(axis=(-2, -1)) / (size * (size - 1))


def regression(log_ratio: jax.Array, outcome: jax.Array, temperature: Number) -> jax.Array:
    """The mean over pairs of `(u_i - u_j)^2` with `u = beta lr - R`, `[..., G] -> [...]`.

    It is `2 / (G - 1) sum_i (u_i - mean u)^2`. Its mean is smallest, 0, at `pi_ref exp(R / beta) / Z` and nowhere else,
    whoever wrote the answers, as long as all may be written. A constant added to all outcomes changes nothing.
    """
    u = temperature * log_ratio - outcome
    return 2.0 * ((u - u.mean(axis=-1, keepdims=True)) ** 2).sum(axis=-1) / (u.shape[-1] - 1)


def rebel(log_ratio: jax.Array, outcome: jax.Array, temperature: Number) -> jax.Array:
    """REBEL: the mean over pairs of `(lr_i - lr_j - eta (R_i - R_j))^2`, `eta = 1 / beta`, `lr` to the acting policy.

    At that policy the gradient is `-2 eta (R_i - R_j) (grad l_i - grad l_j)`, the leave-one-out policy gradient; the
    minimum is a step of mirror descent. The paper has pairs. Source: Gao et al. 2024, arXiv:2404.16767, and its code.
    """
    return regression(log_ratio, outcome, temperature) / temperature**2


def gvpo(log_ratio: jax.Array, outcome: jax.Array, temperature: Number) -> jax.Array:
    """GVPO: `1/2 sum_i (beta (lr_i - mean lr) - (R_i - mean R))^2 / (G - 1)`.

    It is `-beta Cov(lr, R) + beta^2 / 2 Var(lr)` and a constant. Source: Zhang et al. 2025, arXiv:2504.19599, and its
    code.
    """
    return regression(log_ratio, outcome, temperature) / 4.0


def copg(log_ratio: jax.Array, outcome: jax.Array, temperature: Number) -> jax.Array:
    """CoPG: the mean over pairs of `-(S_i - S_j) (lr_i - lr_j)` with `S = R - beta lr / 2`, `lr` to the first policy.

    Its gradient is `-(R_i - beta lr_i - R_j + beta lr_j) (grad l_i - grad l_j)`, without an importance weight whoever
    wrote the answers. Completing the square, it is `(beta dlr - dR)^2 / (2 beta)` less `dR^2 / (2 beta)`.

    Source: Flet-Berliac et al. 2024, arXiv:2406.19185.
    """
    contrast = _differences(outcome - 0.5 * temperature * log_ratio)
    return -_over_pairs(contrast * _differences(log_ratio))


def reg_grpo(log_ratio: jax.Array, outcome: jax.Array, epsilon: Number) -> jax.Array:
    """Reg-GRPO: the mean of `(A_i - (lr_i - mean lr) / (std lr + epsilon))^2`, `A_i = (R_i - mean R) / (std R + 1e-4)`.

    It says how to order answers and not how far apart: a multiple of the log-ratios has the same loss, but for
    `epsilon`. That is ours, and Bessel's correction of both deviations: at the acting policy all log-ratios are 0, and
    without it the first step is not defined. Without the paper's KL. Source: Park et al. 2025, arXiv:2506.07464.
    """

    def scored(x: jax.Array, epsilon: Number) -> jax.Array:
        spread = std(x, axis=-1, ddof=1, keepdims=True)
        return (x - x.mean(axis=-1, keepdims=True)) / (spread + epsilon)

    return ((scored(outcome, 1e-4) - scored(log_ratio, epsilon)) ** 2).mean(axis=-1)


def optimal_value(outcome: jax.Array, temperature: Number) -> jax.Array:
    """`V* = beta log mean exp(R / beta)` of answers that the reference wrote, `[..., S] -> [...]`.

    From their mean, for a large beta, to the best of them, for a small one. Of outcomes 0 and 1 with a share p of 1 it
    is `beta log(1 + p (exp(1 / beta) - 1))`. Source: Brantley et al. 2025, A*-PO, arXiv:2505.20686, and its code.
    """
    return _soft_mean(outcome, jnp.ones(outcome.shape, bool), temperature)


def _soft_mean(x: jax.Array, chosen: jax.Array, temperature: Number) -> jax.Array:
    """`tau log mean exp(x / tau)` of those chosen, `[..., G] -> [...]`, exact for a large tau too; 0 of none."""
    top = jnp.max(jnp.where(chosen, x, -jnp.inf), axis=-1, keepdims=True)
    top = jax.lax.stop_gradient(jnp.where(jnp.isfinite(top), top, 0.0))
    below = jnp.where(chosen, jnp.expm1(jnp.where(chosen, x - top, 0.0) / temperature), 0.0)
    return top[..., 0] + temperature * jnp.log1p(below.sum(axis=-1) / jnp.maximum(chosen.sum(axis=-1), 1))


def a_star_po(log_ratio: jax.Array, outcome: jax.Array, value: jax.Array, temperature: Number) -> jax.Array:
    """A*-PO: the mean of `(beta lr_i + V* - R_i)^2`, `lr` to the first policy, `value` `[...]`.

    Where V* is exact and of the same beta, it is 0 at `pi_ref exp(R / beta) / Z` and nowhere else. No answer is held
    against another one, so one a prompt is enough. Source: Brantley et al. 2025, arXiv:2505.20686, and its code.
    """
    return ((temperature * log_ratio + value[..., None] - outcome) ** 2).mean(axis=-1)


def p3o(log_ratio: jax.Array, outcome: jax.Array, clip: Number) -> jax.Array:
    """P3O, clipped jointly: the mean over `i != j` of `-min(x dR, clip(x, 1 - clip, 1 + clip) dR) / 2`.

    `x = rho_i / rho_j` is the ratio of the ratios to the acting policy, `dR = R_i - R_j`. At that policy the gradient
    is `-(R_i - R_j) (grad l_i - grad l_j) / 2`, leave-one-out. The paper's clips are known here by its summary alone:
    this form is ours. Source: Wu et al. 2023, arXiv:2310.00212.
    """
    gain = _differences(outcome)
    apart = jnp.where(gain == 0, 0.0, _differences(log_ratio))  # what does not count must not overflow
    return 0.5 * _over_pairs(clipped_surrogate(apart, gain, clip))


def p3o_separate(log_ratio: jax.Array, outcome: jax.Array, clip: Number) -> jax.Array:
    """P3O, each ratio clipped by itself: the mean over `i != j` of `-min(rho_i dR, clip(rho_i, ...) dR)`.

    Without the clip it is `-1/2 (rho_i - rho_j) dR` of each pair, whose gradient is that of the return whatever policy
    is near: the mean of `grad rho` is 0. The clip is ours, see `p3o`.
    """
    gain = _differences(outcome)
    own = jnp.where(gain == 0, 0.0, jnp.broadcast_to(log_ratio[..., None], gain.shape))
    return _over_pairs(clipped_surrogate(own, gain, clip))


def trpa(log_ratio: jax.Array, outcome: jax.Array, temperature: Number, top_factor: Number) -> jax.Array:
    """TRPA: the mean of `-log sigmoid(c beta (m_i - m_j))` over all pairs with `R_i > R_j`, of all groups `[..., G]`.

    `m` is the log-ratio to the reference, a mean over tokens; c is `top_factor` where i is right, else 1. A group
    counts by its pairs. Where no group has any, it is the mean of `-log sigmoid(m_i)` of right answers and of
    `-log sigmoid(-m_i)` of the others. Without the two KL terms of its scripts.

    Source: Su et al. 2025, arXiv:2504.04524, and its code.
    """
    better, right = _differences(outcome) > 0, outcome > RIGHT
    factor = temperature * jnp.where(right, top_factor, 1.0)[..., None]
    found = jnp.where(better, -jax.nn.log_sigmoid(factor * _differences(log_ratio)), 0.0)
    share = jnp.maximum(better.sum(), 1) / (better.size / outcome.shape[-1] ** 2)  # pairs of a group on average
    alone = -jax.nn.log_sigmoid(jnp.where(right, log_ratio, -log_ratio)).mean(axis=-1)
    return jnp.where(better.any(), found.sum(axis=(-2, -1)) / share, alone)


def discriminate(score: jax.Array, right: jax.Array, temperature: Number, weight: jax.Array | None = None) -> jax.Array:
    """DisCO: `-(sum_right w_i s_i - tau log mean_wrong exp(s / tau))`; 0 where a group has no right or no wrong ones.

    Its gradient pushes right answers up, -1 in all, and wrong ones down, +1 in all, those of high scores most. As tau
    grows it is `contrast`. The score is the mean log-probability of the tokens (tau = 10), or their mean ratio to the
    acting policy (tau = 1). Source: Li et al. 2025, arXiv:2505.12366, and its code.

    Args:
        score: s, `[..., G]`.
        right: bool `[..., G]`.
        temperature: tau.
        weight: w, which sums to 1 over the right ones; all alike unless it is given.
    """
    weight = _alike(right) if weight is None else weight
    good, bad = (weight * score).sum(axis=-1), _soft_mean(score, ~right, temperature)
    return jnp.where(_mixed(right), bad - good, 0.0)


def contrast(score: jax.Array, right: jax.Array) -> jax.Array:
    """DisCO's basic form, `-(mean_right s - mean_wrong s)`, and 0 where a group has no right or no wrong ones.

    Of ratios it is GRPO without a clip and without its weight of a prompt, `sqrt(p (1 - p))` with the share p of right
    answers.
    """
    return jnp.where(_mixed(right), ((_alike(~right) - _alike(right)) * score).sum(axis=-1), 0.0)


def _alike(chosen: jax.Array) -> jax.Array:
    """Weights that are the same of all that are chosen, and sum to 1."""
    return chosen / jnp.maximum(chosen.sum(axis=-1, keepdims=True), 1)


def _mixed(right: jax.Array) -> jax.Array:
    return right.any(axis=-1) & ~right.all(axis=-1)


def cheaper(cost: jax.Array, right: jax.Array, temperature: Number) -> jax.Array:
    """DRPO's weights of right answers for `discriminate`: `exp(-cost / lambda)` over its sum, and 0 of wrong ones.

    A right answer that is long counts less and is never pushed down. Source: Li et al. 2025, arXiv:2510.04474, and its
    code, whose cost is the length over the longest there can be.
    """
    low = jnp.min(jnp.where(right, cost, jnp.inf), axis=-1, keepdims=True)
    weight = jnp.where(right, jnp.exp((jnp.where(right, low, 0.0) - cost) / temperature), 0.0)
    return weight / jnp.maximum(weight.sum(axis=-1, keepdims=True), 1.0)


def hinged(kl: jax.Array, coef: Number, limit: Number) -> jax.Array:
    """`sg(max(coef (KL - limit), 0)) KL`: DisCO's penalty of a divergence, any shape.

    sg stops the gradient, which is then that of `coef / 2 max(KL - limit, 0)^2`.
    """
    return jax.lax.stop_gradient(jnp.maximum(coef * (kl - limit), 0.0)) * kl


# f'(t) of generators f by log t, times exp(log w): t = pi / p, and w = pi / q is large where 1 / t may be small.
DIVERGENCES = {
    "forward_kl": lambda log_t, log_w: -jnp.exp(log_w - log_t),  # KL(p || pi)
    "reverse_kl": lambda log_t, log_w: jnp.exp(log_w) * (log_t + 1.0),  # KL(pi || p)
    "jensen_shannon": lambda log_t, log_w: jnp.exp(log_w) * (jnp.log(2.0) - jax.nn.softplus(-log_t)),  # twice it
    "total_variation": lambda log_t, log_w: jnp.exp(log_w) * jnp.sign(log_t) / 2.0,
    "chi2": lambda log_t, log_w: jnp.exp(log_w) - jnp.exp(log_w - 2.0 * log_t),  # sum p^2 / pi - 1
    "reverse_chi2": lambda log_t, log_w: 2.0 * jnp.exp(log_w) * jnp.expm1(log_t),  # sum pi^2 / p - 1
}


def f_dpg(log_prob: jax.Array, old: jax.Array, log_target: jax.Array, divergence: str) -> jax.Array:
    """f-DPG: a loss whose gradient is that of `E_p f(pi / p)`, the divergence of the policy from a target p.

        mean_i sg(w_i (f'(t_i) - b_i)) log pi_i,    w = pi / q,    t = pi / p

    q wrote the answers. `b_i` is the mean of `w f'(t)` of the other answers of the group: it has no bias, and stands
    for the paper's moving mean. The value of the loss is no divergence. Forward KL covers the target, reverse KL picks.

    Source: Go et al. 2023, arXiv:2302.08215, and its code.

    Args:
        log_prob: of the policy, `[..., G]`.
        old: of q.
        log_target: of p, normalised, such as `boltzmann`.
        divergence: one of `DIVERGENCES`.
    """
    log_w, log_t = jax.lax.stop_gradient((log_prob - old, log_prob - log_target))
    slope = DIVERGENCES[divergence](log_t, log_w)
    baseline = (slope.sum(axis=-1, keepdims=True) - slope) / (slope.shape[-1] - 1)
    return ((slope - jnp.exp(log_w) * baseline) * log_prob).mean(axis=-1)


def boltzmann(old: jax.Array, reference: jax.Array, outcome: jax.Array, temperature: Number) -> jax.Array:
    """`log pi_ref + R / beta - log Z`, with `Z` the mean of `pi_ref exp(R / beta) / q` over the group, `[..., G]`.

    q, of which `old` is the log-probability, wrote the answers. The paper tracks Z over minibatches; from G answers
    `log Z` is too low on average.
    """
    energy = reference + outcome / temperature
    total = jax.nn.logsumexp(energy - old, axis=-1, keepdims=True)
    return energy - (total - jnp.log(energy.shape[-1]))


def bradley_terry(outcome: jax.Array, temperature: Number) -> jax.Array:
    """A judge by outcomes: `P(i, j) = sigmoid((R_i - R_j) / temperature)`, `[..., G] -> [..., G, G]`."""
    return jax.nn.sigmoid(_differences(outcome) / temperature)


def of_kinds(kind: jax.Array, table: jax.Array) -> jax.Array:
    """A judge by kinds: `P(i, j) = table[kind_i, kind_j]`, int `[..., G] -> [..., G, G]`.

    `P(a, b) + P(b, a)` is 1. Preferences need not be transitive: no outcome stands for those of `CYCLE`.
    """
    return jnp.asarray(table)[kind[..., :, None], kind[..., None, :]]


CYCLE = ((0.5, 0.0, 1.0), (1.0, 0.5, 0.0), (0.0, 1.0, 0.5))  # rock, paper, scissors: each beats the one before


def dpo(log_ratio: jax.Array, preference: jax.Array, temperature: Number) -> jax.Array:
    """DPO: the mean over pairs of `-P(i, j) log sigmoid(beta (lr_i - lr_j)) - P(j, i) log sigmoid(beta (lr_j - lr_i))`.

    `lr` is to the first policy. That is the paper's loss in the mean over labels of the judge, who says i with
    probability `P(i, j)`. With preferences of `bradley_terry` at a temperature tau it is smallest at `pi_ref exp(R /
    (beta tau)) / Z`. Source: Rafailov et al. 2023, arXiv:2305.18290.
    """
    return -2.0 * _over_pairs(preference * jax.nn.log_sigmoid(temperature * _differences(log_ratio)))


def ipo(log_ratio: jax.Array, preference: jax.Array, temperature: Number) -> jax.Array:
    """IPO: the mean over pairs of `(lr_i - lr_j - (P(i, j) - 1/2) / beta)^2`, `lr` to the first policy.

    In the mean over labels, and but for a constant, it is the paper's `(lr_w - lr_l - 1 / (2 beta))^2` of a winner and
    a loser. Its gradient is that of `regression` on `(G - 1) / G` of `rlx.groups.win_share`, over `beta^2`: the share
    itself would be too much, twice as much in groups of two. Source: Azar et al. 2023, arXiv:2310.12036.
    """
    return _over_pairs((_differences(log_ratio) - (preference - 0.5) / temperature) ** 2)


def inpo(
    log_prob: jax.Array, old: jax.Array, reference: jax.Array, preference: jax.Array, temperature: Number, mix: Number
) -> jax.Array:
    """INPO: `ipo` with the reference `mix log pi_ref + (1 - mix) log pi_old`.

    It is smallest at `pi_ref^mix pi_old^(1 - mix) exp(P(y > pi_old) / beta) / Z`: a step of mirror descent against
    itself, held to the first policy. The paper's eta is `temperature`, its tau `mix temperature`. The policy comes to
    rest at the equilibrium of the game with a KL of weight tau. The form was derived from that step, and the paper's is
    this in the mean over labels. Source: Zhang et al. 2024, arXiv:2407.00617.
    """
    return ipo(log_prob - mix * reference - (1.0 - mix) * old, preference, temperature)


def sppo(log_ratio: jax.Array, preference: jax.Array, temperature: Number) -> jax.Array:
    """SPPO: the mean of `(lr_i - eta (s_i - 1/2))^2` with `eta = 1 / beta`, `lr` to the acting policy.

    s is `rlx.groups.win_share`, which estimates how probably an answer is preferred to one of the policy. Of a minimax
    winner that is 1/2 for all that it may write: there the gradient is 0 on average. `eta / 2` stands for the `log Z`
    of multiplicative weights. The code has the best and the worst of 5 answers, and in the share of an answer also
    itself, with 1/2; here all answers count. Source: Wu et al. 2024, arXiv:2405.00675, and its code.
    """
    size = preference.shape[-1]
    share = groups.win_share(preference.reshape(-1, size, size)).reshape(log_ratio.shape)
    return ((log_ratio - (share - 0.5) / temperature) ** 2).mean(axis=-1)


def _towards(divergence: str, x: Answers, temperature: Number, amount: Number) -> jax.Array:
    target = boltzmann(x.old, x.reference, x.outcome, temperature)
    return f_dpg(x.log_prob, x.old, target, divergence)


LOSSES = {
    "rebel": lambda x, temperature, amount: rebel(x.log_ratio, x.outcome, temperature),
    "gvpo": lambda x, temperature, amount: gvpo(x.log_ratio, x.outcome, temperature),
    "copg": lambda x, temperature, amount: copg(x.log_ratio, x.outcome, temperature),
    "reg_grpo": lambda x, temperature, amount: reg_grpo(x.log_ratio, x.outcome, amount),
    "a_star_po": lambda x, temperature, amount: a_star_po(x.log_ratio, x.outcome, x.value, temperature),
    "p3o": lambda x, temperature, amount: p3o(x.log_prob - x.old, x.outcome, amount),
    "p3o_separate": lambda x, temperature, amount: p3o_separate(x.log_prob - x.old, x.outcome, amount),
    "trpa": lambda x, temperature, amount: trpa(x.log_ratio / x.length, x.outcome, temperature, amount),
    "disco": lambda x, temperature, amount: discriminate(x.log_prob / x.length, x.right, temperature),
    "disco_basic": lambda x, temperature, amount: contrast(x.log_prob / x.length, x.right),
    "disco_ratio": lambda x, temperature, amount: discriminate(x.mean_ratio, x.right, temperature),
    "disco_ratio_basic": lambda x, temperature, amount: contrast(x.mean_ratio, x.right),
    "drpo": lambda x, temperature, amount: discriminate(
        x.log_prob / x.length, x.right, temperature, cheaper(x.cost, x.right, amount)
    ),
    "dpo": lambda x, temperature, amount: dpo(x.log_ratio, x.preference, temperature),
    "ipo": lambda x, temperature, amount: ipo(x.log_ratio, x.preference, temperature),
    "sppo": lambda x, temperature, amount: sppo(x.log_prob - x.old, x.preference, temperature),
    "inpo": lambda x, temperature, amount: inpo(x.log_prob, x.old, x.reference, x.preference, temperature, amount),
} | {f"f_dpg_{name}": partial(_towards, name) for name in DIVERGENCES}

__all__ = ["CYCLE", "DIVERGENCES", "LOSSES", "Answers", "a_star_po", "boltzmann", "bradley_terry", "cheaper"]
__all__ += ["contrast", "copg", "discriminate", "dpo", "f_dpg", "gvpo", "hinged", "inpo", "ipo", "of_kinds"]
__all__ += ["optimal_value", "p3o", "p3o_separate", "rebel", "reg_grpo", "regression", "sppo", "trpa", "whole"]
