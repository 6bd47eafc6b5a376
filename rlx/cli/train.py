"""`rlx train`, and an algorithm file that is run as a script."""

import contextlib
import dataclasses
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import tyro
from rich.console import Console

from rlx import source
from rlx.algorithm import saved_config, short_name, split_name
from rlx.algorithm_check import check_module
from rlx.cli.options import (
    TrainSources,
    algorithm_of,
    as_texts,
    assignments,
    check_fields,
    check_seed,
    configure_jax,
    new_directory,
    parse_options,
    parse_sources,
    resumed,
    tell_settings,
    tuned_settings,
    with_asked,
)
from rlx.cli.play import Checkpoint, load_checkpoint
from rlx.devices import hosts
from rlx.devices.sharding import num_cores, use_devices
from rlx.envs.registry import full_name, on_host
from rlx.files import read_config
from rlx.presets import configure
from rlx.run import storage
from rlx.run.job import CHECKPOINT_SECONDS, HOST_OPTIONS, OPTIONS, Job, identity, plan
from rlx.run.learned_from import check_data, check_same, given_data, in_words
from rlx.run.loop import execute
from rlx.run.saved import environment
from rlx.run.sinks import check_names
from rlx.run.watching import LIMIT
from rlx.schedules import changed_besides
from rlx.stopping import stopping
from rlx.train import total_updates

# Fields of Configs that shape the networks, or say what these are told.
NETWORKS = {"hidden_sizes", "conv_features", "activation", "normalize_obs", "num_components", "num_features"}
NETWORKS |= {"denoising_steps", "action_bound", "flow_steps", "predict_noise"}
SAME = ("num_evaluations", "eval_episodes", "checkpoint_seconds", "checkpoint_replay", "render_every")  # in a Job
SAME += ("stop_at_return", "patience", "max_seconds", "host_timeout", "overlap")
MANY = 1024  # environments that are faster on several cores than on one, see benchmarks/scaling.py


@dataclasses.dataclass(frozen=True)
class TrainOptions(TrainSources):
    """Train an agent, with tuned settings where the algorithm ships some for the environment.

    A setting that is a FLOAT may change over the run: linear:0.01:0 falls from 0.01 to 0. Others are cosine:START:END,
    exponential:START:END, and piecewise and piecewise_linear, both :START:SHARE:VALUE with more shares of the run and
    values after them.
    """

    env_options: tuple[str, ...] = ()
    """Options of the environment as name=value, such as backend=mjx or max_steps=200."""
    env_params: tuple[str, ...] = ()
    """Parameters of the environment as name=value, such as gravity=3.7 or opt.gravity=[0,0,-3.7]."""
    curriculum: tuple[str, ...] = ()
    """Parameters of the environment that change over the run: gravity=linear:1:9.8 by its progress, as schedules of
    settings do, and gravity=success:1:9.8:400 while episodes return at least 400."""
    seed: int = 0
    """Random seed of the whole run."""
    out: Path | None = None
    """Run directory to write; by default a new one under runs/."""
    from_update: int | None = None
    """Resume from the checkpoint of this update; newer checkpoints are set aside."""
    num_evaluations: int = 1
    """Number of evaluations, evenly spread over training; the last one is at its end."""
    eval_episodes: int = 32
    """Number of episodes of each evaluation."""
    render_every: int = 0
    """Draw an episode at every so many evaluations, into episodes/ of the run directory; 0 draws none."""
    checkpoint_seconds: float = CHECKPOINT_SECONDS
    """Seconds between checkpoints; every evaluation and the end of the run write one too."""
    checkpoint_replay: bool = True
    """Keep the replay buffer in checkpoints. Without it they are small, and a resumed run starts with a new buffer of
    random actions, so that it is not the run that was never stopped."""
    stop_at_return: float | None = None
    """Stop when training episodes return this much on average over a hundredth of the run, and at least 10 of them."""
    patience: int | None = None
    """Stop after so many hundredths of the run in a row without a better average return of training episodes."""
    max_seconds: float | None = None
    """Stop after so many seconds of training; the run is evaluated and can be resumed."""
    log: tuple[str, ...] = ()
    """Logs to write beside metrics.jsonl and evaluations.jsonl: csv, tensorboard, wandb."""
    data: Path | None = None
    """File of demonstrations to learn from, as rlx collect writes it, for algorithms such as iql."""
    devices: int | None = None
    """Number of GPUs, or cores of a CPU, that the environments are spread over; by default that of the resumed run,
    else 1, and on a CPU all cores from 1,024 environments on."""
    distributed: bool = False
    """Train together with other processes that are given the same command, on all of their devices."""
    coordinator: str | None = None
    """HOST:PORT of the first process of a distributed run; SLURM, Open MPI and Cloud TPU provide this and the next
    two."""
    num_processes: int | None = None
    """Number of processes of a distributed run."""
    process_id: int | None = None
    """Number of this process in a distributed run, from 0."""
    host_timeout: float = LIMIT
    """Seconds that a step of an environment on the host may take; after them the run is saved, and ends."""
    overlap: bool = False
    """Step an environment on the host while the device learns, with the policy of one update before."""
    dry_run: bool = False
    """Print what would run and the memory of its state, and stop."""
    compile_cache: bool = True
    """Keep compiled programs on disk for the next start."""


