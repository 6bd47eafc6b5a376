"""What rlx asks of XLA, each in a process of its own: the switches are read once."""

import os
import subprocess
import sys

import pytest

# The sum of squares of the last of 32,769 rows (32768, 0, 0), and the switches.
SUM = """
import jax, jax.numpy as jnp, os
i = jnp.arange(32769.0)
sums = jax.jit(jax.vmap(lambda x: jnp.sum((jnp.eye(3) @ x) ** 2)))(jnp.stack([i, 0 * i, 0 * i], axis=1))
print(float(sums[-1]) == 2.0**30, os.environ["XLA_FLAGS"])
"""
SWITCH = "--xla_cpu_experimental_ynn_fusion_type"


def output(code, flags):
    """What a process prints, and its complaints."""
    environment = {**os.environ, "XLA_FLAGS": flags}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip(), done.stderr


@pytest.mark.parametrize("flags", ["", "--xla_backend_optimization_level=1"])
def test_sums_of_compiled_programs_are_right(flags):
    assert output("import rlx" + SUM, flags)[0] == f"True {flags} {SWITCH}=-reduce".replace("  ", " ")


def test_a_switch_that_is_set_is_left_alone():
    assert output("import rlx" + SUM, f"{SWITCH}=")[0] == f"True {SWITCH}="


def test_it_is_said_when_it_is_too_late():
    out, complaint = output("import jax; jax.devices(); import rlx; import os; print(os.environ['XLA_FLAGS'])", "")
    assert out == ""
    assert "import rlx before JAX computes anything" in complaint
