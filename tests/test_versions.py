"""The versions of packages that rlx admits."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from rlx import versions

CHECKOUT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("package", versions.TESTED)
def test_the_ranges_are_those_of_the_package(package):
    first, end = versions.TESTED[package]
    wanted = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]["dependencies"]
    (own,) = (line for line in wanted if line.startswith(f"{package}>"))
    assert {f">={first}", f"<{end}"} <= set(own.removeprefix(package).split(","))


@pytest.mark.parametrize(
    ("package", "installed", "fits"),
    [
        ("jax", "0.10.1", False),
        ("jax", "0.10.2", True),
        ("jax", "0.11.2", True),
        ("jax", "0.12.0.dev1", False),
        ("gymnax", "0.0.9", False),
        ("gymnax", "1.0.1", True),
    ],
)
def test_another_version_is_refused_and_the_range_is_named(monkeypatch, package, installed, fits):
    monkeypatch.setattr(versions, "version", lambda name: installed)
    monkeypatch.delenv(versions.SWITCH, raising=False)
    if fits:
        versions.check(package)
        return
    with pytest.raises(ImportError, match=f"works with {package} from .* and {installed} is installed"):
        versions.check(package)
    monkeypatch.setenv(versions.SWITCH, "any")
    versions.check(package)


OTHER = """
import importlib.metadata as metadata
version = metadata.version
metadata.version = lambda name: "9.0" if name == "{package}" else version(name)
import rlx
rlx.envs.make("CartPole-v1")
"""


@pytest.mark.parametrize("package", ["jax", "gymnax"])
def test_the_import_says_which_versions_work(package):
    environment = {name: value for name, value in os.environ.items() if name != versions.SWITCH}
    command = [sys.executable, "-c", OTHER.format(package=package)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert f"ImportError: rlx works with {package} from " in done.stderr
