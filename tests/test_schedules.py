"""Schedules: their values, what is written of them, and that runs, sweeps and gradients take them like numbers."""

import copy
import json
from functools import partial
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rlx
from rlx import cli, pytree, replace, stack, static, traced
from rlx.algorithm_check import check_algorithm
from rlx.algos import dppo
from rlx.data import clone, collect
from rlx.files import read_rows
from rlx.meta.gradients import meta_train, outcome, unrolled
from rlx.meta.lifetimes import Lifetime, scaled
from rlx.run.render import record
from rlx.run.why import diverged, why
from rlx.schedules import (
    Schedule,
    alike,
    at,
    changed_besides,
    cosine,
    exponential,
    is_scheduled,
    linear,
    parse,
    piecewise,
    piecewise_linear,
)
from rlx.sweeps.lanes import groups
from rlx.sweeps.saved import load_sweep
from rlx.train import advance, now

EXACT = True  # bits are compared
PROGRESS = np.linspace(0, 1, 21)
SIZES = ["--num-steps", "16", "--num-epochs", "1", "--num-minibatches", "1", "--hidden-sizes", "4"]
SIZES += ["--total-steps", "256", "--eval-episodes", "2", "--env-options", "max_steps=12", "--no-compile-cache"]
TEXTS = ["linear:0.01:0", "cosine:0.0003:3e-05", "exponential:1:0.001", "piecewise:0.001:0.5:0.0001:0.75:1e-05"]
TEXTS += ["piecewise_linear:0:0.1:1:1:0"]


@pytree
class Settings:
    level: float = traced(1.0, at_least=0)
    slope: float = 0.5
    flag: bool = True
    count: int = traced(3, at_least=0)
    share: float = static(0.5)
    total_steps: int = static(16)
    steps_per_update: int = static(4)


@pytree
class Total:
    total: jax.Array
    num_updates: jax.Array


@pytest.fixture(scope="module")
def adder():
    """An algorithm that adds up its `level`, and acts by it."""

    def check(config, env):
        if isinstance(config.level, float) and config.level > 8:
            raise ValueError(f"level = {float(config.level)} is too high")

    def init(config, env, key):
        return Total(jnp.float32(config.level), jnp.int32(0))

    def update(config, env, state):
        numbers = {"num_episodes": jnp.int32(0), "episode_return": jnp.float32(0), "episode_length": jnp.float32(0)}
        return Total(state.total + config.level, state.num_updates + 1), numbers | {"level": 1.0 * config.level}

    def act(config, env, state, obs, key, deterministic=False):
        return jnp.full((len(obs), 1), config.level, jnp.float32), None

    algorithm = ModuleType("adder")
    vars(algorithm).update(Config=Settings, check=check, init=init, update=update, act=act)
    return algorithm


@pytest.fixture(scope="module")
def probe():
    return rlx.envs.make("probe/ContinuousAction")


def by_hand(kind, numbers, p):
    """The value by the equation, one progress at a time."""
    start, *rest = numbers
    if kind == "linear":
        return (1 - p) * start + p * rest[0]
    if kind == "cosine":
        return rest[0] + (start - rest[0]) * (1 + np.cos(np.pi * p)) / 2
    if kind == "exponential":
        return np.exp((1 - p) * np.log(start) + p * np.log(rest[0]))
    points = [(0.0, start), *zip(rest[::2], rest[1::2], strict=True)]
    before = [point for point in points if point[0] <= p + 1e-9][-1]
    after = [point for point in points if point[0] > p + 1e-9]
    if kind == "piecewise" or not after:
        return before[1]
    return before[1] + (after[0][1] - before[1]) * (p - before[0]) / (after[0][0] - before[0])


@pytest.mark.parametrize("text", TEXTS)
def test_a_schedule_has_the_values_of_its_equation(text):
    schedule = parse(text)
    found = jax.jit(jax.vmap(schedule))(PROGRESS)
    np.testing.assert_allclose(found, [by_hand(schedule.kind, schedule.numbers, p) for p in PROGRESS], atol=1e-7)
    assert schedule(0) is schedule.numbers[0]
    np.testing.assert_allclose(schedule(1.0), by_hand(schedule.kind, schedule.numbers, 1.0), atol=1e-7)


