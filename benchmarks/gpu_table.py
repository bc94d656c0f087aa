"""Every network on the GPU delegate: does it take all of it, and is it right? One row a file.

tools/software_gpu.sh FOLDER && export TFSEG_PRUNE_SOFTWARE_GPU=FOLDER
python benchmarks/gpu_table.py --data_dir=DATA/camvid --workdir=runs/gpu_table
python benchmarks/show.py benchmarks/results/gpu_table.json

Each network of the package, and backbones of keras.applications with a plain head, as it is and
pruned to half of its MACs (one-shot, L1), becomes a file in float32, float16 and int8 (its ranges
set by training images). A row says whether LiteRT's GPU delegate takes every op of it
(`deploy.check_gpu`, in a process of its own), how many pixels of test images get Keras' class from
the CPU interpreter and from the GPU, and the reason of whatever misses the goals: 99.9 % on the CPU
and 99.5 % on the GPU in float; files in int8 have other answers, of which 90 % is asked.

Nobody trains: see `segmenters` for what makes classes mean something all the same. Where a network
misses a goal, the margins of Keras' logits at the pixels that differ say whether they were near a
tie, and the GPU is asked again to compute in float32, which tells roundings from errors. With
`--trained=UNet=unet.keras` (dense) or `--trained=UNet:pruned=small.keras` a network is that of the
file, whose input size then counts.

Each row is made in a process of its own and kept as soon as it is there. When the command is given
again, with the same settings and code, it goes on; `--again` makes rows anew that didn't pass. The
first run of a network compiles its shaders: half a minute, minutes on a busy machine.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile
import time

import segmenters
import study
from gpu_table_row import BUDGET, DENSE, GOALS, PRUNED, SEED
from rich.console import Console

from tfseg_prune import atomic
from tfseg_prune.pipeline import summary

HERE = pathlib.Path(__file__).parent
SECONDS_PER_ROW = 7200
VARIANTS = (DENSE, PRUNED)


def make(options, name, variant, precision):
    """The row of one file, made in another process."""
    start = time.monotonic()
    trained = options.trained.get((name, variant))
    job = {
        "name": name,
        "variant": variant,
        "precision": precision,
        "size": list(_size(options, name, trained)),
        "folder": str(options.workdir),
        "data_dir": str(options.data_dir),
        "trained": trained,
        "dense": options.trained.get((name, DENSE)),
        "images": options.images,
        "fitted": options.fitted,
        "representative": options.representative,
        "align": options.align,
    }
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "row.json"
        command = [sys.executable, str(HERE / "gpu_table_row.py"), json.dumps(job), str(path)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS_PER_ROW)
        except subprocess.TimeoutExpired:
            row = {"error": f"not done after {SECONDS_PER_ROW} s", "passes": False}
        else:
            if path.exists():
                row = json.loads(path.read_text())
            else:
                said = (done.stderr.strip().splitlines() or ["nothing"])[-1]
                row = {"error": f"process ended with {done.returncode}: {said}", "passes": False}
    return {
        "name": name,
        "variant": variant,
        "precision": precision,
        "size": job["size"],
        "trained": trained is not None,
        **row,
        "seconds": round(time.monotonic() - start, 1),
    }


def _size(options, name, trained):
    """(height, width) of a network; that of a trained one stands in its file."""
    given = trained or options.trained.get((name, DENSE))
    if given:
        from tfseg_prune.pipeline import files

        sides = files.load_model(given).input_shape[1:3]
        if None not in sides:
            return sides
    return options.size or segmenters.NETWORKS[name].size


def told(row):
    if "error" in row:
        return row["error"][:200]
    agreements = [
        f"{where.upper()} {row[where]['agreement']:.3%}" for where in ("cpu", "gpu") if row[where]
    ]
    verdict = "passes" if row["passes"] else "; ".join(row["reasons"])
    return f"{row['status']}, {', '.join(agreements)}: {verdict}, {row['seconds']:.0f} s"


def wanted(options):
    """(seed, name, variant, precision) of all rows."""
    return [
        (SEED, name, variant, precision)
        for name in options.networks
        for variant in VARIANTS
        for precision in options.precisions
    ]


def _trained(text):
    """`((name, variant), path)` of an option such as UNet=unet.keras or UNet:pruned=u.keras."""
    name, _, path = text.partition("=")
    name, _, variant = name.partition(":")
    if name not in segmenters.NETWORKS or (variant or DENSE) not in VARIANTS or not path:
        raise argparse.ArgumentTypeError(
            f"expected NAME=FILE or NAME:pruned=FILE, received {text!r}"
        )
    return (name, variant or DENSE), path


def parse(arguments=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data_dir", type=pathlib.Path, required=True)
    parser.add_argument("--workdir", type=pathlib.Path, required=True)
    parser.add_argument("--networks", type=study.numbers(str), default=tuple(segmenters.NETWORKS))
    parser.add_argument("--precisions", type=study.numbers(str), default=tuple(GOALS))
    parser.add_argument(
        "--size", type=study.numbers(int), default=None, help="height,width; by default each's own"
    )
    parser.add_argument("--trained", type=_trained, action="append", default=[])
    parser.add_argument("--images", type=int, default=4, help="test images, default 4")
    parser.add_argument("--fitted", type=int, default=16, help="images that weights are fitted to")
    parser.add_argument("--representative", type=int, default=32, help="images for int8's ranges")
    parser.add_argument("--align", type=int, default=1, help="of the pruned widths, default 1")
    parser.add_argument("--again", action="store_true", help="make anew what didn't pass")
    parser.add_argument("--out", type=pathlib.Path, default=HERE / "results" / "gpu_table.json")
    options = parser.parse_args(arguments)
    options.trained = dict(options.trained)
    for option, known in (("networks", segmenters.NETWORKS), ("precisions", GOALS)):
        unknown = sorted(set(getattr(options, option)) - set(known))
        if unknown:
            parser.error(f"unknown {option} {unknown}. Expected: some of {', '.join(known)}")
    if not options.out.parent.is_dir():
        parser.error(f"--out: there is no folder '{options.out.parent}'")
    return options


def main():
    options = parse()
    options.workdir.mkdir(parents=True, exist_ok=True)
    settings = study.settings_of(options)
    for name in ("again", "trained"):
        del settings[name]
    settings = {name: value for name, value in settings.items() if value is not None}
    paths = ("--data_dir=DATA/camvid", "--workdir=RUN")
    trained = [f"--trained={name}:{variant}=FILE" for name, variant in options.trained]
    command = study.command_of("gpu_table.py", settings, *paths, *trained)
    origin = summary.provenance(command=command, seed=SEED)
    held = {**settings, "trained": trained, "networks": None, "precisions": None}
    study.hold(options.workdir, {**held, "commit": origin["commit"]})
    rows = study.read_rows(options, SEED)
    if options.again:
        rows = [row for row in rows if row["passes"]]
    done = {(SEED, row["name"], row["variant"], row["precision"]) for row in rows}
    todo = [key for key in wanted(options) if key not in done]
    study.rows_path(options, SEED).parent.mkdir(exist_ok=True)
    rows = {SEED: rows}
    study.make_rows(options, rows, todo, lambda seed, *what: make(options, *what), told)
    by_key = {(SEED, row["name"], row["variant"], row["precision"]): row for row in rows[SEED]}
    result = {
        "kind": "gpu_table",
        "name": f"The GPU delegate on every network, dense and pruned to {BUDGET:.0%} of the MACs",
        **origin,
        "goals": {name: {"cpu": cpu, "gpu": gpu} for name, (cpu, gpu) in GOALS.items()},
        "settings": settings,
        "rows": [by_key[key] for key in wanted(options)],
    }
    atomic.write_text(options.out, json.dumps(result, indent=1) + "\n")
    import tables_files

    tables_files.gpu_table(result, Console(width=None if sys.stdout.isatty() else 160))


if __name__ == "__main__":
    main()
