"""Writes the tables of the README and of pages in docs/ from the results of the benchmarks.

    python benchmarks/tables.py
    python benchmarks/tables.py --check

A table stands between `<!-- table: NAME -->` and `<!-- end -->`, for the names in `NAMES`; the rest is left alone.
"""

import json
import re
import sys
from pathlib import Path
from statistics import median

from provenance import RESULTS, ROOT
from speed import rows

from rlx.mechanisms import MECHANISMS
from rlx.report import fill

NAMES = ("algorithms", "communication", "decoding", "flow", "lifetimes", "physics", "returns", "scaling", "shuffling")
NAMES += ("speed", "sweeps", "roofline", "shell", "hours", "switches", "annealing", "defaults", "streaming")
NAMES += ("streaming-speed",)
NAMES += (
    "bridge",
    "dynamics",
    "stable-baselines3",
    "deploy",
    "hosts",
    "suites",
    "suites-returns",
    "suites-not-judged",
    "suites-refused",
    "mechanisms",
)
PAGES = ("benchmarks", "compiler", "mechanisms", "settings")
PAGES += tuple(
    f"guides/{name}"
    for name in (
        "deployment",
        "devices",
        "discovery",
        "gymnasium",
        "robots",
        "sequences",
        "streaming",
        "suites",
        "sweeps",
    )
)
FAMILIES = {
    "policy gradients": ("ppo", "ppo_recurrent", "trpo", "mdpo", "reppo", "pathwise", "vmpo", "props", "reinforce"),
    "policies made in several steps": ("dppo", "fpo", "policyflow"),
    "groups": ("grpo", "grpo_recurrent", "grpo_tokens", "pairs_tokens", "ppo_tokens"),
    "values of actions": ("dqn", "pqn", "pqn_recurrent", "sqirl"),
    "off-policy actor, critic": (
        *("sac", "sac_discrete", "ddpg", "fast_td3", "tqc", "redq", "crossq", "mdpo_offpolicy", "dsrl"),
    ),
    "from data": ("iql", "td3_bc", "cql", "rlpd", "expo"),
    "streams, one step at a time": ("stream_ac", "stream_q", "avg"),
    "several agents, games": ("mappo", "ppo_selfplay", "gumbel_muzero"),
    "levels, learned rules": ("ppo_levels", "lpg"),
    "evolution": ("es",),
}
DOCUMENTS = (ROOT / "README.md", *(ROOT / "docs" / f"{name}.md" for name in PAGES))


def markdown(header: list[str], body: list[tuple[str, ...]], num_text: int) -> str:
    """A Markdown table; columns after the first `num_text` are aligned to the right."""
    rule = ["---"] * num_text + ["--:"] * (len(header) - num_text)
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (header, rule, *body))


def with_interval(estimate: dict[str, float]) -> str:
    return "{value:.1f} [{low:.1f}, {high:.1f}]".format(**estimate)


def bar_text(bar: dict | None, num_seeds: int) -> str:
    """What was asked for, and how it came out."""
    if bar is None:
        return "none"
    verdict = "reached" if bar["passed"] else "missed"
    if "seeds" in bar:
        return f"{bar['at_least']} on {bar['seeds']} of {num_seeds} seeds: {verdict} ({bar['reached']})"
    return f"mean {bar['at_least']}: {verdict}"


def returns_table(results: list[dict], peers: list[dict] = ()) -> str:
    """What was reached, and what peers have come to on the same task and settings in as many steps."""
    header = ["task", "algorithm", "steps", "seeds", "mean return [95 %]", "interquartile mean [95 %]", "at least"]
    theirs = {(peer["task"], peer["algorithm"]): with_interval(peer["mean"]) for peer in peers}
    body = [
        (
            r["task"],
            r["algorithm"],
            f"{r['steps']:,}" + (f", {r['alive_steps']:,.0f} alive" if "alive_steps" in r else ""),
            str(len(r["seeds"])),
            with_interval(r["mean"]),
            with_interval(r["iqm"]),
            bar_text(r["bar"], len(r["seeds"])),
            *([theirs.get((r["task"], r["algorithm"]), "")] if peers else []),
        )
        for r in results
    ]
    return markdown(header + ["mean return of Rejax [95 %]"] * bool(peers), body, num_text=2)


