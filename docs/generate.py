"""Pages that the build of the site writes itself, as a hook of mkdocs: one for each algorithm, one for each experiment.

An algorithm's page has the docstring of its file, its settings, its tuned settings, the difference to the file that it
is nearest to, and what it has reached. Nothing of that is committed. Links of pages that lead out of `docs/` are turned
into links to the pages that the site has of these files.

mkdocstrings reads a copy of the sources in which `algos/` and `envs/` stand where an installed rlx has them.
"""

import ast
import contextlib
import difflib
import json
import math
import re
import shutil
import tomllib
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ROOT / "build" / "sources"
RETURNS = ROOT / "benchmarks" / "results" / "returns"
# The file that each algorithm is read beside.
NEAREST = {
    "dqn": "sac_discrete",
    "avg": "sac",
    "cql": "sac",
    "crossq": "redq",
    "ddpg": "sac",
    "dppo": "ppo",
    "dsrl": "sac",
    "es": "grpo",
    "expo": "rlpd",
    "fast_td3": "ddpg",
    "fpo": "ppo",
    "grpo": "ppo",
    "grpo_recurrent": "grpo",
    "grpo_tokens": "grpo",
    "gumbel_muzero": "ppo_selfplay",
    "iql": "sac",
    "lpg": "ppo",
    "mappo": "ppo",
    "mdpo": "ppo",
    "mdpo_offpolicy": "sac",
    "pairs_tokens": "grpo_tokens",
    "pathwise": "ppo",
    "policyflow": "fpo",
    "ppo_levels": "ppo",
    "pqn": "ppo",
    "pqn_recurrent": "pqn",
    "ppo_recurrent": "ppo",
    "ppo_selfplay": "ppo",
    "ppo_tokens": "grpo_tokens",
    "props": "ppo",
    "reinforce": "grpo",
    "reppo": "ppo",
    "rlpd": "sac",
    "sac_discrete": "sac",
    "sqirl": "pqn",
    "stream_ac": "ppo",
    "stream_q": "stream_ac",
    "td3_bc": "iql",
    "redq": "sac",
    "tqc": "sac",
    "trpo": "ppo",
    "vmpo": "mdpo",
}
HELP = tomllib.loads((ROOT / "docs" / "help.toml").read_text())


@dataclass(frozen=True)
class Setting:
    """A field of a Config, as its file writes it."""

    name: str
    kind: str  # of its values
    default: str
    static: bool
    bounds: str
    help: str


def algorithms() -> list[str]:
    """The names of the algorithms in `algos/`."""
    return sorted(path.stem for path in (ROOT / "algos").glob("*.py") if path.stem != "__init__")


def source(name: str) -> str:
    return (ROOT / "algos" / f"{name}.py").read_text()


def docstring(name: str) -> str:
    return ast.get_docstring(ast.parse(source(name)))


def settings(name: str) -> list[Setting]:
    """The fields of an algorithm's Config."""
    text = source(name)
    lines = text.splitlines()
    (config,) = (node for node in ast.parse(text).body if isinstance(node, ast.ClassDef) and node.name == "Config")
    found = []
    for field in (node for node in config.body if isinstance(node, ast.AnnAssign)):
        value, bounds, static = field.value, "", False
        if isinstance(value, ast.Call) and getattr(value.func, "id", "") in ("static", "traced"):
            static = value.func.id == "static"
            limits = [f"{k.arg.replace('_', ' ')} {ast.unparse(k.value)}" for k in value.keywords if k.arg != "one_of"]
            choices = [f"one of {ast.unparse(k.value)}" for k in value.keywords if k.arg == "one_of"]
            bounds, value = ", ".join(limits + choices), value.args[0]
        comment = lines[field.end_lineno - 1].partition("  # ")[2]
        told = f"{comment[:1].upper()}{comment[1:]}." if comment else ""
        told = HELP.get(name, {}).get(field.target.id) or HELP["all"].get(field.target.id, told)
        found.append(Setting(field.target.id, ast.unparse(field.annotation), ast.unparse(value), static, bounds, told))
    return found


