"""Streams: traces and their bounded step, scales, first weights, and what learning from each step once comes to."""

import dataclasses
import json
import math
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import rlx
from rlx import Env, cli, replace
from rlx.algorithm_check import check_algorithm
from rlx.algos import avg, sac, stream_ac, stream_q
from rlx.curriculum import by_success
from rlx.env import Transition, with_params
from rlx.envs.tasks.probes import (
    Action,
    ContinuousAction,
    Discount,
    Endless,
    Legal,
    Mixed,
    Observation,
    ObservationAction,
)
from rlx.networks import Actor, Critic, Torso, initialize, sparse, unit_length
from rlx.normalize import normalize, reward_scale, statistics, td_scale, update_statistics, update_td_scale
from rlx.spaces import Box, Discrete
from rlx.steps import accumulated, cut, obgd
from rlx.train import advance
from rlx.values import epsilon_value

OBSERVATION, DISCOUNT, ENDLESS, ACTION, BOTH = range(5)
choices = Mixed((Observation, Discount, Endless, Action, ObservationAction), Discrete(2))
pushes = Mixed((Observation, Discount, Endless, ContinuousAction), Box(-2.0, 2.0, (1,)))
PROBES = {task: Env(task, task.default_params, max_steps=3) for task in (choices, pushes)}
CONTINUOUS, DISCRETE = PROBES[pushes], PROBES[choices]
SIZES = {"num_steps": 8, "hidden_sizes": (16,), "total_steps": 24}
CASES = {stream_ac: DISCRETE, stream_q: DISCRETE, avg: CONTINUOUS}
ALL = pytest.mark.parametrize("algorithm", CASES, ids=lambda x: x.__name__.rpartition(".")[2])
STREAMS = pytest.mark.parametrize("algorithm", [stream_ac, stream_q], ids=["stream_ac", "stream_q"])


def small(algorithm, **changes):
    return algorithm.Config(**SIZES | changes)


def draws(seed, *shapes):
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]


# Traces and steps


def test_a_trace_is_the_discounted_sum_of_gradients_since_it_was_cut():
    grads, ends = np.random.default_rng(0).normal(size=(9, 4)), [2, 6]
    trace, wanted = {"w": jnp.zeros(4)}, np.zeros(4)
    for t, grad in enumerate(grads):
        trace = accumulated(trace, {"w": jnp.asarray(grad, jnp.float32)}, 0.7)
        last = max([end + 1 for end in ends if end < t], default=0)
        wanted = sum(0.7 ** (t - k) * grads[k] for k in range(last, t + 1))
        np.testing.assert_allclose(trace["w"], wanted, rtol=1e-5)
        trace = cut(trace, jnp.bool_(t in ends))
        assert (trace["w"] == 0).all() == (t in ends)


@pytest.mark.parametrize("kappa", [0.5, 2.0, 3.0])
def test_no_step_is_longer_than_the_bound(kappa):
    """For any trace and error the L1 norm of the update is at most 1 / kappa; with large ones it is that."""
    rng = np.random.default_rng(0)
    scales = 10.0 ** rng.uniform(-3, 4, size=(1000, 2))
    a, b = (jnp.asarray(rng.normal(size=(1000, *n)) * scales[:, 0].reshape(-1, *[1] * len(n))) for n in ((3, 4), (5,)))
    error = jnp.asarray(rng.normal(size=1000) * scales[:, 1])
    found = jax.vmap(lambda *x: obgd((x[0], x[1]), x[2], 1.0, kappa))(a, b, error)
    size = np.abs(found[0]).sum((1, 2)) + np.abs(found[1]).sum(1)
    assert size.max() <= 1 / kappa * (1 + 1e-5)
    norm = np.abs(a).sum((1, 2)) + np.abs(b).sum(1)
    bound = kappa * np.maximum(np.abs(error), 1) * norm
    np.testing.assert_allclose(size, np.abs(error) * norm / np.maximum(bound, 1), rtol=1e-4)
    binding = (bound > 1) & (np.abs(error) > 1)
    assert 100 < binding.sum() < 900
    np.testing.assert_allclose(size[binding], 1 / kappa, rtol=1e-4)


def test_without_a_bound_the_step_is_that_of_td_lambda():
    (z,) = draws(0, (5,))
    np.testing.assert_allclose(obgd(z, jnp.float32(-30.0), 0.1, 0.0), -3.0 * z, rtol=1e-6)
    np.testing.assert_allclose(obgd(z, jnp.float32(0.5), 1e-3, 2.0), 5e-4 * z, rtol=1e-6)  # it does not bind


