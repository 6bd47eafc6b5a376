"""Shapes of outcomes: enumeration of subsets and of exact bandits, loops over their equations, limit cases."""

from functools import partial
from itertools import combinations, product
from math import comb, log
from statistics import NormalDist
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlx import groups, shapes
from rlx.groups import Facts
from rlx.objectives import clipped_surrogate

N, G, T = 3, 6, 5
ROUNDING = {"rtol": 1e-5, "atol": 1e-5}  # sums of a few float32 terms of order 1
NAMES = [
    "max_at_k", "max_at_k_off_policy", "unlikely", "rank_normal", "lens", "consensus", "majority", "within_budget",
    "budget_gap", "concise", "compliant", "success_only_cost", "risk_averse", "wins",
]  # fmt: skip
jitted = SimpleNamespace(
    polychromic=jax.jit(shapes.polychromic, static_argnames="size"),
    **{name: jax.jit(getattr(shapes, name)) for name in NAMES},
)  # one program for all amounts


def played(seed, outcome=None, num_groups=N, size=G):
    """Outcomes `[N, G]` and facts with all that a shape may read, garbage behind the ends included."""
    rng = np.random.default_rng(seed)
    length = rng.integers(1, T + 1, size=(num_groups, size))
    alive = np.arange(T) < length[..., None]
    log_prob = np.where(alive, np.log(rng.uniform(0.1, 0.9, size=alive.shape)), np.nan).astype(np.float32)
    kind = rng.integers(0, 3, size=length.shape).astype(np.int32)
    if outcome is None:
        outcome = rng.integers(0, 2, size=length.shape)
    reward = np.where(np.arange(T) == length[..., None] - 1, np.asarray(outcome)[..., None], 0.0)
    reward = np.where(alive, reward, np.nan).astype(np.float32)
    return jnp.float32(outcome), Facts(jnp.asarray(reward), jnp.asarray(alive), jnp.asarray(log_prob), kind=kind)


def subsets_form(outcome, k, change=None):
    """`1 / C(G, k) sum over k-subsets with i of (1 + sum d) max`, by enumeration, in float64."""
    num = len(outcome)
    change = np.zeros(num) if change is None else change
    found = np.zeros(num)
    for chosen in combinations(range(num), k):
        best = max(outcome[j] for j in chosen) * (1 + sum(change[j] for j in chosen))
        for i in chosen:
            found[i] += best / comb(num, k)
    return found


@pytest.mark.parametrize("k", range(1, G + 1))
def test_max_at_k_is_the_enumeration_of_all_subsets(k):
    rng = np.random.default_rng(k)
    outcome = rng.normal(size=(N, G))
    outcome[0] = rng.integers(0, 2, size=G)  # with ties
    outcome[1, 3:5] = outcome[1, 0]
    change = rng.uniform(-0.5, 0.5, size=(N, G))
    found = jitted.max_at_k(jnp.float32(outcome), None, jnp.float32(k))
    moved = jitted.max_at_k_off_policy(jnp.float32(outcome), jnp.float32(np.log1p(change)), jnp.float32(k))
    for n in range(N):
        np.testing.assert_allclose(found[n], subsets_form(outcome[n], k), **ROUNDING)
        np.testing.assert_allclose(moved[n], subsets_form(outcome[n], k, change[n]), **ROUNDING)


def test_max_at_k_is_the_paper_matrix_of_binomials():
    rng = np.random.default_rng(0)
    for k in (1, 2, 4):
        outcome = np.sort(rng.normal(size=G))
        expected = np.zeros(G)
        for i in range(1, G + 1):
            expected[i - 1] = comb(i - 1, k - 1) * outcome[i - 1] if i >= k else 0.0
            for j in range(i + 1, G + 1):
                expected[i - 1] += comb(j - 2, k - 2) * outcome[j - 1] if j >= k >= 2 else 0.0
        order = rng.permutation(G)
        found = jitted.max_at_k(jnp.float32(outcome[order][None]), None, k)[0]
        np.testing.assert_allclose(found, expected[order] / comb(G, k), **ROUNDING)


