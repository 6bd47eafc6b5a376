"""PROPS and ReMix: reductions to PPO, what is sampled, the clip around the drift, and the restart."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rlx
from rlx import Env
from rlx.algos import ppo, props
from rlx.objectives import clipped_surrogate
from rlx.sampling import missing_loss, replayed_surrogate, sampling_error
from rlx.spaces import Box, Discrete

SIZES = {"num_envs": 4, "num_steps": 16, "num_epochs": 2, "num_minibatches": 2, "hidden_sizes": (16,)}
SMALL = SIZES | {"sampling_steps": 4, "behavior_epochs": 2}


def test_the_loss_of_what_is_missing_is_a_clip_from_below():
    ratio = np.array([0.2, 0.7, 1.0, 1.3, 3.0])
    found = missing_loss(jnp.log(ratio), 0.3)
    np.testing.assert_allclose(found, np.maximum(ratio, np.clip(ratio, 0.7, 1.3)), rtol=1e-6)
    slope = jax.vmap(jax.grad(lambda x: missing_loss(x, 0.3)))(jnp.log(jnp.array([0.5, 0.9, 2.0])))
    assert slope[0] == 0 < slope[1] < slope[2]  # not below 1 - clip; above, however large


def test_the_clip_around_no_drift_is_that_of_ppo_and_moves_with_it():
    random = np.random.default_rng(0)
    log_ratio, advantage, drift = (jnp.asarray(random.normal(size=200), jnp.float32) for _ in range(3))
    none = replayed_surrogate(log_ratio, advantage, jnp.zeros(200), 0.2)
    np.testing.assert_allclose(none, clipped_surrogate(log_ratio, advantage, 0.2), rtol=1e-6)
    rho, q, a = np.exp(np.float64(log_ratio)), np.exp(np.float64(drift)), np.float64(advantage)
    expected = -np.minimum(rho * a, np.clip(rho, q - 0.2, q + 0.2) * a)
    np.testing.assert_allclose(replayed_surrogate(log_ratio, advantage, drift, 0.2), expected, rtol=1e-5, atol=1e-6)
    at_drift = jax.vmap(jax.grad(lambda r, a, d: replayed_surrogate(r, a, d, 0.2)))(drift, advantage, drift)
    np.testing.assert_allclose(at_drift, -q * a, rtol=1e-5)  # where the update starts nothing is clipped


def test_the_error_of_sampling_is_the_kl_of_frequencies():
    counts = np.array([[3, 1, 0, 0], [2, 2, 2, 2]])
    p = np.full((2, 4), 0.25)
    frequency = counts / counts.sum(1, keepdims=True)
    expected = sum(n / 12 * np.log(f / 0.25) for n, f in zip(counts.ravel(), frequency.ravel(), strict=True) if n)
    np.testing.assert_allclose(sampling_error(jnp.asarray(counts), jnp.asarray(p)), expected, rtol=1e-6)
    assert sampling_error(jnp.asarray(counts[1:]), jnp.asarray(p[1:])) == 0


def test_with_one_rollout_and_no_behavior_policy_it_is_ppo(cartpole):
    config = props.Config(**SIZES, total_steps=128, num_rollouts=1, sampling_steps=16, behavior_epochs=0)
    like = ppo.Config(**SIZES, total_steps=128, value_clip=float("inf"))
    state = props.init(config, cartpole, jax.random.key(0))
    played = jax.jit(partial(props.collected, config, cartpole))(state, jax.random.key(1))
    held, there = played[2:4]
    data = props.advantages(config, cartpole, state, held, there)
    of_ppo = ppo.init(like, cartpole, jax.random.key(0))
    of_ppo = rlx.replace(of_ppo, params=state.params)
    traj = rlx.replace(played[1], recorded=ppo.Recorded(*played[1].recorded))
    theirs, _ = ppo.advantages(like, cartpole, of_ppo, traj)
    np.testing.assert_allclose(data.advantage[0], theirs.advantage, rtol=1e-4, atol=1e-5)
    flat = lambda tree: jax.tree.map(lambda x: x.reshape(-1, *x.shape[3:]), tree)
    anchors = state.base, state.before
    found, metrics = props.loss(state.params, config, cartpole, flat(data), anchors, 1.0)
    expected, others = ppo.loss(
        state.params, like, cartpole, jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), theirs), 0.0
    )
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    for name in ("policy_loss", "value_loss", "entropy"):
        np.testing.assert_allclose(metrics[name], others[name], rtol=1e-4, atol=1e-6)


class Arms:
    """One state, four arms, and nothing to win; episodes of one step."""

    default_params = ()

    def observation_space(self, params):
        return Box(0.0, 1.0, (1,))

    def action_space(self, params):
        return Discrete(4)

    def reset(self, key, params):
        return jnp.ones(1), jnp.int32(0)

    def step(self, key, state, action, params):
        return jnp.ones(1), state, jnp.float32(0), jnp.array(True), jnp.array(False), {}


def counted(config, seeds=16):
    """How often each arm of all data was pulled in the first update, with the policy fixed and nearly uniform."""
    env = Env(Arms(), ())

    def run(key):
        state = props.init(config, env, key)
        state, _ = props.update(config, env, state)
        return jnp.bincount(state.past.action[-1].ravel(), length=4)

    return np.asarray(jax.jit(jax.vmap(run))(jax.random.split(jax.random.key(0), seeds)))


def test_what_was_sampled_too_often_is_sampled_less():
    """After 128 pulls the counts of four equal arms differ by less than those of independent draws."""
    sizes = {"num_envs": 4, "num_steps": 32, "sampling_steps": 2, "num_minibatches": 1, "num_rollouts": 1}
    sizes |= {"hidden_sizes": (8,), "behavior_rate": 0.05, "behavior_clip": 10.0, "behavior_kl": 0.5}
    spread = {
        epochs: counted(props.Config(**sizes, total_steps=128, behavior_epochs=epochs)).std(axis=1).mean()
        for epochs in (0, 8)
    }
    assert 3.5 < spread[0] < 6.5  # that of a multinomial is sqrt(128 * 3 / 16) = 4.9
    assert spread[8] < 0.7 * spread[0]


def test_old_rollouts_are_used_once_they_are_there(cartpole):
    config = props.Config(**SMALL, total_steps=5 * 64, num_rollouts=3)
    step = jax.jit(partial(props.update, config, cartpole))
    state, kept = props.init(config, cartpole, jax.random.key(0)), []
    for i in range(4):
        before = state
        state, _ = step(state)
        kept.append(np.asarray(state.past.reward[-1]))
        held, there = jax.jit(partial(props.collected, config, cartpole))(before, jax.random.key(1))[2:4]
        weight = props.advantages(config, cartpole, before, held, there).weight
        np.testing.assert_array_equal(weight.max((1, 2)), np.arange(3) >= 2 - i)
    np.testing.assert_array_equal(state.past.reward, kept[1:])


@pytest.mark.parametrize(("updates", "old"), [(0, 0.0), (1, 0.4), (3, 0.4)])
def test_rollouts_of_earlier_policies_have_their_share_of_the_loss(cartpole, updates, old):
    config = props.Config(
        **SIZES, **props.VARIANTS["remix"] | {"restart_step": 0}, sampling_steps=16, total_steps=6 * 64
    )
    config = rlx.replace(config, num_minibatches=2)
    state = rlx.replace(props.init(config, cartpole, jax.random.key(0)), num_updates=jnp.int32(updates))
    held, there = jax.jit(partial(props.collected, config, cartpole))(state, jax.random.key(1))[2:4]
    weight = np.asarray(props.advantages(config, cartpole, state, held, there).weight).sum((1, 2)) / 64
    np.testing.assert_allclose(weight[:2].sum() / weight.sum(), old, atol=1e-6)
    over = rlx.replace(config, restart_step=1)
    later = rlx.replace(state, num_updates=jnp.int32(max(updates, 1)))
    weight = props.advantages(over, cartpole, later, held, there).weight
    assert weight[:2].sum() == 0 < weight[2].sum()


def test_at_the_restart_the_policy_is_its_own_anchor(cartpole):
    config = props.Config(**SMALL, **{"on_policy": False, "anchor_coef": 0.1, "restart_step": 128}, total_steps=4 * 64)
    step, state = jax.jit(partial(props.update, config, cartpole)), props.init(config, cartpole, jax.random.key(0))
    actors = [state.base]
    for update in range(1, 4):
        state, _ = step(state)
        actors.append(state.params["actor"])
        jax.tree.map(np.testing.assert_array_equal, state.before, actors[-2])
        jax.tree.map(np.testing.assert_array_equal, state.base, actors[0 if update < 2 else 2])


def test_bad_settings_are_refused(cartpole):
    with pytest.raises(ValueError, match="sampling_steps = 5 does not divide num_steps = 16"):
        rlx.train(props, props.Config(**SMALL | {"sampling_steps": 5}), cartpole, jax.random.key(0))


@pytest.mark.parametrize("name", ["props", "remix"])
def test_a_run_in_pieces_is_the_whole_and_it_learns(cartpole, name):
    own = {} if name == "props" else props.VARIANTS["remix"] | {"restart_step": 128}
    config = props.Config(**SMALL | own, total_steps=4 * 64, anneal_learning_rate=False)
    if "anchor_coef" in own:
        config = replace(config, anchor_coef=0.0)  # whose weights go by the length of the run
    whole, _ = rlx.train(props, config, cartpole, jax.random.key(0))
    half, _ = rlx.train(props, replace(config, total_steps=128), cartpole, jax.random.key(0))
    again, _ = rlx.resume(props, config, cartpole, half, 2)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), whole.params, again.params)
    env = rlx.envs.make("probe/ObservationAction")
    sizes = {"num_envs": 16, "num_steps": 8, "sampling_steps": 4, "learning_rate": 1e-2, "hidden_sizes": (16,)}
    learner = props.Config(**sizes | own | {"anchor_coef": 0.0}, total_steps=100 * 128, gamma=0.9, entropy_coef=0.0)
    _, metrics = rlx.train(props, learner, env, jax.random.key(0))
    assert metrics["episode_return"][-1] > 0.9
