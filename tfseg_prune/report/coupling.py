"""A picture of which channels of a model are coupled, as one HTML file with an SVG inside.

One row is one call of a layer, below the calls that it reads. To its left, lines lead down to the
layers that read it; to its right a bar shows its channels, in one colour per unit group: where the
same colour turns up in several bars, the channels go together.
"""

import colorsys
import dataclasses
import math
import pathlib

import jinja2

from tfseg_prune import atomic
from tfseg_prune.report import table
from tfseg_prune.report.inspection import NOTE, figures, names

_ROW = 22  # pixels
_LANE = 14
_TOP = 36
_BAR = 180
_CHARACTER = 7.7  # a bold letter at 12 pixels, in the widest of the usual fonts
_LONGEST = 52  # characters of a layer's name that are shown


@dataclasses.dataclass(frozen=True)
class _Segment:
    """A run of a bar; `left` and `width` in pixels."""

    left: float
    width: float
    index: int
    channels: int


@dataclasses.dataclass(frozen=True)
class _Row:
    """One call with its place: the dot at (x, y) of a radius, and the lines to its readers.

    `main` is the set with the most of its channels; `cost` in MACs, or in parameters where the
    input size is open.
    """

    call: object
    x: float
    y: float
    radius: float
    line: str
    segments: tuple
    main: int | None
    cost: int


def _ordered(calls):
    """The calls in a topological order that ends one branch before it begins the next.

    Returns:
        List of positions in `calls`, and for every call the positions of its readers.
    """
    position = {call.name: k for k, call in enumerate(calls)}
    readers = [[] for _ in calls]
    waiting = []
    for k, call in enumerate(calls):
        feeds = dict.fromkeys(position[name] for name in call.inputs)
        waiting.append(len(feeds))
        for feed in feeds:
            readers[feed].append(k)
    ready = [k for k in reversed(range(len(calls))) if not waiting[k]]
    order = []
    while ready:
        k = ready.pop()
        order.append(k)
        for reader in reversed(readers[k]):
            waiting[reader] -= 1
            if not waiting[reader]:
                ready.append(reader)
    return order, readers


def _lanes(order, readers):
    """The column and the row of every call; its column is its own until its last reader's row."""
    row_of = {k: row for row, k in enumerate(order)}
    lanes, until = {}, {}  # {call: column}, {column: row of the last reader}
    for row, k in enumerate(order):
        ending = [lane for lane, last in until.items() if last == row]
        until = {lane: last for lane, last in until.items() if last > row}
        # What ends here goes straight on, where it can.
        free = (lane for lane in range(len(until) + 1) if lane not in until)
        lanes[k] = min(ending) if ending else next(free)
        until[lanes[k]] = max((row_of[reader] for reader in readers[k]), default=row)
    return lanes, row_of


def _line(x, y, ends):
    """An SVG path down a column with a bend to each `(x, y)` of `ends`."""
    straight = [y_end for x_end, y_end in ends if x_end == x]
    bends = [(x_end, y_end) for x_end, y_end in ends if x_end != x]
    lowest = max([*straight, *(y_end - _ROW for _, y_end in bends)], default=y)
    path = [f"M{x:g} {y:g}V{lowest:g}"] if lowest > y else []
    for x_end, y_end in bends:
        start, middle = y_end - _ROW, y_end - _ROW / 2
        path.append(f"M{x:g} {start:g}C{x:g} {middle:g} {x_end:g} {middle:g} {x_end:g} {y_end:g}")
    return "".join(path)


def _segments(channels, widest):
    """A bar as long as the root of its channels: narrow layers are seen beside wide ones."""
    total = sum(channels.values())
    length = _BAR * math.sqrt(min(1, total / widest))
    left, made = 0.0, []
    for index, count in channels.items():
        width = length * count / total
        made.append(_Segment(left, width, index, count))
        left += width
    return tuple(made)


