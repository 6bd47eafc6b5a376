"""Statistics against their equations and by simulation; what the report says of groups, and what it refuses."""

import io
import json
import math
from functools import partial

import numpy as np
import pytest
from rich.console import Console
from scipy.stats import mannwhitneyu, norm

from rlx.report import (
    curve,
    experiment,
    fill,
    interval,
    iqm,
    on_grid,
    optimality_gap,
    probability_of_improvement,
    report,
    runs,
    tables,
)

pytestmark = pytest.mark.filterwarnings("error")


def run(score, group="a", task="t", **more):
    return {"group": group, "task": task, "score": score, "steps": 100, "died_at": None, "dropped_at": None} | more


def text(found, **options):
    console = Console(file=io.StringIO(), width=200)
    console.print(tables(found, **options))
    return console.file.getvalue()


def rows(found, task=0):
    return {row["group"]: row for row in found["tasks"][task]["groups"]}


def test_iqm_leaves_the_outer_quarters_out():
    assert iqm(np.array([-1000.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 1000.0])) == 3.5
    assert iqm(np.array([-1000.0, -1000.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 1000.0, 1000.0])) == 3.5  # of ten, two each
    np.testing.assert_array_equal(iqm(np.array([[0.0, 1, 2, 9], [0, 3, 4, 9]])), [1.5, 3.5])


def test_optimality_gap_counts_only_what_is_missing():
    scores = np.array([[400.0, 500.0, 600.0], [500.0, 500.0, 900.0]])
    np.testing.assert_allclose(optimality_gap(scores, 500.0), [100 / 3, 0.0])
    normalised = np.random.default_rng(0).normal(0.8, 0.5, 50)
    expected = 1 - np.minimum(normalised, 1).mean()  # gamma minus the mean of scores cut at gamma, gamma = 1
    assert optimality_gap(normalised, 1.0) == pytest.approx(expected)


def test_interval_is_the_normal_one_for_many_runs():
    x = np.random.default_rng(1).normal(size=1000)
    found = interval([x])
    half = 1.96 * x.std() / np.sqrt(1000)
    assert found["value"] == pytest.approx(x.mean())
    # 10 % is five times the error of a quantile from 9999 resamples.
    np.testing.assert_allclose([found["low"], found["high"]], [x.mean() - half, x.mean() + half], atol=0.1 * half)
    assert interval([x]) == found
    narrower = interval([x], confidence=0.5)
    assert narrower["high"] - narrower["low"] == pytest.approx(2 * 0.674 * x.std() / np.sqrt(1000), rel=0.05)


def test_interval_is_the_quantile_of_resampled_statistics():
    x = np.random.default_rng(2).exponential(size=8)
    rng = np.random.default_rng(3)
    medians = [np.median([x[rng.integers(8)] for _ in range(8)]) for _ in range(4000)]
    found = interval([x], np.median)
    # Ends are among 36 means of two runs; quantiles of 4000 and of 9999 resamples fall on the same or on neighbours.
    np.testing.assert_allclose([found["low"], found["high"]], np.quantile(medians, [0.025, 0.975]), rtol=0.1)


def test_interval_is_stratified():
    rng = np.random.default_rng(4)
    strata = [rng.normal(mean, size=n) for mean, n in ((0, 20), (100, 30), (200, 50))]
    pooled = np.concatenate(strata)
    found, loose = interval(strata), interval([pooled])
    assert found["value"] == loose["value"] == pytest.approx(pooled.mean())
    error = np.sqrt(sum(len(s) * s.var() for s in strata)) / len(pooled)
    assert found["high"] - found["low"] == pytest.approx(2 * 1.96 * error, rel=0.06)
    assert loose["high"] - loose["low"] > 20 * (found["high"] - found["low"])


