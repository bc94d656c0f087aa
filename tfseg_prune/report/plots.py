"""The report's figures, drawn by matplotlib without a display."""

import io
import math

import matplotlib
from matplotlib.figure import Figure

DENSE, PRUNED, GREY = "#9fb3c8", "#c2410c", "#52606d"
_STAGES = {
    "train": ("dense, training", GREY),
    "control": ("dense, control", "#2563a8"),
    "finetune": ("pruned, fine-tuning", PRUNED),
}
_STYLE = {
    "font.family": "sans-serif",
    "font.size": 9,
    "text.parse_math": False,  # names are a user's own and may hold a `$`
    "svg.fonttype": "none",  # the browser's fonts have the glyphs of every language
    "svg.hashsalt": "tfseg_prune",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#9aa5b1",
    "axes.titlelocation": "left",
    "axes.titlesize": 10,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "legend.frameon": False,
}


def _render(figure, kind):
    if kind not in ("svg", "png"):
        raise ValueError(f"Invalid image kind. Expected: 'svg' or 'png'. Received: {kind!r}.")
    buffer = io.BytesIO()
    metadata = {"Date": None} if kind == "svg" else None
    figure.savefig(buffer, format=kind, dpi=150, metadata=metadata)
    return buffer.getvalue()


def _finite(value):
    return isinstance(value, (int, float)) and math.isfinite(value)


def _stages(history):
    """Epochs of each stage in order; after a resumed run the last line of an epoch holds."""
    stages = {}
    for row in history:
        stages.setdefault(row["stage"], {})[row["epoch"]] = row
    return {
        stage: [rows[epoch] for epoch in sorted(rows)] for stage, rows in stages.items() if rows
    }


def curves(history, metric, *, kind="svg"):
    """A metric over the epochs, one colour a stage, validation solid and training dashed.

    The control and the fine-tuning both start where the dense training ended, and are drawn so.

    Args:
        history: dictionaries with `stage`, `epoch` (0-based) and any of `metric` and
            `val_<metric>`, such as the lines of `metrics.jsonl`.
        metric: `"loss"`, `"miou"` or another key of the history.
        kind: `"svg"` or `"png"`. Defaults to `"svg"`.

    Returns:
        The image file's bytes.

    Example:

    >>> rows = [{"stage": "train", "epoch": e, "loss": 1 / (e + 1)} for e in range(5)]
    >>> curves(rows, "loss")[:5]
    b'<?xml'
    """
    stages = _stages(history)
    shift = 1 + max((row["epoch"] for row in stages.get("train", ())), default=-1)
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(4.6, 3), layout="constrained")
        axes = figure.subplots()
        for stage, rows in stages.items():
            label, color = _STAGES.get(stage, (stage, "#7b8794"))
            start = 1 + (shift if stage in ("control", "finetune") else 0)
            for key, line, width in ((f"val_{metric}", "-", 1.6), (metric, "--", 1.0)):
                points = [
                    (row["epoch"] + start, row[key]) for row in rows if _finite(row.get(key))
                ]
                if points:
                    marker = "o" if len(points) == 1 else None
                    axes.plot(
                        *zip(*points, strict=True), line, color=color, linewidth=width,
                        marker=marker, markersize=3, label=label,
                    )
                    label = None  # the stage's second line needs no entry of its own
        axes.set_title({"loss": "Loss", "miou": "mIoU"}.get(metric, metric))
        axes.set_xlabel("epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(axis="y", color="#e4e7eb", linewidth=0.7)
        axes.set_axisbelow(True)
        if axes.lines:
            axes.legend(fontsize=8)
        else:
            axes.text(0.5, 0.5, "not measured", ha="center", transform=axes.transAxes)
        return _render(figure, kind)


def _beside(axes, x, y, text):
    axes.annotate(
        text, (x, y), (3, 0), textcoords="offset points", va="center", fontsize=7.5, color=GREY
    )


def widths(layers, *, kind="svg"):
    """Channels of every layer before and after pruning, as horizontal bars in the model's order.

    Args:
        layers: dictionaries with `name`, `before` and `after`, both in channels.
        kind: `"svg"` or `"png"`. Defaults to `"svg"`.

    Returns:
        The image file's bytes; its height grows with the number of layers.

    Example:

    >>> widths([{"name": "decoder_aspp", "before": 256, "after": 96}])[:5]
    b'<?xml'
    """
    with matplotlib.rc_context(_STYLE):
        height = 0.19 * len(layers) + 0.55
        figure = Figure(figsize=(5, height), layout="constrained")
        axes = figure.subplots()
        places = range(len(layers))
        before = [layer["before"] for layer in layers]
        after = [layer["after"] for layer in layers]
        axes.barh(places, before, height=0.74, color="#dbe3ec", label="before")
        axes.barh(places, after, height=0.74, color=PRUNED, label="after")
        for place, old, new in zip(places, before, after, strict=True):
            _beside(axes, old, place, f"{old} → {new}" if new != old else f"{old}")
        axes.set_yticks(places, [layer["name"] for layer in layers], fontsize=7.5)
        axes.tick_params(axis="y", length=0)
        axes.set_ylim(len(layers) - 0.4, -0.6)
        axes.set_xlim(0, 1.25 * max(before, default=1))
        axes.spines["bottom"].set_visible(False)
        axes.xaxis.set_ticks_position("top")
        axes.tick_params(axis="x", length=0, labelsize=7.5)
        # Above the bars, where no bar of whatever length can hide it.
        figure.legend(loc="outside upper left", ncols=2, fontsize=8)
        return _render(figure, kind)


def per_class(dense, pruned, *, kind="svg"):
    """IoU of every class, dense beside pruned, as horizontal bars.

    Args:
        dense: dictionary of class names to IoU in [0, 1], or `None` where a class does not occur.
        pruned: the same for the pruned model.
        kind: `"svg"` or `"png"`. Defaults to `"svg"`.

    Returns:
        The image file's bytes.

    Example:

    >>> per_class({"road": 0.9, "pole": None}, {"road": 0.88, "pole": None})[:5]
    b'<?xml'
    """
    names = list(dict.fromkeys([*dense, *pruned]))
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(5, 0.36 * len(names) + 0.7), layout="constrained")
        axes = figure.subplots()
        for values, label, color, side in (
            (dense, "dense", DENSE, -0.2),
            (pruned, "pruned", PRUNED, 0.2),
        ):
            ious = [values.get(name) for name in names]
            shown = [iou if _finite(iou) else 0 for iou in ious]
            places = [place + side for place in range(len(names))]
            axes.barh(places, shown, height=0.38, color=color, label=label)
            for name, place, iou in zip(names, places, ious, strict=True):
                if _finite(iou):
                    _beside(axes, iou, place, f"{iou:.3f}")
                elif name in values:
                    _beside(axes, 0, place, "absent")
        axes.set_yticks(range(len(names)), names)
        axes.tick_params(axis="y", length=0)
        axes.set_ylim(len(names) - 0.4, -0.6)
        axes.set_xlim(0, 1.1)
        axes.set_xticks([0, 0.25, 0.5, 0.75, 1])
        axes.grid(axis="x", color="#e4e7eb", linewidth=0.7)
        axes.set_axisbelow(True)
        figure.legend(loc="outside upper left", ncols=2, fontsize=8)
        return _render(figure, kind)
