"""The reproducibility card as Markdown, which a terminal shows as well."""

import json
import shlex
from typing import Any


def text(card: dict[str, Any]) -> str:
    """The card of `rlx.report.card.card` as Markdown."""
    title = f"lane {card['lane']} of {card['path']}" if card["kind"] == "lane" else card["path"]
    parts = [f"# {card['kind']}: {title}" if card["kind"] != "lane" else f"# {title}", _made(card), _settings(card)]
    parts += [_results(card), _again(card), _now(card)]
    parts.append("\n".join(["## What is reproducible", "", *(f"- {line}" for line in card["determinism"])]))
    return "\n\n".join(part for part in parts if part) + "\n"


def _made(card: dict[str, Any]) -> str:
    env = card["env"]
    rows = {
        "command": shlex.join(card["command"]),
        "started": card.get("started"),
        "algorithm": card["algorithm"],
        "source": ", ".join(f"{name} {value[:12]}" for name, value in card.get("source", {}).items()),
        "environment": env["name"],
        "options": _pairs(env["options"]),
        "parameters": _pairs(env["params"]),
        "seed": card["seed"],
        "seeds of each configuration": card.get("num_seeds"),
        "strategy": card.get("strategy"),
        "rlx": f"{card.get('commit') or 'no commit'}, source {(card.get('rlx_source') or 'unknown')[:12]}",
        "python": card.get("python"),
        "versions": ", ".join(f"{name} {version}" for name, version in card.get("versions", {}).items()),
        "device": f"{card.get('device')}, {card.get('processor') or 'processor unknown'}",
        "devices of the run": card.get("devices"),
        "XLA flags": " ".join(card.get("xla_flags") or []) or "none besides those of rlx",
        "changes of JAX": ", ".join(card.get("compiler") or []) or "none",
        "matrix products": card.get("matmul_precision"),
        "began with": card.get("start_from"),
        "resumed": "; ".join(f"after update {entry['after']}" for entry in card.get("resumed", [])),
    }
    lines = [f"| {name} | {_cell(value)} |" for name, value in rows.items() if value not in (None, "")]
    return "\n".join(["## What ran", "", "| | |", "| --- | --- |", *lines])


def _settings(card: dict[str, Any]) -> str:
    settings = card["settings"]
    lines = []
    for name, value in settings["not_default"].items():
        why = "own" if name in settings["not_tuned"] else "tuned"
        lines.append(f"| {name} | {_cell(value)} | {why} |")
    if points := settings["points"] and card["kind"] == "sweep":
        points = settings["points"]
        shown = [f"- {_pairs(point) or 'as above'}" for point in points[:10]]
        shown += [f"- and {len(points) - 10} more"] * (len(points) > 10)
        points = "\n".join(["", "Configurations:", "", *shown])
    head = ["## Settings that are not the Config's defaults", ""]
    table = ["| setting | value | from |", "| --- | --- | --- |", *lines] if lines else ["none"]
    return "\n".join([*head, *table, *([points] if points else [])])


def _results(card: dict[str, Any]) -> str:
    lines = ["## Results", ""]
    if not card["ended"]:
        lines += [f"The {'run' if card['kind'] == 'run' else 'sweep'} has not come to its end.", ""]
    if "checkpoints" in card:
        lines += [f"Checkpoints: {', '.join(map(str, card['checkpoints'])) or 'none'}.", ""]
    if summary := card.get("summary"):
        lines += [_pairs({k: summary[k] for k in ("lanes", "steps", "died", "rank_by", "best") if k in summary}), ""]
    if result := card.get("result"):
        lines += [_pairs(result), ""]
    if rows := card.get("evaluations", []) + card.get("asked", []):
        lines += ["| update | step | mean | std | episodes | |", "| ---: | ---: | ---: | ---: | ---: | --- |"]
        lines += [_evaluation(row, card.get("best")) for row in rows]
    return "\n".join(lines).rstrip()


def _evaluation(row: dict[str, Any], best: dict[str, Any] | None) -> str:
    mark = row.get("file") or ("best" if row == best else "")
    numbers = f"{float(row['mean']):.6g} | {float(row['std']):.6g}"
    return f"| {row['update']} | {row['step']} | {numbers} | {row['num_episodes']} | {mark} |"


def _again(card: dict[str, Any]) -> str:
    again = card["again"]
    what = "the same bits" if again["exact"] else "the nearest that can be had"
    lines = [f"## How to get {what}", "", "```console", f"$ {again['install']}"]
    lines += [f"$ {command}" for command in again["commands"]]
    lines += ["```", "", f"- rlx: {again['rlx']}", *(f"- {note}" for note in again["notes"])]
    return "\n".join(lines)


def _now(card: dict[str, Any]) -> str:
    head = "## What is another here and now"
    if not card["now"]:
        return f"{head}\n\nnothing: the commands give the same bits here, if the run is reproducible at all"
    lines = [f"| {item['what']} | {_cell(item.get('was'))} | {_cell(item.get('now'))} | {item['follows']} |"
             for item in card["now"]]  # fmt: skip
    return "\n".join([head, "", "| what | was | now | what follows |", "| --- | --- | --- | --- |", *lines])


def _pairs(values: dict[str, Any] | None) -> str:
    return ", ".join(f"{name}={_cell(value)}" for name, value in (values or {}).items())


def _cell(value: Any) -> str:
    value = value if isinstance(value, str) else "-" if value is None else json.dumps(value)
    return (value[:12] if len(value) == 64 and value.isalnum() else value).replace("|", "\\|")
