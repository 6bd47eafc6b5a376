"""GRPO: its loss, its variants, what groups share, one program for all traced settings, resuming."""

import dataclasses
import json
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import rlx
from rlx import cli, groups, replace, stack
from rlx.algos import grpo
from rlx.files import read_rows
from rlx.pytree import is_static
from rlx.relatives import advantages
from rlx.rollout import episodes

# The variants that tests compile whole updates of; tests/test_relatives.py has all.
FIRST = ("grpo", "process", "dr_grpo", "dapo", "rloo", "opo", "gpg", "gspo", "rtg")
SIZES = {"num_groups": 3, "group_size": 4, "num_steps": 24, "num_epochs": 2, "num_minibatches": 2}


@pytest.fixture(scope="module")
def cartpole():
    """Episodes of CartPole, of which some fall and some come to the time limit under random actions."""
    return rlx.envs.make("CartPole-v1", max_steps=24)


@pytest.fixture(scope="module")
def small():
    """A config of three updates that compiles fast."""
    return grpo.Config(total_steps=3 * 3 * 4 * 24, learning_rate=1e-2, hidden_sizes=(8,), **SIZES)


@pytest.fixture(scope="module")
def init():
    return jax.jit(grpo.init)


@pytest.fixture(scope="module")
def trained(small, cartpole):
    with jax.debug_key_reuse(True):  # raises where a key is used twice
        return rlx.train(grpo, small, cartpole, jax.random.key(0))


@pytest.fixture(scope="module")
def batch(small, cartpole, init):
    """What CartPole gives the loss after random weights, and other weights to have it at."""
    state = init(small, cartpole, jax.random.key(0))
    start = grpo.starts(small, cartpole, state, jax.random.key(1))
    _, traj, alive = episodes(cartpole, partial(grpo.act, small, cartpole, state), start, jax.random.key(2), 24)
    facts = groups.Facts(groups.by_group(traj.reward, 4), groups.by_group(alive, 4))
    advantage, weight, even, _ = advantages(small, facts)
    swap = lambda x: jnp.swapaxes(x, 0, 1)
    reference = jax.tree.map(lambda x: 0.9 * x + 0.1, state.params)
    pi = grpo.networks(small, cartpole).apply(reference["actor"], swap(traj.obs))
    recorded, flat = traj.recorded, lambda x: x.reshape(12, -1)
    batch = grpo.Batch(
        *(swap(x) for x in (traj.obs, recorded.action, recorded.log_prob)),
        pi,
        *(flat(x) for x in (advantage, weight, even)),
        swap(alive),
    )
    moved = jax.tree.map(lambda x: x + 0.5 * jnp.sin(jnp.arange(x.size) + 1.0).reshape(x.shape), state.params)
    return batch, state.params, moved


def softmax(x):
    p = np.exp(x - x.max(-1, keepdims=True))
    return p / p.sum(-1, keepdims=True)


@pytest.mark.parametrize("ratio", ["step", "sequence", "product"])
def test_the_loss_is_its_equation(small, cartpole, batch, ratio):
    batch, _, params = batch
    config = replace(small, ratio=ratio, clip=0.02, clip_high=0.03, kl_coef=0.7, entropy_coef=0.3, num_minibatches=1)
    found, parts = jax.jit(grpo.loss)(params, config, cartpole, batch, 0.0)
    logits = np.asarray(grpo.networks(config, cartpole).apply(params["actor"], batch.obs).logits, np.float64)
    p, q = softmax(logits), softmax(np.asarray(batch.reference.logits, np.float64))
    total = {"policy_loss": 0.0, "entropy": 0.0, "kl_reference": 0.0}
    for i in range(12):
        alive = [t for t in range(24) if batch.alive[i, t]]
        log_ratio = [np.log(p[i, t, batch.action[i, t]]) - float(batch.log_prob[i, t]) for t in alive]
        whole = {"sequence": np.mean(log_ratio), "product": np.sum(log_ratio)}
        for t, own in zip(alive, log_ratio, strict=True):
            rho, a, w = np.exp(whole.get(ratio, own)), float(batch.advantage[i, t]), float(batch.weight[i, t])
            total["policy_loss"] -= w * min(rho * a, np.clip(rho, 0.98, 1.03) * a)
            total["entropy"] -= w * (p[i, t] * np.log(p[i, t])).sum()
            total["kl_reference"] += w * (p[i, t] * np.log(p[i, t] / q[i, t])).sum()
    for name, value in total.items():
        np.testing.assert_allclose(parts[name], value, rtol=1e-4, atol=1e-6, err_msg=name)
    expected = total["policy_loss"] + 0.7 * total["kl_reference"] - 0.3 * total["entropy"]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
    assert 0 < parts["clip_fraction"] < 1


