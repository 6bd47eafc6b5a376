"""A policy as one Python file that needs numpy alone: every operation of the program as a line, the weights below."""

import ast
import base64
import inspect
import io
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.export
import numpy as np
from jax.extend.core import ClosedJaxpr, JaxprEqn, Literal, Var

from rlx.deploy import operations, runner
from rlx.deploy.flat import CALLS, Flat
from rlx.deploy.program import Program

UNARY = {"neg": "-{0}", "not": "~{0}", "sin": "np.sin({0})", "cos": "np.cos({0})", "tan": "np.tan({0})"}
UNARY |= {
    name: f"np.{name}({{0}})" for name in ("tanh", "exp", "exp2", "log", "log1p", "expm1", "sqrt", "sign", "floor")
}
UNARY |= {name: f"np.{name}({{0}})" for name in ("ceil", "sinh", "cosh", "abs", "square")}
UNARY |= {"is_finite": "np.isfinite({0})", "rsqrt": "1 / np.sqrt({0})", "stop_gradient": "{0}", "copy": "{0}"}
UNARY |= {"erf": "_erf({0})", "erf_inv": "_erf_inv({0})", "logistic": "_logistic({0})"}
UNARY |= {"asin": "np.arcsin({0})", "acos": "np.arccos({0})", "atan": "np.arctan({0})", "copy_p": "{0}"}
BINARY = {"add": "+", "sub": "-", "mul": "*", "and": "&", "or": "|", "xor": "^", "add_any": "+"}
BINARY |= {"gt": ">", "lt": "<", "ge": ">=", "le": "<=", "eq": "==", "ne": "!="}
BINARY |= {"shift_left": "<<"}
TWO = {"max": "np.maximum", "min": "np.minimum", "atan2": "np.arctan2", "rem": "np.fmod", "nextafter": "np.nextafter"}
REDUCED = {"reduce_sum": "sum", "reduce_max": "max", "reduce_min": "min", "reduce_prod": "prod"}
REDUCED |= {"reduce_and": "all", "reduce_or": "any"}
RUNNING = {"cumsum": "np.cumsum", "cumprod": "np.cumprod", "cummax": "np.maximum.accumulate"}
RUNNING |= {"cummin": "np.minimum.accumulate"}
WIDTH = 100  # of a line of weights
USE = "    policy = Policy()\n    policy.reset()\n    action = policy.act(obs)\n\nNeeds numpy alone."


class Unwritten(ValueError):
    """An operation that there is no numpy form of."""