@pytest.mark.parametrize(
    ("num_runs", "statistic", "expected"),
    [(2, np.mean, 0.50), (5, np.mean, 0.84), (10, np.mean, 0.91), (50, np.mean, 0.945), (20, iqm, 0.94)],
    ids=["2", "5", "10", "50", "20-iqm"],
)
def test_interval_covers_the_truth_as_often_as_it_says(num_runs, statistic, expected):
    experiments = np.random.default_rng(num_runs).normal(size=(600, num_runs))
    ends = [interval([x], statistic, num_resamples=399, seed=i) for i, x in enumerate(experiments)]
    covered = np.mean([end["low"] <= 0 <= end["high"] for end in ends])
    # Four standard errors of a share of 600.
    assert covered == pytest.approx(expected, abs=4 * np.sqrt(expected * (1 - expected) / 600))


def test_stratified_interval_covers_the_truth():
    rng = np.random.default_rng(5)
    covered = []
    for i in range(400):
        found = interval([rng.normal(0, 1, 20), rng.normal(50, 3, 20)], num_resamples=399, seed=i)
        covered.append(found["low"] <= 25 <= found["high"])
    assert 0.89 < np.mean(covered) < 0.97


@pytest.mark.parametrize("statistic", [np.mean, iqm, partial(optimality_gap, target=600.0)])
def test_equal_runs_have_an_interval_of_no_width(statistic):
    found = interval([np.full(10, 500.1)], statistic)
    assert found["low"] == pytest.approx(found["value"]) == pytest.approx(found["high"])


@pytest.mark.parametrize("samples", [[[3.0]], [[1.0, 2.0, 3.0], [4.0]]], ids=["one run", "one run of a task"])
def test_a_single_run_has_no_interval(samples):
    value = np.concatenate(samples).mean()
    assert interval(samples) == {"value": value, "low": None, "high": None}


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ([], "scores \\[R\\] of the runs of each task"),
        ([1.0, 2.0], "scores \\[R\\] of the runs of each task"),
        ([[1.0], []], "scores \\[R\\] of the runs of each task"),
        ([[1.0, np.nan]], "finite"),
    ],
    ids=["none", "flat", "empty", "nan"],
)
def test_samples_are_checked(samples, message):
    with pytest.raises(ValueError, match=message):
        interval(samples)
    with pytest.raises(ValueError, match=message):
        probability_of_improvement(samples, [[1.0, 2.0]])


def test_confidence_is_checked():
    with pytest.raises(ValueError, match="between 0 and 1"):
        interval([[1.0, 2.0]], confidence=95)


def test_probability_of_improvement_has_known_values():
    value = lambda x, y: probability_of_improvement([x], [y])["value"]
    assert value([2.0, 3.0], [0.0, 1.0]) == 1.0
    assert value([0.0, 1.0], [2.0, 3.0]) == 0.0
    assert value([1.0, 1.0], [1.0, 1.0, 1.0]) == 0.5
    assert value([1.0, 2.0, 3.0], [0.0, 2.0, 4.0]) == pytest.approx(4.5 / 9)
    # One win of 1, then nothing of 1 x 2: tasks weigh the same, whatever their pairs.
    assert probability_of_improvement([[1.0], [0.0]], [[0.0], [1.0, 2.0]])["value"] == 0.5


def test_probability_of_improvement_is_mann_whitneys_u_over_the_pairs():
    rng = np.random.default_rng(6)
    tasks = [(rng.integers(0, 6, n).astype(float), rng.integers(0, 6, m).astype(float)) for n, m in ((7, 9), (12, 4))]
    x, y = zip(*tasks, strict=True)
    expected = np.mean([mannwhitneyu(a, b).statistic / (len(a) * len(b)) for a, b in tasks])
    found = probability_of_improvement(x, y)
    assert found["value"] == pytest.approx(expected)
    back = probability_of_improvement(y, x)
    assert [found[end] for end in ("low", "value", "high")] == pytest.approx(
        [1 - back[end] for end in ("high", "value", "low")], abs=0.03
    )
    scaled = probability_of_improvement([x[0], 1000 * x[1] - 7], [y[0], 1000 * y[1] - 7])
    assert scaled == found


def test_interval_of_the_probability_of_improvement_covers_the_truth():
    rng, truth = np.random.default_rng(7), norm.cdf(0.5 / np.sqrt(2))
    covered = []
    for i in range(300):
        ends = probability_of_improvement([rng.normal(0.5, 1, 20)], [rng.normal(size=20)], num_resamples=299, seed=i)
        covered.append(ends["low"] <= truth <= ends["high"])
    assert 0.88 < np.mean(covered) < 0.98


