"""Quality and coverage of data by loops, and choosing among policies as a bandit does."""

import json
from collections import Counter
from math import floor, log, sqrt

import numpy as np
import pytest

from rlx import cli
from rlx.data.demonstrations import Demonstrations, load
from rlx.data.quality import coverage, trajectory_quality
from rlx.report.choosing import choices, chosen_online


def shown(seed, num=60, discrete=False):
    random = np.random.default_rng(seed)
    obs, ends = random.normal(size=(num, 2)).astype(np.float32), np.arange(num) % 10 == 9
    action = random.integers(3, size=num) if discrete else random.uniform(-1, 1, (num, 1)).astype(np.float32)
    reward = random.normal(size=num).astype(np.float32)
    return Demonstrations(obs, obs, action, reward, ends, np.zeros(num, bool), np.zeros(num, np.int32), {})


def test_quality_is_0_for_random_returns_and_1_for_the_best():
    data = shown(0)
    mean = float(data.returns.mean())
    assert trajectory_quality(data, mean, mean + 3.0) == 0
    assert trajectory_quality(data, mean - 3.0, mean) == 1
    np.testing.assert_allclose(trajectory_quality(data, mean - 1.0, mean + 3.0), 0.25)
    with pytest.raises(ValueError, match="has to be above random"):
        trajectory_quality(data, 1.0, 1.0)


@pytest.mark.parametrize("discrete", [False, True])
def test_coverage_counts_pairs_in_bins_of_the_reference(discrete):
    data, reference, bins = shown(0, 200, discrete), shown(1, 400, discrete), 4

    def place(x, column):
        low, high = float(column.min()), float(column.max())
        return bins - 1 if x == high else min(max(floor((x - low) / (high - low) * bins), -1), bins)

    def pairs(d):
        seen = set()
        for obs, action in zip(d.obs, d.action, strict=True):
            places = [place(float(obs[i]), reference.obs[:, i]) for i in range(2)]
            seen.add((*places, int(action) if discrete else place(float(action[0]), reference.action[:, 0])))
        return seen

    own, theirs = pairs(data), pairs(reference)
    found = coverage(data, reference, bins)
    assert found == {"saco": len(own) / len(theirs), "unique": len(own) / 200, "reference_unique": len(theirs) / 400}
    assert coverage(reference, reference, bins)["saco"] == 1


def test_data_that_does_not_go_with_its_reference_is_refused():
    with pytest.raises(ValueError, match="the reference"):
        coverage(shown(0), shown(1, discrete=True))
    with pytest.raises(ValueError, match="num_bins = 0"):
        coverage(shown(0), shown(1), 0)


def loop(table, counts, means, order, draws, ties):
    """One trial of UCB1 in plain Python."""
    pulls, values = [[] for _ in order], [sum(means[i] for i in order) / len(order)]
    for time in range(len(draws)):
        bounds = [
            sum(own) / len(own) + sqrt(2 * log(max(time, 1)) / len(own)) if own else float("inf") for own in pulls
        ]
        arm = max((i for i, b in enumerate(bounds) if b == max(bounds)), key=lambda i, time=time: ties[time][i])
        policy = order[arm]
        pulls[arm].append(table[policy][int(draws[time] * counts[policy])])
        estimates = [sum(own) / len(own) if own else float("-inf") for own in pulls]
        values.append(means[order[estimates.index(max(estimates))]])
    return values


def test_choices_are_those_of_a_loop():
    random = np.random.default_rng(0)
    counts = np.array([5, 3, 4])
    table = random.random((3, 5))
    table[1, 3:] = table[2, 4:] = np.nan  # are never drawn
    means = np.array([table[i, :n].mean() for i, n in enumerate(counts)])
    order = np.array([[0, 1], [2, 0], [1, 2], [2, 1]])
    draws, ties = random.random((40, 4)), random.random((40, 4, 2))
    found = choices(table, counts, means, order, draws, ties)
    expected = [loop(table, counts, means, order[i], draws[:, i], ties[:, i]) for i in range(4)]
    np.testing.assert_allclose(found, expected)


def test_the_curve_goes_from_the_average_policy_to_the_best_of_two_coins():
    random = np.random.default_rng(1)
    coins = [random.permutation(np.repeat([0.0, 10.0], counts)) for counts in ((180, 20), (20, 180))]
    found = chosen_online(coins, 0.0, 10.0, num_pulls=100, num_policies=2, num_trials=300)
    np.testing.assert_allclose(found.value[0], 0.5)
    assert found.value[-1] > 0.87
    assert (found.low <= found.value + 1e-9).all()
    assert (found.value <= found.high + 1e-9).all()
    assert len(found.pulls) == 101


def test_of_one_policy_the_curve_is_constant():
    found = chosen_online([np.arange(5.0)], 0.0, 4.0, num_pulls=10, num_policies=1, num_trials=20)
    np.testing.assert_allclose([found.value, found.low, found.high], 0.5)


def test_every_policy_is_in_as_many_trials():
    policies = [np.full(2, float(i)) for i in range(4)]
    found = chosen_online(policies, 0.0, 3.0, num_pulls=1, num_policies=2, num_trials=2000)
    np.testing.assert_allclose(found.value[0], 0.5, atol=0.02)


@pytest.mark.parametrize(
    ("returns", "given", "words"),
    [
        ([np.ones(2)], {}, "num_policies = 8"),
        ([np.ones(2)], {"num_policies": 1, "best": -1.0}, "best = -1.0"),
        ([np.array([np.nan])], {"num_policies": 1}, "finite"),
        ([np.ones(0)], {"num_policies": 1}, "needs an episode"),
    ],
)
def test_policies_that_cannot_be_chosen_among_are_refused(returns, given, words):
    with pytest.raises(ValueError, match=words):
        chosen_online(returns, **({"worst": 0.0, "best": 1.0} | given))


@pytest.mark.usefixtures("command_cache")
def test_a_mixture_has_noise_and_checkpoint_of_each_run_and_its_quality(tmp_path, capsys):
    small = [
        "--num-envs",
        "2",
        "--num-steps",
        "8",
        "--num-minibatches",
        "2",
        "--hidden-sizes",
        "4",
        "--num-epochs",
        "1",
    ]
    run, file, again = str(tmp_path / "run"), str(tmp_path / "a.npz"), str(tmp_path / "b.npz")
    cli.main(
        ["train", "ppo", "--env", "CartPole-v1", "--total-steps", "48", "--num-evaluations", "3", "--out", run, *small]
    )
    cli.main(["collect", run, "--episodes", "2", "--output", file])
    arguments = ["collect", run, run, "--episodes", "4", "--shares", "3", "1", "--output", again]
    quality = ["--random-return", "5", "--best-return", "500", "--reference", file]
    cli.main([*arguments, "--noise", "0", "1", "--from-update", "3", "1", *quality])
    assert "quality: tq " in capsys.readouterr().out
    about = load(tmp_path / "b.npz").about
    assert [(p["update"], p["noise"], p["episodes"]) for p in about["policies"]] == [(3, 0.0, 3), (1, 1.0, 1)]
    assert set(about["quality"]) == {"tq", "saco", "unique", "reference_unique"}
    assert Counter(load(tmp_path / "b.npz").source.tolist()).keys() == {0, 1}
    json.dumps(about)
    for wrong, words in ((["--noise", "0", "0", "1"], "one for all runs"), (["--best-return", "5"], "give both")):
        with pytest.raises(SystemExit, match="2"):
            cli.main([*arguments[:-1], str(tmp_path / "c.npz"), *wrong])
        assert words in capsys.readouterr().err
