"""Rollouts: how transitions chain, where episodes restart, which keys are used; minibatches and episode metrics."""

from functools import partial
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from rlx import Env, Transition, pytree, replace
from rlx.rollout import check_divides, episode_metrics, flatten, minibatches, reset, rollout
from rlx.spaces import Box, Discrete

T, N = 24, 3  # long enough for several episodes that terminate and several that are cut, whatever the key

shuffled = jax.jit(minibatches, static_argnums=(1, 2, 3))


@pytree
class Position:
    x: jax.Array
    origin: jax.Array  # the random bits that the start was drawn with


class Walk:
    """Random steps of a random length from a random start; terminates above 2. Reports the bits of its keys."""

    default_params: ClassVar = None

    def observation_space(self, params):
        return Box(-np.inf, np.inf, (1,))

    def action_space(self, params):
        return Discrete(2)

    def reset(self, key, params):
        x = jax.random.uniform(key)
        return x[None], Position(x, jax.random.key_data(key))

    def step(self, key, state, action, params):
        x = state.x + action * jax.random.uniform(key)
        info = {"key": jax.random.key_data(key), "origin": state.origin}
        return x[None], Position(x, state.origin), x, x > 2.0, jnp.array(False), info


def policy(obs, key):
    action = jax.random.bernoulli(key, 0.7, obs.shape[:1]).astype(jnp.int32)
    return action, {"key": jax.random.key_data(key), "obs": obs}


@pytest.fixture(scope="module")
def env():
    return Env(Walk(), None, max_steps=4)


@pytest.fixture(scope="module")
def play():
    start = jax.jit(reset, static_argnums=2)
    run = jax.jit(rollout, static_argnums=(1, 4))
    return lambda env, seed=0, num_envs=N, num_steps=T: run(
        env, policy, start(env, jax.random.key(seed), num_envs), jax.random.key(seed + 1000), num_steps
    )


@pytest.fixture(scope="module")
def played(env, play):
    env_state, traj = play(env)
    assert traj.terminated.any()
    assert traj.truncated.any()
    return env_state, traj


def test_transitions_are_time_major_and_hold_what_the_policy_recorded(played):
    _, traj = played
    assert traj.recorded["key"].shape == (T, 2)  # the policy is called once a step, for all environments
    rest = replace(traj, recorded=traj.recorded["obs"])
    assert {leaf.shape[:2] for leaf in jax.tree.leaves(rest)} == {(T, N)}
    np.testing.assert_array_equal(traj.recorded["obs"], traj.obs)


def test_transitions_chain_within_episodes(played):
    env_state, traj = played
    obs = np.concatenate([traj.obs, env_state.obs[None]])
    done = np.asarray(traj.done)
    np.testing.assert_array_equal(traj.next_obs[~done], obs[1:][~done])
    assert not (np.asarray(traj.next_obs) == obs[1:])[done].any()


def test_episodes_restart_from_starts_and_not_from_successors(played):
    env_state, traj = played
    obs, done = np.concatenate([traj.obs, env_state.obs[None]])[1:], np.asarray(traj.done)
    assert ((obs[done] >= 0) & (obs[done] < 1)).all()
    terminated = np.asarray(traj.terminated)
    assert (np.asarray(traj.next_obs)[terminated] > 2).all()


def test_episode_statistics_are_those_of_a_loop(played):
    env_state, traj = played
    for n in range(N):
        total, length = np.float32(0), 0
        for t in range(T):
            total, length = total + traj.reward[t, n], length + 1
            np.testing.assert_allclose(traj.episode_return[t, n], total, rtol=1e-6)
            assert traj.episode_length[t, n] == length
            assert traj.truncated[t, n] == (length == 4 and not traj.terminated[t, n])
            if traj.done[t, n]:
                total, length = np.float32(0), 0
        np.testing.assert_allclose(env_state.episode_return[n], total, rtol=1e-6)
        assert env_state.time[n] == length


def test_a_rollout_goes_on_where_the_last_one_stopped(env, played):
    env_state, _ = played
    _, traj = rollout(env, policy, env_state, jax.random.key(5), 2)
    np.testing.assert_array_equal(traj.obs[0], env_state.obs)
    np.testing.assert_array_equal(traj.episode_length[0], env_state.time + 1)


def test_a_lazy_pool_is_the_same_pool(env, play, played):
    """Drawn when the first episode ends, also under vmap, where one lane may need it before another does."""
    lazy = replace(env, lazy_starts=True)
    jax.tree.map(np.testing.assert_array_equal, play(lazy), played)
    env_state = reset(env, jax.random.key(0), N)

    @jax.jit
    @partial(jax.vmap, in_axes=(None, 0))
    def lanes(env, seed):
        return rollout(env, policy, env_state, jax.random.key(seed), T)

    program = lanes.lower(lazy, jnp.arange(3)).compile()
    assert " conditional(" in program.as_text()  # and not a select, for which every step would draw
    jax.tree.map(np.testing.assert_array_equal, program(lazy, jnp.arange(3)), lanes(env, jnp.arange(3)))


