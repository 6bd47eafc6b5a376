"""Times one library in a process of its own, in every peer's environment: the standard library, and jax where used."""

import json
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from statistics import median

from provenance import versions

PACKAGES = ("rlx", "rejax", "stable-baselines3", "sbx-rl", "jax", "jaxlib", "flax", "optax", "distrax", "tfp-nightly")
PACKAGES += ("gymnax", "gymnasium", "jaxmarl", "brax", "playground", "mujoco-mjx", "torch", "numpy")


def measure(program: Callable, settings: dict, num_runs: int, cached: bool = True) -> dict:
    """Import, trace and compile seconds, steps per second of the compiled program, cores that it used, and peak memory.

    Compiled anew, and where `cached` also as one that is in the persistent cache.

    Args:
        program: `settings -> (function, arguments, steps)`: imports the library and builds a whole run as a jitted
            function; `arguments(key)` is what it takes, `steps(result)` is how many environment steps it took.
        settings: the case, as in speed.py.
        num_runs: how many times the compiled program is timed, after one run that is not.
        cached: as above.

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
    found = runs([lambda key=key: jax.block_until_ready(compiled(*arguments(key))) for key in keys[1:]], taken)
    seconds = {"import_seconds": import_seconds, "trace_seconds": trace_seconds, "compile_seconds": compile_seconds}
    if cached:
        seconds["cached_seconds"] = from_cache(lambda: function.trace(*arguments(keys[0])))
    return seconds | found | {"device": jax.devices()[0].device_kind}


def from_cache(trace: Callable) -> float:
    """Seconds to have a program that has been traced and is in the persistent cache."""
    import jax
    from jax.experimental.compilation_cache import compilation_cache

    before = jax.config.jax_enable_compilation_cache
    with tempfile.TemporaryDirectory() as folder:
        jax.config.update("jax_enable_compilation_cache", True)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        compilation_cache.reset_cache()
        compilation_cache.set_cache_dir(folder)
        for _ in range(2):
            jax.clear_caches()  # those in memory
            _, seconds = timed(lambda traced: traced.lower().compile(), trace())
        jax.config.update("jax_enable_compilation_cache", before)
        compilation_cache.reset_cache()
    return seconds


def measure_loop(program: Callable, settings: dict, num_runs: int) -> dict:
    """The same of a library whose training is a loop in Python: what it compiles is within the run that is not timed.

    Args:
        program: `settings -> learn`: imports the library and makes an agent; `learn()` has it learn for `total_steps`
            more and returns how many it has taken in all.
        settings: the case, as in speed.py.
        num_runs: how many times it is timed, after one run that is not.

    Raises:
        RuntimeError: when it took another number of steps than the settings ask for.
    """
    learn, import_seconds = timed(program, dict(settings))
    learn()
    found = runs([learn] * num_runs, settings["total_steps"])
    if (taken := learn()) != (asked := (2 + num_runs) * settings["total_steps"]):
        raise RuntimeError(f"the program took {taken} steps where {asked} were asked for")
    return {"import_seconds": import_seconds} | found | {"device": "cpu"}


def runs(calls: list[Callable], steps: int) -> dict:
    """Speed of calls that take so many steps each, cores in use, and what the process has come to."""
    cpu = time.process_time()
    run_seconds = [timed(call)[1] for call in calls]
    cpu = time.process_time() - cpu
    speeds = [steps / seconds for seconds in run_seconds]
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "run_seconds": run_seconds,
        "cores_used": cpu / sum(run_seconds),
        "steps": steps,
        "steps_per_second": {"median": median(speeds), "min": min(speeds), "max": max(speeds)},
        "peak_memory_bytes": memory * (1 if sys.platform == "darwin" else 1024),
        "versions": versions(*PACKAGES),
    }


def timed(function: Callable, *args):
    """What the call returns, and its seconds."""
    start = time.perf_counter()
    result = function(*args)
    return result, time.perf_counter() - start


def main(program: Callable, measure: Callable = measure) -> None:
    """Prints, as its last line, the measurement of the settings and number of runs on the command line."""
    print(json.dumps(measure(program, json.loads(sys.argv[1]), int(sys.argv[2]))))


main_without_cache = partial(main, measure=partial(measure, cached=False))
