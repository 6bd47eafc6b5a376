"""Shapes of outcomes: what the outcomes of a group become before a baseline is taken off them.

A shape is `shape(outcome, facts, amount) -> [N, G]` of outcomes `[N, G]`, with `rlx.groups.Facts` and one number, which
may be traced. A baseline comes after it, unless the shape says that it has one inside. Where a shape asks whether an
answer is right, `right` says it. Nothing is read from behind the end of an episode.

Axes: N groups, G members, T time, M sets of members.
"""

from itertools import combinations
from math import comb
from statistics import NormalDist

import chex
import jax
import jax.numpy as jnp
import numpy as np

from rlx import groups
from rlx.groups import Facts

MOST_SETS = 1820  # of members of a group: all sets of 4 of 16
Number = float | jax.Array


def known(facts: Facts, name: str) -> jax.Array:
    """A field of the facts. Raises ValueError where they do not have it."""
    if (field := getattr(facts, name)) is None:
        raise ValueError(f"this stage reads facts.{name}, which is None: give it, or choose another stage")
    return field


def as_it_is(outcome: jax.Array, facts: Facts, amount: Number) -> jax.Array:
    """`R`, `[N, G]`."""
    return outcome


def right(outcome: jax.Array) -> jax.Array:
    """Whether an outcome is 1, up to rounding, bool of any shape: what is called right where rewards are 0 to 1."""
    return outcome > 1.0 - 1e-3


def max_at_k(outcome: jax.Array, facts: Facts, amount: Number) -> jax.Array:
    """What each answer adds to the best of k, `[N, G]`; `amount` is k, a whole number from 1 to G.

        r~_i = 1 / C(G, k) sum_{S with i in S, |S| = k} max_{j in S} R_j

    `E sum_i r~_i grad log pi(y_i)` is the gradient of `E max(R_1, ..., R_k)`. `k = 1` gives `R_i / G`. `k = G` gives
    all members the same, of which a baseline leaves nothing: use `G >= 2 k`. A k outside of 1 to G counts as the
    nearest one inside. In the paper's form, over outcomes in ascending order, i and j from 1:

        r~_i = 1 / C(G, k) (C(i - 1, k - 1) R_i + sum_{j > i} C(j - 2, k - 2) R_j)

    Outcomes that tie get the same in any order.

    Source: Best of N worlds, 2025, arXiv:2510.23393.
    """
    return max_at_k_off_policy(outcome, jnp.zeros_like(outcome), amount)


def max_at_k_off_policy(outcome: jax.Array, log_ratio: jax.Array, k: Number) -> jax.Array:
    """`max_at_k` of answers that another policy wrote, to first order in how far it is away, `[N, G]`.

        r~_i = 1 / C(G, k) sum_{S with i in S, |S| = k} (1 + sum_{l in S} d_l) max_{j in S} R_j

    The product of the k ratios is taken as `1 + sum d`, with `d = exp(log_ratio) - 1`. The log-ratios `[N, G]` are of
    whole answers, to the policy that wrote them, and are not differentiated. In the paper's form, over outcomes in
    ascending order, i and j from 1, with `D_j = sum_{l < j} d_l`:

        C(G, k) r~_i = (C(i-1, k-1) (1 + d_i) + C(i-2, k-2) D_i) R_i
                       + sum_{j > i} (C(j-2, k-2) (1 + d_i + d_j) + C(j-3, k-3) (D_j - d_i)) R_j

    Source: Best of N worlds, 2025, arXiv:2510.23393.
    """
    chex.assert_equal_shape([outcome, log_ratio])
    order = jnp.argsort(outcome, axis=-1)
    reward = jnp.take_along_axis(outcome, order, axis=-1)
    change = jnp.expm1(jnp.take_along_axis(jax.lax.stop_gradient(log_ratio), order, axis=-1))
    one, two, three = (_subsets(outcome.shape[-1], k, given) for given in (1, 2, 3))
    below = _before(change)
    own = reward * (one * (1.0 + change) + two * below)
    above = _after(reward * (two * (1.0 + change) + three * below)) + change * _after(reward * (two - three))
    return jnp.take_along_axis(own + above, jnp.argsort(order, axis=-1), axis=-1)