def train(arguments: list[str]) -> None:
    """`rlx train`."""
    train_algorithm(*algorithm_of("train", arguments, TrainOptions))


def train_file(path: str) -> None:
    """`python some/ppo.py`, which is the running script."""
    module, file, prog = sys.modules["__main__"], Path(path).resolve(), f"python {sys.argv[0]}"
    check_module(module, path)
    sources, rest = parse_sources(sys.argv[1:], prog, TrainSources)
    vars(module)["__sources__"] = {file.name: file.read_bytes()} | source.beside(file)
    algorithm, name = module, str(file)
    if sources.resume is not None:
        algorithm, name = resumed(sources, "config.json", algorithm, name)
    algorithm, name = with_asked(algorithm, name, sources)
    train_algorithm(algorithm, name, sources, rest, prog)


def train_algorithm(
    algorithm: ModuleType, algorithm_name: str, sources: TrainSources, arguments: list[str], prog: str
) -> None:
    console = Console(highlight=False, markup=False, soft_wrap=True)
    begin = _resumed if sources.resume is not None else _new if sources.start_from is None else _started
    beginning = begin(algorithm, algorithm_name, sources)
    options = _parse_train(algorithm, prog, arguments, vars(sources) | beginning.defaults)
    if options.source and beginning.saved is None:
        raise ValueError("--source says which algorithm file a run is resumed with: it needs --resume RUN")
    if not beginning.env_name:
        raise ValueError(f"{prog} needs an environment: --env NAME; `rlx envs` lists them")
    _check_numbers(options)
    configure_jax(options.compile_cache)
    devices = _devices(options, beginning)
    console.quiet = not hosts.first()
    env_options = beginning.env_options | assignments("--env-options", options.env_options)
    env_params = beginning.env_params | assignments("--env-params", options.env_params)
    env_params |= assignments("--curriculum", options.curriculum)
    env = environment(beginning.env_name, env_options, env_params)
    if beginning.saved is None:
        tuned = tuned_settings(algorithm, beginning.env_name, sources, env)
        if tuned != beginning.preset:  # those of the kind of environment, known only now
            defaults = {"config": configure(algorithm.Config, tuned | beginning.shaped)}
            beginning = dataclasses.replace(beginning, preset=tuned, defaults=defaults)
            options = _parse_train(algorithm, prog, arguments, vars(sources) | defaults)
    job = Job(
        algorithm,
        algorithm_name,
        options.config,
        env=env,
        env_name=beginning.env_name,
        env_options=env_options,
        env_params=env_params,
        seed=options.seed,
        directory=sources.resume or options.out or new_directory(algorithm_name, beginning.env_name, options.seed),
        devices=devices,
        preset=beginning.preset,
        start_from=sources.start_from,
        sinks=options.log,
        **given_data(options.data, env),
        **{name: getattr(options, name) for name in SAME},
    )
    check_data(job, job.devices)
    if sources.start_from is not None:
        job = dataclasses.replace(job, learned=_learned(job, beginning, options))
    if beginning.saved is None:
        _check_new(job.directory, options)
    else:
        _check_resume(beginning.saved, job, options)
    _tell(console, job, beginning, told=beginning.saved is None and sources.preset)
    _run(console, job, options, resume=beginning.saved is not None)


@dataclasses.dataclass(frozen=True)
class Beginning:
    """What the options of a run start from."""

    env_name: str
    preset: dict[str, Any]  # tuned settings
    defaults: dict[str, Any]  # of options, the Config among them
    env_options: dict[str, Any] = dataclasses.field(default_factory=dict)
    env_params: dict[str, Any] = dataclasses.field(default_factory=dict)
    shaped: dict[str, Any] = dataclasses.field(default_factory=dict)  # settings of the networks that it starts from
    saved: dict[str, Any] | None = None  # config.json of a run that is resumed


def _new(algorithm: ModuleType, algorithm_name: str, sources: TrainSources) -> Beginning:
    """A run from nothing, with the settings for its environment."""
    env_name = full_name(sources.env) if sources.env else ""
    tuned = tuned_settings(algorithm, env_name, sources)
    return Beginning(env_name, tuned, {"config": configure(algorithm.Config, tuned)})


