"""One HTML file that shows a run: what was asked, what was got, and how it was measured."""

import base64
import json
import numbers
import pathlib

import jinja2

from tfseg_prune import atomic
from tfseg_prune.report import plots, table
from tfseg_prune.report import strips as drawing

_FEW_IMAGES = 50


def _data_url(content, kind):
    kind = {"svg": "svg+xml"}.get(kind, kind)
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"


def _asked(plan):
    """The budget in words, such as `"50.0 % of the MACs"`; `None` where the plan has none."""
    budget = plan.get("budget") if isinstance(plan, dict) else None
    if isinstance(budget, numbers.Number):
        budget = {"macs": budget}
    if not isinstance(budget, dict):
        return None if budget is None else str(budget)
    words = {"macs": "MACs", "params": "parameters", "padded_macs": "padded MACs"}
    parts = []
    for key, value in budget.items():
        if not isinstance(value, numbers.Number) or isinstance(value, bool):
            continue
        name = words.get(key, key)
        parts.append(
            f"{table.share(value)} of the {name}" if value <= 1 else f"{table.count(value)} {name}"
        )
    return " and ".join(parts) or None


def _cards(summary):
    """Title, big number and small print of the four headline figures."""
    get, ratios = table.get, summary.get("ratios") or {}
    dense, pruned = summary.get("dense"), summary.get("pruned")

    def both(key, text):
        return f"{text(get(dense, key))} → {text(get(pruned, key))}"

    latency, realised = get(ratios, "latency"), get(ratios, "realised")
    speed = ""
    if latency:
        speed = f"{1 / latency:.2f}× as fast as dense"
        speed += f", realised fraction {table.fraction(realised)}" if realised else ""
    change = table.difference(get(dense, "miou"), get(pruned, "miou"))
    return [
        ("MACs", table.share(get(ratios, "macs")), both("macs", table.count)),
        ("Parameters", table.share(get(ratios, "params")), both("params", table.count)),
        ("mIoU", table.score(get(pruned, "miou")), f"{both('miou', table.score)}  {change}"),
        ("Latency, float32", table.share(latency), speed),
    ]


def _classes(summary):
    """Class names with their colours; classes that only the scores name come without."""
    colors = {
        str(item["name"]): tuple(item.get("color") or drawing.IGNORED)
        for item in table.get(summary, "dataset", "classes") or ()
    }
    for model in ("dense", "pruned"):
        for name in table.get(summary, model, "per_class_iou") or ():
            colors.setdefault(name, drawing.IGNORED)
    return colors


def _iou(scores, name):
    if not scores:
        return table.NOT_MEASURED
    if name in scores and table.get(scores, name) is None:
        return "absent"
    return table.score(table.get(scores, name))


def _iou_table(summary, names):
    """Columns (of Keras and of each file) and rows (class, cells) of the IoU per class."""
    columns = [("Keras", ("per_class_iou",))]
    for precision in table.precisions(summary):
        at = ("tflite", precision, "per_class_iou")
        if any(table.get(summary, model, *at) for model in ("dense", "pruned")):
            columns.append((precision, at))
    rows = [
        (
            name,
            [
                _iou(table.get(summary, model, *at), name)
                for _, at in columns
                for model in ("dense", "pruned")
            ],
        )
        for name in names
    ]
    return [title for title, _ in columns], rows


def _notes(summary):
    """What a reader must know before quoting a number."""
    get = table.get
    notes = []
    images, split = get(summary, "dataset", "images"), get(summary, "dataset", "split")
    shape = get(summary, "dataset", "image_size")
    where = " at {}×{} pixels".format(*shape) if shape and len(shape) == 2 else ""
    if images is not None:
        few = " Few: differences of a hundredth are noise." if images < _FEW_IMAGES else ""
        notes.append(
            f"mIoU and per-class IoU are of {images:,} images"
            f"{f' of the {split} split' if split else ''}{where} (height × width).{few}"
        )
    if get(summary, "dataset", "name") == "streets":
        notes.append(
            "The images are synthetic: the figures say that the path works, not how the network "
            "does on real streets."
        )
    seed = get(summary, "seed")
    notes.append(
        f"One run{'' if seed is None else f' with seed {seed}'}: the spread between runs was not "
        "measured."
    )
    dense, pruned = (get(summary, model, "epochs") for model in ("dense", "pruned"))
    if dense is not None and pruned is not None and dense != pruned:
        notes.append(
            f"The dense network trained for {dense} epochs and the pruned one for {pruned} in all: "
            "their mIoU differs by more than the pruning."
        )
    if get(summary, "ratios", "latency") is None:
        notes.append("Latency was not measured: nothing here says that the pruned file is faster.")
    else:
        notes.append(
            "Latency is of this machine's CPU, not of a phone: take the ratio, not the "
            "milliseconds. Both files took turns in one run, and the ratio is the median of the "
            "rounds' ratios; it need not equal the quotient of the medians."
        )
        notes.append(
            "Realised speed-up fraction: (dense ms / pruned ms) / (dense MACs / pruned MACs). "
            "1.00 means that every MAC saved was time saved."
        )
    exported = table.precisions(summary)
    missing = [name for name in table.PRECISIONS if name not in exported]
    if missing:
        notes.append(f"Not exported, hence not measured: {', '.join(missing)}.")
    notes.append("MACs count multiply-accumulates of one image, without bias and batch norm.")
    return notes


