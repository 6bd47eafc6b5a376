"""The README's examples run, and print what the README says, up to the numbers.

`python tests/test_readme.py` runs them and writes their output into the README.
"""

import contextlib
import io
import os
import re
import shlex
import sys
import tempfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.more

README = Path(__file__).resolve().parents[1] / "README.md"
EXAMPLE = re.compile(r"(<!-- run -->\n```(python|console)\n(.*?)```\n\n```text\n)(.*?)(```)", re.DOTALL)


def run(kind, code):
    """What an example prints, in an empty directory."""
    output, before = io.StringIO(), Path.cwd()
    with tempfile.TemporaryDirectory() as directory, contextlib.redirect_stdout(output):
        os.chdir(directory)
        try:
            if kind == "python":
                exec(compile(code, "README.md", "exec"), {"__name__": "__readme__"})
            else:
                from rlx import cli

                for line in code.strip().splitlines():
                    with contextlib.suppress(SystemExit):
                        cli.main(shlex.split(line.removeprefix("$ rlx ")))
        finally:
            os.chdir(before)
    return output.getvalue()


def examples():
    return EXAMPLE.findall(README.read_text())


def shape(text):
    """The text without numbers, line breaks, and what depends on the machine: progress, and what it has compiled."""
    text = re.sub(r"^(compiling [^:]*):.*$", r"\1", text, flags=re.MULTILINE)
    text = re.sub(r"^ *\d+ %.*\n(?=^ *\d+ %)", "", text, flags=re.MULTILINE)
    return " ".join(re.sub(r"[\d.,]+", "#", text).split())


@pytest.mark.parametrize("number", range(6))
def test_example_prints_what_the_readme_says(number):
    _, kind, code, said, _ = examples()[number]
    assert said.strip()
    assert shape(run(kind, code)) == shape(said)


if __name__ == "__main__":
    text = README.read_text()
    sys.stderr.write("running the examples of README.md\n")
    README.write_text(EXAMPLE.sub(lambda m: m[1] + run(m[2], m[3]) + m[5], text))
