"""Discrete SAC: analytic values of the probes, its equations and where they are least, one program for all settings."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from jax.flatten_util import ravel_pytree

import rlx
from rlx import Env, replace, stack
from rlx.algos import sac_discrete as module
from rlx.envs.tasks.probes import Action, Discount, Endless, Mixed, Observation, ObservationAction
from rlx.pytree import is_static
from rlx.replay import take
from rlx.spaces import Discrete
from rlx.train import advance

OBSERVATION, DISCOUNT, ENDLESS, ACTION, BOTH = range(5)
mixed = Mixed((Observation, Discount, Endless, Action, ObservationAction, ObservationAction), Discrete(2))
env = Env(mixed, mixed.default_params, max_steps=3)


@pytest.fixture(scope="module")
def sac():
    return module


@pytest.fixture(scope="module")
def small(sac):
    """A config of three updates, in which the buffer comes round: 32 random transitions, 32 an update, room for 64."""
    sizes = {"num_envs": 4, "num_steps": 8, "batch_size": 16, "capacity": 64, "hidden_sizes": (16,)}
    return sac.Config(total_steps=128, warmup_steps=32, utd_ratio=0.25, learning_rate=1e-2, tau=0.1, **sizes)


@pytest.fixture(scope="module")
def init(sac):
    return jax.jit(sac.init)


@pytest.fixture(scope="module")
def trained(sac, small):
    return rlx.train(sac, small, env, jax.random.key(0))


LONG = {"total_steps": 200 * 64 + 256, "warmup_steps": 256, "num_envs": 16, "num_steps": 4, "utd_ratio": 0.5}


@pytest.fixture(scope="module")
def learned(sac):
    """Runs on the probes with a fixed temperature and with a tuned one: their states and metrics."""
    config = sac.Config(
        **LONG, batch_size=128, capacity=2048, learning_rate=1e-2, tau=0.05, gamma=0.9, hidden_sizes=(32, 32)
    )
    fixed = replace(config, initial_alpha=0.2, alpha_learning_rate=0.0)
    configs = [fixed, replace(config, initial_alpha=0.1, alpha_learning_rate=1e-2, target_entropy=0.8)]
    train = jax.vmap(partial(rlx.train, sac), in_axes=(0, None, None))
    states, metrics = train(stack(configs), env, jax.random.key(0))
    return config, [jax.tree.map(lambda x, i=i: x[i], (states, metrics)) for i in range(2)]


def values(config, state, kind, obs):
    """Values of the critics `[E, A]` where a probe shows `obs`, and the probabilities of the policy `[A]`."""
    actor, critic = module.networks(config, env)
    q = jax.vmap(critic.apply, in_axes=(0, None))(state.params["critic"], mixed.obs(kind, obs))
    return q, jax.nn.softmax(actor.apply(state.params["actor"], mixed.obs(kind, obs)).logits)


# Of values of order 1, after 6400 gradient steps at a constant rate of 0.01.
CONVERGED = 0.1
UNIFORM = np.log(2)


@pytest.mark.more
def test_critics_bootstrap_from_the_true_successor_where_a_time_limit_cuts(learned):
    config, ((state, _), _) = learned
    expected = (1 + 0.9 * 0.2 * UNIFORM) / (1 - 0.9)
    np.testing.assert_allclose(values(config, state, ENDLESS, 0.0)[0], expected, rtol=0.05)


def test_a_tuned_temperature_finds_the_target_entropy(learned):
    _, ((_, fixed), (_, tuned)) = learned
    np.testing.assert_allclose(fixed["alpha"], 0.2, rtol=1e-6)
    # Averages over the last 50 updates, of batches that mix the probes.
    np.testing.assert_allclose(np.mean(tuned["entropy"][-50:]), 0.8 * UNIFORM, atol=0.04)
    assert np.mean(fixed["entropy"][-50:]) < 0.8 * UNIFORM - 0.06


@pytest.fixture(scope="module")
def problem(sac, small, trained):
    """A state with weights of order 1, and a batch of its buffer with terminal steps in it."""
    state = trained[0]
    state = replace(state, params=moved(state.params), target_params=moved(state.target_params))
    buffer = state.replay
    batch = take(buffer, (buffer.position - 1 - jnp.arange(64)) % 96)
    assert 0 < batch.terminated.sum() < 64
    return state, batch


def moved(params):
    return jax.tree.map(lambda x: x + 0.3 * jnp.sin(jnp.arange(x.size, dtype=jnp.float32)).reshape(x.shape), params)


def numbers(config, state, batch):
    """The losses in float64, from what the networks say; sums over the actions are loops."""
    actor, critic = module.networks(config, env)
    q = lambda params, obs: np.asarray(jax.vmap(critic.apply, in_axes=(0, None))(params, obs), np.float64)
    log_p = lambda obs: scipy.special.log_softmax(
        np.asarray(actor.apply(state.params["actor"], obs).logits, np.float64), axis=-1
    )
    alpha = np.exp(float(state.params["log_alpha"]))
    next_q, next_log_p = q(state.target_params, batch.next_obs).min(0), log_p(batch.next_obs)
    next_value = sum(np.exp(next_log_p[:, a]) * (next_q[:, a] - alpha * next_log_p[:, a]) for a in range(2))
    going_on = 1.0 - np.asarray(batch.terminated)
    target = config.reward_scale * np.asarray(batch.reward) + config.gamma * going_on * next_value
    now, value = log_p(batch.obs), q(state.params["critic"], batch.obs)
    taken = value[:, np.arange(64), batch.action]
    entropy = -sum(np.exp(now[:, a]) * now[:, a] for a in range(2))
    return {
        "critic_loss": 0.5 * ((taken - target) ** 2).sum(0).mean(),
        "actor_loss": sum(np.exp(now[:, a]) * (alpha * now[:, a] - value.min(0)[:, a]) for a in range(2)).mean(),
        "alpha_loss": alpha * (entropy - config.target_entropy * np.log(2)).mean(),
        "entropy": entropy.mean(),
        "alpha": alpha,
        "value": taken.mean(),
    }


@pytest.mark.more
def test_the_losses_are_their_equations(sac, small, problem):
    state, batch = problem
    config = replace(small, reward_scale=3.0, gamma=0.8, target_entropy=0.3)
    expected = numbers(config, state, batch)
    total, (entropy, parts) = sac.loss(state.params, state.params, state.target_params, config, env, batch)
    # Means of 64 float32 numbers of order 1 to 10.
    np.testing.assert_allclose(total, expected["critic_loss"] + expected["actor_loss"], rtol=1e-4)
    alpha_loss = sac.alpha_loss(state.params["log_alpha"], config, env, batch.obs, entropy)
    np.testing.assert_allclose(alpha_loss, expected["alpha_loss"], rtol=1e-4, atol=1e-5)
    for name, part in parts.items():
        np.testing.assert_allclose(part, expected[name], rtol=1e-3, atol=1e-5, err_msg=name)
    assert parts.keys() == expected.keys() - {"alpha_loss"}


def test_the_best_policy_is_the_softmax_of_the_values(sac, small, problem):
    """There the gradient of the actor's loss is 0 and the loss is minus the mean of alpha logsumexp(Q / alpha)."""
    state, batch = problem
    one = jax.tree.map(lambda x: x[:1], batch)
    _, critic = module.networks(small, env)
    q = jax.vmap(critic.apply, in_axes=(0, None))(state.params["critic"], one.obs).min(0)[0]
    alpha = jnp.exp(state.params["log_alpha"])
    # A policy without weights: the biases of its last layer are the logits.
    actor = jax.tree.map(jnp.zeros_like, state.params["actor"])
    actor["params"]["head"]["bias"] = q / alpha
    loss, grads = jax.value_and_grad(
        lambda p: sac.actor_loss(state.params | {"actor": p}, state.params, small, env, one)[0]
    )(actor)
    np.testing.assert_allclose(loss, -alpha * jax.nn.logsumexp(q / alpha), rtol=1e-5)
    assert np.abs(ravel_pytree(grads)[0]).max() < 1e-5
    actor["params"]["head"]["bias"] = q / alpha + jnp.array([0.5, -0.5])
    assert sac.actor_loss(state.params | {"actor": actor}, state.params, small, env, one)[0] > loss + 1e-3


