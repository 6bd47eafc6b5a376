"""The proof of the environment contract: `check`.

Every clause is one function of the evidence. It returns None where it is proven and a reason where it cannot be judged
on this environment, and raises `ContractError` where it is broken. What can be seen in a trace is judged in a trace;
only two programs are compiled, one step of one environment and random-action episodes of many, and for an environment
that says that it is differentiable two more, three steps and their gradient.

Axes: N episodes, T steps.
"""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import keystr, tree_leaves_with_path

from rlx.env import LIMITS, Env
from rlx.envs.contract.evidence import (
    EAGER_OPERATIONS,
    LITTLE,
    NUM_DIFFERENTIATED,
    NUM_ENDS,
    NUM_EPISODES,
    TOLERANCE,
    ContractError,
    Evidence,
    first_line,
    is_key,
    kept_tracer,
    leak_of,
    numbers_of,
    on_host,
    one_episode,
    operations_of,
    paths_of,
    single_steps,
)
from rlx.envs.contract.reports import reported_values, reports
from rlx.levels import has_levels
from rlx.masks import check_mask, mask_of
from rlx.pytree import stack
from rlx.spaces import Discrete, check_spaces, named, parts


def check(env: Env, key: jax.Array | None = None, *, num_steps: int = 256, random_starts: bool = True) -> list[str]:
    """Proves the contract of `rlx.env.Environment` on `env`, by tracing it and by random-action episodes.

    Args:
        env: any environment, bound to its parameters.
        key: draws starts, actions and steps; `jax.random.key(0)` by default.
        num_steps: length of the random episodes; those of physics are dear, those that end late need many.
        random_starts: False declares that every episode begins in the same state.

    Returns:
        A line for each clause, in the order in which they were judged: what was proven, or `not judged: ` and why.

    Raises:
        ContractError: for the first clause that is broken: what was seen, and what to do.
    """
    evidence = Evidence(env, jax.random.key(0) if key is None else key, num_steps, random_starts)
    lines = []
    for clause in CLAUSES:
        name = clause.__name__.replace("_", " ")
        try:
            reason = clause(evidence)
        except ContractError as error:
            error.clause = error.clause or name
            raise
        proven = str(clause.__doc__).partition("\n")[0].rstrip(".")
        lines.append(f"{name}: {proven}" if reason is None else f"not judged: {name}: {reason}")
    return lines


def spaces(evidence):
    """Observation and action space are made of Box and Discrete, policies serve them, and masks fit the actions."""
    try:
        check_spaces(evidence.env)
        check_mask(evidence.env.observation_space, evidence.env.action_space)
    except ValueError as error:
        raise ContractError(str(error)) from error


def structure(evidence):
    """Reset returns obs, state; step returns obs, state, reward, terminated, truncated, info; both can be traced."""
    environment = evidence.env.environment
    if not hasattr(environment, "default_params"):
        raise ContractError(f"{type(environment).__name__} has no default_params; set it to a pytree, or to None")
    try:
        hash(environment)
    except TypeError as error:
        raise ContractError(
            f"{type(environment).__name__} cannot be hashed ({error}), and the environment is a static part of every "
            "program; freeze the dataclass, or leave __eq__ out"
        ) from error
    for name, names in (("reset", "obs, state"), ("step", "obs, state, reward, terminated, truncated, info")):
        out = getattr(evidence, name)
        if not isinstance(out, tuple) or len(out) != len(names.split()):
            seen = f"{len(out)} values" if isinstance(out, tuple) else f"a {type(out).__name__}"
            raise ContractError(f"{name} returned {seen}; return the tuple {names}")


