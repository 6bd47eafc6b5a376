"""The adapter for XLand-MiniGrid; most of it needs the package, `pip install 'rlx[xminigrid]'`."""

import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rlx
from rlx.algos import ppo_recurrent
from rlx.envs.suites import from_xminigrid
from rlx.pytree import stack

pytestmark = pytest.mark.more
installed = pytest.mark.skipif(find_spec("xminigrid") is None, reason="needs rlx[xminigrid]")
EMPTY, XLAND = "xminigrid/MiniGrid-EmptyRandom-5x5", "xminigrid/XLand-MiniGrid-R1-9x9"
LIMIT = 30


@pytest.fixture(scope="module")
def empty():
    return rlx.envs.make(EMPTY, max_steps=LIMIT)


@pytest.fixture(scope="module")
def xland():
    return rlx.envs.make(XLAND, ruleset="craft")


def test_without_the_package_it_says_what_to_install(without):
    without("xminigrid")
    with pytest.raises(ValueError, match=r"MiniGrid-Unlock needs another package: pip install 'rlx\[xminigrid\]'"):
        rlx.envs.make("xminigrid/MiniGrid-Unlock", view_size=5)


def test_a_task_without_a_goal_is_refused_with_the_reason():
    with pytest.raises(ValueError, match=r"xminigrid/MiniGrid-Playground is not offered: it has no goal"):
        rlx.envs.make("xminigrid/MiniGrid-Playground")


@installed
def test_listed_names_are_those_of_the_installed_suite():
    import xminigrid

    listed = [*from_xminigrid.NAMES, *from_xminigrid.REFUSED]
    assert sorted(listed) == sorted(xminigrid.registered_environments())


@installed
def test_numbers_of_categories_are_those_of_the_installed_suite():
    from xminigrid.core import constants

    ours = from_xminigrid.NUM_TILES, from_xminigrid.NUM_COLORS, from_xminigrid.NUM_ACTIONS
    assert ours == (constants.NUM_TILES, constants.NUM_COLORS, constants.NUM_ACTIONS)


@pytest.fixture(scope="module")
def played(empty):
    """Random steps `[N, T]` of the adapter, and what the suite says of each of them."""
    import xminigrid

    task, params = xminigrid.make("MiniGrid-EmptyRandom-5x5", max_steps=LIMIT)

    @jax.jit
    @jax.vmap
    def program(key):
        start_key, steps_key = jax.random.split(key)
        first = task.reset(params, start_key)

        def step(carry, key):
            env_state, timestep = carry
            action = jax.random.randint(key, (), 0, 6)
            env_state, transition = empty.advance(key, env_state, action)
            timestep = task.step(params, timestep, action)
            return (env_state, timestep), (transition, timestep)

        env_state = empty.reset(start_key)
        return (env_state, first), jax.lax.scan(step, (env_state, first), jax.random.split(steps_key, LIMIT))[1]

    return program(jax.random.split(jax.random.key(0), 64))


@installed
def test_a_step_is_the_suites_own(played):
    (env_state, first), (transition, theirs) = played
    for obs, timestep in ((env_state.obs, first), (transition.next_obs, theirs)):
        np.testing.assert_array_equal(obs["tile"], timestep.observation[..., 0])
        np.testing.assert_array_equal(obs["color"], timestep.observation[..., 1])
        np.testing.assert_array_equal(obs["direction"], timestep.state.agent.direction)
    np.testing.assert_allclose(transition.reward, theirs.reward, rtol=1e-6)
    np.testing.assert_array_equal(transition.done, theirs.step_type == 2)
    np.testing.assert_array_equal(transition.terminated, (theirs.step_type == 2) & (theirs.discount == 0))


@installed
def test_the_goal_terminates_and_the_time_limit_truncates(played):
    _, (transition, _) = played
    ended = np.asarray(transition.terminated).any(axis=1)
    assert 8 < ended.sum() < len(ended)
    assert np.asarray(transition.truncated)[~ended, -1].all()
    assert not np.asarray(transition.truncated)[:, :-1].any()
    np.testing.assert_array_equal(transition.info["success"], transition.terminated)
    n, t = np.argwhere(transition.terminated)[0]
    np.testing.assert_allclose(transition.reward[n, t], 1 - 0.9 * (t + 1) / LIMIT, rtol=1e-6)


