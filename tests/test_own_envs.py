"""rlx's own environments: their contract, their equations, and what known policies get."""

from collections import deque
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import rlx.envs
from rlx.envs import check
from rlx.envs.tasks import gridworld, inventory, multigoal, own, pointmaze
from rlx.envs.tasks.multigoal import coverage, goal_entropy, goal_shares, goals, goals_reached
from rlx.pathwise import check_gradient


@pytest.mark.more
@pytest.mark.parametrize("name", own.NAMES)
def test_contract(name):
    check(rlx.envs.make(f"rlx/{name}"), num_steps=128)


def play(env, policy, num_episodes, num_steps, key=0):
    """Transitions `[T, N]` of episodes that are not restarted; `policy(obs, key)` sees one observation."""

    def episode(key):
        reset_key, steps_key = jax.random.split(key)

        def step(env_state, key):
            act_key, env_key = jax.random.split(key)
            return env.advance(env_key, env_state, policy(env_state.obs, act_key))

        return jax.lax.scan(step, env.reset(reset_key), jax.random.split(steps_key, num_steps))[1]

    return jax.jit(jax.vmap(episode, out_axes=1))(jax.random.split(jax.random.key(key), num_episodes))


@pytest.fixture(scope="module")
def multi_goal():
    return rlx.envs.make("rlx/MultiGoal")


def returns(env, policy, num_episodes=2000):
    """Undiscounted return of 51 steps, also where the square was left."""
    return np.asarray(play(env, policy, num_episodes, 51).reward).sum(0)


def in_the_middle(env):
    return replace(env, params=replace(env.params, start=0.0))


def still(obs, key):
    return jnp.zeros(2)


def noise(obs, key):
    return jax.random.normal(key, (2,))


def steered(goal):
    """Proportional and derivative control towards a goal."""
    return lambda obs, key: 3.0 * (goal - obs[:2]) - 2.5 * obs[2:]


def to_the_nearest(obs, key):
    places = goals(multigoal.Params())
    return steered(places[jnp.argmin(jnp.sum((places - obs[:2]) ** 2, axis=-1))])(obs, key)


def test_multi_goal_returns_of_known_policies(multi_goal):
    np.testing.assert_allclose(returns(in_the_middle(multi_goal), still, 2), 0.421, atol=1e-3)
    # Four standard errors of the mean of 2000 returns with a standard deviation of 3.
    np.testing.assert_allclose(returns(multi_goal, still).mean(), 4.47, atol=0.27)
    np.testing.assert_allclose(returns(multi_goal, noise).mean(), 4.2, atol=0.3)
    np.testing.assert_allclose(returns(multi_goal, to_the_nearest).mean(), 9.14, atol=0.1)


def test_multi_goal_is_won_by_going_to_any_one_goal(multi_goal):
    env = in_the_middle(multi_goal)
    found = [returns(env, steered(goal), 1)[0] for goal in goals(env.params)]
    # To the two goals straight ahead acceleration is clipped more than to the others.
    np.testing.assert_allclose(found, [6.964, 7.271, 7.271, 6.964, 7.271, 7.271], atol=2e-3)


def test_multi_goal_follows_its_equations(multi_goal):
    rng = np.random.default_rng(0)
    environment, params = multi_goal.environment, multi_goal.params
    angles = np.arange(6) * np.pi / 3
    places = 5 * np.stack([np.cos(angles), np.sin(angles)], axis=-1)
    for scale in (1.0, 10.0):
        p, v, a = (rng.normal(size=2) * s for s in (4.0, 1.0, scale))
        state = multigoal.State(jnp.float32(p), jnp.float32(v))
        obs, state, reward, terminated, truncated, _ = environment.step(None, state, jnp.float32(a), params)
        moved = p + 0.1 * v  # with the velocity from before
        faster = v + 0.1 * np.clip(a, -5, 5)
        nearest = min(np.sum((moved - g) ** 2) for g in places)
        expected = 0.1 * (np.exp(-0.3 * nearest) + np.exp(-0.1 * nearest)) - 0.001 * np.sum(a**2)  # a is not clipped
        np.testing.assert_allclose(obs, [*moved, *faster], rtol=1e-5)
        np.testing.assert_allclose(reward, expected, rtol=1e-4, atol=1e-6)
        assert terminated == (np.abs(moved).max() > 8)
        assert not truncated


