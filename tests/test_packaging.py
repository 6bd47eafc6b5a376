"""What is installed, what an import costs, and which way the dependencies point."""

import ast
import re
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import PackageNotFoundError, distribution, requires, version
from pathlib import Path
from shutil import copytree, ignore_patterns

import pytest

CHECKOUT = Path(__file__).resolve().parent.parent
FOLDERS = ("rlx", "algos", "envs", "tests")


def run(code, cwd):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=cwd, check=False)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Names of the files in a wheel that was built from a copy of the sources."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for folder in ("rlx", "algos", "envs"):
        copytree(CHECKOUT / folder, source / folder, ignore=ignore_patterns("__pycache__"))
    for path in [*CHECKOUT.glob("*.toml"), *CHECKOUT.glob("*.md"), *CHECKOUT.glob("LICENSE*")]:
        (source / path.name).write_bytes(path.read_bytes())
    # The backend needs setuptools 77: the installed one if it is new enough, else pip fetches one for the build.
    isolation = ["--no-build-isolation"] if int(version("setuptools").partition(".")[0]) >= 77 else []
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--quiet", *isolation, "--wheel-dir", out, source]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    (path,) = out.glob("rlx-*.whl")
    return zipfile.ZipFile(path).namelist()


@pytest.mark.parametrize("folder", ["rlx", "algos", "envs"])
def test_the_wheel_holds_every_module_and_data_file(wheel, folder):
    package = "rlx" if folder == "rlx" else f"rlx/{folder}"
    files = [path for pattern in ("*.py", "*.toml", "*.xml") for path in (CHECKOUT / folder).rglob(pattern)]
    expected = {f"{package}/{path.relative_to(CHECKOUT / folder).as_posix()}" for path in files}
    assert f"{package}/__init__.py" in expected
    assert expected <= set(wheel)


def test_the_wheel_has_one_top_level_package(wheel):
    tops = {name.partition("/")[0] for name in wheel}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"rlx"}


@pytest.mark.parametrize("name", ["algos", "envs"])
def test_a_folder_imported_under_its_own_name_is_refused(name):
    result = run(f"import {name}", CHECKOUT)
    assert result.returncode == 1
    assert f"ImportError: imported as '{name}': this folder is the package rlx.{name}" in result.stderr


def test_importing_rlx_loads_no_environment_suite_and_no_tool(tmp_path):
    heavy = {"brax", "mujoco", "gymnax", "gymnasium", "matplotlib", "orbax", "tyro", "rich"}
    check = f"import sys, rlx; print(sorted({heavy} & set(sys.modules)))"
    result = run(check, tmp_path)
    assert result.stdout == "[]\n", result.stderr


def test_importing_any_module_leaves_the_choice_of_devices_open(tmp_path):
    """Where jax is used by an import, neither `use_devices` nor `--distributed` can do anything any more."""
    names = [
        ".".join(path.relative_to(CHECKOUT).with_suffix("").parts) for path in sorted(CHECKOUT.glob("rlx/**/*.py"))
    ]
    names = [name.removesuffix(".__init__") for name in names if not name.endswith("__main__")]
    folders = [CHECKOUT / "algos", CHECKOUT / "envs"]
    names += [f"rlx.{folder.name}.{path.stem}" for folder in folders for path in sorted(folder.glob("[a-z]*.py"))]
    program = f"""
import importlib
from rlx.devices.compiler import in_use
for name in {names}:
    importlib.import_module(name)
    assert not in_use(), name
"""
    assert len(names) > 30
    found = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr


