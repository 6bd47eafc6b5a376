"""Learning from data: the losses are their equations, limits of one method are another, and nothing is stepped."""

import dataclasses
import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

import rlx
from rlx import Env, cli, replace
from rlx.algorithm_check import check_algorithm
from rlx.algos import cql, iql, rlpd, sac, td3_bc
from rlx.data.demonstrations import Demonstrations, save
from rlx.data.steps import Columns, columns, drawn
from rlx.envs.tasks.probes import ContinuousAction
from rlx.spaces import Box, Dict, Discrete
from rlx.sweeps.saved import load_sweep
from rlx.values import returns_to_go

NUM = 24  # steps of data


class Still:
    """Spaces and starts, and a step that nothing may take when it is `closed`."""

    default_params = ()

    def __init__(self, actions, num_obs=3, closed=False):
        self.actions, self.num_obs, self.closed = actions, num_obs, closed

    def observation_space(self, params):
        return Box(-2.0, 2.0, (self.num_obs,))

    def action_space(self, params):
        return self.actions

    def reset(self, key, params):
        obs = jax.random.normal(key, (self.num_obs,))
        return obs, obs

    def step(self, key, state, action, params):
        assert not self.closed, "the environment was stepped"
        return state, state, jnp.float32(0), jnp.array(False), jnp.array(False), {}


def still(*args):
    env = Still(*args)
    return Env(env, env.default_params, max_steps=4)


BOX, CHOICE = still(Box(-1.0, 1.0, (2,))), still(Discrete(3))
SMALL = {"total_steps": 4, "gradient_steps": 2, "batch_size": 4, "hidden_sizes": (8,)}
CASES = [(iql, BOX), (iql, CHOICE), (td3_bc, BOX), (cql, BOX), (cql, CHOICE)]
NAMES = [f"{algorithm.__name__[10:]}-{type(env.action_space).__name__}" for algorithm, env in CASES]


def data_of(env):
    found = drawn(env, jax.random.key(3), NUM)
    return replace(found, action=0.9 * found.action) if isinstance(env.action_space, Box) else found


def moved(tree, by=0.3):
    """Weights of order 1, and other ones for other `by`."""
    wave = lambda x: x + by * jnp.sin(jnp.arange(x.size, dtype=jnp.float32) + by).reshape(x.shape)
    return jax.tree.map(wave, tree)


def state_of(algorithm, config, env):
    state = jax.jit(partial(algorithm.init, config, env))(jax.random.key(1))
    return replace(state, params=moved(state.params), target_params=moved(state.target_params, 0.2))


def double(x):
    return np.asarray(x, np.float64)


def q_of(module, config, env, params, obs, action):
    _, critic = module.networks(config, env)
    return double(jax.vmap(critic.apply, in_axes=(0, None, None))(params, obs, action))


@pytest.mark.parametrize(("algorithm", "env"), CASES, ids=NAMES)
def test_an_update_learns_without_a_step_of_the_environment(algorithm, env):
    config, data = algorithm.Config(**SMALL), data_of(env)
    env = still(env.action_space, 3, True)
    with pytest.raises(AssertionError, match="was stepped"):
        env.reset(jax.random.key(0))  # traces a step
    state, metrics = rlx.train(algorithm, config, env, jax.random.key(0), data=data)
    assert int(state.num_updates) == 2
    assert (metrics["num_episodes"] == 0).all()
    start = algorithm.init(config, env, jax.random.key(0))
    changed = jax.tree.map(lambda a, b: bool((a != b).any()), start.params, state.params)
    assert all(any(jax.tree.leaves(part)) for name, part in changed.items() if name != "log_alpha")
    assert all(jnp.isfinite(x).all() for x in jax.tree.leaves(state.params))


LONG = [pytest.param(*case, marks=[pytest.mark.more] * (i != 1), id=NAMES[i]) for i, case in enumerate(CASES)]


@pytest.mark.parametrize(("algorithm", "env"), LONG)
def test_the_contract_is_kept(algorithm, env):
    assert len(check_algorithm(algorithm, env, algorithm.Config(**SMALL))) == 10


def test_an_algorithm_that_learns_from_data_says_so_without_any():
    with pytest.raises(ValueError, match="iql learns from data: give data="):
        rlx.train(iql, iql.Config(**SMALL), BOX, jax.random.key(0))


