"""For one release: what was here is in rlx.data.demonstrations."""

from rlx.faces import moved

__getattr__ = moved(__name__, "rlx.data.demonstrations")
