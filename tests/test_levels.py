"""Levels, the buffer of those worth playing, the maze, and PPO on them: against independent numpy and by hand."""

from collections import deque
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rlx
from rlx.algos import ppo_levels as module
from rlx.env import Transition, with_params
from rlx.envs.tasks import levels as tabular
from rlx.envs.tasks import maze
from rlx.level_buffer import (
    LevelBuffer,
    best_return,
    choose,
    cleared,
    empty_levels,
    inserted,
    learnability,
    max_monte_carlo,
    positive_value_loss,
    replay_probabilities,
    rescored,
    whole,
)
from rlx.levels import Level, at_level, begin, can_mutate, draw_levels, drawn, has_levels, mutate_levels, pick
from rlx.rollout import rollout

SMALL = {"num_envs": 4, "num_steps": 10, "num_minibatches": 1, "num_epochs": 1, "hidden_sizes": (4,)}
MAZE = rlx.envs.make("rlx/Maze", size=5, walls=8, view=3, max_steps=10)


# The maze.


def distances(walls, start):
    """Steps from a cell to every other by breadth-first search; -1 where none leads."""
    found = np.full(walls.shape, -1)
    found[start] = 0
    queue = deque([start])
    while queue:
        row, column = queue.popleft()
        for i, j in ((0, 1), (1, 0), (0, -1), (-1, 0)):
            cell = (row + i, column + j)
            inside = all(0 <= x < n for x, n in zip(cell, walls.shape, strict=True))
            if inside and not walls[cell] and found[cell] < 0:
                found[cell] = found[row, column] + 1
                queue.append(cell)
    return found


@pytest.mark.parametrize("size", [7, 9, 11, 13, 15])
@pytest.mark.parametrize("name", [*maze.MAZES, "Labyrinth-0", "Labyrinth-19"])
def test_the_goal_of_a_maze_with_a_name_can_be_reached(name, size):
    params = maze.named(name, size)
    walls, goal = np.asarray(params.walls), tuple(np.asarray(params.goal))
    far = distances(walls, tuple(np.asarray(params.start)))[goal]
    assert far > 0
    if size == maze.SIZE:
        assert far + 2 * far // 3 < maze.LIMIT  # with a turn at two of three steps there is still time


def test_a_labyrinth_has_one_path_between_any_two_cells():
    for seed in range(5):
        open_ = ~np.asarray(maze.named(f"Labyrinth-{seed}").walls)
        passages = (open_[1:] & open_[:-1]).sum() + (open_[:, 1:] & open_[:, :-1]).sum()
        assert passages == open_.sum() - 1  # a tree: connected, by the test above, without a loop
        assert (distances(~open_, (0, 0)) >= 0).sum() == open_.sum()
        assert open_[::2, ::2].all()
    different = [np.asarray(maze.named(f"Labyrinth-{seed}").walls) for seed in range(5)]
    assert all((a != b).any() for i, a in enumerate(different) for b in different[:i])


def test_what_a_maze_shows_and_does_is_what_a_map_in_numpy_says():
    env = rlx.envs.make("rlx/Maze", size=7, view=5)
    rng = np.random.default_rng(0)
    step = jax.jit(env.environment.environment.step)
    observe = jax.jit(env.environment.environment.reset)
    for seed in range(4):
        params = jax.tree.map(lambda x: x[0], draw_levels(env, jax.random.key(seed), 1).params)
        walls, goal = np.asarray(params.walls), np.asarray(params.goal)
        obs, state = observe(jax.random.key(0), params)
        place, direction = np.asarray(params.start).copy(), int(params.direction)
        for _ in range(25):
            # The map, with the border as walls, turned so that the agent looks up.
            known = np.where(walls, maze.WALL, maze.FREE)
            known[tuple(goal)] = maze.GOAL
            around = np.pad(known, 5, constant_values=maze.WALL)
            row, column = place + 5
            window = np.rot90(around[row - 4 : row + 5, column - 4 : column + 5], direction)
            np.testing.assert_array_equal(obs["cells"], window[:5, 2:7])
            assert obs["direction"] == direction
            action = rng.integers(3)
            direction = (direction + (-1, 1, 0)[action]) % 4
            if action == maze.FORWARD:
                ahead = place + ((-1, 0), (0, 1), (1, 0), (0, -1))[direction]
                if (ahead >= 0).all() and (ahead < 7).all() and not walls[tuple(ahead)]:
                    place = ahead
            obs, state, reward, terminated, truncated, info = step(jax.random.key(0), state, action, params)
            at_goal = bool((place == goal).all())
            assert (reward, terminated, truncated, info["success"]) == (at_goal, at_goal, False, at_goal)
            if at_goal:
                break


