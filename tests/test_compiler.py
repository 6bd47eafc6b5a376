"""What rlx asks of XLA, each in a process of its own: the switches are read once."""

import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from jax.extend.random import threefry2x32_p
from jax.sharding import NamedSharding, PartitionSpec

from rlx.devices.compiler import FLAG, WAIT, WEEK, active, in_use, known_flags
from rlx.devices.sharding import collectives

CHECKOUT = Path(__file__).resolve().parent.parent

# The sum of squares of the last of 32,769 rows (32768, 0, 0), and the switches.
SUM = """
import jax, jax.numpy as jnp, os
i = jnp.arange(32769.0)
sums = jax.jit(jax.vmap(lambda x: jnp.sum((jnp.eye(3) @ x) ** 2)))(jnp.stack([i, 0 * i, 0 * i], axis=1))
print(float(sums[-1]) == 2.0**30, os.environ["XLA_FLAGS"])
"""
# Two devices with a thread each work on 1,024 matrices each, 200 times; whether the last results are right.
SOLVE = """
import rlx, jax, jax.numpy as jnp
from jax.scipy.linalg import cholesky, lu_factor, lu_solve, solve_triangular
from jax.sharding import PartitionSpec as P
factor = jnp.tril(jax.random.normal(jax.random.key(0), (4, 512, 14, 14))) + 9 * jnp.eye(14)
ones = jnp.ones((4, 512, 14, 1))
def each(a, factor, ones):
    def step(zero, _):
        found = SOLUTION
        return zero + 0 * found.sum(), found[:, :8]
    return jax.lax.scan(step, 0.0, length=200)[1][-1]
mesh = jax.sharding.Mesh(jax.devices(), ("device",))
spread = jax.shard_map(each, mesh=mesh, in_specs=P("device"), out_specs=P("device"), check_vma=False)
print(bool(abs(jax.jit(spread)(factor @ factor.mT, factor, ones) - WANTED[:, :8]).max() < 1e-3))
"""
# Programs that did not end, or did not finish compiling, on some version with some change: see TESTED.
RESET = """
import rlx, jax
for name in ("CartPole-v1", "Pendulum-v1"):
    env = rlx.envs.make(name)
    reset = jax.jit(lambda key: jax.vmap(env.reset)(jax.random.split(key, 4)))
    print(bool(jax.numpy.isfinite(reset(jax.random.key(0)).obs).all()))
"""

# Of three lanes on two devices one takes a minute longer than the others; they meet at the end.
LATE = """
import rlx, jax, jax.numpy as jnp
from rlx.devices.spread import spread
jax.config.update("jax_num_cpu_devices", 2)
more = lambda carry: (carry[0] + 1, jnp.sin(carry[1]) + carry[1])
lane = lambda n: jax.lax.while_loop(lambda carry: carry[0] < n, more, (jnp.int32(0), jnp.ones(1000)))[1].mean() > 3
print(spread(lane)(jnp.array([10, 10, 25_000_000])).tolist())
"""


def output(code, flags, timeout=120, **variables):
    """What a process prints, and its complaints."""
    environment = {**os.environ, "XLA_FLAGS": flags, **variables}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=timeout
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip(), done.stderr


@pytest.mark.parametrize("flags", ["", "--xla_backend_optimization_level=1"])
def test_sums_of_compiled_programs_are_right(flags):
    added = f" {FLAG}=-reduce" if "keep_reductions_from_ynn" in active() else ""
    added += f" {WAIT}={WEEK}" if "wait_for_other_devices" in active() else ""
    assert output("import rlx" + SUM, flags)[0] == f"True {flags}{added}".replace("  ", " ").strip()


def test_flags_that_are_set_are_left_alone():
    assert output("import rlx" + SUM, f"{FLAG}= {WAIT}=50")[0] == f"True {FLAG}= {WAIT}=50"


@pytest.mark.slow
def test_devices_wait_for_one_that_is_later_than_xla_allows():
    assert output(LATE, "", timeout=600)[0] == "[True, True, True]"


@pytest.mark.skipif("wait_for_other_devices" not in active(), reason="this version of jaxlib is left as it is")
def test_a_device_that_is_later_than_a_limit_of_ones_own_ends_the_process():
    with pytest.raises(AssertionError, match="Termination timeout"):
        output(LATE.replace("25_000_000", "3_000_000"), f"{WAIT}=1 {WAIT.replace('terminate', 'warn_stuck')}=1")


def test_it_is_said_when_it_is_too_late():
    out, complaint = output("import jax; jax.devices(); import rlx; import os; print(os.environ['XLA_FLAGS'])", "")
    assert out == ""
    needed = "keep_reductions_from_ynn" in active()
    assert ("import rlx before JAX computes anything" in complaint) == needed


def test_nothing_is_changed_where_it_is_switched_off():
    code = "import rlx, jax, os; print(rlx.devices.compiler.active(), os.environ['XLA_FLAGS'])"
    lowered = "; print('while' in jax.jit(lambda key: jax.random.bits(key, (8,))).lower(jax.random.key(0)).as_text())"
    assert output(code + lowered, "", RLX_COMPILER="off")[0] == "[] \nTrue"


