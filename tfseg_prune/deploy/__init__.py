"""From a Keras model to a LiteRT file, and the proof that the file answers as the model does."""

from tfseg_prune.bench.segmenter import Segmenter
from tfseg_prune.deploy.delegate import DelegateError, GpuCheck, check_gpu
from tfseg_prune.deploy.explain import Explanation, explain
from tfseg_prune.deploy.export import CALIBRATED, PRECISIONS, Export, ExportError, export
from tfseg_prune.deploy.fold import folded
from tfseg_prune.deploy.gpu_rules import Finding, check_rules
from tfseg_prune.deploy.lowering import lower, summarised
from tfseg_prune.deploy.mixed_precision import MixedPrecision
from tfseg_prune.deploy.parity import Parity, ParityError, check_parity
from tfseg_prune.deploy.qat import QuantisedNetwork, quantised
from tfseg_prune.deploy.tail import with_tail
from tfseg_prune.deploy.twin import tf_keras_twin

__all__ = [
    "CALIBRATED",
    "DelegateError",
    "Explanation",
    "Export",
    "ExportError",
    "Finding",
    "GpuCheck",
    "MixedPrecision",
    "PRECISIONS",
    "Parity",
    "ParityError",
    "QuantisedNetwork",
    "Segmenter",
    "check_gpu",
    "check_parity",
    "check_rules",
    "explain",
    "export",
    "folded",
    "lower",
    "quantised",
    "summarised",
    "tf_keras_twin",
    "with_tail",
]
