"""Training in phases: an encoder learns first, then a decoder behind it, then both.

So ERFNet is trained, and so are the networks of gradual grouping (Vallurupalli et al., CVPR
Workshops 2018), whose connections between groups fade in the first phases, before there is a
decoder:

- classification: the encoder, average-pooled and with a dense layer, learns the classes of whole
  images;
- encoder: with a 1x1 prediction layer it learns to segment, at its own resolution, to which the
  labels are resized (nearest pixel). `val_miou` is of that resolution;
- decoder: it trains behind that encoder, which is frozen: its weights rest, and its batch
  normalisations use their moving statistics and leave them; its dropout goes on;
- then both train together, which is the stage `train` or `prune` itself.

Each of the first three is a stage of its own, such as `train_encoder`, which leaves its network in
a file, such as `base_encoder.keras`. Heads are dropped between the phases, and layers whose names
start with `backbone_` go on. Phases keep their last epoch.
"""

import dataclasses
import functools

import keras
import numpy as np

from tfseg_prune import data, graph, models, training
from tfseg_prune.layers.gradual_conv import GradualConv2D
from tfseg_prune.pipeline import files, rounds
from tfseg_prune.pipeline.workbench import Task, Workbench

NAMES = ("classification", "encoder", "decoder")
FADING = ("classification", "encoder")
ENCODER = "backbone_"
# K of the class weights 1 / ln(K + frequency) while the encoder trains alone, as in ERFNet.
ENCODER_CONSTANT = 1.2


def planned(settings):
    """Which of `NAMES` the settings `config.pretrain` ask for."""
    return [name for name in NAMES if settings[f"{name}_epochs"]]


def stage_of(network, part):
    """The name of a stage before the last in which a network trains.

    Args:
        network: "train" or "prune".
        part: Its phase, or the number of its round.
    """
    return f"{network}_{part}"


def stages(config):
    """{"dense" or "pruned": the stages in which that network trained, in order}."""
    fade, names = config.pretrain.fade, planned(config.pretrain)
    first = names.index(fade) if fade else len(names)
    dense = [stage_of("train", name) for name in names]
    if fade:
        pruned = [stage_of("prune", name) for name in names[first:]]
    else:
        rounds_before = range(1, config.pruning.rounds)
        pruned = ["train", *(stage_of("prune", number) for number in rounds_before)]
    return {
        "dense": [*dense, "train", "control"],
        "pruned": [*dense[:first], *pruned, "prune", "finetune"],
    }


def with_encoder():
    """The names of the networks of which `models` has the encoder alone, too."""
    return [name for name in models.__all__ if f"{name}_encoder" in models.__all__]