def test_probability_of_improvement_needs_the_same_tasks():
    with pytest.raises(ValueError, match="2 tasks and y of 1"):
        probability_of_improvement([[1.0], [2.0]], [[1.0]])


def test_a_point_of_a_curve_is_over_the_episodes_of_its_stretch():
    steps, returns, weights = [10, 20, 30, 40, 50, 60], [1.0, 4.0, np.nan, np.nan, 7.0, 9.0], [2, 1, 0, 0, 3, 1]
    np.testing.assert_allclose(on_grid(steps, returns, weights, np.array([20, 40, 60])), [2.0, 2.0, 7.5])
    np.testing.assert_allclose(on_grid(steps, returns, weights, np.array([5, 15, 25])), [np.nan, 1.0, 4.0])


def test_each_episode_counts_once_and_nothing_later_enters_a_point():
    rng = np.random.default_rng(8)
    steps, weights = np.cumsum(rng.integers(1, 9, 40)), rng.integers(0, 4, 40)
    returns = np.where(weights > 0, rng.normal(size=40), np.nan)
    grid = np.linspace(0, steps[-1], 8)[1:]
    values = on_grid(steps, returns, weights, grid)
    total = 0.0
    for p, (low, high) in enumerate(zip([0, *grid], grid, strict=False)):
        inside = (steps > low) & (steps <= high) & (weights > 0)
        assert values[p] == pytest.approx(np.average(returns[inside], weights=weights[inside]))
        total += values[p] * weights[inside].sum()
        later = np.where(steps > high, 1e6, returns)
        np.testing.assert_array_equal(on_grid(steps, later, weights, grid)[: p + 1], values[: p + 1])
    assert total == pytest.approx(np.nansum(returns * weights))


def test_curve_is_the_statistic_over_runs_at_every_point():
    steps = [np.arange(1, 101) * 10] * 6
    rng = np.random.default_rng(9)
    returns = rng.normal(np.arange(6)[:, None], 0.1, (6, 100))
    found = curve(steps, returns, np.ones((6, 100)), num_points=20)
    means = returns.reshape(6, 20, 5).mean(-1)  # five rows a stretch
    np.testing.assert_array_equal(found.steps, np.arange(1, 21) * 50)
    np.testing.assert_allclose(found.value, iqm(means, axis=0))
    point = interval([means[:, 3]], iqm, num_resamples=1999)
    # The same draws at every point: whole runs are resampled.
    assert (found.low[3], found.high[3]) == pytest.approx((point["low"], point["high"]))
    mean = curve(steps, returns, np.ones((6, 100)), num_points=20, statistic=np.mean)
    np.testing.assert_allclose(mean.value, means.mean(0))


def test_curve_has_every_run_at_every_point():
    late, short = [np.nan, np.nan, 1.0, 1.0, 1.0, 1.0], [3.0, 3.0, 3.0, 3.0]
    found = curve([[1, 2, 3, 4, 5, 6], [1, 2, 3, 4]], [late, short], [[0, 0, 1, 1, 1, 1], [1] * 4])
    np.testing.assert_array_equal(found.steps, [3, 4])
    np.testing.assert_array_equal(found.value, [2.0, 2.0])


def test_curve_of_one_run_has_no_interval_and_holds_the_last_return():
    found = curve([[10, 20, 30]], [[5.0, np.nan, 7.0]], [[1, 0, 2]])
    np.testing.assert_array_equal(found.value, [5.0, 5.0, 7.0])
    assert found.low is None
    assert found.high is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([], [], []), "at least one run"),
        (([[1, 2]], [[1.0]], [[1, 1]]), "differ in length"),
        (([[1]], [[np.nan]], [[0]]), "no episode ended"),
        (([[1, 2], [1, 2, 3]], [[1.0, 1.0], [np.nan, np.nan, 1.0]], [[1, 1], [0, 0, 1]]), "every run has ended"),
    ],
    ids=["none", "lengths", "no episode", "no common step"],
)
def test_curve_checks_its_runs(arguments, message):
    with pytest.raises(ValueError, match=message):
        curve(*arguments)