def test_lanes_share_the_data_and_are_the_runs_alone():
    keys, data = jax.random.split(jax.random.key(0), 2), data_of(BOX)
    train = lambda key: rlx.train(iql, iql.Config(**SMALL), BOX, key, data=data)[0].params
    both = jax.vmap(train)(keys)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a[1], b, rtol=1e-4, atol=1e-5), both, train(keys[1]))


# Implicit Q-learning.


@pytest.mark.parametrize("env", [BOX, CHOICE], ids=["Box", "Discrete"])
def test_the_losses_of_iql_are_their_equations(env):
    config = iql.Config(**SMALL, expectile=0.8, beta=2.0, largest_weight=3.0, gamma=0.9, reward_scale=2.0)
    state, batch = state_of(iql, config, env), data_of(env)
    params = state.params
    _, metrics = iql.loss(params, params, state.target_params, config, env, batch, jax.random.key(0))
    action = iql.encoded(env, batch.action)
    _, critic = iql.networks(config, env)
    value = lambda obs: double(critic.apply(params["value"], obs))
    u = q_of(iql, config, env, state.target_params, batch.obs, action).min(0) - value(batch.obs)
    target = 2.0 * double(batch.reward) + 0.9 * (1.0 - double(batch.terminated)) * value(batch.next_obs)
    q = q_of(iql, config, env, params["critic"], batch.obs, action)
    weight = np.minimum(np.exp(2.0 * u), 3.0)
    assert (weight == 3.0).any()
    assert (weight < 3.0).any()
    log_prob = double(iql.policy(config, env, params["actor"], batch.obs).log_prob(batch.action))
    expected = {
        "value_loss": np.mean(np.where(u < 0, 0.2, 0.8) * u**2),
        "critic_loss": 0.5 * ((q - target) ** 2).sum(0).mean(),
        "actor_loss": -(weight * log_prob).mean(),
        "weight": weight.mean(),
    }
    for name, number in expected.items():
        np.testing.assert_allclose(metrics[name], number, rtol=1e-4, err_msg=name)


def gradient(algorithm, config, env, state, batch):
    given = state.params, state.params, state.target_params, config, env, batch, jax.random.key(0)
    return jax.grad(algorithm.loss, has_aux=True)(*given)[0]


@pytest.mark.parametrize("method", ["iql", "awac"])
def test_without_weights_iql_and_awac_clone(method):
    config = iql.Config(**SMALL, beta=0.0, method=method)
    state, batch = state_of(iql, config, BOX), data_of(BOX)
    cloned = lambda params: iql.cloning_loss(config, BOX, params, batch.obs, batch.action, None).mean()
    found, expected = gradient(iql, config, BOX, state, batch), jax.grad(cloned)(state.params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), found["actor"], expected["actor"])


def test_at_half_the_loss_of_the_value_is_half_the_squared_error():
    config = iql.Config(**SMALL, expectile=0.5)
    state, batch = state_of(iql, config, BOX), data_of(BOX)
    u, _, found = iql.advantage(state.params, state.params, state.target_params, config, BOX, batch, None)
    np.testing.assert_allclose(found, 0.5 * (double(u) ** 2).mean(), rtol=1e-5)


def test_the_loss_of_the_value_of_xql_is_its_equation():
    config = iql.Config(**SMALL, method="xql", gumbel_scale=0.7)
    state, batch = state_of(iql, config, BOX), data_of(BOX)
    u, _, found = iql.advantage(state.params, state.params, state.target_params, config, BOX, batch, None)
    z = double(u) / 0.7
    assert (z < 7.0).all()
    np.testing.assert_allclose(found, (np.exp(z) - z - 1.0).mean(), rtol=1e-5)


def test_no_loss_of_iql_has_a_gradient_for_the_parameters_of_another():
    config = iql.Config(**SMALL)
    state, batch = state_of(iql, config, BOX), data_of(BOX)
    everything = gradient(iql, config, BOX, state, batch)
    params = state.params
    for name in ("critic", "value", "actor"):
        alone = lambda part, name=name: iql.loss(
            params | {name: part}, params, state.target_params, config, BOX, batch, jax.random.key(0)
        )[1]
        own = {"critic": "critic_loss", "value": "value_loss", "actor": "actor_loss"}[name]
        expected = jax.grad(lambda part, alone=alone, own=own: alone(part)[own])(params[name])
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), everything[name], expected)


