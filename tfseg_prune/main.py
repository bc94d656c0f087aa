"""tfseg-prune: makes a segmentation network smaller, proves it, and ships it as a .tflite file.

  tfseg-prune run     --config=configs/X.py --workdir=W   all of: train, prune, finetune, export,
                                                          bench, report
  tfseg-prune train | prune | finetune | export | bench | report
                      --config=configs/X.py --workdir=W   one stage of a run

Without a config, on files of your own:

  tfseg-prune inspect --model=mine.keras [--out=coupling.html] [--json]
                                                          what can be pruned, what can't, and why
  tfseg-prune prune   --model=mine.keras --macs=0.5 --out=small.keras
  tfseg-prune export  --model=small.keras --out=small.tflite [--precision=float16]
  tfseg-prune bench   dense.tflite small.tflite [--out=bench.json]
  tfseg-prune explain --tflite=small.tflite [--json] [--overlay=node_data.json]
                                                          what each op costs, where GPUs refuse
  tfseg-prune predict --tflite=small.tflite --image=a.jpg --out=overlay.png
                                                          or folders: --image=photos --out=overlays

Any setting of a config can be changed: --config.pruning.budget.macs=0.4. A run that was stopped
goes on when the same command is given again; finished stages are not repeated.
"""

import contextlib
import logging
import os
import pathlib
import re
import sys
import traceback

from absl import app, flags
from ml_collections import config_dict, config_flags

VERBS = (
    *("run", "train", "prune", "finetune", "export", "bench", "report"),
    *("inspect", "explain", "predict"),
)

