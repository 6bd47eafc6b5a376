"""Runs of an algorithm file of one's own: what they keep of it, and what is said when it has become another one."""

import dataclasses
import json
import os
import shutil
from pathlib import Path

import pytest

from rlx import cli, report, source
from rlx.algorithm import load_algorithm, named_algorithm
from rlx.cli import sweep as cli_sweep
from rlx.files import read_config
from rlx.sweeps.train import _resumes

pytestmark = pytest.mark.more

ROOT = Path(__file__).resolve().parents[1]
SMALL = ["--env", "CartPole-v1", "--total-steps", "64", "--num-envs", "4", "--num-steps", "8", "--num-epochs", "1"]
SMALL += ["--hidden-sizes", "8", "--eval-episodes", "2"]
OTHER = ("pi.mode() if deterministic", "1 - pi.mode() if deterministic")


def rlx(*arguments):
    try:
        cli.main([str(a) for a in arguments])
    except SystemExit as stop:
        return stop.code
    return 0


def change(file):
    text = file.read_text()
    assert OTHER[0] in text
    file.write_text(text.replace(*OTHER))


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A file of one's own, a run of it, and a sweep of two lanes."""
    folder = tmp_path_factory.mktemp("own")
    shutil.copy(ROOT / "algos" / "ppo.py", folder / "mine.py")
    assert rlx("train", folder / "mine.py", *SMALL, "--out", folder / "run") == 0
    sweep = ["sweep", folder / "mine.py", *SMALL, "--learning-rate", "1e-3,1e-2", "--out", folder / "sweep"]
    assert rlx(*sweep) == 0
    return folder


@pytest.fixture
def own(trained, tmp_path):
    """The same in a folder of the test, whose run says that its file is there."""
    shutil.copytree(trained, tmp_path / "own")
    for file in ("run/config.json", "sweep/sweep.json", "sweep/best/config.json"):
        path = tmp_path / "own" / file
        path.write_text(path.read_text().replace(str(trained.resolve()), str((tmp_path / "own").resolve())))
    return tmp_path / "own"


def test_a_run_and_a_sweep_keep_the_source_that_they_ran(trained):
    for directory in (trained / "run", trained / "sweep", trained / "sweep" / "best"):
        assert (directory / "source" / "mine.py").read_bytes() == (ROOT / "algos" / "ppo.py").read_bytes()
    saved = read_config(trained / "run")
    assert saved["source"] == source.hashes("/x/mine.py", {"mine.py": (ROOT / "algos" / "ppo.py").read_bytes()})
    assert list(source.hashes("rlx.algos.ppo", {})) == ["ppo.py"]


def test_evaluation_of_a_changed_file_plays_the_copy_and_says_so(own, capsys):
    assert rlx("eval", own / "run", "--num-episodes", "2", "--output", own / "before.json") == 0
    assert "source" not in capsys.readouterr().out
    change(own / "mine.py")
    assert rlx("eval", own / "run", "--num-episodes", "2", "--output", own / "after.json") == 0
    assert "mine.py has changed since" in capsys.readouterr().out
    assert (own / "before.json").read_bytes() == (own / "after.json").read_bytes()
    (own / "mine.py").unlink()
    assert rlx("eval", own / "run", "--num-episodes", "2", "--output", own / "gone.json") == 0
    assert "mine.py is gone since" in capsys.readouterr().out
    assert (own / "before.json").read_bytes() == (own / "gone.json").read_bytes()
    (own / "run" / "source" / "mine.py").write_text("")
    assert rlx("eval", own / "run") == 2
    assert "the run's copy of its source, has changed" in capsys.readouterr().err


def test_an_evaluation_on_request_is_not_the_final_one(own):
    def files():
        return {path: path.read_bytes() for path in (own / "run").rglob("*") if path.is_file()}

    before, found = files(), report.runs([own / "run"])
    assert rlx("eval", own / "run", "--stochastic", "--num-episodes", "3", "--seed", "5") == 0
    assert rlx("eval", own / "run", "--from-update", "0", "--num-episodes", "3") == 0
    assert report.runs([own / "run"]) == found
    new = files().keys() - before.keys()
    assert sorted(path.name for path in new) == [
        "update-0-seed-0-episodes-3.json",
        "update-2-seed-5-episodes-3-stochastic.json",
    ]
    assert all(path.read_bytes() == content for path, content in before.items())


def test_what_cannot_be_written_is_evaluated_and_drawn_elsewhere(own, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, *how: Path(path).name != "run" and access(path, *how))
    assert rlx("eval", own / "run", "--num-episodes", "2") == 0
    assert "cannot be written: the output goes to" in capsys.readouterr().out
    assert (tmp_path / "run-evaluations-update-2-seed-0-episodes-2.json").exists()
    assert not (own / "run" / "evaluations").exists()


def test_resuming_a_changed_file_is_refused_unless_told_what_to_go_on_with(own, capsys):
    before = (own / "run" / "source" / "mine.py").read_bytes()
    change(own / "mine.py")
    for named in ([], [own / "mine.py"]):
        assert rlx("train", *named, "--resume", own / "run", "--total-steps", "96") == 2
        assert "--source copy" in capsys.readouterr().err
        assert rlx("sweep", *named, "--resume", own / "sweep") == 2
        assert "--source copy" in capsys.readouterr().err
    shutil.copytree(own / "run", own / "other")
    assert rlx("train", "--resume", own / "run", "--total-steps", "96", "--source", "copy") == 0
    assert (own / "run" / "source" / "mine.py").read_bytes() == before
    assert rlx("train", "--resume", own / "other", "--total-steps", "96", "--source", "file") == 0
    assert (own / "other" / "source" / "mine.py").read_bytes() == (own / "mine.py").read_bytes()
    (old,) = (own / "other" / "source").glob("mine-*.py")
    assert old.read_bytes() == before
    assert report.runs([own / "run", own / "other"])[0]["group"].startswith("source=")


