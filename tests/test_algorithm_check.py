"""The contract of algorithms: the example of the page on writing one keeps it, and each broken clause is named."""

import re
import sys
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rlx
from rlx import cli
from rlx.algorithm_check import AlgorithmError, check_counters, check_metrics

PAGE = Path(__file__).parents[1] / "docs" / "guides" / "own-algorithm.md"
SOURCE = re.search(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)[1]
SMALL = {"total_steps": 64, "num_envs": 2, "num_steps": 4}


def module(old="", new=""):
    """The example with a part of its text replaced."""
    assert old in SOURCE
    found = types.ModuleType("reinforce")
    exec(SOURCE.replace(old, new, 1), vars(found))
    return found


def check(algorithm, env):
    known = {name: value for name, value in SMALL.items() if name in algorithm.Config.__dataclass_fields__}
    return rlx.check_algorithm(algorithm, env, algorithm.Config(**known))


@pytest.mark.more
def test_the_example_of_the_page_keeps_the_contract_and_learns(cartpole):
    lines = check(module(), cartpole)
    assert len(lines) == 10
    assert not any(line.startswith("not judged") for line in lines)
    example, env = module(), rlx.envs.make("CartPole-v1")
    _, metrics = rlx.train(example, example.Config(), env, jax.random.key(0))
    returns = np.asarray(metrics["episode_return"])
    assert np.nanmean(returns[-10:]) > 2 * np.nanmean(returns[:10])


COUNT = "state.num_updates + 1, key), {**episode_metrics(traj)"
BROKEN = {
    "it has no act": ("def act(config, env, state, obs", "def acts(config, env, state, obs"),
    "field total_steps": ("    total_steps: int = rlx.static(50_000)\n", ""),
    "property steps_per_update": ("def steps_per_update", "def steps"),
    "total_steps is .* in a trace": ("total_steps: int = rlx.static(50_000)", "total_steps: int = 50_000"),
    "total_steps has no default": ("rlx.static(50_000)", "rlx.static()"),
    "init is called as init": ("def init(config, env, key)", "def init(config, key)"),
    "act is called as act": ("obs, key, deterministic=False)", "obs, key)"),
    "num_updates is int32.1.": ("num_envs), jnp.int32(0)", "num_envs), jnp.zeros(1, int)"),
    "num_updates is float32": ("jnp.int32(0), key)", "jnp.float32(0), key)"),
    "num_updates is 1 after init": ("jnp.int32(0), key)", "jnp.int32(1), key)"),
    "weights is float16": ("State(weights, env_state", "State(weights.astype(jnp.float16), env_state"),
    "num_updates is 2 after one": (COUNT, COUNT.replace("+ 1", "+ 2")),
    "the metrics have no num_episodes, episode_return": ("**episode_metrics(traj), ", ""),
    "'loss' has shape .3.": ('"loss": value', '"loss": value * jnp.ones(3)'),
    "'step' has a name": ('"loss": value', '"step": value'),
    "'loss' is a dict": ('"loss": value', '"loss": {"a": value}'),
    "Discrete.*needs int32.3.": (
        "logits.argmax(-1), jax.random.categorical(key, logits))",
        "1.0, jnp.zeros(len(obs)))",
    ),
    "value of a traced array": ("    value, gradient", "    assert config.gamma > 0\n    value, gradient"),
    "two programs": ("-(standardize", "-(__import__('time').time() % 1) * (standardize"),
    "changes a global": ("    value, gradient", "    global SEEN\n    SEEN = object()\n    value, gradient"),
    "init gives the same State": (
        "key, env_key = jax.random.split(key)",
        "key, env_key = jax.random.split(jax.random.key(7))",
    ),
}


@pytest.mark.parametrize("message", BROKEN)
def test_the_first_broken_clause_is_named(message, cartpole):
    with pytest.raises(AlgorithmError, match=message):
        check(module(*BROKEN[message]), cartpole)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (jnp.ones(3), r"'x' has shape \[3\]"),
        ({"y": jnp.ones(())}, "'x' is a dict"),
        (jnp.complex64(1), "of complex64"),
        (jax.random.key(0), "of key"),
    ],
)
def test_metrics_that_a_log_cannot_hold_are_refused_by_name(x, message):
    known = dict.fromkeys(("num_episodes", "episode_return", "episode_length"), jnp.float32(0))
    check_metrics(known | {"flag": jnp.bool_(True), "count": jnp.int32(1)})
    check_metrics({name: jnp.zeros((5,)) for name in known}, axes=1)
    with pytest.raises(ValueError, match=message):
        check_metrics(known | {"x": x})
    with pytest.raises(ValueError, match="no num_episodes"):
        check_metrics({"episode_return": jnp.float32(0), "episode_length": jnp.float32(0)})
    with pytest.raises(ValueError, match="as metrics"):
        check_metrics(jnp.ones(3))


def test_counters_that_would_overflow_are_refused(ppo):
    state = types.SimpleNamespace(num_updates=jnp.int32(0))
    check_counters(ppo.Config(), state)
    with pytest.raises(ValueError, match="12,800,000,000,000 steps of an update"):
        check_counters(ppo.Config(num_envs=10**11), state)
    with pytest.raises(ValueError, match="no field num_updates"):
        check_counters(ppo.Config(), object())


def test_the_command_checks_files_and_environments(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for name, text, message in (
        ("lacks.py", SOURCE.replace("def act(", "def acts("), "it has no act"),
        ("broken.py", "def (", "cannot be imported: SyntaxError"),
        ("vector.py", SOURCE.replace('"loss": value', '"loss": value * jnp.ones(3)'), "'loss' has shape [3]"),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(SystemExit) as stop:
            cli.main(["check", str(tmp_path / name)])
        assert stop.value.code == 2
        assert message in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["check", "CartPole-v9"])
    assert "an algorithm is one of" in capsys.readouterr().err
    cli.main(["check", "probe/ObservationAction"])
    assert "determinism" in capsys.readouterr().out or sys.version
