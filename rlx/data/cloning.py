"""Behaviour cloning: a policy from demonstrations, by supervised learning of the algorithm's own actor.

An algorithm that can be cloned into has `cloning_loss(config, env, params, obs, action, key) -> [B]`: the loss of
demonstrated actions, in unit coordinates, at observations as its networks see them; and the actor is `params["actor"]`.
One whose policy remembers has `cloning_loss(config, env, params, obs, action, key, reset) -> [B, L]`, of sequences of
consecutive steps, and its memory is `params["memory"]`.
"""

import dataclasses
import itertools
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rlx.data.demonstrations import Demonstrations
from rlx.env import Env
from rlx.normalize import normalize, statistics, update_statistics
from rlx.objectives import Elements
from rlx.policy import remembers
from rlx.pytree import num_rows, replace
from rlx.spaces import Discrete, parts, unit
from rlx.train import check, now
from rlx.wrappers import Chunked

AVERAGE = 0.995  # decay of the average of the weights; Ren et al. 2024
FINAL_RATE = 0.1  # of the first, by a cosine
COPIES = ("pretrained", "average")  # fields of a State that hold the actor once more
VALIDATION = 16_384  # at most so many steps are looked at each time


def clone(
    algorithm: Any,
    config: Any,
    env: Env,
    demonstrations: Demonstrations,
    key: jax.Array,
    num_steps: int = 20_000,
    batch_size: int = 256,
    learning_rate: float = 1e-3,
    validation_share: float = 0.1,
    num_rows: int = 50,
    show: Callable[[dict[str, float]], None] = lambda row: None,
    objective: Any = None,
    period: int = 8,
) -> tuple[Any, list[dict[str, float]]]:
    """A fresh State whose actor imitates the demonstrations, and how it came there.

    Adam, its rate falling to a tenth by a cosine, on random batches of steps; the weights are averaged, and of
    `num_rows` looks at episodes that are held out, the average with the lowest loss there is kept. The statistics of
    observations are those of the demonstrations, where the config normalises; everything else is as `init` has it.

    Args:
        algorithm: has a `cloning_loss`.
        config: its Config; `normalize_obs` and what shapes the networks count here.
        env: that of the demonstrations; where it takes chunks of actions, these are learned, their last action
            repeated after the end of an episode.
        demonstrations: of single actions.
        key: of the split, the first weights and the batches.
        num_steps: gradient steps.
        batch_size: steps of the environment in each; of a policy that remembers, in sequences of `sequence_length`.
        learning_rate: of the first gradient step.
        validation_share: of the episodes, held out: at least one.
        num_rows: how often to look.
        show: called with each row: its `number`, `gradient_step`, `loss` (mean since the last row), `validation_loss`.
        objective: a policy objective of rlx.objectives, such as `ClipHigher()`, that learns from the demonstrations as
            from actions of advantage 1, so that the clone stays near what it was; without one it is the likelihood.
            Its log-ratio is by how much the loss has fallen. Source: Zhu et al. 2025, Proximal Supervised
            Fine-Tuning, arXiv:2508.17784.
        period: gradient steps after which the policy that the ratios are to becomes the present one.

    Raises:
        ValueError: for an algorithm without a `cloning_loss`, demonstrations that do not fit the environment or are of
            a single episode, or a number out of its range.
    """
    check_cloning(algorithm)
    if not 0 < validation_share < 1:
        raise ValueError(f"validation_share = {validation_share}: give a number between 0 and 1")
    if min(num_steps, batch_size, num_rows, period) < 1:
        raise ValueError("num_steps, batch_size, num_rows and period have to be at least 1")
    (obs, action), config = examples(env, demonstrations), now(config)
    bound, most = getattr(config, "action_bound", np.inf), max(np.abs(x).max() for x in jax.tree.leaves(action))
    if most > bound + 1e-3:
        warnings.warn(f"actions go up to {most:.3g} and action_bound = {bound:g} cuts them: raise it", stacklevel=2)
    check(algorithm, config, env)
    split_key, init_key, train_key, look_key = jax.random.split(key, 4)
    held_out = _held_out(demonstrations, validation_share, split_key)
    state = jax.jit(partial(algorithm.init, config, env))(init_key)
    if getattr(config, "normalize_obs", False):
        stats = update_statistics(statistics(env.observation_space), _taken(obs, ~held_out))
        state = replace(state, obs_stats=stats)
        obs = jax.tree.map(np.asarray, normalize(stats, jax.tree.map(jnp.asarray, obs)))
    fewest = int(min(held_out.sum(), (~held_out).sum()))
    length = min(getattr(config, "sequence_length", 32), fewest) if remembers(algorithm) else 0
    begins = np.concatenate([[True], (demonstrations.terminated | demonstrations.truncated)[:-1]])
    data = (obs, action, begins) if length else (obs, action)
    shown, held = (_taken(data, rows) for rows in (~held_out, held_out))
    every = -(-held_out.sum() // max(1, VALIDATION // max(length, 1)))
    looked_at = _sequences(held, np.arange(0, held_out.sum() - max(length, 1) + 1, every), length)
    adam = optax.adam(optax.cosine_decay_schedule(learning_rate, num_steps, FINAL_RATE))

    train = _learner(algorithm, config, env, adam, batch_size, length, look_key, objective, period)
    actor = {name: state.params[name] for name in (("memory", "actor") if length else ("actor",))}
    carry, rows, best = (actor, adam.init(actor), actor, actor), [], (np.inf, actor)
    edges = np.unique(np.linspace(0, num_steps, num_rows + 1).round().astype(int))
    keys = jax.random.split(train_key, num_steps)
    for start, end in itertools.pairwise(edges):
        numbers = jnp.arange(start, end, dtype=jnp.float32)
        carry, value, validation = train(carry, numbers, keys[start:end], state.params, shown, looked_at)
        row = {"number": len(rows) + 1, "gradient_step": int(end)}
        rows.append(row | {"loss": float(value), "validation_loss": float(validation)})
        show(rows[-1])
        if rows[-1]["validation_loss"] < best[0]:
            best = rows[-1]["validation_loss"], carry[2]
    if not np.isfinite(best[0]):
        raise ValueError("the loss is not finite: lower the learning rate, or look at the demonstrations")
    copies = [name for name in COPIES if getattr(state, name, None) is not None]
    own = {name: jax.tree.map(jnp.copy, best[1]["actor"]) for name in copies}
    return replace(state, params=state.params | best[1], **own), rows


def _taken(data: Any, rows: np.ndarray) -> Any:
    """The rows of a tree of columns, as arrays of JAX."""
    return jax.tree.map(lambda x: jnp.asarray(x[rows]), data)


def _sequences(data: Any, first: Any, length: int) -> Any:
    """The rows at `first` `[B]`, or, with a length, the sequences `[B, L]` that begin there."""
    rows = first[:, None] + np.arange(length) if length else first
    return jax.tree.map(lambda x: x[rows], data)


def _learner(
    algorithm: Any,
    config: Any,
    env: Env,
    adam: Any,
    batch_size: int,
    length: int,
    look_key: jax.Array,
    objective: Any,
    period: int,
) -> Callable:
    """The compiled gradient steps between two looks, and the look at what is held out."""
    num = max(1, batch_size // max(length, 1))

    def losses(actor, params, shown, key):
        obs, action, *begins = shown
        begins = [b.at[:, 0].set(True) for b in begins]  # what came before is not seen
        return algorithm.cloning_loss(config, env, params | actor, obs, action, key, *begins)

    def loss(actor, old, params, shown, key):
        now = losses(actor, params, shown, key)
        if objective is None:
            return now.mean(), now.mean()
        ratio = losses(old, params, shown, key) - now  # of the same noise and times
        elements = Elements(ratio, jnp.ones_like(now), -now)
        return objective(config, elements, 0.0).mean(), now.mean()

    @jax.jit
    def train(carry, numbers, keys, params, shown, looked_at):
        def step(carry, inputs):
            (actor, opt_state, average, old), (number, key) = carry, inputs
            rows_key, loss_key = jax.random.split(key)
            rows = jax.random.randint(rows_key, (num,), 0, num_rows(shown) - max(length - 1, 0))
            if objective is not None:
                old = jax.tree.map(lambda now, then: jnp.where(number % period == 0, now, then), actor, old)
            given = actor, old, params, _sequences(shown, rows, length), loss_key
            grads, value = jax.grad(loss, has_aux=True)(*given)
            updates, opt_state = adam.update(grads, opt_state)
            actor = optax.apply_updates(actor, updates)
            decay = jnp.minimum(AVERAGE, (1 + number) / (10 + number))  # the first weights are soon forgotten
            return (actor, opt_state, optax.incremental_update(actor, average, 1 - decay), old), value

        carry, values = jax.lax.scan(step, carry, (numbers, keys))
        return carry, values.mean(), losses(carry[2], params, looked_at, look_key).mean()

    return train


def check_cloning(algorithm: Any) -> None:
    """Raises ValueError for an algorithm without a `cloning_loss`."""
    if not hasattr(algorithm, "cloning_loss"):
        raise ValueError(f"{algorithm.__name__} cannot be cloned into: it has no cloning_loss; ppo, fpo and dppo have")


def examples(env: Env, demonstrations: Demonstrations) -> tuple[Any, Any]:
    """Observations `[M, ...]` and, in unit coordinates, the actions or chunks of actions `[M, ...]` to learn there.

    Raises:
        ValueError: where they do not have the shapes of the environment's spaces.
    """
    single: Any = env
    action: Any = demonstrations.action  # of NumPy, and so is what comes of it
    if isinstance(env.environment, Chunked):
        single, size = env.params, env.environment.size
        ends = demonstrations.ends
        last = np.repeat(ends, np.diff(ends, prepend=-1))  # of each row's episode
        rows = np.minimum(np.arange(len(action))[:, None] + np.arange(size), last[:, None])
        action = action[rows]
    for name, x, space in (
        ("obs", demonstrations.obs, env.observation_space),
        ("action", demonstrations.action, single.action_space),
    ):
        has, wanted = (jax.tree.map(lambda x, cut=cut: x.shape[cut:], t) for t, cut in ((x, 1), (parts(space), 0)))
        if has != wanted:
            raise ValueError(f"{name} of the demonstrations has shape {has}, the environment has {wanted}")
    jax.tree.map(_check_actions, parts(single.action_space), demonstrations.action)
    in_units = jax.tree.map(np.asarray, unit(single.action_space, action))
    shaped = lambda space, x: x.reshape(-1, *space.shape)
    return demonstrations.obs, jax.tree.map(shaped, parts(env.action_space), in_units)


def _check_actions(space: Any, action: np.ndarray) -> None:
    """Raises ValueError for actions that are not of their space."""
    if isinstance(space, Discrete) and (action != np.round(action)).any():
        raise ValueError(f"there are actions of the demonstrations that are not whole numbers: {space}")
    low, high = (0, space.n - 1) if isinstance(space, Discrete) else (np.asarray(space.low), np.asarray(space.high))
    if (action < low - 1e-3).any() or (action > high + 1e-3).any():
        raise ValueError(f"there are actions of the demonstrations outside of the environment's: {space}")


def _held_out(demonstrations: Demonstrations, share: float, key: jax.Array) -> np.ndarray:
    """Which steps are of episodes that are not learned from, bool `[M]`."""
    ends = demonstrations.ends
    if len(ends) < 2:
        raise ValueError("one episode cannot be split into one to learn from and one to validate with: give more")
    chosen = np.asarray(jax.random.permutation(key, len(ends)))[: min(max(1, round(share * len(ends))), len(ends) - 1)]
    return np.isin(np.repeat(np.arange(len(ends)), np.diff(ends, prepend=-1)), chosen)


def started_from(state: Any, learned: Any) -> Any:
    """A fresh State with what another one has learned: its parameters and statistics of observations.

    A field that begins as a copy of the parameters, or of a part of them, begins as a copy of the learned ones: target
    networks, the reference of a KL divergence. `pretrained` is the actor that the other State kept, or else its actor;
    a policy made of both, as DPPO's with steps that are not trained, is the same only where as many steps are trained.
    All other fields begin anew.

    Raises:
        ValueError: where the two have networks of other shapes.
    """
    shapes = [jax.tree.map(jnp.shape, (s.params, getattr(s, "obs_stats", None))) for s in (state, learned)]
    if shapes[0] != shapes[1]:
        raise ValueError("what it starts from has networks of other shapes: give the same sizes and activations")
    own = {}
    for field in dataclasses.fields(state):
        copy = _copy_of(getattr(state, field.name), state.params, learned.params)
        own[field.name] = getattr(state, field.name) if copy is None else copy
    own |= {name: getattr(learned, name) for name in ("params", "obs_stats") if hasattr(state, name)}
    if getattr(state, "pretrained", None) is not None and learned.pretrained is not None:
        own["pretrained"] = learned.pretrained
    changed = {name: value for name, value in own.items() if value is not getattr(state, name)}
    # Copies of its own, to be given away by whoever steps it.
    return replace(state, **{name: jax.tree.map(jnp.copy, value) for name, value in changed.items()})


def _copy_of(part: Any, params: Any, learned: Any) -> Any:
    """The part of `learned` for a copy of `params` or of a part of them; None for anything else."""
    if not jax.tree.leaves(part) or jax.tree_util.all_leaves([part]):  # a number is no network
        return None
    if _equal(part, params):
        return learned
    if not (isinstance(params, dict) and isinstance(learned, dict)):
        return None
    if isinstance(part, dict) and part.keys() <= params.keys() and all(_equal(part[k], params[k]) for k in part):
        return {name: learned[name] for name in part}
    return next((learned[name] for name in params if _equal(part, params[name])), None)


def _equal(a: Any, b: Any) -> bool:
    same = lambda x, y: jnp.shape(x) == jnp.shape(y) and bool(jnp.array_equal(x, y))
    return jax.tree.structure(a) == jax.tree.structure(b) and all(map(same, jax.tree.leaves(a), jax.tree.leaves(b)))


__all__ = ["clone", "examples", "started_from"]
