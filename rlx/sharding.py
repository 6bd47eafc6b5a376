"""For one release: what was here is in rlx.devices.sharding."""

from rlx.faces import moved

__getattr__ = moved(__name__, "rlx.devices.sharding")
