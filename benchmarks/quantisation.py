"""What integers cost networks trained on CamVid, and what each remedy wins back.

python benchmarks/quantisation.py dense.keras small.keras --data_dir=DATA/camvid \
    --workdir=runs/integers

Each network becomes a float32 file, then int8 by the converter and by ai-edge-quantizer, int8x16,
mixed (its bound measured on the validation images) and int8 after quantisation-aware training. The
ranges are set by images of the training set. Every file is run on all test images: mIoU, pixels at
which it answers as the Keras model, bytes, seconds to make. The goal: at most a point of mIoU less
than float32. A network of which a row is done isn't measured again.
"""

import argparse
import json
import pathlib
import time

import numpy as np
import study

import tfseg_prune as tsp
from tfseg_prune import atomic, data, deploy, training
from tfseg_prune.pipeline import files

GOAL = 0.01
WAYS = {
    "float32": {"precision": "float32"},
    "int8": {"precision": "int8"},
    "int8, ai_edge": {"precision": "int8", "quantizer": "ai_edge"},
    "int8x16": {"precision": "int8x16"},
    "mixed": {"precision": "mixed"},
    "int8, trained": {},
}


class Integers:
    """One network's files."""

    def __init__(self, path, options):
        self.options = options
        self.path = path
        self.model = files.load_model(path)
        self.study = study.CamVid(options, seed=0)
        self.test = data.Batches(self.study.splits["test"], **self._known())
        seen = data.Batches(self.study.splits["train"], **self._known())
        self.representative = seen.images(options.representative)

    def _known(self):
        return {"batch_size": self.options.batch_size, "image_size": self.options.size}

    def metric(self):
        return training.MeanIoU(
            len(self.study.classes), self.study.splits["test"].ignore_index, sparse_predictions=True
        )

    def row(self, way):
        path = self.options.workdir / f"{self.path.stem}_{study.plain(way)}.tflite"
        start = time.monotonic()
        reference, more = self.model, {}
        if way == "int8, trained":
            network = self.trained()
            written, reference = network.export(path), network.model
        else:
            options = {"representative": self.representative, "threshold": 0.0, **WAYS[way]}
            if way == "mixed":
                validation = data.Batches(self.study.splits["val"], **self._known())
                options.update(images=validation, metric=self.metric(), max_loss=self.options.loss)
            written = tsp.export(self.model, path, **options)
        seconds = time.monotonic() - start
        if written.mixed is not None:
            found = written.mixed
            more = {
                "float_layers": found.float_layers,
                "validation_loss": found.loss,
                "curve": [[p.float_ops, p.loss, p.bytes] for p in found.curve],
            }
        parity = deploy.check_parity(
            reference, path, self.test, metric=self.metric(), threshold=0.0
        )
        return {
            "network": self.path.stem,
            "way": way,
            "miou": parity.miou,
            "argmax_agreement": parity.argmax_agreement,
            "images": parity.images,
            "bytes": written.bytes,
            "seconds": round(seconds, 1),
            **more,
        }

    def trained(self):
        pixels = np.array(self.study.pixels, float)
        return tsp.fit_quantised(
            self.model,
            self.study.batches("train"),
            num_classes=len(self.study.classes),
            ignore_index=self.study.splits["test"].ignore_index,
            epochs=self.options.epochs,
            learning_rate=self.options.rate,
            class_weights=(1 / np.log(1.1 + pixels / pixels.sum())).tolist(),
            representative=self.representative,
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("models", nargs="+", type=pathlib.Path)
    parser.add_argument("--data_dir", type=pathlib.Path, required=True)
    parser.add_argument("--workdir", type=pathlib.Path, required=True)
    parser.add_argument("--size", type=study.numbers(int), default=(176, 240))
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--representative", type=int, default=100)
    parser.add_argument("--loss", type=float, default=GOAL)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--rate", type=float, default=1e-4)
    options = parser.parse_args()
    options.workdir.mkdir(parents=True, exist_ok=True)
    out = options.workdir / "quantisation.json"
    rows = json.loads(out.read_text())["rows"] if out.exists() else []
    for path in options.models:
        network = None
        for way in WAYS:
            if any((row["network"], row["way"]) == (path.stem, way) for row in rows):
                continue
            network = network or Integers(path, options)
            rows.append(network.row(way))
            print(json.dumps({k: v for k, v in rows[-1].items() if k != "curve"}), flush=True)
            settings = study.settings_of(options)
            settings.pop("models")
            atomic.write_text(out, json.dumps({"settings": settings, "rows": rows}, indent=1))
    for row in rows:
        whole = next(
            r["miou"] for r in rows if (r["network"], r["way"]) == (row["network"], "float32")
        )
        verdict = "within the goal" if whole - row["miou"] <= GOAL else "beyond the goal"
        print(f"{row['network']:24} {row['way']:16} {row['miou']:.4f} {verdict}")


if __name__ == "__main__":
    main()
