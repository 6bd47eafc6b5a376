"""Experience of environments that step on the host, collected for the compiled update of any algorithm.

    collector = Collector(algorithm, config, env, seed)
    collector.open(0)
    state = algorithm.init(config, collector.begin(config, key), key)
    state, metrics = algorithm.update(config, collector.experience(config, state), state)

Acting is a program of its own: what `update` computes before its rollout, with the keys that the rollout would give to
its policy. So the actions, the records and the order of random numbers are those of a compiled rollout. Steps are
written into arrays of numpy, which the update is given as an argument.

Axes: T time, N environments.
"""

import math
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from rlx.env import Env, EnvState, Transition
from rlx.hosted import Collected, Fault, Request, answered, asked, host_of, is_hosted, zero_experience
from rlx.pytree import num_rows, replace
from rlx.replay import without_replay
from rlx.run.blocks import Block
from rlx.run.job import Job
from rlx.run.watching import LIMIT, Watched
from rlx.train import Current, now, state_shapes, steps_taken

T = TypeVar("T")

AGAIN = 3  # times T keys: for a rollout, and for one more step after each of them, see `Stepped.valid`; or overlapping


@dataclass(frozen=True)
class Acting:
    """How a program acts in its rollout, compiled.

    Attributes:
        num_steps: T, of the rollout.
        begin: `begin(*args) -> held, keys, empty`: what acting needs of the arguments of the program, the key of each
            step for each block of environments, and what a policy remembers at the beginning of an episode.
        act: `act(held, keys, time, obs, began, memory) -> action, recorded, memory` of a block.
        like: shapes of the `Collected` that the program takes.
    """

    num_steps: int
    begin: Any
    act: Any
    like: Collected