def test_values_of_awac_are_those_of_actions_of_the_policy():
    config = iql.Config(**SMALL, method="awac")
    state, batch = state_of(iql, config, BOX), data_of(BOX)
    assert "value" not in state.params
    u, next_value, _ = iql.advantage(
        state.params, state.params, state.target_params, config, BOX, batch, jax.random.key(5)
    )
    here, there = jax.random.split(jax.random.key(5))
    mine = lambda obs, key: iql.sampled(config, BOX, state.params["actor"], obs, key)
    q = lambda params, obs, action: q_of(iql, config, BOX, params, obs, action).min(0)
    expected = q(state.params["critic"], batch.obs, batch.action)
    expected -= q(state.params["critic"], batch.obs, mine(batch.obs, here))
    np.testing.assert_allclose(u, expected, rtol=1e-4, atol=1e-5)
    expected = q(state.target_params, batch.next_obs, mine(batch.next_obs, there))
    np.testing.assert_allclose(next_value, expected, rtol=1e-4, atol=1e-5)


# TD3+BC and ReBRAC.


def rows_of(env):
    return td3_bc.rows(data_of(env), jnp.arange(NUM))


def test_the_next_action_of_the_data_is_of_the_same_episode():
    data, rows = data_of(BOX), rows_of(BOX)
    ends = double(data.terminated) + double(data.truncated) > 0
    for i in range(NUM):
        assert bool(rows.continued[i]) == (not ends[i])
        if not ends[i]:
            np.testing.assert_array_equal(rows.next_action[i], data.action[i + 1])


@pytest.mark.parametrize("value", ["first", "min"])
def test_the_losses_of_td3_bc_and_rebrac_are_their_equations(value):
    config = td3_bc.Config(
        **SMALL, q_coef=1.5, actor_coef=0.3, critic_coef=0.7, actor_value=value, gamma=0.9, reward_scale=2.0
    )
    state, batch = state_of(td3_bc, config, BOX), rows_of(BOX)
    params, target_params = state.params, state.target_params
    noise = jax.random.normal(jax.random.key(2), batch.action.shape) * 3.0
    actor, _ = td3_bc.networks(config, BOX)
    assert (np.abs(0.2 * double(noise)) > 0.5).any()
    action = double(actor.apply(target_params["actor"], batch.next_obs)) + np.clip(0.2 * double(noise), -0.5, 0.5)
    action = np.clip(action, -1, 1)
    distance = ((action - double(batch.next_action)) ** 2).mean(-1) * double(batch.continued)
    next_q = q_of(td3_bc, config, BOX, target_params["critic"], batch.next_obs, jnp.float32(action)).min(0)
    target = 2.0 * double(batch.reward) + 0.9 * (1 - double(batch.terminated)) * (next_q - 0.7 * distance)
    q = q_of(td3_bc, config, BOX, params["critic"], batch.obs, batch.action)
    found, _ = td3_bc.critic_loss(params["critic"], target_params, config, BOX, batch, noise)
    np.testing.assert_allclose(found, 0.5 * ((q - target) ** 2).sum(0).mean(), rtol=1e-4)

    chosen = actor.apply(params["actor"], batch.obs)
    q = q_of(td3_bc, config, BOX, params["critic"], batch.obs, chosen)
    q = q[0] if value == "first" else q.min(0)
    expected = 0.3 * ((double(chosen) - double(batch.action)) ** 2).mean() - 1.5 * q.mean() / np.abs(q).mean()
    found, _ = td3_bc.actor_loss(params["actor"], params, config, BOX, batch)
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_the_size_of_the_values_has_no_gradient():
    config = td3_bc.Config(**SMALL, actor_coef=0.0, q_coef=1.0)
    state, batch = state_of(td3_bc, config, BOX), rows_of(BOX)
    actor, critic = td3_bc.networks(config, BOX)
    first = jax.tree.map(lambda x: x[0], state.params["critic"])
    value = lambda params: critic.apply(first, batch.obs, actor.apply(params, batch.obs))
    size = jnp.abs(value(state.params["actor"])).mean()
    found = jax.grad(lambda p: td3_bc.actor_loss(p, state.params, config, BOX, batch)[0])(state.params["actor"])
    expected = jax.grad(lambda p: -value(p).mean() / size)(state.params["actor"])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6), found, expected)


