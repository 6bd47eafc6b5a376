"""What FPO, PolicyFlow and DPPO have in common: probes, the first minibatch, one trace for all, resuming."""

import dataclasses
from functools import partial
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import rlx
from rlx import Env, pytree, replace, stack
from rlx.algos import dppo, fpo, policyflow
from rlx.envs.tasks import probes
from rlx.pytree import is_static
from rlx.spaces import Box

EXACT = True  # resumed runs are compared bit by bit

ALGORITHMS = [fpo, policyflow, dppo]
SIZES = {"num_envs": 4, "num_steps": 16, "num_epochs": 2, "num_minibatches": 2, "hidden_sizes": (8,)}
STEPS = {a: {"flow_steps": 3} for a in (fpo, policyflow)} | {dppo: {"denoising_steps": 4, "trained_steps": 3}}
KL = {fpo: "approx_kl", policyflow: "kl", dppo: "approx_kl"}


@pytest.fixture(scope="module", params=ALGORITHMS, ids=["fpo", "policyflow", "dppo"])
def algorithm(request):
    return request.param


@pytest.fixture(scope="module")
def goals():
    """Short episodes, which end by leaving the square as well as by the time limit."""
    env = rlx.envs.make("rlx/MultiGoal", max_steps=12)
    return replace(env, params=replace(env.params, limit=7.05))


@pytest.fixture(scope="module")
def small(algorithm):
    """A config of three updates that compiles fast."""
    return algorithm.Config(total_steps=3 * 64, learning_rate=1e-2, **SIZES, **STEPS[algorithm])


@pytest.fixture(scope="module")
def init(algorithm):
    return jax.jit(algorithm.init)


@pytest.fixture(scope="module")
def trained(algorithm, small, goals):
    return rlx.train(algorithm, small, goals, jax.random.key(0))


def assert_equal(a, b):
    """Bitwise, leaf by leaf; keys by their bits."""
    bits = lambda x: jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(bits(x), bits(y)), a, b)


def continuous(probe):
    """The probe for continuous actions, which it does not look at."""
    kind = type(probe.__name__, (probe,), {"action_space": lambda self, params: Box(-1.0, 1.0, (1,))})
    return Env(kind(), probe.default_params, max_steps=5)


@pytest.fixture(scope="module")
def probe(algorithm):
    """Trains on an environment; returns the critic, actions sampled for an observation, and the metrics."""
    own = {
        fpo: {"samples_per_action": 4, "flow_steps": 5},
        # One action is best whatever the noise: without its Brownian term it ends in the collapse that it warns of.
        policyflow: {"num_features": 16},
        # The observation of a probe is 0, at which a layer of relu learns nothing.
        dppo: {"denoising_steps": 3, "trained_steps": 3, "critic_learning_rate": 3e-3, "activation": "tanh"},
    }
    config = algorithm.Config(
        total_steps=200 * 256,
        num_envs=32,
        num_steps=8,
        num_minibatches=2,
        learning_rate=3e-3,
        gamma=0.9,
        value_clip=float("inf"),
        hidden_sizes=(16,),
        **own[algorithm],
    )

    def train(env):
        state, metrics = rlx.train(algorithm, config, env, jax.random.key(0))
        value = lambda *obs: algorithm.networks(config, env)[1].apply(state.params["critic"], jnp.array(obs)[:, None])
        act = lambda obs: algorithm.act(config, env, state, jnp.full((500, 1), obs), jax.random.key(1))[0][:, 0]
        return value, act, metrics

    return train


# Of values of order 1: what is left after 200 updates with a learning rate that fell to 0.
CONVERGED = 0.02


@pytest.mark.more
def test_the_critic_discounts_what_comes_later(probe):
    value, _, _ = probe(continuous(probes.Discount))
    np.testing.assert_allclose(value(0.0, 1.0), [0.9, 1.0], atol=CONVERGED)


@pytest.mark.more
def test_the_critic_bootstraps_where_a_time_limit_cuts(probe):
    value, _, metrics = probe(continuous(probes.Endless))
    np.testing.assert_allclose(value(0.0), [1 / (1 - 0.9)], atol=10 * CONVERGED)
    np.testing.assert_array_equal(metrics["episode_length"], 5)


@pytest.mark.more
def test_continuous_actions_reach_their_optimum(probe):
    _, act, metrics = probe(rlx.envs.make("probe/ContinuousAction"))
    # The optimum is obs / 2. The first policy is that far from it that it gets -1; one that ignores obs gets 0.75.
    np.testing.assert_allclose([act(-1.0).mean(), act(1.0).mean()], [-0.5, 0.5], atol=0.25)
    assert metrics["episode_return"][0] < -0.5
    assert metrics["episode_return"][-10:].mean() > 0.85


@pytree
class Spread:
    """An objective that is the largest `|ratio - 1|` of the minibatch."""

    def __call__(self, config, elements, progress):
        return jnp.broadcast_to(jnp.abs(jnp.expm1(elements.log_ratio)).max(), elements.log_ratio.shape)


