"""Times one library in a process of its own. Runs in every peer's environment: the standard library and jax only."""

import json
import resource
import sys
import time
from collections.abc import Callable
from statistics import median

from provenance import versions

PACKAGES = ("rlx", "rejax", "jax", "jaxlib", "flax", "optax", "distrax", "tfp-nightly", "gymnax", "numpy")


def measure(program: Callable, settings: dict, num_runs: int) -> dict:
    """Import, trace and compile seconds, steps per second of the compiled program, cores that it used, and peak memory.

    Args:
        program: `settings -> (function, arguments, steps)`: imports the library and builds a whole run as a jitted
            function; `arguments(key)` is what it takes, `steps(result)` is how many environment steps it took.
        settings: the case, as in speed.py.
        num_runs: how many times the compiled program is timed, after one run that is not.

    Raises:
        RuntimeError: when the program took another number of steps than the settings ask for.
    """
    asked = settings["total_steps"] * settings.get("num_lanes", 1)
    (function, arguments, steps), import_seconds = timed(program, dict(settings))
    import jax

    keys = jax.block_until_ready(jax.random.split(jax.random.key(0), 1 + num_runs))  # starts the backend, untimed
    traced, trace_seconds = timed(function.trace, *arguments(keys[0]))
    compiled, compile_seconds = timed(lambda: traced.lower().compile())
    taken = int(steps(jax.block_until_ready(compiled(*arguments(keys[0])))))
    if taken != asked:
        raise RuntimeError(f"the program took {taken} steps where {asked} were asked for")
    cpu = time.process_time()
    run_seconds = [timed(lambda key: jax.block_until_ready(compiled(*arguments(key))), key)[1] for key in keys[1:]]
    cpu = time.process_time() - cpu
    speeds = [taken / seconds for seconds in run_seconds]
    return {
        "import_seconds": import_seconds,
        "trace_seconds": trace_seconds,
        "compile_seconds": compile_seconds,
        "run_seconds": run_seconds,
        "cores_used": cpu / sum(run_seconds),
        "steps": taken,
        "steps_per_second": {"median": median(speeds), "min": min(speeds), "max": max(speeds)},
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        * (1 if sys.platform == "darwin" else 1024),
        "device": jax.devices()[0].device_kind,
        "versions": versions(*PACKAGES),
    }


def timed(function: Callable, *args):
    """What the call returns, and its seconds."""
    start = time.perf_counter()
    result = function(*args)
    return result, time.perf_counter() - start


def main(program: Callable) -> None:
    """Prints, as its last line, the measurement of the settings and number of runs on the command line."""
    print(json.dumps(measure(program, json.loads(sys.argv[1]), int(sys.argv[2]))))
