"""What `tfseg_prune.graph.inspect` found, as text for the console."""

import rich.box
import rich.console
import rich.table
import rich.text

from tfseg_prune.report import table

NOTE = (
    "Shares are what vanishes if the whole set is dropped, of the model's MACs and parameters. A"
    " convolution counts for the set that it reads and for the one that it writes, so they sum to"
    " more than 100 %."
)
_WIDE = 120  # columns from which a group's readers are shown too


def names(items):
    """`"conv1"`, `"conv1, conv2"` or, of more than two, `"conv1 and 3 more"`.

    Args:
        items: names.

    Returns:
        Text, empty of no names.

    Example:

    >>> names(["a", "b", "c", "d"])
    'a and 3 more'
    """
    items = list(items)
    return ", ".join(items) if len(items) < 3 else f"{items[0]} and {len(items) - 1:,} more"


def figures(found):
    """{what: value} of the model as a whole, in words."""
    macs = "unknown: the input size is open" if found.macs is None else f"{found.macs:,} per image"
    share = found.prunable_share
    prunable = "none can be pruned" if share is None else f"{table.share(share)} can be pruned"
    countable = found.created - found.classifier - found.from_input
    aside = [
        f"{count:,} {what}"
        for count, what in (
            (found.classifier, "of the model's outputs"),
            (found.from_input, "coupled to its inputs"),
        )
        if count
    ]
    return {
        "Model": found.model,
        "Operations": f"{found.operations:,}, {found.layers:,} of them layers",
        "MACs": macs,
        "Parameters": f"{found.params:,}",
        "Channels": f"{countable:,} created by convolutions and dense layers, {prunable}"
        + (f"; not counted: {', '.join(aside)}" if aside else ""),
        "Unit groups": f"{len(found.groups):,}, with"
        f" {sum(group.width for group in found.groups):,} units that can go one by one",
        "Without a rule": ", ".join(found.without_rule) or "no layer",
    }


def _table(title, found, *headers):
    """An empty table and the function that fills one row for one set, the shares in front."""
    drawn = rich.table.Table(box=rich.box.SIMPLE_HEAD, title=title, title_justify="left")
    numbers = ["Width", "Params"] if found.macs is None else ["Width", "MACs", "Params"]
    for header in (headers[0], *numbers, *headers[1:]):
        drawn.add_column(header, justify="right" if header in numbers else "left")
        if header in numbers:
            drawn.columns[-1].no_wrap = True

    def add(one, first, *others):
        shares = [table.share(x) for x in (one.macs_share, one.params_share) if x is not None]
        texts = [rich.text.Text(other) for other in others]
        drawn.add_row(first, f"{one.width:,}", *shares, *texts)

    return drawn, add


def print_inspection(found, *, console=None):
    """Prints the figures of a model, what is kept whole and why, and every unit group.

    Layers are abbreviated; `Inspection.to_json` and `coupling.write_coupling` name them all.

    Args:
        found: `tfseg_prune.graph.Inspection`.
        console: a `rich.console.Console`. Defaults to `None`, one on stdout.
    """
    console = console or rich.console.Console()
    head = rich.table.Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    head.add_column(style="dim", no_wrap=True)
    for name, value in figures(found).items():
        head.add_row(name, rich.text.Text(value))
    console.print(head, "", sep="\n")

    drawn, add = _table("Kept whole", found, "Channels of", "Why")
    for one in found.frozen:
        add(one, rich.text.Text(names(one.layers)), one.reason)
    console.print(drawn)

    readers = ["Read by"] if console.width >= _WIDE else []
    drawn, add = _table("Can be pruned", found, "Coupled layers", *readers)
    for one in found.groups:
        text = rich.text.Text(names(one.layers))
        for constraint in one.constraints:
            text.append(f"\n  {constraint}", style="dim")
        add(one, text, *(names(one.reads) for _ in readers))
    console.print(drawn)
    console.print(rich.text.Text(NOTE, style="dim"))
