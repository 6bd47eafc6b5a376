"""Right answers in the place of wrong ones: which groups have them, what is learned of them, and the four slots."""

from functools import partial
from operator import itemgetter
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import rlx
from rlx import replace
from rlx.algos import grpo_tokens
from rlx.env import with_params
from rlx.facts import gathered
from rlx.imitation import before, check_gate, demonstrated, gated, mixed, mixed_share, with_shown
from rlx.objectives import Elements as Pieces
from rlx.objectives import LogRatio, clipped_surrogate
from rlx.tokens import write

T = 3
SIZES = {"num_groups": 6, "group_size": 4, "num_steps": T, "num_minibatches": 1, "num_epochs": 1}
SIZES |= {"width": 8, "num_heads": 2, "num_layers": 1, "warm_start_steps": 0}


@pytest.fixture(scope="module")
def env():
    """One to three of two symbols, to be written backwards: some first answers are right."""
    return with_params(rlx.envs.make("Reverse", max_length=T, max_symbols=2), {"min_length": 1})


@pytest.fixture(scope="module")
def played(env):
    """A first policy, what it wrote, and what there is to learn of it without imitation."""
    config = grpo_tokens.Config(**SIZES)
    state = grpo_tokens.init(config, env, jax.random.key(0))
    start = grpo_tokens.starts(config, env, state.pool, jax.random.key(7))
    network = grpo_tokens.networks(config, env)
    end, traj, alive = write(network, state.params["actor"], env, start, jax.random.key(4), T)
    pi = grpo_tokens.answers(config, env, state.params, end.obs)
    facts = gathered(env, traj, alive, 4, pi)
    recorded = jax.tree.map(jnp.transpose, traj.recorded)
    rng = np.random.default_rng(0)
    found = jnp.asarray(rng.uniform(0.5, 1.5, (3, 24, T)), jnp.float32)
    data = grpo_tokens.Batch(end.obs, recorded.action, recorded.log_prob, *found, alive.T)
    return config, state, start, facts, data


def successes(facts):
    reward = np.where(facts.alive, facts.reward, 0.0).sum(axis=-1)
    return (reward > 0.5).sum(axis=1)


def test_the_gate_counts_answers_that_are_right(played):
    config, _, _, facts, _ = played
    num = successes(facts)
    assert len(set(num.tolist())) > 1, num  # else the test says nothing
    for gate in range(-1, 5):
        np.testing.assert_array_equal(gated(replace(config, gate=gate), facts), num <= gate)


def test_groups_within_the_gate_have_a_right_answer_and_the_others_their_own(played, env):
    config, _, start, facts, data = played
    paid = jnp.arange(6)[:, None, None] % 2  # every other group is wrong
    facts = replace(facts, reward=paid * jnp.ones_like(facts.reward))
    config = replace(config, gate=0, imitation_coef=0.3)
    data = replace(data, alive=jnp.ones_like(data.alive))  # as if all had been written to the end
    shown = demonstrated(config, env, start, facts, data)
    imitated, lengths = np.repeat(np.arange(6) % 2 == 0, 4), set()
    step = jax.jit(lambda env_state, action: env.advance(jax.random.key(0), env_state, action))
    np.testing.assert_array_equal(shown.imitated, imitated)
    for i in range(24):
        if not imitated[i]:
            same = "tokens", "action", "advantage", "weight", "even", "alive", "log_prob"
            for name in same:
                np.testing.assert_array_equal(getattr(shown, name)[i], getattr(data, name)[i], err_msg=name)
            continue
        env_state, length = jax.tree.map(itemgetter(i), start), int(shown.alive[i].sum())
        for t in range(length):  # played, they are right, and end where they are said to
            env_state, made = step(env_state, shown.action[i, t])
            assert bool(made.terminated) == (t == length - 1)
        assert made.reward == 1.0
        np.testing.assert_array_equal(shown.tokens[i], made.next_obs)
        np.testing.assert_array_equal(shown.alive[i], np.arange(T) < length)
        lengths.add(length)
        np.testing.assert_allclose(shown.advantage[i], 0.3)
        np.testing.assert_allclose(shown.weight[i], (np.arange(T) < length) / length / 24, rtol=1e-6)
        np.testing.assert_array_equal(shown.even[i], shown.weight[i])
    assert len(lengths) > 1  # else no weight of a shorter answer was seen