def test_the_start_is_exact_and_constant_schedules_are_the_number_at_every_progress():
    for text in TEXTS:
        schedule = parse(text)
        assert np.float32(schedule(jnp.float32(0))) == np.float32(schedule.numbers[0])
        constant = schedule.constant(0.3)
        assert constant.kind == schedule.kind
        assert constant.numbers[1::2] == schedule.numbers[1::2] or "piecewise" not in text
        np.testing.assert_array_equal(jax.jit(jax.vmap(constant))(PROGRESS), np.full(21, 0.3, np.float32))


def test_what_python_and_text_make_is_the_same_and_prints_as_it_is_written():
    made = [linear(0.01, 0), cosine(3e-4, 3e-5), exponential(1, 1e-3), piecewise(1e-3, (0.5, 1e-4), (0.75, 1e-5))]
    made += [piecewise_linear(0, (0.1, 1), (1, 0))]
    assert [str(schedule) for schedule in made] == TEXTS
    assert [parse(text) for text in TEXTS] == made
    assert len({*made, *map(parse, TEXTS)}) == len(made)
    assert linear(0.01, 0) != cosine(0.01, 0)
    assert str(linear(jnp.float32(0.5), np.float64(0.25))) == "linear:0.5:0.25"
    assert copy.deepcopy(made[0]) == made[0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("linear:0.01", r"linear:0.01 has no END: give linear:START:END"),
        ("linear", r"linear has no START and no END"),
        ("cosine:1:2:3", r"cosine:1:2:3 has 3 numbers: give cosine:START:END"),
        ("linear:a:0", r"'a' is no number"),
        ("linear::0", r"'' is no number"),
        ("linear:nan:0", r"nan is no number"),
        ("linear:inf:0", r"give finite numbers"),
        ("exponential:0:1", r"above 0"),
        ("piecewise:1", r"has no SHARE and no VALUE"),
        ("piecewise:1:0.5", r"has no VALUE"),
        ("piecewise:1:0.5:2:0.7", r"has no VALUE"),
        ("piecewise:1:0.5:2:0.5:3", r"shares of the run are above 0, at most 1, and ascend"),
        ("piecewise_linear:1:0:2", r"shares of the run"),
        ("piecewise:1:1.5:2", r"shares of the run"),
        ("linaer:1:2", r"unknown schedule 'linaer': did you mean linear"),
    ],
)
def test_bad_text_says_what_is_missing(text, message):
    with pytest.raises(ValueError, match=message):
        parse(text)
    with pytest.raises(ValueError, match=rf"Settings\.level = .*{message}"):
        Settings(level=text)


def test_words_and_bools_are_no_numbers_of_a_schedule():
    for bad in ("1", True, None, [1.0]):
        with pytest.raises(ValueError, match="is no number"):
            linear(bad, 1)


def test_constant_pieces_may_be_infinite():
    assert piecewise(0.2, (0.5, float("inf")))(jnp.float32(0.5)) == np.inf


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"level": linear(1, -0.5)}, r"Settings.level = linear:1:-0.5: it has to be at least 0"),
        ({"level": "piecewise:1:0.5:-1"}, r"Settings.level = .*at least 0"),
        ({"count": linear(1, 2)}, r"Settings.count = linear:1:2: give an integer; only fields that are real numbers"),
        ({"count": "linear:1:2"}, r"Settings.count = 'linear:1:2': give an integer; only fields"),
        ({"flag": linear(0, 1)}, r"Settings.flag = linear:0:1: give True or False; only fields"),
        ({"share": linear(0, 1)}, r"Settings.share = linear:0:1: give a number"),
        ({"total_steps": linear(0, 1)}, r"Settings.total_steps = linear:0:1: give an integer"),
    ],
)
def test_bounds_hold_for_every_number_and_other_fields_take_no_schedule(values, message):
    with pytest.raises(ValueError, match=message):
        Settings(**values)
    with pytest.raises(ValueError, match=message):
        replace(Settings(), **values)


def test_shares_of_the_run_are_not_bounded_like_the_values():
    @pytree
    class Bounded:
        scale: float = traced(2.0, above=1)

    assert Bounded(scale=piecewise(3, (0.5, 2))).scale.values == (3.0, 2.0)


def test_a_field_may_have_a_schedule_as_its_default():
    @pytree
    class Falling:
        level: float = traced(linear(1, 0), at_least=0)

    assert Falling().level == linear(1, 0)
    assert Falling(level=3).level == 3.0
    assert Falling(level="cosine:1:0").level == cosine(1, 0)
    with pytest.raises(ValueError, match="give a number"):
        Falling(level=True)