def test_multi_goal_pays_most_at_a_goal_and_ends_outside_of_the_square(multi_goal):
    environment, params = multi_goal.environment, multi_goal.params
    at = lambda p: environment.step(None, multigoal.State(jnp.array(p), jnp.zeros(2)), jnp.zeros(2), params)
    np.testing.assert_allclose([at(list(g))[2] for g in goals(params)], 0.2, rtol=1e-6)
    ends = [bool(at(p)[3]) for p in ([7.9, 7.9], [8.1, 0.0], [0.0, -8.1], [-8.1, 8.1])]
    assert ends == [False, True, True, True]
    traj = play(multi_goal, still, 4, 52)
    np.testing.assert_array_equal(np.argmax(traj.truncated, axis=0), 50)  # the 51st step
    start = np.asarray(play(multi_goal, still, 2000, 1).obs[0])
    np.testing.assert_array_equal(start[:, 2:], 0)
    assert np.abs(start).max() < 7
    # Uniform over [-7, 7]: the standard deviation of a square's half width, within four standard errors.
    np.testing.assert_allclose(start[:, :2].std(), 7 / np.sqrt(3), rtol=0.05)


def turned(angle, reflect=1.0):
    return jnp.array([[np.cos(angle), -np.sin(angle) * reflect], [np.sin(angle), np.cos(angle) * reflect]], jnp.float32)


@pytest.mark.parametrize(
    ("matrix", "scale", "same"),
    [
        (turned(np.pi), 20.0, True),
        (turned(0.0, -1.0), 20.0, True),
        (turned(np.pi, -1.0), 20.0, True),
        (turned(np.pi / 3), 1.0, True),
        (turned(np.pi / 3), 20.0, False),  # where actions are clipped, a component at a time
    ],
)
def test_multi_goal_looks_the_same_from_six_sides(multi_goal, matrix, scale, same):
    """Exactly so from opposite sides and in the mirror; from the others where nothing is clipped."""
    env = in_the_middle(multi_goal)
    actions = jax.random.normal(jax.random.key(3), (10, 2)) * scale

    def positions(actions):
        return jax.lax.scan(lambda s, a: env.advance(None, s, a), env.reset(jax.random.key(0)), actions)[1]

    one, other = positions(actions), positions(actions @ matrix.T)
    assert not (one.terminated | other.terminated).any()
    found = [
        np.allclose(one.next_obs[:, :2] @ matrix.T, other.next_obs[:, :2], atol=1e-4),
        np.allclose(one.reward, other.reward, atol=1e-5),
    ]
    assert found == [same, same]


def test_positions_belong_to_the_goal_in_whose_direction_they_lie():
    places = np.asarray(goals(multigoal.Params()))
    np.testing.assert_array_equal(goals_reached(places), np.arange(6))
    assert goals_reached(places).dtype == jnp.int32
    np.testing.assert_array_equal(goals_reached(0.59 * places), -1)
    np.testing.assert_array_equal(goals_reached(0.61 * places), np.arange(6))
    for degrees, goal in ((29, 0), (31, 1), (-29, 0), (-31, 5), (209, 3), (211, 4)):
        angle = np.deg2rad(degrees)
        assert goals_reached(4 * jnp.array([np.cos(angle), np.sin(angle)])) == goal


