"""Environments that step on the host: what stands for them in a program, and what a program asks of them.

Nothing on the host is called from inside a compiled program. An algorithm's `update` begins with a rollout, and a
rollout in such an environment gives experience that was collected before, an input of the program like any other. Which
experience that has to be, the algorithm says itself: without any, its rollout ends the trace in a `Request`, which has
the policy, the key and the number of steps that it was called with. `rlx.run.collecting` compiles the acting from it.

Axes: T time, N environments.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, NoReturn, Protocol, TypeVar

import jax
import jax.numpy as jnp

from rlx.env import Env, EnvState, Transition
from rlx.pytree import num_rows, pytree, replace
from rlx.spaces import Space, zeros

T = TypeVar("T")


class Stepped(NamedTuple):
    """What a step of N environments on the host gives: numpy arrays `[N, ...]`, observations as rlx's spaces have them.

    Where an episode has ended, `next_obs` is its true last observation and `obs` the first one of the next.
    """

    obs: Any  # to act on next
    next_obs: Any  # the true successor
    reward: Any
    terminated: Any  # bool
    truncated: Any  # bool; may be set where `terminated` is
    info: dict[str, Any]  # what is reported, by the names that `Host.reported` has
    valid: Any = None  # bool: False where a step only began an episode and is no transition; None where all are


class Vector(Protocol):
    """N environments that step together on the host.

    Whatever they raise ends the run, which is saved. Of a `Fault` the message is told as it is.
    """

    num_envs: int

    def reset(self, seed: int) -> Any:
        """First observations `[N, ...]`; equal seeds give equal episodes."""
        ...

    def send(self, action: Any) -> None:
        """Begins a step with actions `[N, ...]`, of rlx's action space."""
        ...

    def receive(self) -> Stepped:
        """Waits for the step that was begun."""
        ...

    def waiting(self) -> str:
        """Which environments a call that lasts too long waits for, in words."""
        ...

    def close(self) -> None:
        """Ends the environments, and their processes; also while another thread waits for them."""
        ...


class Fault(RuntimeError):
    """An environment on the host that raised, died, hung, or gave a number that is not finite."""


@dataclass(frozen=True, eq=False)
class Host:
    """The `Environment` of an `Env` that steps on the host. One object is one program.

    Attributes:
        name: `namespace/Name`, for messages.
        observations: the observation space, of rlx.
        actions: the action space.
        opened: `opened(num_envs, first)` makes a `Vector` to train in, of the environments from that number on.
        opened_to_play: the same for an evaluation, which makes no processes.
        reported: names of what `info` holds of floats and truth values, see `rlx.env.reports`.
        flags: those of them that are truth values.
        limit: the most steps of an episode, where that is known.
        blocks: into how many the environments are cut where their number divides, each a `Vector`; the policy acts in
            one while the others step.
    """

    name: str
    observations: Space
    actions: Space
    opened: Callable[[int, int], Vector]
    opened_to_play: Callable[[int, int], Vector]
    reported: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    limit: int | None = None
    blocks: int = 1

    default_params = None

    def observation_space(self, params: Any) -> Space:
        """Whatever the experience."""
        return self.observations

    def action_space(self, params: Any) -> Space:
        """Whatever the experience."""
        return self.actions

    def horizon(self, params: Any) -> int | None:
        """The most steps of an episode, where that is known."""
        return self.limit

    def reset(self, key: jax.Array, params: Any) -> NoReturn:
        """Raises ValueError: a program cannot."""
        raise ValueError(self.refusal)

    def step(self, key: jax.Array, state: Any, action: jax.Array, params: Any) -> NoReturn:
        """Raises ValueError: a program cannot."""
        raise ValueError(self.refusal)

    @property
    def refusal(self) -> str:
        """Why a program that would have to step it cannot be compiled."""
        return (
            f"{self.name} steps on the host, which no compiled program does: rlx train and rlx.fit train in it, "
            "rlx eval and the evaluate of an agent play in it"
        )


@pytree
class Collected:
    """Experience from the host: the `params` of an `Env` whose `reset` and `rollout` give it, in place of stepping."""

    start: Any = None  # EnvState [N] that `reset` gives
    after: Any = None  # EnvState [N] after the last step
    traj: Any = None  # Transition [T, N], with what the policy recorded
    memory: Any = None  # of the policy after the last step, where it has one