def suites_returns_table(results: list[dict]) -> str:
    """What was reached in other suites, and what the first policies come to, which are near to random moves."""
    show = lambda estimate: "{value:.3g} [{low:.3g}, {high:.3g}]".format(**estimate)
    header = ["task", "algorithm", "steps", "seeds", "mean return [95 %]", "before training", "success"]
    body = []
    for r in results:
        success = next((show(r["reported"][name]) for name in ("success", "win") if name in r["reported"]), "")
        options = ", ".join(f"{name}={value}" for name, value in r["options"].items())
        name = f"`{r['env']}`" + (f", {options}" if options else "")
        seeds, played = str(len(r["seeds"])), ", by samples" if r.get("sampled") else ""
        cells = f"{r['steps']:,}", seeds, show(r["mean"]) + played, show(r["untrained"]), success
        body.append((name, r["algorithm"], *cells))
    return markdown(header, body, num_text=2)


def hours_table(result: dict) -> str:
    """What single runs came to, and what is published."""
    header = ["task", "steps", "hours", "mean return [95 %]", "published", "its steps", "where"]
    body = [
        (
            ", ".join([r["task"], *(option.partition("=")[2] for option in r["options"])]),
            f"{r['steps']:,}",
            f"{r['hours']:.1f}",
            with_interval(r["return"]),
            f"{r['published']['return']:.1f}",
            f"{r['published']['steps']:,}",
            r["published"]["source"],
        )
        for r in result["tasks"]
    ]
    return markdown(header, body, num_text=1)


def speed_table(result: dict) -> str:
    return markdown(["case", "beside", "quantity", "rlx", "the other", "ratio", "aim"], rows(result), num_text=3)


def decoding_table(result: dict) -> str:
    """What the cache is worth, how much of an update is writing, and what reading prompts once is worth to it."""
    header = ["tokens of an answer", "parameters", "tokens/s with the cache", "without", "with / without"]
    header += ["share of an update", "tokens/s of updates", "prompts read once", "once / apart"]
    span = lambda x, form: f"{x['median']:{form}} [{x['low']:{form}}, {x['high']:{form}}]"
    body = [
        (
            str(case["answer_tokens"]),
            f"{case['num_params']:,}",
            f"{case['tokens_per_second']['cached']:,.0f}",
            f"{case['tokens_per_second']['uncached']:,.0f}",
            span(case["speedup"], ".1f"),
            span(case["share_of_writing"], ".0%"),
            f"{case['tokens_per_second']['update']:,.0f}",
            f"{case['tokens_per_second']['update_together']:,.0f}",
            span(case["speedup_together"], ".2f"),
        )
        for case in result["cases"]
    ]
    return markdown(header, body, num_text=0)


def flow_table(result: dict) -> str:
    """Steps/s of policies that are made in several steps, over those of a Gaussian."""
    body = []
    for name, found in result["over_ppo"].items():
        ratio = f"{median(found):.2f} [{min(found):.2f}, {max(found):.2f}]"
        body.append((name, f"{median(result['steps_per_second'][name]):,.0f}", ratio))
    return markdown(["policy", "steps/s", "over PPO's"], body, num_text=1)


def lifetimes_table(result: dict) -> str:
    """Whole trainings a second by how many of them are one program."""
    steps, body = result["sizes"]["total_steps"], []
    for num, found in result["over_first"].items():
        speed = median(result["lifetimes_per_second"][num])
        ratio = f"{median(found):.1f} [{min(found):.1f}, {max(found):.1f}]"
        body.append((num, f"{speed:.1f}", f"{speed * steps:,.0f}", ratio))
    return markdown(["lifetimes at once", "lifetimes/s", "steps/s", "over one"], body, num_text=0)


