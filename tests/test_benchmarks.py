import copy
import json
import signal
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))


@pytest.fixture
def speed_result():
    """Two repeats; rlx runs at 300 and 100 steps/s beside a Rejax of 100."""
    from speed import CASES

    def measurement(library, repeat, speed):
        return {
            "case": "CartPole-v1",
            "library": library,
            "repeat": repeat,
            "import_seconds": 1.0,
            "trace_seconds": 0.5,
            "compile_seconds": 1.5,
            "cached_seconds": 0.1,
            "run_seconds": [1.0],
            "cores_used": 1.0,
            "steps": 100,
            "steps_per_second": {"median": speed, "min": speed, "max": speed},
            "peak_memory_bytes": 2**20,
            "device": "cpu",
            "versions": {"jax": "1"},
        }

    speeds = [("rlx", 0, 300.0), ("Rejax", 0, 100.0), ("rlx", 1, 100.0), ("Rejax", 1, 100.0)]
    settings = {"CartPole-v1": CASES["CartPole-v1"][0]}
    return {"commit": "c", "machine": {}, "settings": settings, "measurements": [measurement(*s) for s in speeds]}


@pytest.fixture
def returns_result():
    return {
        "task": "CartPole-v1",
        "algorithm": "ppo",
        "steps": 500_224,
        "seeds": list(range(10)),
        "mean": {"value": 491.26, "low": 480.0, "high": 500.0},
        "iqm": {"value": 500.0, "low": 495.0, "high": 500.0},
        "bar": {"at_least": 475, "seeds": 9, "reached": 10, "passed": True},
    }


def test_returns_table_renders(returns_result):
    from tables import returns_table

    header, rule, row = returns_table([returns_result]).splitlines()
    assert header.count("|") == rule.count("|") == row.count("|")
    assert row == (
        "| CartPole-v1 | ppo | 500,224 | 10 | 491.3 [480.0, 500.0] | 500.0 [495.0, 500.0] "
        "| 475 on 9 of 10 seeds: reached (10) |"
    )


def test_returns_of_a_peer_stand_beside_those_of_its_task(returns_result):
    from tables import returns_table

    peer = {"task": "CartPole-v1", "algorithm": "ppo", "mean": {"value": 480.04, "low": 470.0, "high": 490.0}}
    other = returns_result | {"algorithm": "sac"}
    header, _, row, without = returns_table([returns_result, other], [peer]).splitlines()
    assert header.endswith("| at least | mean return of Rejax [95 %] |")
    assert row.endswith("reached (10) | 480.0 [470.0, 490.0] |")
    assert without.endswith("reached (10) |  |")


@pytest.mark.parametrize(
    ("bar", "text"), [(None, "none"), ({"at_least": -90, "passed": False}, "mean -90: missed")], ids=["none", "mean"]
)
def test_returns_table_states_the_bar(returns_result, bar, text):
    from tables import returns_table

    assert returns_table([returns_result | {"bar": bar}]).endswith(f"| {text} |\n")


def test_speed_table_has_the_ratios_of_neighbours(speed_result):
    from tables import speed_table

    failed = {"case": "CartPole-v1", "library": "SBX", "repeat": 0, "error": "ImportError: no SBX"}
    loop = speed_result["measurements"][1] | {"library": "Stable-Baselines3"}
    del loop["trace_seconds"], loop["compile_seconds"], loop["cached_seconds"]
    speed_result["measurements"] += [failed, loop, loop]
    lines = speed_table(speed_result).splitlines()
    assert lines[2] == "| CartPole-v1 | Rejax | steps/s | 200 | 100 | 2.00 [1.00, 3.00] | at least 1.25: reached |"
    assert lines[3].endswith("| trace + compile, s | 2.00 | 2.00 | 1.00 [1.00, 1.00] | at most 0.6: missed |")
    assert "| CartPole-v1 | SBX | does not run |  | ImportError: no SBX |  |  |" in lines
    told = [line.split(" | ")[2] for line in lines if "Stable-Baselines3" in line]
    assert told == ["steps/s", "import, s", "peak memory, MiB"]