def _subsets(num: int, k: Number, given: int) -> jax.Array:
    """`C(i - given, k - given) / C(num, k)` for i = 1 ... num, `[num]`.

    It is the share of all k-subsets that have some `given` members of the first i, the i-th among them, and else only
    earlier ones. As a product of ratios, which does not overflow and is 0 where there is no such subset.
    """
    i, k = jnp.arange(1, num + 1), jnp.clip(jnp.round(k), 1, num)
    share = jnp.prod(jnp.stack([(k - q) / max(num - q, 1) for q in range(given)]))  # for i = num
    steps = jnp.maximum(i - k, 0) / jnp.maximum(i - given, 1)  # from i to i - 1
    steps = jnp.append(jnp.cumprod(steps[::-1])[::-1][1:], 1.0)
    return jnp.where(i >= given, share * steps, 0.0)


def _before(x: jax.Array) -> jax.Array:
    """`sum_{j < i} x_j`, `[..., G]`."""
    return jnp.concatenate([jnp.zeros_like(x[..., :1]), jnp.cumsum(x[..., :-1], axis=-1)], axis=-1)


def _after(x: jax.Array) -> jax.Array:
    """`sum_{j > i} x_j`, `[..., G]`."""
    return _before(x[..., ::-1])[..., ::-1]


def unlikely(outcome: jax.Array, facts: Facts, amount: Number) -> jax.Array:
    """`R_i (1 - amount rank_i / G)`, `[N, G]`, with rank 0 for the answer that the acting policy found least likely.

    Of right answers the likely ones get less; where wrong ones are 0, they stay so. Likely is by the mean
    log-probability of a step. Answers that tie share their mean rank, which is ours. The source has an amount of 0.25,
    and leaves out groups that agree before it.

    Source: Unlikeliness reward, 2025, arXiv:2506.02355, in the form of its code.
    """
    rank, same = _places(mean_log_prob(facts))
    return outcome * (1.0 - amount * (rank + 0.5 * (same - 1)) / outcome.shape[-1])


def mean_log_prob(facts: Facts) -> jax.Array:
    """`1 / L sum_t log pi_old(a_t)` of each episode, `[N, G]`."""
    total = jnp.where(facts.alive, known(facts, "log_prob"), 0.0).sum(axis=-1)
    return total / jnp.maximum(facts.length, 1)


