"""`rlx show`: the card says what was, and the command that it prints gives the same bits."""

import json
import shlex
import sys

import jax
import numpy as np
import pytest

from rlx import cli
from rlx.files import read_rows, write_json
from rlx.report.card import card
from rlx.report.recipe import OUT, setting

EXACT = True  # bits are compared
SMALL = ["--num-envs", "4", "--num-steps", "16", "--num-epochs", "1", "--num-minibatches", "1"]
SMALL += ["--hidden-sizes", "4", "--eval-episodes", "2"]
TRAIN = ["train", "ppo", "--env", "CartPole-v1", *SMALL, "--learning-rate", "linear:0.01:0", "--value-clip", "inf"]
TRAIN += ["--env-params", "gravity=3", "--seed", "3", "--num-evaluations", "2", "--no-normalize-obs"]
SWEEP = ["sweep", "ppo", "--env", "CartPole-v1", *SMALL, "--total-steps", "128", "--learning-rate", "log:1e-4:1e-2"]
SWEEP += ["--num-samples", "2"]
pytestmark = pytest.mark.usefixtures("command_cache")


def rlx(*arguments):
    """The exit status of a command, which a run records."""
    words = [str(a) for a in arguments]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["/somewhere/bin/rlx", *words])
        try:
            cli.main(words)
        except SystemExit as stop:
            return stop.code
    return 0


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    directory = tmp_path_factory.mktemp("runs") / "run"
    assert rlx(*TRAIN, "--total-steps", "256", "--out", directory) == 0
    return directory


def again(found, out):
    """Does what a card says, into another directory."""
    for command in found["again"]["commands"]:
        words = [str(out) if word == OUT else word for word in shlex.split(command)]
        if words[0] == "env":  # flags of this process
            words = words[words.index("rlx") :]
        assert rlx(*words[1:]) == 0


def checksums(directory):
    """The checksums of the arrays of every checkpoint, and the logs without the seconds."""
    kept = {}
    for path in sorted(directory.rglob("checkpoints/*/about.json")):
        kept[path.parent.name] = arrays(path.parent)
    rows = [row for name in ("metrics", "evaluations") for row in read_rows(directory / f"{name}.jsonl")]
    return kept, [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


def arrays(checkpoint):
    import orbax.checkpoint as ocp

    with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as checkpointer:
        found = checkpointer.restore(checkpoint.resolve() / "state")
    is_key = lambda x: jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)
    leaves = [(path, jax.random.key_data(x) if is_key(x) else x) for path, x in jax.tree.leaves_with_path(found)]
    return {jax.tree_util.keystr(path): np.asarray(x).tobytes() for path, x in leaves}


def test_the_command_of_a_card_gives_the_same_bits(run, tmp_path):
    found = card(run)
    assert found["again"]["exact"]
    again(found, tmp_path / "again")
    first, second = checksums(run), checksums(tmp_path / "again")
    assert first[0].keys() == second[0].keys() == {"0", "2", "4"}
    assert first == second


def test_the_commands_of_a_run_that_was_made_longer_give_the_same_bits(tmp_path):
    out = tmp_path / "run"
    assert rlx(*TRAIN, "--total-steps", "128", "--out", out) == 0
    assert rlx("train", "--resume", out, "--total-steps", "256") == 0
    found = card(out)
    assert found["again"]["exact"]
    assert len(found["again"]["commands"]) == 2
    assert found["resumed"][0]["command"][1] == "train"
    again(found, tmp_path / "again")
    assert checksums(out)[0]["4"] == checksums(tmp_path / "again")[0]["4"]


def test_a_run_that_no_command_gives_says_why(run, tmp_path):
    saved = json.loads((run / "config.json").read_text())
    before = {"after": 1, "total_steps": 128, "updates": 2, "devices": 2, "versions": {"jax": "0.1"}}
    write_json(tmp_path / "config.json", saved | {"resumed": [before]})
    found = card(tmp_path)["again"]
    assert not found["exact"]
    text = " ".join(found["notes"])
    assert "stopped before its end and went on with another number of steps" in text
    assert "resumed with another number of devices" in text
    assert "resumed with other versions" in text


def test_a_rule_that_stopped_a_run_is_in_its_command_and_a_hook_in_its_notes(run, tmp_path):
    saved = json.loads((run / "config.json").read_text())
    ruled = saved | {"stop_at_return": 42.0, "patience": None}
    write_json(tmp_path / "config.json", ruled)
    (command,) = card(tmp_path)["again"]["commands"]
    assert "--stop-at-return 42.0" in command
    assert "--patience" not in command
    changes = [{"update": 3, "settings": {"learning_rate": 0.5}}]
    write_json(tmp_path / "config.json", saved | {"changes": changes})
    found = card(tmp_path)["again"]
    assert not found["exact"]
    assert any("a hook in Python changed its settings" in note for note in found["notes"])
    write_json(tmp_path / "config.json", saved | {"env": None})
    found = card(tmp_path)["again"]
    assert found["commands"] == []
    assert "an environment without a name" in found["notes"][0]


