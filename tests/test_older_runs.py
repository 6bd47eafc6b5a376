"""Run and sweep directories of the release before are read: evaluated, drawn, resumed, exported, reported.

`fixtures/runs-0.1.tar.xz` holds a run of PPO on CartPole (4 updates, evaluated after 2 and 4) and a sweep over two
learning rates, as commit 5f052eb wrote them on JAX 0.10.2, without their pictures.
"""

import json
import tarfile
from pathlib import Path

import jax
import numpy as np
import pytest

from rlx import cli
from rlx.cli.play import Checkpoint, load_checkpoint
from rlx.files import read_rows

EXACT = True  # the resumed run is compared with what that commit made of it
ARCHIVE = Path(__file__).parent / "fixtures" / "runs-0.1.tar.xz"


@pytest.fixture
def old(tmp_path, monkeypatch):
    """The folder with `run` and `sweep`."""
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_run_is_loaded_evaluated_and_drawn(old, capsys):
    job, state, _ = load_checkpoint(Checkpoint(Path("run")))
    assert int(state.num_updates) == 4
    assert job.config.hidden_sizes == (4,)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params))
    cli.main(["eval", "run", "--num-episodes", "2", "--output", "found.json"])
    assert json.loads(Path("found.json").read_text())["num_episodes"] == 2
    cli.main(["plot", "run", "--output", "curve.png"])
    assert Path("curve.png").stat().st_size > 1000


def test_a_run_is_resumed(old, capsys):
    before = read_rows(Path("run/metrics.jsonl"))
    cli.main(["train", "--resume", "run", "--total-steps", "256"])
    rows = read_rows(Path("run/metrics.jsonl"))
    assert rows[: len(before)] == before
    assert [row["update"] for row in rows] == list(range(1, 9))
    if jax.__version__ == "0.10.2":  # what 5f052eb made of the same command
        assert json.loads(Path("run/evaluation.json").read_text())["returns"] == [9.0, 10.0]
    assert [row["update"] for row in read_rows(Path("run/evaluations.jsonl"))] == [2, 4, 8]


def test_a_sweep_has_ended_is_exported_and_reported(old, capsys):
    cli.main(["sweep", "--resume", "sweep"])
    assert "has come to its end" in capsys.readouterr().out
    cli.main(["export", "sweep", "1", "--out", "lane"])
    assert load_checkpoint(Checkpoint(Path("lane")))[0].config.learning_rate == pytest.approx(1e-3)
    cli.main(["report", "run", "sweep"])
    assert "learning_rate" in capsys.readouterr().out
    cli.main(["eval", "sweep/best", "--num-episodes", "2"])