def test_no_loss_has_a_gradient_for_the_parameters_of_another(sac, small, problem):
    state, batch = problem
    losses = {
        "critic": lambda params: sac.critic_loss(params, state.params, state.target_params, small, env, batch)[0],
        "actor": lambda params: sac.actor_loss(params, state.params, small, env, batch)[0],
    }
    for name, loss in losses.items():
        norms = {k: jnp.linalg.norm(ravel_pytree(v)[0]) for k, v in jax.grad(loss)(state.params).items()}
        assert norms.pop(name) > 1e-3
        assert norms == dict.fromkeys(norms, 0.0)


def test_losses_are_finite_where_probabilities_vanish(sac, small, problem):
    state, batch = problem
    actor = jax.tree.map(jnp.zeros_like, state.params["actor"])
    actor["params"]["head"]["bias"] = jnp.array([1e4, -1e4])
    loss = lambda params: sac.loss(params, params, state.target_params, small, env, batch)[0]
    total, grads = jax.value_and_grad(loss)(state.params | {"actor": actor})
    assert np.isfinite(total)
    assert np.isfinite(ravel_pytree(grads)[0]).all()


def test_warm_up_takes_every_action_and_updates_keep_what_was_played(small, init, trained):
    state = init(small, env, jax.random.key(0))
    counts = np.bincount(state.replay.data.action[:32], minlength=2)
    assert counts.min() > 4
    assert state.replay.size == 32
    data = trained[0].replay.data
    played = np.asarray(data.obs[:, ACTION] == 1)  # Action pays 1 for action 1, else -1
    assert played.any()
    np.testing.assert_array_equal(data.reward[played], 2.0 * data.action[played] - 1)


