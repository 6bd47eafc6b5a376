"""The pool of problems: counts, samplers against frequencies, and budgets against exhaustive search."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlx import pool
from rlx.pytree import replace


def known(rates, tries=8.0, distinct=0.5):
    """A pool with shares of right answers, of many tries where `tries` is large."""
    rates = jnp.asarray(rates)
    made = pool.unknown(jax.random.key(0), len(rates))
    return replace(made, tries=jnp.full(len(rates), tries), successes=rates * tries, distinct=0 * rates + distinct)


def test_counts_are_those_of_a_loop():
    rng = np.random.default_rng(0)
    made, tries, successes, distinct = pool.unknown(jax.random.key(0), 5), np.zeros(5), np.zeros(5), np.ones(5)
    for _ in range(4):
        index, right, share = rng.integers(0, 5, 6), rng.random((6, 3)) < 0.4, rng.random(6)
        made = pool.counted(made, index, right, share, 0.75)
        for i in set(index.tolist()):
            rows = index == i
            tries[i] = 0.75 * tries[i] + 3 * rows.sum()
            successes[i] = 0.75 * successes[i] + right[rows].sum()
            distinct[i] = share[rows].mean()
    for found, wanted in ((made.tries, tries), (made.successes, successes), (made.distinct, distinct)):
        np.testing.assert_allclose(found, wanted, rtol=1e-5)
    np.testing.assert_allclose(made.rate, (successes + 0.5) / (tries + 1), rtol=1e-5)


def test_scores_are_their_equations():
    made = known([0.0, 0.25, 1.0], tries=1e6)
    p = np.array([0.0, 0.25, 1.0])
    np.testing.assert_allclose(pool.variance(made), 0.8 * p * (1 - p) + 0.1, atol=1e-5)
    np.testing.assert_allclose(pool.failures(made), 1 - p, atol=1e-5)
    np.testing.assert_array_equal(pool.unsettled(made), [0, 1, 0])
    np.testing.assert_array_equal(pool.unsettled(known([0.0, 1.0], tries=4.0)), [1, 1])
    np.testing.assert_array_equal(pool.uniform(made), [1, 1, 1])


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_problems_are_drawn_as_often_as_their_scores_say(share):
    score = jnp.array([0.0, 1.0, 3.0])
    drawn = np.asarray(pool.draw(jax.random.key(1), score, 100_000, share))
    frequency = np.bincount(drawn, minlength=3) / len(drawn)
    np.testing.assert_allclose(frequency, share * np.array([0, 0.25, 0.75]) + (1 - share) / 3, atol=5e-3)


def test_without_any_score_draws_are_uniform():
    drawn = np.asarray(pool.draw(jax.random.key(2), jnp.zeros(4), 100_000, 1.0))
    np.testing.assert_allclose(np.bincount(drawn, minlength=4) / len(drawn), 0.25, atol=5e-3)


def value(p, n):
    """Of n answers to a problem that is solved with probability p, by enumeration of the outcomes."""
    mixed = 0.0
    for outcome in itertools.product((0, 1), repeat=n):
        if 0 < sum(outcome) < n:
            mixed += p ** sum(outcome) * (1 - p) ** (n - sum(outcome))
    return mixed * p * (1 - p) ** 2


def test_gains_are_differences_of_values_and_fall():
    for p in (0.0, 0.1, 0.5, 0.9, 1.0):
        gains = [float(pool.gain(jnp.float32(p), n)) for n in range(1, 7)]
        np.testing.assert_allclose(gains, [value(p, n + 1) - value(p, n) for n in range(1, 7)], atol=1e-6)
        assert all(a >= b - 1e-7 for a, b in itertools.pairwise(gains))


@pytest.mark.parametrize("rates", [(0.1, 0.5, 0.9), (0.3, 0.3, 0.31), (0.05, 0.0, 0.6)])
def test_budgets_are_the_best_of_all(rates):
    least, most, budget = 2, 6, 12
    sizes = np.asarray(pool.allot(jnp.array(rates), budget, least, most))
    assert sizes.sum() == budget
    worth = lambda sizes: sum(value(p, n) for p, n in zip(rates, sizes, strict=True))
    allowed = (s for s in itertools.product(range(least, most + 1), repeat=3) if sum(s) == budget)
    assert worth(sizes) == pytest.approx(max(map(worth, allowed)), abs=1e-6)


def test_equal_rates_get_equal_budgets_and_nothing_to_gain_goes_to_what_was_never_solved():
    np.testing.assert_array_equal(pool.allot(jnp.full(4, 0.3), 32, 2, 128), [8, 8, 8, 8])
    np.testing.assert_array_equal(pool.allot(jnp.array([1.0, 0.0]), 5, 2, 128), [2, 3])
    with pytest.raises(ValueError, match="2 problems with 2 to 4 answers take 4 to 8"):
        pool.allot(jnp.array([0.5, 0.5]), 9, 2, 4)


def test_rows_of_several_sizes_are_centred_within_their_problem():
    problem = pool.spread_over(jnp.array([2, 0, 3]), 5)
    np.testing.assert_array_equal(problem, [0, 0, 2, 2, 2])
    found = pool.centred(jnp.array([1.0, 3.0, 0.0, 0.0, 6.0]), problem, 3)
    np.testing.assert_allclose(found, [-1, 1, -2, -2, 4], atol=1e-6)