def write_run(directory, score=1.0, seed=0, *, env="e/E", algorithm="rlx.algos.ppo", config=None, **more):
    """A run directory of 10 updates of 100 steps, as `rlx train` leaves it."""
    directory.mkdir(parents=True)
    config = {"learning_rate": 1e-3, "clip": 0.2} | (config or {})
    about = {"algorithm": algorithm, "env": env, "env_options": {}, "env_params": {}, "num_evaluations": 1}
    about |= {"seed": seed, "config": config, "updates": 10, "steps": 1000} | more
    (directory / "config.json").write_text(json.dumps(about))
    if score is not None:
        evaluate(directory, score)
    return directory


def evaluate(directory, score, update=10, by_training=True):
    row = {"mean": score, "std": 0.0, "update": update, "step": 100 * update, "returns": [score]}
    (directory / "evaluation.json").write_text(json.dumps(row))
    if by_training:
        (directory / "evaluations.jsonl").write_text(json.dumps(row) + "\n")


def write_sweep(directory, varied, *, seeds=2, env="e/E", **sweep):
    """A sweep directory with `seeds` lanes for each of the configurations `varied`; the score is the lane's number."""
    directory.mkdir(parents=True)
    config = {"learning_rate": 1e-3, "clip": 0.2}
    about = {"algorithm": "rlx.algos.ppo", "env": env, "config": config, "varied": list(varied[0]), "num_seeds": seeds}
    (directory / "sweep.json").write_text(json.dumps(about | sweep))
    lanes = []
    for configuration, values in enumerate(varied):
        for seed in range(seeds):
            lane = {"lane": len(lanes), "configuration": configuration, "seed": seed, "varied": values}
            lane |= {"config": config | {k: v for k, v in values.items() if not k.startswith("env.")}}
            lane |= {"return_mean": float(len(lanes)), "steps": 1000, "updates": 10, "planned_steps": 1000}
            lane |= {"died_at": None, "dropped_at": None}
            lanes.append(lane | {"curve": {"step": [1000], "episode_return": [1.0], "num_episodes": [2]}})
    write_lanes(directory, lanes)
    return directory, lanes


def write_lanes(directory, lanes):
    (directory / "lanes.jsonl").write_text("".join(json.dumps(lane) + "\n" for lane in lanes))


def test_runs_that_differ_in_their_seed_are_a_group(tmp_path):
    paths = [
        write_run(tmp_path / f"{rate}-{seed}", score=seed + rate, seed=seed, config={"learning_rate": rate})
        for rate in (1e-4, 1e-2)
        for seed in (0, 1)
    ]
    found = runs(paths)
    assert [r["group"] for r in found] == ["learning_rate=1e-04"] * 2 + ["learning_rate=0.01"] * 2
    assert [r["score"] for r in found] == [1e-4, 1 + 1e-4, 1e-2, 1 + 1e-2]
    assert [r["seed"] for r in found] == [0, 1, 0, 1]
    assert found[0]["varied"] == {"learning_rate": 1e-4}
    assert {r["task"] for r in found} == {"e/E"}
    assert [r["name"] for r in found] == [path.name for path in paths]
    assert all(r["died_at"] is None and r["dropped_at"] is None and r["steps"] == 1000 for r in found)
    assert {r["group"] for r in runs(paths[:2])} == {"ppo"}  # nothing differs


def test_groups_are_named_by_what_differs_on_a_task(tmp_path):
    shared = {"config": {"num_envs": 8}}
    paths = [
        write_run(tmp_path / "1", env="e/E"),
        write_run(tmp_path / "2", env="e/E", algorithm="/somewhere/mine.py"),
        write_run(tmp_path / "3", env="e/F", **shared),
        write_run(tmp_path / "4", env="e/F", algorithm="/somewhere/mine.py", **shared),
    ]
    found = runs(paths)
    assert [(r["task"], r["group"]) for r in found] == [
        ("e/E", "ppo"),
        ("e/E", "mine"),
        ("e/F", "ppo"),
        ("e/F", "mine"),
    ]
    paths.append(write_run(tmp_path / "5", env="e/F", config={"num_envs": 16}))
    assert {r["group"] for r in runs(paths)} == {"ppo", "ppo num_envs=8", "ppo num_envs=16", "mine"}
    two = [write_run(tmp_path / name, algorithm=f"/{name}/ppo.py") for name in ("x", "y")]
    assert {r["group"] for r in runs(two)} == {"/x/ppo.py", "/y/ppo.py"}


