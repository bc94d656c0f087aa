"""What `tfseg_prune.deploy.explain` found, as tables for the console."""

import collections
import sys

import rich.box
import rich.console
import rich.table
import rich.text

from tfseg_prune.deploy.lowering import summarised
from tfseg_prune.report import table

_WIDE = 110  # columns from which all are shown
_PIPED = 200


def print_explanation(found, *, console=None):
    """Prints an op a line, and the sums.

    Ops that only unpack weights are left out, as delegates do that once.

    Args:
        found: `Explanation`.
        console: a `rich.console.Console`. Defaults to `None`, one on stdout.
    """
    # Piped into a file or a pager there is no screen whose width a table must fit.
    width = None if sys.stdout.isatty() else _PIPED
    console = console or rich.console.Console(highlight=False, width=width)
    drawn = rich.table.Table(box=rich.box.SIMPLE_HEAD)
    columns = ["#", "op", "layer", "reads", "writes", "MACs", "padded", "weights", "activations"]
    if console.width < _WIDE:
        columns = ["#", "op", "layer", "writes", "MACs", "padded"]
    for title in (*columns, "GPU"):
        justify = "left" if title in ("op", "layer", "GPU") else "right"
        drawn.add_column(title, justify=justify, overflow="fold")  # a cut name is none
    shown = [op for op in found.ops if not op.constant]
    for op in shown:
        cells = {
            "#": str(op.index),
            "op": op.op,
            "layer": op.layer + (f" and {len(op.fused)} more" if op.fused else ""),
            "reads": ", ".join(map(_shape, op.inputs)),
            "writes": _shape(op.output),
            "MACs": _number(op.macs),
            "padded": _number(op.padded_macs),
            "weights": table.size(op.weight_bytes) if op.weight_bytes else "",
            "activations": table.size(op.activation_bytes),
        }
        verdict = rich.text.Text(op.gpu, style="red")
        drawn.add_row(*(rich.text.Text(cells[title]) for title in columns), verdict)
    console.print(drawn)
    unpacked = len(found.ops) - len(shown)
    lines = [
        f"{found.path}: {found.precision}, {found.bytes:,} bytes, {len(found.ops)} ops"
        + (f", {unpacked} of them unpack weights and are not shown" if unpacked else ""),
        f"MACs {found.macs:,}; with widths rounded up to 4, as GPUs compute, {found.padded_macs:,}"
        + (f" ({found.padded_macs / found.macs:.3f} times)" if found.macs else ""),
        f"Weights {table.size(found.weight_bytes)}; activations"
        f" {table.size(found.activation_bytes)} written in all, at most"
        f" {table.size(found.peak_bytes)} alive at once",
    ]
    if found.uncounted:
        lines.append(f"MACs of these ops are not counted: {', '.join(found.uncounted)}")
    if found.graphs > 1:
        lines.append(f"All this is of the first of {found.graphs} graphs that the file has")
    if found.unnamed:
        lines.append(f"Layers are named as the file's tensors are. {found.unnamed}")
    judged = [op for op in found.ops if op.gpu]
    counts = collections.Counter(op.gpu for op in judged)
    lines.append(
        f"GPU: {', '.join(f'{verdict} {count}' for verdict, count in counts.items())} of"
        f" {len(found.ops)} ops"
        if judged
        else "GPU: no rule has anything against an op; only a run on a GPU delegate is proof"
    )
    lines += [f"  {line}" for line in summarised(op.why for op in judged)]
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)


def _shape(shape):
    return "x".join(map(str, shape)) or "scalar"


def _number(value):
    return "?" if value is None else table.count(value) if value else ""
