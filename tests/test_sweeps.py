"""Sweeps as a user meets them: what a directory holds, interruption, halving, populations, bad input."""

import csv
import io
import json
import math
import shutil
import signal
from itertools import pairwise

import jax
import numpy as np
import pytest
from rich.console import Console

import rlx
from rlx import cli, replace
from rlx.files import read_rows
from rlx.run import keys
from rlx.run.checkpoint import restore
from rlx.run.progress import Display
from rlx.sweeps.search import LogUniform
from rlx.sweeps.strategies import Grid, Halving, Population, numbers_of, strategy_of

RATES = [1e-2, 1e-3]
SIZES = ["--num-steps", "16", "--num-epochs", "2", "--num-minibatches", "2", "--hidden-sizes", "16"]
SIZES += ["--total-steps", "192", "--eval-episodes", "2", "--env-options", "max_steps=12", "--no-compile-cache"]


@pytest.fixture(scope="module")
def sweep(ppo, small, cartpole):
    """`sweep(directory, space, ...)` of the small config with 2 seeds."""

    def run(directory, space, config=small, **options):
        options = {"num_seeds": 2, "eval_episodes": 2} | options
        return rlx.sweep(ppo, config, cartpole, space, directory=directory, **options)

    return run


@pytest.fixture(scope="module")
def swept(sweep, tmp_path_factory):
    directory = tmp_path_factory.mktemp("sweeps") / "sweep"
    return sweep(directory, {"learning_rate": RATES, "num_envs": [4, 8]})


def bits(x):
    return jax.random.key_data(x) if jax.numpy.issubdtype(x.dtype, jax.dtypes.prng_key) else x


def assert_equal(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(bits(x), bits(y)), a, b)


def assert_same_sweep(a, b):
    """States bitwise, rows and logs."""
    assert a.lanes == b.lanes
    for lane in range(len(a.lanes)):
        assert_equal(a.state(lane), b.state(lane))
        drop = lambda log: [{k: v for k, v in row.items() if k != "seconds"} for row in log]
        assert drop(a.log(lane)) == drop(b.log(lane))


def rlx_command(*arguments):
    """The exit status of a command."""
    try:
        cli.main([str(a) for a in arguments])
    except SystemExit as stop:
        return stop.code
    return 0


def test_a_sweep_has_a_lane_for_every_seed_of_every_configuration(swept):
    lanes = [(row["varied"]["learning_rate"], row["varied"]["num_envs"], row["seed"]) for row in swept.lanes]
    assert lanes == [(rate, num, seed) for rate in RATES for num in (4, 8) for seed in (0, 1)]
    assert {row["steps"] for row in swept.lanes} == {192, 256}
    assert all(row["died_at"] is None and row["dropped_at"] is None for row in swept.lanes)


def test_a_sweep_leaves_tables_a_ranking_pictures_and_the_best_run(swept):
    directory = swept.job.directory
    with open(directory / "results.csv") as file:
        table = list(csv.DictReader(file))
    assert [float(row["return_mean"]) for row in table] == [row["return_mean"] for row in swept.lanes]
    assert [row["num_envs"] for row in table] == ["4", "4", "8", "8"] * 2
    rows = read_rows(directory / "lanes.jsonl")
    assert [row["config"]["num_envs"] for row in rows] == [4, 4, 8, 8] * 2
    assert all(row["config"]["gamma"] == 0.99 for row in rows)
    ranking = json.loads((directory / "ranking.json").read_text())
    assert [row["configuration"] for row in ranking] == swept.ranking()
    assert [row["mean"] for row in ranking] == sorted((row["mean"] for row in ranking), reverse=True)
    summary = json.loads((directory / "summary.json").read_text())
    assert (summary["lanes"], summary["programs"], summary["devices"]) == (8, 2, 2)
    assert summary["steps"] == 4 * 192 + 4 * 256
    lengths = sum(row["evaluation"]["mean_length"] * 2 for row in swept.lanes)
    assert summary["evaluation_steps"] == round(lengths)
    for picture in ("curves.png", "sensitivity.png", "heatmap.png", "best/curve.png"):
        assert (directory / picture).read_bytes().startswith(b"\x89PNG")