def physics_table(result: dict) -> str:
    """Control steps/s of bare physics at several numbers of environments, and what it takes of training."""
    numbers = list(result["cases"][0]["speeds"])
    header = ["task", "steps of physics in one", *(f"steps/s at {int(n):,}" for n in numbers)]
    header += ["over its own wrapper", "over MuJoCo in C", "share of physics in training"]
    body = []
    for case in result["cases"]:
        speeds = [case["speeds"][n] for n in numbers]
        ratios = [
            [speed["steps_per_second"] / speed[name] for speed in speeds if name in speed]
            for name in ("own_wrapper", "in_c")
        ]
        share, envs = case["training"]["share_of_physics"], case["training"]["num_envs"]
        cells = (f"{speed['steps_per_second']:,.0f}" for speed in speeds)
        others = (f"{min(found):.2f} to {max(found):.2f}" if found else "" for found in ratios)
        body.append((case["case"], str(case["physics_steps"]), *cells, *others, f"{share['median']:.0%} at {envs}"))
    return markdown(header, body, num_text=1)


def roofline_table(result: dict) -> str:
    """What an update counts to, what of its time the ceilings would take for that, and where the time goes."""
    ceilings, body = result["ceilings"], []
    names = list(result["cases"][0]["shares"])
    for case in result["cases"]:
        bounds = (
            case["operations"] / ceilings["layers_flops"],
            case["bytes"] / ceilings["copy_bytes_per_second"],
            case["kernels"] * ceilings["seconds_per_kernel"],
        )
        counts = f"{case['operations'] / case['steps'] / 1e6:.2f}", f"{case['bytes'] / case['steps'] / 1e3:,.0f}"
        cells = (f"{x / case['seconds']:.0%}" for x in bounds)
        shares = (f"{case['shares'][name]:.0%}" for name in names)
        body.append((case["case"], *counts, f"{case['kernels']:,.0f}", *cells, *shares))
    header = ["case", "MFLOP a step", "kB a step", "kernels an update", "operations at their ceiling"]
    header += ["bytes at theirs", "kernels at theirs", *names]
    return markdown(header, body, num_text=1)


def shell_table(result: dict) -> str:
    """Seconds from the shell to the exit."""
    body = []
    for case in result["cases"]:
        ours, theirs = case["seconds"]["rlx"], case["seconds"]["the other"]
        ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
        ratio = f"{median(ratios):.2f} [{min(ratios):.2f}, {max(ratios):.2f}]"
        verdict = "reached" if median(ratios) <= case["at_most"] else "missed"
        cells = f"{median(ours):.1f}", f"{median(theirs):.1f}", ratio, f"at most {case['at_most']:g}: {verdict}"
        body.append((case["case"], case["beside"], *cells))
    return markdown(["what", "beside", "rlx, s", "the other, s", "ratio", "aim"], body, num_text=2)


def scaling_table(result: dict) -> str:
    """Steps/s on several devices over those on one, by the number of environments."""
    counts = sorted({n for case in result["cases"] for n in case["over_one"]} - {"1"}, key=int)
    body = []
    for case in result["cases"]:
        ratios = [case["over_one"].get(n) for n in counts]
        cells = (f"{median(x):.2f} [{min(x):.2f}, {max(x):.2f}]" if x else "" for x in ratios)
        body.append((case["case"], f"{case['num_envs']:,}", f"{median(case['steps_per_second']['1']):,.0f}", *cells))
    return markdown(["run", "environments", "steps/s on one", *(f"on {n}, over one" for n in counts)], body, num_text=1)