def test_max_at_k_in_its_limits():
    outcome = np.random.default_rng(1).normal(size=(N, G)).astype(np.float32)
    shape = lambda r, k: jitted.max_at_k(r, None, k)
    np.testing.assert_allclose(shape(outcome, 1.0), outcome / G, **ROUNDING)
    whole = shape(outcome, float(G))
    np.testing.assert_allclose(whole, outcome.max(1, keepdims=True).repeat(G, 1), **ROUNDING)
    np.testing.assert_array_equal(shape(outcome, 0.0), shape(outcome, 1.0))  # the nearest k that there is
    np.testing.assert_array_equal(shape(outcome, G + 3.0), whole)
    for k in (2.0, 4.0):
        shift = shape(outcome + 2.0, k) - shape(outcome, k)
        np.testing.assert_allclose(shift, 2.0 * k / G, **ROUNDING)  # which a baseline removes
        np.testing.assert_allclose(
            jitted.max_at_k_off_policy(outcome, np.zeros_like(outcome), k), shape(outcome, k), **ROUNDING
        )


def test_the_sum_of_max_at_k_is_k_times_pass_at_k():
    correct = np.random.default_rng(2).random((N, G)) < 0.4
    for k in (1, 2, 5):
        found = jitted.max_at_k(jnp.float32(correct), None, float(k)).sum(axis=1) / k
        np.testing.assert_allclose(found, groups.pass_at_k(jnp.asarray(correct), k), **ROUNDING)


def test_max_at_k_is_exact_in_large_groups():
    num, k = 64, 16
    outcome = np.random.default_rng(3).normal(size=(1, num))
    order = np.sort(outcome[0])
    best = sum(comb(i - 1, k - 1) * order[i - 1] for i in range(k, num + 1)) / comb(num, k)
    np.testing.assert_allclose(jitted.max_at_k(jnp.float32(outcome), None, float(k)).sum() / k, best, rtol=1e-5)


# An exact bandit: all tuples of G arms are the groups, each with its probability.
REWARD, LOGITS = np.array([1.0, 0.4, 0.0]), np.array([0.3, -0.4, 0.6])
PROBABILITY = np.exp(LOGITS) / np.exp(LOGITS).sum()
SCORE = np.eye(3) - PROBABILITY  # gradient of log pi, [arm, logit]


def bandit(size):
    """All groups `[3^G, G]`, and how probable they are."""
    arms = np.array(list(product(range(3), repeat=size)))
    return arms, PROBABILITY[arms].prod(axis=1)


def gradient(arms, weight, advantage):
    """`E sum_i A_i grad log pi(y_i)`."""
    return np.einsum("n,ng,ngp->p", weight, np.asarray(advantage, np.float64), SCORE[arms])


def gradient_of_mean(function, size):
    """Exact gradient of `E f(y_1, ..., y_size)`."""
    arms, weight = bandit(size)
    return gradient(arms, weight, np.array([[function(row)] * size for row in arms]))


@pytest.mark.parametrize("k", [1, 2, 3])
def test_the_mean_gradient_of_max_at_k_is_that_of_the_best_of_k(k):
    arms, weight = bandit(4)
    found = gradient(arms, weight, jitted.max_at_k(jnp.float32(REWARD[arms]), None, k))
    np.testing.assert_allclose(found, gradient_of_mean(lambda row: REWARD[row].max(), k), atol=1e-6)


def test_the_off_policy_form_is_right_to_first_order():
    """Groups of another policy: the error falls with the square of how far it is away, that of no correction does not.

    The expectation is over the policy that acted, the scores are of the other one.
    """
    arms, _ = bandit(4)
    truth = gradient_of_mean(lambda row: REWARD[row].max(), 2)
    errors = {}
    for far in (0.1, 0.05):
        logits = LOGITS + far * np.array([1.0, -1.0, 0.5])
        acting = np.exp(logits) / np.exp(logits).sum()
        weight, ratio = acting[arms].prod(axis=1), np.log(PROBABILITY / acting)[arms]
        corrected = jitted.max_at_k_off_policy(jnp.float32(REWARD[arms]), jnp.float32(ratio), 2)
        plain = jitted.max_at_k(jnp.float32(REWARD[arms]), None, 2)
        errors[far] = [np.abs(gradient(arms, weight, x) - truth).max() for x in (corrected, plain)]
    assert errors[0.1][0] < 0.2 * errors[0.1][1]
    np.testing.assert_allclose(errors[0.1][0] / errors[0.05][0], 4.0, rtol=0.25)
    np.testing.assert_allclose(errors[0.1][1] / errors[0.05][1], 2.0, rtol=0.25)


