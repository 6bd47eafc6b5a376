"""Programs of JAX without calls, without what no result depends on, and with noise as an input.

flat = Flat(function, inputs)       # abstract: nothing is computed
flat(*arrays, *noise)               # what the function gives, for these numbers in place of those it would draw
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.extend.core import ClosedJaxpr, JaxprEqn, Literal, Var

# Calls, by the parameter that holds the program inside.
CALLS = {"jit": "jaxpr", "closed_call": "call_jaxpr", "custom_jvp_call": "call_jaxpr", "custom_vjp_call": "call_jaxpr"}
FROM_BITS = ("shift_right_logical", "or", "bitcast_convert_type")  # what makes of random bits a number in [1, 2)


class Flat:
    """A function as a list of operations.

    What `jax.random` draws uniformly from [0, 1), of which normal, Gumbel and other numbers are made, becomes an input:
    noise. The operations that draw it, and all others that the outputs do not depend on then, are left out.

    Args:
        function: of arrays, pure, traceable.
        inputs: shapes and dtypes of its arguments; sizes may be symbolic.

    Attributes:
        equations: the operations, in their order.
        inputs: a variable for each argument.
        noise: variables that are to be given as well.
        drawing: the operations that draw noise.
        used: for each argument, whether the outputs depend on it.
        constants: arrays by their variables.
        outputs: variables and literals.
    """

    def __init__(self, function: Callable, inputs: Sequence[jax.ShapeDtypeStruct]):
        called = jax.make_jaxpr(function)(*inputs)
        whole = jax.make_jaxpr(lambda *args: _inlined(called, args))(*inputs)
        closed = jax.make_jaxpr(lambda *args: _without_factors_of_0(whole, args))(*inputs)
        self.inputs, self.outputs = closed.jaxpr.invars, closed.jaxpr.outvars
        self.constants = dict(zip(closed.jaxpr.constvars, closed.consts, strict=True))
        drawn = _uniform(closed.jaxpr.eqns)
        self.equations, needed = _needed(closed.jaxpr.eqns, self.outputs, drawn)
        self.noise = [x for equation in closed.jaxpr.eqns for x in equation.outvars if x in drawn & needed]
        self.drawing, _ = _needed(closed.jaxpr.eqns, self.noise, set())
        self.used = [x in needed for x in self.inputs]

    def __call__(self, *arrays: Any) -> list[Any]:
        """The outputs for the arguments and the noise, one after another."""
        values = self._values(self.equations, [*self.inputs, *self.noise], arrays)
        return [x.val if isinstance(x, Literal) else values[x] for x in self.outputs]

    def draw(self, *arrays: Any) -> list[Any]:
        """The noise that the function itself would draw for these arguments."""
        values = self._values(self.drawing, self.inputs, arrays)
        return [values[x] for x in self.noise]

    def _values(self, equations: Sequence[JaxprEqn], given: Sequence[Var], arrays: Sequence[Any]) -> dict[Var, Any]:
        values = {**self.constants, **dict(zip(given, arrays, strict=True))}
        for equation in equations:
            read = [x.val if isinstance(x, Literal) else values[x] for x in equation.invars]
            values |= zip(equation.outvars, _bound(equation, read), strict=True)
        return values


def _needed(equations: Sequence[JaxprEqn], outputs: Sequence[Any], given: set[Var]) -> tuple[list[JaxprEqn], set[Var]]:
    """The operations that the outputs depend on where some variables are given, and the variables they need."""
    needed, kept = {x for x in outputs if isinstance(x, Var)}, []
    for equation in reversed(equations):
        if needed & {*equation.outvars} and not given & {*equation.outvars}:
            kept.append(equation)
            needed |= {x for x in equation.invars if isinstance(x, Var)}
    return kept[::-1], needed


def _inlined(closed: ClosedJaxpr, args: Sequence[Any]) -> list[Any]:
    """The outputs of a program, its calls replaced by what they call; what depends on constants alone is computed."""
    values = dict(zip([*closed.jaxpr.constvars, *closed.jaxpr.invars], [*closed.consts, *args], strict=True))
    read = lambda x: x.val if isinstance(x, Literal) else values[x]
    for equation in closed.jaxpr.eqns:
        given = [read(x) for x in equation.invars]
        inside = equation.params.get(CALLS.get(equation.primitive.name, ""))
        if inside is not None:
            inside = inside if isinstance(inside, ClosedJaxpr) else ClosedJaxpr(inside, ())
            found = _inlined(inside, given)
        elif any(isinstance(x, Tracer) for x in given) or _is_symbolic(equation):
            found = _bound(equation, given)
        else:
            with jax.ensure_compile_time_eval():
                found = _bound(equation, given)
        values |= zip(equation.outvars, found, strict=True)
    return [read(x) for x in closed.jaxpr.outvars]


def _without_factors_of_0(closed: ClosedJaxpr, args: Sequence[Any]) -> list[Any]:
    """The outputs of a program without calls, in which 0 times what is drawn is 0: it is not to be drawn then."""
    equations, drawn = closed.jaxpr.eqns, _uniform(closed.jaxpr.eqns)
    values = dict(zip([*closed.jaxpr.constvars, *closed.jaxpr.invars], [*closed.consts, *args], strict=True))
    fixed = {*closed.jaxpr.constvars}  # what depends on nothing that is given
    for equation in equations:
        given = [x.val if isinstance(x, Literal) else values[x] for x in equation.invars]
        own = {x for x in equation.invars if isinstance(x, Var)}
        if own <= drawn | fixed:
            fixed |= {*equation.outvars}
        zero = equation.primitive.name == "mul" and any(isinstance(x, Literal) and x.val == 0 for x in equation.invars)
        aval = equation.outvars[0].aval
        found = [jnp.zeros(aval.shape, aval.dtype)] if zero and own <= drawn | fixed else _bound(equation, given)
        values |= zip(equation.outvars, found, strict=True)
    return [x.val if isinstance(x, Literal) else values[x] for x in closed.jaxpr.outvars]


def _bound(equation: JaxprEqn, given: Sequence[Any]) -> list[Any]:
    found = equation.primitive.bind(*given, **equation.params)
    return list(found) if equation.primitive.multiple_results else [found]


def _is_symbolic(equation: JaxprEqn) -> bool:
    return any(not isinstance(n, int) for var in equation.outvars for n in getattr(var.aval, "shape", ()))


def _uniform(equations: Sequence[JaxprEqn]) -> set[Var]:
    """The variables that hold uniform random numbers: bits with the exponent of 1 as floats, minus 1."""
    bits, found = set(), set()
    for equation in equations:
        name, (first, *rest) = equation.primitive.name, (*equation.invars, None)
        if name == "random_bits" or (name in FROM_BITS and first in bits):
            bits |= {*equation.outvars}
        elif name == "sub" and first in bits and isinstance(rest[0], Literal) and np.all(rest[0].val == 1):
            found |= {*equation.outvars}
    return found