def test_a_gate_of_minus_one_is_grpo(played, env):
    config, _, start, facts, data = played
    assert demonstrated(config, env, start, facts, data) is data
    log_prob = jnp.ones((2, 3))
    assert before(jnp.zeros((2, 3)), log_prob, None) is log_prob


@pytest.mark.parametrize("ratio", ["step", "sequence"])
def test_a_gate_of_all_is_the_likelihood_of_right_answers(played, env, ratio):
    config, state, start, facts, data = played
    config = replace(config, gate=4, imitation_coef=0.7, ratio=ratio)
    shown = demonstrated(config, env, start, facts, data)
    shown = replace(shown, reference=grpo_tokens.answers(config, env, state.reference, shown.tokens))
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda x: x + rng.normal(0, 0.1, x.shape).astype(np.float32), state.params)

    def unlikely(params):
        log_prob = grpo_tokens.answers(config, env, params, shown.tokens).log_prob(shown.action)
        mean = jnp.where(shown.alive, log_prob, 0.0).sum(axis=1) / shown.alive.sum(axis=1)
        return -0.7 * mean.mean()

    grads, metrics = jax.grad(grpo_tokens.loss, has_aux=True)(params, config, env, shown, 0.0)
    expected = jax.grad(unlikely)(params)
    np.testing.assert_allclose(ravel_pytree(grads)[0], ravel_pytree(expected)[0], rtol=1e-4, atol=1e-6)
    assert np.abs(ravel_pytree(expected)[0]).max() > 0.01
    assert metrics["approx_kl"] == metrics["clip_fraction"] == 0


# Of a loss of one element: mask, denominator and advantage of its gradient.
PI, OLD, BEHAVIOR, A = 0.3, 0.25, 0.5, -1.7
SLOTS = {
    "imitation": ((PI, 1.0), 1.0, PI),
    "reinforce": ((PI, A), 1.0, PI),
    "ppo, within the clip": ((OLD, A), 1.0, OLD),
    "ppo, beyond the clip": ((0.2, 1.7), 0.0, 0.2),
    "off policy": ((BEHAVIOR, A), 1.0, BEHAVIOR),
}


@pytest.mark.parametrize("name", SLOTS)
def test_every_gradient_is_a_mask_an_advantage_and_a_denominator(name):
    (denominator, advantage), mask, expected = SLOTS[name]
    clip = {"off policy": 10.0}.get(name, 0.3)

    def loss(pi):
        log_prob = jnp.log(pi)
        now = name in ("imitation", "reinforce")
        old = before(log_prob[None, None], jnp.log(jnp.full((1, 1), denominator)), jnp.array([now]))
        return clipped_surrogate(log_prob - old, jnp.full((1, 1), advantage), clip).sum()

    found = -jax.grad(loss)(jnp.float32(PI))
    assert found == pytest.approx(mask * advantage / expected, rel=1e-5)


def test_the_log_ratio_has_the_policy_in_its_denominator():
    loss = lambda pi: LogRatio()(None, Pieces(jnp.log(pi) - jnp.log(0.1), jnp.float32(A), jnp.log(pi)), 0.0)
    assert -jax.grad(loss)(jnp.float32(PI)) == pytest.approx(A / PI, rel=1e-5)


def test_what_cannot_be_imitated_is_refused():
    config = replace(grpo_tokens.Config(**SIZES), gate=0)
    replies = rlx.envs.make("Guess", size=5, max_turns=3)
    with pytest.raises(ValueError, match="the environment replies to what is written"):
        rlx.train(grpo_tokens, config, replies, jax.random.key(0))
    with pytest.raises(ValueError, match="gate = -2"):
        replace(config, gate=-2)