def test_a_level_has_room_for_start_and_goal_and_as_many_walls_as_it_may():
    env = rlx.envs.make("rlx/Maze", size=7, walls=20)
    params = draw_levels(env, jax.random.key(0), 2000).params
    num = np.asarray(params.walls.sum((1, 2)))
    counts = np.bincount(num, minlength=21)
    assert len(counts) == 21
    assert (np.abs(counts - 2000 / 21) < 5 * np.sqrt(2000 / 21)).all()  # uniform from 0 to 20
    assert ((params.start != params.goal).any(-1)).all()
    for place in (params.start, params.goal):
        assert not params.walls[jnp.arange(2000), place[:, 0], place[:, 1]].any()
        assert len(np.unique(np.asarray(place), axis=0)) == 49
    fewer = replace(env, params=replace(env.params, most_walls=3.0))
    assert draw_levels(fewer, jax.random.key(0), 200).params.walls.sum((1, 2)).max() == 3


def test_a_change_is_one_wall_or_another_place_of_the_goal():
    levels = draw_levels(MAZE, jax.random.key(0), 400)
    params, before = mutate_levels(MAZE, jax.random.key(1), levels, 1).params, levels.params
    walls = np.asarray((params.walls != before.walls).sum((1, 2)))
    goals = np.asarray((params.goal != before.goal).any(-1))
    assert set(walls.tolist()) == {0, 1}
    assert not (walls.astype(bool) & goals).any()
    assert 0.67 < walls.mean() < 0.83  # 3 in 4
    for place in (params.start, params.goal):
        assert not params.walls[jnp.arange(400), place[:, 0], place[:, 1]].any()
    five = mutate_levels(MAZE, jax.random.key(1), levels, 5)
    assert (five.params.walls != before.walls).sum((1, 2)).max() > 1
    np.testing.assert_array_equal(jax.random.key_data(five.start), jax.random.key_data(levels.start))


def test_mazes_that_there_are_not_are_refused():
    with pytest.raises(ValueError, match="there are FourRooms, SixteenRooms"):
        rlx.envs.make("rlx/Maze", maze="Labyrinth-x")
    with pytest.raises(ValueError, match="odd size of at least 7"):
        rlx.envs.make("rlx/Maze", maze="Spiral", size=8)
    with pytest.raises(ValueError, match="an odd view"):
        rlx.envs.make("rlx/Maze", view=4)


def test_a_change_of_a_tabular_world_is_one_wall_or_one_reward():
    env = rlx.envs.make("rlx/Levels", levels=True)
    levels = draw_levels(env, jax.random.key(0), 200)
    params, before = mutate_levels(env, jax.random.key(1), levels, 1).params, levels.params
    walls = np.asarray((params.walls != before.walls).sum((1, 2)))
    rewards = np.asarray((params.reward != before.reward).sum(-1))
    np.testing.assert_array_equal(walls + rewards, 1)
    assert 60 < walls.sum() < 140
    assert not jax.vmap(lambda p: (p.walls & tabular._objects(p)).any())(params).any()


# Levels.


def stay(num):
    return lambda obs, key: (jnp.zeros(num, jnp.int32), None)


