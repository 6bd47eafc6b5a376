"""Credit of single steps: loops in plain Python over their equations, limit cases, exact values of a small tree."""

from dataclasses import replace
from itertools import product
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlx import groups, step_credits
from rlx.groups import Facts

N, G, T = 3, 4, 6
ROUNDING = {"rtol": 1e-5, "atol": 1e-5}  # sums of a few float32 terms of order 1
NAMES = ["step_groups", "graph", "shared", "cut_points", "segment_advantages", "prefixes", "classes", "score_norm"]
jitted = SimpleNamespace(**{name: jax.jit(getattr(step_credits, name)) for name in [*NAMES, "branch_shares"]})


def played(seed, garbage=0):
    """Facts of random episodes; what stands behind their ends depends on `garbage`."""
    rng = np.random.default_rng(seed)
    length = rng.integers(1, T + 1, size=(N, G))
    length[0] = T
    alive = np.arange(T) < length[..., None]
    fields = {
        "reward": rng.normal(size=alive.shape).astype(np.float32),
        "log_prob": np.log(rng.uniform(0.1, 1.0, size=alive.shape)).astype(np.float32),
        "token": rng.integers(0, 2, size=alive.shape).astype(np.int32),
        "place": rng.integers(-2, 3, size=alive.shape).astype(np.int32),
        "played": rng.random(alive.shape) < 0.7,
    }
    behind = {"f": np.nan, "i": garbage - 2, "b": bool(garbage % 2)}
    fields = {name: np.where(alive, x, x.dtype.type(behind[x.dtype.kind])) for name, x in fields.items()}
    return Facts(alive=alive, **fields)


def steps(facts, n):
    """All (member, time) of a group."""
    return [(g, t) for g, t in product(range(G), range(T)) if facts.alive[n, g, t]]


def to_go(facts, gamma):
    found, alive = np.zeros((N, G, T)), np.asarray(facts.alive)
    for n, g, t in zip(*np.nonzero(alive), strict=True):
        found[n, g, t] = sum(gamma ** (k - t) * float(facts.reward[n, g, k]) for k in range(t, alive[n, g].sum()))
    return found


def centred(facts, gamma):
    """`R - mean R` at every step, `[N, G, T]`."""
    whole = to_go(facts, gamma)[..., :1]
    return np.broadcast_to(whole - whole.mean(axis=1, keepdims=True), (N, G, T))


def at_alive(facts, *arrays):
    return [np.asarray(x)[np.asarray(facts.alive)] for x in arrays]


@pytest.mark.parametrize("seed", range(3))
def test_step_groups_are_the_loop_over_steps_of_one_place(seed):
    facts, gamma, omega = played(seed), 0.9, 0.7
    found = np.asarray(jitted.step_groups(facts.reward, facts, gamma, omega))
    returns, whole = to_go(facts, gamma), centred(facts, gamma)
    for n in range(N):
        for g, t in steps(facts, n):
            same = [returns[n, i, k] for i, k in steps(facts, n) if facts.place[n, i, k] == facts.place[n, g, t]]
            expected = whole[n, g, t] + omega * (returns[n, g, t] - np.mean(same))
            np.testing.assert_allclose(found[n, g, t], expected, **ROUNDING)


def test_step_groups_in_their_limits():
    facts, gamma = played(3), 0.9
    of_place = lambda place, facts=facts: np.asarray(
        jitted.step_groups(facts.reward, replace(facts, place=place), gamma, 1.0)
    )
    lonely = of_place(jnp.arange(N * G * T, dtype=jnp.int32).reshape(N, G, T))
    np.testing.assert_allclose(*at_alive(facts, lonely, centred(facts, gamma)), **ROUNDING)  # A = A_E

    time = jnp.broadcast_to(jnp.arange(T, dtype=jnp.int32), (N, G, T))
    returns, alive = to_go(facts, gamma), np.asarray(facts.alive)
    mean = returns.sum(1, keepdims=True) / np.maximum(alive.sum(1, keepdims=True), 1)  # of those alive then
    expected = centred(facts, gamma) + returns - mean
    np.testing.assert_allclose(*at_alive(facts, of_place(time), expected), **ROUNDING)
    second = of_place(facts.place) - centred(facts, gamma)  # sums to 0 in every place
    for n, place in product(range(N), range(-2, 3)):
        np.testing.assert_allclose(second[n][alive[n] & (np.asarray(facts.place[n]) == place)].sum(), 0, atol=1e-5)

    alike = jax.tree.map(lambda x: jnp.broadcast_to(x[:, :1], x.shape), facts)
    np.testing.assert_allclose(*at_alive(alike, of_place(time, alike), np.zeros((N, G, T))), atol=1e-6)

    start = jax.tree.map(lambda x: x[..., :1], facts)  # one step from one place: twice the outcome's
    once = jitted.step_groups(start.reward, replace(start, place=jnp.zeros((N, G, 1), jnp.int32)), gamma, 1.0)
    expected = 2 * (start.reward - start.reward.mean(axis=1, keepdims=True))
    np.testing.assert_allclose(once, expected, **ROUNDING)


