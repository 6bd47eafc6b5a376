"""A policy as ONNX, by jax2onnx, with a symbolic batch; onnxruntime runs it."""

import importlib
import warnings
from pathlib import Path
from typing import Any

import jax
import jax.export

from rlx.deploy.program import Program
from rlx.deploy.runner import Policy


def write(program: Program, path: Path) -> None:
    """Writes the policy as one ONNX file, the weights inside.

    Raises:
        ValueError: where jax2onnx is not installed, or cannot write an operation.
    """
    jax2onnx, onnx = imported("jax2onnx"), imported("onnx")
    (batch,) = jax.export.symbolic_shape("b")
    function = program.function(batch)  # traced here: the exporter puts its own in the place of functions of JAX
    inputs = [port.struct(batch) for port in program.inputs]
    names = {"input_names": [p.name for p in program.inputs], "output_names": [p.name for p in program.outputs]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter about itself
        model = jax2onnx.to_onnx(lambda *xs: tuple(function(*xs)), inputs, model_name="policy", **names)
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())


def opened(path: Path, table: dict[str, Any]) -> Policy:
    """The policy of a file, which has these inputs and outputs, under onnxruntime."""
    runtime = imported("onnxruntime")
    options = runtime.SessionOptions()
    options.log_severity_level = 3  # it warns of constants that the exporter left over
    session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [x.name for x in session.get_inputs()]
    return Policy(lambda inputs: session.run(None, dict(zip(names, inputs, strict=True))), table)


def imported(name: str) -> Any:
    """A module of the extra `onnx`. Raises ValueError where it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ValueError(f'{name} is needed for ONNX: pip install "rlx[onnx]"') from error
