"""Compares what decides about channels, on CamVid: SIRFP, its ablations and the usual criteria.

python benchmarks/camvid_criteria.py --data_dir=DATA/camvid --weights=WEIGHTS.npz --workdir=runs/x

For each seed, DeepLabV3+ with MobileNetV2 is trained (the base). It then trains on for some epochs
while the gradients are collected, and all criteria but SIRFP score that network; each variant of
SIRFP watches epochs of its own, from the same base with the same batches. Each plan meets its
budget, with one threshold for the backbone and one for the decoder ("layer": the same fraction of
every layer), and at least a tenth of every layer stays. Coupled scores count by their mean, with
SIRFP by their maximum, as in the paper; its two rounds are one here. Batch statistics are set anew,
and every smaller network is fine-tuned equally long at the same rate. The control is the dense
network that trained as long in all.

Scores are IoU on all 233 test images: their mean, and the mean of the thin classes (pole, sign,
pedestrian). A claim "a over b" is "shown" if a is ahead with every seed and the 90 % interval of
the mean difference (Student's, paired by seed) lies above 0; "contradicted" likewise; else, or with
fewer than three seeds, "not shown". Of many claims without substance one in ten would get a verdict
by chance.

An interrupted run goes on where it was when the command is given again, with the same settings and
code. Several processes may share the work if each has seeds of its own (`--seeds=0`); the command
with all seeds then writes the result.
"""

import argparse
import json
import math
import pathlib
import shlex
import sys
import time

import keras
import numpy as np
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

import tfseg_prune as tsp
from tfseg_prune import atomic, data, training
from tfseg_prune.pipeline import files, summary

HERE = pathlib.Path(__file__).resolve().parent
THIN = ("Pole", "SignSymbol", "Pedestrian")

# Name -> arguments of `tsp.SIRFP`, or of `tsp.plan`.
SIRFP = {
    "sirfp": {},
    "sirfp, edge prior": {"prior": "edge"},
    "sirfp, gradient prior": {"prior": "gradient"},
    "sirfp, pooled": {"pooled": True},
    "sirfp, power 8": {"power": 8},
}
CRITERIA = {
    "fpgm": {"criterion": "fpgm"},
    "taylor": {"criterion": "taylor"},
    "l1": {"criterion": "l1"},
    "bn_gamma": {"criterion": "bn_gamma"},
    "random": {"criterion": "random"},
    "dcfp": {"criterion": "dcfp"},
    "fpgm, layer": {"criterion": "fpgm", "ranking": "layer"},
    "l1, layer": {"criterion": "l1", "ranking": "layer"},
}
MAIN = ("sirfp", "fpgm", "taylor", "l1", "bn_gamma", "random")
ABLATED = 0.6  # the fraction of the MACs that the others are compared at
# 95 % quantile of Student's t by degrees of freedom, from 1.
STUDENT = (6.314, 2.920, 2.353, 2.132, 2.015, 1.943, 1.895, 1.860, 1.833)
# (ahead, behind, what it says) at every fraction that both have.
CLAIMS = (
    *(("sirfp", other, "SIRFP is ahead of the criterion") for other in MAIN[1:]),
    ("sirfp", "dcfp", "SIRFP is ahead of the criterion"),
    ("sirfp", "sirfp, pooled", "where things are matters"),
    ("sirfp, edge prior", "sirfp", "the edge prior helps"),
    ("sirfp, gradient prior", "sirfp", "the gradient prior helps"),
    ("sirfp, power 8", "sirfp", "twins weigh more than many slight likenesses"),
)


