"""`check` proves a correct environment, and every clause of it rejects an environment that breaks just that one."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlx.env import Env
from rlx.envs import check
from rlx.envs.contract.clauses import CLAUSES
from rlx.envs.contract.evidence import ContractError
from rlx.pytree import pytree
from rlx.spaces import Box, Dict, Discrete, Tuple

NAMES = [clause.__name__.replace("_", " ") for clause in CLAUSES]


@pytree
class Params:
    stride: float = 0.2
    max_steps: int = 40


class Walk:
    """A correct environment: a noisy walk that starts near 0 and terminates beyond 1."""

    default_params = Params()
    differentiable = True

    def observation_space(self, params):
        return Box(-2.0, 2.0, (2,))

    def action_space(self, params):
        return Discrete(2)

    def obs(self, state):
        return jnp.stack([state["x"], state["x"] ** 2])

    def reset(self, key, params):
        state = {"x": jax.random.uniform(key, (), minval=-0.1, maxval=0.1), "time": 0}
        return self.obs(state), state

    def move(self, key, x, action, params):
        return x + params.stride * (2 * action - 1) + 0.05 * jax.random.normal(key)

    def step(self, key, state, action, params):
        state = {"x": self.move(key, state["x"], action, params), "time": state["time"] + 1}
        terminated = jnp.abs(state["x"]) > 1.0
        return self.obs(state), state, -jnp.abs(state["x"]), terminated, state["time"] >= params.max_steps, {}


@pytest.fixture(autouse=True)
def _forget_leaked():
    yield
    LEAKED.clear()


def env_of(environment, **changes):
    return Env(environment, environment.default_params, **changes)


class TupleSpace(Walk):
    def action_space(self, params):
        return (2,)


class SwappedBounds(Walk):
    def observation_space(self, params):
        return Box(2.0, -2.0, (2,))


class BoundsOfOtherShape(Walk):
    def observation_space(self, params):
        return Box(-2 * jnp.ones(3), 2 * jnp.ones(3), (2,))


class MatrixOfPushes(Walk):
    def action_space(self, params):
        return Box(-1.0, 1.0, (2, 2))


class Robot(Walk):
    """The walk seen in several entries, with legal actions, and moved by two choices and a push."""

    def observation_space(self, params):
        legal = Tuple(Box(0, 1, (2, 3), jnp.bool_), Box(0, 1, (2,), jnp.bool_))
        return Dict(place=Box(-2.0, 2.0, (2,)), pixels=Box(0, 255, (2, 2, 1), jnp.uint8), action_mask=legal)

    def action_space(self, params):
        return Tuple(Discrete(3, shape=(2,)), Discrete(2), Box(-1.0, 1.0, (1,)))

    def obs(self, state):
        legal = jnp.ones((2, 3), bool).at[:, 2].set(state["x"] > 0), jnp.array([True, False])
        place, pixels = super().obs(state), jnp.full((2, 2, 1), 50 * (state["x"] + 2), jnp.uint8)
        return {"place": place, "pixels": pixels, "action_mask": legal}

    def move(self, key, x, action, params):
        choices, one, push = action
        return super().move(key, x, one, params) + 0.05 * push[0] + 0.1 * (choices - 1).mean()


class MaskOfOtherShape(Robot):
    def observation_space(self, params):
        return Dict(super().observation_space(params).spaces | {"action_mask": Box(0, 1, (2, 3), jnp.bool_)})


class MaskOfFloats(Robot):
    def observation_space(self, params):
        return Dict(super().observation_space(params).spaces | {"action_mask": Box(0.0, 1.0, (2, 3))})


class EntryMissing(Robot):
    def obs(self, state):
        return {name: x for name, x in super().obs(state).items() if name != "pixels"}


class EntryOfOtherDtype(Robot):
    def obs(self, state):
        return super().obs(state) | {"pixels": jnp.zeros((2, 2, 1))}


class EntryBeyondItsBounds(Robot):
    def obs(self, state):
        return super().obs(state) | {"place": jnp.array([3.0, 0.0])}


class IntegerActions(Walk):
    def action_space(self, params):
        return Box(0, 1, (2,), jnp.int32)


class FiveValues(Walk):
    def step(self, *args):
        return super().step(*args)[:5]


class NoDefaultParams(Walk):
    default_params = property()


class Unhashable(Walk):
    __hash__ = None


class PythonBranch(Walk):
    def move(self, key, x, action, params):
        return super().move(key, x, 1 if x > 0 else action, params)


class WrongShape(Walk):
    def observation_space(self, params):
        return Box(-2.0, 2.0, (3,))


class WrongDtype(Walk):
    def obs(self, state):
        return super().obs(state).astype(jnp.bfloat16)


class IntReward(Walk):
    def step(self, *args):
        obs, state, _, *rest = super().step(*args)
        return obs, state, 1, *rest


class FloatTerminated(Walk):
    def step(self, *args):
        obs, state, reward, terminated, *rest = super().step(*args)
        return obs, state, reward, terminated.astype(jnp.float32), *rest


class TimeBecomesFloat(Walk):
    def step(self, *args):
        obs, state, *rest = super().step(*args)
        return obs, {**state, "time": state["time"].astype(jnp.float32)}, *rest


class FieldAppears(Walk):
    def step(self, *args):
        obs, state, *rest = super().step(*args)
        return obs, {**state, "last": obs}, *rest


class BranchOnParams(Walk):
    def move(self, key, x, action, params):
        return super().move(key, x, action if params.stride > 0 else 1 - action, params)


class OtherParams(Walk):
    def step(self, key, state, action, params):
        return super().step(key, state, action, self.default_params)


class SpaceNeedsValues(Walk):
    def observation_space(self, params):
        return Box(-2.0, 2.0, (int(10 * params.stride),))


class KeepsTracer(Walk):
    def step(self, *args):
        out = super().step(*args)
        self.last = {"obs": [out[0]]}
        return out


class KeepsTracerInGlobal(Walk):
    def step(self, *args):
        out = super().step(*args)
        LEAKED.append(out[0])
        return out


LEAKED = []


class UsesKeptTracer(Walk):
    def reset(self, key, params):
        obs, state = super().reset(key, params)
        self.start = obs
        return obs, state

    def step(self, *args):
        obs, *rest = super().step(*args)
        return obs - self.start, *rest


class ReusesKey(Walk):
    def move(self, key, x, action, params):
        return super().move(key, x + 0.01 * jax.random.normal(key), action, params)


class DeclaresReuse(ReusesKey):
    reuses_keys = "its noise is drawn twice with one key"


class DeclaresReuseInVain(Walk):
    reuses_keys = "its noise is drawn twice with one key"


class NumpyNoise(Walk):
    def move(self, key, x, action, params):
        return super().move(key, x + 0.01 * np.random.normal(), action, params)  # noqa: NPY002


class NumpyNoiseArray(Walk):
    def move(self, key, x, action, params):
        return super().move(key, x, action, params) + 0.01 * jnp.asarray(np.random.normal(size=3))[action]  # noqa: NPY002


class CountsCalls(Walk):
    calls = 0

    def move(self, *args):
        self.calls += 1
        return super().move(*args) + 0.001 * self.calls


class HostNoise(Walk):
    calls = 0

    def noise(self):
        self.calls += 1
        return np.float32(0.001 * self.calls)

    def move(self, *args):
        noise = jax.pure_callback(self.noise, jax.ShapeDtypeStruct((), jnp.float32), vmap_method="broadcast_all")
        return super().move(*args) + noise


class FixedStart(Walk):
    def reset(self, key, params):
        return super().reset(jax.random.key(0), params)


class TightBounds(Walk):
    def observation_space(self, params):
        return Box(-1.0, 1.0, (2,))


class NanObservation(Walk):
    def obs(self, state):
        return jnp.sqrt(super().obs(state))


class LeavesAtTheBound(Walk):
    """Right for every action that the space draws, and wrong on its bound, where policies clip."""

    def action_space(self, params):
        return Box(-1.0, 1.0, (1,))

    def move(self, key, x, action, params):
        return jnp.where(action[0] >= 1.0, 5.0, super().move(key, x, action[0] > 0.0, params))


class InfiniteAtTheOneBound(Walk):
    def action_space(self, params):
        return Box(0.0, jnp.inf, (1,))

    def step(self, key, state, action, params):
        obs, state, _, *rest = super().step(key, state, action[0] > 0.7, params)
        return obs, state, jnp.log(action[0]), *rest


class InfiniteReward(Walk):
    def step(self, *args):
        obs, state, reward, terminated, *rest = super().step(*args)
        return obs, state, jnp.where(terminated, -jnp.inf, reward), terminated, *rest


class AsksForTracer(Walk):
    def move(self, key, x, action, params):
        moved = super().move(key, x, action, params)
        return moved if isinstance(x, jax.core.Tracer) else -moved


@jax.custom_batching.custom_vmap
def centred(x):
    return x


@centred.def_vmap
def _centre_batch(axis_size, in_batched, x):
    return x - x.mean(), True


class MixesBatch(Walk):
    def move(self, key, x, action, params):
        return centred(super().move(key, x, action, params))


class LimitTerminates(Walk):
    def step(self, *args):
        *first, terminated, truncated, info = super().step(*args)
        return *first, terminated | truncated, jnp.array(False), info


class LimitIgnored(Walk):
    def step(self, *args):
        *first, _, info = super().step(*args)
        return *first, jnp.array(False), info


class LimitOffByOne(Walk):
    def step(self, key, state, action, params):
        return super().step(key, state, action, replace(params, max_steps=params.max_steps + 1))


class RestartsAtTermination(Walk):
    def step(self, key, state, action, params):
        key, reset_key = jax.random.split(key)
        obs, state, reward, terminated, truncated, info = super().step(key, state, action, params)
        start = self.reset(reset_key, params)
        obs, state = jax.tree.map(lambda a, b: jnp.where(terminated, a, b), start, (obs, state))
        return obs, state, reward, terminated, truncated, info


class RestartsAtTruncation(Walk):
    def step(self, key, state, action, params):
        key, reset_key = jax.random.split(key)
        obs, state, reward, terminated, truncated, info = super().step(key, state, action, params)
        start = self.reset(reset_key, params)
        obs, state = jax.tree.map(lambda a, b: jnp.where(truncated, a, b), start, (obs, state))
        return obs, state, reward, terminated, truncated, info


class DetachedState(Walk):
    """Its gradients are finite and wrong, from the second step on."""

    def move(self, key, x, action, params):
        return super().move(key, jax.lax.stop_gradient(x), action, params)


class DetachedParams(Walk):
    def move(self, key, x, action, params):
        return super().move(key, x, action, replace(params, stride=jax.lax.stop_gradient(params.stride)))


class DetachedActions(Walk):
    def action_space(self, params):
        return Box(0.0, 1.0, (1,))

    def move(self, key, x, action, params):
        return super().move(key, x, jax.lax.stop_gradient(action[0]), params)


class GradientOfNan(Walk):
    def move(self, key, x, action, params):
        return super().move(key, x, action, params) + 0.0 * jnp.sqrt(0.0 * params.stride)


class NotInReverse(Walk):
    def move(self, key, x, action, params):
        moved = super().move(key, x, action, params)
        return jax.lax.while_loop(lambda x: jnp.abs(x) > 2.0, lambda x: x / 2, moved)


class InfoAppears(Walk):
    def step(self, key, state, action, params):
        first = not getattr(self, "stepped", False)
        self.stepped = first
        return *super().step(key, state, action, params)[:5], {"success": jnp.array(False)} if first else {}


class InfoChangesDtype(Walk):
    def step(self, key, state, action, params):
        self.stepped = not getattr(self, "stepped", False)
        info = {"success": jnp.zeros((), bool if self.stepped else jnp.float32)}
        return *super().step(key, state, action, params)[:5], info


class InfoChangesStructure(Walk):
    def step(self, key, state, action, params):
        self.stepped = not getattr(self, "stepped", False)
        return *super().step(key, state, action, params)[:5], {} if self.stepped else ()


class ReportsNan(Walk):
    def step(self, key, state, action, params):
        *rest, _ = super().step(key, state, action, params)
        return *rest, {"speed": jnp.log(state["x"]), "success": rest[3]}


class ReportsInfinity(Walk):
    def step(self, key, state, action, params):
        return *super().step(key, state, action, params)[:5], {"rate": 1.0 / (state["time"] - 5)}


BROKEN = {
    "spaces": (
        TupleSpace,
        SwappedBounds,
        BoundsOfOtherShape,
        MatrixOfPushes,
        IntegerActions,
        MaskOfOtherShape,
        MaskOfFloats,
    ),
    "structure": (FiveValues, NoDefaultParams, PythonBranch),
    "observation": (WrongShape, WrongDtype, EntryMissing, EntryOfOtherDtype),
    "reward and ends": (IntReward, FloatTerminated),
    "reports": [InfoAppears, InfoChangesDtype, InfoChangesStructure],
    "reported values": [ReportsNan, ReportsInfinity],
    "carry": (TimeBecomesFloat, FieldAppears),
    "params": (BranchOnParams, OtherParams, SpaceNeedsValues),
    "tracers": (KeepsTracer, KeepsTracerInGlobal, UsesKeptTracer),
    "keys": (ReusesKey, DeclaresReuseInVain),
    "determinism": (NumpyNoise, NumpyNoiseArray, CountsCalls, HostNoise),
    "starts": (FixedStart,),
    "values": (
        EntryBeyondItsBounds,
        TightBounds,
        NanObservation,
        LeavesAtTheBound,
        InfiniteAtTheOneBound,
        InfiniteReward,
    ),
    "jit": (AsksForTracer,),
    "vmap": (MixesBatch,),
    "time limit": (LimitTerminates, LimitIgnored, LimitOffByOne),
    "successor": (RestartsAtTermination, RestartsAtTruncation),
    "gradients": [DetachedState, DetachedParams, DetachedActions, GradientOfNan, NotInReverse],
}


@pytest.mark.parametrize(("clause", "broken"), [(c, b) for c, all_of in BROKEN.items() for b in all_of])
def test_each_clause_rejects_what_breaks_it(clause, broken):
    environment = object.__new__(broken)
    params = Params() if broken is NoDefaultParams else environment.default_params
    with pytest.raises(ContractError) as caught:
        check(Env(environment, params))
    assert caught.value.clause == clause
    seen, _, advice = str(caught.value).removeprefix(f"{clause}: ").rpartition("; ")
    assert seen
    assert advice


def test_a_correct_environment_is_proven_in_every_clause():
    assert [line.partition(":")[0] for line in check(env_of(Walk()))] == NAMES


def test_every_clause_has_an_environment_that_breaks_it():
    assert set(BROKEN) | {"legal actions"} == set(NAMES)  # which says what it has seen, and refuses nothing


def test_an_environment_of_several_entries_and_parts_is_proven_in_every_clause():
    assert all(judged(check(env_of(Robot()))).values())


def test_steps_in_which_nothing_is_legal_are_said():
    class Stuck(Robot):
        def obs(self, state):
            obs = super().obs(state)
            return obs | {"action_mask": (obs["action_mask"][0], jnp.array([False, False]))}

    line = next(line for line in check(env_of(Stuck())) if "legal actions" in line)
    assert line.startswith("not judged: legal actions: in ")
    assert "nothing is legal: policies choose among all actions there, and the metric num_unmasked counts them" in line


def judged(lines):
    return {name: not any(line.startswith(f"not judged: {name}: ") for line in lines) for name in NAMES}


def test_the_time_limit_of_env_is_judged_too():
    class Unlimited(Walk):
        default_params = Params(max_steps=10**6)

    assert all(judged(check(env_of(Unlimited(), max_steps=30))).values())


def test_what_cannot_be_told_is_not_judged():
    class OneStep(Walk):
        """No parameters, no limit, and every observation is a start."""

        default_params = None

        def move(self, key, x, action, params):
            return x

        def step(self, key, state, action, params):
            return self.obs(state), state, jnp.float32(1.0), jnp.array(True), jnp.array(False), {}

    not_judged = [name for name, yes in judged(check(env_of(OneStep()))).items() if not yes]
    assert not_judged == ["params", "time limit", "successor", "gradients"]


@pytest.mark.more
def test_a_program_too_large_to_run_without_jit_is_not_judged_there():
    class Long(Walk):
        def move(self, key, x, action, params):
            for _ in range(500):
                x = x * 1.0001
            return super().move(key, x, action, params)

    assert [name for name, yes in judged(check(env_of(Long()))).items() if not yes] == ["jit"]


def test_a_tracer_in_the_cache_of_jax_is_not_held_against_the_environment():
    call = jax.jit(lambda function, x: function(x), static_argnums=0)

    class Closure(Walk):
        def move(self, key, x, action, params):
            return super().move(key, call(lambda y: y + 0.0 * x, x), action, params)

    assert all(judged(check(env_of(Closure()))).values())


def test_a_fixed_start_has_to_be_declared_and_to_be_fixed():
    assert all(judged(check(env_of(FixedStart()), random_starts=False)).values())
    with pytest.raises(ContractError, match="random_starts=False, but different keys"):
        check(env_of(Walk()), random_starts=False)


def test_a_key_that_is_declared_to_be_used_twice_is_reported():
    lines = check(env_of(DeclaresReuse()))
    assert "not judged: keys: its noise is drawn twice with one key" in lines


def test_a_hidden_random_start_counts():
    class Hidden(Walk):
        """The context that the reward depends on is drawn, and the observation does not show it."""

        def reset(self, key, params):
            state = {"x": jnp.float32(0.0), "time": 0, "context": jax.random.uniform(key)}
            return self.obs(state), state

        def step(self, key, state, action, params):
            obs, stepped, _, *rest = super().step(key, state, action, params)
            return obs, {**stepped, "context": state["context"]}, state["context"], *rest

    assert judged(check(env_of(Hidden())))["starts"]


def test_a_key_in_the_state_is_no_random_start():
    class KeptKey(FixedStart):
        def reset(self, key, params):
            obs, state = super().reset(key, params)
            return obs, {**state, "key": key}

        def step(self, key, state, action, params):
            obs, stepped, *rest = super().step(key, state, action, params)
            return obs, {**stepped, "key": state["key"]}, *rest

    with pytest.raises(ContractError, match="gave the same start"):
        check(env_of(KeptKey()))


def test_bounds_are_those_of_the_dtype_of_the_observations():
    class Half(Walk):
        """Ends at 0.3, which is 0.30005 in float16."""

        def observation_space(self, params):
            return Box(-0.3, 0.3, (2,), jnp.float16)

        def obs(self, state):
            return jnp.clip(super().obs(state), -0.3, 0.3).astype(jnp.float16)

    assert judged(check(env_of(Half())))["values"]


def test_params_may_be_a_dict():
    class DictWalk(Walk):
        default_params = {"stride": 0.2, "max_steps": 40}  # noqa: RUF012

        def step(self, key, state, action, params):
            return super().step(key, state, action, Params(**params))

    assert all(judged(check(env_of(DictWalk()))).values())
