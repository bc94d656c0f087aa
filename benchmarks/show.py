"""Prints the table of a committed result.

python benchmarks/show.py benchmarks/results/camvid_deeplab_magnitude.json

A result is the `summary.json` of a run: it says its command, commit, seed, versions, machine and
date beside the figures.
"""

import json
import sys

from rich.console import Console

from tfseg_prune.report import table


def main(paths):
    if not paths:
        sys.exit(__doc__)
    for path in paths:
        with open(path) as file:
            summary = json.load(file)
        console = Console()
        table.print_summary(summary, console=console)
        for key in ("command", "commit", "seed", "versions", "machine", "date"):
            console.print(f"{key}: {summary[key]}", markup=False, soft_wrap=True)


if __name__ == "__main__":
    main(sys.argv[1:])
