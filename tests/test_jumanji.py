"""The adapter for Jumanji; most of it needs the package, `pip install 'rlx[jumanji]'`."""

import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import Bounds, LinearConstraint, milp

import rlx
from rlx.algos import ppo
from rlx.envs.contract.clauses import CLAUSES
from rlx.envs.suites import from_jumanji
from rlx.envs.suites.jumanji_drawings import JUMANJI
from rlx.masks import sample
from rlx.presets import preset
from rlx.spaces import Discrete

pytestmark = pytest.mark.more
installed = pytest.mark.skipif(find_spec("jumanji") is None, reason="needs rlx[jumanji]")
QUICK = ("Knapsack-v1", "Tetris-v0")
FIXED_STARTS = {"PacMan-v1"}  # of Jumanji's own


def named(name, **options):
    return rlx.envs.make(f"jumanji/{name}", **options)


@jax.jit  # compiled once for an environment, which is a part of the structure of `env`
def advanced(env, key, env_state, action):
    return env.advance(key, env_state, action)


def stepped(env, env_state, action, key=1):
    return advanced(env, jax.random.key(key), env_state, jnp.asarray(action))


def episodes(env, num, num_steps, choose=None, seed=0):
    """Whole episodes of random legal actions, or of those that `choose(env_state)` gives: states `[N, T]` and steps."""

    def play(key):
        start_key, key = jax.random.split(key)

        def step(env_state, key):
            action_key, step_key = jax.random.split(key)
            action = choose(env_state) if choose else sample(env.action_space, env_state.obs, action_key)
            new, transition = env.advance(step_key, env_state, action)
            return new, (new, transition)

        return jax.lax.scan(step, env.reset(start_key), jax.random.split(key, num_steps))[1]

    return jax.jit(jax.vmap(play))(jax.random.split(jax.random.key(seed), num))


def first_ends(transitions):
    """The step, counted from 0, with which each episode `[N, T]` ends; all of them have to."""
    done = np.asarray(transitions.done)
    assert done.any(axis=1).all()
    return done.argmax(axis=1)


def test_without_the_package_it_says_what_to_install(without):
    without("jumanji")
    with pytest.raises(ValueError, match=r"jumanji/Snake-v1 needs another package: pip install 'rlx\[jumanji\]'"):
        named("Snake-v1", time_limit=3)


def test_what_downloads_is_refused_with_the_reason():
    with pytest.raises(ValueError, match=r"jumanji/Sokoban-v0 is not offered: it downloads its levels .* use jumanji/"):
        named("Sokoban-v0")


@installed
def test_listed_and_refused_names_are_those_of_the_installed_suite():
    import jumanji

    assert {*from_jumanji.NAMES, *from_jumanji.REFUSED} == set(jumanji.registered_environments())


@installed
def test_options_that_the_constructor_does_not_have_are_refused():
    with pytest.raises(ValueError, match=r"jumanji/Knapsack-v1: .*'speed'.*; options are those of its constructor"):
        named("Knapsack-v1", speed=3)


@installed
def test_nothing_is_printed():
    code = (
        "import jax, rlx\n"
        "for name in ('BinPack-v2', 'Snake-v1', 'PacMan-v1', 'Sudoku-very-easy-v0'):\n"
        "    env = rlx.envs.make('jumanji/' + name)\n"
        "    state = jax.eval_shape(env.reset, jax.random.key(0))\n"
        "    action = env.action_space.sample(jax.random.key(0))\n"
        "    jax.eval_shape(env.advance, jax.random.key(0), state, action)\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (ran.stdout, ran.stderr) == ("", "")


@installed
@pytest.mark.parametrize("name", QUICK)
def test_quick_ones_keep_the_contract(name):
    assert len(rlx.envs.check(named(name), num_steps=32)) == len(CLAUSES)


@installed
@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(from_jumanji.NAMES) - set(QUICK)))
def test_all_keep_the_contract(name):
    random_starts = name not in FIXED_STARTS
    assert len(rlx.envs.check(named(name), num_steps=64, random_starts=random_starts)) == len(CLAUSES)


@installed
def test_a_step_is_jumanjis_own():
    env = named("Snake-v1")
    game = env.environment.environment
    own_step = jax.jit(game.step)
    env_state = env.reset(jax.random.key(0))
    state, timestep = game.reset(jax.random.key(0))
    np.testing.assert_array_equal(env_state.obs["grid"], timestep.observation.grid)
    for i in range(12):
        action = jnp.argmax(timestep.observation.action_mask)
        state, timestep = own_step(state.replace(key=jax.random.key(i)), action)
        env_state, transition = stepped(env, env_state, action, key=i)
        np.testing.assert_array_equal(transition.next_obs["grid"], timestep.observation.grid)
        np.testing.assert_array_equal(transition.reward, timestep.reward)
        assert transition.terminated == timestep.last()
        if transition.done:
            break


