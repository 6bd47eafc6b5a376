"""Spaces: samples lie within, membership, and the rescaling of unit actions."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnax.environments.spaces import Box as GymnaxBox
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kstest, uniform

from rlx.spaces import Box, Dict, Discrete, Tuple, check_spaces, num_free, rescale, size, unit

SPACES = {
    "bounded": Box(-2.0, 3.0, (4,)),
    "per dimension": Box(np.array([-1.0, 0.0]), np.array([1.0, 5.0]), (2,)),
    "unbounded": Box(-np.inf, np.inf, (3,)),
    "half bounded": Box(0.0, np.inf, (3,)),
    "mixed": Box(np.array([-np.inf, -1.0]), np.array([np.inf, 1.0]), (2,)),
    "image": Box(0.0, 1.0, (5, 5, 2)),
    "scalar": Box(-1.0, 1.0, ()),
    "half bounded far away": Box(-np.inf, -100.0, (3,)),
    "constant in a dimension": Box([-1.0, 0.3], [1.0, 0.3], (2,)),
    "bytes": Box(0, 255, (4,), jnp.uint8),
    "booleans": Box(0, 1, (4,), jnp.bool_),
    "integers": Box(-3, 3, (4,), jnp.int32),
    "unbounded integers": Box(-np.inf, np.inf, (4,), jnp.int32),
    "halves": Box(-0.1, 0.3, (4,), jnp.float16),
    "written as infinite": Box(-np.finfo(np.float32).max, np.finfo(np.float32).max, (4,)),
    "enormous": Box(-1e38, 1e38, (4,)),
    "discrete": Discrete(5),
    "sequence": Discrete(5, shape=(3,)),
}


@pytest.mark.parametrize("name", SPACES)
def test_samples_lie_within_the_space(name):
    space = SPACES[name]
    samples = jax.jit(jax.vmap(space.sample))(jax.random.split(jax.random.key(0), 100))
    assert samples.shape == (100, *space.shape)
    assert samples.dtype == space.dtype
    assert jax.vmap(space.contains)(samples).all()
    assert len(np.unique(samples)) > 1


def test_box_samples_are_uniform_where_bounded_and_normal_where_not():
    samples = jax.jit(jax.vmap(SPACES["mixed"].sample))(jax.random.split(jax.random.key(1), 2000))
    # Fixed keys: a correct sampler fails one choice of key in a thousand, and this one passes.
    assert kstest(samples[:, 0], "norm").pvalue > 1e-3
    assert kstest(samples[:, 1], uniform(-1.0, 2.0).cdf).pvalue > 1e-3


def test_discrete_samples_cover_the_space():
    samples = jax.vmap(Discrete(5).sample)(jax.random.split(jax.random.key(0), 200))
    assert set(np.asarray(samples).tolist()) == {0, 1, 2, 3, 4}


@pytest.mark.parametrize(
    ("space", "x"),
    [
        (Box(-1.0, 1.0, (2,)), np.array([0.0, 1.5])),
        (Box(-1.0, 1.0, (2,)), np.array([0.0, -1.5])),
        (Box(-1.0, 1.0, (2,)), np.array([0.0, np.nan])),
        (Box(-1.0, 1.0, (2,)), np.array([0.0])),
        (Box(-1.0, 1.0, (2,)), np.array([[0.0, 0.0]])),
        (Discrete(3), 3),
        (Discrete(3), -1),
        (Discrete(3), np.array([1])),
        (Discrete(3, shape=(2,)), np.array([1, 3])),
        (Discrete(3, shape=(2,)), 1),
        (Discrete(3), 1.5),
    ],
)
def test_what_is_out_of_bounds_or_shape_is_not_contained(space, x):
    assert not space.contains(x)


def test_bounds_are_contained():
    box = Box(-1.0, 1.0, (2,))
    assert box.contains(np.array([-1.0, 1.0]))
    assert Discrete(3).contains(0)
    assert Discrete(3).contains(2)


def test_rescale_maps_unit_actions_onto_the_bounds():
    box = Box(np.array([-2.0, 0.0]), np.array([4.0, 1.0]), (2,))
    unit = jnp.array([[-1.0, -1.0], [0.0, 0.0], [1.0, 1.0], [-7.0, 7.0]])
    np.testing.assert_allclose(rescale(box, unit), [[-2.0, 0.0], [1.0, 0.5], [4.0, 1.0], [-2.0, 1.0]])


@settings(derandomize=True, deadline=None, max_examples=25)
@given(st.floats(-1e3, 1e3, width=32), st.floats(-5, 5, width=32), st.floats(0.125, 100, width=32))
def test_rescaled_actions_lie_within_the_box(action, low, width):
    box = Box(low, low + width, (1,))
    expected = low + width * (np.clip(action, -1, 1) + 1) / 2
    # float32: low and low + width are rounded to 1e-7 of about 100, and so is the result.
    np.testing.assert_allclose(rescale(box, jnp.array([action])), [expected], atol=2e-5)


def test_rescale_passes_unbounded_and_discrete_actions_through():
    action = jnp.array([7.0, -9.0])
    np.testing.assert_array_equal(rescale(Box(-np.inf, np.inf, (2,)), action), action)
    np.testing.assert_array_equal(rescale(SPACES["mixed"], action), [7.0, -1.0])
    assert rescale(Discrete(4), jnp.int32(3)) == 3


def test_rescale_has_finite_gradients_where_a_dimension_is_unbounded():
    grad = jax.grad(lambda a: rescale(SPACES["mixed"], a).sum())(jnp.array([0.3, 0.3]))
    np.testing.assert_array_equal(grad, [1.0, 1.0])


def test_size_counts_network_inputs():
    assert size(Discrete(5)) == 5
    assert size(SPACES["sequence"]) == 15
    assert size(SPACES["image"]) == 50
    assert size(SPACES["scalar"]) == 1


def test_integers_and_booleans_are_drawn_up_to_both_bounds():
    draws = jax.vmap(Box(-1, 2, (), jnp.int32).sample)(jax.random.split(jax.random.key(0), 400))
    assert np.bincount(np.asarray(draws) + 1).min() > 70  # 100 expected, 9 standard deviation
    assert 150 < jax.vmap(Box(0, 1, (), jnp.bool_).sample)(jax.random.split(jax.random.key(0), 400)).sum() < 250


BOUNDS = {  # low, high and what unit actions -5, -1, 0, 1 and 5 become
    "lower bound": (0.0, np.inf, [0, 0, 1, 2, 6]),
    "lower bound far away": (100.0, np.inf, [100, 100, 101, 102, 106]),
    "upper bound": (-np.inf, 3.0, [-3, 1, 2, 3, 3]),
    "constant": (0.3, 0.3, [np.float32(0.3)] * 5),
    "constant 0": (0, 0, [0] * 5),
    "integers as bounds": (-2, 4, [-2, -2, 1, 4, 4]),
    "no bound": (-np.inf, np.inf, [-5, -1, 0, 1, 5]),
    "written as infinite": (-np.finfo(np.float32).max, np.finfo(np.float64).max, [-5, -1, 0, 1, 5]),
    "lower bound, upper written as infinite": (0.0, np.finfo(np.float32).max, [0, 0, 1, 2, 6]),
    "enormous": (-1e37, 1e37, [-1e37, -1e37, 0, 1e37, 1e37]),
}


@pytest.mark.parametrize("name", BOUNDS)
@pytest.mark.parametrize("form", [lambda x: x, lambda x: [x], lambda x: np.array([x]), lambda x: jnp.array([x])])
def test_one_bound_two_or_none_are_kept_exactly_and_unit_is_the_inverse(name, form):
    low, high, expected = BOUNDS[name]
    with np.errstate(over="ignore"):
        box = Box(form(low), form(high), (1,))
    actions = jnp.array([-5.0, -1.0, 0.0, 1.0, 5.0])[:, None]
    rescaled = jax.vmap(partial(rescale, box))(actions)
    np.testing.assert_array_equal(rescaled[:, 0], np.float32(expected))
    assert jax.vmap(box.contains)(rescaled).all()
    back = unit(box, rescaled)
    assert np.isfinite(back).all()
    np.testing.assert_allclose(rescale(box, back), rescaled)
    inside = (actions >= -1.0) & (actions <= 1.0) if low != high else actions == 0.0
    np.testing.assert_allclose(jnp.where(inside, back, 0.0), jnp.where(inside, actions, 0.0), atol=1e-6)


def test_the_gradient_is_the_slope_within_the_bounds_and_nothing_beyond_them():
    box = Box([-1.0, 0.0, -np.inf, 2.0, -np.inf], [3.0, np.inf, 0.0, 2.0, np.inf], (5,))
    grad = lambda a: jax.grad(lambda a: rescale(box, a).sum())(jnp.array(a))
    np.testing.assert_array_equal(grad([0.5] * 5), [2.0, 1.0, 1.0, 0.0, 1.0])
    np.testing.assert_array_equal(grad([-3.0, -3.0, 3.0, 3.0, 3.0]), [0.0, 0.0, 0.0, 0.0, 1.0])


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32, np.float64])
def test_actions_have_the_dtype_of_their_space_and_stay_in_its_bounds(dtype):
    box = Box(-0.1, 0.3, (1,), dtype)
    actions = jnp.linspace(-1.5, 1.5, 301)[:, None]
    rescaled = rescale(box, actions)
    assert rescaled.dtype == jax.dtypes.canonicalize_dtype(dtype)
    assert jax.vmap(box.contains)(rescaled).all()
    assert rescaled[0] == np.asarray(-0.1, rescaled.dtype)
    assert rescaled[-1] == np.asarray(0.3, rescaled.dtype)
    assert rescale(Discrete(3, jnp.uint8), jnp.int32(2)).dtype == jnp.uint8


def test_rounding_does_not_lead_beyond_a_bound():
    low, high = (np.float32(x) for x in (-0.86, 0.54))
    assert low + (high - low) * np.float32(1.0) > high  # so it has to be clipped
    assert rescale(Box(low, high, (1,)), jnp.ones(1)) == high


def test_dimensions_with_room_are_counted():
    assert num_free(Box([-1.0, 0.0, 2.0], [1.0, 0.0, 2.0], (3,))) == 1
    assert num_free(Box(-np.inf, np.inf, (3,))) == 3


class Spaces:
    def __init__(self, observation_space=None, action_space=None):
        self.observation_space = Box(-1.0, 1.0, (3,)) if observation_space is None else observation_space
        self.action_space = Box(-1.0, 1.0, (2,)) if action_space is None else action_space


FULL, INF = np.finfo(np.float32).max, np.inf
MALFORMED = [
    ({"x": Box(0.0, 1.0, (1,))}, r"of type dict: policies serve .*; write rlx.spaces.Dict\(...\)"),
    ((Box(0.0, 1.0, (1,)), Discrete(2)), r"of type tuple: policies serve .*; write rlx.spaces.Tuple\(...\)"),
    (Dict(), r"Dict\(\) is empty: (show a constant|use Discrete)"),
    (Dict(x=Tuple(Discrete(0), Discrete(2))), r"Discrete\(0\) has n = 0"),
    (GymnaxBox(0.0, 1.0, (1,)), r"of type gymnax\.environments\.spaces\.Box: policies serve rlx.spaces.Box"),
    (Box, "of type type: policies serve rlx.spaces.Box"),
    (Box(0.0, 1.0, (0,)), r"Box of shape \(0,\): a shape has integers of at least 1"),
    (Box(0.0, 1.0, 3), r"Box of shape 3: a shape has integers of at least 1"),
    (Box(1.0, 0.0, (2,)), r"goes from 1.0 to 0.0 at index \(0,\); put the bounds in order"),
    (Box([0.0, INF], [1.0, INF], (2,)), r"goes from inf to inf at index \(1,\)"),
    (Box(0.0, np.nan, (2,)), "goes from 0.0 to nan"),
    (Box(np.zeros(3), 1.0, (2,)), r"bounds of shapes \(3,\) and \(\); give it numbers that fit"),
    (Box("a", "b", (2,)), "give it numbers that fit"),
    (Box(0.0, 1.0, (2,), jnp.complex64), "has dtype .*complex64.*; give it a dtype of real numbers"),
    (Box(0.0, 1.0, (2,), "name"), "has dtype name; give it a dtype of real numbers"),
    (Discrete(0), r"Discrete\(0\) has n = 0; give it an integer"),
    (Discrete(2.0), r"Discrete\(2.0\) has n = 2.0; give it an integer"),
    (Discrete(True), "has n = True; give it an integer"),
    (Discrete(3, jnp.float32), "has dtype .*float32.*; give it a dtype of integers"),
    (Discrete(300, jnp.uint8), "uint8 ends at 255; give it a wider dtype"),
]


@pytest.mark.parametrize(("space", "message"), MALFORMED)
def test_a_malformed_space_is_refused_in_a_sentence_that_names_it(space, message):
    for role in ("observation", "action"):
        with pytest.raises(ValueError, match=f"^{role} space .*{message}") as caught:
            check_spaces(Spaces(**{f"{role}_space": space}))
        assert "\n" not in str(caught.value)
        assert "; " in str(caught.value) or ": " in str(caught.value)


@pytest.mark.parametrize(
    ("space", "asked", "message"),
    [
        (
            Discrete(3, shape=(2,)),
            {"actions": Discrete},
            r"Discrete\(3, shape=\(2,\)\): .* number the 3 \*\* 2 combinations",
        ),
        (Tuple(Discrete(3), Discrete(2)), {"actions": Discrete}, r"Tuple\(.*needs discrete actions; use .* or grpo$"),
        (Tuple(Discrete(3), Box(-INF, 1.0, (2,))), {"bounded": True}, "goes from -inf to 1 in dimension 0"),
        (Box(0, 3, (2,), jnp.int32), {}, "has dtype int32; use Discrete, or float32 and round"),
        (Box(0, 1, (2,), jnp.bool_), {}, "has dtype bool; use Discrete"),
        (Box(-1.0, 1.0, ()), {}, r"Box of shape \(\): policies act with vectors; give the Box one axis"),
        (Box(-1.0, 1.0, (2, 3)), {}, "give the Box one axis"),
        (Discrete(3), {"actions": Box}, "needs continuous actions; use .* or sac_discrete"),
        (Box(-1.0, 1.0, (2,)), {"actions": Discrete}, "needs discrete actions; use .* or sac"),
        (Box(-INF, INF, (2,)), {"bounded": True}, "goes from -inf to inf in dimension 0 .*; give it two with rlx.wrap"),
        (Box([-1.0, 0.0], [1.0, INF], (2,)), {"bounded": True}, "goes from 0 to inf in dimension 1"),
        (Box(-FULL, FULL, (2,)), {"bounded": True}, "in dimension 0"),
    ],
)
def test_actions_that_a_policy_does_not_have_are_refused(space, asked, message):
    with pytest.raises(ValueError, match=f"^action space .*{message}"):
        check_spaces(Spaces(action_space=space), **asked)


def test_categories_are_not_normalised():
    with pytest.raises(ValueError, match=r"Discrete\(4\): categories cannot be normalised; leave normalize_obs off"):
        check_spaces(Spaces(observation_space=Discrete(4)), normalized=True)


@pytest.mark.parametrize("name", SPACES)
def test_every_space_is_served_as_an_observation(name):
    check_spaces(Spaces(observation_space=SPACES[name]))


def test_bounds_that_are_traced_are_not_looked_at():
    jax.eval_shape(lambda x: check_spaces(Spaces(action_space=Box(-x, x, (2,))), bounded=True), jnp.ones(2))
    with pytest.raises(ValueError, match="give the Box one axis"):
        jax.eval_shape(lambda x: check_spaces(Spaces(action_space=Box(-x, x, (2, 2)))), 1.0)
