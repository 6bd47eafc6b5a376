"""The gate of a mixture: its loss in numpy and at its least, what it reaches, and PPO without it."""

import sys
from importlib import import_module
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import rlx
from rlx import replace
from rlx.algos import ppo
from rlx.distributions import NormalMixture
from rlx.gating import best_component, gate_loss

EXACT = True  # bits are compared

sys.path.append(str(Path(__file__).parent.parent / "experiments" / "mechanisms"))
pmoe = import_module("pmoe")

SIZES = {"total_steps": 3 * 64, "num_envs": 8, "num_steps": 8, "num_epochs": 2, "num_minibatches": 2}
SIZES |= {"hidden_sizes": (8,), "num_components": 3}


@pytest.fixture(scope="module")
def env():
    return rlx.envs.make("rlx/MultiGoal")


@pytest.fixture(scope="module")
def state(env):
    return jax.jit(pmoe.init)(pmoe.Config(**SIZES), env, jax.random.key(0))


def test_the_loss_is_its_equation():
    rng = np.random.default_rng(0)
    weights, best = rng.dirichlet(np.ones(4), 5).astype(np.float32), rng.integers(0, 4, 5)
    expected = [np.mean([(weights[i, k] - (k == best[i])) ** 2 for k in range(4)]) for i in range(5)]
    np.testing.assert_allclose(gate_loss(weights, jnp.asarray(best)), expected, rtol=1e-6)


def test_one_component_has_nothing_to_learn():
    np.testing.assert_array_equal(gate_loss(jnp.ones((3, 1)), jnp.zeros(3, jnp.int32)), 0.0)


def test_it_is_least_where_weights_are_frequencies():
    best = jnp.array([0] * 5 + [1] * 3 + [2] * 2)
    mean = lambda weights: gate_loss(jnp.broadcast_to(weights, (10, 3)), best).mean()
    np.testing.assert_allclose(jax.grad(mean)(jnp.array([0.5, 0.3, 0.2])), 0.0, atol=1e-7)
    logits = jnp.zeros(3)
    step = lambda _, logits: logits - 5.0 * jax.grad(lambda x: mean(jax.nn.softmax(x)))(logits)
    logits = jax.lax.fori_loop(0, 2000, step, logits)
    np.testing.assert_allclose(jax.nn.softmax(logits), [0.5, 0.3, 0.2], atol=1e-3)


def test_of_equal_values_each_component_is_the_best_as_often_and_of_others_the_better_one():
    num = 4000
    pi = NormalMixture(jnp.zeros((num, 2)), jnp.tile(jnp.array([[-1.0], [1.0]]), (num, 1, 1)), jnp.full((2, 1), -2.0))
    even = best_component(pi, lambda a: -jnp.abs(jnp.abs(a[..., 0]) - 1.0), jax.random.key(0))
    share = float((even == 1).mean())
    assert abs(share - 0.5) < 0.04, share  # five standard deviations of 4000 draws
    np.testing.assert_array_equal(best_component(pi, lambda a: a[..., 0], jax.random.key(1)), 1)
    np.testing.assert_array_equal(best_component(pi, lambda a: -a[..., 0], jax.random.key(1)), 0)


def test_the_best_is_that_of_every_component_s_own_draw(env, state):
    config = pmoe.Config(**SIZES)
    obs = jax.random.normal(jax.random.key(1), (6, 4))
    found = pmoe.chosen(config, env, state.params, obs, jax.random.key(2))
    pi = ppo.networks(config, env)[0].apply(state.params["actor"], obs)
    actions = pi.normals.sample(jax.random.key(2))
    q = lambda o, a: pmoe.action_critic(config, env).apply(state.params["q"], o[None], a[None])[0]
    expected = [int(np.argmax([q(obs[i], actions[i, k]) for k in range(3)])) for i in range(6)]
    assert len(set(expected)) > 1
    np.testing.assert_array_equal(found, expected)


def test_the_gate_reaches_the_weights_of_the_head_and_no_component(env, state):
    config = pmoe.Config(**SIZES)
    obs, best = jax.random.normal(jax.random.key(1), (6, 4)), jnp.array([0, 1, 2, 0, 0, 1])
    grads = jax.grad(lambda params: gate_loss(pmoe.gate(config, env, params, obs), best).mean())(state.params)
    head = grads["actor"]["params"].pop("head")
    assert np.abs(head["kernel"][:, :3]).max() > 1e-4
    for rest in (grads, head["kernel"][:, 3:], head["bias"][3:]):
        np.testing.assert_array_equal(ravel_pytree(rest)[0], 0.0)
    pi = ppo.networks(config, env)[0].apply(state.params["actor"], obs)
    np.testing.assert_array_equal(pmoe.gate(config, env, state.params, obs), jax.nn.softmax(pi.logits))


@pytest.mark.parametrize("changed", [{"gate_coef": 0.0}, {"gate_warmup": 1.0}, {}], ids=["none", "later", "gate"])
def test_without_the_gate_it_is_ppo(env, state, changed):
    """One norm for all gradients, so nothing is clipped here."""
    config = pmoe.Config(**SIZES | {"max_grad_norm": 1e9, "gate_warmup": 0.0} | changed)
    plain = ppo.Config(**SIZES, max_grad_norm=1e9)
    found, metrics = jax.jit(pmoe.update)(config, env, state)
    own = {name: state.params[name] for name in ("actor", "critic")}
    begun = replace(jax.jit(ppo.init)(plain, env, jax.random.key(0)), params=own, key=state.key)
    expected, _ = jax.jit(ppo.update)(plain, env, begun)
    close = lambda name: np.allclose(*(ravel_pytree(s.params[name])[0] for s in (found, expected)), atol=1e-6)
    assert close("critic")
    assert close("actor") == bool(changed)
    assert metrics["gate_loss"] > 0
    assert not np.allclose(ravel_pytree(found.params["q"])[0], ravel_pytree(state.params["q"])[0])


def test_resume_is_bitwise(env):
    config = pmoe.Config(**SIZES)
    whole, _ = rlx.train(pmoe, config, env, jax.random.key(0))
    half, _ = rlx.resume(pmoe, config, env, pmoe.init(config, env, jax.random.key(0)), 1)
    again, _ = rlx.resume(pmoe, config, env, half, 2)
    assert whole.num_updates == again.num_updates == 3
    np.testing.assert_array_equal(*(ravel_pytree(s.params)[0] for s in (whole, again)))
