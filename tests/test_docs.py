"""The site: everything public is in the reference, pages are reached, links lead somewhere, commands exist."""

import dataclasses
import importlib
import inspect
import pkgutil
import re
import shlex
import sys
import tomllib
from functools import cache
from pathlib import Path

import pytest
import yaml

import rlx
import rlx.envs
from rlx.algorithm import GIVEN, OBJECTIVES, algorithms, load_algorithm, with_named
from rlx.cli.commands import COMMANDS
from rlx.envs.registry import full_name

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
sys.path.insert(0, str(DOCS))
import generate  # noqa: E402

PAGES = sorted(DOCS.rglob("*.md"))
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *PAGES]
MOVED = {"rlx.cloning", "rlx.demonstrations", "rlx.lanes", "rlx.sharding"}  # old names, which warn
LARGEST_PICTURE = 300_000  # bytes


class Loader(yaml.SafeLoader):
    """Reads mkdocs.yml, whose tags name functions of Python."""


Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda loader, suffix, node: suffix)


def config():
    return yaml.load((ROOT / "mkdocs.yml").read_text(), Loader)


def nav(part=None):
    """The pages of the navigation."""
    part = generate.with_pages(config()["nav"], list(written())) if part is None else part
    if isinstance(part, str):
        return [part]
    return [page for item in (part.values() if isinstance(part, dict) else part) for page in nav(item)]


@cache
def reference():
    """What stands behind `:::` on the pages of the reference."""
    text = "".join(generate.with_modules(page.read_text()) for page in (DOCS / "reference").glob("*.md"))
    return set(re.findall(r"^::: (\S+)", text, re.M))


def modules():
    """The modules of rlx, without algorithms, which have pages of their own, and without old names."""
    found = [info.name for info in pkgutil.walk_packages(rlx.__path__, "rlx.")]
    found += [info.name for info in pkgutil.walk_packages(rlx.envs.__path__, "rlx.envs.")]
    return sorted({"rlx", *found} - MOVED - {"rlx.__main__"})


def public(module):
    """The public names of a module, with the module in which each is defined."""
    names = getattr(module, "__all__", None)
    if names is None:
        own = lambda x: (
            getattr(x, "__module__", None) == module.__name__ and (inspect.isclass(x) or inspect.isfunction(x))
        )
        names = [name for name, x in vars(module).items() if not name.startswith("_") and own(x)]
    return {name: home_of(module, name) for name in names}


def home_of(module, name):
    """The module that a name is defined in; of a number, the file of the package that has it."""
    value = getattr(module, name)
    if home := getattr(value, "__module__", None):
        return home
    infos = pkgutil.iter_modules(getattr(module, "__path__", []), f"{module.__name__}.")
    files = [info.name for info in infos if info.name not in MOVED | {"rlx.__main__"}]
    own = [file for file in files if getattr(importlib.import_module(file), name, None) is value]
    return next(iter(own), module.__name__)


@pytest.mark.parametrize("name", modules())
def test_everything_public_is_in_the_reference(name):
    if name.startswith("rlx.algos"):
        return
    module = importlib.import_module(name)
    for public_name, home in public(module).items():
        if not home.startswith("rlx") or inspect.ismodule(getattr(module, public_name)):
            continue
        assert {home, f"{home}.{public_name}"} & reference(), f"{home}.{public_name} is on no page of docs/reference/"


def test_the_reference_names_what_there_is():
    assert reference() <= set(modules())


def test_the_reference_lists_what_rlx_offers():
    listed = re.findall(r"^\| (?:\[)?`rlx\.(\w+)`", (DOCS / "reference" / "index.md").read_text(), re.M)
    assert sorted(listed) == sorted(rlx.__all__)


def test_every_page_is_in_the_navigation():
    pages = {page.relative_to(DOCS).as_posix() for page in PAGES} | set(written())
    assert len(nav()) == len(set(nav()))
    assert set(nav()) == pages


def test_every_algorithm_has_a_page_with_all_of_its_settings():
    assert generate.algorithms() == algorithms()
    assert set(generate.NEAREST) <= set(algorithms())
    for name in algorithms():
        fields = [field.name for field in dataclasses.fields(load_algorithm(name).Config)]
        found = generate.settings(name)
        assert [setting.name for setting in found] == fields
        assert all(len(setting.help) > 10 and setting.help.endswith(".") for setting in found)
        assert generate.variants(name) == getattr(load_algorithm(name), "VARIANTS", {})


def test_help_is_of_settings_that_exist():
    every = {name: {setting.name for setting in generate.settings(name)} for name in generate.algorithms()}
    for table, texts in tomllib.loads((DOCS / "help.toml").read_text()).items():
        known = set().union(*every.values()) if table == "all" else every[table]
        assert set(texts) <= known