@pytest.mark.parametrize("trace_lambda", [0.0, 0.8])
def test_values_of_a_chain_are_learned_exactly(trace_lambda):
    """One number a state: five steps to a reward of 1 have values of gamma^k, and errors vanish."""
    gamma, features = 0.9, jnp.eye(5)

    def step(carry, i):
        w, z = carry
        value, grad = jax.value_and_grad(lambda w: w @ features[i])(w)
        end = i == 4
        error = jnp.where(end, 1.0, gamma * (w @ features[(i + 1) % 5])) - value
        z = accumulated(z, grad, gamma * trace_lambda)
        return (w + obgd(z, error, 1.0, 2.0), cut(z, end)), error

    w = jax.lax.scan(step, (jnp.zeros(5), jnp.zeros(5)), jnp.arange(5 * 400) % 5)[0][0]
    np.testing.assert_allclose(w, gamma ** np.arange(4, -1, -1), atol=1e-4)


# First weights and layers


@pytest.mark.parametrize("sparsity", [0.9, 0.5, 0.0])
def test_each_unit_has_as_many_zeros_as_asked_for(sparsity):
    image = Torso(Box(0.0, 1.0, (5, 6, 2)), (40, 30), "tanh", conv_features=(7,))
    actor, critic = Actor(Discrete(4), image), Critic(Torso(Box(-1.0, 1.0, (3,)), (25,)))
    first = initialize(jax.random.key(0), jnp.zeros((5, 6, 2)), actor=(actor, 1.0))
    first |= initialize(jax.random.key(1), jnp.zeros(3), critic=(critic, 1.0))
    params = jax.jit(lambda key: sparse(key, first, sparsity))(jax.random.key(2))
    sizes = set()
    for (path, x), old in zip(jax.tree_util.tree_leaves_with_path(params), jax.tree.leaves(first), strict=True):
        if path[-1].key != "kernel":
            np.testing.assert_array_equal(x, old)
            continue
        matrix = np.asarray(x).reshape(-1, x.shape[-1])
        num = len(matrix)
        sizes.add(num)
        assert ((matrix == 0).sum(axis=0) == min(math.ceil(sparsity * num), num - 1)).all()
        assert np.abs(matrix).max() <= num**-0.5
        if matrix.size > 100 and sparsity < 0.9:
            assert np.abs(matrix).max() > 0.9 * num**-0.5
        patterns = (matrix != 0).T
        assert sparsity == 0 or num < 10 or len({tuple(row) for row in patterns}) > len(patterns) / 2
    assert sizes == {3 * 3 * 2, 3 * 4 * 7, 40, 30, 3, 25}


def test_zeros_and_weights_are_drawn_apart_and_uniformly():
    first = {"a": {"kernel": jnp.ones((20, 500))}, "b": {"kernel": jnp.ones((20, 500))}}
    params = sparse(jax.random.key(0), first)
    a, b = (np.asarray(params[name]["kernel"]) for name in "ab")
    assert not np.array_equal(a, b)
    counts = (a != 0).sum(axis=1)  # of 500 units, each with 2 of 20 inputs: 50 of each, four standard deviations
    assert np.abs(counts - 50).max() < 4 * np.sqrt(500 * 0.1 * 0.9)
    kept = a[a != 0] * np.sqrt(20)
    assert abs(kept.mean()) < 4 * np.sqrt(1 / 3 / 1000)
    assert abs((kept**2).mean() - 1 / 3) < 0.04


def test_networks_of_their_own_have_zeros_of_their_own():
    first = {"separate": {"kernel": jnp.ones((3, 20, 4))}}
    found = np.asarray(sparse(jax.random.key(0), first)["separate"]["kernel"])
    assert ((found == 0).sum(axis=1) == 18).all()
    assert not np.array_equal(found[0], found[1])


def test_layer_norms_without_scale_and_shift_have_no_parameters():
    torso = Torso(Box(-1.0, 1.0, (3,)), (8, 6), "leaky_relu", layer_norm=True, trained_norm=False)
    (x,) = draws(0, (4, 3))
    params = torso.init(jax.random.key(0), x)
    assert set(params["params"]) == {"Dense_0", "Dense_1"}
    wanted = np.asarray(x, np.float64)
    for name in ("Dense_0", "Dense_1"):
        wanted = wanted @ np.asarray(params["params"][name]["kernel"], np.float64)
        wanted = (wanted - wanted.mean(-1, keepdims=True)) / np.sqrt(wanted.var(-1, keepdims=True) + 1e-6)
        wanted = np.where(wanted > 0, wanted, 0.01 * wanted)
    np.testing.assert_allclose(torso.apply(params, x), wanted, rtol=1e-4, atol=1e-5)
    assert "LayerNorm_0" in Torso(Box(-1.0, 1.0, (3,)), (8,), layer_norm=True).init(jax.random.key(0), x)["params"]


def test_features_of_length_1_point_where_they_did():
    (x,) = draws(0, (4, 3))
    np.testing.assert_allclose(unit_length(x), x / np.linalg.norm(x, axis=-1, keepdims=True), rtol=1e-5)
    assert (unit_length(jnp.zeros(3)) == 0).all()
    assert np.isfinite(jax.jacobian(unit_length)(jnp.zeros(3))).all()
    torso = Torso(Box(-1.0, 1.0, (3,)), (8,), "tanh", unit_features=True)
    params = torso.init(jax.random.key(0), x)
    plain = torso.clone(unit_features=False).apply(params, x)
    np.testing.assert_allclose(torso.apply(params, x), unit_length(plain), rtol=1e-5)


