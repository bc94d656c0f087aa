"""What integers cost networks trained on CamVid, and what each remedy wins back.

python benchmarks/quantisation.py dense=RUN/dense.keras pruned=RUN/pruned.keras \
    --data_dir=DATA/camvid --workdir=runs/quantisation

RUN is a folder of `tfseg-prune run --config=configs/camvid_deeplab_magnitude.py`. Each network
becomes a file in every precision, by every quantizer: the ranges are set by images of the training
set; the bound of the mixed precision is kept on the validation images, as nobody may choose on the
others; the trained one goes through some epochs with its weights and answers rounded. Then every
file is run on all test images. A row that is done isn't measured again.

The goal is at most a point of mIoU less than the float32 file of the same network. A training for
integers is a training, too: what it does to the same network in float is said beside it.
"""

import argparse
import hashlib
import json
import pathlib
import time
from importlib import metadata

import keras
import numpy as np
import study

import tfseg_prune as tsp
from tfseg_prune import atomic, data, deploy, training
from tfseg_prune.deploy import contents
from tfseg_prune.pipeline import files, summary

HERE = pathlib.Path(__file__).resolve().parent
GOAL = 0.01
WAYS = {
    "float32": {"precision": "float32"},
    "float16": {"precision": "float16"},
    "dynamic": {"precision": "dynamic"},
    "int8, converter": {"precision": "int8"},
    "int8, ai_edge": {"precision": "int8", "quantizer": "ai_edge"},
    "int8x16, converter": {"precision": "int8x16"},
    "int8x16, ai_edge": {"precision": "int8x16", "quantizer": "ai_edge"},
    "mixed": {"precision": "mixed"},
    "int8, trained": {"precision": "int8"},
}


class Integers:
    """One network's files.

    Args:
        name: what the rows call the network.
        path: its `.keras` file.
        options: the command line's.
    """

    def __init__(self, name, path, options):
        self.name = name
        self.options = options
        self.model = files.load_model(path)
        self.study = study.CamVid(options, options.seed)
        self.test = self.study.batches("test")
        seen = data.Batches(
            self.study.splits["train"], batch_size=options.batch_size, image_size=options.size
        )
        self.representative = seen.images(options.representative)
        self.miou = None

    def metric(self):
        return training.MeanIoU(
            len(self.study.classes), self.study.splits["test"].ignore_index, sparse_predictions=True
        )

    def row(self, way):
        """The figures of one file, after those of the float32 file."""
        path = self.options.workdir / f"{self.name}_{study.plain(way)}.tflite"
        start = time.monotonic()
        reference, more = self.model, {}
        if way == "int8, trained":
            network = self.trained()
            written, reference = network.export(path, threshold=0.0), network.model
            more = {"miou_trained_float": self.study.score(reference, "test")["miou"]}
        else:
            options = {"representative": self.representative, "threshold": 0.0, **WAYS[way]}
            if way == "mixed":
                validation = self.study.batches("val")
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
        inside = contents.read_contents(path.read_bytes())
        computing = [op for op in inside.ops if op.name not in ("QUANTIZE", "DEQUANTIZE")]
        if way == "float32":
            self.miou = parity.miou
        return {
            "network": self.name,
            "way": way,
            "precision": written.precision,
            "quantizer": written.quantizer,
            "representative_images": written.representative_images,
            "miou_float": self.miou,
            "miou": parity.miou,
            "loss_points": 100 * (self.miou - parity.miou),
            "argmax_agreement": parity.argmax_agreement,
            "images": parity.images,
            "bytes": written.bytes,
            "ops": len(computing),
            "float_ops": sum(inside.types[op.outputs[0]] == "FLOAT32" for op in computing),
            "findings": [str(finding) for finding in written.findings],
            "seconds": round(seconds, 1),
            **more,
        }

    def trained(self):
        keras.utils.set_random_seed(self.options.seed)
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


def described(path):
    """What tells a network from others: its file's hash, its MACs, its parameters."""
    cost = tsp.cost(files.load_model(path))
    return {
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "macs": cost.macs,
        "params": cost.params,
    }


def verdicts(rows):
    """`{network: the plainest way to int8 within the goal}`, `None` where there is none."""
    found = {}
    for name in dict.fromkeys(row["network"] for row in rows):
        own = {row["way"]: row for row in rows if row["network"] == name}
        order = [way for way in WAYS if way.startswith("int8, ") or way == "mixed"]
        good = [way for way in order if way in own and own[way]["loss_points"] <= 100 * GOAL]
        found[name] = good[0] if good else None
    return found


def parse():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="+", metavar="NAME=FILE.keras")
    parser.add_argument("--data_dir", type=pathlib.Path, required=True)
    parser.add_argument("--workdir", type=pathlib.Path, required=True)
    parser.add_argument("--seed", type=int, default=0, help="of the batches of the training")
    parser.add_argument("--size", type=study.numbers(int), default=(176, 240), help="height,width")
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--representative", type=int, default=100, help="images for the ranges")
    parser.add_argument("--loss", type=float, default=GOAL / 2, help="bound of the mixed precision")
    parser.add_argument("--epochs", type=int, default=5, help="of the training for integers")
    parser.add_argument("--rate", type=float, default=1e-4)
    parser.add_argument("--out", type=pathlib.Path, default=HERE / "results" / "quantisation.json")
    return parser.parse_args()


def main():
    options = parse()
    options.workdir.mkdir(parents=True, exist_ok=True)
    paths = {}
    for given in options.models:
        name, _, path = given.partition("=")
        paths[name] = pathlib.Path(path)
    settings = study.settings_of(options)
    settings.pop("models")
    command = study.command_of(
        "quantisation.py",
        settings,
        *(f"{name}=RUN/{path.name}" for name, path in paths.items()),
        *("--data_dir=DATA/camvid", "--workdir=WORK"),
    )
    origin = summary.provenance(command=command, seed=options.seed)
    for extra in ("ai-edge-quantizer", "tf-keras", "tensorflow-model-optimization"):
        origin["versions"][extra] = metadata.version(extra)
    networks = {name: described(path) for name, path in paths.items()}
    held = {**settings, "networks": networks, "commit": origin["commit"]}
    study.hold(options.workdir, held)
    partial = options.workdir / "rows.json"
    rows = json.loads(partial.read_text()) if partial.exists() else []
    for name, path in paths.items():
        network = None
        for way in WAYS:
            if any((row["network"], row["way"]) == (name, way) for row in rows):
                continue
            if network is None:
                network = Integers(name, path, options)
                whole = [r for r in rows if (r["network"], r["way"]) == (name, "float32")]
                network.miou = whole[0]["miou"] if whole else None
            rows.append(network.row(way))
            atomic.write_text(partial, json.dumps(rows))
            shown = {k: v for k, v in rows[-1].items() if k not in ("curve", "findings")}
            print(json.dumps(shown), flush=True)
    result = {
        "kind": "quantisation",
        "name": "Integers on CamVid, DeepLabV3+ with MobileNetV2",
        **origin,
        "settings": settings,
        "goal_points": 100 * GOAL,
        "networks": networks,
        "verdicts": verdicts(rows),
        "rows": rows,
    }
    atomic.write_text(options.out, json.dumps(result, indent=1) + "\n")
    print(f"python benchmarks/show.py {options.out} prints the table.")


if __name__ == "__main__":
    main()