def observation(evidence):
    """Observations have the shape and dtype of their space."""
    spaces = named(evidence.env.observation_space)
    agents = (evidence.env.num_agents,) if evidence.env.has_agents else ()
    wanted = {name: ((*agents, *s.shape), jax.dtypes.canonicalize_dtype(s.dtype)) for name, s in spaces.items()}
    for name, obs in (("reset", evidence.reset[0]), ("step", evidence.step[0])):
        arrays = {keystr(path, simple=True, separator="."): x for path, x in tree_leaves_with_path(obs)}
        bad = next((x for x in arrays.values() if not hasattr(x, "shape")), None)
        if arrays.keys() != wanted.keys() or bad is not None:
            given = f"the entries {', '.join(arrays)}" if bad is None and "" not in arrays else obs
            entries = ", ".join(wanted) if "" not in wanted else "one array"
            raise ContractError(f"{name} gives the observation {given}; observation_space is of {entries}: give that")
        for entry, x in arrays.items():
            if (x.shape, x.dtype) != wanted[entry]:
                where = f" in its entry {entry}" if entry else ""
                raise ContractError(
                    f"{name} gives an observation of shape {x.shape} and dtype {x.dtype}{where}, observation_space has "
                    f"{wanted[entry][0]} and {wanted[entry][1]}; correct the space, or cast and reshape the observation"
                )


def reward_and_ends(evidence):
    """Reward is a float scalar, or one for each agent, terminated and truncated are bool scalars."""
    agents = (evidence.env.num_agents,) if evidence.env.has_agents else ()
    for name, kind, value in zip(
        ("reward", "terminated", "truncated"), ("float", "bool", "bool"), evidence.step[2:5], strict=True
    ):
        wanted = jnp.floating if kind == "float" else jnp.bool_
        dtype: Any = getattr(value, "dtype", None)
        shape = getattr(value, "shape", None)
        axes = agents if name == "reward" else ()
        if shape != axes or not jnp.issubdtype(dtype, wanted):
            seen = f"has shape {shape} and dtype {dtype}" if dtype is not None else f"is {value}"
            raise ContractError(f"{name} {seen}; make it {f'{kind}s of shape {axes}' if axes else f'a {kind} scalar'}")


def carry(evidence):
    """The state keeps structure, shapes and dtypes, so that a scan can carry it."""
    before, after = evidence.reset[1], evidence.step[1]
    if jax.tree.structure(before) != jax.tree.structure(after):
        raise ContractError(
            f"reset gives a state of structure {jax.tree.structure(before)}, step one of {jax.tree.structure(after)}; "
            "give both the same fields"
        )
    pairs = zip(jax.tree_util.tree_leaves_with_path(before), jax.tree.leaves(after), strict=True)
    for (path, old), new in pairs:
        if (old.shape, old.dtype) != (new.shape, new.dtype):
            raise ContractError(
                f"state{jax.tree_util.keystr(path)} is {old.dtype}{list(old.shape)} after reset and "
                f"{new.dtype}{list(new.shape)} after step; give it one shape and dtype"
            )


def params(evidence):
    """Parameters are read as traced arrays, so that they can be vmapped and differentiated."""
    env = evidence.env
    if not jax.tree.leaves(env.params):
        return "the environment has no parameters"

    def program(env, reset_key, step_key, action):
        out = one_episode(env, reset_key, step_key, action)
        obs = jax.tree.map(lambda x: x[0], out[0].obs) if env.has_agents else out[0].obs
        return out, env.observation_space.contains(obs), env.action_space.sample(step_key)

    args = (evidence.key, evidence.key, evidence.action)
    try:
        one = jax.eval_shape(program, env, *args)
        many = jax.eval_shape(jax.vmap(program, in_axes=(0, None, None, None)), stack([env, env]), *args)
    except Exception as error:
        raise ContractError(
            f"with traced params: {type(error).__name__}: {first_line(error)}; compute with params in jax.numpy, "
            "and keep what picks code or fixes a shape out of them, as an attribute of the environment"
        ) from error
    for (path, leaf), batched in zip(jax.tree_util.tree_leaves_with_path(one), jax.tree.leaves(many), strict=True):
        if (batched.shape, batched.dtype) != ((2, *leaf.shape), leaf.dtype):
            raise ContractError(
                f"{jax.tree_util.keystr(path)} is {leaf} with one params and {batched} with two; let params change "
                "values, and no shapes and dtypes"
            )

    reset = jax.make_jaxpr(lambda params: env.environment.reset(evidence.key, params))(env.params)
    step = jax.make_jaxpr(lambda params, state, action: env.environment.step(evidence.key, state, action, params))(
        env.params, evidence.reset[1], evidence.action
    )
    leaves = len(jax.tree.leaves(env.params))
    for closed in (reset, step):
        read = {id(v) for eqn in closed.jaxpr.eqns for v in eqn.invars} | {id(v) for v in closed.jaxpr.outvars}
        if any(id(v) in read for v in closed.jaxpr.invars[:leaves]):
            return None
    if has_levels(env):
        return "each episode has parameters of its own, drawn at its start"
    raise ContractError(
        "neither reset nor step reads the params that it is given, so a sweep over them would change nothing; use the "
        "argument, not an attribute of the environment or default_params"
    )