def test_coverage_counts_goals_by_their_share_of_all_trajectories():
    reached = np.repeat([0, 1, 2, 3, -1], [500, 20, 19, 50, 411])
    shares = goal_shares(jnp.array(reached))
    np.testing.assert_allclose(shares, [0.5, 0.02, 0.019, 0.05, 0, 0], rtol=1e-5)
    assert coverage(shares) == 3
    assert coverage(shares, 0.05) == 2
    assert coverage(shares, 0.2) == 1


def test_goal_entropy_is_that_of_the_goals_that_were_reached():
    assert goal_entropy(jnp.array([0, 0.4, 0, 0, 0, 0])) == 0
    np.testing.assert_allclose(goal_entropy(jnp.full(6, 0.1)), 1.0, rtol=1e-6)  # 40 % got nowhere
    p = np.array([0.1, 0.2, 0.3, 0.4])
    expected = -(p * np.log(p)).sum() / np.log(6)
    np.testing.assert_allclose(goal_entropy(jnp.array([0.05, 0.1, 0.15, 0.2, 0, 0])), expected, rtol=1e-5)
    assert np.isnan(goal_entropy(jnp.zeros(6)))


@pytest.fixture(scope="module")
def grid():
    return lambda layout="two_walls": rlx.envs.make("rlx/GridWorld", layout=layout)


def grid_step(env, cell, action):
    """Where a step leads, its reward, and whether the episode ends."""
    out = env.environment.step(None, jnp.array(cell), jnp.array(action, jnp.float32), env.params)
    np.testing.assert_allclose(out[0], (np.array(out[1]) - 12) / 12, rtol=1e-6)
    return (*np.asarray(out[1]).tolist(), float(out[2]), bool(out[3]))


@pytest.mark.parametrize(
    ("action", "step"),
    [((0, 0), (0, 0)), ((0.5, -0.5), (0, 0)), ((0.51, -0.51), (1, -1)), ((9, -9), (1, -1)), ((-0.6, 0.2), (-1, 0))],
)
def test_grid_actions_are_rounded(grid, action, step):
    assert grid_step(grid(), (12, 12), action) == (12 + step[0], 12 + step[1], 0.0, False)


def test_grid_borders_and_walls_stop_a_step_and_goals_and_death_end_the_episode(grid):
    assert grid_step(grid(), (24, 12), (1, 1)) == (24, 13, 0.0, False)
    assert grid_step(grid(), (5, 2), (0, -1)) == (5, 1, 20.0, True)
    assert grid_step(grid(), (5, 22), (0, 1)) == (5, 23, 20.0, True)
    assert grid_step(grid("two_slits"), (14, 12), (1, 0)) == (14, 12, 0.0, False)
    assert grid_step(grid("two_slits"), (14, 12), (1, 1)) == (14, 12, 0.0, False)
    assert grid_step(grid("two_slits"), (14, 5), (1, 0)) == (15, 5, 0.0, False)
    assert grid_step(grid("three_goals"), (10, 12), (1, 0)) == (11, 12, -10.0, True)
    assert grid_step(grid("three_goals"), (12, 16), (0, 1)) == (12, 17, 20.0, True)
    assert grid_step(grid("tree_in_the_middle"), (12, 14), (1, 0)) == (13, 14, -10.0, True)
    assert grid_step(grid("tree_in_the_middle"), (22, 14), (1, 0)) == (23, 14, 20.0, True)
    assert grid_step(grid("cshape"), (10, 18), (0, -1)) == (10, 18, 0.0, False)
    assert grid_step(grid("cshape"), (9, 12), (1, 0)) == (10, 12, 20.0, True)


def test_grid_layouts_have_the_sizes_of_their_source():
    counts = {name: np.bincount(cells.ravel(), minlength=4).tolist() for name, cells in gridworld.LAYOUTS.items()}
    free, wall, goal, death = np.transpose([counts[name] for name in counts])
    np.testing.assert_array_equal(wall, [0, 0, 0, 17, 31])
    np.testing.assert_array_equal(goal, [100, 27, 10, 25, 25])
    np.testing.assert_array_equal(death, [0, 9, 25, 0, 0])
    np.testing.assert_array_equal(free + wall + goal + death, 625)


