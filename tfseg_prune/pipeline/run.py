"""The stages: check, train, prune, finetune, evaluate, export, bench, report."""

import dataclasses
import functools
import json
import pathlib
import shutil

import keras
import numpy as np
from rich.console import Console

from tfseg_prune import atomic, data, deploy, graph, models, training
from tfseg_prune.bench import host, schema, stats
from tfseg_prune.methods import oneshot
from tfseg_prune.pipeline import files
from tfseg_prune.pipeline.config import budget_values, check_config
from tfseg_prune.pipeline.store import Store
from tfseg_prune.pipeline.summary import MODELS, summarise
from tfseg_prune.report import html, strips, table
from tfseg_prune.search import Budget

STAGES = ("train", "prune", "finetune", "export", "bench", "report")


def run(config, workdir, stages=STAGES, *, command=None, console=None):
    """Runs stages of a run in order; what is done and unchanged is skipped.

    ```python
    config = tfseg_prune.pipeline.default_config()
    config.pruning.budget.macs = 0.5
    run(config, "runs/streets")
    ```

    The working directory then holds `base.keras` (trained), `plan.json`, `small.keras` (pruned,
    not yet fine-tuned), `pruned.keras`, `dense.keras` (the control: the base trained as long as
    the pruned network in all), a `.tflite` file per network and precision, `metrics.jsonl`,
    `bench.json`, `summary.json` and `report.html`.

    Args:
        config: See `default_config`.
        workdir: Folder for all files.
        stages: Some of `STAGES`, in this order. Each reads the files of those before it as they
            lie in the folder; "report" insists that all were made with these settings.
        command: The command line, for the report's provenance.
        console: `rich.console.Console` for progress.

    Returns:
        The summary as in `summary.json`, if the report was made, else `None`.

    Raises:
        ValueError: On a setting, a data set or a model that can't be used.
        TrainingError: If training diverged or a checkpoint can't be written.
        ParityError: If an exported file doesn't answer as its model.
    """
    check_config(config)
    if "train" not in stages and not pathlib.Path(workdir).is_dir():
        raise ValueError(
            f"The stage '{stages[0]}' goes on from what others left. Expected: the working"
            f" directory of a run. Received: '{workdir}', which is no folder"
        )
    steps = _Run(config, workdir, command, console or Console(highlight=False))
    with steps.store.locked():
        return steps.run(stages)


