"""A run of PPO in Rejax as a script, for shell.py: trains, evaluates as Rejax does, and says what came of it."""

import json
import sys

import jax
from peers.rejax_ppo import agent

algorithm = agent(json.loads(sys.argv[1]))
state, (lengths, returns) = jax.jit(algorithm.train)(jax.random.key(0))
print(f"{int(state.global_step)} steps: mean return {returns[-1].mean():.1f}, length {lengths[-1].mean():.1f}")
