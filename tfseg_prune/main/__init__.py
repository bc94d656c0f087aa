"""The command line, `tfseg-prune`."""

from tfseg_prune.main.command import console, main, run

__all__ = ["console", "main", "run"]