def test_the_deviation_of_a_softplus_head():
    actor = Actor(Box(-2.0, 2.0, (2,)), Torso(Box(-1.0, 1.0, (3,)), (8,)), policy="softplus_std")
    (x,) = draws(0, (4, 3))
    params = initialize(jax.random.key(0), jnp.zeros(3), actor=(actor, 1.0))["actor"]
    pi = actor.apply(params, x)
    layers = params["params"]
    out = np.tanh(x @ layers["torso"]["Dense_0"]["kernel"]) @ layers["head"]["kernel"]
    np.testing.assert_allclose(pi.mean, out[:, :2], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(np.exp(pi.log_std), 1e-5 + np.log1p(np.exp(out[:, 2:])), rtol=1e-4)


# Scales


def test_statistics_of_which_everything_is_left_out_stay():
    stats = update_statistics(statistics((2,)), draws(0, (5, 2))[0])
    junk, none = jnp.full((3, 2), jnp.nan), jnp.zeros(3, bool)
    for before in (stats, statistics((2,))):
        after = update_statistics(before, junk, where=none)
        jax.tree.map(np.testing.assert_array_equal, after, before)
    slope = jax.grad(lambda x: update_statistics(stats, x, where=none).variance.sum())(jnp.ones((3, 2)))
    assert (slope == 0).all()


def test_the_scale_of_errors_is_that_of_a_loop():
    rng = np.random.default_rng(0)
    reward, done = rng.normal(0.5, 2.0, size=(60, 3)).astype(np.float32), rng.random((60, 3)) < 0.1
    scale, totals = td_scale(3), np.zeros(3)
    rewards, discounts, squares = [], [], []
    for t in range(60):
        scale, sigma = update_td_scale(scale, jnp.asarray(reward[t]), jnp.asarray(done[t]), 0.9)
        totals += reward[t]
        rewards += [*reward[t]]
        discounts += [*np.where(done[t], 0, 0.9)]
        squares += [*totals[done[t]] ** 2]
        totals[done[t]] = 0
        square = np.mean(squares) if squares else 0.0
        variance = max(np.var(rewards) + np.var(discounts) * square, 1e-4)
        np.testing.assert_allclose(sigma, np.sqrt(variance), rtol=1e-4)
    assert len(squares) > 5


def test_the_scale_of_errors_in_its_limits():
    """1 until something is known; of constant rewards what the discount adds; never below 0.01."""
    step = lambda scale, reward, done: update_td_scale(scale, jnp.array([reward]), jnp.array([done]), 0.9)
    scale, sigma = step(td_scale(1), 0.5, False)
    assert sigma == 1.0
    for t in range(1, 20):
        scale, sigma = step(scale, 0.5, t % 4 == 3)
    gammas = np.array([0.0 if t % 4 == 3 else 0.9 for t in range(20)])
    np.testing.assert_allclose(sigma, np.sqrt(gammas.var() * 2.0**2), rtol=1e-5)
    scale, _ = step(td_scale(1), 0.0, True)
    assert step(scale, 0.0, True)[1] == pytest.approx(0.01)
    assert step(td_scale(1), 5.0, False)[1] == 1.0
    assert step(step(td_scale(1), 5.0, False)[0], 1.0, False)[1] == pytest.approx(2.0)


def test_the_value_of_a_policy_that_explores_is_a_mean():
    (q,) = draws(0, (6, 4))
    mask = jnp.asarray(np.random.default_rng(1).random((6, 4)) < 0.6).at[0].set(False)
    legal = np.where(np.asarray(mask).any(1, keepdims=True), mask, True)
    wanted = [0.7 * row[ok].max() + 0.3 * row[ok].mean() for row, ok in zip(np.asarray(q), legal, strict=True)]
    np.testing.assert_allclose(epsilon_value(q, 0.3, mask), wanted, rtol=1e-5)
    np.testing.assert_allclose(epsilon_value(q, 0.0), q.max(-1), rtol=1e-6)


# What a step changes


@cache
def started(algorithm, **changes):
    config = small(algorithm, **changes)
    return config, jax.jit(algorithm.init)(config, CASES[algorithm], jax.random.key(0))


def taken(algorithm, terminated=False, truncated=False, seed=0):
    """A step `[1]` of random numbers, and its observations as networks see them."""
    shape = CASES[algorithm].observation_space.shape
    obs, next_obs, reward, push = draws(seed, (1, *shape), (1, *shape), (1,), (1, 1))
    flag, zero = lambda x: jnp.full(1, x), jnp.zeros(1)
    action = jnp.ones(1, jnp.int32) if CASES[algorithm] is DISCRETE else push
    ends = flag(terminated), flag(truncated)
    traj = Transition(obs, action, 0.2 * reward, next_obs, *ends, zero, zero, {}, flag(False), recorded=action)
    return obs, next_obs, traj


def moved(algorithm, config, state, seed=0, **ends):
    obs, next_obs, traj = taken(algorithm, seed=seed, **ends)
    return algorithm.learn(config, CASES[algorithm], state, obs, next_obs, traj)[0]


def with_traces(state):
    """The State with traces of random numbers."""
    name = "traces" if hasattr(state, "traces") else "trace"
    noise = jax.tree.map(lambda x: draws(x.size, x.shape)[0], state.params)
    return replace(state, **{name: noise}), noise


def norm(tree):
    return sum(np.abs(np.asarray(x, np.float64)).sum() for x in jax.tree.leaves(tree))


@pytest.mark.parametrize(("terminated", "truncated"), [(False, False), (True, False), (False, True)])
@pytest.mark.parametrize("settings", [{}, {"trace_lambda": 0.0, "gamma": 0.5, "entropy_coef": 1.0, "actor_kappa": 0.1}])
def test_a_step_of_stream_ac_is_its_equations(terminated, truncated, settings):
    config, state = started(stream_ac, normalize_reward=False, **settings)
    state, old = with_traces(state)
    obs, next_obs, traj = taken(stream_ac, terminated, truncated)
    actor, critic = stream_ac.networks(config, DISCRETE)
    value = lambda params, x: critic.apply(params, x)[0]
    after = value(state.params["critic"], next_obs) * (not terminated)  # a time limit does not end the value
    error = float(traj.reward[0] + config.gamma * after - value(state.params["critic"], obs))
    assert 0.01 < abs(error) < 1.0  # so that the step is in proportion to it

    def log_policy(params):
        log_p = jax.nn.log_softmax(actor.apply(params, obs).logits[0])
        return log_p[1] - np.sign(error) * config.entropy_coef * jnp.sum(jnp.exp(log_p) * log_p)

    grads = {
        "critic": jax.grad(value)(state.params["critic"], obs),
        "actor": jax.grad(log_policy)(state.params["actor"]),
    }
    found = moved(stream_ac, config, state, terminated=terminated, truncated=truncated)
    for name, kappa in (("actor", config.actor_kappa), ("critic", config.critic_kappa)):
        z = jax.tree.map(lambda z, g: config.gamma * config.trace_lambda * z + g, old[name], grads[name])
        rate = 1.0 / max(kappa * max(abs(error), 1.0) * norm(z), 1.0)
        wanted = jax.tree.map(lambda z, rate=rate: rate * error * z, z)
        changes = jax.tree.map(lambda a, b: a - b, found.params[name], state.params[name])
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-6), changes, wanted)
        kept = jax.tree.map(lambda z: 0.0 * z if terminated or truncated else z, z)
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), found.traces[name], kept)