class Writer:
    """Python lines for the operations of a program; a class for the names that they need."""

    def __init__(self, batch: str):
        self.batch, self.names, self.weights, self.used = batch, {}, {}, set()

    def name(self, x: Any) -> str:
        """The text of a variable or a literal."""
        if isinstance(x, Literal):
            return self.number(x.val, x.aval)
        if x not in self.names:
            self.names[x] = f"v{len(self.names)}"
        return self.names[x]

    def number(self, value: Any, aval: Any) -> str:
        array = np.asarray(value)
        kind = np.dtype(aval.dtype).name
        item = array.item()
        if isinstance(item, float) and not np.isfinite(item):
            return f"np.{kind}('{item}')"
        return f"np.{kind}({item!r})" if kind != "bool" else f"np.bool_({item!r})"

    def weight(self, var: Var, value: Any) -> str:
        """The name of an array that is kept in the file."""
        self.names[var] = f"w{len(self.weights)}"
        self.weights[self.names[var]] = np.asarray(value)
        return self.names[var]

    def lines(self, equations: Sequence[JaxprEqn]) -> list[str]:
        found = []
        for equation in equations:
            found += self.line(equation)
        return found

    def line(self, equation: JaxprEqn) -> list[str]:
        name, params = equation.primitive.name, equation.params
        given = [self.name(x) for x in equation.invars]
        if name in CALLS:
            inside = params[CALLS[name]]
            inside = inside if isinstance(inside, ClosedJaxpr) else ClosedJaxpr(inside, ())
            lines = self.begin(inside, given)
            lines += self.lines(inside.jaxpr.eqns)
            return lines + [
                f"{self.name(out)} = {self.name(x)}"
                for out, x in zip(equation.outvars, inside.jaxpr.outvars, strict=True)
            ]
        if name == "scan":
            return self.scan(equation, given)
        form = self.expression(name, equation, given)
        outs = ", ".join(map(self.name, equation.outvars))
        text = f"{outs} = {form}"
        self.used |= {word for word in vars(operations) if word.startswith("_") and f"{word}(" in text}
        return [text]

    def begin(self, inside: ClosedJaxpr, given: Sequence[str]) -> list[str]:
        """Assigns what a program inside is given, and its constants."""
        for var, value in zip(inside.jaxpr.constvars, inside.consts, strict=True):
            self.weight(var, value)
        return [f"{self.name(var)} = {x}" for var, x in zip(inside.jaxpr.invars, given, strict=True)]

    def scan(self, equation: JaxprEqn, given: Sequence[str]) -> list[str]:
        """A loop over the steps of a scan."""
        params, inside = equation.params, equation.params["jaxpr"]
        consts, carries = params["num_consts"], params["num_carry"]
        for var, value in zip(inside.jaxpr.constvars, inside.consts, strict=True):
            self.weight(var, value)
        names = [self.name(var) for var in inside.jaxpr.invars]
        outs = [self.name(var) for var in equation.outvars]
        lines = [f"{a} = {b}" for a, b in zip(names[: consts + carries], given[: consts + carries], strict=True)]
        index = f"i{len(self.names)}"
        stacked = outs[carries:]
        lines += [f"{out} = [None] * {params['length']}" for out in stacked]
        steps = f"range({params['length']})"
        lines.append(f"for {index} in {f'reversed({steps})' if params['reverse'] else steps}:")
        body = [
            f"{own} = {x}[{index}]" for own, x in zip(names[consts + carries :], given[consts + carries :], strict=True)
        ]
        body += self.lines(inside.jaxpr.eqns)
        results = [self.name(x) for x in inside.jaxpr.outvars]
        body += [f"{out}[{index}] = {x}" for out, x in zip(stacked, results[carries:], strict=True)]
        if carries:
            body.append(f"{', '.join(names[consts : consts + carries])} = {', '.join(results[:carries])}")
        lines += textwrap.indent("\n".join(body), "    ").split("\n")
        lines += [f"{out} = {x}" for out, x in zip(outs[:carries], names[consts : consts + carries], strict=True)]
        return lines + [f"{out} = np.stack({out})" for out in stacked]

    def shape(self, sizes: Sequence[Any]) -> str:
        """A shape, in which the batch may be a name."""
        texts = [str(size) for size in sizes]
        for text in texts:
            tree = ast.walk(ast.parse(text, mode="eval"))
            if any(isinstance(node, ast.Name) and node.id != self.batch for node in tree):
                raise Unwritten(f"a size of {text} depends on the batch in a way that has no numpy form")
        return f"({', '.join(texts)}{',' * (len(texts) == 1)})"

    def expression(self, name: str, equation: JaxprEqn, given: Sequence[str]) -> str:
        """What an operation gives, as an expression."""
        params, aval = equation.params, _aval(equation)
        if name in UNARY:
            return UNARY[name].format(*given)
        if name in BINARY:
            return f"{given[0]} {BINARY[name]} {given[1]}"
        if name in TWO:
            return f"{TWO[name]}({given[0]}, {given[1]})"
        if name in REDUCED:
            kind = f", dtype='{np.dtype(aval.dtype)}'" * (REDUCED[name] in ("sum", "prod"))  # numpy widens integers
            return f"{given[0]}.{REDUCED[name]}({tuple(params['axes'])}{kind})"
        if name in RUNNING:
            turned = f"np.flip({given[0]}, {params['axis']})" if params["reverse"] else given[0]
            form = f"{RUNNING[name]}({turned}, {params['axis']}, dtype='{np.dtype(aval.dtype)}')"
            return f"np.flip({form}, {params['axis']})" if params["reverse"] else form
        writer = WRITERS.get(name)
        if writer is None:
            raise Unwritten(f"the policy uses {name}, of which there is no numpy form: deploy it to another target")
        return writer(self, params, given, equation, aval)


