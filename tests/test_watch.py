"""The page of a run: what is read of growing files, what has become of a run, and what is refused."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from werkzeug.serving import make_server

import rlx.watch
from rlx import report
from rlx.cli import main
from rlx.run.storage import is_owned, owned
from rlx.watch import figures, parts, serve
from rlx.watch.folders import Folder, opened, small_curve
from rlx.watch.follow import Columns, File, Tail
from rlx.watch.page import points_of
from rlx.watch.parallel import axis_of, parallel
from rlx.watch.runs import Run, newest_picture, rate_of
from rlx.watch.sweeps import Lanes

CONFIG = {
    "algorithm": "rlx.algos.ppo", "env": "gymnax/CartPole-v1", "env_options": {}, "env_params": {"gravity": 3.0},
    "seed": 3, "num_evaluations": 2, "config": {"learning_rate": 1e-3, "clip": 0.2, "gamma": 0.9, "total_steps": 100},
    "preset": {"gamma": 0.9}, "updates": 10, "steps": 100, "started": "2026-01-01T00:00:00+00:00", "device": "cpu",
}  # fmt: skip
HERE = {"base_url": "http://127.0.0.1:8050"}


def row(update, value=1.0, **more):
    return {
        "update": update, "step": 10 * update, "seconds": float(update), "num_episodes": 2, "episode_return": value,
        "policy_loss": 0.1 * update,
    } | more  # fmt: skip


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def append(path, *rows):
    with open(path, "a") as file:
        file.write("".join(json.dumps(row) + "\n" for row in rows))


def evaluation(update, *returns):
    return {"update": update, "step": 10 * update, "mean": float(np.mean(returns)), "returns": list(returns)}


def make_run(directory, num_rows=4, **changed):
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(CONFIG | changed))
    write(directory / "metrics.jsonl", *(row(i + 1, float(i)) for i in range(num_rows)))
    write(directory / "evaluations.jsonl", evaluation(5, 1.0, 2.0, 6.0))
    return directory


def make_sweep(directory, ended=True, num_rows=6, seeds=2):
    """Two configurations; the lanes of the second one have higher returns, by their numbers."""
    batch = directory / "batches" / "r0g0b0"
    batch.mkdir(parents=True)
    points = [{"learning_rate": 1e-4, "clip": 0.2}, {"learning_rate": 1e-2, "clip": 0.2}]
    about = {"points": points, "num_seeds": seeds, "rank_by": "return", "varied": ["learning_rate", "clip"]}
    (directory / "sweep.json").write_text(json.dumps(CONFIG | about))
    lanes = list(range(2 * seeds))
    (batch / "lanes.json").write_text(json.dumps(lanes))
    lists = lambda i: {
        "num_episodes": [1 + (lane + i) % 2 for lane in lanes],
        "episode_return": [None if i == 0 and lane == 1 else float(10 * lane + i) for lane in lanes],
        "policy_loss": [0.1 * lane for lane in lanes],
    }
    write(batch / "metrics.jsonl", *(row(i + 1) | lists(i) for i in range(num_rows)))
    if ended:
        result = lambda lane: {
            "lane": lane, "configuration": lane // seeds, "return_mean": 100.0 + lane, "died_at": None, "steps": 60,
            "evaluation": {"reported": {}},
        }  # fmt: skip
        (batch / "result.json").write_text(json.dumps([result(lane) for lane in lanes]))
        (directory / "summary.json").write_text("{}")
    return directory


def seen(view):
    view.refresh()
    assert view.problem == ""
    return view


def test_a_growing_file_is_read_on_and_half_a_line_waits(tmp_path):
    tail = Tail(tmp_path / "rows.jsonl")
    assert tail.read() == (False, [])
    write(tail.path, {"a": 1})
    assert tail.read() == (False, [{"a": 1}])
    version = tail.version
    with open(tail.path, "a") as file:
        file.write('{"a": 2}\n{"a"')
    assert tail.read() == (False, [{"a": 2}])
    assert tail.read() == (False, [])
    with open(tail.path, "a") as file:
        file.write(": 3}\n")
    assert tail.read() == (False, [{"a": 3}])
    assert tail.version == version + 2


@pytest.mark.parametrize("in_place", [False, True])
def test_rows_that_a_resumed_run_drops_are_void_also_where_the_file_has_grown_past_them(tmp_path, in_place):
    tail = Tail(tmp_path / "rows.jsonl")
    write(tail.path, *({"update": i, "try": 1} for i in range(5)))
    tail.read()
    new = tail.path if in_place else tmp_path / "new"
    write(new, *({"update": i, "try": 1 + (i > 2)} for i in range(9)))
    new.replace(tail.path)
    void, rows = tail.read()
    assert void
    assert [row["try"] for row in rows] == [1, 1, 1, 2, 2, 2, 2, 2, 2]
    tail.path.unlink()
    assert tail.read() == (True, [])


def test_a_damaged_file_is_named_and_what_was_read_stays(tmp_path):
    run = seen(Run(make_run(tmp_path / "run")))
    with open(run.directory / "metrics.jsonl", "a") as file:
        file.write("{nonsense}\n")
    run.refresh()
    assert f"{run.directory / 'metrics.jsonl'} is damaged" in run.problem
    assert run.metrics.num_rows == 4
    (run.directory / "config.json").write_text("{")
    run.refresh()
    assert "config.json is not readable as JSON" in run.problem


def test_columns_have_nan_where_rows_have_null_or_nothing():
    columns = Columns()
    columns.add([{"a": 1, "b": [1, None], "text": "x"}, {"a": None, "b": [3, 4]}])
    columns.add([{"c": 2.0, "b": [5, 6]}])
    np.testing.assert_array_equal(columns["a"], [1, np.nan, np.nan])
    np.testing.assert_array_equal(columns["b"], [[1, np.nan], [3, 4], [5, 6]])
    np.testing.assert_array_equal(columns["c"], [np.nan, np.nan, 2])
    assert columns.names() == ["a", "b", "c"]
    assert "text" not in columns


def test_a_file_that_is_replaced_is_read_again_and_one_that_is_not_is_the_same_object(tmp_path):
    file = File(tmp_path / "a.json")
    assert file.read() is None
    file.path.write_text("[1]")
    first = file.read()
    assert file.read() is first
    file.path.write_text("[1, 2]")
    assert file.read() == [1, 2]


def test_a_directory_is_owned_while_its_owner_lives_and_asking_stands_in_no_ones_way(tmp_path):
    assert is_owned(tmp_path / "none") is False
    with owned(tmp_path / "run"):
        assert is_owned(tmp_path / "run") is True
        (tmp_path / "run" / "config.json").write_text("{}")
    assert is_owned(tmp_path / "run") is False
    with owned(tmp_path / "run", resume=True):
        pass


def test_the_state_of_a_run_is_told_from_its_files_and_its_owner(tmp_path):
    run = Run(make_run(tmp_path / "run"))
    word = lambda: seen(run).state.word
    assert "no checkpoint" in seen(run).state.text
    (run.directory / "checkpoints" / "3").mkdir(parents=True)
    assert word() == "killed"
    assert "trains what came after update 3 again" in run.state.text
    with owned(run.directory, resume=True):
        assert word() == "under way"
    (run.directory / "curve.png").touch()
    assert word() == "stopped"
    end = run.directory / "evaluation.json"
    append(run.directory / "evaluations.jsonl", evaluation(4, 1.0))
    end.write_text(json.dumps(evaluation(4, 1.0)))
    assert word() == "died"  # training evaluated where no evaluation was due
    end.write_text(json.dumps(evaluation(4, 1.0) | {"stopped": "enough"}))
    assert word() == "stopped"
    assert "It stopped by itself: enough." in run.state.text
    append(run.directory / "evaluations.jsonl", evaluation(10, 1.0))
    end.write_text(json.dumps(evaluation(10, 1.0)))
    assert word() == "done"


def test_a_run_that_compiles_is_starting_and_becomes_a_run(tmp_path):
    with owned(tmp_path / "run"):
        run = seen(opened(tmp_path / "run"))
        assert run.state.word == "starting"
        shutil.copytree(make_run(tmp_path / "other"), run.directory, dirs_exist_ok=True)
        assert seen(run).state.word == "under way"


def test_a_killed_run_that_is_resumed_shows_no_stale_rows(tmp_path):
    run = seen(Run(make_run(tmp_path / "run", num_rows=6)))
    assert run.step == 60
    new = tmp_path / "new"
    write(new, *(row(i + 1, float(i)) for i in range(3)), row(4, 77.0))
    new.replace(run.directory / "metrics.jsonl")
    np.testing.assert_array_equal(seen(run).curve()[1], [0, 1, 2, 77])
    figure = figures.run_returns(run)
    assert max(figure.data[0].x) == 40


def test_an_evaluation_has_the_bootstrap_interval_over_its_episodes(tmp_path):
    (found,) = seen(Run(make_run(tmp_path / "run"))).evaluated()
    wanted = report.interval([np.array([1.0, 2.0, 6.0])], num_resamples=1999)
    assert found == {"step": 50} | wanted


def test_settings_that_were_asked_for_come_first_and_tuned_ones_are_told_apart(tmp_path):
    rows = seen(Run(make_run(tmp_path / "run"))).settings()
    assert [(row["name"], row["origin"]) for row in rows] == [
        ("learning_rate", "asked for"), ("total_steps", "asked for"), ("env.gravity", "asked for"), ("gamma", "tuned"),
        ("clip", "default"),
    ]  # fmt: skip
    own = seen(Run(make_run(tmp_path / "own", algorithm="/somewhere/my_ppo.py"))).settings()
    assert {row["origin"] for row in own} == {"asked for", "tuned", "own file"}  # which is not run to be watched


def test_the_rate_is_between_chunks_whose_rows_are_written_at_one_moment():
    seconds = np.array([1.0, 1.0, 1.001, 2.0, 2.0, 3.0, 3.001])
    steps = np.arange(1, 8) * 100.0
    times, rates = rate_of(seconds, steps)
    np.testing.assert_allclose(times, [2.0, 3.001])
    np.testing.assert_allclose(rates, [200 / 0.999, 200 / 1.001])


def test_a_picture_outside_of_the_run_is_not_shown(tmp_path):
    run = make_run(tmp_path / "run")
    (tmp_path / "secret.gif").write_bytes(b"GIF89a")
    (run / "episodes").mkdir()
    (run / "episodes" / "1.gif").symlink_to(tmp_path / "secret.gif")
    assert newest_picture(run) is None
    (run / "episodes" / "2.gif").write_bytes(b"GIF89a")
    assert newest_picture(run)[0].name == "2.gif"


def test_curves_of_a_sweep_are_those_of_the_report(tmp_path):
    sweep = seen(Lanes(make_sweep(tmp_path / "sweep")))
    for group in sweep.groups:
        fast, banded = sweep.curve(group), sweep.curve(group, bands=True)
        own = report.curve(*zip(*(sweep.lane_curve(lane, "episode_return") for lane in group.lanes), strict=True))
        for found in (fast, banded):
            np.testing.assert_allclose(found.steps, own.steps)
            np.testing.assert_allclose(found.value, own.value)
        assert fast.low is None
        assert (banded.low <= banded.value + 1e-9).all()


def test_the_best_configuration_is_ranked_first_and_lanes_by_themselves(tmp_path):
    sweep = seen(Lanes(make_sweep(tmp_path / "sweep")))
    assert sweep.state.word == "done"
    assert [row["group"].label for row in sweep.ranking()] == [
        "learning_rate=0.01 clip=0.2",
        "learning_rate=1e-04 clip=0.2",
    ]
    assert [row["group"].lanes for row in sweep.ranking(by_lane=True)] == [[3], [2], [1], [0]]
    assert sweep.ranking()[0]["value"] == 102.5
    assert sweep.varied == ["learning_rate"]
    assert sweep.step == 4 * 60


def test_a_sweep_that_is_cut_short_is_stopped_where_nothing_was_lost_and_killed_where_rows_were(tmp_path):
    sweep = Lanes(make_sweep(tmp_path / "sweep", ended=False))
    checkpoints = sweep.directory / "batches" / "r0g0b0" / "checkpoints"
    (checkpoints / "4").mkdir(parents=True)
    assert seen(sweep).state.word == "killed"
    assert "after update 4 of batch r0g0b0" in sweep.state.text
    (checkpoints / "6").mkdir()
    assert seen(sweep).state.word == "stopped"
    assert [row["value"] for row in sweep.ranking()] == [None, None]
    assert [row["group"].id for row in sweep.ranking()] == ["c1", "c0"]  # by training


def test_lanes_that_halving_dropped_stand_last(tmp_path):
    directory = make_sweep(tmp_path / "sweep")
    second = directory / "batches" / "r1g0b0"
    shutil.copytree(directory / "batches" / "r0g0b0", second)
    (second / "lanes.json").write_text("[0, 1]")
    write(second / "metrics.jsonl", row(7, num_episodes=[1, 1], episode_return=[5.0, 7.0]))
    rows = json.loads((second / "result.json").read_text())[:2]
    (second / "result.json").write_text(json.dumps(rows))
    sweep = seen(Lanes(directory))
    assert [(row["group"].id, row["note"]) for row in sweep.ranking()] == [("c0", ""), ("c1", "dropped early")]
    assert len(sweep.lane_curve(0, "episode_return")[0]) == 7


def test_figures_have_a_line_for_each_group_and_the_lanes_of_a_single_one(tmp_path):
    sweep = seen(Lanes(make_sweep(tmp_path / "sweep")))
    groups = figures.shown(sweep, [], sweep.ranking())
    lines = [trace.name for trace in figures.sweep_curves(sweep, groups).data if trace.showlegend is not False]
    assert lines == ["learning_rate=0.01 clip=0.2", "learning_rate=1e-04 clip=0.2"]
    one = figures.sweep_curves(sweep, figures.shown(sweep, ["c1"], sweep.ranking()))
    assert [trace.name for trace in one.data] == ["1 others", "lane 2", "lane 3", "band", lines[0]]
    metrics = figures.sweep_metrics(sweep, groups, ["policy_loss"])
    np.testing.assert_allclose(metrics.data[0].y, 0.25)
    assert [len(x) for x in small_curve(sweep)] == [6, 6]


def test_parallel_coordinates_have_every_row_from_each_setting_to_the_result(tmp_path):
    sweep = seen(Lanes(make_sweep(tmp_path / "sweep")))
    figure = parallel(sweep, sweep.ranking(), ["c1"])
    assert [list(trace.customdata[:1]) for trace in figure.data] == [["c0"], ["c1"], ["c1"]]
    np.testing.assert_allclose(figure.data[0].y[:2], [0, 0])
    np.testing.assert_allclose(figure.data[1].y[:2], [1, 1])
    assert points_of({"points": [{"customdata": "c1"}, {"customdata": "c1"}, {"x": 1}]}) == ["c1"]


def test_an_axis_is_logarithmic_over_a_decade_and_has_a_place_for_each_word():
    np.testing.assert_allclose(axis_of("a", [1e-4, 1e-3, 1e-2]).places, [0, 0.5, 1])
    np.testing.assert_allclose(axis_of("a", [1.0, 2.0, 3.0]).places, [0, 0.5, 1])
    assert axis_of("a", ["relu", "tanh", True]).ticks == [(1 / 6, "True"), (0.5, "relu"), (5 / 6, "tanh")]
    assert np.isnan(axis_of("a", [1.0, None]).places[1])


def test_a_folder_lists_runs_and_sweeps_the_newest_first(tmp_path):
    make_run(tmp_path / "old")
    make_run(tmp_path / "new", started="2026-02-01T00:00:00+00:00")
    (tmp_path / "notes").mkdir()
    folder = seen(opened(tmp_path))
    assert isinstance(folder, Folder)
    assert list(folder.entries) == ["new", "old"]
    shutil.rmtree(tmp_path / "new")
    make_sweep(tmp_path / "sweep")
    assert set(seen(folder).entries) == {"old", "sweep"}
    assert len(parts.entries(folder)[0].children[1].children) == 2


@pytest.fixture
def client(tmp_path):
    for name in ("a", "b c"):
        make_run(tmp_path / "runs" / name)
    (tmp_path / "runs" / "a" / "episode.gif").write_bytes(b"GIF89a")
    (tmp_path / "secret.gif").write_bytes(b"not for you")
    return serve.server(tmp_path / "runs").test_client()


def test_the_page_is_served_with_a_policy_that_keeps_it_on_this_machine(client):
    answer = client.get("/", **HERE)
    assert answer.status_code == 200
    policy = answer.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe-eval" not in policy
    assert "http" not in policy
    addresses = [part.split('"')[0] for part in answer.text.split('src="')[1:]]
    assert addresses
    assert all(address.startswith("/") and not address.startswith("//") for address in addresses)


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example:8050", "10.0.0.1:8050", "localhost.evil:1"])
def test_another_host_is_refused(client, host):
    for path in ("/", "/_dash-layout", "/picture/a"):
        assert client.get(path, headers={"Host": host}).status_code == 403


@pytest.mark.parametrize("host", ["127.0.0.1:8050", "localhost:9000", "localhost"])
def test_this_machine_is_served_also_through_a_tunnel_of_another_port(client, host):
    assert client.get("/", headers={"Host": host}).status_code == 200


def test_methods_that_are_not_needed_are_refused(client):
    for method in ("PUT", "DELETE", "PATCH", "OPTIONS", "POST"):
        assert client.open("/", method=method, **HERE).status_code == 405
    assert client.post("/_dash-layout", **HERE).status_code == 405


def test_no_address_leads_out_of_the_run(client):
    with client.get("/picture/a", **HERE) as answer:
        assert answer.data == b"GIF89a"
    for path in ("/picture/b%20c", "/picture/..", "/picture", "/picture/secret.gif"):
        assert client.get(path, **HERE).status_code == 404
    outside = ["/picture/..%2Fsecret.gif", "/picture/%2Fetc%2Fpasswd", "/../secret.gif", "/%2e%2e/secret.gif"]
    for path in (*outside, "/assets/../page.py", "/assets/%2e%2e/page.py", "/static/page.py"):
        with client.get(path, **HERE) as answer:
            assert answer.status_code in (400, 404) or b'id="_dash-renderer"' in answer.data  # the page itself
            assert b"not for you" not in answer.data


def asked(client, pathname, seen=None):
    """What the page of a run is told."""
    wanted = [
        ("run-returns", "figure"), ("run-metrics", "figure"), ("run-metrics", "style"), ("run-rates", "figure"),
        ("run-settings", "children"), ("run-picture", "children"), ("run-episode", "hidden"), ("run-choice", "options"),
        ("run-choice", "value"), ("run-seen", "data"),
    ]  # fmt: skip
    body = {
        "output": f"..{'...'.join('.'.join(x) for x in wanted)}..",
        "outputs": [{"id": id, "property": name} for id, name in wanted],
        "inputs": [
            {"id": "tick", "property": "n_intervals", "value": 1},
            {"id": "run-choice", "property": "value", "value": ["policy_loss"]},
        ],
        "state": [
            {"id": "where", "property": "pathname", "value": pathname},
            {"id": "run-seen", "property": "data", "value": seen},
        ],
        "changedPropIds": ["tick.n_intervals"],
    }
    return client.post("/_dash-update-component", json=body, **HERE)


def test_a_page_gets_figures_once_and_again_only_when_a_file_has_changed(client, tmp_path):
    first = asked(client, "/a")
    assert first.status_code == 200
    found = first.json["response"]
    assert found["run-choice"]["options"] == ["policy_loss", "num_episodes"]
    assert found["run-picture"]["children"][0]["props"]["src"].startswith("/picture/a?")
    again = asked(client, "/a", found["run-seen"]["data"])
    assert again.status_code == 204
    append(tmp_path / "runs" / "a" / "metrics.jsonl", row(5, 9.0))
    assert asked(client, "/a", found["run-seen"]["data"]).status_code == 200
    assert asked(client, "/b%20c").status_code == 200
    assert asked(client, "/nothing").status_code == 204


def test_a_port_that_is_taken_is_passed_over_and_said():
    said = []
    with serve.bound(38050, said.append) as first, serve.bound(first.getsockname()[1], said.append) as second:
        taken, port = first.getsockname()[1], second.getsockname()[1]
        assert port > taken
        assert f"port {taken} is taken: {port} is the next one that is free" in said
        assert second.getsockname()[0] == "127.0.0.1"
    with pytest.raises(ValueError, match="--port 70000: give a number"):
        serve.bound(70000)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: None, "is not there"),
        (lambda path: path.write_text(""), "is a file"),
        (lambda path: path.mkdir(), "is no run and no sweep, and holds none"),
    ],
)
def test_what_cannot_be_watched_is_one_line_and_status_2(tmp_path, capsys, make, words):
    make(tmp_path / "thing")
    with pytest.raises(SystemExit) as stop:
        main(["watch", str(tmp_path / "thing")])
    assert stop.value.code == 2
    assert words in capsys.readouterr().err


def test_without_the_extra_it_says_what_to_install(tmp_path, monkeypatch, without):
    without("dash")
    monkeypatch.delitem(sys.modules, "rlx.watch.page")
    monkeypatch.delattr(rlx.watch, "page")
    with pytest.raises(ValueError, match=r'pip install "rlx\[watch\]"'):
        serve.server(make_run(tmp_path / "run"))


def test_the_command_serves_until_ctrl_c_and_ends_quietly(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "rlx", "watch", str(make_run(tmp_path / "run")), "--port", str(port)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": Path(__file__).parents[1]}
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a child of a shell's background ignores it
    try:
        process = subprocess.Popen(command, env=os.environ, **pipes)
    finally:
        signal.signal(signal.SIGINT, before)
    with process:
        address = process.stdout.readline().split()[1]
        with urllib.request.urlopen(address) as answer:
            assert answer.status == 200
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (0, "", "")


@pytest.fixture(scope="module")
def browser():
    """A browser without a window: one that is installed, driven by playwright."""
    api = pytest.importorskip("playwright.sync_api", reason="needs playwright, which make test-more installs")
    if (path := shutil.which("chromium") or shutil.which("google-chrome")) is None:
        pytest.skip("there is no chromium and no google-chrome on this machine")
    with api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture
def visit(browser):
    """Opens what is watched on a page, and holds at the end that no request left this machine and nothing failed."""
    opened_pages, complaints, requests = [], [], []

    def to(path, address="/"):
        listening = serve.bound(38100, lambda text: None)
        web = serve.server(path, seconds=0.5)
        running = make_server("127.0.0.1", 1, web, threaded=True, fd=listening.fileno())
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        page = browser.new_page()
        opened_pages.append((page, running, thread, listening))
        page.on("console", lambda said: complaints.append(said.text) if said.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(f"http://127.0.0.1:{listening.getsockname()[1]}{address}")
        return page

    yield to
    for page, running, thread, listening in opened_pages:
        page.close()
        running.shutdown()
        thread.join()
        listening.close()
    assert complaints == []
    assert len(requests) > 10
    assert [url for url in requests if not url.startswith(("http://127.0.0.1:", "data:", "blob:"))] == []


def until(page, graph, condition):
    """Waits until a condition of `traces`, the lines that a graph has drawn, is true."""
    traces = f"(document.querySelector('#{graph} .js-plotly-plot')?._fullData ?? [])"
    page.wait_for_function(f"() => {{ const traces = {traces}; return {condition}; }}", timeout=30_000)


@pytest.mark.more
def test_a_page_draws_every_row_and_those_that_come_and_no_stale_ones(visit, tmp_path):
    run = make_run(tmp_path / "run")
    page = visit(run)
    until(page, "run-returns", "traces.length == 3 && traces[0].x.length == 4 && traces[2].x.length == 1")
    until(page, "run-metrics", "traces.length == 1 && traces[0].x.length == 4")  # no counts
    assert "PPO on gymnax/CartPole-v1" in page.inner_text("#head")
    assert "killed" in page.inner_text("#head")
    append(run / "metrics.jsonl", row(5, 50.0), row(6, 60.0))
    until(page, "run-returns", "traces[0].x.length == 6 && Math.max(...traces[0].y) == 60")
    write(tmp_path / "new", *(row(i + 1, float(i)) for i in range(3)))
    (tmp_path / "new").replace(run / "metrics.jsonl")
    until(page, "run-returns", "traces[0].x.length == 3 && Math.max(...traces[0].y) == 2")


@pytest.mark.more
def test_a_lane_that_is_chosen_is_drawn(visit, tmp_path):
    page = visit(make_sweep(tmp_path / "sweep"))
    names = "traces.map(trace => trace.name)"
    until(page, "sweep-curves", f"{names}.filter(name => name.includes('learning_rate')).length == 2")
    page.locator("#sweep-table .ag-center-cols-container .ag-row").first.click()
    until(page, "sweep-curves", f"{names}.includes('lane 2') && {names}.includes('lane 3')")
    page.get_by_text("lanes", exact=True).first.click()
    rows = "document.querySelectorAll('#sweep-table .ag-center-cols-container .ag-row')"
    page.wait_for_function(f"() => {rows}.length == 4")
    until(page, "sweep-parallel", "traces.length > 0")


@pytest.mark.more
def test_a_folder_leads_to_its_runs_and_back(visit, tmp_path):
    make_run(tmp_path / "runs" / "a b")
    make_sweep(tmp_path / "runs" / "sweep")
    page = visit(tmp_path / "runs")
    page.get_by_text("a b", exact=True).click()
    until(page, "run-returns", "traces.length == 3")
    page.get_by_text("all runs").click()
    page.get_by_text("sweep", exact=True).click()
    until(page, "sweep-curves", "traces.length > 1")
