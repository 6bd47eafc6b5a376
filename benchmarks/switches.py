"""What each change of `rlx/devices/compiler.py` gains: the same programs with it and without it, in turns.

    python benchmarks/switches.py

Every measurement is a process of its own and compiles anew. A change for speed is measured by the processor time that a
program takes to trace and compile and by its steps per second of processor time; a change without which programs are
wrong or do not end, by whether they are right and end. On a version of jaxlib for which a change is not made there is
nothing to measure.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import median

from provenance import RESULTS, commit, machine, versions

from rlx.devices.compiler import TESTED, active

TIMED = """
import json, sys, time, rlx.algos.ppo, rlx.algos.sac
import rlx, jax
from rlx.devices import compiler
for name in sys.argv[2:]:
    getattr(compiler, name)()
env, config, algorithm = {setting}
started = time.process_time()
program = jax.jit(lambda key: rlx.train(algorithm, config, env, key)).lower(jax.random.key(0)).compile()
compiled = time.process_time()
jax.block_until_ready(program(jax.random.key(0)))
middle = time.process_time()
jax.block_until_ready(program(jax.random.key(1)))
steps = rlx.steps_taken(config, rlx.total_updates(config))
print(json.dumps({{"compile": compiled - started, "speed": steps / (time.process_time() - middle)}}))
"""
PPO = "rlx.envs.make('CartPole-v1'), rlx.algos.ppo.Config(total_steps=2**17), rlx.algos.ppo"
SAC = (
    "rlx.envs.make('Pendulum-v1'), rlx.algos.sac.Config(total_steps=3000, warmup_steps=1000, capacity=10_000, "
    "hidden_sizes=(64, 64)), rlx.algos.sac"
)
BREAKOUT = (
    "rlx.envs.make('Breakout-MinAtar'), rlx.algos.ppo.Config(total_steps=2**16, num_envs=64, num_minibatches=8, "
    "conv_features=(16,)), rlx.algos.ppo"
)
PROGRAMS = {"PPO, CartPole-v1": PPO, "PPO, Breakout-MinAtar": BREAKOUT, "SAC, Pendulum-v1": SAC}
SUMS = """
import sys, jax, jax.numpy as jnp
import rlx
from rlx.devices import compiler
for name in sys.argv[2:]:
    getattr(compiler, name)()
i = jnp.arange(32769.0)
sums = jax.jit(jax.vmap(lambda x: jnp.sum((jnp.eye(3) @ x) ** 2)))(jnp.stack([i, 0 * i, 0 * i], axis=1))
print('right' if sums[-1] == 2.0**30 else 'wrong')
"""
SYSTEMS = """
import sys, jax, jax.numpy as jnp
import rlx
from rlx.devices import compiler
for name in sys.argv[2:]:
    getattr(compiler, name)()
from jax.sharding import PartitionSpec as P
matrices = jnp.eye(14) * jnp.arange(1, 2049.0).reshape(4, 512, 1, 1)
def each(a):
    step = lambda zero, _: (zero + 0 * jnp.linalg.cholesky(a + zero).sum(), None)
    return jax.lax.scan(step, 0.0, length=200)[0][None]
mesh = jax.make_mesh((2,), ("device",), axis_types=(jax.sharding.AxisType.Auto,))
spread = jax.shard_map(each, mesh=mesh, in_specs=P("device"), out_specs=P("device"), check_vma=False)
print('right' if jnp.isfinite(jax.jit(spread)(matrices)).all() else 'wrong')
"""
LATE = """
import sys, jax, jax.numpy as jnp
jax.config.update("jax_num_cpu_devices", 2)
import rlx
from rlx.devices import compiler
from rlx.devices.spread import spread
for name in sys.argv[2:]:
    getattr(compiler, name)()
more = lambda carry: (carry[0] + 1, jnp.sin(carry[1]) + carry[1])
lane = lambda n: jax.lax.while_loop(lambda carry: carry[0] < n, more, (jnp.int32(0), jnp.ones(1000)))[1].mean() > 3
print('right' if spread(lane)(jnp.array([10, 10, 25_000_000])).all() else 'wrong')
"""
ENDS = {  # programs that are right only with a change, and the flags that they need
    "keep_reductions_from_ynn": ("squared lengths of 32,769 vectors", SUMS, ""),
    "solve_in_pieces": (
        "Cholesky factors of 2,048 matrices on two devices",
        SYSTEMS,
        "--xla_force_host_platform_device_count=2",
    ),
    "wait_for_other_devices": ("three lanes on two devices, one a minute longer", LATE, ""),
}
LIMIT = 200.0  # seconds after which a program counts as one that does not end


def output(code: str, changes: list[str], flags: str = "", limit: float | None = None) -> str:
    """What a process prints with only these changes; `no end` past the limit."""
    environment = os.environ | {"RLX_COMPILER": "off", "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", code, "-", *changes]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired:
        return "no end"
    if "Termination timeout" in done.stderr:
        return "ended by XLA"
    if done.returncode:
        raise RuntimeError(done.stderr)
    return done.stdout.strip().splitlines()[-1]


def ratios(change: str, setting: str, repeats: int) -> dict[str, dict[str, float]]:
    """Steps per second and time to trace and compile with the change, over those without it."""
    code, pairs = TIMED.format(setting=setting), []
    for i in range(repeats):
        others = [name for name in active() if name != change]
        sides = {"on": [*others, change], "off": others}
        order = sorted(sides, reverse=bool(i % 2))  # neither is always the first
        results = {side: json.loads(output(code, sides[side])) for side in order}
        on, off = results["on"], results["off"]
        pairs.append({key: on[key] / off[key] for key in on})
    columns = {key: sorted(pair[key] for pair in pairs) for key in pairs[0]}
    return {key: {"value": median(x), "low": x[0], "high": x[-1]} for key, x in columns.items()}


def main(change: str | None = None, repeats: int = 5, out: Path = RESULTS / "switches.json") -> None:
    """Measures and writes a JSON file.

    Args:
        change: measure only this one, and keep what the file has of the others.
        repeats: pairs of processes for each program.
        out: the file.
    """
    found = {change.__name__: {"versions": list(tested)} for change, tested in TESTED.items()}
    before = json.loads(out.read_text())["changes"] if change else {}
    for name in active():
        if change not in (None, name):
            found[name] = before[name]
        elif name in ENDS:
            what, code, flags = ENDS[name]
            states = {"on": [name], "off": []}
            found[name] |= {"what": what} | {state: output(code, on, flags, LIMIT) for state, on in states.items()}
        else:
            found[name]["programs"] = {program: ratios(name, text, repeats) for program, text in PROGRAMS.items()}
    about = {"commit": commit(), "machine": machine(), "versions": versions("jax", "jaxlib"), "repeats": repeats}
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({"changes": found, **about}, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    import tyro

    tyro.cli(main)