def test_a_rollout_without_an_end_draws_no_start(env):
    drawn = []

    class Counted(Walk):
        def reset(self, key, params):
            jax.debug.callback(lambda: drawn.append(None))
            return super().reset(key, params)

    stay = lambda obs, key: (jnp.zeros(obs.shape[:1], jnp.int32), None)  # ends by the limit of 4 steps alone
    counted = Env(Counted(), None, max_steps=4, num_starts=2, lazy_starts=True)
    for num_steps, num_draws in ((3, 0), (9, 1)):  # of the whole pool
        rollout(counted, stay, reset(env, jax.random.key(0), N), jax.random.key(1), num_steps)
        jax.effects_barrier()
        assert len(drawn) == num_draws


def test_restarts_are_fresh_draws_for_every_environment_and_time(env, play):
    _, traj = play(replace(env, max_steps=1), num_steps=T)
    origins = np.asarray(traj.info["origin"])
    for n in range(N):
        assert len(np.unique(origins[:, n], axis=0)) > T / 2
    assert len(np.unique(origins.reshape(-1, 2), axis=0)) > T * N / 2  # 72 starts, of a pool of 64
    _, other = play(replace(env, max_steps=1), seed=1)
    assert not (origins.reshape(-1, 1, 2) == np.asarray(other.info["origin"]).reshape(1, -1, 2)).all(-1).any()


def test_a_small_pool_of_starts_is_used_whole_and_replaced_by_the_next_rollout(env, play):
    env = replace(env, max_steps=1, num_starts=4)
    env_state, traj = play(env)
    origins = np.asarray(traj.info["origin"])[1:]
    restarts = np.unique(origins.reshape(-1, 2), axis=0)
    assert len(restarts) == 4
    assert all(len(np.unique(origins[:, n], axis=0)) > 1 for n in range(N))
    _, traj = rollout(env, policy, env_state, jax.random.key(5), T)
    later = np.unique(np.asarray(traj.info["origin"])[1:].reshape(-1, 2), axis=0)
    assert not (restarts[:, None] == later[None]).all(axis=-1).any()


def test_no_key_is_used_for_two_purposes(env, play):
    _, traj = play(replace(env, max_steps=1))
    acting, stepping = np.asarray(traj.recorded["key"]), np.asarray(traj.info["key"]).reshape(-1, 2)
    starting = np.unique(np.asarray(traj.info["origin"]).reshape(-1, 2), axis=0)
    used = np.concatenate([acting, stepping, starting])
    assert len(np.unique(used, axis=0)) == len(used) == T + T * N + len(starting)


def test_rollouts_and_minibatches_pass_the_key_reuse_check(env):
    with jax.debug_key_reuse(True):
        env_state = jax.jit(reset, static_argnums=2)(env, jax.random.key(0), 2)
        _, traj = jax.jit(rollout, static_argnums=(1, 4))(env, policy, env_state, jax.random.key(1), 3)
        orders = shuffled(jax.random.key(2), 6, 2, 2)
    assert traj.reward.shape == (3, 2)
    assert orders.shape == (2, 2, 3)


def test_flatten_joins_time_and_environments():
    data = {"a": jnp.arange(24).reshape(2, 3, 4), "b": jnp.arange(6).reshape(2, 3)}
    np.testing.assert_array_equal(flatten(data)["a"], np.arange(24).reshape(6, 4))
    np.testing.assert_array_equal(flatten(data)["b"], np.arange(6))