def test_a_config_without_schedules_is_itself():
    config = Settings()
    assert at(config, 0.5) is config
    assert now(config) is config
    assert now(config, Total(jnp.float32(0), jnp.int32(1))) is config
    assert not is_scheduled(config)
    scheduled = replace(config, level=linear(1, 0))
    assert is_scheduled(scheduled)
    assert at(scheduled, 0.25).level == 0.75
    assert (now(scheduled).level, type(now(scheduled).level)) == (1.0, float)
    assert now(scheduled, Total(jnp.float32(0), jnp.int32(2))).level == 0.5


def test_updates_see_the_value_of_their_progress_and_init_the_start(adder, probe):
    config = Settings(level=linear(4, 0), slope=cosine(1, 0))
    state, metrics = rlx.train(adder, config, probe, jax.random.key(0))
    np.testing.assert_array_equal(metrics["level"], [4.0, 3.0, 2.0, 1.0])
    assert state.total == 4 + 10


def test_a_schedule_is_resumed_bit_for_bit_and_advanced_alike(adder, probe):
    config = Settings(level=exponential(4, 0.1), total_steps=28)
    whole, metrics = rlx.train(adder, config, probe, jax.random.key(0))
    state, first = rlx.train(adder, replace(config, total_steps=12), probe, jax.random.key(0))
    assert not np.array_equal(first["level"], metrics["level"][:3])  # that run is shorter
    state = Total(jnp.float32(4), jnp.int32(0))
    for num in (2, 1, 4):
        state, last = rlx.resume(adder, config, probe, state, num)
    assert (state.total, state.num_updates) == (whole.total, 7)
    np.testing.assert_array_equal(last["level"], metrics["level"][3:])
    start = Total(jnp.float32(4), jnp.int32(0))
    advanced, found = jax.jit(partial(advance, adder), static_argnums=5)(config, probe, start, 0, 7, 7)
    assert advanced.total == whole.total
    np.testing.assert_array_equal(found["level"], metrics["level"])


def test_acting_and_checks_are_given_numbers(adder, probe):
    config = Settings(level=linear(1, 0.25))
    ends = [
        rlx.evaluate(adder, config, probe, Total(jnp.float32(0), jnp.int32(n)), jax.random.key(0), 2) for n in (0, 4)
    ]
    plain = [
        rlx.evaluate(adder, Settings(level=x), probe, Total(jnp.float32(0), jnp.int32(0)), jax.random.key(0), 2)
        for x in (1.0, 0.25)
    ]
    for found, wanted in zip(ends, plain, strict=True):
        np.testing.assert_array_equal(found.returns, wanted.returns)
    assert not np.array_equal(ends[0].returns, ends[1].returns)
    with pytest.raises(ValueError, match=r"level = 9.0 is too high"):
        rlx.train(adder, Settings(level=linear(9, 1)), probe, jax.random.key(0))


def test_episodes_that_are_drawn_collected_and_explained_follow_the_schedule(adder, probe):
    config, key = Settings(level=linear(1, 0.25)), jax.random.key(0)
    states = [Total(jnp.float32(0), jnp.int32(n)) for n in (0, 4)]
    shown = [collect(adder, config, probe, state, key, 2).action for state in states]
    np.testing.assert_array_equal(shown, [np.full((2, 1), 1.0), np.full((2, 1), 0.25)])
    returns = [record(adder, config, probe, state, key, 1)[1] for state in states]
    wanted = [record(adder, Settings(level=x), probe, states[0], key, 1)[1] for x in (1.0, 0.25)]
    assert returns == wanted
    assert returns[0] != returns[1]
    assert why(adder, config, probe, states[0]) == []
    assert diverged(adder, config, probe, states[0]) == []


def test_clones_and_lifetimes_take_schedules(adder, probe):
    key = jax.random.key(0)
    sizes = {"num_envs": 1, "num_minibatches": 1, "hidden_sizes": (2,), "denoising_steps": 1, "trained_steps": 1}
    config = dppo.Config(**sizes, action_bound=linear(1, 2))
    shown = collect(adder, Settings(), probe, Total(jnp.float32(0), jnp.int32(0)), key, 4)
    state, _ = clone(dppo, config, probe, shown, key, num_steps=1, num_rows=1)
    assert int(state.num_updates) == 0
    learns = ModuleType("learns")
    vars(learns).update(vars(adder) | {"update": lambda *args, objective: adder.update(*args)})
    found = scaled(learns, Lifetime(Settings(level=linear(8, 0.5)), probe), jnp.float32(0), key, 1)
    assert found.high > found.low


