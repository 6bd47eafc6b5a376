"""Many runs as lanes of few compiled programs."""

from rlx.faces import face

HOMES = {
    "job": "EXAMPLE Job Lane apply listed_points check_sizes label describe plan",
    "strategies": "rungs exploit explore",
    "results": "Sweep members_of states_of returns_of score_of write_results draw_results",
    "train": "ROWS sweep execute",
}
__all__, __getattr__, __dir__ = face(__name__, HOMES)
