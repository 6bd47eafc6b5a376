"""The check that this checkout is what is tested, and compiled programs that many tests share."""

import os
import sys
from importlib.util import find_spec
from pathlib import Path

os.environ.setdefault("RLX_TEST_FLAGS", os.environ.get("XLA_FLAGS", "fast"))  # before rlx adds a flag of its own

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

import rlx.devices.sharding
from rlx.devices.compiler import known_flags

# Most of the time of the tests goes to compiling small programs, which these flags halve where XLA knows them. The
# processes that tests start inherit them. `XLA_FLAGS= make test` tests with the defaults of XLA.
FAST = ("--xla_backend_optimization_level=1", "--xla_cpu_use_fusion_emitters=false")
if os.environ["RLX_TEST_FLAGS"] == "fast":
    os.environ["RLX_TEST_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *known_flags(FAST)]).strip()
    os.environ["XLA_FLAGS"] = os.environ["RLX_TEST_FLAGS"]

# Lanes are spread over devices here too; they are in use from now on, so that no test has others.
rlx.devices.sharding.use_devices(2)
CHECKOUT = Path(__file__).resolve().parent.parent


def pytest_configure(config):
    for name, folder in {"rlx": "rlx", "rlx.algos": "algos", "rlx.envs": "envs"}.items():
        spec = find_spec(name)
        origin = "nothing" if spec is None else Path(spec.origin).resolve()
        if origin != CHECKOUT / folder / "__init__.py":
            raise pytest.UsageError(f"{name} would be tested as {origin}, not from {CHECKOUT}: run pip install -e .")


@pytest.fixture(scope="session")
def compiled(tmp_path_factory):
    """A folder of this process for what it has compiled. JAX does not write its files at once, so none is shared."""
    return tmp_path_factory.mktemp("compiled") / "programs"


@pytest.fixture(scope="module", autouse=True)
def programs(request, compiled):
    """Compiled programs live as long as the tests of a file, and are compiled fast unless it says `EXACT = True`.

    Two programs that do the same, such as runs in one piece and in several, give the same bits only with some
    optimisation. Each program is mapped into memory in hundreds of pieces, and Linux ends a process that has more than
    65,530 of them: so they are left, and found again on disk by the tests of another file.
    """
    jax.config.update("jax_disable_most_optimizations", not getattr(request.module, "EXACT", False))
    keep_in(compiled)
    yield
    jax.clear_caches()


def keep_in(folder):
    """Has JAX keep all that it compiles from now on in a folder."""
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    compilation_cache.reset_cache()


@pytest.fixture(scope="module")
def command_cache(tmp_path_factory, compiled):
    """One cache of compiled programs for all commands of a module, away from the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield
    keep_in(compiled)


@pytest.fixture
def without(monkeypatch):
    """A function after which a package is not there, whatever of it other tests of this process have imported."""

    def hide(package):
        loaded = [name for name in sys.modules if name.startswith(package + ".")]
        for name in (package, *loaded):
            monkeypatch.setitem(sys.modules, name, None)  # an import of it fails

    return hide


@pytest.fixture(scope="session")
def ppo():
    from rlx.algos import ppo

    return ppo


@pytest.fixture(scope="session")
def cartpole():
    """Short episodes of CartPole, which end by falling as well as by the time limit."""
    from rlx import envs

    return envs.make("CartPole-v1", max_steps=12)


@pytest.fixture(scope="session")
def small(ppo):
    """A config of three updates that compiles fast."""
    sizes = {"num_envs": 4, "num_steps": 16, "num_epochs": 2, "num_minibatches": 2, "hidden_sizes": (16,)}
    return ppo.Config(total_steps=3 * 64, learning_rate=1e-2, **sizes)


@pytest.fixture(scope="session")
def init(ppo):
    return jax.jit(ppo.init)


@pytest.fixture(scope="session")
def update(ppo):
    return jax.jit(ppo.update)
