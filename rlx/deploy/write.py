"""Writes a policy for another target, after it has acted as the agent does on observations of real episodes."""

import contextlib
import datetime
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rlx.agent import Agent
from rlx.algorithm import short_name
from rlx.deploy import to_numpy, to_onnx, to_stablehlo
from rlx.deploy.program import Port, Program
from rlx.deploy.runner import Policy
from rlx.files import strict, write_json
from rlx.multiagent import folded, unfolded
from rlx.run.job import provenance
from rlx.spaces import parts

TARGETS = {"onnx": "policy.onnx", "stablehlo": "policy.stablehlo", "numpy": "policy.py"}
OBSERVATIONS = 1000  # that it is compared on, at least
EPISODES = 20  # at once
TOLERANCE = 1e-4  # of real numbers, in units of half the range of an action


@dataclass(frozen=True)
class Deployed:
    """A policy that was written.

    Attributes:
        target: a name of `TARGETS`.
        path: of the file; that with `.json` after it says what is in it.
        num_compared: observations that it was compared on.
        largest_difference: between its actions and the agent's, of real numbers.
    """

    target: str
    path: Path
    num_compared: int
    largest_difference: float


def deploy(agent: Agent, directory: str | Path, to: Sequence[str] = ("numpy",), sample: bool = False) -> list[Deployed]:
    """Writes the policy of an agent for each target; normaliser of observations and scale of actions are inside.

    A file is written under its name only when its actions are those of the agent on at least 1,000 observations of
    episodes that the agent plays, memory and episode ends included: the same categories, and real numbers to 1e-4 of
    half their range.

    Args:
        agent: see `rlx.load`.
        directory: to write in; it is made.
        to: names of `TARGETS`.
        sample: the form that draws its actions, from noise that is an input. By default it takes the most likely ones.

    Raises:
        ValueError: for an unknown target, for a policy that a target cannot hold, and where actions differ.
    """
    for target in to:
        if target not in TARGETS:
            raise ValueError(f"--to {target}: there are {', '.join(TARGETS)}")
    program, directory = Program(agent, deterministic=not sample), Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    return [_deployed(program, directory, target) for target in to]


def _deployed(program: Program, directory: Path, target: str) -> Deployed:
    path = directory / TARGETS[target]
    unchecked = path.with_name(f"unchecked-{path.name}")
    try:
        _write(program, unchecked, target)
        with opened(unchecked, program.table) as policy:
            num, largest, other = compared(program, policy)
        if other:
            raise ValueError(f"{target}: the policy acts otherwise than the run at {other} of {num} observations")
        if largest > TOLERANCE:
            raise ValueError(
                f"{target}: actions differ from those of the run by up to {largest:.2g} of half their range, and may "
                f"differ by {TOLERANCE:g}"
            )
        unchecked.replace(path)
    finally:
        unchecked.unlink(missing_ok=True)
    write_json(path.with_name(f"{path.name}.json"), about(program, path, target, num, largest))
    return Deployed(target, path, num, largest)


def _write(program: Program, path: Path, target: str) -> None:
    if target == "numpy":
        to_numpy.write(program, path, title(program))
    elif target == "onnx":
        to_onnx.write(program, path)
    else:
        to_stablehlo.write(program, path)


@contextlib.contextmanager
def opened(path: str | Path, table: dict[str, Any] | None = None) -> Iterator[Policy]:
    """A context with the `Policy` of a file that `deploy` wrote, which acts without the agent.

    A file in numpy is run, so it has to be one's own. `table` is that of its inputs and outputs, see
    `rlx.deploy.Program.table`; by default what is written beside it.
    """
    path = Path(path)
    known: Any = table or json.loads(path.with_name(f"{path.name}.json").read_text())["ports"]
    if path.suffix == ".py":
        yield to_numpy.opened(path)
    elif path.suffix == ".onnx":
        yield to_onnx.opened(path, known)
    else:
        yield to_stablehlo.opened(path, known)


