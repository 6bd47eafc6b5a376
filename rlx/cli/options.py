"""What commands share: how options are parsed, where defaults come from, and environments by name."""

import ast
import atexit
import contextlib
import dataclasses
import gc
import io
import numbers
import re
import sys
import time
from decimal import Decimal
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import jax
import tyro
from rich.console import Console

from rlx import schedules, source
from rlx.algorithm import (
    GIVEN,
    LEARNED,
    OBJECTIVES,
    RULES,
    algorithms,
    kind_of,
    named_algorithm,
    preset_file,
    saved_algorithm,
    shipped,
    short_name,
    split_name,
    with_named,
)
from rlx.env import Env
from rlx.files import read_config
from rlx.messages import unknown_name
from rlx.presets import defaults as defaults_of
from rlx.presets import episode_fields, of_episode, origin, renamed, settings, variant
from rlx.run import streams


@dataclasses.dataclass(frozen=True)
class Sources:
    """Where the defaults of all other options come from."""

    env: str = ""
    """Name of the environment, `namespace/Name` or `Name` where only one suite has it; `rlx envs` lists them."""
    resume: Path | None = None
    """Run directory to resume, in its own settings; only --total-steps may be raised."""
    objective: str = ""
    """Policy objective to use in place of the algorithm's own: a name such as SPO, whose coefficients become options,
    or the file of a learned one."""
    rule: str = ""
    """Learned update rule for lpg: evolved, which ships, or the file of another."""
    bonus: str = ""
    """Bonus for what is new, RND or Counts, that the algorithm learns from beside the reward; its coefficients become
    options."""
    transform: str = ""
    """Transformation of the optimizer's steps, SFPO or IGT; its coefficients become options."""
    variant: str = ""
    """Named settings from the algorithm's VARIANTS, such as dapo in grpo; they go over the tuned ones."""
    preset: bool = True
    """Start from the settings that ship for the environment."""
    source: Literal["", "copy", "file"] = ""
    """Which source to resume where the algorithm file has changed: the copy that the run kept, or the file as it is
    now."""


@dataclasses.dataclass(frozen=True)
class TrainSources(Sources):
    """The same of a single run."""

    start_from: Path | None = None
    """Run directory, such as a clone, whose networks, observation statistics and environment the new run starts
    with."""


def algorithm_of(command: str, arguments: list[str], general: type) -> tuple[ModuleType, str, Any, list[str], str]:
    """The algorithm of a command, its name, the `Sources` (of training `TrainSources`), other arguments, the program.

    Without a name it is the algorithm of the directory to resume or to start from. `general` are the command's options
    beside the settings of an algorithm.
    """
    of_run = any(argument.startswith(("--resume", "--start-from")) for argument in arguments)
    if arguments and arguments[0].startswith("-") and {"-h", "--help"} & set(arguments) and not of_run:
        print(
            f"usage: rlx {command} ALGORITHM --env NAME ...; `rlx {command} ppo --help` lists the settings of ppo too"
        )
        print(f"algorithms: {', '.join(algorithms())}")
        parse_options(general, ["--help"], f"rlx {command} ALGORITHM")
    named = arguments[:1] if arguments and not arguments[0].startswith("-") else []
    prog = " ".join([f"rlx {command}", *named])
    sources, rest = parse_sources(arguments[len(named) :], prog, TrainSources if command == "train" else Sources)
    before: Any = sources.resume or getattr(sources, "start_from", None)
    if not named and before is None:
        raise ValueError(
            f"rlx {command} needs an algorithm: rlx {command} ppo --env NAME; there are {', '.join(algorithms())}"
        )
    file = "config.json" if command == "train" else "sweep.json"
    if sources.resume is not None:
        algorithm, name = resumed(sources, file, *(named_algorithm(named[0]) if named else (None, "")))
    elif named:
        algorithm, name = named_algorithm(named[0])
    else:
        saved = read_config(before, file)
        algorithm, name = saved_algorithm(before, saved, whole=False), split_name(saved["algorithm"])[0]
    return *with_asked(algorithm, name, sources, file), sources, rest, prog


def resumed(sources: Sources, file: str, given: ModuleType | None, name: str) -> tuple[ModuleType, str]:
    """The algorithm that a directory is resumed with and its name: the one that is given, else the directory's own.

    Raises:
        ValueError: where its files have changed, unless --source says what to resume with.
    """
    directory: Any = sources.resume
    saved = read_config(directory, file)
    own, objective = split_name(saved["algorithm"])
    objective = "" if sources.objective or sources.rule else objective
    code, drift = source.changes(name or own, saved, given), source.changes(objective, saved)
    changed = [str(path) for path, what in (code | drift).items() if what == "has changed"]
    if changed and (not sources.source or (drift and sources.source == "file")):
        other = "" if drift else ", --source file with the file as it is now"
        raise ValueError(
            f"{', '.join(changed)} has changed since {directory} began: --source copy resumes with its copy{other}"
        )
    if sources.source == "copy" and not (directory / source.FOLDER).exists():
        raise ValueError(f"--source copy: {directory} keeps no copy, as it is not of a file of one's own")
    if source.hashes(own, {}).items() - saved.get("source", source.hashes(own, {})).items():
        print(f"{own} is another version than {directory} began with: it is resumed with this one")
    if sources.source == "copy" or "is gone" in (code | drift).values():
        return saved_algorithm(directory, saved, bool(objective)), saved["algorithm"] if objective else own
    if given is None:
        given, name = named_algorithm(own)
    return (with_named(given, objective), f"{name}+{objective}") if objective else (given, name)


