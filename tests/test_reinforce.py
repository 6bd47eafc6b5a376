"""REINFORCE and its steps: derivatives of returns by enumeration, momentum on a quadratic, one update by hand."""

import dataclasses
import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import rlx
from rlx import replace
from rlx.algos import reinforce as module
from rlx.clipping import global_norm
from rlx.pytree import is_static
from rlx.trajectories import corrected, reweighted_returns

EXACT = True  # bits are compared

GAMMA = 0.8
REWARD = np.random.default_rng(0).normal(size=(3, 2, 2))  # of a step, the state and the action


def enumerated():
    """All episodes of three steps in which an action is the next state: states, actions, rewards, `[T, N]` each."""
    actions = np.array(list(itertools.product((0, 1), repeat=3))).T
    states = np.concatenate([np.zeros((1, 8), int), actions[:-1]])
    return states, actions, REWARD[np.arange(3)[:, None], states, actions]


def log_probs(logits, states, actions):
    """Of a policy with free logits `[3, 2, 2]`."""
    time = np.arange(3)[:, None]
    return jax.nn.log_softmax(logits)[time, states, actions]


def expected_return(logits):
    states, actions, reward = enumerated()
    chance = jnp.exp(log_probs(logits, states, actions).sum(0))
    return (chance * (GAMMA ** np.arange(3)[:, None] * reward).sum(0)).sum()


def estimated(logits, acting):
    """The expectation, over the episodes of one policy, of what another is estimated to return."""
    states, actions, reward = enumerated()
    mu = log_probs(acting, states, actions)
    found = reweighted_returns(
        log_probs(logits, states, actions) - mu, jnp.asarray(reward), jnp.ones((3, 8), bool), GAMMA
    )
    return (jnp.exp(mu.sum(0)) * found).sum()


def test_returns_and_their_derivatives_are_unbiased():
    with jax.enable_x64(True):
        logits, other = jnp.asarray(np.random.default_rng(1).normal(size=(2, 3, 2, 2)))
        close = partial(np.testing.assert_allclose, rtol=1e-10, atol=1e-12)
        close(estimated(logits, logits), expected_return(logits))
        close(estimated(other, logits), expected_return(other))  # of another policy, too
        of_estimate = partial(estimated, acting=logits)
        close(jax.grad(of_estimate)(logits), jax.grad(expected_return)(logits))
        close(jax.hessian(of_estimate)(logits), jax.hessian(expected_return)(logits))
        product = jax.jvp(jax.grad(of_estimate), (logits,), (other,))[1]
        close(product, np.tensordot(jax.hessian(expected_return)(logits), other, 3))


def test_returns_are_those_of_a_loop():
    rng = np.random.default_rng(2)
    log_ratio, reward = 0.3 * rng.normal(size=(6, 4)), rng.normal(size=(6, 4))
    length = np.array([6, 1, 3, 4])
    alive = np.arange(6)[:, None] < length
    wanted = np.zeros(4)
    for n in range(4):
        ratio = 1.0
        for t in range(length[n]):
            ratio *= np.exp(log_ratio[t, n])
            wanted[n] += 0.9**t * ratio * reward[t, n]
    found = reweighted_returns(*map(jnp.asarray, (log_ratio, reward, alive)), 0.9)
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    garbage = jnp.where(alive, log_ratio, 1e9)  # what is after an end is not looked at
    np.testing.assert_allclose(reweighted_returns(garbage, jnp.asarray(reward), jnp.asarray(alive), 0.9), wanted, 1e-5)


def test_corrected_momentum_is_exact_on_a_quadratic():
    a = np.random.default_rng(3).normal(size=(5, 5))
    a = a @ a.T
    x = before = np.ones(5)
    direction = a @ x
    for _ in range(10):
        direction = np.asarray(corrected(direction, a @ (x - before), a @ x, 0.1), np.float64)
        np.testing.assert_allclose(direction, a @ x, rtol=1e-9)
        x, before = x - 0.05 * direction, x
    np.testing.assert_array_equal(corrected(direction, 7.0, a[0], 1.0), a[0])


SIZES = {"num_envs": 4, "num_steps": 16, "hidden_sizes": (8,), "total_steps": 4 * 64}


@pytest.fixture(scope="module")
def env():
    return rlx.envs.make("CartPole-v1", max_steps=16)


