"""`rlx log`, and the lanes of a sweep as runs of their own: afterwards what was there while it trained."""

import json
import signal
import sys
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import pytest

from rlx import cli
from rlx.files import read_rows
from rlx.run.progress import Display
from rlx.run.storage import owned
from rlx.sweeps.logs import lane_rows

sys.path.insert(0, str(Path(__file__).parent))
from dashboards import events, images, scalars, wandb_rows

EXACT = True  # bits are compared
SMALL = ["--num-envs", "4", "--num-steps", "16", "--num-epochs", "1", "--num-minibatches", "1"]
SMALL += ["--hidden-sizes", "4", "--eval-episodes", "2"]
TRAIN = ["train", "ppo", "--env", "CartPole-v1", *SMALL]
SWEEP = ["sweep", "ppo", "--env", "CartPole-v1", *SMALL, "--learning-rate", "1e-3,1e-2", "--num-seeds", "2"]
SWEEP += ["--total-steps", "256"]
installed = pytest.mark.skipif(find_spec("wandb") is None, reason="needs rlx[wandb]")
pytestmark = pytest.mark.usefixtures("command_cache")


def rlx(*arguments):
    """The exit status of a command."""
    try:
        cli.main([str(a) for a in arguments])
    except SystemExit as stop:
        return stop.code
    return 0


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    directory = tmp_path_factory.mktemp("runs") / "run"
    assert rlx(*TRAIN, "--total-steps", "256", "--num-evaluations", "2", "--out", directory) == 0
    return directory


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    directory = tmp_path_factory.mktemp("sweeps") / "sweep"
    assert rlx(*SWEEP, "--log", "tensorboard", "csv", "--out", directory) == 0
    return directory


def content(folder):
    """Every number of the event files of a folder."""
    found = [(value.tag, event.step, value.simple_value) for event in events(folder) for value in event.summary.value]
    return sorted(item for item in found if item[0] != "seconds" and not item[0].startswith("_"))


def test_a_run_is_written_afterwards_as_it_is_written_while_it_trains(run, tmp_path, capsys):
    live = tmp_path / "live" / "run"
    flags = ["--num-evaluations", "2", "--log", "tensorboard", "csv"]
    assert rlx(*TRAIN, "--total-steps", "256", *flags, "--out", live) == 0
    capsys.readouterr()
    for to in ("tensorboard", "csv"):
        assert rlx("log", run, "--to", to, "--output", tmp_path / "after") == 0
        assert f"{to}: 6 rows of {run}, in {tmp_path / 'after' / 'run'}" in capsys.readouterr().out
    assert content(live) == content(tmp_path / "after" / "run")
    assert images(live, "curve") == [(256, b"\x89PNG")]
    strip = lambda path: [line.split(",")[:2] for line in path.read_text().splitlines()]
    assert strip(live / "metrics.csv") == strip(tmp_path / "after" / "run" / "metrics.csv")
    assert not list(run.glob("events*"))  # --output leaves the run as it was


def test_a_run_that_is_training_is_written_as_far_as_it_is_and_not_into_its_own_log(run, tmp_path, capsys):
    with owned(run, resume=True):
        assert rlx("log", run, "--to", "csv", "--output", tmp_path) == 0
        assert f"{run} is training: what there is of it by now, up to step 256, is written" in capsys.readouterr().out
        config = json.loads((run / "config.json").read_text())
        (run / "config.json").write_text(json.dumps(config | {"log": ["csv"]}))
        assert rlx("log", run, "--to", "csv") == 2
        assert "is training and writes csv itself: give --output" in capsys.readouterr().err
        (run / "config.json").write_text(json.dumps(config))