def test_numbers_and_schedules_are_stacked_as_schedules_of_one_kind(adder, probe):
    configs = [Settings(level=piecewise(1, (0.5, 2))), Settings(level=3), Settings(level=piecewise(4, (0.75, 5)))]
    stacked = stack(configs)
    assert (stacked.level.kind, [x.tolist() for x in stacked.level.numbers]) == (
        "piecewise",
        [[1, 3, 4], [0.5, 0.5, 0.75], [2, 3, 5]],
    )
    run = partial(rlx.train, adder)
    _, metrics = jax.vmap(run, (0, None, None))(stacked, probe, jax.random.key(0))
    np.testing.assert_array_equal(metrics["level"], [[1, 1, 2, 2], [3, 3, 3, 3], [4, 4, 4, 5]])
    with pytest.raises(ValueError, match=r"Config.level has shape \[3\]: for several values vmap"):
        rlx.train(adder, Settings(level=stacked.level), probe, jax.random.key(0))


def test_schedules_of_two_kinds_are_refused_by_stack_and_two_programs_of_a_sweep(probe):
    configs = [Settings(level=linear(1, 0)), Settings(level=cosine(1, 0)), Settings()]
    with pytest.raises(ValueError, match=r"0 and 1: .* schedules differ: level = linear:1:0 and cosine:1:0; group"):
        stack(configs)
    assert [group.numbers for group in groups([(config, probe) for config in configs])] == [[0], [1], [2]]
    assert [group.numbers for group in groups([(config, probe) for config in configs[::2]])] == [[0, 1]]


def test_a_number_that_a_kind_does_not_take_stays_a_number():
    found = alike([Settings(level=exponential(1, 0.5)), Settings(level=0.0)])
    assert found[1].level == 0.0
    found = alike([Settings(slope=linear(1, 0.5)), Settings(slope=float("inf"))])
    assert found[1].slope == float("inf")
    assert alike([1, 2]) == [1, 2]


def test_a_schedule_of_the_learning_rate_that_is_changed_besides_is_said(ppo):
    assert "linear:0.001:0 is multiplied" in changed_besides(ppo.Config(learning_rate=linear(1e-3, 0)))
    assert changed_besides(ppo.Config(learning_rate=linear(1e-3, 0), anneal_learning_rate=False)) == ""
    assert changed_besides(ppo.Config()) == ""
    adapted = ppo.Config(learning_rate=linear(1e-3, 0), adapt_learning_rate=True)
    assert changed_besides(adapted) == "learning_rate = linear:0.001:0: adapt_learning_rate takes only its start"


def test_check_algorithm_takes_a_config_with_schedules(adder, probe):
    @pytree
    class Keyed:
        key: jax.Array
        num_updates: jax.Array

    algorithm = ModuleType("keyed")
    vars(algorithm).update(vars(adder))
    algorithm.init = lambda config, env, key: Keyed(key, jnp.int32(0))
    algorithm.update = lambda config, env, state: (
        Keyed(jax.random.split(state.key)[0], state.num_updates + 1),
        adder.update(config, env, Total(jnp.float32(0), state.num_updates))[1],
    )
    check_algorithm(algorithm, probe, Settings(level=linear(1, 0)))


