"""Adjustments, masks and weights of steps: loops over their equations, values by hand, searches in all subsets."""

from dataclasses import replace
from functools import partial
from itertools import combinations, product
from math import log
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from rlx import adjustments, groups
from rlx.groups import Facts
from rlx.objectives import clipped_surrogate

N, G, T = 3, 6, 5
ROUNDING = {"rtol": 1e-5, "atol": 1e-5}  # sums of a few float32 terms of order 1
NAMES = [
    "mapo", "copo", "semantic_entropy", "hicra", "highest", "gtpo", "beta_scale", "degenerate", "uncertain",
    "spread_subset", "informative_tokens", "conflict", "mixed_surrogate", "best_and_worst", "short_right_long_wrong",
]  # fmt: skip
jitted = SimpleNamespace(**{name: jax.jit(getattr(adjustments, name)) for name in NAMES})


def played(seed, outcome=None, garbage=np.nan):
    """Advantages `[N, G, T]` and facts of random episodes of 0/1 outcomes, with garbage behind their ends."""
    rng = np.random.default_rng(seed)
    length = rng.integers(1, T + 1, size=(N, G))
    alive = np.arange(T) < length[..., None]
    fill = lambda x: np.where(alive, x, garbage).astype(np.float32)
    token = rng.integers(0, 2, size=alive.shape)
    outcome = rng.integers(0, 2, size=(N, G)) if outcome is None else np.asarray(outcome)
    facts = Facts(
        reward=fill((np.arange(T) == length[..., None] - 1) * outcome[..., None]),
        alive=alive,
        log_prob=fill(np.log(rng.uniform(0.1, 1.0, size=alive.shape))),
        entropy=fill(rng.uniform(0.1, 1.2, size=alive.shape)),
        token=np.where(alive, token, np.int32(np.nan_to_num(garbage))).astype(np.int32),
        kind=rng.integers(0, 3, size=(N, G)).astype(np.int32),
    )
    return fill(rng.normal(size=alive.shape)), facts


def with_outcome(outcome):
    """Facts of episodes of one step."""
    outcome = jnp.float32(outcome)[..., None]
    return Facts(outcome, jnp.ones(outcome.shape, bool))


def at_alive(facts, *arrays):
    return [np.broadcast_to(x, facts.alive.shape)[facts.alive] for x in arrays]


def outcomes(facts):
    return np.where(facts.alive, facts.reward, 0).sum(-1)


def test_mapo_is_its_equation_and_has_the_values_by_hand():
    advantage, facts = played(0)
    found = np.asarray(jitted.mapo(advantage, facts, 0.0))
    for n, outcome in enumerate(outcomes(facts)):
        mean, p = outcome.mean(), (outcome == 1).mean()
        mixed = 1 - 4 * p * (1 - p)
        expected = (outcome - mean) * ((1 - mixed) / (outcome.std() + 1e-6) + mixed / (mean + 1e-6))
        np.testing.assert_allclose(found[n], expected[:, None].repeat(T, 1), rtol=1e-4)
    by_hand = np.array([[1] + 7 * [0], 7 * [1] + [0], 4 * [1] + 4 * [0], 8 * [0], 8 * [1]])
    found = jitted.mapo(jnp.zeros((5, 8, 1)), with_outcome(by_hand), 0.0)[..., 0]
    np.testing.assert_allclose(found[0], [5.10] + 7 * [-0.73], atol=0.01)
    np.testing.assert_allclose(found[1], 7 * [0.25] + [-1.72], atol=0.01)
    np.testing.assert_allclose(found[2], 4 * [1] + 4 * [-1], atol=0.01)  # the z-score
    np.testing.assert_array_equal(found[3:], 0.0)
    many = np.ones((1, 512))
    many[0, 0] = 0
    found = np.asarray(jitted.mapo(jnp.zeros((1, 512, 1)), with_outcome(many), 0.0))[0, :, 0]
    z = (many[0] - many.mean()) / many.std()
    part = 4 * (511 / 512) / 512
    np.testing.assert_allclose(found, part * z + (1 - part) * (many[0] - many.mean()) / many.mean(), rtol=1e-3)


