"""What the stages of a run work with: its data, its networks and their training."""

import dataclasses
import functools
import pathlib
import shutil
from collections.abc import Callable

import keras
import numpy as np

from tfseg_prune import data, models, training
from tfseg_prune.pipeline import files


@dataclasses.dataclass(frozen=True)
class Task:
    """What a network learns.

    Attributes:
        train: Batches of an epoch.
        validation: Batches on which it is looked at after each.
        compile: Function `(model, optimizer=...)` that sets loss and metrics.
    """

    train: keras.utils.PyDataset
    validation: keras.utils.PyDataset
    compile: Callable


class Workbench:
    """Data, networks and training as a config wants them, and stages that are done once.

    Attributes:
        config: `ConfigDict`, see `default_config`.
        store: `Store` of the run.
        console: `rich.console.Console` for progress.
        results: {stage: what it found} so far.
        may_work: Whether a stage that isn't done is run; otherwise it is an error.
    """

    def __init__(self, config, store, console):
        self.config = config
        self.store = store
        self.console = console
        self.results = {}
        self.may_work = True

    # Stages.

    def say(self, text):
        self.console.print(text, markup=False, soft_wrap=True)

    def _stage(self, name, work, **options):
        if not self.may_work:
            work = None
        self.results[name] = self.store.run(name, work, say=self.say, **options)
        return self.results[name]

    def _forget(self, stage):
        """Removes checkpoints whose stage has left its output."""
        for folder in self.store.path("checkpoints").glob(f"{stage}-*"):
            shutil.rmtree(folder, ignore_errors=True)

    def _say_cost(self, full, reached):
        """Tells two costs; answers both as plain values."""
        told = []
        for name, words in (
            *(("macs", "MACs"), ("params", "parameters")),
            ("padded_macs", "MACs of widths rounded up to 4"),
        ):
            if name != "padded_macs" or self.config.pruning.budget.padded_macs is not None:
                before, after = getattr(full, name), getattr(reached, name)
                told.append(f"{words} {before:,} to {after:,} ({after / before:.3f})")
        self.say(f"  {', '.join(told)}")
        return [dataclasses.asdict(cost) for cost in (full, reached)]

    @property
    def _fit_settings(self):
        own = self.config
        return [*self._image_settings, own.train.to_dict(), own.seed]

    @property
    def _model_settings(self):
        own = self.config.model
        sources = [
            files.digest(path)
            for path in (own.path, own.weights)
            if path and pathlib.Path(path).is_file()
        ]
        return [self._fit_settings, own.to_dict(), sources]

    # Data.

    @functools.cached_property
    def _splits(self):
        own = self.config.data
        folder = {"data_dir": own.data_dir} if own.data_dir else {}
        return {
            split: data.load(own.name, split, **folder, **own[split])
            for split in ("train", "val", "test")
        }

    @property
    def _dataset(self):
        return self._splits["test"]

    @functools.cached_property
    def _data_settings(self):
        """The data's settings, and what its files look like from outside."""
        own = self.config.data
        settings = [own.name, own.data_dir]
        settings += [own[split].to_dict() for split in ("train", "val", "test")]
        return settings + (self._files_under(own.data_dir) if own.data_dir else [])

    def _files_under(self, folder):
        found = []
        for path in sorted(pathlib.Path(folder).expanduser().rglob("*")):
            if path.is_file():
                about = path.stat()
                found.append([str(path), about.st_size, about.st_mtime_ns])
        return found

    @property
    def _image_settings(self):
        own = self.config.data
        return [self._data_settings, own.image_size, own.scale, own.offset]

    def _batches(self, dataset, **options):
        own = self.config.data
        return data.Batches(
            self._splits[dataset] if isinstance(dataset, str) else dataset,
            batch_size=self.config.train.batch_size,
            image_size=own.image_size,
            scale=own.scale,
            offset=own.offset,
            workers=own.workers,
            **options,
        )

    def _train_batches(self, **options):
        own = self.config.train
        jitter = dict.fromkeys(("brightness", "contrast", "saturation"), own.jitter)
        augment = data.Augment(scale=own.scale, flip=own.flip, shift=own.shift, **jitter)
        options |= {"augment": augment, "shuffle": True, "drop_remainder": True}
        return self._batches("train", seed=self.config.seed, **options)

    def _segmentation(self, *, stride=1, constant=1.1):
        """The `Task` to segment.

        Args:
            stride: Pixels of an image, in each direction, for each answer.
            constant: K of the class weights 1 / ln(K + frequency).
        """
        weights = None
        if self.config.train.class_weights == "log":
            pixels = np.array(self.results["check"]["pixels"]["train"], float)
            weights = (1 / np.log(constant + pixels / pixels.sum())).tolist()
        compiling = functools.partial(
            training.compile_segmenter,
            num_classes=self._dataset.num_classes,
            ignore_index=self._dataset.ignore_index,
            class_weights=weights,
        )
        validation = self._batches("val", label_stride=stride)
        return Task(self._train_batches(label_stride=stride), validation, compiling)

    # Training.

    def _build(self):
        own = self.config.model
        if own.path:
            return self._fitting(files.load_model(own.path))
        names = [n for n in models.__all__ if not n.endswith(("_weights", "_encoder"))]
        if own.name not in names:
            raise ValueError(
                f"There is no network '{own.name}'. Expected: {', '.join(names)}, or your own file"
                f" as model.path. Received: model.name={own.name!r}"
            )
        options = own.options.to_dict()
        if own.weights:
            options["weights"] = own.weights
        try:
            return getattr(models, own.name)(
                self._dataset.num_classes, (*self.config.data.image_size, 3), **options
            )
        except TypeError as error:
            raise ValueError(f"model.options don't fit '{own.name}': {error}") from error

    def _fitting(self, model):
        """The user's own model, if it takes and answers what the data are."""
        size = (*self.config.data.image_size, 3)
        wanted = (None, *size), (None, *size[:2], self._dataset.num_classes)
        shapes = getattr(model, "input_shape", None), getattr(model, "output_shape", None)
        if not all(
            isinstance(shape, tuple)
            and len(shape) == 4
            and all(None in pair or len(set(pair)) == 1 for pair in zip(shape, whole))
            for shape, whole in zip(shapes, wanted)
        ):
            raise ValueError(
                f"The model '{self.config.model.path}' doesn't fit the data. Expected: images"
                f" {wanted[0]} to logits {wanted[1]}, for data.image_size="
                f"{self.config.data.image_size} and {self._dataset.num_classes} classes. Received:"
                f" {shapes[0]} to {shapes[1]}"
            )
        return model

    def _fit(self, model, stage, key, epochs, learning_rate, callbacks=(), task=None):
        """Trains, resumable under the stage's key; answers how long, and all epochs.

        Of a task of its own, and where callbacks look on, the last epoch is kept.
        """
        own = self.config.train
        if epochs == 0:
            return {"epochs": 0, "train_seconds": 0.0, "history": []}
        keep = own.keep if task is None and not callbacks else "last"
        task = task or self._segmentation()
        optimizer = training.optimizer(
            own.optimizer,
            learning_rate=learning_rate,
            steps=epochs * len(task.train),
            power=own.power,
            weight_decay=own.weight_decay,
        )
        task.compile(model, optimizer=optimizer)
        # A folder per key: other settings never resume from these checkpoints.
        checkpoints = self.store.path("checkpoints") / f"{stage}-{key}"
        history = training.fit(
            model,
            task.train,
            epochs=epochs,
            checkpoint_dir=checkpoints,
            log_path=self.store.path("metrics.jsonl"),
            stage=stage,
            validation=task.validation,
            callbacks=callbacks,
            keep=keep,
        )
        return {
            "epochs": epochs,
            "train_seconds": round(sum(row["seconds"] for row in history), 1),
            "history": history,
        }
