"""`rlx envs`."""

import sys

from rlx.envs.registry import names


def envs(arguments: list[str]) -> None:
    """`rlx envs`."""
    if any(argument.startswith("-") for argument in arguments):
        print("usage: rlx envs [part of a name]")
        sys.exit(0 if arguments[0] in ("-h", "--help") else 2)
    found = [name for name in names() if all(part.lower() in name.lower() for part in arguments)]
    if not found:
        raise ValueError(
            f"no environment has {' and '.join(arguments)} in its name; gymnasium/NAME and envpool/NAME take names of "
            "their libraries, which are not listed here"
        )
    print("\n".join(found))
