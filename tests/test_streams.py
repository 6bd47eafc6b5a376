"""What is not training does not end it: streams, terminals, homes, threads, signals, pictures."""

import io
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from rich.console import Console

from rlx import run
from rlx.run import streams
from rlx.run.progress import Display


class Broken(io.StringIO):
    """The stream of a pipe that nobody reads any more."""

    name = "<stdout>"

    def write(self, text):
        raise BrokenPipeError(32, "Broken pipe")

    def fileno(self):
        raise OSError


def test_a_broken_output_is_said_once_and_raises_nothing(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdout", Broken())
    with streams.lasting():
        for _ in range(3):
            print("text")
        Console().print("text")
    assert capsys.readouterr().err.count("going on without it") == 1


@pytest.mark.parametrize("names", [("stdout",), ("stderr",), ("stdout", "stderr", "stdin")])
def test_closed_streams_raise_nothing(monkeypatch, names):
    for name in names:
        monkeypatch.setattr(sys, name, None)
    with streams.lasting():
        print("text")
        print("text", file=sys.stderr)
        Console().print("text")
        assert not Console(stderr=True).is_terminal
    closed = io.StringIO()
    closed.close()
    monkeypatch.setattr(sys, "stdout", closed)
    with streams.lasting():
        print("text", flush=True)


def test_an_encoding_without_a_character_gets_a_question_mark(monkeypatch):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    with streams.lasting():
        print("8.5 ± 0.5 ┃")
    assert written.getvalue() == b"8.5 ? 0.5 ?\n"


def test_a_closed_pipe_ends_with_status_0_and_one_line():
    code = "from rlx.run import streams\nwith streams.lasting():\n    for i in range(100000): print(i)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"0\n"
        process.stdout.close()
        error = process.stderr.read().decode()
    assert (process.returncode, error.count("\n")) == (0, 1)
    assert "going on without it" in error


def test_without_a_home_there_is_a_temporary_one(monkeypatch):
    monkeypatch.delenv("HOME")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr("pwd.getpwuid", lambda uid: {}[uid])
    assert streams.cache_folder() is None
    streams.find_home()
    assert Path.home().is_dir()
    monkeypatch.setenv("HOME", os.environ["HOME"])  # as it was, afterwards
    assert streams.cache_folder().is_relative_to(Path.home())


def test_a_cache_folder_that_cannot_be_written_is_none(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert streams.cache_folder() is None
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "folder"))
    assert streams.cache_folder() == tmp_path / "folder" / "rlx" / "jax"
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert streams.cache_folder() is None


def test_outside_of_the_main_thread_nothing_listens_to_signals():
    found = []

    def work():
        with run.Stop() as stop:
            found.append(stop.asked)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [0]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_first_signal_asks_for_an_end_also_when_the_terminal_closes(number):
    outside = signal.getsignal(number)
    if outside == signal.SIG_IGN:  # the tests run under nohup themselves
        signal.signal(number, signal.SIG_DFL)
    before = signal.getsignal(number)
    with run.Stop() as stop:
        signal.raise_signal(number)
        assert stop.asked == number
    assert signal.getsignal(number) == before
    signal.signal(number, outside)


def test_a_run_under_nohup_outlives_its_terminal():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with run.Stop() as stop:
            signal.raise_signal(signal.SIGHUP)
            assert stop.asked == 0
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_progress_bar_that_fails_becomes_lines(monkeypatch, capsys):
    written = io.StringIO()
    display = Display(Console(file=written, force_terminal=True, highlight=False, width=120), 10)
    with display:
        monkeypatch.setattr(display.bar, "update", lambda *args, **kwargs: {}["no size"])
        display.show(5, 1.0)
        display.show(10, 1.0)
    assert "100 %" in written.getvalue()
    assert capsys.readouterr().err.count("progress bar failed") == 1


def test_a_curve_that_cannot_be_drawn_is_said_and_is_no_error(tmp_path, monkeypatch):
    console = Console(file=io.StringIO())
    assert not run.draw(tmp_path / "nothing", console)
    assert "no curve.png" in console.file.getvalue()
    monkeypatch.setitem(sys.modules, "rlx.plot", None)  # as where no font or no library is to be had
    assert not run.draw(tmp_path, console)


def test_pictures_are_drawn_whatever_backend_the_environment_names(tmp_path):
    code = "import sys; from rlx.run.streams import importing_matplotlib; from pathlib import Path\n"
    code += "with importing_matplotlib(): from rlx.plot import losses\n"
    code += "losses([{'gradient_step': 1, 'loss': 1.0, 'validation_loss': 2.0}], Path(sys.argv[1]))\n"
    code += "assert 'matplotlib.pyplot' not in sys.modules"
    env = os.environ | {"MPLBACKEND": "module://matplotlib_inline.backend_inline"}
    subprocess.run([sys.executable, "-c", code, tmp_path / "losses.png"], check=True, env=env)
    assert (tmp_path / "losses.png").stat().st_size
