"""Demonstrations, and policies that imitate them."""

from rlx.faces import face

HOMES = {
    "exchange": "from_minari to_minari",
    "quality": "coverage trajectory_quality",
    "steps": "Columns columns drawn with_data",
    "demonstrations": "FORMAT LIMIT Demonstrations COLUMNS best collect disturbed mixture save load",
    "cloning": "AVERAGE FINAL_RATE VALIDATION clone examples started_from",
}
__all__, __getattr__, __dir__ = face(__name__, HOMES)