def of(variant, **changes):
    target = {"target_return": 40.0} if variant == "polyak" else {}
    return module.Config(**SIZES | module.VARIANTS[variant] | target | changes)


def first(config, env):
    state = jax.jit(module.init)(config, env, jax.random.key(0))
    return state, *jax.jit(module.update)(config, env, state)


def test_a_step_is_as_long_as_the_rate_and_along_the_gradient(env):
    state, after, metrics = first(of("plain"), env)
    moved = jax.tree.map(jnp.subtract, after.params, state.params)
    np.testing.assert_allclose(global_norm(moved), 0.1, rtol=1e-4)
    np.testing.assert_allclose(metrics["step_size"], 0.1, rtol=1e-4)
    traj, alive = module.whole_episodes(of("plain"), env, state.params, jax.random.split(state.key, 3)[1])
    grads = jax.grad(module.loss, has_aux=True)(state.params, of("plain"), env, traj, alive)[0]
    flat, wanted = ravel_pytree(moved)[0], -0.1 * ravel_pytree(grads)[0] / global_norm(grads)
    np.testing.assert_allclose(flat, wanted, atol=1e-6)
    # The same by the equation of Williams: each score times what follows.
    reward = np.where(alive, traj.reward, 0.0) * 0.99 ** np.arange(16)[:, None]
    to_go = np.cumsum(reward[::-1], axis=0)[::-1]
    pi = lambda params: module.networks(of("plain"), env).apply(params["actor"], traj.obs)
    score = lambda params: -(jnp.where(alive, pi(params).log_prob(traj.recorded.action), 0) * to_go).sum() / 4
    near = partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-4)
    jax.tree.map(near, grads, jax.grad(score)(state.params))
    np.testing.assert_allclose(metrics["discounted_return"], reward.sum(0).mean(), rtol=1e-5)


def test_the_first_step_has_no_momentum_and_later_ones_do(env):
    plain, others = of("plain"), [of("igt"), of("harpg")]
    near = partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-7)
    jax.tree.map(near, first(of("harpg"), env)[1].params, first(plain, env)[1].params)
    _, after, metrics = first(of("harpg"), env)  # whose momentum begins as the gradient, not as a share of it
    np.testing.assert_allclose(global_norm(after.opt_state.direction), metrics["grad_norm"], rtol=1e-5)
    # Ahead, a step goes 1 + c as far.
    state, ahead, _ = first(of("igt"), env)
    np.testing.assert_allclose(global_norm(jax.tree.map(jnp.subtract, ahead.params, state.params)), 0.5, rtol=1e-4)
    whole = [rlx.train(module, config, env, jax.random.key(0))[0].params for config in (plain, *others)]
    for one, other in itertools.combinations(whole, 2):
        assert np.abs(ravel_pytree(one)[0] - ravel_pytree(other)[0]).max() > 1e-3


def test_the_hessian_is_that_of_the_loss_on_its_own_episodes(env):
    config = of("harpg")
    state = rlx.train(module, config, env, jax.random.key(0))[0]
    key = jax.random.key(5)
    share_key, play_key = jax.random.split(key)
    share = jax.random.uniform(share_key)
    between = jax.tree.map(lambda new, old: share * new + (1 - share) * old, state.params, state.before)
    flat, unravel = ravel_pytree(between)
    traj, alive = module.whole_episodes(config, env, between, play_key)
    grad = jax.grad(lambda x: module.loss(unravel(x), config, env, traj, alive)[0])
    last = ravel_pytree(state.params)[0] - ravel_pytree(state.before)[0]
    width = 0.05  # of a central difference, which rounds at about 1e-3 of the product
    wanted = (grad(flat + width * last) - grad(flat - width * last)) / (2 * width)
    found = ravel_pytree(module.hessian(config, env, state, key))[0]
    np.testing.assert_allclose(found, wanted, atol=0.02 * float(jnp.abs(wanted).max()))
    assert jnp.abs(found).max() > 0


def test_polyaks_step_is_its_equation_and_stops_at_its_target(env):
    state, after, metrics = first(of("polyak", learning_rate=1e9), env)
    moved = jax.tree.map(jnp.subtract, after.params, state.params)
    wanted = (40.0 - metrics["discounted_return"]) / metrics["grad_norm"]  # of the length, gamma |g|
    np.testing.assert_allclose(global_norm(moved), wanted, rtol=1e-4)
    state, after, _ = first(of("polyak", target_return=1.0), env)
    jax.tree.map(np.testing.assert_array_equal, after.params, state.params)
    np.testing.assert_allclose(first(of("polyak"), env)[2]["step_size"], 0.01 * metrics["grad_norm"], rtol=1e-4)


