"""Episodes as pictures: what is recorded, what is drawn, the files, the command, bad input."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import rlx
from rlx import cli
from rlx.envs.frames import gl_context
from rlx.run.render import record, write

TRAIN = ["train", "ppo", "--env", "CartPole-v1", "--total-steps", "64", "--num-envs", "4", "--num-steps", "16"]
TRAIN += ["--num-minibatches", "2", "--hidden-sizes", "8", "--eval-episodes", "2", "--no-compile-cache"]
DRAWN = ["CartPole-v1", "Pendulum-v1", "Acrobot-v1", "MountainCar-v0", "MountainCarContinuous-v0", "Breakout-MinAtar"]
DRAWN += ["MultiGoal", "GridWorld", "Coverage", "Inventory", "PointMaze-medium", "Recall-8", "HiddenPendulum"]


class Push:
    """An algorithm that always does the same."""

    @staticmethod
    def act(config, env, state, obs, key, deterministic=False):
        return jnp.broadcast_to(state, (obs.shape[0], *env.action_space.shape)).astype(env.action_space.dtype), None


def has_gl():
    """Whether MuJoCo can draw here: it needs a display or EGL."""
    import mujoco

    try:
        gl_context()
        with mujoco.Renderer(mujoco.MjModel.from_xml_string("<mujoco><worldbody/></mujoco>"), 8, 8):
            return True
    except Exception:
        return False


@pytest.fixture(scope="module")
def cartpole():
    return rlx.envs.make("CartPole-v1")


@pytest.fixture(scope="module")
def episode(cartpole):
    """CartPole that is pushed to the right until the pole falls."""
    return record(Push, None, cartpole, jnp.int32(1), jax.random.key(0))


def test_an_episode_is_recorded_to_its_end_and_no_further(cartpole, episode):
    env_states, total = episode
    assert total == len(env_states) - 1 < 20
    assert [int(s.time) for s in env_states] == list(range(len(env_states)))
    angles = np.abs([s.state.theta for s in env_states])
    limit = cartpole.params.theta_threshold_radians
    assert (angles[:-1] <= limit).all()
    assert angles[-1] > limit


def test_the_states_recorded_are_those_of_stepping(cartpole, episode):
    env_states, _ = episode
    for before, after in pairwise(env_states):
        stepped, _ = cartpole.advance(jax.random.key(0), before, jnp.int32(1))
        np.testing.assert_allclose(after.obs, stepped.obs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("max_steps", "num_steps"), [(5, 9), (9, 5)])
def test_a_recording_ends_with_the_time_limit_or_where_it_was_asked_to(max_steps, num_steps):
    env = rlx.envs.make("Pendulum-v1", max_steps=max_steps)
    assert len(record(Push, None, env, jnp.float32(0), jax.random.key(0), num_steps)[0]) == 1 + 5


@pytest.mark.parametrize("name", DRAWN)
def test_what_has_moved_looks_different(name):
    env = rlx.envs.make(name)
    start = env.reset(jax.random.key(0))
    moved = start
    for i in range(8):
        action = env.action_space.sample(jax.random.key(i))
        moved = env.advance(jax.random.key(i), moved, action)[0]
    size = (env.params, 64, 48, None)
    first, same, other = env.environment.frames([start, start, moved], *size)
    assert first.shape == (48, 64, 3)
    assert first.dtype == np.uint8
    np.testing.assert_array_equal(first, same)
    assert (first != other).any()
    assert first.std() > 5  # something is there to be seen


def colour(image, rgb):
    """The mean row and column of the pixels of a colour."""
    rows, columns = np.nonzero(np.abs(image.astype(int) - rgb).max(axis=-1) < 40)
    return rows.mean(), columns.mean()


def test_things_are_drawn_where_they_are():
    """The ball of the maze below and right of the goal, x being downwards; a pole that leans to the right."""
    warm, cool = (0xD4, 0x84, 0x3E), (0x3E, 0x7C, 0xB1)
    maze = rlx.envs.make("PointMaze-medium")
    s = maze.reset(jax.random.key(0))
    s = replace(s, state=replace(s.state, position=jnp.array([6.5, 6.5]), goal=jnp.array([1.5, 1.5])))
    (image,) = maze.environment.frames([s], maze.params, 240, 240, None)
    row, column = colour(image, cool)
    np.testing.assert_allclose([row, column], [240 * 6.5 / 8] * 2, atol=6)
    cartpole = rlx.envs.make("CartPole-v1")
    s = cartpole.reset(jax.random.key(0))
    s = replace(s, state=s.state.replace(x=jnp.float32(0), theta=jnp.float32(0.5)))
    (image,) = cartpole.environment.frames([s], cartpole.params, 240, 180, None)
    row, column = colour(image, warm)
    assert column > 125
    assert row < 125


def test_a_gif_plays_at_the_pace_of_the_environment_and_a_filmstrip_spans_the_episode(tmp_path, cartpole, episode):
    env_states, _ = episode
    write(cartpole, env_states, tmp_path / "a.gif", width=64, height=48)
    with Image.open(tmp_path / "a.gif") as gif:
        assert gif.n_frames == len(env_states)
        assert gif.info["duration"] == 50
        assert gif.size == (64, 48)
    write(cartpole, env_states, tmp_path / "a.png", width=64, height=48)
    with Image.open(tmp_path / "a.png") as picture:
        strip = np.asarray(picture)
    count = min(8, len(env_states))
    assert strip.shape == (48, 64 * count, 3)
    ends = cartpole.environment.frames([env_states[0], env_states[-1]], cartpole.params, 64, 48, None)
    np.testing.assert_array_equal(strip[:, :64], ends[0])
    np.testing.assert_array_equal(strip[:, -64:], ends[1])


class Fast:
    """Hands out numbered images; a hundred steps a second."""

    dt = 0.01

    def frames(self, env_states, params, width, height, camera):
        return [np.full((height, width, 3), s, np.uint8) for s in env_states]


def test_steps_that_are_faster_than_a_film_are_left_out(tmp_path):
    env = rlx.Env(Fast(), None)
    write(env, list(range(0, 200, 2)), tmp_path / "a.gif", 16, 16)
    # A hundred steps are a second, in frames of 40 ms; what looks alike is one frame for longer.
    with Image.open(tmp_path / "a.gif") as gif:
        durations = [gif.seek(i) or gif.info["duration"] for i in range(gif.n_frames)]
    assert sum(durations) == 1000
    assert all(duration % 40 == 0 for duration in durations)
    assert len(durations) >= 8


@pytest.mark.parametrize(
    ("name", "file", "message"),
    [
        ("CartPole-v1", "a.bmp", r"has to end in one of \.gif, \.mp4, \.png, \.html"),
        ("CartPole-v1", "a.html", "only Brax environments have a page"),
        ("probe/Constant", "a.gif", "this environment cannot be drawn: give it a method frames"),
        ("DeepSea-bsuite", "a.gif", "this environment cannot be drawn"),
    ],
)
def test_what_cannot_be_drawn_says_why(tmp_path, name, file, message):
    with pytest.raises(ValueError, match=message):
        write(rlx.envs.make(name), [], tmp_path / file)
    assert not (tmp_path / file).exists()


def test_a_film_needs_what_makes_films(tmp_path, cartpole, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "mediapy", None)
    with pytest.raises(ValueError, match=r"films need mediapy: pip install 'rlx\[film\]'"):
        write(cartpole, [], tmp_path / "a.mp4")
    monkeypatch.setitem(__import__("sys").modules, "mediapy", object())
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ValueError, match="films need ffmpeg"):
        write(cartpole, [], tmp_path / "a.mp4")


def test_an_environment_with_varied_parameters_is_drawn_like_the_one_inside(cartpole):
    env = rlx.envs.make("CartPole-v1", randomize={"masspole": (0.5, 2.0)})
    s = env.reset(jax.random.key(0))
    (found,) = env.environment.frames([s], env.params, 64, 48, None)
    (expected,) = cartpole.environment.frames([replace(s, state=s.state.state)], cartpole.params, 64, 48, None)
    np.testing.assert_array_equal(found, expected)
    with pytest.raises(ValueError, match="cannot be drawn"):
        write(rlx.wrappers.randomized(rlx.envs.make("probe/Constant"), {}), [], Path("a.gif"))


@pytest.mark.skipif(not has_gl(), reason="neither a display nor EGL")
@pytest.mark.parametrize("name", ["mjx/pendulum", "brax/inverted_pendulum"])
def test_mujoco_draws_what_has_moved(name):
    env = rlx.envs.make(name)
    start = jax.jit(env.reset)(jax.random.key(0))
    moved, step = start, jax.jit(env.advance)
    for i in range(8):
        moved, _ = step(jax.random.key(i), moved, jnp.ones(1))
    first, other = env.environment.frames(jax.device_get([start, moved]), env.params, 64, 48, None)
    assert first.shape == (48, 64, 3)
    assert (first != other).any()
    assert first.std() > 5
    with pytest.raises(ValueError, match="--camera behind: there is no such camera; there are"):
        env.environment.frames([start], env.params, 64, 48, "behind")


@pytest.mark.more
def test_the_page_of_brax_holds_the_episode(tmp_path):
    env = rlx.envs.make("brax/inverted_pendulum", max_steps=3)
    env_states, _ = record(Push, None, env, jnp.float32(1), jax.random.key(0))
    write(env, env_states, tmp_path / "a.html")
    assert "<html" in (tmp_path / "a.html").read_text()[:500].lower()


@pytest.mark.more
def test_the_command_draws_a_run(tmp_path, capsys):
    out = tmp_path / "run"
    cli.main([*TRAIN, "--out", str(out)])
    capsys.readouterr()
    for output in ([], ["--output", str(tmp_path / "b.png"), "--stochastic", "--num-steps", "7"]):
        cli.main(["render", str(out), *output, "--no-compile-cache", "--width", "64", "--height", "48"])
    said = capsys.readouterr().out.splitlines()
    first, second = (line for line in said if not line.startswith("compiling"))
    assert first.startswith(f"{out / 'episode.gif'}: an episode of ")
    assert first.endswith("after 64 steps of training")
    assert "an episode of 7 steps, return 7.0" in second
    with Image.open(tmp_path / "b.png") as strip:
        assert strip.size == (8 * 64, 48)
    for bad, message in ((["--width", "0"], "--width 0: give at least 1"), (["--output", "a.bmp"], "has to end in")):
        with pytest.raises(SystemExit):
            cli.main(["render", str(out), *bad, "--no-compile-cache"])
        assert message in capsys.readouterr().err


def test_training_draws_episodes_when_asked(tmp_path, capsys, monkeypatch):
    cli.main([*TRAIN, "--out", str(tmp_path / "run"), "--num-evaluations", "1", "--render-every", "1"])
    with Image.open(tmp_path / "run" / "episodes" / "64.gif") as gif:
        assert gif.size == (320, 240)
    assert not (tmp_path / "run" / "episodes" / "0.gif").exists()
    assert "an episode: " in capsys.readouterr().out

    def fails(*args):
        raise RuntimeError("no display")

    monkeypatch.setattr("rlx.run.evaluations.write", fails)
    cli.main([*TRAIN, "--out", str(tmp_path / "other"), "--render-every", "1"])
    assert "no picture of an episode: no display" in capsys.readouterr().out
    assert (tmp_path / "other" / "evaluation.json").exists()
    with pytest.raises(SystemExit):
        cli.main(["train", "ppo", "--env", "probe/Constant", "--render-every", "1", "--out", str(tmp_path / "no")])
    assert "cannot be drawn" in capsys.readouterr().err
    assert not (tmp_path / "no").exists()
