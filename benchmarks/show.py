"""Prints the table of any committed result.

python benchmarks/show.py benchmarks/results/coverage.json

A result says its command, commit, seed, versions, machine and date beside the figures, and by
`"kind"` what its table is; without one it is the `summary.json` of a run.
"""

import json
import sys

import tables_files
import tables_surgery
import tables_training
from rich.console import Console

from tfseg_prune.report import table

PROVENANCE = ("command", "commit", "seed", "versions", "machine", "date")
KINDS = {
    None: lambda result, console: table.print_summary(result, console=console),
    "alignment": tables_files.alignment,
    "coverage": tables_surgery.coverage,
    "criteria": tables_training.criteria,
    "erfnet_family": tables_surgery.erfnet_family,
    "fuzz": tables_files.fuzz,
    "gpu_table": tables_files.gpu_table,
    "grouped_export": tables_files.grouped_export,
    "grouping": tables_training.grouping,
    "keras_hub": tables_surgery.keras_hub,
    "quantisation": tables_training.quantisation,
    "redundancy": tables_training.redundancy,
    "surgery": tables_surgery.surgery,
    "random_graphs": tables_surgery.random_graphs,
}


def main(paths):
    if not paths:
        sys.exit(__doc__)
    for path in paths:
        with open(path) as file:
            result = json.load(file)
        # Piped into a file or a pager there is no screen whose width a table must fit.
        console = Console(width=None if sys.stdout.isatty() else 160)
        KINDS[result.get("kind")](result, console)
        for key in PROVENANCE:
            console.print(f"{key}: {result[key]}", markup=False, soft_wrap=True)


if __name__ == "__main__":
    main(sys.argv[1:])
