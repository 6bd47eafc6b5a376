"""Spaces of configurations: what a grid holds, what is drawn, and what the command line means."""

import numpy as np
import pytest
from scipy.stats import kstest

from rlx.sweeps.search import Choice, LogUniform, Uniform, parse, points


def test_a_grid_has_every_combination_once_the_last_name_fastest():
    found = points({"a": [1, 2], "b": ["x", "y", "z"]})
    assert [(p["a"], p["b"]) for p in found] == [(1, "x"), (1, "y"), (1, "z"), (2, "x"), (2, "y"), (2, "z")]


def test_an_empty_space_is_one_point():
    assert points({}) == [{}]


def test_draws_follow_their_distributions():
    found = points({"u": Uniform(2, 3), "l": LogUniform(1e-4, 1e-1), "c": Choice([16, 64])}, num_samples=4000)
    values = {name: np.array([p[name] for p in found]) for name in found[0]}
    # With a fixed seed these are numbers, not chances; another distribution has far less in thousands of draws.
    assert kstest(values["u"] - 2, "uniform").pvalue > 0.01
    assert kstest((np.log10(values["l"]) + 4) / 3, "uniform").pvalue > 0.01
    assert set(values["c"]) == {16, 64}
    assert abs((values["c"] == 16).mean() - 0.5) < 4 * 0.5 / np.sqrt(4000)


def test_draws_are_repeatable_and_more_samples_begin_with_the_fewer():
    space = {"a": LogUniform(1e-5, 1e-2), "b": Choice("xyz")}
    assert points(space, 8, seed=3)[:5] == points(space, 5, seed=3)
    assert points(space, 5, seed=3) != points(space, 5, seed=4)


def test_every_combination_of_a_grid_has_its_own_draws():
    found = points({"n": [1, 2], "u": Uniform(0, 1)}, num_samples=3)
    assert [p["n"] for p in found] == [1, 1, 1, 2, 2, 2]
    assert len({p["u"] for p in found}) == 6


@pytest.mark.parametrize(
    ("space", "num_samples", "message"),
    [
        ({"a": []}, None, "a has no values"),
        ({"a": [1, 2, 1]}, None, "a = 1 is listed twice"),
        ({"a": Uniform(0, 1)}, None, "a is drawn at random: say how many"),
        ({"a": Uniform(0, 1)}, 0, "at least 1"),
        ({"a": [1]}, 5, "nothing is drawn"),
    ],
)
def test_spaces_that_make_no_sense(space, num_samples, message):
    with pytest.raises(ValueError, match=message):
        points(space, num_samples)


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        ("1e-4,3e-4", ["1e-4", "3e-4"]),
        ("0.1", ["0.1"]),
        ("64 64, 256 256", ["64 64", "256 256"]),
        ("log:1e-5:1e-2", LogUniform(1e-5, 1e-2)),
        ("uniform:0.9:1", Uniform(0.9, 1.0)),
        ("choice:16:64", Choice(["16", "64"])),
    ],
)
def test_what_the_command_line_means(text, meaning):
    assert parse(text) == meaning


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty value"),
        ("1,,2", "empty value"),
        ("log:1e-5", "give log:LOW:HIGH"),
        ("log:a:b", "give log:LOW:HIGH"),
        ("log:0:1", "positive"),
        ("uniform:1:0", "lower one first"),
        ("uniform:0:inf", "two numbers"),
    ],
)
def test_what_the_command_line_does_not_mean(text, message):
    with pytest.raises(ValueError, match=message):
        parse(text)
