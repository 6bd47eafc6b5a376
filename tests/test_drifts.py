"""Learned drifts: what holds for any weights, their sizes, what progress does, and their files."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlx import meta
from rlx.objectives import Clip, Elements, clipped_surrogate, importance_weighted

ADVANTAGES = jnp.array([-3.0, -1.0, -0.1, 0.0, 0.1, 1.0, 3.0])
LOG_RATIOS = jnp.linspace(jnp.log(1e-3), jnp.log(1e3), 61)
MAKERS = {"lpo": meta.lpo, "talpo": meta.talpo}


def drift(objective, log_ratio, advantage, progress=0.3):
    loss = objective(None, Elements(log_ratio, advantage), progress)
    return loss - importance_weighted(log_ratio, advantage)


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("clip", [float("inf"), 0.2])
@pytest.mark.parametrize("progress", [0.0, 0.5, 1.0])
def test_any_weights_keep_the_conditions_of_mirror_learning(kind, clip, progress):
    for seed in range(5):
        objective = MAKERS[kind](jax.random.key(seed), clip=clip)
        objective = jax.tree.map(lambda x: 3.0 * x, objective)
        log_ratio, advantage = (x.ravel() for x in jnp.meshgrid(LOG_RATIOS, ADVANTAGES))
        f = drift(objective, log_ratio, advantage, progress)
        tolerance = 1e-6 * jnp.exp(log_ratio) * jnp.abs(advantage)  # of the difference of two losses in float32
        assert bool((f >= -tolerance).all())
        assert float(f.max()) > 0.01
        zero = jnp.zeros_like(ADVANTAGES)
        slope = jax.vmap(jax.grad(lambda x, a, objective=objective: drift(objective, x, a, progress)))
        np.testing.assert_array_equal(drift(objective, zero, ADVANTAGES, progress), 0.0)
        np.testing.assert_allclose(slope(zero, ADVANTAGES), 0.0, atol=1e-6)


def by_hand(objective, log_ratio, advantage, progress=None):
    """One element of the loss, in numpy."""
    ratio = np.exp(log_ratio)
    x = np.array([log_ratio, log_ratio**2, 1 - ratio, (1 - ratio) ** 2])
    features = np.concatenate([x, advantage * x])
    if progress is not None:
        features = np.concatenate([features, progress * features])
    net = np.tanh(features @ np.asarray(objective.hidden, np.float64)) @ np.asarray(objective.out, np.float64)
    clipped = max(0.0, (ratio - np.clip(ratio, 1 - objective.clip, 1 + objective.clip)) * advantage)
    return -(ratio * advantage - max(0.0, clipped + net - 1e-4))


@pytest.mark.parametrize("clip", [float("inf"), 0.2])
def test_the_loss_is_that_of_the_equation(clip):
    for seed, (log_ratio, advantage) in enumerate([(0.3, 1.5), (-0.8, -0.7), (1.2, -2.0), (-0.1, 0.4), (0.9, 1.1)]):
        plain, aware = (make(jax.random.key(seed), clip=clip) for make in (meta.lpo, meta.talpo))
        given = Elements(jnp.float32(log_ratio), jnp.float32(advantage))
        np.testing.assert_allclose(plain(None, given, 0.7), by_hand(plain, log_ratio, advantage), rtol=2e-5)
        np.testing.assert_allclose(aware(None, given, 0.7), by_hand(aware, log_ratio, advantage, 0.7), rtol=2e-5)


def test_sizes_are_those_of_the_papers():
    count = lambda tree: sum(x.size for x in jax.tree.leaves(tree))
    assert (count(meta.lpo()), count(meta.talpo())) == (1152, 2176)


def test_without_weights_nothing_is_added():
    log_ratio, advantage = jnp.linspace(-1, 1, 41), jnp.sin(jnp.arange(41.0))
    np.testing.assert_array_equal(
        meta.lpo()(None, Elements(log_ratio, advantage), 0.0), importance_weighted(log_ratio, advantage)
    )
    clipped = meta.lpo(clip=0.2)(None, Elements(log_ratio, advantage), 0.0)
    np.testing.assert_allclose(clipped, clipped_surrogate(log_ratio, advantage, 0.2), atol=1.01e-4)  # the margin


def test_candidates_around_no_drift_are_all_different():
    """Turning all signs around leaves the network as it is: from zeros, antithetic candidates would be one function."""
    start = meta.lpo(num_hidden=8)
    move = jax.tree.map(lambda x: 0.1 * jax.random.normal(jax.random.key(x.size), x.shape), start)
    log_ratio, advantage = jnp.linspace(-1, 1, 41), jnp.sin(jnp.arange(41.0))
    plus, minus = (jax.tree.map(lambda x, y, s=s: x + s * y, start, move) for s in (1, -1))
    elements = Elements(log_ratio, advantage)
    assert float(jnp.abs(plus(None, elements, 0.0) - minus(None, elements, 0.0)).max()) > 1e-3


def test_only_the_one_that_is_aware_of_progress_changes_with_it():
    log_ratio, advantage = jnp.full(3, 0.4), jnp.array([-1.0, 0.5, 2.0])
    for make, same in ((meta.lpo, True), (meta.talpo, False)):
        objective = make(jax.random.key(2))
        early, late = (objective(None, Elements(log_ratio, advantage), progress) for progress in (0.0, 1.0))
        assert bool((early == late).all()) == same


def test_at_the_policy_that_acted_every_objective_has_one_gradient():
    advantage = jnp.array([-1.0, 0.0, 2.0])
    slope = lambda objective: jax.grad(lambda x: objective(None, Elements(x, advantage), 0.0).sum())(jnp.zeros(3))
    for objective in (meta.lpo(jax.random.key(0)), meta.talpo(jax.random.key(1)), meta.lpo(clip=0.2), Clip(0.2)):
        np.testing.assert_allclose(slope(objective), -advantage, atol=1e-6)


def test_extreme_ratios_have_finite_gradients():
    objective = meta.lpo(jax.random.key(0))
    log_ratio, advantage = jnp.array([-90.0, -30.0, 30.0, 80.0]), jnp.array([1.0, -1.0, 1.0, 1.0])
    grads = jax.grad(lambda o: o(None, Elements(log_ratio, advantage), 0.0).sum())(objective)
    assert all(bool(jnp.isfinite(x).all()) for x in jax.tree.leaves(grads))


@pytest.mark.parametrize("kind", MAKERS)
def test_a_file_holds_the_objective_bit_for_bit(tmp_path, kind):
    objective = MAKERS[kind](jax.random.key(3), num_hidden=16, clip=0.2)
    meta.save(tmp_path / "objective.npz", objective, {"generations": 7})
    found = meta.load(tmp_path / "objective.npz")
    assert jax.tree.structure(found) == jax.tree.structure(objective)
    jax.tree.map(np.testing.assert_array_equal, found, objective)
    with np.load(tmp_path / "objective.npz") as file:
        assert json.loads(str(file["about"]))["generations"] == 7


def test_a_file_that_is_no_objective_is_refused(tmp_path):
    for name, write in (
        ("text.npz", lambda path: path.write_text("no")),
        ("empty.npz", lambda path: path.write_text("")),
        ("other.npz", lambda path: np.savez(path, a=1)),
        ("pickle.npz", lambda path: np.savez(path, about=np.array({"a": 1}, dtype=object))),
    ):
        write(tmp_path / name)
        with pytest.raises(ValueError, match=rf"{name} is not a learned objective"):
            meta.load(tmp_path / name)
    with pytest.raises(ValueError, match="there is no objective"):
        meta.load(tmp_path / "none.npz")