def test_without_values_td3_bc_clones():
    config = td3_bc.Config(**SMALL, q_coef=0.0)
    state, batch = state_of(td3_bc, config, BOX), rows_of(BOX)
    cloned = lambda actor: td3_bc.cloning_loss(config, BOX, {"actor": actor}, batch.obs, batch.action, None).mean()
    found = jax.grad(lambda actor: td3_bc.actor_loss(actor, state.params, config, BOX, batch)[0])(state.params["actor"])
    expected = jax.grad(cloned)(state.params["actor"])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-7), found, expected)


def test_without_penalties_rebrac_knows_nothing_of_the_actions_of_the_data():
    config = td3_bc.Config(**SMALL, actor_coef=0.0, critic_coef=0.0, q_coef=1.0)
    state, batch = state_of(td3_bc, config, BOX), rows_of(BOX)
    other = replace(batch, next_action=-batch.next_action)
    noise = jnp.zeros(batch.action.shape)
    losses = [
        td3_bc.critic_loss(state.params["critic"], state.target_params, config, BOX, b, noise)[0]
        for b in (batch, other)
    ]
    assert losses[0] == losses[1]
    losses = [
        td3_bc.actor_loss(state.params["actor"], state.params, config, BOX, b)[0]
        for b in (batch, replace(batch, action=-batch.action))
    ]
    assert losses[0] == losses[1]


def test_an_actor_period_that_does_not_divide_is_refused():
    with pytest.raises(ValueError, match="gradient_steps = 3 is not a multiple of actor_period = 2"):
        td3_bc.check(td3_bc.Config(gradient_steps=3), BOX)


# CQL and its relatives.


def batch_of(env, **own):
    data = data_of(env)
    return cql.Batch(data.obs, cql.encoded(env, data.action), data.reward, data.next_obs, data.terminated, **own)


def as_of_sac(batch):
    return sac.Batch(batch.obs, batch.action, batch.reward, batch.next_obs, batch.terminated)


@pytest.mark.parametrize("num_critics", [2, 5])
def test_without_the_penalty_the_losses_of_cql_are_those_of_sac(num_critics):
    config = cql.Config(**SMALL, num_actions=0, num_critics=num_critics, gamma=0.9, reward_scale=2.0)
    like = sac.Config(hidden_sizes=(8,), num_critics=num_critics, gamma=0.9, reward_scale=2.0)
    state, batch = state_of(cql, config, BOX), batch_of(BOX)
    key = jax.random.key(4)
    noise = jax.random.normal(jax.random.split(key)[0], (2, *batch.action.shape))
    given = state.params, state.params, state.target_params
    found, (log_prob, _) = cql.loss(*given, config, BOX, batch, key)
    expected, (theirs, _) = sac.loss(*given, like, BOX, as_of_sac(batch), noise)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(log_prob, theirs)
    alpha = state.params["log_alpha"]
    assert cql.alpha_loss(alpha, config, BOX, log_prob) == sac.alpha_loss(alpha, like, BOX, log_prob)


def test_the_losses_of_discrete_cql_are_their_equations():
    config = cql.Config(**SMALL, gamma=0.9, cql_coef=2.0)
    state, batch = state_of(cql, config, CHOICE), batch_of(CHOICE)
    params = replace(state, params=state.params | {"log_alpha": jnp.float32(-1.0)}).params
    _, (entropy, metrics) = cql.loss(params, params, state.target_params, config, CHOICE, batch, jax.random.key(0))
    actor, _ = cql.networks(config, CHOICE)
    alpha = np.exp(-1.0)
    log_p = lambda obs: scipy.special.log_softmax(double(actor.apply(params["actor"], obs).logits), axis=-1)
    of = lambda p, obs: np.stack(
        [q_of(cql, config, CHOICE, p, obs, jnp.broadcast_to(jnp.eye(3)[a], (NUM, 3))) for a in range(3)], axis=-1
    )
    now, after, q = log_p(batch.obs), log_p(batch.next_obs), of(params["critic"], batch.obs)
    next_value = (np.exp(after) * (of(state.target_params, batch.next_obs).min(0) - alpha * after)).sum(-1)
    target = double(batch.reward) + 0.9 * (1 - double(batch.terminated)) * next_value
    taken = (q * double(batch.action)).sum(-1)
    gap = (scipy.special.logsumexp(q, axis=-1) - taken).sum(0).mean()
    loss = 0.5 * ((taken - target) ** 2).sum(0).mean() + 2.0 * gap
    np.testing.assert_allclose(metrics["penalty"], gap, rtol=1e-4)
    np.testing.assert_allclose(metrics["critic_loss"], loss, rtol=1e-4)
    expected = (np.exp(now) * (alpha * now - q.min(0))).sum(-1).mean()
    np.testing.assert_allclose(metrics["actor_loss"], expected, rtol=1e-4)
    np.testing.assert_allclose(entropy, (np.exp(now) * now).sum(-1), rtol=1e-4, atol=1e-6)


