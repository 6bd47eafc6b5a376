"""Groups of episodes: advantages against loops over their equations, exact values, cloned and visited states."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import rlx
from rlx import Env, groups, pytree
from rlx.rollout import check_horizon, episodes, reset
from rlx.spaces import Box, Discrete

N, G, T = 3, 4, 6
small = settings(derandomize=True, deadline=None, max_examples=30)
seeds = st.integers(0, 2**16)
ROUNDING = {"rtol": 1e-5, "atol": 1e-5}  # sums of a few float32 terms of order 1
BASELINES = [groups.group_mean, groups.leave_one_out, groups.length_weighted]
WEIGHTS = [groups.per_trajectory, groups.per_step, groups.constant]


def problem(seed):
    """Rewards, also behind the ends of episodes, and lengths `[N, G]`."""
    rng = np.random.default_rng(seed)
    length = rng.integers(1, T + 1, size=(N, G))
    return rng.normal(size=(N, G, T)).astype(np.float32), np.arange(T) < length[..., None], length


def to_go(reward, length, gamma):
    found = np.zeros(reward.shape)
    for n, g in np.ndindex(reward.shape[:2]):
        for t in range(length[n, g]):
            found[n, g, t] = sum(gamma ** (k - t) * float(reward[n, g, k]) for k in range(t, length[n, g]))
    return found


@small
@given(seeds, st.floats(0, 1, width=32))
def test_returns_to_go_are_the_loop_over_their_equation(seed, gamma):
    reward, alive, length = problem(seed)
    expected = to_go(reward, length, gamma)
    np.testing.assert_allclose(groups.returns_to_go(reward, alive, gamma), expected, **ROUNDING)
    whole = expected[..., :1].repeat(T, axis=-1)
    np.testing.assert_allclose(groups.outcomes(reward, alive, gamma), whole, **ROUNDING)


@small
@given(seeds)
def test_baselines_are_the_loops_over_their_equations(seed):
    credit, alive, length = problem(seed)
    facts = groups.Facts(credit, alive)
    np.testing.assert_array_equal(facts.length, length)
    for n in range(N):
        np.testing.assert_allclose(groups.group_mean(credit, facts)[n, 0], sum(credit[n]) / G, **ROUNDING)
        weighted = sum(length[n, j] * credit[n, j] for j in range(G)) / sum(length[n])
        np.testing.assert_allclose(groups.length_weighted(credit, facts)[n, 0], weighted, **ROUNDING)
        for i in range(G):
            others = sum(credit[n, j] for j in range(G) if j != i) / (G - 1)
            np.testing.assert_allclose(groups.leave_one_out(credit, facts)[n, i], others, **ROUNDING)


@small
@given(seeds)
def test_advantages_sum_to_zero_within_a_group(seed):
    credit, alive, length = problem(seed)
    facts = groups.Facts(credit, alive)
    weights = {groups.length_weighted: length[..., None]}
    for baseline in BASELINES:
        total = (weights.get(baseline, 1.0) * (credit - baseline(credit, facts))).sum(axis=1)
        np.testing.assert_allclose(total, 0.0, atol=1e-4)
    ratio = (credit - groups.leave_one_out(credit, facts)) / (credit - groups.group_mean(credit, facts))
    np.testing.assert_allclose(ratio, G / (G - 1), rtol=1e-2)


@small
@given(seeds, st.floats(-5, 5, width=32))
def test_a_shift_of_a_groups_returns_changes_nothing(seed, shift):
    credit, alive, _ = problem(seed)
    facts = groups.Facts(credit, alive)
    for baseline in BASELINES:
        moved = credit + shift - baseline(credit + shift, facts)
        np.testing.assert_allclose(moved, credit - baseline(credit, facts), atol=1e-5)
    for scale in (groups.group_std, groups.batch_std):
        np.testing.assert_allclose(scale(credit[..., 0] + shift), scale(credit[..., 0]), rtol=1e-4)


@small
@given(seeds)
def test_members_that_change_places_take_their_advantages_along(seed):
    credit, alive, _ = problem(seed)
    order = np.random.default_rng(seed).permutation(G)
    for baseline in BASELINES:
        advantage = credit - baseline(credit, groups.Facts(credit, alive))
        moved = credit[:, order] - baseline(credit[:, order], groups.Facts(credit[:, order], alive[:, order]))
        np.testing.assert_allclose(moved, advantage[:, order], **ROUNDING)


@small
@given(seeds)
def test_spreads_have_bessels_correction(seed):
    outcome = problem(seed)[0][..., 0]
    np.testing.assert_allclose(groups.group_std(outcome)[:, 0], outcome.std(axis=1, ddof=1) + 1e-4, **ROUNDING)
    np.testing.assert_allclose(groups.batch_std(outcome)[0, 0], outcome.std(ddof=1) + 1e-4, **ROUNDING)
    z = (outcome - outcome.mean(axis=1, keepdims=True)) / groups.group_std(outcome)
    assert np.abs(z).max() <= (G - 1) / np.sqrt(G)


@small
@given(seeds)
def test_standardised_rewards_are_those_of_the_steps_that_happened(seed):
    reward, alive, length = problem(seed)
    found = np.asarray(groups.standardize_rewards(reward, alive))
    for n in range(N):
        steps = reward[n][alive[n]].astype(np.float64)
        np.testing.assert_allclose(found[n][alive[n]], (steps - steps.mean()) / (steps.std() + 1e-4), **ROUNDING)
    np.testing.assert_array_equal(found[~alive], 0)
    np.testing.assert_array_equal(groups.standardize_rewards(np.ones_like(reward), alive), 0)
    np.testing.assert_allclose(groups.standardized_to_go(reward, alive, 0.9), to_go(found, length, 0.9), **ROUNDING)


@small
@given(seeds)
def test_weights_are_their_equations_and_agree_for_equal_lengths(seed):
    _, alive, length = problem(seed)
    np.testing.assert_allclose(groups.per_trajectory(alive), alive / (length[..., None] * N * G), **ROUNDING)
    np.testing.assert_allclose(groups.per_step(alive), alive / length.sum(), **ROUNDING)
    np.testing.assert_allclose(groups.constant(alive), alive / (N * G * T), **ROUNDING)
    full = np.ones_like(alive)
    for weights in WEIGHTS:
        np.testing.assert_allclose(weights(full), 1 / full.size, **ROUNDING)


@small
@given(seeds)
def test_ratios_of_episodes_are_their_equations(seed):
    log_ratio, alive, length = problem(seed)
    for n, g in np.ndindex(N, G):
        total = log_ratio[n, g, : length[n, g]].sum()
        np.testing.assert_allclose(groups.product(log_ratio, alive)[n, g], total, **ROUNDING)
        mean = groups.geometric_mean(log_ratio, alive)[n, g]
        np.testing.assert_allclose(mean, total / length[n, g], **ROUNDING)


def test_what_follows_the_end_of_an_episode_is_never_read():
    reward, alive, _ = problem(0)
    changed = np.where(alive, reward, np.float32(np.nan))
    for function in (lambda r: groups.returns_to_go(r, alive, 0.9), lambda r: groups.standardize_rewards(r, alive)):
        np.testing.assert_array_equal(function(changed), function(reward))
    for function in (groups.geometric_mean, groups.product):
        np.testing.assert_array_equal(function(changed, alive), function(reward, alive))


def test_an_outcome_at_the_end_is_the_return_from_everywhere():
    _, alive, _ = problem(3)
    outcome = np.arange(1.0, N * G + 1).reshape(N, G).astype(np.float32)
    reward = np.asarray(groups.at_the_end(outcome, alive))
    np.testing.assert_array_equal((reward != 0).sum(axis=-1), 1)
    found = np.asarray(groups.returns_to_go(reward, alive, 1.0))
    np.testing.assert_array_equal(found[alive], np.broadcast_to(outcome[..., None], alive.shape)[alive])


def test_groups_that_agree_are_those_without_a_difference():
    credit = np.zeros((3, 2, 2), np.float32)
    credit[1, 1, 1] = 0.1
    np.testing.assert_array_equal(groups.agree(credit), [True, False, True])


def test_leaving_oneself_out_is_unbiased_and_the_mean_is_short_by_a_part():
    """By enumeration of all groups of three on a bandit of three arms."""
    reward, logits = np.array([1.0, -0.5, 2.0]), np.array([0.2, -0.3, 0.5])
    p = np.exp(logits) / np.exp(logits).sum()
    score = np.eye(3) - p  # [arm, parameter]
    truth = (p * reward) @ score
    size = 3
    expected = {groups.leave_one_out: np.zeros(3), groups.group_mean: np.zeros(3)}
    for arms in np.ndindex(3, 3, 3):
        credit = reward[list(arms)][None, :, None]
        for baseline, total in expected.items():
            advantage = np.asarray(credit - baseline(jnp.asarray(credit), jnp.ones((1, size))))[0, :, 0]
            total += p[list(arms)].prod() * (advantage[:, None] * score[list(arms)]).mean(axis=0)
    np.testing.assert_allclose(expected[groups.leave_one_out], truth, atol=1e-6)
    np.testing.assert_allclose(expected[groups.group_mean], truth * (size - 1) / size, atol=1e-6)


@pytree
class Walk:
    """From a place in 0, 1, 2 one up or one down with the action; below 0 it ends, above 2 it ends with a reward of 1.

    Under fair actions the value of place i, undiscounted, is (i + 1) / 4.
    """

    default_params = ()

    def reset(self, key, params):
        place = jax.random.randint(key, (), 0, 3)
        return self.obs(place), place

    def step(self, key, state, action, params):
        place = state + 2 * action - 1
        return self.obs(place), place, (place > 2) * 1.0, (place < 0) | (place > 2), False, {}

    def obs(self, place):
        return jnp.float32(place)[None]

    def observation_space(self, params):
        return Box(-1.0, 3.0, (1,))

    def action_space(self, params):
        return Discrete(2)


walk = Env(Walk(), ())
fair = lambda obs, key: (jax.random.bernoulli(key, 0.5, obs.shape[:1]).astype(jnp.int32), None)


def at(places):
    return jax.vmap(lambda i: rlx.env.EnvState(i, walk.environment.obs(i), jnp.int32(0), jnp.float32(0)))(places)


@pytest.fixture(scope="module")
def played():
    return jax.jit(lambda key: episodes(walk, fair, at(jnp.arange(2000) % 3), key, 12))(jax.random.key(0))


def test_an_episode_is_played_to_its_end_and_no_further(played):
    state, traj, alive = jax.tree.map(np.asarray, played)
    ends = (traj.terminated | traj.truncated).sum(axis=0)
    np.testing.assert_array_equal(ends, [bool(place < 0 or place > 2) for place in state.state])
    assert ends.mean() > 0.9
    np.testing.assert_array_equal(alive[0], True)
    np.testing.assert_array_equal(alive[1:], np.cumsum(traj.terminated, axis=0)[:-1] == 0)
    np.testing.assert_array_equal(traj.reward[~alive], 0)
    np.testing.assert_array_equal(traj.reward.sum(axis=0), state.state > 2)
    np.testing.assert_array_equal(state.time, alive.sum(axis=0))
    np.testing.assert_array_equal(traj.obs[1:][alive[1:]], traj.next_obs[:-1][alive[1:]])


def test_values_of_any_state_are_those_of_a_small_mdp():
    values = jax.jit(
        lambda gamma: groups.monte_carlo_values(walk, fair, at(jnp.arange(3)), jax.random.key(1), 4000, 60, gamma)
    )
    for gamma in (1.0, 0.8):
        step = 0.5 * gamma * (np.eye(3, k=1) + np.eye(3, k=-1))
        exact = np.linalg.solve(np.eye(3) - step, 0.5 * np.array([0, 0, 1]))
        np.testing.assert_allclose(values(gamma), exact, atol=4 * 0.5 / np.sqrt(4000))  # four standard errors


def test_clones_lie_side_by_side_and_differ_in_nothing():
    states = reset(walk, jax.random.key(0), 5)
    copies = groups.clone(states, 3)
    for leaf, copy in zip(jax.tree.leaves(states), jax.tree.leaves(copies), strict=True):
        for member in range(3):
            np.testing.assert_array_equal(copy.reshape(5, 3, *leaf.shape[1:])[:, member], leaf)


def test_groups_are_found_again_in_a_rollout():
    x = jnp.arange(2 * 6).reshape(2, 6)  # T, N * G
    np.testing.assert_array_equal(groups.by_group(x, 3), [[[0, 6], [1, 7], [2, 8]], [[3, 9], [4, 10], [5, 11]]])


@pytree
class Clock:
    """Ends after as many steps as its start says, 1 to 4; the observation is the time."""

    default_params = ()

    def reset(self, key, params):
        return jnp.zeros(1), (jnp.int32(0), jax.random.randint(key, (), 1, 5))

    def step(self, key, state, action, params):
        time, end = state[0] + 1, state[1]
        return jnp.float32(time)[None], (time, end), 0.0, time >= end, False, {}

    observation_space = Walk.observation_space
    action_space = Walk.action_space


def test_visited_states_are_uniform_over_what_was_acted_on():
    env, num = Env(Clock(), ()), 8000
    start = reset(env, jax.random.key(0), num)
    found = jax.jit(lambda key: groups.visited(env, fair, start, key, 10))(jax.random.key(1))
    time, end = (np.asarray(x) for x in found.state)
    np.testing.assert_array_equal(found.time, time)
    for length in range(1, 5):
        counts = np.bincount(time[end == length], minlength=length)
        assert len(counts) == length  # the state after the last step is not acted on
        of_all = counts.sum()
        np.testing.assert_allclose(counts / of_all, 1 / length, atol=4 * 0.5 / np.sqrt(of_all))


def test_a_horizon_below_the_time_limit_is_refused():
    env = rlx.envs.make("CartPole-v1")
    assert env.horizon == 500
    with pytest.raises(ValueError, match="num_steps = 499: an episode of this environment may take 500 steps"):
        check_horizon(env, 499)
    check_horizon(rlx.envs.make("CartPole-v1", max_steps=20), 20)
    check_horizon(walk, 1)  # nothing is known


def test_win_shares_are_means_of_preferences():
    rng = np.random.default_rng(0)
    score = rng.normal(size=(N, G))
    preference = 1 / (1 + np.exp(score[:, None, :] - score[:, :, None]))  # of the row to the column
    share = np.asarray(groups.win_share(jnp.float32(preference)))
    for n, i in np.ndindex(N, G):
        np.testing.assert_allclose(share[n, i], np.mean([preference[n, i, j] for j in range(G) if j != i]), rtol=1e-5)
    np.testing.assert_allclose(share.sum(1), G / 2, rtol=1e-5)
    np.testing.assert_array_equal(share.argsort(1), score.argsort(1))  # Bradley and Terry's order is that of rewards


def test_win_shares_of_a_cycle_leave_nobody_behind():
    beats = np.array([[0.5, 1, 0], [0, 0.5, 1], [1, 0, 0.5]])  # rock, paper, scissors
    np.testing.assert_allclose(groups.win_share(jnp.float32(beats[None])), 0.5)


def test_risk_averse_utilities_are_their_equation():
    outcome = np.random.default_rng(1).normal(size=(8, 16))
    found = groups.risk_averse(jnp.float32(outcome), 0.2, 0.8, 1.5)
    low, high = np.quantile(outcome, [0.2, 0.8])
    expected = np.array(
        [(1.5 * -max(low - s, 0) / 0.2 + (min(max(s, low), high) - high) / 0.6) / 2.5 for s in outcome.ravel()]
    )
    np.testing.assert_allclose(found.ravel(), expected, rtol=1e-4, atol=1e-5)


def test_the_band_of_a_normal_is_its_value_at_risk_range():
    """Its mean is the mean between the two quantiles less the upper one, times the share that is not above it."""
    s = jax.random.normal(jax.random.key(0), (200_000,))
    found = float(groups.risk_averse(s, 0.2, 0.8, 0.0).mean())
    ordered = np.sort(np.asarray(s, np.float64))
    low, high = np.quantile(ordered, [0.2, 0.8])
    expected = (0.2 * low + ordered[(ordered > low) & (ordered < high)].sum() / len(ordered) - 0.8 * high) / 0.6
    np.testing.assert_allclose(found, expected, rtol=1e-3)


def test_risk_averse_utilities_prefer_the_safe_arm():
    """One for sure against zero or three: by the mean the risky arm is the better one."""
    rng = np.random.default_rng(2)
    safe, risky = np.ones(5_000), 3.0 * (rng.random(5_000) < 0.5)
    assert risky.mean() > safe.mean()
    both = groups.risk_averse(jnp.float32(np.concatenate([safe, risky])), 0.3, 0.8, 4.0)  # 0 is a quarter of them
    assert both[:5_000].mean() > both[5_000:].mean()