def test_a_lane_of_a_changed_file_is_exported_with_the_copy(own, capsys):
    change(own / "mine.py")
    assert rlx("export", own / "sweep", "0", "--out", own / "lane") == 0
    assert "mine.py has changed since" in capsys.readouterr().out
    assert (own / "lane" / "source" / "mine.py").read_bytes() == (ROOT / "algos" / "ppo.py").read_bytes()


def test_a_sweep_from_python_is_not_gone_on_with_by_a_changed_file(own):
    change(own / "mine.py")
    module, name = named_algorithm(str(own / "mine.py"))
    job = dataclasses.replace(cli_sweep.saved_job(own / "sweep"), algorithm=module, algorithm_name=name)
    with pytest.raises(ValueError, match=r"holds another sweep: .*mine.py has changed"):
        _resumes(job)


def test_runs_of_two_sources_are_no_seeds_of_one_another(own):
    for seed, kept in enumerate(["a" * 64, "b" * 64, "a" * 64, None]):
        shutil.copytree(own / "run", own / f"seed{seed}")
        file = own / f"seed{seed}" / "config.json"
        saved = json.loads(file.read_text()) | {"seed": seed, "source": {"mine.py": kept}}
        if kept is None:
            del saved["source"]
        file.write_text(json.dumps(saved))
    found = report.runs([own / f"seed{seed}" for seed in range(3)])
    assert [row["group"] for row in found] == ["source=aaaaaaaa", "source=bbbbbbbb", "source=aaaaaaaa"]
    found = report.runs([own / "seed0", own / "seed2", own / "seed3"])  # one is of before rlx kept hashes
    assert [row["group"] for row in found] == ["mine"] * 3
    found = report.runs([own / f"seed{seed}" for seed in range(4)])
    assert found[3]["group"] == "source=unknown"


def test_a_file_that_moved_is_the_same_algorithm(own):
    shutil.copytree(own / "run", own / "moved")
    file = own / "moved" / "config.json"
    saved = json.loads(file.read_text()) | {"seed": 1, "algorithm": "/elsewhere/mine.py"}
    file.write_text(json.dumps(saved))
    assert [row["group"] for row in report.runs([own / "run", own / "moved"])] == ["mine", "mine"]


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("rlx.algos.ppo", ["rlx.algos.ppo"]),
        ("rlx.algos.ppo+SPO", ["rlx.algos.ppo", "SPO"]),
        ("rlx.algos.ppo+SPO+RND", ["rlx.algos.ppo", "SPO", "RND"]),
        ("/a+b/mine.py", ["/a+b/mine.py"]),
        ("/a+b/mine.py+/c/lpo.npz", ["/a+b/mine.py", "/c/lpo.npz"]),
    ],
)
def test_a_name_is_an_algorithm_and_what_is_given_to_it(name, found):
    assert source.parts(name) == found


def test_a_learned_objective_is_kept_and_told_apart(tmp_path):
    (tmp_path / "lpo.npz").write_bytes(b"1")
    name = f"rlx.algos.ppo+{tmp_path / 'lpo.npz'}"
    source_of = source.read(name, load_algorithm("ppo"))
    (tmp_path / "run").mkdir()
    source.keep(tmp_path / "run", source_of)
    saved = {"algorithm": name, "source": source.hashes(name, source_of)}
    assert source.changes(name, saved) == {}
    (tmp_path / "lpo.npz").write_bytes(b"2")
    assert source.changes(name, saved) == {tmp_path / "lpo.npz": "has changed"}
    base, objective = source.kept(tmp_path / "run", saved)
    assert (base, Path(objective).read_bytes()) == ("rlx.algos.ppo", b"1")


def test_what_a_file_imports_from_its_folder_is_kept_and_used(tmp_path, capsys):
    folder = tmp_path / "with"
    folder.mkdir()
    text = (ROOT / "algos" / "ppo.py").read_text()
    assert OTHER[0] in text
    (folder / "mine.py").write_text(
        "from chosen import choose\n" + text.replace(OTHER[0], f"choose(pi) {OTHER[0][10:]}")
    )
    (folder / "chosen.py").write_text("def choose(pi):\n    return pi.mode()\n")
    assert rlx("train", folder / "mine.py", *SMALL, "--out", folder / "run") == 0
    assert (folder / "run" / "source" / "chosen.py").read_bytes() == (folder / "chosen.py").read_bytes()
    assert rlx("eval", folder / "run", "--num-episodes", "2", "--output", folder / "before.json") == 0
    (folder / "chosen.py").write_text("def choose(pi):\n    return 1 - pi.mode()\n")
    capsys.readouterr()
    assert rlx("eval", folder / "run", "--num-episodes", "2", "--output", folder / "after.json") == 0
    assert "chosen.py has changed since" in capsys.readouterr().out
    assert (folder / "before.json").read_bytes() == (folder / "after.json").read_bytes()
    assert rlx("train", "--resume", folder / "run", "--total-steps", "96") == 2
    assert "chosen.py has changed since" in capsys.readouterr().err
    shutil.rmtree(folder / "run" / "source" / "__pycache__", ignore_errors=True)
    for name in ("mine.py", "chosen.py"):
        (folder / name).unlink()
    assert rlx("eval", folder / "run", "--num-episodes", "2", "--output", folder / "gone.json") == 0
    assert (folder / "before.json").read_bytes() == (folder / "gone.json").read_bytes()
