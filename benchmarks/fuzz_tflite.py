"""Broken, truncated and foreign .tflite files: what refuses them, and whether anyone dies.

python benchmarks/fuzz_tflite.py --tries=10000 --seed=1 --workers=2    # about an hour
python benchmarks/fuzz_tflite.py --only=1000123                        # one of them again
python benchmarks/show.py benchmarks/results/fuzz_tflite.json

Good files of a network with all kinds of convolutions, in four precisions and two tails, are cut,
flipped, overwritten, spliced, blanked and shifted by a seed of their own each
(`tests.deploy.mutations`), mostly in their tables, since what is changed in the weights is hardly
ever noticed. On each such file a process does what a user's would:

- `read`: reads what stands in the file (`deploy.contents`),
- `explain`: says what its ops cost, as a table and as JSON,
- `predict`: runs it on an image (`Segmenter`),
- `parity`: compares it with its Keras model (`check_parity`),
- `bench`: times it (`time_models`), of every `--bench_every`-th file.

Each must answer or raise one ValueError. Another exception, the process' end (by a signal, or by
an alarm after 300 s) or 1 GiB of memory more is a failure; timing may take what the network takes,
once another process has shown that it can be had. What the process in which files run died of is no
failure, and is counted: so often the user's would have died without it. An interrupted run goes on
where it was.
"""

import argparse
import collections
import hashlib
import io
import json
import os
import pathlib
import re
import shlex
import signal
import sys
import tempfile
import time

import numpy as np
import random_graphs
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from tfseg_prune import atomic
from tfseg_prune.pipeline import summary

HERE = pathlib.Path(__file__).resolve().parent
PER_SEED = 10**6
PRECISIONS = ("float32", "float16", "dynamic", "int8")
TAILS = ("upsampled", "argmax")
ALARM_S, SANDBOX_S, MEMORY_MIB = 300, 20, 1024
FAILURE = "failure"


def write_sources(folder):
    """Writes the network and its files."""
    from tests.deploy import nets
    from tfseg_prune import deploy

    model, images = nets.segmenter(), nets.images()
    model.save(folder / "model.keras")
    np.save(folder / "images.npy", images)
    for precision in PRECISIONS:
        for tail in TAILS:
            path = folder / f"{precision}_{tail}.tflite"
            deploy.export(model, path, precision=precision, tail=tail, representative=images)
            path.with_name(f"{path.name}.json").unlink()


class Checker:
    """What each process does.

    Args:
        folder: what `write_sources` wrote.
        bench_every: see the module's text.
    """

    def __init__(self, folder, bench_every):
        import keras

        from tests.deploy.mutations import Source
        from tfseg_prune.bench import fresh, sandbox

        sandbox.SECONDS = SANDBOX_S
        fresh._TIMEOUT_SECONDS = SANDBOX_S
        self.bench_every = bench_every
        self.model = keras.saving.load_model(folder / "model.keras")
        self.images = np.load(folder / "images.npy")[:1]
        self.sources = [Source(p.stem, p.read_bytes()) for p in sorted(folder.glob("*.tflite"))]
        self.folder = pathlib.Path(tempfile.mkdtemp(dir=folder))
        self.memory = None

    def check(self, seed):
        """The row of one broken file."""
        from tests.deploy.mutations import draw
        from tfseg_prune.bench import fresh, host

        signal.alarm(ALARM_S)
        mutation, source, data = draw(seed, self.sources)
        path = self.folder / "broken.tflite"
        path.write_bytes(data)
        row = {"seed": seed, "mutation": mutation, "source": source, "bytes": len(data)}
        started = time.perf_counter()
        fresh._reset_peak()
        row["stages"] = self.stages(path, source.partition("_")[2])
        peak = fresh._memory("VmHWM") / 2**20
        # What the first file takes is the libraries'.
        self.memory = peak if self.memory is None else self.memory
        row["memory_mib"] = peak - self.memory
        if row["memory_mib"] > MEMORY_MIB:
            row["stages"]["memory"] = [FAILURE, f"{row['memory_mib']:.0f} MiB"]
        if seed % self.bench_every == 0:
            few = {"min_runs": 3, "max_seconds": 0.1, "max_warmup_runs": 3}
            row["stages"]["bench"] = _outcome(lambda: host.time_models({"broken": path}, **few))
        row["seconds"] = time.perf_counter() - started
        signal.alarm(0)
        return row

    def stages(self, path, tail):
        from tfseg_prune.bench.segmenter import Segmenter
        from tfseg_prune.deploy import check_parity
        from tfseg_prune.deploy.contents import load_contents
        from tfseg_prune.deploy.explain import explain
        from tfseg_prune.report.explanation import print_explanation

        def explained():
            found = explain(path)
            print_explanation(found, console=Console(file=io.StringIO(), width=200))
            return found.to_json(), found.overlay()

        def predicted():
            with Segmenter(path) as segmenter:
                found = segmenter(self.images[0].astype(np.uint8))
            return found.overlay(), found.shares()

        steps = {
            "read": lambda: load_contents(path),
            "explain": explained,
            "predict": predicted,
            "parity": lambda: check_parity(self.model, path, self.images, tail=tail),
        }
        return {name: _outcome(step) for name, step in steps.items()}