def test_meta_gradients_go_through_the_numbers_of_a_schedule(ppo):
    """Those of finite differences, in float64."""
    with jax.enable_x64(True):
        env = rlx.envs.make("CartPole-v1")
        sizes = {"total_steps": 96, "num_envs": 2, "num_steps": 16, "num_epochs": 1, "num_minibatches": 1}
        config = ppo.Config(**sizes, hidden_sizes=(4,), anneal_learning_rate=False)
        state = ppo.init(config, env, jax.random.key(0))
        up = lambda x: x.astype(float) if jnp.issubdtype(x.dtype, jnp.floating) else x
        params = jax.tree.map(up, state.params)
        state = replace(state, params=params, opt_state=ppo.optimizer(config, 1e-3).init(params))

        def result(numbers):
            rates, bonus = numbers[:2], numbers[2:]
            inner = replace(config, learning_rate=linear(*rates), entropy_coef=cosine(*bonus))
            end, _ = unrolled(ppo, inner, env, state, 3)
            return sum(jnp.sum(x**2) for x in jax.tree.leaves(end.params))

        numbers, result = jnp.array([3e-3, 1e-3, 0.05, 0.01]), jax.jit(result)
        slopes = jax.jit(jax.grad(result))(numbers)
        assert bool(jnp.isfinite(slopes).all())
        assert bool((jnp.abs(slopes) > 1e-9).all())
        for i, size in enumerate((1e-6, 1e-6, 1e-5, 1e-5)):
            step = size * (jnp.arange(4) == i)
            numeric = (result(numbers + step) - result(numbers - step)) / (2 * size)
            np.testing.assert_allclose(slopes[i], numeric, rtol=1e-2)


def test_a_look_and_a_whole_run_of_a_learned_rule_take_schedules(ppo, small, cartpole, init):
    """A look acts and judges at the progress of its State; the whole run begins at the start."""
    config = replace(small, gamma=linear(0.5, 0.99), learning_rate=linear(1e-2, 0), hidden_sizes=(4,))
    state = replace(init(now(config), cartpole, jax.random.key(0)), num_updates=jnp.int32(2))
    look = jax.jit(lambda config: outcome(ppo, config, cartpole, state, jax.random.key(1))[0])
    np.testing.assert_allclose(look(config), look(replace(config, gamma=0.5 + 0.49 * 2 / 3)), rtol=1e-5)
    rule, apply = {"clip": jnp.float32(0.2)}, lambda rule, config: (replace(config, **rule), {})
    program = partial(meta_train, ppo, apply, config, cartpole, rule, num_updates=1)
    whole = jax.eval_shape(program, jax.random.key(0))[0].state
    assert jax.tree.structure(whole) == jax.tree.structure(state)  # Adam takes a schedule for one of its own


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    directory = tmp_path_factory.mktemp("runs") / "run"
    line = ["train", "ppo", "--env", "CartPole-v1", "--out", str(directory), *SIZES]
    cli.main([*line, "--learning-rate", "piecewise:1e-2:0.5:1e-3", "--entropy-coef", "linear:0.01:0"])
    return directory


def test_a_run_is_logged_kept_and_evaluated_with_its_schedules(run):
    saved = json.loads((run / "config.json").read_text())["config"]
    assert (saved["learning_rate"], saved["entropy_coef"]) == ("piecewise:0.01:0.5:0.001", "linear:0.01:0")
    rates = [row["learning_rate"] for row in read_rows(run / "metrics.jsonl")]
    np.testing.assert_allclose(rates, [1e-2, 0.75e-2, 0.5e-3, 0.25e-3], rtol=1e-6)  # annealed besides
    cli.main(["eval", str(run), "--num-episodes", "2", "--output", str(run.parent / "found.json")])
    assert json.loads((run.parent / "found.json").read_text())["num_episodes"] == 2


def test_a_resumed_run_keeps_its_schedules_and_refuses_others(run, tmp_path, capsys):
    line = ["--total-steps", "512"]
    cli.main(["train", "--resume", str(run), *line])
    rates = [row["learning_rate"] for row in read_rows(run / "metrics.jsonl")][4:]
    np.testing.assert_allclose(rates, 1e-3 * np.array([0.5, 0.375, 0.25, 0.125]), rtol=1e-6)
    out = ["--out", str(tmp_path / "again")]
    with pytest.raises(SystemExit):
        cli.main(["train", "--resume", str(run), "--entropy-coef", "linear:0.01:0.001", "--total-steps", "1024", *out])
    assert "entropy_coef = linear:0.01:0 -> linear:0.01:0.001" in capsys.readouterr().err


def test_presets_hold_schedules_as_text(tmp_path, ppo):
    file = tmp_path / "mine.toml"
    file.write_text('["gymnax/CartPole-v1"]\nclip = "linear:0.3:0.1"\n')
    found = rlx.presets.configure(ppo.Config, rlx.presets.settings(file, "gymnax/CartPole-v1"))
    assert found.clip == linear(0.3, 0.1)


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    directory = tmp_path_factory.mktemp("sweeps") / "sweep"
    line = ["sweep", "ppo", "--env", "CartPole-v1", "--out", str(directory), *SIZES, "--anneal-learning-rate", "False"]
    cli.main([*line, "--learning-rate", "linear:1e-2:1e-3,5e-3"])
    return directory