def compared(program: Program, policy: Policy, seed: int = 0) -> tuple[int, float, int]:
    """How many observations were compared, the largest difference of real numbers, how many other categories.

    The agent plays `EPISODES` episodes at once, and the next ones where they end. Both are given the same noise.
    """
    agent, env = program.agent, program.agent.env
    reset, step = jax.jit(jax.vmap(env.reset)), jax.jit(jax.vmap(env.step))
    keys = lambda key: jax.random.split(key, EPISODES)
    key, start_key = jax.random.split(jax.random.key(seed))
    rows = EPISODES * env.num_agents
    blank = agent.policy(program.deterministic)[1](rows)
    state, memory = reset(keys(start_key)), blank
    spaces = jax.tree.leaves(parts(agent.action_space))
    act = jax.jit(lambda obs, key, memory: program.policy(obs, key, memory))
    policy.reset()
    num, largest, other = 0, 0.0, 0
    while num < OBSERVATIONS:
        key, act_key, step_key, start_key = jax.random.split(key, 4)
        with jax.default_matmul_precision("float32"):
            action, memory = act(folded(env, state.obs), act_key, memory)
        obs = jax.tree.map(np.asarray, folded(env, state.obs))
        found = policy.act(obs, noise=program.draw(act_key, rows))
        for space, own, theirs in zip(spaces, jax.tree.leaves(action), jax.tree.leaves(found), strict=True):
            own, theirs = np.asarray(own), np.asarray(theirs)
            if not np.issubdtype(own.dtype, np.floating):
                other += int((own != theirs).reshape(rows, -1).any(1).sum())
            elif own.size:
                difference = np.abs(own - theirs) / _unit(space)
                largest = max(largest, float(np.nan_to_num(difference, nan=np.inf).max()))
        starts = reset(keys(start_key))
        state, transition = step(keys(step_key), state, unfolded(env, action), starts)
        done = np.repeat(np.asarray(transition.done), env.num_agents)
        memory = _begun(done, blank, memory)
        policy.reset(done)
        num += rows
    return num, largest, other


def _begun(done: np.ndarray, starts: Any, memory: Any) -> Any:
    """The memory of a batch of which some episodes have ended."""
    where = lambda new, old: jnp.where(done.reshape(-1, *[1] * (new.ndim - 1)), new, old)
    return jax.tree.map(where, starts, memory)


def _unit(space: Any) -> np.ndarray:
    """Half the range of each action, or 1 where it is not bounded."""
    low, high = np.asarray(space.low, np.float64), np.asarray(space.high, np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        half = (high - low) / 2
    return np.where(np.isfinite(half) & (half > 0) & (half < 1e30), half, 1.0)


def title(program: Program) -> str:
    """What a policy is, in a sentence."""
    agent = program.agent
    name = short_name(agent.algorithm.__name__)
    how = "most likely actions" if program.deterministic else "sampled actions"
    return (
        f"The policy of {name} on {agent.env_name or 'an environment of its own'} after {agent.steps:,} steps, {how}."
    )


def about(program: Program, path: Path, target: str, num: int, largest: float) -> dict[str, Any]:
    """What is written beside a policy, as strict JSON."""
    agent, history = program.agent, provenance()
    described = {
        "observations": [_described(port, "obs", agent.observation_space) for port in program.observations],
        "memory": [{**_shaped(p), "output": f"next_{p.name}"} for p in program.memory],
        "noise": [{**_shaped(p), "draw": "uniform in [0, 1)", "batch_axis": p.axis} for p in program.noise],
        "actions": [_described(port, "action", agent.action_space) for port in program.actions],
    }
    found = {
        "what": title(program),
        "target": target,
        "file": path.name,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "written": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "deterministic": program.deterministic,
        "algorithm": agent.algorithm.__name__,
        "env": agent.env_name,
        "update": agent.num_updates,
        "steps": agent.steps,
        "batch": "the first axis of every input and output, of any size, but for noise, whose batch_axis is said",
        "units": "observations and actions are in the units of the environment: both scales are inside of the policy",
        **described,
        "not_used": program.unused,
        "compared": {"observations": num, "largest_difference": largest, "unit": "half the range of an action"},
        "versions": history["versions"],
        "commit": history["commit"],
        "ports": program.table,
    }
    return strict(found)


def _shaped(port: Port) -> dict[str, Any]:
    return {"name": port.name, "shape": [int(n) for n in port.shape], "dtype": np.dtype(port.dtype).name}


def _described(port: Port, name: str, space: Any) -> dict[str, Any]:
    """A port with the bounds of its part of a space."""
    known = {
        ".".join(filter(None, (name, jax.tree_util.keystr(path, simple=True, separator=".")))): part
        for path, part in jax.tree_util.tree_leaves_with_path(parts(space))
    }
    part = known[port.name]
    if hasattr(part, "n"):
        return {**_shaped(port), "categories": int(part.n)}
    bounds = {side: np.asarray(getattr(part, side), np.float64).tolist() for side in ("low", "high")}
    return {**_shaped(port), **bounds}
