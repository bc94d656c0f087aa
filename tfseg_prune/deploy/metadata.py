"""Describes an exported file for apps: what `tfseg_prune.bench.metadata` writes beside it."""

import hashlib

import tfseg_prune
from tfseg_prune.bench import metadata
from tfseg_prune.deploy import trace


def described(data, inside, model, *, tail, labels, scale=1.0, offset=0.0):
    """The `Metadata` of a LiteRT file.

    Args:
        data: the file's bytes.
        inside: its `Contents`.
        model: the functional `keras.Model` that it was made of, which answers class scores.
        tail: its tail, see `with_tail`.
        labels: `Label` objects, one a class.
        scale, offset: the model takes `pixel * scale + offset`, pixels in [0, 255].

    Returns:
        `tfseg_prune.bench.metadata.Metadata`.
    """
    takes, answers = inside.tensors[inside.inputs[0]], inside.tensors[inside.output]
    return metadata.Metadata(
        sha256=hashlib.sha256(data).hexdigest(),
        precision=inside.precision,
        model=model.name,
        package=f"tfseg_prune {tfseg_prune.__version__}",
        input=metadata.Input(
            height=takes.shape[1],
            width=takes.shape[2],
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