class Study:
    """One seed: its networks and what they are worth."""

    def __init__(self, options, seed):
        self.options = options
        self.seed = seed
        self.folder = options.workdir / f"seed_{seed}"
        self.splits = {
            split: data.load("camvid", split, data_dir=str(options.data_dir))
            for split in ("train", "val", "test")
        }
        self.classes = [item.name for item in self.splits["test"].classes]

    def batches(self, split):
        known = {"batch_size": self.options.batch_size, "image_size": self.options.size}
        if split != "train":
            return data.Batches(self.splits[split], **known)
        jitter = dict.fromkeys(("brightness", "contrast", "saturation"), 0.25)
        augment = data.Augment(scale=(0.6, 1.8), flip=True, **jitter)
        return data.Batches(
            self.splits["train"],
            augment=augment,
            shuffle=True,
            seed=self.seed,
            drop_remainder=True,
            **known,
        )

    def fit(self, model, epochs, rate, name, callbacks=()):
        train = self.batches("train")
        pixels = np.array(self.pixels, float)
        training.compile_segmenter(
            model,
            optimizer=training.optimizer(
                "adamw",
                learning_rate=rate,
                steps=epochs * len(train),
                power=0.9,
                weight_decay=1e-4,
            ),
            num_classes=len(self.classes),
            ignore_index=self.splits["test"].ignore_index,
            class_weights=(1 / np.log(1.1 + pixels / pixels.sum())).tolist(),
        )
        training.fit(
            model,
            train,
            epochs=epochs,
            checkpoint_dir=self.folder / "checkpoints" / name,
            stage=name,
            callbacks=callbacks,
            verbose=False,
        )

    @property
    def pixels(self):
        path = self.options.workdir / "pixels.json"
        if not path.exists():
            atomic.write_text(path, json.dumps(self.splits["train"].validate().tolist()))
        return json.loads(path.read_text())

    def score(self, model, split):
        found = training.evaluate(
            model,
            self.batches(split),
            num_classes=len(self.classes),
            ignore_index=self.splits["test"].ignore_index,
        )
        by_class = dict(zip(self.classes, found.per_class_iou))
        return {
            "miou": found.miou,
            "thin": float(np.mean([by_class[name] for name in THIN])),
            "per_class_iou": {name: float(value) for name, value in by_class.items()},
        }

    def base(self):
        path = self.folder / "base.keras"
        if not path.exists():
            keras.utils.set_random_seed(self.seed)
            model = tsp.models.deeplab_v3_plus(
                len(self.classes), (*self.options.size, 3), weights=str(self.options.weights)
            )
            self.fit(model, self.options.epochs, self.options.rate, "base")
            files.save_model(model, path)
        return files.load_model(path)

    def observe(self, name):
        """Path of the network that a variant of SIRFP, or "criteria", saw; makes the plans, too."""
        path = self.folder / f"observed_{_plain(name)}.keras"
        if path.exists():
            return path
        self.base()
        # Before loading, which draws the seeds of dropout.
        keras.utils.set_random_seed(100 + self.seed)
        model = self.base()
        if name == "criteria":
            pruner, trained = tsp.Gradients(model), model
        else:
            options = {"budget": tsp.Budget(macs=0.5), "floor": self.options.floor}
            pruner = tsp.SIRFP(model, **options, **SIRFP[name])
            trained = pruner.model
        stage = f"observe_{_plain(name)}"
        self.fit(trained, self.options.observe, self.options.observe_rate, stage, [pruner])
        for removed in self.options.removed:
            budget = tsp.Budget(macs=1.0 - removed)
            if name != "criteria":
                pruner.plan(budget).save(self.plan_path(name, removed))
                continue
            for method, chosen in CRITERIA.items():
                options = {"ranking": "scope", "floor": self.options.floor, **chosen}
                plan = tsp.plan(model, budget=budget, gradients=pruner, seed=self.seed, **options)
                plan.save(self.plan_path(method, removed))
        files.save_model(model, path)  # last, so that what exists is whole
        keras.backend.clear_session()
        return path

    def plan_path(self, method, removed):
        return self.folder / f"plan_{_plain(method)}_{removed}.json"

    def row(self, method, removed):
        """The row of one smaller network, or of the control (`method="dense"`)."""
        keras.backend.clear_session()
        path = self.observe(method if method in SIRFP else "criteria")
        keras.utils.set_random_seed(200 + self.seed)
        model = files.load_model(path)
        whole = tsp.cost(model)
        start = time.monotonic()
        if method != "dense":
            model = tsp.shrink(model, tsp.PruningPlan.load(self.plan_path(method, removed)))
            training.recalibrate(model, self.batches("train"), steps=self.options.recalibrate)
        cost = tsp.cost(model)
        name = f"{_plain(method)}_{removed}"
        self.fit(model, self.options.finetune, self.options.finetune_rate, name)
        return {
            "seed": self.seed,
            "method": method,
            "removed": removed,
            "macs": cost.macs / whole.macs,
            "params": cost.params / whole.params,
            **self.score(model, "test"),
            "seconds": time.monotonic() - start,
        }


def wanted(options):
    """(seed, method, fraction of the MACs that goes) of all rows, the most telling first."""
    first = [ABLATED] if ABLATED in options.removed else []
    others = [removed for removed in reversed(options.removed) if removed not in first]
    methods = [("dense", 0.0), *((method, removed) for removed in first for method in MAIN)]
    methods += [(method, removed) for removed in first for method in SIRFP if method not in MAIN]
    methods += [(method, removed) for removed in others for method in MAIN]
    methods += [(method, removed) for removed in first for method in CRITERIA if method not in MAIN]
    return [(seed, method, removed) for seed in options.seeds for method, removed in methods]


def _plain(name):
    return name.replace(",", "").replace(" ", "_")


def claims(rows, score):
    """One dict per claim and fraction: the mean difference over the seeds and the verdict."""
    values = {(row["method"], row["removed"], row["seed"]): row[score] for row in rows}
    found = []
    for ahead, behind, says in CLAIMS:
        for removed in sorted({row["removed"] for row in rows}):
            apart = [
                value - values[behind, removed, seed]
                for (method, where, seed), value in values.items()
                if (method, where) == (ahead, removed) and (behind, removed, seed) in values
            ]
            if apart:
                verdict = _verdict(np.array(apart))
                found.append(
                    {
                        "claim": f"{ahead} over {behind}",
                        "says": says,
                        "removed": removed,
                        "score": score,
                        "mean": float(np.mean(apart)),
                        "seeds": len(apart),
                        "verdict": verdict,
                    }
                )
    return found