def test_unlikely_is_the_loop_over_its_equation():
    outcome, facts = played(0)
    found = np.asarray(jitted.unlikely(outcome, facts, 0.25))
    length = np.asarray(facts.alive).sum(-1)
    for n in range(N):
        likely = [float(facts.log_prob[n, g, : length[n, g]].mean()) for g in range(G)]
        for g in range(G):
            rank = sum(other < likely[g] for other in likely)
            np.testing.assert_allclose(found[n, g], outcome[n, g] * (1 - 0.25 * rank / G), **ROUNDING)
    np.testing.assert_array_equal(jitted.unlikely(outcome, facts, 0.0), outcome)
    np.testing.assert_array_equal(found[np.asarray(outcome) == 0], 0)


def test_likely_right_answers_earn_less_and_ties_the_same():
    outcome, facts = played(1, np.ones((N, G)))
    found = np.asarray(jitted.unlikely(outcome, facts, 0.5))
    likely = np.asarray(shapes.mean_log_prob(facts))
    np.testing.assert_array_equal(found.argsort(1), (-likely).argsort(1))
    assert not groups.agree(jnp.asarray(found)[..., None]).any()  # all right, and still something to learn
    even = facts.log_prob.at[:, 1].set(facts.log_prob[:, 0])
    alive = facts.alive.at[:, 1].set(facts.alive[:, 0])
    tied = np.asarray(jitted.unlikely(outcome, Facts(facts.reward, alive, even), 0.5))
    np.testing.assert_array_equal(tied[:, 0], tied[:, 1])
    np.testing.assert_allclose(tied.sum(1), G - 0.5 * (G - 1) / 2, **ROUNDING)


def test_rank_normal_is_the_quantiles_of_the_ranks():
    outcome = np.random.default_rng(4).normal(size=(N, G))
    found = np.asarray(jitted.rank_normal(jnp.float32(outcome), None, 0.0))
    quantile = np.array([NormalDist().inv_cdf((rank + 0.5) / G) for rank in range(G)])
    np.testing.assert_allclose(found, quantile[outcome.argsort(1).argsort(1)], **ROUNDING)
    np.testing.assert_allclose(found.sum(1), 0.0, atol=1e-5)
    mapped = jitted.rank_normal(jnp.float32(np.exp(3 * outcome)), None, 0.0)
    np.testing.assert_array_equal(mapped, found)
    outlier = np.where(outcome == outcome.max(1, keepdims=True), 1e6, outcome)
    np.testing.assert_array_equal(jitted.rank_normal(jnp.float32(outlier), None, 0.0), found)


def test_rank_normal_of_binary_rewards_has_the_values_by_hand():
    outcome = np.array([[1] + 7 * [0], 4 * [1] + 4 * [0], 8 * [1]], np.float32)
    found = np.asarray(jitted.rank_normal(outcome, None, 0.0))
    np.testing.assert_allclose(found[0], [1.534] + 7 * [-0.219], atol=1e-3)
    np.testing.assert_allclose(found[1], 4 * [0.767] + 4 * [-0.767], atol=1e-3)
    np.testing.assert_array_equal(found[2], 0.0)


def one_step(arms):
    """Facts of groups of one-step episodes of the bandit."""
    log_prob = jnp.float32(np.log(PROBABILITY)[arms])[..., None]
    reward = jnp.float32(REWARD[arms])[..., None]
    return Facts(reward, jnp.ones(reward.shape, bool), log_prob, kind=jnp.int32(arms))


def test_lens_is_the_gradient_of_its_likelihood_and_of_its_reward():
    difficulty, reward = 1.0, jnp.float32([1.0, 0.0, 0.3])
    arms = np.arange(3)[None]
    shaped = jitted.lens(reward[None], one_step(arms), difficulty)[0]

    def likelihood(logits):
        log_pi = jax.nn.log_softmax(logits)
        return reward * log_pi + (1 - reward) * jnp.log(1 - jnp.exp(log_pi) / difficulty)

    logits = jnp.float32(LOGITS)
    each = jax.jacobian(likelihood)(logits)  # of every arm, as if it had been sampled
    np.testing.assert_allclose(each, shaped[:, None] * SCORE, **ROUNDING)

    def mean(logits):
        pi = jax.nn.softmax(logits)
        z = pi / difficulty
        return (pi * (reward - (1 - reward) * (jnp.log(1 / (1 - z)) / z - 1))).sum()

    np.testing.assert_allclose(jax.grad(mean)(logits), (PROBABILITY * shaped) @ SCORE, **ROUNDING)


