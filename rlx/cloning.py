"""For one release: what was here is in rlx.data.cloning."""

from rlx.faces import moved

__getattr__ = moved(__name__, "rlx.data.cloning")
