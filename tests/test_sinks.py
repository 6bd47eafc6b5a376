"""Logs beside the log of record: what they hold, also of a resumed run, and that no fault of theirs reaches a run."""

import errno
import json
import os
import subprocess
import sys
import threading
import time
from importlib.util import find_spec
from pathlib import Path

import jax
import pytest

from rlx import cli
from rlx.files import read_rows, write_json
from rlx.run import background
from rlx.run.background import Background
from rlx.run.sinks import SINKS, Asked, Csv, LoggedRun, check_names, interval, tags
from rlx.run.tensorboard import TensorBoard
from rlx.run.wandb import History, settled

sys.path.insert(0, str(Path(__file__).parent))
from dashboards import events, images, scalars, wandb_rows

EXACT = True  # bits are compared
SMALL = ["--num-envs", "4", "--num-steps", "16", "--num-epochs", "1", "--num-minibatches", "1"]
SMALL += ["--hidden-sizes", "4", "--eval-episodes", "2"]
TRAIN = ["train", "ppo", "--env", "CartPole-v1", *SMALL]
SETTINGS = {"config": {"gamma": 0.9, "hidden_sizes": [4]}, "algorithm": "rlx.algos.ppo", "env": "x", "seed": 0}
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
def plain(tmp_path_factory):
    """A run without sinks."""
    directory = tmp_path_factory.mktemp("plain") / "run"
    assert rlx(*TRAIN, "--total-steps", "256", "--out", directory) == 0
    return directory


def state_of(run):
    from rlx.algos import ppo
    from rlx.run.checkpoint import restore
    from rlx.run.saved import environment

    sizes = {"num_envs": 4, "num_steps": 16, "num_epochs": 1, "num_minibatches": 1, "hidden_sizes": (4,)}
    like = jax.eval_shape(ppo.init, ppo.Config(**sizes), environment("gymnax/CartPole-v1", {}, {}), jax.random.key(0))
    state = restore(run / "checkpoints", like)
    return [jax.random.key_data(x) if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) else x for x in
            jax.tree.leaves(state)]  # fmt: skip


def same_bits(a, b):
    return all(bool((x == y).all()) for x, y in zip(state_of(a), state_of(b), strict=True))


def logged(tmp_path, rows=(), evaluations=(), **about):
    known = {"metrics": list(rows), "evaluations": list(evaluations)}
    return LoggedRun(tmp_path, "run", SETTINGS, known, **about)


def row(update, **values):
    return {"update": update, "step": 10 * update, "seconds": 0.5 * update, **values}


def evaluation(update, returns=(1.0, 3.0)):
    mean = sum(returns) / len(returns)
    return {"mean": mean, "std": 1.0, "num_episodes": len(returns), "mean_length": 5.0, "unfinished": 0, "diverged": 0,
            "reported": {"success": 0.5}, "update": update, "step": 10 * update, "returns": list(returns)}  # fmt: skip


def test_an_interval_is_of_the_mean_over_episodes():
    returns = [1.0, 2.0, 4.0, 9.0]
    half = 1.96 * (sum((x - 4) ** 2 for x in returns) / 3) ** 0.5 / 2
    found = interval(evaluation(1, returns))
    assert found["low"] == pytest.approx(4 - half)
    assert found["high"] == pytest.approx(4 + half)
    assert interval(evaluation(1, [2.0])) == {}


def test_rows_have_the_names_of_the_field_and_no_number_that_is_none():
    assert tags("metrics", row(1, policy_loss=0.1, episode_return=None)) == {"seconds": 0.5, "policy_loss": 0.1}
    found = tags("evaluations", evaluation(1) | {"std": "nan"})
    assert found["evaluation/mean"] == 2.0
    assert found["evaluation/success"] == 0.5
    assert "evaluation/std" not in found


def test_csv_has_the_rows_of_the_log_and_those_of_a_resumed_run(tmp_path):
    for known in ([], [row(1, loss=0.5)]):  # a run, and the same run resumed after its first row
        sink = Csv([logged(tmp_path, known)], Asked())
        sink.write(0, "metrics", row(2, loss=None))
        sink.close()
    lines = (tmp_path / "metrics.csv").read_text().splitlines()
    assert lines == ["update,step,seconds,loss", "1,10,0.5,0.5", "2,20,1.0,"]