def test_a_difference_to_a_neighbor_is_what_diff_says():
    text, added, removed = generate.difference("ppo", "mdpo")
    lines = text.splitlines()
    assert lines[:2] == ["--- algos/ppo.py", "+++ algos/mdpo.py"]
    grown = len(generate.source("mdpo").splitlines()) - len(generate.source("ppo").splitlines())
    assert added - removed == grown


@pytest.mark.parametrize(("low", "high"), [(0.0, 500.0), (-1200.0, -140.0), (0.44, 18.3), (999.9, 1000.0)])
def test_ticks_are_round_and_within(low, high):
    ticks = generate.ticks(low, high)
    assert 2 <= len(ticks) <= 6
    assert low <= ticks[0] < ticks[-1] <= high


@cache
def written():
    """The pages that the build writes."""
    return generate.generated()


def links(text):
    text = re.sub(r"^( *)```.*?^\1```", "", text, flags=re.M | re.S)
    return [target for target in re.findall(r"\]\(([^)\s]+)\)", text) if not re.match(r"[a-z]+:", target)]


def anchors(text):
    """The anchors of a page's headings, as mkdocs names them."""
    heads = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S), re.M)
    return {re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", head).strip().lower()) for head in heads}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_link_leads_somewhere(document):
    for target in links(document.read_text()):
        path, _, anchor = target.partition("#")
        found = (document.parent / path).resolve() if path else document
        page = found.relative_to(DOCS).as_posix() if found.is_relative_to(DOCS) else None
        assert found.exists() or page in written(), f"{target} of {document.name} leads nowhere"
        if anchor:
            text = written()[page] if page in written() else found.read_text()
            assert anchor in anchors(text), f"{target} of {document.name}: no such heading"


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_lines_of_pages_are_short():
    for document in DOCUMENTS:
        blocks = re.sub(r"^```text.*?^```", "", document.read_text(), flags=re.M | re.S)
        long = [line for line in blocks.splitlines() if len(line) > 120 and not line.startswith("|")]
        assert not long, f"{document.name}: {long[0]}"


def test_pictures_are_small():
    large = [
        path.name
        for path in DOCS.rglob("*")
        if path.suffix in (".png", ".gif", ".svg") and path.stat().st_size > LARGEST_PICTURE
    ]
    assert not large


def commands():
    """Every command of a console block: its document, and its words."""
    found = []
    for document in DOCUMENTS:
        for block in re.findall(r"^ *```(?:console|bash)\n(.*?)^ *```", document.read_text(), re.M | re.S):
            for line in block.replace("\\\n", " ").splitlines():
                line = re.sub(r"^\s*(\$ |srun )*", "", line)
                if re.match(r"(rlx|python|make) ", line):
                    found.append((document.relative_to(ROOT).as_posix(), line))
    return found


@cache
def options(command):
    """The flags of a command, without those of an algorithm's settings."""
    file, _ = COMMANDS[command][0].split(".")
    module = importlib.import_module(f"rlx.cli.{file}")
    name = {"eval": "Eval", "train": "Train"}.get(command, command.title()) + "Options"
    if not hasattr(module, name):
        return set()
    return {field.name for field in dataclasses.fields(getattr(module, name))}


def settings(algorithm, *given):
    """The fields of an algorithm's Config, with what it is given; of a file of one's own, those of PPO."""
    module = load_algorithm(algorithm if algorithm in algorithms() else "ppo")
    known = {name.lower(): name for name in (*OBJECTIVES, *(name for classes, _ in GIVEN.values() for name in classes))}
    for name in given:
        module = with_named(module, known[name.lower()]) if name.lower() in known else module
    return {field.name for field in dataclasses.fields(module.Config)}


@pytest.mark.parametrize(("document", "line"), commands(), ids=lambda x: x if x.startswith("rlx ") else None)
def test_commands_of_pages_exist(document, line):
    words = shlex.split(line, comments=True)
    if words[0] == "make":
        assert all(f"\n{target}:" in (ROOT / "Makefile").read_text() for target in words[1:])
        return
    if words[0] == "python":
        path = words[1]
        assert path.startswith(("-", "my_", "reinforce")) or (ROOT / path).exists(), f"{path} is not there"
        if path.startswith("algos/"):
            words = ["rlx", "train", Path(path).stem, *words[2:]]
        else:
            return
    command, rest = words[1], words[2:]
    if command in ("help", "--version", "--help") or "--help" in rest:
        return
    assert command in COMMANDS
    value = lambda flag: rest[rest.index(flag) + 1] if flag in rest else ""
    known = options(command)
    if command in ("train", "sweep", "clone", "profile"):
        known |= settings(rest[0], value("--objective"), value("--bonus"), value("--transform"))
        if value("--variant"):
            assert value("--variant") in load_algorithm(rest[0]).VARIANTS
    for word in rest:
        if word.startswith("--"):
            flag = word[2:].partition("=")[0].replace("-", "_")
            assert flag in known or (flag.startswith("no_") and flag[3:] in known), f"{word} of {line} in {document}"
    if (name := value("--env")) and not name.startswith(("my/", "NAME")):
        full_name(name)
