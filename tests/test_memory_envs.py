"""Tasks for memory: their equations by plain loops, what policies with and without memory get, what is hidden."""

import subprocess
import sys
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rlx
import rlx.envs
from rlx.algos import ppo
from rlx.env import with_params
from rlx.envs.tasks import memory, own
from rlx.rollout import rollout

NUM = 4


def random_play(env, num_steps):
    sample = lambda obs, key: (jax.vmap(env.action_space.sample)(jax.random.split(key, NUM)), None)
    start = jax.vmap(env.reset)(jax.random.split(jax.random.key(0), NUM))
    return jax.tree.map(np.asarray, rollout(env, sample, start, jax.random.key(1), num_steps)[1])


def best(env, policy, num_steps, key=0):
    """Returns `[N]` of one episode of 64, where `policy(env_state)` may look at the state: what a memory would tell."""

    def episode(key):
        def step(env_state, _):
            env_state, transition = env.advance(key, env_state, policy(env_state))
            return env_state, (transition.episode_return, transition.done)

        return jax.lax.scan(step, env.reset(key), None, num_steps)[1]

    returns, done = jax.vmap(episode)(jax.random.split(jax.random.key(key), 64))
    ends = np.argmax(done, axis=1)
    assert done.any(axis=1).all()
    return np.take_along_axis(np.asarray(returns), ends[:, None], axis=1)[:, 0], ends + 1


@pytest.mark.more
@pytest.mark.parametrize("name", ["Recall-8", "TMaze-10"])
def test_all_clauses_but_those_that_do_not_apply_are_judged(name):
    env = rlx.envs.make(f"rlx/{name}")
    env = env if env.max_steps else replace(env, max_steps=20)
    assert not [line for line in rlx.envs.check(env, num_steps=128) if line.startswith("not judged")]


@pytest.mark.parametrize("delay", [0, 1, 3])
@pytest.mark.parametrize("continuous", [False, True])
def test_recall_shows_a_cue_and_asks_for_it_after_the_delay(delay, continuous):
    env = rlx.envs.make("rlx/Recall-8", delay=delay, continuous=continuous)
    traj = random_play(env, 20)
    assert {*traj.obs[0, :, 0]} | {*traj.next_obs[..., 0].ravel()} <= {-1, 0, 1}
    time, cue = np.zeros(NUM, int), traj.obs[0, :, 0]
    for t in range(20):
        cue = np.where(time == 0, traj.obs[t, :, 0], cue)
        assert (np.abs(cue) == 1).all()
        np.testing.assert_array_equal(traj.obs[t, :, 0], np.where(time == 0, cue, 0))
        np.testing.assert_array_equal(traj.obs[t, :, 1], time == delay)
        answer = traj.action[t, :, 0] if continuous else 2 * traj.action[t] - 1
        np.testing.assert_allclose(traj.reward[t], np.where(time == delay, cue * answer, 0), rtol=1e-6)
        np.testing.assert_array_equal(traj.terminated[t], time == delay)
        np.testing.assert_array_equal(traj.next_obs[t], np.stack([0 * cue, time + 1 >= delay], axis=-1))
        time = np.where(time == delay, 0, time + 1)
    assert not traj.truncated.any()
    assert env.horizon == delay + 1


def test_recall_pays_1_with_memory_and_0_without():
    env = rlx.envs.make("rlx/Recall-8")
    known = lambda env_state: (env_state.state.cue > 0).astype(jnp.int32)
    returns, lengths = best(env, known, 9)
    np.testing.assert_array_equal(returns, 1)
    np.testing.assert_array_equal(lengths, 9)
    # Whatever is answered without the cue, one of the two cues pays what the other one costs.
    cue = jax.vmap(env.reset)(jax.random.split(jax.random.key(0), 64)).obs[:, 0]
    for answer in (0, 1):
        returns, _ = best(env, lambda env_state, answer=answer: jnp.int32(answer), 9)
        np.testing.assert_array_equal(returns, cue * (2 * answer - 1))
    assert {*np.asarray(cue)} == {-1, 1}


