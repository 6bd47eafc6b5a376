"""A deployed policy that acts, whatever computes it. A policy in numpy has a copy of this, so it needs numpy alone."""

import numpy as np


class Policy:
    """Acts by a function of arrays `[B, ...]`.

        policy.reset()                     # where an episode begins; only policies with a memory need it
        action = policy.act(obs)           # of one observation, or of B of them

    Args:
        call: the outputs for the inputs, lists of arrays: observations, memory and noise in, actions and memory out.
        ports: the inputs and outputs: names to (shape without the batch, dtype, axis of the batch), by kind, and the
            `starts` of memory by name.
        seed: of the noise.
    """

    def __init__(self, call, ports, seed=0):
        self.call, self.ports, self.random = call, ports, np.random.default_rng(seed)
        self.memory = None

    def reset(self, where=None):
        """Forgets what was seen: of all episodes, or of those of the bools `[B]`."""
        if where is None or self.memory is None:
            self.memory = None
            return
        starts = self._start(len(where))
        pick = lambda new, old: np.where(np.reshape(where, (-1, *[1] * (new.ndim - 1))), new, old)
        self.memory = [pick(*pair) for pair in zip(starts, self.memory)]  # noqa: B905 (any Python)

    def act(self, obs, noise=None):
        """The action for an observation, or actions for B of them; `noise` in place of what would be drawn."""
        given, single = [], None
        for name, (shape, dtype, _) in self.ports["observations"].items():
            x = obs
            for key in name.split(".")[1:]:
                x = x[int(key) if isinstance(x, (tuple, list)) else key]
            x = np.asarray(x, dtype)
            single = x.ndim == len(shape) if single is None else single
            if x.shape[x.ndim - len(shape) :] != tuple(shape) or x.ndim != len(shape) + (not single):
                raise ValueError(f"{name} has shape {x.shape}: one is {tuple(shape)}, and B have one more axis")
            given.append(x[None] if single else x)
        num = len(given[0])
        if self.memory is None or len(self.memory) == 0 or len(self.memory[0]) != num:
            if self.memory:
                raise ValueError(f"{num} observations, and {len(self.memory[0])} are remembered: call reset() before")
            self.memory = self._start(num)
        if noise is None:
            noise = [self._drawn(*port, num=num) for port in self.ports["noise"].values()]
        out = self.call([*given, *self.memory, *noise])
        count = len(self.ports["actions"])
        self.memory = list(out[count:])
        return self._action([x[0] if single else x for x in out[:count]])

    def _start(self, num):
        kinds = [dtype for _, dtype, _ in self.ports["memory"].values()]
        starts = zip(self.ports["starts"].values(), kinds)  # noqa: B905
        return [np.repeat(np.asarray(x, dtype)[None], num, 0) for x, dtype in starts]

    def _drawn(self, shape, dtype, axis, num):
        return self.random.random((*shape[:axis], num, *shape[axis:]), np.float32).astype(dtype)

    def _action(self, leaves):
        """The action in its structure, by the names of its parts."""
        names = [name.split(".")[1:] for name in self.ports["actions"]]
        if not names[0]:
            return leaves[0]
        found = {}
        for keys, x in zip(names, leaves):  # noqa: B905
            inside = found
            for key in keys[:-1]:
                inside = inside.setdefault(key, {})
            inside[keys[-1]] = x
        return self._tuples(found)

    def _tuples(self, tree):
        if not isinstance(tree, dict):
            return tree
        inside = {key: self._tuples(x) for key, x in tree.items()}
        return tuple(inside.values()) if all(key.isdigit() for key in inside) else inside