class Partly(Still):
    """An action that is never legal, the last."""

    def observation_space(self, params):
        return Dict({"seen": super().observation_space(params), "action_mask": Box(0, 1, (3,), jnp.bool_)})

    def reset(self, key, params):
        obs = {"seen": jax.random.normal(key, (self.num_obs,)), "action_mask": jnp.array([True, True, False])}
        return obs, obs


def test_the_penalty_of_discrete_actions_is_of_legal_ones():
    env = Env(Partly(Discrete(3)), (), max_steps=4)
    config = cql.Config(**SMALL)
    state, batch = state_of(cql, config, env), data_of(env)
    found = cql.penalty(state.params, state.params, config, env, batch, None)
    values = jnp.stack(
        [q_of(cql, config, env, state.params["critic"], batch.obs, jnp.broadcast_to(x, (NUM, 3))) for x in jnp.eye(3)]
    )
    np.testing.assert_allclose(found, scipy.special.logsumexp(values[:2], axis=0), rtol=1e-4, atol=1e-5)


def test_the_sampled_penalty_is_the_integral_over_actions():
    env = still(Box(-1.0, 1.0, (1,)))
    config = cql.Config(**SMALL, num_actions=4000)
    state, batch = state_of(cql, config, env), batch_of(env)
    found = cql.penalty(state.params, state.params, config, env, batch, jax.random.key(0))
    grid = (np.arange(2000) + 0.5) / 1000 - 1.0
    actions = jnp.broadcast_to(jnp.float32(grid)[:, None, None], (2000, NUM, 1))
    values = q_of(cql, config, env, state.params["critic"], batch.obs, actions)
    expected = np.log(np.exp(values).sum(1) / 1000)
    np.testing.assert_allclose(found, expected, atol=0.03)


def test_calibration_lifts_values_of_the_policy_to_the_returns_of_the_data():
    config = cql.Config(**SMALL, calibrated=True)
    state, key = state_of(cql, config, BOX), jax.random.key(0)
    plain = cql.penalty(state.params, state.params, replace(config, calibrated=False), BOX, batch_of(BOX), key)
    of = lambda to_go: cql.penalty(
        state.params, state.params, config, BOX, batch_of(BOX, to_go=jnp.full(NUM, to_go)), key
    )
    np.testing.assert_array_equal(of(-jnp.inf), plain)
    keys = jax.random.split(key, 3)
    shape = (10, NUM, 2)
    uniform = jax.random.uniform(keys[0], shape, minval=-1.0, maxval=1.0)
    low = q_of(cql, config, BOX, state.params["critic"], batch_of(BOX).obs, uniform) + 2 * np.log(2.0)
    policy = [
        5.0 - double(cql.weighed(config, BOX, state.params["actor"], obs, jax.random.normal(k, shape))[1])
        for obs, k in ((batch_of(BOX).obs, keys[1]), (batch_of(BOX).next_obs, keys[2]))
    ]
    assert (low < 5.0 + 2 * np.log(2.0)).all()
    lifted = np.concatenate([low, np.broadcast_to(np.concatenate(policy), (2, 20, NUM))], axis=1)
    np.testing.assert_allclose(of(5.0), scipy.special.logsumexp(lifted, axis=1) - np.log(30), rtol=1e-4)