def test_copo_blends_by_the_entropy_of_the_answers():
    advantage, facts = played(1)
    facts = replace(facts, kind=np.array([[0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 0], [0, 0, 1, 1, 2, 2]], np.int32))
    found = np.asarray(jitted.copo(advantage, facts, 0.0))
    mean = outcomes(facts).mean(1)
    task = (mean - mean.mean()) / mean.std()
    for n, kinds in enumerate(facts.kind.tolist()):
        entropy = -sum(p * log(p) for p in (kinds.count(kind) / G for kind in set(kinds)))
        local = 1 / (1 + np.exp(-20 * (entropy - 1.5)))
        expected = local * advantage[n] + (1 - local) * task[n]
        np.testing.assert_allclose(found[n][facts.alive[n]], expected[facts.alive[n]], rtol=1e-4, atol=1e-4)


def test_copo_is_grpo_of_answers_that_differ_and_blames_a_group_that_agrees():
    advantage, facts = played(2, np.array([G * [0], G * [1], 3 * [0] + 3 * [1]]))
    different = replace(facts, kind=np.broadcast_to(np.arange(G, dtype=np.int32), (N, G)))
    found = jitted.copo(advantage, different, 0.0)
    np.testing.assert_allclose(*at_alive(facts, found, advantage), atol=0.02)
    found = np.asarray(jitted.copo(0 * advantage, replace(facts, kind=np.zeros((N, G), np.int32)), 0.0))
    assert (found[0][facts.alive[0]] < -1).all()
    assert (found[1][facts.alive[1]] > 1).all()
    same = played(2, np.ones((N, G)))[1]  # every task alike: no task is better than another
    np.testing.assert_array_equal(*at_alive(same, jitted.copo(0 * advantage, same, 0.0), 0.0))


def test_semantic_entropy_is_its_equation_and_not_that_of_shannon():
    advantage, facts = played(3)
    found = np.asarray(jitted.semantic_entropy(advantage, facts, 0.5))
    factor = []
    for kinds in facts.kind.tolist():
        shares = [kinds.count(kind) / G for kind in set(kinds)]
        factor.append(1 - 0.5 * -np.mean(np.log(shares)) / log(G))
    np.testing.assert_allclose(*at_alive(facts, found, np.array(factor)[:, None, None] * advantage), **ROUNDING)
    assert len(set(facts.kind[0].tolist())) > 1
    one = jitted.semantic_entropy(advantage, replace(facts, kind=np.zeros((N, G), np.int32)), 0.5)
    np.testing.assert_array_equal(*at_alive(facts, one, advantage))
    kind = np.broadcast_to(np.arange(G, dtype=np.int32), (N, G))
    all_differ = jitted.semantic_entropy(advantage, replace(facts, kind=kind), 0.3)
    np.testing.assert_allclose(*at_alive(facts, all_differ, 0.7 * advantage), **ROUNDING)


def test_hicra_pays_more_for_good_plans_and_less_for_bad_ones():
    advantage, facts = played(4)
    planning = np.random.default_rng(4).random((N, G, T)) < 0.5
    found = np.asarray(jitted.hicra(advantage, facts, 0.2, planning))
    factor = np.where(planning, np.where(advantage >= 0, 1.2, 0.8), 1.0)
    np.testing.assert_allclose(*at_alive(facts, found, factor * advantage), **ROUNDING)
    np.testing.assert_array_equal(*at_alive(facts, jitted.hicra(advantage, facts, 0.0), advantage))
    found, given = at_alive(facts, jitted.hicra(advantage, facts, 0.2), advantage)
    entropy = facts.entropy[facts.alive]
    upper = entropy >= np.sort(entropy)[len(entropy) - round(0.2 * len(entropy))]
    np.testing.assert_array_equal(found != given, upper)


def test_the_highest_are_a_share_of_those_alive():
    _, facts = played(5)
    score = facts.entropy[facts.alive]
    for share in (0.0, 0.1, 0.37, 0.8, 1.0):
        found = np.asarray(jitted.highest(facts.entropy, facts.alive, share))
        num = round(share * len(score))
        assert found.sum() == num
        assert not (found & ~facts.alive).any()
        np.testing.assert_array_equal(np.sort(facts.entropy[found]), np.sort(score)[len(score) - num :])
    tied = jitted.highest(np.ones((N, G, T), np.float32), facts.alive, 0.1)
    np.testing.assert_array_equal(tied, facts.alive)


