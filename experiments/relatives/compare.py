"""All relatives of GRPO after equal tokens: what is solved by one answer and by many, and what is forgotten for it.

    python experiments/relatives/compare.py
    python experiments/relatives/compare.py --task Sort --variant max_at_k

Trains every variant on every task with the same number of tokens and of gradient steps. The first policies of a task
are taught once, and all variants begin with them. Then the figure is drawn and the table of README.md written. What has
a result is left alone.

Solved shares are exact: the probability of a right answer is one pass of the policy over it, and Countdown, which has
several right answers, has all of its answers listed.
"""

import time
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np

import rlx
from rlx import relatives
from rlx.algorithm import load_algorithm
from rlx.devices.sharding import use_devices
from rlx.devices.spread import spread
from rlx.env import with_params
from rlx.envs.tasks.sequences import right_answers
from rlx.presets import preset
from rlx.report import experiment, interval
from rlx.rollout import reset

matplotlib.use("Agg")
import matplotlib.pyplot as plt

HERE = Path(__file__).resolve().parent
PACKAGES = ("rlx", "jax", "jaxlib", "flax", "optax")
KS = (1, 4, 16, 256)
LEAST = 1 / 256  # the probability from which on an answer belongs to what the policy can do
POINTS = 40  # of a curve


@dataclass(frozen=True)
class Task:
    env: str
    total_steps: int
    seeds: int = 5
    problems: int = 256  # fresh ones, that are looked at; 0 where answers cannot be listed
    variants: tuple[str, ...] = ()  # none: all
    without: tuple[str, ...] = ()  # of all
    settings: dict[str, Any] = field(default_factory=dict)
    params: dict[str, float] = field(default_factory=dict)


TASKS = {
    "Reverse": Task("rlx/Reverse", 150_000, without=("t_ppo",)),  # whose answers it cuts before they can pay
    "Sort": Task("rlx/Sort", 150_000, without=("t_ppo",)),
    "ModularAddition": Task("rlx/ModularAddition", 150_000, without=("spo_tree",)),  # answers of one token
    "Countdown": Task("rlx/Countdown", 150_000, problems=64, without=("t_ppo",)),
    # Made to show what single mechanisms claim.
    "Sort, hardly taught": Task(
        "rlx/Sort",
        150_000,
        variants=(
            *("dr_grpo", "max_at_k", "unlikely", "pope", "graded_hints", "pool"),
            *("replay", "chord", "chord_even", "hpt"),
        ),
        settings={"warm_start_accuracy": 0.02},
    ),
    "a quarter unpaid": Task(
        "rlx/ModularAddition", 150_000, variants=("pool", "vas"), settings={"num_groups": 64}, params={"unpaid": 0.25}
    ),
    "Sort, clips and masks": Task(
        "rlx/Sort", 150_000, variants=("grpo_symmetric", "grpo", "dapo_symmetric", "dapo"), settings={}
    ),
    "Guess": Task(
        "rlx/Guess",
        150_000,
        problems=0,
        variants=("grpo", "rtg", "gigpo", "salt"),
        settings={"num_steps": 8, "warm_start_accuracy": 0.02, "warm_start_steps": 100},
    ),
}


@dataclass(frozen=True)
class Claim:
    """That a variant is ahead of another one on a task, by one quantity of the final policy."""

    what: str
    task: str
    ahead: str
    behind: str
    quantity: str


