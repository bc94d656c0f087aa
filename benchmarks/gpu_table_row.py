"""One row of the table of `gpu_table.py`, in a process that may die.

python benchmarks/gpu_table_row.py '{"name": "UNet", ...}' row.json
"""

import json
import pathlib
import sys

import keras
import numpy as np
import segmenters
import study

import tfseg_prune as tsp
from tfseg_prune import atomic, data, deploy, training
from tfseg_prune.bench.sandbox import Sandbox
from tfseg_prune.deploy import parity
from tfseg_prune.pipeline import files

SEED = 0
DENSE, PRUNED = "dense", "pruned"
BUDGET = 0.5
# Least share of the pixels that must get Keras' class, on the CPU and on the GPU.
GOALS = {"float32": (0.999, 0.995), "float16": (0.999, 0.995), "int8": (0.9, 0.9)}
# A driver that compiles for minutes may run into a time limit of the delegate; the next time the
# shaders are in its cache.
_TRIES = 3


class Row:
    """What a row is made of.

    Args:
        job: Dictionary with `name`, `variant`, `precision`, `size`, `folder`, `data_dir`, `images`,
            `fitted`, `representative`, `align` and `trained` (a path or None).
    """

    def __init__(self, job):
        self.job = job
        self.size = tuple(job["size"])
        self.folder = pathlib.Path(job["folder"])

    def images(self, split, count):
        """Real ones, from all over the split."""
        whole = data.load("camvid", split, data_dir=self.job["data_dir"])
        batches = data.Batches(whole.subset(count), batch_size=count, image_size=self.size)
        return batches[0][0]

    def model(self):
        """The network of the row, made or read if it is made."""
        if self.job["trained"]:
            return files.load_model(self.job["trained"])
        path = self._path(self.job["variant"])
        if not path.exists():
            self._make(self.job["variant"], path)
        # Made or not, what is exported is what was read.
        return files.load_model(path)

    def _path(self, variant):
        sides = "x".join(map(str, self.size))
        return self.folder / f"{study.plain(self.job['name'])}_{variant}_{sides}.keras"

    def _make(self, variant, path):
        images = self.images("train", self.job["fitted"])
        if variant == DENSE:
            keras.utils.set_random_seed(SEED)
            model = segmenters.NETWORKS[self.job["name"]].build(self.size)
            segmenters.conditioned(model, images, seed=SEED)
        else:
            source = self.job["dense"] or self._path(DENSE)
            if not pathlib.Path(source).exists():
                self._make(DENSE, source)
            dense = files.load_model(source)
            budget = tsp.Budget(macs=BUDGET)
            plan = tsp.plan(dense, budget=budget, criterion="l1", align=self.job["align"])
            model = tsp.shrink(dense, plan)
            training.recalibrate(model, [(image[None],) for image in images])
            segmenters.fit_classifier(model, images, seed=SEED)
        with atomic.replacing(path) as temporary:
            model.save(temporary)

    def make(self):
        """The row, ready for JSON."""
        model, precision = self.model(), self.job["precision"]
        images = self.images("test", self.job["images"])
        count = self.job["representative"]
        seen = self.images("train", count) if precision == "int8" else None
        cost = tsp.cost(model)
        path = self.folder / f"{self._path(self.job['variant']).stem}_{precision}.tflite"
        written = tsp.export(model, path, precision=precision, representative=seen)
        expected = np.concatenate([np.asarray(model(image[None])) for image in images])
        with Sandbox(path) as opened:
            cpu = np.concatenate([parity.run(opened, image) for image in images])
        shares = np.bincount(expected.argmax(-1).ravel(), minlength=expected.shape[-1])
        row = {
            "macs": cost.macs,
            "params": cost.params,
            "bytes": written.bytes,
            "ops": written.ops,
            "lowered": deploy.summarised(written.lowered),
            "findings": [str(finding) for finding in written.findings],
            # That it tells classes apart at all.
            "largest_class": float(shares.max() / shares.sum()),
            "cpu": compared(cpu, expected),
        }
        row |= self._gpu(model, path, images, expected, float32=False)
        if row["status"] == "wrong" or precision != "int8" and not met(row["gpu"], precision, 1):
            again = self._gpu(model, path, images, expected, float32=True)
            row["gpu_in_float32"] = {"status": again["status"], **(again["gpu"] or {})}
        return judged(row, precision)

    def _gpu(self, model, path, images, expected, *, float32):
        answers = path.with_suffix(".npy")
        for tried in range(_TRIES):
            answers.unlink(missing_ok=True)
            try:
                check = deploy.check_gpu(
                    path, images, model=model, float32=float32, answers=answers
                )
                break
            except ValueError as error:
                if tried + 1 == _TRIES:
                    raise
                print(f"again, after {error}", file=sys.stderr)
        found = compared(np.load(answers), expected) if answers.exists() else None
        answers.unlink(missing_ok=True)
        return {
            "status": check.status,
            "says": check.says,
            "fully_accelerated": check.fully_accelerated,
            "left": list(check.left),
            "signal": check.signal,
            "driver": check.driver,
            "gpu": found,
            "gpu_to_cpu": check.argmax_agreement,
            "rms_diff": check.rms_diff,
            "first_run_seconds": check.first_run_seconds,
            "warm_seconds": check.warm_seconds,
            "tries": tried + 1,
        }