def test_tensorboard_has_scalars_by_step_settings_pictures_and_a_table(tmp_path):
    from PIL import Image

    (tmp_path / "episodes").mkdir()
    for name in ("curve.png", "episodes/10.gif", "episodes/99.gif", "episodes/10.tmp.gif"):
        Image.new("RGB", (3, 2)).save(tmp_path / name)
    sink = TensorBoard([logged(tmp_path, began=1000.0, pictures=tmp_path)], Asked())
    sink.write(0, "metrics", row(1, loss=0.5))
    sink.write(0, "evaluations", evaluation(1))
    sink.write(0, "metrics", row(2, loss=0.25))
    sink.close()
    assert scalars(tmp_path, "loss") == [(10, 0.5), (20, 0.25)]
    assert scalars(tmp_path, "evaluation/mean") == [(10, 2.0)]
    assert scalars(tmp_path, "evaluation/low")[0][1] < 2.0 < scalars(tmp_path, "evaluation/high")[0][1]
    assert images(tmp_path, "episode") == [(10, b"GIF8")]  # the other one is of a step that the run has not reached
    assert images(tmp_path, "curve") == [(20, b"\x89PNG")]
    found = {value.tag: value for event in events(tmp_path) for value in event.summary.value}
    assert b"| 10 | 2 |" in found["evaluations/text_summary"].tensor.string_val[0]
    assert b"gamma" in found["_hparams_/session_start_info"].metadata.plugin_data.content
    assert next(event.wall_time for event in events(tmp_path) if event.step == 20) == 1001.0


def test_tensorboard_of_a_resumed_run_has_every_row_once_and_none_that_was_taken_back(tmp_path):
    for known, new in (([], [1, 2, 3]), ([1], [2, 4])):  # resumed from a checkpoint after the first row
        sink = TensorBoard([logged(tmp_path, [row(u, loss=u) for u in known])], Asked())
        for update in new:
            sink.write(0, "metrics", row(update, loss=update))
        sink.close()
    assert scalars(tmp_path, "loss") == [(10, 1.0), (20, 2.0), (40, 4.0)]
    assert len(list(tmp_path.glob("events*"))) == 1
    assert sum(event.HasField("session_log") for event in events(tmp_path)) == 1  # a reader drops what it has


def test_a_resumed_run_writes_the_logs_that_it_was_asked_for(tmp_path):
    out = tmp_path / "run"
    assert rlx(*TRAIN, "--total-steps", "128", "--log", "csv", "tensorboard", "--out", out) == 0
    assert rlx("train", "--resume", out, "--total-steps", "256") == 0
    steps = [row["step"] for row in read_rows(out / "metrics.jsonl")]
    assert steps == [64, 128, 192, 256]
    assert [step for step, _ in scalars(out, "policy_loss")] == steps
    assert [step for step, _ in scalars(out, "evaluation/mean")] == [128, 256]
    assert [int(line.split(",")[1]) for line in (out / "metrics.csv").read_text().splitlines()[1:]] == steps


class Fake:
    """A sink that does what it is told, in the table of sinks for a test."""

    def __init__(self, write=lambda *row: None, close=lambda: None):
        self.write, self.close = write, close


def fake(patch, name, **how):
    patch.setitem(SINKS, name, lambda runs, asked: Fake(**how))


def full(*row):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_sink_that_fails_is_named_once_and_ends_nothing(tmp_path, monkeypatch):
    said, main = [], threading.current_thread()
    say = lambda text: said.append((text, threading.current_thread()))
    fake(monkeypatch, "full", write=full)
    monkeypatch.setitem(SINKS, "none", None)
    for name in ("full", "none"):
        sink = Background(name, [logged(tmp_path)], say, tmp_path)
        for update in range(3):
            sink.write("metrics", row(update))
            sink.thread.join(timeout=10)
        sink.close()
    assert all(thread is main for _, thread in said)  # a console is written by one thread
    texts = [text for text, _ in said]
    assert texts[0] == "--log full: OSError: [Errno 28] No space left on device; the run continues without it"
    assert texts[1] == f"--log full failed and has 0 of 3 rows: rlx log {tmp_path} --to full writes what is missing"
    assert texts[2].startswith("--log none: TypeError: ")
    assert len(texts) == 4


