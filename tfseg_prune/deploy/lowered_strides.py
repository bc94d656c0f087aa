"""Strided 1x1 convolutions of integers as GPU delegates take them: the pixels are taken before."""

from keras import layers

from tfseg_prune.deploy.forms import Lowering
from tfseg_prune.deploy.lowered_groups import INTEGERS, weights
from tfseg_prune.deploy.lowered_transposed import in_turn
from tfseg_prune.graph.nodes import again

_SAYS = (
    "a 1x1 convolution with a stride, which GPU delegates leave out of account where the kernel is "
    "of integers: the pixels are taken before"
)


def strided_pointwise(node, graph, precision):
    """The `Lowering` of a 1x1 `Conv2D` with a stride, in a file whose kernels are integers."""
    conv = node.operation
    if type(conv) is not layers.Conv2D or precision not in INTEGERS:
        return None
    plain = conv.data_format == "channels_last" and conv.groups == 1
    if not plain or set(conv.kernel_size) != {1} or set(conv.strides) == {1}:
        return None
    return Lowering(_SAYS, _taken_before)


def _taken_before(conv, name, fresh):
    new = again(conv, {"name": name, "strides": (1, 1)}, blank=True)
    new.build((None, None, None, conv.kernel.shape[-2]))
    new.set_weights(weights(conv))
    # The largest of one pixel is that pixel, also in integers.
    pixels = layers.MaxPooling2D(
        1, conv.strides, data_format="channels_last", name=fresh(f"{name}_pixels"), dtype="float32"
    )
    return in_turn([pixels, new])
