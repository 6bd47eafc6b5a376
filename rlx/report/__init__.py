"""Comparisons of runs: statistics, groups, tables."""

from rlx.faces import face

HOMES = {
    "statistics": "BATCH iqm optimality_gap interval probability_of_improvement Curve along curve on_grid",
    "choosing": "Chosen choices chosen_online",
    "read": "runs setting_text",
    "compare": "FEW report",
    "text": "tables fill markdown decimals",
    "experiments": "experiment",
}
__all__, __getattr__, __dir__ = face(__name__, HOMES)
