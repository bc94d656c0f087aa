"""Keras model in, LiteRT file out."""

import dataclasses
import pathlib

import numpy as np

from tfseg_prune import atomic
from tfseg_prune.bench import metadata as descriptions
from tfseg_prune.deploy import ai_edge, contents, lowering, metadata, mixed_precision, trace
from tfseg_prune.deploy import images as image_sources
from tfseg_prune.deploy import tail as tails
from tfseg_prune.deploy.convert import ExportError, convert
from tfseg_prune.deploy.delegate import GpuCheck, check_gpu, environment
from tfseg_prune.deploy.gpu_rules import Finding, check_rules
from tfseg_prune.deploy.parity import Parity, ParityError, check_parity, check_threshold

PRECISIONS = ("float32", "float16", "dynamic", "int8", "int8x16", "mixed")
# Those in which activations are integers, so that images must set their ranges.
CALIBRATED = ("int8", "int8x16", "mixed")
# What may quantise to a precision; the first one does if nothing is said.
_QUANTIZERS = {
    "int8": ("converter", "ai_edge"),
    "int8x16": ("converter", "ai_edge"),
    "mixed": ("ai_edge",),
}
# Types of input and output that a quantizer can write.
_IO = {
    ("int8", "converter"): ("float32", "int8", "uint8"),
    ("int8", "ai_edge"): ("float32", "int8"),
    ("int8x16", "converter"): ("float32", "int16"),
    ("int8x16", "ai_edge"): ("float32", "int16"),
}
# So many of the images go to the GPU delegate: a software GPU takes its time.
_GPU_IMAGES = 4


@dataclasses.dataclass(frozen=True)
class Export:
    """A written LiteRT file.

    Args:
        path: where it lies.
        bytes: its size.
        precision: as asked for, see `export`.
        tail: `"logits"`, `"upsampled"` or `"argmax"`.
        ops: number of ops by name, such as `{"CONV_2D": 36}`.
        io: type of its input, and of its output where that is not a class map.
        representative_images: how many images set its int8 ranges; 0 in the other precisions.
        parity: how it compares with the model; `None`, not compared.
        lowered: what became of layers that phones need in another form, a sentence each: see
            `lower`.
        metadata: what the JSON beside it says; `None` where the model takes neither RGB nor grey
            images and has none.
        findings: ops that GPU delegates refuse, get wrong or die of by the static rules, each with
            its layer, reason and remedy: see `check_rules`. None is no proof.
        gpu: what the delegate itself made of the file; `None`, not asked.
        quantizer: what set the integers, `"converter"`, `"ai_edge"`, or `"tfmot"` after training
            for them; `None`, the file is float.
        mixed: what the search for a mixed precision found, its layers in float first of all;
            `None` in the other precisions.
    """

    path: pathlib.Path
    bytes: int
    precision: str
    tail: str
    ops: dict[str, int]
    io: str = "float32"
    representative_images: int = 0
    parity: Parity | None = None
    lowered: tuple[str, ...] = ()
    metadata: descriptions.Metadata | None = None
    findings: tuple[Finding, ...] = ()
    gpu: GpuCheck | None = None
    quantizer: str | None = None
    mixed: mixed_precision.MixedPrecision | None = None