def tracers(evidence):
    """Nothing traced is kept in the environment, its class or its module.

    `jax.check_tracer_leaks` also stops at the tracers that jax's own cache of inner jitted functions keeps, which
    environments built on jaxopt leave there without harm; so this looks where an environment could put one.
    """
    kept = kept_tracer(evidence.env.environment)  # after the traces of the clauses above
    if kept is not None:
        raise leak_of(f"{kept} can be reached from the environment")


def keys(evidence):
    """No key is consumed twice."""
    declared = getattr(evidence.env.environment, "reuses_keys", "")
    reset_key, step_key = jax.random.split(evidence.key)
    try:
        with jax.debug_key_reuse(True):
            jax.jit(lambda *args: one_episode(*args)).trace(evidence.env, reset_key, step_key, evidence.action)
    except jax.errors.KeyReuseError as error:
        if declared:
            return declared
        raise ContractError(f"{first_line(error)}; split the key, and use each part once") from error
    if declared:
        raise ContractError(f"reuses_keys = {declared!r}, and no key is consumed twice; leave it out")


def determinism(evidence):
    """The same key gives the same bits, in every trace and in every run."""
    args = (evidence.env, evidence.key, evidence.key, evidence.action)
    first, second = ([*operations_of(jax.make_jaxpr(lambda *args: one_episode(*args))(*args))] for _ in range(2))
    if first != second:
        changed = next((pair for pair in zip(first, second, strict=False) if pair[0] != pair[1]), "its length")
        raise ContractError(
            f"tracing twice gives two programs (they differ in {changed}); draw with the key, and keep "
            "what changes in the state: Python and numpy randomness and attributes are frozen into a program"
        )
    args = evidence.one(0)
    for (path, a), (_, b) in zip(paths_of(single_steps(*args)), paths_of(single_steps(*args)), strict=True):
        if a.tobytes() != b.tobytes():
            raise ContractError(f"two runs with the same keys differ in {path}: {a} and {b}; draw with the key alone")


def starts(evidence):
    """Different keys give different starts, or all the same one where that is declared."""
    start = evidence.episodes.start
    leaves = zip(jax.tree.leaves((start.obs, start.state)), jax.tree.leaves(evidence.reset), strict=True)
    # A key that is kept in the state always varies, and says nothing.
    vary = any((leaf != leaf[:1]).any() for leaf, kind in leaves if not is_key(kind))
    if evidence.random_starts and not vary:
        raise ContractError(
            f"{NUM_EPISODES} keys gave the same start; draw the start with the key, or declare random_starts=False"
        )
    if not evidence.random_starts and vary:
        raise ContractError("random_starts=False, but different keys gave different starts; leave it out")