def test_likeness_of_gradients_is_a_mean_of_cosines():
    config = cql.Config(**SMALL, num_critics=3, diversity_coef=1.0)
    state, batch = state_of(cql, config, BOX), batch_of(BOX)
    _, critic = cql.networks(config, BOX)
    g = np.zeros((3, NUM, 2))
    for i in range(3):
        own = jax.tree.map(lambda x, i=i: x[i], state.params["critic"])
        for b in range(NUM):
            g[i, b] = jax.grad(lambda a, own=own, b=b: critic.apply(own, batch.obs[b], a))(batch.action[b])
    g /= np.linalg.norm(g, axis=-1, keepdims=True)
    expected = sum((g[i] * g[j]).sum(-1) for i in range(3) for j in range(3) if i != j).mean() / 2
    np.testing.assert_allclose(cql.likeness(state.params, config, BOX, batch), expected, rtol=1e-4)


def test_returns_to_go_end_with_their_episode():
    data, expected, total = data_of(BOX), np.zeros(NUM), 0.0
    done = np.asarray(data.terminated | data.truncated)
    for t in reversed(range(NUM)):
        total = float(data.reward[t]) + 0.8 * (0.0 if done[t] else total)
        expected[t] = total
    np.testing.assert_allclose(
        returns_to_go(data.reward, data.terminated | data.truncated, 0.8), expected, rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize(
    ("own", "env", "words"),
    [({"calibrated": True}, CHOICE, "continuous"), ({"diversity_coef": 1.0, "num_critics": 1}, BOX, "at least 2")],
)
def test_settings_of_cql_that_cannot_work_are_refused(own, env, words):
    with pytest.raises(ValueError, match=words):
        cql.check(cql.Config(**own), env)


# Data and experience together.

PROBE = Env(ContinuousAction(), ContinuousAction.default_params, max_steps=3)
BOTH = rlpd.Config(
    total_steps=24, warmup_steps=8, num_envs=2, num_steps=2, utd_ratio=1.0, actor_period=2, batch_size=4, capacity=32,
    num_critics=3, hidden_sizes=(8,),
)  # fmt: skip


def test_the_losses_of_rlpd_with_all_critics_are_those_of_sac():
    config = replace(BOTH, num_targets=3, gamma=0.9)
    like = sac.Config(hidden_sizes=(8,), num_critics=3, gamma=0.9, layer_norm=True)
    state, data, key = state_of(rlpd, config, PROBE), data_of(PROBE), jax.random.key(4)
    batch = rlpd.Batch(data.obs, data.action, data.reward, data.next_obs, data.terminated)
    params, noise = state.params, jax.random.normal(jax.random.split(key)[0], batch.action.shape)
    found, _ = rlpd.critic_loss(params["critic"], params, state.target_params, config, PROBE, batch, key)
    expected, _ = sac.critic_loss(params, params, state.target_params, like, PROBE, as_of_sac(batch), noise)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize(("share", "same"), [(0.0, True), (0.5, False)])
def test_data_counts_by_its_share(share, same):
    data = data_of(PROBE)
    config = replace(BOTH, data_share=share)
    runs = [
        rlx.train(rlpd, config, PROBE, jax.random.key(0), data=replace(data, reward=data.reward + x))[0]
        for x in (0.0, 5.0)
    ]
    equal = jax.tree.map(lambda a, b: bool((a == b).all()), *[run.params["critic"] for run in runs])
    assert all(jax.tree.leaves(equal)) == same


# What each is for.


def table(obs, action, reward, next_obs, terminated):
    to = lambda x, kind: jnp.asarray(x, kind)
    floats = lambda x: to(x, jnp.float32)
    action = to(action, jnp.int32) if np.ndim(action) == 1 else floats(action)
    ends = to(terminated, bool)
    return Columns(floats(obs), action, floats(reward), floats(next_obs), ends, jnp.zeros_like(ends))


def test_an_action_that_was_never_shown_is_chosen_by_sac_and_by_no_offline_method():
    env = still(Box(-1.0, 1.0, (1,)), 1)
    shown = np.linspace(-0.6, -0.2, 5)[:, None]
    data = table(np.ones((5, 1)), shown, 3 * shown[:, 0], np.ones((5, 1)), np.ones(5))
    sizes = {"total_steps": 600, "gradient_steps": 600, "batch_size": 32, "hidden_sizes": (16,), "learning_rate": 1e-2}
    soft = {"initial_alpha": 0.05, "alpha_learning_rate": 0.0, "actor_learning_rate": 1e-2}
    cases = {
        "sac": (cql, cql.Config(**sizes, **soft, num_actions=0)),
        "cql": (cql, cql.Config(**sizes, **soft)),
        "iql": (iql, iql.Config(**sizes)),
        "rebrac": (td3_bc, td3_bc.Config(**sizes, q_coef=1.0, actor_coef=10.0, critic_coef=1.0, normalize_obs=False)),
    }
    found = {}
    for name, (algorithm, config) in cases.items():
        state, _ = rlx.train(algorithm, config, env, jax.random.key(0), data=data)
        action, _ = algorithm.act(config, env, state, jnp.ones((1, 1)), jax.random.key(0), deterministic=True)
        found[name] = float(action[0, 0])
    assert found.pop("sac") > 0.2
    assert all(-0.7 < action < 0.0 for action in found.values()), found


def test_two_halves_that_are_good_are_put_together():
    """Each episode earns 1, at one of two states; whoever takes the better half of each earns 2."""
    env = still(Discrete(2), 2)
    first, second = [1.0, 0.0], [0.0, 1.0]
    data = table([first, second] * 2, [1, 0, 0, 1], [0, 0, -1, 1], [second, second] * 2, [0, 1, 0, 1])
    sizes = {"total_steps": 400, "gradient_steps": 400, "batch_size": 16, "hidden_sizes": (16,), "learning_rate": 1e-2}
    greedy = {}
    for beta in (0.0, 10.0):
        config = iql.Config(**sizes, beta=beta, expectile=0.9)
        state, _ = rlx.train(iql, config, env, jax.random.key(0), data=data)
        pi = iql.policy(config, env, state.params["actor"], jnp.asarray([first, second]))
        greedy[beta] = np.asarray(jax.nn.softmax(pi.logits))[:, 1]
    np.testing.assert_allclose(greedy[0.0], 0.5, atol=0.1)
    assert (greedy[10.0] > 0.9).all()


# Runs.


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return written(tmp_path_factory.mktemp("data") / "shown.npz", 0)


def written(path, seed):
    env = rlx.envs.make("Pendulum-v1")
    data = drawn(env, jax.random.key(seed), 32)
    numpy = {f.name: np.asarray(getattr(data, f.name)) for f in dataclasses.fields(data)}
    numpy["action"] = 2.0 * numpy["action"]
    about = {"env": "gymnax/Pendulum-v1", "env_options": {}, "env_params": {}, "policies": []}
    save(path, Demonstrations(**numpy, source=np.zeros(32, np.int32), about=about))
    return path


TRAIN = ["train", "iql", "--env", "Pendulum-v1", "--no-preset", "--gradient-steps", "2", "--batch-size", "4"]
TRAIN += ["--hidden-sizes", "8", "--eval-episodes", "1", "--num-evaluations", "2"]


@pytest.mark.usefixtures("command_cache")
def test_a_run_on_data_is_resumed_with_the_same_data_and_no_other(file, tmp_path, capsys):
    arguments = [*TRAIN, "--data", str(file)]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    cli.main([*arguments, "--total-steps", "8", "--out", str(whole)])
    cli.main([*arguments, "--total-steps", "4", "--out", str(cut)])
    assert "8 episodes of gymnax/Pendulum-v1, 32 steps, mean return" in capsys.readouterr().out
    other = written(tmp_path / "other.npz", 1)
    with pytest.raises(SystemExit, match="2"):
        cli.main(["train", "--resume", str(cut), "--total-steps", "8", "--data", str(other)])
    assert "is not the same" in capsys.readouterr().err
    cli.main(["train", "--resume", str(cut), "--total-steps", "8"])
    states = [rlx.load(directory).state for directory in (whole, cut)]
    jax.tree.map(np.testing.assert_array_equal, *(state.params for state in states))
    saved = json.loads((cut / "config.json").read_text())["data"]
    assert saved["steps"] == 32
    assert saved["file"] == str(file.resolve())
    rows = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] == 8
    assert (whole / "curve.png").exists()