def test_gtpo_drops_answers_of_high_entropy_and_charges_the_others():
    advantage, facts = played(6)
    found = np.asarray(jitted.gtpo(advantage, facts, 0.1))
    dropped = 0
    for n, g in np.ndindex(N, G):
        own = facts.alive[n, g]
        entropy = facts.entropy[n, g][own].mean()
        dropped += entropy > 0.7
        expected = 0 * advantage[n, g][own] if entropy > 0.7 else advantage[n, g][own] - 0.1 * entropy
        np.testing.assert_allclose(found[n, g][own], expected, **ROUNDING)
    assert 0 < dropped < N * G


def test_the_scale_of_bnpo_is_the_density_of_a_beta_law():
    rng = np.random.default_rng(7)
    for chance in (0.5, 0.2):
        outcome = (rng.random((8, G)) < rng.beta(4 * chance, 4 * (1 - chance), size=(8, 1))).astype(np.float32)
        p = outcome.mean(1)
        mean, variance = p.mean(), p.var(ddof=1)
        c = mean * (1 - mean) / variance - 1
        law = scipy.stats.beta(max(1 + c * mean / 3, 1), max(1 + c * (1 - mean) / 3, 1))
        expected = np.where((p > 0) & (p < 1), 1 / np.clip(1 / np.maximum(law.pdf(p), 1e-9), 0, 1e6), 1.0)
        found = jitted.beta_scale(outcome)
        assert found.shape == (8, 1)
        np.testing.assert_allclose(found[:, 0], expected, rtol=1e-4)


def test_the_scale_of_bnpo_in_its_limits():
    known = np.array([[1, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 0]], np.float32)  # as far apart as can be: c < 0, no scale
    np.testing.assert_array_equal(jitted.beta_scale(known), 1.0)
    apart = np.array([[1, 1, 1, 1, 1, 0], [1, 0, 0, 0, 0, 0]], np.float32)
    variance = np.var([5 / 6, 1 / 6], ddof=1)
    assert 0.25 / variance - 1 < 0.2  # nearly no scale
    np.testing.assert_allclose(jitted.beta_scale(apart), 1.0, atol=0.1)
    mean, c = 0.5, 3.0  # alpha = beta = 3/2 where c = 3: a variance of 1/16
    p = mean + np.array([-1, 1]) * np.sqrt(mean * (1 - mean) / (c + 1) / 2)
    outcome = np.broadcast_to(p[:, None], (2, G)).astype(np.float32)
    np.testing.assert_allclose(jitted.beta_scale(outcome)[:, 0], 8 / np.pi * np.sqrt(p * (1 - p)), rtol=1e-4)
    for even in (np.full((4, G), 0.3), np.tile([1.0, 0, 0, 0, 0, 0], (4, 1)), np.tile([1.0, 1, 0, 0, 0, 0], (1, 1))):
        np.testing.assert_allclose(jitted.beta_scale(even.astype(np.float32)), 1.0, rtol=1e-5)  # no variance
    near = np.tile(np.float32([0.5, 0.5, 0.5, 0.5, 0.5, 0.501]), (4, 1))
    near[1] += 0.001
    assert np.isfinite(jitted.beta_scale(near)).all()


def test_degenerate_groups_are_those_that_agree():
    advantage, facts = played(8, np.array([G * [0], G * [1], [1] + (G - 1) * [0]]))
    credit = np.broadcast_to(outcomes(facts)[..., None], (N, G, T)).astype(np.float32)
    found = np.asarray(jitted.degenerate(advantage, credit, facts))
    np.testing.assert_array_equal(found, np.broadcast_to(np.array([False, False, True])[:, None, None], (N, G, T)))


def test_uncertain_steps_had_a_low_probability():
    advantage, facts = played(9, garbage=-9.0)
    found = np.asarray(jitted.uncertain(advantage, advantage, facts, 0.6))
    np.testing.assert_array_equal(found[facts.alive], np.exp(facts.log_prob[facts.alive]) < 0.6)
    assert not found[~facts.alive].any()
    assert adjustments.uncertain.__defaults__ == (0.9,)


