"""The adapter for JaxMARL; most of it needs the package, `pip install 'rlx[jaxmarl]'`."""

import subprocess
import sys
from importlib.util import find_spec

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rlx
from rlx.algos import mappo, ppo
from rlx.envs.contract.clauses import CLAUSES
from rlx.envs.suites import from_jaxmarl
from rlx.run.render import record

pytestmark = pytest.mark.more
installed = pytest.mark.skipif(find_spec("jaxmarl") is None, reason="needs rlx[jaxmarl]")
SMALL = {"num_envs": 2, "num_steps": 8, "total_steps": 32, "num_minibatches": 1, "num_epochs": 1, "hidden_sizes": (8,)}


def test_without_the_package_it_says_what_to_install(without):
    without("jaxmarl")
    with pytest.raises(ValueError, match=r"jaxmarl/hanabi needs another package: pip install 'rlx\[jaxmarl\]'"):
        rlx.envs.make("jaxmarl/hanabi")


@pytest.fixture(scope="module")
def spread():
    return rlx.envs.make("jaxmarl/MPE_simple_spread_v3", world=True)


@pytest.fixture(scope="module")
def smax():
    return rlx.envs.make("jaxmarl/HeuristicEnemySMAX", scenario="3m", world=True)


@installed
def test_every_environment_of_the_suite_is_offered_or_refused_with_a_reason():
    known = from_jaxmarl.imported().registered_envs
    assert sorted(known) == sorted((*from_jaxmarl.NAMES, *from_jaxmarl.REFUSED))
    with pytest.raises(ValueError, match="jaxmarl/coin_game is not offered: its episodes are games within a game"):
        rlx.envs.make("jaxmarl/coin_game")


@installed
def test_nothing_is_printed_and_streams_stay_what_they_were():
    program = (
        "import sys, rlx; out = sys.stdout = open(sys.argv[1], 'w'); "
        "rlx.envs.make('jaxmarl/MPE_simple_spread_v3'); assert sys.stdout is out; out.close(); sys.stdout = None"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "/dev/null"], capture_output=True, text=True, check=True, timeout=200
    )
    assert (done.stdout, done.stderr) == ("", "")


