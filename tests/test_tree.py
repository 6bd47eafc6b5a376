"""Trees: every leaf against plain Python, exact values against enumeration, solved problems, pictures."""

from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rlx
from rlx import tokens
from rlx.env import with_params
from rlx.envs.contract.clauses import CLAUSES
from rlx.envs.tasks.tree import exact_values, prefixes


@pytest.mark.parametrize("num_trees", [1, 3])
def test_contract(num_trees):
    lines = rlx.envs.check(rlx.envs.make("Tree", num_trees=num_trees), num_steps=64, random_starts=num_trees > 1)
    assert len(lines) == len(CLAUSES)


@pytest.fixture(scope="module")
def small():
    return rlx.envs.make("Tree", depth=3, arity=2, num_trees=5, share=0.4, seed=3)


@pytest.fixture(scope="module")
def play():
    """Start states and transitions `[N, D]` of episodes in which the given branches `[N, D]` are taken."""

    @jax.jit
    def run(env, given):
        def episode(given, key):
            start = env.reset(key)
            return start, jax.lax.scan(lambda state, action: env.advance(key, state, action), start, given)[1]

        return jax.vmap(episode)(given, jax.random.split(jax.random.key(0), len(given)))

    return lambda env, given: jax.tree.map(np.asarray, run(env, jnp.asarray(given)))


def test_every_way_leads_to_its_leaf(small, play):
    ways = np.array(list(product(range(2), repeat=3)) * 10)
    assert (small.observation_space.n, small.observation_space.shape, small.action_space.n) == (3, (6,), 2)
    assert (small.environment.prompt_size, small.environment.reply_size, small.max_steps) == (3, 0, 3)
    start, traj = play(small, ways)
    trees, leaves = start.state.tree, np.asarray(small.params.leaves)
    assert set(trees) == set(range(5))
    for n, (a, b, c) in enumerate(ways):
        digits = [int(digit) + 1 for digit in f"{trees[n]:03b}"]
        np.testing.assert_array_equal(start.obs[n], [*digits, 0, 0, 0])
        np.testing.assert_array_equal(traj.next_obs[n, -1], [*digits, a + 1, b + 1, c + 1])
        right = leaves[trees[n], int(f"{a}{b}{c}", 2)]
        np.testing.assert_array_equal(traj.reward[n], [0, 0, right])
        np.testing.assert_array_equal(traj.info["success"][n], [False, False, right])
        np.testing.assert_array_equal(traj.terminated[n], [False, False, True])
        np.testing.assert_array_equal(traj.info["place"][n], [0, 1 + a, 3 + 2 * a + b])
    assert traj.reward.any()
    assert not traj.truncated.any()


@pytest.mark.parametrize(("share", "num"), [(0.05, 36), (1e-9, 1), (1.0, 729)])
def test_a_share_of_the_leaves_is_right_and_at_least_one(share, num):
    leaves = np.asarray(rlx.envs.make("Tree", share=share).params.leaves)
    assert leaves.shape == (3, 729)
    np.testing.assert_array_equal(leaves.sum(axis=1), num)
    if num == 36:
        assert len(np.unique(leaves, axis=0)) == 3
        thirds = leaves.reshape(3, 3, 243).sum(axis=-1)
        assert thirds.min() >= 3  # anywhere: of 12 expected, with a standard deviation of 2.8


def test_leaves_are_drawn_by_the_seed():
    drawn = [
        np.asarray(rlx.envs.make("Tree", num_trees=num, seed=seed).params.leaves)
        for num, seed in ((3, 0), (1, 0), (3, 1))
    ]
    np.testing.assert_array_equal(drawn[0], rlx.envs.make("Tree").params.leaves)
    np.testing.assert_array_equal(drawn[0][:1], drawn[1])
    assert (drawn[0] != drawn[2]).any(axis=1).all()


def test_leaves_are_parameters(small, play):
    leaves = np.zeros((5, 8), bool)
    leaves[:, 6] = True
    ways = np.array(list(product(range(2), repeat=3)))
    _, traj = play(with_params(small, {"leaves": leaves.tolist()}), ways)
    np.testing.assert_array_equal(traj.reward[:, -1], np.arange(8) == 6)


def test_solved_problems_are_all_the_right_leaves(small):
    keys, num = jax.random.key(0), 400
    whole, answer = (np.asarray(x) for x in jax.jit(lambda key: tokens.examples(small, key, num))(keys))
    np.testing.assert_array_equal(whole[:, :3], jax.vmap(small.reset)(jax.random.split(keys, num)).obs[:, :3])
    tree, leaf = ((x - 1) @ np.array([4, 2, 1]) for x in (whole[:, :3], answer))
    counts = np.zeros((5, 8), int)
    np.add.at(counts, (tree, leaf), 1)
    leaves = np.asarray(small.params.leaves)
    np.testing.assert_array_equal(counts > 0, leaves)
    assert counts[leaves].min() > 10  # of 400 / 15, each alike