def test_only_the_tables_of_a_readme_change():
    from tables import render

    text = "a\n<!-- table: speed -->\nold\n<!-- end -->\nb\n<!-- table: returns -->\n<!-- end -->\nc\n"
    rendered = render(text, {"speed": "new\n"})
    assert rendered == (
        "a\n<!-- table: speed -->\nnew\n<!-- end -->\nb\n<!-- table: returns -->\nNot measured yet.\n<!-- end -->\nc\n"
    )
    assert render(rendered, {"speed": "new\n"}) == rendered


def test_check_fails_on_a_stale_readme(tmp_path, returns_result):
    from tables import main

    readme, folder = tmp_path / "README.md", tmp_path / "results" / "returns"
    folder.mkdir(parents=True)
    (folder / "ppo-CartPole-v1.json").write_text(json.dumps(returns_result))
    readme.write_text("<!-- table: returns -->\n<!-- end -->\n")
    with pytest.raises(SystemExit, match="not up to date"):
        main(check=True, documents=(readme,), results=tmp_path / "results")
    main(documents=(readme,), results=tmp_path / "results")
    assert "491.3" in readme.read_text()
    main(check=True, documents=(readme,), results=tmp_path / "results")


def test_readme_is_up_to_date():
    from tables import main

    main(check=True)


@pytest.mark.parametrize(
    "path", sorted((BENCHMARKS / "results" / "returns").glob("*.json")), ids=lambda path: path.stem
)
def test_intervals_of_the_results_are_those_of_their_returns(path):
    from returns import interval, iqm

    result = json.loads(path.read_text())
    assert interval([result["returns"]]) == pytest.approx(result["mean"], rel=1e-12)
    assert interval([result["returns"]], iqm) == pytest.approx(result["iqm"], rel=1e-12)


def test_bars_count_seeds_or_take_the_mean():
    from returns import Task, bar

    returns = np.array([500.0] * 9 + [0.0])
    by_seeds, by_mean = Task("", 1, at_least=475, share=0.9), Task("", 1, at_least=475)
    assert bar(by_seeds, returns) == {"at_least": 475, "seeds": 9, "reached": 9, "passed": True}
    assert bar(by_mean, returns) == {"at_least": 475, "passed": False}
    assert bar(Task("", 1), returns) is None


def test_curve_weighs_seeds_equally_and_skips_stretches_without_episodes():
    from returns import curve

    episode_return = np.array([[np.nan, 10.0, 20.0, np.nan], [np.nan, np.nan, 5.0, np.nan]])
    num_episodes = np.array([[0, 1, 3, 0], [0, 0, 4, 0]])
    steps = lambda num_updates: 8 * num_updates
    assert curve(episode_return, num_episodes, steps, num_points=2) == {
        "steps": [16, 32],
        "mean_return": [10.0, 12.5],
    }
    assert curve(episode_return, num_episodes, steps)["mean_return"] == [None, 10.0, 12.5, None]


@pytest.mark.filterwarnings("ignore:no tuned settings")
def test_every_task_is_there_and_divides_its_settings():
    from returns import OWN, TASKS, named

    import rlx
    from rlx.envs.registry import full_name
    from rlx.presets import preset

    for algorithm, tasks in {"ppo": TASKS, **OWN}.items():
        module, changed = named(algorithm)
        for task in tasks.values():
            assert full_name(task.env) == task.env
            config = preset(module, task.env, **changed, total_steps=task.total_steps)
            assert rlx.total_updates(config) > 20


@pytest.mark.filterwarnings("ignore:no tuned settings")
def test_returns_of_a_probe():
    from returns import Task, measure

    (result,) = measure([Task("probe/Constant", 2_000, at_least=1.0, episodes=4)], num_seeds=3)
    json.dumps(result, allow_nan=False)
    assert result["returns"] == [1.0, 1.0, 1.0]
    assert result["bar"] == {"at_least": 1.0, "passed": True}
    assert result["steps"] == 2_048
    assert result["curve"] == {"steps": [512, 1024, 1536, 2048], "mean_return": [1.0] * 4}
    assert result["all_finished"]
    assert result["config"]["total_steps"] == result["settings"]["total_steps"] == 2_000


