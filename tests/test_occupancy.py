"""Utilities of occupancies: means over all episodes of a small MDP, loops, slopes, and greatest entropies."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from rlx.occupancy import (
    carried,
    entropy,
    entropy_reward,
    exact_occupancy,
    greatest_entropy,
    importance,
    likeness,
    likeness_reward,
    occupancy,
    paid,
)

EXACT = True  # bits are compared
GAMMA = 0.7
MOVES = np.random.default_rng(0).dirichlet(
    (1.0, 1.0), size=(2, 2)
)  # of a state and an action: the chance of each state after
START = np.array([0.6, 0.4])
# All episodes of two steps: two states, two actions.
FIRST, SECOND, DONE_FIRST, DONE_SECOND = np.array(list(itertools.product((0, 1), repeat=4))).T
STATES, ACTIONS = np.stack([FIRST, SECOND]), np.stack([DONE_FIRST, DONE_SECOND])
ALIVE = np.ones((2, 16), bool)
THEN, NOW = np.random.default_rng(1).normal(size=(2, 2, 2))  # logits of two policies


@pytest.fixture
def rng():
    return np.random.default_rng(2)


@pytest.fixture(autouse=True)
def precise():
    with jax.enable_x64(True):
        yield


def log_prob(logits):
    """`[T, N]`."""
    return jax.nn.log_softmax(jnp.asarray(logits))[STATES, ACTIONS]


def chance(logits):
    """Of each episode, `[N]`; it does not use `log_prob`."""
    policy = jax.nn.softmax(jnp.asarray(logits))
    return START[FIRST] * policy[FIRST, DONE_FIRST] * MOVES[FIRST, DONE_FIRST, SECOND] * policy[SECOND, DONE_SECOND]


def expected_occupancy(logits):
    """By the chances of states after a step, `[S]`."""
    after = jnp.einsum("s,sa,sax->x", START, jax.nn.softmax(jnp.asarray(logits)), MOVES)
    return (1 - GAMMA) * (START + GAMMA * after)


def weights():
    return importance(log_prob(THEN), log_prob(NOW), jnp.asarray(ALIVE))


def gradients(logits, reward):
    """Of each episode, `[N, S, A]`."""
    old = log_prob(logits)
    returns = lambda logits: paid(log_prob(logits) - old, STATES, ALIVE, jnp.asarray(reward), GAMMA)
    return jax.jacrev(returns)(jnp.asarray(logits))


def close(found, wanted):
    np.testing.assert_allclose(found, wanted, rtol=1e-9, atol=1e-11)


def test_occupancy_is_that_of_a_loop_and_sums_to_what_an_episode_has(rng):
    states, length = rng.integers(0, 5, size=(7, 4)), np.array([7, 1, 3, 5])
    alive = np.arange(7)[:, None] < length
    wanted = np.zeros((4, 5))
    for n in range(4):
        for t in range(length[n]):
            wanted[n, states[t, n]] += (1 - 0.9) * 0.9**t
    found = occupancy(jnp.asarray(states), jnp.asarray(alive), 0.9, 5)
    close(found, wanted)
    close(found.sum(1), 1 - 0.9**length)
    garbage = jnp.where(alive, states, 0)  # what is after an end is not looked at
    close(occupancy(garbage, jnp.asarray(alive), 0.9, 5), wanted)


def test_chances_of_episodes_are_those_of_a_process():
    close(chance(NOW).sum(), 1)
    now = occupancy(STATES, jnp.asarray(ALIVE), GAMMA, 2)
    close(chance(NOW) @ now, expected_occupancy(NOW))


def test_weights_make_means_over_episodes_of_now_those_of_then():
    close(chance(NOW) * weights(), chance(THEN))
    close(chance(NOW) @ (weights()[:, None] * occupancy(STATES, ALIVE, GAMMA, 2)), expected_occupancy(THEN))
    first = np.array([[True], [False]]) & ALIVE  # an episode of one step
    close(importance(log_prob(THEN), log_prob(NOW), first), np.exp(log_prob(THEN) - log_prob(NOW))[0])


def test_a_reward_pays_the_same_by_episodes_as_by_occupancy(rng):
    reward = rng.normal(size=2)
    found = paid(jnp.zeros((2, 16)), STATES, ALIVE, jnp.asarray(reward), GAMMA)
    close(found, occupancy(STATES, ALIVE, GAMMA, 2) @ reward)
    # After the end of an episode nothing counts.
    first = np.array([[True], [False]]) & ALIVE
    garbage = jnp.where(jnp.asarray(first), 0.0, 1e9)
    close(paid(garbage, STATES, first, jnp.asarray(reward), GAMMA), (1 - GAMMA) * reward[FIRST])
    # Of another policy than that which acted, too.
    ratio = log_prob(THEN) - log_prob(NOW)
    close(chance(NOW) @ paid(ratio, STATES, ALIVE, jnp.asarray(reward), GAMMA), expected_occupancy(THEN) @ reward)


def test_a_linear_utility_has_the_policy_gradient_of_its_reward(rng):
    reward = rng.normal(size=2)
    found = np.tensordot(chance(NOW), gradients(NOW, reward), 1)
    close(found, jax.grad(lambda logits: expected_occupancy(logits) @ reward)(NOW))
    # By Williams: each score times what comes after; a state is paid after the action that led to it.
    policy = np.asarray(jax.nn.softmax(NOW))
    wanted = np.zeros((2, 2))
    for n in range(16):
        score = np.zeros((2, 2))
        score[FIRST[n]] -= policy[FIRST[n]]
        score[FIRST[n], DONE_FIRST[n]] += 1
        wanted += chance(NOW)[n] * score * (1 - GAMMA) * GAMMA * reward[SECOND[n]]
    close(found, wanted)


@pytest.mark.parametrize("utility", ["entropy", "likeness"])
def test_the_gradient_of_a_utility_is_that_of_what_it_pays(utility):
    demonstrated = jnp.array([0.2, 0.3])
    of = {
        "entropy": (entropy, lambda d: entropy_reward(d, 1e-6)),
        "likeness": (lambda d: likeness(d, demonstrated, 1e-6), lambda d: likeness_reward(d, demonstrated, 1e-6)),
    }
    value, reward = of[utility]
    found = np.tensordot(chance(NOW), gradients(NOW, reward(expected_occupancy(NOW))), 1)
    close(found, jax.grad(lambda logits: value(expected_occupancy(logits)))(NOW))


def test_rewards_of_utilities_are_their_finite_differences(rng):
    d, e, small = rng.dirichlet(np.ones(6)), rng.dirichlet(np.ones(6)), 1e-6 * np.eye(6)
    slope = lambda f: (f(jnp.asarray(d + small)) - f(jnp.asarray(d - small))) / 2e-6
    np.testing.assert_allclose(entropy_reward(jnp.asarray(d), 1e-9), slope(entropy), rtol=1e-6)
    likely = lambda d: likeness(d, jnp.asarray(e), 1e-9)
    np.testing.assert_allclose(
        likeness_reward(jnp.asarray(d), jnp.asarray(e), 1e-9), slope(likely), rtol=1e-6, atol=1e-7
    )
    close(entropy(jnp.array([0.5, 0.5, 0.0, -0.1])), np.log(2))
    close(likely(jnp.asarray(d)), -(d * np.log(d / e)).sum())
    close(likely(jnp.asarray(e)), 0)


def test_a_floor_bounds_what_a_state_pays():
    d = jnp.array([-0.1, 0.0, 0.005, 0.01, 0.3])
    close(entropy_reward(d, 0.01), -np.log([0.01, 0.01, 0.01, 0.01, 0.3]) - 1)
    assert np.isfinite(jax.grad(entropy)(d)).all()
    close(likeness_reward(d, jnp.zeros(5), 0.01)[:4], -1)


def recursion(before, now, then, eta):
    """The mean over all episodes of the estimate after one more."""
    one = lambda now, then, weight: carried(before, now[None], then[None], weight[None], eta)
    return np.tensordot(chance(NOW), jax.vmap(one)(now, then, weights()), 1)


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_an_unbiased_estimate_stays_so_as_the_policy_moves(eta, rng):
    now = occupancy(STATES, ALIVE, GAMMA, 2)
    close(recursion(expected_occupancy(THEN), now, now, eta), expected_occupancy(NOW))
    # What is off stays off by 1 - eta of it.
    off = rng.normal(size=2)
    close(recursion(expected_occupancy(THEN) + off, now, now, eta), expected_occupancy(NOW) + (1 - eta) * off)
    # Likewise directions, by the reward of now and that of then.
    reward, reward_then = rng.normal(size=(2, 2))
    exact = lambda logits, reward: jax.grad(lambda logits: expected_occupancy(logits) @ reward)(logits)
    found = recursion(exact(THEN, reward_then), gradients(NOW, reward), gradients(THEN, reward_then), eta)
    close(found, exact(NOW, reward))


def test_momentum_is_a_loop_over_episodes_for_each_leaf(rng):
    before = {"a": rng.normal(size=3), "b": rng.normal(size=(2, 2))}
    now, then = ({"a": rng.normal(size=(5, 3)), "b": rng.normal(size=(5, 2, 2))} for _ in range(2))
    weight = rng.uniform(0.5, 2, size=5)
    found = carried(before, now, then, jnp.asarray(weight), 0.2)
    for name in before:
        wanted = np.zeros_like(before[name])
        for n in range(5):
            x, x_then = now[name][n], then[name][n]
            wanted += (0.2 * x + 0.8 * (before[name] + x - weight[n] * x_then)) / 5
        close(found[name], wanted)


def test_eta_1_is_the_estimate_alone(rng):
    now = rng.normal(size=(5, 3))
    found = carried(jnp.ones(3), jnp.asarray(now), jnp.asarray(now) + 7.0, 2.0 * jnp.ones(5), 1.0)
    np.testing.assert_array_equal(found, jnp.asarray(now).mean(0))


def test_corrections_have_less_noise_where_the_policy_hardly_moves(rng):
    """One recursion from the exact occupancy of a policy nearby: the variance is about that of a mean, by eta^2."""
    nearby = NOW + 0.01 * rng.normal(size=(2, 2))
    weight = importance(log_prob(nearby), log_prob(NOW), ALIVE)
    now = occupancy(STATES, ALIVE, GAMMA, 2)
    before = expected_occupancy(nearby)
    found = jax.vmap(lambda x, w: carried(before, x[None], x[None], w[None], 0.1))(now, weight)
    variance = lambda x: chance(NOW) @ (x - expected_occupancy(NOW)) ** 2
    np.testing.assert_allclose(variance(found), 0.01 * variance(now), rtol=0.2)


def test_exact_occupancy_is_a_sum_over_time(rng):
    moves, policy, start = rng.dirichlet(np.ones(4), size=(4, 3)), rng.dirichlet(np.ones(3), size=4), np.eye(4)[1]
    wanted, at = np.zeros(4), start
    for t in range(400):
        wanted += 0.1 * 0.9**t * at
        at = np.einsum("s,sa,sax->x", at, policy, moves)
    close(exact_occupancy(moves, policy, start, 0.9), wanted)


def greatest(moves, start, gamma):
    """The entropy that is reached, and how much it may lack."""
    policy, gap = greatest_entropy(moves, start, gamma)
    np.testing.assert_allclose(policy.sum(1), 1)
    reached = exact_occupancy(moves, policy, start, gamma)
    return -(reached * np.log(reached)).sum(), gap


def chain(num):
    """One goes to the right or stays, and stays at the end."""
    return np.eye(num)[np.minimum(np.arange(num)[:, None] + [0, 1], num - 1)]


@pytest.mark.parametrize("gamma", [0.3, 0.8])
def test_the_optimum_on_a_chain_of_two(gamma):
    """The second state can have at most gamma of the occupancy, or half, which is best."""
    share = min(gamma, 0.5)
    wanted = -share * np.log(share) - (1 - share) * np.log(1 - share)
    found, gap = greatest(chain(2), np.array([1.0, 0.0]), gamma)
    np.testing.assert_allclose(found, wanted, atol=1e-3)
    assert wanted - 1e-9 <= found + gap <= wanted + 2e-3


def test_the_optimum_on_a_longer_chain_is_even():
    """With gamma of 0.95 there is time to have a fifth in each state."""
    found, gap = greatest(chain(5), np.eye(5)[0], 0.95)
    np.testing.assert_allclose(found, np.log(5), atol=1e-3)
    assert found <= np.log(5) + 1e-9 <= found + gap + 2e-9


def test_the_optimum_is_that_of_another_program():
    """Over occupancies of states and actions, by SLSQP."""
    moves, start = np.random.default_rng(3).dirichlet(0.3 * np.ones(4), size=(4, 2)), np.eye(4)[0]
    of_states = lambda x: x.reshape(4, 2).sum(1)
    flow = lambda x: of_states(x) - 0.2 * start - 0.8 * np.einsum("sa,sax->x", x.reshape(4, 2), moves)
    minus = lambda x: (of_states(x) * np.log(np.maximum(of_states(x), 1e-12))).sum()
    wanted = scipy.optimize.minimize(
        minus,
        np.full(8, 1 / 8),
        bounds=[(0, 1)] * 8,
        constraints={"type": "eq", "fun": flow},
        method="SLSQP",
        tol=1e-10,
    )
    assert wanted.success
    found, gap = greatest(moves, start, 0.8)
    np.testing.assert_allclose(found, -wanted.fun, atol=1e-3)
    assert found <= -wanted.fun + 1e-6 <= found + gap + 2e-6


def test_the_bound_holds_where_the_search_stopped_early():
    policy, gap = greatest_entropy(chain(5), np.eye(5)[0], 0.95, temperatures=(1.0,))
    reached = exact_occupancy(chain(5), policy, np.eye(5)[0], 0.95)
    lacking = np.log(5) + (reached * np.log(reached)).sum()
    assert 1e-3 < lacking <= gap


def test_states_that_cannot_be_reached_are_told():
    with pytest.raises(ValueError, match="1 of 3 states cannot be reached"):
        greatest_entropy(chain(3), np.eye(3)[1], 0.9)
