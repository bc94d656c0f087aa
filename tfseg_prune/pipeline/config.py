"""Every setting of a run, with its default."""

import difflib
import math

from ml_collections import config_dict


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
    config.data.name = "streets"  # a module of tfseg_prune.data: camvid, folder, streets
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

    config.train = config_dict.ConfigDict()
    config.train.epochs = 20
    config.train.batch_size = 8
    config.train.optimizer = "adamw"  # or sgd
    config.train.learning_rate = 5e-4  # poly decay to 0
    config.train.power = 0.9
    config.train.weight_decay = 1e-4
    config.train.class_weights = "none"  # or log: 1 / ln(1.1 + frequency), as ERFNet
    config.train.keep = "last"  # or best: the epoch with the highest validation mIoU
    config.train.scale = (0.5, 2.0)  # random scale before the crop
    config.train.flip = True
    config.train.jitter = 0.25  # brightness, contrast, saturation

    config.pruning = config_dict.ConfigDict()
    config.pruning.criterion = "l1"
    config.pruning.budget = config_dict.ConfigDict()
    config.pruning.budget.macs = config_dict.placeholder(float)  # fraction in (0, 1], or a number
    config.pruning.budget.params = config_dict.placeholder(float)
    config.pruning.ranking = "global"  # or layer, scope
    config.pruning.align = 8
    config.pruning.floor = 0.1
    config.pruning.exclude = ()  # regular expressions for layer names

    config.finetune = config_dict.ConfigDict()
    config.finetune.epochs = 20
    config.finetune.learning_rate = 5e-4
    config.finetune.recalibrate = 20  # batches that set BN statistics after surgery; 0: none
    config.finetune.control = True  # train the dense network as long, so that they compare

    config.export = config_dict.ConfigDict()
    config.export.precisions = ("float32", "float16", "dynamic", "int8")
    config.export.tail = "upsampled"  # or logits, argmax
    config.export.representative_images = 100
    config.export.parity_images = 0  # test images that the files are checked on; 0: all
    config.export.thresholds = config_dict.ConfigDict()  # least agreement with Keras
    config.export.thresholds.float32 = 0.999
    config.export.thresholds.float16 = 0.995
    config.export.thresholds.dynamic = 0.99
    config.export.thresholds.int8 = 0.98

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
        config: `ConfigDict`, or a plain dict, with the keys of `default_config`.
    """
    problems = list(_unknown(config, default_config(), ""))
    if not problems:
        problems = list(_senseless(config))
    if problems:
        raise ValueError(
            "The config can't be used:\n" + "\n".join(f"- {problem}" for problem in problems)
        )


_FREE = ("data.train", "data.val", "data.test", "model.options")


def _unknown(config, known, prefix):
    for key in config:
        path = f"{prefix}{key}"
        if key not in known:
            close = difflib.get_close_matches(key, list(known), 1)
            hint = f" Did you mean '{prefix}{close[0]}'?" if close else ""
            yield f"there is no setting '{path}'.{hint} Expected: {', '.join(known)}"
        elif isinstance(known[key], config_dict.ConfigDict) and path not in _FREE:
            yield from _unknown(config[key], known[key], f"{path}.")


def _senseless(config):
    def positive(path, *, zero=False, whole=True):
        value = config
        for key in path.split("."):
            value = value[key]
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        good = number and math.isfinite(value) and (value >= 0 if zero else value > 0)
        if not good or (whole and int(value) != value):
            kind = "integer" if whole else "number"
            yield f"'{path}' must be a {kind} {'>= 0' if zero else '> 0'}. Received: {value!r}"

    for path in ("train.batch_size", "data.workers", "bench.threads", "bench.min_runs"):
        yield from positive(path)
    for path in (
        "seed train.epochs finetune.epochs finetune.recalibrate report.strips"
        " export.parity_images export.representative_images"
    ).split():
        yield from positive(path, zero=True)
    for path in ("train.learning_rate", "finetune.learning_rate", "bench.max_seconds"):
        yield from positive(path, whole=False)
    size = tuple(config.data.image_size)
    if len(size) != 2 or any(not isinstance(side, int) or side < 8 for side in size):
        yield f"'data.image_size' must be (height, width), 8 or more. Received: {size}"
    if config.train.class_weights not in ("none", "log"):
        yield f"'train.class_weights' must be none or log. Received: {config.train.class_weights!r}"
    if config.train.keep not in ("last", "best"):
        yield f"'train.keep' must be last or best. Received: {config.train.keep!r}"
    precisions = set(config.export.precisions)
    if not precisions or precisions - set(config.export.thresholds):
        yield (
            f"'export.precisions' must be some of {', '.join(config.export.thresholds)}."
            f" Received: {tuple(config.export.precisions)}"
        )


def budget_values(config):
    """The budget's settings as `Budget` takes them: a whole number above 1 is absolute."""
    values = {}
    for key, value in config.pruning.budget.items():
        if value is not None:
            values[key] = int(value) if value > 1 and value == int(value) else value
    return values
