"""The pipeline of GRPO's relatives: today's numbers of the first variants, and what all of them have in common."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rlx
from rlx import groups, relatives
from rlx.algos import grpo, grpo_recurrent, grpo_tokens
from rlx.pytree import replace
from rlx.relatives import VARIANTS, advantages
from rlx.step_credits import classes, prefixes

EXACT = True  # bits are compared
N, G, T = 5, 6, 8
FIRST = ("grpo", "process", "dr_grpo", "dapo", "rloo", "opo", "gpg", "gspo", "rtg")


def before(config, reward, alive):
    """Advantages, weights and degenerate groups as they were when the variants were nine."""
    credits = {"to_go": groups.returns_to_go, "outcome": groups.outcomes, "process": groups.standardized_to_go}
    credit = credits[config.credit](reward, alive, config.gamma)
    scales = {"group": groups.group_std, "batch": groups.batch_std, "none": groups.no_scale}
    scale = scales[config.scale](groups.outcomes(reward, alive, config.gamma)[..., 0])
    length = alive.sum(axis=-1)
    baseline = {
        "mean": lambda: credit.mean(axis=1, keepdims=True),
        "others": lambda: (credit.sum(axis=1, keepdims=True) - credit) / (G - 1),
        "length": lambda: ((length / length.sum(axis=1, keepdims=True))[..., None] * credit).sum(1, keepdims=True),
        "none": lambda: jnp.zeros((1, 1, 1)),
    }[config.baseline]()
    degenerate = groups.agree(credit)
    counted = alive & ~degenerate[:, None, None] if config.masks else alive
    weights = {"trajectory": groups.per_trajectory, "step": groups.per_step, "constant": groups.constant}
    advantage = jnp.where(alive, (credit - baseline) / scale[..., None], 0.0)
    return advantage, weights[config.weights](counted), degenerate


def played(seed, graded=False):
    """Random answers of three symbols, of which some groups agree: with rewards at the end, or at every step."""
    rng = np.random.default_rng(seed)
    length = rng.integers(2, T + 1, (N, G))
    alive = np.arange(T) < length[..., None]
    token = np.where(alive, rng.integers(0, 3, (N, G, T)), 0).astype(np.int32)
    right = rng.random((N, G)) < 0.5
    right[0], right[1] = True, False
    reward = np.asarray(groups.at_the_end(jnp.float32(right), alive))
    if graded:
        reward = np.where(alive, rng.normal(size=(N, G, T)), 0.0).astype(np.float32)
    p = rng.uniform(0.05, 1.0, (N, G, T)).astype(np.float32)
    entropy = rng.uniform(0.1, 1.1, (N, G, T)).astype(np.float32)
    place = prefixes(token, alive)
    collision = rng.uniform(0.3, 1.0, (N, G, T)).astype(np.float32)
    of_steps = (reward, alive, np.log(p), entropy, collision, token, place)
    return groups.Facts(*of_steps, classes(token, alive), np.ones_like(alive))


@pytest.mark.parametrize("graded", [False, True])
@pytest.mark.parametrize("name", FIRST)
def test_the_first_variants_are_what_they_were(name, graded):
    config, facts = grpo.Config(**VARIANTS[name]), played(0, graded)
    advantage, weight, even, degenerate = jax.jit(advantages)(config, facts)
    old_advantage, old_weight, old_degenerate = jax.jit(before)(config, facts.reward, facts.alive)
    np.testing.assert_array_equal(advantage, old_advantage)
    np.testing.assert_array_equal(weight, old_weight)
    np.testing.assert_array_equal(degenerate, old_degenerate)
    if not config.masks:
        np.testing.assert_array_equal(even, weight)


def stages(config, facts):
    """All that a variant does to an update, as one vector."""
    advantage, weight, even, _ = advantages(config, facts)
    moved = jnp.where(facts.alive, 0.1 * jnp.sin(jnp.arange(T) + 1.0), 0.0)
    ratio = relatives.RATIOS[config.ratio](moved, facts.alive)
    numbers = (config.clip, config.clip_high, config.num_epochs, config.num_minibatches, config.group_size)
    return jnp.concatenate([x.ravel() for x in (advantage * weight, even, ratio)] + [jnp.array(numbers, jnp.float32)])


def test_every_variant_is_another():
    facts = played(1)
    found = {name: np.asarray(stages(grpo.Config(**values, gamma=1.0), facts)) for name, values in VARIANTS.items()}
    for a in found:
        assert np.isfinite(found[a]).all(), a
        for b in found:
            assert (np.abs(found[a] - found[b]).max() > 1e-6) == (a != b), (a, b)


@pytest.mark.parametrize("name", [name for name in VARIANTS if name not in ("process", "rtg")])
def test_a_group_that_agrees_pushes_nowhere_and_is_a_number(name):
    """All right, and all wrong, of variants that credit whole outcomes; what looks at more may push there."""
    facts = played(2)
    config = grpo.Config(**VARIANTS[name], gamma=1.0)
    advantage, weight, even, degenerate = advantages(config, facts)
    assert degenerate[:2].all()
    assert all(np.isfinite(x).all() for x in (advantage, weight, even))
    push = np.abs(advantage * weight).reshape(N, -1).max(axis=1)
    beyond = {"copo", "lens", "ttrl", "gigpo", "gtpo", "conciser"}
    if name not in beyond:
        np.testing.assert_allclose(push[:2], 0, atol=1e-4)
    assert push[2:].max() > 1e-4


@pytest.mark.parametrize("name", VARIANTS)
def test_what_follows_the_end_changes_nothing(name):
    facts, config = played(3), grpo.Config(**VARIANTS[name], gamma=1.0)
    hidden = lambda x, value: np.where(facts.alive, x, value).astype(x.dtype)
    changed = replace(
        facts,
        reward=hidden(facts.reward, 9.0),
        log_prob=hidden(facts.log_prob, -7.0),
        entropy=hidden(facts.entropy, 5.0),
        collision=hidden(facts.collision, 0.1),
        token=hidden(facts.token, 2),
        place=hidden(facts.place, 1),
    )
    jax.tree.map(np.testing.assert_array_equal, advantages(config, changed), advantages(config, facts))


def test_given_steps_count_nowhere_and_masks_leave_other_means_as_they_are():
    facts = played(4)
    given = replace(facts, played=np.arange(T) >= np.array([0, 1, 2, 0, 1])[:, None, None] + np.zeros((N, G, 1), int))
    config = grpo.Config(**VARIANTS["d3s"], gamma=1.0)
    _, weight, even, _ = advantages(config, given)
    np.testing.assert_array_equal(weight[~given.own], 0)
    np.testing.assert_array_equal(even[~given.own], 0)
    np.testing.assert_allclose(even.sum(), 1, rtol=1e-5)
    unmasked = advantages(replace(config, masks=()), given)
    np.testing.assert_array_equal(even, unmasked[2])
    assert (weight != unmasked[1]).any()


def test_the_entropy_of_weights_that_grow_with_the_length_is_a_mean():
    facts = played(5)
    _, weight, even, _ = advantages(grpo.Config(**VARIANTS["luspo"]), facts)
    np.testing.assert_allclose(weight, facts.alive / (N * G), rtol=1e-6)
    np.testing.assert_allclose(even.sum(), 1, rtol=1e-5)


def test_stages_that_compare_actions_are_refused_where_these_are_not_numbers():
    env = rlx.envs.make("Pendulum-v1")
    for algorithm in (grpo, grpo_recurrent):
        config = algorithm.Config(**VARIANTS["gigpo"], num_steps=200)
        with pytest.raises(ValueError, match="step_groups compares what was done"):
            algorithm.check(config, env)


def test_the_table_is_one():
    assert grpo.VARIANTS is grpo_tokens.VARIANTS is grpo_recurrent.VARIANTS is VARIANTS