def test_options_and_parameters_of_the_environment_tell_runs_apart(tmp_path):
    spring = write_run(tmp_path / "1", env_options={"backend": "spring"})
    heavy = write_run(tmp_path / "2", env_params={"gravity": 12.0})
    plain = write_run(tmp_path / "3")
    found = runs([spring, heavy, plain])
    assert [r["task"] for r in found] == ["e/E backend=spring", "e/E", "e/E"]
    assert found[1]["group"] == "env.gravity=12"
    assert found[1]["group"] != found[2]["group"]
    assert any("env.gravity" in note for note in report(found)["notes"])


@pytest.mark.parametrize(
    ("value", "name"),
    [(0.2, "0.2"), (1e-4, "1e-04"), (2.5e-4, "2.5e-04"), (0.0, "0"), (64, "64"), (True, "True"), ([64, 32], "64x32")],
)
def test_values_are_written_shortly(tmp_path, value, name):
    paths = [write_run(tmp_path / "1", config={"x": value}), write_run(tmp_path / "2", config={"x": "other"})]
    assert runs(paths)[0]["group"] == f"x={name}"


def test_draws_that_agree_in_three_digits_stay_apart(tmp_path):
    directory, _ = write_sweep(tmp_path / "s", [{"clip": 0.20001}, {"clip": 0.20002}])
    assert len({r["group"] for r in runs([directory])}) == 2


def test_lanes_of_a_sweep_are_runs(tmp_path):
    points = [{"learning_rate": 1e-4, "clip": 0.2}, {"learning_rate": 3e-4, "clip": 0.2}]
    directory, lanes = write_sweep(tmp_path / "s", points)
    lanes[1] |= {"died_at": 3, "return_mean": None}
    lanes[2] |= {"dropped_at": 4, "return_mean": "nan"}
    write_lanes(directory, lanes)
    with (directory / "lanes.jsonl").open("a") as file:
        file.write('{"lane": 4, "configura')
    found = runs([directory])
    assert [r["group"] for r in found] == ["learning_rate=1e-04 clip=0.2"] * 2 + ["learning_rate=3e-04 clip=0.2"] * 2
    assert [r["score"] for r in found] == [0.0, None, None, 3.0]
    assert [r["died_at"] for r in found] == [None, 3, None, None]
    assert [r["dropped_at"] for r in found] == [None, None, 4, None]
    assert [r["seed"] for r in found] == [0, 1, 0, 1]


def test_runs_and_sweeps_are_compared(tmp_path):
    directory, _ = write_sweep(tmp_path / "s", [{"learning_rate": 1e-4}, {"learning_rate": 1e-3}], seeds=1)
    single = write_run(tmp_path / "r", seed=7)
    assert [r["group"] for r in runs([directory, single])] == ["learning_rate=1e-04"] + ["learning_rate=0.001"] * 2


