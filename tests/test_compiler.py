"""What rlx asks of XLA, each in a process of its own: the switches are read once."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from jax.extend.random import threefry2x32_p

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


@pytest.mark.parametrize(
    ("words", "bits"),
    [
        ((0x00000000, 0x00000000, 0x00000000, 0x00000000), (0x6B200159, 0x99BA4EFE)),
        ((0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF), (0x1CB996FC, 0xBB002BE7)),
        ((0x13198A2E, 0x03707344, 0x243F6A88, 0x85A308D3), (0xC4923A9C, 0x483DF7A0)),
    ],
    ids=["zeros", "ones", "pi"],
)
def test_random_bits_are_those_of_threefry(words, bits):
    # The known answers that come with the authors' library, Random123, for 20 rounds.
    found = jax.jit(threefry2x32_p.bind)(*jnp.array(words, jnp.uint32)[:, None])
    assert [int(x[0]) for x in found] == list(bits)


def test_random_bits_are_compiled_as_one_expression():
    text = jax.jit(lambda key: jax.random.bits(key, (8,))).lower(jax.random.key(0)).as_text()
    assert "while" not in text


def test_random_bits_are_those_of_jax():
    draw = "; import jax; print(jax.random.bits(jax.random.key(3), (5,)), jax.random.normal(jax.random.key(4), (2, 2)))"
    assert output("import rlx" + draw, "")[0] == output("import os" + draw, "")[0]
