"""What the tables of all results share."""

import statistics

import rich.box
from rich.table import Table
from rich.text import Text

MILLION = 1e6


def new_table(title, *columns):
    drawn = Table(title=Text(title), title_justify="left", box=rich.box.SIMPLE_HEAD)
    for position, column in enumerate(columns):
        drawn.add_column(column, justify="right" if position else "left")
    return drawn


def judged(text, passes):
    return text if passes else Text(f"{text} !", style="red")


def interval(ratio):
    return f"{ratio['low']:.3f}-{ratio['high']:.3f}"


def mean(rows, key):
    return statistics.mean(row[key] for row in rows)


def spread(rows, key):
    return statistics.stdev(row[key] for row in rows) if len(rows) > 1 else float("nan")