def test_a_run_that_died_is_told_from_one_stopped_early(tmp_path):
    whole = write_run(tmp_path / "whole", num_evaluations=5)
    dead, later, best = (write_run(tmp_path / name, None, num_evaluations=5) for name in ("dead", "later", "best"))
    evaluate(dead, 1.0, update=3)  # evaluations are due after 2, 4, 6, 8 and 10 updates
    evaluate(later, 1.0, update=3, by_training=False)
    evaluate(best, 1.0, update=6)
    first = write_run(tmp_path / "first", None)
    evaluate(first, 1.0, update=0)
    found = [run for path in (whole, dead, later, best, first) for run in runs([path])]
    assert [r["died_at"] for r in found] == [None, 4, None, None, 1]
    assert [r["dropped_at"] for r in found] == [None, None, 3, 6, None]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: [], "at least one"),
        (lambda d: [d], "neither a run nor a sweep"),
        (lambda d: [write_run(d / "1"), write_run(d / "2")], "same run .ppo on e/E, seed 0"),
        (lambda d: [damaged(write_run(d / "1"), "config.json", '{"algo')], "config.json is not readable"),
        (lambda d: [damaged(write_run(d / "1"), "evaluation.json", "")], "evaluation.json is not readable"),
        (lambda d: [damaged(write_run(d / "1"), "config.json", '{"seed": 0}')], "holds no"),
        (lambda d: [damaged(write_sweep(d / "s", [{"clip": 0.1}])[0], "lanes.jsonl", "{\n{}\n")], "line 1"),
        (lambda d: [damaged(write_sweep(d / "s", [{"clip": 0.1}])[0], "lanes.jsonl", "")], "has not ended"),
    ],
    ids=["no paths", "no run", "seed twice", "config", "evaluation", "keys", "lanes", "unfinished"],
)
def test_bad_directories_are_one_clear_line(tmp_path, damage, message):
    with pytest.raises(ValueError, match=message) as error:
        runs(damage(tmp_path))
    assert "\n" not in str(error.value)


def damaged(directory, name, content):
    (directory / name).write_text(content)
    return directory


def test_report_has_the_statistics_of_every_group():
    a, b = [10.0, 20.0, 30.0, 40.0], [1.0, 2.0, 3.0]
    found = report([*(run(s, "a") for s in a), *(run(s, "b") for s in b)], target=25.0)
    assert list(rows(found)) == ["a", "b"]
    row = rows(found)["a"]
    assert row["runs"] == 4
    assert row["mean"] == interval([a])
    assert row["iqm"] == interval([a], iqm)
    assert row["std"] == pytest.approx(math.sqrt(500 / 3))
    assert row["optimality_gap"]["value"] == pytest.approx(20 / 4)
    assert row["improvement"] is None
    assert rows(found)["b"]["improvement"] == probability_of_improvement([a], [b])
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    printed = text(found)
    assert "25.00 [" in printed
    assert "gap to 25 [95 %]" in printed
    assert "1.00 [1.00, 1.00]" in printed
    assert "too narrow" in printed


def test_report_is_sorted_and_cut_by_the_best(tmp_path):
    found = report([run(float(s + 10 * g), f"g{g}") for g in range(5) for s in range(3)])
    assert list(rows(found)) == ["g4", "g3", "g2", "g1", "g0"]
    assert any("optimistic" in note for note in found["notes"])
    assert "and 3 more groups" in text(found, limit=2)
    two = report([run(float(s + 10 * g), f"g{g}") for g in range(2) for s in range(3)])
    assert not any("optimistic" in note for note in two["notes"])
    assert any("no certainty" in note for note in two["notes"])
    mixed = report([run(float(s + g), f"g{g}") for g in range(2) for s in range(3)])
    assert not any("no certainty" in note for note in mixed["notes"])


def test_dead_runs_are_counted_and_never_dropped():
    found = report([run(10.0), run(2.0, died_at=5), run(None, died_at=7), run(9.0)])
    row = rows(found)["a"]
    assert (row["runs"], row["died"], row["unscored"]) == (4, 2, 1)
    assert row["mean"]["value"] == 7.0  # the last finite state of the one counts, of the other nothing is known
    assert "4, 2 died, 1 unscored" in text(found)
    assert any("2 of 4 runs died" in note for note in found["notes"])
    assert any("1 of 4 runs have no score" in note for note in found["notes"])


def test_a_group_with_unscored_runs_is_not_the_best():
    lucky = [run(100.0, "lucky"), run(None, "lucky", died_at=3)]
    found = report([*lucky, run(50.0, "sound"), run(51.0, "sound")])
    assert next(iter(rows(found))) == "sound"
    assert rows(found)["lucky"]["improvement"]["value"] == 0.0
    assert next(iter(rows(report([*lucky, run(None, "gone")])))) == "lucky"


def test_a_group_without_any_score_is_a_row():
    found = report([run(1.0, "a"), run(2.0, "a"), run(None, "b", died_at=1)])
    assert rows(found)["b"]["mean"] is None
    assert rows(found)["b"]["died"] == 1
    assert "1, 1 died, 1 unscored" in text(found)


