"""How the house is built: rooms, floors and doors; files of algorithms are alike where they say the same."""

import ast
from graphlib import CycleError, TopologicalSorter
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FILES = sorted(path for folder in ("rlx", "envs", "algos") for path in (ROOT / folder).rglob("*.py"))
LONGEST = 400  # lines of a file of rlx/
LONGEST_FUNCTION = 60  # lines without the docstring
# Passages of one name that are not the same in all files of algorithms, and why.
DIFFERENT = {
    "Config": "each has settings of its own",
    "State": "each keeps what its update needs",
    "Recorded": "what acting has to tell the loss is of the algorithm",
    "Batch": "likewise",
    "networks": "the networks of the method",
    "optimizer": "rates and clips of the method, three lines that a researcher changes",
    "check": "what cannot work is of the algorithm",
    "init": "makes its own State",
    "act": "how the policy acts",
    "loss": "the equation",
    "objective": "the equation",
    "advantages": "bootstraps, replay and groups differ",
    "update": "the sentence of the method",
    "cloning_loss": "the likelihood of the policy",
    "critic_loss": "continuous and discrete values",
    "actor_loss": "continuous and discrete policies",
    "alpha_loss": "continuous and discrete entropies",
    "starts": "answers of a language policy have no states to start again from",
    "kept": "what the buffer keeps",
    "explore": "uniform in a box, or over choices",
    "epsilon": "one for all environments, or one for each",
    "learn": "what one step changes is the method",
    "targets": "what the values are to come to is the method",
}


def module(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = parts if parts[0] == "rlx" else ("rlx", *parts)
    return ".".join(part for part in parts if part != "__init__")


MODULES = {module(path): path for path in FILES}


def home(name: str) -> str | None:
    """The module that a dotted name is in."""
    while name not in MODULES:
        if not (name := name.rpartition(".")[0]):
            return None
    return name


def imports(path: Path) -> list[tuple[str, str]]:
    """The module that each import of a file is of, wherever it stands, and the name taken from it."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [(alias.name, "") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found += [(f"{node.module}.{alias.name}", alias.name) for alias in node.names]
    # `from rlx import x` finds a module below the package; the face of the package itself is no floor.
    return [(target, name) for full, name in found if (target := home(full)) not in (None, "rlx")]


def test_no_file_is_imported_in_a_circle():
    graph = {name: {target for target, _ in imports(path)} - {name} for name, path in MODULES.items()}
    try:
        order = list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))
    assert len(order) > 80


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_underscore_name_crosses_a_file(path):
    crossing = [f"{target}.{name}" for target, name in imports(path) if name.startswith("_")]
    assert crossing == []


def test_only_the_command_line_imports_algorithms_and_environments():
    doors = []
    for name, path in MODULES.items():
        if name.startswith(("rlx.cli", "rlx.envs", "rlx.algos")) or name in ("rlx", "rlx.__main__"):
            continue
        targets = [target for target, _ in imports(path)]
        rooms = ("rlx.cli.", "rlx.envs.", "rlx.algos.")
        doors += [(name, target) for target in targets if f"{target}.".startswith(rooms)]
    assert doors == []


def test_files_are_short():
    lengths = {name: len(path.read_text().splitlines()) for name, path in MODULES.items() if path.parts[-2] != "algos"}
    assert {name: n for name, n in lengths.items() if n > LONGEST and not name.startswith("rlx.envs")} == {}


ALGORITHMS = [path for path in FILES if path.parent.name == "algos" and path.name != "__init__.py"]
ORDER = ["Config", "State", "Recorded", "Batch", "networks", "optimizer", "check", "init", "act", "loss", "update"]


def test_functions_are_short():
    """One that is longer has phases, and those have names."""
    lengths = {}
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                text = ast.get_docstring(node, clean=False) or ""
                lines = node.end_lineno - node.lineno + 1 - len(text.splitlines())
                lengths[f"{path.relative_to(ROOT)}: {node.name}"] = lines
    assert len(lengths) > 500
    assert {name: lines for name, lines in lengths.items() if lines > LONGEST_FUNCTION} == {}


def depth(node: ast.AST) -> int:
    """How many functions stand within one another, with their own names."""
    own = isinstance(node, ast.FunctionDef)
    return own + max((depth(child) for child in ast.iter_child_nodes(node)), default=0)


@pytest.mark.parametrize("path", ALGORITHMS, ids=lambda path: path.stem)
def test_files_of_algorithms_are_short_flat_and_in_order(path):
    text = path.read_text()
    tree = ast.parse(text)
    names = [node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    known = [name for name in names if name in ORDER]
    assert known == sorted(known, key=ORDER.index)
    assert len(text.splitlines()) <= 300
    assert depth(tree) <= 2


def test_passages_of_one_name_are_equal_or_have_a_reason():
    passages = {}
    for path in ALGORITHMS:
        text = path.read_text()
        for node in ast.parse(text).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                passages.setdefault(node.name, {})[path.stem] = ast.get_source_segment(text, node)
    shared = {name: versions for name, versions in passages.items() if len(versions) > 1}
    different = {name for name, versions in shared.items() if len(set(versions.values())) > 1}
    assert different - DIFFERENT.keys() == set()
    assert DIFFERENT.keys() - different == set()  # a reason without a difference is gone


@pytest.mark.parametrize(
    ("old", "new", "name"),
    [
        ("rlx.sharding", "rlx.devices.sharding", "use_devices"),
        ("rlx.lanes", "rlx.devices.spread", "spread"),
        ("rlx.demonstrations", "rlx.data", "load"),
        ("rlx.cloning", "rlx.data.cloning", "clone"),
    ],
)
def test_what_has_moved_is_found_and_says_so(old, new, name):
    with pytest.warns(DeprecationWarning, match=f"{old} has moved to"):
        found = getattr(import_module(old), name)
    assert found is getattr(import_module(new), name)


@pytest.mark.parametrize("package", ["rlx.run", "rlx.sweeps", "rlx.report", "rlx.plot", "rlx.data", "rlx.watch"])
def test_the_face_of_a_package_has_its_names(package):
    face = import_module(package)
    for name in face.__all__:
        assert getattr(face, name) is not None
        assert name in dir(face)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = face.nothing