def test_a_sweep_mixes_numbers_and_schedules_in_one_program(swept):
    assert json.loads((swept / "summary.json").read_text())["programs"] == 1
    found = load_sweep(swept)
    assert [row["varied"] for row in found.lanes] == [
        {"learning_rate": "linear:0.01:0.001"},
        {"learning_rate": 0.005},
    ]
    rates = [[row["learning_rate"] for row in found.log(lane)] for lane in (0, 1)]
    np.testing.assert_allclose(rates[0], 1e-2 - 9e-3 * np.arange(4) / 4, rtol=1e-5)
    np.testing.assert_allclose(rates[1], 5e-3, rtol=1e-6)
    assert "linear:0.01:0.001" in (swept / "results.csv").read_text()
    assert isinstance(found.settings(0)[0].learning_rate, Schedule)


def test_a_lane_of_a_sweep_with_a_schedule_is_the_single_run(swept, ppo):
    found = load_sweep(swept)
    for lane in (0, 1):
        config, env = found.settings(lane)
        single, _ = rlx.train(ppo, config, env, rlx.run.job.keys(0)[0])
        for a, b in zip(*(jax.tree.leaves(state.params) for state in (found.state(lane), single)), strict=True):
            np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-6)


def test_a_lane_with_a_schedule_is_exported_and_resumed(swept, tmp_path, capsys):
    cli.main(["export", str(swept), "0", "--out", str(tmp_path / "lane")])
    assert json.loads((tmp_path / "lane/config.json").read_text())["config"]["learning_rate"] == "linear:0.01:0.001"
    cli.main(["sweep", "--resume", str(swept)])
    assert "has come to its end" in capsys.readouterr().out


def test_a_population_perturbs_the_numbers_of_schedules_and_says_with_which_it_ended(ppo, cartpole, small, tmp_path):
    values = ["linear:0.01:0.001", "linear:0.001:0.0001", 0.005]
    config = replace(small, num_epochs=1, hidden_sizes=(4,))
    options = {"directory": tmp_path / "pbt", "eval_episodes": 2, "pbt": 3}
    found = rlx.sweep(ppo, config, cartpole, {"learning_rate": values}, **options)
    for lane in range(3):
        rate = found.settings(lane)[0].learning_rate
        assert rate.kind == "linear"
        assert 1e-3 * 0.99 <= rate.numbers[0] <= 1e-2 * 1.01
    assert found.best is not None


def test_bad_schedules_on_the_command_line_are_one_line_and_status_2(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for command, flag, text, said in (
        ("train", "--entropy-coef", "linear:0.01", "linear:0.01 has no END: give linear:START:END"),
        ("train", "--entropy-coef", "linear:0.01:-1", "it has to be at least 0"),
        ("train", "--num-envs", "linear:1:2", "linear:1:2 is not a whole number"),
        ("train", "--checkpoint-seconds", "linear:1:2", "--checkpoint-seconds"),
        ("sweep", "--clip", "0.2,linaer:0.2:0.1", "unknown schedule 'linaer'"),
    ):
        with pytest.raises(SystemExit) as stop:
            cli.main([command, "ppo", "--env", "CartPole-v1", flag, text])
        assert stop.value.code == 2
        printed = capsys.readouterr()
        assert said in printed.err
        assert len(printed.err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_learning_rate_that_falls_twice_is_said_before_it_runs(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for command in ("train", "sweep"):
        cli.main([command, "ppo", "--env", "CartPole-v1", "--dry-run", "--learning-rate", "linear:1e-3:0"])
        assert "linear:0.001:0 is multiplied by the fall to 0 of anneal_learning_rate" in capsys.readouterr().out


def test_programs_of_a_sweep_are_told_apart_by_the_kinds_of_their_schedules(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    line = ["sweep", "ppo", "--env", "CartPole-v1", "--dry-run", "--clip"]
    cli.main([*line, "linear:0.3:0.1,0.2,cosine:0.3:0.1"])
    printed = capsys.readouterr().out
    assert all(f"clip={kind}: 1 lane of" in printed for kind in ("linear", "number", "cosine"))
    cli.main([*line, "linear:0.3:0.1,0.2"])
    assert "\n  2 lanes of" in capsys.readouterr().out