def _aval(equation: JaxprEqn) -> Any:
    """Shape and dtype of what an operation gives first."""
    return equation.outvars[0].aval


def _broadcast(writer, params, given, equation, aval):
    placed, source = params["broadcast_dimensions"], equation.invars[0].aval
    shape = [source.shape[placed.index(i)] if i in placed else 1 for i in range(len(aval.shape))]
    inner = f"np.reshape({given[0]}, {writer.shape(shape)})" if len(shape) != len(source.shape) else given[0]
    return f"np.broadcast_to({inner}, {writer.shape(aval.shape)})"


def _select(writer, params, given, equation, aval):
    which, *cases = given
    if np.dtype(equation.invars[0].aval.dtype) == bool:
        return f"np.where({which}, {cases[1]}, {cases[0]})"
    return f"np.choose({which}, [{', '.join(cases)}])"


def _divided(writer, params, given, equation, aval):
    whole = np.issubdtype(np.dtype(aval.dtype), np.integer)
    return f"_divide({given[0]}, {given[1]})" if whole else f"{given[0]} / {given[1]}"


def _product(writer, params, given, equation, aval):
    (left, right), (first, second) = params["dimension_numbers"]
    x, y = (var.aval for var in equation.invars[:2])
    plain = not first and len(y.shape) == 2 and tuple(left) == (len(x.shape) - 1,) and tuple(right) == (0,)
    if plain:
        return f"{given[0]} @ {given[1]}"
    numbers = (tuple(left), tuple(right)), (tuple(first), tuple(second))
    return f"_dot({given[0]}, {given[1]}, {numbers[0]}, {numbers[1]})"


def _rounded(writer, params, given, equation, aval):
    away = params["rounding_method"] == jax.lax.RoundingMethod.AWAY_FROM_ZERO
    return f"_round({given[0]})" if away else f"np.rint({given[0]})"


def _shifted(writer, params, given, equation, aval):
    if not np.issubdtype(np.dtype(aval.dtype), np.unsignedinteger):
        raise Unwritten("the policy shifts bits of numbers with a sign, of which there is no numpy form")
    return f"{given[0]} >> {given[1]}"


def _sliced(writer, params, given, equation, aval):
    steps = params["strides"] or [1] * len(params["start_indices"])
    bounds = zip(params["start_indices"], params["limit_indices"], steps, strict=True)
    return f"{given[0]}[{', '.join(f'{a}:{b}:{c}' if c != 1 else f'{a}:{b}' for a, b, c in bounds)}]"


def _padded(writer, params, given, equation, aval):
    if any(low < 0 or high < 0 or inner for low, high, inner in params["padding_config"]):
        raise Unwritten("the policy pads by less than nothing or between elements, of which there is no numpy form")
    widths = tuple((low, high) for low, high, _ in params["padding_config"])
    return f"np.pad({given[0]}, {widths}, constant_values={given[1]})"


def _split(writer, params, given, equation, aval):
    return f"np.split({given[0]}, {np.cumsum(params['sizes'])[:-1].tolist()}, {params['axis']})"


def _iota(writer, params, given, equation, aval):
    axis, shape = params["dimension"], [1] * len(aval.shape)
    shape[axis] = aval.shape[axis]
    row = f"np.arange({aval.shape[axis]}, dtype='{np.dtype(aval.dtype)}').reshape({writer.shape(shape)})"
    return f"np.broadcast_to({row}, {writer.shape(aval.shape)})"


def _modes(mode) -> bool:
    return "CLIP" in str(mode) or "PROMISE" in str(mode)


def _blank(kind: np.dtype) -> Any:
    """What XLA gives for an entry that is not there, unless it is told."""
    if kind.kind == "f":
        return np.nan
    return True if kind.kind == "b" else np.iinfo(kind).min if kind.kind == "i" else np.iinfo(kind).max