def prose(text: str) -> str:
    """A docstring as Markdown: lists stand apart, what introduces one is a heading, papers are links."""
    parts = []
    for paragraph in text.split("\n\n"):
        head, _, rest = paragraph.partition("\n")
        if head.endswith(":") and rest.startswith("- "):
            parts.append(f"## {head.removesuffix(':').partition(',')[0]}")
            parts += [head] * ("," in head)
            paragraph = rest
        parts.append(paragraph)
    return re.sub(r"arXiv:(\d{4}\.\d{4,5})", r"[arXiv:\1](https://arxiv.org/abs/\1)", "\n\n".join(parts))


def difference(old: str, new: str) -> tuple[str, int, int]:
    """The unified difference of two files, and how many lines it adds and removes."""
    names = (f"algos/{name}.py" for name in (old, new))
    lines = list(difflib.unified_diff(source(old).splitlines(), source(new).splitlines(), *names, lineterm=""))
    return "\n".join(lines), *(sum(line.startswith(sign) for line in lines[2:]) for sign in "+-")


def variants(name: str) -> dict[str, dict]:
    """The named settings of an algorithm."""
    relatives = [(ROOT / "rlx" / "relatives.py").read_text()] if "rlx.relatives" in source(name) else []
    known = {"float": float}
    for text in [*relatives, source(name)]:
        for node in ast.parse(text).body:
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict | ast.BinOp | ast.DictComp):
                with contextlib.suppress(NameError):  # tables of functions
                    known[node.targets[0].id] = eval(ast.unparse(node.value), {"__builtins__": {}}, known)
    return known.get("VARIANTS", {})


def results(name: str) -> list[dict]:
    """The committed results of an algorithm."""
    return [json.loads(path.read_text()) for path in sorted(RETURNS.glob(f"{name}-*.json"))]


def curve(result: dict, width: int = 360, height: int = 200) -> str:
    """The mean return of the seeds while training, as a picture in SVG."""
    points = [
        (x, y) for x, y in zip(*(result["curve"][k] for k in ("steps", "mean_return")), strict=True) if y is not None
    ]
    if len(points) < 2:
        return ""
    left, right, top, bottom = 58, 14, 26, 30
    xs, ys = zip(*points, strict=True)
    low, high = min(ys), max(ys)
    low, high = (low - 1, high + 1) if low == high else (low, high)
    lines = ticks(low, high)
    at_x = lambda x: left + (width - left - right) * x / max(xs)
    at_y = lambda y: height - bottom - (height - top - bottom) * (y - low) / (high - low)
    line = " ".join(f"{at_x(x):.1f},{at_y(y):.1f}" for x, y in points)
    text = 'font-family="sans-serif" font-size="11" fill="currentColor"'
    marks = [
        f'<line x1="{left}" x2="{width - right}" y1="{at_y(y):.1f}" y2="{at_y(y):.1f}" stroke="currentColor" '
        f'stroke-opacity="0.15"/><text x="{left - 6}" y="{at_y(y) + 4:.1f}" text-anchor="end" {text}>{y:,g}</text>'
        for y in lines
    ]
    marks += [
        f'<text x="{at_x(x):.1f}" y="{height - bottom + 16}" text-anchor="{where}" {text}>{x:,}</text>'
        for x, where in ((0, "middle"), (max(xs), "end"))
    ]
    return (
        f'<svg class="curve" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img">'
        f'<text x="{left}" y="15" {text} font-weight="bold">{result["task"]}, {len(result["seeds"])} seeds</text>'
        f'{"".join(marks)}<polyline points="{line}" fill="none" stroke="#00796b" stroke-width="2"/>'
        f'<text x="{(left + width - right) / 2:.0f}" y="{height - 2}" text-anchor="middle" {text}>steps</text></svg>'
    )


