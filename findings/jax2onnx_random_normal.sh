#!/usr/bin/env bash
# jax2onnx 0.17.1 (jax 0.10.2, onnxruntime 1.32.0): `jax.random.normal` of a key becomes a RandomNormal without the key,
# in an opset that onnxruntime has no kernel of.
#
# In JAX, normal(key, shape) is a constant function of its key. The converted graph of x + normal(key, x.shape) is
#     RandomNormal, RandomNormalLike, Add
# whether the key is a constant or an input: no node reads the key, so a runtime would draw other numbers at every call.
# onnx.checker accepts the model. At the opset that to_onnx writes by default, 23, InferenceSession raises
#     NOT_IMPLEMENTED : Could not find an implementation for RandomNormal(22)
# With the batch dynamic, ("B", 4) in place of (3, 4), to_onnx itself raises InconclusiveDimensionOperation, while
# x + 1 of the same shape is converted.
#
# Exits with 0 while that is so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet jax2onnx==0.17.1 jax==0.10.2 onnxruntime==1.32.0 onnx==1.23.2
"$folder/venv/bin/python" - <<'PY'
import jax
import jax2onnx
import numpy as np
import onnx
import onnxruntime

shape, key = jax.ShapeDtypeStruct((3, 4), np.float32), jax.random.PRNGKey(0)
fixed = jax2onnx.to_onnx(lambda x: x + jax.random.normal(key, x.shape), [shape])
given = jax2onnx.to_onnx(
    lambda x, key: x + jax.random.normal(key, x.shape), [shape, jax.ShapeDtypeStruct((2,), np.uint32)]
)
for model in (fixed, given):
    onnx.checker.check_model(model)
    kinds = [node.op_type for node in model.graph.node]
    assert kinds == ["RandomNormal", "RandomNormalLike", "Add"], kinds
read = {name for node in given.graph.node for name in node.input}
assert given.graph.input[1].name not in read, "changed: the key is read"
try:
    onnxruntime.InferenceSession(fixed.SerializeToString())
except Exception as error:
    print("still so:", str(error)[:120])
    assert "Could not find an implementation for RandomNormal" in str(error), error
else:
    raise SystemExit("changed: onnxruntime has this RandomNormal")
jax2onnx.to_onnx(lambda x: x + 1, [("B", 4)])
try:
    jax2onnx.to_onnx(lambda x: x + jax.random.normal(key, x.shape), [("B", 4)])
except Exception as error:
    print("still so:", type(error).__name__)
    assert type(error).__name__ == "InconclusiveDimensionOperation", error
else:
    raise SystemExit("changed: a dynamic batch is converted")
PY