def test_the_best_lane_is_the_best_seed_of_the_best_configuration(swept):
    scores = [np.mean([row["return_mean"] for row in swept.lanes if row["configuration"] == c]) for c in range(4)]
    assert swept.ranking()[0] == int(np.argmax(scores))
    own = [row for row in swept.lanes if row["configuration"] == swept.ranking()[0]]
    assert swept.lanes[swept.best]["return_mean"] == max(row["return_mean"] for row in own)


def test_a_lane_is_the_run_of_its_seed(swept, ppo):
    config, env = swept.settings(1)
    state, metrics = rlx.train(ppo, config, env, keys(1)[0])
    # Other programs of the same operations; see test_lanes.
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), swept.state(1).params, state.params)
    np.testing.assert_allclose([row["entropy"] for row in swept.log(1)], metrics["entropy"], rtol=1e-4)
    assert [row["update"] for row in swept.log(1)] == [1, 2, 3]


@pytest.mark.more
def test_a_sweep_is_repeatable(sweep, swept, tmp_path):
    assert_same_sweep(sweep(tmp_path / "again", {"learning_rate": RATES, "num_envs": [4, 8]}), swept)


@pytest.mark.more
@pytest.mark.parametrize(
    ("options", "moment"),
    [({}, 0), ({}, 2), ({"halving": 2}, 2), ({"pbt": 3}, 1)],
    ids=["grid", "end", "halving", "pbt"],
)
def test_an_interrupted_sweep_goes_on_bitwise(sweep, tmp_path, monkeypatch, options, moment):
    space = {"learning_rate": RATES}
    show, shown = Display.show, []

    def show_and_interrupt(self, *arguments):
        show(self, *arguments)
        shown.append(arguments)
        if len(shown) == moment + 1:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr("rlx.sweeps.train.CHUNK_UPDATES", 1)
    whole = sweep(tmp_path / "whole", space, **options)
    with monkeypatch.context() as patch:
        patch.setattr(Display, "show", show_and_interrupt)
        with pytest.raises(KeyboardInterrupt, match="status 143"):
            sweep(tmp_path / "cut", space, **options)
    assert not (tmp_path / "cut" / "summary.json").exists()
    assert_same_sweep(sweep(tmp_path / "cut", space, **options), whole)


@pytest.mark.more
@pytest.mark.parametrize("options", [{}, {"pbt": 3}], ids=["grid", "pbt"])
def test_a_sweep_goes_on_bitwise_with_another_number_of_devices(sweep, tmp_path, monkeypatch, options):
    space, show = {"learning_rate": [1e-3, 3e-3, 1e-2]}, Display.show

    def show_and_interrupt(self, *arguments):
        show(self, *arguments)
        signal.raise_signal(signal.SIGTERM)

    options |= {"num_seeds": 1}
    whole = sweep(tmp_path / "whole", space, **options)
    with monkeypatch.context() as patch:
        patch.setattr("rlx.sweeps.train.CHUNK_UPDATES", 1)
        patch.setattr(Display, "show", show_and_interrupt)
        one = jax.devices()[:1]
        patch.setattr(jax, "devices", lambda: one)
        patch.setattr(jax, "device_count", lambda: 1)
        with pytest.raises(KeyboardInterrupt, match="status 143"):
            sweep(tmp_path / "cut", space, **options)
    assert [json.loads(path.read_text())["num_lanes"] for path in (tmp_path / "cut" / "batches").glob("*.json")] == [3]
    assert sweep(tmp_path / "cut", space, **options).lanes == whole.lanes


def test_going_on_with_a_sweep_that_has_ended_changes_nothing(sweep, swept):
    files = {path: path.stat().st_mtime_ns for path in swept.job.directory.rglob("*") if path.is_file()}
    assert sweep(swept.job.directory, {"learning_rate": RATES, "num_envs": [4, 8]}).lanes == swept.lanes
    assert {path: path.stat().st_mtime_ns for path in swept.job.directory.rglob("*") if path.is_file()} == files