def test_full_step_groups_of_equal_times_are_returns_to_go_with_the_groups_mean():
    facts = replace(played(4), alive=jnp.ones((N, G, T), bool))
    facts = replace(facts, reward=jnp.nan_to_num(facts.reward), place=jnp.broadcast_to(jnp.arange(T), (N, G, T)))
    credit = groups.returns_to_go(facts.reward, facts.alive, 0.9)
    whole = groups.outcomes(facts.reward, facts.alive, 0.9)
    expected = credit - groups.group_mean(credit, facts) + whole - groups.group_mean(whole, facts)
    np.testing.assert_allclose(jitted.step_groups(facts.reward, facts, 0.9, 1.0), expected, **ROUNDING)


@pytest.mark.parametrize("seed", range(3))
def test_graph_is_the_loop_over_shared_edges(seed):
    facts = played(seed)
    found, whole = np.asarray(jitted.graph(facts.reward, facts, 1.0, 0.0)), centred(facts, 1.0)

    def edge(n, g, t):
        on = t + 1 < T and bool(facts.alive[n, g, t + 1])
        return int(facts.place[n, g, t]), int(facts.token[n, g, t]), int(facts.place[n, g, t + 1]) if on else "end"

    for n in range(N):
        for g, t in steps(facts, n):
            same = [whole[n, i, k] for i, k in steps(facts, n) if edge(n, i, k) == edge(n, g, t)]
            np.testing.assert_allclose(found[n, g, t], np.mean(same), **ROUNDING)
    np.testing.assert_allclose(found[0].sum(), 0, atol=1e-4)  # all are equally long there


def test_graph_in_its_limits():
    facts = played(5)
    alone = replace(facts, place=jnp.arange(N * G * T, dtype=jnp.int32).reshape(N, G, T))
    found = jitted.graph(alone.reward, alone, 1.0, 0.0)
    np.testing.assert_allclose(*at_alive(facts, found, centred(facts, 1.0)), **ROUNDING)

    place = jnp.int32([[[0, 1, 2], [0, 1, 3]]])  # one edge of two is shared by a right and a wrong one
    token, reward = jnp.int32([[[0, 0, 0], [0, 1, 0]]]), jnp.float32([[[0, 0, 1], [0, 0, 0]]])
    both = Facts(reward, jnp.ones((1, 2, 3), bool), token=token, place=place)
    np.testing.assert_allclose(jitted.graph(reward, both, 1.0, 0.0), [[[0, 0.5, 0.5], [0, -0.5, -0.5]]], **ROUNDING)


def test_an_edge_ends_in_the_place_that_comes_next():
    """The same place and token, and other places after it: not one edge, and neither is one that ends an episode."""
    place, alive = jnp.int32([[[0, 1], [0, 2], [0, 0]]]), jnp.bool_([[[1, 1], [1, 1], [1, 0]]])
    reward = jnp.float32([[[0, 3], [0, 0], [0, 0]]])
    facts = Facts(reward, alive, token=jnp.zeros((1, 3, 2), jnp.int32), place=place)
    np.testing.assert_allclose(jitted.graph(reward, facts, 1.0, 0.0)[..., 0], [[2, -1, -1]], **ROUNDING)


def test_shared_is_exact_in_groups_of_many_steps():
    rng = np.random.default_rng(6)
    value, key = rng.normal(size=(2, 16, 32)).astype(np.float32), rng.integers(-(2**31), 2**31, 90).astype(np.int32)
    key, alive = rng.choice(key, size=value.shape), rng.random(value.shape) < 0.8
    found = np.asarray(jitted.shared(np.where(alive, value, np.nan), alive, key))
    for n in range(2):
        for k in np.unique(key[n][alive[n]]):
            same = (key[n] == k) & alive[n]
            np.testing.assert_allclose(found[n][same], value[n][same].astype(np.float64).mean(), **ROUNDING)
    np.testing.assert_array_equal(found[~alive], 0.0)


