"""A judge of answers: its scores and loss by hand, what is changed for it, what it pays, and Cooper's update."""

import sys
from importlib import import_module
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import rlx
from rlx import replace
from rlx.algos import grpo_tokens
from rlx.around import rewarded
from rlx.env import with_params
from rlx.judges import Verdict, one_changed, preference_loss, scores
from rlx.tokens import examples, write

EXACT = True  # bits are compared

sys.path.append(str(Path(__file__).parent.parent / "experiments" / "mechanisms"))
cooper = import_module("cooper")

T = 3
SIZES = {"num_groups": 4, "group_size": 4, "num_steps": T, "num_minibatches": 1, "num_epochs": 1, "total_steps": 144}
SIZES |= {"width": 8, "num_heads": 2, "num_layers": 1, "warm_start_steps": 0}
JUDGE = {"judge_examples": 64, "judge_teaching": 300, "teaching_rate": 1e-2}


@pytest.fixture(scope="module")
def env():
    """One to three of two symbols, to be written backwards: some first answers are right."""
    return with_params(rlx.envs.make("Reverse", max_length=T, max_symbols=2), {"min_length": 1})


@pytest.fixture(scope="module")
def state(env):
    return jax.jit(cooper.init)(cooper.Config(**SIZES, **JUDGE), env, jax.random.key(0))


def test_the_loss_is_that_of_bradley_and_terry():
    better, worse = np.random.default_rng(0).normal(size=(2, 9)).astype(np.float32)
    expected = -np.log(1 / (1 + np.exp(worse - better)))
    np.testing.assert_allclose(preference_loss(better, worse), expected, rtol=1e-5)
    np.testing.assert_allclose(preference_loss(better, better), np.log(2.0), rtol=1e-6)


def test_one_token_of_the_answer_is_another_one_and_each_as_often():
    answer = jnp.array([2, 1, 0])
    found = np.asarray(jax.vmap(lambda key: one_changed(key, answer, 3))(jax.random.split(jax.random.key(0), 4000)))
    other = found != np.asarray(answer)
    assert (other.sum(axis=1) == 1).all()
    assert not other[:, 2].any()
    seen, counts = np.unique(found, axis=0, return_counts=True)
    assert seen.tolist() == [[1, 1, 0], [2, 2, 0], [2, 3, 0], [3, 1, 0]]
    assert np.abs(counts / 4000 - 0.25).max() < 0.035  # five standard deviations


def test_an_answer_is_paid_at_its_end_by_its_score(env, state):
    config = cooper.Config(**SIZES, **JUDGE)
    network = cooper.network(config, env)
    judged = rewarded(env, Verdict(state.judge, network))
    start = grpo_tokens.starts(config, judged, None, jax.random.key(3))
    actor = grpo_tokens.networks(config, env), state.policy.params["actor"]
    end, traj, alive = write(*actor, judged, start, jax.random.key(4), T, None, config.group_size)
    last = np.asarray(alive.sum(axis=0)) - 1
    paid = np.asarray(traj.reward)
    expected = 1 / (1 + np.exp(-np.asarray(scores(network, state.judge, end.obs))))
    np.testing.assert_allclose(paid[last, np.arange(16)], expected, rtol=1e-5)
    np.testing.assert_allclose(paid.sum(axis=0), expected, rtol=1e-5)
    assert len(np.unique(last)) > 1
    _, truth, _ = write(*actor, env, grpo_tokens.starts(config, env, None, jax.random.key(3)), jax.random.key(4), T)
    np.testing.assert_array_equal(traj.info["success"], truth.info["success"])


def test_with_its_own_reward_an_environment_of_tokens_teaches_the_same(env):
    """What stands between keeps the prompt, the solved problems and the right answers."""
    config = grpo_tokens.Config(**SIZES | {"warm_start_steps": 10, "given": 1, "warm_start_accuracy": 1.0})
    found = []
    for one in (env, rewarded(env, lambda made: made.reward)):
        state = jax.jit(grpo_tokens.init)(config, one, jax.random.key(0))
        state, metrics = jax.jit(grpo_tokens.update)(config, one, state)
        found.append((ravel_pytree(state.params)[0], metrics["episode_return"]))
    jax.tree.map(np.testing.assert_array_equal, *found)


def test_the_judge_is_taught_to_prefer_right_answers(env, state):
    config = cooper.Config(**SIZES, **JUDGE)
    right, _ = examples(env, jax.random.key(9), 64)
    wrong = cooper.spoiled(env, jax.random.key(10), right)
    assert ((np.asarray(wrong) != right).sum(axis=1) == 1).all()
    assert (np.asarray(wrong[:, :T]) == right[:, :T]).all()
    loss = lambda params: float(cooper.judge_loss(config, env, params, right, wrong, jnp.ones(64)))
    untaught = jax.jit(cooper.init)(replace(config, judge_teaching=0), env, jax.random.key(0)).judge
    assert loss(state.judge) < 0.9 * loss(untaught)
    half = jnp.arange(64) < 32
    by_hand = preference_loss(*(scores(cooper.network(config, env), state.judge, x) for x in (right, wrong)))[:32]
    found = cooper.judge_loss(config, env, state.judge, right, wrong, half)
    np.testing.assert_allclose(found, by_hand.mean(), rtol=1e-5)


def test_own_wrong_answers_are_of_the_same_group(env):
    config = cooper.Config(**SIZES)
    tokens = jnp.arange(16)[:, None] * jnp.ones((1, 2), jnp.int32)
    right = jnp.array([True, False, True, False] + [True] * 4 + [False] * 8)
    found = cooper.own_wrong(config, jax.random.key(0), tokens, right, -tokens)[:, 0]
    assert set(np.asarray(found[:4]).tolist()) <= {1, 3}
    np.testing.assert_array_equal(found[4:8], -np.arange(4, 8))
    assert all(8 + 4 * (i // 4) <= int(x) < 12 + 4 * (i // 4) for i, x in enumerate(found[8:]))


@pytest.mark.parametrize("own_wrong", [False, True])
def test_the_policy_learns_as_in_the_judge_s_environment_and_the_judge_beside_it(env, state, own_wrong):
    config = cooper.Config(**SIZES, **JUDGE, own_wrong=own_wrong)
    after, metrics = jax.jit(cooper.update)(config, env, state)
    judged = rewarded(env, Verdict(state.judge, cooper.network(config, env)))
    expected, paid = jax.jit(grpo_tokens.update)(config, judged, state.policy)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)  # other programs round in other ways
    close(ravel_pytree(after.policy.params)[0], ravel_pytree(expected.params)[0])
    close(metrics["episode_return"], paid["episode_return"])
    moved = lambda config: ravel_pytree(jax.jit(cooper.update)(config, env, state)[0].judge)[0] - before
    before = ravel_pytree(state.judge)[0]
    assert (moved(config) != 0).any()
    np.testing.assert_array_equal(moved(replace(config, judge_steps=0)), 0.0)


def test_resume_is_bitwise(env, state):
    config = cooper.Config(**SIZES, **JUDGE)
    whole, _ = rlx.resume(cooper, config, env, state, 3)
    half, _ = rlx.resume(cooper, config, env, state, 1)
    again, _ = rlx.resume(cooper, config, env, half, 2)
    assert whole.num_updates == again.num_updates == 3
    np.testing.assert_array_equal(*(ravel_pytree(s.judge)[0] for s in (whole, again)))
