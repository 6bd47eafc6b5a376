"""The versions of packages with which rlx was tested, and the refusal of others. Importing refuses those of JAX."""

import os
import re
from importlib.metadata import version

SWITCH = "RLX_VERSIONS"
# From the first to below the second; pyproject.toml asks for the same.
TESTED = {"jax": ("0.10.2", "0.12"), "gymnax": ("1.0.1", "1.1")}


def check(package: str) -> None:
    """Raises ImportError where the installed version of the package is not in its range of `TESTED`.

    `RLX_VERSIONS=any` in the environment admits every version.
    """
    installed = version(package)
    first, end = TESTED[package]
    if os.environ.get(SWITCH) != "any" and not numbers(first) <= numbers(installed) < numbers(end):
        raise ImportError(
            f"rlx works with {package} from {first} to below {end}, and {installed} is installed: "
            f"pip install '{package}>={first},<{end}'; {SWITCH}=any tries it all the same"
        )


def numbers(text: str) -> tuple[int, ...]:
    """The leading numbers of a version: (0, 11, 2) for `0.11.2.dev1`."""
    return tuple(int(part) for part in re.findall(r"^\d+(?:\.\d+)*", text)[0].split("."))


check("jax")