def test_another_sweep_in_the_same_directory_is_refused(sweep, swept):
    with pytest.raises(ValueError, match="holds another sweep: num_seeds = 2 -> 3"):
        sweep(swept.job.directory, {"learning_rate": RATES, "num_envs": [4, 8]}, num_seeds=3)


@pytest.mark.more
def test_a_lane_that_dies_is_marked_and_the_others_are_as_without_it(sweep, tmp_path):
    sick = sweep(tmp_path / "sick", {"learning_rate": [1e-2, math.inf, 1e-3]})
    sound = sweep(tmp_path / "sound", {"learning_rate": [1e-2, 3e-3, 1e-3]})
    assert [row["died_at"] for row in sick.lanes] == [None, None, 1, 1, None, None]
    for lane in (0, 1, 4, 5):
        assert_equal(sick.state(lane), sound.state(lane))
        assert sick.lanes[lane]["return_mean"] == sound.lanes[lane]["return_mean"]
    with open(tmp_path / "sick" / "results.csv") as file:
        assert [row["died_at"] for row in csv.DictReader(file)] == ["", "", "1", "1", "", ""]
    assert int(sick.state(2).num_updates) == 0
    sick.export(2, tmp_path / "dead")


@pytest.mark.more
def test_lanes_run_in_batches_below_the_memory_bound(sweep, swept, tmp_path):
    whole = json.loads((swept.job.directory / "batches" / "r0g0.json").read_text())
    space = {"learning_rate": RATES}
    parts = sweep(tmp_path / "parts", space, memory=int(whole["bytes"] * 0.6))
    plan = json.loads((tmp_path / "parts" / "batches" / "r0g0.json").read_text())
    assert (plan["num_lanes"], whole["num_lanes"]) == (2, 4)
    assert {row["batch"] for row in parts.lanes} == {"r0g0b0", "r0g0b1"}
    for lane, same in enumerate((0, 1, 4, 5)):  # of the first group of the other sweep; another program, see test_lanes
        assert parts.lanes[lane]["varied"]["learning_rate"] == swept.lanes[same]["varied"]["learning_rate"]
        pairs = parts.state(lane).params, swept.state(same).params
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), *pairs)


def test_memory_that_no_lane_fits_leaves_nothing_behind(sweep, tmp_path):
    with pytest.raises(ValueError, match="one lane on each of 2 devices needs"):
        sweep(tmp_path / "none", {"learning_rate": RATES}, memory=1000)
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("num", "factor", "expected"),
    [
        (12, None, [(1.0, 12)]),
        (12, 3, [(1 / 9, 4), (1 / 3, 1), (1.0, 1)]),
        (9, 3, [(1 / 9, 3), (1 / 3, 1), (1.0, 1)]),
        (8, 2, [(1 / 8, 4), (1 / 4, 2), (1 / 2, 1), (1.0, 1)]),
        (2, 3, [(1.0, 2)]),
    ],
)
def test_rungs_of_successive_halving(num, factor, expected):
    found = (Halving(factor) if factor else Grid()).rungs(num)
    np.testing.assert_allclose([share for share, _ in found], [share for share, _ in expected])
    assert [keep for _, keep in found] == [keep for _, keep in expected]


def test_a_strategy_is_found_by_its_number_and_says_it():
    for strategy, numbers in ((Halving(3), (3, None)), (Population(4), (None, 4)), (Grid(), (None, None))):
        named = dict(zip(("halving", "pbt"), numbers, strict=True))
        assert strategy_of(named) == strategy
        assert numbers_of(strategy) == named
    with pytest.raises(ValueError, match="halving and pbt are two ways to search"):
        strategy_of({"halving": 2, "pbt": 2})
    with pytest.raises(ValueError, match="pbt = 1: give an integer of at least 2"):
        Population(1)


