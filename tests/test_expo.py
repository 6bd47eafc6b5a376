"""EXPO: candidates, the choice among them against a loop, its limits, and a task with a known best action."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rlx
from rlx.algos import expo
from rlx.data.steps import drawn
from rlx.spaces import rescale, unit

SMALL = {
    **{"total_steps": 96, "warmup_steps": 32, "num_envs": 4, "num_steps": 4, "utd_ratio": 1.0, "actor_period": 4},
    **{"capacity": 256, "batch_size": 16, "num_critics": 4, "num_base": 3, "num_edits": 2, "flow_steps": 2},
    **{"hidden_sizes": (16,)},
}


@pytest.fixture(scope="module")
def env():
    return rlx.envs.make("probe/ContinuousAction")


@pytest.fixture(scope="module")
def data(env):
    """Random steps whose actions are the best ones, with noise, and their rewards."""
    found = drawn(env, jax.random.key(3), 256)
    action = unit(env.action_space, found.obs / 2 - 0.4 + 0.1 * jax.random.normal(jax.random.key(4), found.obs.shape))
    given = rescale(env.action_space, action)
    reward = 1.0 - jnp.abs(given - found.obs / 2)[:, 0] ** 2
    return replace(found, action=action, reward=reward, terminated=jnp.ones(256, bool), truncated=jnp.zeros(256, bool))


@pytest.fixture(scope="module")
def state(env):
    config = expo.Config(**SMALL)
    start = jax.jit(partial(expo.init, config, env))(jax.random.key(0))
    moved = lambda x: x + 0.3 * jax.random.normal(jax.random.key(x.size), x.shape)
    params = start.params | {name: jax.tree.map(moved, start.params[name]) for name in ("actor", "edit", "critic")}
    return rlx.replace(start, params=params, target_params=params["critic"], average=params["actor"])


OBS = jnp.linspace(-1.0, 1.0, 5)[:, None]


def test_candidates_are_actions_of_the_base_policy_and_edits_of_some(env, state):
    config = expo.Config(**SMALL)
    both = expo.candidates(config, env, state.average, state.params["edit"], OBS, jax.random.key(1))
    assert both.shape == (5, 5, 1)
    moves = both[3:] - both[:2]
    assert (jnp.abs(moves) <= config.edit_size + 1e-6).all()
    assert (jnp.abs(moves) > 1e-4).any()
    alone = rlx.replace(config, num_edits=0)
    base = expo.candidates(alone, env, state.average, state.params["edit"], OBS, jax.random.key(1))
    np.testing.assert_array_equal(base, both[:3])
    small = rlx.replace(config, edit_size=1e-6)
    near = expo.candidates(small, env, state.average, state.params["edit"], OBS, jax.random.key(1))
    np.testing.assert_allclose(near[3:], near[:2], atol=1e-5)


def test_the_best_is_that_of_a_loop(env, state):
    config = rlx.replace(expo.Config(**SMALL), num_targets=4)  # all of them
    actions = jax.random.uniform(jax.random.key(2), (6, 5, 1), minval=-1.0, maxval=1.0)
    action, value = expo.best_of(config, env, state.target_params, OBS, actions, jax.random.key(1))
    critic = expo.networks(config, env)[2]
    for b in range(5):
        q = np.array(
            [
                [
                    critic.apply(jax.tree.map(lambda x, e=e: x[e], state.target_params), OBS[b], actions[k, b])
                    for e in range(4)
                ]
                for k in range(6)
            ]
        ).min(axis=1)
        np.testing.assert_allclose(value[b], q.max(), rtol=1e-5)
        np.testing.assert_array_equal(action[b], actions[q.argmax(), b])


def test_the_base_policy_learns_from_actions_and_never_from_values(env, state, data):
    config = expo.Config(**SMALL)
    step = jax.jit(partial(expo.update, config, env))
    moved, metrics = step(state, data)
    scaled = rlx.replace(
        state, params=state.params | {"critic": jax.tree.map(lambda x: 3.0 * x, state.params["critic"])}
    )
    other, _ = step(scaled, data)
    # The first batch is the same, and what was chosen in the rollout is by the same target critics.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=3e-3), moved.params["actor"], other.params["actor"])
    assert metrics["base_loss"] > 0
    steps = jax.tree.map(lambda new, old: jnp.abs(new - old).max(), moved.average, state.average)
    assert (
        max(jax.tree.leaves(steps))
        < 1e-4
        < max(
            jax.tree.leaves(
                jax.tree.map(lambda new, old: jnp.abs(new - old).max(), moved.params["actor"], state.params["actor"])
            )
        )
    )


def test_one_candidate_without_edits_is_imitation_beside_critics(env, data):
    """The data are the best actions less 0.4: imitation stays there, and edits of at most 0.5 mend it."""
    sizes = SMALL | {"total_steps": 3_000, "num_steps": 8, "batch_size": 64, "capacity": 4_000, "learning_rate": 3e-3}
    sizes |= {"hidden_sizes": (32,), "base_rate": 0.05, "initial_alpha": 0.01, "target_entropy": -2.0}
    found = {}
    for num_base, num_edits in ((1, 0), (4, 4)):
        config = expo.Config(**sizes | {"num_base": num_base, "num_edits": num_edits, "data_share": 0.9}, edit_size=0.5)
        learned, _ = rlx.train(expo, config, env, jax.random.key(0), data=data)
        played = rlx.evaluate(expo, config, env, learned, jax.random.key(1), 64)
        found[num_edits] = float(played.returns.mean())
    assert found[0] < 0.95  # 1 - 0.4^2 = 0.84, and nearer where its own actions are imitated
    assert found[4] > found[0] + 0.03


def test_a_run_is_resumed_and_a_lane_is_its_single_run(env, data):
    config = expo.Config(**SMALL)
    whole, _ = rlx.train(expo, config, env, jax.random.key(0), data=data)
    half, _ = rlx.train(expo, replace(config, total_steps=64), env, jax.random.key(0), data=data)
    again, _ = rlx.resume(expo, config, env, half, 2, data=data)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), whole.params, again.params)


def test_bad_settings_are_refused(env, data):
    with pytest.raises(ValueError, match="num_edits = 4 of num_base = 3"):
        rlx.train(expo, expo.Config(**SMALL | {"num_edits": 4}), env, jax.random.key(0), data=data)


def test_a_clone_acts_by_what_it_has_learned(env):
    from rlx.data import clone, collect

    half = type("Half", (), {"act": staticmethod(lambda c, e, s, obs, key, deterministic=False: (obs / 2, None))})
    shown = collect(half, None, env, None, jax.random.key(0), 64)
    state, _ = clone(expo, expo.Config(**SMALL | {"num_base": 1, "num_edits": 0}), env, shown, jax.random.key(1), 400)
    jax.tree.map(np.testing.assert_array_equal, state.average, state.params["actor"])
