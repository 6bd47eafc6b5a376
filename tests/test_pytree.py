"""Dataclasses that cross transformations: which fields are traced, which are refused, what stacks."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlx import EnvState, per_env, pytree, replace, stack, static, traced
from rlx.normalize import RewardScale
from rlx.pytree import is_per_env, is_static, uncommitted
from rlx.replay import Replay


@pytree
class Inner:
    weight: float = 2.0
    depth: int = static(3)


@pytree
class Settings:
    rate: float = 0.5
    flag: bool = True
    size: int = static(4)
    delay: int = static(0, at_least=0)
    name: str = static("tanh")
    inner: Inner = Inner()


def counted(function):
    """The jitted function, and a list that grows by one with each trace."""
    traces = []

    def traced(*args):
        traces.append(1)
        return function(*args)

    return jax.jit(traced), traces


def test_fields_are_traced_unless_static():
    assert jax.tree.leaves(Settings(rate=0.25)) == [0.25, True, 2.0]
    assert [f.name for f in dataclasses.fields(Settings) if is_static(f)] == ["size", "delay", "name"]


def test_traced_values_share_one_program_and_static_values_do_not():
    function, traces = counted(lambda s: s.rate * s.size)
    assert function(Settings(rate=0.5)) == 2.0
    assert function(Settings(rate=0.75)) == 3.0
    assert len(traces) == 1
    assert function(Settings(rate=0.5, size=6)) == 3.0
    assert len(traces) == 2


def test_an_integer_for_a_float_is_the_same_program():
    function, traces = counted(lambda s: s.rate)
    results = [function(Settings(rate=1)), function(Settings(rate=1.0))]
    assert len(traces) == 1
    assert results[0].dtype == results[1].dtype == jnp.float32


def test_fields_can_be_vmapped_and_differentiated():
    loss = lambda s: s.rate**2 * s.size
    swept = jax.vmap(lambda rate: loss(replace(Settings(), rate=rate)))(jnp.array([1.0, 2.0]))
    np.testing.assert_array_equal(swept, [4.0, 16.0])
    assert jax.grad(lambda rate: loss(replace(Settings(), rate=rate)))(3.0) == 24.0


def test_fields_cannot_be_assigned():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Settings().rate = 1.0
    assert replace(Settings(), rate=0.125).rate == 0.125


@pytest.mark.parametrize("value", [0, -1, 4.0, "4", True, None])
def test_a_static_integer_refuses_other_types_and_values_below_its_bound(value):
    with pytest.raises(ValueError, match=r"Settings\.size = .*an integer of at least 1"):
        Settings(size=value)


def test_a_static_integer_accepts_its_bound():
    assert Settings(size=1, delay=0).delay == 0
    with pytest.raises(ValueError, match=r"Settings\.delay = -1"):
        Settings(delay=-1)


def test_nan_is_refused_with_the_name_of_the_field():
    with pytest.raises(ValueError, match=r"Settings\.rate is NaN"):
        Settings(rate=float("nan"))
    with pytest.raises(ValueError, match=r"Settings\.rate is NaN"):
        replace(Settings(), rate=float("nan"))
    assert Settings(rate=float("inf")).rate == float("inf")


def test_a_post_init_of_its_own_runs_too():
    @pytree
    class Checked:
        low: float = 0.0
        high: float = 1.0

        def __post_init__(self):
            if self.low > self.high:
                raise ValueError("low above high")

    with pytest.raises(ValueError, match="low above high"):
        Checked(low=2.0)
    with pytest.raises(ValueError, match=r"Checked\.low is NaN"):
        Checked(low=float("nan"))


def test_stack_puts_leaves_along_a_new_first_axis():
    stacked = stack([Settings(rate=r, inner=Inner(weight=10 * r)) for r in (1.0, 2.0, 3.0)])
    np.testing.assert_array_equal(stacked.rate, [1.0, 2.0, 3.0])
    np.testing.assert_array_equal(stacked.inner.weight, [10.0, 20.0, 30.0])
    np.testing.assert_array_equal(stacked.flag, [True] * 3)
    assert stacked.size == 4
    np.testing.assert_array_equal(jax.vmap(lambda s: s.rate * s.size)(stacked), [4.0, 8.0, 12.0])


def test_stack_names_the_static_fields_that_differ():
    with pytest.raises(ValueError, match=r"trees 0 and 2: .*size = 4 and 8, name = 'tanh' and 'relu'"):
        stack([Settings(), Settings(), Settings(size=8, name="relu")])
    with pytest.raises(ValueError, match="nested"):
        stack([Settings(), Settings(inner=Inner(depth=4))])


def test_stack_refuses_an_empty_list_and_trees_of_different_kinds():
    with pytest.raises(ValueError, match="at least one tree"):
        stack([])
    with pytest.raises(ValueError, match=r"cannot stack .*Inner.* and .*Settings.*: give trees of one class"):
        stack([Settings(), Inner()])


@pytree
class Bounded:
    offset: float = traced(at_most=2)
    share: float = traced(0.5, at_least=0, at_most=1)
    scale: float = traced(1.0, above=0)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"share": -0.1}, "Bounded.share = -0.1: it has to be at least 0 and at most 1"),
        ({"share": 2}, "Bounded.share = 2: it has to be at least 0 and at most 1"),
        ({"scale": 0.0}, "Bounded.scale = 0.0: it has to be above 0"),
        ({"scale": np.float64(-1)}, "Bounded.scale = .*-1.0.*: it has to be above 0"),
        ({"offset": 3}, "Bounded.offset = 3: it has to be at most 2"),
        ({"share": float("nan")}, "Bounded.share is NaN"),
    ],
)
def test_numbers_outside_of_their_bounds_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        Bounded(**{"offset": 0.0} | values)
    with pytest.raises(ValueError, match=message):
        replace(Bounded(offset=0.0), **values)


def test_bounds_that_are_accepted_are_accepted_and_fields_are_traced_all_the_same():
    for values in ({"share": 0}, {"share": 1.0}, {"scale": 1e-9}, {"scale": float("inf")}, {"offset": 2}):
        Bounded(**{"offset": 0.0} | values)
    function, traces = counted(lambda s: s.share * s.scale)
    assert function(Bounded(offset=0)) == 0.5
    assert function(Bounded(offset=0, share=1)) == 1.0
    assert len(traces) == 1


def test_bounds_do_not_look_at_arrays_and_tracers():
    outside = jnp.array([-1.0, 3.0])
    assert stack([Bounded(offset=o) for o in (0.0, 1.0)]).offset.shape == (2,)
    np.testing.assert_array_equal(Bounded(share=outside, offset=0.0).share, outside)
    np.testing.assert_array_equal(jax.vmap(lambda x: Bounded(share=x, offset=0.0).share)(outside), outside)


def test_what_is_uncommitted_is_the_same_and_bound_to_no_device():
    device = jax.devices()[0]
    tree = {"a": jax.device_put(jnp.arange(3), device), "b": 2.0, "key": jax.device_put(jax.random.key(5), device)}
    found = uncommitted(tree)
    assert tree["a"].committed
    assert not any(x.committed for x in jax.tree.leaves(found))
    np.testing.assert_array_equal(found["a"], tree["a"])
    assert (found["b"].dtype, found["key"].dtype) == (jnp.float32, tree["key"].dtype)
    assert bool(found["key"] == tree["key"])


@pytree
class Kinds:
    switch: bool = static(False)
    share: float = static(0.5, at_least=0)
    ratio: float = static(1.0, above=0)
    sizes: tuple[int, ...] = static((64, 64))
    word: str = static("tanh")
    number: int = static(4)
    rate: float = 0.1
    flag: bool = True
    count: int = traced(3, at_least=0)


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("switch", ("no", "False", 0, 0.0, 3, None, np.float32(1)), "give True or False"),
        ("flag", ("no", 0, 1.0, None, [True]), "give True or False"),
        (
            "sizes",
            (3, "64", (64.0,), (True,), [8, "8"], None, np.array([1.5])),
            "give integers of at least 1, as a tuple",
        ),
        ("word", (3, None, ("tanh",), b"tanh"), "give a word"),
        ("share", ("0.5", None, True, 1j), "give a number"),
        ("share", (-0.1,), "at least 0"),
        ("ratio", (0, -1.0), "above 0"),
        ("number", (4.0, np.float32(4), np.bool_(True), "4"), "give an integer of at least 1"),
        (
            "rate",
            ("x", None, 1j, [0.1], {}, True, len, np.complex64(1), np.array(["x"]), jnp.complex64(1)),
            "give a number",
        ),
        ("count", (2.5, 3.0, "3", None, 10**12), "give an integer"),
    ],
)
def test_values_of_another_kind_are_refused_by_the_name_of_their_field(name, values, message):
    for value in values:
        with pytest.raises(ValueError, match=rf"Kinds\.{name}.*{message}"):
            Kinds(**{name: value})
        with pytest.raises(ValueError, match=rf"Kinds\.{name}.*{message}"):
            replace(Kinds(), **{name: value})


@pytest.mark.parametrize("array", [np.asarray, jnp.asarray])
def test_scalars_of_numpy_and_jax_are_python_values_in_static_fields(array):
    given = {
        "switch": array(True),
        "ratio": array(0.5),
        "sizes": array([8, 4]),
        "number": array(7),
    }
    found = Kinds(**given)
    assert found == Kinds(switch=True, ratio=0.5, sizes=(8, 4), number=7)
    assert [type(x) for x in vars(found).values()] == [type(x) for x in vars(Kinds()).values()]


def test_scalars_of_numpy_become_python_numbers_in_traced_fields_and_arrays_of_jax_keep_their_dtype():
    found = Kinds(rate=np.asarray(0.25), count=np.int64(2), flag=np.bool_(True))
    assert (found.rate, found.count, found.flag) == (0.25, 2, True)
    assert [type(x) for x in vars(found).values()] == [type(x) for x in vars(Kinds()).values()]
    assert Kinds(rate=jnp.bfloat16(0.25)).rate.dtype == jnp.bfloat16
    assert Kinds(word=np.str_("relu"), sizes=[3]) == Kinds(word="relu", sizes=(3,))
    assert Kinds(rate=np.float32(0.1)).rate == float(np.float32(0.1))
    with pytest.raises(ValueError, match=r"Bounded\.share = .*1\.5"):
        Bounded(offset=0.0, share=np.asarray(1.5))


def test_pytrees_and_arrays_may_take_the_place_of_a_traced_number():
    assert Kinds(rate=Inner(weight=2.0)).rate.weight == 2.0
    np.testing.assert_array_equal(Kinds(rate=np.array([1.0, 2.0])).rate, [1.0, 2.0])
    with pytest.raises(ValueError, match=r"Kinds\.number is traced, and it is static"):
        jax.vmap(lambda x: Kinds(number=x).rate)(jnp.arange(2))


def test_fields_say_that_they_are_per_environment():
    """Those of `EnvState`, all of them; the data of a replay buffer; and of a State whatever it marks itself."""
    marked = lambda kind: [field.name for field in dataclasses.fields(kind) if is_per_env(field)]
    assert marked(EnvState) == ["state", "obs", "time", "episode_return", "reported", "pace"]
    assert marked(Replay) == ["data"]
    assert marked(RewardScale) == ["discounted"]

    @pytree
    class State:
        params: dict
        memory: jax.Array = per_env()

    assert marked(State) == ["memory"]
    assert jax.tree.leaves(State({}, jnp.ones(3)))[0].shape == (3,)