@pytest.mark.parametrize("seed", range(4))
def test_the_kept_episodes_have_the_largest_variance_of_all_subsets(seed):
    rng = np.random.default_rng(seed)
    advantage = rng.normal(size=(2, 4, T)).astype(np.float32)
    length = rng.integers(1, T + 1, size=(2, 4))
    alive = np.arange(T) < length[..., None]
    facts = Facts(None, alive)
    episode = np.where(alive, advantage, 0).sum(-1) / length
    for kept in range(1, 9):
        found = np.asarray(jitted.spread_subset(advantage, advantage, facts, kept / 8))
        assert (found == found[..., :1]).all()
        chosen = found[..., 0]
        assert chosen.sum() == kept
        best = max(np.var(x) for x in combinations(episode.ravel().tolist(), kept))
        np.testing.assert_allclose(episode[chosen].var(), best, **ROUNDING)
    assert np.asarray(jitted.spread_subset(advantage, advantage, facts, 1.0)).all()  # no mask
    assert jitted.spread_subset(advantage, advantage, facts, 0.0)[..., 0].sum() == 1  # never nothing


def test_of_right_and_wrong_answers_one_half_is_kept_each():
    outcome = np.array([[1, 0, 0, 1, 0, 1, 0, 0]], np.float32)
    advantage = (outcome - outcome.mean())[..., None]
    for kept in (2, 4, 6):
        chosen = np.asarray(jitted.spread_subset(advantage, advantage, with_outcome(outcome), kept / 8))[..., 0]
        assert chosen.sum() == kept
        assert outcome[chosen].sum() == kept / 2
    even = np.asarray(jitted.spread_subset(0 * advantage, advantage, with_outcome(outcome), 0.25))
    assert even.sum() == 2


def test_informative_tokens_have_large_advantages_and_entropies():
    advantage, facts = played(10)
    found = np.asarray(jitted.informative_tokens(advantage, advantage, facts, 0.3))
    worth = (np.abs(advantage) * facts.entropy)[facts.alive]
    num = round(0.3 * len(worth))
    np.testing.assert_array_equal(found[facts.alive], worth >= np.sort(worth)[len(worth) - num])


def conflict_form(token, length, gain):
    """One group: runs of tokens that a good and a bad answer have at the same place, walked token by token."""
    weight = [[1.0] * int(num) for num in length]
    answer = [list(row[:num]) for row, num in zip(token, length, strict=True)]
    for turned in (False, True):
        own = [row[::-1] if turned else row for row in answer]
        for i, row in enumerate(own):
            if gain[i] == 0:
                continue
            for t, symbol in enumerate(row):
                has = [gain[j] for j, other in enumerate(own) if t < len(other) and other[t] == symbol]
                if not (any(x > 0 for x in has) and any(x < 0 for x in has)):
                    break
                weight[i][len(row) - 1 - t if turned else t] = 2.0 if gain[i] > 0 else 0.0
    return weight


@pytest.mark.parametrize("seed", range(4))
def test_conflict_weights_are_the_walk_over_common_runs(seed):
    advantage, facts = played(20 + seed)
    outcome = outcomes(facts)
    credit = np.broadcast_to(outcome[..., None], (N, G, T)).astype(np.float32)
    found = np.asarray(jitted.conflict(advantage, credit, facts))
    length = facts.alive.sum(-1)
    seen = set()
    for n in range(N):
        expected = conflict_form(facts.token[n], length[n], outcome[n] - outcome[n].mean())
        for g in range(G):
            np.testing.assert_array_equal(found[n, g, : length[n, g]], expected[g])
            seen |= set(expected[g])
    assert seen == {0.0, 1.0, 2.0}


def test_answers_that_begin_and_end_differently_are_in_no_conflict():
    token = np.array([[[1, 5, 5, 2], [3, 5, 5, 4]]], np.int32)
    facts = Facts(None, np.ones((1, 2, 4), bool), token=token)
    credit = np.broadcast_to(np.float32([1, 0])[None, :, None], (1, 2, 4))
    np.testing.assert_array_equal(jitted.conflict(credit, credit, facts), 1.0)
    begin = replace(facts, token=np.array([[[1, 5, 5, 2], [1, 5, 7, 4]]], np.int32))
    np.testing.assert_array_equal(jitted.conflict(credit, credit, begin)[0], [[2, 2, 1, 1], [0, 0, 1, 1]])
    end = replace(
        facts, token=np.array([[[1, 5, 5, 2], [3, 5, 2, 9]]], np.int32), alive=np.bool_([[4 * [1], [1, 1, 1, 0]]])
    )
    np.testing.assert_array_equal(jitted.conflict(credit, credit, end)[0, :, :3], [[1, 1, 2], [1, 0, 0]])
    np.testing.assert_array_equal(jitted.conflict(credit, 0 * credit + 0.3, begin), 1.0)  # nobody is right


