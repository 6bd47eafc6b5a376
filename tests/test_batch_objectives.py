"""Objectives that look at their minibatch, and those of a KL: against numpy, exact sums on a bandit, and each other."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rlx
from rlx.algorithm import load_algorithm
from rlx.batch_objectives import (
    BAPO,
    DHPO,
    ClipCov,
    DropoutClip,
    KLCov,
    covariance,
    most_varying,
    surrogate_variance,
)
from rlx.kl_objectives import DIVERGENCES, KLRegularized
from rlx.objectives import (
    Clip,
    ClipHigher,
    DualClip,
    Elements,
    ForwardKL,
    ImportanceWeighted,
    LogRatio,
    ReverseKL,
    dual_clipped_surrogate,
)

BATCH = (KLCov(), ClipCov(), BAPO(), DropoutClip())


def drawn(seed=0, shape=(200,), spread=0.3):
    """Elements as numpy draws them, every tenth not alive."""
    rng = np.random.default_rng(seed)
    log_ratio, advantage, log_prob = rng.normal(size=(3, *shape)) * np.array([spread, 1, 1]).reshape(
        3, *[1] * len(shape)
    )
    alive = (np.arange(log_ratio.size) % 10 > 0).reshape(shape)
    return Elements(*(jnp.float32(x) for x in (log_ratio, advantage, log_prob)), jnp.asarray(alive))


def whole(elements):
    return replace(elements, alive=None)


def test_covariance_is_of_what_is_alive():
    elements = drawn()
    alive = np.asarray(elements.alive)
    a, lp = (np.asarray(x, np.float64) for x in (elements.advantage, elements.log_prob))
    expected = (a - a[alive].mean()) * (lp - lp[alive].mean())
    found = np.asarray(covariance(elements))
    np.testing.assert_allclose(found[alive], expected[alive], rtol=1e-4, atol=1e-6)
    assert (found[~alive] == -np.inf).all()
    assert not jax.grad(lambda lp: jnp.where(elements.alive, covariance(replace(elements, log_prob=lp)), 0).sum())(
        elements.log_prob
    ).any()


def test_the_entropy_of_a_bandit_falls_by_the_covariance():
    """Cov(log pi, A) of the natural gradient, Cov(log pi, pi A) of the plain one, by exact sums in float64."""
    rng = np.random.default_rng(1)
    z, a = rng.normal(size=(2, 6))
    soft = lambda z: np.exp(z) / np.exp(z).sum()
    entropy = lambda z: -(soft(z) * np.log(soft(z))).sum()
    pi = soft(z)
    a = a - (pi * a).sum()
    for move in (a, pi * a):
        cov = (pi * np.log(pi) * move).sum() - (pi * np.log(pi)).sum() * (pi * move).sum()
        slope = (entropy(z + 1e-5 * move) - entropy(z - 1e-5 * move)) / 2e-5
        np.testing.assert_allclose(slope, -cov, rtol=1e-6)


def test_kl_cov_holds_the_elements_of_the_largest_covariance():
    elements = drawn()
    found = np.asarray(KLCov(0.05, 2.0)(None, elements, 0.0))
    x, a = np.asarray(elements.log_ratio), np.asarray(elements.advantage)
    plain = -np.exp(x) * a
    held = np.argsort(-np.asarray(covariance(elements)))[:10]
    expected = plain.copy()
    expected[held] += 2.0 * np.abs(x[held])
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    everything = KLCov(1.0, 2.0)(None, whole(elements), 0.0)
    np.testing.assert_allclose(everything, plain + 2.0 * np.abs(x), rtol=1e-5)
    nothing = KLCov(0.0)(None, elements, 0.0)
    np.testing.assert_array_equal(nothing, ImportanceWeighted()(None, elements, 0.0))


def test_clip_cov_leaves_out_the_largest_covariances_of_a_band():
    elements = whole(drawn(seed=3))
    objective = ClipCov(0.05, 0.5, 0.9, 0.2)
    found = np.asarray(objective(None, elements, 0.0))
    plain = np.asarray(Clip(0.2)(None, elements, 0.0))
    c, a = np.asarray(covariance(elements)), np.asarray(elements.advantage)
    ratio = np.exp(np.asarray(elements.log_ratio))
    clipped = ((a > 0) & (ratio > 1.2)) | ((a < 0) & (ratio < 0.8))
    band = (c >= np.quantile(c, 0.5)) & (c <= np.quantile(c, 0.9)) & ~clipped
    out = [i for i in np.argsort(-c) if band[i]][:10]
    expected = plain.copy()
    expected[out] = 0
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(ClipCov(0.0)(None, elements, 0.0), Clip(0.2)(None, elements, 0.0))


def searched(objective, ratio, advantage):
    """The bounds of BAPO by a loop."""
    for low, high in objective.bounds():
        gain = sum(r * a for r, a in zip(ratio, advantage, strict=True) if a > 0 and r <= high)
        cost = sum(-r * a for r, a in zip(ratio, advantage, strict=True) if a < 0 and r >= low)
        if gain >= objective.positive_share * (gain + cost):
            break
    return low, high


@pytest.mark.parametrize("shift", [-0.6, -0.2, 0.0, 0.4])
def test_bapo_finds_the_bounds_of_a_loop(shift):
    elements = drawn(seed=5, spread=0.5)
    elements = replace(elements, advantage=elements.advantage + shift)
    objective, alive = BAPO(), np.asarray(elements.alive)
    ratio, a = (np.asarray(x, np.float64)[alive] for x in (jnp.exp(elements.log_ratio), elements.advantage))
    low, high = searched(objective, ratio, a)
    expected = dual_clipped_surrogate(elements.log_ratio, elements.advantage, 1 - low, high - 1, 3.0)
    np.testing.assert_allclose(objective(None, elements, 0.0), expected, rtol=1e-5)


def test_bapo_without_a_share_has_its_first_bounds_and_of_everything_its_last():
    elements = drawn(seed=6, spread=0.5)
    first = DualClip(0.4, 0.2, 3.0)(None, elements, 0.0)
    np.testing.assert_allclose(BAPO(positive_share=0.0)(None, elements, 0.0), first, rtol=1e-5)
    last = DualClip(0.1, 2.0, 3.0)(None, elements, 0.0)
    np.testing.assert_allclose(BAPO(positive_share=1.0)(None, elements, 0.0), last, rtol=1e-5)


def test_the_share_of_good_actions_grows_along_the_path_of_bapo():
    rng = np.random.default_rng(7)
    ratio, a = np.exp(0.6 * rng.normal(size=500)), rng.normal(size=500) - 0.3
    shares = []
    for low, high in BAPO().bounds():
        gain, cost = (ratio * a)[(a > 0) & (ratio <= high)].sum(), -(ratio * a)[(a < 0) & (ratio >= low)].sum()
        shares.append(gain / (gain + cost))
    assert np.all(np.diff(shares) >= 0)
    assert shares[-1] - shares[0] > 0.1


def test_bounds_in_the_wrong_order_are_refused():
    with pytest.raises(ValueError, match="has to be the smaller one"):
        BAPO(low_first=0.95)(None, drawn(), 0.0)


def test_dropout_leaves_out_what_varies_most():
    elements = drawn(seed=8)
    z = np.asarray(jnp.where(elements.alive, jnp.exp(elements.log_ratio) * elements.advantage, 0.0), np.float64)
    alive = np.asarray(elements.alive)
    part = z * z.sum()
    out = set()
    for group in (alive & (part > 0), alive & (part <= 0)):
        index = np.flatnonzero(group)
        out |= set(index[np.argsort(-np.abs(part[index]), kind="stable")][: int(0.3 * len(index))])
    found = np.asarray(most_varying(jnp.float32(z), elements.alive, 0.3))
    assert set(np.flatnonzero(found)) == out
    assert len(out) > 40
    np.testing.assert_array_equal(DropoutClip(0.0)(None, elements, 0.0), Clip()(None, elements, 0.0))


def test_dropout_lowers_the_variance_of_the_surrogate():
    """Over minibatches drawn from one population: of the mean of what counts, which is what a gradient step sees."""
    keys = jax.random.split(jax.random.key(0), 400)

    def one(key, share):
        x, a = jax.random.normal(key, (2, 64)) * jnp.array([[0.3], [1.0]])
        return DropoutClip(share, 1e6)(None, Elements(x, a), 0.0).mean()

    spread = {share: np.std(jax.vmap(lambda key, s=share: one(key, s))(keys)) for share in (0.0, 0.2)}
    assert spread[0.2] < 0.8 * spread[0.0]


def test_the_variance_of_the_surrogate_is_of_what_is_alive():
    elements = drawn(seed=9)
    alive = np.asarray(elements.alive)
    z = np.exp(np.asarray(elements.log_ratio)) * np.asarray(elements.advantage)
    np.testing.assert_allclose(surrogate_variance(elements), z[alive].var(), rtol=1e-5)


@pytest.mark.parametrize("objective", BATCH, ids=lambda x: type(x).__name__)
def test_what_is_not_alive_decides_nothing(objective):
    elements = drawn(seed=10)
    dead = ~elements.alive
    other = replace(
        elements, advantage=jnp.where(dead, 50.0, elements.advantage), log_prob=jnp.where(dead, 9.0, elements.log_prob)
    )
    found, changed = (jnp.where(dead, 0.0, objective(None, x, 0.0)) for x in (elements, other))
    np.testing.assert_allclose(found, changed, rtol=1e-5)


def test_a_policy_without_log_probabilities_is_refused(cartpole):
    fpo = load_algorithm("fpo+KLCov")
    env = rlx.envs.make("Pendulum-v1")
    config = fpo.Config(total_steps=64, num_envs=4, num_steps=8, hidden_sizes=(8,), num_minibatches=1)
    with pytest.raises(ValueError, match="needs log-probabilities"):
        rlx.train(fpo, config, env, jax.random.key(0))


@pytest.mark.parametrize(
    "name", ["ppo+KLCov", "ppo+ClipCov", "grpo+BAPO", "grpo+KLCov", "grpo+DHPO", "ppo+DropoutClip", "fpo+LogRatio"]
)
def test_algorithms_take_them(name):
    algorithm = load_algorithm(name)
    env = rlx.envs.make("Pendulum-v1" if name.startswith("fpo") else "CartPole-v1")
    small = {"total_steps": 1024, "num_steps": 32, "hidden_sizes": (8,), "num_minibatches": 2}
    small |= {"num_groups": 2, "group_size": 4} if name.startswith("grpo") else {"num_envs": 8}
    env = replace(env, max_steps=32)
    _, metrics = rlx.train(algorithm, algorithm.Config(**small), env, jax.random.key(0))
    assert np.isfinite(metrics["policy_loss"]).all()


def test_dhpo_is_grpo_and_gspo_at_its_ends_and_their_mean_between():
    elements = drawn(shape=(6, 8))
    alive = np.asarray(elements.alive)
    of = lambda share: np.asarray(DHPO(share=share, sequence_clip=0.05, sequence_clip_high=0.06)(None, elements, 0.0))
    step = np.asarray(ClipHigher(0.2, 0.28)(None, elements, 0.0))
    np.testing.assert_allclose(of(1.0)[alive], step[alive], rtol=1e-6)
    mean = np.where(alive, elements.log_ratio, 0).sum(1, keepdims=True) / alive.sum(1, keepdims=True)
    sequence = replace(elements, log_ratio=jnp.float32(np.broadcast_to(mean, alive.shape)))
    expected = np.asarray(ClipHigher(0.05, 0.06)(None, sequence, 0.0))
    np.testing.assert_allclose(of(0.0)[alive], expected[alive], rtol=1e-5)
    np.testing.assert_allclose(of(0.25)[alive], (0.25 * step + 0.75 * expected)[alive], rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="use it with grpo"):
        DHPO()(None, whole(elements), 0.0)


def test_dual_clip_bounds_the_loss_of_bad_actions():
    x, a = jnp.array([3.0, 3.0, -1.0, 0.0]), jnp.array([-1.0, 1.0, -1.0, -2.0])
    found = dual_clipped_surrogate(x, a, 0.2, 0.28, 3.0)
    np.testing.assert_allclose(found, [3.0, -1.28, 0.8, 2.0], rtol=1e-6)
    elements = drawn(spread=1.0)
    wide = DualClip(0.2, 0.28, jnp.inf)(None, elements, 0.0)
    np.testing.assert_array_equal(wide, ClipHigher(0.2, 0.28)(None, elements, 0.0))


def test_where_policies_agree_the_log_ratio_has_everybodys_gradient():
    a = jnp.array([-1.0, 0.5, 2.0])
    slope = lambda objective: jax.grad(lambda x: objective(None, Elements(x, a), 0.0).sum())(jnp.zeros(3))
    for objective in (LogRatio(), ImportanceWeighted(), Clip(), DualClip()):
        np.testing.assert_allclose(slope(objective), -a, rtol=1e-6)


@pytest.mark.parametrize("score", [False, True], ids=["loss", "score"])
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_the_gradient_is_that_of_the_regularised_return(divergence, score):
    """By exact sums over a categorical policy in float64; the divergences of normalised policies are the plain ones."""
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        old, new, reward = (jnp.asarray(x) for x in rng.normal(size=(3, 7)))
        objective = KLRegularized(0.3, divergence, score)

        def regularised(z):
            pi, q = jax.nn.softmax(z), jax.nn.softmax(old)
            kl = (q * jnp.log(q / pi)).sum() if divergence.startswith("forward") else (pi * jnp.log(pi / q)).sum()
            return (pi * reward).sum() - 0.3 * kl

        def loss(z):
            log_pi, log_q = jax.nn.log_softmax(z), jax.nn.log_softmax(old)
            elements = Elements(log_pi - log_q, reward, log_pi)
            return (jnp.exp(log_q) * objective(None, elements, 0.0)).sum()

        np.testing.assert_allclose(jax.grad(loss)(new), -jax.grad(regularised)(new), atol=1e-14)


def test_two_of_the_forms_are_the_objectives_of_a_kl():
    elements = drawn()
    for divergence, other in (("forward_unnormalized", ForwardKL), ("reverse_unnormalized", ReverseKL)):
        found = jax.grad(lambda x, d=divergence: KLRegularized(0.3, d)(None, replace(elements, log_ratio=x), 0.0).sum())
        expected = jax.grad(lambda x, o=other: o(0.3)(None, replace(elements, log_ratio=x), 0.0).sum())
        np.testing.assert_allclose(found(elements.log_ratio), expected(elements.log_ratio), rtol=1e-4, atol=1e-5)