@pytest.mark.parametrize("layout", gridworld.LAYOUTS)
def test_grid_episodes_begin_on_every_free_cell_and_nowhere_else(grid, layout):
    env = grid(layout)
    cells = jax.jit(jax.vmap(lambda key: env.reset(key).state))(jax.random.split(jax.random.key(0), 20_000))
    begun = np.zeros((25, 25), int)
    np.add.at(begun, tuple(np.asarray(cells).T), 1)
    np.testing.assert_array_equal(begun > 0, gridworld.LAYOUTS[layout] == gridworld.FREE)


def test_grid_episodes_last_at_most_100_steps(grid):
    traj = play(grid(), still, 3, 101)
    np.testing.assert_array_equal(np.argmax(traj.truncated, axis=0), 99)
    assert not traj.terminated.any()


@pytest.fixture(scope="module", params=pointmaze.MAZES)
def maze(request):
    return rlx.envs.make(f"rlx/PointMaze-{request.param}")


def cells_from(walls, cell):
    """Steps from a cell to every other one, -1 where there is no way."""
    distance = np.full(walls.shape, -1)
    distance[cell] = 0
    queue = deque([cell])
    while queue:
        x, y = queue.popleft()
        for near in ((x + 1, y), (x - 1, y), (x, y + 1), (x, y - 1)):
            if not walls[near] and distance[near] < 0:
                distance[near] = distance[x, y] + 1
                queue.append(near)
    return distance


def test_mazes_are_closed_connected_and_have_two_ways(maze):
    walls = np.asarray(maze.params.walls)
    assert walls[[0, -1]].all()
    assert walls[:, [0, -1]].all()
    free = np.argwhere(~walls)
    distance = cells_from(walls, tuple(free[0]))
    assert (distance[~walls] >= 0).all()
    # A tree of n cells has n - 1 doors; every further one closes a loop.
    doors = (~walls[1:] & ~walls[:-1]).sum() + (~walls[:, 1:] & ~walls[:, :-1]).sum()
    assert doors - (len(free) - 1) >= 2
    # The longest way can be gone at less than half of the greatest speed.
    longest = max(cells_from(walls, tuple(cell)).max() for cell in free)
    assert longest < 0.5 * maze.params.max_speed * maze.max_steps * maze.params.dt


def test_balls_stay_out_of_the_walls(maze):
    """Pushed hard and long in random directions, the ball never overlaps a wall nor gets faster than allowed."""
    params = maze.params
    hard = lambda obs, key: jnp.sign(jnp.sin(jnp.array([37.0, 53.0]) * jnp.floor(8 * obs[4:]).sum() + 3 * obs[:2]))
    wild = lambda obs, key: jnp.where(jax.random.bernoulli(key, 0.3), jax.random.rademacher(key, (2,)), hard(obs, key))
    traj = play(maze, wild, 64, 150)
    walls = np.asarray(params.walls)
    position = np.asarray(traj.next_obs[..., :2]).reshape(-1, 2) + np.array(walls.shape) / 2
    boxes = np.argwhere(walls)
    nearest = np.clip(position[:, None], boxes, boxes + 1)
    gap = np.linalg.norm(position[:, None] - nearest, axis=-1).min(axis=1)
    assert gap.min() > params.radius - 1e-4  # rounding of positions up to 12
    assert (gap < params.radius + 1e-3).mean() > 0.1  # and they do touch
    # An edge may turn the velocity from one axis to the other, but adds nothing to it.
    assert np.linalg.norm(traj.next_obs[..., 2:4], axis=-1).max() <= np.sqrt(2) * params.max_speed
    moved = np.linalg.norm(np.diff(traj.next_obs[..., :2], axis=0), axis=-1)
    assert moved.max() <= np.sqrt(2) * params.max_speed * params.dt + 1e-3
    assert params.max_speed * params.dt / pointmaze.SUBSTEPS < params.radius


