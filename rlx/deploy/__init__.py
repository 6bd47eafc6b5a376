"""Policies that leave rlx: as ONNX, as StableHLO, and as one Python file that needs numpy alone."""

from rlx.faces import face

HOMES = {
    "program": "Port Program",
    "runner": "Policy",
    "write": "TARGETS Deployed deploy opened",
}
__all__, __getattr__, __dir__ = face(__name__, HOMES)