def test_both_cues_and_both_signals_are_equally_probable():
    keys = jax.random.split(jax.random.key(0), 4096)
    recall, maze = (jax.vmap(rlx.envs.make(f"rlx/{name}").reset)(keys) for name in ("Recall-8", "TMaze-10"))
    np.testing.assert_allclose(recall.obs[:, 0].mean(), 0, atol=4 / 64)  # four standard errors
    np.testing.assert_allclose(maze.state.north.mean(), 0.5, atol=2 / 64)


def test_the_delay_is_traced_and_of_params():
    env = rlx.envs.make("rlx/Recall-128")
    assert env.horizon == 129
    assert with_params(env, {"delay": 5}).horizon == 6

    def asked(delay):
        moved = replace(env, params=replace(env.params, delay=delay))
        step = lambda s, _: (moved.advance(jax.random.key(0), s, jnp.int32(0))[0], s.obs[1])
        return jax.lax.scan(step, moved.reset(jax.random.key(0)), None, 6)[1]

    np.testing.assert_array_equal(jax.vmap(asked)(jnp.array([2, 4])), [[0, 0, 1, 1, 1, 1], [0, 0, 0, 0, 1, 1]])


def test_the_maze_is_a_corridor_with_a_junction():
    """By a plain walk through it; a short one, so that random steps come to its end."""
    length = 2
    env = rlx.envs.make("rlx/TMaze-10", length=length, max_steps=6)
    traj = random_play(env, 80)

    def seen(place, north):
        if place == 0:
            return [0, 1, 1] if north else [1, 1, 0]
        return [1, 0, 1] if place < length else [0, 1, 0]

    turns = {True: 0, False: 0}
    for n in range(NUM):
        place = time = 0
        for t in range(80):
            if time == 0:
                north = traj.obs[t, n, 2] == 1
            action = traj.action[t, n]
            np.testing.assert_array_equal(traj.obs[t, n], seen(place, north))
            time += 1
            if place == length and action in (0, 2):
                found = (action == 0) == north
                turns[bool(found)] += 1
                np.testing.assert_allclose(traj.reward[t, n], 4 if found else -0.1)
                assert traj.terminated[t, n]
                np.testing.assert_array_equal(traj.next_obs[t, n], 0)
                place = time = 0
                continue
            there = min(max(place + {1: 1, 3: -1}.get(action, 0), 0), length)
            np.testing.assert_allclose(traj.reward[t, n], -0.1 if there == place else 0)
            np.testing.assert_array_equal(traj.next_obs[t, n], seen(there, north))
            assert not traj.terminated[t, n]
            assert traj.truncated[t, n] == (time == 6)
            place, time = (0, 0) if time == 6 else (there, time)
    assert min(turns.values()) > 0


