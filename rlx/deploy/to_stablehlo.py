"""A policy as StableHLO, with a symbolic batch: `jax.export.deserialize` reads it, and compilers of StableHLO do."""

from pathlib import Path
from typing import Any

import jax
import jax.export
import numpy as np

from rlx.deploy.program import Program
from rlx.deploy.runner import Policy

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


def write(program: Program, path: Path) -> None:
    """Writes the policy as `jax.export` serialises it, for CPUs, GPUs and TPUs."""
    (batch,) = jax.export.symbolic_shape("b")
    structs = [port.struct(batch) for port in program.inputs]
    with jax.default_matmul_precision("float32"):
        exported = jax.export.export(jax.jit(program), platforms=PLATFORMS)(*structs)
    path.write_bytes(exported.serialize())


def opened(path: Path, table: dict[str, Any]) -> Policy:
    """The policy of a file, which has these inputs and outputs."""
    call = jax.jit(jax.export.deserialize(bytearray(path.read_bytes())).call)
    return Policy(lambda inputs: [np.asarray(x) for x in call(*inputs)], table)
