"""Results of an experiment, by name and seed."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rlx.files import read_json, write_json
from rlx.report.text import fill


def experiment(
    folder: Path,
    cases: Mapping[Any, str],
    measure: Callable[[Any], dict[str, Any]],
    draw: Callable[[dict[Any, dict], Path], None],
    table: Callable[[dict[Any, dict]], str],
    only: Callable[[Any], bool] = lambda case: True,
) -> None:
    """Measures the cases of an experiment that have no result yet, then draws its figure and writes its table.

    The next call continues an interrupted one. To measure a case again, remove its file.

    Args:
        folder: gets `results/NAME.json` for each case, `figure.png`, and in `README.md` the table called returns.
        cases: the name of each, in the order in which they are measured and shown.
        measure: gives the result of a case, as strict JSON.
        draw: `draw(results, path)`; of those that are there, by case.
        table: `table(results)`, in Markdown.
        only: which cases to measure.
    """
    paths = {case: folder / "results" / f"{name}.json" for case, name in cases.items()}
    (folder / "results").mkdir(parents=True, exist_ok=True)
    for case, path in paths.items():
        if only(case) and not path.exists():
            started = time.perf_counter()
            result = measure(case)
            write_json(path, result | {"seconds": round(time.perf_counter() - started, 1)})
            print(f"{path.stem}: {path}", flush=True)
    results = {case: read_json(path) for case, path in paths.items() if path.exists()}
    if results:
        draw(results, folder / "figure.png")
        readme = folder / "README.md"
        text = readme.read_text() if readme.exists() else "<!-- table: returns -->\n<!-- end -->\n"
        readme.write_text(fill(text, {"returns": table(results)}))