@pytest.mark.parametrize("on_policy", [False, True])
@pytest.mark.parametrize(("terminated", "truncated"), [(False, False), (True, False), (False, True)])
@pytest.mark.parametrize("best", [0, 1])
def test_a_step_of_stream_q_is_its_equations(on_policy, terminated, truncated, best):
    config, state = started(stream_q, normalize_reward=False, on_policy=on_policy, epsilon_start=0.4)
    shift = lambda path, x: x.at[best].add(0.5) if path[-1].key == "bias" and x.shape == (2,) else x
    state = replace(state, params=jax.tree_util.tree_map_with_path(shift, state.params))
    state, old = with_traces(state)
    obs, next_obs, traj = taken(stream_q, terminated, truncated)
    q = lambda params, x: stream_q.networks(config, DISCRETE).apply(params["values"], x)[0]
    following = np.asarray(q(state.params, next_obs))
    after = 0.6 * following.max() + 0.4 * following.mean() if on_policy else following.max()
    error = float(traj.reward[0] + config.gamma * after * (not terminated) - q(state.params, obs)[1])
    grads = jax.grad(lambda params: q(params, obs)[1])(state.params)
    assert int(q(state.params, obs).argmax()) == best
    assert 0.001 < abs(error) < 1.0  # so that the step is in proportion to it
    z = jax.tree.map(lambda z, g: config.gamma * config.trace_lambda * z + g, old, grads)
    rate = 1.0 / max(config.kappa * max(abs(error), 1.0) * norm(z), 1.0)
    found = moved(stream_q, config, state, terminated=terminated, truncated=truncated)
    changes = jax.tree.map(lambda a, b: a - b, found.params, state.params)
    wanted = jax.tree.map(lambda z: rate * error * z, z)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-6), changes, wanted)
    kept = not (terminated or truncated or (best == 0 and not on_policy))  # the action is 1
    kept = jax.tree.map(lambda z: z if kept else 0.0 * z, z)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), found.trace, kept)