def test_a_card_says_what_is_another_now_and_what_follows(run, tmp_path):
    saved = json.loads((run / "config.json").read_text())
    assert card(run)["now"] == []
    versions = saved["versions"] | {"jaxlib": "0.0.1"}
    source = dict.fromkeys(saved["source"], "0" * 64)
    other = {"versions": versions, "source": source, "rlx_source": "1" * 64, "commit": "abc with changes"}
    write_json(tmp_path / "config.json", saved | other)
    found = card(tmp_path)
    now = {item["what"]: item for item in found["now"]}
    assert now.keys() == {"jaxlib", "rlx_source", "ppo.py"}
    assert now["jaxlib"]["was"] == "0.0.1"
    assert "another program" in now["jaxlib"]["follows"]
    assert "another algorithm" in now["ppo.py"]["follows"]
    assert "jaxlib==0.0.1" in found["again"]["install"]
    assert not found["again"]["exact"]  # rlx had changes that no commit has


def test_settings_are_told_apart_from_defaults_and_from_tuned_ones(run, tmp_path):
    saved = json.loads((run / "config.json").read_text())
    assert card(run)["settings"]["not_default"]["learning_rate"] == "linear:0.01:0"
    write_json(tmp_path / "config.json", saved | {"preset": {"num_steps": 16}})
    settings = card(tmp_path)["settings"]
    assert "num_steps" in settings["not_default"]
    assert "num_steps" not in settings["not_tuned"]
    assert settings["not_tuned"]["num_epochs"] == 1
    assert "gamma" not in settings["not_default"]


@pytest.mark.parametrize(
    ("value", "words"),
    [(True, ["--a-b"]), (False, ["--no-a-b"]), ([4, 5], ["--a-b", "4", "5"]), ([], ["--a-b"]), (0.1, ["--a-b", "0.1"])],
)
def test_a_setting_is_an_option(value, words):
    assert setting("a_b", value) == words


def test_a_card_has_three_forms(run, capsys):
    assert rlx("show", run, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["env"] == {"name": "gymnax/CartPole-v1", "options": {}, "params": {"gravity": 3}}
    assert found["checkpoints"] == [0, 2, 4]
    assert found["best"]["mean"] == max(row["mean"] for row in found["evaluations"])
    assert rlx("show", run, "--markdown") == 0
    text = capsys.readouterr().out
    assert text.startswith(f"# run: {run}\n")
    assert f"$ {found['again']['commands'][0]}\n" in text
    assert "| learning_rate | linear:0.01:0 | own |" in text
    assert "nothing: the commands give the same bits here" in text
    assert rlx("show", run) == 0
    assert capsys.readouterr().out == text  # no terminal
    assert rlx("show", run, "--json", "--markdown") == 2
    assert "give one of them" in capsys.readouterr().err


def test_a_sweep_and_its_lanes_have_cards_and_the_command_gives_the_same_bits(tmp_path, capsys):
    out = tmp_path / "sweep"
    assert rlx(*SWEEP, "--out", out) == 0
    found = card(out)
    assert found["again"]["exact"]
    assert found["num_lanes"] == 2
    again(found, tmp_path / "again")
    strip = lambda directory: [(row["config"], row["evaluation"]) for row in read_rows(directory / "lanes.jsonl")]
    assert strip(out) == strip(tmp_path / "again")
    state = next(out.glob("batches/r0g0b0/checkpoints/2"))
    assert arrays(state) == arrays(tmp_path / "again" / state.relative_to(out))
    lane = card(out, 1)
    row = read_rows(out / "lanes.jsonl")[1]
    assert lane["settings"]["not_default"]["learning_rate"] == row["varied"]["learning_rate"]
    assert lane["evaluations"][0]["mean"] == row["return_mean"]
    assert lane["again"]["commands"][1].startswith("rlx export runs/again 1 ")
    assert rlx("show", out) == 0
    assert rlx("show", out, "--lane", "1") == 0
    assert f"# lane 1 of {out}" in capsys.readouterr().out
    assert rlx("show", out, "--lane", "2") == 2
    assert "has lanes 0 to 1" in capsys.readouterr().err
    assert rlx("show", out / "best") == 0
    assert "the run is a lane of a sweep" in capsys.readouterr().out


def test_what_is_no_run_has_no_card(run, tmp_path, capsys):
    assert rlx("show", tmp_path) == 2
    assert "is not a run directory" in capsys.readouterr().err
    assert rlx("show", run, "--lane", "0") == 2
    assert "lanes are of sweeps" in capsys.readouterr().err