def _outcome(step):
    """`[what came of it, what was said]`."""
    try:
        step()
    except ValueError as error:
        text = str(error)
        died = re.search(r"by signal (\d+)", text)
        if died:
            return [f"sandbox: {signal.Signals(int(died[1])).name}", text[:200]]
        if "no answer in" in text:
            return ["sandbox: no answer", text[:200]]
        if type(error).__name__ == "ParityError":
            return ["answers otherwise", ""]
        known = "Expected:" in text and "Received:" in text
        return ["refused" if known else FAILURE, "" if known else f"{type(error).__name__}: {text}"]
    except Exception as error:
        return [FAILURE, f"{type(error).__name__}: {error}"[:300]]
    return ["answers", ""]


def code():
    """A digest of all code that sees a broken file."""
    package = HERE.parent / "tfseg_prune"
    names = ("contents", "explain", "gpu_rules", "ops_graph", "parity", "trace")
    sources = [package / "deploy" / f"{name}.py" for name in names]
    sources += [*(package / "bench").rglob("*.py"), package / "report" / "explanation.py"]
    sources += [pathlib.Path(__file__), HERE.parent / "tests" / "deploy" / "mutations.py"]
    digest = hashlib.sha256()
    for path in sorted(sources):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def failed(row):
    return "error" in row or any(found[0] == FAILURE for found in row["stages"].values())


def summarised(rows):
    """What came of the tries, stage by stage and mutation by mutation, and the failures in full."""
    stages = collections.defaultdict(collections.Counter)
    mutations = collections.defaultdict(collections.Counter)
    examples = {}
    for row in rows:
        if "error" in row:
            continue
        for stage, (outcome, said) in row["stages"].items():
            stages[stage][outcome] += 1
            if said and outcome not in examples:
                examples[outcome] = {"seed": row["seed"], "stage": stage, "said": said}
        mutations[row["mutation"]][row["stages"]["read"][0]] += 1
        mutations[row["mutation"]]["in all"] += 1
        if any(found[0].startswith("sandbox") for found in row["stages"].values()):
            mutations[row["mutation"]]["sandbox dies"] += 1
    timed = [row["seconds"] for row in rows if "error" not in row]
    return {
        "tries": len(rows),
        "passed": sum(not failed(row) for row in rows),
        "stages": {name: dict(found.most_common()) for name, found in stages.items()},
        "mutations": {name: dict(found) for name, found in sorted(mutations.items())},
        "examples": examples,
        "longest_s": max(timed, default=None),
        "memory_mib": max((row.get("memory_mib", 0) for row in rows), default=None),
        "failures": [row for row in rows if failed(row)],
    }


def run(options, folder):
    seeds = [options.seed * PER_SEED + number for number in range(options.tries)]
    rows = random_graphs.Rows(options.out.with_suffix(".rows"), code())
    command = shlex.join(["python", "benchmarks/fuzz_tflite.py", *sys.argv[1:]])
    origin = summary.provenance(command=command, seed=options.seed)
    todo = [seed for seed in seeds if seed not in rows.rows]
    print(f"seed {options.seed}: tries {seeds[0]} to {seeds[-1]}, {len(todo)} of them to do")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeRemainingColumn(elapsed_when_finished=True)) as progress:
        task = progress.add_task("0 failures", total=len(seeds), completed=len(seeds) - len(todo))

        def report(row):
            rows.add(row)
            failures = sum(failed(rows.rows[seed]) for seed in seeds if seed in rows.rows)
            progress.update(task, advance=1, description=f"{failures} failures")
            if failed(row):
                progress.console.print(json.dumps(row)[:400], markup=False)

        extra = ["--folder", str(folder), "--bench_every", str(options.bench_every)]
        workers = random_graphs.Workers(options.workers, report, script=__file__, options=extra)
        workers.check(todo)
    result = {
        "kind": "fuzz",
        "name": "Broken, truncated and foreign .tflite files",
        **origin,
        **summarised([rows.rows[seed] for seed in seeds]),
    }
    atomic.write_text(options.out, json.dumps(result, indent=1) + "\n")
    rows.path.unlink(missing_ok=True)
    print(f"{result['passed']} of {result['tries']} tries pass, seed {options.seed}.")
    print(f"python benchmarks/show.py {options.out} prints the table.")
    return not result["failures"]


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tries", type=int, default=10_000, help="how many")
    parser.add_argument("--seed", type=int, default=1, help="of the run")
    parser.add_argument("--workers", type=int, default=1, help="processes at a time")
    parser.add_argument("--bench_every", type=int, default=4, help="time every so manieth file")
    parser.add_argument("--only", type=int, help="the seed of one file, printed by a run")
    parser.add_argument("--folder", type=pathlib.Path, help="of the good files, kept between runs")
    parser.add_argument("--batch", help=argparse.SUPPRESS)  # what a worker checks
    parser.add_argument("--out", type=pathlib.Path, default=HERE / "results" / "fuzz_tflite.json")
    options = parser.parse_args()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    sys.path.insert(0, str(HERE.parent))
    if options.batch:
        checker = Checker(options.folder, options.bench_every)
        for seed in options.batch.split(","):
            print(random_graphs.ROW + json.dumps(checker.check(int(seed))), flush=True)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or pathlib.Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "model.keras").exists():
            write_sources(folder)
        if options.only is not None:
            row = Checker(folder, 1).check(options.only)
            print(json.dumps(row, indent=1))
            sys.exit(failed(row))
        try:
            passes = run(options, folder)
        except KeyboardInterrupt:
            sys.exit("Interrupted. The same command goes on.")
    sys.exit(not passes)


if __name__ == "__main__":
    main()