def test_a_strategy_of_ones_own_chooses_which_configurations_continue(sweep, tmp_path, small):
    class Worst(Halving):
        """Halving upside down."""

        def kept(self, returns, num):
            return sorted(returns, key=lambda c: np.mean(returns[c]))[:num]

    found = sweep(
        tmp_path / "worst", {"learning_rate": RATES}, config=replace(small, total_steps=2 * 64), strategy=Worst(2)
    )
    saved = json.loads((tmp_path / "worst" / "sweep.json").read_text())
    assert "Worst(factor=2)" in saved["strategy"]
    assert (saved["halving"], saved["pbt"]) == (None, None)
    dropped = [lane["configuration"] for lane in found.lanes if lane["dropped_at"]]
    assert len(set(dropped)) == 1
    rows = [json.loads((tmp_path / "worst" / "batches" / "r0g0b0" / "result.json").read_text())]
    first = {c: np.mean([row["return_mean"] for row in rows[0] if row["configuration"] == c]) for c in (0, 1)}
    assert dropped[0] == max(first, key=first.get) or first[0] == first[1]


@pytest.mark.more
def test_halving_keeps_the_best_and_goes_on_from_where_they_stood(sweep, tmp_path, small, ppo, cartpole):
    config = replace(small, total_steps=4 * 64)
    found = sweep(tmp_path / "halved", {"learning_rate": [1e-2, 3e-3, 1e-3, 1e-4]}, config=config, halving=2)
    after_first = [row["dropped_at"] for row in found.lanes]
    assert sorted(after_first, key=str) == [1] * 4 + [2] * 2 + [None] * 2
    assert [row["updates"] for row in found.lanes] == [at or 4 for at in after_first]
    assert len(found.ranking()) == 1
    lane = found.best
    own, env = found.settings(lane)
    state, _ = rlx.train(ppo, own, env, keys(found.lanes[lane]["seed"])[0])
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-4), found.state(lane).params, state.params)
    assert [row["update"] for row in found.log(lane)] == [1, 2, 3, 4]
    summary = json.loads((tmp_path / "halved" / "summary.json").read_text())
    assert summary["steps"] == 2 * 64 * (4 + 2 + 2 * 1)


def test_a_population_logs_what_its_members_train_with(sweep, tmp_path):
    found = sweep(tmp_path / "pbt", {"learning_rate": [1e-2, 3e-3, 1e-3, 1e-4]}, num_seeds=1, pbt=3)
    log = read_rows(tmp_path / "pbt" / "batches" / "r0g0b0" / "metrics.jsonl")
    assert log[0]["varied.learning_rate"] == [float(np.float32(rate)) for rate in (1e-2, 3e-3, 1e-3, 1e-4)]
    assert log[0]["parent"] == [0, 1, 2, 3]
    final = [row["varied"]["learning_rate"] for row in found.lanes]
    assert final == log[-1]["varied.learning_rate"]
    for before, after in pairwise(log):
        for member, parent in enumerate(after["parent"]):
            old, new = before["varied.learning_rate"][parent], after["varied.learning_rate"][member]
            if parent == member:
                assert new == old
            else:
                factors = np.float32([old * 1.2, old / 1.2, 1e-2, 1e-4])
                assert np.isclose(new, factors, rtol=1e-6).any()
                assert before["episode_return"][parent] > before["episode_return"][member]


def test_random_draws_need_no_program_more(sweep, tmp_path):
    found = sweep(tmp_path / "drawn", {"learning_rate": LogUniform(1e-4, 1e-2)}, num_samples=3, num_seeds=1)
    rates = [row["varied"]["learning_rate"] for row in found.lanes]
    assert len(set(rates)) == 3
    assert json.loads((tmp_path / "drawn" / "summary.json").read_text())["programs"] == 1


