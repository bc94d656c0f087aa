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

import os
import re
import sys
import traceback

from absl import app, flags
from ml_collections import config_dict

from tfseg_prune.main import options, own_files

VERBS = (
    *("run", "train", "prune", "finetune", "export", "bench", "report"),
    *("inspect", "explain", "predict"),
)
_INTERRUPTED = 130  # the status of a program that Ctrl-C ended


def main(argv, config_path=None):
    verb, *rest = argv[1:] or [None]
    if verb not in VERBS:
        raise app.UsageError(
            f"There is no such verb. Expected: one of {', '.join(VERBS)}."
            f" Received: {verb or 'nothing'}"
        )
    if config_path is None and verb not in options.OWN_FLAGS:
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
    takes = options.OWN_FLAGS[verb] if config_path is None else options.CONFIG_FLAGS
    names = [f"--{flag.name}" for flag in takes]
    own = options.FLAGS.get_flags_for_module(options.__name__)
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
    return getattr(own_files, verb)(rest)


def _run_config(verb, config_path):
    from tfseg_prune import pipeline
    from tfseg_prune.pipeline.config import check_config

    config = options.FLAGS.config
    if not isinstance(config, config_dict.ConfigDict):
        # ml_collections keeps an OSError for whoever uses the config.
        received = getattr(config, "__dict__", {}).get("_error", config)
        raise ValueError(
            f"The config '{config_path}' can't be used. Expected: get_config() returns the"
            f" ConfigDict of tfseg_prune.pipeline.default_config(), changed. Received: {received}"
        )
    if not options.WORKDIR.value:
        raise app.UsageError(
            f"'{verb}' needs a place for its files. Expected: --workdir=FOLDER. Received: none"
        )
    check_config(config)
    if options.DATA_DIR.value is not None:
        config.data.data_dir = options.DATA_DIR.value
    if options.WEIGHTS.value is not None:
        config.model.weights = options.WEIGHTS.value
    stages = pipeline.STAGES if verb == "run" else (verb,)
    pipeline.run(config, options.WORKDIR.value, stages, command=_command())


def _command():
    """The command line without the folder that the program lies in."""
    return " ".join(["tfseg-prune", *sys.argv[1:]])


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
            own_files.import_keras()  # now, as the config file does
        try:
            arguments = options.FLAGS(argv)
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


def _usage():
    own = options.FLAGS.get_flags_for_module(options.__name__)
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