def test_another_word_for_the_switch_is_refused():
    environment = {**os.environ, "RLX_COMPILER": "no"}
    done = subprocess.run([sys.executable, "-c", "import rlx"], env=environment, capture_output=True, text=True)
    assert "RLX_COMPILER=no: give on, or off" in done.stderr


def test_changes_are_made_on_the_listed_versions_only(monkeypatch):
    monkeypatch.delenv("RLX_COMPILER", raising=False)
    monkeypatch.setattr("jaxlib.version.__version__", "0.10.3")
    assert active() == []
    monkeypatch.setattr("jaxlib.version.__version__", "0.10.2")
    names = ["keep_reductions_from_ynn", "wait_for_other_devices", "unroll_threefry", "solve_in_pieces"]
    assert active() == names


def test_keys_that_are_split_inside_of_a_vmap_compile_within_two_minutes():
    assert output(RESET, "")[0] == "True\nTrue"


def test_private_parts_of_jax_are_used_in_one_module():
    private = re.compile(r"jax\._src|jaxlib\.|\bmlir\b")
    folders = ("rlx", "envs", "algos", "experiments", "benchmarks")
    files = [path for folder in folders for path in (CHECKOUT / folder).rglob("*.py")]
    assert len(files) > 60
    assert [path.name for path in files if private.search(path.read_text())] == ["compiler.py"]


def test_flags_that_xla_does_not_know_are_left_out():
    flags = ("--xla_backend_optimization_level=1", "--xla_no_flag_of_this_name=1")
    assert known_flags(flags) == flags[:1]


def test_jax_is_in_use_once_it_has_devices():
    code = "import rlx, jax; used = rlx.devices.compiler.in_use; print(used(), jax.config.jax_num_cpu_devices)"
    assert output(f"{code}; jax.devices(); print(used())", "")[0] == "False -1\nTrue"
    assert in_use()


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
    assert ("while" in text) == ("unroll_threefry" not in active())  # of a version that is left as it is


def test_random_bits_are_those_of_jax():
    draw = "; import jax; print(jax.random.bits(jax.random.key(3), (5,)), jax.random.normal(jax.random.key(4), (2, 2)))"
    assert output("import rlx" + draw, "")[0] == output("import os" + draw, "")[0]


@pytest.mark.more
@pytest.mark.parametrize(
    ("solution", "wanted"),
    [
        ("cholesky(a + zero, lower=True)", "factor"),
        ("solve_triangular(factor + zero, factor @ ones, lower=True)", "ones"),
        ("lu_solve(lu_factor(a + zero), a @ ones)", "ones"),
    ],
    ids=["cholesky", "triangular", "lu"],
)
def test_linear_systems_on_several_devices_come_to_an_end(solution, wanted):
    code = SOLVE.replace("SOLUTION", solution).replace("WANTED", wanted)
    assert output(code, "--xla_force_host_platform_device_count=2")[0] == "True"


@pytest.mark.parametrize(
    ("devices", "number", "divided"), [(1, 4096, False), (2, 4096, True), (2, 218, False), (2, 220, True)]
)
def test_large_batches_of_matrices_are_divided_where_there_are_several_devices(devices, number, divided):
    # 14^3 / 3 operations are 914, of which 218 and 9/10 are the 200,000 that LAPACK leaves in one piece.
    mesh = jax.make_mesh((devices,), ("device",), devices=jax.devices()[:devices])
    spread = NamedSharding(mesh, PartitionSpec("device"))
    program = jax.jit(jnp.linalg.cholesky, in_shardings=spread).lower(jax.ShapeDtypeStruct((number, 14, 14), "float32"))
    assert ("while" in program.as_text()) == (divided and "solve_in_pieces" in active())


def test_a_batch_in_pieces_stays_where_it_is():
    mesh = jax.make_mesh((2,), ("device",))
    spread = NamedSharding(mesh, PartitionSpec("device"))
    matrices = jnp.eye(14) * jnp.arange(1, 4097.0)[:, None, None]
    program = jax.jit(jnp.linalg.cholesky, in_shardings=spread, out_shardings=spread).lower(matrices).compile()
    assert not collectives(program)
    np.testing.assert_allclose(program(jax.device_put(matrices, spread)), np.linalg.cholesky(matrices), rtol=1e-6)


def test_shapes_that_are_not_known_can_be_exported():
    (size,) = export.symbolic_shape("size")
    draw = jax.jit(lambda x: x + jax.random.normal(jax.random.key(0), x.shape))
    exported = export.export(draw)(jax.ShapeDtypeStruct((size,), "float32"))
    np.testing.assert_array_equal(exported.call(jnp.zeros(3)), draw(jnp.zeros(3)))


def test_factors_of_batches_whose_size_is_not_known_can_be_exported_for_several_devices():
    (size,) = export.symbolic_shape("size", constraints=["mod(size, 2) == 0"])
    spread = NamedSharding(jax.make_mesh((2,), ("device",)), PartitionSpec("device"))
    factor = jax.jit(jnp.linalg.cholesky, in_shardings=spread, out_shardings=spread)
    exported = export.export(factor)(jax.ShapeDtypeStruct((size, 3, 3), "float32"))
    matrices = jax.device_put(jnp.eye(3) * jnp.arange(1, 5.0)[:, None, None], spread)
    np.testing.assert_allclose(jax.jit(exported.call)(matrices), np.linalg.cholesky(matrices), rtol=1e-6)