def test_command_line_sweep_export_eval_resume_report_plot(tmp_path, capsys):
    out, one = tmp_path / "sweep", tmp_path / "lane"
    grid = ["--learning-rate", "1e-2,1e-3", "--env-params", "masspole=0.1,0.3", "--num-seeds", "2"]
    assert rlx_command("sweep", "ppo", "--env", "CartPole-v1", *grid, *SIZES, "--out", out) == 0
    said = capsys.readouterr().out
    assert "8 lanes: 4 configurations of 2 seeds; 1 program;" in said
    assert "a lane); compiled in" in said
    assert "best lane" in said
    assert rlx_command("export", out, 3, "--out", one) == 0
    config = json.loads((one / "config.json").read_text())
    assert (config["seed"], config["config"]["learning_rate"], config["env_params"]) == (1, 1e-2, {"masspole": 0.3})
    assert rlx_command("eval", one, "--num-episodes", "2", "--no-compile-cache") == 0
    longer = ["--total-steps", "256", "--no-compile-cache"]
    assert rlx_command("train", "--resume", one, *longer) == 0
    rows = read_rows(one / "metrics.jsonl")
    assert [row["step"] for row in rows] == [64, 128, 192, 256]
    assert rlx_command("report", out, "--json", tmp_path / "report.json") == 0
    assert len(json.loads((tmp_path / "report.json").read_text())["tasks"][0]["groups"]) == 4
    for extra in ([], ["--sensitivity"], ["--heatmap", "learning_rate", "env.masspole"]):
        picture = tmp_path / f"{len(extra)}.png"
        assert rlx_command("plot", out, *extra, "--output", picture) == 0
        assert picture.exists()


def test_command_line_sweeps_a_coefficient_of_another_objective(tmp_path, capsys):
    out, one = tmp_path / "sweep", tmp_path / "lane"
    spo = ["--objective", "spo", "--epsilon", "0.001,0.5"]
    assert rlx_command("sweep", "ppo", "--env", "CartPole-v1", *spo, *SIZES, "--out", out) == 0
    assert "2 lanes: 2 configurations of 1 seeds; 1 program;" in capsys.readouterr().out
    assert json.loads((out / "sweep.json").read_text())["algorithm"] == "rlx.algos.ppo+SPO"
    lanes = read_rows(out / "lanes.jsonl")
    assert [row["varied"] for row in lanes] == [{"epsilon": 0.001}, {"epsilon": 0.5}]
    log = read_rows(out / "batches" / "r0g0b0" / "metrics.jsonl")
    near, far = log[-1]["approx_kl"]
    assert near < 0.5 * far
    assert rlx_command("sweep", "--resume", out) == 0
    assert rlx_command("export", out, 1, "--out", one) == 0
    assert json.loads((one / "config.json").read_text())["config"]["epsilon"] == 0.5
    assert rlx_command("eval", one, "--num-episodes", "2", "--no-compile-cache") == 0


def test_command_line_takes_a_list_of_configurations(tmp_path, capsys):
    file = tmp_path / "configs.jsonl"
    file.write_text('{"learning_rate": 1e-3, "hidden_sizes": [8]}\n{"learning_rate": 1e-2}\n')
    arguments = [
        "sweep",
        "ppo",
        "--env",
        "CartPole-v1",
        "--configs",
        file,
        *SIZES,
        "--out",
        tmp_path / "s",
        "--dry-run",
    ]
    assert rlx_command(*arguments) == 0
    said = capsys.readouterr().out
    assert "2 lanes: 2 configurations of 1 seeds; 2 programs" in said
    assert "hidden_sizes=(8,): 1 lane of 192 steps" in said
    assert not (tmp_path / "s").exists()