@installed
def test_observations_are_categories_from_0_on_quantities_up_to_1_and_grids_with_channels():
    env = named("Maze-v0")
    space = env.observation_space.spaces
    assert space["agent_position"].spaces == {"row": Discrete(10), "col": Discrete(10)}
    assert (space["walls"].shape, space["walls"].dtype) == ((10, 10, 1), jnp.bool_)
    assert "step_count" not in space
    mines = named("Minesweeper-v0")
    assert mines.observation_space.spaces["board"] == Discrete(10, shape=(10, 10, 1))  # -1 to 8 in Jumanji
    assert (mines.reset(jax.random.key(0)).obs["board"] == 0).all()
    route = named("CVRP-v1").observation_space.spaces
    assert route["trajectory"] == Discrete(22, shape=(40,))
    loads = named("MultiCVRP-v0").observation_space.spaces["vehicles"].spaces["capacities"]
    assert (loads.low, loads.high, loads.dtype) == (0.0, 1.0, jnp.float32)


@pytest.fixture(scope="module")
def cube():
    """A cube that one turn solves, in one step."""
    pytest.importorskip("jumanji")
    from jumanji.environments.logic.rubiks_cube.generator import ScramblingGenerator

    generator = ScramblingGenerator(cube_size=3, num_scrambles_on_reset=1)
    return named("RubiksCube-v0", generator=generator, max_steps=1)


@installed
def test_a_limit_is_a_truncation_and_a_success_a_termination(cube):
    start = cube.reset(jax.random.key(0))
    advance = jax.jit(jax.vmap(cube.advance, in_axes=(None, None, 0)))
    _, transition = advance(jax.random.key(1), start, jnp.arange(18))
    assert cube.action_space == Discrete(18)
    assert transition.terminated.sum() == transition.reward.sum() == 1
    np.testing.assert_array_equal(transition.truncated, ~transition.terminated)
    np.testing.assert_array_equal(transition.info["success"], transition.terminated)


@installed
def test_limits_are_moved_beyond_those_of_the_suite():
    env = named("RubiksCube-partly-scrambled-v0")
    assert env.max_steps == env.horizon == 20
    assert named("Snake-v1", time_limit=30).max_steps == 30
    longer = named("RubiksCube-partly-scrambled-v0", max_steps=25)
    ends = first_ends(episodes(longer, 4, 25, choose=lambda env_state: jnp.int32(0))[1])
    np.testing.assert_array_equal(ends, 24)


@installed
def test_a_limit_that_rewards_depend_on_stays_and_truncates():
    env = named("SearchAndRescue-v0", time_limit=2, max_steps=50)
    env_state = env.reset(jax.random.key(0))
    advance = jax.jit(env.advance)
    for over in (False, True):
        env_state, transition = advance(jax.random.key(1), env_state, jnp.zeros(4))
        assert (bool(transition.truncated), bool(transition.terminated)) == (over, False)
    np.testing.assert_allclose(env_state.obs["step"], 1.0)


@installed
def test_an_action_of_parts_is_unravelled_in_jumanjis_order():
    env = named("Tetris-v0")
    game = env.environment.environment
    assert env.action_space == Discrete(40)
    env_state = env.reset(jax.random.key(0))
    state, timestep = game.reset(jax.random.key(0))
    mask = np.asarray(timestep.observation.action_mask)
    np.testing.assert_array_equal(env_state.obs["action_mask"], mask.reshape(-1))
    rotation, column = np.argwhere(mask)[-1]
    state, timestep = game.step(state.replace(key=jax.random.key(1)), jnp.array([rotation, column]))
    _, transition = stepped(env, env_state, 10 * rotation + column)
    np.testing.assert_array_equal(transition.next_obs["grid"][..., 0], timestep.observation.grid)
    np.testing.assert_array_equal(transition.next_obs["tetromino"], timestep.observation.tetromino)


@installed
def test_policies_take_legal_actions_alone():
    env = named("Tetris-v0")
    state = ppo.init(config := ppo.Config(num_envs=2, num_steps=4, num_minibatches=1), env, jax.random.key(0))
    obs = jax.tree.map(lambda x: jnp.broadcast_to(x, (512, *x.shape)), env.reset(jax.random.key(3)).obs)
    action, _ = jax.jit(lambda obs, key: ppo.act(config, env, state, obs, key))(obs, jax.random.key(1))
    legal = np.asarray(obs["action_mask"][0])
    assert not legal.all()
    assert legal[np.unique(action)].all()
    assert set(np.unique(action)) == set(np.flatnonzero(legal))  # 512 draws of at most 40


@installed
def test_teams_have_a_mask_for_each_agent_and_their_rewards_are_added_up():
    env = named("Connector-v3")
    game = env.environment.environment
    assert env.action_space == Discrete(5, shape=(10,))
    env_state = env.reset(jax.random.key(0))
    state, timestep = game.reset(jax.random.key(0))
    np.testing.assert_array_equal(env_state.obs["action_mask"], timestep.observation.action_mask)
    action = jnp.argmax(timestep.observation.action_mask[:, ::-1], axis=1)
    state, timestep = game.step(state.replace(key=jax.random.key(1)), 4 - action)
    _, transition = stepped(env, env_state, 4 - action)
    assert timestep.reward.shape == (10,)
    np.testing.assert_allclose(transition.reward, timestep.reward.sum(), rtol=1e-6)
    np.testing.assert_array_equal(transition.next_obs["grid"][..., 0], timestep.observation.grid)