def test_a_sink_that_hangs_makes_no_write_wait_and_the_end_wait_for_a_stated_time(tmp_path, monkeypatch):
    going = threading.Event()
    fake(monkeypatch, "slow", write=lambda *row: going.wait(60))
    monkeypatch.setattr(background, "ROWS", 5)
    said = []
    sink = Background("slow", [logged(tmp_path)], said.append, tmp_path, seconds=0.2)
    started = time.monotonic()
    for update in range(20):
        sink.write("metrics", row(update))
    sink.close()
    assert time.monotonic() - started < 10
    going.set()
    sink.thread.join(timeout=10)
    assert said[0] == "--log slow is 5 rows behind: the run continues without it"
    assert said[1] == "waiting up to 0 s for --log slow"
    assert said[2].startswith("--log slow did not end within 0 s and has 0 of 20 rows: rlx log ")


def test_rows_that_a_sink_has_are_the_first_ones(tmp_path, monkeypatch):
    """What is missing is then the rest, which `rlx log` adds."""
    going, seen = threading.Event(), []

    def write(number, kind, row):
        going.wait(60)
        seen.append(row["update"])

    fake(monkeypatch, "slow", write=write)
    monkeypatch.setattr(background, "ROWS", 3)
    sink = Background("slow", [logged(tmp_path)], lambda text: None, tmp_path)
    for update in range(10):
        sink.write("metrics", row(update))
    going.set()
    while not sink.rows.empty():
        time.sleep(0.01)
    sink.write("metrics", row(10))
    sink.close()
    assert seen == list(range(len(seen)))
    assert 3 <= len(seen) <= 4


@pytest.mark.parametrize("how", ["full", "slow", "unwritable"])
def test_a_run_with_a_sink_that_fails_has_the_bits_of_one_without(how, plain, tmp_path, monkeypatch, capsys):
    out, name = tmp_path / "run", how
    if how == "unwritable":  # the real one, on a disk that is full
        name = "tensorboard"
        nowhere = lambda *a: open("/dev/full", "wb", 0)  # noqa: SIM115 (closed by whoever opens it)
        monkeypatch.setattr("rlx.run.tensorboard.open", nowhere, raising=False)
    else:
        fake(monkeypatch, how, write=full if how == "full" else lambda *row: time.sleep(0.3))
        monkeypatch.setattr("rlx.run.background.SECONDS", 0.1)
    assert rlx(*TRAIN, "--total-steps", "256", "--log", name, "--out", out) == 0
    printed = capsys.readouterr().out
    assert same_bits(out, plain)
    assert [x["update"] for x in read_rows(out / "metrics.jsonl")] == [1, 2, 3, 4]
    if how != "slow":
        assert printed.count("No space left on device; the run continues without it") == 1
        assert f"rlx log {out} --to {name} writes what is missing" in printed


def test_a_name_that_no_log_has_and_a_package_that_is_missing_are_bad_input(monkeypatch):
    with pytest.raises(ValueError, match="unknown log 'tensorbord': did you mean"):
        check_names(("tensorbord",))
    monkeypatch.setattr("rlx.run.sinks.find_spec", lambda name: None)
    with pytest.raises(
        ValueError, match=r'--log wandb needs wandb, which is not installed: pip install "rlx\[wandb\]"'
    ):
        check_names(("csv", "wandb"))


def checkpoint(directory, update, count):
    (directory / str(update)).mkdir(parents=True)
    (directory / str(update) / "about.json").write_text(json.dumps({"about": {"log": {"count": count}}}))


