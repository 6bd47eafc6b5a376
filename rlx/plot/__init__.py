"""Pictures of runs and sweeps."""

from rlx.faces import face

HOMES = {
    "curves": "smooth losses curve learning_curves population",
    "hyperparameters": "sensitivity heatmap",
}
__all__, __getattr__, __dir__ = face(__name__, HOMES)