def test_sums_weigh_an_episode_by_its_length():
    _, facts = played(11)
    np.testing.assert_allclose(adjustments.summed(facts.alive), facts.alive / (N * G), **ROUNDING)
    left_out = facts.alive & (np.arange(N) > 0)[:, None, None]
    np.testing.assert_allclose(adjustments.summed(left_out), left_out / ((N - 1) * G), **ROUNDING)
    full = np.ones((N, G, T), bool)
    np.testing.assert_allclose(adjustments.summed(full), T * groups.per_trajectory(full), **ROUNDING)


def test_summed_sequence_ratios_have_no_bias_of_length():
    """At the policy that acted: A times the score of the whole answer, as with ratios of products."""
    advantage, facts = played(12)
    advantage = np.broadcast_to(np.nan_to_num(advantage[..., :1]), (N, G, T))

    def slope(ratio, weights):
        loss = lambda x: (
            weights(facts.alive) * clipped_surrogate(ratio(x, facts.alive), advantage, 2e-3, 2.5e-3)
        ).sum()
        return jax.jit(jax.grad(loss))(jnp.zeros((N, G, T)))

    found = slope(groups.geometric_mean, adjustments.summed)
    np.testing.assert_allclose(found, -advantage * facts.alive / (N * G), **ROUNDING)
    np.testing.assert_allclose(found, slope(groups.product, groups.per_trajectory), **ROUNDING)
    gspo = slope(groups.geometric_mean, groups.per_trajectory)
    np.testing.assert_allclose(found, gspo * np.asarray(facts.length)[..., None], **ROUNDING)


def test_the_mixed_surrogate_is_its_equation():
    rng = np.random.default_rng(13)
    advantage, facts = played(13)
    log_ratio = np.where(facts.alive, rng.normal(0, 0.3, size=(N, G, T)), np.nan).astype(np.float32)
    share = rng.random((N, G, T)).astype(np.float32)
    found = np.asarray(jitted.mixed_surrogate(log_ratio, facts.alive, advantage, share, 0.2, 0.3, 0.05, 0.1))
    low = lambda ratio, a, down, up: min(ratio * a, np.clip(ratio, 1 - down, 1 + up) * a)
    for n, g, t in product(range(N), range(G), range(T)):
        own = log_ratio[n, g][facts.alive[n, g]]
        expected = 0.0
        if t < len(own):
            a, w = advantage[n, g, t], share[n, g, t]
            expected = -w * low(np.exp(own[t]), a, 0.2, 0.3) - (1 - w) * low(np.exp(own.mean()), a, 0.05, 0.1)
        np.testing.assert_allclose(found[n, g, t], expected, **ROUNDING)


def test_the_mixed_surrogate_lies_between_grpo_and_gspo():
    advantage, facts = played(14)
    advantage = np.where(facts.alive, advantage, 0)
    log_ratio = jnp.float32(np.random.default_rng(14).normal(0, 0.3, size=(N, G, T)))
    mixed = lambda x, share: adjustments.mixed_surrogate(x, facts.alive, advantage, share, 0.2, 0.2, 3e-4, 4e-4)
    step = lambda x: clipped_surrogate(x, advantage, 0.2, 0.2)
    sequence = lambda x: clipped_surrogate(groups.geometric_mean(x, facts.alive), advantage, 3e-4, 4e-4)
    np.testing.assert_allclose(mixed(log_ratio, 1.0), step(log_ratio), **ROUNDING)
    np.testing.assert_allclose(mixed(log_ratio, 0.0), sequence(log_ratio), **ROUNDING)
    slope = lambda function: jax.grad(lambda x: function(x).sum())(jnp.zeros((N, G, T)))
    expected = 0.3 * slope(step) + 0.7 * slope(sequence)
    np.testing.assert_allclose(slope(partial(mixed, share=0.3)), expected, **ROUNDING)
    of_share = jax.grad(lambda share: mixed(log_ratio, share).sum())(0.5)
    assert of_share == 0


