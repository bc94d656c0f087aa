"""What the studies on CamVid share: data and training, verdicts, and rows that outlive a kill."""

import json
import math
import pathlib
import shlex
import sys

import numpy as np
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from tfseg_prune import atomic, data, training

THIN = ("Pole", "SignSymbol", "Pedestrian")
# 95 % quantile of Student's t by degrees of freedom, from 1.
STUDENT = (6.314, 2.920, 2.353, 2.132, 2.015, 1.943, 1.895, 1.860, 1.833)


class CamVid:
    """The data of one seed, what trains on them, and what a network is worth.

    Args:
        options: Namespace with `workdir`, `data_dir`, `batch_size` and `size` (height, width).
        seed: int, of the order and the augmentation of the batches.
    """

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
        """Trains, or goes on with the training of that name; the history of `training.fit`."""
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
        return training.fit(
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


def plain(name):
    """The name of a row as part of a file's name."""
    return name.replace(",", "").replace(" ", "_")


def verdict(apart):
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


def numbers(kind):
    """The `type` of an option that takes several, with commas."""
    return lambda text: tuple(kind(part) for part in text.split(","))


def settings_of(options):
    """{option: plain value} of all but paths, which say nothing about the figures."""
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in vars(options).items()
        if not isinstance(value, pathlib.Path)
    }


def command_of(script, settings, *paths):
    """The command line that makes a study anew, where `paths` are given as somebody else would."""
    given = [
        f"--{n}={','.join(map(str, v)) if type(v) is list else v}" for n, v in settings.items()
    ]
    return shlex.join(["python", f"benchmarks/{script}", *paths, *given])


def hold(workdir, settings):
    """Ends unless what lies in the folder was made with these settings and this code."""
    path = workdir / "settings.json"
    if path.exists() and json.loads(path.read_text()) != settings:
        sys.exit(
            f"'{workdir}' holds rows of other settings or code. Expected: those of {path}."
            f" Received: {settings}. Remedy: another --workdir, or that commit and settings"
        )
    atomic.write_text(path, json.dumps(settings))


def rows_path(options, seed):
    return options.workdir / f"seed_{seed}" / "rows.json"


def read_rows(options, seed):
    path = rows_path(options, seed)
    return json.loads(path.read_text()) if path.exists() else []


def make_rows(options, rows, todo, make, told):
    """Adds the rows that are still to be made, each kept on the disk as soon as it is there.

    Args:
        options: Namespace with `workdir`.
        rows: {seed: list of rows}, which grow.
        todo: Sequence of (seed, *what).
        make: Function `(seed, *what) -> row`.
        told: Function `row -> str`, what a line says about it.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeRemainingColumn(elapsed_when_finished=True)) as progress:
        task = progress.add_task("", total=len(todo))
        for seed, *what in todo:
            name = " ".join(map(str, what))
            progress.update(task, description=f"seed {seed}: {name}")
            row = make(seed, *what)
            rows[seed].append(row)
            atomic.write_text(rows_path(options, seed), json.dumps(rows[seed]))
            progress.console.print(f"seed {seed} {name}: {told(row)}", markup=False)
            progress.advance(task)