CLAIMS = (
    Claim("max@k: more is solved by the best of many", "Sort, hardly taught", "max_at_k", "dr_grpo", "pass_256"),
    Claim("max@k: more is solved by the best of many", "Countdown", "max_at_k", "dr_grpo", "pass_256"),
    Claim("unlikeliness: more is solved by the best of many", "Countdown", "unlikely", "dr_grpo", "pass_256"),
    Claim("unlikeliness: more is solved by the best of many", "Sort, hardly taught", "unlikely", "dr_grpo", "pass_256"),
    Claim("POPE: hard problems are gained", "Sort, hardly taught", "pope", "dr_grpo", "gained"),
    Claim("a success that comes back: more is solved", "Sort, hardly taught", "replay", "pool", "pass_1"),
    Claim("CHORD: unsure tokens alone teach more", "Sort, hardly taught", "chord", "chord_even", "pass_1"),
    Claim("SPO's tree: parts of answers teach more", "Sort", "spo_tree", "dr_grpo", "pass_1"),
    Claim("VAS: more is solved after as many tokens", "a quarter unpaid", "vas", "pool", "pass_1"),
    Claim("polychromic: more of the right answers are in use", "Countdown", "polychromic", "dr_grpo", "right_answers"),
    Claim("DAPO: a higher upper clip keeps entropy", "Sort, clips and masks", "grpo", "grpo_symmetric", "entropy"),
    Claim("DAPO: without groups that agree more is solved", "Sort, clips and masks", "dapo", "grpo", "pass_1"),
    Claim("GiGPO: steps from equal states teach more", "Guess", "gigpo", "grpo", "pass_1"),
)
# The algorithm of each variant and its settings.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {name: ("grpo_tokens", v) for name, v in relatives.VARIANTS.items()}
VARIANTS |= {
    "dhpo": ("grpo_tokens+DHPO", relatives.VARIANTS["grpo"]),
    "vas": ("grpo_tokens", {"pool": 256, "sampler": "variance"}),
    "pope": ("grpo_tokens", {"given": 4}),
    "pool": ("grpo_tokens", {"pool": 256}),
    "grpo_symmetric": ("grpo_tokens", relatives.VARIANTS["grpo"] | {"clip_high": 0.2}),
    "dapo_symmetric": ("grpo_tokens", relatives.VARIANTS["dapo"] | {"clip_high": 0.2}),
    "hpt": ("grpo_tokens", relatives.VARIANTS["grpo"] | {"gate": 0}),
    "graded_hints": ("grpo_tokens", {"pool": 256, "given": 4, "graded": True}),
    "replay": ("grpo_tokens", {"pool": 256, "replay": True}),
    "chord": ("grpo_tokens", relatives.VARIANTS["grpo"] | {"shown": "uncertain", "mix": 0.9, "mix_end": 0.05}),
    "chord_even": ("grpo_tokens", relatives.VARIANTS["grpo"] | {"shown": "even", "mix": 0.9, "mix_end": 0.05}),
    "spo_tree": ("grpo_tokens", {"credit": "tree", "baseline": "none", "branches": (2, 2, 2)}),
}
ARMS = ("pool", "grpo_symmetric", "dapo_symmetric", "chord_even")  # of single claims only
for _name in ("pairs_tokens", "ppo_tokens"):
    VARIANTS |= {name: (_name, v) for name, v in load_algorithm(_name).VARIANTS.items()}


def configured(task: Task, algorithm: ModuleType, changes: dict[str, Any]) -> Any:
    """The Config of a variant: as many answers an update as the task's settings have, and as many gradient steps.

    A*-PO alone keeps its one gradient step an update: with more it unlearns.
    """
    sizes = preset(load_algorithm("grpo_tokens"), task.env)
    if changes.get("loss") != "a_star_po":
        changes = changes | {"num_epochs": sizes.num_epochs, "num_minibatches": sizes.num_minibatches}
    if "group_size" in changes:
        members = changes["group_size"] + changes.get("num_reference", 0)
        num_groups = sizes.num_episodes // members
        changes = changes | {"num_groups": num_groups - num_groups % sizes.num_minibatches}
    if "num_steps" in changes:  # answers that are cut: none is longer than the task's
        changes = changes | {"num_steps": min(changes["num_steps"], sizes.num_steps)}
    return preset(algorithm, task.env, total_steps=task.total_steps, **changes | task.settings)


def right(env: rlx.Env, start: rlx.EnvState) -> tuple[jax.Array, jax.Array]:
    """Answers to problems `[N]`, tokens `[N, C, A]`, and which of them are right, bool `[N, C]`."""
    environment: Any = env.environment
    if hasattr(env.params, "count"):
        return jax.vmap(right_answers)(start.obs[:, : environment.prompt_size])
    answer = jax.vmap(environment.right_answer, (0, None))(start.state, env.params)[:, None]
    return answer, jnp.ones(answer.shape[:2], bool)