def _started(algorithm: ModuleType, algorithm_name: str, sources: TrainSources) -> Beginning:
    """A run with the networks of another one, on its environment or on another."""
    assert sources.start_from is not None
    start = read_config(sources.start_from)
    _check_same_algorithm(sources.start_from, split_name(start["algorithm"])[0], split_name(algorithm_name)[0])
    env_name = full_name(sources.env) if sources.env else start["env"]
    tuned = tuned_settings(algorithm, env_name, sources)
    trained = "cloned" not in start or (sources.start_from / "metrics.jsonl").exists()
    kept = NETWORKS | {"trained_steps"} if trained else NETWORKS  # a clone is the same actor at every step
    before = saved_config(algorithm, start)
    shaped = {name: getattr(before, name) for name in kept & set(vars(before))}
    own = {name: start[name] for name in ("env_options", "env_params")} if start["env"] == env_name else {}
    return Beginning(env_name, tuned, {"config": configure(algorithm.Config, tuned | shaped)}, **own, shaped=shaped)


def _resumed(algorithm: ModuleType, algorithm_name: str, sources: TrainSources) -> Beginning:
    """A run that is resumed, with its own settings."""
    assert sources.resume is not None
    saved = read_config(sources.resume)
    if sources.start_from is not None:
        raise ValueError("--resume continues a run and --start-from begins a new one: give one of them")
    _check_same_algorithm(sources.resume, saved["algorithm"], algorithm_name)
    defaults = {name: saved[name] for name in ("seed", *OPTIONS, *HOST_OPTIONS) if name in saved}
    defaults |= {name: as_texts(saved[name]) for name in ("env_options", "env_params")}
    defaults |= {"data": Path(file)} if (file := saved.get("data", {}).get("file")) else {}
    defaults |= {"config": saved_config(algorithm, saved), "log": tuple(saved.get("log", ()))}
    env_name = full_name(sources.env) if sources.env else saved["env"]
    return Beginning(env_name, saved["preset"], defaults, saved=saved)


def _learned(job: Job, beginning: Beginning, options: TrainOptions) -> Any:
    """The State that the job starts from."""
    now = dataclasses.asdict(job.config)
    if changed := [name for name, value in beginning.shaped.items() if now[name] != value]:
        raise ValueError(f"a run keeps the networks that it starts from: leave out {', '.join(changed)}")
    assert job.start_from is not None
    return load_checkpoint(Checkpoint(job.start_from, compile_cache=options.compile_cache))[1]


def _tell(console: Console, job: Job, beginning: Beginning, told: bool) -> None:
    """Says what will run, with which settings, and where they are from."""
    chosen = {n: value for n, value in vars(job.config).items() if value != vars(beginning.defaults["config"])[n]}
    devices = f"{job.devices} x " if job.devices > 1 else ""
    kind = f"{devices}{jax.devices()[0].device_kind}"
    console.print(f"{short_name(job.algorithm_name)} on {job.env_name}, seed {job.seed}, {kind}")
    tell_settings(console, job.algorithm, str(job.env_name), job.env, job.preset, told=told)
    for title, values in (("your settings", chosen), ("environment", job.env_params)):
        if values:
            console.print(f"{title}: {', '.join(f'{k}={v}' for k, v in values.items())}")
    if job.data_about is not None:
        console.print(f"data: {in_words(job.data_about)}")
    if text := changed_besides(job.config):
        console.print(text)
    with _explained(job.algorithm_name):
        updates = total_updates(job.config)
    if job.num_evaluations > updates:
        console.print(f"--num-evaluations {job.num_evaluations}: there are {updates} updates, and as many evaluations")
    if job.render_every > min(job.num_evaluations, updates):
        console.print(f"--render-every {job.render_every}: with so few evaluations no episode is drawn")


def _run(console: Console, job: Job, options: TrainOptions, resume: bool) -> None:
    """Runs the job in a directory of its own, or says what would run."""
    if options.dry_run:
        console.print(plan(job))
        return
    numbered = options.out is None and not resume
    with storage.owned(job.directory, resume=resume, numbered=numbered, say=console.print) as directory:
        job = dataclasses.replace(job, directory=directory)
        with _explained(job.algorithm_name):
            status = execute(job, console, resume=resume, from_update=options.from_update)
    if status:
        sys.exit(status)


