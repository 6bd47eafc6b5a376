"""Deployed policies: operations against XLA, every algorithm in every form, and what is refused."""

import importlib
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rlx
from rlx.agent import Agent
from rlx.cli import main
from rlx.deploy import operations, to_numpy, to_onnx
from rlx.deploy.flat import Flat
from rlx.deploy.program import Program
from rlx.deploy.runner import Policy
from rlx.deploy.to_numpy import Unwritten, Writer
from rlx.deploy.write import compared, deploy, opened

SMALL = {"num_envs": 4, "num_steps": 8, "num_epochs": 1, "num_minibatches": 2, "hidden_sizes": (8,)}
OFF_POLICY = {"hidden_sizes": (8,), "num_envs": 2, "capacity": 64, "batch_size": 8, "warmup_steps": 8}
OFF_POLICY |= {"critic_hidden_sizes": (8,), "num_steps": 6}
CASES = {
    "ppo": ("CartPole-v1", SMALL | {"normalize_obs": True}),
    "grpo": ("CartPole-v1", {"num_envs": 8, "hidden_sizes": (8,)}),
    "ppo_recurrent": ("CartPole-v1", SMALL | {"sequence_length": 8, "memory_size": 8}),
    "sac": ("Pendulum-v1", OFF_POLICY),
    "ddpg": ("Pendulum-v1", OFF_POLICY),
    "crossq": ("Pendulum-v1", OFF_POLICY),
    "stream_ac": ("Pendulum-v1", {"num_steps": 8, "hidden_sizes": (8,)}),
    "fpo": ("Pendulum-v1", SMALL),
    "dppo": ("Pendulum-v1", SMALL),
    "policyflow": ("Pendulum-v1", SMALL),
    "pqn_recurrent": ("CartPole-v1", SMALL | {"sequence_length": 8, "memory_size": 8}),
    "reppo": ("Pendulum-v1", SMALL),
}
QUICK = ("ppo", "ppo_recurrent", "dppo")
ALL = [pytest.param(name, marks=() if name in QUICK else pytest.mark.more) for name in CASES]


@pytest.fixture(scope="module")
def agents():
    """An agent of an algorithm with untrained networks whose parameters are all disturbed."""
    made = {}

    def agent(name):
        if name not in made:
            env_name, settings = CASES[name]
            algorithm, env = importlib.import_module(f"rlx.algos.{name}"), rlx.envs.make(env_name)
            known = {key: value for key, value in settings.items() if key in algorithm.Config.__dataclass_fields__}
            config = algorithm.Config(**known)
            state = jax.jit(lambda key: algorithm.init(config, env, key))(jax.random.key(0))
            move = lambda x: x + 0.3 * jax.random.normal(jax.random.key(x.size), x.shape)
            state = rlx.replace(state, params=jax.tree.map(move, state.params))
            made[name] = Agent(algorithm, config, env, state, env_name)
        return made[name]

    return agent


def numpy_form(function, *arrays):
    """What a function gives when it is written in numpy."""
    flat, writer = Flat(function, [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in arrays]), Writer("b")
    names = [writer.name(var) for var in flat.inputs]
    for var, value in flat.constants.items():
        writer.weight(var, value)
    lines = [f"[{', '.join(names)}] = inputs", *writer.lines(flat.equations)]
    lines.append(f"return [{', '.join(map(writer.name, flat.outputs))}]")
    inside = {"np": np, **{k: v for k, v in vars(operations).items() if k.startswith("_")}, **writer.weights}
    exec("def compute(inputs):\n" + "\n".join(f"    {line}" for text in lines for line in text.split("\n")), inside)
    return inside["compute"](list(arrays))