BAD = {
    "--foo 1,2": "unknown setting '--foo'",
    "--epsilon 0.1,0.2": "unknown setting '--epsilon'",
    "--objective spo --epsilon 0,0.2": "epsilon = 0.0: it has to be above 0",
    "--clip a,b": "could not convert string to float: 'a'",
    "--clip ,": "empty value",
    "--clip": "--clip needs values",
    "--clip 0.1 --clip 0.2": "given twice",
    "--clip 0.1,0.1": "clip = 0.1 is listed twice",
    "--num-envs 4.5,8": "4.5 is not a whole number",
    "--gamma 0.9,1.2": "gamma = 1.2: it has to be",
    "--activation uniform:0:1 --num-samples 2": "only numbers can be drawn from a range",
    "--learning-rate log:1e-4:1e-2": "say how many samples",
    "--num-samples 3": "nothing is drawn at random",
    "--learning-rate 1e-3,1e-2 stray": "Unrecognized options: stray",
    "--env-params foo=1,2": "no parameter 'foo'",
    "--env-params gravity=high": "parameters are numbers",
    "--env-params gravity": "give name=VALUES",
    "--num-seeds 0": "--num-seeds 0: give at least 1",
    "--halving 1": "--halving 1: give at least 2",
    "--halving 3 --pbt 4": "give one of them",
    "--pbt 3 --num-envs 4,8": "share a program",
    "--memory lots": "give a size such as",
    "--num-minibatches 3,4": "is not a multiple of num_minibatches = 3",
    "--configs missing.jsonl": "there is no such file",
    "--seed -1": "--seed -1",
    "--resume nowhere": "not a sweep directory",
}


@pytest.mark.parametrize("arguments", BAD)
def test_bad_input_is_one_line_and_leaves_nothing(arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    common = [] if "--resume" in arguments else ["--env", "CartPole-v1", "--total-steps", "2048"]
    assert rlx_command("sweep", "ppo", *common, "--no-compile-cache", *arguments.split()) == 2
    error = capsys.readouterr().err
    assert BAD[arguments] in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.more
@pytest.mark.parametrize("damaged", ["newest", "all"])
def test_a_sweep_with_damaged_checkpoints_goes_on_from_before_them(sweep, tmp_path, monkeypatch, damaged):
    show, shown, output = Display.show, [], io.StringIO()

    def show_and_interrupt(self, *arguments):
        show(self, *arguments)
        shown.append(arguments)
        if len(shown) == 2:
            signal.raise_signal(signal.SIGINT)

    space = {"learning_rate": RATES}
    monkeypatch.setattr("rlx.sweeps.train.CHUNK_UPDATES", 1)
    whole = sweep(tmp_path / "whole", space)
    with monkeypatch.context() as patch:
        patch.setattr(Display, "show", show_and_interrupt)
        with pytest.raises(KeyboardInterrupt):
            sweep(tmp_path / "cut", space, checkpoint_seconds=0)
    kept = sorted((tmp_path / "cut" / "batches" / "r0g0b0" / "checkpoints").iterdir())
    assert [path.name for path in kept] == ["1", "2"]
    for path in kept if damaged == "all" else kept[-1:]:
        file = next(path.glob("state/**/d/*"))
        file.write_bytes(file.read_bytes()[:-1])
    found = sweep(tmp_path / "cut", space, console=Console(file=output, soft_wrap=True))
    assert "checkpoints/2 is damaged" in output.getvalue()
    assert ("checkpoints/1 is damaged" in output.getvalue()) == (damaged == "all")
    assert_same_sweep(found, whole)


@pytest.mark.more
def test_a_damaged_state_of_a_lane_says_how_to_train_it_again(sweep, tmp_path):
    space = {"learning_rate": RATES}
    found = sweep(tmp_path / "sweep", space)
    states = [found.state(lane) for lane in range(4)]
    for file in (tmp_path / "sweep" / "batches").rglob("*/state/**/d/*"):
        file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"is damaged: .*; delete .*r0g0b0 and .*summary.json, and --resume trains"):
        found.state(0)
    shutil.rmtree(tmp_path / "sweep" / "batches" / "r0g0b0")
    (tmp_path / "sweep" / "summary.json").unlink()
    again = sweep(tmp_path / "sweep", space)
    for lane, state in enumerate(states):
        assert_equal(again.state(lane), state)


def test_the_best_run_directory_holds_the_best_state(swept, ppo):
    config, env = swept.settings(swept.best)
    like = jax.eval_shape(ppo.init, config, env, jax.random.key(0))
    assert_equal(restore(swept.job.directory / "best" / "checkpoints", like), swept.state(swept.best))
