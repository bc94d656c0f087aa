"""Every setting of a run, with its default."""

import difflib
import math

from ml_collections import config_dict

from tfseg_prune import criteria, data
from tfseg_prune.criteria import redundancy
from tfseg_prune.deploy.parity import THRESHOLDS
from tfseg_prune.graph.fold import MODES as FOLD_MODES
from tfseg_prune.methods import gradual_grouping
from tfseg_prune.pipeline import phases, rounds
from tfseg_prune.search.budget import RANKINGS
from tfseg_prune.training.optimizers import OPTIMIZERS


def default_config():
    """The settings of a run; a config file changes some and returns it.

    ```python
    from tfseg_prune.pipeline import default_config

    def get_config():
        config = default_config()
        config.data.name = "camvid"
        return config
    ```
    """
    config = config_dict.ConfigDict()
    config.name = "run"
    config.seed = 0

    config.data = config_dict.ConfigDict()
    # A module of tfseg_prune.data: camvid, cityscapes, folder, streets.
    config.data.name = "streets"
    config.data.data_dir = ""
    config.data.image_size = (96, 128)  # height, width in pixels, of training and evaluation
    config.data.scale = 1.0  # your own model's input: image * scale + offset; the package's
    config.data.offset = 0.0  # networks take [0, 255]
    # Options of the data set, by split.
    config.data.train = config_dict.ConfigDict()
    config.data.val = config_dict.ConfigDict()
    config.data.test = config_dict.ConfigDict()
    config.data.workers = 2  # threads that read images

    config.model = config_dict.ConfigDict()
    config.model.name = "deeplab_v3_plus"  # a function of tfseg_prune.models, or ...
    config.model.path = ""  # ... your own .keras file that answers logits
    config.model.weights = ""  # .npz file of backbone weights
    config.model.options = config_dict.ConfigDict()  # arguments of the function

    # Phases before `train`, which is of the whole network: its encoder classifies, its encoder
    # segments, its decoder trains behind it (see tfseg_prune.pipeline.phases).
    config.pretrain = config_dict.ConfigDict()
    config.pretrain.data = ""  # whole images that the encoder classifies: tinyimagenet100
    config.pretrain.data_dir = ""
    config.pretrain.images = 0  # how many of its training images; 0: all
    config.pretrain.image_size = (64, 64)
    config.pretrain.batch_size = 64
    config.pretrain.learning_rate = 5e-4  # of classification; the other phases have train's
    config.pretrain.classification_epochs = 0
    config.pretrain.encoder_epochs = 0
    config.pretrain.decoder_epochs = 0
    # The phase (classification, encoder) in which the connections of pruning.gradual_grouping fade;
    # then `prune` runs it and all that follow a second time, beside the dense network's.
    config.pretrain.fade = ""

    config.train = config_dict.ConfigDict()
    config.train.epochs = 20
    config.train.batch_size = 8
    config.train.optimizer = "adamw"  # or adam (its decay is a penalty, as torch's), sgd
    config.train.learning_rate = 5e-4  # poly decay to 0
    config.train.power = 0.9
    config.train.weight_decay = 1e-4
    config.train.class_weights = "none"  # or log: 1 / ln(1.1 + frequency), as ERFNet
    config.train.keep = "last"  # or best: the epoch with the highest validation mIoU
    config.train.scale = (0.5, 2.0)  # random scale before the crop
    config.train.flip = True
    config.train.shift = 0  # pixels that an image moves by at most after that, in each direction
    config.train.jitter = 0.25  # brightness, contrast, saturation

    config.pruning = config_dict.ConfigDict()
    config.pruning.method = "oneshot"  # or sirfp, gradual_grouping
    config.pruning.criterion = "l1"  # of oneshot, and of grouping with a budget
    config.pruning.budget = config_dict.ConfigDict()
    config.pruning.budget.macs = config_dict.placeholder(float)  # fraction in (0, 1], or a number
    config.pruning.budget.params = config_dict.placeholder(float)
    # MACs with every width rounded up to slices of 4, as GPU delegates compute.
    config.pruning.budget.padded_macs = config_dict.placeholder(float)
    config.pruning.ranking = "global"  # or layer, scope; sirfp's is scope
    config.pruning.align = 8
    config.pruning.floor = 0.1  # part of its width that each layer keeps at least, in each round
    config.pruning.scopes = config_dict.ConfigDict()  # by default backbone_... and decoder_...
    config.pruning.exclude = ()  # regular expressions for layer names
    # Constants of dropped channels stay in what reads them: none, exact (where gamma is 0) or beta
    # (as if it were). Recalibration sets the means of batch normalisations anew in any case.
    config.pruning.fold_constants = "none"
    # Rounds of pruning, each with as much to remove, and the training before each, in which sirfp
    # and the criteria of gradients see what they rank by, and in which connections fade.
    config.pruning.rounds = 1
    config.pruning.observe_epochs = 0
    config.pruning.observe_learning_rate = 5e-4
    config.pruning.sirfp = config_dict.ConfigDict()  # arguments of tsp.SIRFP
    config.pruning.sirfp.metric = "cosine"  # or correlation, official
    config.pruning.sirfp.prior = "none"  # or edge, gradient
    config.pruning.sirfp.prior_weight = 0.4
    config.pruning.sirfp.power = 1.0
    config.pruning.sirfp.pooled = False
    config.pruning.sirfp.smallest = 4
    config.pruning.sirfp.every = 4
    config.pruning.sirfp.pixels = 4096
    config.pruning.sirfp.decay = 0.999
    config.pruning.gradual_grouping = config_dict.ConfigDict()  # arguments of tsp.GradualGrouping
    config.pruning.gradual_grouping.groups = 4
    config.pruning.gradual_grouping.where = ()  # names or regular expressions; none: its default
    config.pruning.gradual_grouping.schedule = "linear"  # or cosine
    config.pruning.gradual_grouping.until = 0.65
    config.pruning.gradual_grouping.per = "step"  # or epoch
    config.pruning.gradual_grouping.assign = "contiguous"  # or balanced

    config.finetune = config_dict.ConfigDict()
    config.finetune.epochs = 20
    config.finetune.learning_rate = 5e-4
    # Batches that set BN statistics after surgery, that in a phase of `pretrain` too; 0: none.
    config.finetune.recalibrate = 20
    config.finetune.control = True  # train the dense network as long, so that they compare

    config.export = config_dict.ConfigDict()
    config.export.precisions = ("float32", "float16", "dynamic", "int8")
    config.export.tail = "upsampled"  # or logits, argmax
    config.export.representative_images = 100
    config.export.parity_images = 0  # test images that the files are checked on; 0: all
    # Least agreement with Keras. Mixed is none of a run's: its images would be the test set's.
    config.export.thresholds = config_dict.ConfigDict(
        {name: value for name, value in THRESHOLDS.items() if name != "mixed"}
    )

    config.bench = config_dict.ConfigDict()
    config.bench.threads = 1
    config.bench.min_runs = 30
    config.bench.max_seconds = 30.0

    config.report = config_dict.ConfigDict()
    config.report.strips = 4
    config.lock()
    for path in _FREE:
        room, key = path.split(".")
        config[room][key].unlock()
    return config


