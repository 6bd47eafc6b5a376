"""Where the time and the memory of a run go."""

from rlx.faces import face

HOMES = {
    "counts": "Cost ceilings cost seconds",
    "phases": "Part compiled fastest phases profile programs",
}
__all__, __getattr__, __dir__ = face(__name__, HOMES)