def collide(position, velocity, rows):
    walls = pointmaze.layout(rows)
    p, v = pointmaze.collide(jnp.array(position), jnp.array(velocity), walls, 0.2)
    return np.asarray(p), np.asarray(v)


ROOM = "##### #...# #...# #...# #####"
PILLAR = "##### #...# #.#.# #...# #####"


def test_contact_with_a_wall_takes_the_velocity_into_it():
    position, velocity = collide([1.1, 2.5], [-3.0, 2.0], ROOM)
    np.testing.assert_allclose(position, [1.2, 2.5], rtol=1e-6)
    np.testing.assert_allclose(velocity, [0.0, 2.0], atol=1e-6)
    # On its way out nothing is taken.
    np.testing.assert_allclose(collide([1.1, 2.5], [3.0, 2.0], ROOM)[1], [3.0, 2.0])
    # Free of walls nothing happens.
    for free, still in zip(collide([1.3, 2.5], [-3.0, 2.0], ROOM), ([1.3, 2.5], [-3.0, 2.0]), strict=True):
        np.testing.assert_array_equal(free, np.float32(still))


def test_contact_in_a_corner_stops_both_ways():
    position, velocity = collide([1.1, 3.95], [-3.0, 2.0], ROOM)
    np.testing.assert_allclose(position, [1.2, 3.8], rtol=1e-6)
    np.testing.assert_allclose(velocity, 0, atol=1e-6)


def test_contact_with_an_edge_deflects():
    # The pillar's corner is at (2, 2): the ball comes along the diagonal and is stopped, or passes by and is turned.
    position, velocity = collide([1.9, 1.9], [1.0, 1.0], PILLAR)
    np.testing.assert_allclose(position, 2 - 0.2 / np.sqrt(2), rtol=1e-6)
    np.testing.assert_allclose(velocity, 0, atol=1e-6)
    _, velocity = collide([1.9, 1.9], [1.0, 0.0], PILLAR)
    np.testing.assert_allclose(velocity, [0.5, -0.5], rtol=1e-5)


def test_balls_slide_along_a_row_of_walls(maze):
    """There is nothing to hit where one wall cell ends and the next begins."""
    env = replace(maze, params=replace(maze.params, walls=pointmaze.layout("####### #.....# #######"), drag=0.0))
    state = pointmaze.State(jnp.array([1.21, 1.5]), jnp.array([0.0, 4.0]), jnp.array([1.5, 1.5]))
    for _ in range(15):  # pushed into the wall all the while
        _, state, *_ = env.environment.step(None, state, jnp.array([-1.0, 0.0]), env.params)
    np.testing.assert_allclose(state.position, [1.2, 1.5 + 15 * 0.05 * 4.0], rtol=1e-5)
    np.testing.assert_allclose(state.velocity, [0.0, 4.0], atol=1e-5)


def test_free_balls_are_accelerated_and_dragged(maze):
    params = replace(maze.params, walls=pointmaze.layout("##### " + "#...# " * 3 + "#####"))
    state = pointmaze.State(jnp.array([2.5, 2.5]), jnp.zeros(2), jnp.array([1.5, 2.5]))
    obs, state, reward, terminated, truncated, info = maze.environment.step(None, state, jnp.array([0.5, 9.0]), params)
    v, p = np.zeros(2), np.array([2.5, 2.5])
    for _ in range(2):
        v = v + (np.array([10.0, 20.0]) - 0.25 * v) * 0.025
        p = p + v * 0.025
    np.testing.assert_allclose(obs, [*(p - 2.5), *v, -1.0, 0.0], rtol=1e-5)
    np.testing.assert_allclose(reward, np.exp(-np.linalg.norm(p - [1.5, 2.5])), rtol=1e-5)
    assert not terminated
    assert not truncated
    assert not info["success"]


