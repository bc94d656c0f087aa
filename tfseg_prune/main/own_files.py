"""The verbs that work on files of one's own, without a config."""

import contextlib
import logging
import os
import pathlib
import re
import sys

from absl import app

from tfseg_prune.main import options


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


def inspect(_):
    _required("inspect", options.MODEL)
    if options.OUT.value:
        _writable(options.OUT, ".html")
    import_keras()
    import tfseg_prune as tsp
    from tfseg_prune.pipeline import files
    from tfseg_prune.report import coupling, inspection

    found = tsp.inspect(files.load_model(options.MODEL.value))
    if options.OUT.value:
        coupling.write_coupling(found, options.OUT.value)
    if options.JSON.value:
        print(found.to_json(), end="")
        return
    inspection.print_inspection(found)
    print(
        f"\nWritten: {options.OUT.value}"
        if options.OUT.value
        else "\nWith --out=coupling.html as a picture."
    )


def prune(_):
    _required("prune", options.MODEL, options.OUT)
    _writable(options.OUT, ".keras")
    if options.PLAN.value:
        _writable(options.PLAN, ".json")
    import_keras()
    import tfseg_prune as tsp
    from tfseg_prune.pipeline import files
    from tfseg_prune.report import table

    limits = {
        flag.name: _number(flag) for flag in (options.MACS, options.PARAMS, options.PADDED_MACS)
    }
    if not any(value is not None for value in limits.values()):
        raise app.UsageError(
            "'prune' needs a budget. Expected: --macs, --params or --padded_macs, such as"
            " --macs=0.5. Received: none"
        )
    budget = tsp.Budget(**limits)
    scopes = dict(_scope(text) for text in options.SCOPE.value)
    if scopes and options.RANKING.value != "scope":
        raise app.UsageError(
            f"--scope means nothing here. Expected: --ranking=scope beside it. Received:"
            f" --ranking={options.RANKING.value}"
        )
    model = files.load_model(options.MODEL.value)
    plan = tsp.plan(
        model,
        budget=budget,
        criterion=options.CRITERION.value,
        ranking=options.RANKING.value,
        scopes=scopes or None,
        align=options.ALIGN.value,
        floor=options.FLOOR.value,
        exclude=options.EXCLUDE.value,
        seed=options.SEED.value,
    )
    small = tsp.shrink(model, plan, fold_constants=options.FOLD.value)
    widths = {name: (plan.widths[name], len(kept)) for name, kept in plan.keep.items()}
    table.print_layers(tsp.cost(model), tsp.cost(small), widths)
    if options.PLAN.value:
        plan.save(options.PLAN.value)
    files.save_model(small, options.OUT.value)
    print(f"Equal to its masked twin. Written: {options.OUT.value}")


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


def export(_):
    _required("export", options.MODEL, options.OUT)
    _writable(options.OUT, ".tflite")
    if options.PRECISION.value in ("int8", "int8x16", "mixed") and not options.IMAGES.value:
        raise app.UsageError(
            f"{options.PRECISION.value} needs to see images. Expected: --images=FOLDER with some"
            " 100 of those that the network was trained on. Received: no --images. Remedy: give"
            " them, or take --precision=dynamic, which needs none"
        )
    if options.REQUIRE_GPU.value and not options.IMAGES.value:
        raise app.UsageError(
            "--require_gpu compares GPU and CPU. Expected: --images=FOLDER beside it, with a few"
            " real ones. Received: no --images"
        )
    import_keras()
    import numpy as np

    import tfseg_prune as tsp
    from tfseg_prune import data, deploy
    from tfseg_prune.data import folder
    from tfseg_prune.pipeline import files

    size = _image_size()
    model = files.load_model(options.MODEL.value)
    labels = folder.read_classes(options.CLASSES.value)[0] if options.CLASSES.value else None
    images, checked = None, "not compared with the model: no --images"
    if options.IMAGES.value:
        shape = model.input_shape
        rgb = isinstance(shape, tuple) and len(shape) == 4 and shape[3] == 3
        if not rgb or None in (size or shape[1:3]):
            raise ValueError(
                f"'{options.MODEL.value}' takes no --images. Expected: a network for images of one"
                f" size, (None, height, width, 3). Received: {shape}. Remedy: if only the size is"
                " open, give --image_size=height,width"
            )
        images = data.read_folder(options.IMAGES.value, size or shape[1:3])
        images = images * np.float32(options.SCALE.value) + np.float32(options.OFFSET.value)
    written = tsp.export(
        model,
        options.OUT.value,
        precision=options.PRECISION.value,
        quantizer=options.QUANTIZER.value,
        max_loss=options.MAX_LOSS.value,
        tail=options.TAIL.value,
        image_size=size,
        grouped=options.GROUPED.value,
        representative=images,
        labels=labels,
        scale=options.SCALE.value,
        offset=options.OFFSET.value,
        images=images,
        require_gpu=options.REQUIRE_GPU.value,
        gpu_timeout=options.GPU_TIMEOUT.value,
    )
    if written.parity is not None:
        checked = (
            f"agreement with the model {written.parity.argmax_agreement:.3%} on"
            f" {written.parity.images} images"
        )
    kind = f"{written.bytes:,} bytes, {options.PRECISION.value}"
    print(f"Written: {options.OUT.value}, {kind}; {checked}")
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
    if options.IMAGE_SIZE.value is None:
        return None
    sides = options.IMAGE_SIZE.value.split(",")
    if len(sides) != 2 or not all(side.isdecimal() and int(side) for side in sides):
        raise ValueError(
            "--image_size makes no sense. Expected: height,width in pixels, such as 360,480."
            f" Received: {options.IMAGE_SIZE.value!r}"
        )
    return tuple(map(int, sides))


def bench(paths):
    from tfseg_prune.bench import host

    if not paths:
        raise app.UsageError(
            "'bench' times files. Expected: one or more .tflite files, the first is what the"
            " others are compared with. Received: none"
        )
    if options.OUT.value:
        _writable(options.OUT, ".json")
    arguments = [*paths, f"--threads={options.THREADS.value}"]
    return host.main(arguments + ([f"--json={options.OUT.value}"] if options.OUT.value else []))


def explain(_):
    _required("explain", options.TFLITE)
    if options.OVERLAY.value:
        _writable(options.OVERLAY, ".json")
        if options.OVERLAY.value == f"{options.TFLITE.value}.json":
            raise ValueError(
                "--overlay would replace what describes the model. Expected: another name."
                f" Received: '{options.OVERLAY.value}'"
            )
    import_keras()
    from tfseg_prune import atomic
    from tfseg_prune.deploy.explain import explain
    from tfseg_prune.report import explanation

    found = explain(options.TFLITE.value)
    if options.OVERLAY.value:
        atomic.write_text(options.OVERLAY.value, found.overlay())
    if options.JSON.value:
        print(found.to_json(), end="")
        return
    explanation.print_explanation(found)
    if options.OVERLAY.value:
        print(f"Written: {options.OVERLAY.value}, for Model Explorer: load it as node data")


def predict(_):
    from tfseg_prune.bench.predict import predict

    _required("predict", options.TFLITE, options.IMAGE, options.OUT)
    predict(
        options.TFLITE.value,
        options.IMAGE.value,
        options.OUT.value,
        opacity=options.OPACITY.value,
        threads=options.THREADS.value,
    )


def import_keras():
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
