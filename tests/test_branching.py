"""Answers that are a tree: who writes what, the worth of edges against recursion, and its gradient by enumeration."""

from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rlx
from rlx import replace
from rlx.algos import grpo_tokens
from rlx.branching import level_of, tree, writers
from rlx.facts import gathered
from rlx.groups import Facts
from rlx.relatives import advantages
from rlx.tokens import write

ONE = jnp.float32(1.0)


def test_the_first_of_those_that_share_a_token_writes_it():
    np.testing.assert_array_equal(writers((2, 2), 3), [[0, 0, 2, 2], [0, 0, 2, 2], [0, 1, 2, 3]])
    np.testing.assert_array_equal(writers((1, 3), 2), [[0, 0, 0], [0, 1, 2]])
    np.testing.assert_array_equal(writers((4,), 2), [[0, 1, 2, 3]] * 2)


def worth(leaves, branches):
    """Of the edges on the way to each leaf, `[G, levels]`, by recursion: child less parent."""
    if not branches:
        return np.zeros((1, 0))
    parts = np.split(leaves, branches[0])
    return np.concatenate(
        [np.insert(worth(part, branches[1:]), 0, part.mean() - leaves.mean(), axis=1) for part in parts]
    )


LEVELS = {  # of seven steps
    (2, 2, 2): [0, 0, 0, 1, 1, 2, 2],
    (3, 2): [0, 0, 0, 0, 1, 1, 1],
    (1, 4): [0, 0, 0, 0, 1, 1, 1],
    (6,): [0] * 7,
    (2, 1, 1, 2, 1): [0, 0, 1, 2, 2, 3, 4],
}


@pytest.mark.parametrize("num_steps", range(1, 12))
def test_every_level_has_steps_and_their_numbers_differ_by_one(num_steps):
    for depth in range(1, num_steps + 1):
        sizes = np.bincount(level_of((2,) * depth, num_steps), minlength=depth)
        assert len(sizes) == depth
        assert sizes.min() >= max(1, sizes.max() - 1)


@pytest.mark.parametrize("branches", LEVELS)
def test_edges_are_worth_the_child_less_the_parent(branches):
    group_size = int(np.prod(branches))
    outcome = np.random.default_rng(0).random((5, group_size)).astype(np.float32)
    reward = np.zeros((5, group_size, 7), np.float32)
    reward[..., 4] = outcome
    facts = Facts(reward, np.broadcast_to(np.arange(7) < 5, reward.shape), branches=branches)
    found = np.asarray(tree(reward, facts, ONE, ONE))
    expected = np.stack([worth(leaves, branches) for leaves in outcome])[..., LEVELS[branches]]
    np.testing.assert_allclose(found, expected, atol=1e-6)
    edges = found[..., np.unique(LEVELS[branches], return_index=True)[1]]
    np.testing.assert_allclose(edges.sum(axis=-1), outcome - outcome.mean(axis=1, keepdims=True), atol=1e-6)


def test_the_gradient_is_that_of_the_expected_outcome_level_by_level():
    """Two levels of two symbols; a group draws two of them for the first token and two below each: 64 ways in all."""
    rng = np.random.default_rng(1)
    logits = {"first": rng.normal(size=2), "then": rng.normal(size=(2, 2))}
    pay = rng.random((2, 2))
    softmax = lambda x: np.exp(x) / np.exp(x).sum(axis=-1, keepdims=True)
    first, then = softmax(logits["first"]), softmax(logits["then"])
    ways = np.array(list(product((0, 1), repeat=6)))
    top, low = np.repeat(ways[:, :2], 2, axis=1), ways[:, 2:]  # [64, 4]
    chance = first[ways[:, :2]].prod(axis=1) * then[top, low].prod(axis=1)
    reward = np.stack([np.zeros((64, 4)), pay[top, low]], axis=-1).astype(np.float32)
    alive = np.ones((64, 4, 2), bool)
    played = np.broadcast_to(np.arange(4)[:, None] == writers((2, 2), 2).T, alive.shape)
    stages = grpo_tokens.Config(credit="tree", baseline="none", weights="step")
    advantage, weight, _, _ = advantages(stages, Facts(reward, alive, played=played, branches=(2, 2)))
    step = np.asarray(advantage * weight, np.float64) * 64 * 6  # six tokens of a group are its own
    score = lambda pi, taken: np.eye(2)[taken] - pi
    found_first = np.einsum("n,ng,nga->a", chance, step[..., 0], score(first, top))
    found_then = np.zeros((2, 2))
    for branch in (0, 1):
        found_then[branch] = np.einsum("n,ng,nga->a", chance, step[..., 1] * (top == branch), score(then[branch], low))
    value = (then * pay).sum(axis=1)
    np.testing.assert_allclose(found_first, first * (value - first @ value), atol=1e-6)
    # Two nodes of the lower level, where the expected outcome has one.
    np.testing.assert_allclose(found_then, 2 * first[:, None] * then * (pay - value[:, None]), atol=1e-6)


@pytest.fixture(scope="module")
def played():
    env = rlx.envs.make("Reverse", max_length=4, max_symbols=3)
    config = grpo_tokens.Config(num_groups=3, group_size=4, num_steps=4, num_minibatches=1, num_epochs=1)
    config = replace(config, width=8, num_heads=2, num_layers=1, warm_start_steps=0, branches=(2, 2), credit="tree")
    state = grpo_tokens.init(config, env, jax.random.key(0))
    start = grpo_tokens.starts(config, env, None, jax.random.key(1))
    network = grpo_tokens.networks(config, env)
    return config, env, state, write(network, state.params["actor"], env, start, jax.random.key(2), 4, None, 4, (2, 2))


def test_answers_share_what_one_of_them_wrote(played):
    config, env, state, (end, traj, alive) = played
    token = traj.recorded.action.T.reshape(3, 4, 4)  # groups, members, time
    np.testing.assert_array_equal(token[:, [1, 3], :2], token[:, [0, 2], :2])
    assert (token[:, 0, :2] != token[:, 2, :2]).any()
    assert (token[:, [1, 3], 2:] != token[:, [0, 2], 2:]).any()
    pi = grpo_tokens.answers(config, env, state.params, end.obs)
    np.testing.assert_allclose(pi.log_prob(traj.recorded.action.T), traj.recorded.log_prob.T, rtol=1e-4, atol=1e-4)
    facts = gathered(env, traj, alive, 4, pi, None, (2, 2))
    np.testing.assert_array_equal(facts.own.sum(axis=(1, 2)), 12)
    np.testing.assert_array_equal(facts.own[0, 1], [False, False, True, True])


def test_an_update_learns_of_a_tree(played):
    config, env, state, _ = played
    config = replace(config, credit="tree", baseline="none", learning_rate=1e-2)
    env = replace(env, params=replace(env.params, partial=jnp.float32(1.0)))
    new, metrics = jax.jit(grpo_tokens.update)(config, env, state)
    assert metrics["alive_steps"] == 3 * 12
    moved = jax.tree.map(lambda a, b: jnp.abs(a - b).max(), new.params, state.params)
    assert max(jax.tree.leaves(moved)) > 1e-3


def test_the_credit_of_a_tree_wants_one():
    with pytest.raises(ValueError, match="answers that were played as one: give branches"):
        tree(jnp.ones((1, 2, 3)), Facts(jnp.ones((1, 2, 3)), jnp.ones((1, 2, 3), bool)), ONE, ONE)