FLAGS = flags.FLAGS
config_flags.DEFINE_config_file("config", None, "Config file of a run.", lock_config=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder for everything that a run writes.")
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Folder of the data set: config.data.data_dir.")
_WEIGHTS = flags.DEFINE_string("weights", None, "Backbone weights, .npz: config.model.weights.")
_MODEL = flags.DEFINE_string("model", None, "A .keras file of your own.")
_OUT = flags.DEFINE_string("out", None, "File to write.")
_JSON = flags.DEFINE_boolean("json", False, "inspect, explain: print all as JSON, not as tables.")
_TFLITE = flags.DEFINE_string("tflite", None, "explain, predict: a .tflite file.")
_OVERLAY = flags.DEFINE_string("overlay", None, "explain: also write node data for Model Explorer.")
_IMAGE = flags.DEFINE_string("image", None, "predict: an image, or a folder of images.")
_OPACITY = flags.DEFINE_float("opacity", 0.5, "predict: of the colours over the image, in [0, 1].")
_PLAN = flags.DEFINE_string("plan", None, "prune: also write the plan as JSON.")
_MACS = flags.DEFINE_string("macs", None, "prune: MACs that stay: 0.5, or a whole number.")
_PARAMS = flags.DEFINE_string("params", None, "prune: parameters that stay, likewise.")
_PADDED_MACS = flags.DEFINE_string(
    "padded_macs", None, "prune: MACs that stay, widths rounded up to 4 as GPUs compute, likewise."
)
_CRITERION = flags.DEFINE_string("criterion", "l1", "prune: l1, l2, bn_gamma, fpgm or random.")
_RANKING = flags.DEFINE_enum(
    "ranking", "global", ["global", "layer", "scope"], "prune: what competes: global, layer, scope."
)
_SCOPE = flags.DEFINE_multi_string(
    "scope", [], "prune: name=regular expression for layer names, with --ranking=scope. May repeat."
)
_ALIGN = flags.DEFINE_integer("align", 1, "prune: widths become multiples of this.", lower_bound=1)
_FLOOR = flags.DEFINE_float("floor", 0.1, "prune: fraction of its channels every layer keeps.")
_EXCLUDE = flags.DEFINE_multi_string(
    "exclude", [], "prune: regular expression for names of layers to keep whole. May repeat."
)
_SEED = flags.DEFINE_integer("seed", 0, "prune: seed of the random criterion.", lower_bound=0)
_FOLD = flags.DEFINE_enum(
    "fold_constants",
    "none",
    ["none", "exact", "beta"],
    "prune: constants of dropped channels stay in what reads them: none, exact (gamma 0), beta.",
)
_PRECISION = flags.DEFINE_enum(
    "precision",
    "float32",
    ["float32", "float16", "dynamic", "int8", "int8x16", "mixed"],
    "export: float32, float16, dynamic, int8, int8x16 (int16 activations), mixed (int8, but for the"
    " layers that it hurts most).",
)
_QUANTIZER = flags.DEFINE_enum(
    "quantizer",
    None,
    ["converter", "ai_edge"],
    "export: what sets the integers of int8 and int8x16: TensorFlow's converter or"
    " ai-edge-quantizer.",
)
_MAX_LOSS = flags.DEFINE_float(
    "max_loss",
    0.01,
    "export, with --precision=mixed: share of the pixels of --images that may change their class.",
    lower_bound=0.0,
)
_TAIL = flags.DEFINE_enum(
    "tail",
    "upsampled",
    ["logits", "upsampled", "argmax"],
    "export: what the file answers: logits, upsampled, argmax.",
)
_GROUPED = flags.DEFINE_enum(
    "grouped",
    "auto",
    ["auto", "grouped", "split"],
    "export: grouped convolutions: auto (what GPUs compute rightly), grouped (one op), split.",
)
_IMAGES = flags.DEFINE_string("images", None, "export: folder of images, for int8 and the check.")
_IMAGE_SIZE = flags.DEFINE_string(
    "image_size", None, "export: height,width in pixels, for a network that takes any size."
)
_SCALE = flags.DEFINE_float("scale", 1.0, "export: the network takes image * scale + offset.")
_OFFSET = flags.DEFINE_float("offset", 0.0, "export: see --scale.")
_REQUIRE_GPU = flags.DEFINE_boolean(
    "require_gpu",
    False,
    "export: write only what the GPU delegate runs, whole and rightly on --images (without a GPU"
    " see tools/software_gpu.sh).",
)
_GPU_TIMEOUT = flags.DEFINE_float(
    "gpu_timeout", 900.0, "export: seconds that --require_gpu waits for it.", lower_bound=0.0
)
_CLASSES = flags.DEFINE_string(
    "classes", None, "export: the data set's classes.json, for the JSON beside the file."
)
_THREADS = flags.DEFINE_integer("threads", 1, "bench, predict: CPU threads.", lower_bound=1)


_INTERRUPTED = 130  # the status of a program that Ctrl-C ended
# The flags that a verb takes without a config; any other would be passed over in silence.
_OWN_FLAGS = {
    "inspect": (_MODEL, _OUT, _JSON),
    "prune": (_MODEL, _OUT, _PLAN, _MACS, _PARAMS, _PADDED_MACS, _CRITERION, _RANKING, _SCOPE)
    + (_ALIGN, _FLOOR, _EXCLUDE, _SEED, _FOLD),
    "export": (_MODEL, _OUT, _PRECISION, _QUANTIZER, _MAX_LOSS, _TAIL, _GROUPED, _IMAGES)
    + (_IMAGE_SIZE, _SCALE, _OFFSET, _CLASSES, _REQUIRE_GPU, _GPU_TIMEOUT),
    "bench": (_OUT, _THREADS),
    "explain": (_TFLITE, _JSON, _OVERLAY),
    "predict": (_TFLITE, _IMAGE, _OUT, _OPACITY, _THREADS),
}
_CONFIG_FLAGS = (_WORKDIR, _DATA_DIR, _WEIGHTS)


def main(argv, config_path=None):
    verb, *rest = argv[1:] or [None]
    if verb not in VERBS:
        raise app.UsageError(
            f"There is no such verb. Expected: one of {', '.join(VERBS)}."
            f" Received: {verb or 'nothing'}"
        )
    if config_path is None and verb not in _OWN_FLAGS:
        raise app.UsageError(
            f"'{verb}' runs on a config. Expected: --config=FILE and --workdir=FOLDER."
            " Received: no --config"
        )
    if config_path is not None and verb in ("inspect", "explain", "predict"):
        wanted = "--model=FILE.keras" if verb == "inspect" else "--tflite=FILE.tflite"
        raise app.UsageError(f"'{verb}' looks at a file. Expected: {wanted}. Received: --config")
    if rest and (config_path is not None or verb != "bench"):
        raise app.UsageError(
            f"'{verb}' takes only flags here. Expected: --name=value. Received: {' '.join(rest)}"
        )
    takes = _OWN_FLAGS[verb] if config_path is None else _CONFIG_FLAGS
    names = [f"--{flag.name}" for flag in takes]
    own = FLAGS.get_flags_for_module(__name__)
    strange = [f"--{flag.name}" for flag in own if flag.present and flag.name != "config"]
    strange = [name for name in strange if name not in names]
    if strange:
        raise app.UsageError(
            f"'{verb}' {'without' if config_path is None else 'with'} --config has no use for"
            f" {', '.join(strange)}. Expected: {', '.join(names)}"
            + ("" if config_path is None else ", and any setting as --config.room.name=value")
        )
    if config_path is not None:
        return _run_config(verb, config_path)
    on_files = {"inspect": _inspect, "prune": _prune, "export": _export, "bench": _bench}
    on_files |= {"explain": _explain, "predict": _predict}
    return on_files[verb](rest)


def _run_config(verb, config_path):
    from tfseg_prune import pipeline
    from tfseg_prune.pipeline.config import check_config

    config = FLAGS.config
    if not isinstance(config, config_dict.ConfigDict):
        # ml_collections keeps an OSError for whoever uses the config.
        received = getattr(config, "__dict__", {}).get("_error", config)
        raise ValueError(
            f"The config '{config_path}' can't be used. Expected: get_config() returns the"
            f" ConfigDict of tfseg_prune.pipeline.default_config(), changed. Received: {received}"
        )
    if not _WORKDIR.value:
        raise app.UsageError(
            f"'{verb}' needs a place for its files. Expected: --workdir=FOLDER. Received: none"
        )
    check_config(config)
    if _DATA_DIR.value is not None:
        config.data.data_dir = _DATA_DIR.value
    if _WEIGHTS.value is not None:
        config.model.weights = _WEIGHTS.value
    stages = pipeline.STAGES if verb == "run" else (verb,)
    pipeline.run(config, _WORKDIR.value, stages, command=_command())


def _command():
    """The command line without the folder that the program lies in."""
    return " ".join(["tfseg-prune", *sys.argv[1:]])


def _number(flag):
    """A budget as the user wrote it: `0.5` is a fraction, `2000000` or `2e6` a number."""
    from tfseg_prune.pipeline.config import budget_number

    if flag.value is None:
        return None
    try:
        return int(flag.value) if flag.value.isdecimal() else budget_number(float(flag.value))
    except ValueError:
        raise ValueError(
            f"--{flag.name} makes no sense. Expected: a fraction such as 0.5, or a whole number."
            f" Received: {flag.value!r}"
        ) from None


def _required(verb, *wanted):
    missing = [f"--{flag.name}" for flag in wanted if not flag.value]
    if missing:
        files_only = verb in ("inspect", "explain", "predict")
        instead = "" if files_only else ", or --config and --workdir"
        raise app.UsageError(
            f"'{verb}' lacks a flag. Expected: {', '.join(f'--{flag.name}' for flag in wanted)}"
            f"{instead}. Received: no {', '.join(missing)}"
        )


def _writable(flag, suffix):
    path = pathlib.Path(flag.value)
    if path.suffix != suffix or not path.parent.is_dir() or path.is_dir():
        raise ValueError(
            f"--{flag.name} can't be written. Expected: a file that ends in {suffix}, in an"
            f" existing folder. Received: '{path}'"
        )


def _inspect(_):
    _required("inspect", _MODEL)
    if _OUT.value:
        _writable(_OUT, ".html")
    _import_keras()
    import tfseg_prune as tsp
    from tfseg_prune.pipeline import files
    from tfseg_prune.report import coupling, inspection

    found = tsp.inspect(files.load_model(_MODEL.value))
    if _OUT.value:
        coupling.write_coupling(found, _OUT.value)
    if _JSON.value:
        print(found.to_json(), end="")
        return
    inspection.print_inspection(found)
    print(f"\nWritten: {_OUT.value}" if _OUT.value else "\nWith --out=coupling.html as a picture.")


def _prune(_):
    _required("prune", _MODEL, _OUT)
    _writable(_OUT, ".keras")
    if _PLAN.value:
        _writable(_PLAN, ".json")
    _import_keras()
    import tfseg_prune as tsp
    from tfseg_prune.pipeline import files
    from tfseg_prune.report import table

    limits = {flag.name: _number(flag) for flag in (_MACS, _PARAMS, _PADDED_MACS)}
    if not any(value is not None for value in limits.values()):
        raise app.UsageError(
            "'prune' needs a budget. Expected: --macs, --params or --padded_macs, such as"
            " --macs=0.5. Received: none"
        )
    budget = tsp.Budget(**limits)
    scopes = dict(_scope(text) for text in _SCOPE.value)
    if scopes and _RANKING.value != "scope":
        raise app.UsageError(
            f"--scope means nothing here. Expected: --ranking=scope beside it. Received:"
            f" --ranking={_RANKING.value}"
        )
    model = files.load_model(_MODEL.value)
    plan = tsp.plan(
        model,
        budget=budget,
        criterion=_CRITERION.value,
        ranking=_RANKING.value,
        scopes=scopes or None,
        align=_ALIGN.value,
        floor=_FLOOR.value,
        exclude=_EXCLUDE.value,
        seed=_SEED.value,
    )
    small = tsp.shrink(model, plan, fold_constants=_FOLD.value)
    widths = {name: (plan.widths[name], len(kept)) for name, kept in plan.keep.items()}
    table.print_layers(tsp.cost(model), tsp.cost(small), widths)
    if _PLAN.value:
        plan.save(_PLAN.value)
    files.save_model(small, _OUT.value)
    print(f"Equal to its masked twin. Written: {_OUT.value}")


def _scope(text):
    name, equals, pattern = text.partition("=")
    try:
        re.compile(pattern)
    except re.error as error:
        equals = f" ({error})"
    if equals != "=" or not name or not pattern:
        raise ValueError(
            "--scope makes no sense. Expected: --scope=name=regular expression for layer names,"
            f" such as --scope=head=^decoder_. Received: {text!r}{equals.strip('=')}"
        )
    return name, pattern


def _export(_):
    _required("export", _MODEL, _OUT)
    _writable(_OUT, ".tflite")
    if _PRECISION.value in ("int8", "int8x16", "mixed") and not _IMAGES.value:
        raise app.UsageError(
            f"{_PRECISION.value} needs to see images. Expected: --images=FOLDER with some 100 of"
            " those that the network was trained on. Received: no --images. Remedy: give them, or"
            " take --precision=dynamic, which needs none"
        )
    if _REQUIRE_GPU.value and not _IMAGES.value:
        raise app.UsageError(
            "--require_gpu compares GPU and CPU. Expected: --images=FOLDER beside it, with a few"
            " real ones. Received: no --images"
        )
    _import_keras()
    import numpy as np

    import tfseg_prune as tsp
    from tfseg_prune import data, deploy
    from tfseg_prune.data import folder
    from tfseg_prune.pipeline import files

    size = _image_size()
    model = files.load_model(_MODEL.value)
    labels = folder.read_classes(_CLASSES.value)[0] if _CLASSES.value else None
    images, checked = None, "not compared with the model: no --images"
    if _IMAGES.value:
        shape = model.input_shape
        rgb = isinstance(shape, tuple) and len(shape) == 4 and shape[3] == 3
        if not rgb or None in (size or shape[1:3]):
            raise ValueError(
                f"'{_MODEL.value}' takes no --images. Expected: a network for images of one size,"
                f" (None, height, width, 3). Received: {shape}. Remedy: if only the size is open,"
                " give --image_size=height,width"
            )
        images = data.read_folder(_IMAGES.value, size or shape[1:3])
        images = images * np.float32(_SCALE.value) + np.float32(_OFFSET.value)
    written = tsp.export(
        model,
        _OUT.value,
        precision=_PRECISION.value,
        quantizer=_QUANTIZER.value,
        max_loss=_MAX_LOSS.value,
        tail=_TAIL.value,
        image_size=size,
        grouped=_GROUPED.value,
        representative=images,
        labels=labels,
        scale=_SCALE.value,
        offset=_OFFSET.value,
        images=images,
        require_gpu=_REQUIRE_GPU.value,
        gpu_timeout=_GPU_TIMEOUT.value,
    )
    if written.parity is not None:
        checked = (
            f"agreement with the model {written.parity.argmax_agreement:.3%} on"
            f" {written.parity.images} images"
        )
    print(f"Written: {_OUT.value}, {written.bytes:,} bytes, {_PRECISION.value}; {checked}")
    if written.mixed is not None:
        kept = ", ".join(written.mixed.float_layers) or "none"
        print(f"  in float: {kept}; {written.mixed.loss:.3%} of the pixels change")
    for line in deploy.summarised(written.lowered):
        print(f"  {line}")
    for line in deploy.summarised(map(str, written.findings)):
        print(f"  {line}")
    if written.gpu is not None:
        print(f"  GPU: {written.gpu.says}")
    elif not written.findings:
        print("  No rule speaks against GPU delegates; --require_gpu runs one")


def _image_size():
    """`--image_size` as `(height, width)`, or `None`."""
    if _IMAGE_SIZE.value is None:
        return None
    sides = _IMAGE_SIZE.value.split(",")
    if len(sides) != 2 or not all(side.isdecimal() and int(side) for side in sides):
        raise ValueError(
            "--image_size makes no sense. Expected: height,width in pixels, such as 360,480."
            f" Received: {_IMAGE_SIZE.value!r}"
        )
    return tuple(map(int, sides))


def _bench(paths):
    from tfseg_prune.bench import host

    if not paths:
        raise app.UsageError(
            "'bench' times files. Expected: one or more .tflite files, the first is what the"
            " others are compared with. Received: none"
        )
    if _OUT.value:
        _writable(_OUT, ".json")
    arguments = [*paths, f"--threads={_THREADS.value}"]
    return host.main(arguments + ([f"--json={_OUT.value}"] if _OUT.value else []))


def _explain(_):
    _required("explain", _TFLITE)
    if _OVERLAY.value:
        _writable(_OVERLAY, ".json")
        if _OVERLAY.value == f"{_TFLITE.value}.json":
            raise ValueError(
                "--overlay would replace what describes the model. Expected: another name."
                f" Received: '{_OVERLAY.value}'"
            )
    _import_keras()
    from tfseg_prune import atomic
    from tfseg_prune.deploy.explain import explain
    from tfseg_prune.report import explanation

    found = explain(_TFLITE.value)
    if _OVERLAY.value:
        atomic.write_text(_OVERLAY.value, found.overlay())
    if _JSON.value:
        print(found.to_json(), end="")
        return
    explanation.print_explanation(found)
    if _OVERLAY.value:
        print(f"Written: {_OVERLAY.value}, for Model Explorer: load it as node data")


def _predict(_):
    from tfseg_prune.bench.predict import predict

    _required("predict", _TFLITE, _IMAGE, _OUT)
    options = {"opacity": _OPACITY.value, "threads": _THREADS.value}
    predict(_TFLITE.value, _IMAGE.value, _OUT.value, **options)


def console():
    """The command `tfseg-prune`: every user's mistake is one message and exit status 2."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    try:
        status = run(sys.argv)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of a pipe, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 1
    if status == _INTERRUPTED:
        # A thread of TensorFlow that reads a batch would wait for Python, and Python's end for it.
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


def run(argv):
    """Runs one command line; answers the exit status."""
    asked = {"-h", "-help", "--help", "help"} & set(argv[1:])
    if asked or len(argv) == 1:
        print(_usage())
        return 0 if asked else 2
    try:
        config_path = _config_path(argv)
        if config_path is not None:
            _import_keras()  # now, as the config file does
        try:
            arguments = FLAGS(argv)
        except Exception as error:  # a config file is Python: whatever it raises
            return _fail(_flag_problem(error, config_path))
        return main(arguments, config_path) or 0
    except app.UsageError as error:
        return _fail(f"{error}\nSee: tfseg-prune --help")
    except KeyboardInterrupt as stop:
        print(f"\n{stop or 'Stopped. Give the same command again to go on.'}", file=sys.stderr)
        return _INTERRUPTED
    except BrokenPipeError:
        raise
    except (ValueError, OSError) as error:
        return _fail(error)
    except RuntimeError as error:
        if type(error).__module__.startswith("tfseg_prune"):
            return _fail(error)
        raise


def _config_path(argv):
    """The config file that a command line names, or `None`.

    Raises:
        ValueError: If there is no such file.
    """
    given = None
    for argument, following in zip(argv[1:], [*argv[2:], ""]):
        if argument in ("--config", "-config"):
            given = following
        elif argument.startswith(("--config=", "-config=")):
            given = argument.partition("=")[2]
    if given is None:
        return None
    path = given.partition(":")[0]
    if not os.path.isfile(path):
        raise ValueError(
            f"There is no config. Expected: --config=FILE.py. Received: '{path}', which is no file"
        )
    return path


def _flag_problem(error, config_path):
    """One message for what is wrong with the flags, or in a config file and at which line."""
    cause, line = error, None
    # absl wraps what a config file raises; the file's own line is in an exception further in.
    while cause is not None and line is None:
        frames = traceback.extract_tb(cause.__traceback__)
        line = next((f.lineno for f in reversed(frames) if f.filename == config_path), None)
        if isinstance(cause, SyntaxError) and cause.filename == config_path:
            line = cause.lineno
        inner, cause = cause, cause.__cause__ or cause.__context__
    if line is None and isinstance(error, flags.Error):
        return error
    inner = error if line is None else inner
    text = f"{type(inner).__name__}: {getattr(inner, 'msg', inner)}"
    raised_by = traceback.extract_tb(inner.__traceback__)[-1].filename
    name, hint = re.search(r"['\"](\w+)\\*['\"]", text), re.search(r'Did you mean "(\w+)"', text)
    if isinstance(inner, (KeyError, AttributeError)) and "ml_collections" in raised_by and name:
        # Its message quotes all of the config.
        text = f"there is no setting '{name[1]}'{f', maybe {hint[1]!r}?' if hint else ''}"
        if name[1] == "config_config":
            text = "a file without get_config()"
        elif line is None:
            return f"A setting on the command line can't be used: {text}"
    where = f"'{config_path}'" + (f", line {line}" if line else "")
    return (
        "The config can't be used. Expected: a Python file whose get_config() returns the settings."
        f" Received: {where}: {text}"
    )


def _import_keras():
    """Imports Keras, and has TensorFlow look for GPUs, without the log lines of its C++ side."""
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    with _quiet():
        import keras

        keras.ops.zeros(1)


@contextlib.contextmanager
def _quiet():
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        sys.stderr.flush()
        os.dup2(kept, 2)
        os.close(kept)


def _usage():
    own = FLAGS.get_flags_for_module(__name__)
    lines = [
        f"  --{flag.name}: {flag.help.partition(';')[0]}"
        + (f" Default: {flag.default}." if flag.default else "")
        for flag in own
    ]
    return f"{__doc__}\nFlags:\n" + "\n".join(lines)


def _fail(error):
    # An OSError's text begins with its number, unless it was raised by hand.
    if isinstance(error, OSError) and error.strerror and not error.filename:
        error = error.strerror
    print(f"tfseg-prune: {error}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    console()