def _rows(found):
    order, readers = _ordered(found.calls)
    lanes, row_of = _lanes(order, readers)
    widest = max([1, *(sum(c.channels.values()) for c in found.calls if c.creates)])
    spent = [call.params if found.macs is None else call.macs for call in found.calls]
    most = max([1, *spent])

    def place(k):
        return _LANE * (lanes[k] + 1), _TOP + _ROW * row_of[k] + _ROW / 2

    rows = []
    for k in order:
        call, (x, y) = found.calls[k], place(k)
        main = max(call.channels, key=call.channels.get, default=None)
        radius = 4 + 4.5 * math.sqrt(spent[k] / most) if spent[k] else 3
        line = _line(x, y, [place(reader) for reader in readers[k]])
        segments = _segments(call.channels, widest)
        rows.append(_Row(call, x, y, radius, line, segments, main, spent[k]))
    return rows, _LANE * (max(lanes.values(), default=0) + 2)


def _colors(found):
    """A colour for every set that can be pruned, unlike those of its neighbours."""
    made = {}
    for index, one in enumerate(found.sets):
        if one.prunable:
            turn = len(made)
            light = (0.46, 0.58, 0.52)[turn % 3]
            parts = colorsys.hls_to_rgb(turn * 0.381966 % 1, light, 0.62)
            made[index] = "#" + "".join(f"{round(255 * part):02x}" for part in parts)
    return made


def _short(name):
    """A name that fits its column: the middle goes first, as ends tell layers apart."""
    if len(name) <= _LONGEST:
        return name
    half = (_LONGEST - 1) // 2
    return f"{name[:half]}…{name[-half:]}"


def _title(one, sized):
    """What hovering over a run of channels says."""
    what = "MACs" if sized else "parameters"
    share = table.share(one.macs_share if sized else one.params_share)
    fate = "can be pruned" if one.prunable else f"kept whole: {one.reason}"
    return f"{names(one.layers)}\n{share} of the {what}; {fate}"


def write_coupling(found, path):
    """Writes the picture, whole or not at all. The file needs no network; all names are escaped.

    Args:
        found: `tfseg_prune.graph.Inspection`.
        path: path of the HTML file; its folder must exist.

    Returns:
        The path, as `pathlib.Path`.

    Raises:
        ValueError: if the folder does not exist.

    Example:

    >>> write_coupling(tsp.inspect(model), "coupling.html")  # doctest: +SKIP
    """
    path = pathlib.Path(path)
    if not path.parent.is_dir():
        raise ValueError(
            f"Cannot write the picture. Expected: an existing folder. Received: {path}."
        )
    rows, names_at = _rows(found)
    sized = found.macs is not None
    shown = [_short(row.call.name) for row in rows]
    kinds_at = names_at + _CHARACTER * max([5, *map(len, shown)]) + 12
    bars_at = kinds_at + 7 * max([5, *(len(row.call.kind) for row in rows)]) + 16
    counts_at, end = bars_at + _BAR + 72, bars_at + _BAR + 148
    key = "macs_share" if sized else "params_share"
    by_share = sorted(range(len(found.sets)), key=lambda index: -getattr(found.sets[index], key))
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("tfseg_prune.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    text = environment.get_template("coupling.html").render(
        found=found,
        figures=figures(found),
        note=NOTE,
        sized=sized,
        rows=list(zip(rows, shown)),
        colors=_colors(found),
        titles=[_title(one, sized) for one in found.sets],
        names=names,
        prunable=[index for index in by_share if found.sets[index].prunable],
        frozen=[index for index, one in enumerate(found.sets) if not one.prunable],
        at={"name": names_at, "kind": kinds_at, "bar": bars_at, "counts": counts_at, "costs": end},
        size=(end + 10, _TOP + _ROW * len(rows) + 12),
        row_height=_ROW,
        count=table.count,
        share=table.share,
    )
    atomic.write_text(path, text)
    return path