def shuffling_table(result: dict) -> str:
    """What shuffling within the blocks of the devices saves."""
    found = result["shuffling"]
    kinds = sorted({kind for sent in found["bytes"].values() for kind in sent})
    ratio = f"{median(found['over_any']):.2f} [{min(found['over_any']):.2f}, {max(found['over_any']):.2f}]"
    last = {"within blocks": ratio, "of any elements": "1"}
    body = [(name, *(f"{sent.get(kind, 0):,}" for kind in kinds), last[name]) for name, sent in found["bytes"].items()]
    return markdown(["minibatches", *(f"bytes, {kind}" for kind in kinds), "steps/s"], body, num_text=1)


def communication_table(result: dict) -> str:
    """The paper estimate, in shares of an update."""
    counts = list(next(iter(result["workloads"].values()))["share"])
    header = ["run", "bytes of a gradient", "gradient steps", "ms of computing", *(f"{int(n):,}" for n in counts[1:])]
    body = [
        (
            name,
            f"{found['gradient_bytes']:,}",
            str(found["gradient_steps"]),
            f"{found['compute_ms']:.1f}",
            *(f"{found['communication_ms'][n]:.2f} ({found['share'][n]:.0%})" for n in counts[1:]),
        )
        for name, found in result["workloads"].items()
    ]
    return markdown(header, body, num_text=1)


def sweeps_table(sweeps: dict, kills: dict) -> str:
    """What sweeps cost and find, and what survives."""
    lanes, grid, memory, halving = (sweeps[part] for part in ("lanes", "grid", "memory", "halving"))
    cores = [m["cores_used"] for m in lanes["measurements"]["rlx_lanes"]]
    swept, apart, peak = grid["sweep"], grid["processes"], memory["peak_memory_bytes"]
    found = [r["share"] for r in halving["repetitions"]]
    steps = [r["steps_share"] for r in halving["repetitions"]]
    training, sweep = (f"{kills[case]['survived']} of {kills[case]['trials']}" for case in ("training", "sweep"))
    body = [
        (
            f"{lanes['settings']['num_lanes']} seeds in one program, steps/s over those of Rejax's vmap",
            f"{median(lanes['ratios']):.2f} [{min(lanes['ratios']):.2f}, {max(lanes['ratios']):.2f}], "
            f"{median(cores):.1f} of {lanes['machine']['cpus']} cores in use",
        ),
        (
            f"one command of {swept['lanes']} lanes in {swept['programs']} programs, wall time",
            f"{swept['wall_seconds']:.0f} s; as {len(apart['seconds'])} processes, one after another, "
            f"{apart['wall_seconds']:.0f} s: {grid['ratio']:.1f} times as long",
        ),
        ("its peak memory", f"{swept['peak_memory_bytes'] / 2**20:,.0f} MiB"),
        ("peak memory of 8 lanes of 1000 updates over that of 10 updates", f"{peak['1000'] / peak['10']:.2f}"),
        (
            f"halving by 3: return of the found over that of the best of the grid, {len(found)} repetitions",
            f"{', '.join(f'{share:.2f}' for share in found)}, for {median(steps):.0%} of the steps",
        ),
        ("trainings killed at random moments that end bitwise as if never stopped", training),
        ("the same of sweeps", sweep),
    ]
    return markdown(["quantity", "measured"], body, num_text=2)


def annealing_table(result: dict) -> str:
    """Returns with and without annealing, beside Rejax with the same settings and with the best of a grid."""
    show = lambda one: f"{one['mean']['value']:.1f} [{one['mean']['low']:.1f}, {one['mean']['high']:.1f}]"
    body = []
    for name, found in result["tasks"].items():
        best = found["best"]
        rate, clip = f"{best['learning_rate']:.3g}", f"{best['max_grad_norm']:g}"
        ours = (show(found["rlx"][title]) for title in ("annealed", "constant"))
        body.append((name, *ours, show(found["rejax"][0]), show(best), f"learning rate {rate}, clip {clip}"))
    header = ["task", "rlx, annealed", "rlx, constant", "Rejax, same settings", "Rejax, best of its grid", "which"]
    return markdown(header, body, num_text=1)


