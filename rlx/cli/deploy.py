"""`rlx deploy`: the policy of a run for another program."""

import dataclasses
from pathlib import Path
from typing import Literal

import tyro
from rich.console import Console

from rlx.agent import load
from rlx.cli.options import configure_jax, parse_options
from rlx.deploy.write import deploy as written


@dataclasses.dataclass(frozen=True)
class DeployOptions:
    """Write the policy of a run as a file that other programs act by, after comparing its actions with the run's."""

    run: tyro.conf.Positional[Path]
    """Run directory, sweep directory or checkpoint whose policy is written."""
    to: tuple[Literal["onnx", "stablehlo", "numpy"], ...]
    """Forms to write: onnx, stablehlo, or numpy, which is one Python file that needs numpy alone."""
    output: Path
    """Directory to write in."""
    stochastic: bool = False
    """Write the form that samples actions; by default the policy takes its most likely action."""
    best: bool = False
    """Use the weights that did best in the evaluations during training."""
    from_update: int | None = None
    """Use the weights after this update."""
    lane: int | None = None
    """Lane of a sweep; by default its best one."""
    compile_cache: bool = True
    """Keep compiled programs on disk for the next start."""


def deploy(arguments: list[str]) -> None:
    """`rlx deploy`."""
    options = parse_options(DeployOptions, arguments, "rlx deploy")
    console = Console(highlight=False, markup=False, soft_wrap=True)
    configure_jax(options.compile_cache)
    agent = load(options.run, best=options.best, from_update=options.from_update, lane=options.lane)
    for target in dict.fromkeys(options.to):
        (found,) = written(agent, options.output, [target], options.stochastic)
        largest = f", real numbers to {found.largest_difference:.1g} of half their range" * (
            found.largest_difference > 0
        )
        console.print(
            f"{target}: {found.path}, {found.path.stat().st_size:,} bytes; its actions at {found.num_compared:,} "
            f"observations are those of the run{largest}"
        )
    console.print(f"inputs, outputs and versions: the .json beside each file in {options.output}")
