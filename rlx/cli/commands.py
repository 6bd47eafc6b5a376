"""The `rlx` command: a table of commands, and what a user is told of errors."""

import contextlib
import importlib
import os
import sys

import rlx
from rlx.algorithm import algorithms
from rlx.devices import hosts
from rlx.devices.sharding import missing_platform
from rlx.hosted import Fault
from rlx.messages import unknown_name
from rlx.run import storage, streams

# Each command is a function of a file of this package, given the arguments after its name, and a line of help.
COMMANDS = {
    "train": ("train.train", "train an agent:  rlx train ppo --env CartPole-v1"),
    "eval": ("play.evaluate", "evaluate a run:  rlx eval runs/NAME --num-episodes 100"),
    "sweep": (
        "sweep.sweep",
        "train many configurations:  rlx sweep ppo --env CartPole-v1 --learning-rate 1e-4,1e-3 --num-seeds 8",
    ),
    "export": ("sweep.export", "a lane of a sweep as a run:  rlx export runs/SWEEP 17 --out runs/NAME"),
    "report": ("report.report", "compare runs and sweeps, with intervals:  rlx report runs/A runs/B"),
    "collect": (
        "demonstrations.collect",
        "what policies do, as a file:  rlx collect runs/NAME --output demonstrations.npz",
    ),
    "data": ("data.data", "exchange demonstrations with Minari:  rlx data export demonstrations.npz --name a/b-v0"),
    "clone": ("demonstrations.clone", "imitate demonstrations:  rlx clone dppo demonstrations.npz"),
    "discover": ("discover.discover", "learn an objective:  rlx discover lpo --train CartPole-v1 --holdout Acrobot-v1"),
    "deploy": (
        "deploy.deploy",
        "the policy of a run for another program:  rlx deploy runs/NAME --to onnx --output DIR",
    ),
    "play": ("game.play", "play a game against a run:  rlx play runs/NAME"),
    "render": ("play.render", "watch a policy:  rlx render runs/NAME --output episode.gif"),
    "plot": ("report.plot", "draw runs and sweeps:  rlx plot runs/A runs/B --output curves.png"),
    "watch": ("watch.watch", "see runs and sweeps in a browser:  rlx watch runs"),
    "show": ("show.show", "what made a run, and how to make it again:  rlx show runs/NAME"),
    "log": ("log.log", "a run as TensorBoard or W&B has it:  rlx log runs/NAME --to tensorboard"),
    "profile": ("profile.measure", "where time and memory go:  rlx profile ppo --env CartPole-v1"),
    "why": ("check.why", "what made a run end in NaN:  rlx why runs/NAME"),
    "envs": ("envs.envs", "list environments:  rlx envs [brax]"),
    "mechanisms": ("mechanisms.mechanisms", "list mechanisms of the literature:  rlx mechanisms [loss]"),
    "check": ("check.check", "test an algorithm or an environment:  rlx check my_ppo.py --env CartPole-v1"),
}


def main(arguments: list[str] | None = None) -> None:
    """The `rlx` command."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["help"] and len(arguments) > 1:
        arguments = [*arguments[1:], "--help"]
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage())
        sys.exit(0)
    command, rest = arguments[0], arguments[1:]
    if command in ("version", "--version", "-V"):
        print(f"rlx {rlx.__version__}")
        return
    with _errors():
        if command not in COMMANDS:
            raise ValueError(unknown_name("command", command, [*COMMANDS, "help"]))
        file, function = COMMANDS[command][0].split(".")
        getattr(importlib.import_module(f"rlx.cli.{file}"), function)(rest)


def usage() -> str:
    """The list of commands, and of the algorithms that ship."""
    lines = {name: text for name, (_, text) in COMMANDS.items()}
    lines |= {"version": "the version:  rlx --version"}
    lines |= {"help": "this list, or the options of a command:  rlx help train"}
    shown = "\n".join(f"  {name:10} {text}" for name, text in lines.items())
    known = ", ".join(algorithms())
    return f"usage: rlx COMMAND ...\n\n{shown}\n\nrlx COMMAND --help says more; the algorithms are {known}"


def run_file(path: str) -> None:
    """The command line of an algorithm file that is run as a script; `path` is its `__file__`."""
    with _errors():
        importlib.import_module("rlx.cli.train").train_file(path)


@contextlib.contextmanager
def _errors():
    """Bad input is one line on stderr and exit status 2; so is a disk that is full. A fault on the host is status 1."""
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
            hosts.leave(1 if isinstance(error, Fault) else 2)


def _said(error: Exception) -> str:
    """What a user is told of an error that is none of the program; nothing where it is one."""
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
        first = str(error).strip().partition("\n")[0]
        return f"out of memory ({first}): --dry-run says how much a state takes; lower num_envs or capacity"
    if isinstance(error, ValueError | OSError | Fault) or storage.reason(error):
        return str(error)
    return missing_platform() if isinstance(error, RuntimeError | AssertionError) else ""