def test_lens_pushes_the_likeliest_wrong_answer_down_most():
    outcome, facts = played(5, np.zeros((N, G)))
    found = np.asarray(jitted.lens(outcome, facts, 1.0))
    pi = np.exp(np.where(facts.alive, facts.log_prob, 0.0).sum(axis=-1))  # of whole answers
    np.testing.assert_allclose(found, -np.minimum(pi / (1 - pi), 2.0), **ROUNDING)
    assert (found < 0).all()
    np.testing.assert_array_equal(found.argmin(1)[pi.max(1) < 2 / 3], pi.argmax(1)[pi.max(1) < 2 / 3])
    sure = Facts(facts.reward, facts.alive, jnp.zeros_like(facts.log_prob))  # pi = 1 > D
    np.testing.assert_allclose(jitted.lens(outcome, sure, 0.5), -2.0, **ROUNDING)
    unsure = Facts(facts.reward, facts.alive, jnp.full_like(facts.log_prob, -50.0))
    np.testing.assert_allclose(jitted.lens(outcome + 0.4, unsure, 1.0), outcome + 0.4, **ROUNDING)


def test_consensus_is_the_share_of_an_answer_less_the_entropy_of_the_shares():
    outcome, facts = played(6)
    plain, found = (np.asarray(jitted.consensus(outcome, facts, a)) for a in (0.0, 0.3))
    for n in range(N):
        kinds = facts.kind[n].tolist()
        shares = {kind: kinds.count(kind) / G for kind in set(kinds)}
        entropy = -sum(p * log(p) for p in shares.values())
        np.testing.assert_allclose(plain[n], [shares[kind] for kind in kinds], **ROUNDING)
        np.testing.assert_allclose(found[n], plain[n] - 0.3 * entropy, **ROUNDING)
    centred = [x - x.mean(1, keepdims=True) for x in (plain, found)]
    np.testing.assert_allclose(*centred, **ROUNDING)  # the entropy is one number a group


def test_majority_is_the_first_of_the_most_frequent_answers():
    kind = jnp.int32([[5, 2, 2, 5, 1, 2], [3, 1, 1, 3, 7, 9], [0, 1, 2, 3, 4, 5]])
    found = jitted.majority(jnp.zeros((N, G)), Facts(None, None, kind=kind), 0.0)
    np.testing.assert_array_equal(found, [[0, 1, 1, 0, 0, 1], [1, 0, 0, 1, 0, 0], [1, 0, 0, 0, 0, 0]])
    np.testing.assert_array_equal(found.sum(1), [3, 2, 1])  # the largest count


def sets_form(reward, kind, sets):
    """A loop over sets of members: what the sets of a member score above all sets."""
    score = []
    for chosen in sets:
        kinds = len({kind[j] for j in chosen})
        share = kinds / len(chosen) if kinds > 1 else 0.0
        score.append(np.mean([reward[j] for j in chosen]) * share)
    own = [[f for f, chosen in zip(score, sets, strict=True) if i in chosen] for i in range(len(reward))]
    return np.array([np.mean(f) - np.mean(score) for f in own])


def test_polychromic_is_the_loop_over_its_sets():
    rng = np.random.default_rng(7)
    outcome, facts = played(7, rng.random((N, G)))
    found = jitted.polychromic(outcome, facts, 0.0)
    pairs = jitted.polychromic(outcome, facts, 0.0, size=2)
    for n in range(N):
        for x, size in ((found, 4), (pairs, 2)):
            expected = sets_form(np.asarray(outcome[n]), facts.kind[n].tolist(), list(combinations(range(G), size)))
            np.testing.assert_allclose(x[n], expected, **ROUNDING)


def test_polychromic_in_its_limits():
    outcome, facts = played(8, np.random.default_rng(8).random((N, G)))
    of_kind = lambda kind: jitted.polychromic(outcome, Facts(None, None, kind=kind), 0.0, size=3)
    np.testing.assert_array_equal(of_kind(jnp.zeros((N, G), jnp.int32)), 0.0)
    distinct = of_kind(jnp.broadcast_to(jnp.arange(G), (N, G)))  # means of sets of 3, of which one is the member itself
    others = (outcome.sum(1, keepdims=True) - outcome) / (G - 1)
    np.testing.assert_allclose(distinct, (outcome + 2 * others) / 3 - outcome.mean(1, keepdims=True), **ROUNDING)
    order = np.random.default_rng(9).permutation(G)
    moved = jitted.polychromic(outcome[:, order], Facts(None, None, kind=facts.kind[:, order]), 0.0)
    np.testing.assert_allclose(moved, jitted.polychromic(outcome, facts, 0.0)[:, order], **ROUNDING)
    whole = jitted.polychromic(outcome[:, :3], Facts(None, None, kind=facts.kind[:, :3]), 0.0)  # fewer than 4: one set
    np.testing.assert_allclose(whole, 0.0, atol=1e-6)


