"""The snippets of the README and of the pages in `docs/` run, and print what the page says, up to the numbers.

A snippet is a code block under a mark:

- `<!-- run -->`: in an empty directory, with an empty namespace
- `<!-- run: continued -->`: in the directory and the namespace of the snippet before it on the page
- `<!-- run: saved as NAME.py -->`: also writes the code into that file of the directory first

What a snippet prints stands in the `text` block that follows it, or is not checked where there is none.
`python tests/test_snippets.py [PAGE ...]` runs them and writes their output into the pages.
"""

import contextlib
import io
import os
import re
import shlex
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest

pytestmark = pytest.mark.more
EXACT = True  # most of the time of snippets is training, not compiling

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
SNIPPET = re.compile(
    r"<!-- run(?:: (?P<how>[^>]*?))? -->\n```(?P<kind>python|console)\n(?P<code>.*?)```\n"
    r"(?:\n```text\n(?P<said>.*?)```)?",
    re.DOTALL,
)


@dataclass(frozen=True)
class Snippet:
    """A snippet that runs, the `number`-th of its page."""

    page: Path
    number: int
    kind: str
    code: str
    said: str | None
    continued: bool
    file: str | None
    needs: str | None  # a module of an extra

    def __str__(self):
        return f"{self.page.relative_to(ROOT)}:{self.number}"


def snippets(page):
    found = []
    for number, match in enumerate(SNIPPET.finditer(page.read_text())):
        how = match["how"] or ""
        file, needs = (re.search(rf"{words} (\S+)", how) for words in ("saved as", "needs"))
        rest = match["said"], "continued" in how, file and file[1], needs and needs[1]
        found.append(Snippet(page, number, match["kind"], match["code"], *rest))
    return found


ALL = [snippet for page in PAGES for snippet in snippets(page)]


class Session:
    """What snippets that continue each other share."""

    def __init__(self):
        self.directory, self.namespace = tempfile.TemporaryDirectory(), {"__name__": "__snippet__"}

    def __del__(self):
        self.directory.cleanup()

    def run(self, snippet):
        """What a snippet prints."""
        output, before = io.StringIO(), Path.cwd()
        shipped = [name for name in sys.modules if name.startswith("rlx.algos.")]
        kept = {name: dict(vars(sys.modules[name])) for name in shipped}
        os.chdir(self.directory.name)
        try:
            with contextlib.redirect_stdout(output):
                if snippet.file:
                    Path(snippet.file).write_text(snippet.code)
                if snippet.kind == "python":
                    exec(compile(snippet.code, str(snippet), "exec"), self.namespace)
                else:
                    for line in snippet.code.strip().replace("\\\n", " ").splitlines():
                        if line.startswith("$ "):
                            command(line.removeprefix("$ "))
        finally:
            os.chdir(before)
            for name, values in kept.items():  # a snippet may replace a function of an algorithm
                vars(sys.modules[name]).update(values)
        return output.getvalue()


def command(line):
    """Runs a line of a shell: rlx in this process, anything else in one of its own."""
    words = shlex.split(line, comments=True)
    if words[0] == "rlx":
        from rlx import cli

        status = 0
        try:
            cli.main(words[1:])
        except SystemExit as stop:
            status = stop.code
        assert not status, f"{line} ended with status {status}"
        return
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    ran = subprocess.run(line, shell=True, capture_output=True, text=True, env=os.environ | {"PATH": path}, check=False)
    assert ran.returncode == 0, ran.stderr
    print(ran.stdout, end="")


SESSIONS = {}  # of each page, the last one and how many of the page's snippets have run


def outcome(snippet):
    """What a snippet prints after those of its page that it continues."""
    session, done = SESSIONS.get(snippet.page, (None, 0))
    if not snippet.continued:
        session, done = Session(), snippet.number
    elif session is None or done > snippet.number:
        earlier = snippets(snippet.page)[: snippet.number]
        done = max(other.number for other in earlier if not other.continued)
        session = Session()
    for other in snippets(snippet.page)[done : snippet.number + 1]:
        printed = session.run(other)
    SESSIONS[snippet.page] = session, snippet.number + 1
    return printed


def shape(text):
    """The text without numbers, line breaks, and what depends on the machine: progress, and what it has compiled."""
    text = re.sub(r"^(compiling [^:]*):.*$", r"\1", text, flags=re.MULTILINE)
    text = re.sub(r"^ *\d+ %.*\n", "", text, flags=re.MULTILINE)
    text = re.sub(r"^best evaluation: .*\n", "", text, flags=re.MULTILINE)  # where it is not the last
    return " ".join(re.sub(r"-?[\d.,]+(e[-+]\d+)?", "#", text).split())


def marks(snippet):
    """Snippets that need an extra run where these are installed."""
    if snippet.needs is None:
        return ()
    return pytest.mark.more, pytest.mark.skipif(find_spec(snippet.needs) is None, reason=f"needs {snippet.needs}")


@pytest.mark.parametrize("snippet", [pytest.param(snippet, marks=marks(snippet), id=str(snippet)) for snippet in ALL])
def test_a_snippet_runs_and_prints_what_its_page_says(snippet):
    printed = outcome(snippet)
    if snippet.said is not None:
        assert snippet.said.strip()
        assert shape(printed) == shape(snippet.said)


def test_there_are_snippets_in_the_readme_and_in_the_guides():
    pages = {snippet.page for snippet in ALL}
    assert ROOT / "README.md" in pages
    assert len(pages & set((ROOT / "docs" / "guides").glob("*.md"))) >= 10


if __name__ == "__main__":
    import rlx

    rlx.use_devices()  # as the tests have them
    for page in [Path(name).resolve() for name in sys.argv[1:]] or PAGES:
        own = iter(snippets(page))

        def written(match, own=own):
            snippet = next(own)
            sys.stderr.write(f"{snippet}\n")
            printed = outcome(snippet)
            if snippet.said is None:
                return match[0]
            start, end = match.start("said") - match.start(), match.end("said") - match.start()
            return match[0][:start] + printed + match[0][end:]

        page.write_text(SNIPPET.sub(written, page.read_text()))
