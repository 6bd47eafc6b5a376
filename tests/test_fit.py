"""`rlx.fit` and its hooks: what is on disk, and that what is resumed is the undisturbed run, bit for bit."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

import rlx
from rlx.algos import ppo
from rlx.cli import main
from rlx.files import read_config
from rlx.run.pause import changed, given

EXACT = True  # runs in one piece and in several are compared bit for bit
CONFIG = ppo.Config(
    total_steps=20 * 64,
    num_envs=4,
    num_steps=16,
    num_epochs=2,
    num_minibatches=2,
    hidden_sizes=(8,),
    learning_rate=1e-2,
)
HOW = {"every": 4, "num_evaluations": 2, "eval_episodes": 2}


class Raised(Exception):
    """What a hook raises."""


def halves(pause):
    """Another learning rate after 8 updates, which is no evaluation, and after 10, which is one but no call."""
    if pause.update == 8:
        pause.change(learning_rate=pause.config.learning_rate / 2)


def leaves(state):
    keys = lambda x: jax.random.key_data(x) if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) else x
    return [np.asarray(keys(x)) for x in jax.tree.leaves(state)]


def same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(leaves(a), leaves(b), strict=True))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    return rlx.fit(ppo, CONFIG, "CartPole-v1", directory=tmp_path_factory.mktemp("fit") / "a", after=halves, **HOW)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return rlx.fit(ppo, CONFIG, "CartPole-v1", directory=tmp_path_factory.mktemp("fit") / "b", **HOW)


def test_fit_is_train(plain):
    state, _ = jax.jit(lambda key: rlx.train(ppo, CONFIG, plain.agent.env, key))(jax.random.split(jax.random.key(0))[0])
    for x, y in zip(leaves(state.params), leaves(plain.agent.state.params), strict=True):
        np.testing.assert_allclose(x, y, atol=1e-5)  # another program: one scan in place of chunks
    assert plain.complete
    assert [row["update"] for row in plain.evaluations] == [10, 20]
    assert read_config(plain.directory)["env"] == "gymnax/CartPole-v1"


def test_a_hook_is_called_after_every_so_many_updates_with_means(tmp_path):
    calls = []
    directory = tmp_path / "run"
    run = rlx.fit(ppo, CONFIG, "CartPole-v1", directory=directory, after=lambda p: calls.append(p), **HOW)
    assert [pause.update for pause in calls] == [4, 8, 12, 16, 20]
    assert [pause.step for pause in calls] == [64 * pause.update for pause in calls]
    assert [len(pause.evaluations) for pause in calls] == [0, 0, 1, 1, 2]
    rows = [row for row in run.metrics if row["update"] <= 4]
    assert calls[0].metrics["num_episodes"] == sum(row["num_episodes"] for row in rows)
    total = sum(row["num_episodes"] * (row["episode_return"] or 0) for row in rows)
    assert calls[0].metrics["episode_return"] == pytest.approx(total / calls[0].metrics["num_episodes"], rel=1e-4)


def test_a_hook_that_looks_only_changes_no_bit(plain, tmp_path):
    run = rlx.fit(ppo, CONFIG, "CartPole-v1", directory=tmp_path / "run", after=lambda pause: None, **HOW)
    assert same(run.agent.state, plain.agent.state)


def test_a_changed_setting_is_kept_and_acts(undisturbed, plain):
    changes = read_config(undisturbed.directory)["changes"]
    assert changes == [{"update": 8, "settings": {"learning_rate": 5e-3}}]
    assert undisturbed.agent.config.learning_rate == 5e-3
    assert rlx.load(undisturbed.directory, from_update=10).config.learning_rate == 5e-3
    assert not same(undisturbed.agent.state.params, plain.agent.state.params)


def test_a_run_whose_hook_raised_goes_on_to_the_same_bits(undisturbed, tmp_path):
    for update in (8, 20):
        directory, raising = tmp_path / str(update), [True]

        def hook(pause, update=update, raising=raising):
            if pause.update == update and raising[0]:
                raise Raised
            halves(pause)

        with pytest.raises(Raised):
            rlx.fit(ppo, CONFIG, "CartPole-v1", directory=directory, after=hook, **HOW)
        assert max(int(path.name) for path in (directory / "checkpoints").iterdir()) == update
        raising[0] = False
        run = rlx.fit(ppo, CONFIG, "CartPole-v1", directory=directory, after=hook, **HOW)
        assert run.complete
        assert same(run.agent.state, undisturbed.agent.state)
        assert read_config(directory)["changes"] == read_config(undisturbed.directory)["changes"]


def test_a_run_that_a_hook_stopped_goes_on_to_the_same_bits(undisturbed, tmp_path, capsys):
    directory = tmp_path / "run"

    def stops(pause):
        halves(pause)
        if pause.update == 12:
            pause.stop("enough")

    run = rlx.fit(ppo, CONFIG, "CartPole-v1", directory=directory, after=stops, **HOW)
    assert not run.complete
    assert run.agent.num_updates == 12
    evaluation = json.loads((directory / "evaluation.json").read_text())
    assert (evaluation["stopped"], evaluation["update"]) == ("enough", 12)
    main(["train", "--resume", str(directory)])
    assert "resuming after 12 of 20 updates" in capsys.readouterr().out
    assert same(rlx.load(directory).state, undisturbed.agent.state)


def test_a_run_that_is_longer_or_whole_is_not_begun_again(tmp_path):
    directory = tmp_path / "run"
    short = rlx.replace(CONFIG, total_steps=4 * 64)
    first = rlx.fit(ppo, short, "CartPole-v1", directory=directory, eval_episodes=2)
    again = rlx.fit(ppo, short, "CartPole-v1", directory=directory, eval_episodes=2)
    assert same(first.agent.state, again.agent.state)
    longer = rlx.fit(ppo, rlx.replace(short, total_steps=8 * 64), "CartPole-v1", directory=directory, eval_episodes=2)
    assert longer.agent.num_updates == 8


def test_another_run_and_what_is_no_run_are_refused(plain, tmp_path):
    fit = lambda config=CONFIG, env="CartPole-v1", **how: rlx.fit(ppo, config, env, directory=plain.directory, **how)
    with pytest.raises(ValueError, match=r"holds another run: config = .*'learning_rate': 0.01.* -> .*0.5"):
        fit(rlx.replace(CONFIG, learning_rate=0.5))
    with pytest.raises(ValueError, match="holds another run: seed = 0 -> 1"):
        fit(seed=1)
    with pytest.raises(ValueError, match="holds another run: env = "):
        fit(env="Acrobot-v1")
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="is not empty and not a run"):
        rlx.fit(ppo, CONFIG, "CartPole-v1", directory=tmp_path)
    with pytest.raises(ValueError, match="every = 0: give an integer of at least 1"):
        rlx.fit(ppo, CONFIG, "CartPole-v1", directory=tmp_path / "new", every=0)
    bad = {"seed": -1, "checkpoint_seconds": -1.0, "render_every": -1, "max_seconds": 0.0, "after": 3}
    for name, value in bad.items():
        with pytest.raises(ValueError, match=f"{name} = {value}"):
            rlx.fit(ppo, CONFIG, "CartPole-v1", directory=tmp_path / "new", **{name: value})
    env = rlx.envs.make("CartPole-v1", max_steps=7)
    with pytest.raises(ValueError, match=r"env is not as rlx\.envs\.make makes gymnax/CartPole-v1"):
        rlx.fit(ppo, CONFIG, env, directory=tmp_path / "new", env_name="CartPole-v1")
    assert not Path(tmp_path / "new").exists()


def test_settings_that_cannot_change_are_refused():
    assert changed(CONFIG, {"learning_rate": 0.5}).learning_rate == 0.5
    with pytest.raises(ValueError, match="num_envs shapes the compiled program"):
        changed(CONFIG, {"num_envs": 8})
    with pytest.raises(ValueError, match="learning_rat"):
        changed(CONFIG, {"learning_rat": 1.0})
    with pytest.raises(ValueError, match="give a value of the same kind"):
        changed(CONFIG, {"learning_rate": "linear:0.1:0"})
    with pytest.raises(ValueError, match="gamma"):
        changed(CONFIG, {"gamma": 2.0})


def test_changes_count_up_to_their_update():
    changes = [{"update": 3, "settings": {"gamma": 0.5}}, {"update": 7, "settings": {"gamma": 0.25}}]
    assert [given(CONFIG, changes, done).gamma for done in (2, 3, 6, 7)] == [CONFIG.gamma, 0.5, 0.5, 0.25]
