"""Adapter for JaxMARL: environments of several agents.

An optional extra: `pip install 'rlx[jaxmarl]'`. Axes: A agents, O observation of the widest of them.
"""

import contextlib
import io
import re
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rlx.env import Env
from rlx.envs.suites.jaxmarl_drawings import DRAWINGS
from rlx.spaces import Box, Dict, Discrete

# Listed here so that looking a name up does not import the suite; a test compares with the installed one.
NAMES = (
    *("MPE_simple_v3", "MPE_simple_spread_v3", "MPE_simple_speaker_listener_v4", "MPE_simple_reference_v3"),
    *("MPE_simple_tag_v3", "MPE_simple_adversary_v3", "MPE_simple_push_v3", "MPE_simple_world_comm_v3"),
    *("MPE_simple_facmac_v1", "MPE_simple_facmac_3a_v1"),
    *("SMAX", "HeuristicEnemySMAX", "overcooked", "overcooked_v2", "hanabi", "switch_riddle", "jaxnav"),
)
NESTED = "its episodes are games within a game, of which only the outer one ends"
REFUSED = {
    "MPE_simple_crypto_v3": "its rewards are wrong: from -65026 to 510 where they should be -2 to 2",
    "MPE_simple_facmac_6a_v1": "its observations are wider than its spaces say; use MPE_simple_facmac_3a_v1",
    "MPE_simple_facmac_9a_v1": "its observations are wider than its spaces say; use MPE_simple_facmac_3a_v1",
    "LearnedPolicyEnemySMAX": "it needs a policy to play against; use HeuristicEnemySMAX",
    "storm": NESTED,
    "storm_2p": NESTED,
    "storm_np": NESTED,
    "coin_game": NESTED,
    **dict.fromkeys(
        ("ant_4x2", "halfcheetah_6x1", "hopper_3x1", "humanoid_9|8", "walker2d_2x3"),
        "it splits a robot of Brax over agents; use that robot as one, such as brax/ant",
    ),
    **{
        f"JaxRobotarium_{task}": "it is of another package, jaxrobotarium"
        for task in (
            *("navigation", "discovery", "material_transport", "warehouse", "arctic_transport", "foraging", "rware"),
            "predator_prey",
        )
    },
}
CUT_BY_US = 10**6  # a time limit that never comes: that of `Env` does
# The limit is part of the task, since observations tell how near it is: it stays theirs, and counts as truncation.
OWN_LIMIT = ("overcooked", "overcooked_v2", "jaxnav")
REUSES_KEYS = ("MPE_simple_facmac_v1", "MPE_simple_facmac_3a_v1")


