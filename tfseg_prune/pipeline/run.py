"""The stages: check, train, prune, finetune, evaluate, export, bench, report."""

import dataclasses
import json
import pathlib

import keras
import numpy as np
from rich.console import Console

from tfseg_prune import atomic, deploy, graph, training
from tfseg_prune.bench import host, schema, stats
from tfseg_prune.pipeline import files, phases, rounds
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
    `bench.json`, `summary.json` and `report.html`; where the network trains in phases, also what
    each left, such as `base_encoder.keras` and, of one that becomes grouped, `small_encoder.keras`
    and `plan_encoder.json`.

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


class _Run(phases.Phases):
    def __init__(self, config, workdir, command, console):
        super().__init__(config, Store(workdir), console)
        self.command = command
        limits = budget_values(config)
        self.budget = Budget(**limits) if limits else None

    def run(self, stages):
        # What can be wrong with data or model is wrong before hours of training, not after.
        needing = {"train", "finetune", "export"}
        if self.config.pruning.observe_epochs or self.config.pretrain.fade:
            needing.add("prune")
        if set(stages) & needing:
            self._stage("check", self._check_data, settings=self._data_settings)
        self._check_pretraining(stages)
        if "train" in stages:
            self._stage(
                "check_model",
                self._check_model,
                settings=[self._model_settings, self._prune_settings, *self._phases_settings],
            )
        summary = None
        for stage in stages:
            summary = getattr(self, f"_run_{stage}")()
        return summary if stages[-1] == "report" else None

    # Checks.

    def _check_data(self, key):
        pixels = {}
        for split, dataset in self._splits.items():
            self.say(f"  {split}: {len(dataset)} images of {dataset.name}")
            pixels[split] = dataset.validate().tolist()
        return {"pixels": pixels}

    def _check_model(self, key):
        """Builds the model and plans on its first weights: what can be reached is the same."""
        keras.utils.set_random_seed(self.config.seed)
        self._train_batches()
        model = self._check_phases()
        trains = rounds.check(model, self.config.pruning, self.budget, seed=self.config.seed)
        if self.config.pretrain.fade:
            self._check_fading(trains)

    @property
    def _prune_settings(self):
        own = self.config
        trains = own.finetune.recalibrate or own.pruning.observe_epochs
        return [
            own.pruning.to_dict(),
            own.seed,
            own.finetune.recalibrate,
            self._fit_settings if trains else None,
        ]

    def _run_train(self):
        left = self._run_phases("train", "base")

        def work(key):
            keras.utils.set_random_seed(self.config.seed)
            model = self._start(left)
            own = self.config.train
            result = self._fit(model, "train", key, own.epochs, own.learning_rate)
            files.save_model(model, self.store.path("base.keras"))
            return result

        self._stage(
            "train", work, settings=self._model_settings, inputs=left, outputs=["base.keras"]
        )
        self._forget("train")

    def _run_prune(self):
        if self.config.pretrain.fade:
            self._run_fading()
            return
        own = self.config.pruning
        source = "base.keras"
        for number in range(1, own.rounds):
            output = f"small_{number}.keras"
            stage = phases.stage_of("prune", number)
            self._round(number, stage, source, [f"plan_{number}.json", output])
            source = output
        self._round(own.rounds, "prune", source, ["plan.json", "small.keras"])

    def _round(self, number, stage, source, outputs):
        """Trains while the pruner looks on, and prunes; `plan.json` holds all rounds."""
        own = self.config.pruning
        plans = [f"plan_{earlier}.json" for earlier in range(1, number)]

        def work(key):
            full = graph.cost(files.load_model(self.store.path("base.keras")))
            keras.utils.set_random_seed(self.config.seed + number)
            model = files.load_model(self.store.path(source))
            budget = rounds.budgets(self.budget, full, own.rounds)[number - 1]
            budget = rounds.within(budget, graph.cost(model))
            pruner = rounds.pruner(model, own, budget, seed=self.config.seed)
            result = self._fit(
                pruner.model,
                stage,
                key,
                own.observe_epochs,
                own.observe_learning_rate,
                pruner.callbacks,
            )
            plan = pruner.plan()
            small = graph.shrink(pruner.pruned, plan, fold_constants=own.fold_constants)
            if self.config.finetune.recalibrate:
                training.recalibrate(
                    small, self._train_batches(), steps=self.config.finetune.recalibrate
                )
            reached = graph.cost(small)
            if own.rounds > 1:
                plan.save(self.store.path(f"plan_{number}.json"))
            if number == own.rounds > 1:
                first, *later = [graph.PruningPlan.load(self.store.path(p)) for p in plans] + [plan]
                for following in later:
                    first = first.followed_by(following)
                names = ("macs", "params", "padded_macs")
                costs = {name: [getattr(full, name), getattr(reached, name)] for name in names}
                plan = dataclasses.replace(
                    first, budget=self.budget.asked, scores={**plan.scores, **costs}
                )
            if number == own.rounds:
                plan.save(self.store.path("plan.json"))
            files.save_model(small, self.store.path(outputs[-1]))
            return {**result, "cost": self._say_cost(full, reached)}

        self._stage(
            stage,
            work,
            settings=self._prune_settings,
            inputs=["base.keras", source, *plans] if number > 1 else ["base.keras"],
            outputs=outputs,
        )
        self._forget(stage)

    def _run_finetune(self):
        own = self.config.finetune
        # Both go on with the same data and rate; in all, both have trained for as many epochs.
        for stage, source, output in (
            ("finetune", "small.keras", "pruned.keras"),
            ("control", "base.keras", "dense.keras"),
        ):
            epochs = own.epochs
            if stage == "control":
                # As long as the other, what it trained between the rounds included.
                before = self.config.pruning.rounds * self.config.pruning.observe_epochs
                epochs = epochs + before if own.control else 0

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
                settings=[self._fit_settings, own.learning_rate, epochs],
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
            calibrated = precision in deploy.CALIBRATED
            representative = calibration.images(count) if calibrated else None
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
                labels=self._dataset.classes,
                scale=self.config.data.scale,
                offset=self.config.data.offset,
                images=images,
                threshold=own.thresholds[precision],
                metric=metric,
            )
            parity = written.parity
            self.say(
                f"  {name} {precision}: {written.bytes:,} bytes, agreement"
                f" {parity.argmax_agreement:.3%} on {parity.images} images, mIoU {parity.miou:.4f}"
            )
            for line in deploy.summarised(written.lowered):
                self.say(f"    {line}")
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
                own.representative_images if precision in deploy.CALIBRATED else None,
                own.thresholds[precision],
            ],
            inputs=[f"{name}.keras"],
            outputs=[output, f"{output}.json"],
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
            trained = phases.stages(self.config)
            stages = dict.fromkeys([*trained["dense"][:-1], *trained["pruned"], "control"])
            history = [row for stage in stages for row in self.results[stage]["history"]]
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