@contextlib.contextmanager
def _explained(algorithm_name: str) -> Iterator[None]:
    """An error that a file of one's own raises while it is traced is said in one line, with its own line of code."""
    own = source.files(algorithm_name)
    try:
        yield
    except (ValueError, OSError, MemoryError):
        raise
    except Exception as error:
        if not own or storage.reason(error) or isinstance(error, jax.errors.JaxRuntimeError):
            raise
        frames = [
            frame for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename).resolve() == own[0]
        ]
        where = f" in line {frames[-1].lineno} ({frames[-1].line})" if frames else ""
        text = str(error).strip().partition("\n")[0]
        raise ValueError(
            f"{own[0]} fails{where}: {type(error).__name__}: {text}; rlx check {own[0]} says which rule it breaks, and "
            "RLX_TRACEBACK=1 shows all of it"
        ) from error


def _devices(options: Any, beginning: Beginning) -> int:
    """How many devices the run of these `TrainOptions` has; jax has not been used yet."""
    saved = beginning.saved
    if options.distributed:
        if options.devices not in (None, (saved or {}).get("devices")):
            raise ValueError("--devices is of a run of one process: with --distributed it has all devices")
        hosts.join(options.coordinator, options.num_processes, options.process_id)
        return jax.device_count()
    for name in ("coordinator", "num_processes", "process_id"):
        if getattr(options, name) is not None:
            raise ValueError(f"--{name.replace('_', '-')} is of a run of several processes: give --distributed too")
    if options.devices is not None:
        use_devices(max(1, options.devices))
        return options.devices
    if saved is not None or on_host(beginning.env_name) or (cores := cores_for(options.config)) == 1:
        return 1
    return cores if use_devices() >= cores and jax.default_backend() == "cpu" else 1


def cores_for(config: Any) -> int:
    """Over how many cores the environments are spread where they are so many that it is faster."""
    num_envs, num_minibatches = (getattr(config, name, 0) for name in ("num_envs", "num_minibatches"))
    if num_envs < MANY or not num_minibatches:
        return 1
    fits = lambda n: num_envs % n == 0 and config.steps_per_update // n % num_minibatches == 0
    return max(n for n in range(1, num_cores() + 1) if fits(n))


def _parse_train(algorithm, prog, arguments, defaults):
    check_fields(algorithm.Config, TrainOptions, prog)
    config = ("config", tyro.conf.OmitArgPrefixes[algorithm.Config], dataclasses.field(default=defaults["config"]))
    both = dataclasses.make_dataclass("Options", [config], bases=(TrainOptions,), frozen=True)
    both.__doc__ = TrainOptions.__doc__
    return parse_options(both, arguments, prog, default=both(**defaults))


def _check_same_algorithm(run: Path, saved: str, algorithm_name: str) -> None:
    was, given = short_name(saved), short_name(algorithm_name)
    if was != given:
        raise ValueError(f"{run} is a run of {was}, not of {given}: leave the algorithm out")


def _check_numbers(options: Any) -> None:
    check_seed(options.seed)
    check_names(options.log)
    for flag, number in (("eval-episodes", options.eval_episodes), ("num-evaluations", options.num_evaluations)):
        if number < 1:
            raise ValueError(f"--{flag} {number}: give at least 1")
    if options.render_every < 0:
        raise ValueError(f"--render-every {options.render_every}: give 0 for never, or a number of evaluations")
    if not options.checkpoint_seconds >= 0:
        raise ValueError(f"--checkpoint-seconds {options.checkpoint_seconds}: give 0 or more")
    for flag, number in (("max-seconds", options.max_seconds), ("host-timeout", options.host_timeout)):
        if number is not None and not number > 0:
            raise ValueError(f"--{flag} {number}: give more than 0")
    stopping(options.stop_at_return, options.patience, 1)


def _check_new(directory: Path, options: Any) -> None:
    if options.from_update is not None:
        raise ValueError("--from-update says where to go on: it needs --resume RUN")
    storage.check_empty(directory)


def _check_resume(saved: dict[str, Any], job: Job, options: Any) -> None:
    """Raises ValueError where a resumed run would become another one."""
    check_same(saved, job.data_about)
    now = identity(job)
    pairs = [(name, saved[name], now[name]) for name in ("env", "env_options", "env_params", "seed")]
    pairs += [("out", job.directory, options.out or job.directory)]
    pairs += [("checkpoint_replay", saved.get("checkpoint_replay", True), job.checkpoint_replay)]
    pairs += [(name, saved["config"].get(name, value), value) for name, value in now["config"].items()]
    changed = [f"{name} = {old} -> {new}" for name, old, new in pairs if old != new]
    changed += [] if options.preset else ["--no-preset"]
    changed += [f"--variant {options.variant}"] if options.variant else []
    if changed:
        raise ValueError(f"a resumed run keeps its settings (only --total-steps may change): {', '.join(changed)}")
