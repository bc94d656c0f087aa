"""tfseg-prune: makes a segmentation network smaller, proves it, and ships it as a .tflite file.

  tfseg-prune run     --config=configs/X.py --workdir=W   all of: train, prune, finetune, export,
                                                          bench, report
  tfseg-prune train | prune | finetune | export | bench | report
                      --config=configs/X.py --workdir=W   one stage of a run

Without a config, on files of your own:

  tfseg-prune prune   --model=mine.keras --macs=0.5 --out=small.keras
  tfseg-prune export  --model=small.keras --out=small.tflite [--precision=float16]
  tfseg-prune bench   dense.tflite small.tflite [--out=bench.json]

Any setting of a config can be changed: --config.pruning.budget.macs=0.4. A run that was stopped
goes on when the same command is given again; finished stages are not repeated.
"""

import os
import pathlib
import sys

from absl import app, flags
from ml_collections import config_flags

VERBS = ("run", "train", "prune", "finetune", "export", "bench", "report")

FLAGS = flags.FLAGS
config_flags.DEFINE_config_file("config", None, "Config file of a run.", lock_config=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder for everything that a run writes.")
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Folder of the data set: config.data.data_dir.")
_WEIGHTS = flags.DEFINE_string("weights", None, "Backbone weights, .npz: config.model.weights.")
_MODEL = flags.DEFINE_string("model", None, "A .keras file of your own.")
_OUT = flags.DEFINE_string("out", None, "File to write.")
_PLAN = flags.DEFINE_string("plan", None, "prune: also write the plan as JSON.")
_MACS = flags.DEFINE_string("macs", None, "prune: MACs that stay: 0.5, or a whole number.")
_PARAMS = flags.DEFINE_string("params", None, "prune: parameters that stay, likewise.")
_CRITERION = flags.DEFINE_string("criterion", "l1", "prune: l1, l2, bn_gamma or random.")
_RANKING = flags.DEFINE_string("ranking", "global", "prune: global, layer or scope.")
_SCOPE = flags.DEFINE_multi_string(
    "scope", [], "prune: name=regular expression for layer names, with --ranking=scope. May repeat."
)
_ALIGN = flags.DEFINE_integer("align", 1, "prune: widths become multiples of this.")
_FLOOR = flags.DEFINE_float("floor", 0.1, "prune: fraction of its channels every layer keeps.")
_EXCLUDE = flags.DEFINE_multi_string(
    "exclude", [], "prune: regular expression for names of layers to keep whole. May repeat."
)
_SEED = flags.DEFINE_integer("seed", 0, "prune: seed of the random criterion.")
_PRECISION = flags.DEFINE_string("precision", "float32", "export: float32, float16, dynamic, int8.")
_TAIL = flags.DEFINE_string("tail", "upsampled", "export: logits, upsampled or argmax.")
_IMAGES = flags.DEFINE_string("images", None, "export: folder of images, for int8 and the check.")
_SCALE = flags.DEFINE_float("scale", 1.0, "export: the network takes image * scale + offset.")
_OFFSET = flags.DEFINE_float("offset", 0.0, "export: see --scale.")
_THREADS = flags.DEFINE_integer("threads", 1, "bench: CPU threads.")


def main(argv):
    verb, *rest = argv[1:] or [None]
    if verb not in VERBS:
        raise app.UsageError(
            f"Expected: one of {', '.join(VERBS)}. Received: {verb or 'nothing'}"
        )
    if FLAGS.config is not None:
        if rest:
            raise app.UsageError(f"Expected: flags only. Received: {' '.join(rest)}")
        if not _WORKDIR.value:
            raise app.UsageError("Expected: --workdir=FOLDER beside --config. Received: none")
        return _run_config(verb)
    alone = {"prune": _prune, "export": _export, "bench": _bench}
    if verb not in alone:
        raise app.UsageError(
            f"'{verb}' needs --config=FILE and --workdir=FOLDER. Received: no --config"
        )
    if verb != "bench" and rest:
        raise app.UsageError(f"Expected: flags only. Received: {' '.join(rest)}")
    return alone[verb](rest)


def _run_config(verb):
    from tfseg_prune import pipeline

    config = FLAGS.config
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
    """A budget as the user wrote it: `0.5` is a fraction, `2000000` a number."""
    if flag.value is None:
        return None
    try:
        return int(flag.value)
    except ValueError:
        pass
    try:
        return float(flag.value)
    except ValueError:
        raise ValueError(
            f"--{flag.name} makes no sense. Expected: a fraction such as 0.5, or a whole number."
            f" Received: {flag.value!r}"
        ) from None


def _required(*wanted):
    missing = [f"--{flag.name}" for flag in wanted if not flag.value]
    if missing:
        raise app.UsageError(f"Expected: {', '.join(missing)}. Received: none")
    out = pathlib.Path(_OUT.value)
    if not out.parent.is_dir():
        raise ValueError(f"--out lies in no folder. Expected: an existing one. Received: '{out}'")


def _prune(_):
    _required(_MODEL, _OUT)
    import tfseg_prune as tsp
    from tfseg_prune.pipeline import files
    from tfseg_prune.report import table

    budget = tsp.Budget(macs=_number(_MACS), params=_number(_PARAMS))
    scopes = {}
    for text in _SCOPE.value:
        name, equals, pattern = text.partition("=")
        if not equals:
            raise ValueError(f"--scope={text} makes no sense. Expected: --scope=name=pattern")
        scopes[name] = pattern
    if not _OUT.value.endswith(".keras"):
        raise ValueError(f"--out must end in .keras. Received: {_OUT.value!r}")
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
    small = tsp.shrink(model, plan)
    widths = {name: (plan.widths[name], len(kept)) for name, kept in plan.keep.items()}
    table.print_layers(tsp.cost(model), tsp.cost(small), widths)
    files.save_model(small, _OUT.value)
    if _PLAN.value:
        plan.save(_PLAN.value)
    print(f"Equal to its masked twin. Written: {_OUT.value}")


def _export(_):
    _required(_MODEL, _OUT)
    import numpy as np

    import tfseg_prune as tsp
    from tfseg_prune import data
    from tfseg_prune.pipeline import files

    model = files.load_model(_MODEL.value)
    images = None
    if _IMAGES.value:
        images = data.read_folder(_IMAGES.value, model.input_shape[1:3])
        images = images * np.float32(_SCALE.value) + np.float32(_OFFSET.value)
    with files.replacing(_OUT.value) as temporary:
        written = tsp.export(
            model, temporary, precision=_PRECISION.value, tail=_TAIL.value, representative=images
        )
        checked = "not compared with the model: no --images"
        if images is not None:
            parity = tsp.check_parity(model, temporary, images, tail=_TAIL.value)
            checked = f"agreement with the model {parity.argmax_agreement:.3%} on {parity.images} images"
    print(f"Written: {_OUT.value}, {written.bytes:,} bytes, {_PRECISION.value}; {checked}")


def _bench(paths):
    from tfseg_prune.bench import host

    if not paths:
        raise app.UsageError("Expected: one or more .tflite files. Received: none")
    arguments = [*paths, f"--threads={_THREADS.value}"]
    return host.main(arguments + ([f"--json={_OUT.value}"] if _OUT.value else []))


def console():
    """The command `tfseg-prune`: every user's mistake is one message and exit status 2."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    sys.exit(run(sys.argv))


def run(argv):
    """Runs one command line; answers the exit status."""
    asked = {"-h", "-help", "--help", "help"} & set(argv[1:])
    if asked or len(argv) == 1:
        print(_usage())
        return 0 if asked else 2
    try:
        arguments = FLAGS(argv)
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        return _fail(error)
    try:
        return main(arguments) or 0
    except app.UsageError as error:
        return _fail(f"{error}\nSee: tfseg-prune --help")
    except KeyboardInterrupt as stop:
        print(f"\n{stop or 'Stopped. Give the same command again to go on.'}", file=sys.stderr)
        return 130
    except (ValueError, OSError) as error:
        return _fail(error)
    except RuntimeError as error:
        if type(error).__module__.startswith("tfseg_prune"):
            return _fail(error)
        raise


def _usage():
    own = FLAGS.flags_by_module_dict()[__name__]
    lines = [
        f"  --{flag.name}: {flag.help.partition(';')[0]}"
        + (f" Default: {flag.default}." if flag.default else "")
        for flag in own
    ]
    return f"{__doc__}\nFlags:\n" + "\n".join(lines)


def _fail(error):
    text = error.args[0] if isinstance(error, KeyError) and error.args else error
    print(f"tfseg-prune: {text}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    console()
