"""Frozen policies that are steered by their noise: moments, limits, and a one-step task with a known best."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rlx
from rlx import replace
from rlx.algos import dppo, fpo, ppo, sac
from rlx.diffusion import cosine_betas
from rlx.envs import check
from rlx.steering import spread, steered, steering

SIZES = {"num_envs": 4, "num_steps": 16, "hidden_sizes": (16,)}
CONFIGS = {
    fpo: fpo.Config(**SIZES, samples_per_action=2, flow_steps=5, action_noise=0.0),
    dppo: dppo.Config(**SIZES, denoising_steps=4, trained_steps=4, action_bound=2.0),
}
both = pytest.mark.parametrize("algorithm", [fpo, dppo], ids=["fpo", "dppo"])


@pytest.fixture(scope="module")
def pendulum():
    return rlx.envs.make("Pendulum-v1", max_steps=20)


def state_of(algorithm, env, config=None):
    """A State whose actor's weights are all of order 1."""
    state = jax.jit(partial(algorithm.init, config or CONFIGS[algorithm], env))(jax.random.key(0))
    moved = lambda x: x + 0.3 * jax.random.normal(jax.random.key(x.size), x.shape)
    return replace(state, params=state.params | {"actor": jax.tree.map(moved, state.params["actor"])})


@pytest.mark.parametrize("algorithm", [fpo], ids=["fpo"])
def test_normal_noise_gives_the_actions_of_the_policy(algorithm, pendulum):
    config, state = CONFIGS[algorithm], state_of(algorithm, pendulum)
    obs = jnp.tile(jnp.array([[0.6, -0.8, 0.5]]), (4000, 1))
    act = jax.jit(partial(algorithm.act, config, pendulum, state))
    theirs = act(obs, jax.random.key(1))[0]
    policy = steering(pendulum, algorithm, config, state)
    noise = jax.random.normal(jax.random.key(2), (4000, 1))
    ours = jax.jit(jax.vmap(policy))(obs, noise)
    for moment in (np.mean, np.std):
        np.testing.assert_allclose(moment(ours), moment(theirs), atol=0.05)
    np.testing.assert_allclose(spread(policy, obs[:1], jax.random.key(3), 4000)[0], np.std(theirs), atol=0.05)


def test_a_chain_begins_at_the_noise_and_ends_at_what_ddim_makes_of_it(pendulum):
    config, state = CONFIGS[dppo], state_of(dppo, pendulum)
    policy, obs = steering(pendulum, dppo, config, state), jnp.array([0.6, -0.8, 0.5])
    actor = dppo.networks(config, pendulum)[0]
    betas = cosine_betas(4)
    products = np.cumprod(1.0 - betas)
    x = np.array([[0.7]])
    for t in (3, 2, 1, 0):
        noise = np.asarray(actor.apply(state.params["actor"], obs[None], jnp.float32(x), jnp.int32(t)), np.float64)
        start = np.clip((x - np.sqrt(1 - products[t]) * noise) / np.sqrt(products[t]), -2.0, 2.0)
        implied = (x - np.sqrt(products[t]) * start) / np.sqrt(1 - products[t])
        after = products[t - 1] if t else 1.0
        x = np.sqrt(after) * start + np.sqrt(1 - after) * implied
    np.testing.assert_allclose(policy(obs, jnp.array([0.7])), np.clip(2.0 * x[0], -2.0, 2.0), rtol=1e-4)


def test_steps_that_are_not_trained_are_those_of_the_first_policy(pendulum):
    config = replace(CONFIGS[dppo], trained_steps=2)
    state, obs = state_of(dppo, pendulum, config), jnp.array([0.6, -0.8, 0.5])
    noise = jnp.linspace(-2.0, 2.0, 32)[:, None]
    at = lambda config, state: jax.vmap(partial(steering(pendulum, dppo, config, state), obs))(noise)
    alone = at(replace(config, trained_steps=4), state)
    assert abs(at(config, state) - alone).max() > 1e-2
    same = replace(state, pretrained=state.params["actor"])
    np.testing.assert_allclose(at(config, same), alone, rtol=1e-5, atol=1e-6)


@pytest.mark.more
@both
def test_steering_keeps_the_contract(algorithm, pendulum):
    check(steered(pendulum, algorithm, CONFIGS[algorithm], state_of(algorithm, pendulum)), num_steps=32)


@both
def test_a_small_bound_is_the_action_of_no_noise(algorithm, pendulum):
    config, state = CONFIGS[algorithm], state_of(algorithm, pendulum)
    env = steered(pendulum, algorithm, config, state, bound=1e-6)
    start = env.reset(jax.random.key(0))
    policy = steering(pendulum, algorithm, config, state)
    for noise in (-1e-6, 1e-6):
        stepped = env.advance(jax.random.key(1), start, jnp.array([noise]))[0]
        inner = pendulum.advance(jax.random.key(1), start.state, policy(start.obs, jnp.zeros(1)))[0]
        np.testing.assert_allclose(stepped.obs, inner.obs, rtol=1e-4, atol=1e-5)


def test_sac_learns_the_noise_and_leaves_the_policy_as_it_is():
    """One step, whose best action is obs / 2: the policy is obs / 2 + w / 2 - 0.3, so the best noise is 0.6."""
    env = rlx.envs.make("probe/ContinuousAction")
    config = fpo.Config(**SIZES, flow_steps=1)
    state = jax.jit(partial(fpo.init, config, env))(jax.random.key(0))
    policy = steering(env, fpo, config, state)
    like = steered(env, fpo, config, state, bound=1.0)

    def offset(obs, noise, key):
        return obs / 2 + noise / 2 - 0.3

    by_hand = replace(like, params=replace(like.params, decode=jax.tree_util.Partial(offset)))
    of_sac = sac.Config(
        total_steps=1_500,
        warmup_steps=200,
        num_envs=4,
        num_steps=4,
        capacity=2_000,
        batch_size=64,
        hidden_sizes=(32,),
        learning_rate=3e-3,
        alpha_learning_rate=3e-3,
        initial_alpha=0.05,
        target_entropy=-3.0,
    )
    learned, _ = rlx.train(sac, of_sac, by_hand, jax.random.key(0))
    found = rlx.evaluate(sac, of_sac, by_hand, learned, jax.random.key(1), 32)
    assert found.returns.mean() > 0.97
    trained, _ = rlx.train(sac, replace(of_sac, total_steps=300), like, jax.random.key(0))
    assert trained.num_updates > 0
    jax.tree.map(np.testing.assert_array_equal, policy.params, like.params.decode.params)


def test_what_has_no_noise_is_refused(pendulum):
    config = ppo.Config(**SIZES)
    state = jax.jit(partial(ppo.init, config, pendulum))(jax.random.key(0))
    with pytest.raises(ValueError, match="has no noise to be steered by"):
        steered(pendulum, ppo, config, state)
    with pytest.raises(ValueError, match="bound = 0"):
        steered(pendulum, fpo, CONFIGS[fpo], state_of(fpo, pendulum), bound=0)