def test_what_cannot_be_written_ends_in_one_line(run, tmp_path, monkeypatch, capsys):
    nowhere = lambda *a: open("/dev/full", "wb", 0)  # noqa: SIM115 (closed by whoever opens it)
    monkeypatch.setattr("rlx.run.tensorboard.open", nowhere, raising=False)
    assert rlx("log", run, "--to", "tensorboard", "--output", tmp_path) == 2
    assert "--to tensorboard: OSError: [Errno 28] No space left on device" in capsys.readouterr().err
    assert rlx("log", tmp_path / "none", "--to", "csv") == 2
    assert "is not a run directory" in capsys.readouterr().err


def test_every_lane_of_a_sweep_is_a_run_of_its_own(sweep, tmp_path):
    lanes = read_rows(sweep / "lanes.jsonl")
    assert len(lanes) == 4
    for lane in lanes:
        folder = sweep / "lanes" / str(lane["lane"])
        assert [step for step, _ in scalars(folder, "policy_loss")] == [64, 128, 192, 256]
        curve = zip(lane["curve"]["step"], lane["curve"]["episode_return"], strict=True)
        assert scalars(folder, "episode_return") == [(step, pytest.approx(x)) for step, x in curve if x is not None]
        ((step, mean),) = scalars(folder, "evaluation/mean")
        assert (step, mean) == (256, pytest.approx(lane["return_mean"]))
        assert len((folder / "metrics.csv").read_text().splitlines()) == 5
        settings = {value.tag: value for event in events(folder) for value in event.summary.value}
        assert b"learning_rate" in settings["_hparams_/session_start_info"].metadata.plugin_data.content
    of_lane = lambda number: content(sweep / "lanes" / str(number))
    assert of_lane(0) != of_lane(1)
    tables = {value.tag: value for event in events(sweep) for value in event.summary.value}
    assert b"| lane | configuration |" in tables["results/text_summary"].tensor.string_val[0]
    assert images(sweep, "sensitivity")
    assert rlx("log", sweep, "--to", "tensorboard", "--output", tmp_path) == 0
    for number in range(4):
        assert content(tmp_path / "sweep" / "lanes" / str(number)) == of_lane(number)


@contextmanager
def interrupted_after(steps):
    """Sends SIGINT when a sweep has done so many steps."""
    show = Display.show

    def show_and_interrupt(self, done, episode_return):
        show(self, done, episode_return)
        if done >= steps:
            signal.raise_signal(signal.SIGINT)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Display, "show", show_and_interrupt)
        patch.setattr("rlx.sweeps.train.CHUNK_UPDATES", 1)
        yield


def test_a_sweep_that_was_interrupted_and_resumed_has_every_row_once(sweep, tmp_path, capsys):
    out = tmp_path / "sweep"
    with interrupted_after(512):
        assert rlx(*SWEEP, "--log", "tensorboard", "--out", out) == 130
    assert {len(kinds["metrics"]) for kinds in lane_rows(out).values()} == {2}
    assert rlx("log", out, "--to", "csv", "--output", tmp_path / "early") == 0
    assert "has not come to its end: what there is of it by now, up to step 128" in capsys.readouterr().out
    assert len((tmp_path / "early" / "sweep" / "lanes" / "3" / "metrics.csv").read_text().splitlines()) == 3
    assert rlx("sweep", "--resume", out) == 0
    for number in range(4):
        assert content(out / "lanes" / str(number)) == content(sweep / "lanes" / str(number))


@installed
@pytest.mark.more
def test_wandb_gets_every_lane_of_a_sweep_as_a_run(sweep, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert rlx("log", sweep, "--to", "wandb", "--output", tmp_path) == 0
    ids = [json.loads((tmp_path / "sweep" / "lanes" / str(n) / "wandb.json").read_text())["id"] for n in range(4)]
    for number in ids:
        (folder,) = tmp_path.rglob(f"offline-run-*-{number}")
        rows = wandb_rows(folder)
        assert [row["global_step"] for row in rows if "policy_loss" in row] == [64, 128, 192, 256]
        assert len([row for row in rows if "evaluation/mean" in row]) == 1