@installed
def test_the_wrong_object_of_a_task_of_memory_terminates_without_success():
    env = rlx.envs.make("xminigrid/MiniGrid-MemoryS8")
    start = jax.jit(env.reset)(jax.random.key(0))
    agent = start.state.agent

    def enters(place):
        """The step that enters a place from the left of it: the agent looks right."""
        beside = agent.replace(position=place - jnp.array([0, 1]), direction=jnp.asarray(1))
        env_state = replace(start, state=start.state.replace(agent=beside))
        return step(jax.random.key(0), env_state, jnp.int32(0))[1]

    step = jax.jit(env.advance)
    right, wrong = (enters(place) for place in (start.state.carry.success_pos, start.state.carry.failure_pos))
    assert right.terminated
    assert right.info["success"]
    assert right.reward > 0.9
    assert wrong.terminated
    assert not wrong.info["success"]
    assert wrong.reward == 0


@installed
def test_an_episode_ends_once_more_after_its_limit(empty):
    env_state = empty.reset(jax.random.key(0))
    late = replace(env_state, state=env_state.state.replace(step_num=jnp.int32(LIMIT + 3)))
    assert jax.jit(empty.environment.step)(jax.random.key(0), late.state, jnp.int32(1), empty.params)[4]


@installed
def test_worlds_of_xland_need_a_ruleset():
    with pytest.raises(ValueError, match=r"XLand-MiniGrid-R4-13x13 needs a ruleset: give ruleset=pick_up or .*PATH"):
        rlx.envs.make("xminigrid/XLand-MiniGrid-R4-13x13")
    with pytest.raises(ValueError, match="and not both"):
        rlx.envs.make(XLAND, ruleset="craft", benchmark="x")
    with pytest.raises(ValueError, match="ruleset = 'dig' is not one of pick_up, stand_near"):
        rlx.envs.make(XLAND, ruleset="dig")
    with pytest.raises(ValueError, match=r"ruleset is of \(4,\), \(0, 7\), \(1, 2\): give a goal \[5\], rules"):
        rlx.envs.make(XLAND, ruleset=(np.zeros(4), np.zeros((0, 7)), np.zeros((1, 2))))
    with pytest.raises(ValueError, match=r"ruleset is 3: give a goal \[5\], rules"):
        rlx.envs.make(XLAND, ruleset=3)
    with pytest.raises(ValueError, match="has a goal of its own: a ruleset is for XLand"):
        rlx.envs.make(EMPTY, ruleset="craft")
    with pytest.raises(ValueError, match="view_size = 4: give an odd number of at least 3"):
        rlx.envs.make(EMPTY, view_size=4)


@installed
def test_named_rulesets_are_what_the_suite_encodes():
    from xminigrid.core import goals, rules
    from xminigrid.core.constants import TILES_REGISTRY, Colors, Tiles

    ball, square = TILES_REGISTRY[Tiles.BALL, Colors.RED], TILES_REGISTRY[Tiles.SQUARE, Colors.BLUE]
    pyramid, star = TILES_REGISTRY[Tiles.PYRAMID, Colors.GREEN], TILES_REGISTRY[Tiles.STAR, Colors.YELLOW]
    hexagon = TILES_REGISTRY[Tiles.HEX, Colors.PURPLE]
    wanted = {
        "pick_up": (goals.AgentHoldGoal(tile=ball), []),
        "stand_near": (goals.AgentNearGoal(tile=pyramid), []),
        "put_near": (goals.TileNearGoal(tile_a=ball, tile_b=square), []),
        "craft": (
            goals.AgentHoldGoal(tile=pyramid),
            [rules.TileNearRule(tile_a=ball, tile_b=square, prod_tile=pyramid)],
        ),
        "craft_twice": (
            goals.AgentHoldGoal(tile=hexagon),
            [
                rules.TileNearRule(tile_a=ball, tile_b=square, prod_tile=star),
                rules.AgentHoldRule(tile=star, prod_tile=hexagon),
            ],
        ),
    }
    assert wanted.keys() == from_xminigrid.RULESETS.keys()
    for name, (goal, made) in wanted.items():
        found = from_xminigrid.ruleset(name)
        np.testing.assert_array_equal(found.goal, goal.encode())
        assert found.rules.shape == (2, 7)
        for row, rule in zip(found.rules, made, strict=False):
            np.testing.assert_array_equal(row, rule.encode())
        assert not found.rules[len(made) :].any()