def test_a_run_in_pieces_is_bitwise_the_same(sac, small, init):
    chunk = jax.jit(advance, static_argnames=("algorithm", "length"))
    start = init(small, env, jax.random.key(0))
    whole, _ = chunk(sac, small, env, start, 0, 3, 3)
    state, _ = chunk(sac, small, env, start, 0, 1, 3)
    state, _ = chunk(sac, small, env, state, 1, 2, 3)
    bits = lambda x: jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(bits(x), bits(y)), state, whole)


# Another value for every traced field of the config; static ones are those of sac.
CHANGED = {
    "learning_rate": 3e-2,
    "alpha_learning_rate": 3e-2,
    "initial_alpha": 0.5,
    "target_entropy": 0.1,
    "gamma": 0.5,
    "tau": 0.5,
    "reward_scale": 3.0,
}
TRACED = [field.name for field in dataclasses.fields(module.Config) if not is_static(field)]


@pytest.fixture(scope="module")
def sweep(sac, small):
    """Every traced field changed in a lane of its own, and nothing in the last; all with the same key."""
    configs = [replace(small, **{name: CHANGED[name]}) for name in TRACED]
    train = jax.vmap(partial(rlx.train, sac), in_axes=(0, None, None))
    return train(stack([*configs, small]), env, jax.random.key(0))


@pytest.mark.parametrize("name", TRACED)
def test_every_traced_config_field_changes_the_weights(small, sweep, name):
    assert getattr(small, name) != CHANGED[name]
    weights = np.concatenate([np.reshape(x, (len(TRACED) + 1, -1)) for x in jax.tree.leaves(sweep[0].params)], axis=1)
    # Well above rounding: a field that only reorders a sum changes nothing.
    assert np.abs(weights[TRACED.index(name)] - weights[-1]).max() > 1e-4


def test_static_fields_are_those_of_sac_but_for_what_is_beyond_the_paper(sac):
    from rlx.algos import sac as continuous

    of = lambda module: {f.name: f.default for f in dataclasses.fields(module.Config) if is_static(f)}
    assert of(sac) | {"n_step": 1, "resets": (), "residual": ""} == of(continuous)


def test_a_sweep_equals_its_single_runs(sweep, trained):
    lane = jax.tree.map(lambda x: x[-1], (sweep[0].params, sweep[0].replay.data, sweep[1]))
    # A batched matrix product sums in another order: 1e-7 an operation, which 24 steps of Adam enlarge.
    close = lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-4)
    jax.tree.map(close, lane, (trained[0].params, trained[0].replay.data, trained[1]))


def test_no_key_is_used_twice(sac, small):
    with jax.debug_key_reuse(True):
        state, metrics = rlx.train(sac, replace(small, gamma=0.98), env, jax.random.key(0))
    assert state.num_updates == 3
    assert np.isfinite(metrics["critic_loss"]).all()


def test_continuous_actions_are_refused(sac, small):
    with pytest.raises(ValueError, match=r"this policy needs discrete actions; use .* or sac"):
        jax.eval_shape(partial(rlx.train, sac), small, rlx.envs.make("probe/ContinuousAction"), jax.random.key(0))
