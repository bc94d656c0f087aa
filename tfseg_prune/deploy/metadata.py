"""Describes an exported file for apps: what `tfseg_prune.bench.metadata` writes beside it."""

import hashlib
import math

import tfseg_prune
from tfseg_prune.bench import metadata
from tfseg_prune.deploy import trace

_CHANNELS = {count: name for name, count in metadata.CHANNELS.items()}


def checked_labels(model, labels, scale, offset):
    """The `Label` objects of a model, before any work is done for it.

    Args:
        model: the functional `keras.Model` that is exported.
        labels, scale, offset: as `export` takes them.

    Returns:
        A tuple of labels; `None` for a model of neither RGB nor grey images, which gets no JSON.

    Raises:
        ValueError: if the labels aren't the model's, or scale and offset no numbers to map pixels
            with, or there would be no JSON to hold what was given.
    """
    try:
        usable = math.isfinite(scale) and math.isfinite(offset) and scale != 0
    except (TypeError, ValueError):
        usable = False
    if not usable:
        raise ValueError(
            "Invalid scale or offset. Expected: two finite numbers, scale not 0, as the model takes"
            f" pixel * scale + offset. Received: scale={scale!r}, offset={offset!r}. Remedy: what"
            " differs between channels belongs into the model, as keras.layers.Normalization."
        )
    if model.input_shape[-1] in metadata.CHANNELS.values():
        return metadata.labels_of(labels, model.output_shape[-1])
    if labels is not None or (scale, offset) != (1.0, 0.0):
        raise ValueError(
            "No JSON can hold labels, scale and offset of this model. Expected: a model of RGB or"
            f" grey images, 3 channels or 1. Received: {model.name!r} of"
            f" {model.input_shape[-1]} channels. Remedy: leave them out."
        )
    return None


def described(data, inside, model, *, tail, labels, scale=1.0, offset=0.0):
    """The `Metadata` of a LiteRT file.

    Args:
        data: the file's bytes.
        inside: its `Contents`.
        model: the functional `keras.Model` that it was made of, which answers class scores.
        tail: its tail, see `with_tail`.
        labels: `Label` objects, one a class; `None`, the model has no JSON: see `checked_labels`.
        scale, offset: the model takes `pixel * scale + offset`, pixels in [0, 255].

    Returns:
        `tfseg_prune.bench.metadata.Metadata`, or `None`.
    """
    if labels is None:
        return None
    takes, answers = inside.tensors[inside.inputs[0]], inside.tensors[inside.output]
    return metadata.Metadata(
        sha256=hashlib.sha256(data).hexdigest(),
        precision=inside.precision,
        model=model.name,
        package=f"tfseg_prune {tfseg_prune.__version__}",
        input=metadata.Input(
            height=takes.shape[1],
            width=takes.shape[2],
            channels=_CHANNELS[takes.shape[3]],
            type=takes.type.lower(),
            scale=float(scale),
            offset=float(offset),
        ),
        output=metadata.Output(
            meaning="class_map" if tail == "argmax" else "logits",
            height=answers.shape[1],
            width=answers.shape[2],
            classes=len(labels),
            type=answers.type.lower(),
        ),
        labels=labels,
        layers=tuple(layer.name for layer in trace.layers(model)),
    )