def bridge_table(result: dict) -> str:
    """Microseconds that a step of all environments takes, by their number."""
    body = [(f"{r['num_envs']:,}", r["library"], f"{r['microseconds']:.0f}") for r in result["timings"]]
    return markdown(["environments", "library", "a step of all, µs"], body, num_text=2)


def hosts_table(result: dict) -> str:
    """Training on the host as a share of its vectors with random actions."""
    body = [
        (
            name,
            str(case["settings"]["num_envs"]),
            f"{case['steps_per_second']['bare']:,.0f}",
            *(f"{case['ratio']['wall'][side]:.2f}" for side in ("collecting", "training", "overlapping")),
            *(f"{case['ratio']['cpu'][side]:.2f}" for side in ("collecting", "training")),
        )
        for name, case in result["cases"].items()
    ]
    header = ["environment", "N", "steps a second, random", "acting", "training", "overlapped"]
    header += ["acting, of processor time", "training, of processor time"]
    return markdown(header, body, num_text=1)


def dynamics_table(result: dict) -> str:
    """How far Gymnasium's tasks and gymnax's of the same name are apart, in both number types of gymnax."""
    body = []
    for number, found in (("float32", result["dynamics"]), ("float64", result["dynamics_float64"])):
        for r in found:
            one, all_ = r["step"], r["episode"]
            ends = f"{100 * min(one['same_end'], all_['same_end']):.0f} %"
            largest = (one["obs"], one["reward"], all_["obs"]["max"], all_["return"]["max"])
            body.append((r["task"], number, *(f"{x:.1g}" for x in largest), f"{all_['return']['median']:.1g}", ends))
    header = ["task", "gymnax in", "observation", "reward", "last observation", "return", "return, median", "same ends"]
    return markdown(header, body, num_text=2)


def deploy_table(result: dict) -> str:
    """Deployed policies: sizes, differences, returns in Gymnasium beside those in rlx, and the time of a step."""
    body = [
        (
            *(r["algorithm"], r["env"], r["target"], f"{r['bytes'] / 1000:.0f}", f"{r['largest_difference']:.1g}"),
            f"{r['mean_return']:.1f}, {r['mean_return_rlx']:.1f}",
            *(f"{r[name]} of {result['episodes']}" for name in ("equal_returns_in_rlx", "equal_returns")),
            *(f"{r['return_difference']:.2g}", f"{r['microseconds']:.0f}, {r['microseconds_rlx']:.0f}"),
        )
        for r in result["rows"]
    ]
    header = ["algorithm", "task", "form", "kB", "largest difference of actions", "mean return in Gymnasium, in rlx"]
    header += [
        "returns equal to 0.1 %, in rlx",
        "in Gymnasium",
        "largest difference there",
        "a step, `rlx.load().act`, µs",
    ]
    return markdown(header, body, num_text=3)


def sb3_table(result: dict) -> str:
    """Mean returns of the agents of Stable-Baselines3, seed by seed, and the time of a training."""
    body = [
        (name, ", ".join(f"{x:.0f}" for x in found), f"{sum(found) / len(found):.0f}", f"{result['seconds'][name]:.0f}")
        for name, found in result["returns"].items()
    ]
    return markdown(["CartPole of", "mean return of each seed", "mean", "seconds"], body, num_text=2)


def defaults_table(result: dict) -> str:
    """Mean returns of the seeds with the defaults of the Config and with those for the kind of environment."""
    show = lambda returns: ", ".join(f"{x:.0f}" for x in returns)
    body = [
        (name, task, f"{found['total_steps']:,}", show(found["config_defaults"]), show(found["defaults_of_the_kind"]))
        for name, tasks in result["algorithms"].items()
        for task, found in tasks.items()
    ]
    return markdown(["algorithm", "task", "steps", "defaults of the Config", "defaults of the kind"], body, num_text=2)