@pytest.mark.more
def test_what_is_never_right_at_first_is_learned():
    """Sums modulo 7 of a policy that was taught nothing, with groups of 2: imitation starts it."""
    env = rlx.envs.make("ModularAddition", max_modulus=7)
    config = grpo_tokens.Config(
        total_steps=64 * 2 * 150, num_groups=64, group_size=2, num_steps=1, warm_start_steps=0, learning_rate=2e-3
    )
    lanes = lambda gate: jax.vmap(partial(rlx.train, grpo_tokens), (None, None, 0))(
        replace(config, gate=gate), env, jax.vmap(jax.random.key)(jnp.arange(3))
    )
    alone, imitating = (np.asarray(lanes(gate)[1]["episode_return"])[:, -10:].mean(axis=1) for gate in (-1, 0))
    assert imitating.min() > 0.9, imitating
    assert alone.max() < imitating.min(), alone


def test_the_share_of_imitation_rises_in_a_line_and_falls_by_a_cosine():
    progress = np.linspace(0, 1, 11).astype(np.float32)
    found = [float(mixed_share(x, 0.9, 0.1, 0.4)) for x in progress]
    expected = [0.9 * x / 0.4 if x < 0.4 else 0.5 + 0.4 * np.cos(np.pi * (x - 0.4) / 0.6) for x in progress]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert [float(mixed_share(x, 0.3, 0.3, 0.0)) for x in (0.0, 0.5, 1.0)] == pytest.approx([0.3] * 3)


@pytest.mark.parametrize(("shown", "weight"), [("even", lambda p: 1.0), ("uncertain", lambda p: p * (1.0 - p))])
def test_what_is_shown_is_imitated_token_by_token(played, env, shown, weight):
    config, state, _, _, data = played
    config = replace(config, shown=shown, mix=0.3, mix_end=0.3)
    tokens = with_shown(config, env, jax.random.key(5), data).shown
    lengths = (np.asarray(tokens)[:, env.environment.prompt_size :] > 0).sum(axis=1)
    assert len(set(lengths.tolist())) > 1  # else no padding was seen
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda x: x + rng.normal(0, 0.2, x.shape).astype(np.float32), state.params)
    own = lambda params: 2.0 * ravel_pytree(params)[0].sum()
    policy = lambda params: lambda tokens: grpo_tokens.answers(config, env, params, tokens)
    found = jax.grad(lambda params: mixed(config, env, own(params), tokens, policy(params), 0.5))(params)

    def likelihood(params):  # of each token, with the weights as they are now
        log_prob = policy(params)(tokens).log_prob(jnp.maximum(tokens[:, -T:] - 1, 0))
        now = np.exp(np.asarray(policy(state_params)(tokens).log_prob(jnp.maximum(tokens[:, -T:] - 1, 0))))
        return jnp.where(tokens[:, -T:] > 0, weight(now) * log_prob, 0.0).sum() / lengths.sum()

    state_params = params
    expected = jax.grad(lambda params: 0.7 * own(params) - 0.3 * likelihood(params))(params)
    np.testing.assert_allclose(ravel_pytree(found)[0], ravel_pytree(expected)[0], rtol=1e-4, atol=1e-6)
    assert np.abs(ravel_pytree(expected)[0] - 1.4).max() > 1e-3


def test_a_share_of_zero_is_the_loss(played, env):
    config, state, _, _, data = played
    of = lambda config: with_shown(config, env, jax.random.key(5), data)
    assert of(config) is data
    none = replace(config, shown="uncertain", mix=0.0, mix_end=0.0)
    policy = partial(grpo_tokens.answers, none, env, state.params)
    assert mixed(none, env, jnp.float32(0.7), of(none).shown, policy, 0.2) == jnp.float32(0.7)
    assert mixed(config, env, jnp.float32(0.7), None, policy, 0.2) == jnp.float32(0.7)


def test_an_environment_without_solved_problems_shows_none():
    config = grpo_tokens.Config(**SIZES, shown="even")
    with pytest.raises(ValueError, match=r'no solved\(key, params\) to be shown: set shown = "none"'):
        check_gate(config, SimpleNamespace(environment=object()))