@pytest.mark.more
def test_the_ratio_is_one_on_the_first_minibatch(algorithm, small, init, goals):
    config = replace(small, normalize_obs=True, normalize_reward=True, learning_rate=0.1)
    whole = replace(config, num_epochs=1, num_minibatches=1)
    first = jax.jit(lambda state: algorithm.update(whole, goals, state, objective=Spread())[1])
    update = jax.jit(algorithm.update)
    state = init(config, goals, jax.random.key(0))
    for _ in range(3):
        metrics = first(state)
        assert metrics["num_episodes"] > 0  # across episode ends
        # FPO compares losses of order 1 to 10 from other batch shapes, DPPO noise of order 1 over a std of 0.1;
        # PolicyFlow's velocities are the same numbers.
        assert metrics["policy_loss"] < (1e-6 if algorithm is policyflow else 2e-5)
        assert metrics["clip_fraction"] == 0
        assert abs(metrics[KL[algorithm]]) < 1e-6
        state, later = update(config, goals, state)
        assert later[KL[algorithm]] > 2e-5  # the policy does move


@pytest.mark.more
@pytest.mark.parametrize("algorithm", [fpo, policyflow], indirect=True)  # for DPPO see tests/test_dppo.py
def test_resume_is_bitwise(algorithm, small, goals, init, trained):
    state, first = rlx.resume(algorithm, small, goals, init(small, goals, jax.random.key(0)), num_updates=2)
    state, rest = rlx.resume(algorithm, small, goals, state)
    assert_equal((state, jax.tree.map(lambda *x: jnp.concatenate(x), first, rest)), trained)


@pytest.mark.more
def test_a_sweep_is_its_single_runs(algorithm, small, goals, trained):
    configs = stack([small, replace(small, learning_rate=1e-3, clip=0.1)])
    keys = jnp.stack([jax.random.key(0)] * 2)
    states, metrics = jax.vmap(partial(rlx.train, algorithm), in_axes=(0, None, 0))(configs, goals, keys)
    one, single = trained
    # Matrix products of other shapes: they round differently, and three updates carry that on.
    for name in ("policy_loss", "value_loss", "grad_norm", "episode_return"):
        np.testing.assert_allclose(metrics[name][0], single[name], rtol=2e-3, atol=1e-4, err_msg=name)
    lane = ravel_pytree(jax.tree.map(lambda x: x[0], states.params))[0]
    np.testing.assert_allclose(lane, ravel_pytree(one.params)[0], rtol=1e-2, atol=1e-3)
    other = ravel_pytree(jax.tree.map(lambda x: x[1], states.params))[0]
    assert np.abs(other - lane).max() > 1e-2


@pytest.mark.more
def test_no_key_is_used_twice(algorithm, small, goals):
    with jax.debug_key_reuse(True):
        state, metrics = rlx.train(algorithm, replace(small, max_grad_norm=0.9), goals, jax.random.key(0))
    assert state.num_updates == 3
    assert np.isfinite(metrics["policy_loss"]).all()


@pytree
class Glimpse:
    image: jax.Array
    paid: jax.Array


class Images:
    """Random images for three steps; pays for pushing with the brighter half, in some states tenfold."""

    default_params: ClassVar = None

    def observation_space(self, params):
        return Box(0.0, 1.0, (4, 4, 2))

    def action_space(self, params):
        return Box(-1.0, 1.0, (2,))

    def reset(self, key, params):
        image = jax.random.uniform(key, (4, 4, 2))
        return image, Glimpse(image, jnp.float32(0))

    def step(self, key, state, action, params):
        push = jnp.where(state.image[:2].mean() > state.image[2:].mean(), action[0], -action[1])
        reward = push * jnp.where(state.image[0, 0, 0] > 0.5, 10.0, 1.0)
        image = jax.random.uniform(key, (4, 4, 2))
        return image, Glimpse(image, state.paid + 1), reward, state.paid >= 2, jnp.array(False), {}


images = Env(Images(), None)