def test_cartpole_waits_for_nothing_that_it_does_not_use(tmp_path):
    """No physics engine, and nothing of what gymnax draws with; that is there when something of it is asked for."""
    check = """
import sys, rlx, rlx.report
env = rlx.envs.make("CartPole-v1")
print(sorted({"brax", "mujoco", "pandas", "scipy.stats", "seaborn", "matplotlib"} & set(sys.modules)))
from gymnax.environments.misc import pong
import seaborn
print(pong.sns.heatmap is seaborn.heatmap, pong.colors.ListedColormap is seaborn.mpl.colors.ListedColormap)
"""
    result = run(check, tmp_path)
    assert result.stdout == "[]\nTrue True\n", result.stderr


def dependencies(name, found):
    """Names of all distributions that the installed `name` needs, its own included."""
    found.add(name)
    try:
        needed = requires(name) or []
    except PackageNotFoundError:  # an optional one, or for another platform
        return found
    for requirement in needed:
        other = re.match(r"[\w.-]+", requirement)[0].lower()
        if "extra ==" not in requirement and other not in found:
            dependencies(other, found)
    return found


def test_no_file_shadows_a_module_of_the_standard_library_or_of_a_dependency():
    taken = set(sys.stdlib_module_names)
    for name in dependencies("rlx", set()) - {"rlx"}:
        try:
            files = distribution(name).files or []
        except PackageNotFoundError:
            continue
        taken |= {file.parts[0].removesuffix(".py") for file in files if file.suffix == ".py"}
    assert {"jax", "flax", "numpy", "json"} <= taken
    modules = {path.stem for folder in FOLDERS for path in (CHECKOUT / folder).glob("*.py")}
    assert modules & taken == set()


def imported(path):
    """Full names of everything that a file imports, wherever in the file: `from a import b` counts as `a.b`."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def imports_of(path, *packages):
    return {name for name in imported(path) if any(f"{name}.".startswith(f"{package}.") for package in packages)}


def files(folder, *exempt):
    return [path for path in sorted((CHECKOUT / folder).glob("*.py")) if path.name not in exempt]


@pytest.mark.parametrize("path", files("algos"), ids=lambda path: path.name)
def test_algorithms_import_neither_each_other_nor_environments(path):
    assert imports_of(path, "rlx.algos", "rlx.envs", "algos", "envs", "experiments", "benchmarks") == set()


@pytest.mark.parametrize("path", files("rlx", "__init__.py", "__main__.py"), ids=lambda path: path.name)
def test_the_library_imports_neither_algorithms_nor_environments(path):
    assert imports_of(path, "rlx.algos", "rlx.envs", "algos", "envs", "experiments", "benchmarks") == set()


@pytest.mark.parametrize("path", files("envs"), ids=lambda path: path.name)
def test_environments_do_not_import_algorithms(path):
    assert imports_of(path, "rlx.algos", "algos", "envs", "experiments", "benchmarks") == set()


def test_a_script_beside_a_checkout_called_rlx_imports_the_package_and_not_a_namespace(tmp_path):
    root = Path(__file__).parent.parent
    (tmp_path / "rlx").mkdir()
    for name in ("__init__.py", "rlx", "algos", "envs"):
        (tmp_path / "rlx" / name).symlink_to(root / name)
    script = tmp_path / "script.py"
    script.write_text(
        "import rlx, rlx.devices.compiler\nfrom rlx.algos import ppo\n"
        "print(rlx.__file__, rlx.envs.make('probe/Action').action_space.n, ppo.__name__)"
    )
    run = subprocess.run([sys.executable, script], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert run.returncode == 0, run.stderr
    file, *rest = run.stdout.split()
    assert Path(file).parts[-2:] == ("rlx", "__init__.py")
    assert rest == ["2", "rlx.algos.ppo"]


def test_the_type_checker_sees_every_room():
    """pyright follows a folder that is a link only where it is named."""
    root = Path(__file__).resolve().parent.parent
    checked = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["basedpyright"]["include"]
    rooms = [path.parent.name for path in (root / "rlx").glob("*/__init__.py")]
    assert sorted(checked) == ["build/types/rlx", *(f"build/types/rlx/{room}" for room in sorted([*rooms, "envs"]))]
