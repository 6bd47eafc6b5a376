"""The adapter for Craftax; most of it needs the package, `pip install 'rlx[craftax]'`."""

import subprocess
import sys
from dataclasses import replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

import rlx
from rlx.algos import ppo
from rlx.envs.suites import craftax_drawing, from_craftax

pytestmark = pytest.mark.more
installed = pytest.mark.skipif(find_spec("craftax") is None, reason="needs rlx[craftax]")
CLASSIC, FULL = "craftax/Craftax-Classic-Symbolic-v1", "craftax/Craftax-Symbolic-v1"
NUM_EPISODES, NUM_STEPS, LIMIT = 16, 160, 40


@pytest.fixture(scope="module")
def classic():
    return rlx.envs.make(CLASSIC)


@pytest.fixture(scope="module")
def play(classic):
    """Random episodes `[N, T]` of Classic with a time limit, and what the suite says of each of their steps."""
    game = classic.environment.game

    @jax.jit
    def program(limit):
        env = replace(classic, params=classic.params.replace(max_timesteps=limit))

        def episode(key):
            start_key, steps_key = jax.random.split(key)

            def step(env_state, key):
                action = jax.random.randint(key, (), 0, env.action_space.n)
                stepped, transition = env.advance(key, env_state, action)
                obs, _, reward, done, info = game.step_env(key, env_state.state, action, env.params)
                theirs = {"obs": obs, "reward": reward, "done": done, "info": info}
                alive = stepped.state.player_health > 0
                return stepped, (transition, theirs, alive, stepped.state.achievements)

            env_state = env.reset(start_key)
            return jax.lax.scan(step, env_state, jax.random.split(steps_key, NUM_STEPS))[1]

        return jax.vmap(episode)(jax.random.split(jax.random.key(0), NUM_EPISODES))

    return lambda limit: jax.tree.map(np.asarray, program(limit))


def until_end(done):
    """Which steps are up to and with the first end."""
    return np.cumsum(done, axis=1) - done == 0


def test_without_the_package_it_says_what_to_install(without):
    without("craftax")
    with pytest.raises(ValueError, match=rf"{FULL} needs another package: pip install 'rlx\[craftax\]'"):
        rlx.envs.make(FULL, num_levels=9)


@pytest.mark.parametrize("name", sorted(from_craftax.REFUSED))
def test_games_of_pixels_are_refused_with_the_reason(name):
    with pytest.raises(
        ValueError, match=rf"craftax/{name} is not offered: the suite prints.*: use Craftax-.*Symbolic-v1"
    ):
        rlx.envs.make(f"craftax/{name}")


@installed
def test_listed_names_are_those_of_the_installed_suite():
    from craftax.craftax_env import make_craftax_env_from_name

    for name in from_craftax.NAMES:
        theirs = make_craftax_env_from_name(name, auto_reset=False)
        assert type(theirs) is type(rlx.envs.make(f"craftax/{name}").environment.game)


@installed
def test_a_step_is_the_suites_own(play):
    transition, theirs, _, _ = play(10_000)
    np.testing.assert_array_equal(transition.next_obs, theirs["obs"])
    np.testing.assert_allclose(transition.reward, theirs["reward"], rtol=1e-6)
    np.testing.assert_array_equal(transition.terminated | transition.truncated, theirs["done"])


@installed
def test_death_terminates_and_the_time_limit_truncates(play):
    transition, _, alive, _ = play(10_000)
    assert transition.terminated.any(axis=1).sum() >= 4
    first = transition.terminated & until_end(transition.terminated)
    assert not transition.truncated.any()
    in_lava = first & alive
    assert (first & ~alive).sum() + in_lava.sum() == transition.terminated.any(axis=1).sum()

    transition, theirs, alive, _ = play(LIMIT)
    survived = ~transition.terminated[:, :LIMIT].any(axis=1)
    assert survived.sum() > NUM_EPISODES // 2
    assert transition.truncated[survived, LIMIT - 1].all()
    assert not transition.truncated[:, : LIMIT - 1].any()
    assert theirs["done"][survived, LIMIT - 1].all()
    assert alive[survived, LIMIT - 1].all()


@installed
@pytest.mark.parametrize("limit", [10_000, LIMIT])
def test_achievements_of_an_episode_sum_to_100_each_also_where_a_limit_cuts_it(play, limit, classic):
    transition, theirs, _, achieved = play(limit)
    ended = np.argwhere(transition.done & until_end(transition.done))
    assert len(ended) >= 4
    names = [f"Achievements/{name}" for name in classic.environment.achievements]
    assert sorted(names) == sorted(transition.reported)
    assert len(names) == 22
    for n, t in ended:
        ours = [transition.reported[name][n, t] for name in names]
        assert ours == [theirs["info"][name][n, t] for name in names] == (100.0 * achieved[n, t]).tolist()
    assert sum(transition.reported[name][n, t] for name in names for n, t in ended) > 0