@settings(derandomize=True, deadline=None, max_examples=10)
@given(st.integers(0, 2**16), st.sampled_from([(1, 1, 1), (6, 3, 2), (8, 1, 3), (8, 8, 2), (60, 4, 3)]))
def test_every_epoch_visits_every_element_exactly_once(seed, sizes):
    num_elements, num_minibatches, num_epochs = sizes
    orders = shuffled(jax.random.key(seed), *sizes)
    assert orders.shape == (num_epochs, num_minibatches, num_elements // num_minibatches)
    assert orders.dtype == jnp.int32
    for order in orders:
        np.testing.assert_array_equal(np.sort(order.ravel()), np.arange(num_elements))


def test_epochs_and_keys_have_orders_of_their_own():
    a, b = (np.asarray(minibatches(jax.random.key(i), 64, 4, 3)).reshape(3, 64) for i in range(2))
    assert len(np.unique(np.concatenate([a, b]), axis=0)) == 6


@pytest.mark.parametrize("n", [2, 3, 4])
def test_all_orders_are_equally_likely(n):
    keys = jax.random.split(jax.random.key(0), 12_000)
    orders = np.asarray(jax.vmap(lambda key: shuffled(key, n, 1, 1))(keys)).reshape(-1, n)
    codes, counts = np.unique(orders @ n ** np.arange(n), return_counts=True)
    assert len(codes) == [2, 6, 24][n - 2]
    # Fixed keys: a uniform shuffle fails one choice of them in a thousand, and this one passes.
    assert scipy.stats.chisquare(counts).pvalue > 1e-3


@pytest.mark.parametrize("n", [1, 2**10, 2**10 + 1, 2**20, 2**20 + 1])
def test_orders_of_any_length_hold_every_element_once(n):
    order = np.asarray(shuffled(jax.random.key(0), n, 1, 1)).ravel()
    assert order.dtype == np.int32
    np.testing.assert_array_equal(np.sort(order), np.arange(n))


@pytest.mark.parametrize("n", [2**16, 2**20])
def test_the_minibatch_of_an_element_does_not_depend_on_its_place_or_its_neighbours(n):
    orders = np.asarray(shuffled(jax.random.key(0), n, 4, 1))[0]
    owner = np.empty(n, int)
    owner[orders] = np.arange(4)[:, None]
    # Four standard errors over n elements.
    assert abs(np.corrcoef(owner, np.arange(n))[0, 1]) < 4 / np.sqrt(n)
    assert abs((owner[1:] == owner[:-1]).mean() - 1 / 4) < 4 * np.sqrt(3 / 16 / n)


def test_elements_that_stay_together_are_next_to_each_other_in_every_minibatch():
    orders = np.asarray(minibatches(jax.random.key(0), 24, 2, 3, 4)).reshape(3, 2, 3, 4)
    for order in orders:
        assert sorted(order.ravel()) == list(range(24))
    np.testing.assert_array_equal(orders - orders[..., :1], np.broadcast_to(np.arange(4), orders.shape))
    assert (orders[..., 0] % 4 == 0).all()
    assert (orders[0] != orders[1]).any()
    with pytest.raises(ValueError, match="24 is not a multiple of num_minibatches = 20"):
        minibatches(jax.random.key(0), 24, 5, 3, 4)


@pytest.mark.parametrize(
    ("num_elements", "num_minibatches", "fits"),
    [(1024, 3, "2 or 4"), (12, 5, "4 or 6"), (8, 100, "8"), (7, 2, "1 or 7")],
)
def test_minibatches_that_do_not_divide_are_refused_with_numbers_that_do(num_elements, num_minibatches, fits):
    given = rf"num_envs \* num_steps = {num_elements} is not a multiple of num_minibatches = {num_minibatches}"
    message = f"^{given}; use {fits}$"
    with pytest.raises(ValueError, match=message):
        check_divides(num_elements, num_minibatches)
    with pytest.raises(ValueError, match=message):
        minibatches(jax.random.key(0), num_elements, num_minibatches, 1)


@pytest.mark.parametrize("num_minibatches", [1, 2, 4, 1024])
def test_minibatches_that_divide_are_accepted(num_minibatches):
    assert check_divides(1024, num_minibatches) is None


def transitions(seed, ends, diverged=False):
    rng = np.random.default_rng(seed)
    terminated = (rng.random((T, N)) < 0.2) & ends
    truncated = (rng.random((T, N)) < 0.2) & ends & ~terminated
    returns, lengths = rng.normal(size=(T, N)).astype(np.float32), rng.integers(1, 9, size=(T, N))
    diverged = terminated & (rng.random((T, N)) < 0.5) & diverged
    return Transition(0, 0, 0, 0, *map(jnp.asarray, (terminated, truncated, returns, lengths)), {}, jnp.array(diverged))


def test_episode_metrics_are_means_over_the_episodes_that_ended():
    traj = transitions(0, ends=True)
    done = np.asarray(traj.terminated) | np.asarray(traj.truncated)
    metrics = episode_metrics(traj)
    assert metrics["num_episodes"] == done.sum() > 0
    np.testing.assert_allclose(metrics["episode_return"], np.asarray(traj.episode_return)[done].mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["episode_length"], np.asarray(traj.episode_length)[done].mean(), rtol=1e-5)


def test_episode_metrics_leave_out_and_count_episodes_that_diverged():
    traj = transitions(0, ends=True, diverged=True)
    whole = (np.asarray(traj.terminated) | np.asarray(traj.truncated)) & ~np.asarray(traj.diverged)
    metrics = episode_metrics(traj)
    assert (metrics["num_episodes"], metrics["num_diverged"]) == (whole.sum(), traj.diverged.sum())
    assert 0 < whole.sum() < np.asarray(traj.done).sum()
    np.testing.assert_allclose(metrics["episode_return"], np.asarray(traj.episode_return)[whole].mean(), rtol=1e-5)


def test_episode_metrics_are_0_when_no_episode_ended():
    metrics = episode_metrics(transitions(0, ends=False))
    assert metrics["num_episodes"] == 0
    assert metrics["episode_return"] == metrics["episode_length"] == 0