def test_polychromic_climbs_the_mean_score_of_sets():
    arms, weight = bandit(4)
    shaped = jitted.polychromic(jnp.float32(REWARD[arms]), one_step(arms), 0.0, size=2)
    truth = gradient_of_mean(lambda row: REWARD[row].mean() * (len(set(row)) == 2), 2)
    np.testing.assert_allclose(gradient(arms, weight, shaped), (4 - 2) / 2 * truth, atol=1e-6)


def test_sets_are_all_of_16_members_and_fair_random_ones_of_more():
    assert len(shapes.subsets(16, 4)) == 1820
    sets = shapes.subsets(26, 4)
    assert all(len(set(chosen)) == 4 for chosen in sets.tolist())
    count = np.bincount(sets.ravel(), minlength=26)
    np.testing.assert_allclose(count, count.mean(), rtol=0.1)
    np.testing.assert_array_equal(sets, shapes.subsets(26, 4))
    rng = np.random.default_rng(10)
    outcome, kind = rng.random((1, 26)), rng.integers(0, 3, (1, 26))
    found = jitted.polychromic(jnp.float32(outcome), Facts(None, None, kind=kind), 0.0)
    np.testing.assert_allclose(found[0], sets_form(outcome[0], kind[0].tolist(), sets.tolist()), **ROUNDING)


def test_budgets_are_kept_by_right_answers_in_cosines_of_their_lengths():
    outcome, facts = played(11)
    budget = np.array([0.0, 0.2, 0.2, 0.6, 0.6, 1.0])
    found = np.asarray(jitted.within_budget(outcome, facts, jnp.float32(budget)))
    gap = np.asarray(jitted.budget_gap(jnp.asarray(found), jnp.float32(budget)))
    length, steps = np.asarray(facts.alive).sum(-1), 4096  # the paper's numbers, at 4,096 steps
    for n, g in np.ndindex(N, G):
        tokens, limit = length[n, g] / T * steps, budget[g] * steps
        worth = 4 * np.cos(np.pi * tokens / 8192)
        if budget[g] > 0:
            worth = min(worth - abs(limit - tokens) / 4096, 4 * np.cos(np.pi * limit / 8192))
        np.testing.assert_allclose(found[n, g], worth if outcome[n, g] else 0.0, **ROUNDING)
        mean = np.mean([found[n, j] for j in range(G) if budget[j] == budget[g]])
        expected = mean - 4 * np.cos(np.pi * limit / 8192) if budget[g] > 0 else 0.0
        np.testing.assert_allclose(gap[n, g], expected, **ROUNDING)


def test_an_answer_below_its_budget_is_charged_for_what_it_did_not_use():
    """Of short answers, whose cosines hardly differ: of longer ones the budget's own worth is the bound."""
    alive = np.arange(40) < np.array([[1], [3], [4]])
    used, budget = np.array([1, 3, 4]) / 40, 0.1
    found = jitted.within_budget(jnp.ones((1, 3)), Facts(None, alive[None]), budget)[0]
    worth = 4 * np.cos(np.pi / 2 * used)
    np.testing.assert_allclose(found, worth - (budget - used), **ROUNDING)
    assert found.argmax() == 2


def test_a_stage_says_what_it_misses():
    with pytest.raises(ValueError, match=r"this stage reads facts\.kind, which is None"):
        shapes.majority(jnp.ones((N, G)), Facts(None, None), 0.0)


def test_short_answers_are_paid_only_where_all_are_right():
    outcome, facts = played(12, np.array([G * [1.0], [0.0] + (G - 1) * [1.0], G * [0.0]]))
    found = np.asarray(jitted.concise(outcome, facts, 0.5))
    np.testing.assert_allclose(found[0], 1 + 0.5 * (1 - np.asarray(facts.length)[0] / T), **ROUNDING)
    np.testing.assert_array_equal(found[1:], outcome[1:])  # a wrong member: nothing changes