def test_steps_after_the_end_change_nothing(small, cartpole, batch):
    batch, _, params = batch
    assert not batch.alive.all()
    junk = lambda x: jnp.where(batch.alive.reshape(12, 24, *[1] * (x.ndim - 2)), x, jnp.asarray(1, x.dtype))
    changed = replace(jax.tree.map(junk, batch), weight=batch.weight, alive=batch.alive)
    changed = replace(changed, log_prob=jnp.where(batch.alive, batch.log_prob, -1e4))  # a ratio of infinity
    loss = jax.jit(jax.value_and_grad(lambda p, b: grpo.loss(p, small, cartpole, b, 0.0)[0]))
    jax.tree.map(np.testing.assert_array_equal, loss(params, changed), loss(params, batch))


def test_the_ratio_is_one_on_the_first_minibatch_whatever_it_is_of(small, cartpole, init):
    @jax.jit
    def first(state, ratio_clip):
        found = {}
        for ratio in grpo.RATIOS:
            config = replace(small, ratio=ratio, num_epochs=1, num_minibatches=1, clip=ratio_clip, normalize_obs=True)
            found[ratio] = grpo.update(config, cartpole, state)
        return found

    found = first(init(replace(small, normalize_obs=True), cartpole, jax.random.key(0)), 1e-5)
    for new, metrics in found.values():
        assert new.obs_stats.count == metrics["alive_steps"] < 288  # what follows an end is not normalised by
        np.testing.assert_allclose(metrics["approx_kl"], 0, atol=1e-10)
        np.testing.assert_array_equal(metrics["clip_fraction"], 0)
    # An episode's ratio has the mean, or the sum, of the gradients of its steps: other steps, but for episodes as one.
    a, b = (ravel_pytree(found[name][0].params)[0] for name in ("step", "product"))
    assert np.abs(a - b).max() > 1e-4


def test_the_sequence_ratio_begins_with_the_gradient_of_the_paper(small, cartpole, batch):
    batch, params, _ = batch
    outcome = replace(batch, advantage=batch.advantage[:, :1].repeat(24, axis=1))
    whole = replace(outcome, weight=outcome.alive / outcome.alive.sum(axis=1, keepdims=True) / 12)
    gradient = jax.jit(jax.grad(lambda p, c: grpo.loss(p, c, cartpole, whole, 0.0)[0]))
    step, sequence = (gradient(params, replace(small, ratio=ratio)) for ratio in ("step", "sequence"))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), step, sequence)


def test_members_of_a_group_share_their_start_and_nothing_else(small, cartpole, init):
    state = init(small, cartpole, jax.random.key(0))
    obs = grpo.starts(small, cartpole, state, jax.random.key(1)).obs.reshape(3, 4, -1)
    np.testing.assert_array_equal(obs, obs[:, :1].repeat(4, axis=1))
    assert len(np.unique(obs[:, 0], axis=0)) == 3
    apart = grpo.starts(replace(small, same_start=False), cartpole, state, jax.random.key(1)).obs
    assert len(np.unique(apart, axis=0)) == 12
    visited = grpo.starts(replace(small, from_visited=True), cartpole, state, jax.random.key(1))
    np.testing.assert_array_equal(visited.obs.reshape(3, 4, -1), visited.obs.reshape(3, 4, -1)[:, :1].repeat(4, axis=1))
    assert visited.time.max() > 0
    act = partial(grpo.act, small, cartpole, state)
    start = grpo.starts(small, cartpole, state, jax.random.key(1))
    _, traj, _ = episodes(cartpole, act, start, jax.random.key(2), 24)
    assert len(np.unique(traj.action.T.reshape(3, 4, 24)[0], axis=0)) > 1


