"""What a type checker tells a user of rlx: where a file is wrong, and nothing where it is right."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
RIGHT = '''
import jax
import jax.numpy as jnp
import reinforce

import rlx
from rlx.algorithm import load_algorithm
from rlx.algos import ppo, sac
from rlx.objectives import SPO, with_objective
from rlx.spaces import Box, Discrete


@rlx.pytree
class Params:
    speed: float = rlx.traced(0.5, above=0)
    size: int = rlx.static(3)


@rlx.pytree
class State:
    x: jax.Array
    time: jax.Array


class Line:
    """A point on a line."""

    default_params = Params()

    def reset(self, key, params):
        state = State(jax.random.normal(key), jnp.int32(0))
        return state.x[None], state

    def step(self, key, state, action, params):
        state = rlx.replace(state, x=state.x + params.speed * (action - 1), time=state.time + 1)
        return state.x[None], state, -jnp.abs(state.x), state.time > 9, jnp.bool_(False), {}

    def observation_space(self, params):
        return Box(-jnp.inf, jnp.inf, (1,))

    def action_space(self, params):
        return Discrete(3)


@rlx.pytree
class Typed:
    """One with types, and parameters that are a field of a frozen class."""

    default_params: Params = Params(speed=1.0)

    def reset(self, key: jax.Array, params: Params) -> tuple[jax.Array, State]:
        return jnp.zeros(1), State(jnp.float32(0), jnp.int32(0))

    def step(self, key: jax.Array, state: State, action: jax.Array, params: Params) -> tuple:
        return jnp.zeros(1), state, jnp.float32(0), jnp.bool_(True), jnp.bool_(False), None

    def observation_space(self, params: Params) -> Box:
        return Box(-1.0, 1.0, (1,))

    def action_space(self, params: Params) -> Discrete:
        return Discrete(3)


key = jax.random.key(0)
env, other = rlx.Env(Line(), Params(speed=1.0), max_steps=20), rlx.Env(Typed(), Params())
config = ppo.Config(total_steps=10_000, learning_rate=1e-3, hidden_sizes=(32, 32))
state, metrics = rlx.train(ppo, config, env, key, objective=SPO(epsilon=0.2))
state, more = rlx.resume(ppo, config, env, state, num_updates=3)
print(metrics["episode_return"][-1], state.env_state.obs.shape, rlx.evaluate(ppo, config, env, state, key))
rlx.train(reinforce, reinforce.Config(num_envs=4), rlx.envs.make("CartPole-v1"), key)
own = load_algorithm("reinforce.py")
rlx.train(own, own.Config(), other, key)
spo = with_objective(ppo, SPO)
rlx.train(spo, spo.Config(epsilon=0.1), env, key)
rlx.check_algorithm(reinforce, env)
rlx.envs.check(env)
print(rlx.stack([rlx.replace(config, gamma=0.9), config]).gamma, sac.Config().tau, rlx.steps_taken(config, 3))
'''
WRONG = """
import jax
import jax.numpy as jnp

import rlx
from rlx.advantages import gae
from rlx.algos import ppo

start, key = jnp.zeros(3), jax.random.key(0)
_ = rlx.EnvState(start, start, start, start).nothing  # reportAttributeAccessIssue
_ = rlx.EnvState(start, start)  # reportCallIssue
_ = ppo.Config(learning_rat=1e-3)  # reportCallIssue
_ = ppo.Config(num_envs="4")  # reportArgumentType
_ = ppo.Config().gama  # reportAttributeAccessIssue
ppo.Config().gamma = 0.9  # reportAttributeAccessIssue
_ = rlx.train(ppo, ppo.Config(), "CartPole-v1", key)  # reportArgumentType
_ = rlx.envs.make(3)  # reportArgumentType
_ = rlx.envs.mak("CartPole-v1")  # reportAttributeAccessIssue
_ = rlx.trian  # reportAttributeAccessIssue
_ = gae("reward", start, start, start, start, 0.9, 0.9)  # reportArgumentType
_ = rlx.Env(object(), None)  # reportArgumentType
"""


@pytest.fixture
def errors(tmp_path):
    """Lines and rules of what the checker finds in a file beside rlx, laid out as it is installed."""
    pytest.importorskip("basedpyright")
    package = tmp_path / "rlx"
    package.mkdir()
    for path in [*(ROOT / "rlx").glob("[!.]*"), ROOT / "algos", ROOT / "envs"]:
        (package / path.name).symlink_to(path)
    example = re.search(r"```python\n(.*?)```", (ROOT / "docs" / "guides" / "own-algorithm.md").read_text(), re.DOTALL)
    (tmp_path / "reinforce.py").write_text(example[1])
    (tmp_path / "pyrightconfig.json").write_text('{"typeCheckingMode": "basic"}')

    def found(text):
        (tmp_path / "script.py").write_text(text)
        command = [sys.executable, "-m", "basedpyright", "--pythonpath", sys.executable, "--outputjson"]
        command += ["script.py", "reinforce.py"]
        result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
        report = json.loads(result.stdout)
        assert report["summary"]["filesAnalyzed"] == 2
        return [(e["range"]["start"]["line"] + 1, e["rule"]) for e in report["generalDiagnostics"]]

    return found


@pytest.mark.more
def test_a_file_that_is_right_has_no_errors(errors):
    assert errors(RIGHT) == []


@pytest.mark.more
def test_a_file_that_is_wrong_is_told_where(errors):
    lines = enumerate(WRONG.splitlines(), 1)
    assert errors(WRONG) == [(i, match[1]) for i, line in lines if (match := re.search("# (report.*)", line))]
