"""What SIRFP costs: the clique elimination, the redundancy of a batch, and a training step.

python benchmarks/redundancy.py             # about 15 minutes on 2 cores
python benchmarks/redundancy.py --quick     # a minute, for trying it out: other, small sizes
python benchmarks/show.py benchmarks/results/redundancy.json

- elimination: `criteria.redundancy.eliminate` on random likenesses of 256 to 4096 channels, and
  beside it, up to 1024, the same greedy with all sums taken anew in every step, as the released
  code takes them (in NumPy too, on the whole matrix). Seconds, the most memory it held beside the
  matrix given, and whether both let the channels fall in the same order. At most 0.1 s at 2048.
- metric: one training call of an observer, with all pixels and with at most 4096 per image. By
  default 256 channels of 97 x 97 pixels, 2 and 8 images; fewer channels and pixels show the growth.
  Seconds, and by how much a process of its own grew at most (Linux), beside the features.
- overhead: training steps of a network with observers over those of the network without, compiled,
  in one process and in turns. A turn is as many steps as the default has between two observations,
  each variant makes one per round, and a ratio is the median over the rounds of the two turns'
  ratio. At most 1.25 with default options.

Growth is the exponent of a power law fitted to the medians by least squares of the logarithms.
"""

import argparse
import concurrent.futures
import functools
import json
import multiprocessing
import pathlib
import shlex
import statistics
import sys
import time
import tracemalloc

import keras
import numpy as np
from keras import ops
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

import tfseg_prune as tsp
from tfseg_prune import atomic, training
from tfseg_prune.criteria.redundancy import eliminate
from tfseg_prune.layers.redundancy import RedundancyObserver
from tfseg_prune.pipeline import summary

HERE = pathlib.Path(__file__).parent
SEED = 0
LIMITS = {"elimination_2048_s": 0.1, "overhead_default": 1.25}
RESUMMED_UP_TO = 1024
PIXELS = 4096
EVERY = 4  # the default of `tsp.SIRFP`
VARIANTS = {
    "default": {},
    "every step": {"every": 1},
    "all pixels": {"pixels": None},
    "every step, all pixels": {"every": 1, "pixels": None},
    "edge prior": {"prior": "edge"},
    "gradient prior": {"prior": "gradient"},
}
FULL = {
    "channels": (256, 512, 1024, 2048, 4096),
    # (channels, side of the map in pixels, images)
    "maps": [(256, 97, 2), (256, 97, 8), (64, 97, 2), (128, 97, 2), (256, 49, 2), (256, 193, 2)],
    "networks": {
        "DeepLabV3+ MobileNetV2": lambda: tsp.models.deeplab_v3_plus(11, (176, 240, 3)),
        "UNet, width 16": lambda: tsp.models.unet(11, (176, 240, 3), width=16),
    },
    "batch_size": 8,
}
QUICK = {
    "channels": (64, 128, 256),
    "maps": [(32, 33, 2), (64, 33, 2), (64, 65, 2)],
    "networks": {"UNet, width 4": lambda: tsp.models.unet(11, (48, 64, 3), width=4)},
    "batch_size": 2,
}


def seconds(call, rounds):
    """{"min", "median"} of so many calls, after one that doesn't count."""
    taken = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        call()
        taken.append(time.perf_counter() - start)
    return {"min": min(taken[1:]), "median": statistics.median(taken[1:])}


def exponent(sizes, values):
    """p of the power law `value = c size^p` that fits best, `None` of fewer than two points."""
    if len(set(sizes)) < 2:
        return None
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])


def likenesses(channels, rng):
    """A redundancy matrix `[channels, channels]` of random maps."""
    maps = rng.normal(size=(channels, 2 * channels))
    maps /= np.linalg.norm(maps, axis=1, keepdims=True)
    found = maps @ maps.T
    return (found + found.T) / 2


def resummed(matrix):
    """The order in which channels fall if every step takes all sums anew: O(channels^3)."""
    edges = np.abs(matrix)
    np.fill_diagonal(edges, 0)
    present, order = np.ones(len(edges), bool), []
    for _ in range(len(edges)):
        worst = int(np.where(present, edges.sum(axis=1), -1).argmax())
        order.append(worst)
        present[worst] = False
        edges[worst], edges[:, worst] = 0, 0
    return order