def probabilities(algorithm: ModuleType, config: Any, env: rlx.Env, state: Any, key: jax.Array, num: int) -> jax.Array:
    """Of each right answer to `num` fresh problems, `[N, C]`; 0 of the others."""
    environment: Any = env.environment
    start = reset(env, key, num)
    answer, chosen = right(env, start)
    prompt = jnp.broadcast_to(
        start.obs[:, None, : environment.prompt_size], (*answer.shape[:2], environment.prompt_size)
    )
    tokens = jnp.concatenate([prompt, answer], axis=-1).reshape(-1, prompt.shape[-1] + answer.shape[-1])
    written = answer.reshape(len(tokens), -1)
    whole = rlx.replace(config, num_steps=written.shape[1])
    log_prob = algorithm.answers(whole, env, state.params, tokens).log_prob(written - 1)
    total = jnp.where(written > 0, log_prob, 0.0).sum(axis=-1).reshape(chosen.shape)
    return jnp.where(chosen, jnp.exp(total), 0.0)


def solved(p: jax.Array) -> dict[str, jax.Array]:
    """Exact shares that are solved by the best of k answers, and how many right answers there are in effect.

    The latter is `exp H` of the right answers among themselves, the mean over the problems that are solved with a
    probability of at least `LEAST`.
    """
    of_problem = jnp.minimum(p.sum(axis=1), 1.0)
    q = p / jnp.maximum(of_problem, 1e-12)[:, None]
    effective = jnp.exp(-jnp.where(q > 0, q * jnp.log(jnp.where(q > 0, q, 1.0)), 0.0).sum(axis=1))
    can = of_problem >= LEAST
    found = {f"pass_{k}": (1.0 - (1.0 - of_problem) ** k).mean() for k in KS}
    return found | {"right_answers": (effective * can).sum() / jnp.maximum(can.sum(), 1)}


def taught(key, config, env, algorithm: ModuleType):
    """One seed: the first actor."""
    return algorithm.init(config, env, jax.random.split(key, 3)[0]).params["actor"]


def trained(each, config, env, algorithm: ModuleType):
    """One seed: the last actor and metrics on the way, from an actor that is taught."""
    key, actor = each
    state = algorithm.init(config, env, jax.random.split(key, 3)[0])
    state = replace(state, params=state.params | {"actor": actor}, reference=state.reference | {"actor": actor})
    state, metrics = rlx.resume(algorithm, config, env, state, num_updates=rlx.total_updates(config))
    kept = ("episode_return", "entropy", "degenerate_fraction")
    return state.params["actor"], {name: metrics[name] for name in kept if name in metrics}


def judged(each, config, env, algorithm: ModuleType, num: int):
    """One seed: how good an actor is, and its probabilities of right answers to `num` problems; none where it is 0."""
    key, actor = each
    init_key, problem_key, play_key = jax.random.split(key, 3)
    state = replace(algorithm.init(config, env, init_key), params={"actor": actor})
    greedy = rlx.evaluate(algorithm, config, env, state, play_key, num_episodes=256)
    found = {"greedy": greedy.reported["success"].mean()}
    if not num:  # the mean return of the policy as it acts
        played = rlx.evaluate(algorithm, config, env, state, play_key, num_episodes=1024, deterministic=False)
        return found | {"pass_1": played.returns.mean()}, jnp.zeros((0, 0))
    p = probabilities(algorithm, config, env, state, problem_key, num)
    return found | solved(p), p


class Start:
    """What the variants of a task have in common: first actors that are taught once, and one program that judges."""

    def __init__(self, task: Task, env: rlx.Env, keys: jax.Array, short: bool):
        algorithm = load_algorithm("grpo_tokens")
        config = configured(task, algorithm, {"warm_start_steps": 10} if short else {})
        self.keys, self.env, self.config = keys, env, rlx.replace(config, warm_start_steps=0)
        self.program = spread(partial(judged, algorithm=algorithm, num=task.problems))
        self.actors = spread(partial(taught, algorithm=algorithm))(keys, config, env)
        self.found, self.p = self.judge(self.actors)

    def judge(self, actors: Any) -> tuple[dict[str, np.ndarray], np.ndarray]:
        return jax.device_get(self.program((self.keys, actors), self.config, self.env))