def with_asked(algorithm: ModuleType, name: str, sources: Sources, file: str = "config.json") -> tuple[ModuleType, str]:
    """The algorithm and its name with the objective, bonus and transform asked for, or those of what is resumed."""
    before = "" if sources.resume is None else split_name(read_config(sources.resume, file)["algorithm"])[1]
    rule = str(RULES.get(sources.rule, sources.rule))
    if rule and not rule.endswith(LEARNED):
        raise ValueError(f"--rule {rule}: give {', '.join(RULES)}, or the file of a rule, which ends with {LEARNED}")
    if rule and sources.objective:
        raise ValueError("--objective and --rule: an algorithm learns by one of them, so give one")
    asked = [_known("objective", sources.objective or rule, OBJECTIVES)]
    asked += [_known(kind, getattr(sources, kind), known) for kind, (known, _) in GIVEN.items()]
    of_kind = {kind_of(name): name for name in [*before.split("+"), *asked] if name}  # the last of each
    ordered = [of_kind[kind] for kind in ("objective", *GIVEN) if kind in of_kind]
    missing = [given for given in ordered if given not in split_name(name)[1].split("+")]
    if not missing:
        return algorithm, name
    return with_named(algorithm, "+".join(missing)), "+".join([name, *missing])


def _known(kind: str, asked: str, names: dict[str, type]) -> str:
    """The name as it is written in `names`, or the path of a file; empty where nothing is asked for."""
    if asked.endswith(LEARNED) and kind == "objective":
        path = str(Path(asked).resolve())
        if "+" in path:
            raise ValueError(f"{path}: a run is named with a + before its objective, so give a path without one")
        return path
    known = {name.lower(): name for name in names}
    if asked and asked.replace("-", "").lower() not in known:
        raise ValueError(unknown_name(kind, asked, list(known)))
    return known.get(asked.replace("-", "").lower(), "")


def parse_sources(arguments: list[str], prog: str, options: type[Sources] = Sources) -> tuple[Any, list[str]]:
    """The options, of this class, that the defaults of the others depend on, and the arguments without them."""
    return parse_options(options, arguments, prog, return_unknown_args=True, add_help=False)


def tell_settings(
    console: Console, algorithm: ModuleType, env_name: str, env: Env, tuned: dict[str, Any], told: bool = True
) -> None:
    """Prints the settings that the options start from and where they are from; `told`, also where there are none."""
    if tuned:
        values = ", ".join(f"{name}={value}" for name, value in tuned.items())
        console.print(f"{_origin(algorithm, env_name, env)}: {values}")
    if not told:
        return
    if others := tuned_elsewhere(algorithm, env_name):
        name = Path(algorithm.__file__ or "").with_suffix(".toml").name
        console.print(f"no tuned settings: there is no {name}; {env_name} is in {others}")
    elif not tuned:
        console.print(f"no tuned settings for {env_name}: the defaults of the Config")
    if (fields := episode_fields(preset_file(algorithm))) and env.horizon is None:
        console.print(
            f"how many steps an episode of {env_name} takes is not known: one has to fit in {' and '.join(fields)}"
        )


def _origin(algorithm: ModuleType, env_name: str, env: Any) -> str:
    """What is said of the settings that the options start from."""
    file = preset_file(algorithm)
    found = settings(file, env_name)
    return origin(file, env_name) if found else f"default settings for {defaults_of(file, env)[1]}"


def tuned_settings(algorithm: ModuleType, env_name: str, sources: Sources, env: Any = None) -> dict[str, Any]:
    """What the options start from: settings for the environment or its kind, and those of the variant asked for."""
    file = preset_file(algorithm)
    tuned = settings(file, env_name) if env_name and sources.preset else {}
    if env is not None and sources.preset:
        tuned = (tuned or defaults_of(file, env)[0]) | of_episode(file, env)
    tuned = renamed(algorithm.Config, tuned)
    if unknown := tuned.keys() - {field.name for field in dataclasses.fields(algorithm.Config)}:
        raise ValueError(f"{file} sets {', '.join(sorted(unknown))} for {env_name}, and the Config has no such field")
    return tuned | (variant(algorithm, sources.variant) if sources.variant else {})


