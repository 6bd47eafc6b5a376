"""Programs that are found again without tracing: what tells them apart, what is kept, and that they do the same."""

import json
import os
import subprocess
import sys
import time
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rlx
from rlx.algos import ppo
from rlx.run import known as module
from rlx.run.known import Known, Program, alone, described, imported, is_file, make_room, unchanged, write
from rlx.stopping import stopping

SHIPPED = "rlx.algos.ppo"
NUMBERS = count(2.0)


@pytest.fixture(scope="module")
def job():
    given = {"env_options": {}, "env_params": {}, "eval_episodes": 8, "after": None, "data": None}
    env = rlx.envs.make("CartPole-v1")
    return SimpleNamespace(algorithm_name=SHIPPED, config=ppo.Config(), env=env, env_name="gymnax/CartPole-v1", **given)


def changed(job, **changes):
    return SimpleNamespace(**vars(job) | changes)


def test_what_shapes_a_program_is_described_and_what_does_not_is_left_out(job):
    text = described(job, None, 10)
    assert text == described(job, None, 10)
    assert text == described(changed(job, config=ppo.Config(learning_rate=1.0)), None, 10)  # traced
    assert text == described(changed(job, env=rlx.envs.make("CartPole-v1")), None, 10)
    others = [
        described(changed(job, **changes), None, 10)
        for changes in (
            {"config": ppo.Config(num_envs=8)},
            {"config": ppo.Config(learning_rate="linear:1e-3:0")},
            {"env_name": "gymnax/Acrobot-v1"},
            {"env": rlx.envs.make("Acrobot-v1")},
            {"env_options": {"max_steps": 3}},
            {"env_params": {"gravity": 1.0}},
            {"eval_episodes": 9},
            {"algorithm_name": "rlx.algos.ppo+ClipHigher"},
            {"data": np.zeros(3, np.float32)},
        )
    ]
    others += [described(job, stopping(1.0, None, 10), 10), described(job, None, 11)]
    assert None not in others
    assert len({text, *others}) == 1 + len(others)


def test_settings_of_jax_and_flags_tell_programs_apart(job, monkeypatch):
    text = described(job, None, 10)
    with jax.default_matmul_precision("highest"):
        assert described(job, None, 10) != text
    monkeypatch.setenv("XLA_FLAGS", os.environ.get("XLA_FLAGS", "") + " --other")
    assert described(job, None, 10) != text


def test_what_may_be_anything_is_not_described(job, tmp_path):
    model = tmp_path / "model.xml"
    model.write_text("<mujoco/>")
    for changes in (
        {"env_name": None},
        {"env_name": "mine.py"},
        {"env_name": "mine.py:make"},
        {"env_name": "playground/CheetahRun"},
        {"env_options": {"model": str(model)}},
        {"env_options": {"model": "<mujoco/>"}},
        {"env_options": {"start": len}},
        {"algorithm_name": str(tmp_path / "mine.py")},
        {"algorithm_name": "rlx.algos.ppo+rule.npz"},
        {"after": print},
    ):
        assert described(changed(job, **changes), None, 10) is None, changes
    assert is_file(str(model))
    assert not is_file("gymnax")


def test_only_the_command_finds_programs(monkeypatch):
    assert not module.from_shell()  # these are tests
    monkeypatch.setattr(sys, "argv", ["rlx.py"])
    assert not module.from_shell()
    for name in ("/somewhere/bin/rlx", str(Path(rlx.__file__).parent / "__main__.py")):
        monkeypatch.setattr(sys, "argv", [name, "train"])
        assert module.from_shell()
    monkeypatch.setenv("RLX_COMPILER", "off")
    assert module.programs_folder() is None


def test_files_that_were_imported_are_known_by_their_size_and_time(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "BEGAN", time.time() + 60)
    files = imported()
    folder = Path(rlx.__file__).parent
    assert str(folder / "pytree.py") in files
    assert any(name.endswith("envs/models/hopper.xml") for name in files)
    assert any(name.endswith("algos/ppo.toml") for name in files)
    assert jax.__file__ in files
    assert unchanged(files)
    mine = tmp_path / "mine.py"
    mine.write_text("x = 1\n")
    known = {str(mine): module.stamped(str(mine))}
    assert unchanged(known)
    mine.write_text("x = 2\n")
    os.utime(mine, ns=(0, known[str(mine)][1] + 1))
    assert not unchanged(known)
    mine.unlink()
    assert not unchanged(known)
    monkeypatch.setattr(module, "BEGAN", 0.0)  # all files are younger than the process
    assert imported() is None


def test_calls_that_a_process_has_to_prepare_are_not_kept():
    assert alone(jax.jit(jnp.linalg.cholesky).lower(jnp.eye(2)).as_text())
    called = jax.jit(lambda x: jax.pure_callback(np.sin, x, x)).lower(1.0)
    assert not alone(called.as_text())