@pytest.mark.usefixtures("command_cache")
def test_lanes_of_a_sweep_learn_from_data_as_single_runs_do(file, tmp_path, capsys):
    arguments = ["sweep", "iql", *TRAIN[2:-2], "--data", str(file), "--beta", "0,3", "--total-steps", "8"]
    cli.main([*arguments, "--num-seeds", "2", "--out", str(tmp_path / "sweep")])
    assert "data: shown.npz, 8 episodes of gymnax/Pendulum-v1" in capsys.readouterr().out
    found = load_sweep(tmp_path / "sweep")
    single = ["--beta", "3", "--seed", "1", "--total-steps", "8"]
    cli.main([*TRAIN, *single, "--data", str(file), "--out", str(tmp_path / "single")])
    lane = next(row["lane"] for row in found.lanes if row["varied"] == {"beta": 3.0} and row["seed"] == 1)
    both = found.state(lane).params, rlx.load(tmp_path / "single").state.params
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), *both)
    moved = file.rename(file.with_suffix(".away"))  # what has ended is read without its data
    assert len(load_sweep(tmp_path / "sweep").state(lane).params) == 3
    moved.rename(file)
    betas = [found.state(row["lane"]).params["actor"] for row in found.lanes if row["seed"] == 1]
    assert not all(np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, betas), strict=True))
    assert json.loads((tmp_path / "sweep" / "best" / "config.json").read_text())["data"]["steps"] == 32
    cli.main(["train", "--resume", str(tmp_path / "sweep" / "best"), "--total-steps", "10"])
    assert rlx.load(tmp_path / "sweep" / "best").num_updates == 5


