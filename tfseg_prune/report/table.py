"""The numbers of a summary as rows of text: for the console here, for the HTML in `html`."""

import dataclasses
import json
import math
import pathlib

import rich.box
import rich.console
import rich.markup
import rich.table
import rich.text

NOT_MEASURED = "not measured"
PRECISIONS = ("float32", "float16", "dynamic", "int8")


def get(summary, *keys):
    """Value below nested keys, or `None` where one of them is missing, null or not a number.

    Args:
        summary: nested dictionaries.
        *keys: the path.

    Returns:
        The value; NaN and infinity count as missing.

    Example:

    >>> get({"dense": {"miou": 0.6}}, "dense", "miou"), get({}, "dense", "miou")
    (0.6, None)
    """
    for key in keys:
        summary = summary.get(key) if isinstance(summary, dict) else None
    if isinstance(summary, float) and not math.isfinite(summary):
        return None
    return summary


def _shown(text):
    return lambda value: NOT_MEASURED if value is None else text(value)


def _scaled(value, steps):
    step, unit = next((pair for pair in steps if abs(value) >= pair[0]), steps[-1])
    value /= step
    digits = 0 if step == 1 or value >= 100 else 1 if value >= 10 else 2
    return f"{value:,.{digits}f} {unit}".rstrip()


count = _shown(lambda value: _scaled(value, ((1e9, "G"), (1e6, "M"), (1e3, "k"), (1, ""))))
size = _shown(lambda value: _scaled(value, ((2**20, "MiB"), (2**10, "KiB"), (1, "B"))))
milliseconds = _shown(lambda value: f"{value:.2f} ms" if value < 100 else f"{value:,.0f} ms")
share = _shown(lambda value: f"{100 * value:.1f} %")
agreement = _shown(lambda value: f"{100 * value:.3f} %")
score = _shown(lambda value: f"{value:.4f}")
factor = _shown(lambda value: f"{value:.3f}×")
fraction = _shown(lambda value: f"{value:.2f}")
tiny = _shown(lambda value: f"{value:.2g}")


@_shown
def duration(seconds):
    """Seconds as `"2 h 5 min"`, `"3 min 20 s"` or `"12 s"`."""
    minutes, left = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {left} s" if minutes else f"{left} s"


@_shown
def whole(value):
    """A number without unit, exactly."""
    return f"{value:,}"