def measure(task: Task, name: str, short: bool, starts: dict[str, Start]) -> dict[str, Any]:
    """All seeds of a variant on a task; the result as it is written to its file. `starts` are kept for the others."""
    algorithm, changes = load_algorithm(VARIANTS[name][0]), VARIANTS[name][1]
    env = with_params(rlx.envs.make(task.env), task.params)
    config = configured(task, algorithm, changes)
    algorithm.check(config, env)
    config = rlx.replace(config, warm_start_steps=0)
    keys = jax.vmap(jax.random.key)(np.arange(task.seeds))
    of = str((task.env, task.settings, task.params))
    start = starts[of] = starts.get(of) or Start(task, env, keys, short)
    program = spread(partial(trained, algorithm=algorithm)).lower((keys, start.actors), config, env).compile()
    started = time.process_time()  # of all cores, whatever else they do
    actors, metrics = jax.device_get(program((keys, start.actors), config, env))
    seconds = time.process_time() - started
    last, p = start.judge(actors)
    if task.problems:
        could, can = start.p >= LEAST, p >= LEAST
        share = lambda some, of: some.sum(axis=(1, 2)) / np.maximum(of.sum(axis=(1, 2)), 1)
        last |= {"kept": share(could & can, could), "gained": share(can & ~could, start.p > 0)}
    num_updates = rlx.total_updates(config)
    edges = np.linspace(0, num_updates, min(POINTS, num_updates) + 1).astype(int)
    stretches = lambda x: np.add.reduceat(x, edges[:-1], axis=1) / np.diff(edges)
    return {
        "env": task.env,
        "steps": rlx.steps_taken(config, num_updates),
        "gradient_steps": num_updates * config.num_epochs * config.num_minibatches,
        "run_seconds": seconds,
        "seeds": list(range(task.seeds)),
        "first": {name: x.tolist() for name, x in start.found.items()},
        "last": {name: x.tolist() for name, x in last.items()},
        "entropy": metrics["entropy"][:, edges[-2] :].mean(axis=1).tolist(),
        "curve": {
            "steps": [rlx.steps_taken(config, int(edge)) for edge in edges[1:]],
            **{name: np.round(stretches(x).mean(axis=0), 4).tolist() for name, x in metrics.items()},
        },
        "config": asdict(config),
        "versions": {package: version(package) for package in PACKAGES},
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
    }


def draw(results: dict[tuple[str, str], dict], path: Path) -> None:
    """A column a task, a row a variant: what is solved with one answer, with 16, and of what could be done is kept."""
    tasks = list(dict.fromkeys(task for task, _ in results))
    names = [name for name in VARIANTS if any(name == of for _, of in results)]
    size = {"figsize": (3.4 * len(tasks), 0.17 * len(names) + 2.5), "layout": "constrained", "squeeze": False}
    figure, panels = plt.subplots(1, len(tasks), sharey=True, **size)
    shown = {
        "pass_1": ("pass@1", "tab:blue", "o"),
        "pass_16": ("pass@16", "tab:orange", "s"),
        "kept": ("kept", "tab:green", "|"),
    }
    for axes, task in zip(panels[0], tasks, strict=True):
        for place, name in enumerate(reversed(names)):
            if (task, name) not in results:
                continue
            last = results[task, name]["last"]
            for key, (label, color, mark) in ((key, how) for key, how in shown.items() if key in last):
                found = interval([np.array(last[key])])
                axes.plot([found["low"], found["high"]], [place, place], color=color, lw=1, alpha=0.6)
                axes.plot(found["value"], place, mark, color=color, ms=4, label=label)
        first = next(result for (of, _), result in results.items() if of == task)["first"]
        for key in (key for key in ("pass_1", "pass_16") if key in first):
            axes.axvline(np.mean(first[key]), color=shown[key][1], ls=":", lw=1)
        axes.set(title=task, xlim=(-0.02, 1.02), xlabel="share")
        axes.grid(alpha=0.3)
    panels[0, 0].set_yticks(range(len(names)), reversed(names), fontsize=7)
    marks = dict(zip(*reversed(panels[0, 0].get_legend_handles_labels()), strict=True))
    figure.legend(marks.values(), marks.keys(), loc="outside lower center", ncols=3)
    figure.savefig(path, dpi=80)
    plt.close(figure)


