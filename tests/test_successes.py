"""Right answers that come back: what is kept against a loop, where they come back, and what is counted of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rlx
from rlx import replace
from rlx.algos import grpo_tokens
from rlx.env import EnvState, Transition
from rlx.groups import Facts
from rlx.pool import observed, unknown
from rlx.successes import Successes, replayed, stored
from rlx.tokens import Written


def some(num, known, offset=0.0):
    """Answers of two tokens with numbers that tell them apart."""
    of = lambda start: jnp.arange(num)[:, None] * 10 + jnp.arange(2) + start + offset
    alive = jnp.ones((num, 2), bool)
    return Successes(jnp.asarray(known), of(1).astype(jnp.int32), of(2).astype(jnp.int32), -of(3.0), of(4.0), alive)


def test_what_is_kept_is_what_a_loop_keeps():
    rng, kept = np.random.default_rng(0), some(5, [False] * 5)
    expected = jax.tree.map(np.array, kept)
    for turn in range(1, 5):
        index = rng.integers(0, 5, 6)
        found = some(6, rng.random(6) < 0.4, 100.0 * turn)
        kept = jax.jit(stored)(kept, jnp.asarray(index), found)
        done = set()
        for i, known in enumerate(np.asarray(found.known)):
            if known and index[i] not in done:
                done.add(index[i])
                for name in ("known", "obs", "action", "log_prob", "reward", "alive"):
                    getattr(expected, name)[index[i]] = np.asarray(getattr(found, name))[i]
        jax.tree.map(np.testing.assert_array_equal, kept, expected)
    assert np.asarray(kept.known).any()


@pytest.fixture
def written():
    """Three groups of two answers: none is right but the last one of the last group; a pool of four problems."""
    no, zeros = jnp.zeros((2, 6), bool), jnp.zeros((2, 6))
    action = jnp.arange(12, dtype=jnp.int32).reshape(2, 6) + 500
    recorded, reward = Written(action, -jnp.ones((2, 6))), zeros.at[1, 5].set(1.0)
    traj = Transition(zeros, action, reward, zeros, no, no, zeros, action, {}, no, recorded)
    obs = jnp.arange(12, dtype=jnp.int32).reshape(6, 2) + 900
    end = EnvState(None, obs, jnp.full(6, 2), reward.sum(axis=0))
    pool = replace(unknown(jax.random.key(0), 4), answers=some(4, [False, True, False, True]))
    return pool, jnp.array([1, 2, 3]), end, traj, jnp.ones((2, 6), bool).at[1, 0].set(False)


CONFIG = grpo_tokens.Config(group_size=2, num_groups=3, replay=True, pool=4)


def test_a_right_answer_comes_back_where_none_is_and_one_is_known(written):
    pool, _, end, traj, alive = written
    new_end, new, living, answers, used = replayed(CONFIG, *written)
    np.testing.assert_array_equal(used, [True, False, False])  # known; unknown; solved
    np.testing.assert_array_equal(new_end.obs[0], pool.answers.obs[1])
    for found, kept in (
        (new.recorded.action, pool.answers.action),
        (new.recorded.log_prob, pool.answers.log_prob),
        (new.reward, pool.answers.reward),
        (living, pool.answers.alive),
    ):
        np.testing.assert_array_equal(found[:, 0], kept[1])
    for found, old in ((new_end.obs.T, end.obs.T), (new.reward, traj.reward), (living, alive)):
        np.testing.assert_array_equal(found[:, 1:], old[:, 1:])
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[:, 1:], b[:, 1:]), new.recorded, traj.recorded)
    # The one that was written just now is kept for its problem, all else stays.
    np.testing.assert_array_equal(answers.obs[3], end.obs[5])
    np.testing.assert_array_equal(answers.log_prob[3], traj.recorded.log_prob[:, 5])
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[:3], b[:3]), answers, pool.answers)


def test_what_pays_less_than_one_is_not_right(written):
    pool, index, end, traj, alive = written
    traj = replace(traj, reward=0.9 * traj.reward)
    _, _, _, answers, used = replayed(CONFIG, pool, index, end, traj, alive)
    np.testing.assert_array_equal(used, [True, False, True])
    jax.tree.map(np.testing.assert_array_equal, answers, pool.answers)


def test_without_replay_nothing_changes(written):
    pool, index, *rest = written
    assert replayed(replace(CONFIG, replay=False), pool, index, *rest)[:3] == tuple(rest)


def test_what_came_back_is_not_counted_as_solved_again():
    kind = jnp.tile(jnp.arange(2, dtype=jnp.int32), (3, 1))
    facts = Facts(jnp.ones((3, 2, 1)), jnp.ones((3, 2, 1), bool), kind=kind)
    pool = observed(unknown(jax.random.key(0), 3), jnp.arange(3), facts, 1.0, None, jnp.array([True, False, False]))
    np.testing.assert_array_equal(pool.successes, [1, 2, 2])
    np.testing.assert_array_equal(pool.tries, [2, 2, 2])


@pytest.mark.parametrize("replay", [False, True])
def test_a_policy_that_forgets_is_shown_what_it_could_do(replay):
    """After an update that solved something it is lost: then groups have something to learn of what came back."""
    env = rlx.envs.make("Reverse", max_length=1, max_symbols=2)
    config = grpo_tokens.Config(num_groups=4, group_size=4, num_steps=1, num_minibatches=1, num_epochs=1, width=8)
    config = replace(config, num_heads=2, num_layers=1, warm_start_steps=0, learning_rate=0.0, pool=1, replay=replay)
    update = jax.jit(grpo_tokens.update)
    state, metrics = update(config, env, jax.jit(grpo_tokens.init)(config, env, jax.random.key(0)))
    assert 0 < metrics["episode_return"] < 1
    right = int(env.reset(state.pool.keys[0]).obs[0])  # to be written again
    assert not replay or state.pool.answers.action[0, 0] == right - 1
    bias = state.params["actor"]["params"]["head"]["bias"]
    lost = jax.tree.map(lambda x: x, state.params)
    lost["actor"]["params"]["head"]["bias"] = bias.at[right - 1].add(-6.0)
    state, metrics = update(config, env, replace(state, params=lost))
    assert metrics["episode_return"] == 0  # what was written, and not what came back
    assert metrics["degenerate_fraction"] == (0 if replay else 1)
    assert (metrics["grad_norm"] > 1e-3) == replay