def test_compliant_advantages_are_their_equation():
    rng = np.random.default_rng(13)
    outcome, ratio, baseline = rng.normal(size=(N, G)), rng.normal(size=(N, G)), rng.normal(size=(N, 1))
    holds = rng.random((N, G)) < 0.6
    args = [jnp.float32(x) for x in (ratio, baseline)]
    found = jitted.compliant(jnp.float32(outcome), jnp.asarray(holds), *args, 0.8)
    value = 1 / (1 + np.exp(baseline - outcome)) * holds * np.maximum(1 - ratio / 0.8, 0)
    np.testing.assert_allclose(found, value - value.mean(), **ROUNDING)
    nobody = jitted.compliant(jnp.float32(outcome), jnp.zeros((N, G), bool), *args, 0.8)
    np.testing.assert_array_equal(nobody, 0.0)


def test_cost_counts_against_the_cheapest_right_answer():
    outcome = np.array([[1, 1, 0, 1], [0, 0, 0, 0]], np.float32)
    count = np.array([[5, 2, 0, 3], [1, 2, 3, 4]], np.float32)
    found = jitted.success_only_cost(outcome, None, 0.5, count)
    np.testing.assert_allclose(found, [[np.exp(-1.5), 1, 0, np.exp(-0.5)], 4 * [0]], **ROUNDING)
    np.testing.assert_array_equal(jitted.success_only_cost(outcome, None, 0.0, count), outcome)


def test_wins_are_shares_of_preferences_and_ranks_or_differences_at_their_ends():
    outcome = np.random.default_rng(3).normal(size=(N, G))
    found = np.asarray(jitted.wins(jnp.float32(outcome), None, 2.0))
    for n, i in np.ndindex(N, G):
        preferred = [1 / (1 + np.exp(-2.0 * (outcome[n, i] - outcome[n, j]))) for j in range(G) if j != i]
        np.testing.assert_allclose(found[n, i], np.mean(preferred), rtol=1e-5)
    rank = outcome.argsort(axis=1).argsort(axis=1) / (G - 1)
    np.testing.assert_allclose(jitted.wins(jnp.float32(outcome), None, 1e4), rank, atol=1e-3)
    centred = outcome - outcome.mean(axis=1, keepdims=True)
    flat = jitted.wins(jnp.float32(outcome), None, 1e-2)
    np.testing.assert_allclose((flat - 0.5) / (1e-2 * G / (4 * (G - 1))), centred, atol=2e-3)


def test_risk_is_weighed_over_all_groups():
    outcome = jnp.float32(np.random.default_rng(4).normal(size=(N, G)))
    found = jitted.risk_averse(outcome, None, 0.7)
    np.testing.assert_allclose(found, groups.risk_averse(outcome, 0.2, 0.8, 0.7), **ROUNDING)
    assert np.unique(found).size > 3


COUNT, HOLDS = np.arange(1.0, G + 1, dtype=np.float32), np.arange(G) % 2 == 0
BUDGET = np.linspace(0, 1, G, dtype=np.float32)
SHAPES = {
    "as_it_is": shapes.as_it_is,
    "max_at_k": lambda r, facts, amount: shapes.max_at_k(r, facts, 4 * amount),
    "max_at_k_off_policy": lambda r, facts, amount: shapes.max_at_k_off_policy(r, 0.1 * r, 4 * amount),
    "unlikely": shapes.unlikely,
    "rank_normal": shapes.rank_normal,
    "lens": shapes.lens,
    "consensus": shapes.consensus,
    "majority": shapes.majority,
    "polychromic": shapes.polychromic,
    "within_budget": lambda r, facts, amount: shapes.within_budget(r, facts, BUDGET),
    "concise": shapes.concise,
    "compliant": lambda r, facts, amount: shapes.compliant(r, HOLDS, 0.1 * r, r.mean(), amount),
    "risk_averse": shapes.risk_averse,
    "wins": shapes.wins,
    "success_only_cost": partial(shapes.success_only_cost, count=COUNT),
}


