"""`python -m tfseg_prune` is the command `tfseg-prune`."""

from tfseg_prune.main import console

console()