def values(evidence):
    """Over whole random-action episodes observations stay within their space and rewards are finite."""
    episodes = evidence.episodes
    mask = np.concatenate([np.ones_like(episodes.valid[:, :1]), episodes.valid], axis=1)
    for (name, space), seen in zip(
        named(evidence.env.observation_space).items(), jax.tree.leaves(episodes.seen), strict=True
    ):
        bounds = (0, space.n - 1) if isinstance(space, Discrete) else (space.low, space.high)
        low, high = (np.asarray(bound, np.float64) for bound in bounds)
        # A cosine that rounds to 1.0000001 is within its bounds.
        kind = seen.dtype
        slack = max(1e-5, float(jnp.finfo(kind).eps)) if jnp.issubdtype(kind, jnp.floating) else 1e-5
        low, high = (bound + sign * slack * np.maximum(1.0, np.abs(bound)) for bound, sign in ((low, -1), (high, 1)))
        inside = (seen >= low) & (seen <= high) & np.isfinite(seen)
        bad = np.argwhere(~inside & mask.reshape(mask.shape + (1,) * (inside.ndim - 2)))
        if bad.size:
            where = tuple(bad[0])
            bounds = [np.broadcast_to(bound, inside.shape)[where].round(4).item() for bound in (low, high)]
            part = f" of {name}" if name else ""
            raise ContractError(
                f"the observation after step {where[1]} is {seen[where]} at index {tuple(map(int, where[2:]))}{part}, "
                f"observation_space allows {bounds}; widen the space, or correct the observation"
            )
    info = evidence.step[5]
    bad = np.argwhere(episodes.diverged & episodes.valid)
    if bad.size and not (isinstance(info, dict) and "diverged" in info):
        raise ContractError(
            f"the observation or the reward of step {bad[0][1] + 1} is not finite; make it finite, or end the episode "
            'with finite ones and report info["diverged"]'
        )


def legal_actions(evidence):
    """In every step an action is legal."""
    masks = jax.tree.leaves(mask_of(evidence.episodes.obs))
    if not masks:
        return None
    nothing = [~mask.astype(bool).any(-1) for mask in masks]
    nothing = np.stack([x.reshape(*x.shape[:2], -1).any(-1) for x in nothing]).any(0) & evidence.episodes.valid
    if nothing.any():
        return (
            f"in {nothing.sum()} of {evidence.episodes.valid.sum()} steps nothing is legal: policies choose among all "
            "actions there, and the metric num_unmasked counts them"
        )
    return None


def jit(evidence):
    """A step gives the same without jit."""
    args = evidence.one(0)
    operations = sum(1 for _ in operations_of(jax.make_jaxpr(lambda *args: one_episode(*args))(*args)))
    if operations > EAGER_OPERATIONS:
        return f"it has {operations} operations, and without jit each of them would be compiled alone"
    _same(single_steps(*args), one_episode(*args), "with jit", "without", "do not ask whether an argument is a tracer")


def vmap(evidence):
    """A step of many environments is that of each alone."""
    episodes = evidence.episodes
    for i in range(2):
        start, _, transition = single_steps(*evidence.one(i))
        first = lambda tree, i=i: jax.tree.map(lambda leaf: leaf[i], tree)
        now = lambda name: jax.tree.map(lambda leaf: leaf[:, 0], getattr(episodes, name))
        many = first(episodes.start), *(first(now(name)) for name in _COMPARED)
        one = jax.tree.map(on_host, start), *(getattr(transition, name) for name in _COMPARED)
        _same(one, many, "alone", "within a vmap", "index and reduce within one environment's own axes")


_COMPARED = ("next_obs", "reward", "terminated", "truncated")


def _same(a, b, a_name, b_name, advice):
    for (path, x), (_, y) in zip(paths_of(a), paths_of(b), strict=True):
        exact = not np.issubdtype(x.dtype, np.inexact)
        if not (np.array_equal(x, y) if exact else np.allclose(x, y, TOLERANCE, TOLERANCE, equal_nan=True)):
            raise ContractError(f"{path} is {x} {a_name} and {y} {b_name}; {advice}")