def cuts_form(probability, every, below):
    unsure = [t for t, p in enumerate(probability) if p < below]
    return [t in unsure[::every] for t in range(len(probability))]


def test_cuts_are_before_every_few_unsure_steps():
    facts = played(7)
    probability, length = np.exp(facts.log_prob), np.asarray(facts.length)
    for every, below in ((1, 0.6), (2, 0.8), (3, 2.0)):
        found = np.asarray(jitted.cut_points(facts.log_prob, facts.alive, every, below))
        for n, g in np.ndindex(N, G):
            own = probability[n, g, : length[n, g]]
            np.testing.assert_array_equal(found[n, g, : length[n, g]], cuts_form(own, every, below))
        assert not found[~np.asarray(facts.alive)].any()
    np.testing.assert_array_equal(jitted.cut_points(facts.log_prob, facts.alive, 1, 2.0), facts.alive)
    sure = jitted.cut_points(jnp.zeros((N, G, T)), facts.alive, 1, 1.0)
    assert not sure.any()  # a deterministic policy has no cuts, and nothing to learn
    np.testing.assert_array_equal(jitted.segment_advantages(facts.reward, sure, jnp.ones((N, G))), 0.0)


def segments_form(value, cut, outcome, length):
    """One episode: a walk over its cuts."""
    found, cuts = [0.0] * length, [t for t in range(length) if cut[t]]
    for own, then in zip(cuts, [*cuts, None][1:], strict=True):
        gain = (outcome if then is None else value[then]) - value[own]
        for t in range(own, length if then is None else then):
            found[t] = gain
    return found


def test_segments_gain_what_the_value_does_from_cut_to_cut():
    facts = played(8)
    rng = np.random.default_rng(8)
    outcome, value = rng.normal(size=(N, G)), rng.normal(size=(N, G, T))
    for every in (1, 2):
        cut = np.asarray(jitted.cut_points(facts.log_prob, facts.alive, every, 0.7))
        read = np.where(cut, value, np.nan).astype(np.float32)
        found = np.asarray(jitted.segment_advantages(read, cut, jnp.float32(outcome)))
        for n, g in np.ndindex(N, G):
            length = int(facts.length[n, g])
            expected = segments_form(value[n, g], cut[n, g], outcome[n, g], length)
            np.testing.assert_allclose(found[n, g, :length], expected, **ROUNDING)
            cuts = np.nonzero(cut[n, g])[0]  # one step of each segment: they telescope
            if len(cuts):
                np.testing.assert_allclose(found[n, g, cuts].sum(), outcome[n, g] - value[n, g, cuts[0]], **ROUNDING)


def test_a_cut_before_every_step_gives_exact_advantages_on_a_tree():
    """Depth 3, arity 2, one good leaf: values are exact, and the advantage of a step is that of its branch."""
    paths = np.array(list(product((0, 1), repeat=3)))
    good = np.array([1, 0, 1])
    value = np.array([[float((path[:t] == good[:t]).all()) * 0.5 ** (3 - t) for t in range(3)] for path in paths])
    outcome = (paths == good).all(axis=1).astype(np.float32)
    alive = jnp.ones((1, 8, 3), bool)
    cut = jitted.cut_points(jnp.full((1, 8, 3), np.log(0.5)), alive, 1, 1.0)
    found = jitted.segment_advantages(jnp.float32(value)[None], cut, jnp.asarray(outcome)[None])[0]
    after = np.concatenate([value[:, 1:], outcome[:, None]], axis=1)
    np.testing.assert_allclose(found, after - value, **ROUNDING)


def test_prefixes_are_the_tokens_before_a_step_and_classes_the_whole_answer():
    facts = played(9)
    place, kind = (
        np.asarray(jitted.prefixes(facts.token, facts.alive)),
        np.asarray(jitted.classes(facts.token, facts.alive)),
    )
    assert place.dtype == kind.dtype == np.int32
    token, length = np.asarray(facts.token), np.asarray(facts.length)
    for n in range(N):
        answer = [tuple(token[n, g, : length[n, g]]) for g in range(G)]
        np.testing.assert_array_equal(kind[n], [answer.index(one) for one in answer])
        before = {(g, t): (*answer[g][:t],) for g, t in steps(facts, n)}
        for one, other in product(before, repeat=2):
            assert (place[n][one] == place[n][other]) == (before[one] == before[other])
    np.testing.assert_array_equal(place[..., 0], 0)