def test_episodes_begin_again_on_their_level_and_others_on_a_new_one():
    levels = draw_levels(MAZE, jax.random.key(0), 3)
    starts = begin(MAZE, levels)
    env_state, traj = rollout(MAZE, stay(3), starts, jax.random.key(1), 30, starts=starts)
    assert traj.done.sum() == 9
    for a, b in zip(jax.tree.leaves(env_state.state.params), jax.tree.leaves(levels.params), strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(env_state.state.state.place, levels.params.start)
    np.testing.assert_array_equal(traj.obs["cells"][0], traj.obs["cells"][10])
    elsewhere, _ = rollout(MAZE, stay(3), starts, jax.random.key(1), 30)
    assert (np.asarray(elsewhere.state.params.walls) != np.asarray(levels.params.walls)).any((1, 2)).all()


def test_where_levels_are_starts_the_same_key_is_the_same_start():
    env = rlx.envs.make("CartPole-v1", levels=True)
    levels = draw_levels(env, jax.random.key(0), 2)
    assert levels.params is None
    one, two = begin(env, levels), begin(env, levels)
    np.testing.assert_array_equal(one.obs, two.obs)
    plain = jax.vmap(rlx.envs.make("CartPole-v1").reset)(levels.start)
    np.testing.assert_array_equal(one.obs, plain.obs)
    assert (one.obs[0] != one.obs[1]).all()


def test_an_environment_at_a_level_plays_nothing_else():
    levels = draw_levels(MAZE, jax.random.key(0), 2)
    for i in range(2):
        level = jax.tree.map(lambda x, i=i: x[i], levels)
        starts = jax.vmap(at_level(MAZE, level).reset)(jax.random.split(jax.random.key(7), 3))
        for row in starts.state.params.walls:
            np.testing.assert_array_equal(row, level.params.walls)


def test_levels_keep_no_pace_of_a_curriculum():
    paced = with_params(MAZE, {"most_walls": "success:0:8:0.5"})
    with pytest.raises(ValueError, match="give a schedule such as linear:0:60"):
        begin(paced, draw_levels(MAZE, jax.random.key(0), 2))
    scheduled = with_params(MAZE, {"most_walls": "linear:0:8"})
    config = module.Config(**SMALL | {"method": "uniform", "total_steps": 40 * 4})
    assert rlx.train(module, config, scheduled, jax.random.key(0))[1]["learned"].all()


def test_levels_are_asked_for_once_and_of_environments_of_jax():
    assert drawn(MAZE) is MAZE
    assert has_levels(MAZE)
    assert not has_levels(rlx.envs.make("CartPole-v1"))
    assert can_mutate(MAZE)
    assert not can_mutate(rlx.envs.make("CartPole-v1", levels=True))
    with pytest.raises(ValueError, match="steps on the host"):
        rlx.envs.make("gymnasium/CartPole-v1", levels=True)


@pytest.mark.parametrize("name", ["rlx/Maze", "rlx/Levels", "CartPole-v1"])
def test_environments_of_levels_keep_the_contract(name):
    rlx.envs.check(rlx.envs.make(name, levels=True))


# The buffer.


def buffer_of(score, seen=None, best=None):
    score = jnp.asarray(score, jnp.float32)
    seen = jnp.zeros(len(score), jnp.int32) if seen is None else jnp.asarray(seen)
    best = score if best is None else jnp.asarray(best, jnp.float32)
    return LevelBuffer({"level": jnp.arange(len(score))}, score, best, seen)


def test_a_buffer_keeps_the_highest_scores_of_old_and_new():
    rng = np.random.default_rng(0)
    for _ in range(5):
        old, new = rng.permutation(20)[:6].astype(np.float32), rng.permutation(20)[:4] + np.float32(0.5)
        found = inserted(buffer_of(old), {"level": jnp.arange(100, 104)}, jnp.asarray(new), jnp.asarray(new), 7)
        names = [*range(6), *range(100, 104)]
        wanted = sorted(zip([*old, *new], names, strict=True), reverse=True)[:6]
        assert sorted(zip(found.score.tolist(), found.levels["level"].tolist(), strict=True), reverse=True) == wanted
        np.testing.assert_array_equal(found.seen, jnp.where(found.levels["level"] >= 100, 7, 0))


def test_a_buffer_takes_no_level_without_a_score_and_none_that_is_left_out():
    new = jnp.array([jnp.nan, 3.0, jnp.inf, 2.0])
    found = inserted(empty_levels({"level": jnp.int32(-1)}, 4), {"level": jnp.arange(4)}, new, new, 1)
    assert found.filled.tolist() == [True, True, False, False]
    assert found.at(jnp.arange(2))["level"].tolist() == [1, 3]
    none = inserted(empty_levels({"level": jnp.int32(-1)}, 4), {"level": jnp.arange(4)}, new, new, 1, False)
    assert not none.filled.any()
    assert not cleared(found).filled.any()
    assert cleared(found, False).filled.sum() == 2


def test_a_level_that_was_played_twice_has_the_mean_of_its_scores():
    buffer = buffer_of([1.0, 2.0, 3.0, -jnp.inf], best=[0.0, 5.0, 0.0, 0.0])
    rows, score = jnp.array([1, 1, 2, 3, 0]), jnp.array([4.0, 8.0, jnp.nan, 9.0, 7.0])
    where = jnp.array([True, True, True, True, False])
    found = rescored(buffer, rows, score, jnp.array([6.0, 1.0, 9.0, 9.0, 9.0]), 5, where)
    assert found.score.tolist() == [1.0, 6.0, 3.0, -np.inf]
    assert found.best.tolist() == [0.0, 6.0, 0.0, 0.0]
    assert found.seen.tolist() == [0, 5, 0, 0]


def test_replay_goes_by_rank_and_by_how_long_a_level_was_not_seen():
    score, seen = np.array([0.5, 2.0, -1.0, -np.inf]), np.array([3, 9, 5, 0])
    found = replay_probabilities(buffer_of(score, seen), jnp.int32(10), 0.5, 0.25)
    rank = np.array([2, 1, 3])
    by_score, by_age = rank**-2.0, 10 - seen[:3]
    wanted = 0.75 * by_score / by_score.sum() + 0.25 * by_age / by_age.sum()
    np.testing.assert_allclose(found, [*wanted, 0.0], rtol=1e-6)


def test_replay_at_its_limits():
    buffer = buffer_of([0.5, 2.0, -1.0, -np.inf], [4, 4, 4, 0])
    third = [1 / 3, 1 / 3, 1 / 3, 0.0]
    np.testing.assert_allclose(replay_probabilities(buffer, jnp.int32(4), 0.3, 1.0), third, rtol=1e-6)  # no age
    np.testing.assert_allclose(replay_probabilities(buffer, jnp.int32(9), jnp.inf, 0.0), third, rtol=1e-6)
    np.testing.assert_allclose(replay_probabilities(buffer, jnp.int32(9), 0.01, 0.0), [0, 1, 0, 0], atol=1e-6)
    assert not replay_probabilities(cleared(buffer), jnp.int32(9), 0.3, 0.3).any()
    assert set(choose(cleared(buffer), jax.random.key(0), 50, jnp.int32(9), 0.3, 0.3).tolist()) == {0, 1, 2, 3}


def test_levels_are_drawn_as_often_as_they_should_be():
    buffer = buffer_of([0.5, 2.0, -1.0, -np.inf], [3, 9, 5, 0])
    rows = choose(buffer, jax.random.key(0), 20_000, jnp.int32(10), 1.0, 0.3)
    wanted = replay_probabilities(buffer, jnp.int32(10), 1.0, 0.3)
    np.testing.assert_allclose(np.bincount(rows, minlength=4) / 20_000, wanted, atol=0.015)  # 4 standard errors


# Scores.


@pytest.fixture(scope="module")
def played():
    """Transitions `[12, 4]` of two levels in two environments each, with values and advantages."""
    rng = np.random.default_rng(0)
    done = rng.random((12, 4)) < 0.25
    done[3], done[:, 1] = True, False
    x = lambda: rng.normal(size=(12, 4)).astype(np.float32)
    zeros = jnp.zeros((12, 4))
    success = rng.random((12, 4)) < 0.5
    traj = Transition(
        *(zeros,) * 4, jnp.asarray(done), jnp.zeros((12, 4), bool), jnp.asarray(x()), zeros, {}, zeros > 0
    )
    return replace(traj, reported={"success": jnp.asarray(success, jnp.float32)}), x(), x()


def by_hand(played, best):
    """Scores of the two levels, environment by environment and episode by episode."""
    traj, value, advantage = played
    done, success = np.asarray(traj.done), np.asarray(traj.reported["success"])
    found = []
    for level in range(2):
        regret, positive, ended, top = [], [], [], -np.inf
        for env in (2 * level, 2 * level + 1):
            ends = np.flatnonzero(done[:, env])
            for t in range(ends[-1] + 1 if len(ends) else 0):
                regret.append(best[level] - value[t, env])
                positive.append(max(advantage[t, env], 0.0))
            ended += [success[t, env] for t in ends]
            top = max([top, *(float(traj.episode_return[t, env]) for t in ends)])
        p = np.mean(ended)
        found.append((np.mean(regret), np.mean(positive), p * (1 - p), top))
    return np.array(found).T


def test_scores_are_those_by_hand(played):
    best = np.array([1.5, -0.5], np.float32)
    regret, positive, learnable, top = by_hand(played, best)
    args = (*played, jnp.asarray(best), 2)
    np.testing.assert_allclose(max_monte_carlo(*args), regret, rtol=1e-5)
    np.testing.assert_allclose(positive_value_loss(*args), positive, rtol=1e-5)
    np.testing.assert_allclose(learnability(*args), learnable, rtol=1e-5)
    np.testing.assert_allclose(best_return(played[0], 2), top, rtol=1e-6)


def test_a_level_on_which_no_episode_ended_has_no_score(played):
    best = jnp.zeros(4)
    for score in (max_monte_carlo, positive_value_loss, learnability):
        found = score(*played, best)
        assert np.isnan(found).tolist() == [False, True, False, False]
    assert best_return(played[0])[1] == -np.inf
    assert not whole(played[0].done)[:, 1].any()


def test_learnability_is_of_success(played):
    traj, *rest = played
    with pytest.raises(ValueError, match="does not report: take another score"):
        learnability(replace(traj, reported={}), *rest, jnp.zeros(4))


# PPO on levels.


@partial(jax.jit, static_argnums=1)
def updates(key, num, config):
    """The states after 0, 1, ..., num updates, stacked, and the metrics."""
    state = module.init(config, MAZE, key)

    def step(state, _):
        after, metrics = module.update(config, MAZE, state)
        return after, (after, metrics)

    _, (states, metrics) = jax.lax.scan(step, state, length=num)
    return jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), state, states), metrics