def test_a_sweep_goes_on_with_the_same_data_and_no_other(file, tmp_path):
    env, config = rlx.envs.make("Pendulum-v1"), iql.Config(**SMALL)
    call = partial(rlx.sweep, iql, config, env, {"beta": [0.0, 3.0]}, directory=tmp_path, eval_episodes=1)
    call(data=file)
    (tmp_path / "summary.json").unlink()
    (tmp_path / "lanes.jsonl").unlink()
    with pytest.raises(ValueError, match="data is not what it learned from"):
        call(data=written(tmp_path.parent / "elsewhere.npz", 1))
    with pytest.raises(ValueError, match="iql learns from data"):
        call(directory=tmp_path / "none")
    assert len(call(data=file).lanes) == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "iql", "--env", "Pendulum-v1"], "iql learns from data: give --data FILE"),
        (["train", "sac", "--env", "Pendulum-v1", "--data", "FILE"], "sac does not learn from data"),
        (["train", "iql", "--env", "CartPole-v1", "--data", "FILE"], "the environment has"),
        (["train", "iql", "--env", "Pendulum-v1", "--data", "nothing.npz"], "nothing.npz is not there"),
        (["train", "iql", "--env", "Pendulum-v1", "--data", "FILE", "--devices", "2"], "leave --devices out"),
        (["sweep", "iql", "--env", "Pendulum-v1", "--gamma", "0.9,0.99"], "iql learns from data: give --data FILE"),
        (["sweep", "sac", "--env", "Pendulum-v1", "--data", "FILE"], "sac does not learn from data"),
        (["profile", "iql", "--env", "Pendulum-v1"], "rlx profile measures algorithms that need none"),
    ],
)
def test_what_does_not_go_with_data_is_said(arguments, words, file, tmp_path, capsys):
    given = [str(file) if x == "FILE" else x for x in arguments]
    with pytest.raises(SystemExit, match="2"):
        cli.main([*given, *(["--out", str(tmp_path / "run")] if given[0] != "profile" else [])])
    assert words in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("command_cache")
def test_fit_takes_data_and_resumes_with_it_alone(file, tmp_path):
    config = iql.Config(**SMALL)
    fit = partial(rlx.fit, "iql", config, "Pendulum-v1", directory=tmp_path / "run", eval_episodes=1)
    assert fit(data=file).complete
    assert fit(data=str(file)).complete
    with pytest.raises(ValueError, match="data is not what it learned from"):
        fit(data=written(tmp_path / "other.npz", 1))
    with pytest.raises(ValueError, match="iql learns from data"):
        fit()


def test_columns_are_in_unit_coordinates_and_of_the_shapes_of_the_environment(file):
    env, shown = rlx.envs.make("Pendulum-v1"), rlx.data.load(file)
    data = columns(env, shown)
    np.testing.assert_allclose(data.action, shown.action / 2.0, rtol=1e-6)
    np.testing.assert_allclose(data.returns, shown.returns, rtol=1e-6)
    with pytest.raises(ValueError, match="next_obs of the demonstrations"):
        columns(env, dataclasses.replace(shown, next_obs=shown.next_obs[:, :2]))
    with pytest.raises(ValueError, match="without chunk="):
        columns(rlx.envs.make("Pendulum-v1", chunk=2), shown)