def test_tasks_at_fewer_steps_are_the_same_runs_of_an_off_policy_algorithm_only():
    from returns import batches

    assert [list(tasks) for tasks in batches("sac")][-2:] == [
        ["hopper-200k", "hopper-500k"],
        ["halfcheetah-200k", "halfcheetah-500k"],
    ]
    assert all(len(tasks) == 1 for tasks in batches("ppo"))


def test_measured_returns_are_not_measured_again(tmp_path, monkeypatch):
    import returns

    calls = []
    result = {"mean": {"value": 1.0, "low": 1.0, "high": 1.0}, "steps": 1, "seconds": {"compile": 1.0, "run": 1.0}}
    monkeypatch.setattr(returns, "measure", lambda *args: calls.append(args) or [copy.deepcopy(result)])
    monkeypatch.setattr(returns.jax.config, "update", lambda *args: None)
    for force, expected in ((False, 1), (False, 1), (True, 2)):
        returns.main(task="CartPole-v1", force=force, out=tmp_path)
        assert len(calls) == expected
    assert [path.name for path in tmp_path.iterdir()] == ["ppo-CartPole-v1.json"]


def test_speed_cases_are_whole_updates_of_one_configuration():
    from peers.rlx_values import configured
    from speed import AIMS, CASES, QUANTITIES, shortened

    import rlx
    from rlx.algos import fpo, ppo, sac

    algorithms = {"rlx_ppo": ppo, "rlx_sac": sac, "ppo": ppo, "fpo": fpo}
    for settings, sides in CASES.values():
        for of_case in (settings, shortened(settings)):
            names = {"env", "options", "critic_sizes"}
            ours = sides["rlx"]
            algorithm = algorithms.get(ours.settings.get("algorithm", ours.module))
            alone = {k: v for k, v in of_case.items() if k not in names}
            config = algorithm.Config(**alone) if algorithm else configured(of_case)[1]
            assert rlx.steps_taken(config, rlx.total_updates(config)) == config.total_steps
            assert config.steps_per_update % getattr(config, "num_minibatches", 1) == 0
    assert all(other in CASES[case][1] and quantity in QUANTITIES for case, other, quantity in AIMS)


@pytest.mark.more
def test_speed_measurement_has_the_schema(speed_result):
    from speed import CASES, measurement

    settings = CASES["CartPole-v1"][0] | {"total_steps": 64, "num_steps": 16, "num_epochs": 1}
    measured = measurement(sys.executable, "peers.rlx_ppo", settings, num_runs=2, platform="cpu")
    expected = {k: v for k, v in speed_result["measurements"][0].items() if k not in ("case", "library", "repeat")}
    assert measured.keys() == expected.keys()
    assert {k: type(v) for k, v in measured.items()} == {k: type(v) for k, v in expected.items()}
    assert len(measured["run_seconds"]) == 2
    speed = measured["steps_per_second"]
    assert 0 < speed["min"] <= speed["median"] <= speed["max"]
    assert measured["steps"] == 64
    assert {"rlx", "jax", "jaxlib", "gymnax"} <= measured["versions"].keys()


def test_bare_environments_take_the_steps_asked_for():
    from peers.rlx_random import program

    function, arguments, steps = program({"env": "CartPole-v1", "num_envs": 4, "num_steps": 8, "total_steps": 64})
    state, other = (function(*arguments(jax.random.key(seed))) for seed in range(2))
    assert steps(state) == 64
    assert (state.obs != other.obs).any(-1).all()  # other actions: what is timed has the dynamics in it