X = np.asarray(jax.random.normal(jax.random.key(0), (3, 5)))
IMAGE = np.asarray(jax.random.normal(jax.random.key(1), (2, 8, 7, 3)))
KERNEL = np.asarray(jax.random.normal(jax.random.key(2), (3, 2, 3, 4)))
WHOLE = np.arange(-7, 8, dtype=np.int32).reshape(3, 5)
OPERATIONS = {
    "erf_inv": (jax.lax.erf_inv, np.linspace(-1, 1, 41, dtype=np.float32)),
    "erf": (jax.lax.erf, X),
    "logistic": (jax.nn.sigmoid, 30 * X),
    "division of integers": (lambda x: jax.lax.div(x, jnp.int32(3)), WHOLE),
    "remainder": (lambda x: jax.lax.rem(x, jnp.int32(3)), WHOLE),
    "softmax": (jax.nn.softmax, X),
    "products with a batch": (lambda x, y: jnp.einsum("bij,bjk->bik", x, y), np.stack([X, X]), np.stack([X.T, X.T])),
    "a slice from an index": (lambda x, i: jax.lax.dynamic_slice(x, (i, i), (2, 2)), X, np.int32(9)),
    "a slice set at an index": (lambda x, i: jax.lax.dynamic_update_slice(x, x[:1] * 2, (i, 0)), X, np.int32(7)),
    "entries by index": (lambda x, i: x[i], X, np.array([0, 2, -1], np.int32)),
    "entries that are not there": (lambda x, i: x.at[i].get(mode="fill"), X, np.array([0, 7], np.int32)),
    "entries by index, clipped": (lambda x, i: x.at[:, i].get(mode="clip"), X, np.array([0, 9], np.int32)),
    "entries along an axis": (lambda x: jnp.take_along_axis(x, jnp.argmax(x, 1)[:, None], 1), X),
    "entries that are set": (lambda x, i: x.at[i, 1].set(7.0), X, np.array([0, 2], np.int32)),
    "entries that are added to": (lambda x, i: x.at[i].add(1.0), X, np.array([1, 1], np.int32)),
    "columns that are set": (lambda x: x.at[:, 0].set(jnp.arange(3.0)), X),
    "a cumulative sum from the end": (lambda x: jax.lax.cumsum(x, 1, reverse=True), X),
    "a pad": (lambda x: jnp.pad(x, ((1, 2), (0, 1)), constant_values=3.0), X),
    "a loop": (lambda x: jax.lax.scan(lambda c, y: (c + y, c * y), x[0], x), X),
    "a loop from the end": (lambda x: jax.lax.scan(lambda c, y: (c + y, c), x[0], x, reverse=True), X),
    "a convolution": (
        lambda x, k: jax.lax.conv_general_dilated(x, k, (2, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")),
        *(IMAGE, KERNEL),
    ),
    "a pool": (
        lambda x: jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, 2, 2, 1), "SAME"),
        IMAGE,
    ),
    "the largest with NaN": (lambda x: jnp.maximum(x.at[0, 0].set(jnp.nan), 0).max(1), X),
    "a case of several": (lambda x: jax.lax.select_n(WHOLE % 3, x, 2 * x, 3 * x), X),
    "numbers that are not there": (lambda x, i: x.at[i].get(mode="fill"), WHOLE, np.array([0, 7], np.int32)),
    "others in their place": (lambda x, i: x.at[i].get(mode="fill", fill_value=2), X, np.array([0, 7], np.int32)),
    "sums of integers": (lambda x: (x.sum(1), jnp.cumsum(x, 0), x.prod(0)), WHOLE),
    "halves away from 0": (jax.lax.round, np.array([-2.5, -1.5, -0.4, 0.5, 1.5, 2.5], np.float32)),
    "halves to even": (jnp.round, np.array([-2.5, -1.5, -0.4, 0.5, 1.5, 2.5], np.float32)),
    "shifted bits": (
        lambda x: jax.lax.shift_right_logical(x, jnp.uint32(9)),
        np.arange(99, dtype=np.uint32) * 43000000,
    ),
    "powers": (lambda x: jnp.abs(x) ** 1.5 + 2.0 ** jnp.arange(5) + x**3, X),
    "parts": (lambda x: jnp.concatenate(jnp.split(x, [2], 1)[::-1], 1), X),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_in_numpy_gives_what_xla_gives(name):
    function, *arrays = OPERATIONS[name]
    expected, found = jax.tree.leaves(jax.jit(function)(*arrays)), numpy_form(function, *arrays)
    for x, y in zip(expected, found, strict=True):
        assert np.asarray(y).dtype == x.dtype
        np.testing.assert_allclose(y, x, rtol=2e-5, atol=2e-6)  # float32, sums in another order


def test_an_operation_without_a_numpy_form_is_named():
    with pytest.raises(Unwritten, match="the policy uses sort"):
        numpy_form(jnp.sort, X)


def test_noise_is_an_input_and_what_is_multiplied_by_0_is_none():
    function = lambda key, x: x + jax.random.normal(jax.random.wrap_key_data(key), x.shape)
    structs = [jax.ShapeDtypeStruct((2,), jnp.uint32), jax.ShapeDtypeStruct((4, 2), jnp.float32)]
    flat, key, x = Flat(function, structs), jax.random.key_data(jax.random.key(5)), np.ones((4, 2), np.float32)
    (noise,) = flat.draw(key, x)
    assert not flat.used[0]
    assert np.all((noise >= 0) & (noise < 1))
    np.testing.assert_allclose(flat(np.zeros(2, np.uint32), x, noise)[0], function(key, x), rtol=1e-6)
    still = Flat(lambda key, x: x + 0.0 * jax.random.normal(jax.random.wrap_key_data(key), x.shape), structs)
    assert still.noise == []


def test_other_random_numbers_are_refused(agents):
    agent = agents("ppo")

    class Shuffles:
        @staticmethod
        def act(config, env, state, obs, key, deterministic=False):
            return jax.random.randint(key, obs.shape[:1], 0, 2), None

    with pytest.raises(ValueError, match="draws random numbers that are not made of uniform ones"):
        Program(Agent(Shuffles, agent.config, agent.env, agent.state))


@pytest.mark.parametrize("sample", [False, True])
@pytest.mark.parametrize("name", ALL)
def test_every_algorithm_in_numpy_and_stablehlo(agents, tmp_path, name, sample):
    agent = agents(name)
    for found in deploy(agent, tmp_path, ["numpy", "stablehlo"], sample):
        assert found.num_compared == 1000
        assert found.largest_difference < 1e-5
        with opened(found.path) as policy:
            _acts(policy, agent)


@pytest.mark.more
@pytest.mark.parametrize("sample", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_every_algorithm_in_onnx(agents, tmp_path, name, sample):
    pytest.importorskip("jax2onnx")
    (found,) = deploy(agents(name), tmp_path, ["onnx"], sample)
    assert found.largest_difference < 1e-5
    with opened(found.path) as policy:
        _acts(policy, agents(name))


def _acts(policy, agent):
    """One observation and several are served, also after each other."""
    shape, action = agent.observation_space.shape, agent.action_space.shape
    policy.reset()
    one = policy.act(np.zeros(shape))
    policy.reset()
    several = policy.act(np.zeros((3, *shape), np.float64))
    assert np.shape(one) == action
    assert np.shape(several) == (3, *action)


@pytest.mark.more
def test_onnx_takes_observations_that_are_not_finite_as_the_run_does(agents, tmp_path):
    pytest.importorskip("jax2onnx")
    agent = agents("ppo")
    (found,) = deploy(agent, tmp_path, ["onnx"])
    obs = np.array([[np.nan] * 4, [np.inf] * 4, [-1e30] * 4, [0.0] * 4], np.float32)
    with opened(found.path) as policy:
        assert np.array_equal(policy.act(obs), agent.act(obs))


def test_a_policy_with_memory_remembers_and_forgets(agents, tmp_path):
    agent = agents("ppo_recurrent")
    (found,) = deploy(agent, tmp_path)
    obs = np.asarray(jax.random.normal(jax.random.key(0), (5, 2, 4)))
    with opened(found.path) as policy:
        agent.reset()
        assert np.array_equal([policy.act(x) for x in obs], [agent.act(x) for x in obs])
        np.testing.assert_allclose(policy.memory[0], jax.tree.leaves(agent.memory)[0], atol=1e-5)
        policy.reset(np.array([True, False]))
        assert np.all(policy.memory[0][0] == 0)
        assert np.any(policy.memory[0][1] != 0)
        with pytest.raises(ValueError, match=r"call reset\(\) before"):
            policy.act(obs[0, 0])


def test_the_numpy_form_needs_numpy_alone(agents, tmp_path):
    (found,) = deploy(agents("ppo"), tmp_path, sample=True)
    text = "import sys; sys.modules.update(jax=None, rlx=None); sys.path.insert(0, sys.argv[1]); import policy"
    text += "; print(policy.Policy(seed=1).act([0, 0, 0, 0]))"
    done = subprocess.run([sys.executable, "-c", text, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() in "01"
    assert found.path.read_text().startswith('"""The policy of ppo on CartPole-v1')


def test_what_is_written_beside_a_policy(agents, tmp_path):
    (found,) = deploy(agents("dppo"), tmp_path)
    about = json.loads((tmp_path / "policy.py.json").read_text())
    assert about["observations"] == [
        {"name": "obs", "shape": [3], "dtype": "float32", "low": [-1.0, -1.0, -8.0], "high": [1.0, 1.0, 8.0]}
    ]
    assert about["actions"][0]["high"] == [2.0] or about["actions"][0]["high"] == 2.0
    assert [noise["draw"] for noise in about["noise"]] == ["uniform in [0, 1)"] * len(about["noise"])
    assert about["compared"]["observations"] == found.num_compared
    assert about["versions"]["jax"] == jax.__version__


def test_a_policy_that_acts_otherwise_is_not_written(agents, tmp_path, monkeypatch):
    monkeypatch.setitem(to_numpy.UNARY, "tanh", "np.sin({0})")
    with pytest.raises(ValueError, match="numpy: the policy acts otherwise than the run at"):
        deploy(agents("ppo"), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_real_actions_that_differ_are_not_written(agents, tmp_path, monkeypatch):
    monkeypatch.setattr(to_numpy, "opened", lambda path: Policy(lambda inputs: [np.zeros((20, 1))], table))
    table = Program(agents("dppo")).table
    with pytest.raises(ValueError, match="actions differ from those of the run by up to"):
        deploy(agents("dppo"), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_comparing_sees_nan(agents):
    program = Program(agents("dppo"))
    num, largest, _ = compared(program, Policy(lambda inputs: [np.full((20, 1), np.nan)], program.table))
    assert num == 1000
    assert largest == np.finfo(np.float64).max or largest == np.inf


def test_a_missing_exporter_is_said():
    with pytest.raises(ValueError, match=r'pip install "rlx\[onnx\]"'):
        to_onnx.imported("a_module_that_is_not_there")


def test_the_command_writes_and_says_how_near(tmp_path, capsys):
    from rlx.algos import ppo

    rlx.fit(ppo, ppo.Config(**SMALL, total_steps=32), "CartPole-v1", directory=tmp_path / "run", eval_episodes=2)
    main(["deploy", str(tmp_path / "run"), "--to", "numpy", "stablehlo", "--output", str(tmp_path / "out")])
    said = capsys.readouterr().out
    assert "its actions at 1,000 observations are those of the run" in said
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        *("policy.py", "policy.py.json", "policy.stablehlo", "policy.stablehlo.json")
    }
    with pytest.raises(SystemExit, match="2"):
        main(["deploy", str(tmp_path / "nothing"), "--to", "numpy", "--output", str(tmp_path / "out")])
    assert "is not a run directory" in capsys.readouterr().err