def ticks(low: float, high: float) -> list[float]:
    """Three to six round numbers between two numbers."""
    rough = (high - low) / 4
    power = 10 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough)
    first = math.ceil(low / step)
    return [round(i * step, 10) + 0.0 for i in range(first, math.floor(high / step) + 1)]


def page(name: str) -> str:
    """The page of an algorithm."""
    first, _, rest = docstring(name).partition("\n\n")
    env = match[1] if (match := re.search(r"--env (\S+)", rest)) else "NAME"
    alone = f"python algos/{name}.py" in rest  # otherwise its environments are made in Python
    rest = re.sub(rf"^    python algos/{name}\.py.*\n\n", "", rest)
    run = f"```console\n$ rlx train {name} --env {env}\n$ python algos/{name}.py --env {env}    # the same\n```"
    parts = [f"# {name}", first, *[run] * alone, prose(rest), "## Settings"]
    parts.append(
        "A traced setting can be swept in one program. A static setting needs a program for each value. "
        f"`rlx train {name} --help` prints the same list."
    )
    rows = ["| setting | default | kind | meaning |", "| --- | --- | --- | --- |"]
    for s in settings(name):
        kind = ("static" if s.static else "traced") + f" {s.kind}" + f", {s.bounds}" * bool(s.bounds)
        rows.append(f"| `{s.name}` | `{s.default}` | {_cell(kind)} | {_cell(s.help)} |")
    parts.append("\n".join(rows))
    if known := variants(name):
        rows = ["| variant | settings |", "| --- | --- |"]
        rows += [
            f"| `{k}` | {', '.join(f'`{n}={v}`' for n, v in own.items()) or 'the defaults'} |"
            for k, own in known.items()
        ]
        parts += ["## Variants", f"`--variant NAME` of `rlx train {name}` and `rlx sweep {name}`.", "\n".join(rows)]
    parts += _tuned(name) + _returns(name) + _nearest(name)
    parts += [
        "## The file",
        _folded(f"algos/{name}.py, {len(source(name).splitlines())} lines", source(name), "python"),
    ]
    return "\n\n".join(parts) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _folded(title: str, text: str, language: str) -> str:
    body = "\n".join(f"    {line}".rstrip() for line in f"```{language}\n{text.rstrip()}\n```".splitlines())
    return f'??? note "{title}"\n\n{body}'


def _tuned(name: str) -> list[str]:
    path = ROOT / "algos" / f"{name}.toml"
    if not path.exists():
        return ["## Tuned settings", "There are none: a run starts from the defaults above."]
    tables = tomllib.loads(path.read_text())
    patterns = sorted({pattern for key in tables if key != "defaults" for pattern in key.split()})
    environments = ", ".join(f"`{pattern}`" for pattern in patterns) or "no environment"
    text = f"For {environments}. [Where settings come from](../settings.md) says how they are chosen."
    return ["## Tuned settings", text, _folded(f"algos/{name}.toml", path.read_text(), "toml")]


def _returns(name: str) -> list[str]:
    if not (found := results(name)):
        others = [f"[{title}](../experiments/{path}.md)" for path, title in experiments_of(name)]
        text = f"The benchmarks do not include it. Measured in {', '.join(others)}." if others else "Not measured yet."
        return ["## Returns", text]
    rows = [
        "| environment | steps | seeds | mean return [95 %] | interquartile mean [95 %] |",
        "| --- | --: | --: | --: | --: |",
    ]
    span = lambda x: f"{x['value']:.1f} [{x['low']:.1f}, {x['high']:.1f}]"
    for r in found:
        env = ", ".join([r["env"], *(f"{name}={value}" for name, value in r["options"].items())])
        rows.append(f"| {env} | {r['steps']:,} | {len(r['seeds'])} | {span(r['mean'])} | {span(r['iqm'])} |")
    about = (
        "Returns are of whole evaluation episodes after training. Curves are returns during training, averaged over "
        "the seeds. [Benchmarks](../benchmarks.md) has all tables."
    )
    return ["## Returns", about, "\n".join(rows), "\n".join(filter(None, map(curve, found)))]


