"""The adapter for pgx, for one player; most of it needs the package, `pip install 'rlx[pgx]'`."""

import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rlx
from rlx.algos import ppo
from rlx.envs.contract.clauses import CLAUSES
from rlx.envs.suites import from_pgx
from rlx.masks import sample
from rlx.presets import preset
from rlx.spaces import Discrete

pytestmark = pytest.mark.more
installed = pytest.mark.skipif(find_spec("pgx") is None, reason="needs rlx[pgx]")
FIXED_STARTS = {"minatar-asterix", "minatar-seaquest", "minatar-space_invaders"}  # of pgx's own


@pytest.fixture(scope="module")
def board():
    return rlx.envs.make("pgx/2048")


@pytest.fixture(scope="module")
def advance(board):
    return jax.jit(board.advance)


def test_without_the_package_it_says_what_to_install(without):
    without("pgx")
    with pytest.raises(ValueError, match=r"pgx/2048 needs another package: pip install 'rlx\[pgx\]'"):
        from_pgx.make("2048")


@pytest.mark.parametrize("name", from_pgx.REFUSED)
def test_what_is_not_offered_has_a_reason(name):
    with pytest.raises(ValueError, match=f"pgx/{name} is not offered: it "):
        rlx.envs.make(f"pgx/{name}")


@installed
def test_listed_names_are_those_of_the_installed_suite_that_one_player_plays():
    import pgx

    known = {*pgx.available_envs(), "bridge_bidding"}
    assert {*from_pgx.NAMES, *from_pgx.REFUSED} <= known
    alone = {name for name in known if name == "2048" or name.startswith("minatar-")}
    assert alone <= set(from_pgx.NAMES)


@installed
def test_nothing_is_printed():
    code = "import jax, rlx; rlx.envs.make('pgx/2048').reset(jax.random.key(0)); rlx.envs.make('pgx/minatar-seaquest')"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (ran.stdout, ran.stderr) == ("", "")


@installed
@pytest.mark.parametrize("name", ["2048", "minatar-breakout"])
def test_quick_ones_keep_the_contract(name):
    assert len(rlx.envs.check(rlx.envs.make(f"pgx/{name}"), num_steps=32)) == len(CLAUSES)


@installed
@pytest.mark.slow
@pytest.mark.parametrize("name", from_pgx.ALONE[3:] + from_pgx.ALONE[1:2])
def test_all_keep_the_contract(name):
    random_starts = name not in FIXED_STARTS
    env = rlx.envs.make(f"pgx/{name}")
    assert len(rlx.envs.check(env, num_steps=64, random_starts=random_starts)) == len(CLAUSES)


@installed
def test_a_step_is_pgxs_own(board, advance):
    game = board.environment.environment
    env_state, state = board.reset(jax.random.key(0)), game.init(jax.random.key(0))
    own_step, total = jax.jit(game.step), 0.0
    for i in range(8):
        action = jnp.argmax(state.legal_action_mask)
        state = own_step(state, action, jax.random.key(i))
        env_state, transition = advance(jax.random.key(i), env_state, action)
        np.testing.assert_array_equal(transition.next_obs["obs"], state.observation)
        np.testing.assert_array_equal(transition.next_obs["action_mask"], state.legal_action_mask)
        assert (transition.reward, transition.terminated) == (state.rewards[0], state.terminated)
        total += float(state.rewards[0])
    assert total > 0
    assert env_state.episode_return == total
    assert env_state.reported["highest_tile"] == 2.0 ** state._board.max()


@installed
def test_an_illegal_action_ends_the_game_and_legal_ones_are_drawn(board, advance):
    starts = jax.vmap(board.reset)(jax.random.split(jax.random.key(1), 16))
    chosen = int(jnp.argmin(starts.obs["action_mask"].sum(axis=1)))
    env_state = jax.tree.map(lambda x: x[chosen], starts)
    legal = np.asarray(env_state.obs["action_mask"])
    assert not legal.all()
    drawn = jax.vmap(lambda key: sample(board.action_space, env_state.obs, key))(
        jax.random.split(jax.random.key(2), 64)
    )
    assert legal[np.asarray(drawn)].all()
    _, transition = advance(jax.random.key(0), env_state, jnp.argmin(env_state.obs["action_mask"]))
    assert (transition.reward, transition.terminated) == (-1.0, True)


@installed
def test_the_clock_of_freeway_is_a_time_limit():
    env = rlx.envs.make("pgx/minatar-freeway")
    assert env.horizon == 2501
    env_state = env.reset(jax.random.key(0))
    late = replace(env_state, state=env_state.state.replace(_terminate_timer=jnp.int32(1)))
    advance = jax.jit(env.advance)
    for over in (False, True):
        late, transition = advance(jax.random.key(0), late, jnp.int32(0))
        assert (transition.truncated, transition.terminated) == (over, False)


@installed
def test_options_are_those_of_the_game():
    env = rlx.envs.make("pgx/minatar-breakout", sticky_action_prob=0.0, use_minimal_action_set=False)
    assert env.action_space == Discrete(6)
    with pytest.raises(ValueError, match=r"pgx/2048: .*'speed'.*; options are those of its constructor in pgx"):
        rlx.envs.make("pgx/2048", speed=2)


@installed
def test_pictures_show_the_state(board):
    for env in (board, rlx.envs.make("pgx/minatar-breakout")):
        step = jax.jit(env.advance)
        states = [env.reset(jax.random.key(0))]
        for _ in range(2):  # the ball of Breakout starts behind a brick
            states.append(step(jax.random.key(1), states[-1], jnp.argmax(states[-1].obs["action_mask"]))[0])
        frames = env.environment.frames(states, None, 120, 90, None)
        assert [frame.shape for frame in frames] == [(90, 120, 3)] * 3
        assert (frames[0] != frames[2]).any()


@installed
def test_ppo_learns_from_observations_with_masks(board):
    config = replace(
        preset(ppo, "pgx/2048"), total_steps=3 * 8 * 16, num_envs=8, num_steps=16, num_minibatches=2, num_epochs=1,
        hidden_sizes=(16,),
    )  # fmt: skip
    _, metrics = rlx.train(ppo, config, board, jax.random.key(0))
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(metrics))
    assert metrics["num_unmasked"].sum() == 0