def test_the_best_and_the_worst_of_a_group_are_kept():
    advantage, facts = played(3, outcome=[[0, 3, 1, 3, 2, 1], [1, 0, 0, 0, 0, 2], [1, 1, 1, 1, 1, 1]])
    keep = np.asarray(jitted.best_and_worst(advantage, advantage, facts))
    expected = [[1, 1, 0, 0, 0, 0], [0, 1, 0, 0, 0, 1], [1, 0, 0, 0, 0, 0]]
    np.testing.assert_array_equal(keep, np.repeat(np.array(expected, bool)[..., None], T, axis=-1))


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 1.0])
def test_the_shortest_right_and_the_longest_wrong_answers_are_kept(share):
    advantage, facts = played(5)
    keep = np.asarray(jitted.short_right_long_wrong(advantage, advantage, facts, share))
    answers = [(i, outcome > 0.5, length) for i, (outcome, length) in enumerate(zip(
        np.where(facts.alive, facts.reward, 0.0).sum(axis=-1).ravel(), np.asarray(facts.length).ravel(), strict=True
    ))]  # fmt: skip
    good = sorted((a for a in answers if a[1]), key=lambda a: (a[2], a[0]))
    bad = sorted((a for a in answers if not a[1]), key=lambda a: (-a[2], a[0]))
    assert len(good) > 2
    assert len(bad) > 2
    expected = np.zeros(N * G, bool)
    for some in (good, bad):
        expected[[a[0] for a in some[: int(np.ceil(np.float32(share) * len(some)))]]] = True
    np.testing.assert_array_equal(keep, np.repeat(expected.reshape(N, G, 1), T, axis=-1))


FUNCTIONS = {
    "mapo": lambda a, f: adjustments.mapo(a, f, 0.5),
    "copo": lambda a, f: adjustments.copo(a, f, 0.5),
    "semantic_entropy": lambda a, f: adjustments.semantic_entropy(a, f, 0.5),
    "hicra": lambda a, f: adjustments.hicra(a, f, 0.5),
    "gtpo": lambda a, f: adjustments.gtpo(a, f, 0.5),
    "beta_scale": lambda a, f: adjustments.beta_scale(adjustments.outcome_of(f))[..., None] + jnp.zeros(a.shape),
    "degenerate": lambda a, f: adjustments.degenerate(a, groups.outcomes(f.reward, f.alive, 0.9), f),
    "uncertain": lambda a, f: adjustments.uncertain(a, a, f),
    "spread_subset": lambda a, f: adjustments.spread_subset(a, a, f, 0.5),
    "informative_tokens": lambda a, f: adjustments.informative_tokens(a, a, f, 0.5),
    "best_and_worst": lambda a, f: adjustments.best_and_worst(a, a, f),
    "short_right_long_wrong": lambda a, f: adjustments.short_right_long_wrong(a, a, f, 0.5),
    "conflict": lambda a, f: adjustments.conflict(a, groups.outcomes(f.reward, f.alive, 0.9), f),
    "summed": lambda a, f: adjustments.summed(f.alive),
    "mixed_surrogate": lambda a, f: adjustments.mixed_surrogate(f.log_prob, f.alive, a, 0.5, 0.2, 0.2, 0.2, 0.2),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_adjustments_are_finite_mapped_and_blind_to_what_follows_the_end(name):
    """Of groups that agree and of others, with NaN or 9 behind the ends, of many problems at once, with gradients."""
    given = (None, np.ones((N, G)), np.zeros((N, G)))
    problems, other = (
        jax.tree.map(lambda *x: jnp.stack(x), *(played(30 + i, outcome, garbage) for i, outcome in enumerate(given)))
        for garbage in (np.nan, 9.0)
    )
    alive = problems[1].alive

    def of(advantage, reward, entropy, facts):
        found = jax.vmap(FUNCTIONS[name])(advantage, replace(facts, reward=reward, entropy=entropy))
        return jnp.where(alive, found, 0)

    @jax.jit
    def run(advantage, facts):
        args = (advantage, facts.reward, facts.entropy)
        total = lambda *args: of(*args, facts).astype(jnp.float32).sum()
        return of(*args, facts), jax.grad(total, (0, 1, 2))(*args)

    found, slopes = run(*problems)
    assert np.isfinite(found).all()
    for slope in slopes:
        assert np.isfinite(np.asarray(slope)[np.asarray(alive)]).all()
    np.testing.assert_array_equal(run(*other)[0], found)
    one = jax.jit(FUNCTIONS[name])
    for i, outcome in enumerate(given):
        expected = one(*played(30 + i, outcome))
        np.testing.assert_allclose(np.where(alive[i], expected, 0), found[i], **ROUNDING)