def test_answers_that_are_the_beginning_of_others_are_of_their_own_class():
    token = jnp.int32([[[1, 2, 7], [1, 2, 9], [1, 2, 9], [1, 2, 9]]])
    alive = jnp.bool_([[[1, 1, 0], [1, 1, 1], [1, 1, 0], [1, 1, 1]]])
    np.testing.assert_array_equal(jitted.classes(token, alive), [[0, 1, 0, 1]])


def test_branches_share_the_weight_of_the_steps_that_they_have_in_common():
    """Members 1 and 2 branch off from 0 after 1 and 2 steps; member 3 started anew, and happens to begin as 0 does."""
    token = jnp.int32([[[5, 6, 7], [5, 8, 8], [5, 6, 9], [5, 4, 4]]])
    own = jnp.bool_([[[1, 1, 1], [0, 1, 1], [0, 0, 1], [1, 1, 1]]])
    alive = jnp.ones((1, 4, 3), bool)
    facts = Facts(jnp.zeros((1, 4, 3)), alive, token=token, place=jitted.prefixes(token, alive), played=own)
    weight = np.asarray(jitted.branch_shares(facts))[0]
    np.testing.assert_allclose(weight[:, 0], 2 / 4)  # played twice, there four times
    np.testing.assert_allclose(weight[:, 1], [0.5, 1, 0.5, 1])
    np.testing.assert_allclose(weight[:, 2], 1)
    np.testing.assert_allclose(weight.sum(), own.sum())  # every step that was played counts once
    everything = replace(facts, played=jnp.ones((1, 4, 3), bool))
    np.testing.assert_array_equal(jitted.branch_shares(everything), 1.0)
    nobody = replace(facts, played=own.at[:, :, 0].set(False))  # a prefix that was given to all
    np.testing.assert_array_equal(jitted.branch_shares(nobody)[..., 0], 0.0)


def test_branch_shares_are_the_loop_over_copies():
    facts = played(10)
    found = np.asarray(jitted.branch_shares(facts))
    for n in range(N):
        key = {(g, t): (t, int(facts.place[n, g, t]), int(facts.token[n, g, t])) for g, t in steps(facts, n)}
        for g, t in key:
            same = [bool(facts.played[n, i, k]) for i, k in key if key[i, k] == key[g, t]]
            np.testing.assert_allclose(found[n, g, t], np.mean(same), **ROUNDING)


def test_score_norms_weigh_the_baseline_as_the_loop_does():
    facts = played(11)
    rng = np.random.default_rng(11)
    credit, squares = rng.normal(size=(2, N, G, T)).astype(np.float32)
    squares = np.abs(squares) + 1.0  # so that no summand is below 0
    behind = np.where(np.asarray(facts.alive), 0, np.nan).astype(np.float32)
    found = np.asarray(jitted.score_norm(credit + behind, facts.log_prob, squares + behind, facts.alive))
    assert found.shape == (N, 1, T)
    for n, t in np.ndindex(N, T):
        members = [g for g in range(G) if facts.alive[n, g, t]]
        norm = {
            g: sum(1 - 2 * np.exp(facts.log_prob[n, g, j]) + squares[n, g, j] for j in range(t + 1)) for g in members
        }
        expected = sum(norm[g] * credit[n, g, t] for g in members) / sum(norm.values()) if members else 0.0
        np.testing.assert_allclose(found[n, 0, t], expected, **ROUNDING)
    sure = jitted.score_norm(credit, jnp.zeros((N, G, T)), jnp.ones((N, G, T)), facts.alive)
    np.testing.assert_array_equal(sure, 0.0)  # a deterministic policy has no gradient


def test_score_norm_is_the_constant_of_least_variance():
    """On an exact bandit: weights are the squared norms of scores, and other constants leave more variance."""
    logits, reward = np.array([0.5, -0.2, 1.0]), np.array([1.0, 0.2, -0.5])
    pi = np.exp(logits) / np.exp(logits).sum()
    score = np.eye(3) - pi
    norm = (score**2).sum(axis=1)
    np.testing.assert_allclose(1 - 2 * pi + (pi**2).sum(), norm)
    draws = np.random.default_rng(12).choice(3, 4000, p=pi)[
        None, :, None
    ]  # one group of many: the mean is nearly exact
    best = (pi * norm * reward).sum() / (pi * norm).sum()
    squares = jnp.full(draws.shape, (pi**2).sum())
    found = jitted.score_norm(jnp.float32(reward[draws]), jnp.log(pi)[draws], squares, jnp.ones(draws.shape, bool))
    np.testing.assert_allclose(found[0, 0, 0], best, atol=0.05)

    def spread(constant):
        each = (reward - constant)[:, None] * score
        return (pi * (each**2).sum(axis=1)).sum() - ((pi @ each) ** 2).sum()

    assert all(spread(best) < spread(best + shift) for shift in (-0.1, -0.01, 0.01, 0.1))