def run(method, num=24, **changed):
    return updates(jax.random.key(0), num, module.Config(**SMALL | {"method": method, "buffer_size": 8} | changed))


def moved(states):
    """Whether the parameters changed, of each update."""
    head = states.params["critic"]["params"]["head"]["kernel"]
    return np.asarray((head[1:] != head[:-1]).any(tuple(range(1, head.ndim))))


@pytest.mark.parametrize("method", module.METHODS)
def test_each_method_learns_on_the_levels_that_it_should(method):
    states, metrics = run(method, **({"scoring_updates": 3, "round_updates": 6} if method == "sfl" else {}))
    kind = np.asarray(states.kind[1:])
    if method in ("uniform", "plr"):
        assert moved(states).all()
    else:
        np.testing.assert_array_equal(moved(states), kind == module.AGAIN)
    np.testing.assert_array_equal(moved(states), metrics["learned"] > 0)
    if method == "uniform":
        assert (kind == module.NEW).all()
        assert not metrics["buffer_filled"].any()
    elif method == "accel":
        assert {module.NEW, module.AGAIN, module.CHANGED} == set(kind.tolist())
        np.testing.assert_array_equal(kind[1:] == module.CHANGED, kind[:-1] == module.AGAIN)
    elif method == "sfl":
        np.testing.assert_array_equal(kind, np.tile([module.NEW] * 3 + [module.AGAIN] * 3, 4))
    else:
        assert {module.NEW, module.AGAIN} == set(kind.tolist())
        assert kind[0] == module.NEW  # the buffer is empty


