"""`batch_last` against `jax.vmap`, operation by operation, and what stays as it was."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from rlx.devices import batch_last as module
from rlx.devices.batch_last import batch_last

N = 32
KEY = jax.random.key(0)
PLACES = np.array([2, 0, 3, 3, 1])


def normal(*shape, seed=0):
    return jax.random.normal(jax.random.fold_in(KEY, seed), shape)


def spd(size):
    a = normal(N, size, size, seed=7)
    return a @ a.mT + size * jnp.eye(size)


X = normal(N, 4, 6)
Y = normal(N, 4, 6, seed=1)
V = normal(N, 6, seed=2)
CHOICE = jax.random.randint(KEY, (N,), 0, 4)


def until_small(v):
    """Halved until it is below 1: a different number of times for each example, which it counts."""
    return lax.while_loop(lambda c: jnp.abs(c[1]).max() > 1, lambda c: (c[0] + 1, c[1] / 2), (jnp.int32(0), 9 * v))


def solved(a, b, **options):
    return lax.linalg.triangular_solve(a, b, left_side=True, **options)


@jax.custom_vjp
def tripled(v):
    return 3 * jnp.sin(v)


tripled.defvjp(lambda v: (tripled(v), None), lambda _, g: (g,))


@jax.custom_batching.custom_vmap
def twice(v):
    return 2 * v


@twice.def_vmap
def _(axis_size, in_batched, v):
    return 5 * v, True  # not what it says, by which it is seen that it was asked


CASES = {
    "elementwise": (lambda x, y: jnp.where(x > y, x * y - 2, jnp.sin(x) / (3 + y**2)), (X, Y)),
    "scalar operands": (lambda x: lax.clamp(-0.5, x, x.sum()), (X,)),
    "a scalar condition": (lambda x, y: lax.select(x.sum() > 0, x, y), (X, Y)),
    "three cases": (lambda i, x, y: lax.select_n(i % 3, x, y, x + y), (CHOICE, X, Y)),
    "integers and bools": (lambda i, x: ((i * 3) % 5, ~(x > 0), (x > 0) & (i > 1)), (CHOICE, X)),
    "shapes": (lambda x: x.reshape(2, 2, 6).transpose(2, 0, 1)[:, None].squeeze(1), (X,)),
    "slices": (lambda x: (x[1:4:2, ::-1], x[-1], x[:, 2], x[..., None][1:]), (X,)),
    "concatenate": (lambda x, y: jnp.concatenate([x, y[:2], jnp.ones((1, 6))]), (X, Y)),
    "stack, tile, pad, split": (
        lambda x: (jnp.stack([x, 2 * x], 1), jnp.tile(x, (2, 1)), jnp.pad(x, ((1, 2), (0, 3))), jnp.split(x, 2)),
        (X,),
    ),
    "reductions": (lambda x: (x.sum(), x.max(0), x.min(1), x.prod(1), (x > 0).any(0), (x > -2).all((0, 1))), (X,)),
    "along an axis": (lambda x: (jnp.cumsum(x, 1), x.argmax(1), jnp.sort(x, 0), jnp.argsort(x[0])), (X,)),
    "chosen rows": (lambda x: (x[PLACES], x[:, PLACES], x[PLACES[:, None] - 1], x[1], x[np.arange(0, 4, 2)]), (X,)),
    "chosen far out": (lambda x: (x.at[np.array([7, 1])].get(mode="fill"), x.at[np.array([9])].get(mode="clip")), (X,)),
    "chosen pairs": (lambda x: x[PLACES, PLACES[::-1]], (X,)),
    "many rows": (lambda v: v[np.tile(np.array([3, 1, 4, 0]), 5)], (V,)),
    "computed places": (lambda x, i: (x[i], lax.dynamic_slice(x, (i, 1), (2, 3)), x.at[i].set(0)), (X, CHOICE)),
    "written rows": (lambda x, y: x.at[np.array([2, 0])].set(y[:2]), (X, Y)),
    "written twice": (lambda x, y: (x.at[PLACES].add(y[PLACES]), x.at[PLACES].multiply(y[PLACES])), (X, Y)),
    "written outside": (lambda x, y: x.at[np.array([9, 1])].set(y[:2]) + x.at[np.array([1, 9])].set(5.0), (X, Y)),
    "written columns": (lambda x, v: x.at[:, np.array([5, 1])].add(v[:2]), (X, V)),
    "written elements": (lambda x, v: x.at[PLACES, np.arange(5)].set(v[:5]), (X, V)),
    "products": (lambda x, y, v: (x @ v, x @ y.T, jnp.einsum("ij,ij->i", x, y), v @ v), (X, Y, V)),
    "a large product": (lambda x: jnp.einsum("ijk,ljk->il", x, x), (normal(N, 9, 8, 9),)),
    "products of several axes": (lambda x: jnp.einsum("ijk,ljk->il", x, x) + x.mean(), (normal(N, 3, 8, 9),)),
    "a loop over the last axis": (lambda x: jnp.einsum("bij,bkj->bik", x, x) @ x[0, 0], (normal(N, 2, 9, 9),)),
    "outer products": (lambda v: jnp.outer(v, v), (V,)),
    "cholesky": (lambda a: lax.linalg.cholesky(a, symmetrize_input=False), (spd(5),)),
    "cholesky of a lower triangle": (
        lambda a: lax.linalg.cholesky(jnp.tril(a) + jnp.triu(jnp.ones((5, 5)), 1), symmetrize_input=False),
        (spd(5),),
    ),
    "a large cholesky": (jnp.linalg.cholesky, (spd(26),)),
    "solved": (lambda a, v: jax.scipy.linalg.cho_solve(jax.scipy.linalg.cho_factor(a), v), (spd(6), V)),
    "solved, of 11": (
        lambda a, x: jnp.linalg.solve(a, x) + jax.scipy.linalg.solve(a, x, assume_a="pos"),
        (spd(11), normal(N, 11, 2)),
    ),
    **{
        f"triangular {lower}{transpose}{unit}": (
            partial(solved, lower=lower, transpose_a=transpose, unit_diagonal=unit), (spd(4), X)
        )
        for lower in (True, False)
        for transpose in (True, False)
        for unit in (True, False)
    },
    "a loop that ends apart": (until_small, (V,)),
    "a loop of one length": (lambda x, v: lax.fori_loop(0, 3, lambda i, v: v + x[i] * i, v), (X, V)),
    "a loop with a shared counter": (
        lambda v: lax.while_loop(lambda c: c[0] < 3, lambda c: (c[0] + 1, c[1] * c[0]), (1, v)), (V,)
    ),
    "scan": (lambda x, v: lax.scan(lambda v, row: (v + row, (v * row, v.sum())), v, x, reverse=True), (X, V)),
    "scan over what all share": (lambda v: lax.scan(lambda c, t: (c + t, c[0] * t), v, jnp.arange(3.0)), (V,)),
    "own branches": (lambda i, v: lax.switch(i, [jnp.sin, lambda v: v * 2, lambda v: -v, jnp.exp], v), (CHOICE, V)),
    "two branches": (lambda v: lax.cond(v.sum() > 0, lambda v: v, lambda v: jnp.zeros(6), v), (V,)),
    "a known branch": (lambda v: lax.switch(2, [jnp.sin, lambda v: v, lambda v: -v], v), (V,)),
    "inner vmap": (lambda x, v: jax.vmap(lambda row: row @ v)(x), (X, V)),
    "inner gradient": (lambda v: jax.grad(lambda v: jnp.sum(jax.nn.relu(v) ** 3))(v), (V,)),
    "rules within": (lambda v: jax.checkpoint(tripled)(v) + twice(v), (V,)),
    "rules of others": (lambda v: (jax.nn.softplus(v), jnp.linalg.norm(v), jnp.linalg.eigvalsh(jnp.outer(v, v))), (V,)),
    "random numbers": (lambda k, v: v + jax.random.normal(k, (6,)), (jax.random.split(KEY, N), V)),
    "nothing of the batch": (lambda v: (jnp.arange(3.0), 2, v), (V,)),
    "empty": (lambda v: (v[:0], jnp.zeros((0, 3)) @ v[:3], v[:0].sum()), (V,)),
    "half precision": (lambda v: (v.astype(jnp.bfloat16) @ v.astype(jnp.bfloat16), v.astype(jnp.int8)), (V,)),
}  # fmt: skip


@pytest.fixture(autouse=True)
def everywhere(monkeypatch):
    monkeypatch.setattr(module, "SMALLEST", 2)


def assert_same(found, wanted):
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a.dtype, b.dtype), found, wanted)
    as_numbers = lambda x: np.asarray(x, np.float64)
    # Sums of 26 terms of size 30 in another order, in float32.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(as_numbers(a), as_numbers(b), 3e-5, 3e-5), found, wanted)


@pytest.mark.parametrize("name", CASES)
def test_it_gives_what_vmap_gives(name):
    fun, args = CASES[name]
    assert_same(jax.jit(jax.vmap(batch_last(fun)))(*args), jax.jit(jax.vmap(fun))(*args))


def test_arguments_may_be_shared_and_mapped_along_any_axis():
    fun = lambda x, v, shared: x @ v + shared["bias"] * shared["scale"]
    shared = {"bias": jnp.arange(4.0), "scale": normal(N)}
    axes = (1, None, {"bias": None, "scale": 0})
    args = (jnp.moveaxis(X, 0, 1), V[0], shared)
    assert_same(jax.vmap(batch_last(fun), axes, out_axes=1)(*args), jax.vmap(fun, axes, out_axes=1)(*args))
    nested = lambda f: jax.vmap(jax.vmap(f, (0, None)), (0, 0))
    product = lambda x, v: x @ v
    x = normal(3, N, 4, 6)
    assert_same(nested(batch_last(product))(x, V[:3]), nested(product)(x, V[:3]))


def test_gradients_are_those_of_the_function():
    fun = lambda x, i: jnp.sin(x[i]) @ x[0]
    both = lambda f: jax.jit(jax.vmap(jax.value_and_grad(f)))(X, CHOICE)
    assert_same(both(batch_last(fun)), both(fun))
    total = lambda f: jax.grad(lambda x: jax.vmap(f)(x, CHOICE).sum())(X)
    assert_same(total(batch_last(fun)), total(fun))
    forward = lambda f: jax.jvp(lambda x: jax.vmap(f)(x, CHOICE), (X,), (Y,))
    assert_same(forward(batch_last(fun)), forward(fun))


@pytest.mark.parametrize("smallest", [2, N + 1])
def test_gradients_go_through_a_loop_over_steps(monkeypatch, smallest):
    """What does not depend on the example, a constant and a number that all share, is a result like any other."""
    monkeypatch.setattr(module, "SMALLEST", smallest)
    fun = lambda v, shared: (jnp.sin(v) * shared, jnp.array(False), 2 * shared)

    def total(fun, v, shared):
        def step(v, _):
            v, ended, more = jax.vmap(fun, (0, None))(v, shared)
            return v, jnp.where(ended | (more > 1e9), 0, v.sum(1)) + more

        return jax.lax.scan(step, v, None, 3)[1].sum()

    gradient = lambda fun: jax.jit(jax.value_and_grad(lambda v, s: total(fun, v, s), (0, 1)))(V, 1.5)
    assert_same(gradient(batch_last(fun)), gradient(fun))


def sines(fun, *args):
    """The shapes of the sines in the program of a mapped function."""

    def inside(jaxpr):
        for eqn in jaxpr.eqns:
            if eqn.primitive.name == "sin":
                yield eqn.outvars[0].aval.shape
            for inner in jax.tree.leaves(eqn.params, is_leaf=lambda x: hasattr(x, "jaxpr")):
                if hasattr(inner, "jaxpr"):
                    yield from inside(inner.jaxpr)

    return list(inside(jax.make_jaxpr(jax.vmap(batch_last(fun)))(*args).jaxpr))


def test_the_batch_is_last_where_it_is_large_and_the_version_tested(monkeypatch):
    fun = lambda v: jnp.sin(v)
    assert sines(fun, V) == [(6, N)]
    monkeypatch.setattr(module, "SMALLEST", N + 1)
    assert sines(fun, V) == [(N, 6)]
    monkeypatch.setattr(module, "SMALLEST", N)
    assert sines(fun, V) == [(6, N)]
    monkeypatch.setenv("RLX_COMPILER", "off")
    assert sines(fun, V) == [(N, 6)]
    monkeypatch.delenv("RLX_COMPILER")
    monkeypatch.setattr(module, "TESTED", ())
    assert sines(fun, V) == [(N, 6)]


def test_what_is_known_is_not_in_the_program():
    def masked(v):
        places = jnp.arange(6)
        return jnp.where((places % 2 == 0) & (places > 1), v, 0)[jnp.array([4, 2])]

    names = {eqn.primitive.name for eqn in jax.make_jaxpr(jax.vmap(batch_last(masked)))(V).jaxpr.eqns}
    assert not names & {"iota", "rem", "gt", "eq", "and", "gather"}
    assert_same(jax.vmap(batch_last(masked))(V), jax.vmap(masked)(V))