def test_the_start_value_is_taken_off_before_the_mean():
    rng = np.random.default_rng(13)
    credit, value = jnp.float32(rng.normal(size=(N, G, T))), jnp.float32(rng.normal(size=(N, G)))
    found = np.asarray(credit - step_credits.start_value(credit, value, 0.5))
    for n, t in np.ndindex(N, T):
        rest = [float(credit[n, g, t] - 0.5 * value[n, g]) for g in range(G)]
        np.testing.assert_allclose(found[n, :, t], np.array(rest) - np.mean(rest), **ROUNDING)
    mean = groups.group_mean(credit, None)
    np.testing.assert_allclose(step_credits.start_value(credit, value, 0.0) + 0 * credit, mean + 0 * credit, **ROUNDING)
    one = step_credits.start_value(credit, jnp.full((N, G), 3.0), 0.5)  # all began alike: it cancels
    np.testing.assert_allclose(one, jnp.broadcast_to(mean, credit.shape), **ROUNDING)


def test_the_best_constant_of_a_start_is_its_mean_outcome():
    outcome = np.array([1.0, 0.0, 0.0, 1.0, 1.0])
    error = lambda v: ((outcome - v) ** 2).mean()
    assert all(error(outcome.mean()) < error(outcome.mean() + shift) for shift in (-0.05, 0.05))
    value = jnp.array([[0.2, 0.2, 0.8, 0.8]])  # two starts; with exact values and alpha 1 only the surprise is left
    credit = jnp.array([[0.0, 1.0, 1.0, 0.0]])[..., None]
    left = credit - step_credits.start_value(credit, value, 1.0)
    np.testing.assert_allclose(left[0, :, 0], [-0.2, 0.8, 0.2, -0.8], atol=1e-6)


FUNCTIONS = {
    "step_groups": lambda f: step_credits.step_groups(f.reward, f, 0.9, 0.5),
    "graph": lambda f: step_credits.graph(f.reward, f, 0.9, 0.5),
    "cut_points": lambda f: step_credits.cut_points(f.log_prob, f.alive, 2, 0.7),
    "segments": lambda f: step_credits.segment_advantages(
        f.reward, step_credits.cut_points(f.log_prob, f.alive, 2, 0.7), f.reward[..., 0]
    ),
    "branch_shares": step_credits.branch_shares,
    "prefixes": lambda f: jnp.where(f.alive, step_credits.prefixes(f.token, f.alive), -1),
    "classes": lambda f: step_credits.classes(f.token, f.alive),
    "score_norm": lambda f: step_credits.score_norm(f.reward, f.log_prob, jnp.exp(2 * f.log_prob), f.alive),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_credits_are_finite_mapped_and_blind_to_what_follows_the_end(name):
    """With NaN and other numbers behind the ends, of many problems at once, with gradients; one of all the same."""
    alike = jax.tree.map(lambda x: jnp.broadcast_to(x[:, :1], x.shape), played(14))
    problems = jax.tree.map(lambda *x: jnp.stack(x), played(14), alike, played(15))
    other = jax.tree.map(lambda *x: jnp.stack(x), played(14, 3), alike, played(15, 3))
    other = replace(other, **{name: jnp.nan_to_num(getattr(other, name), nan=9.0) for name in ("reward", "log_prob")})
    function = jax.vmap(FUNCTIONS[name])
    at = (lambda x: x) if name in ("classes", "score_norm") else lambda x: jnp.where(problems.alive, x, 0)
    of = lambda reward, log_prob, facts: at(function(replace(facts, reward=reward, log_prob=log_prob)))
    total = lambda *args: of(*args).astype(jnp.float32).sum()
    run = jax.jit(lambda f: (of(f.reward, f.log_prob, f), jax.grad(total, (0, 1))(f.reward, f.log_prob, f)))
    found, slopes = run(problems)
    for slope in slopes:
        assert np.isfinite(np.asarray(slope)[np.asarray(problems.alive)]).all()
    assert np.isfinite(found).all()
    np.testing.assert_array_equal(run(other)[0], found)
    one = jax.jit(FUNCTIONS[name])
    for i, facts in enumerate((played(14), alike, played(15))):
        expected = one(facts)
        if expected.shape == facts.alive.shape:
            expected = jnp.where(facts.alive, expected, 0)
        np.testing.assert_allclose(expected, found[i], **ROUNDING)