class Phases(Workbench):
    """The phases of a run, and a `prune` in which convolutions become grouped by them."""

    # What is the same whether or not connections fade.

    @functools.cached_property
    def _pictures(self):
        own = self.config.pretrain
        return {
            split: data.load_classification(own.data, split, data_dir=own.data_dir, **options)
            for split, options in (("train", {"count": own.images}), ("val", {}))
        }

    @property
    def _picture_settings(self):
        own = self.config.pretrain
        return [own.data, own.images, self._files_under(own.data_dir)]

    def _check_pictures(self, key):
        for split, dataset in self._pictures.items():
            self.say(f"  {split}: {len(dataset)} images of {dataset.name}")
            dataset.validate()

    def _check_pretraining(self, stages):
        """Reads what the encoder classifies, if one of the stages has it do so."""
        own = self.config.pretrain
        if own.data and ("train" in stages or "prune" in stages and own.fade == "classification"):
            self._stage("check_pretrain", self._check_pictures, settings=self._picture_settings)

    @property
    def _phases_settings(self):
        """What a check of the phases depends on; nothing without phases."""
        own = self.config.pretrain
        settings = [own.to_dict(), self._picture_settings if own.data else None]
        return settings if planned(own) else []

    def _check_phases(self):
        """Builds what the phases train; answers what is to be pruned, its weights aside."""
        fade, whole = self.config.pretrain.fade, self._build()
        built = {"decoder": whole}
        for phase in planned(self.config.pretrain):
            if phase not in built:
                built[phase] = self._encoder(phase)
            self._task(phase, built[phase])
        return built[fade] if fade else whole

    def _check_fading(self, model):
        """Raises a ValueError if what fades, of `model`, is no part of the network in the end."""
        lost = [
            layer.name
            for layer in model.layers
            if isinstance(layer, GradualConv2D) and not layer.name.startswith(ENCODER)
        ]
        if lost:
            raise ValueError(
                "'pruning.gradual_grouping.where' chooses what the encoder has in the phase"
                f" '{self.config.pretrain.fade}' only. Expected: convolutions whose names start"
                f" with {ENCODER!r}. Received: {', '.join(lost)}"
            )

    def _encoder(self, phase):
        own = self.config
        options = {k: v for k, v in own.model.options.to_dict().items() if k != "decoder"}
        if phase == "classification":
            head, classes = "classification", self._pictures["train"].num_classes
            size = own.pretrain.image_size
        else:
            head, classes, size = "segmentation", self._dataset.num_classes, own.data.image_size
        build = getattr(models, f"{own.model.name}_encoder")
        return build(classes, (*size, 3), head=head, **options)

    def _task(self, phase, model):
        if phase == "decoder":
            return self._segmentation()
        if phase == "encoder":
            stride = self.config.data.image_size[0] // model.output_shape[1]
            return self._segmentation(stride=stride, constant=ENCODER_CONSTANT)
        own = self.config
        options = {
            "batch_size": own.pretrain.batch_size,
            "image_size": own.pretrain.image_size,
            "scale": own.data.scale,
            "offset": own.data.offset,
            "workers": own.data.workers,
        }
        train = data.ClassificationBatches(
            self._pictures["train"],
            augment=data.PaddedCrop(),
            shuffle=True,
            seed=own.seed,
            drop_remainder=True,
            **options,
        )
        validation = data.ClassificationBatches(self._pictures["val"], **options)
        return Task(train, validation, training.compile_classifier)

    def _rate(self, phase):
        own = self.config
        return (own.pretrain if phase == "classification" else own.train).learning_rate

    def _phase_settings(self, phase, fades):
        own = self.config
        settings = [own.model.to_dict(), own.seed, own.pretrain[f"{phase}_epochs"]]
        if phase == "classification":
            settings += [self._picture_settings, own.data.scale, own.data.offset]
            settings += [own.pretrain[k] for k in ("learning_rate", "batch_size", "image_size")]
            settings += [own.train[k] for k in ("optimizer", "power", "weight_decay")]
        else:
            settings += [self._image_settings]
            settings += [{k: v for k, v in own.train.items() if k not in ("epochs", "keep")}]
        if fades:
            settings += [own.pruning.gradual_grouping.to_dict(), own.finetune.recalibrate]
        return settings

    def _start(self, left, phase=None):
        """What a phase trains, or with `None` what all train in the end.

        Args:
            left: Files that the phase before left, if there was one: its network, and the plan of
                an encoder that has become grouped.
        """
        whole = phase in ("decoder", None)
        if whole and left and left[0].endswith("_decoder.keras"):
            return files.load_model(self.store.path(left[0]))
        model = self._build() if whole else self._encoder(phase)
        if not left:
            return model
        trained, *plans = left
        for plan in plans:
            model = graph.shrink(model, self._plan_for(model, plan))
        # An order that `assign` has found is one of weights: by name, all find their place.
        models.copy_weights(files.load_model(self.store.path(trained)), model, prefix=ENCODER)
        return model

    def _plan_for(self, model, plan):
        """The plan of an encoder, for a network that holds it."""
        made = graph.PruningPlan.load(self.store.path(plan))
        whole = graph.ChannelGraph(model)
        return graph.PruningPlan.from_units(
            whole,
            np.ones(whole.num_units, bool),
            groups=made.groups,
            method=made.method,
            scores=made.scores,
        )

    def _run_phases(self, stage, name, fade=""):
        """Runs the phases before the last, from the one on that is to fade, if one is.

        Args:
            stage: Start of the stages' names.
            name: Start of the names of their files.
            fade: The phase in which connections fade.

        Returns:
            What `_start` makes the network of the last phase from: names of files.
        """
        names = planned(self.config.pretrain)
        first = names.index(fade) if fade else 0
        left = [f"base_{names[first - 1]}.keras"] if first else []
        for phase in names[first:]:
            output = f"{name}_{phase}.keras"
            left = self._run_phase(phase, stage_of(stage, phase), output, fade, left)
        return left

    def _run_phase(self, phase, stage, output, fade, left):
        own = self.config
        fades = phase == fade
        plans = ["plan_encoder.json"] if fades else left[1:]

        def work(key):
            keras.utils.set_random_seed(own.seed)
            model = self._start(left, phase)
            pruner = None
            if fades:
                pruner = rounds.pruner(model, own.pruning, None, seed=own.seed)
                model = pruner.model
            resting = _layers_of_encoder(model) if phase == "decoder" else []
            for layer in resting:
                layer.trainable = False
            result = self._fit(
                model,
                stage,
                key,
                own.pretrain[f"{phase}_epochs"],
                self._rate(phase),
                pruner.callbacks if fades else (),
                self._task(phase, model),
            )
            for layer in resting:
                layer.trainable = True
            if fades:
                plan = pruner.plan()
                plan.save(self.store.path(plans[0]))
                model = graph.shrink(pruner.pruned, plan)
                if own.finetune.recalibrate:
                    batches = self._task(phase, model).train
                    training.recalibrate(model, batches, steps=own.finetune.recalibrate)
            files.save_model(model, self.store.path(output))
            return result

        self._stage(
            stage,
            work,
            settings=self._phase_settings(phase, fades),
            inputs=left,
            outputs=[output, *plans] if fades else [output],
        )
        self._forget(stage)
        return [output, *plans]

    def _run_fading(self):
        """The stage `prune` of a network that becomes grouped while it trains in phases."""
        left = self._run_phases("prune", "small", self.config.pretrain.fade)

        def work(key):
            keras.utils.set_random_seed(self.config.seed)
            small = self._start(left)
            own = self.config.train
            result = self._fit(small, "prune", key, own.epochs, own.learning_rate)
            dense = self._build()
            plan = self._plan_for(dense, left[1])
            cost = self._say_cost(graph.cost(dense), graph.cost(small))
            found = {key: [one[key] for one in cost] for key in ("macs", "params")}
            dataclasses.replace(plan, scores={**plan.scores, **found}).save(
                self.store.path("plan.json")
            )
            files.save_model(small, self.store.path("small.keras"))
            return {**result, "cost": cost}

        self._stage(
            "prune",
            work,
            settings=self._model_settings,
            inputs=left,
            outputs=["plan.json", "small.keras"],
        )
        self._forget("prune")


def _layers_of_encoder(model):
    return [layer for layer in model.layers if layer.name.startswith(ENCODER) and layer.trainable]