@STREAMS
def test_without_bound_and_trace_it_is_td_0(algorithm):
    bounds = {name: 0.0 for name in ("kappa", "actor_kappa", "critic_kappa") if hasattr(small(algorithm), name)}
    settings = {"trace_lambda": 0.0, "normalize_reward": False, "learning_rate": 1e-2}
    config, state = started(algorithm, **bounds, **settings)
    state, _ = with_traces(state)
    obs, next_obs, traj = taken(algorithm)
    part = "critic" if algorithm is stream_ac else "values"
    if algorithm is stream_ac:
        value = lambda params, x: algorithm.networks(config, DISCRETE)[1].apply(params, x)[0]
        after = value(state.params[part], next_obs)
    else:
        value = lambda params, x: algorithm.networks(config, DISCRETE).apply(params, x)[0, 1]
        after = algorithm.networks(config, DISCRETE).apply(state.params[part], next_obs).max()
    error = traj.reward[0] + 0.99 * after - value(state.params[part], obs)
    semi = jax.grad(lambda params: 0.5 * (value(params, obs) - value(state.params[part], obs) - error) ** 2)
    wanted = optax.apply_updates(state.params[part], jax.tree.map(lambda g: -1e-2 * g, semi(state.params[part])))
    found = moved(algorithm, config, state).params[part]
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), found, wanted)


@STREAMS
def test_rewards_are_scaled_with_what_this_step_paid(algorithm):
    """The scale is updated before it is used: with a reward of the size of those before it is the last that counts."""
    config, state = started(algorithm)
    scale = reward_scale(1)
    for seed in range(5):
        _, _, traj = taken(algorithm, seed=seed)
        state = moved(algorithm, config, state, seed=seed)
        scale = jax.tree.map(
            jnp.asarray, rlx.normalize.scale_rewards(scale, traj.reward[None], traj.done[None], config.gamma)[0]
        )
    jax.tree.map(np.testing.assert_array_equal, state.reward_scale, scale)


@ALL
def test_observations_are_normalised_by_all_that_was_seen_when_they_are_used(algorithm):
    """The first of the stream, every successor, and the first one of each new episode."""
    env, config = CASES[algorithm], small(algorithm, num_steps=1)
    update = jax.jit(algorithm.update)
    _, state = started(algorithm, num_steps=1)
    seen, ended = [np.asarray(state.env_state.obs[0])], 0
    for _ in range(40):
        before = state
        state, metrics = update(config, env, state)
        np.testing.assert_allclose(before.obs_stats.mean, np.mean(seen, axis=0), atol=1e-5)
        np.testing.assert_allclose(before.obs_stats.variance, np.var(seen, axis=0), atol=1e-5)
        assert before.obs_stats.count == len(seen)
        ended += (end := int(metrics["num_episodes"]))
        if end:  # the probes show at their end what they showed before, or a 1
            count = int(state.obs_stats.count) - len(seen)
            assert count == 2
            successor = state.obs_stats.mean * (len(seen) + 2) - np.sum(seen, axis=0) - state.env_state.obs[0]
            seen.append(np.asarray(successor))
        seen.append(np.asarray(state.env_state.obs[0]))
    assert ended > 5


# AVG


def avg_step(seed=0, terminated=False):
    shape = CONTINUOUS.observation_space.shape
    obs, next_obs, noise, next_noise, reward = draws(seed, (1, *shape), (1, *shape), (1, 1), (1, 1), (1,))
    return avg.Batch(obs, noise, reward, jnp.full(1, terminated), next_obs, next_noise)


@pytest.mark.parametrize("terminated", [False, True])
def test_the_losses_of_avg_are_their_equations(terminated):
    config, state = started(avg, alpha=0.3)
    batch, params, sigma = avg_step(terminated=terminated), state.params, 2.5
    actor, critic = avg.networks(config, CONTINUOUS)

    def sampled(params, obs, noise):
        pi = actor.apply(params["actor"], obs)
        u = pi.mean + jnp.exp(pi.log_std) * noise
        density = jax.scipy.stats.norm.logpdf(u, pi.mean, jnp.exp(pi.log_std)) - jnp.log1p(-(jnp.tanh(u) ** 2))
        return jnp.tanh(u), density.sum(-1)

    next_action, next_log_prob = sampled(params, batch.next_obs, batch.next_noise)
    after = critic.apply(params["critic"], batch.next_obs, next_action) - 0.3 * next_log_prob
    target = batch.reward + 0.99 * after * (not terminated)
    action, _ = sampled(params, batch.obs, batch.noise)

    def of_critic(part):
        return jnp.sum(((target - critic.apply(part, batch.obs, action)) / sigma) ** 2)

    def of_actor(part):
        action, log_prob = sampled({"actor": part}, batch.obs, batch.noise)
        return jnp.sum(0.3 * log_prob - critic.apply(params["critic"], batch.obs, action))

    (found, _), grads = jax.value_and_grad(avg.loss, has_aux=True)(params, params, config, CONTINUOUS, batch, sigma)
    np.testing.assert_allclose(found, of_critic(params["critic"]) + of_actor(params["actor"]), rtol=1e-4)
    wanted = {"actor": jax.grad(of_actor)(params["actor"]), "critic": jax.grad(of_critic)(params["critic"])}
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-4), grads, wanted)


