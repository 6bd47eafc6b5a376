"""Flax networks: a torso for observations, and on top of it an actor, a critic, a memory, the velocity of a flow."""

from rlx.networks.generative import Denoiser, FourierVelocity, Velocity
from rlx.networks.heads import (
    BOUNDED,
    POLICIES,
    ActionValues,
    Actor,
    Critic,
    DeterministicActor,
    TanhActor,
    action_size,
)
from rlx.networks.noisy import NOISE, NoisyDense
from rlx.networks.norms import BLOCKS, STATS, BatchRenorm, BroBlock, Dropout, Residual, batch_renorm, unit_length
from rlx.networks.recurrent import CELLS, Memory, empty_memory
from rlx.networks.returns import ActionReturns, PredictiveCritic
from rlx.networks.torso import FILTERS, TORSOS, Module, Torso, activation, initialize, join, orthogonal, sparse
from rlx.networks.transformer import Cache, Transformer

__all__ = [
    "BLOCKS",
    "BOUNDED",
    "CELLS",
    "FILTERS",
    "NOISE",
    "POLICIES",
    "STATS",
    "TORSOS",
    "ActionReturns",
    "ActionValues",
    "Actor",
    "BatchRenorm",
    "BroBlock",
    "Cache",
    "Critic",
    "Denoiser",
    "DeterministicActor",
    "Dropout",
    "FourierVelocity",
    "Memory",
    "Module",
    "NoisyDense",
    "PredictiveCritic",
    "Residual",
    "TanhActor",
    "Torso",
    "Transformer",
    "Velocity",
    "action_size",
    "activation",
    "batch_renorm",
    "empty_memory",
    "initialize",
    "join",
    "orthogonal",
    "sparse",
    "unit_length",
]