def test_critics_have_the_published_size(monkeypatch):
    from peers.rlx_resumed import program

    from rlx.algos import ppo

    monkeypatch.setattr(ppo, "networks", ppo.networks)  # put back afterwards
    sizes = {"num_envs": 2, "num_steps": 8, "num_minibatches": 1, "total_steps": 16}
    sizes |= {"hidden_sizes": [4], "critic_sizes": [6, 5]}
    function, arguments, _ = program({"algorithm": "ppo", "env": "CartPole-v1"} | sizes)
    state, _ = jax.eval_shape(function, *arguments(jax.random.key(0)))
    kernels = {name: layer["kernel"].shape for name, layer in state.params["critic"]["params"]["torso"].items()}
    assert kernels == {"Dense_0": (4, 6), "Dense_1": (6, 5)}
    assert state.params["actor"]["params"]["torso"]["Dense_0"]["kernel"].shape == (4, 4)


def compiled_text(function, *args):
    return jax.jit(function).lower(*args).compile().as_text()


def test_what_a_program_costs_is_counted_as_often_as_its_loops_go_round():
    from roofline import cost

    def layers(x, w):
        return jax.lax.scan(lambda x, _: (jnp.tanh(x @ w), None), x, length=7)[0]

    found = cost(compiled_text(layers, jnp.ones((128, 64)), jnp.ones((64, 48)) @ jnp.ones((48, 64))))
    assert found.operations == pytest.approx(7 * (2 * 128 * 64 * 64 + 128 * 64), rel=1e-3)
    once = cost(compiled_text(lambda x, w: jnp.tanh(x @ w), jnp.ones((128, 64)), jnp.ones((64, 64))))
    assert 7 * once.kernels <= found.kernels <= 7 * (once.kernels + 3) + 5  # the counter, its comparison, copies
    assert 7 * once.bytes == pytest.approx(found.bytes, rel=0.2)


def test_what_is_changed_in_place_costs_what_is_changed():
    from roofline import cost

    def rows(x):
        return jax.lax.fori_loop(0, 50, lambda i, x: x.at[i].set(2.0 * x[i]), x)

    x = jnp.ones((50, 1000))
    # Each row is read and written, and the whole is copied, once, so that the argument stays what it is.
    assert cost(compiled_text(rows, x)).bytes == pytest.approx(4 * x.nbytes, rel=0.05)


def test_loops_of_unknown_length_are_not_counted():
    from roofline import cost

    with pytest.raises(ValueError, match="not known how often"):
        cost(compiled_text(lambda n: jax.lax.while_loop(lambda i: i < n, lambda i: i * 2 + 1, 0), 1000))


def test_roofline_table_sets_counts_beside_the_ceilings():
    from tables import roofline_table

    ceilings = {"large_product_flops": 2e11, "layers_flops": 1e11, "copy_bytes_per_second": 1e10}
    case = {"case": "PPO", "steps": 1000, "seconds": 1e-2, "operations": 2e8, "bytes": 1e7, "kernels": 5000}
    case |= {"shares": {"environment": 0.25, "policy": 0.75}}
    row = roofline_table({"ceilings": ceilings | {"seconds_per_kernel": 1e-6}, "cases": [case]}).splitlines()[-1]
    assert row == "| PPO | 0.20 | 10 | 5,000 | 20% | 10% | 50% | 25% | 75% |"


def test_hours_table_has_what_is_published_beside_what_was_reached():
    from tables import hours_table

    task = {"task": "brax/ant", "options": ["backend=spring"], "steps": 30_000_000, "hours": 0.75}
    task |= {"return": {"value": 5.0, "low": 4.0, "high": 6.0}}
    task |= {"published": {"return": 6517.3, "steps": 10, "source": "a table"}}
    row = hours_table({"tasks": [task]}).splitlines()[-1]
    assert row == "| brax/ant, spring | 30,000,000 | 0.8 | 5.0 [4.0, 6.0] | 6517.3 | 10 | a table |"