@pytest.fixture
def made(tmp_path, monkeypatch):
    """What a start of a run does with a program, by the sizes of its argument; and how often it was traced."""
    monkeypatch.setattr(module, "BEGAN", time.time() + 60)
    seen, own = {"traced": 0}, next(NUMBERS)  # a program of each test's own: JAX's cache does not know it

    def start(size=3, factor=own):
        kept = Known(tmp_path, "a job")

        def lower():
            seen["traced"] += 1
            return jax.jit(lambda x: {"out": factor * x["in"], "factor": jnp.linalg.cholesky(jnp.eye(2))}).lower(like)

        like = {"in": jax.ShapeDtypeStruct((size,), jnp.float32)}
        shapes = kept.shapes(lambda: like)
        asked = [kept.program(what, lower, shapes) for what in ("init", "step")]
        kept.traced(shapes)
        init, step = (program.compile() for program in asked)
        argument = {"in": jnp.arange(float(size))}
        jax.tree.map(np.testing.assert_array_equal, init(argument), step(argument))
        np.testing.assert_array_equal(step(argument)["out"], factor * argument["in"])
        return kept.everything

    return start, seen, tmp_path


def test_a_program_is_traced_once_and_then_loaded(made):
    start, seen, _ = made
    assert [start(), seen["traced"]] == [False, 2]
    assert [start(), seen["traced"]] == [True, 2]


def test_a_changed_file_has_it_traced_again_and_not_compiled(made, monkeypatch):
    start, seen, folder = made
    start()
    num = len(list((folder / "programs").iterdir()))
    with monkeypatch.context() as patch:
        patch.setattr(module, "unchanged", lambda files: False)
        patch.setattr(module, "keep", lambda path, compiled: pytest.fail("it was compiled"))
        assert not start()
        assert seen["traced"] == 4
    assert len(list((folder / "programs").iterdir())) == num


def test_a_changed_file_that_makes_another_program_is_not_mixed_up(made, monkeypatch):
    start, _, _ = made
    start()
    with monkeypatch.context() as patch:
        patch.setattr(module, "unchanged", lambda files: False)
        assert not start(factor=0.5)
    assert start(factor=0.5)


def test_a_program_that_cannot_be_read_is_made_again(made):
    start, seen, folder = made
    start()
    for path in (folder / "programs").iterdir():
        path.write_bytes(b"no program")
    assert start()  # all seemed to be there
    assert seen["traced"] == 4
    assert not any(path.read_bytes() == b"no program" for path in (folder / "programs").iterdir())


def test_what_jax_found_in_its_own_cache_is_not_kept(tmp_path, compiled):
    function = jax.jit(lambda x: jnp.sin(x) * 3.25 + 1.5)
    argument = jax.ShapeDtypeStruct((7,), jnp.float32)
    lower = lambda: function.lower(argument)
    into = jax.tree.structure(((argument,), {}))
    lower().compile()  # is in that cache from now on
    jax.clear_caches()
    Program(tmp_path / "known", into, lower).compile()
    assert not (tmp_path / "known").exists()


def test_what_was_used_last_stays(tmp_path):
    for i in range(4):
        write(tmp_path / f"{i}", b"x" * 1000)
        os.utime(tmp_path / f"{i}", (i, i))
    os.utime(tmp_path / "0", (9, 9))
    make_room(tmp_path, most=2500)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "3"]


def test_an_unknown_job_is_traced_and_leaves_nothing(tmp_path):
    kept = Known(tmp_path, None)
    lowered = jax.jit(jnp.sin).lower(1.0)
    assert kept.shapes(lambda: "made") == "made"
    assert kept.program("step", lambda: lowered, 1.0).compile()(1.0) == jnp.sin(1.0)
    kept.traced("made")
    assert not list(tmp_path.iterdir())


def test_the_command_loads_what_it_compiled_and_does_the_same(tmp_path):
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache")}

    def run(name, *more):
        command = [sys.executable, "-m", "rlx", "train", "ppo", "--env", "probe/ContinuousAction", "--no-preset"]
        sizes = ["--num-envs", "4", "--num-steps", "8", "--hidden-sizes", "4", "--total-steps", "256"]
        out = ["--eval-episodes", "2", "--out", str(tmp_path / name)]
        done = subprocess.run([*command, *sizes, *out, *more], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        rows = [json.loads(row) for row in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        times = ("seconds", "steps_per_second")
        rows = [{key: value for key, value in row.items() if key not in times} for row in rows]
        return done.stdout, rows, (tmp_path / name / "evaluation.json").read_text()

    first, rows, evaluation = run("first")
    again, *found = run("again")
    assert "traced and compiled in" in first
    assert "its programs are known here" in again
    assert "loaded in" in again
    assert found == [rows, evaluation]
    other, other_rows, _ = run("other", "--learning-rate", "0.1")
    assert "loaded in" in other
    assert other_rows != rows
    assert "traced and compiled in" in run("larger", "--num-envs", "8")[0]
