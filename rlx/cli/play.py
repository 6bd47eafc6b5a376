"""The commands that play a run's policy: `rlx eval`, `rlx render`."""

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import tyro
from rich.console import Console

from rlx.agent import Agent
from rlx.algorithm import short_name
from rlx.cli.options import check_seed, configure_jax, parse_options
from rlx.env import Env
from rlx.files import read_config, write_json
from rlx.run import storage
from rlx.run.evaluations import evaluate_run, evaluation
from rlx.run.job import Job, keys
from rlx.run.pause import given
from rlx.run.saved import saved_run, saved_state
from rlx.run.timings import announced, program_name
from rlx.train import steps_taken


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A checkpoint of a run, the newest one where no other is asked for, and how its policy acts."""

    run: tyro.conf.Positional[Path]
    """Run directory whose policy acts."""
    best: bool = False
    """Use the weights that did best in the evaluations during training."""
    from_update: int | None = None
    """Use the weights after this update."""
    seed: int = 0
    """Random seed of start states and of the environment; training uses another stream."""
    stochastic: bool = False
    """Sample actions; by default the policy takes its most likely action."""
    compile_cache: bool = True
    """Keep compiled programs on disk for the next start."""


@dataclasses.dataclass(frozen=True)
class EvalOptions(Checkpoint):
    """Evaluate a checkpoint of a run, the newest one where no other is asked for."""

    env: str = ""
    """Play in an environment of Gymnasium, such as gymnasium/CartPole-v1, in place of the run's own."""
    num_episodes: int = 32
    """Number of whole episodes to play."""
    output: Path | None = None
    """JSON file to write; by default one in evaluations/ of the run directory, named by update, seed and episodes."""


@dataclasses.dataclass(frozen=True)
class RenderOptions(Checkpoint):
    """Draw an episode of a run's policy, from a start that --seed chooses."""

    output: Path | None = None
    """File to write: .gif, .mp4, .png (a filmstrip) or, for Brax, .html; by default episode.gif in the run
    directory."""
    num_steps: int = 1000
    """Largest number of steps to draw."""
    width: int = 320
    """Width of the picture in pixels, or of each picture of a filmstrip."""
    height: int = 240
    """Height of the picture in pixels, or of each picture of a filmstrip."""
    camera: str | None = None
    """Name of one of the model's cameras; by default its first."""


def evaluate(arguments: list[str]) -> None:
    """`rlx eval`."""
    options = parse_options(EvalOptions, arguments, "rlx eval")
    if options.num_episodes < 1:
        raise ValueError(f"--num-episodes {options.num_episodes}: give at least 1")
    job, state, key = load_checkpoint(options)
    console = Console(highlight=False, markup=False, soft_wrap=True)
    if options.env:
        result = _played(options, job, state, console)
        _kept(options, result, int(state.num_updates), f"-{options.env.replace('/', '-')}", console)
        return
    name = program_name(
        f"evaluation of {short_name(job.algorithm_name)}", job.env_name, job.config, options.num_episodes
    )
    with announced(name, console.print):
        result = evaluate_run(job, state, key, options.num_episodes, console, deterministic=not options.stochastic)
    _kept(options, result, int(state.num_updates), "", console)


def _played(options: EvalOptions, job: Job, state: Any, console: Console) -> dict[str, Any]:
    """The evaluation of a policy in an environment of Gymnasium, as strict JSON."""
    from rlx.envs import host

    agent = Agent(job.algorithm, job.config, job.env, state, job.env_name, job.seed, options.run, options.seed)
    spaces = agent.observation_space, agent.action_space
    policy = Chosen(agent, not options.stochastic)
    episodes = host.evaluate(policy, *spaces, options.env, options.num_episodes, options.seed)
    result = evaluation(episodes, agent.num_updates, job.config, policy.deterministic) | {"env": options.env}
    console.print(
        f"{options.env}, after {agent.steps:,} steps of training in {job.env_name}: mean return "
        f"{float(result['mean']):.1f}, standard deviation {float(result['std']):.1f}, {options.num_episodes} episodes"
    )
    return result


@dataclasses.dataclass(frozen=True)
class Chosen:
    """An agent that takes its most likely actions, or draws them."""

    agent: Agent
    deterministic: bool

    def reset(self) -> None:
        """That of the agent."""
        self.agent.reset()

    def act(self, obs: Any) -> Any:
        """That of the agent."""
        return self.agent.act(obs, self.deterministic)


def _kept(options: EvalOptions, result: dict[str, Any], update: int, where: str, console: Console) -> None:
    """Writes an evaluation and says where."""
    how = where + "-stochastic" * options.stochastic
    name = f"evaluations/update-{update}-seed-{options.seed}-episodes-{options.num_episodes}{how}.json"
    output = options.output or storage.beside(options.run, name, console.print)
    with storage.naming(output, lambda: f"{options.run} is as it was; --output says where else"):
        output.parent.mkdir(parents=True, exist_ok=True)
        write_json(output, result | {"run": str(options.run), "seed": options.seed})
    console.print(f"evaluation: {output}")


def render(arguments: list[str]) -> None:
    """`rlx render`."""
    from rlx.run.render import check_output, record, write

    options = parse_options(RenderOptions, arguments, "rlx render")
    for name in ("num_steps", "width", "height"):
        if getattr(options, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} {getattr(options, name)}: give at least 1")
    output = options.output or storage.beside(options.run, "episode.gif", print)
    job, state, key = load_checkpoint(options, lambda env: check_output(env, output, options.camera))
    deterministic = not options.stochastic
    name = program_name(f"episode of {short_name(job.algorithm_name)}", job.env_name, job.config, options.num_steps)
    with announced(name, partial(print, flush=True)):
        episode, total = record(job.algorithm, job.config, job.env, state, key, options.num_steps, deterministic)
    with storage.naming(output, lambda: f"{options.run} is as it was; --output says where else"):
        write(job.env, episode, output, options.width, options.height, options.camera)
    after = steps_taken(job.config, int(state.num_updates))
    print(f"{output}: an episode of {len(episode) - 1} steps, return {total:.1f}, after {after:,} steps of training")


def load_checkpoint(options: Checkpoint, check: Callable[[Env], None] = lambda env: None) -> tuple[Job, Any, jax.Array]:
    """The job of a run, the state that is asked for, and a key; `check` is given the environment before."""
    configure_jax(options.compile_cache)
    check_seed(options.seed)
    if options.best and options.from_update is not None:
        raise ValueError("--best and --from-update are two checkpoints: give one of them")
    job = saved_run(options.run)
    check(job.env)
    state = saved_state(job, options.best, options.from_update)
    config = given(job.config, read_config(options.run).get("changes", []), int(state.num_updates))
    job = dataclasses.replace(job, config=config)
    return job, state, jax.random.fold_in(keys(job.seed)[1], options.seed + 1)