def test_suites_tables_say_what_passes_what_was_not_judged_and_what_is_refused():
    from tables import suites_tables

    operations = "it has {} operations, and without jit each of them would be compiled alone"
    passing = {"passes": True, "fixed_starts": False, "not_judged": {}, "seconds": 4.0}
    environments = {
        "s/A": passing | {"not_judged": {"jit": operations.format(500)}},
        "s/B": passing | {"not_judged": {"jit": operations.format(700)}, "fixed_starts": True},
        "s/C": {"passes": False, "error": "values: too large", "seconds": 10.0},
    }
    found = suites_tables({"suites": {"s": {"version": "1.2", "environments": environments, "refused": {"s/D": "no"}}}})
    assert found["suites"].splitlines()[2:] == ["| s 1.2 | `s/C`: values: too large | 2 of 3 | 1 | 1 | 4 |"]
    assert found["suites-not-judged"].splitlines()[2:] == [f"| s | jit | {operations.format(500)} | 2 |"]
    assert found["suites-refused"].splitlines()[2:] == ["| `s/D` | no |"]


def test_shell_table_says_whether_the_aim_is_reached():
    from tables import shell_table

    seconds = {"rlx": [2.0, 4.0], "the other": [4.0, 4.0]}
    case = {"case": "a run", "beside": "a script", "at_most": 0.5, "seconds": seconds}
    row = shell_table({"cases": [case]}).splitlines()[-1]
    assert row == "| a run | a script | 3.0 | 4.0 | 0.75 [0.50, 1.00] | at most 0.5: missed |"


def test_speed_reports_a_failed_process():
    from speed import CASES, measurement

    settings = CASES["CartPole-v1"][0] | {"env": "NoSuch"}
    with pytest.raises(RuntimeError, match="rlx_ppo failed on NoSuch"):
        measurement(sys.executable, "peers.rlx_ppo", settings, num_runs=1, platform="cpu")


# Counts to 20 in a file and says how it ended; what is killed goes on counting.
COUNTER = """
import pathlib, sys, time
path = pathlib.Path("run/count")
path.parent.mkdir(exist_ok=True)
count = int(path.read_text()) if path.exists() else 0
while count < 20:
    count += 1
    time.sleep(0.02)
    new = path.with_suffix(".new")
    new.write_text(str(count))
    new.rename(path)
path.with_name("end").write_text(sys.argv[1])
"""


def counter(resumed_end):
    from kills import Case

    command = [sys.executable, "-S", "-c", COUNTER]
    return Case(
        start=[*command, "ended"],
        resume=[*command, resumed_end],
        folder="run",
        begun=lambda run: (run / "count").exists(),
        ended=lambda run: (run / "end").exists(),
        progress=lambda run: int((run / "count").read_text()) if (run / "count").exists() else 0,
        found=lambda run: "something" if run.exists() else "nothing",
        differences=lambda a, b: [] if (a / "end").read_text() == (b / "end").read_text() else ["end"],
    )


def test_a_run_that_resumes_well_survives_every_kill():
    from kills import survive

    result = survive(counter("ended"), {signal.SIGKILL: 3, signal.SIGTERM: 2}, 0, Console(quiet=True))
    assert result["survived"] == result["trials"] >= result["stopped"] == 5
    assert {r["statuses"][0] for r in result["results"]} <= {0, -9, -15}
    assert any(r["statuses"] == [-9, 0] and r["found"] == "something" for r in result["results"])


def test_a_run_that_ends_differently_after_a_kill_is_found_out():
    from kills import survive

    result = survive(counter("otherwise"), {signal.SIGKILL: 3}, 0, Console(quiet=True))
    wrong = [r for r in result["results"] if r["differences"]]
    assert 0 < len(wrong) == result["trials"] - result["survived"]
    assert all(r["differences"] == ["end"] and r["found"] == "something" for r in wrong)


@pytest.mark.slow
def test_trainings_that_are_killed_end_as_the_one_that_was_not():
    from kills import survive, training

    result = survive(training(200_000), {signal.SIGKILL: 3, signal.SIGTERM: 1}, 1, Console())
    assert result["survived"] == result["trials"] >= result["stopped"] == 4, result