class JaxMARL:
    """An environment of JaxMARL under the contract of `rlx.env.Environment`, its agents in the order of its own.

    Every agent observes a dictionary: `obs`, filled up with zeros to the widest; `agent`, which one it is; `role`,
    where agents of one role share parameters; `action_mask`, where not every action is always legal or agents have
    different numbers of them; `world`, what only critics see: the environment's own state of the world, or what all
    agents observe. Rewards are the agents' own. `info` has `return`, what each agent, and each team on average, was
    paid; `win` of SMAX, `alive` where agents end early, and `shaped_reward` of Overcooked.

    `params` are None, but for Overcooked, which adds `shaped_coef` of its shaped rewards to the others.
    """

    def __init__(self, name: str, environment: Any, separate: str | None, world: bool):
        self.name, self.inner, self.num_agents = name, environment, len(environment.agents)
        self.roles = [re.sub(r"_?\d+$", "", agent) or "agent" for agent in environment.agents]
        teams = sorted(set(self.roles))
        self.role = np.array([teams.index(role) for role in self.roles])
        self.separate, self.world = separate, world
        self.shaped = name.startswith("overcooked")
        self.default_params = {"shaped_coef": 0.0} if self.shaped else None
        actions = [environment.action_space(agent) for agent in environment.agents]
        self.sizes = [int(getattr(space, "n", None) or space.shape[0]) for space in actions]
        self.discrete = all(hasattr(space, "n") for space in actions)
        if not self.discrete and any(hasattr(space, "n") for space in actions):
            raise ValueError(f"jaxmarl/{name}: some of its agents choose and others push: it is not offered")
        self.actions = actions
        obs, state = jax.eval_shape(environment.reset, jax.random.key(0))
        shapes = [obs[agent].shape for agent in environment.agents]
        self.shape = shapes[0] if len(set(shapes)) == 1 else (max(int(np.prod(shape)) for shape in shapes),)
        self.tells_legal = self.discrete and self._tells_legal(state)
        self.masked = self.tells_legal or (self.discrete and len(set(self.sizes)) > 1)
        self.world_size = self._world_size(obs)
        if name in REUSES_KEYS:
            self.reuses_keys = "JaxMARL draws the noise of its actions twice with one key"
        if name.partition("_")[0] in DRAWINGS and name != "overcooked_v2":
            self.frames = DRAWINGS[name.partition("_")[0]].__get__(self)

    def horizon(self, params):
        return self.inner.max_steps if self.name in OWN_LIMIT else None

    def reset(self, key, params):
        obs, state = self.inner.reset(key)
        return self._obs(obs, state), state

    def step(self, key, state, action, params):
        agents = self.inner.agents
        if self.discrete:
            given = {agent: action[i] for i, agent in enumerate(agents)}
        else:
            given = {agent: action[i, : self.sizes[i]] for i, agent in enumerate(agents)}
        obs, stepped, rewards, dones, info = self.inner.step_env(key, state, given)
        stepped = jax.tree.map(lambda x, old: jnp.asarray(x, jnp.result_type(old)), stepped, state)
        reward = jnp.stack([jnp.asarray(rewards[agent], jnp.float32) for agent in agents])
        reported: dict[str, Any] = {"return": self._by_team(reward)}
        if self.shaped:
            shaped = jnp.stack([jnp.asarray(info["shaped_reward"][agent], jnp.float32) for agent in agents])
            reward = reward + params["shaped_coef"] * shaped
            reported["shaped_reward"] = shaped.mean()
        done = jnp.asarray(dones["__all__"], bool)
        over = jnp.array(False) if self.name.startswith(("MPE", "overcooked")) else done
        cut = jnp.array(False)
        if self.name in OWN_LIMIT:
            cut = done & (stepped.step >= self.inner.max_steps)
            over = over & ~cut
        if "SMAX" in self.name:
            alive = getattr(stepped, "state", stepped).unit_alive
            before = getattr(state, "state", state).unit_alive
            reported |= {"win": ~alive[self.inner.num_allies :].any(), "alive": before[: self.num_agents]}
        if self.name == "jaxnav":
            reported["alive"] = ~state.done
        return self._obs(obs, stepped), stepped, reward, over, cut, reported

    def observation_space(self, params):
        spaces = {"obs": Box(-jnp.inf, jnp.inf, self.shape), "agent": Discrete(self.num_agents)}
        if self.separate == "role":
            spaces["role"] = Discrete(int(self.role.max()) + 1)
        if self.masked:
            spaces["action_mask"] = Box(0, 1, (max(self.sizes),), jnp.bool_)
        if self.world:
            spaces["world"] = Box(-jnp.inf, jnp.inf, (self.world_size,))
        return Dict(spaces, privileged=("world",) if self.world else (), separate=self.separate)

    def action_space(self, params):
        if self.discrete:
            return Discrete(max(self.sizes))
        edges = [(np.broadcast_to(s.low, s.shape), np.broadcast_to(s.high, s.shape)) for s in self.actions]
        low, high = edges[int(np.argmax(self.sizes))]
        return Box(low.astype(np.float32), high.astype(np.float32), (max(self.sizes),))

    def _obs(self, obs, state):
        own = [jnp.asarray(obs[agent], jnp.float32) for agent in self.inner.agents]
        if any(x.shape != self.shape for x in own):
            own = [jnp.pad(x.reshape(-1), (0, self.shape[0] - x.size)) for x in own]
        seen = {"obs": jnp.stack(own), "agent": jnp.arange(self.num_agents, dtype=jnp.int32)}
        if self.separate == "role":
            seen["role"] = jnp.asarray(self.role, jnp.int32)
        if self.masked:
            everything = {agent: jnp.ones(n, bool) for agent, n in zip(self.inner.agents, self.sizes, strict=True)}
            legal = self._legal(state) if self.tells_legal else everything
            fill = lambda mask: jnp.pad(mask.astype(bool), (0, max(self.sizes) - len(mask)))
            seen["action_mask"] = jnp.stack([fill(legal[agent]) for agent in self.inner.agents])
        if self.world:
            whole = obs.get("world_state")
            whole = jnp.concatenate([obs[a].reshape(-1) for a in self.inner.agents]) if whole is None else whole
            seen["world"] = jnp.tile(jnp.asarray(whole, jnp.float32), (self.num_agents, 1))
        return seen

    def _world_size(self, obs):
        if "world_state" in obs:
            return int(np.prod(obs["world_state"].shape))
        return sum(int(np.prod(obs[agent].shape)) for agent in self.inner.agents)

    def _tells_legal(self, state):
        """Whether the environment says which actions are legal: the others of JaxMARL raise."""
        try:
            jax.eval_shape(self._legal, state)
        except NotImplementedError:
            return False
        return True

    def _legal(self, state):
        """Which actions are legal, by agent, where the environment says it."""
        if hasattr(self.inner, "get_legal_moves"):
            return self.inner.get_legal_moves(state)
        return self.inner.get_avail_actions(state)

    def _by_team(self, reward):
        paid = {str(agent): reward[i] for i, agent in enumerate(self.inner.agents)}
        teams = sorted(set(self.roles))
        members = lambda team: np.array([role == team for role in self.roles])
        return paid | ({f"{team}s": reward[members(team)].mean() for team in teams} if len(teams) > 1 else {})


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Within it nothing is printed, also by what puts `sys.__stdout__` in place of `sys.stdout`, as JaxMARL does."""
    kept = {name: getattr(sys, name) for name in ("stdout", "stderr", "__stdout__", "__stderr__")}
    for name in kept:
        setattr(sys, name, io.StringIO())
    try:
        yield
    finally:
        for name, stream in kept.items():
            setattr(sys, name, stream)


def imported() -> Any:
    """The package `jaxmarl`, without Brax, which takes longer to import than all else and is not used."""
    if sys.modules.get("jaxmarl") is not None:
        return sys.modules["jaxmarl"]
    kept = {name: sys.modules[name] for name in ("brax",) if name in sys.modules}
    sys.modules["brax"] = None  # pyright: ignore[reportArgumentType] (an import of it fails)
    try:
        with quiet():
            import jaxmarl  # pyright: ignore[reportMissingImports] (an extra)
    finally:
        del sys.modules["brax"]
        sys.modules.update(kept)
    return jaxmarl


def make(name: str, separate: str | None = None, world: bool = False, **options: Any) -> Env:
    """An environment of several agents, with a row for each of them, see `rlx.multiagent`.

    Args:
        name: of the environment.
        separate: "agent" gives each agent parameters of its own, "role" all those of one role, such as adversaries;
            without it all agents share theirs and see which one they are.
        world: critics see the state of the world, as MAPPO has it.
        options: of the environment's constructor. `scenario="2s3z"` of SMAX and `layout="coord_ring"` of Overcooked are
            names.

    Raises:
        ValueError: when JaxMARL is not installed, or an option is not one of the environment's.
    """
    if separate not in (None, "agent", "role"):
        raise ValueError(f"separate = {separate!r}: give 'agent' or 'role', or leave it out")
    try:
        jaxmarl = imported()
    except ImportError as error:
        raise ValueError(f"jaxmarl/{name} needs another package: pip install 'rlx[jaxmarl]' ({error})") from error
    own = dict(options)
    if isinstance(own.get("scenario"), str) and "SMAX" in name:
        from jaxmarl.environments.smax import map_name_to_scenario  # pyright: ignore[reportMissingImports]

        try:
            own["scenario"] = map_name_to_scenario(own["scenario"])
        except (KeyError, ValueError, AssertionError) as error:
            raise ValueError(f"jaxmarl/{name} has no scenario {own['scenario']!r}; one is 2s3z ({error})") from error
    if isinstance(own.get("layout"), str) and name == "overcooked":
        from jaxmarl.environments import overcooked_layouts  # pyright: ignore[reportMissingImports]

        own["layout"] = _chosen(overcooked_layouts, own["layout"])
    try:
        with quiet(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of JAX about float64, which JaxNav asks for
            environment = jaxmarl.make(name, **own)
            limit = environment.max_steps if name.startswith("MPE") or "SMAX" in name else None
            if "SMAX" in name:  # whose ends are told apart by a limit that never comes
                environment = jaxmarl.make(name, **own, max_steps=CUT_BY_US)
    except (TypeError, KeyError, AssertionError) as error:
        raise ValueError(f"jaxmarl/{name} does not take {options}: {error}") from error
    adapter = JaxMARL(name, environment, separate, world)
    return Env(adapter, adapter.default_params, max_steps=limit)


def _chosen(named: Any, name: str) -> Any:
    if name not in named:
        raise ValueError(f"{name!r}: choose among {', '.join(named)}")
    return named[name]