def export(
    model,
    path,
    *,
    precision="float32",
    tail="upsampled",
    representative=None,
    representative_images=100,
    quantizer=None,
    max_loss=0.01,
    io="float32",
    image_size=None,
    grouped="auto",
    labels=None,
    scale=1.0,
    offset=0.0,
    images=None,
    threshold=None,
    metric=None,
    require_gpu=False,
    gpu_timeout=900,
):
    """Writes a segmentation model as a LiteRT file: batch 1, built-in ops only, fixed shapes.

    With `images` the file must also answer as the model does, or it is not written. A JSON beside
    it, `segmenter.tflite.json`, tells apps what it takes and answers
    (`tfseg_prune.bench.metadata`); `Segmenter` reads it.

    The precisions:

    - `"float32"`: as trained, with batch normalization folded into the convolutions.
    - `"float16"`: weights in float16, half the bytes; computed in float32 on a CPU, in float16 on
      GPUs.
    - `"dynamic"`: weights in int8, activations quantised image by image as they come.
    - `"int8"`: weights and activations in int8, weights per channel, the activations' ranges set
      by representative images. Unless `io` says otherwise, the file still takes and answers
      float32, so that it drops in where a float file was: it quantises and dequantises at its ends.
    - `"int8x16"`: as int8, but for activations in int16: nearly float's accuracy in a file of the
      same size. Slow on a CPU, and no GPU delegate runs it: it is for DSPs and NPUs.
    - `"mixed"`: int8, but for the layers that it hurts most, which stay float until the loss on
      `images` is at most `max_loss`. `Export.mixed` says which, and the whole curve.

    Args:
        model: functional `keras.Model` with one input `[batch, height, width, channels]` and one
            output `[batch, height, width, classes]`.
        path: path of the `.tflite` file; its folder must exist. It is replaced whole or not at all.
        precision: see above. Defaults to `"float32"`.
        tail: what the file answers, see `with_tail`. Defaults to `"upsampled"`, the logits at the
            input's resolution.
        representative: images as the network takes them, for int8, int8x16 and mixed only, which
            fail without: an array or an iterable of batches, alone or in `(images, labels)`
            tuples. Defaults to `None`.
        representative_images: how many of them are used; the first ones, or all where there are
            fewer. Defaults to `100`.
        quantizer: what sets the integers: `"converter"`, TensorFlow's, or `"ai_edge"`,
            ai-edge-quantizer on the float32 file, which leaves float what it can't quantise where
            the converter refuses. Defaults to `None`: the converter, for mixed ai_edge, as only
            that one can.
        max_loss: for mixed, how much mIoU (with `metric`, on `images` with labels) the file may
            lose to the float32 file, or without a metric, at how large a share of the pixels it may
            answer another class. Defaults to `0.01`.
        io: `"float32"`, or the type of the input and output of a file of integers: `"int8"`,
            `"uint8"` (int8, by the converter), `"int16"` (int8x16). Defaults to `"float32"`.
        image_size: `(height, width)` in pixels, for a model that takes any size. Defaults to
            `None`, the model's own.
        grouped: what becomes of grouped convolutions, see `lower`: `"auto"`, one CONV_2D where GPU
            delegates compute it rightly, else one for each group; `"grouped"`, always one;
            `"split"`, never. Defaults to `"auto"`.
        labels: the classes in the order of their ids, for the JSON: names, `(name, color)` pairs
            or a data set's `classes`. Defaults to `None`, which numbers them.
        scale, offset: the model takes `pixel * scale + offset` for pixels in [0, 255], which the
            JSON says. Default to `1.0` and `0.0`, as the package's networks take images.
        images: real images to compare file and model on, as `check_parity` takes them, and to
            measure the loss of a mixed precision on. Defaults to `None`, not compared.
        threshold: least agreement, see `check_parity`.
        metric: see `check_parity`.
        require_gpu: write the file only if the static rules and the GPU delegate itself, on the
            first 4 `images`, say that it runs on GPUs, whole and rightly: see `check_gpu`. Without
            a Vulkan GPU, which may be a software one, that is an error. Defaults to `False`: only
            the rules are asked, and `Export.findings` holds what they say.
        gpu_timeout: seconds after which the delegate's process is ended: a software GPU takes long
            to compile the shaders of a large network. Defaults to `900`.

    Returns:
        `Export`.

    Raises:
        ValueError: if an option, the model or the representative images are not as above.
        ExportError: if the converter cannot convert a layer (it is named), ai-edge-quantizer is
            asked for and isn't installed, or `require_gpu` asks for what is not so.
        ParityError: if file and model agree on too few pixels; the first layer at which they
            diverge is named, and what was at `path` before stays.

    Example:

    >>> export(model, "segmenter.tflite", precision="float16").ops  # doctest: +SKIP
    {'CONV_2D': 36, 'DEPTHWISE_CONV_2D': 17, 'DEQUANTIZE': 82, 'RESIZE_BILINEAR': 2}
    """
    quantizers = _QUANTIZERS.get(precision, (None,))
    quantizer = quantizers[0] if quantizer is None else quantizer
    for name, value, choices in (
        ("precision", precision, PRECISIONS),
        ("tail", tail, tails.TAILS),
        ("grouped", grouped, lowering.GROUPED),
        ("quantizer", quantizer, quantizers),
        ("io", io, _IO.get((precision, quantizer), ("float32",))),
    ):
        if value not in choices:
            raise ValueError(
                f"Invalid {name}. Expected: one of {', '.join(map(str, choices))} (in "
                f"{precision!r} files). "
                f"Received: {value!r}."
            )
    if require_gpu and images is None:
        raise ValueError(
            "require_gpu needs images. Expected: images=some real ones, on which GPU and CPU must "
            "agree. Received: None."
        )
    if require_gpu:
        environment()  # an unusable one is told now
    path = writable(path)
    check_threshold(threshold)
    if not max_loss >= 0:
        raise ValueError(f"Invalid max_loss. Expected: 0 or more. Received: {max_loss!r}.")
    wrapped = tails.with_tail(model, tail, image_size=image_size)
    core = tails.functional(model)
    labels = metadata.checked_labels(core, labels, scale, offset)
    half = [
        layer.name
        for layer in trace.layers(core)
        if "float16" in str(layer.compute_dtype) and layer.weights
    ]
    if half:
        raise ExportError(
            "LiteRT's kernels compute in float32. Expected: layers of dtype policy 'float32'. "
            f"Received: {len(half)} layers of half precision, such as {', '.join(half[:3])}. "
            "Remedy: set layer.dtype_policy = 'float32' for all layers of the trained model; "
            "precision='float16' then halves the file's weights."
        )
    seen = None
    if quantizer == "ai_edge":
        ai_edge.check_installed()
    if precision == "mixed":
        if images is None:
            raise ValueError(
                "A mixed precision needs images to measure its loss on. Expected: images=real "
                "images, with labels where there is a metric. Received: None. Remedy: pass some, "
                "of the validation set rather than of the test set."
            )
        images = list(image_sources.batches(images))
    if precision in CALIBRATED:
        seen = representatives(representative, representative_images, wrapped.input_shape[1:])
    options = {"tail": tail, "image_size": image_size}
    mixed = None
    with lowering.left_as_it_was(core):
        lowered, log = lowering.lower(core, grouped=grouped, precision=precision, **options)
        if quantizer == "ai_edge":
            data = convert(lowered, precision="float32", io="float32", images=None, **options)
        else:
            data = convert(lowered, precision=precision, io=io, images=seen, **options)
        if precision == "mixed":
            data, mixed = mixed_precision.search(
                data, seen, images, model=lowered, max_loss=max_loss, metric=metric
            )
        elif quantizer == "ai_edge":
            data = ai_edge.Quantizer(data, seen, precision=precision, io=io).quantise()
    inside = contents.read_contents(data)
    custom = [op.name for op in inside.ops if op.name.startswith("CUSTOM")]
    if custom or inside.dynamic:
        wrong = f"the ops {custom}" if custom else f"shapes that vary in {list(inside.dynamic)[:5]}"
        raise ExportError(
            f"The file would not run on delegates. Expected: built-in ops of fixed shapes. "
            f"Received: {wrong} from {model.name!r}. Remedy: no shapes that depend on the data."
        )
    findings, gpu = check_rules(inside, lowered), None
    if require_gpu:
        _refuse(path, [finding for finding in findings if finding.verdict != "unknown"])
        images = list(image_sources.batches(images))
    told = metadata.described(
        data, inside, lowered, tail=tail, labels=labels, scale=scale, offset=offset
    )
    parity = None
    with atomic.replacing(path) as temporary:
        temporary.write_bytes(data)
        if images is not None:
            try:
                parity = check_parity(
                    model, temporary, images, tail=tail, threshold=threshold, metric=metric
                )
            except ParityError as error:
                found = error.args[0].replace(str(temporary), path.name)
                error.args = (f"'{path}' was not written. {found}",)
                raise
        if require_gpu:
            first = _first(images, _GPU_IMAGES)
            gpu = check_gpu(temporary, first, model=lowered, timeout=gpu_timeout)
            if not gpu:
                _refuse(path, [f"{gpu.status}: {gpu.says}"])
    beside = descriptions.beside(path)
    if told is None:
        beside.unlink(missing_ok=True)
    else:
        told.save(beside)
    return Export(
        path=path,
        bytes=len(data),
        precision=precision,
        tail=tail,
        ops=inside.counts(),
        io=io,
        representative_images=0 if seen is None else len(seen),
        parity=None if parity is None else dataclasses.replace(parity, path=path),
        lowered=log,
        metadata=told,
        findings=findings,
        gpu=None if gpu is None else dataclasses.replace(gpu, path=path),
        quantizer=quantizer,
        mixed=mixed,
    )