def test_the_gradient_of_the_actor_is_that_of_sac_with_one_critic_and_one_sample():
    config, state = started(avg, unit_features=False, activation="relu", alpha=0.4)
    theirs = sac.Config(hidden_sizes=(16,), num_critics=1)
    params = state.params | {"log_alpha": jnp.log(0.4)}
    fixed = params | {"critic": jax.tree.map(lambda x: x[None], params["critic"])}
    batch = avg_step()
    grad = lambda part: sac.actor_loss(params | {"actor": part}, fixed, theirs, CONTINUOUS, batch, batch.noise)[0]
    wanted = jax.grad(grad)(params["actor"])
    found = jax.grad(lambda p: avg.loss(p, state.params, config, CONTINUOUS, batch, 1.0)[0])(state.params)["actor"]
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), found, wanted)


def test_the_optimizer_of_avg_is_adam_without_its_first_moment():
    config, state = started(avg)
    adam = {"actor": optax.adam(6.3e-3, b1=0.0), "critic": optax.adam(8.7e-3, b1=0.0)}
    ours, theirs = avg.optimizer(config).init(state.params), {k: adam[k].init(state.params[k]) for k in adam}
    for seed in range(3):
        grads = jax.tree.map(lambda x, seed=seed: draws(x.size + seed, x.shape)[0], state.params)
        updates, ours = avg.optimizer(config).update(grads, ours)
        for name in adam:
            wanted, theirs[name] = adam[name].update(grads[name], theirs[name])
            jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4), updates[name], wanted)


def test_the_noise_that_acted_makes_the_same_action_again():
    config, state = started(avg)
    obs = draws(0, (5, *CONTINUOUS.observation_space.shape))[0]
    action, noise = avg.act(config, CONTINUOUS, state, obs, jax.random.key(1))
    again, _ = avg.noisy_action(state.params, config, CONTINUOUS, normalize(state.obs_stats, obs), noise)
    np.testing.assert_allclose(action, 2.0 * again, rtol=1e-5)


# What is learned


@cache
def learned(algorithm, env=None):
    env = CASES[algorithm] if env is None else env
    settings = {"gamma": 0.9, "hidden_sizes": (32, 32), "total_steps": 40_000, "num_steps": 500}
    if algorithm is avg:
        settings |= {"learning_rate": 1e-3, "critic_learning_rate": 3e-3, "alpha": 0.01, "total_steps": 60_000}
    else:
        settings |= {"normalize_reward": False, "trace_lambda": 0.5}
    config = algorithm.Config(**settings)
    return config, jax.jit(partial(rlx.train, algorithm))(config, env, jax.random.key(0))[0]


def seen(config, state, task, kind, obs):
    return normalize(state.obs_stats, task.obs(kind, obs))


@pytest.mark.parametrize("env", [DISCRETE, CONTINUOUS], ids=["choices", "pushes"])
def test_values_of_stream_ac_are_those_of_the_probes(env):
    config, state = learned(stream_ac, env)
    actor, critic = stream_ac.networks(config, env)
    task = env.environment
    value = lambda kind, obs: float(critic.apply(state.params["critic"], seen(config, state, task, kind, obs)))
    assert value(OBSERVATION, 1.0) == pytest.approx(1, abs=0.3)
    assert value(OBSERVATION, -1.0) == pytest.approx(-1, abs=0.3)
    assert value(DISCOUNT, 0.0) == pytest.approx(0.9, abs=0.3)
    assert value(ENDLESS, 0.0) == pytest.approx(10, abs=1)  # a time limit does not end the value
    pi = lambda kind, obs: actor.apply(state.params["actor"], seen(config, state, task, kind, obs))
    if task is choices:
        probs = [jax.nn.softmax(pi(*x).logits)[1] for x in ((ACTION, 0.0), (BOTH, 1.0), (BOTH, -1.0))]
        np.testing.assert_allclose(probs, [1, 1, 0], atol=0.1)
    else:
        means = [2.0 * float(pi(3, obs).mean[0]) for obs in (1.0, -1.0)]
        np.testing.assert_allclose(means, [0.5, -0.5], atol=0.3)


@pytest.mark.parametrize(
    ("kind", "obs", "wanted"),
    [
        (OBSERVATION, 1.0, [1, 1]),
        (OBSERVATION, -1.0, [-1, -1]),
        (BOTH, 1.0, [None, 1]),
        (BOTH, -1.0, [1, None]),
        (ACTION, 0.0, [None, 1]),
        (DISCOUNT, 0.0, [0.9, 0.9]),
        (ENDLESS, 0.0, [10, 10]),
    ],
)
def test_values_of_stream_q_are_those_of_the_probes(kind, obs, wanted):
    """Of actions that are hardly taken at the end the values are not held to."""
    config, state = learned(stream_q)
    found = stream_q.networks(config, DISCRETE).apply(state.params["values"], seen(config, state, choices, kind, obs))
    best = max(x for x in wanted if x is not None)
    assert float(found.max()) == pytest.approx(best, abs=1 if kind == ENDLESS else 0.3)
    if None in wanted:
        assert int(found.argmax()) == wanted.index(best)