def test_mazes_pay_by_the_distance_to_the_goal(maze):
    goal = jnp.array([1.5, 1.5])
    for distance, success in ((0.0, True), (0.44, True), (0.46, False)):
        state = pointmaze.State(goal + jnp.array([0.0, distance]), jnp.zeros(2), goal)
        _, _, reward, *_, info = maze.environment.step(None, state, jnp.zeros(2), maze.params)
        np.testing.assert_allclose(reward, np.exp(-distance), rtol=1e-5)
        assert info["success"] == success


def test_starts_and_goals_are_in_two_different_free_cells(maze):
    walls = np.asarray(maze.params.walls)
    state = jax.jit(jax.vmap(lambda key: maze.reset(key).state))(jax.random.split(jax.random.key(0), 5000))
    start, goal = np.asarray(state.position), np.asarray(state.goal)
    for place in (start, goal):
        assert np.abs(place - np.floor(place) - 0.5).max() < 0.25
        cells = np.floor(place).astype(int)
        seen = np.zeros(walls.shape, bool)
        seen[tuple(cells.T)] = True
        np.testing.assert_array_equal(seen, ~walls)
    assert (np.floor(start) != np.floor(goal)).any(axis=1).all()
    np.testing.assert_array_equal(state.velocity, 0)


def test_rewards_of_coverage_are_what_was_not_seen_before():
    env = rlx.envs.make("rlx/Coverage", size=5, radius=1.5)  # discs of 3 x 3
    traj = play(env, lambda obs, key: jax.random.randint(key, (), 0, 4), 16, 24)
    obs = np.asarray(traj.obs)  # [T, N, 10 + 25]
    first, last = obs[0, :, 10:].sum(-1), np.asarray(traj.next_obs)[-1, :, 10:].sum(-1)
    np.testing.assert_array_equal(first, 9)
    np.testing.assert_array_equal(traj.reward.sum(0), last - first)
    np.testing.assert_allclose(traj.reported["covered"][-1], (last - first) / 25, rtol=1e-5)
    cells = obs[..., :5].argmax(-1), obs[..., 5:10].argmax(-1)
    for n in range(16):
        seen = {
            ((x + i) % 5, (y + j) % 5)
            for x, y in zip(cells[0][:, n], cells[1][:, n], strict=True)
            for i in (-1, 0, 1)
            for j in (-1, 0, 1)
        }
        assert seen == set(zip(*np.nonzero(obs[-1, n, 10:].reshape(5, 5)), strict=True))


def test_coverage_without_diminishing_returns_or_a_memory():
    env = rlx.envs.make("rlx/Coverage", size=4, radius=0, shown=False, additive=True)
    assert env.observation_space.shape == (8,)
    traj = play(env, lambda obs, key: jnp.int32(2), 4, 24)
    np.testing.assert_array_equal(traj.reward, 1)
    np.testing.assert_allclose(traj.reported["covered"][-1], 3 / 16, rtol=1e-6)  # a row of the torus
    with pytest.raises(ValueError, match="size = 1"):
        rlx.envs.make("rlx/Coverage", size=1)


def test_steps_that_take_the_most_cover_more_than_chance():
    """Greedy steps of a submodular function come to 1 - 1/e of the best; here to more, and chance to less."""
    env = rlx.envs.make("rlx/Coverage", size=5, radius=0)

    def greedy(obs, key):
        cell = obs[:5].argmax(), obs[5:10].argmax()
        around = jnp.array([[1, 0], [-1, 0], [0, 1], [0, -1]]) + jnp.array(cell)
        seen = obs[10:].reshape(5, 5)[around[:, 0] % 5, around[:, 1] % 5]
        return (seen + 0.1 * jax.random.uniform(key, (4,))).argmin()

    by_chance = play(env, lambda obs, key: jax.random.randint(key, (), 0, 4), 64, 24).reward.sum(0)
    by_greed = play(env, greedy, 64, 24).reward.sum(0)
    assert by_chance.mean() < 14 < 0.63 * 24 < by_greed.mean()