def _nearest(name: str) -> list[str]:
    parts = ["## Difference to its neighbors"]
    if name in NEAREST:
        text, added, removed = difference(NEAREST[name], name)
        parts.append(f"Read it beside [{NEAREST[name]}]({NEAREST[name]}.md).")
        parts.append(_folded(f"{NEAREST[name]}.py to {name}.py: {added} lines added, {removed} removed", text, "diff"))
    if near := [other for other, old in NEAREST.items() if old == name]:
        parts.append("Files that are read beside this one: " + ", ".join(f"[{o}]({o}.md)" for o in near) + ".")
    return parts


def index() -> str:
    """The list of algorithms."""
    rows = [f"| [{name}]({name}.md) | {docstring(name).splitlines()[0]} |" for name in algorithms()]
    head = "Every algorithm is one file that reads from top to bottom, runs as a script and imports as a module."
    return "\n".join(["# Algorithms", "", head, "", "| algorithm | what it is |", "| --- | --- |", *rows]) + "\n"


def experiments() -> dict[str, str]:
    """The titles of the experiments by their folders."""
    paths = sorted((ROOT / "experiments").glob("*/README.md"))
    return {path.parent.name: path.read_text().splitlines()[0].removeprefix("# ") for path in paths}


def experiments_of(name: str) -> list[tuple[str, str]]:
    """The experiments whose pages name an algorithm."""
    word = {"grpo_tokens": "grpo_tokens", "mdpo_offpolicy": "off-policy MDPO", "lpg": "LPG"}.get(name, name.upper())
    text = lambda folder: (ROOT / "experiments" / folder / "README.md").read_text()
    return [(folder, title) for folder, title in experiments().items() if word in text(folder)]


def page_of(target: Path) -> str | None:
    """The page of the site, by its path in `docs/`, that stands for a file of the repository; None where none does."""
    if not target.is_relative_to(ROOT):
        return None
    path = target.relative_to(ROOT)
    if path.parts[0] == "docs":
        return path.relative_to("docs").as_posix()
    if path.parts[0] == "algos" and path.stem in algorithms():
        return f"algorithms/{path.stem}.md"
    if path.parts[0] == "experiments" and len(path.parts) > 1 and path.parts[1] in experiments():
        picture = path.suffix in (".png", ".gif")
        return f"experiments/{path.parts[1]}/{path.name}" if picture else f"experiments/{path.parts[1]}.md"
    return {"CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md", "README.md": "index.md"}.get(
        str(path)
    )


def relinked(text: str, file: Path, page: str) -> str:
    """The text of a page with the links of the file that it was written in as links between pages of the site."""

    def link(match: re.Match) -> str:
        bang, words, target = match.groups()
        path, hash_, anchor = target.partition("#")
        if not path or re.match(r"[a-z]+:", path):
            return match[0]
        if (found := page_of((file.parent / path).resolve())) is None:
            return words if words.startswith("`") else f"{words} (`{Path(path).as_posix().replace('../', '')}`)"
        up = "../" * page.count("/")
        return f"{bang}[{words}]({up}{found}{hash_}{anchor})"

    blocks = re.split(r"(^```.*?^```)", text, flags=re.MULTILINE | re.DOTALL)
    return "".join(b if b.startswith("```") else re.sub(r"(!?)\[([^\]]+)\]\(([^)\s]+)\)", link, b) for b in blocks)


def generated() -> dict[str, str]:
    """The pages that are written by the build, by their paths in the site."""
    found = {"algorithms/index.md": index()} | {f"algorithms/{name}.md": page(name) for name in algorithms()}
    files = {f"experiments/{folder}.md": ROOT / "experiments" / folder / "README.md" for folder in experiments()}
    files |= {"contributing.md": ROOT / "CONTRIBUTING.md", "changelog.md": ROOT / "CHANGELOG.md"}
    return found | {page: relinked(file.read_text(), file, page) for page, file in files.items()}


