"""Surgery on random graphs: any number of models that nobody has drawn yet.

python benchmarks/random_graphs.py --graphs=1000 --seed=1 --workers=2    # about 20 minutes
python benchmarks/random_graphs.py --only=1000123                        # one of them again
python benchmarks/show.py benchmarks/results/random_graphs.json

Every graph is drawn from a seed of its own, `seed * 1000000 + number`, by the drawer that the tests
use (`tests.graph.random_models`): functional models with random coupling, shared layers, nested
models, several inputs and outputs, and random weights that let every channel speak. A random legal
subset of its units is pruned, and it fails unless (`tests.graph.properties`)

- no layer lacks a rule,
- the smaller model equals its masked twin (and layer by layer what `shrink` compares),
- the cost model's MACs and parameters equal a recount of the rebuilt model from its shapes alone,
- saved, loaded and asked again it answers the very same,
- the plan read back from JSON gives the same model.

The result holds each failure with the recipe that builds its model again. An interrupted run goes
on where it was (`RESULT.rows`, as long as the code stays the same) when the command is given again.
"""

import argparse
import collections
import concurrent.futures
import hashlib
import json
import pathlib
import random
import shlex
import subprocess
import sys
import threading
import time
import traceback

import keras
import numpy as np
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from tfseg_prune import atomic
from tfseg_prune.pipeline import summary

HERE = pathlib.Path(__file__).resolve().parent
PER_SEED = 10**6
# A worker that has built many models is slow and large: Keras remembers names, TensorFlow traces.
GRAPHS_PER_WORKER = 100
ROW = "row: "
PERCENTILES = (0, 10, 50, 90, 100)
MEASURED = ("layers", "depth", "channels", "prunable", "kept", "effect", "difference", "seconds")


def check(seed):
    """The row of one graph: what was measured, or the error and the recipe."""
    # Here, since the tests are found in the checkout that this file lies in, not installed.
    from tests.graph.properties import check_pruning
    from tests.graph.random_models import draw

    keras.backend.clear_session()
    started, drawn = time.perf_counter(), None
    try:
        drawn = draw(random.Random(seed))
        row = check_pruning(drawn.model, seed)
    except Exception as error:
        lines = traceback.format_exception(error)
        row = {"error": f"{type(error).__name__}: {error}", "traceback": "".join(lines)[-4000:]}
        row["recipe"] = drawn and drawn.recipe
    return {"seed": seed, **row, "seconds": time.perf_counter() - started}


class Workers:
    """Checks many graphs in other processes, which are renewed now and then.

    Args:
        count: How many processes at a time.
        report: Function that is called with each row.
        script: The script that checks; this one by default.
        options: What it is given beside `--batch`.
    """

    def __init__(self, count, report, *, script=None, options=()):
        self.count, self.report = count, report
        self.script, self.options = script, options
        self.lock, self.stopped, self.running = threading.Lock(), threading.Event(), set()

    def check(self, seeds):
        size = GRAPHS_PER_WORKER
        batches = [seeds[first : first + size] for first in range(0, len(seeds), size)]
        with concurrent.futures.ThreadPoolExecutor(self.count) as pool:
            try:
                list(pool.map(self._check_batch, batches))
            except BaseException:
                self.stopped.set()
                for process in self.running:
                    process.terminate()
                raise

    def _check_batch(self, seeds):
        """Checks graphs in one process; in a next one after a graph that ends the process."""
        left = list(seeds)
        while left and not self.stopped.is_set():
            script = self.script or __file__
            command = [sys.executable, script, *self.options, "--batch", ",".join(map(str, left))]
            # Only rows are read: TensorFlow writes much else beside them. In a session of its own
            # an interrupt doesn't reach the process, and isn't taken for its failure.
            with subprocess.Popen(
                command,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                start_new_session=True,
            ) as process:
                self.running.add(process)
                for line in process.stdout:
                    if line.startswith(ROW):
                        row = json.loads(line.removeprefix(ROW))
                        left.remove(row["seed"])
                        self._report(row)
            self.running.discard(process)
            if left and not self.stopped.is_set():
                error = f"ended the process with {process.returncode}"
                self._report({"seed": left.pop(0), "error": error})

    def _report(self, row):
        with self.lock:
            self.report(row)


