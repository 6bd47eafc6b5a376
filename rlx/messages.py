"""What is said of a name that does not exist."""

import difflib


def unknown_name(kind: str, name: str, known: list[str]) -> str:
    """What to say of a `kind` of thing that has no such `name`: the closest that are known, or all."""
    close = difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(close)}?" if close else f"there are {', '.join(known)}"
    return f"unknown {kind} {name!r}: {hint}"