def test_a_right_answer_is_the_way_to_the_first_right_leaf(small):
    start = jax.vmap(small.reset)(jax.random.split(jax.random.key(0), 20)).state
    answer = jax.vmap(small.environment.right_answer, (0, None))(start, small.params)
    leaves = np.asarray(small.params.leaves)
    first = [min(leaf for leaf in range(8) if leaves[tree, leaf]) for tree in start.tree]
    np.testing.assert_array_equal((np.asarray(answer) - 1) @ np.array([4, 2, 1]), first)


@pytest.mark.parametrize(("depth", "arity"), [(3, 2), (2, 3), (1, 4)])
def test_prefixes_are_in_the_order_of_nodes(depth, arity):
    wanted = [way for level in range(depth + 1) for way in product(range(1, arity + 1), repeat=level)]
    found = prefixes(depth, arity)
    np.testing.assert_array_equal(found, [way + (0,) * (depth - len(way)) for way in wanted])
    assert found.dtype == np.int32


def expected(leaves, table, way, depth, arity):
    """The value of a prefix, from all leaves behind it; plain Python."""
    total = 0.0
    for rest in product(range(arity), repeat=depth - len(way)):
        chance, node, whole = 1.0, 0, [*way, *rest]
        for time, branch in enumerate(whole):
            chance *= 1.0 if time < len(way) else float(table[node, branch])
            node = arity * node + 1 + branch
        total += chance * float(leaves[int(sum(b * arity ** (depth - 1 - i) for i, b in enumerate(whole)))])
    return total


@pytest.mark.parametrize(("depth", "arity"), [(3, 2), (2, 3), (1, 4)])
def test_exact_values_are_those_of_all_leaves(depth, arity):
    rng, num = np.random.default_rng(0), (arity**depth - 1) // (arity - 1)
    leaves, table = rng.random(arity**depth) < 0.4, rng.dirichlet(np.ones(arity), num).astype(np.float32)
    ways = [way for level in range(depth + 1) for way in product(range(arity), repeat=level)]
    wanted = [expected(leaves, table, way, depth, arity) for way in ways]
    np.testing.assert_allclose(exact_values(leaves, table), wanted, rtol=1e-5, atol=1e-6)


def test_exact_values_have_axes_and_gradients():
    rng = np.random.default_rng(0)
    leaves = jnp.asarray(rng.random((4, 27)) < 0.2)
    uniform = jnp.full((4, 13, 3), 1 / 3)
    values = exact_values(leaves, uniform)
    assert values.shape == (4, 40)
    np.testing.assert_allclose(values[:, 0], leaves.mean(axis=1), rtol=1e-5)
    np.testing.assert_array_equal(values[:, 13:], leaves)
    # The root's value grows with a branch's probability by the chance to come there and the value behind it.
    table = jnp.asarray(rng.dirichlet(np.ones(3), 13), jnp.float32)
    values, grad = exact_values(leaves[0], table), jax.grad(lambda table: exact_values(leaves[0], table)[0])(table)
    reached = [1.0] + [0.0] * 12
    for node in range(4):
        for branch in range(3):
            reached[3 * node + 1 + branch] = reached[node] * float(table[node, branch])
    behind = np.asarray(values)[3 * np.arange(13)[:, None] + 1 + np.arange(3)]
    np.testing.assert_allclose(grad, np.array(reached)[:, None] * behind, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("num_leaves", "table"), [(8, (7, 3)), (8, (6, 2)), (9, (7, 2)), (4, (1, 1))])
def test_tables_of_no_tree_are_refused(num_leaves, table):
    with pytest.raises(ValueError, match="are of no tree"):
        exact_values(jnp.zeros(num_leaves), jnp.zeros(table))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth": 0}, "depth = 0: give an integer of at least 1"),
        ({"arity": 1}, "arity = 1: give an integer of at least 2"),
        ({"num_trees": 0}, "num_trees = 0"),
        ({"share": 0.0}, "share = 0.0: give a number above 0"),
        ({"share": 1.5}, "share = 1.5"),
        ({"depth": 14}, r"3\^14 leaves of 3 trees are more than 1,048,576"),
    ],
)
def test_trees_that_are_none_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        rlx.envs.make("Tree", **options)


def test_the_same_tree_is_the_same_program():
    assert jax.tree.structure(rlx.envs.make("Tree")) == jax.tree.structure(rlx.envs.make("Tree"))
    assert jax.tree.structure(rlx.envs.make("Tree")) != jax.tree.structure(rlx.envs.make("Tree", arity=2))


def test_the_way_is_drawn_to_where_it_leads(small):
    start = state = small.reset(jax.random.key(0))
    for branch in (1, 1):
        state, _ = small.advance(jax.random.key(0), state, jnp.int32(branch))
    first, same, other = small.environment.frames([start, start, state], small.params, 160, 140, None)
    np.testing.assert_array_equal(first, same)
    blue = lambda image: np.argwhere(np.abs(image.astype(int) - (0x3E, 0x7C, 0xB1)).max(axis=-1) < 40)
    np.testing.assert_allclose(blue(first).mean(axis=0), [140 * 0.5 / 4, 80], atol=2)
    np.testing.assert_allclose(blue(other).max(axis=0), [140 * 2.5 / 4, 160 * 3.5 / 4], atol=7)