def _first(batches, count):
    """The first `count` images of `(images, labels)` pairs, or all where there are fewer."""
    taken = []
    for batch, _ in batches:
        taken.extend(batch[: count - len(taken)])
        if len(taken) == count:
            break
    return np.stack(taken)


def _refuse(path, reasons):
    """Raises an ExportError if there are reasons why a file is not fit for GPUs."""
    if reasons:
        raise ExportError(
            f"'{path}' was not written: it is not known to run on GPUs. Expected: the GPU delegate "
            "takes every op and answers as the CPU does (require_gpu). Received: "
            f"{'; '.join(map(str, reasons))}"
        )


def writable(path):
    """The path of a file to write, as `pathlib.Path`.

    Raises:
        ValueError: if it is a folder, or in none.
    """
    path = pathlib.Path(path)
    if not path.parent.is_dir() or path.is_dir():
        raise ValueError(
            f"Cannot write the file. Expected: a file name in an existing folder. Received: {path}."
        )
    return path


def representatives(source, limit, shape):
    """The first `limit` images of `source` as one float32 `[batch, height, width, channels]`."""
    if not isinstance(limit, int) or limit < 1:
        raise ValueError(
            f"Invalid representative_images. Expected: a whole number, 1 or more. Received: "
            f"{limit!r}."
        )
    if source is None:
        raise ValueError(
            "Integer activations need to see images. Expected: representative=images as the "
            "network takes them, such as 100 of the training set. Received: None. Remedy: pass "
            "them, or take precision='dynamic', which needs none."
        )
    taken, count = [], 0
    for images, _ in image_sources.batches(source):
        image_sources.check_shape(images, shape)
        taken.append(images[: limit - count])
        count += len(taken[-1])
        if count >= limit:
            break
    if not count:
        raise ValueError(
            "No representative images. Expected: at least one. Received: an empty source."
        )
    return np.concatenate(taken)