@installed
def test_a_step_is_the_suites_own(spread):
    inner, key = spread.environment.inner, jax.random.key(3)
    start = spread.reset(key)
    obs, state = inner.reset(key)
    action = jnp.array([1, 4, 2])
    stepped, transition = jax.jit(spread.advance)(key, start, action)
    theirs = inner.step_env(key, state, {agent: action[i] for i, agent in enumerate(inner.agents)})
    for i, agent in enumerate(inner.agents):
        np.testing.assert_allclose(start.obs["obs"][i], obs[agent], rtol=1e-6)
        np.testing.assert_allclose(transition.next_obs["obs"][i], theirs[0][agent], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(transition.reward[i], theirs[2][agent], rtol=1e-5)
        np.testing.assert_allclose(transition.reported[f"return.{agent}"], theirs[2][agent], rtol=1e-5)
    whole = np.concatenate([theirs[0][agent] for agent in inner.agents])
    np.testing.assert_allclose(stepped.obs["world"], np.tile(whole, (3, 1)), rtol=1e-5, atol=1e-6)


@installed
def test_every_end_of_mpe_is_the_time_limit_and_comes_when_it_says(spread):
    assert spread.horizon == 25
    found = rlx.evaluate(ppo, ppo.Config(**SMALL), spread, init_of(ppo, spread), jax.random.key(0), num_episodes=2)
    np.testing.assert_array_equal(found.lengths, 25)


def init_of(algorithm, env):
    return jax.jit(algorithm.init)(algorithm.Config(**SMALL), env, jax.random.key(0))


@installed
def test_units_that_fell_are_out_of_the_game_and_the_last_one_ends_it(smax):
    from rlx.masks import sample

    def act(obs, key):
        return jax.vmap(lambda obs, key: sample(smax.action_space, obs, key))(obs, jax.random.split(key, 3))

    @jax.jit
    def play(key):
        def step(env_state, key):
            act_key, step_key = jax.random.split(key)
            env_state, transition = smax.advance(step_key, env_state, act(env_state.obs, act_key))
            return env_state, (transition, env_state.state.state.unit_alive)

        return jax.lax.scan(step, smax.reset(key), jax.random.split(key, 100))[1]

    traj, standing = jax.device_get(play(jax.random.key(1)))
    end = int(np.argmax(traj.terminated | traj.truncated))
    assert traj.terminated[end]
    assert not standing[end, :3].any() or not standing[end, 3:].any()
    alive = traj.info["alive"]
    np.testing.assert_array_equal(alive[1 : end + 1], standing[:end, :3])
    assert alive[0].all()
    # Whom the game is over for may only stop.
    legal = traj.obs["action_mask"]
    np.testing.assert_array_equal(legal[: end + 1].sum(-1)[~alive[: end + 1]], 1)
    assert traj.reported["win"][end] == (not standing[end, 3:].any())
    assert traj.obs["world"].shape[1:] == (3, smax.environment.world_size)


@installed
def test_agents_of_different_kinds_are_filled_up_to_the_widest():
    env = rlx.envs.make("jaxmarl/MPE_simple_speaker_listener_v4", separate="role")
    obs = env.reset(jax.random.key(0)).obs
    assert obs["obs"].shape == (2, 11)
    np.testing.assert_array_equal(obs["obs"][0, 3:], 0.0)
    np.testing.assert_array_equal(obs["action_mask"], [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    np.testing.assert_array_equal(obs["role"], [1, 0])
    assert env.observation_space.separate == ("role", 2)


@installed
def test_overcooked_pays_for_steps_on_the_way_as_its_parameter_says():
    env = rlx.envs.make("jaxmarl/overcooked", layout="cramped_room")
    assert env.horizon == 400
    assert env.params == {"shaped_coef": 0.0}
    half = rlx.env.with_params(env, {"shaped_coef": 0.5})
    keys = jax.random.split(jax.random.key(0), 64)

    def rewards(env):
        def step(env_state, key):
            env_state, transition = env.advance(key, env_state, env.sample_action(key))
            return env_state, (transition.reward, transition.reported["shaped_reward"])

        return jax.lax.scan(step, env.reset(jax.random.key(1)), jnp.tile(keys, 6))[1]

    (plain, _), (shaped, total) = (jax.jit(rewards)(e) for e in (env, half))
    assert total[-1] > 0
    np.testing.assert_allclose((shaped - plain).mean(1).sum(), 0.5 * total[-1], rtol=1e-5)


@installed
@pytest.mark.parametrize("name", ["MPE_simple_spread_v3", "switch_riddle"])
def test_they_keep_the_contract(name):
    assert len(rlx.envs.check(rlx.envs.make(f"jaxmarl/{name}"), num_steps=32)) == len(CLAUSES)


@installed
def test_mappo_and_ippo_train_and_the_game_is_drawn(spread):
    state, metrics = rlx.train(mappo, mappo.Config(**SMALL), spread, jax.random.key(0))
    assert np.isfinite(metrics["policy_loss"]).all()
    states, _ = record(mappo, mappo.Config(**SMALL), spread, state, jax.random.key(0), 5)
    (image,) = spread.environment.frames(states[:1], None, 160, 120, None)
    assert image.shape == (120, 160, 3)
    assert len(np.unique(image.reshape(-1, 3), axis=0)) > 10


@installed
@pytest.mark.parametrize("name", ["HeuristicEnemySMAX", "overcooked"])
def test_other_games_are_drawn_too(name):
    env = rlx.envs.make(f"jaxmarl/{name}")
    (image,) = env.environment.frames([jax.device_get(env.reset(jax.random.key(0)))], env.params, 160, 120, None)
    assert len(np.unique(image.reshape(-1, 3), axis=0)) > 10


@installed
def test_options_are_checked():
    with pytest.raises(ValueError, match="separate = 'yes': give 'agent' or 'role'"):
        rlx.envs.make("jaxmarl/hanabi", separate="yes")
    with pytest.raises(ValueError, match="'attic': choose among "):
        rlx.envs.make("jaxmarl/overcooked", layout="attic")
    with pytest.raises(ValueError, match=r"does not take \{'wind': 3\}"):
        rlx.envs.make("jaxmarl/switch_riddle", wind=3)