SOME = {name: grpo.VARIANTS[name] for name in FIRST}


@pytest.fixture(scope="module")
def variants(small, cartpole, init):
    """The weights and metrics of variants after one update: those whose stages are all that they differ in."""
    state = init(small, cartpole, jax.random.key(0))
    run = jax.jit(lambda: {n: grpo.update(replace(small, **v), cartpole, state) for n, v in SOME.items()})
    return state, run()


def test_every_variant_is_another_update(variants):
    state, found = variants
    weights = {name: ravel_pytree(new.params)[0] for name, (new, _) in found.items()}
    weights["initial"] = ravel_pytree(state.params)[0]
    # Rewards of CartPole are constant, and rewards of the process tell nothing then.
    assert found["process"][1]["degenerate_fraction"] == 1
    for name, metrics in ((name, metrics) for name, (_, metrics) in found.items()):
        assert all(np.isfinite(value) for value in metrics.values()), name
    for a in weights:
        for b in weights:
            assert (np.abs(weights[a] - weights[b]).max() > 1e-5) == (a != b), (a, b)


def test_groups_without_a_difference_have_no_gradient_and_can_be_left_out(small, cartpole):
    rng = np.random.default_rng(0)
    reward, alive = rng.normal(size=(3, 4, 24)).astype(np.float32), np.ones((3, 4, 24), bool)
    reward[1] = reward[1, :1]
    config = replace(small, credit="outcome", baseline="mean", scale="group", weights="step")
    advantage, weight, even, degenerate = advantages(config, groups.Facts(reward, alive))
    np.testing.assert_array_equal(degenerate, [False, True, False])
    np.testing.assert_allclose(advantage[1], 0, atol=1e-2)  # rounding of the mean over a spread of 1e-4
    np.testing.assert_allclose(weight, 1 / weight.size, rtol=1e-6)
    masked = replace(config, masks=("degenerate",))
    _, weight, unmasked, _ = advantages(masked, groups.Facts(reward, alive))
    np.testing.assert_array_equal(unmasked, even)
    np.testing.assert_array_equal(weight[1], 0)
    np.testing.assert_allclose(weight.sum(), 1, rtol=1e-5)
    _, weight, _, _ = advantages(masked, groups.Facts(0 * reward, alive))
    np.testing.assert_array_equal(weight, 0)


@pytest.mark.parametrize("weights", ["trajectory", "step", "constant"])
def test_groups_that_are_left_out_weigh_as_if_they_had_not_been_played(weights):
    rng = np.random.default_rng(1)
    length = np.stack([rng.integers(18, 25, 4), rng.integers(1, 6, 4), rng.integers(6, 18, 4), rng.integers(1, 25, 4)])
    alive = np.arange(24) < length[..., None]
    reward = np.zeros((4, 4, 24), np.float32)
    for n, i in np.ndindex(4, 4):  # paid at the end; the longest group and another one agree
        reward[n, i, length[n, i] - 1] = 1.0 if n in (0, 2) else i % 2
    config = grpo.Config(gamma=1.0, masks=("degenerate",), credit="outcome", weights=weights)
    _, weight, _, degenerate = advantages(config, groups.Facts(reward, alive))
    np.testing.assert_array_equal(degenerate, [True, False, True, False])
    expected, kept = np.zeros((4, 4, 24)), [1, 3]
    for n, i in ((n, i) for n in kept for i in range(4)):
        tokens = sum(length[n].sum() for n in kept)  # the denominator of DAPO, equation 8
        share = {"trajectory": 1 / (8 * length[n, i]), "step": 1 / tokens, "constant": 1 / (8 * 24)}[weights]
        expected[n, i, : length[n, i]] = share
    np.testing.assert_allclose(weight, expected, rtol=1e-6)


