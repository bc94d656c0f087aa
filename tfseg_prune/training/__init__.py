"""Training: losses, metrics, optimisers, the resumable fit, evaluation, recalibration."""

from tfseg_prune.training.checkpoints import TrainingError
from tfseg_prune.training.compiling import compile_classifier, compile_segmenter
from tfseg_prune.training.evaluate import Evaluation, evaluate
from tfseg_prune.training.fit import fit
from tfseg_prune.training.losses import SegmentationCrossEntropy
from tfseg_prune.training.metrics import MeanIoU
from tfseg_prune.training.optimizers import optimizer
from tfseg_prune.training.qat import fit_quantised
from tfseg_prune.training.recalibrate import recalibrate

__all__ = [
    "Evaluation",
    "MeanIoU",
    "SegmentationCrossEntropy",
    "TrainingError",
    "compile_classifier",
    "compile_segmenter",
    "evaluate",
    "fit",
    "fit_quantised",
    "optimizer",
    "recalibrate",
]