def test_the_score_of_crafter_is_of_rates_over_episodes():
    reported = {"Achievements/a": [100.0, 0.0], "Achievements/b": np.array([0.0, 0.0]), "length": [5.0, 6.0]}
    np.testing.assert_allclose(from_craftax.crafter_score(reported), np.sqrt(51.0 * 1.0) - 1.0)
    np.testing.assert_allclose(from_craftax.crafter_score({"Achievements/a": 50.0}), 50.0)
    with pytest.raises(ValueError, match="no name begins with Achievements/"):
        from_craftax.crafter_score({"length": [5.0]})


@installed
def test_limits_are_parameters(classic):
    env = rlx.envs.make(CLASSIC, max_steps=7)
    assert (classic.horizon, env.horizon, env.params.max_timesteps) == (10_000, 7, 7)
    assert (classic.num_starts, classic.lazy_starts) == (16, True)


@installed
def test_sizes_are_options():
    env = rlx.envs.make(CLASSIC, map_size=[32, 32], max_zombies=1)
    start = jax.eval_shape(env.reset, jax.random.key(0))
    assert start.state.map.shape == (32, 32)
    assert start.state.zombies.mask.shape == (1,)
    with pytest.raises(ValueError, match=rf"{CLASSIC} has no option size: there are map_size, max_zombies, "):
        rlx.envs.make(CLASSIC, size=3)
    with pytest.raises(ValueError, match=rf"{CLASSIC} makes no world with map_size = 3: "):
        rlx.envs.make(CLASSIC, map_size=3)


@installed
def test_nothing_is_printed_or_written():
    program = f"""
import jax, rlx
for name in ("{CLASSIC}", "{FULL}"):
    env = rlx.envs.make(name)
    start = jax.eval_shape(lambda key: env.environment.reset(key, env.params)[1], jax.random.key(0))
    step = lambda key, state: env.environment.step(key, state, jax.numpy.int32(0), env.params)
    jax.eval_shape(step, jax.random.key(0), start)
import sys
assert "matplotlib.pyplot" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    folder = Path(find_spec("craftax").origin).parent
    assert not list(folder.rglob("texture_cache*"))


@cache
def nothing(name):
    """A state of zeros."""
    env = rlx.envs.make(name)
    shapes = jax.eval_shape(lambda key: env.environment.reset(key, env.params)[1], jax.random.key(0))
    return env, jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), replace(shapes, state_rng=None))


def drawn(name, changes=lambda state: state):
    """The picture of a made-up state in which every block is seen."""
    env, state = nothing(name)
    blocks = 17 if name == CLASSIC else 37
    size = state.map.shape
    state = replace(
        state,
        map=(np.arange(np.prod(size)) % blocks).reshape(size).astype(state.map.dtype),
        player_position=np.array([5, 8]),
        player_direction=np.int32(2),
        player_health=np.int32(6),
        light_level=np.float32(1),
    )
    images = env.environment.frames([SimpleNamespace(state=changes(state))], env.params, 200, 120, None)
    assert [(image.shape, image.dtype) for image in images] == [((120, 200, 3), np.uint8)]
    return images[0]


@installed
@pytest.mark.parametrize("name", [CLASSIC, FULL])
def test_pictures_show_the_map_and_the_player(name):
    lit = lambda state: replace(state, light_map=np.ones_like(state.light_map)) if name == FULL else state
    image = drawn(name, lit)
    assert len(np.unique(image.reshape(-1, 3), axis=0)) > 50
    turned = drawn(name, lambda state: replace(lit(state), player_direction=np.int32(4)))
    assert (image != turned).any()
    hurt = drawn(name, lambda state: replace(lit(state), player_health=np.int32(1)))
    assert (image != hurt).any(axis=(0, 2)).argmax() > 110  # in the panel on the right
    night = drawn(name, lambda state: replace(lit(state), light_level=np.float32(0)))
    assert night[:, :100].mean() < image[:, :100].mean()


@installed
def test_every_block_has_a_colour():
    from craftax.craftax.constants import BlockType
    from craftax.craftax_classic.constants import BlockType as Classic

    assert len(craftax_drawing.BLOCKS) == len(BlockType)
    assert [block.name for block in Classic] == [block.name for block in BlockType][: len(Classic)]


@installed
def test_ppo_takes_a_few_updates(classic):
    config = ppo.Config(total_steps=64, num_envs=4, num_steps=8, num_minibatches=2, num_epochs=1, hidden_sizes=(8,))
    _, metrics = rlx.train(ppo, config, replace(classic, num_starts=2), jax.random.key(0))
    assert np.isfinite(metrics["policy_loss"]).all()
    assert len(metrics["policy_loss"]) == 2