def test_a_buffer_of_regret_grows_until_it_is_full_and_its_scores_are_those_of_its_levels():
    states, metrics = run("robust_plr")
    filled = np.asarray(metrics["buffer_filled"])
    assert (np.diff(filled) >= 0).all()
    assert filled[-1] == 1.0
    params = states.buffer.levels.params
    last = jax.tree.map(lambda x: x[-1], params)
    assert (np.asarray(last.walls).sum((1, 2)) <= 8).all()
    assert len(np.unique(np.asarray(last.walls).reshape(8, -1), axis=0)) > 4


def test_levels_are_changed_from_those_that_were_just_learned_on():
    config = module.Config(**SMALL | {"method": "accel", "buffer_size": 8, "num_changes": 1})
    states, _ = updates(jax.random.key(0), 24, config)
    i = int(np.flatnonzero(np.asarray(states.kind) == module.AGAIN)[0])
    state = jax.tree.map(lambda x: x[i], states)
    levels, kind, _, of_buffer = module.next_levels(config, MAZE, state, jax.random.key(3))
    assert kind == module.CHANGED
    assert not of_buffer.any()
    parents = state.buffer.at(state.rows).params
    assert ((levels.params.walls != parents.walls).sum((1, 2)) <= 1).all()
    np.testing.assert_array_equal(levels.params.start, parents.start)


