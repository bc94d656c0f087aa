"""From a Keras model to a LiteRT file, and the proof that the file answers as the model does."""

from tfseg_prune.deploy.export import Export, ExportError, export
from tfseg_prune.deploy.lowering import lower, summarised
from tfseg_prune.deploy.parity import Parity, ParityError, check_parity
from tfseg_prune.deploy.tail import with_tail

__all__ = [
    "Export",
    "ExportError",
    "Parity",
    "ParityError",
    "check_parity",
    "export",
    "lower",
    "summarised",
    "with_tail",
]