def test_the_reference_is_the_policy_of_some_updates_ago(small, cartpole, init):
    update, config = jax.jit(grpo.update), replace(small, reference_interval=2)
    states = [init(config, cartpole, jax.random.key(0))]
    for _ in range(3):
        state, _ = update(config, cartpole, states[-1])
        states.append(state)
    for number, of in ((1, 0), (2, 2), (3, 2)):
        jax.tree.map(np.testing.assert_array_equal, states[number].reference, states[of].params)


def test_steps_are_counted_with_and_without_those_after_the_end(small, trained):
    _, metrics = trained
    assert small.steps_per_update == 288
    assert replace(small, from_visited=True).steps_per_update == 288 + 72
    np.testing.assert_array_equal(metrics["num_episodes"], 12)  # each is played once, and to its end
    np.testing.assert_allclose(metrics["alive_steps"], metrics["episode_length"] * 12, rtol=1e-6)
    assert (metrics["alive_steps"] < 288).any()


@pytest.mark.parametrize("env_name", ["probe/ObservationAction", "probe/ContinuousAction"])
def test_the_policy_reaches_the_best_action(env_name):
    env = rlx.envs.make(env_name)
    sizes = {"num_groups": 8, "group_size": 8, "num_steps": 5, "num_minibatches": 2, "hidden_sizes": (16,)}
    config = grpo.Config(total_steps=150 * 320, learning_rate=3e-3, entropy_coef=0.0, **sizes)
    state, metrics = rlx.train(grpo, config, env, jax.random.key(0))
    episodes = rlx.evaluate(grpo, config, env, state, jax.random.key(1), num_episodes=64)
    assert metrics["episode_return"][0] < 0.7 * float(episodes.returns.mean())
    np.testing.assert_allclose(episodes.returns, 1.0, atol=0.02)


def bits(x):
    return jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x


def test_resume_is_bitwise(small, cartpole, init, trained):
    state, first = rlx.resume(grpo, small, cartpole, init(small, cartpole, jax.random.key(0)), num_updates=2)
    state, rest = rlx.resume(grpo, small, cartpole, state)
    whole = (state, jax.tree.map(lambda *x: jnp.concatenate(x), first, rest))
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(bits(a), bits(b)), whole, trained)


def test_a_sweep_is_its_single_runs(small, cartpole, trained):
    configs = stack([small, replace(small, learning_rate=1e-3, clip=0.05)])
    states, metrics = jax.vmap(partial(rlx.train, grpo), (0, None, None))(configs, cartpole, jax.random.key(0))
    # Matrix products of other shapes, carried on by three updates.
    np.testing.assert_allclose(metrics["policy_loss"][0], trained[1]["policy_loss"], atol=1e-4)
    lanes = [ravel_pytree(jax.tree.map(lambda x, i=i: x[i], states.params))[0] for i in range(2)]
    np.testing.assert_allclose(lanes[0], ravel_pytree(trained[0].params)[0], atol=1e-3)
    assert np.abs(lanes[0] - lanes[1]).max() > 1e-2


# Another value for every field of the config: a new field needs one too.
CHANGED = {
    "total_steps": 288,
    "num_groups": 6,
    "group_size": 2,
    "num_steps": 26,
    "num_epochs": 1,
    "num_minibatches": 4,
    "learning_rate": 3e-2,
    "anneal_learning_rate": False,
    "adapt_learning_rate": True,
    "target_kl": 1e-7,
    "gamma": 0.5,
    "clip": 0.001,
    "clip_high": 0.001,
    "kl_coef": 1.0,
    "entropy_coef": 0.5,
    "max_grad_norm": 0.01,
    "adam_epsilon": 1e-2,
    "reference_interval": 5,
    "credit": "outcome",
    "baseline": "mean",
    "scale": "none",
    "weights": "constant",
    "ratio": "sequence",
    "shape": "rank_normal",
    "adjust": ("mapo",),
    "masks": ("degenerate",),
    "amount": 0.5,
    "same_start": False,
    "from_visited": True,
    "normalize_obs": True,
    "hidden_sizes": (16, 8),
    "conv_features": (4,),
    "activation": "relu",
}
FIELDS = dataclasses.fields(grpo.Config)


