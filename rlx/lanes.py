"""For one release: what was here is in rlx.devices.spread."""

from rlx.faces import moved

__getattr__ = moved(__name__, "rlx.devices.spread")
