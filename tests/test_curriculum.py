"""The buffer of levels: what is chosen, what is kept, what is replaced."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlx.meta.curriculum import Buffer, choose, fill, record

draw = lambda key: {"a": jax.random.uniform(key), "b": jax.random.normal(key, (2,))}


@pytest.fixture(scope="module")
def buffer():
    """Ten levels, of which the first six were lived through."""
    levels = fill(jax.random.key(0), draw, 10).levels
    new = jnp.arange(10) >= 6
    return Buffer(levels, jnp.where(new, -jnp.inf, jnp.array([0.3, 0.9, 0.1, 0.5, 0.7, -0.2, 0, 0, 0, 0])), new)


def test_a_buffer_begins_with_different_new_levels():
    found = fill(jax.random.key(0), draw, 50)
    assert found.new.all()
    assert len(np.unique(found.levels["a"])) == 50
    assert found.levels["b"].shape == (50, 2)


def test_all_old_ones_are_those_of_the_highest_regret(buffer):
    assert choose(buffer, jax.random.key(0), 4, replay=1.0).tolist() == [1, 4, 3, 0]


def test_without_replay_all_are_new_and_any(buffer):
    chosen = [tuple(choose(buffer, jax.random.key(i), 3, replay=0.0).tolist()) for i in range(40)]
    assert all(set(rows) <= {6, 7, 8, 9} for rows in chosen)
    assert {row for rows in chosen for row in rows} == {6, 7, 8, 9}
    assert len(set(chosen)) > 5


@pytest.mark.parametrize("replay", [0.0, 0.5, 1.0])
def test_no_level_is_chosen_twice_and_a_kind_of_which_there_are_too_few_is_filled_up(buffer, replay):
    for i in range(20):
        assert len(set(choose(buffer, jax.random.key(i), 9, replay).tolist())) == 9
    assert sorted(choose(buffer, jax.random.key(0), 5, 0.0).tolist())[1:] == [6, 7, 8, 9]  # one old one, the best
    assert min(choose(buffer, jax.random.key(0), 5, 0.0).tolist()) == 1


def test_half_of_the_choices_are_old_on_average(buffer):
    rows = jax.vmap(lambda key: choose(buffer, key, 4))(jax.random.split(jax.random.key(0), 2000))
    np.testing.assert_allclose((rows < 6).mean(), 0.5, atol=0.02)


def test_scores_are_recorded_and_the_lowest_make_room(buffer):
    found = record(buffer, jnp.array([2, 6]), jnp.array([0.8, 0.4]), jax.random.key(5), draw)
    # Three are new before anything is replaced; up to half may be: the two lowest, 5 and 0, are drawn anew.
    assert found.new.tolist() == [True, False, False, False, False, True, False, True, True, True]
    np.testing.assert_allclose(found.score[jnp.array([1, 2, 3, 4, 6])], [0.9, 0.8, 0.5, 0.7, 0.4])
    assert bool((found.score[jnp.array([0, 5])] == -jnp.inf).all())
    same = np.asarray(found.levels["a"] == buffer.levels["a"])
    assert same.tolist() == [False, True, True, True, True, False, True, True, True, True]


def test_nothing_is_replaced_while_half_are_new(buffer):
    many = Buffer(buffer.levels, buffer.score, jnp.arange(10) >= 3)
    found = record(many, jnp.array([3, 4]), jnp.array([0.8, 0.4]), jax.random.key(5), draw)
    assert found.new.tolist() == [False] * 5 + [True] * 5
    np.testing.assert_array_equal(found.levels["a"], buffer.levels["a"])


def test_a_level_without_a_score_is_the_first_to_go_and_is_never_chosen_for_it(buffer):
    found = record(buffer, jnp.array([1, 4]), jnp.array([jnp.nan, 0.6]), jax.random.key(5), draw)
    assert found.new.tolist()[1]  # it was the highest before
    one = record(
        Buffer(buffer.levels, buffer.score, jnp.arange(10) >= 3),
        jnp.array([1]),
        jnp.array([jnp.nan]),
        jax.random.key(5),
        draw,
    )
    assert choose(one, jax.random.key(0), 3, replay=1.0).tolist() == [0, 2, 1]


def test_more_levels_than_there_are_cannot_be_different(buffer):
    with pytest.raises(ValueError, match="11 different levels of a buffer of 10"):
        choose(buffer, jax.random.key(0), 11)
