"""V-MPO: weights and duals against closed forms and limits, its loss in numpy, the probes, and what is refused."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from scipy.optimize import minimize_scalar

import rlx
from rlx import replace
from rlx.algos import vmpo as module
from rlx.pytree import is_static
from rlx.rollout import flatten, rollout
from rlx.weighting import better_half, boltzmann_weights, multiplier_loss, temperature_loss

EXACT = True  # bits are compared

ADVANTAGE = jnp.asarray(np.random.default_rng(0).normal(size=9), jnp.float32)


def kl_from_uniform(weights):
    w = np.asarray(weights, np.float64)
    return np.sum(w * np.log(w * len(w)))


@pytest.mark.parametrize("num", [1, 2, 7, 8])
def test_the_better_half_is_that_of_a_sort(num):
    advantage = ADVANTAGE[:num]
    wanted = np.argsort(-np.asarray(advantage), kind="stable")[: (num + 1) // 2]
    np.testing.assert_array_equal(better_half(advantage), wanted)


def test_of_equal_advantages_half_are_taken():
    np.testing.assert_array_equal(better_half(jnp.zeros(6)), [0, 1, 2])


def test_weights_match_the_equation():
    a = np.asarray(ADVANTAGE, np.float64)
    wanted = np.exp(a / 0.7) / np.exp(a / 0.7).sum()
    np.testing.assert_allclose(boltzmann_weights(ADVANTAGE, 0.7), wanted, rtol=1e-5)


def test_weights_are_uniform_for_a_high_temperature_and_one_hot_for_a_low_one():
    np.testing.assert_allclose(boltzmann_weights(ADVANTAGE, 1e6), np.full(9, 1 / 9), rtol=1e-4)
    np.testing.assert_allclose(boltzmann_weights(ADVANTAGE, 1e-3), np.eye(9)[np.argmax(ADVANTAGE)], atol=1e-6)
    assert np.isfinite(boltzmann_weights(1e4 * ADVANTAGE, 1e-6)).all()


@pytest.mark.parametrize("bound", [0.02, 0.5, 1.5])
def test_at_its_best_the_temperature_keeps_the_weights_to_their_bound(bound):
    a = np.asarray(ADVANTAGE, np.float64)
    dual = lambda eta: eta * (bound + np.log(np.mean(np.exp((a - a.max()) / eta)))) + a.max()
    eta = minimize_scalar(dual, bounds=(1e-2, 1e3), method="bounded", options={"xatol": 1e-9}).x
    np.testing.assert_allclose(temperature_loss(eta, ADVANTAGE, bound), dual(eta), rtol=1e-5)
    np.testing.assert_allclose(kl_from_uniform(boltzmann_weights(ADVANTAGE, eta)), bound, rtol=1e-3)
    np.testing.assert_allclose(jax.grad(temperature_loss)(eta, ADVANTAGE, bound), 0.0, atol=1e-4)
    # Convex: the slope is that of bound less the divergence, on either side.
    for other in (0.5 * eta, 2.0 * eta):
        slope = bound - kl_from_uniform(boltzmann_weights(ADVANTAGE, other))
        np.testing.assert_allclose(jax.grad(temperature_loss)(other, ADVANTAGE, bound), slope, rtol=1e-3, atol=1e-4)


def test_a_bound_that_the_best_alone_keeps_takes_the_temperature_to_zero():
    slope = jax.vmap(jax.grad(temperature_loss), (0, None, None))(jnp.geomspace(1e-2, 100, 9), ADVANTAGE, np.log(9.1))
    assert (slope > 0).all()


def test_the_multiplier_answers_the_divergence_and_the_policy_the_multiplier():
    grads = jax.grad(multiplier_loss, argnums=(0, 2))
    np.testing.assert_allclose(grads(3.0, 3.0, 0.5, 0.5, 0.1), (0.1 - 0.5, 3.0), rtol=1e-6)
    np.testing.assert_allclose(multiplier_loss(3.0, 3.0, 0.5, 0.5, 0.1), 0.3, rtol=1e-6)


@pytest.fixture(scope="module")
def tiny():
    sizes = {"num_envs": 4, "num_steps": 16, "num_epochs": 2, "num_minibatches": 2, "hidden_sizes": (16,)}
    return module.Config(total_steps=3 * 64, learning_rate=1e-2, **sizes)


@pytest.fixture(scope="module")
def problem(tiny, cartpole):
    """A state after one update, and the batch of its next rollout."""
    state, _ = jax.jit(module.update)(tiny, cartpole, jax.jit(module.init)(tiny, cartpole, jax.random.key(0)))

    @jax.jit
    def batch(state):
        act = partial(module.act, tiny, cartpole, state)
        traj = rollout(cartpole, act, state.env_state, jax.random.key(1), tiny.num_steps)[1]
        return flatten(module.advantages(tiny, cartpole, state, traj)[0])

    return state, batch(state)


def moved(params):
    return jax.tree.map(
        lambda x: x + 0.3 * jnp.sin(1.0 + jnp.arange(x.size, dtype=jnp.float32)).reshape(x.shape), params
    )


def test_the_loss_is_its_equation(tiny, cartpole, problem):
    state, batch = problem
    params, fixed = moved(state.params), moved(moved(state.params))
    config = replace(tiny, value_coef=0.7, value_clip=1e9, weight_kl=0.3, max_kl=0.02)
    actor, critic = module.networks(config, cartpole)
    to_numpy = lambda x: np.asarray(x, np.float64)
    log_softmax = lambda x: x - np.log(np.exp(x).sum(-1, keepdims=True))
    log_p, log_fixed = (log_softmax(to_numpy(actor.apply(p["actor"], batch.obs).logits)) for p in (params, fixed))
    log_old = log_softmax(to_numpy(batch.pi.logits))
    softplus = lambda x: np.log1p(np.exp(to_numpy(x))) + module.LEAST
    eta, alpha = (softplus(params["duals"][name]) for name in ("eta", "alpha"))
    eta_fixed, alpha_fixed = (softplus(fixed["duals"][name]) for name in ("eta", "alpha"))
    advantage = to_numpy(batch.advantage)
    advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
    top = np.argsort(-advantage)[:32]
    weight = np.exp(advantage[top] / eta_fixed)
    weight /= weight.sum()
    taken = log_p[np.arange(64), batch.action][top]
    kl = lambda log_q: (np.exp(log_old) * (log_old - log_q)).sum(-1).mean()
    wanted = -(weight * taken).sum() + eta * 0.3 + eta * np.log(np.exp(advantage[top] / eta).mean())
    wanted += alpha * (0.02 - kl(log_fixed)) + alpha_fixed * kl(log_p)
    wanted += 0.7 * 0.5 * ((to_numpy(critic.apply(params["critic"], batch.obs)) - batch.target) ** 2).mean()
    total, metrics = module.loss(params, fixed, config, cartpole, batch)
    np.testing.assert_allclose(total, wanted, rtol=1e-4)
    np.testing.assert_allclose(metrics["kl"], kl(log_p), rtol=1e-4)
    np.testing.assert_allclose(metrics["weight_kl"], kl_from_uniform(weight), rtol=1e-4)
    np.testing.assert_allclose([metrics["eta"], metrics["alpha"]], [eta, alpha], rtol=1e-5)


def test_the_worse_half_and_the_duals_have_no_part_in_the_gradient_of_the_policy(tiny, cartpole, problem):
    state, batch = problem
    config = replace(tiny, value_coef=0.0, normalize_advantage=False)
    best = better_half(batch.advantage)
    worse = jnp.ones(64, bool).at[best].set(False)
    grad = lambda batch: jax.grad(module.loss, has_aux=True)(state.params, state.params, config, cartpole, batch)[0]
    before = grad(batch)
    after = grad(replace(batch, advantage=jnp.where(worse, batch.advantage - 5.0, batch.advantage)))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), before["actor"], after["actor"])
    # At the policy that acted the divergence has no slope: what is left is the weighted likelihood.
    actor = module.networks(config, cartpole)[0]
    weight = boltzmann_weights(batch.advantage[best], module.duals(state.params)["eta"])
    score = lambda p: -(weight * actor.apply(p, batch.obs).log_prob(batch.action)[best]).sum()
    wanted = jax.grad(score)(state.params["actor"])
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-5), before["actor"], wanted)


def test_the_duals_begin_where_the_settings_say(tiny, cartpole):
    state = jax.jit(module.init)(replace(tiny, initial_eta=0.3, initial_alpha=700.0), cartpole, jax.random.key(0))
    found = module.duals(state.params)
    np.testing.assert_allclose([found["eta"], found["alpha"]], [0.3, 700.0], rtol=1e-4)


def test_a_huge_multiplier_holds_the_policy(tiny, cartpole):
    """The divergence of an update falls with it, as its penalty is what holds the policy back."""

    @jax.jit
    def kl(alpha):
        config = replace(tiny, initial_alpha=alpha, dual_learning_rate=0.0, num_epochs=30)
        state = module.init(config, cartpole, jax.random.key(0))
        return module.update(config, cartpole, state)[1]["kl"]

    assert kl(1e3) < 0.2 * kl(1e-3)


@pytest.fixture(scope="module")
def probe():
    """Trains on a probe; returns the critic and the policy over observations."""

    def train(name):
        config = module.Config(
            total_steps=200 * 128,
            num_envs=16,
            num_steps=8,
            num_minibatches=2,
            learning_rate=1e-2,
            gamma=0.9,
            value_clip=float("inf"),
            hidden_sizes=(16,),
        )
        env = rlx.envs.make(f"probe/{name}")
        state, _ = rlx.train(module, config, env, jax.random.key(0))
        actor, critic = module.networks(config, env)
        value = lambda *obs: critic.apply(state.params["critic"], jnp.array(obs)[:, None])
        policy = lambda *obs: actor.apply(state.params["actor"], jnp.array(obs)[:, None])
        return value, policy

    return train


def test_the_policy_sees_the_observation(probe):
    value, policy = probe("ObservationAction")
    assert (jnp.exp(policy(-1.0, 1.0).log_prob(jnp.array([0, 1]))) > 0.97).all()
    np.testing.assert_allclose(value(-1.0, 1.0), [1.0, 1.0], atol=0.06)


def test_the_critic_discounts_what_comes_later_and_bootstraps_where_a_time_limit_cuts(probe):
    np.testing.assert_allclose(probe("Discount")[0](0.0, 1.0), [0.9, 1.0], atol=0.03)
    np.testing.assert_allclose(probe("Endless")[0](0.0), [10.0], atol=0.3)


def test_continuous_actions_reach_their_optimum(probe):
    _, policy = probe("ContinuousAction")
    # The optimum is obs / 2 in a space of [-2, 2], which is obs / 4 in unit coordinates.
    np.testing.assert_allclose(policy(-1.0, 1.0).mode()[:, 0], [-0.25, 0.25], atol=0.05)


# Another value for every field of the config: a new field needs one too.
CHANGED = {
    "learning_rate": 3e-2,
    "anneal_learning_rate": False,
    "gamma": 0.5,
    "gae_lambda": 0.5,
    "weight_kl": 0.01,
    "max_kl": 1e-6,
    "initial_eta": 0.1,
    "initial_alpha": 0.1,
    "dual_learning_rate": 1.0,
    "value_clip": 0.01,
    "value_coef": 2.0,
    "max_grad_norm": 0.05,
    "adam_epsilon": 1e-2,
    "normalize_advantage": False,
}
TRACED = [field.name for field in dataclasses.fields(module.Config) if not is_static(field)]


def test_every_traced_config_field_changes_the_weights_and_one_trace_serves_all(tiny, cartpole):
    traces = []

    @jax.jit
    def train(config, env, key):
        traces.append(1)
        return ravel_pytree(rlx.train(module, config, env, key)[0].params)[0]

    before = train(tiny, cartpole, jax.random.key(0))
    assert set(TRACED) == set(CHANGED)
    for name in TRACED:
        after = train(replace(tiny, **{name: CHANGED[name]}), cartpole, jax.random.key(0))
        assert np.isfinite(after).all()
        assert np.abs(after - before).max() > 1e-4, name
    assert len(traces) == 1


def test_resume_is_bitwise_and_a_key_is_used_once(tiny, cartpole):
    with jax.debug_key_reuse(True):
        whole, _ = rlx.train(module, tiny, cartpole, jax.random.key(0))
    state = jax.jit(module.init)(tiny, cartpole, jax.random.key(0))
    for _ in range(3):
        state, _ = rlx.resume(module, tiny, cartpole, state, num_updates=1)
    jax.tree.map(np.testing.assert_array_equal, state.params, whole.params)


def test_a_lane_is_the_single_run(tiny, cartpole):
    configs = [replace(tiny, max_kl=x) for x in (1e-3, 0.1)]
    keys = jax.random.split(jax.random.key(0), 2)
    lanes, _ = jax.vmap(partial(rlx.train, module), (0, None, 0))(rlx.stack(configs), cartpole, keys)
    for i, config in enumerate(configs):
        alone, _ = rlx.train(module, config, cartpole, keys[i])
        near = partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-4)
        jax.tree.map(lambda x, y, i=i, near=near: near(x[i], y), lanes.params, alone.params)


def test_settings_that_cannot_work_are_refused(tiny, cartpole):
    with pytest.raises(ValueError, match="not a multiple of num_minibatches"):
        module.check(replace(tiny, num_minibatches=5), cartpole)
    with pytest.raises(ValueError, match=r"max_kl = 0.0: it has to be above 0"):
        replace(tiny, max_kl=0.0)


@pytest.mark.more
def test_cartpole_is_learned():
    env = rlx.envs.make("CartPole-v1")
    config = module.Config(total_steps=200_000, num_envs=8, learning_rate=3e-3)
    run = lambda key: rlx.evaluate(module, config, env, rlx.train(module, config, env, key)[0], key).returns.mean()
    found = np.asarray(jax.jit(jax.vmap(run))(jax.random.split(jax.random.key(0), 4)))
    assert found.mean() > 400, found