def test_a_history_is_sent_what_no_resumed_run_writes_again(tmp_path):
    """A row is sent when a checkpoint or an evaluation covers it, in order, and after what was sent before."""
    checkpoints = tmp_path / "checkpoints"
    assert settled(checkpoints) == -1
    history = History(logged(tmp_path, checkpoints=checkpoints, pictures=tmp_path))
    updates = lambda: [(line["kind"], line["update"]) for line in history.released()]
    for update in (2, 4, 6):
        history.add("metrics", row(update, loss=update))
    assert updates() == []
    checkpoint(checkpoints, 6, 2)  # in the middle of a row
    assert updates() == [("metrics", 2), ("metrics", 4)]
    history.add("evaluations", evaluation(6))
    assert updates() == [("metrics", 6), ("evaluations", 6)]
    history.add("metrics", row(7, loss=7.0))  # the rest of a row, which a longer run writes as a whole
    assert updates() == []
    assert history.end() == []  # of a run that was interrupted
    write_json(tmp_path / "evaluation.json", {})
    assert history.end()[0]["kind"] == "tables/evaluations"
    assert history.end()[-1]["summary"]["loss"] == 7.0
    saved = {"id": history.id, "given": {"metrics": 6, "evaluations": 6}}
    write_json(tmp_path / "wandb.json", saved)
    again = History(logged(tmp_path, [row(4), row(6)], [evaluation(6)], checkpoints=checkpoints, pictures=tmp_path))
    again.add("metrics", row(8, loss=8.0))
    again.add("evaluations", evaluation(8))
    assert again.id == history.id
    assert [(line["kind"], line["update"]) for line in again.released()] == [("metrics", 8), ("evaluations", 8)]


@installed
@pytest.mark.more
def test_wandb_offline_has_every_row_once_also_of_a_resumed_run(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    out = tmp_path / "run"
    assert rlx(*TRAIN, "--total-steps", "128", "--log", "wandb", "--out", out) == 0
    assert rlx("train", "--resume", out, "--total-steps", "256") == 0
    rows = wandb_rows(out)
    steps = [x["global_step"] for x in rows if "policy_loss" in x]
    assert steps == [64, 128, 192, 256]
    assert [x["_step"] for x in rows if "evaluation/mean" in x] == [128, 256]
    assert len(list((out / "wandb").glob("offline-run-*"))) == 2
    saved = json.loads((out / "wandb.json").read_text())
    assert all(path.name.endswith(saved["id"]) for path in (out / "wandb").glob("offline-run-*"))
    assert saved["given"]["metrics"] == 4
    assert rlx("log", out, "--to", "wandb") == 0
    assert len([x for x in wandb_rows(out) if "policy_loss" in x]) == 4  # nothing was new


@installed
@pytest.mark.more
@pytest.mark.parametrize("server", ["", "http://127.0.0.1:9"], ids=["no login", "closed port"])
def test_without_login_or_server_a_run_goes_on_and_its_rows_are_on_disk(server, tmp_path, monkeypatch, capsys, plain):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    if server:
        monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
        monkeypatch.setenv("WANDB_BASE_URL", server)
    monkeypatch.setattr("rlx.run.background.SECONDS", 20.0)
    out, started = tmp_path / "run", time.monotonic()
    assert rlx(*TRAIN, "--total-steps", "256", "--log", "wandb", "--out", out) == 0
    assert time.monotonic() - started < 60
    assert same_bits(out, plain)
    assert "`wandb sync` uploads it from there" in capsys.readouterr().out
    assert [x["global_step"] for x in wandb_rows(out) if "policy_loss" in x] == [64, 128, 192, 256]


@installed
@pytest.mark.more
def test_the_client_of_wandb_outlives_nobody(tmp_path):
    """The end of its input ends it, whatever it is doing."""
    client = Path(background.__file__).with_name("wandb_client.py")
    environment = os.environ | {"WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_API_KEY": "a" * 40}
    run = {"id": "abcdef", "name": "x", "group": "", "config": {}, "file": str(tmp_path / "wandb.json"), "mark": {}}
    begin = {"project": "x", "folder": str(tmp_path), "seconds": 1.0, "runs": [run] * 3}
    with subprocess.Popen(
        [sys.executable, "-P", str(client)], stdin=subprocess.PIPE, text=True, env=environment, start_new_session=True
    ) as process:
        process.stdin.write(json.dumps(begin) + "\n")
        process.stdin.close()
        assert process.wait(timeout=30) is not None