def time_limit(evidence):
    """Moving the time limit moves truncation and leaves termination where it is."""
    if not evidence.limited:
        return f"neither env.max_steps nor a field of params called {' or '.join(LIMITS)} is there to be moved"
    judged = False
    for name, (free, limited, limit) in evidence.limited.items():
        alive = free.length > limit
        before = free.valid[:, :limit]
        early = (free.terminated[:, :limit] != limited.terminated[:, :limit]) & before
        if early.any():
            n, t = np.argwhere(early)[0]
            raise ContractError(
                f"with {name} = {limit} step {t + 1} has terminated = {limited.terminated[n, t]}, without a limit "
                f"{free.terminated[n, t]}; report a time limit as truncated, and only as that"
            )
        if not limited.truncated[alive, limit - 1].all() or limited.truncated[alive, : limit - 1].any():
            raise ContractError(
                f"with {name} = {limit} episodes have lengths {sorted(set(limited.length.tolist()))}; truncate when "
                "as many steps were taken, or leave the limit to env.max_steps"
            )
        judged |= alive.any()
    return None if judged else "every episode ends by itself before a limit could cut it"


def successor(evidence):
    """The observation that step returns at an episode's end is the successor, not the next start.

    An environment that restarts itself jumps into the region of its starts at every end. It is caught where the
    observations that were acted on last lie outside of that region (the box that the starts span, widened by its own
    width on all sides) and those after the end lie within.
    """
    starts = numbers_of(evidence.episodes.start.obs, 1)
    low, high = starts.min(0), starts.max(0)
    width = high - low
    within = lambda obs: ((obs >= low - width) & (obs <= high + width)).all(-1)
    runs = [evidence.episodes, *(limited for _, limited, _ in evidence.limited.values())]
    reasons = []
    for kind in ("terminated", "truncated"):
        last, after = [], []
        for run in runs:
            at_end = getattr(run, kind) & run.valid
            last.append(numbers_of(run.obs, 2)[at_end])
            after.append(numbers_of(run.next_obs, 2)[at_end])
        last, after = np.concatenate(last), np.concatenate(after)
        if len(after) < NUM_ENDS:
            reasons.append(f"{len(after)} episodes were {kind}")
        elif within(last).mean() > 0.5:
            reasons.append(f"where episodes were {kind}, observations before the end look like starts")
        elif within(after).mean() > 0.9:
            raise ContractError(
                f"{within(after).sum()} of {len(after)} {kind} episodes end with an observation from where episodes "
                "start; return the successor, and leave the restart to Env"
            )
    return "; ".join(reasons) if len(reasons) == 2 else None


