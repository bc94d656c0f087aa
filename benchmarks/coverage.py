"""Surgery on every architecture of keras.applications, and on segmentation networks: one row each.

python benchmarks/coverage.py                          # about an hour on 2 cores
python benchmarks/coverage.py --only=MobileNetV2,VGG16
python benchmarks/show.py benchmarks/results/coverage.json

Each network is built with random weights that hide no error (see `networks`), with its top at its
own input size and without it at another; then traced, scored by the L1 norm, pruned to half of the
MACs (six of them also to 0.3 and 0.7), rebuilt with the check, saved, loaded, and compared with its
masked twin on random images. A network is measured in a process of its own, so that one that fails
is one failed row. Rows of an earlier run with the same code stay, unless they failed or `--again`
is given; those of other code are dropped.

What is measured, and its limit:

- graph: `ChannelGraph(model)`, the median of 15: at most 25 ms.
- surgery: `tsp.plan` (graph, scores and search) and `tsp.shrink(check=False)` without the time in
  which Keras constructs its own layers, medians of 3: at most 2 s.
- budget: distance of the reached MACs from those asked, relative to those asked: at most 1 %.
- difference: between the smaller network and its masked twin, for each of 2 images the largest
  absolute difference over the image's largest absolute output (max norm), float32, the worst of
  both input sizes and all budgets: at most 1e-5.
- loaded: the saved and loaded network answers exactly what the smaller one did.
- prunable (segmentation networks only): of the output channels of convolutions and dense layers,
  the classifier and what is coupled to inputs aside, those that can be pruned: at least 98 %.
"""

import argparse
import hashlib
import json
import pathlib
import shlex
import subprocess
import sys
import tempfile
import time

import networks
from coverage_row import SEED
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from tfseg_prune import atomic
from tfseg_prune.pipeline import summary

HERE = pathlib.Path(__file__).parent
SECONDS_PER_ROW = 3600
LIMITS = {
    "graph_ms": 25,
    "surgery_s": 2,
    "budget_error": 0.01,
    "difference": 1e-5,
    "loaded_difference": 0,
    "prunable": 0.98,
}


def worst(row):
    """{limit: the row's worst figure over its inputs and budgets}."""
    cases = row["cases"].values()
    pruned = [budget for case in cases for budget in case["budgets"].values()]
    figures = {
        "graph_ms": max(case["graph_ms"]["median"] for case in cases),
        "surgery_s": max(
            b["plan_s"]["median"] + b["shrink_s"]["median"] - b["keras_s"]["median"] for b in pruned
        ),
    }
    for key in ("budget_error", "difference", "loaded_difference"):
        figures[key] = max(budget[key] for budget in pruned)
    if row["name"] in networks.SEGMENTATION:
        figures["prunable"] = min(case["prunable"]["share"] for case in cases)
    return figures


def judge(row):
    """The row with `"error"`, or with its worst figures and whether each is within its limit."""
    errors = [row.get("error"), *(case.get("error") for case in row.get("cases", {}).values())]
    errors = [error for error in errors if error]
    if errors:
        return row | {"error": "; ".join(errors), "passes": {}}
    figures = worst(row)
    passes = {
        key: value >= LIMITS[key] if key == "prunable" else value <= LIMITS[key]
        for key, value in figures.items()
    }
    return row | {"worst": figures, "passes": passes}


def measure(name):
    """The row of one network, measured in another process."""
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "row.json"
        command = [sys.executable, str(HERE / "coverage_row.py"), name, str(path)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS_PER_ROW)
        except subprocess.TimeoutExpired:
            return judge({"name": name, "error": f"not done after {SECONDS_PER_ROW} s"})
        if done.returncode or not path.exists():
            said = (done.stderr.strip().splitlines() or ["nothing"])[-1]
            row = {"name": name, "error": f"process ended with {done.returncode}: {said}"}
        else:
            row = json.loads(path.read_text())
    return judge(row) | {"seconds": time.monotonic() - start}


def code():
    """A digest of all code that a row depends on."""
    digest = hashlib.sha256()
    package = HERE.parent / "tfseg_prune"
    rooms = ("graph", "criteria", "search", "methods", "models")
    sources = [path for room in rooms for path in (package / room).rglob("*.py")]
    sources += [HERE / name for name in ("coverage_row.py", "networks.py", "keras_time.py")]
    for path in sorted(sources):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def kept_rows(path, code):
    """{name: row} of an earlier run that was measured with the same code and didn't fail."""
    if not path.exists():
        return {}
    rows = json.loads(path.read_text())["rows"]
    return {row["name"]: row for row in rows if row["code"] == code and "error" not in row}


def main():
    every = [*networks.architectures(), *networks.SEGMENTATION]
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default=",".join(every), help="names, separated by commas")
    parser.add_argument("--again", action="store_true", help="measure again what is measured")
    parser.add_argument("--out", type=pathlib.Path, default=HERE / "results" / "coverage.json")
    options = parser.parse_args()
    names = options.only.split(",")
    unknown = sorted(set(names) - set(every))
    if unknown:
        parser.error(f"unknown networks {unknown}. Expected: some of {', '.join(every)}")
    digest = code()
    rows = kept_rows(options.out, digest)
    given = [word for word in sys.argv[1:] if not word.startswith("--out")]
    command = shlex.join(["python", "benchmarks/coverage.py", *given])
    todo = [name for name in names if options.again or name not in rows]
    origin = summary.provenance(command=command, seed=SEED)
    if rows:
        # Of the same code; by now the result itself, half written, makes the checkout another.
        origin["commit"] = next(iter(rows.values()))["commit"]
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeRemainingColumn(elapsed_when_finished=True)) as progress:
        task = progress.add_task("", total=len(todo))
        for name in todo:
            progress.update(task, description=name)
            rows[name] = measure(name) | {"code": digest, "commit": origin["commit"]}
            result = {
                "kind": "coverage",
                "name": "Surgery on every architecture of keras.applications",
                **origin,
                "limits": LIMITS,
                "rows": [rows[name] for name in every if name in rows],
            }
            atomic.write_text(options.out, json.dumps(result, indent=1) + "\n")
            progress.console.print(_line(rows[name]), markup=False)
            progress.advance(task)
    passed = sum(_passes(rows[name]) for name in names)
    print(f"{passed} of {len(names)} rows pass; measured now: {len(todo)}.")
    print(f"python benchmarks/show.py {options.out} prints the table.")
    sys.exit(passed < len(names))


def _passes(row):
    return "error" not in row and all(row["passes"].values())


def _line(row):
    if "error" in row:
        return f"{row['name']}: {row['error']}"
    missed = [key for key, passes in row["passes"].items() if not passes]
    shown = ", ".join(f"{key} {value:.3g}" for key, value in row["worst"].items())
    return f"{row['name']}: {'misses ' + ', '.join(missed) if missed else 'passes'} ({shown})"


if __name__ == "__main__":
    main()