def check_config(config):
    """Raises ValueError on a setting that can't be meant, before any work starts.

    Args:
        config: `ConfigDict` with the keys of `default_config`. The message lists all problems of
            a kind: first the keys, then the types, then the values.
    """
    known = default_config()
    problems = (
        list(_misnamed(config, known, ""))
        or list(_mistyped(config, known, ""))
        or list(_senseless(config))
    )
    if problems:
        raise ValueError(
            "The config can't be used:\n" + "\n".join(f"- {problem}" for problem in problems)
        )


def budget_number(value):
    """A budget as `Budget` takes it: a whole number above 1 is absolute, other floats fractions."""
    return int(value) if value > 1 and math.isfinite(value) and value == int(value) else value


def budget_values(config):
    """The arguments of `Budget`."""
    return {
        key: budget_number(value)
        for key, value in config.pruning.budget.items()
        if value is not None
    }


_OF_CHANNELS = ("criterion", "ranking", "align", "floor", "scopes", "exclude", "fold_constants")
_FREE = ("data.train", "data.val", "data.test", "model.options", "pruning.scopes")


def _misnamed(config, known, prefix):
    for key in config:
        if key not in known:
            close = difflib.get_close_matches(key, list(known), 1)
            hint = f" Did you mean '{prefix}{close[0]}'?" if close else ""
            yield f"there is no setting '{prefix}{key}'.{hint} Expected: {', '.join(known)}"
    for key in known:
        path = f"{prefix}{key}"
        if key not in config:
            yield f"the setting '{path}' is missing. Remedy: start from default_config()"
        elif _is_room(known[key]) and not _is_room(config[key]):
            yield f"'{path}' must hold settings. Received: {config[key]!r}"
        elif _is_room(known[key]) and path not in _FREE:
            yield from _misnamed(config[key], known[key], f"{path}.")


