"""Segmentation networks of the pruning papers as plain functional Keras models.

Each takes float32 images in [0, 255] and answers logits at the input's resolution. Every layer is
a stock Keras layer whose name starts with `backbone_` (the encoder) or `decoder_`, so that a saved
model loads without this package and a pruning scope is a name.
"""

from tfseg_prune.models.deeplab import deeplab_v3_plus
from tfseg_prune.models.deeplab_v3 import deeplab_v3
from tfseg_prune.models.erfnet import erfnet, erfnet_encoder
from tfseg_prune.models.pspnet import pspnet
from tfseg_prune.models.unet import unet
from tfseg_prune.models.weights import copy_weights, load_weights

__all__ = [
    "copy_weights",
    "deeplab_v3",
    "deeplab_v3_plus",
    "erfnet",
    "erfnet_encoder",
    "load_weights",
    "pspnet",
    "unet",
]