def test_a_round_of_sfl_begins_with_an_empty_buffer():
    states, _ = run("sfl", scoring_updates=3, round_updates=6, buffer_size=7, num_copies=1)
    seen = np.asarray(states.buffer.seen[1:])
    filled = np.asarray(states.buffer.filled[1:])
    for i, (rows, ages) in enumerate(zip(filled, seen, strict=True)):
        assert (ages[rows] >= i // 6 * 6).all()
        assert (ages[rows] < i // 6 * 6 + 3).all()


def test_copies_of_a_level_are_the_same_level():
    config = module.Config(**SMALL | {"method": "robust_plr", "num_copies": 2, "buffer_size": 8})
    state = module.init(config, MAZE, jax.random.key(0))
    levels, *_ = module.next_levels(config, MAZE, state, jax.random.key(1))
    assert levels.start.shape == (2,)
    states, _ = updates(jax.random.key(0), 6, config)
    assert states.rows.shape == (7, 2)


def test_settings_that_do_not_fit_are_refused():
    refused = {
        "give levels=true, and no hide": (rlx.envs.make("CartPole-v1"), {}),
        "no hide, remember, stack or chunk": (rlx.envs.make("CartPole-v1", levels=True, stack=2), {}),
        "has no changes": (rlx.envs.make("CartPole-v1", levels=True, max_steps=10), {}),
        "does not divide": (MAZE, {"num_copies": 3}),
        "sfl scores 12 levels a round": (MAZE, {"method": "sfl", "scoring_updates": 3}),
        "has to fit": (MAZE, {"num_steps": 8}),
    }
    for message, (env, changed) in refused.items():
        with pytest.raises(ValueError, match=message):
            module.check(module.Config(**SMALL | changed), env)


def test_choosing_between_levels_is_row_by_row():
    one, two = (Level({"x": jnp.full(3, x)}, jax.random.split(jax.random.key(x), 3)) for x in (1, 2))
    found = pick(jnp.array([True, False, True]), one, two)
    assert found.params["x"].tolist() == [1, 2, 1]
    assert (found.start[0] == one.start[0]) & (found.start[1] == two.start[1])


def test_uniform_levels_are_learned():
    """Without walls a goal is found by nearly all episodes after some 100,000 steps, and by half of them before."""
    env = rlx.envs.make("rlx/Maze", size=5, walls=0, max_steps=30)
    config = module.Config(total_steps=100_000, num_steps=32, learning_rate=1e-3, method="uniform", buffer_size=4)
    _, metrics = rlx.train(module, config, env, jax.random.key(0))
    assert metrics["episode_return"][0] < 0.7
    assert metrics["episode_return"][-10:].mean() > 0.95