def _is_room(value):
    return isinstance(value, config_dict.ConfigDict)


def _mistyped(config, known, prefix):
    for key, default in known.items():
        path, value = f"{prefix}{key}", config[key]
        if path in _FREE:
            continue
        if _is_room(default):
            yield from _mistyped(value, default, f"{path}.")
            continue
        kind = float if default is None else type(default)
        right = {float: (int, float), int: int, tuple: (tuple, list)}.get(kind, kind)
        if value is None and default is None:
            continue
        if not isinstance(value, right) or (isinstance(value, bool) and kind is not bool):
            yield f"'{path}' must be of type {kind.__name__}. Received: {value!r}"


def _senseless(config):
    def ruled(wanted, good, *paths):
        for path in paths:
            value = config
            for key in path.split("."):
                value = value[key]
            if not good(value):
                yield f"'{path}' must be {wanted}. Received: {value!r}"

    def one_of(path, choices):
        return ruled(f"one of {', '.join(choices)}", lambda value: value in choices, path)

    def pair(value, kinds):
        return len(value) == 2 and all(isinstance(v, kinds) for v in value)

    yield from ruled(
        "1 or more",
        lambda value: value >= 1,
        *["train.batch_size", "data.workers", "bench.threads", "bench.min_runs"],
        "pretrain.batch_size",
        "export.representative_images",
        *["pruning.align", "pruning.rounds"],
        *(f"pruning.sirfp.{name}" for name in ("smallest", "every", "pixels")),
    )
    yield from ruled(
        "0 or more",
        lambda value: value >= 0,
        *["seed", "train.epochs", "finetune.epochs", "finetune.recalibrate", "report.strips"],
        *["export.parity_images", "pruning.observe_epochs", "pretrain.images", "train.shift"],
        *(f"pretrain.{name}_epochs" for name in phases.NAMES),
    )
    yield from ruled(
        "a finite number > 0",
        lambda value: 0 < value < math.inf,
        *["train.learning_rate", "finetune.learning_rate", "bench.max_seconds"],
        *["pruning.observe_learning_rate", "pruning.sirfp.power", "pretrain.learning_rate"],
    )
    yield from ruled(
        "a finite number >= 0",
        lambda value: 0 <= value < math.inf,
        "train.power",
        "train.weight_decay",
    )
    yield from ruled(
        "in [0, 1]",
        lambda value: 0 <= value <= 1,
        *(f"export.thresholds.{name}" for name in config.export.thresholds),
        "train.jitter",
        "pruning.floor",
    )
    yield from ruled("in [0, 1)", lambda value: 0 <= value < 1, "pruning.sirfp.decay")
    yield from ruled("a finite number", math.isfinite, "data.offset", "pruning.sirfp.prior_weight")
    yield from ruled("finite and not 0", lambda value: value and math.isfinite(value), "data.scale")
    yield from ruled(
        "(height, width) in whole pixels, 8 or more",
        lambda value: pair(value, int) and min(value) >= 8,
        *["data.image_size", "pretrain.image_size"],
    )
    yield from ruled(
        "(least, greatest), both finite and > 0",
        lambda value: pair(value, (int, float)) and 0 < value[0] <= value[1] < math.inf,
        "train.scale",
    )
    yield from one_of("train.class_weights", ("none", "log"))
    yield from one_of("train.keep", ("last", "best"))
    yield from one_of("train.optimizer", OPTIMIZERS)
    yield from one_of("pretrain.data", ("", *data.classification_names()))
    yield from one_of("pretrain.fade", ("", *phases.FADING))
    yield from one_of("pruning.method", rounds.METHODS)
    yield from one_of("pruning.criterion", criteria.names())
    yield from one_of("pruning.gradual_grouping.schedule", tuple(gradual_grouping.SCHEDULES))
    yield from one_of("pruning.gradual_grouping.per", gradual_grouping.PER)
    yield from one_of("pruning.gradual_grouping.assign", gradual_grouping.ASSIGN)
    yield from ruled("2 or more", lambda value: value >= 2, "pruning.gradual_grouping.groups")
    yield from ruled("in (0, 1]", lambda v: 0 < v <= 1, "pruning.gradual_grouping.until")
    yield from one_of("pruning.sirfp.metric", redundancy.METRICS)
    yield from one_of("pruning.sirfp.prior", redundancy.PRIORS)
    yield from one_of("pruning.ranking", RANKINGS)
    yield from one_of("pruning.fold_constants", FOLD_MODES)
    yield from one_of("export.tail", ("logits", "upsampled", "argmax"))
    yield from ruled(
        f"some of {', '.join(config.export.thresholds)}, each once",
        lambda value: 0 < len(value) == len(set(value) & set(config.export.thresholds)),
        "export.precisions",
    )
    if not budget_values(config) and config.pruning.method != "gradual_grouping":
        yield (
            "'pruning.budget' must set macs, params or padded_macs, such as pruning.budget.macs ="
            " 0.5. Received: none"
        )
    own = config.pruning
    fade = config.pretrain.fade
    if rounds.looks_on(own) and not own.observe_epochs and not fade:
        what = own.criterion if own.method == "oneshot" else own.method
        yield (
            f"'{what}' decides by what it sees in training, so 'pruning.observe_epochs' must be 1"
            " or more. Received: 0"
        )
    if own.method == "gradual_grouping":
        if own.rounds > 1:
            yield f"'pruning.rounds' of gradual grouping must be 1. Received: {own.rounds}"
        if not budget_values(config):
            for name in _OF_CHANNELS:
                value, plain = (
                    dict(x) if _is_room(x) else tuple(x) if isinstance(x, list) else x
                    for x in (own[name], default_config().pruning[name])
                )
                if value != plain:
                    yield (
                        f"'pruning.{name}' is about channels that go, and without a"
                        f" 'pruning.budget' gradual grouping keeps all. Expected: {plain!r}, the"
                        f" default. Received: {value!r}"
                    )
        epochs = config.pretrain[f"{fade}_epochs"] if fade in phases.FADING else own.observe_epochs
        until = own.gradual_grouping.until
        if own.gradual_grouping.per == "epoch" and epochs and until * epochs > epochs - 1 + 1e-9:
            yield (
                "'pruning.gradual_grouping.until' must leave a whole epoch after it where alpha"
                f" changes by epoch. Received: {until} of {epochs} epochs"
            )
    yield from _out_of_phase(config)
    if config.model.path and config.model.weights:
        yield (
            "'model.weights' are for the network 'model.name', not for a file of your own."
            f" Received: them beside model.path={config.model.path!r}"
        )