def elimination(channels, rounds):
    """One row: how long the channels take to fall, and how much memory."""
    matrix = likenesses(channels, np.random.default_rng(SEED))
    row = {"channels": channels, "seconds": seconds(lambda: eliminate(matrix), rounds)}
    tracemalloc.start()
    found = eliminate(matrix)
    row["peak_mib"] = tracemalloc.get_traced_memory()[1] / 2**20
    tracemalloc.stop()
    row["matrix_mib"] = matrix.nbytes / 2**20
    if channels <= RESUMMED_UP_TO:
        row["resummed_seconds"] = seconds(lambda: resummed(matrix), max(1, rounds // 2))
        row["ratio"] = row["resummed_seconds"]["median"] / row["seconds"]["median"]
        # The sums of the last two are the same number.
        row["same_order"] = found.order.tolist()[:-2] == resummed(matrix)[:-2]
    return row


def metric(channels, side, images, rounds):
    """One row: how long an observer looks at one batch."""
    rng = np.random.default_rng(SEED)
    shape = (images, side, side, channels)
    features = ops.convert_to_tensor(rng.normal(size=shape).astype("float32"))
    row = {"channels": channels, "side": side, "images": images}
    for name, pixels in (("full", None), ("sampled", PIXELS)):
        observer = RedundancyObserver(pixels=pixels)

        def look():
            observer(features, training=True)
            ops.convert_to_numpy(observer.redundancy)  # waits for it

        row[name] = seconds(look, rounds)
        with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as own:
            row[name]["peak_mib"] = own.submit(growth_of_look, shape, pixels).result()
    return row


def growth_of_look(shape, pixels):
    """MiB by which this process grows at most while an observer looks; `None` if none can say."""
    status, peak = pathlib.Path("/proc/self/status"), pathlib.Path("/proc/self/clear_refs")
    if not peak.exists():
        return None

    def kib(key):
        return int(status.read_text().split(f"{key}:")[1].split()[0])

    features = ops.convert_to_tensor(
        np.random.default_rng(SEED).normal(size=shape).astype("float32")
    )
    # Loads the code that looks, on a map that weighs nothing.
    RedundancyObserver(pixels=pixels)(features[:, :2, :2], training=True)
    observer = RedundancyObserver(pixels=pixels)
    before = kib("VmRSS")
    peak.write_text("5")  # the peak starts anew
    observer(features, training=True)
    ops.convert_to_numpy(observer.redundancy)
    return (kib("VmHWM") - before) / 1024


def overhead(build, batch_size, rounds):
    """{variant: {"step_s", "ratio"}} of a network, with "without" for the network alone."""
    keras.utils.set_random_seed(SEED)
    model = build()
    classes = model.output_shape[-1]
    rng = np.random.default_rng(SEED)
    shape = (batch_size, *model.input_shape[1:])
    images = rng.uniform(0, 255, shape).astype("float32")
    labels = rng.integers(0, classes, shape[:-1]).astype("int32")
    scaled = any(isinstance(layer, keras.layers.BatchNormalization) for layer in model.layers)
    turns = {}
    for name, options in {"without": None, **VARIANTS}.items():
        if name == "gradient prior" and not scaled:
            continue  # it is the gradient of the scales
        # All share the weights of one network; a rate of zero keeps it what it was.
        trained, pruner = model, None
        if options is not None:
            pruner = tsp.SIRFP(model, budget=tsp.Budget(macs=0.5), **options)
            trained = pruner.model
        training.compile_segmenter(
            trained, optimizer=keras.optimizers.SGD(0.0), num_classes=classes, ignore_index=255
        )
        if pruner is not None:
            pruner.set_model(trained)  # as `fit` does
        turns[name] = functools.partial(_turn, trained, images, labels)
    taken = {name: [] for name in turns}
    for turn in range(rounds + 1):
        # The first traces; whoever comes first in a round is another one each time.
        names = list(turns)[turn % len(turns) :] + list(turns)[: turn % len(turns)]
        for name in names:
            start = time.perf_counter()
            turns[name]()
            if turn:
                taken[name].append((time.perf_counter() - start) / EVERY)
    alone = taken["without"]
    return {
        name: {
            "step_s": {"min": min(values), "median": statistics.median(values)},
            "ratio": statistics.median(a / b for a, b in zip(values, alone)),
            "lowest_ratio": min(a / b for a, b in zip(values, alone)),
            "highest_ratio": max(a / b for a, b in zip(values, alone)),
        }
        for name, values in taken.items()
    }


def _turn(model, images, labels):
    for _ in range(EVERY):
        model.train_on_batch(images, labels)


def growth(result):
    """{what: exponent} of all that was measured at several sizes."""
    rows, maps = result["elimination"], result["metric"]
    channels = [row["channels"] for row in rows]
    found = {
        "elimination_seconds": exponent(channels, [row["seconds"]["median"] for row in rows]),
        "elimination_memory": exponent(channels, [row["peak_mib"] for row in rows]),
    }
    again = [row for row in rows if "ratio" in row]
    found["resummed_seconds"] = exponent(
        [row["channels"] for row in again], [row["resummed_seconds"]["median"] for row in again]
    )
    first = maps[0]
    for what in ("channels", "side", "images"):
        others = {"channels", "side", "images"} - {what}
        alike = [row for row in maps if all(row[key] == first[key] for key in others)]
        for name in ("full", "sampled"):
            found[f"metric_{name}_by_{what}"] = exponent(
                [row[what] for row in alike], [row[name]["median"] for row in alike]
            )
    return found


def judged(result):
    """{limit: [figure, whether it is met]} of those that were measured."""
    figures = {
        f"elimination_{row['channels']}_s": row["seconds"]["median"]
        for row in result["elimination"]
    }
    ratios = [row["variants"]["default"]["ratio"] for row in result["overhead"]]
    figures["overhead_default"] = max(ratios)
    return {
        key: [figures[key], figures[key] <= limit]
        for key, limit in LIMITS.items()
        if key in figures
    }


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="small sizes")
    parser.add_argument("--out", type=pathlib.Path, default=HERE / "results" / "redundancy.json")
    options = parser.parse_args()
    sizes = QUICK if options.quick else FULL
    given = [word for word in sys.argv[1:] if not word.startswith("--out")]
    command = shlex.join(["python", "benchmarks/redundancy.py", *given])
    result = {
        "kind": "redundancy",
        "name": "What SIRFP costs",
        **summary.provenance(command=command, seed=SEED),
        "rounds": options.rounds,
        "batch_size": sizes["batch_size"],
        "elimination": [],
        "metric": [],
        "overhead": [],
    }
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    total = sum(len(sizes[key]) for key in ("channels", "maps", "networks"))
    with Progress(*columns, TimeRemainingColumn()) as progress:
        task = progress.add_task("", total=total)

        def measure(part, description, row):
            progress.update(task, description=description)
            result[part].append(row())
            progress.advance(task)

        for channels in sizes["channels"]:
            row = functools.partial(elimination, channels, options.rounds)
            measure("elimination", f"{channels} channels", row)
        for shape in sizes["maps"]:
            row = functools.partial(metric, *shape, options.rounds)
            measure("metric", "x".join(map(str, shape)), row)
        for name, build in sizes["networks"].items():
            found = functools.partial(overhead, build, sizes["batch_size"], options.rounds)
            measure("overhead", name, lambda: {"name": name, "variants": found()})
    result |= {"growth": growth(result), "limits": LIMITS, "judged": judged(result)}
    atomic.write_text(options.out, json.dumps(result, indent=1) + "\n")
    for key, (figure, met) in result["judged"].items():
        print(f"{key}: {figure:.3g}, {'within' if met else 'misses'} {LIMITS[key]}")
    print(f"python benchmarks/show.py {options.out} prints the tables.")
    sys.exit(not all(met for _, met in result["judged"].values()))


if __name__ == "__main__":
    main()