def _verdict(apart):
    """What differences, one per seed, say about a claim."""
    count = len(apart)
    if count < 3:
        return "not shown"
    margin = STUDENT[min(count - 1, len(STUDENT)) - 1] * apart.std(ddof=1) / math.sqrt(count)
    if apart.min() > 0 and apart.mean() > margin:
        return "shown"
    if apart.max() < 0 and -apart.mean() > margin:
        return "contradicted"
    return "not shown"


def parse():
    def numbers(kind):
        return lambda text: tuple(kind(part) for part in text.split(","))

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data_dir", type=pathlib.Path, required=True)
    parser.add_argument("--weights", type=pathlib.Path, required=True, help="ImageNet MobileNetV2")
    parser.add_argument("--workdir", type=pathlib.Path, required=True)
    parser.add_argument("--seeds", type=numbers(int), default=(0, 1, 2))
    parser.add_argument("--removed", type=numbers(float), default=(0.4, 0.6, 0.8))
    parser.add_argument("--size", type=numbers(int), default=(176, 240), help="height,width")
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=20, help="of the base")
    parser.add_argument("--rate", type=float, default=7e-4)
    parser.add_argument("--observe", type=int, default=2, help="epochs of observation")
    parser.add_argument("--observe_rate", type=float, default=1e-4)
    parser.add_argument("--finetune", type=int, default=8, help="epochs after pruning")
    parser.add_argument("--finetune_rate", type=float, default=5e-4)
    parser.add_argument("--recalibrate", type=int, default=20)
    parser.add_argument("--floor", type=float, default=0.1)
    parser.add_argument(
        "--out", type=pathlib.Path, default=HERE / "results" / "camvid_criteria.json"
    )
    return parser.parse_args()


def _hold(workdir, settings):
    """Ends unless what lies in the folder was made with these settings and this code."""
    path = workdir / "settings.json"
    if path.exists() and json.loads(path.read_text()) != settings:
        sys.exit(
            f"'{workdir}' holds rows of other settings or code. Expected: those of {path}."
            f" Received: {settings}. Remedy: another --workdir, or that commit and settings"
        )
    atomic.write_text(path, json.dumps(settings))


def _rows_path(options, seed):
    return options.workdir / f"seed_{seed}" / "rows.json"


def _read_rows(options, seed):
    path = _rows_path(options, seed)
    return json.loads(path.read_text()) if path.exists() else []


def main():
    options = parse()
    options.workdir.mkdir(parents=True, exist_ok=True)
    rows = {seed: _read_rows(options, seed) for seed in options.seeds}
    done = {(row["seed"], row["method"], row["removed"]) for own in rows.values() for row in own}
    todo = [key for key in wanted(options) if key not in done]
    settings = {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in vars(options).items()
        if not isinstance(value, pathlib.Path)
    }
    given = [
        f"--{n}={','.join(map(str, v)) if type(v) is list else v}" for n, v in settings.items()
    ]
    command = shlex.join(
        [
            *("python", "benchmarks/camvid_criteria.py", "--data_dir=DATA/camvid"),
            *("--weights=WEIGHTS.npz", "--workdir=RUN", *given),
        ]
    )
    origin = summary.provenance(command=command, seed=options.seeds[0])
    _hold(options.workdir, {**settings, "seeds": None, "commit": origin["commit"]})
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeRemainingColumn(elapsed_when_finished=True)) as progress:
        task = progress.add_task("", total=len(todo))
        for seed, method, removed in todo:
            progress.update(task, description=f"seed {seed}: {method} {removed}")
            study = Study(options, seed)
            row = study.row(method, removed)
            rows[seed].append(row)
            atomic.write_text(_rows_path(options, seed), json.dumps(rows[seed]))
            progress.console.print(
                f"seed {seed} {method} {removed}: MACs {row['macs']:.3f}, mIoU {row['miou']:.4f},"
                f" thin {row['thin']:.4f}, {row['seconds']:.0f} s",
                markup=False,
            )
            progress.advance(task)
    rows = [row for own in rows.values() for row in own]
    if len(options.seeds) < 3:
        print("The command with all seeds writes the result.")
        return
    result = {
        "kind": "criteria",
        "name": "Criteria on CamVid, DeepLabV3+ with MobileNetV2",
        **origin,
        "seeds": list(options.seeds),
        "settings": settings,
        "claims": [claim for score in ("miou", "thin") for claim in claims(rows, score)],
        "rows": rows,
    }
    atomic.write_text(options.out, json.dumps(result, indent=1) + "\n")
    print(f"python benchmarks/show.py {options.out} prints the table.")


if __name__ == "__main__":
    main()