def tuned_elsewhere(algorithm: ModuleType, env_name: str) -> str:
    """For an algorithm without a TOML file: the files that ship with settings for the environment."""
    files = [] if preset_file(algorithm).exists() else sorted(shipped().glob("*.toml"))
    return ", ".join(file.name for file in files if settings(file, env_name))


def new_directory(algorithm_name: str, env_name: str, seed: int) -> Path:
    """The name of a new directory, by the clock; `owned` gives it a number where it is there already."""
    name = f"{short_name(algorithm_name)}-{env_name.replace('/', '-')}-{seed}-{time.strftime('%Y%m%d-%H%M%S')}"
    return Path("runs") / name


def assignments(flag: str, texts: tuple[str, ...]) -> dict[str, Any]:
    """`("a=1", "b=x")` as `{"a": 1, "b": "x"}`."""
    found = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not (name and equals):
            raise ValueError(f"{flag} {text}: give name=value")
        try:
            read = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            read = value
        whole = type(read) is float and "e" in value.lower() and read.is_integer()  # 1e3 is meant as 1000
        found[name] = int(read) if whole else read
    return found


def as_texts(values: dict[str, Any]) -> tuple[str, ...]:
    """What `_assignments` reads as these values."""
    return tuple(f"{name}={value!r}" for name, value in values.items())


def check_fields(config: type, options: type, prog: str) -> None:
    """Raises ValueError where a Config has a field with the name of an option, so that the flag would mean both."""
    names = [{field.name for field in dataclasses.fields(kind)} for kind in (config, options)]
    if same := sorted(names[0] & names[1]):
        raise ValueError(f"{prog}: Config.{same[0]} has the name of an option of the command: give the field another")


def check_seed(seed: int) -> None:
    if not 0 <= seed < 2**31:
        raise ValueError(f"--seed {seed}: give a number from 0 to 2^31 - 1")


def parse_options(options: type, arguments: list[str], prog: str, **how: Any) -> Any:
    """tyro's result; its errors as one line."""
    output = io.StringIO()
    try:
        with contextlib.redirect_stderr(output):
            return tyro.cli(options, args=arguments, prog=prog, registry=WHOLE_NUMBERS, **how)
    except SystemExit as stop:
        if not stop.code:
            raise
        text = re.sub(r"[│╭╮╰╯─]+|-{5,}", " ", output.getvalue())
        lines = [" ".join(line.split()) for line in text.splitlines()]
        lines = [line for line in lines if line and not line.startswith("For full helptext")]
        raise ValueError(" ".join(lines[1:] or lines) + f"; {prog} --help lists the options") from None


def _whole(text: str) -> int:
    """`100000`, `100_000` and `1e5` as an integer."""
    try:
        number = Decimal(text)
        if number.adjusted() < 19 and number == number.to_integral_value():
            return int(number)
    except ArithmeticError:
        pass
    raise ValueError(f"{text} is not a whole number")


WHOLE_NUMBERS = tyro.constructors.ConstructorRegistry()
numbers.Number.register(schedules.Schedule)  # as what tyro takes the default of a float field without a warning


@WHOLE_NUMBERS.primitive_rule
def _integer(info: tyro.constructors.PrimitiveTypeInfo) -> tyro.constructors.PrimitiveConstructorSpec | None:
    """How tyro reads every integer option."""
    if info.type is not int:
        return None
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="INT",
        instance_from_str=lambda texts: _whole(texts[0]),
        is_instance=lambda value: type(value) is int,
        str_from_instance=lambda value: [str(value)],
    )


@WHOLE_NUMBERS.primitive_rule
def _setting(info: tyro.constructors.PrimitiveTypeInfo) -> tyro.constructors.PrimitiveConstructorSpec | None:
    """How tyro reads the settings of an algorithm that are real numbers: they may be schedules.

    Their Config is the only class whose names have no prefix.
    """
    if info.type is not float or tyro.conf.OmitArgPrefixes not in info.markers:
        return None
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="FLOAT|SCHEDULE",
        instance_from_str=lambda texts: (
            schedules.parse(texts[0]) if schedules.is_written(texts[0]) else float(texts[0])
        ),
        is_instance=lambda value: isinstance(value, float | int | schedules.Schedule),
        str_from_instance=lambda value: [str(value)],
    )


def configure_jax(compile_cache: bool) -> None:
    """Full float32 products (TF32 changes what is learned), the compilation cache, and less looking for garbage."""
    jax.config.update("jax_default_matmul_precision", "float32")
    if compile_cache:
        cache = streams.cache_folder()
        if cache is None:
            print("rlx: compiled programs are not kept: the cache folder cannot be written", file=sys.stderr)
        else:
            jax.config.update("jax_compilation_cache_dir", str(cache))
            jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.02)
    # Tracing makes hundreds of thousands of objects that stay: to go through them again and again took up to a second.
    gc.set_threshold(50_000)
    atexit.register(gc.freeze)  # and most of another one before the process ends