def _gathered(writer, params, given, equation, aval):
    n = params["dimension_numbers"]
    batch = (tuple(n.operand_batching_dims), tuple(n.start_indices_batching_dims))
    axes = f"{writer.shape(params['slice_sizes'])}, {tuple(n.start_index_map)}, {tuple(n.offset_dims)}"
    axes = f"{axes}, {tuple(n.collapsed_slice_dims)}, {batch}"
    blank = params.get("fill_value")
    blank = _blank(np.dtype(aval.dtype)) if blank is None else blank
    return f"_gather({given[0]}, {given[1]}, {axes}, {_modes(params['mode'])}, {writer.number(blank, aval)})"


def _scattered(writer, params, given, equation, aval):
    n = params["dimension_numbers"]
    batch = (tuple(n.operand_batching_dims), tuple(n.scatter_indices_batching_dims))
    axes = f"{tuple(n.scatter_dims_to_operand_dims)}, {tuple(n.update_window_dims)}, {tuple(n.inserted_window_dims)}"
    add = equation.primitive.name == "scatter-add" or equation.primitive.name == "scatter_add"
    return f"_scatter({', '.join(given)}, {axes}, {batch}, {_modes(params['mode'])}, {add})"


def _convolved(writer, params, given, equation, aval):
    if any(x != 1 for x in (*params["lhs_dilation"], params["feature_group_count"], params["batch_group_count"])):
        raise Unwritten("the policy has convolutions in groups or with gaps, of which there is no numpy form")
    n = params["dimension_numbers"]
    x, kernel = (f"np.transpose({a}, {tuple(spec)})" for a, spec in zip(given, (n.lhs_spec, n.rhs_spec), strict=True))
    numbers = (
        f"{tuple(params['window_strides'])}, {tuple(map(tuple, params['padding']))}, {tuple(params['rhs_dilation'])}"
    )
    back = tuple(int(i) for i in np.argsort(n.out_spec))
    return f"np.transpose(_convolution({x}, {kernel}, {numbers}), {back})"


def _pooled(reduce: str, blank: str) -> Callable:
    def written(writer, params, given, equation, aval):
        if any(x != 1 for x in params["base_dilation"]):
            raise Unwritten("the policy pools with gaps, of which there is no numpy form")
        sizes, n = tuple(params["window_dimensions"]), len(aval.shape)
        numbers = f"{sizes}, {tuple(params['window_strides'])}, {tuple(map(tuple, params['padding']))}"
        view = f"_windows({given[0]}, {numbers}, {tuple(params['window_dilation'])}, {blank})"
        return f"{view}.{reduce}({tuple(range(n, 2 * n))})"

    return written


WRITERS: dict[str, Callable] = {
    "convert_element_type": lambda w, p, g, e, a: f"np.asarray({g[0]}).astype('{np.dtype(a.dtype)}')",
    "bitcast_convert_type": lambda w, p, g, e, a: f"{g[0]}.view('{np.dtype(a.dtype)}')",
    "broadcast_in_dim": _broadcast,
    "reshape": lambda w, p, g, e, a: f"np.reshape({g[0]}, {w.shape(a.shape)})",
    "squeeze": lambda w, p, g, e, a: f"np.squeeze({g[0]}, {tuple(p['dimensions'])})",
    "expand_dims": lambda w, p, g, e, a: f"np.expand_dims({g[0]}, {tuple(p['dimensions'])})",
    "transpose": lambda w, p, g, e, a: f"np.transpose({g[0]}, {tuple(p['permutation'])})",
    "rev": lambda w, p, g, e, a: f"np.flip({g[0]}, {tuple(p['dimensions'])})",
    "concatenate": lambda w, p, g, e, a: f"np.concatenate([{', '.join(g)}], {p['dimension']})",
    "select_n": _select,
    "clamp": lambda w, p, g, e, a: f"np.minimum(np.maximum({g[1]}, {g[0]}), {g[2]})",
    "div": _divided,
    "pow": lambda w, p, g, e, a: f"({g[0]} ** {g[1]}).astype('{np.dtype(a.dtype)}')",
    "round": _rounded,
    "shift_right_logical": _shifted,
    "integer_pow": lambda w, p, g, e, a: f"{g[0]} ** {p['y']}",
    "argmax": lambda w, p, g, e, a: f"{g[0]}.argmax({p['axes'][0]}).astype('{np.dtype(a.dtype)}')",
    "argmin": lambda w, p, g, e, a: f"{g[0]}.argmin({p['axes'][0]}).astype('{np.dtype(a.dtype)}')",
    "dot_general": _product,
    "slice": _sliced,
    "dynamic_slice": lambda w, p, g, e, a: f"_slice_at({g[0]}, ({', '.join(g[1:])},), {w.shape(p['slice_sizes'])})",
    "dynamic_update_slice": lambda w, p, g, e, a: f"_with_slice({g[0]}, {g[1]}, ({', '.join(g[2:])},))",
    "pad": _padded,
    "split": _split,
    "iota": _iota,
    "gather": _gathered,
    "scatter": _scattered,
    "scatter-add": _scattered,
    "conv_general_dilated": _convolved,
    "reduce_window_max": _pooled("max", "-np.inf"),
    "reduce_window_sum": _pooled("sum", "0"),
}