@pytest.mark.parametrize("name", SHAPES)
def test_shapes_are_finite_mapped_and_blind_to_what_follows_the_end(name):
    """Of groups that agree and of others, with NaN behind the ends, of many problems at once, with their gradients."""
    problems = [played(20 + i, outcome) for i, outcome in enumerate((None, np.ones((N, G)), np.zeros((N, G))))]
    values, facts = zip(*problems, strict=True)
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *facts)
    clean = jnp.where(stacked.alive, stacked.log_prob, 0.0)
    shape = jax.vmap(SHAPES[name], (0, 0, None))
    summed = lambda r, log_prob: shape(r, Facts(stacked.reward, stacked.alive, log_prob, kind=stacked.kind), 0.5)
    found, slope = jax.jit(lambda r, p: (summed(r, p), jax.grad(lambda *x: summed(*x).sum(), (0, 1))(r, p)))(
        jnp.stack(values), stacked.log_prob
    )
    assert found.dtype == jnp.float32
    for x in (found, slope[0], jnp.where(stacked.alive, slope[1], 0.0)):
        assert np.isfinite(x).all()
    np.testing.assert_array_equal(slope[1][~stacked.alive], 0.0)
    np.testing.assert_array_equal(jax.jit(summed)(jnp.stack(values), clean), found)
    one = jax.jit(lambda r, facts: SHAPES[name](r, facts, 0.5))
    for i in range(3):
        np.testing.assert_allclose(one(values[i], facts[i]), found[i], **ROUNDING)


# Presets of the pieces that were there before: they need no code of their own.


def test_the_advantages_of_pairs_are_their_contrast():
    """Groups of two: the gradient is `(grad l_right - grad l_wrong) / (2 sqrt 2)`, and equal pairs add nothing."""
    arms = np.array([[0, 2], [2, 0], [0, 0], [2, 2]])
    outcome = jnp.float32(REWARD[arms])
    centred = outcome - outcome.mean(axis=1, keepdims=True)
    advantage = np.asarray(centred / groups.group_std(outcome))
    np.testing.assert_allclose(np.abs(advantage), [[2**-0.5] * 2] * 2 + [[0, 0]] * 2, rtol=1e-3)

    def loss(logits):
        log_ratio = jax.nn.log_softmax(logits)[arms] - jnp.float32(np.log(PROBABILITY)[arms])
        return -clipped_surrogate(log_ratio, jnp.asarray(advantage), 0.2).mean(axis=1)

    found = jax.jacobian(loss)(jnp.float32(LOGITS))
    contrast = (SCORE[0] - SCORE[2]) / (2 * 2**0.5)
    np.testing.assert_allclose(found, [contrast, contrast, 0 * contrast, 0 * contrast], atol=2e-4)


def test_binary_grpo_is_a_contrast_of_clipped_ratios_times_the_deviation():
    rng = np.random.default_rng(14)
    log_ratio = rng.normal(0, 0.3, size=(N, G))
    outcome = np.array([[1, 0, 0, 0, 0, 0], [1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 0]], np.float32)
    advantage = (outcome - outcome.mean(1, keepdims=True)) / groups.group_std(jnp.asarray(outcome), 0.0)
    found = -clipped_surrogate(jnp.float32(log_ratio), advantage, 0.2).mean(axis=1)
    for n in range(N):
        is_right, p, rho = outcome[n] > 0, outcome[n].mean(), np.exp(log_ratio[n])
        contrast = np.minimum(rho[is_right], 1.2).mean() - np.maximum(rho[~is_right], 0.8).mean()
        population = np.sqrt(p * (1 - p)) * contrast
        np.testing.assert_allclose(found[n], population * np.sqrt((G - 1) / G), **ROUNDING)  # Bessel's correction


def test_loop_has_the_first_gradient_of_rloo_per_step():
    rng = np.random.default_rng(15)
    length = np.full((N, G), T)
    length[1] = 2
    alive = np.arange(T) < length[..., None]
    outcome = jnp.float32(rng.normal(size=(N, G)))
    facts = Facts(None, jnp.asarray(alive))
    credit = jnp.broadcast_to(outcome[..., None], (N, G, T))
    advantage = credit - groups.leave_one_out(credit, facts)

    def loss(log_ratio, ratio):
        each = clipped_surrogate(ratio(log_ratio, alive), advantage, 0.1)
        return (groups.per_trajectory(jnp.asarray(alive)) * each).sum()

    loop, rloo = (jax.grad(loss)(jnp.zeros((N, G, T)), ratio) for ratio in (groups.of_step, groups.product))
    np.testing.assert_allclose(rloo, loop * length[..., None], **ROUNDING)
    assert np.abs(loop).max() > 0.01
