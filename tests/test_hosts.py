"""Several processes that train one run, on the loopback interface."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from rlx.devices import hosts
from rlx.run import checkpoint

SIZES = ["--num-envs", "8", "--num-steps", "16", "--hidden-sizes", "16", "--eval-episodes", "8"]
SETTINGS = ["ppo", "--env", "CartPole-v1", "--num-minibatches", "2", *SIZES]
PHYSICS = ["ppo", "--env", "mjx/pendulum", "--no-preset", "--num-minibatches", "2", *SIZES]
REPLAY = ["sac", "--env", "Pendulum-v1", "--no-preset", "--warmup-steps", "128", "--capacity", "1024", *SIZES]
LOST = 60  # seconds within which the others have ended; on a network without resets it is the heartbeat that tells


def together(num, *arguments, each=None):
    """Starts the processes of one run; `each` has more arguments of one of them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = [sys.executable, "-m", "rlx", "train", *arguments, "--distributed", "--coordinator", address]
    command += ["--num-processes", str(num), "--process-id"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return [subprocess.Popen([*command, str(i), *(each[i] if each else [])], **pipes) for i in range(num)]


def until_trained(processes, done, timeout=200):
    deadline = time.monotonic() + timeout
    while not done():
        assert time.monotonic() < deadline
        assert all(process.poll() is None for process in processes), ends(processes)
        time.sleep(0.2)


def ends(processes, timeout=300):
    """Status, output and complaints of each."""
    found = [process.communicate(timeout=timeout) for process in processes]
    return [(process.returncode, *texts) for process, texts in zip(processes, found, strict=True)]


def alone(*arguments):
    out = subprocess.run([sys.executable, "-m", "rlx", "train", *arguments], capture_output=True, text=True)
    assert out.returncode == 0, out.stderr
    return out.stdout


def rows(directory):
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def params(directory):
    """Of the newest checkpoint, by their names."""
    newest = checkpoint.numbers(directory / "checkpoints")[-1]
    import orbax.checkpoint as ocp

    with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as checkpointer:
        path = (directory / "checkpoints" / str(newest) / "state").resolve()
        found = checkpointer.restore(path, args=ocp.args.StandardRestore(fallback_sharding=_here()))
    return {name: np.asarray(x) for name, x in found.items() if name.startswith("params")}


def _here():
    return jax.sharding.SingleDeviceSharding(jax.devices()[0])


@pytest.mark.slow
@pytest.mark.parametrize("settings", [SETTINGS, PHYSICS, REPLAY])
def test_two_processes_train_one_run_as_one_process_with_two_devices_does(settings, tmp_path):
    out, other = tmp_path / "two", tmp_path / "one"
    settings = [*settings, "--total-steps", "1280", "--num-evaluations", "2"]
    (status, said, complaints), (status_1, said_1, _) = ends(together(2, *settings, "--out", str(out)))
    assert (status, status_1) == (0, 0), complaints
    assert "evaluation after 1,280 steps" in said
    assert "evaluation" not in said_1  # one of them speaks
    updates = [row["update"] for row in rows(out)]
    assert updates == list(range(1, updates[-1] + 1))
    assert json.loads((out / "config.json").read_text())["devices"] == 2

    alone(*settings, "--out", str(other), "--devices", "2")
    for name, x in params(other).items():
        np.testing.assert_allclose(params(out)[name], x, rtol=1e-3, atol=1e-5)  # sums in another order


@pytest.mark.slow
def test_under_slurm_the_processes_find_each_other(tmp_path):
    command = [sys.executable, "-m", "rlx", "train", *SETTINGS, "--total-steps", "256", "--out", str(tmp_path / "run")]
    with socket.socket() as free:
        job = next(i for i in range(4096) if free.connect_ex(("127.0.0.1", 61440 + i)))  # JAX takes the port from it
    step = {"SLURM_JOB_ID": str(job), "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "2"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    ranks = [{"SLURM_PROCID": str(i), "SLURM_LOCALID": str(i)} for i in range(2)]
    environments = [os.environ | step | rank for rank in ranks]
    processes = [subprocess.Popen([*command, "--distributed"], env=each, **pipes) for each in environments]
    for status, _, complaints in ends(processes):
        assert status == 0, complaints
    assert json.loads((tmp_path / "run" / "config.json").read_text())["devices"] == 2


@pytest.mark.slow
def test_a_signal_to_one_process_ends_all_of_them_after_the_same_update(tmp_path):
    out = tmp_path / "run"
    processes = together(2, *SETTINGS, "--total-steps", "10000000", "--out", str(out))
    until_trained(processes, lambda: (out / "metrics.jsonl").exists() and len(rows(out)) > 1)
    os.kill(processes[1].pid, signal.SIGTERM)
    (status, said, complaints), (status_1, *_) = ends(processes)
    assert (status, status_1) == (143, 143), complaints
    newest = checkpoint.numbers(out / "checkpoints")[-1]
    assert f"interrupted after {128 * newest:,} of" in said


@pytest.mark.slow
def test_what_only_one_process_finds_wrong_ends_both(tmp_path):
    command = [*SETTINGS, "--total-steps", "1280", "--out", str(tmp_path / "run")]
    processes = together(2, *command, each=[[], ["--num-envs", "3"]])
    for status, _, complaints in ends(processes):
        assert status != 0, complaints


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 2])
def test_a_lost_process_ends_the_others_and_the_run_goes_on_with_fewer(tmp_path, victim):
    out = tmp_path / "run"
    settings = [*SETTINGS, "--total-steps", "10000000", "--checkpoint-seconds", "1"]
    processes = together(4, *settings, "--out", str(out))
    until_trained(processes, lambda: max(checkpoint.numbers(out / "checkpoints"), default=0) > 0)
    os.kill(processes[victim].pid, signal.SIGKILL)
    started = time.monotonic()
    ended = ends(processes)
    assert time.monotonic() - started < LOST
    assert ended[victim][0] == -signal.SIGKILL
    others = [found for i, found in enumerate(ended) if i != victim]
    assert all(status != 0 for status, *_ in others)
    # Where the first process is lost, JAX may be the first to notice in the others, and end them in its own words.
    own = "cannot be reached", "start all of them again with --resume"
    jax_says = ("JAX distributed service detected fatal errors",)
    for *_, complaints in others:
        assert any(all(word in complaints for word in words) for words in (own, jax_says))
    if victim:
        assert all(word in complaints for word in own for *_, complaints in others)

    newest = checkpoint.numbers(out / "checkpoints")[-1]
    total = str(128 * (newest + 20))
    resumed = ends(together(2, "--resume", str(out), "--total-steps", total))
    assert [status for status, *_ in resumed] == [0, 0], resumed
    assert f"resuming after {newest} of {newest + 20} updates" in resumed[0][1]
    assert "2 devices instead of 4" in resumed[0][1]
    every = max(1, (newest + 20) // 1000)
    updates = [row["update"] for row in rows(out)]
    assert updates == sorted(set(updates))
    assert updates[-1] == newest + 20
    assert updates[-1] - updates[-2] <= every + 1

    said = alone("--resume", str(out), "--total-steps", str(128 * (newest + 40)), "--devices", "1")
    assert "1 devices instead of 2" in said


def test_one_process_agrees_with_itself():
    assert hosts.first()
    assert hosts.most(3, 1) == (3, 1)
    assert hosts.agree("runs/x") == "runs/x"
    hosts.barrier("nothing to wait for")
    np.testing.assert_array_equal(hosts.fetch({"a": jax.numpy.arange(3)})["a"], [0, 1, 2])


def test_joining_without_an_address_says_what_to_give():
    command = [sys.executable, "-m", "rlx", "train", *SETTINGS, "--distributed"]
    out = subprocess.run(command, capture_output=True, text=True)
    assert out.returncode == 2
    assert "give --coordinator HOST:PORT, --num-processes and --process-id" in out.stderr


def test_options_of_several_processes_need_distributed():
    command = [sys.executable, "-m", "rlx", "train", *SETTINGS, "--process-id", "1"]
    out = subprocess.run(command, capture_output=True, text=True)
    assert out.returncode == 2
    assert "give --distributed too" in out.stderr