def test_every_traced_config_field_changes_the_weights(small, cartpole):
    # So that the reference, the target and the number of an adjustment matter.
    base = replace(small, kl_coef=0.5, adapt_learning_rate=True, adjust=("hicra",))
    names = [f.name for f in FIELDS if not is_static(f)]
    configs = [base, *(replace(base, **{name: CHANGED[name]}) for name in names)]
    configs = stack([replace(c, reference_interval=int(c.reference_interval)) for c in configs])
    states, _ = jax.vmap(partial(rlx.train, grpo), (0, None, None))(configs, cartpole, jax.random.key(0))
    lanes = jax.vmap(lambda params: ravel_pytree(params)[0])(states.params)
    for name, lane in zip(names, lanes[1:], strict=True):
        assert np.abs(lane - lanes[0]).max() > 1e-4, name


@pytest.fixture(scope="module")
def program():
    """What a config becomes before it is compiled."""
    images = rlx.envs.make("gymnax/Breakout-MinAtar", max_steps=24)

    @cache
    def text(config):
        state = jax.eval_shape(grpo.init, config, images, jax.random.key(0))
        return jax.jit(lambda state: grpo.update(config, images, state)).lower(state).as_text()

    return text


SEAMS = ("torso", "actor_obs", "critic_obs", "policy")  # which tests/test_served_spaces.py changes


@pytest.mark.parametrize("name", [f.name for f in FIELDS if is_static(f) and f.name not in SEAMS])
def test_every_static_config_field_changes_the_program(small, program, name):
    assert getattr(small, name) != CHANGED[name]
    assert program(replace(small, **{name: CHANGED[name]})) != program(small)


@pytest.mark.more
def test_a_variant_is_where_the_options_of_the_command_line_start(tmp_path):
    small = ["--num-groups", "2", "--group-size", "2", "--num-steps", "8", "--num-minibatches", "2"]
    short = ["--total-steps", "64", "--eval-episodes", "2", "--env-options", "max_steps=8", "--no-compile-cache"]
    command = ["grpo", "--env", "CartPole-v1", "--variant", "rloo", *small, *short]
    cli.main(["train", *command, "--baseline", "length", "--out", str(tmp_path / "run")])
    saved = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (saved["config"]["ratio"], saved["config"]["baseline"]) == ("product", "length")
    assert saved["preset"] == {"num_steps": saved["preset"]["num_steps"]} | grpo.VARIANTS["rloo"]
    cli.main(["sweep", *command, "--clip", "0.1,0.2", "--out", str(tmp_path / "sweep")])
    assert [row["config"]["ratio"] for row in read_rows(tmp_path / "sweep" / "lanes.jsonl")] == ["product"] * 2


BAD = {
    "give an integer of at least 2": {"group_size": 1},
    "choose among to_go, outcome, process": {"credit": "steps"},
    "choose among mean, others, length, score_norm, none": {"baseline": "critic"},
    "num_steps = 23: an episode of this environment may take 24 steps": {"num_steps": 23},
    "num_groups \\* group_size = 12 is not a multiple of num_minibatches = 5": {"num_minibatches": 5},
}


@pytest.mark.parametrize("message", BAD)
def test_bad_settings_are_refused_before_anything_is_compiled(small, cartpole, message):
    with pytest.raises(ValueError, match=message):
        rlx.train(grpo, replace(small, **BAD[message]), cartpole, jax.random.key(0))
