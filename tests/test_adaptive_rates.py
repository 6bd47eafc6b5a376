"""Learning rates that follow the KL divergence: the rule in every algorithm that has it, and runs that do not."""

import json
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rlx
from rlx import cli, replace
from rlx.algorithm import load_algorithm
from rlx.files import read_rows
from rlx.schedules import linear

EXACT = True  # bits are compared
START = 1e-3
TARGETS = np.logspace(-8, 0, 9).astype(np.float32)
# One minibatch and two epochs: the first has a ratio of 1 and a KL of 0, so that the last one's is twice their mean.
SIZES = {"num_epochs": 2, "num_minibatches": 1, "anneal_learning_rate": False, "learning_rate": START}
ENVS = {"num_envs": 2, "num_steps": 8, "hidden_sizes": (4,), "total_steps": 5 * 16}
GROUPS = {"num_groups": 2, "group_size": 2, "num_steps": 8, "total_steps": 5 * 32}
TOKENS = {"warm_start_steps": 0, "width": 4, "num_heads": 1, "num_layers": 1, "kl_coef": 0.1}
SETTINGS = {
    "ppo": ("probe/ContinuousAction", ENVS),
    "mdpo": ("probe/ContinuousAction", ENVS),
    "fpo": ("probe/ContinuousAction", ENVS | {"flow_steps": 2, "samples_per_action": 2}),
    "dppo": ("probe/ContinuousAction", ENVS | {"denoising_steps": 2, "trained_steps": 2}),
    "grpo": ("probe/ContinuousAction", GROUPS | {"hidden_sizes": (4,)}),
    "grpo_tokens": ("Reverse", GROUPS | {"num_steps": 4, "total_steps": 5 * 16} | TOKENS),
}


def settings(name, **changed):
    """Algorithm, a config of five updates that adapts, and an environment."""
    algorithm, (env, sizes) = load_algorithm(name), SETTINGS[name]
    options = {"max_length": 4, "max_symbols": 3} if env == "Reverse" else {}
    given = SIZES | {"adapt_learning_rate": True} | sizes | changed
    return algorithm, algorithm.Config(**given), rlx.envs.make(env, **options)


def by_hand(kl, target, start=START):
    """The rates of the updates and the one after them, one update at a time; `kl [U]` of the last epochs."""
    rates = [start]
    for value in kl:
        factor = 1 / 1.5 if value > 2 * target else 1.5 if value < target / 2 else 1.0
        rates.append(min(max(rates[-1] * factor, 1e-6), 1e-2))
    return rates


def lanes(algorithm, config, env):
    """States and metrics of a lane for each target."""
    configs = rlx.stack([replace(config, target_kl=float(target)) for target in TARGETS])
    return jax.jit(jax.vmap(partial(rlx.train, algorithm), (0, None, None)))(configs, env, jax.random.key(0))


@pytest.mark.parametrize("name", SETTINGS)
def test_rates_follow_the_kl_of_the_last_epoch(name):
    state, metrics = lanes(*settings(name))
    means = np.asarray(metrics["approx_kl"])
    found = np.concatenate([metrics["learning_rate"], state.learning_rate[:, None]], 1)
    wanted = [by_hand(2 * kl, target) for kl, target in zip(means, TARGETS, strict=True)]
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    steps = np.diff(found, axis=1)
    assert (steps[0, :2] < 0).all()  # a KL that is above its target
    assert (steps[-1] > 0).all()  # and one below
    between = np.linspace(0.1, 1.9, 19)  # where the mean over the epochs would tell another rate than the last one
    assert any(by_hand(2 * means[4], 2 * means[4, 0] * x) != by_hand(means[4], 2 * means[4, 0] * x) for x in between)


def test_the_last_of_three_epochs_counts_and_neither_the_first_nor_their_mean():
    """With a target between the KL of the last epoch and that of the mean, only the last one lets the rate rest."""
    ppo, config, env = settings("ppo", num_epochs=3)
    seen = []

    def see(learning_rate, kl, target):
        seen.append(kl)
        return learning_rate

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ppo, "kl_adapted", see)
        state = ppo.init(config, env, jax.random.key(0))
        epochs = [jax.jit(ppo.update)(replace(config, num_epochs=n), env, state)[1]["approx_kl"] for n in (1, 2, 3)]
        last = jax.jit(lambda: (ppo.update(config, env, state), seen[-1])[1])()
    sums = np.array(epochs) * [1, 2, 3]
    np.testing.assert_allclose(last, sums[2] - sums[1], rtol=1e-3)
    assert abs(last - epochs[2]) > 0.1 * abs(last)


