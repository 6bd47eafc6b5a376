"""Data goes to Minari and comes back, and what Minari does not check is checked."""

import json
from dataclasses import replace

import numpy as np
import pytest
from gymnasium import spaces

from rlx import cli
from rlx.data.demonstrations import Demonstrations, best, load, save
from rlx.data.exchange import from_minari, to_minari

SPACES = spaces.Box(-8, 8, (3,), np.float32), spaces.Box(-2, 2, (1,), np.float32)


@pytest.fixture
def minari(tmp_path, monkeypatch):
    module = pytest.importorskip("minari")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    return module


def shown():
    random = np.random.default_rng(0)
    obs, next_obs = random.normal(size=(2, 7, 3)).astype(np.float32)
    ends = np.array([2, 6])
    for start, end in ((0, 2), (3, 6)):
        next_obs[start:end] = obs[start + 1 : end + 1]
    terminated, truncated = np.arange(7) == ends[0], np.arange(7) == ends[1]
    action = random.uniform(-2, 2, (7, 1)).astype(np.float32)
    about = {"env": "gymnax/Pendulum-v1", "env_options": {}, "env_params": {}, "policies": []}
    reward = random.normal(size=7).astype(np.float32)
    return Demonstrations(obs, next_obs, action, reward, terminated, truncated, np.zeros(7, np.int32), about)


@pytest.mark.more
@pytest.mark.filterwarnings("ignore::UserWarning:minari")
def test_data_comes_back_as_it_went(minari, tmp_path, capsys):
    file, again = tmp_path / "a.npz", tmp_path / "b.npz"
    save(file, shown())
    cli.main(["data", "export", str(file), "--name", "pendulum/few-v0"])
    cli.main(["data", "import", "pendulum/few-v0", "--env", "Pendulum-v1", "--output", str(again)])
    assert "2 episodes, 7 steps" in capsys.readouterr().out
    before, after = load(file), load(again)
    for name in ("obs", "next_obs", "action", "reward", "terminated", "truncated"):
        found, expected = getattr(after, name), getattr(before, name)
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected, err_msg=name)
    assert after.about["policies"][0]["episodes"] == 2
    description = json.loads(minari.load_dataset("pendulum/few-v0").storage.metadata["description"])
    assert description["env"] == "gymnax/Pendulum-v1"


@pytest.mark.more
@pytest.mark.filterwarnings("ignore::UserWarning:minari")
@pytest.mark.parametrize(
    ("num", "ends", "words"),
    [(3, [False, False, True], r"\[3\] observations"), (4, [True, False, True], "goes on after an end")],
)
def test_episodes_that_are_none_are_refused(minari, num, ends, words):
    from minari.data_collector import EpisodeBuffer

    obs, action = np.zeros((num, 3), np.float32), np.zeros((3, 1), np.float32)
    flags = {"terminations": np.array(ends), "truncations": np.zeros(3, bool)}
    buffer = EpisodeBuffer(id=0, observations=obs, actions=action, rewards=np.zeros(3), **flags)
    minari.create_dataset_from_buffers(
        "pendulum/odd-v0", buffer=[buffer], observation_space=SPACES[0], action_space=SPACES[1]
    )
    with pytest.raises(ValueError, match=words):
        from_minari("pendulum/odd-v0", "gymnax/Pendulum-v1")


@pytest.mark.more
@pytest.mark.filterwarnings("ignore::UserWarning:minari")
def test_an_episode_without_an_end_is_truncated(minari):
    data = shown()
    cut = Demonstrations(**vars(data) | {"truncated": np.arange(7) == 6, "terminated": np.zeros(7, bool)})
    to_minari(cut, "pendulum/cut-v0", *SPACES)
    stored = minari.load_dataset("pendulum/cut-v0")
    path = stored.storage.data_path / "main_data.hdf5"
    import h5py

    with h5py.File(path, "r+") as found:
        found["episode_0/truncations"][...] = False
    assert from_minari("pendulum/cut-v0", "e").truncated.tolist() == [False] * 6 + [True]


@pytest.mark.more
def test_a_dataset_that_is_not_there_is_not_looked_for_elsewhere(minari):
    with pytest.raises(ValueError, match="there is no dataset a/b-v0 of Minari here"):
        from_minari("a/b-v0", "gymnax/Pendulum-v1")


def numbered(returns, lengths):
    """Episodes with these returns; each row's observation is its number."""
    num = sum(lengths)
    ends = np.isin(np.arange(num), np.cumsum(lengths) - 1)
    reward = np.zeros(num, np.float32)
    reward[ends] = returns
    rows = np.arange(num, dtype=np.float32)[:, None]
    about = {"env": "gymnax/Pendulum-v1", "env_options": {}, "env_params": {}, "policies": []}
    return Demonstrations(
        {"x": rows}, {"x": rows + 1}, rows, reward, ends, np.zeros(num, bool), np.zeros(num, np.int32), about
    )


def test_the_best_episodes_are_whole_and_in_their_order():
    found = best(numbered([3.0, 5.0, 1.0, 5.0, 4.0], [2, 1, 3, 2, 1]), 0.6)
    assert found.obs["x"][:, 0].tolist() == [2, 6, 7, 8]
    assert found.returns.tolist() == [5.0, 5.0, 4.0]
    assert len(best(numbered([1.0] * 10, [1] * 10), 0.1).returns) == 1
    assert len(best(numbered([1.0] * 10, [1] * 10), 0.11).returns) == 2
    rated = replace(numbered([1.0, 2.0], [1, 1]), about={"env": "e", "quality": {"tq": 0.5}})
    assert best(rated, 0.5).about == {"env": "e", "best_share": 0.5}
    with pytest.raises(ValueError, match="share = 0"):
        best(numbered([1.0], [1]), 0)


def test_the_command_writes_the_best_episodes(tmp_path, capsys):
    save(tmp_path / "a.npz", numbered([3.0, 5.0], [2, 3]))
    cli.main(["data", "best", str(tmp_path / "a.npz"), "--share", "0.5", "--output", str(tmp_path / "b.npz")])
    assert "1 of 2 episodes, 3 steps, mean return 5.0 in place of 4.0" in capsys.readouterr().out
    assert load(tmp_path / "b.npz").obs["x"][:, 0].tolist() == [2, 3, 4]


def test_without_the_extra_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "minari", None)
    with pytest.raises(ValueError, match=r'pip install "rlx\[minari\]"'):
        from_minari("a/b-v0", "gymnax/Pendulum-v1")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "Missing from rlx data: {import,export,best}"),
        (["import", "a/b-v0"], "needs --env ENV and --output"),
        (["export", "a.npz"], "needs --name NAME"),
        (["import", "a/b-v0", "--env", "Pendulum-v1", "--output", "x"], "has to end in .npz"),
        (["export", "nothing.npz", "--name", "a/b-v0"], "nothing.npz is not there"),
        (["export", "a.npz", "--name", "a/b-v0", "--share", "0.1"], "needs --name NAME"),
        (["best", "nothing.npz", "--output", "b.npz"], "nothing.npz is not there"),
        (["best", "nothing.npz", "--output", "b"], "has to end in .npz"),
        (["best", "nothing.npz"], "needs --output FILE.npz"),
    ],
)
def test_bad_input_of_the_command_is_one_line(arguments, words, capsys):
    with pytest.raises(SystemExit, match="2"):
        cli.main(["data", *arguments])
    assert words in capsys.readouterr().err
