"""Many runs as lanes of few compiled programs."""

from rlx.faces import face

HOMES = {
    "job": "SweepJob Lane apply check_sizes describe plan",
    "strategies": "STRATEGIES Grid Halving Population exploit explore",
    "results": "Sweep",
    "saved": "load_sweep saved_job",
    "train": "ROWS sweep execute",
}
__all__, __getattr__, __dir__ = face(__name__, HOMES)
