"""What the stages of a run work with: its data, its networks and their training."""

import functools
import pathlib

import numpy as np

from tfseg_prune import data, models, training
from tfseg_prune.pipeline import files


class Workbench:
    """Data, networks and training as a config wants them.

    Attributes:
        config: `ConfigDict`, see `default_config`.
        store: `Store` of the run.
        results: {stage: what it found} so far.
    """

    def __init__(self, config, store):
        self.config = config
        self.store = store
        self.results = {}

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
        if own.data_dir:
            for path in sorted(pathlib.Path(own.data_dir).expanduser().rglob("*")):
                if path.is_file():
                    about = path.stat()
                    settings.append([str(path), about.st_size, about.st_mtime_ns])
        return settings

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

    def _train_batches(self):
        own = self.config.train
        jitter = dict.fromkeys(("brightness", "contrast", "saturation"), own.jitter)
        augment = data.Augment(scale=own.scale, flip=own.flip, **jitter)
        return self._batches(
            "train", augment=augment, shuffle=True, seed=self.config.seed, drop_remainder=True
        )

    # Training.

    def _build(self):
        own = self.config.model
        if own.path:
            return self._fitting(files.load_model(own.path))
        if own.name not in models.__all__ or own.name == "load_weights":
            names = ", ".join(name for name in models.__all__ if name != "load_weights")
            raise ValueError(
                f"There is no network '{own.name}'. Expected: {names}, or your own file as"
                f" model.path. Received: model.name={own.name!r}"
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

    def _fit(self, model, stage, key, epochs, learning_rate, callbacks=()):
        """Trains, resumable under the stage's key; answers how long, and all epochs."""
        own = self.config.train
        if epochs == 0:
            return {"epochs": 0, "train_seconds": 0.0, "history": []}
        train = self._train_batches()
        weights = None
        if own.class_weights == "log":
            pixels = np.array(self.results["check"]["pixels"]["train"], float)
            weights = (1 / np.log(1.1 + pixels / pixels.sum())).tolist()
        training.compile_segmenter(
            model,
            optimizer=training.optimizer(
                own.optimizer,
                learning_rate=learning_rate,
                steps=epochs * len(train),
                power=own.power,
                weight_decay=own.weight_decay,
            ),
            num_classes=self._dataset.num_classes,
            ignore_index=self._dataset.ignore_index,
            class_weights=weights,
        )
        # A folder per key: other settings never resume from these checkpoints.
        checkpoints = self.store.path("checkpoints") / f"{stage}-{key}"
        history = training.fit(
            model,
            train,
            epochs=epochs,
            checkpoint_dir=checkpoints,
            log_path=self.store.path("metrics.jsonl"),
            stage=stage,
            validation=self._batches("val"),
            callbacks=callbacks,
            keep=own.keep if not callbacks else "last",  # what they saw is of all epochs
        )
        return {
            "epochs": epochs,
            "train_seconds": round(sum(row["seconds"] for row in history), 1),
            "history": history,
        }
