"""Experiments with a `compare.py`: what is written of them is of their results, and their pictures can be drawn."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[1] / "experiments"
NAMES = sorted(path.parent.name for path in FOLDER.glob("*/compare.py") if (path.parent / "results").exists())
# By what the results of an experiment are told apart.
KEYS = {
    "curricula": ("task", "method"),
    "discovery": ("task",),
    "fine_tuning": ("task", "method"),
    "games": ("task", "method"),
    "groups": ("task",),
    "learned_rules": ("task",),
    "mechanisms": ("task", "arm"),
    "memory": ("task", "method"),
    "meta_gradient": ("task", "method"),
    "offline": ("task", "method"),
    "panel": ("task", "method"),
    "robustness": ("task", "trained"),
    "relatives": ("task", "variant"),
    "sequences": ("task", "variant"),
    "trees": ("task",),
    "trust_regions": ("task", "method"),
}
# The names of a task that a module measures.
OF = {
    "arm": lambda module, task: module.TASKS[task].arms,
    "variant": lambda module, task: module.VARIANTS,
    "method": lambda module, task: module.METHODS,
    "trained": lambda module, task: module.TASKS[task].trained,
}


@pytest.fixture(scope="module", params=NAMES)
def compared(request):
    """The module of an experiment and its results, in the order in which it measures them."""
    path = FOLDER / request.param / "compare.py"
    spec = importlib.util.spec_from_file_location(f"compare_{request.param}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    found = [json.loads(path.read_text()) for path in (path.parent / "results").glob("*.json")]
    keys = KEYS[request.param]
    results = {tuple(result[key] for key in keys): result for result in found}
    of = OF.get(keys[-1], lambda module, task: [()])
    wanted = [(task, *([name] if name else [])) for task in module.TASKS for name in of(module, task)]
    ordered = {key if key[1:] else key[0]: results[key] for key in wanted if key in results}
    assert len(ordered) == len(found) > 0  # no result of something that is not measured any more
    return module, ordered


def test_the_table_is_that_of_the_results(compared):
    module, results = compared
    assert f"<!-- table: returns -->\n{module.table(results)}<!-- end -->" in (module.HERE / "README.md").read_text()


def test_results_and_pictures_are_small(compared):
    module, _ = compared
    for path in (module.HERE / "results").glob("*.json"):
        assert path.stat().st_size < 100_000
    for path in module.HERE.glob("*.png"):
        assert path.stat().st_size < 300_000


def test_the_picture_can_be_drawn_of_all_results_and_of_some(compared, tmp_path):
    module, results = compared
    for name, some in (("all", results), ("one", dict(list(results.items())[:1]))):
        module.draw(some, tmp_path / f"{name}.png")
        assert (tmp_path / f"{name}.png").stat().st_size > 10_000