def streaming_table(result: dict) -> str:
    """Returns of streams after training, and without each of their parts."""
    body = [
        (
            name,
            r["env"].partition("/")[2],
            f"{r['steps']:,}",
            str(len(r["returns"])),
            with_interval(r["mean"]),
            f"{median(r['returns']):.0f}",
        )
        for name, r in result["cases"].items()
    ]
    return markdown(["what", "task", "steps", "seeds", "mean return [95 %]", "median"], body, num_text=2)


def streaming_speed_table(result: dict) -> str:
    """Environment steps a second of all lanes together, beside a loop in numpy."""
    span = lambda x, form: f"{median(x):{form}} [{min(x):{form}}, {max(x):{form}}]"
    body = [
        (
            name,
            r["env"].partition("/")[2],
            " x ".join(map(str, r["hidden_sizes"])),
            str(r["num_lanes"]),
            *(span(r["wall"][part], ",.0f") for part in ("lanes", "loop")),
            *(span(r[kind]["ratios"], ".0f") for kind in ("wall", "cpu")),
        )
        for name, r in result["speed"].items()
    ]
    header = ["algorithm", "task", "hidden layers", "lanes", "steps/s of all lanes", "of a loop in numpy", "ratio"]
    header += ["of processor time"]
    return markdown(header, body, num_text=3)


def algorithms_table() -> str:
    """What there is in `algos/`, with links, by families. Raises ValueError for a file that none of them has."""
    names = {path.stem for path in (ROOT / "algos").glob("*.py")} - {"__init__"}
    if missing := names - {name for family in FAMILIES.values() for name in family}:
        raise ValueError(f"no family has {', '.join(sorted(missing))}: add it to FAMILIES")
    link = lambda name: f"[{name}](algos/{name}.py)"
    body = [(title, ", ".join(link(name) for name in family if name in names)) for title, family in FAMILIES.items()]
    return markdown(["family", "files"], [row for row in body if row[1]], num_text=2)


def mechanisms_table() -> str:
    """What `rlx mechanisms` lists."""
    body = [(m.name, m.paper, m.slot, f"`{m.function}`", f"`{m.command}`") for m in MECHANISMS]
    return markdown(["name", "paper", "slot", "function", "a command that runs it"], body, num_text=5)


def tables(results: Path = RESULTS) -> dict[str, str]:
    """Every table that there are results for."""
    returns = [json.loads(path.read_text()) for path in sorted((results / "returns").glob("*.json"))]
    in_suites = [r for r in returns if "untrained" in r]
    returns = [r for r in returns if "untrained" not in r]
    peers = [json.loads(path.read_text()) for path in sorted((results / "peer_returns").glob("*.json"))]
    found = {"algorithms": algorithms_table(), "mechanisms": mechanisms_table()}
    found |= {"returns": returns_table(returns, peers)} if returns else {}
    if in_suites:
        found["suites-returns"] = suites_returns_table(in_suites)
    single = {"speed": speed_table, "decoding": decoding_table, "flow": flow_table}
    single |= {"roofline": roofline_table, "shell": shell_table, "hours": hours_table}
    single |= {
        "annealing": annealing_table,
        "defaults": defaults_table,
        "switches": switches_table,
        "lifetimes": lifetimes_table,
        "physics": physics_table,
        "deploy": deploy_table,
        "hosts": hosts_table,
        "communication": communication_table,
    }
    for name, table in single.items():
        if (path := results / f"{name}.json").exists():
            found[name] = table(json.loads(path.read_text()))
    if (path := results / "bridge.json").exists():
        measured = json.loads(path.read_text())
        found |= {"bridge": bridge_table(measured), "dynamics": dynamics_table(measured)}
    if (path := results / "sb3_bridge.json").exists():
        found["stable-baselines3"] = sb3_table(json.loads(path.read_text()))
    if (path := results / "scaling.json").exists():
        scaling = json.loads(path.read_text())
        found |= {"scaling": scaling_table(scaling), "shuffling": shuffling_table(scaling)}
    if (path := results / "streaming.json").exists():
        measured = json.loads(path.read_text())
        found |= {"streaming": streaming_table(measured), "streaming-speed": streaming_speed_table(measured)}
    if (path := results / "suites.json").exists():
        found |= suites_tables(json.loads(path.read_text()))
    measured = [results / f"{name}.json" for name in ("sweeps", "kills")]
    if all(path.exists() for path in measured):
        found["sweeps"] = sweeps_table(*(json.loads(path.read_text()) for path in measured))
    return found