class _Run:
    def __init__(self, config, workdir, command, console):
        self.config = config
        self.command = command
        self.console = console
        self.budget = Budget(**budget_values(config))
        self.store = Store(workdir)
        self.results = {}
        self.may_work = True

    def run(self, stages):
        # What can be wrong with data or model is wrong before hours of training, not after.
        if set(stages) & {"train", "finetune", "export"}:
            self._stage("check", self._check_data, settings=self._data_settings)
        if "train" in stages:
            self._stage(
                "check_model",
                self._check_model,
                settings=[self._model_settings, self._prune_settings],
            )
        summary = None
        for stage in stages:
            summary = getattr(self, f"_run_{stage}")()
        return summary if stages[-1] == "report" else None

    def say(self, text):
        self.console.print(text, markup=False, soft_wrap=True)

    def _stage(self, name, work, **options):
        if not self.may_work:
            work = None
        self.results[name] = self.store.run(name, work, say=self.say, **options)
        return self.results[name]

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

    def _check_data(self, key):
        pixels = {}
        for split, dataset in self._splits.items():
            self.say(f"  {split}: {len(dataset)} images of {dataset.name}")
            pixels[split] = dataset.validate().tolist()
        return {"pixels": pixels}

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

    def _plan(self, model):
        own = self.config.pruning
        options = {
            name: own[name] for name in ("criterion", "ranking", "align", "floor", "exclude")
        }
        return oneshot.plan(model, budget=self.budget, seed=self.config.seed, **options)

    def _check_model(self, key):
        """Builds the model and plans on its first weights: what can be reached is the same."""
        keras.utils.set_random_seed(self.config.seed)
        self._train_batches()
        self._plan(self._build())

    def _fit(self, model, stage, key, epochs, learning_rate):
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
            keep=own.keep,
        )
        return {
            "epochs": epochs,
            "train_seconds": round(sum(row["seconds"] for row in history), 1),
            "history": history,
        }

    def _fit_settings(self):
        own = self.config
        return [*self._image_settings, own.train.to_dict(), own.seed]

    @property
    def _model_settings(self):
        own = self.config.model
        sources = [files.digest(path) for path in (own.path, own.weights) if _is_file(path)]
        return [self._fit_settings(), own.to_dict(), sources]

    @property
    def _prune_settings(self):
        own = self.config
        steps = own.finetune.recalibrate
        return [own.pruning.to_dict(), own.seed, steps, self._fit_settings() if steps else None]

    def _forget(self, stage):
        """Removes checkpoints whose stage has left its output."""
        for folder in self.store.path("checkpoints").glob(f"{stage}-*"):
            shutil.rmtree(folder, ignore_errors=True)

    def _run_train(self):
        def work(key):
            keras.utils.set_random_seed(self.config.seed)
            model = self._build()
            own = self.config.train
            result = self._fit(model, "train", key, own.epochs, own.learning_rate)
            files.save_model(model, self.store.path("base.keras"))
            return result

        self._stage("train", work, settings=self._model_settings, outputs=["base.keras"])
        self._forget("train")

    def _run_prune(self):
        def work(key):
            model = files.load_model(self.store.path("base.keras"))
            plan = self._plan(model)
            small = graph.shrink(model, plan, fold_constants=self.config.pruning.fold_constants)
            if self.config.finetune.recalibrate:
                training.recalibrate(
                    small, self._train_batches(), steps=self.config.finetune.recalibrate
                )
            plan.save(self.store.path("plan.json"))
            files.save_model(small, self.store.path("small.keras"))
            full, reached = graph.cost(model), graph.cost(small)
            self.say(
                f"  MACs {full.macs:,} to {reached.macs:,} ({reached.macs / full.macs:.3f}),"
                f" parameters {full.params:,} to {reached.params:,}"
                f" ({reached.params / full.params:.3f})"
            )
            widths = [[name, plan.widths[name], len(kept)] for name, kept in plan.keep.items()]
            return {"widths": widths, "cost": [dataclasses.asdict(c) for c in (full, reached)]}

        self._stage(
            "prune",
            work,
            settings=self._prune_settings,
            inputs=["base.keras"],
            outputs=["plan.json", "small.keras"],
        )

    def _run_finetune(self):
        own = self.config.finetune
        # Both go on with the same data, rate and number of epochs; only one was pruned.
        for stage, source, output in (
            ("finetune", "small.keras", "pruned.keras"),
            ("control", "base.keras", "dense.keras"),
        ):
            epochs = own.epochs if own.control or stage == "finetune" else 0

            def work(key, stage=stage, source=source, output=output, epochs=epochs):
                # Before loading, which draws the seeds of dropout.
                keras.utils.set_random_seed(self.config.seed + 1)
                model = files.load_model(self.store.path(source))
                result = self._fit(model, stage, key, epochs, own.learning_rate)
                files.save_model(model, self.store.path(output))
                return result

            self._stage(
                stage,
                work,
                settings=[self._fit_settings(), own.learning_rate, epochs],
                inputs=[source],
                outputs=[output],
            )
            self._forget(stage)

    # Proof and measurement.

    def _evaluate(self, name):
        def work(key):
            model = files.load_model(self.store.path(f"{name}.keras"))
            found = training.evaluate(
                model,
                self._batches("test"),
                num_classes=self._dataset.num_classes,
                ignore_index=self._dataset.ignore_index,
            )
            self.say(f"  {name}: test mIoU {found.miou:.4f}")
            cost = graph.cost(model)
            return {
                "params": cost.params,
                "macs": cost.macs,
                "miou": found.miou,
                "per_class_iou": self._by_class(found.per_class_iou),
                "pixel_accuracy": found.pixel_accuracy,
            }

        return self._stage(
            f"evaluate_{name}",
            work,
            settings=self._image_settings,
            inputs=[f"{name}.keras"],
        )

    def _by_class(self, values):
        names = [item.name for item in self._dataset.classes]
        return {n: None if np.isnan(v) else float(v) for n, v in zip(names, values)}

    def _run_export(self):
        failures = []
        for precision in self.config.export.precisions:
            for name in MODELS:
                try:
                    self._export(name, precision)
                except deploy.ParityError as error:
                    # The other files are worth having; the run fails all the same.
                    failures.append(error)
                    self.say(f"  {error}")
        if failures:
            raise failures[0]

    def _export(self, name, precision):
        own = self.config.export
        output = f"{name}_{precision}.tflite"

        def work(key):
            model = files.load_model(self.store.path(f"{name}.keras"))
            calibration = self._batches("train")
            count = min(own.representative_images, len(self._splits["train"]))
            representative = calibration.images(count) if precision == "int8" else None
            test = self._splits["test"]
            if own.parity_images:
                test = test.subset(min(own.parity_images, len(test)))
            images = self._batches(test)
            metric = training.MeanIoU(
                self._dataset.num_classes, self._dataset.ignore_index, sparse_predictions=True
            )
            written = deploy.export(
                model,
                self.store.path(output),
                precision=precision,
                tail=own.tail,
                representative=representative,
                representative_images=count,
                images=images,
                threshold=own.thresholds[precision],
                metric=metric,
            )
            parity = written.parity
            self.say(
                f"  {name} {precision}: {written.bytes:,} bytes, agreement"
                f" {parity.argmax_agreement:.3%} on {parity.images} images, mIoU {parity.miou:.4f}"
            )
            return {
                "bytes": written.bytes,
                "ops": written.ops,
                "argmax_agreement": parity.argmax_agreement,
                "max_abs_diff": parity.max_abs_diff,
                "images": parity.images,
                "miou": parity.miou,
                "per_class_iou": self._by_class(metric.per_class()),
            }

        return self._stage(
            f"export_{name}_{precision}",
            work,
            settings=[
                self._image_settings,
                {k: own[k] for k in ("tail", "parity_images")},
                own.representative_images if precision == "int8" else None,
                own.thresholds[precision],
            ],
            inputs=[f"{name}.keras"],
            outputs=[output],
        )

    def _run_bench(self):
        own = self.config.bench

        def work(key):
            ratios, results = {}, []
            for precision in self.config.export.precisions:
                # Both take turns in one run, so that the ratio holds on a busy machine.
                timed = host.time_models(
                    {n: self.store.path(f"{n}_{precision}.tflite") for n in MODELS},
                    threads=own.threads,
                    min_runs=own.min_runs,
                    max_seconds=own.max_seconds,
                    precisions=dict.fromkeys(MODELS, precision),
                )
                ratio = stats.compare(timed["pruned"], timed["dense"])
                ratios[precision] = dataclasses.asdict(ratio)
                results += timed.values()
                self.say(f"  {precision}: pruned / dense {ratio.value:.3f}")
            schema.save(self.store.path("bench.json"), results)
            return {"ratios": ratios}

        return self._stage(
            "bench",
            work,
            settings=[own.to_dict()],
            inputs=[f"{n}_{p}.tflite" for p in self.config.export.precisions for n in MODELS],
            outputs=["bench.json"],
        )

    # Report.

    def _run_report(self):
        # A report must not show files that other settings made beside these settings.
        self.may_work = False
        for stage in STAGES[:-1]:
            getattr(self, f"_run_{stage}")()
        self.may_work = True

        def work(key):
            for name in MODELS:
                self._evaluate(name)
            history = [
                row
                for stage in ("train", "finetune", "control")
                for row in self.results[stage]["history"]
            ]
            atomic.write_text(
                self.store.path("metrics.jsonl"), "".join(f"{json.dumps(row)}\n" for row in history)
            )
            summary = summarise(
                self.store, self.results, self.config, self._dataset, command=self.command
            )
            files.write_json(self.store.path("summary.json"), summary)
            html.write_report(
                summary,
                self.store.path("report.html"),
                history=history,
                strips=self._strips(),
                command=self.command,
            )

        self._stage(
            "report",
            work,
            settings=[self._data_settings, self.config.to_dict()],
            inputs=["plan.json", "bench.json", *(f"{name}.keras" for name in MODELS)],
            outputs=["metrics.jsonl", "summary.json", "report.html"],
        )
        summary = json.loads(self.store.path("summary.json").read_text())
        table.print_summary(summary, console=self.console)
        self.say(f"Report: {self.store.path('report.html').resolve()}")
        return summary

    def _strips(self):
        count = min(self.config.report.strips, len(self._dataset))
        if count == 0:
            return []
        own = self.config.data
        chosen = self._dataset.subset(count)
        samples = list(self._batches(chosen))
        images, labels = (np.concatenate(part) for part in zip(*samples))
        answers = {}
        for name in MODELS:
            model = files.load_model(self.store.path(f"{name}.keras"))
            logits = keras.ops.convert_to_numpy(model.predict_on_batch(images))
            answers[name] = logits.argmax(-1)
        return [
            strips.Strip(
                (image - own.offset) / own.scale, label, dense=dense, pruned=pruned, name=key
            )
            for image, label, dense, pruned, key in zip(
                images, labels, answers["dense"], answers["pruned"], chosen.keys
            )
        ]


def _is_file(path):
    return bool(path) and pathlib.Path(path).is_file()