def test_a_lane_is_the_single_run():
    ppo, config, env = settings("ppo")
    state, metrics = lanes(ppo, config, env)
    alone, rates = rlx.train(ppo, replace(config, target_kl=float(TARGETS[3])), env, jax.random.key(0))
    np.testing.assert_allclose(metrics["learning_rate"][3], rates["learning_rate"], rtol=1e-6)
    assert not np.array_equal(metrics["learning_rate"][0], metrics["learning_rate"][-1])
    for a, b in zip(jax.tree.leaves(state.params), jax.tree.leaves(alone.params), strict=True):
        np.testing.assert_allclose(a[3], b, rtol=1e-4, atol=1e-6)


def test_a_run_is_resumed_bit_for_bit():
    ppo, config, env = settings("ppo", anneal_learning_rate=True)
    start = jax.jit(ppo.init)(config, env, jax.random.key(0))
    whole, rates = rlx.resume(ppo, config, env, start, 4)
    state, first = rlx.resume(ppo, config, env, start, 2)
    state, rest = rlx.resume(ppo, config, env, state, 2)
    bits = lambda x: jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(bits(a), bits(b)), state, whole)
    joined = np.concatenate([first["learning_rate"], rest["learning_rate"]])
    np.testing.assert_array_equal(joined, rates["learning_rate"])
    assert whole.learning_rate != start.learning_rate
    share = 1 - np.arange(4) / 5  # annealed besides
    np.testing.assert_allclose(joined, share * by_hand(2 * rates["approx_kl"], 0.01)[:4], rtol=1e-5)


@pytest.mark.parametrize("name", SETTINGS)
def test_without_the_option_there_is_no_rate_in_the_state_and_none_of_it_in_the_program(name, monkeypatch):
    algorithm, config, env = settings(name, adapt_learning_rate=False)
    monkeypatch.setattr(algorithm, "kl_adapted", None)  # which nothing calls
    start = jax.eval_shape(partial(algorithm.init, config, env), jax.random.key(0))
    assert start.learning_rate is None
    state, _ = jax.eval_shape(partial(algorithm.update, config, env), start)
    assert state.learning_rate is None
    other = replace(config, target_kl=0.5)
    programs = [str(jax.make_jaxpr(partial(algorithm.update, c, env))(start)) for c in (config, other)]
    first, second = (re.sub("0x[0-9a-f]+", "", program) for program in programs)
    assert first == second


def test_adaptation_starts_where_a_schedule_does_and_leaves_it():
    ppo, config, env = settings("ppo", learning_rate=linear(2e-3, 0), target_kl=1.0)
    _, metrics = rlx.train(ppo, config, env, jax.random.key(0))
    np.testing.assert_allclose(metrics["learning_rate"], by_hand(np.zeros(4), 1.0, 2e-3), rtol=1e-5)


def test_the_warm_up_of_a_critic_does_not_change_the_rate_of_the_actor():
    dppo, config, env = settings("dppo", critic_warmup=2, target_kl=1.0)
    state, metrics = rlx.train(dppo, config, env, jax.random.key(0))
    np.testing.assert_allclose(metrics["learning_rate"], START * np.array([0, 0, 1, 1.5, 1.5**2]), rtol=1e-5)
    np.testing.assert_allclose(state.learning_rate, START * 1.5**3, rtol=1e-5)


def test_the_command_line_adapts_logs_and_resumes(tmp_path):
    line = ["train", "ppo", "--env", "CartPole-v1", "--out", str(tmp_path / "run"), "--total-steps", "64"]
    line += ["--num-steps", "4", "--hidden-sizes", "4", "--num-minibatches", "1", "--eval-episodes", "1"]
    line += ["--env-options", "max_steps=4", "--no-anneal-learning-rate", "--no-compile-cache"]
    cli.main([*line, "--adapt-learning-rate", "--target-kl", "10", "--learning-rate", "1e-4"])
    assert json.loads((tmp_path / "run/config.json").read_text())["config"]["adapt_learning_rate"] is True
    cli.main(["train", "--resume", str(tmp_path / "run"), "--total-steps", "96"])
    rates = [row["learning_rate"] for row in read_rows(tmp_path / "run/metrics.jsonl")]
    np.testing.assert_allclose(rates, 1e-4 * 1.5 ** np.arange(6), rtol=1e-5)
