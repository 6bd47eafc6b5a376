"""Pictures: what is drawn is what the runs say, and what cannot be compared is refused."""

import itertools
import json

import matplotlib
import numpy as np
import pytest
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure

from rlx import plot, report
from rlx.plot import curve, heatmap, learning_curves, sensitivity, smooth
from rlx.plot.hyperparameters import _log_spaced
from rlx.plot.style import COLOURS, GREY
from rlx.report import interval, iqm

pytestmark = pytest.mark.filterwarnings("error")


@pytest.fixture
def draw(tmp_path, monkeypatch):
    """Draws and returns the figure; the file has to be a picture of a reasonable size."""
    figures, save = [], Figure.savefig

    def kept(figure, *arguments, **options):
        figures.append(figure)
        save(figure, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", kept)

    def draw(function, *arguments):
        path = tmp_path / "picture.png"
        function(*arguments, path)
        assert path.read_bytes().startswith(b"\x89PNG")
        assert path.stat().st_size < 300_000
        return figures[-1]

    return draw


def lane(score, *, seed=0, task="e/E", algorithm="rlx.algos.ppo", died_at=None, dropped_at=None, curve=None, **varied):
    found = {"score": score, "seed": seed, "task": task, "algorithm": algorithm, "varied": varied, "steps": 100}
    found |= {"group": " ".join(f"{k}={v}" for k, v in varied.items()) or "ppo", "planned_steps": 100}
    return found | {"died_at": died_at, "dropped_at": dropped_at, "curve": curve}


def logged(returns, *, steps=None, **more):
    """A lane with its log: a return every ten steps, None where no episode ended."""
    steps = [10 * (i + 1) for i in range(len(returns))] if steps is None else steps
    columns = {"step": steps, "episode_return": returns, "num_episodes": [int(r is not None) for r in returns]}
    return lane(0.0, curve=columns, **more)


def write_run(directory, *, env="e/E", seed=0, returns=(1.0, None, 3.0), evaluation=2.0, **more):
    directory.mkdir()
    config = {"algorithm": "rlx.algos.ppo", "env": env, "env_options": {}, "seed": seed, "config": {"clip": 0.2}}
    config |= {"updates": len(returns), "steps": 10 * len(returns), "num_evaluations": 1} | more
    (directory / "config.json").write_text(json.dumps(config))
    rows = [
        {"update": i + 1, "step": 10 * (i + 1), "episode_return": r, "num_episodes": int(r is not None)}
        for i, r in enumerate(returns)
    ]
    (directory / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if evaluation is not None:
        found = {"mean": evaluation, "std": evaluation, "update": len(returns), "step": 10 * len(returns)}
        (directory / "evaluation.json").write_text(json.dumps(found))
    return directory


def legend(figure):
    return [text.get_text() for text in (figure.legends or [figure.axes[0].get_legend()])[0].get_texts()]


def dots(axes, label):
    """Places of the scattered marks of a label, `[M, 2]`."""
    (found,) = (c for c in axes.collections if isinstance(c, PathCollection) and c.get_label() == label)
    return np.asarray(found.get_offsets())


def test_smooth_is_the_weighted_mean_of_the_rows_around():
    values, weights = np.array([1.0, np.nan, 4.0, 10.0]), np.array([1.0, 0.0, 2.0, 1.0])
    np.testing.assert_allclose(smooth(values, weights, 3), [1.0, 3.0, 6.0, 6.0])
    np.testing.assert_array_equal(smooth(values[1:2], weights[1:2], 1), [np.nan])


def test_curve_of_a_run_has_its_rows_and_its_evaluation(tmp_path, draw):
    figure = draw(curve, [write_run(tmp_path / "a")])
    axes = figure.axes[0]
    line, points = axes.lines[:2]
    np.testing.assert_array_equal(points.get_xydata(), [[10, 1], [30, 3]])
    np.testing.assert_array_equal(line.get_xydata(), [[10, 1], [30, 3]])
    assert legend(figure) == [
        "training, seed 0",
        "mean of the episodes that ended in a row of the log",
        "final evaluation, 2.0 ± 2.0 (standard deviation of an episode)",
    ]
    assert axes.get_title() == "PPO on e/E"


def test_curve_of_several_runs_has_a_line_each(tmp_path, draw):
    figure = draw(curve, [write_run(tmp_path / name, evaluation=None) for name in ("a", "b")])
    assert legend(figure) == ["training, a", "training, b"]


@pytest.mark.parametrize("evaluation", ["nan", "inf"])
def test_curve_of_a_run_without_finite_evaluation(tmp_path, draw, evaluation):
    assert legend(draw(curve, [write_run(tmp_path / "a", evaluation=evaluation)]))[2].startswith("final evaluation")


def test_curve_of_a_run_that_never_ended_an_episode(tmp_path, draw):
    figure = draw(curve, [write_run(tmp_path / "a", returns=(None, None), evaluation=None)])
    assert all(len(line.get_xdata()) == 0 or np.isnan(line.get_ydata()).all() for line in figure.axes[0].lines)
    assert figure.axes[0].get_title() == "PPO on e/E"


def test_curve_refuses_several_environments(tmp_path):
    runs = [write_run(tmp_path / "a"), write_run(tmp_path / "b", env="e/F")]
    with pytest.raises(ValueError, match="several environments: e/E, e/F"):
        curve(runs, tmp_path / "x.png")


def test_curve_leaves_out_a_last_line_cut_short_and_refuses_others(tmp_path, draw):
    run = write_run(tmp_path / "a")
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"update": 4, "st')
    draw(curve, [run])
    with (run / "metrics.jsonl").open("a") as file:
        file.write("\n{}\n")
    with pytest.raises(ValueError, match=r"metrics.jsonl .* line 4"):
        curve([run], tmp_path / "x.png")


def test_a_line_is_a_group_with_its_interval(draw):
    rng = np.random.default_rng(0)
    returns = {clip: rng.normal(clip, 0.1, (6, 20)) for clip in (1.0, 2.0)}
    lanes = [
        logged(list(values), clip=clip, seed=seed) for clip in returns for seed, values in enumerate(returns[clip])
    ]
    figure = draw(learning_curves, lanes)
    (axes,) = figure.axes
    assert len(axes.lines) == len(axes.collections) == 2
    for line, band, clip in zip(axes.lines, axes.collections, (1.0, 2.0), strict=True):
        expected = report.curve([10 * np.arange(1, 21)] * 6, returns[clip], np.ones((6, 20)))
        np.testing.assert_allclose(line.get_ydata(), expected.value)
        box = band.get_datalim(axes.transData)
        assert (box.y0, box.y1) == pytest.approx((expected.low.min(), expected.high.max()))
        assert line.get_color() == COLOURS[int(clip == 1.0)]  # the higher one comes first
    assert legend(figure) == ["clip=2.0  (6 runs)", "clip=1.0  (6 runs)", "95 % interval over runs, of each point"]


def test_run_directories_are_grouped_over_seeds(tmp_path, draw):
    paths = [write_run(tmp_path / str(s), seed=s, returns=(1.0 + s, 2.0 + s)) for s in (0, 2)]
    figure = draw(learning_curves, report.runs(paths))
    np.testing.assert_array_equal(figure.axes[0].lines[0].get_xydata(), [[10, 2], [20, 3]])
    assert legend(figure)[0] == "ppo  (2 runs)"


def test_every_task_has_its_panel_and_a_group_one_colour(draw):
    lanes = [
        logged([r * scale] * 3, clip=clip, seed=seed, task=task)
        for task, scale in (("e/E", 1.0), ("e/F", 100.0))
        for clip, r in ((1, 1.0), (2, 2.0))
        for seed in range(2)
    ]
    figure = draw(learning_curves, lanes)
    assert [axes.get_title() for axes in figure.axes] == ["e/E", "e/F"]
    assert [[line.get_color() for line in axes.lines] for axes in figure.axes] == [[COLOURS[1], COLOURS[0]]] * 2
    assert legend(figure)[:2] == ["clip=2  (2 runs)", "clip=1  (2 runs)"]


def test_of_many_groups_those_that_end_highest_are_in_colour(draw):
    lanes = [logged([1.0, float(clip)], clip=clip, seed=s) for clip in range(12) for s in range(2)]
    figure = draw(learning_curves, lanes)
    grey = [line for line in figure.axes[0].lines if line.get_color() == GREY]
    assert sorted(line.get_ydata()[-1] for line in grey) == [0, 1, 2, 3]
    texts = legend(figure)
    assert texts[:8] == [f"clip={clip}  (2 runs)" for clip in range(11, 3, -1)]
    assert texts[8:] == ["4 more groups, ending lower", "95 % interval over runs, at the end"]


def test_a_group_stopped_early_comes_after_the_others(draw):
    stopped = [logged([9.0], clip=-1, seed=s, dropped_at=1) for s in range(2)]
    lanes = [logged([1.0, float(clip)], clip=clip, seed=s) for clip in range(8) for s in range(2)]
    texts = legend(draw(learning_curves, [*stopped, *lanes]))
    assert "1 more group, ending lower or stopped early" in texts
    assert "clip=-1  (2 runs, stopped early)" in legend(draw(learning_curves, stopped))


def test_a_dead_run_stays_at_its_last_return(draw):
    dead = logged([4.0, 2.0], seed=1, died_at=3)
    alive = logged([4.0] * 10)
    figure = draw(learning_curves, [alive, dead])
    np.testing.assert_array_equal(figure.axes[0].lines[0].get_xdata()[[0, -1]], [10, 100])
    np.testing.assert_array_equal(figure.axes[0].lines[0].get_ydata()[[0, 1, -1]], [4.0, 3.0, 3.0])


def test_runs_that_cannot_be_drawn_are_counted(draw):
    silent = [logged([None, None], clip=2, seed=s) for s in range(2)]
    short = logged([1.0], clip=1, seed=2)
    lanes = [logged([1.0, 2.0], clip=1), logged([None, None], clip=1, seed=1), short, *silent]
    texts = legend(draw(learning_curves, lanes))
    assert texts[0] == "clip=1  (2 of 3 runs, to the end of the shortest)"
    assert texts[1] == "clip=2: no line, no episode had ended"
    many = [logged([None], clip=clip) for clip in range(3, 6)]
    assert "3 groups: no line, no episode had ended" in legend(draw(learning_curves, [lanes[0], *many]))
    late = [logged([1.0], clip=7), logged([None, 1.0], clip=7, seed=1)]  # by the end of the shortest only in one
    assert "clip=7: no line, no episode had ended" in legend(draw(learning_curves, [lanes[0], *late]))
    with pytest.raises(ValueError, match="no episode had ended in these 2 runs"):
        draw(learning_curves, silent)


def test_a_single_run_has_a_line_and_no_interval(draw):
    figure = draw(learning_curves, [logged([1.0, 2.0])])
    assert legend(figure) == ["ppo  (1 run)"]
    assert len(figure.axes[0].collections) == 0


def grid(seeds=3, score=lambda rate, clip, seed: 1000 * rate + 10 * clip + seed):
    points = itertools.product((1e-4, 1e-3, 1e-2), (0.1, 0.2), range(seeds))
    return [lane(score(r, c, s), seed=s, learning_rate=r, clip=c) for r, c, s in points]


def bars(axes):
    """Places, values, and ends of the bars of a panel."""
    (container,) = axes.containers
    segments = np.array(container.lines[2][0].get_segments())
    return container.lines[0].get_xydata(), segments[:, 0, 1], segments[:, 1, 1]


def test_sensitivity_of_a_grid_has_a_panel_a_hyperparameter(draw):
    lanes = grid()
    figure = draw(sensitivity, lanes)
    rate, clip = figure.axes
    assert (rate.get_xlabel(), clip.get_xlabel()) == ("learning_rate", "clip")
    assert (rate.get_xscale(), clip.get_xscale()) == ("log", "linear")
    assert [text.get_text() for text in rate.get_xticklabels()] == ["1e-04", "0.001", "0.01"]
    for axes, name in ((rate, "learning_rate"), (clip, "clip")):
        assert sorted(dots(axes, "a run")[:, 1]) == sorted(lane["score"] for lane in lanes)
        places, low, high = bars(axes)
        values = sorted({lane["varied"][name] for lane in lanes})
        np.testing.assert_allclose(places[:, 0], values)
        for i, value in enumerate(values):
            strata = {}
            for lane_ in lanes:
                if lane_["varied"][name] == value:
                    strata.setdefault(lane_["group"], []).append(lane_["score"])
            expected = interval([np.array(s) for s in strata.values()], iqm)
            assert (places[i, 1], low[i], high[i]) == pytest.approx(tuple(expected.values()))
    assert legend(figure) == ["a run", "IQM per value, 95 % interval over seeds"]
    assert figure.get_suptitle() == "PPO on e/E: 18 runs"


def test_sensitivity_with_one_seed_has_no_interval(draw):
    assert "IQM per value; one seed, no interval" in legend(draw(sensitivity, grid(seeds=1)))


def test_sensitivity_of_an_unbalanced_grid_is_over_configurations(draw):
    lanes = [lane_ for lane_ in grid() if lane_["varied"] != {"learning_rate": 1e-3, "clip": 0.1}]
    figure = draw(lambda path: sensitivity(lanes, path, ["learning_rate"]))
    places, low, high = bars(figure.axes[0])
    means = [1 + 10 * clip + 10 - 9 for clip in (0.1, 0.2)]  # over the seeds, at a rate of 1e-2: 10 + 10 clip + 1
    expected = interval([np.array(means) + 9], iqm)
    assert (places[2, 1], low[2], high[2]) == pytest.approx(tuple(expected.values()))
    assert (places[1, 1], low[1], high[1]) == pytest.approx([4.0] * 3)  # one configuration: no interval
    assert "IQM per value, 95 % interval over settings" in legend(figure)


def test_sensitivity_of_draws_has_a_running_median(draw):
    rng = np.random.default_rng(1)
    rates = 10 ** rng.uniform(-5, -2, 40)
    lanes = [lane(float(np.log10(r)), learning_rate=float(r), width=float(rng.uniform(1, 2))) for r in rates]
    figure = draw(sensitivity, lanes)
    assert [axes.get_xscale() for axes in figure.axes] == ["log", "linear"]
    (line,) = figure.axes[0].lines
    order = np.sort(np.log10(rates))
    medians = [np.median(order[i : i + 8]) for i in range(33)]  # a fifth of 40
    np.testing.assert_allclose(line.get_ydata(), medians)
    np.testing.assert_allclose(np.log10(line.get_xdata()), medians)
    assert legend(figure) == ["a run", "median of 8 nearest runs, and quartiles"]


def test_sensitivity_of_words_and_lists(draw):
    lanes = [
        lane(1.0, seed=s, activation=a, hidden_sizes=h) | {"group": f"{a}{h}"}
        for a in ("tanh", "relu")
        for h in ([64], [64, 64])
        for s in range(2)
    ]
    figure = draw(lambda path: sensitivity(lanes, path, ["activation", "hidden_sizes"]))
    labels = [[text.get_text() for text in axes.get_xticklabels()] for axes in figure.axes]
    assert labels == [["relu", "tanh"], ["64", "64x64"]]


def test_dead_lanes_are_crosses_and_stopped_ones_in_no_line(draw):
    lanes = [lane(float(s), seed=s, clip=c) for c in (1, 2) for s in range(4)]
    lanes += [lane(None, seed=4, clip=1, died_at=3), lane(2.0, seed=4, clip=2, died_at=3)]
    lanes += [lane(1000.0, seed=5, clip=c, dropped_at=2) for c in (1, 2)]
    figure = draw(sensitivity, lanes)
    (axes,) = figure.axes
    crosses = dots(axes, "died of NaN; circle: last finite state")
    assert len(crosses) == 2
    assert (crosses[:, 1] < 0.05).all()  # of the panel's height
    np.testing.assert_array_equal(dots(axes, "stopped early, return then; in no line")[:, 1], [1000.0, 1000.0])
    places, *_ = bars(axes)
    np.testing.assert_array_equal(places, [[1, 1.5], [2, 5 / 3]])  # without and with a score of the dead one
    only = [lane(1.0, clip=c, dropped_at=2) for c in (1, 2)]
    assert legend(draw(sensitivity, only)) == ["stopped early, return then; in no line"]


def test_heatmap_has_the_iqm_of_every_cell(draw):
    lanes = [
        lane(100 * rate + 10 * clip + width + seed, seed=seed, learning_rate=rate, clip=clip, width=width)
        for rate, clip, width, seed in itertools.product((1, 2, 3), (1, 2), (0, 4), range(2))
        if (rate, clip) != (3, 2)
    ]
    lanes[0]["died_at"] = 3
    lanes.append(lane(9e9, learning_rate=1, clip=1, width=0, dropped_at=2))
    figure = draw(lambda path: heatmap(lanes, "learning_rate", "clip", path))
    axes = figure.axes[0]
    cells = {tuple(t.get_position()): t.get_text() for t in axes.texts}
    inner = iqm(np.array([0, 1, 4, 5]))
    for i, rate in enumerate((1, 2, 3)):
        for j, clip in enumerate((1, 2)):
            number = "-" if (rate, clip) == (3, 2) else f"{100 * rate + 10 * clip + inner:.1f}"
            notes = "\n1 stopped\n1 died" if (rate, clip) == (1, 1) else ""
            assert cells[i + 0.5, j + 0.5] == number + notes
    title = figure.get_suptitle().replace("\n", " ")
    assert title == "PPO on e/E IQM over seeds and 2 values of width 4 runs a cell"
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("learning_rate", "clip")
    unequal = draw(lambda path: heatmap(lanes[1:], "learning_rate", "clip", path))
    assert "3 to 4 runs a cell" in unequal.get_suptitle()


def test_heatmap_of_equal_returns(draw):
    figure = draw(lambda path: heatmap(grid(score=lambda *_: 500.0), "learning_rate", "clip", path))
    numbers = [text.get_text() for text in figure.axes[0].texts]
    assert len(numbers) == len({(lane["varied"]["learning_rate"], lane["varied"]["clip"]) for lane in grid()})
    assert set(numbers) == {"500.0"}


@pytest.mark.parametrize(
    ("lanes", "names", "message"),
    [
        ([], None, "no runs"),
        ([lane(1.0, clip=1), lane(1.0, clip=2, task="e/F")], None, "several tasks: e/E, e/F"),
        ([lane(1.0, clip=1), lane(1.0, clip=2, algorithm="sac")], None, "several algorithms: ppo, sac"),
        ([lane(None, clip=1), lane(None, clip=2)], None, "none of these 2 runs was evaluated"),
        ([lane(1.0), lane(2.0, seed=1)], None, "no hyperparameter"),
        (grid(), ["lr", "clip"], "lr was not varied in these runs: there are learning_rate, clip"),
    ],
    ids=["none", "tasks", "algorithms", "unscored", "seeds", "unknown"],
)
def test_runs_that_make_no_picture_are_refused(tmp_path, lanes, names, message):
    with pytest.raises(ValueError, match=message):
        sensitivity(lanes, tmp_path / "x.png", names)
    with pytest.raises(ValueError, match=message):
        heatmap(lanes, *(names or ("learning_rate", "clip")), tmp_path / "x.png")
    assert not list(tmp_path.iterdir())


def test_heatmap_needs_two_hyperparameters_of_a_grid(tmp_path):
    with pytest.raises(ValueError, match="x and y are both clip"):
        heatmap(grid(), "clip", "clip", tmp_path / "x.png")
    draws = [lane(1.0, clip=i / 30, learning_rate=i) for i in range(30)]
    with pytest.raises(ValueError, match="clip has 30 values: a heatmap needs a grid"):
        heatmap(draws, "clip", "learning_rate", tmp_path / "x.png")
    stopped = [lane(1.0, clip=c, learning_rate=1, dropped_at=2) for c in (1, 2)]
    with pytest.raises(ValueError, match="stopped early"):
        heatmap(stopped, "clip", "learning_rate", tmp_path / "x.png")


def test_colours_are_told_apart_from_grey():
    for colour in COLOURS:
        red, green, blue = matplotlib.colors.to_rgb(colour)
        assert max(red, green, blue) - min(red, green, blue) > 0.15


@pytest.mark.parametrize(
    ("values", "log"),
    [
        ([0.004, 0.21, 0.37, 0.55, 0.81, 0.99], False),  # uniform draws that come near to 0
        ([1e-4, 1e-3, 1e-2, 1e-1], True),
        ([1e-4, 3e-4, 1e-3, 2e-2], True),
        ([1, 2, 3, 4], False),
        ([1e-4, 1e-1], True),
        ([1.0, 2.0], False),
        ([0.0, 1.0, 100.0], False),
    ],
)
def test_an_axis_is_logarithmic_where_the_values_are_spread_like_that(values, log):
    assert _log_spaced(values) is log


def test_the_picture_of_a_population_says_what_its_lines_are(tmp_path, monkeypatch):
    rows = [{"step": i, "episode_return": [i, 2.0 * i], "varied.clip": [0.1, 0.2]} for i in range(3)]
    drawn = []
    monkeypatch.setattr("rlx.plot.curves.save_figure", lambda figure, path: drawn.append(figure))
    plot.population(rows, tmp_path / "population.png")
    assert drawn[0].get_suptitle() == "Population of 2 members"
    assert [text.get_text() for text in drawn[0].legends[0].texts] == [
        "the member that ends best",
        "the others; a member jumps where it copies another",
    ]