def test_avg_learns_the_probes():
    config, state = learned(avg)
    actor, critic = avg.networks(config, CONTINUOUS)
    look = lambda kind, obs: seen(config, state, pushes, kind, obs)
    action = lambda kind, obs: jnp.tanh(actor.apply(state.params["actor"], look(kind, obs)).mean)
    value = lambda kind, obs: float(critic.apply(state.params["critic"], look(kind, obs), action(kind, obs)))
    np.testing.assert_allclose([2.0 * float(action(3, x)[0]) for x in (1.0, -1.0)], [0.5, -0.5], atol=0.3)
    assert value(OBSERVATION, 1.0) == pytest.approx(1, abs=0.4)
    assert value(OBSERVATION, -1.0) == pytest.approx(-1, abs=0.4)
    assert value(DISCOUNT, 0.0) == pytest.approx(0.9, abs=0.4)
    assert value(ENDLESS, 0.0) == pytest.approx(10, abs=1)


@pytest.mark.parametrize("algorithm", [stream_ac, stream_q], ids=["stream_ac", "stream_q"])
def test_legal_actions_alone_are_taken_and_valued(algorithm):
    task = Env(Legal(), Legal.default_params)
    config = small(algorithm, normalize_obs=False)
    state, metrics = jax.jit(partial(rlx.train, algorithm))(config, task, jax.random.key(0))
    assert (metrics["episode_illegal"] == 0).all()
    obs = jax.vmap(task.environment.start)(jax.random.split(jax.random.key(1), 500))
    for deterministic in (False, True):
        action = algorithm.act(config, task, state, obs, jax.random.key(2), deterministic)[1]
        assert obs["action_mask"][jnp.arange(500), action].all()


# Runs


@ALL
def test_the_contract_of_algorithms_is_kept(algorithm):
    assert len(check_algorithm(algorithm, CASES[algorithm], small(algorithm))) == 10


@ALL
def test_a_run_in_pieces_is_bitwise_the_same(algorithm):
    (config, state), env = started(algorithm), CASES[algorithm]
    chunk = jax.jit(advance, static_argnames=("algorithm", "length"))
    whole = chunk(algorithm, config, env, state, 0, 3, 3)[0]
    parts = chunk(algorithm, config, env, state, 0, 1, 3)[0]
    parts = chunk(algorithm, config, env, parts, 1, 2, 3)[0]
    same = lambda x: jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(parts), strict=True):
        np.testing.assert_array_equal(same(a), same(b))
    moved = [np.abs(a - b).max() for a, b in zip(*map(jax.tree.leaves, (whole.params, state.params)), strict=True)]
    assert max(moved) > 1e-3


def test_commands_train_resume_and_play_a_stream(tmp_path):
    run = tmp_path / "run"
    sizes = ["--num-steps", "20", "--hidden-sizes", "4", "--eval-episodes", "2", "--no-compile-cache"]
    options = ["--env", "Pendulum-v1", "--env-options", "time=True", "max_steps=9"]
    cli.main(["train", "stream_ac", *options, *sizes, "--total-steps", "40", "--out", str(run)])
    cli.main(["train", "--resume", str(run), "--total-steps", "60", "--no-compile-cache"])
    cli.main(["eval", str(run), "--num-episodes", "2", "--no-compile-cache"])
    assert json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["step"] == 60


def test_a_curriculum_by_success_keeps_its_pace():
    """Each step is a rollout, after which the pace goes on; the start of an episode does not end it."""
    task = with_params(DISCRETE, {"reward": by_success(1.0, 2.0, -100.0, step=0.1)})
    config = small(stream_ac, num_steps=20, total_steps=20)
    state, metrics = jax.jit(partial(rlx.train, stream_ac))(config, task, jax.random.key(0))
    assert int(metrics["num_episodes"][0]) > 5
    np.testing.assert_allclose(state.env_state.pace, 1.0, rtol=1e-5)
    assert 0.1 < float(metrics["episode_curriculum"][0]) < 1.0


class Levels:
    """Shows the level that its episode began with, and where it began; and tells both to `told`."""

    default_params = None

    def __init__(self, told):
        self.told = told

    def observation_space(self, params):
        return Box(0.0, 100.0, (2,))

    def action_space(self, params):
        return Box(-1.0, 1.0, (1,))

    def reset(self, key, params):
        obs = jnp.stack([jnp.float32(params["level"]), jax.random.uniform(key)])
        return obs, obs

    def step(self, key, state, action, params):
        jax.debug.callback(lambda level, start: self.told.append((float(level), float(start))), *state)
        return state, state, jnp.float32(0), jnp.array(False), jnp.array(False), {}


