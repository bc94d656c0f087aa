import keras
import numpy as np
import pytest

from tfseg_prune.models import mobilenet


def _backbone(size, **options):
    images = keras.Input((*size, 3))
    return keras.Model(images, mobilenet.mobilenet_v2(images, prefix="", **options))


def test_strides_channels_and_parameters(checks):
    model = _backbone((97, 130), output_stride=32)
    shapes = {stride: tuple(output.shape[1:]) for stride, output in model.output.items()}
    assert shapes == {
        2: (49, 65, 16),
        4: (25, 33, 24),
        8: (13, 17, 32),
        16: (7, 9, 96),
        32: (4, 5, 320),
    }
    assert checks.params(model) == 1_811_712


@pytest.mark.parametrize("size", [(64, 96), (65, 97)])
def test_strided_convolutions_pad_symmetrically(checks, size):
    """The first output of a stride-2 convolution has the first pixel under the kernel's centre."""
    model = _backbone(size, output_stride=32)
    stem = model.get_layer("Conv1")
    image = np.zeros((1, *size, 3), "float32")
    image[0, 0, 0, 1] = 1.0
    response = checks.answer(keras.Model(model.input, stem.output), image)[0, 0, 0]
    np.testing.assert_allclose(response, stem.get_weights()[0][1, 1, 1], rtol=1e-6)
    strided = [x for x in model.layers if getattr(x, "strides", (1,))[0] == 2]
    assert len(strided) == 5
    for layer in strided:
        (node,) = layer._inbound_nodes
        pad = node.parent_nodes[0].operation
        assert isinstance(pad, keras.layers.ZeroPadding2D) and pad.padding == ((1, 1), (1, 1))
        assert layer.padding == "valid"