def copied_sources() -> None:
    """Writes the copy of the sources that mkdocstrings reads.

    The faces of packages are left out of it: a function `rlx.train` would hide the module of the same name. So are
    constants that no face names, which would be most of what one sees.
    """
    shutil.rmtree(SOURCES, ignore_errors=True)
    skip = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "rlx", SOURCES / "rlx", ignore=skip)
    shutil.copytree(ROOT / "envs", SOURCES / "rlx" / "envs", ignore=skip)
    shutil.copytree(ROOT / "algos", SOURCES / "rlx" / "algos", ignore=skip)
    faces = {path: path.read_text() for path in SOURCES.rglob("__init__.py")}
    offered = set(re.findall(r"\w+", " ".join(faces.values())))
    for path in SOURCES.rglob("*.py"):
        path.write_text(
            f'"""{ast.get_docstring(ast.parse(faces[path]))}"""\n' if path in faces else _shown(path, offered)
        )


def _shown(path: Path, offered: set[str]) -> str:
    """The text of a module with empty lines in place of its constants that are not offered."""
    text = path.read_text()
    lines = text.splitlines()
    for node in ast.parse(text).body:
        targets = getattr(node, "targets", [getattr(node, "target", None)])
        names = {name.id for target in targets if target for name in ast.walk(target) if isinstance(name, ast.Name)}
        assigned = isinstance(node, ast.Assign | ast.AugAssign | ast.AnnAssign)
        if assigned and not names & offered and all(map(str.isupper, names)):
            lines[node.lineno - 1 : node.end_lineno] = [""] * (node.end_lineno - node.lineno + 1)
    return "\n".join(lines) + "\n"


def with_modules(markdown: str) -> str:
    """The text of a page with a directive for each file of a package in place of `::: rlx.PACKAGE.*`."""

    def directives(match: re.Match) -> str:
        parts = match[1].split(".")
        folder = ROOT.joinpath(*(parts if parts[1] not in ("envs", "algos") else parts[1:]))
        names = sorted(path.stem for path in folder.glob("*.py") if path.stem != "__init__")
        return "\n\n".join(f"::: {match[1]}.{name}" for name in names)

    return re.sub(r"^::: ([\w.]+)\.\*$", directives, markdown, flags=re.MULTILINE)


def with_pages(nav: list, pages: list[str]) -> list:
    """The navigation with the pages of a folder that it does not name in place of `FOLDER/*`."""
    named = set(re.findall(r"[\w/-]+\.md", str(nav)))

    def expanded(part):
        if isinstance(part, dict):
            return {title: expanded(inner) for title, inner in part.items()}
        if isinstance(part, list):
            return [page for item in part for page in (_all(item) if isinstance(item, str) else [expanded(item)])]
        return part

    def _all(item):
        folder = item.removesuffix("*")
        return sorted(p for p in pages if p.startswith(folder) and p not in named) if item != folder else [item]

    return expanded(nav)


def on_config(config):
    """The navigation has a page for each algorithm and each experiment."""
    config.nav = with_pages(config.nav, list(generated()))
    return config


def on_startup(command, dirty):
    """Before anything is read: mkdocstrings looks for its sources when it is configured."""
    copied_sources()


def on_files(files, config):
    """Adds the pages and the pictures of experiments."""
    from mkdocs.structure.files import File

    for path, text in generated().items():
        files.append(File.generated(config, path, content=text))
    for folder in experiments():
        for picture in sorted((ROOT / "experiments" / folder).glob("*.png")):
            uri = f"experiments/{folder}/{picture.name}"
            files.append(File.generated(config, uri, abs_src_path=str(picture)))
    return files


def on_page_markdown(markdown, page, config, files):
    """Links that lead out of `docs/` become links of the site."""
    if page.file.generated_by:
        return markdown
    return relinked(with_modules(markdown), ROOT / "docs" / page.file.src_uri, page.file.src_uri)
