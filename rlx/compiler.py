"""A switch of XLA that results on a CPU depend on. Importing rlx sets it."""

import os
import warnings

from jax._src import xla_bridge
from jaxlib.version import __version_info__ as version

FLAG = "--xla_cpu_experimental_ynn_fusion_type"


def keep_reductions_from_ynn() -> None:
    """Have XLA compile sums over arrays on a CPU itself, rather than hand them to the library YNN.

    Since jaxlib 0.10.2 YNN gets them, and some come out wrong without a word: the squared lengths of 32,769 vectors
    after `vmap` over `matrix @ vector`, the natural gradients of ten seeds at once. Others never end. Its matrix
    products are right and stay. Nothing is done where XLA_FLAGS has the switch already, nor for versions that may not
    know it: XLA ends a process for an unknown one.

    Source: github.com/jax-ml/jax/issues/39103, github.com/jax-ml/jax/issues/39257.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if not (0, 10, 2) <= version < (0, 12) or FLAG in flags:
        return
    if xla_bridge.backends_are_initialized():
        text = (
            f"XLA may sum wrongly on a CPU: import rlx before JAX computes anything, or set XLA_FLAGS='{FLAG}=-reduce'"
        )
        warnings.warn(text, stacklevel=3)
        return
    os.environ["XLA_FLAGS"] = f"{flags} {FLAG}=-reduce".strip()


keep_reductions_from_ynn()