class _Once:
    """Experience that is given out once within a trace."""

    def __init__(self, held: Collected):
        self.held, self.left = held, [held]

    def given(self) -> Collected:
        """The experience."""
        if not self.left:
            raise ValueError("two rollouts in one update: on the host experience is collected for one")
        return self.left.pop()


class Request(ValueError):
    """Ends a trace at a rollout that there is no experience for; has what it was called with."""

    def __init__(self, env: Env, policy: Callable, env_state: EnvState, key: Any, num_steps: int, memory: tuple):
        super().__init__(host_of(env).refusal)
        self.policy, self.num_envs, self.key, self.num_steps = policy, env_state.time.shape[0], key, num_steps
        self.memory = memory  # what the policy remembers, and what it does at the beginning of an episode; or nothing


def is_hosted(env: Any) -> bool:
    """Whether an `Env` steps on the host."""
    return isinstance(getattr(env, "environment", None), Host)


def host_of(env: Env) -> Host:
    """The `Host` of an `Env` that steps there."""
    assert isinstance(env.environment, Host)
    return env.environment


def begun(env: Env, num_envs: int) -> EnvState:
    """What `rlx.rollout.reset` gives: the starts that were collected, or zeros where these are asked for.

    Raises:
        ValueError: outside of what the host's runs trace.
    """
    held = env.params.held if isinstance(env.params, _Once) else env.params
    if held is None:
        raise ValueError(host_of(env).refusal)
    return zero_state(env, num_envs) if held.start is None else held.start


def collected(env: Env, policy: Callable, env_state: EnvState, key: Any, num_steps: int, *memory: Any) -> tuple:
    """What `rlx.rollout.rollout` gives: the experience that was collected.

    Raises:
        Request: where there is none.
    """
    held = env.params.given() if isinstance(env.params, _Once) else env.params
    if held is None or held.traj is None:
        raise Request(env, policy, env_state, key, num_steps, memory)
    if num_rows(held.traj) != num_steps:
        raise ValueError(f"{num_steps} steps are asked for and {num_rows(held.traj)} were collected")
    return held.after, held.traj, *([held.memory] if memory else [])


def zero_state(env: Env, num_envs: int) -> EnvState:
    """`num_envs` environments on the host at the beginning of an episode, with observations of zeros."""
    obs = jax.tree.map(lambda x: jnp.zeros((num_envs, *x.shape), x.dtype), zeros(env.observation_space))
    reported = {name: jnp.zeros(num_envs) for name in host_of(env).reported}
    return EnvState((), obs, jnp.zeros(num_envs, jnp.int32), jnp.zeros(num_envs), reported)


def zero_experience(env: Env, request: Request) -> Collected:
    """What is asked for, of zeros: for its shapes. The policy is traced once."""
    after = zero_state(env, request.num_envs)
    action, recorded, *memory = request.policy(after.obs, request.key, *request.memory[:1])
    steps = lambda tree: jax.tree.map(lambda x: jnp.zeros((request.num_steps, *x.shape), x.dtype), tree)
    flags = jnp.zeros(request.num_envs, bool)
    row = Transition(
        obs=after.obs,
        action=action,
        reward=after.episode_return,
        next_obs=after.obs,
        terminated=flags,
        truncated=flags,
        episode_return=after.episode_return,
        episode_length=after.time,
        info={},
        diverged=flags,
        recorded=recorded,
        reported=after.reported,
    )
    return Collected(after=after, traj=steps(row), memory=memory[0] if memory else None)


def asked(program: Callable[[Env], Any], env: Env) -> Request | None:
    """What a program asks of an environment on the host, within a trace; None where it asks for no rollout."""
    try:
        program(replace(env, params=Collected()))
    except Request as request:
        return request
    return None


def answered(program: Callable[[Env], T], env: Env) -> T:
    """What a program gives, within a trace that is for shapes: it gets zeros where it asks for experience.

    Of an environment that does not step on the host it is `program(env)`.

    Raises:
        ValueError: for a program that asks twice.
    """
    if not is_hosted(env):
        return program(env)
    request = asked(program, env)
    held = Collected() if request is None else zero_experience(env, request)
    return program(replace(env, params=_Once(held)))


def check_hosted(env: Any, why: str) -> None:
    """Raises ValueError, which says why, where an environment steps on the host."""
    if is_hosted(env):
        raise ValueError(f"{env.environment.name} steps on the host, and {why}")