def table(results: dict[tuple[str, str], dict]) -> str:
    """Shares in Markdown: a row a task and a variant, and one for the first policies of each task."""
    columns = ["pass@1 [95 %]", *(f"pass@{k}" for k in KS[1:]), "right answers", "kept", "gained", "entropy", "time"]
    lines = [["task", "variant", "tokens", "gradient steps", *columns], ["---", "---", *["--:"] * (2 + len(columns))]]
    share = lambda found, key: f"{np.mean(found[key]):.1%}" if key in found else ""

    def row(task, name, steps, num_gradients, found, rest):
        estimate = "{value:.1%} [{low:.1%}, {high:.1%}]".format(**interval([np.array(found["pass_1"])]))
        several = f"{np.mean(found['right_answers']):.2f}" if "right_answers" in found else ""
        solved = [estimate, *(share(found, f"pass_{k}") for k in KS[1:]), several]
        return [task, name, f"{steps:,}", f"{num_gradients:,}", *solved, *rest]

    told = set()
    for (task, name), result in results.items():
        if task not in told:
            lines.append(row(task, "*first policy*", 0, 0, result["first"], ["", "", "", ""]))
            told.add(task)
        base = results.get((task, "grpo"), result)["run_seconds"] / results.get((task, "grpo"), result)["steps"]
        last = result["last"]
        rest = [share(last, "kept"), share(last, "gained"), f"{np.mean(result['entropy']):.2f}"]
        rest.append(f"{result['run_seconds'] / result['steps'] / base:.2f}")
        lines.append(row(task, f"`{name}`", result["steps"], result["gradient_steps"], last, rest))
    return "".join(f"| {' | '.join(line)} |\n" for line in lines) + verdicts(results)


def verdicts(results: dict[tuple[str, str], dict]) -> str:
    """What came of the claims whose two variants are measured: the difference of a seed, with its interval."""
    lines = [
        ["claim", "task", "ahead", "behind", "quantity", "difference [95 %]", "held"],
        [*["---"] * 5, "--:", "---"],
    ]
    for claim in CLAIMS:
        pair = [results.get((claim.task, name)) for name in (claim.ahead, claim.behind)]
        if None in pair:
            continue
        of = lambda result, key=claim.quantity: np.array(result[key] if key in result else result["last"][key])
        found = interval([of(pair[0]) - of(pair[1])])
        held = "yes" if found["low"] > 0 else "no, the reverse" if found["high"] < 0 else "not seen"
        estimate = "{value:.3f} [{low:.3f}, {high:.3f}]".format(**found)
        names = [f"`{claim.ahead}`", f"`{claim.behind}`", claim.quantity]
        lines.append([claim.what, claim.task, *names, estimate, held])
    return "\n" + "".join(f"| {' | '.join(line)} |\n" for line in lines) if len(lines) > 2 else ""


def main(
    task: Literal[*TASKS] | None = None,
    variant: Literal[*VARIANTS] | None = None,
    short: bool = False,
    runs: Path = Path("runs/relatives"),
) -> None:
    """Measures what has no result yet, then draws the figure and writes the table.

    Args:
        task: only this one.
        variant: only this one.
        short: an update of two seeds, hardly taught, to see that everything works; all of it stays below `runs`.
        runs: where a short try writes.
    """
    use_devices()
    starts: dict[str, Start] = {}

    def run(case):
        chosen = TASKS[case[0]]
        if short:
            chosen = replace(chosen, total_steps=1, seeds=2, problems=min(chosen.problems, 8))
        return {"task": case[0], "variant": case[1]} | measure(chosen, case[1], short, starts)

    general = [name for name in VARIANTS if name not in ARMS]
    all_of = lambda t: TASKS[t].variants or [name for name in general if name not in TASKS[t].without]
    measured = {t: [name for name in VARIANTS if name in all_of(t)] for t in TASKS}
    file = lambda t: t.replace(", ", "-").replace(" ", "-")
    cases = {(t, v): f"{file(t)}-{v}" for t, names in measured.items() for v in names}
    only = lambda case: task in (None, case[0]) and variant in (None, case[1])
    experiment(runs if short else HERE, cases, run, draw, table, only)


if __name__ == "__main__":
    import tyro

    tyro.cli(main)