def acting(program: Callable, env: Env, num_blocks: int, *like: Any) -> Acting:
    """The acting of `program(env, *args)` in blocks of its environments, for arguments like these, compiled.

    What acts is given no replay buffer.

    Raises:
        ValueError: for a program that has no rollout, or two.
    """
    jax.eval_shape(lambda *args: answered(lambda env: program(env, *args), env), *like)  # has its say on its arguments
    structure = jax.tree.structure(without_replay(like))
    last: list[Request] = []

    def ask(args: Any) -> tuple[Request, Any]:
        """What is asked for, and what a policy remembers at the beginning of the episodes of a block."""
        request = asked(lambda env: program(env, *args), env)
        if request is None:
            raise ValueError(f"there is no rollout in it, and {host_of(env).name} is stepped in rollouts alone")
        last[:] = [request]
        return request, jax.tree.map(lambda x: x[: x.shape[0] // num_blocks], request.memory[1:])

    def begin(*args):
        request, empty = ask(args)
        keys = jax.random.split(request.key, 1 + request.num_steps + env.num_starts)[1 : 1 + request.num_steps]
        folded = lambda keys, by: jax.vmap(jax.random.fold_in, (0, None))(keys, by) if by else keys
        of_blocks = [folded(keys, block) for block in range(num_blocks)]
        again = lambda keys: jnp.concatenate([jax.random.key_data(folded(keys, i)) for i in range(AGAIN)])
        held = jax.tree.map(jnp.copy, jax.tree.leaves(without_replay(args)))  # the program may be donated its own
        return held, [again(keys) for keys in of_blocks], empty

    def act(held, keys, time, obs, began, memory):
        request, empty = ask(jax.tree.unflatten(structure, held))
        key = jax.random.wrap_key_data(keys[time], impl=jax.random.key_impl(request.key))
        anew = lambda empty, before: jax.vmap(jnp.where)(began, empty, before)
        memory = jax.tree.map(anew, empty, tuple(memory))
        action, recorded, *memory = request.policy(obs, key, *memory)
        return action, recorded, tuple(memory)

    starting = jax.jit(begin).lower(*like)
    collected = jax.eval_shape(lambda *args: zero_experience(env, ask(args)[0]), *like)
    held, keys, empty = _shapes(starting.out_info)
    size = last[0].num_envs // num_blocks
    obs = jax.tree.map(lambda x: jax.ShapeDtypeStruct((size, *x.shape[1:]), x.dtype), collected.after.obs)
    began = jax.ShapeDtypeStruct((size,), np.bool_)
    going = jax.jit(act).lower(held, keys[0], jax.ShapeDtypeStruct((), np.int32), obs, began, empty)
    return Acting(last[0].num_steps, starting.compile(), going.compile(), collected)


class Collector:
    """The environments of a run on the host, and what is collected in them.

    They are made, stepped and closed in a thread of their own. With `overlap` they go on while the device learns, and
    the policy that acts is that of one update before.

    Args:
        algorithm: the module.
        config: its Config.
        env: an `Env` that steps on the host.
        seed: of the environments.
        limit: seconds that one of their calls may take.
        overlap: whether to collect while the device learns.

    Raises:
        ValueError: for an algorithm that cannot be trained so.
    """

    def __init__(self, algorithm: Any, config: Any, env: Env, seed: int, limit: float = LIMIT, overlap: bool = False):
        self.env, self.host, self.seed, self.overlap = env, host_of(env), seed, overlap
        self.algorithm, self.config = Current(algorithm, env), config
        like = state_shapes(self.algorithm, config, env)
        self.num_envs = _num_envs(like, self.host.name)
        self.num_blocks = math.gcd(self.host.blocks, self.num_envs)
        update = lambda env, config, state: self.algorithm.update(now(config, state), env, state)
        self.acting = acting(update, env, self.num_blocks, config, like)
        self.buffers = [_buffers(self.acting.like.traj) for _ in range(2)]  # one is learned from, one is written
        self.watched = Watched(limit)
        self.blocks: list[Block] = []
        self.ahead: Future | None = None

    @property
    def like(self) -> Env:
        """The environment that the update is given, by shapes."""
        return replace(self.env, params=self.acting.like)

    def open(self, done: int) -> None:
        """Makes the environments and begins episodes in them: others for each number of updates that are done.

        Raises:
            Fault: where one of them fails.
        """
        self.taken = steps_taken(self.config, done) if done else 0
        self._told(self.watched.begin(self._open, done))

    def begin(self, config: Any, key: jax.Array) -> Env:
        """The environment that `algorithm.init` is given: with starts, and with the experience that it asks for.

        Raises:
            Fault: where an environment fails.
        """
        program = lambda env, config, key: self.algorithm.init(now(config), env, key)
        like, start = jax.eval_shape(partial(_wanted, program, self.env), config, key), self._state()
        if like is None or not num_rows(like.traj):
            return replace(self.env, params=replace(_buffers(like or Collected()), start=start, after=start))
        first = acting(program, self.env, self.num_blocks, config, key)
        rows = _buffers(first.like.traj)
        found = self._told(self.watched.begin(self._collected, first, rows, first.begin(config, key)))
        return replace(self.env, params=replace(found, start=start))

    def experience(self, config: Any, state: Any) -> Env:
        """The environment that the update of this State is given, with what was collected for it.

        Raises:
            Fault: where an environment fails.
        """
        ahead, self.ahead = self.ahead, None
        found = self._told(self._begun(config, state, 0) if ahead is None else ahead)
        if self.overlap:  # the keys of this State were those of its own rollout: others follow from them
            self.ahead = self._begun(config, state, 1)
        return replace(self.env, params=found)

    def close(self) -> None:
        """Ends the environments; they need not answer."""
        for block in self.blocks:
            block.vector.close()
        self.watched.close()

    def _told(self, future: Future) -> Any:
        """What a call in the thread returns; where an environment fails, says after how many steps of the run."""
        try:
            return self.watched.result(future)
        except Fault as fault:
            raise Fault(f"{self.host.name}: {fault}, after {self.taken:,} steps of the run") from fault.__cause__

    def _open(self, done: int) -> None:
        size = self.num_envs // self.num_blocks
        seeds = np.random.SeedSequence([self.seed, done]).generate_state(self.num_blocks)
        for i, seed in enumerate(seeds):
            self.blocks.append(Block(self.host, self.host.opened(size, i * size), i * size, self.watched))
            self.blocks[-1].reset(int(seed) >> 1)  # 31 bits, which every library takes

    def _begun(self, config: Any, state: Any, again: int) -> Future:
        self.buffers.reverse()
        begun = self.acting.begin(config, state)
        return self.watched.begin(self._collected, self.acting, self.buffers[0], begun, again)

    def _collected(self, acting: Acting, rows: Transition, begun: Any, again: int = 0) -> Collected:
        """Steps all environments T times; in the thread."""
        held, keys, empty = begun
        flat, num_steps = [*map(jax.tree.leaves, _parts(rows))], acting.num_steps
        turns = [Turn(block, acting, held, key, empty, again) for block, key in zip(self.blocks, keys, strict=True)]
        for turn in turns:
            turn.act()
        while left := [turn for turn in turns if turn.time.min() < num_steps]:
            for turn in left:  # while one block is written and acts, the others step
                turn.step(flat, num_steps)
                self.taken += turn.block.vector.num_envs
                if turn.time.min() < num_steps:
                    turn.act()
        memory = [np.concatenate(x) for x in zip(*(jax.tree.leaves(turn.settled()) for turn in turns), strict=True)]
        structure = jax.tree.structure(acting.like.memory)
        return Collected(after=self._state(), traj=rows, memory=jax.tree.unflatten(structure, memory))

    def _state(self) -> EnvState:
        """Where the environments are, in new arrays."""
        together: Any = lambda get: np.concatenate([get(block) for block in self.blocks])
        structure = jax.tree.structure(self.acting.like.after.obs)
        obs = [together(lambda block, i=i: block.obs[i]) for i in range(structure.num_leaves)]
        return EnvState(
            state=(),
            obs=jax.tree.unflatten(structure, obs),
            time=together(lambda block: block.length),
            episode_return=together(lambda block: block.total),
            reported={name: together(lambda block, n=name: block.reported[n]) for name in self.host.reported},
        )


@contextmanager
def collecting(job: Job) -> Iterator[Collector | None]:
    """The environments of a run that step on the host, which are closed behind it; None where these are of JAX.

    Raises:
        ValueError: for a run that cannot be trained so.
    """
    if not is_hosted(job.env):
        if job.overlap:
            raise ValueError("overlap is for environments that step on the host: leave it out")
        yield None
        return
    if job.devices > 1 or jax.process_count() > 1:
        raise ValueError(f"{host_of(job.env).name} steps on the host, for a run on one device: leave --devices out")
    collector = Collector(job.algorithm, job.config, job.env, job.seed, job.host_timeout, job.overlap)
    try:
        yield collector
    finally:
        collector.close()


class Turn:
    """A rollout of one block: it acts, steps, and writes what came of it."""

    def __init__(self, block: Block, acting: Acting, held: Any, keys: Any, empty: Any, again: int = 0):
        self.block, self.acting, self.held, self.keys, self.empty = block, acting, held, keys, empty
        num = block.vector.num_envs
        self.memory = block.memory if block.memory is not None else empty
        self.time = np.zeros(num, int)  # transitions that each environment has
        self.count = again * acting.num_steps  # actions of all, by which their keys are chosen
        self.structure = jax.tree.structure(acting.like.after.obs)
        self.far = jax.default_backend() != "cpu"

    def act(self) -> None:
        """Begins a step."""
        block = self.block
        obs = jax.tree.unflatten(self.structure, block.obs)
        self.action, self.recorded, self.memory = self.acting.act(
            self.held, self.keys, np.int32(self.count), obs, block.began, self.memory
        )
        self.count += 1
        if self.far:
            for x in jax.tree.leaves((self.action, self.recorded)):
                x.copy_to_host_async()  # the records while the environments step
        block.send(self.action)

    def step(self, flat: list[list[np.ndarray]], num_steps: int) -> None:
        """Ends it, and writes the transitions into arrays `[T, N, ...]`."""
        block, before = self.block, self.block.obs
        step = block.receive()
        values = (
            before,
            jax.tree.leaves(self.action),
            [step.reward],
            jax.tree.leaves(step.next_obs),
            [step.terminated],
            [step.truncated & ~step.terminated],
            [block.total],
            [block.length],
            jax.tree.leaves(self.recorded),
            [block.reported[name] for name in sorted(block.reported)],
        )
        if step.valid is None:
            at, chosen, self.time = (self.time[0], block.rows), slice(None), self.time + 1
        else:  # each environment has come to another row
            chosen = np.flatnonzero(step.valid & (self.time < num_steps))
            at = (self.time[chosen], block.rows.start + chosen)
            self.time[chosen] += 1
        for arrays, new in zip(flat, values, strict=True):
            for array, x in zip(arrays, new, strict=True):
                array[at] = np.asarray(x)[chosen]
        block.settle(step)

    def settled(self) -> Any:
        """What the policy remembers, which is nothing where an episode begins."""
        self.block.memory = self.memory
        anew = lambda empty, x: np.where(self.block.began.reshape(-1, *[1] * (x.ndim - 1)), empty, x)
        return jax.tree.map(anew, self.empty, self.memory)


def _parts(rows: Transition) -> tuple:
    """What is written in each step, in the order of `Turn.step`."""
    return (
        rows.obs,
        rows.action,
        rows.reward,
        rows.next_obs,
        rows.terminated,
        rows.truncated,
        rows.episode_return,
        rows.episode_length,
        rows.recorded,
        rows.reported,
    )


def _wanted(program: Callable, env: Env, *args: Any) -> Collected | None:
    """The experience that a program asks for, of zeros; None where it asks for none."""
    request = asked(lambda env: program(env, *args), env)
    return None if request is None else zero_experience(env, request)


def _buffers(like: T) -> T:
    """Arrays of numpy of these shapes."""
    return jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), like)


def _shapes(tree: Any) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, weak_type=x.weak_type), tree)


def _num_envs(like: Any, name: str) -> int:
    """How many environments a State goes on with, see `EnvState`."""
    states = [x for x in jax.tree.leaves(like, is_leaf=_is_state) if _is_state(x)]
    if len(states) != 1:
        raise ValueError(
            f"{name} steps on the host, and this algorithm keeps {len(states) or 'no'} environments from one update "
            "to the next: it chooses the states from which episodes begin, and a state on the host cannot be set"
        )
    return states[0].time.shape[0]


def _is_state(x: Any) -> bool:
    return isinstance(x, EnvState)


__all__ = ["Acting", "Collector", "Turn", "acting", "collecting"]
