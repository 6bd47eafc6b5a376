"""Every environment of the suites keeps the contract, as `benchmarks/suites.py` judges it."""

import sys
from pathlib import Path

import pytest

import rlx
from rlx.envs import registry

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))
import suites

pytestmark = pytest.mark.more


def test_one_that_breaks_the_contract_and_one_that_cannot_be_made_are_results(monkeypatch):
    def unmade():
        raise OSError("no such model")

    class Bare:
        default_params = None

        def observation_space(self, params):
            return None

        action_space = observation_space

    monkeypatch.setattr(registry, "_registered", {})
    rlx.envs.register("mine/Unmade", unmade)
    rlx.envs.register("mine/Bare", lambda: rlx.Env(Bare(), None))
    assert suites.judge("mine/Unmade") == {"passes": False, "error": "OSError: no such model"}
    found = suites.judge("mine/Bare")
    assert not found["passes"]
    assert found["error"].startswith("spaces: ")


def test_that_all_episodes_begin_alike_is_found_and_reasons_are_kept():
    found = suites.judge("probe/Constant", 16)
    assert found["passes"]
    assert found["fixed_starts"]
    assert found["not_judged"].keys() >= {"time limit", "successor"}


def test_one_that_takes_too_long_does_not_pass():
    found = suites.judged("probe/Constant", limit=0.01)
    assert not found["passes"]
    assert found["error"] == "it took longer than 0 s"


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for suite in suites.SUITES for name in suites.offered(suite)])
def test_every_environment_of_the_suites_keeps_the_contract(name):
    found = suites.judged(name)
    assert found["passes"], found["error"]