def test_runs_stopped_early_are_marked_and_not_mixed():
    early = [run(100.0, "b", dropped_at=20, steps=20), run(90.0, "b", dropped_at=20, steps=20)]
    other = run(80.0, "c", dropped_at=40, steps=40)
    found = report([run(10.0), run(12.0), run(11.0, "b"), *early, other])
    assert rows(found)["b"]["runs"] == 1
    assert rows(found)["b"]["mean"]["value"] == 11.0
    stopped = found["tasks"][0]["stopped"]
    assert [(row["group"], row["dropped_at"], row["runs"]) for row in stopped] == [("c", 40, 1), ("b", 20, 2)]
    assert stopped[1]["mean"]["value"] == 95.0
    assert all(row["improvement"] is None for row in stopped)
    assert any("3 of 6 runs were stopped or evaluated early" in note for note in found["notes"])
    assert "95.00 [90.00, 100.00]" in text(found)
    only = report([other])
    assert only["tasks"][0]["groups"] == []
    assert "80.00 [none]" in text(only)


def test_returns_of_different_tasks_are_averaged_only_when_normalised():
    scores = {
        ("a", "t"): [400.0, 420.0],
        ("b", "t"): [100.0, 120.0],
        ("a", "u"): [-9.0, -8.0],
        ("b", "u"): [-5.0, -4.0],
    }
    found = [run(s, g, t) for (g, t), values in scores.items() for s in values]
    plain = report(found)
    assert [part["task"] for part in plain["tasks"]] == ["t", "u"]
    assert plain["overall"]["normalised"] is False
    assert all(row["mean"] is None and row["iqm"] is None for row in plain["overall"]["groups"])
    assert plain["overall"]["groups"][1]["improvement"]["value"] == 0.5  # one task each
    assert any("kept apart" in note for note in plain["notes"])
    assert text(plain)

    bounds = {"t": (0.0, 500.0), "u": (-10.0, 0.0)}
    overall = {row["group"]: row for row in report(found, bounds=bounds)["overall"]["groups"]}
    assert overall["a"]["mean"] == interval([[0.8, 0.84], [0.1, 0.2]])
    assert overall["b"]["iqm"]["value"] == pytest.approx(iqm(np.array([0.2, 0.24, 0.5, 0.6])))
    assert overall["a"]["optimality_gap"]["value"] == pytest.approx(1 - overall["a"]["mean"]["value"])
    assert report(found, bounds=bounds)["tasks"][0]["target"] == 500.0
    assert "0 is low, 1 is high" in text(report(found, bounds=bounds))


def test_overall_the_best_is_found_by_ranks_without_bounds():
    wins = [run(s, "wins", t) for t in "tuv" for s in (3.0, 4.0)]
    huge = [run(1e6, "huge", "t"), run(2e6, "huge", "t"), *(run(s, "huge", t) for t in "uv" for s in (1.0, 2.0))]
    found = report([*huge, *wins])["overall"]["groups"]
    assert [row["group"] for row in found] == ["wins", "huge"]
    assert found[1]["improvement"]["value"] == pytest.approx(2 / 3)


def test_groups_that_miss_a_task_are_not_compared_across_tasks():
    found = report([run(1.0, "a", "t"), run(1.0, "a", "u"), run(2.0, "b", "t")], bounds={"t": (0, 2), "u": (0, 2)})
    assert [row["group"] for row in found["overall"]["groups"]] == ["a"]
    assert any("on every task, not compared across tasks: 1." in note for note in found["notes"])