def code():
    """A digest of all code that a row depends on."""
    digest = hashlib.sha256()
    sources = [*(HERE.parent / "tfseg_prune" / "graph").rglob("*.py")]
    tests = HERE.parent / "tests" / "graph"
    sources += [*(tests / "random_models").rglob("*.py")]
    sources += [tests / "properties.py", tests / "recount.py"]
    for path in sorted(sources):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


class Rows:
    """What is measured already, one line each in a file, so that a run can go on."""

    def __init__(self, path, digest):
        self.path, self.digest = path, digest
        self.rows = {}
        if path.exists():
            for line in path.read_text().splitlines():
                row = json.loads(line)
                if row.pop("code") == digest:
                    self.rows[row["seed"]] = row

    def add(self, row):
        self.rows[row["seed"]] = row
        with open(self.path, "a") as file:
            file.write(json.dumps({"code": self.digest, **row}) + "\n")


def summarised(rows):
    """Distributions over all graphs that passed, and the failures in full."""
    passed = [row for row in rows if "error" not in row]
    operations, graphs_with = collections.Counter(), collections.Counter()
    for row in passed:
        operations.update(row["operations"])
        graphs_with.update(row["operations"].keys())
    distributions = {
        key: dict(
            zip(map(str, PERCENTILES), np.percentile([row[key] for row in passed], PERCENTILES))
        )
        for key in MEASURED
        if passed
    }
    return {
        "graphs": len(rows),
        "passed": len(passed),
        "prunable_graphs": sum(row["prunable"] > 0 for row in passed),
        "pruned_graphs": sum(row["kept"] < 1 for row in passed),
        "percentiles": distributions,
        "operations": {
            name: {"calls": calls, "graphs": graphs_with[name]}
            for name, calls in operations.most_common()
        },
        "failures": [row for row in rows if "error" in row],
    }


def run(options):
    seeds = [options.seed * PER_SEED + number for number in range(options.graphs)]
    rows = Rows(options.out.with_suffix(".rows"), code())
    command = shlex.join(["python", "benchmarks/random_graphs.py", *sys.argv[1:]])
    origin = summary.provenance(command=command, seed=options.seed)
    todo = [seed for seed in seeds if seed not in rows.rows]
    print(f"seed {options.seed}: graphs {seeds[0]} to {seeds[-1]}, {len(todo)} of them to do")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeRemainingColumn(elapsed_when_finished=True)) as progress:
        task = progress.add_task("0 failures", total=len(seeds), completed=len(seeds) - len(todo))

        def report(row):
            rows.add(row)
            failures = sum("error" in rows.rows[seed] for seed in seeds if seed in rows.rows)
            progress.update(task, advance=1, description=f"{failures} failures")
            if "error" in row:
                progress.console.print(f"{row['seed']}: {row['error'][:300]}", markup=False)

        Workers(options.workers, report).check(todo)
    result = {
        "kind": "random_graphs",
        "name": "Surgery on random graphs",
        **origin,
        **summarised([rows.rows[seed] for seed in seeds]),
    }
    atomic.write_text(options.out, json.dumps(result, indent=1) + "\n")
    rows.path.unlink(missing_ok=True)
    print(f"{result['passed']} of {result['graphs']} graphs pass, seed {options.seed}.")
    print(f"python benchmarks/show.py {options.out} prints the table.")
    return not result["failures"]


def run_one(seed):
    """Checks one graph; prints its recipe and what was found."""
    from tests.graph.random_models import draw

    print(repr(draw(random.Random(seed))))
    row = check(seed)
    print(row.pop("traceback", ""))
    print(json.dumps(row | {"recipe": None}, indent=1))
    return "error" not in row


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--graphs", type=int, default=1000, help="how many")
    parser.add_argument("--seed", type=int, default=1, help="of the run")
    parser.add_argument("--workers", type=int, default=1, help="processes at a time")
    parser.add_argument("--only", type=int, help="the seed of one graph, printed by a run")
    parser.add_argument("--batch", help=argparse.SUPPRESS)  # what a worker checks
    parser.add_argument("--out", type=pathlib.Path, default=HERE / "results" / "random_graphs.json")
    options = parser.parse_args()
    sys.path.insert(0, str(HERE.parent))
    if options.batch:
        for seed in options.batch.split(","):
            print(ROW + json.dumps(check(int(seed))), flush=True)
        return
    try:
        passes = run(options) if options.only is None else run_one(options.only)
    except KeyboardInterrupt:
        sys.exit("Interrupted. The same command goes on.")
    sys.exit(not passes)


if __name__ == "__main__":
    main()
