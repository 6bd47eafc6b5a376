"""The `rlx` command: a table of commands, and what a user is told of errors."""

import contextlib
import importlib
import importlib.util
import os
import sys
from pathlib import Path

import rlx.algos
import rlx.envs
from rlx import source
from rlx.algorithm import algorithms
from rlx.algorithm_check import check_module
from rlx.cli.check import CheckOptions, WhyOptions, _check, _why
from rlx.cli.envs import _envs
from rlx.cli.options import TrainSources, _parse, _sources, _with_objective, resumed
from rlx.cli.play import EvalOptions, RenderOptions, _eval, render
from rlx.cli.train import _train, _train_algorithm
from rlx.devices import hosts
from rlx.devices.sharding import missing_platform
from rlx.messages import _unknown
from rlx.run.loop import storage, streams

COMMANDS = {
    "train": "train an agent:  rlx train ppo --env CartPole-v1",
    "eval": "evaluate a run:  rlx eval runs/NAME --num-episodes 100",
    "sweep": "train many configurations:  rlx sweep ppo --env CartPole-v1 --learning-rate 1e-4,1e-3 --num-seeds 8",
    "export": "a lane of a sweep as a run:  rlx export runs/SWEEP 17 --out runs/NAME",
    "report": "compare runs and sweeps, with intervals:  rlx report runs/A runs/B",
    "collect": "what policies do, as a file:  rlx collect runs/NAME --output demonstrations.npz",
    "clone": "imitate demonstrations:  rlx clone dppo demonstrations.npz",
    "discover": "learn an objective:  rlx discover lpo --train CartPole-v1 --holdout Acrobot-v1",
    "render": "watch a policy:  rlx render runs/NAME --output episode.gif",
    "plot": "draw runs and sweeps:  rlx plot runs/A runs/B --output curves.png",
    "why": "what made a run end in NaN:  rlx why runs/NAME",
    "envs": "list environments:  rlx envs [brax]",
    "check": "test an algorithm or an environment:  rlx check my_ppo.py --env CartPole-v1",
    "version": "the version:  rlx --version",
    "help": "this list, or the options of a command:  rlx help train",
}


def main(arguments: list[str] | None = None) -> None:
    """The `rlx` command."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["help"] and len(arguments) > 1:
        arguments = [*arguments[1:], "--help"]
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print("usage: rlx COMMAND ...\n\n" + "\n".join(f"  {name:8} {text}" for name, text in COMMANDS.items()))
        print("\nrlx COMMAND --help says more; the algorithms are " + ", ".join(algorithms()))
        sys.exit(0)
    command, rest = arguments[0], arguments[1:]
    with _errors():
        if command == "train":
            _train(rest)
        elif command == "eval":
            _eval(_parse(EvalOptions, rest, "rlx eval"))
        elif command == "render":
            render(_parse(RenderOptions, rest, "rlx render"))
        elif command in ("sweep", "export", "report", "plot"):
            getattr(importlib.import_module("rlx.cli.sweep"), command)(rest)
        elif command in ("collect", "clone"):
            getattr(importlib.import_module("rlx.cli.demonstrations"), command)(rest)
        elif command == "discover":
            importlib.import_module("rlx.cli.discover").discover(rest)
        elif command == "why":
            _why(_parse(WhyOptions, rest, "rlx why"))
        elif command == "envs":
            _envs(rest)
        elif command == "check":
            _check(_parse(CheckOptions, rest, "rlx check"))
        elif command in ("version", "--version", "-V"):
            print(f"rlx {rlx.__version__}")
        else:
            raise ValueError(_unknown("command", command, [name for name in COMMANDS if name != "version"]))


def run_file(path: str) -> None:
    """The command line of an algorithm file that is run as a script; `path` is its `__file__`."""
    with _errors():
        prog = f"python {sys.argv[0]}"
        check_module(sys.modules["__main__"], path)
        sources, rest = _sources(sys.argv[1:], prog, TrainSources)
        module, file = sys.modules["__main__"], Path(path).resolve()
        module.__sources__ = {file.name: file.read_bytes()} | source.beside(file)
        algorithm, name = module, str(file)
        if sources.resume is not None:
            algorithm, name = resumed(sources, "config.json", algorithm, name)
        algorithm, name = _with_objective(algorithm, name, sources)
        _train_algorithm(algorithm, name, sources, rest, prog)


@contextlib.contextmanager
def _errors():
    """Bad input is one line on stderr and exit status 2; so is a disk that is full."""
    streams.find_home()
    with streams.lasting(), streams.drawing_to_files():
        try:
            with hosts.together():
                yield
        except KeyboardInterrupt:
            print("rlx: interrupted", file=sys.stderr)
            hosts.leave(130)
        except Exception as error:
            if os.environ.get("RLX_TRACEBACK") or not (said := _said(error)):
                raise
            print(f"rlx: {' '.join(said.split())}", file=sys.stderr)
            hosts.leave(2)


def _said(error: Exception) -> str:
    """What a user is told of an error that is none of the program; nothing where it is one."""
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
        first = str(error).strip().partition("\n")[0]
        return f"out of memory ({first}): --dry-run says how much a state takes; lower num_envs or capacity"
    if isinstance(error, ValueError | OSError) or storage.reason(error):
        return str(error)
    return missing_platform() if isinstance(error, RuntimeError | AssertionError) else ""