def compared(answers, expected):
    """How far logits `[images, height, width, classes]` agree with Keras'.

    Returns:
        Dictionary of the `agreement` of classes, the `rms` difference over the standard deviation
        of Keras' logits, and by how much of it Keras preferred its class where they disagree:
        `margin`, the median, and `largest_margin`. Roundings turn what was nearly a tie.
    """
    ours, theirs = answers.argmax(-1), expected.argmax(-1)
    differ = ours != theirs
    deviation = float(expected.std()) or 1.0
    preferred = np.take_along_axis(expected, theirs[..., None], -1)[..., 0]
    other = np.take_along_axis(expected, ours[..., None], -1)[..., 0]
    margins = (preferred - other)[differ] / deviation
    return {
        "agreement": float(1 - differ.mean()),
        "rms": float(np.sqrt(np.square(answers - expected, dtype="float64").mean())) / deviation,
        "margin": float(np.median(margins)) if differ.any() else 0.0,
        "largest_margin": float(margins.max()) if differ.any() else 0.0,
    }


def met(found, precision, place):
    return found is not None and found["agreement"] >= GOALS[precision][place]


def judged(row, precision):
    """The row with whether it passes, and if not, the reasons."""
    reasons = []
    if row["status"] != "passed" and row["status"] != "wrong":
        reasons.append(f"{row['status']}: {row['says']}")
        reasons += row["findings"]
    elif not row["fully_accelerated"]:
        reasons.append("not every op is accelerated")
    for place, where in enumerate(("cpu", "gpu")):
        found = row[where]
        if found is not None and not met(found, precision, place):
            goal = GOALS[precision][place]
            reasons.append(
                f"{where.upper()}: {found['agreement']:.3%} of the pixels, not {goal:.1%}; where it"
                f" differs, Keras' margin is {found['margin']:.2g} of the logits' deviation"
                f" (median, the largest {found['largest_margin']:.2g})"
            )
    if row["status"] == "wrong":
        reasons.append(f"GPU to CPU: {row['says']}")
    again = row.get("gpu_in_float32")
    if again and "agreement" in again:
        reasons.append(
            f"computing in float32 the GPU agrees at {again['agreement']:.3%}, logits differ by"
            f" {again['rms']:.2g} of their deviation"
        )
    return {**row, "passes": not reasons, "reasons": reasons}


def main():
    job = json.loads(sys.argv[1])
    try:
        row = Row(job).make()
    except Exception as error:  # whatever it is, it is this row's
        said = " ".join(str(error).split())
        row = {"error": f"{type(error).__name__}: {said}"[:1000], "passes": False}
    atomic.write_text(sys.argv[2], json.dumps(row))


if __name__ == "__main__":
    main()