def test_the_maze_pays_4_with_memory_and_half_of_both_turns_without():
    env = rlx.envs.make("rlx/TMaze-10")
    assert env.horizon == 100
    at_junction = lambda env_state: env_state.state.place >= 10
    known = lambda s: jnp.where(at_junction(s), jnp.where(s.state.north, 0, 2), 1)
    returns, lengths = best(env, known, 11)
    np.testing.assert_allclose(returns, 4)
    np.testing.assert_array_equal(lengths, 11)
    north = np.asarray(jax.vmap(env.reset)(jax.random.split(jax.random.key(0), 64)).state.north)
    returns, _ = best(env, lambda s: jnp.where(at_junction(s), 0, 1), 11)
    np.testing.assert_allclose(returns, np.where(north, 4, -0.1), rtol=1e-6)
    np.testing.assert_allclose((returns[north].mean() + returns[~north].mean()) / 2, 1.95, rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "inner", "seen"),
    [
        ("HiddenCartPole", "gymnax/CartPole-v1", [0, 2]),
        ("HiddenPendulum", "gymnax/Pendulum-v1", [0, 1]),
    ],
)
def test_velocities_are_hidden_and_nothing_else_changes(name, inner, seen):
    env, whole = rlx.envs.make(f"rlx/{name}"), rlx.envs.make(inner)
    one, other = random_play(env, 12), random_play(whole, 12)
    # Two programs with the same operations round differently in the last bits.
    np.testing.assert_allclose(one.obs, other.obs[..., seen], rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(one.next_obs, other.next_obs[..., seen], rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(one.reward, other.reward, rtol=1e-5)
    assert env.horizon == whole.horizon
    assert jax.tree.structure(env.params) == jax.tree.structure(whole.params)


def test_the_hopper_shows_its_positions_alone():
    env = rlx.envs.make("rlx/HiddenHopper")
    s = jax.jit(env.reset)(jax.random.key(0))
    np.testing.assert_array_equal(s.obs, s.state.qpos[1:])
    assert env.environment.dt == rlx.envs.make("mjx/hopper").environment.dt
    assert env.lazy_starts
    assert env.max_steps == 1000


def colored(image, rgb):
    """The mean row and column of the pixels of a color, None where it has none."""
    rows, columns = np.nonzero(np.abs(image.astype(int) - rgb).max(axis=-1) < 40)
    return (rows.mean(), columns.mean()) if len(rows) else None


def test_the_maze_is_drawn_with_its_goal_and_where_one_is():
    env = rlx.envs.make("rlx/TMaze-10")
    start = env.reset(jax.random.key(0))
    at = lambda place, north: replace(start, state=memory.MazeState(np.int32(place), np.bool_(north)))
    images = env.environment.frames([at(0, True), at(6, True), at(6, False)], env.params, 240, 180, None)
    warm, cool = [0xD4, 0x84, 0x3E], [0x3E, 0x7C, 0xB1]
    places = [colored(image, cool) for image in images]
    np.testing.assert_allclose([column for _, column in places], [20, 140, 140], atol=3)  # of 12 cells of 20 pixels
    np.testing.assert_allclose([row for row, _ in places], 90, atol=3)
    assert [colored(image, warm)[0] < 90 for image in images] == [True, True, False]


def test_recall_is_drawn_with_its_cue_and_its_question():
    env = rlx.envs.make("rlx/Recall-8")
    start = env.reset(jax.random.key(0))
    at = lambda cue, ask, time: replace(start, obs=np.float32([cue, ask]), time=np.int32(time))
    shown = [at(1, 0, 0), at(-1, 0, 0), at(0, 0, 4), at(0, 1, 8)]
    up, down, later, asked = env.environment.frames(shown, env.params, 240, 180, None)
    warm, cool, ink = [0xD4, 0x84, 0x3E], [0x3E, 0x7C, 0xB1], [0x33, 0x41, 0x5C]
    assert colored(up, warm)[0] < 90 < colored(down, warm)[0]
    assert colored(later, warm) is colored(asked, warm) is colored(later, ink) is None
    assert colored(asked, ink) is not None
    np.testing.assert_allclose([colored(image, cool)[1] for image in (up, later, asked)], [20, 120, 220], atol=3)


def test_a_suite_is_imported_when_it_is_asked_for():
    program = "import sys, rlx.envs; rlx.envs.make('rlx/Recall-8'); rlx.envs.make('rlx/TMaze-10'); "
    program += "assert not {'gymnax', 'mujoco', 'brax', 'matplotlib'} & {*sys.modules}"
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("Recall-8", {"delay": -1}, "delay = -1: give an integer of at least 0"),
        ("Recall-8", {"delay": 2.5}, "delay = 2.5"),
        ("TMaze-10", {"length": 0}, "length = 0: give an integer of at least 1"),
    ],
)
def test_bad_options_are_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        rlx.envs.make(f"rlx/{name}", **options)


def test_names_say_how_long_it_takes():
    assert [rlx.envs.make(f"rlx/Recall-{n}").params.delay for n in (8, 32, 128)] == [8, 32, 128]
    assert rlx.envs.make("rlx/TMaze-10").params.length == 10
    assert {*memory.HIDDEN} <= {*own.MEMORY}


@pytest.mark.slow
@pytest.mark.parametrize(("numbers", "least", "most"), [(0, -0.3, 0.3), (2, 0.95, 1.0)])
def test_recall_is_learned_with_a_memory_that_the_actions_write_and_not_without(numbers, least, most):
    env = rlx.envs.make("rlx/Recall-8", delay=2, continuous=True, remember=numbers)
    sizes = {"num_envs": 32, "num_steps": 64, "num_epochs": 8, "num_minibatches": 8}
    config = ppo.Config(total_steps=100_000, learning_rate=1e-3, gae_lambda=1.0, entropy_coef=0.0, **sizes)
    state, _ = rlx.train(ppo, config, env, jax.random.key(0))
    assert least <= rlx.evaluate(ppo, config, env, state, jax.random.key(1), 512).returns.mean() <= most