def _places(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """How many members of its group are below each one, and how many equal to it, itself included, `[N, G]`."""
    one, other = x[..., :, None], x[..., None, :]
    return (other < one).sum(axis=-1), (other == one).sum(axis=-1)


def rank_normal(outcome: jax.Array, facts: Facts, amount: Number) -> jax.Array:
    """Standard-normal quantiles of the ranks in the group, `[N, G]`: `Phi^-1((rank - 1/2) / G)`, rank 1 the lowest.

    Outcomes that tie share the mean of their quantiles. A group's sum is 0, so that it needs no baseline, and any
    increasing map of the outcomes leaves it as it is. The points of the quantiles and the rule for ties are ours.

    Source: G2RPO, 2026, arXiv:2604.08539, from an account of the paper.
    """
    num = outcome.shape[-1]
    sums = np.append(0.0, np.cumsum([NormalDist().inv_cdf((i + 0.5) / num) for i in range(num)]))
    sums = jnp.asarray((sums + sums[::-1]) / 2, outcome.dtype)  # equal at both ends: all tied gives 0
    below, same = _places(outcome)
    return (sums[below + same] - sums[below]) / same


def lens(outcome: jax.Array, facts: Facts, amount: Number) -> jax.Array:
    """Outcomes 0 to 1 of which the wrong ones pay for confidence, `[N, G]`; `amount` is D, above 0 and at most 1.

        R - (1 - R) min(pi / (D - pi), 2)

    It is the weight of the score in the gradient of `R log pi + (1 - R) log(1 - pi / D)`. D says how easy the task is:
    1 where one answer is right. `pi` is the probability of the whole answer: long ones that are wrong pay hardly
    anything. With the mean over steps in its place they would pay for every sure token, and a policy that is right a
    quarter of the time comes to write noise. The bound of 2 is ours: how the paper treats length and estimates D was
    not read.

    Source: LENS, 2025, arXiv:2510.08696.
    """
    whole = jnp.where(facts.alive, known(facts, "log_prob"), 0.0).sum(axis=-1)
    pi = jnp.minimum(jnp.exp(whole), 2.0 * amount / 3.0)  # where the ratio is 2
    return outcome - (1.0 - outcome) * pi / (amount - pi)


def consensus(outcome: jax.Array, facts: Facts, amount: Number) -> jax.Array:
    """The share of the group that has the same answer, `[N, G]`, less `amount` times the entropy of these shares.

        p_i - amount H,    p_i = mean_j [kind_j = kind_i],    H = -mean_i log p_i

    No label is read. H is one number a group, so that any baseline of the group removes it.

    Source: TTRV, 2025, arXiv:2510.06783.
    """
    share = kind_shares(known(facts, "kind"))
    return share + amount * jnp.log(share).mean(axis=-1, keepdims=True)


def majority(outcome: jax.Array, facts: Facts, amount: Number) -> jax.Array:
    """1 for the answer that most of the group have, else 0, `[N, G]`; of several such, the one that comes first.

    Source: TTRL, 2025, arXiv:2504.16084.
    """
    alike = _alike(known(facts, "kind"))
    most = alike.sum(axis=-1).argmax(axis=-1)  # the first of them
    return jnp.take_along_axis(alike, most[:, None, None], axis=1)[:, 0].astype(outcome.dtype)


def risk_averse(outcome: jax.Array, facts: Facts, amount: Number, low: float = 0.2, high: float = 0.8) -> jax.Array:
    """`rlx.groups.risk_averse` of all outcomes of an update, `[N, G]`; `amount` is the weight of the lower tail."""
    return groups.risk_averse(outcome, low, high, amount)


def wins(outcome: jax.Array, facts: Facts, amount: Number) -> jax.Array:
    """How often a member of a group would be preferred to the others, `rlx.groups.win_share`, `[N, G]`.

        P(i, j) = 1 / (1 + exp(-amount (R_i - R_j)))

    A small slope `amount` gives `1/2 + amount G / (4 (G - 1)) (R_i - mean R)`, a large one the rank.
    """
    return groups.win_share(jax.nn.sigmoid(amount * (outcome[..., :, None] - outcome[..., None, :])))


def kind_shares(kind: jax.Array) -> jax.Array:
    """The share of its group that is of a member's kind, `[N, G]` of kinds `[N, G]`."""
    return _alike(kind).mean(axis=-1)


def _alike(kind: jax.Array) -> jax.Array:
    """Which two are equal, bool `[..., G, G]`."""
    return kind[..., :, None] == kind[..., None, :]


def polychromic(outcome: jax.Array, facts: Facts, amount: Number, size: int = 4) -> jax.Array:
    """What the sets that a member is in score above others, `[N, G]`: success and diversity of the set together.

        A_i = mean of f(S) over sets S with i  -  mean of f over all sets
        f(S) = mean of R in S  x  number of kinds in S / |S|,    0 where all are of one kind

    Outcomes are 0 to 1. The sets are all those of `size` members (all G, where there are fewer) while there are at most
    1,820 of them, and else about as many random ones, always the same. Over all sets,

        E sum_i A_i grad log pi(y_i) = (G - size) / size  grad E f

    It needs no baseline. As a shape it is ours: the paper draws 4 sets from vines of one state, and gives what a set
    scores to its steps near there.

    Source: Polychromic objectives, 2025, arXiv:2509.25424, from an account of the paper.
    """
    sets = subsets(outcome.shape[-1], size)  # [M, size]
    reward, kind = outcome[:, sets], known(facts, "kind")[:, sets]  # [N, M, size]
    earlier = jnp.tri(sets.shape[1], k=-1, dtype=bool)  # of two members of a set, the first counts
    num_kinds = (~(_alike(kind) & earlier).any(axis=-1)).sum(axis=-1)
    score = reward.mean(axis=-1) * jnp.where(num_kinds > 1, num_kinds / sets.shape[1], 0.0)
    score = score - score.mean(axis=-1, keepdims=True)
    member = (sets[:, None, :] == np.arange(outcome.shape[-1])[:, None]).any(axis=-1)  # [M, G]
    share = jnp.asarray(member / np.maximum(member.sum(axis=0), 1), outcome.dtype)
    return jnp.einsum("nm,mg->ng", score, share, precision="highest")


def subsets(num: int, size: int) -> np.ndarray:
    """Sets of `size` of `num` members, or of all where there are fewer, `[M, size]`: all if at most 1,820, else random.

    The random ones deal all members to sets, again and again from a fixed seed, so that each is in nearly as many.
    """
    size = min(size, num)
    if comb(num, size) <= MOST_SETS:
        return np.array(list(combinations(range(num), size)))
    draw = np.random.default_rng(0)
    dealt = num // size
    return np.concatenate([draw.permutation(num)[: dealt * size].reshape(-1, size) for _ in range(MOST_SETS // dealt)])


def within_budget(outcome: jax.Array, facts: Facts, budget: jax.Array) -> jax.Array:
    """What right answers are worth by their length and by a budget of it that they were told, `[N, G]`.

        min(4 cos(pi x / 2) - |b - x|, 4 cos(pi b / 2))  for a right answer with a budget b
        4 cos(pi x / 2)                                  for one without
        0                                                for a wrong one

    `x = L / T` is the length and b the budget, both as shares of the T steps that an episode may have. Budgets are
    `[G]` or `[N, G]`, 0 for a member without one. The source has 4,096 steps, and budgets of 512 to 2,560 of them.

    Source: HBPO, 2025, arXiv:2507.15844, and its code.
    """
    used = facts.length / facts.alive.shape[-1]
    worth = 4.0 * jnp.cos(jnp.pi / 2 * used)
    told = jnp.minimum(worth - jnp.abs(budget - used), 4.0 * jnp.cos(jnp.pi / 2 * budget))
    return jnp.where(right(outcome), jnp.where(budget > 0, told, worth), 0.0)


def budget_gap(shaped: jax.Array, budget: jax.Array) -> jax.Array:
    """`mean of the members with the same budget - 4 cos(pi b / 2)`, `[N, G]`, which is added to the advantage.

    `shaped` `[N, G]` is what `within_budget` returned. Members without a budget get 0, which is ours. The published
    code adds it twice.

    Source: HBPO, 2025, arXiv:2507.15844, and its code.
    """
    budget = jnp.broadcast_to(budget, shaped.shape)
    same = _alike(budget)
    mean = jnp.where(same, shaped[:, None, :], 0.0).sum(axis=-1) / same.sum(axis=-1)
    return jnp.where(budget > 0, mean - 4.0 * jnp.cos(jnp.pi / 2 * budget), 0.0)


def concise(outcome: jax.Array, facts: Facts, amount: Number) -> jax.Array:
    """`R + amount (1 - L / T)` in groups whose answers are all right, else `R`, `[N, G]`.

    The mask "degenerate" would leave these groups out. The exact form is ours.

    Source: the second stage of ConciseR, 2025, arXiv:2505.21178.
    """
    saved = 1.0 - facts.length / facts.alive.shape[-1]
    return outcome + jnp.where(right(outcome).all(axis=-1, keepdims=True), amount * saved, 0.0)


def compliant(
    outcome: jax.Array, holds: jax.Array, log_ratio: jax.Array, baseline: jax.Array, largest: Number
) -> jax.Array:
    """Advantages of answers that keep to all constraints, and stay near a reference policy, `[N, G]`.

        A = c - mean c over the batch,    c = sigmoid(R - R_baseline) 1[holds] max(1 - log(pi / pi_ref) / largest, 0)

    Args:
        outcome: R, `[N, G]`.
        holds: whether an answer keeps to all constraints, bool `[N, G]`.
        log_ratio: `log(pi / pi_ref)` of whole answers, `[N, G]`.
        baseline: outcome of an answer to compare with, `[N, 1]` or `[N, G]`.
        largest: log-ratio from which on an answer counts nothing.

    Where nobody complies, all are 0. Source: CGPO, 2024, arXiv:2409.20370.
    """
    calibrated = jax.nn.sigmoid(outcome - baseline)
    near = jnp.maximum(1.0 - log_ratio / largest, 0.0)
    kept = jnp.where(holds, calibrated * near, 0.0)
    return kept - kept.mean()


def success_only_cost(outcome: jax.Array, facts: Facts, amount: Number, count: jax.Array) -> jax.Array:
    """`R exp(-amount (n - n_least))` for right answers, `R` for wrong ones, `[N, G]`.

    `n` is what was used up on the way, such as calls of a tool, `count` `[N, G]`, and `n_least` the least of the right
    answers of the group: that one loses nothing, and no saving is paid without success. The exact form is ours; OTC and
    others have factors of this kind.
    """
    is_right = right(outcome)
    least = jnp.where(is_right, count, jnp.inf).min(axis=-1, keepdims=True)
    over = jnp.where(is_right, count - jnp.where(is_right, least, 0.0), 0.0)
    return outcome * jnp.exp(-amount * over)