def test_bounds_of_an_environment_hold_for_all_its_options():
    tasks = ("e/E", "e/E backend=spring")
    found = report([run(5.0, task=task) for task in tasks], bounds={"e/E": (0.0, 10.0)})
    assert found["overall"]["groups"][0]["mean"]["value"] == 0.5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"runs": []}, "no runs"),
        ({"runs": [run(None)]}, "rlx train --resume"),
        ({"runs": [run(1.0), run(1.0, task="u")], "target": 1.0}, "give low and high of each"),
        ({"runs": [run(1.0), run(1.0, task="u")], "bounds": {"t": (0, 1)}}, "no low and high of u"),
        ({"runs": [run(1.0)], "bounds": {"t": (0, 1), "v": (0, 1)}}, "no runs on v"),
        ({"runs": [run(1.0)], "bounds": {"t": (1, 1)}}, "below high"),
    ],
    ids=["none", "unscored", "target", "missing", "unknown", "order"],
)
def test_report_refuses_what_it_cannot_compare(arguments, message):
    with pytest.raises(ValueError, match=message):
        report(**arguments)


def test_missing_lanes_are_noticed(tmp_path):
    directory, lanes = write_sweep(tmp_path / "s", [{"clip": 0.1}, {"clip": 0.2}], seeds=3)
    complete = report(runs([directory]))["notes"]
    write_lanes(directory, lanes[:-1])
    assert any("rows are missing: 1." in note for note in report(runs([directory]))["notes"])
    assert not any("rows are missing: 1." in note for note in complete)


def test_what_train_leaves_is_read(tmp_path):
    from rlx import cli

    options = ["--env", "probe/Constant", "--total-steps", "96", "--learning-rate", "inf", "--eval-episodes", "2"]
    options += ["--num-envs", "2", "--num-steps", "16", "--hidden-sizes", "4", "--num-minibatches", "1"]
    with pytest.raises(SystemExit, match="1"):  # it dies, and is evaluated
        cli.main(["train", "ppo", *options, "--no-compile-cache", "--out", str(tmp_path / "run"), "--seed", "3"])
    (found,) = runs([tmp_path / "run"])
    assert found["score"] == json.loads((tmp_path / "run" / "evaluation.json").read_text())["mean"]
    assert (found["steps"], found["died_at"], found["dropped_at"], found["seed"]) == (0, 1, None, 3)
    assert (found["algorithm"], found["task"], found["group"]) == ("rlx.algos.ppo", "probe/Constant", "ppo")


def test_tables_are_filled_in_and_the_rest_is_left_alone():
    text = "a\n<!-- table: one -->\nold\n<!-- end -->\nb\n<!-- table: two -->\n<!-- end -->\n"
    one = fill(text, {"one": "| new |\n"})
    assert one == text.replace("old\n", "| new |\n")
    assert fill(one, {"one": "| new |\n"}) == one
    assert fill(one, {"one": "old\n", "two": "x\n"}) == text.replace("two -->\n", "two -->\nx\n")
    for broken in ("text", "<!-- table: one -->\n"):
        with pytest.raises(ValueError, match="there is no place for the table 'one'"):
            fill(broken, {"one": ""})


def test_an_experiment_measures_what_is_missing_and_writes_what_there_is(tmp_path):
    measured, drawn = [], []

    def measure(case):
        if case == "c":
            raise RuntimeError("interrupted")
        measured.append(case)
        return {"value": len(measured)}

    table = lambda results: "".join(f"| {case} | {result['value']} |\n" for case, result in results.items())
    draw = lambda results, path: drawn.append((list(results), path.name))
    cases = {"a": "first", "b": "second", "c": "third"}
    (tmp_path / "README.md").write_text("before\n<!-- table: returns -->\nold\n<!-- end -->\nafter\n")
    run = lambda only: experiment(tmp_path, cases, measure, draw, table, only)
    run(lambda case: case == "b")
    run(lambda case: case != "c")
    assert measured == ["b", "a"]
    assert drawn == [(["b"], "figure.png"), (["a", "b"], "figure.png")]
    written = (tmp_path / "README.md").read_text()
    assert written == "before\n<!-- table: returns -->\n| a | 2 |\n| b | 1 |\n<!-- end -->\nafter\n"
    found = json.loads((tmp_path / "results" / "second.json").read_text())
    assert found["value"] == 1
    assert found["seconds"] >= 0
    with pytest.raises(RuntimeError, match="interrupted"):
        run(lambda case: True)
    assert measured == ["b", "a"]  # what was there is not lost
    assert sorted(path.name for path in (tmp_path / "results").iterdir()) == ["first.json", "second.json"]
