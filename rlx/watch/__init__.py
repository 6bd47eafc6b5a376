"""A page of runs and sweeps that are under way or done: files to data, data to figures, figures to a local page.

The data and its state come without the extra `watch`; figures and the page need it.
"""

from rlx.faces import face

HOMES = {
    "follow": "Columns File Tail",
    "state": "State state_of_run state_of_sweep",
    "runs": "Run",
    "sweeps": "Lanes",
    "folders": "Folder opened",
    "serve": "server bound",
}
__all__, __getattr__, __dir__ = face(__name__, HOMES)