def gradients(evidence):
    """Gradients through steps, in actions and params, are those of finite differences, where the environment has them.

    An environment says so with the attribute `differentiable`. What is differentiated is a random sum of the rewards
    and observations of a reset and three steps, in all actions at once and in each floating-point leaf of the params.
    An episode may pass an edge (of contact, of a limit), where the two differ: most of the episodes have to agree.
    """
    env = evidence.env
    said = getattr(env.environment, "differentiable", None)
    if not said:
        return (
            f"the environment {'does not say whether it is' if said is None else 'says that it is not'} differentiable"
        )
    if env.has_agents:
        return "gradients are judged of one agent"
    keys = jax.random.split(evidence.key, NUM_EPISODES)
    leaves, structure = jax.tree.flatten(env.params)
    places = [i for i, leaf in enumerate(leaves) if jnp.issubdtype(jnp.result_type(leaf), jnp.floating)]
    names = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(env.params)]
    inputs = {f"params{names[i]}": jnp.broadcast_to(leaves[i], (NUM_EPISODES, *jnp.shape(leaves[i]))) for i in places}
    units = {name: jnp.abs(x) for name, x in inputs.items()}
    spaces = {f"the actions {name}".strip(): space for name, space in named(env.action_space).items()}
    action_keys = [evidence.key] if len(spaces) == 1 else jax.random.split(evidence.key, len(spaces))
    actions = {}
    for (name, space), key in zip(spaces.items(), action_keys, strict=True):
        actions[name], unit = _inner_actions(space, key)
        if unit is not None:
            inputs[name], units[name] = actions[name], unit
    whole = jax.tree.structure(parts(env.action_space))

    if not inputs:
        return "there are no floating-point numbers to differentiate in"

    def episode(inputs, actions, key):
        """The random sum of one episode, and that of its absolute values, which says how large rounding may be."""
        reset_key, weight_key, step_key = jax.random.split(key, 3)
        given = [inputs.get(f"params{name}", leaf) for name, leaf in zip(names, leaves, strict=True)]
        moved = replace(env, params=jax.tree.unflatten(structure, given))

        def step(env_state, x):
            key, action = x
            env_state, transition = moved.advance(key, env_state, action)
            seen = [x.astype(jnp.float32).reshape(-1) for x in jax.tree.leaves(transition.next_obs)]
            return env_state, jnp.concatenate([*seen, transition.reward[None]])

        actions = jax.tree.unflatten(whole, [inputs.get(name, actions[name]) for name in spaces])
        xs = jax.random.split(step_key, NUM_DIFFERENTIATED), actions
        terms = jax.lax.scan(step, moved.reset(reset_key), xs)[1]
        terms *= jax.random.uniform(weight_key, terms.shape, minval=0.5, maxval=1.5)
        return terms.sum(), jnp.abs(terms).sum()

    try:
        grads, size = jax.jit(jax.vmap(jax.grad(episode, has_aux=True)))(inputs, actions, keys)
    except Exception as error:
        raise ContractError(
            f"differentiable is True, and a gradient in actions and params raises {type(error).__name__}: "
            f"{first_line(error)}; set it to False, or make the step differentiable in reverse"
        ) from error
    program = jax.jit(jax.vmap(lambda inputs, *rest: episode(inputs, *rest)[0]))
    _check_gradients(
        lambda inputs: program(inputs, actions, keys), inputs, units, grads, np.asarray(size), evidence.key
    )
    return None


def _check_gradients(value, inputs, units, grads, size, key) -> None:
    """Raises ContractError where gradients are not those of finite differences of `value`, along a random direction."""
    for i, (name, x) in enumerate(inputs.items()):
        along = units[name] * jax.random.rademacher(jax.random.fold_in(key, i), x.shape, x.dtype)
        above, below = (value(inputs | {name: x + sign * LITTLE * along}) for sign in (1, -1))
        true = np.asarray((above - below) / (2 * LITTLE))
        found = np.asarray((grads[name] * along).reshape(NUM_EPISODES, -1).sum(axis=1))
        slack = 0.05 * np.maximum(np.abs(found), np.abs(true)) + 1e-6 / LITTLE * size
        wrong = ~(np.abs(found - true) <= slack)
        if wrong.mean() > 0.5:
            n = np.argwhere(wrong)[0, 0]
            raise ContractError(
                f"differentiable is True, and the gradient in {name} is {found[n]:.4g} along a direction in which "
                f"finite differences give {true[n]:.4g} (wrong in {wrong.sum()} of {NUM_EPISODES} episodes); take out "
                "what stops gradients or makes them NaN, or set it to False"
            )


def _inner_actions(space, key) -> tuple[Any, Any]:
    """Actions `[N, 3, ...]`, of a Box not near its bounds, and a unit of each."""
    shape = (NUM_EPISODES, NUM_DIFFERENTIATED, *space.shape)
    if isinstance(space, Discrete):
        return jax.vmap(jax.vmap(space.sample))(jax.random.split(key, shape[:2])), None
    low, high = (jnp.broadcast_to(bound, space.shape) for bound in (space.low, space.high))
    bounded = jnp.isfinite(low) & jnp.isfinite(high)
    middle, half = jnp.where(bounded, (low + high) / 2, 0.0), jnp.where(bounded, (high - low) / 2, 1.0)
    return middle + half * jax.random.uniform(key, shape, minval=-0.5, maxval=0.5), jnp.broadcast_to(half, shape)


CLAUSES = (
    *(spaces, structure, observation, reward_and_ends, carry, reports, params, tracers, keys, determinism),
    *(starts, values, legal_actions, reported_values, jit, vmap, time_limit, successor, gradients),
)
