"""Flax networks: a torso for observations, and on top of it an actor, a critic, a memory, the velocity of a flow."""

from rlx.networks.generative import Denoiser, FourierVelocity, Velocity
from rlx.networks.heads import BOUNDED, POLICIES, ActionValues, Actor, Critic, TanhActor, action_size
from rlx.networks.recurrent import CELLS, Memory, empty_memory
from rlx.networks.torso import FILTERS, TORSOS, Module, Torso, activation, initialize, join, orthogonal

__all__ = [
    "BOUNDED",
    "CELLS",
    "FILTERS",
    "POLICIES",
    "TORSOS",
    "ActionValues",
    "Actor",
    "Critic",
    "Denoiser",
    "FourierVelocity",
    "Memory",
    "Module",
    "TanhActor",
    "Torso",
    "Velocity",
    "action_size",
    "activation",
    "empty_memory",
    "initialize",
    "join",
    "orthogonal",
]