# Another value for every traced field, and the settings with which it matters.
CHANGED = {
    "learning_rate": (0.2, "plain"),
    "anneal_learning_rate": (False, "plain"),
    "gamma": (0.5, "plain"),
    "eta": (0.9, "harpg"),
    "target_return": (10.0, "polyak"),
    "polyak_scale": (1e5, "polyak"),
}
TRACED = [field.name for field in dataclasses.fields(module.Config) if not is_static(field)]


@pytest.mark.parametrize("variant", ["plain", "harpg", "polyak"])
def test_every_traced_config_field_changes_the_weights_and_one_trace_serves_all(env, variant):
    traces = []

    @jax.jit
    def train(config, env, key):
        traces.append(1)
        return ravel_pytree(rlx.train(module, config, env, key)[0].params)[0]

    assert set(TRACED) == set(CHANGED)
    base = of(variant, learning_rate=0.3) if variant == "polyak" else of(variant)
    before = train(base, env, jax.random.key(0))
    for name, (value, where) in CHANGED.items():
        if where != variant:
            continue
        after = train(replace(base, **{name: value}), env, jax.random.key(0))
        assert np.isfinite(after).all()
        assert np.abs(after - before).max() > 1e-4, name
    assert len(traces) == 1


@pytest.mark.parametrize("variant", list(module.VARIANTS))
def test_resume_is_bitwise_and_a_lane_is_the_single_run(env, variant):
    config = of(variant)
    whole, _ = rlx.train(module, config, env, jax.random.key(0))
    state = jax.jit(module.init)(config, env, jax.random.key(0))
    for num in (1, 3) if config.momentum != "hessian" else (1, 1):
        state, _ = rlx.resume(module, config, env, state, num_updates=num)
    jax.tree.map(np.testing.assert_array_equal, state.params, whole.params)
    keys = jax.vmap(jax.random.key)(jnp.arange(2))
    lanes, _ = jax.vmap(partial(rlx.train, module), (None, None, 0))(config, env, keys)
    near = partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-3)
    jax.tree.map(lambda x, y: near(x[0], y), lanes.params, whole.params)


def test_settings_that_cannot_work_are_refused(env):
    with pytest.raises(ValueError, match="give target_return"):
        module.check(of("polyak", target_return=float("inf")), env)
    with pytest.raises(ValueError, match="momentum = 'hessian'"):
        module.check(of("polyak", momentum="hessian"), env)
    with pytest.raises(ValueError, match="num_steps"):
        module.check(of("plain", num_steps=8), env)


@pytest.mark.parametrize("env_name", ["probe/ObservationAction", "probe/ContinuousAction"])
@pytest.mark.parametrize("variant", ["plain", "igt", "harpg"])
def test_the_policy_sees_the_observation(env_name, variant):
    """Episodes of one step, whose best action depends on what is seen."""
    sizes = {"num_envs": 64, "num_steps": 1, "hidden_sizes": (16,), "learning_rate": 0.05, "eta": 0.5}
    config = module.Config(**module.VARIANTS[variant] | sizes | {"total_steps": 400 * 64})
    probe = rlx.envs.make(env_name)
    state, _ = rlx.train(module, config, probe, jax.random.key(0))
    pi = module.networks(config, probe).apply(state.params["actor"], jnp.array([[-1.0], [1.0]]))
    if env_name == "probe/ObservationAction":
        assert (jnp.exp(pi.log_prob(jnp.array([0, 1]))) > 0.9).all()
    else:  # the optimum is obs / 2 in a space of [-2, 2], which is obs / 4 in unit coordinates
        np.testing.assert_allclose(pi.mode()[:, 0], [-0.25, 0.25], atol=0.15)


@pytest.mark.more
def test_cartpole_is_learned():
    env = rlx.envs.make("CartPole-v1")
    config = module.Config(total_steps=800_000, num_envs=8, hidden_sizes=(32,))
    run = lambda key: rlx.evaluate(module, config, env, rlx.train(module, config, env, key)[0], key).returns.mean()
    found = np.asarray(jax.jit(jax.vmap(run))(jax.vmap(jax.random.key)(jnp.arange(4))))
    assert found.mean() > 300, found  # 20 untrained