def _layer_counts(layers):
    changed = sum(layer["after"] != layer["before"] for layer in layers)
    before = sum(layer["before"] for layer in layers)
    return changed, before, sum(layer["after"] for layer in layers)


def _provenance(summary, command):
    plan = summary.get("plan") if isinstance(summary.get("plan"), dict) else {}
    versions = summary.get("versions") or {}
    facts = {
        "Command": command or summary.get("command"),
        "Commit": summary.get("commit"),
        "Date": summary.get("date"),
        "Machine": summary.get("machine"),
        "Seed": summary.get("seed"),
        "Data set": table.get(summary, "dataset", "name"),
        "Method": plan.get("method"),
        "Criterion": plan.get("criterion"),
        "Versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
    }
    return [
        (name, "not recorded" if value in (None, "") else str(value))
        for name, value in facts.items()
    ]


def write_report(summary, path, *, history=(), strips=(), command=None):
    """Writes the report of a run as one HTML file, whole or not at all.

    The file needs no network: styles and images are inside. What the summary does not hold reads
    "not measured". All names are escaped.

    Args:
        summary: what `summary.json` holds: `name`, `dense`, `pruned`, `ratios`, `layers`, ...; any
            part may be missing.
        path: path of the HTML file; its folder must exist.
        history: dictionaries of the epochs, see `table.load_history`. Defaults to `()`.
        strips: `strips.Strip` of the samples to show. Defaults to `()`.
        command: the command that made the run. Defaults to `None`: `summary["command"]`, if any.

    Returns:
        The path, as `pathlib.Path`.

    Raises:
        ValueError: if the folder does not exist, or the summary is no dictionary.

    Example:

    >>> write_report({"name": "demo"}, "report.html")  # doctest: +SKIP
    """
    path = pathlib.Path(path)
    if not isinstance(summary, dict):
        raise ValueError(
            "Invalid summary. Expected: a dictionary, as in summary.json. "
            f"Received: {type(summary).__name__}."
        )
    if not path.parent.is_dir():
        raise ValueError(
            f"Cannot write the report. Expected: an existing folder. Received: {path}."
        )

    classes, layers, history = _classes(summary), summary.get("layers") or (), list(history)
    dense_iou, pruned_iou = (
        table.get(summary, model, "per_class_iou") or {} for model in ("dense", "pruned")
    )
    columns, rows = _iou_table(summary, classes)
    colors = list(classes.values())
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("tfseg_prune.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    text = environment.get_template("report.html").render(
        name=summary.get("name") or "tfseg_prune",
        date=summary.get("date"),
        asked=_asked(summary.get("plan")),
        got=table.get(summary, "ratios", "macs"),
        share=table.share,
        cards=_cards(summary),
        sections=table.sections(summary),
        missing=table.NOT_MEASURED,
        notes=_notes(summary),
        classes=classes,
        columns=columns,
        iou_rows=rows,
        iou_plot=(
            _data_url(plots.per_class(dense_iou, pruned_iou), "svg")
            if dense_iou or pruned_iou
            else None
        ),
        layers=layers,
        layer_counts=_layer_counts(layers),
        layers_plot=_data_url(plots.widths(layers), "svg") if layers else None,
        curves=[
            (metric, _data_url(plots.curves(history, metric), "svg"))
            for metric in ("loss", "miou")
            if history
        ],
        strips=[
            (
                strip.name,
                [
                    (caption, png and _data_url(png, "png"))
                    for caption, png in drawing.panels(strip, colors)
                ],
            )
            for strip in strips
        ],
        ignored=drawing.IGNORED,
        provenance=_provenance(summary, command),
        raw=json.dumps(summary, indent=2, ensure_ascii=False, default=str),
    )
    atomic.write_text(path, text)
    return path