# Another value for every field of the configs: a new field needs one too.
CHANGED = {
    "total_steps": 64,
    "num_envs": 2,
    "num_steps": 4,
    "num_epochs": 1,
    "num_minibatches": 4,
    "learning_rate": 3e-2,
    "anneal_learning_rate": False,
    "gamma": 0.5,
    "gae_lambda": 0.5,
    "clip": 0.01,
    "value_clip": 0.01,
    "value_coef": 0.1,
    "entropy_coef": 0.5,
    "max_grad_norm": 0.05,
    "adam_epsilon": 1e-2,
    "normalize_advantage": False,
    "normalize_obs": True,
    "normalize_reward": True,
    "hidden_sizes": (16, 8),
    "conv_features": (4,),
    "activation": "elu",
    "flow_steps": 2,
    "samples_per_action": 4,
    "predict_noise": False,
    "loss_scale": 3.0,
    "loss_clamp": 0.5,
    "root_scale": True,
    "log_ratio_clamp": 0.0,
    "sample_ratios": True,
    "asymmetric": True,
    "action_noise": 0.3,
    "eval_noise": 0.0,
    "num_features": 16,
    "adapt_learning_rate": True,
    "target_kl": 1e-7,
    "brownian_coef": 1.0,
    "critic_learning_rate": 3e-2,
    "action_bound": 2.0,
    "imitation_coef": 0.5,
    "critic_warmup": 1,
    "denoising_steps": 5,
    "trained_steps": 2,
    "denoising_gamma": 0.5,
    "least_std": 0.3,
    "noise_bound": 0.5,
    "first_clip": 0.2,
    "clip_rate": 0.5,
}
FIELDS = [(a, f) for a in ALGORITHMS for f in dataclasses.fields(a.Config)]
named = partial(pytest.mark.parametrize, ("which", "name"))
ids = lambda cases: [f"{a.__name__.rpartition('.')[2]}-{name}" for a, name in cases]
# What changes evaluation only has test_deterministic_actions_begin_in_as_much_noise_as_is_asked_for.
TRACED = [(a, f.name) for a, f in FIELDS if not is_static(f) and f.name != "eval_noise"]
SEAMS = ("torso", "actor_obs", "critic_obs", "policy")  # which tests/test_served_spaces.py changes
STATIC = [(a, f.name) for a, f in FIELDS if is_static(f) and f.name not in SEAMS]
# With the asymmetric objective, what is past a clamp counts.
OWN = {fpo: {"asymmetric": True}, policyflow: {"num_features": 8}, dppo: {"first_clip": 0.02}}
BASE = {a: a.Config(**SIZES, **STEPS[a], **OWN[a]) for a in ALGORITHMS}
BASE = {a: replace(config, total_steps=3 * 64, learning_rate=1e-2) for a, config in BASE.items()}


@pytest.fixture(scope="module")
def trained_params():
    """The weights after a run on images, as one vector; only traced fields may differ."""
    train = lambda which, config: rlx.train(which, config, images, jax.random.key(0))[0].params
    return lambda which, **changes: ravel_pytree(train(which, replace(BASE[which], **changes)))[0]


@pytest.mark.more
@named(TRACED, ids=ids(TRACED))
def test_every_traced_config_field_changes_the_weights(trained_params, which, name):
    assert getattr(BASE[which], name) != CHANGED[name]
    base = {"adapt_learning_rate": True} if name == "target_kl" else {}
    difference = trained_params(which, **base | {name: CHANGED[name]}) - trained_params(which, **base)
    # Well above rounding: a field that only reorders a sum changes nothing.
    assert np.abs(difference).max() > 1e-4


@pytest.fixture(scope="module")
def program():
    """The text of the program of one update on images."""

    def lower(which, **changes):
        config = replace(BASE[which], **changes)
        state = jax.eval_shape(which.init, config, images, jax.random.key(0))
        return jax.jit(lambda state: which.update(config, images, state)).lower(state).as_text()

    return lower


@pytest.fixture(scope="module")
def unchanged(program):
    return {which: program(which) for which in ALGORITHMS}


@pytest.mark.more
@named(STATIC, ids=ids(STATIC))
def test_every_static_config_field_changes_the_program(program, unchanged, which, name):
    value = (not getattr(BASE[which], name)) if name == "asymmetric" else CHANGED[name]
    assert getattr(BASE[which], name) != value
    assert program(which, **{name: value}) != unchanged[which]


def test_one_trace_serves_all_traced_values_and_returned_states(algorithm, small, goals, init):
    traces = []

    @jax.jit
    def update(config, env, state):
        traces.append(1)
        return algorithm.update(config, env, state)

    state = init(small, goals, jax.random.key(0))
    for _, name in [case for case in TRACED if case[0] is algorithm]:
        state, _ = update(replace(small, **{name: CHANGED[name]}), goals, state)
    state, _ = update(replace(small, gamma=1, value_clip=float("inf")), goals, state)
    state, _ = update(small, replace(goals, max_steps=7), state)
    assert len(traces) == 1


@pytest.mark.parametrize("algorithm", [fpo, policyflow], indirect=True)
def test_the_number_of_solver_steps_may_be_another_one_in_evaluation(algorithm, small, goals, trained):
    state, obs = trained[0], jnp.ones((64, 4))
    act = lambda steps: algorithm.act(replace(small, flow_steps=steps), goals, state, obs, jax.random.key(1))[0]
    one, many, more = act(1), act(64), act(128)
    assert np.abs(one - more).max() > 10 * np.abs(many - more).max() > 0


def test_discrete_actions_are_refused(algorithm, small):
    with pytest.raises(ValueError, match="this policy needs continuous actions"):
        algorithm.init(small, rlx.envs.make("probe/Action"), jax.random.key(0))


def test_observations_may_be_categories(algorithm, small):
    env = rlx.envs.make("gymnax/FrozenLake-misc")
    flow, _ = algorithm.networks(small, env)
    params = flow.init(jax.random.key(0), jnp.int32(0), jnp.zeros(2), 0.0)
    assert flow.apply(params, jnp.arange(5), jnp.ones((5, 2)), jnp.full(5, 0.5)).shape == (5, 2)