def _out_of_phase(config):
    own, names = config.pretrain, phases.planned(config.pretrain)
    if own.classification_epochs and not own.data:
        yield (
            "'pretrain.data' must name what the encoder classifies in"
            " 'pretrain.classification_epochs'. Received: ''"
        )
    if own.data and not own.classification_epochs:
        yield (
            f"'pretrain.classification_epochs' must be 1 or more for the data {own.data!r}."
            " Received: 0"
        )
    if bool(own.data) != bool(own.data_dir):
        yield (
            "'pretrain.data' and 'pretrain.data_dir' must be set together. Received:"
            f" {own.data!r} and {own.data_dir!r}"
        )
    if names == ["decoder"]:
        yield (
            "'pretrain.encoder_epochs' or 'pretrain.classification_epochs' must be 1 or more where"
            " 'pretrain.decoder_epochs' is, as the decoder trains behind a frozen encoder."
            " Received: 0"
        )
    if names and (config.model.path or config.model.name not in phases.with_encoder()):
        yield (
            "'model.name' must be a network that offers its encoder alone"
            f" ({', '.join(phases.with_encoder())}) for the phases of 'pretrain'. Received:"
            f" {config.model.path or config.model.name!r}"
        )
    if not own.fade:
        return
    if own.fade not in names:
        yield (
            f"'pretrain.{own.fade}_epochs' must be 1 or more for connections to fade in that phase."
            " Received: 0"
        )
    for path, value, wanted in (
        ("pruning.method", config.pruning.method, "gradual_grouping"),
        ("pruning.observe_epochs", config.pruning.observe_epochs, 0),
        ("pruning.budget", budget_values(config), {}),
    ):
        if value != wanted:
            yield (
                f"'{path}' must be {wanted or 'left out'!s} where connections fade in a phase of"
                f" 'pretrain'. Received: {value!r}"
            )