def write(program: Program, path: Path, title: str) -> None:
    """Writes the policy as a Python file with a class `Policy`.

    Args:
        program: the policy.
        path: of the file.
        title: a sentence that says what it is.

    Raises:
        ValueError: for an operation that has no numpy form.
    """
    (batch,) = jax.export.symbolic_shape("b")
    flat, writer = program.flat(batch), Writer("b")
    lines = [f"{_arguments(program, flat, writer)} = inputs", "b = inputs[0].shape[0]"]
    used = {x for equation in flat.equations for x in equation.invars if isinstance(x, Var)} | {
        x for x in flat.outputs if isinstance(x, Var)
    }
    for var, value in flat.constants.items():
        if var in used:
            writer.weight(var, value)
    lines += [*writer.lines(flat.equations), f"return [{', '.join(map(writer.name, flat.outputs))}]"]
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **writer.weights)
    text = base64.b64encode(buffer.getvalue()).decode()
    content = [
        f'"""{title}\n\n{USE}\n"""',
        "import base64\nimport io\nimport math\n\nimport numpy as np",
        *_sources(writer.used),
        "def compute(inputs):\n" + textwrap.indent("\n".join(lines), "    "),
        inspect.getsource(runner.Policy).replace("class Policy:", "class Runner:"),
        f"PORTS = {program.table!r}",
        "class Policy(Runner):\n    def __init__(self, seed=0):\n        super().__init__(compute, PORTS, seed)",
        'WEIGHTS = np.load(io.BytesIO(base64.b64decode("""\n' + "\n".join(textwrap.wrap(text, WIDTH)) + '\n""")))',
        "\n".join(f"{name} = WEIGHTS[{name!r}]" for name in writer.weights),
    ]
    path.write_text("\n\n\n".join(part.strip() for part in content if part) + "\n")


def opened(path: Path) -> runner.Policy:
    """The policy of a file that `write` has written; it is run, so it has to be one's own."""
    inside: dict[str, Any] = {"__name__": path.stem}
    exec(compile(path.read_text(), str(path), "exec"), inside)
    return inside["Policy"]()


def _arguments(program: Program, flat: Flat, writer: Writer) -> str:
    """The names of what the function is given, on the left of an assignment."""
    num = len(program.seen)
    kept = [var for var, used in zip(flat.inputs[:num], program.kept, strict=True) if used]
    names = [writer.name(var) for var in (*kept, *flat.inputs[num:-1], *flat.noise)]
    return f"[{', '.join(names)}]"


def _sources(used: set[str]) -> list[str]:
    """The operations that are used, and those that they use."""
    found = dict.fromkeys(sorted(used))
    for name in list(found):
        text = inspect.getsource(getattr(operations, name))
        found |= dict.fromkeys(other for other in vars(operations) if other.startswith("_") and f"{other}(" in text)
    return [inspect.getsource(getattr(operations, name)) for name in found if callable(getattr(operations, name, None))]