def suites_tables(result: dict) -> dict[str, str]:
    """Of each suite what keeps the contract; which clauses were not judged, and why; what is not offered, and why."""
    kept, open_clauses, refused = [], [], []
    for suite, found in sorted(result["suites"].items()):
        judged = found["environments"]
        passed = [name for name, said in judged.items() if said["passes"]]
        fixed = sum(judged[name]["fixed_starts"] for name in passed)
        broken = "; ".join(f"`{name}`: {said['error']}" for name, said in judged.items() if not said["passes"])
        seconds = [said["seconds"] for said in judged.values()]
        cells = f"{len(passed)} of {len(judged)}", str(fixed), str(len(found["refused"]))
        kept.append((f"{suite} {found['version']}", broken or "none", *cells, f"{median(seconds):.0f}"))
        reasons = {}
        for name in passed:
            for clause, reason in judged[name]["not_judged"].items():
                # One that only differs in its numbers is the same reason, and is told with those of the first.
                reasons.setdefault((clause, re.sub(r"\d+", "0", reason)), []).append(reason)
        open_clauses += [(suite, clause, texts[0], str(len(texts))) for (clause, _), texts in reasons.items()]
        refused += [(f"`{name}`", reason) for name, reason in found["refused"].items()]
    header = ["suite", "does not keep it", "keep the contract", "of these, one start", "not offered", "seconds each"]
    return {
        "suites": markdown(header, kept, num_text=2),
        "suites-not-judged": markdown(["suite", "clause", "why", "environments"], open_clauses, num_text=3),
        "suites-refused": markdown(["name", "why"], refused, num_text=2),
    }


def switches_table(result: dict) -> str:
    """Of each change of the compiler: the versions it is made on, and what programs come to with and without it."""
    body = []
    for name, found in result["changes"].items():
        versions = ", ".join(found["versions"])
        if "on" in found:
            body.append((f"`{name}`", versions, found["what"], found["on"], found["off"]))
        for program, ratios in found.get("programs", {}).items():
            times = "; ".join(
                f"{what} {r['value']:.2f} [{r['low']:.2f}, {r['high']:.2f}] times"
                for what, r in (("speed", ratios["speed"]), ("time to trace and compile", ratios["compile"]))
            )
            body.append((f"`{name}`", versions, program, times, "1"))
    return markdown(["change", "versions of jaxlib", "program", "with it", "without it"], body, 5)


def render(text: str, tables: dict[str, str]) -> str:
    """`text` with its tables replaced; one without results says so."""
    return fill(text, {name: tables.get(name, "Not measured yet.\n") for name in NAMES if f"table: {name} -->" in text})


def main(check: bool = False, documents: tuple[Path, ...] = DOCUMENTS, results: Path = RESULTS) -> None:
    """Writes the tables.

    Args:
        check: write nothing; exit with status 1 when a document is not up to date.
        documents: the files with the markers.
        results: folder of the JSON files.
    """
    found = tables(results)
    for document in documents:
        text = document.read_text()
        rendered = render(text, found)
        if check and rendered != text:
            sys.exit(f"{document.name} is not up to date: run python benchmarks/tables.py")
        if not check:
            document.write_text(rendered)


if __name__ == "__main__":
    import tyro

    tyro.cli(main)