@installed
def test_every_named_ruleset_can_be_solved_and_a_vmap_over_them_is_one_program(xland):
    every = [replace(xland.params, ruleset=from_xminigrid.ruleset(name)) for name in from_xminigrid.RULESETS]

    @jax.jit
    def solved(params):
        """The share of random episodes that reach the goal, of each ruleset."""
        env = replace(xland, params=params)

        def episode(key):
            start_key, steps_key = jax.random.split(key)

            def step(env_state, key):
                env_state, transition = env.advance(key, env_state, env.action_space.sample(key))
                return env_state, transition.terminated

            return jax.lax.scan(step, env.reset(start_key), jax.random.split(steps_key, env.horizon or 243))[1].any()

        return jax.vmap(episode)(jax.random.split(jax.random.key(0), 256)).mean()

    share = dict(zip(from_xminigrid.RULESETS, jax.vmap(solved)(stack(every)).tolist(), strict=True))
    assert min(share.values()) > 0
    assert share["stand_near"] > share["put_near"] > share["craft_twice"]


@installed
def test_rulesets_come_from_a_file_that_is_there(tmp_path):
    from xminigrid.benchmarks import save_bz2_pickle

    both = [from_xminigrid.ruleset(name) for name in ("craft", "put_near")]
    table = {"goals": "goal", "rules": "rules", "init_tiles": "init_tiles"}
    table = {name: np.stack([getattr(x, field) for x in both]) for name, field in table.items()}
    save_bz2_pickle(table | {"num_rules": np.array([1, 0])}, str(tmp_path / "rules"))
    env = rlx.envs.make(XLAND, benchmark=str(tmp_path / "rules"), ruleset_id=1)
    np.testing.assert_array_equal(env.params.ruleset.goal, both[1].goal)
    given = rlx.envs.make(XLAND, ruleset=[both[0].goal.tolist(), both[0].rules.tolist(), both[0].init_tiles.tolist()])
    np.testing.assert_array_equal(given.params.ruleset.rules, both[0].rules)
    assert hash(given.environment) == hash(env.environment)
    assert given.environment == env.environment
    with pytest.raises(ValueError, match=r"ruleset_id = 2: .* has 2, counted from 0"):
        rlx.envs.make(XLAND, benchmark=str(tmp_path / "rules"), ruleset_id=2)
    (tmp_path / "text").write_text("no rules")
    for name in ("nothing", "text"):
        with pytest.raises(ValueError, match=rf"benchmark = .*{name}: no file of rulesets can be read there"):
            rlx.envs.make(XLAND, benchmark=str(tmp_path / name))


@installed
def test_nothing_is_printed():
    program = f"""
import jax, rlx
for name, options in (("{EMPTY}", dict()), ("{XLAND}", dict(ruleset="craft"))):
    env = rlx.envs.make(name, **options)
    start = jax.eval_shape(env.reset, jax.random.key(0))
    jax.eval_shape(env.advance, jax.random.key(0), start, jax.numpy.int32(0))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@installed
def test_pictures_fit_and_show_where_the_agent_looks(empty):
    env_state = jax.jit(empty.reset)(jax.random.key(0))
    agent = env_state.state.agent
    turned = env_state.state.replace(agent=agent.replace(direction=(agent.direction + 1) % 4))
    states = [env_state, replace(env_state, state=turned)]
    images = empty.environment.frames(states, empty.params, 200, 120, None)
    assert [(image.shape, image.dtype) for image in images] == [((120, 200, 3), np.uint8)] * 2
    assert (images[0][:, :40] == 255).all()  # the world is square
    assert len(np.unique(images[0].reshape(-1, 3), axis=0)) > 5
    assert (images[0] != images[1]).any()


@installed
def test_ppo_with_a_memory_takes_a_few_updates(empty):
    config = ppo_recurrent.Config(
        total_steps=128, num_envs=4, num_steps=16, num_minibatches=2, num_epochs=1, hidden_sizes=(8,), memory_size=8,
        sequence_length=8,
    )  # fmt: skip
    _, metrics = rlx.train(ppo_recurrent, config, replace(empty, num_starts=4), jax.random.key(0))
    assert np.isfinite(metrics["policy_loss"]).all()
    assert len(metrics["policy_loss"]) == 2
