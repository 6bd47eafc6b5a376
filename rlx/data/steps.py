"""Data to learn from: demonstrations as columns that a compiled update draws its minibatches of.

    data = columns(env, load(Path("demonstrations.npz")))
    state, metrics = rlx.train(iql, config, env, key, data=data)

An algorithm learns from data whose `update` has an argument of that name. What is in a column and where an episode ends
is said in `rlx.data.demonstrations`.
"""

from functools import partial
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rlx.data.cloning import examples
from rlx.data.demonstrations import Demonstrations
from rlx.env import Env
from rlx.pytree import pytree
from rlx.wrappers import Chunked


@pytree
class Columns:
    """Steps of whole episodes one after another, leaves `[M, ...]`."""

    obs: Any
    action: Any  # in unit coordinates, where the bounds of a Box are -1 and 1; of a Discrete int32
    reward: jax.Array  # float32, raw
    next_obs: Any  # the true successor, also where an episode ends
    terminated: jax.Array
    truncated: jax.Array

    @property
    def returns(self) -> np.ndarray:
        """Undiscounted return of each episode, float64 `[E]`."""
        ends = np.flatnonzero(np.asarray(self.terminated | self.truncated))
        return np.diff(np.cumsum(np.asarray(self.reward, np.float64))[ends], prepend=0.0)


def columns(env: Env, demonstrations: Demonstrations) -> Columns:
    """Demonstrations as what an algorithm learns from in `env`, on the device; of observations the dtypes stay.

    Raises:
        ValueError: where they do not have the shapes of the environment's spaces, have actions out of its bounds, or
            where the environment takes chunks of actions.
    """
    if isinstance(env.environment, Chunked):
        raise ValueError("data is of single actions: make the environment without chunk=")
    obs, action = examples(env, demonstrations)
    shapes = [jax.tree.map(np.shape, tree) for tree in (obs, demonstrations.next_obs)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"next_obs of the demonstrations has shape {shapes[1]}, and obs {shapes[0]}")
    on_device = lambda tree: jax.tree.map(jnp.asarray, tree)
    numbers = lambda x: jnp.asarray(x, jnp.float32 if np.issubdtype(x.dtype, np.floating) else jnp.int32)
    return Columns(
        obs=on_device(obs),
        action=jax.tree.map(numbers, action),
        reward=jnp.asarray(demonstrations.reward, jnp.float32),
        next_obs=on_device(demonstrations.next_obs),
        terminated=jnp.asarray(demonstrations.terminated, bool),
        truncated=jnp.asarray(demonstrations.truncated, bool),
    )


def with_data(algorithm: ModuleType, data: Columns) -> ModuleType:
    """The algorithm whose `update(config, env, state)` is given this data, for what knows of none."""
    module = ModuleType(algorithm.__name__)
    vars(module).update(vars(algorithm))
    vars(module)["update"] = partial(algorithm.update, data=data)
    return module


def drawn(env: Env, key: jax.Array, num: int) -> Columns:
    """Columns of `num` random steps that nothing can be learned from: first observations, with any actions.

    They have the shapes and the dtypes of data of this environment, for a look at an algorithm where there is none.
    Rewards are normal, and every fourth step ends its episode, in turn by termination and by truncation.
    """
    reset_key, action_key, reward_key = jax.random.split(key, 3)
    obs = jax.vmap(env.reset)(jax.random.split(reset_key, num + 1)).obs
    sample = lambda key: env.action_space.sample(key)
    actions = jax.vmap(sample)(jax.random.split(action_key, num))
    ends = jnp.arange(num) % 4 == 3
    found = Demonstrations(
        obs=jax.tree.map(lambda x: np.asarray(x[:-1]), obs),
        next_obs=jax.tree.map(lambda x: np.asarray(x[1:]), obs),
        action=jax.tree.map(np.asarray, actions),
        reward=np.asarray(jax.random.normal(reward_key, (num,))),
        terminated=np.asarray(ends & (jnp.arange(num) % 8 == 3)),
        truncated=np.asarray(ends & (jnp.arange(num) % 8 == 7)),
        source=np.zeros(num, np.int32),
        about={},
    )
    return columns(env, found)


__all__ = ["Columns", "columns", "drawn", "with_data"]