@ALL
def test_episodes_begin_at_the_pace_of_a_curriculum_and_in_many_states(algorithm):
    """Episodes are of 64 steps, as many as there are starts: by turns all of them would begin in one."""
    told = []
    task = Env(Levels(told), {"level": by_success(1.0, 9.0, 100.0)}, max_steps=64)
    task = task if algorithm is not stream_q else replace(task, environment=Chosen(told))
    config = small(algorithm, num_steps=640, total_steps=1280)
    rlx.train(algorithm, config, task, jax.random.key(0))
    jax.effects_barrier()
    started = told[64:]  # the first is a start of `init`, which knows no pace
    assert {level for level, _ in started} == {1.0}  # nothing is reached, so it stays at the first
    assert len({start for _, start in started}) > 12  # of 19


class Chosen(Levels):
    """With choices."""

    def action_space(self, params):
        return Discrete(2)


@ALL
def test_lanes_are_the_single_runs(algorithm):
    config, env = small(algorithm), CASES[algorithm]
    run = partial(rlx.train, algorithm, config, env)
    keys = jax.random.split(jax.random.key(3), 2)
    both = jax.jit(jax.vmap(lambda key: run(key)[0].params))(keys)
    for i, key in enumerate(keys):
        alone, lane = jax.jit(lambda key: run(key)[0].params)(key), jax.tree.map(lambda x, i=i: x[i], both)
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-4), lane, alone)


@ALL
def test_no_key_is_used_twice(algorithm):
    config, env = small(algorithm), CASES[algorithm]
    with jax.debug_key_reuse(True):
        jax.jit(lambda key: algorithm.update(config, env, algorithm.init(config, env, key)))(jax.random.key(0))


@ALL
def test_every_setting_changes_the_program_or_what_it_computes(algorithm):
    config, env = small(algorithm), CASES[algorithm]
    run = jax.jit(lambda config: rlx.train(algorithm, config, env, jax.random.key(0))[0].params)
    before = run(config)
    others = {"learning_rate": 0.3, "alpha": 0.5, "trace_lambda": 0.1, "entropy_coef": 0.5}
    others |= {"epsilon_start": 0.0, "epsilon_share": 0.9}  # no step explores, nearly all do
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if not isinstance(value, float) or field.name == "sparsity":
            continue
        kappa = {"kappa": 0.01, "actor_kappa": 0.01, "critic_kappa": 0.01}
        after = run(replace(config, **{field.name: (others | kappa).get(field.name, 0.6)}))
        different = [not np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (before, after)), strict=True)]
        assert any(different), field.name


class Team(Observation):
    num_agents = 2


@ALL
def test_settings_and_environments_that_cannot_work_are_refused(algorithm):
    env, config = CASES[algorithm], small(algorithm)
    several = Env(Team(), Team.default_params)
    with pytest.raises(ValueError, match=r"one agent|needs continuous actions"):
        algorithm.check(config, several)
    with pytest.raises(ValueError, match="steps on the host, and a stream changes its policy with every step"):
        algorithm.check(config, rlx.envs.make("gymnasium/Pendulum-v1" if algorithm is avg else "gymnasium/CartPole-v1"))
    with pytest.raises(ValueError, match="learning_rate"):
        small(algorithm, learning_rate=-1.0)
    assert algorithm.check(config, env) is None
    if algorithm is not avg:
        with pytest.raises(ValueError, match=r"sparsity = 1.0: give less than 1"):
            algorithm.check(replace(config, sparsity=1.0), env)


def test_actions_that_an_algorithm_does_not_have_are_refused():
    with pytest.raises(ValueError, match="needs discrete actions"):
        stream_q.check(small(stream_q), CONTINUOUS)
    with pytest.raises(ValueError, match="needs continuous actions"):
        avg.check(small(avg), DISCRETE)
    with pytest.raises(ValueError, match="acts within bounds; give it two"):
        avg.check(small(avg), rlx.envs.make("MultiGoal"))
    with pytest.raises(ValueError, match="leave normalize_obs off"):
        stream_ac.check(small(stream_ac), Env(Category(), None))


class Category(Observation):
    default_params = Observation.default_params

    def observation_space(self, params):
        return Discrete(3)


@pytest.mark.slow
def test_cartpole_is_learned_from_each_step_once_and_not_without_the_bound():
    """Four seeds of 50,000 steps: 480 and more on average, and near 50 with plain gradient steps of 1e-3."""
    task = rlx.envs.make("CartPole-v1")
    config = stream_ac.Config(total_steps=50_000)

    @jax.jit
    def returns(config, key):
        state, _ = rlx.train(stream_ac, config, task, key)
        return rlx.evaluate(stream_ac, config, task, state, jax.random.key(1)).returns.mean()

    keys = jax.random.split(jax.random.key(0), 4)
    score = lambda config: np.asarray(jax.vmap(lambda key: returns(config, key))(keys)).mean()
    assert score(config) > 400
    assert score(replace(config, actor_kappa=0.0, critic_kappa=0.0, learning_rate=1e-3)) < 300