def ordered(level, cap=np.inf):
    return lambda obs, key: inventory.up_to(obs, level, cap)


@pytest.mark.parametrize(("lead_time", "lost"), [(0, True), (3, True), (3, False)])
def test_inventory_follows_its_equations(lead_time, lost):
    env = rlx.envs.make("rlx/Inventory", lead_time=lead_time, lost=lost)
    traj = play(env, lambda obs, key: jax.random.uniform(key, (1,), minval=-2.0, maxval=12.0), 8, 30)
    obs, after, order = (np.asarray(x, np.float64) for x in (traj.obs, traj.next_obs, traj.action[..., 0]))
    shelf = obs[..., 0] + (obs[..., 1] if lead_time else np.clip(order, 0, 20))
    reward, lacked = np.asarray(traj.reward), np.diff(np.asarray(traj.reported["lacked"]), axis=0, prepend=0)
    left = np.where(lacked > 0, -lacked, after[..., 0])
    demand = shelf - left
    np.testing.assert_allclose(demand, demand.round(), atol=1e-4)  # whole pieces, so that the parts fit
    assert demand.min() > -1e-4
    np.testing.assert_allclose(reward, -(np.maximum(left, 0) + 9 * np.maximum(-left, 0)), rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(after[..., 0], np.maximum(left, 0) if lost else left, atol=1e-4)
    if lead_time:
        np.testing.assert_allclose(after[..., 1:-1], obs[..., 2:])
        np.testing.assert_allclose(after[..., -1], np.clip(order, 0, 20), atol=1e-6)
    # Four standard errors of the mean and of the variance of 240 Poisson demands of mean 5.
    np.testing.assert_allclose(demand.mean(), 5, atol=4 * (5 / 240) ** 0.5)
    np.testing.assert_allclose(demand.var(), 5, atol=4 * (2 * 25 / 240) ** 0.5 + 0.5)


@pytest.mark.parametrize("lead_time", [0, 2])
def test_inventory_of_demand_that_waits_costs_what_the_newsvendor_says(lead_time):
    env = rlx.envs.make("rlx/Inventory", lead_time=lead_time, lost=False)
    demand = inventory.poisson(5.0)
    costs = [inventory.waiting_cost(level, lead_time, demand) for level in range(40)]
    best = int(np.argmin(costs))
    assert best == stats.poisson.ppf(9 / 10, 5 * (lead_time + 1))
    for level in (best, best + 4):
        # The first periods begin with what was drawn, which may be above the level.
        cost = -np.asarray(play(env, ordered(level), 2000, 50).reward)[15:]
        error = cost.mean(0).std() / 2000**0.5
        np.testing.assert_allclose(cost.mean(), costs[level], atol=4 * error)
    assert inventory.waiting_cost(best + 0.5, lead_time, demand) > costs[best]


def test_inventory_has_a_gradient_that_is_right_and_refuses_what_is_no_store():
    check_gradient(rlx.envs.make("rlx/Inventory", lead_time=0))
    check_gradient(rlx.envs.make("rlx/Inventory", lead_time=2, lost=False))
    check_gradient(rlx.envs.make("rlx/Inventory", lead_time=6))  # whose first rewards say nothing of its orders
    np.testing.assert_allclose(inventory.poisson(5.0)[:40], stats.poisson.pmf(np.arange(40), 5.0), rtol=1e-5, atol=1e-9)
    np.testing.assert_allclose(inventory.up_to(jnp.array([3.0, 2.0]), 9.0, 3.5), [3.5])
    with pytest.raises(ValueError, match="lead_time = -1"):
        rlx.envs.make("rlx/Inventory", lead_time=-1)
    with pytest.raises(ValueError, match="mean = 0"):
        rlx.envs.make("rlx/Inventory", mean=0.0)