@installed
def test_where_nothing_is_legal_everything_is():
    from jumanji.environments.packing.knapsack.generator import RandomGenerator

    env = named("Knapsack-v1", generator=RandomGenerator(num_items=3, total_budget=10.0))
    assert env.horizon == 3
    env_state = env.reset(jax.random.key(0))
    for item in range(3):
        env_state, transition = stepped(env, env_state, item)
    assert transition.terminated
    assert env_state.obs["packed_items"].all()
    assert env_state.obs["action_mask"].all()


@installed
def test_metrics_are_reported_by_their_last_value_and_a_copy_of_a_state_goes_another_way_with_another_key():
    env = named("Game2048-v1", board_size=2)
    states, transitions = episodes(env, 4, 60)
    for i, end in enumerate(first_ends(transitions)):
        board = np.asarray(states.state.state.board)[i, end]
        assert transitions.reported["highest_tile"][i, end] == 2.0 ** board.max()
    assert not any(jnp.issubdtype(x.dtype, jax.dtypes.prng_key) for x in jax.tree.leaves(states))
    env_state = named("Game2048-v1").reset(jax.random.key(0))
    action = jnp.argmax(env_state.obs["action_mask"])
    boards = [stepped(named("Game2048-v1"), env_state, action, key)[1].next_obs["board"] for key in range(8)]
    assert any((boards[0] != board).any() for board in boards)


@installed
@pytest.mark.parametrize("name", ["Snake-v1", "Tetris-v0", "Game2048-v1", "Knapsack-v1"])
def test_pictures_show_the_state(name):
    env = named(name)
    states = [env.reset(jax.random.key(0)), env.reset(jax.random.key(5))]
    frames = env.environment.frames(states, None, 120, 90, None)
    assert [frame.shape for frame in frames] == [(90, 120, 3)] * 2
    assert (frames[0] != frames[1]).any()


@installed
@pytest.mark.slow
@pytest.mark.parametrize("name", from_jumanji.NAMES)
def test_all_but_boxes_in_space_can_be_drawn(name):
    env = named(name)
    if env.environment.kind not in JUMANJI:
        assert name == "BinPack-v2"
        assert not hasattr(env.environment, "frames")
        return
    states, transitions = episodes(env, 1, 20)
    kept = range(first_ends(transitions)[0] if transitions.done.any() else 20)
    states = [jax.tree.map(lambda x, i=i: x[0, i], states) for i in kept]
    frames = env.environment.frames(states[::5], None, 120, 120, None)
    assert all(np.unique(frame.reshape(-1, 3), axis=0).shape[0] > 3 for frame in frames)


def optimum(weights, values, budget):
    """The greatest value that a knapsack of this budget holds."""
    packing = LinearConstraint(weights[None], ub=budget)
    found = milp(-values, constraints=packing, integrality=np.ones_like(values), bounds=Bounds(0, 1))
    return -found.fun


def greedy(env_state):
    """The legal item of the greatest value for its weight."""
    obs = env_state.obs
    worth = obs["values"] / jnp.maximum(obs["weights"], 1e-6)
    return jnp.argmax(jnp.where(obs["action_mask"], worth, -1.0))


def knapsack_returns(choose=None, num=32):
    """Returns of a rule in episodes of Knapsack, and the greatest possible ones."""
    env = named("Knapsack-v1")
    states, transitions = episodes(env, num, 50, choose)
    ends = first_ends(transitions)
    game = jax.tree.map(lambda x: np.asarray(x)[:, 0], states.state.state)
    best = [optimum(w.astype(float), v.astype(float), 12.5) for w, v in zip(game.weights, game.values, strict=True)]
    return np.asarray(transitions.episode_return)[np.arange(num), ends], np.asarray(best)


@installed
def test_a_knapsack_packed_by_a_greedy_rule_is_between_random_and_the_optimum():
    packed, best = knapsack_returns(greedy)
    random, _ = knapsack_returns()
    assert (packed <= best + 1e-4).all()
    assert packed.mean() > 0.98 * best.mean()
    assert random.mean() < 0.75 * best.mean()


@installed
def test_ppo_learns_from_observations_with_masks():
    env = named("Knapsack-v1")
    config = replace(
        preset(ppo, "jumanji/Knapsack-v1"), total_steps=3 * 8 * 16, num_envs=8, num_steps=16, num_minibatches=2,
        num_epochs=1, hidden_sizes=(16,),
    )  # fmt: skip
    _, metrics = rlx.train(ppo, config, env, jax.random.key(0))
    assert metrics["entropy"].shape == (3,)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(metrics))
    assert metrics["num_unmasked"].sum() == 0