def difference(dense, pruned):
    """`pruned - dense` with its sign, or `""` where one of them is missing."""
    if dense is None or pruned is None:
        return ""
    return f"{pruned - dense:+.4f}".replace("-", "−")


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the table.

    Args:
        label: what it is.
        dense: the dense network's value.
        pruned: the pruned one's.
        compared: how they compare. Defaults to `""`.
        detail: whether a short table leaves it out. Defaults to `False`.
    """

    label: str
    dense: str
    pruned: str
    compared: str = ""
    detail: bool = False


def precisions(summary):
    """Precisions that either model was exported in, the usual ones first."""
    found = [
        name
        for model in ("dense", "pruned")
        for name, values in (get(summary, model, "tflite") or {}).items()
        if values
    ]
    return sorted(
        dict.fromkeys(found),
        key=lambda name: PRECISIONS.index(name) if name in PRECISIONS else len(PRECISIONS),
    )


def _row(summary, label, text, *keys, compared="", detail=False):
    dense, pruned = (get(summary, model, *keys) for model in ("dense", "pruned"))
    if callable(compared):
        compared = compared(dense, pruned)
    return Row(label, text(dense), text(pruned), compared, detail)


def _quotient(dense, pruned):
    return share(pruned / dense) if dense and pruned is not None else ""


def ratio(summary, precision, key):
    """`latency` or `realised` of one precision; `None` where it was not measured."""
    value = get(summary, "ratios", "by_precision", precision, key)
    if value is None and precision == "float32":
        value = get(summary, "ratios", key)
    return value


def sections(summary):
    """The table dense against pruned.

    Args:
        summary: what `summary.json` holds.

    Returns:
        List of `(title, rows)`, first the networks and then one section per exported precision.
        What is missing reads `"not measured"`.

    Example:

    >>> title, rows = sections({"dense": {"params": 2_000_000}})[0]
    >>> rows[0].dense, rows[0].pruned
    ('2.00 M', 'not measured')
    """
    made = [
        (
            "Network",
            [
                _row(summary, "Parameters", count, "params", compared=_quotient),
                _row(summary, "MACs", count, "macs", compared=_quotient),
                _row(summary, "mIoU", score, "miou", compared=difference),
                _row(summary, "Pixel accuracy", score, "pixel_accuracy", compared=difference),
                _row(summary, "Epochs", whole, "epochs", detail=True),
                _row(summary, "Training time", duration, "train_seconds", detail=True),
            ],
        )
    ]
    for name in precisions(summary):
        at = ("tflite", name)
        timed = (*at, "latency_ms")
        latency = ratio(summary, name, "latency")
        realised = fraction(ratio(summary, name, "realised"))
        rows = [
            _row(summary, "File size", size, *at, "bytes", compared=_quotient),
            _row(summary, "Latency, median", milliseconds, *timed, "p50", compared=factor(latency)),
            Row("Realised speed-up fraction", "", "", realised),
            _row(summary, "Same class as Keras", agreement, *at, "argmax_agreement"),
            _row(summary, "mIoU of the file", score, *at, "miou", compared=difference),
        ]
        rows += [
            _row(summary, label, milliseconds, *timed, key, detail=True)
            for label, key in (
                ("Latency, p90", "p90"),
                ("Latency, p99", "p99"),
                ("First inference", "first"),
                ("Opening the file", "init"),
            )
        ]
        rows.append(_row(summary, "Largest difference", tiny, *at, "max_abs_diff", detail=True))
        made.append((f"LiteRT {name}", rows))
    return made


def console_table(summary):
    """The table dense against pruned, for the console: without the details.

    Args:
        summary: what `summary.json` holds.

    Returns:
        A `rich.table.Table`.

    Example:

    >>> console_table({"name": "demo"}).columns[1].header
    'dense'
    """
    made = rich.table.Table(
        # Text, as a name may hold what rich takes for markup.
        title=rich.text.Text(str(summary.get("name", "tfseg_prune"))),
        title_justify="left",
    )
    made.add_column("")
    for header in ("dense", "pruned", "pruned / dense"):
        made.add_column(header, justify="right")
    for title, rows in sections(summary):
        made.add_section()
        made.add_row(rich.text.Text(title, style="bold"))
        for row in rows:
            if row.detail:
                continue
            cells = [row.dense, row.pruned, row.compared]
            made.add_row(
                f"  {row.label}",
                *(rich.text.Text(c, style="dim" if c == NOT_MEASURED else "") for c in cells),
            )
    return made


def print_summary(summary, *, console=None):
    """Prints the table dense against pruned.

    Args:
        summary: what `summary.json` holds.
        console: a `rich.console.Console`. Defaults to `None`, one on stdout.

    Example:

    >>> print_summary({"name": "demo"})  # doctest: +SKIP
    """
    (console or rich.console.Console()).print(console_table(summary))


def print_layers(before, after, widths, *, console=None):
    """Prints what surgery did, layer by layer.

    Args:
        before: cost of the dense network: `.macs`, `.params`, `.padded_macs` and `.layers`, a
            dictionary of layer names to objects with `.macs` and `.params`.
        after: the same of the pruned one.
        widths: dictionary of layer names to `(channels before, channels after)`, of the layers
            that lost some.
        console: a `rich.console.Console`. Defaults to `None`, one on stdout.
    """
    drawn = rich.table.Table(box=rich.box.SIMPLE_HEAD)
    for title in ("Layer", "Channels", "MACs", "after", "Parameters", "after"):
        drawn.add_column(title, justify="left" if title == "Layer" else "right")

    def add(name, channels, old, new):
        cells = (old.macs, new.macs, old.params, new.params)
        texts = ("open size" if cell is None else f"{cell:,}" for cell in cells)
        drawn.add_row(rich.markup.escape(name), channels, *texts)

    for name, old in before.layers.items():
        channels = "{} → {}".format(*widths[name]) if name in widths else ""
        add(name, channels, old, after.layers[name])
    drawn.add_section()
    add("Total", "", before, after)

    def quotient(name):
        old, new = getattr(before, name), getattr(after, name)
        return f"{new / old:.3f}" if old else ""

    drawn.add_row("after / before", "", "", quotient("macs"), "", quotient("params"))
    if before.padded_macs is not None:
        padded = f"{before.padded_macs:,}", f"{after.padded_macs:,}"
        drawn.add_row("Total, widths rounded up to 4", "", *padded, "", "")
        drawn.add_row("after / before", "", "", quotient("padded_macs"), "", "")
    (console or rich.console.Console()).print(drawn)


def load_history(path):
    """Reads the epochs of a `metrics.jsonl`.

    Args:
        path: path of the file, one JSON object a line.

    Returns:
        List of dictionaries. A last line that a killed run left half-written is dropped.

    Raises:
        ValueError: if the file is missing, or another line is no epoch.

    Example:

    >>> load_history("runs/demo/metrics.jsonl")  # doctest: +SKIP
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise ValueError(f"Cannot read the history. Expected: a .jsonl file. Received: {path}.")
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    history = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError:
            if number == len(lines):
                break
            row = None
        if not isinstance(row, dict) or "stage" not in row or not isinstance(row.get("epoch"), int):
            raise ValueError(
                "Invalid history. Expected: an object with `stage` and `epoch` on every line. "
                f"Received: {path}, line {number}: {line[:80]!r}."
            )
        history.append(row)
    return history
