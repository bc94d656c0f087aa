import keras
import pytest

from tests.deploy import nets
from tfseg_prune.deploy import ParityError, check_parity, export

layers = keras.layers


def conv(name=None):
    return layers.Conv2D(6, 3, padding="same", name=name, activation="tanh")


def auto_named():
    """Layers whose names the converter's own numbering imitates."""
    keras.utils.set_random_seed(3)
    inputs = x = keras.Input((16, 16, 3))
    x = layers.Rescaling(1 / 255)(x)
    for name in ("conv2d", "conv2d_1", "conv2d_2", "conv2d_1_1"):
        x = conv(name)(x)
    return keras.Model(inputs, layers.Conv2D(4, 1, name="logits")(x))


def nested():
    keras.utils.set_random_seed(4)
    inner = keras.Input((16, 16, 6))
    block = keras.Model(inner, conv("second")(conv("first")(inner)), name="block")
    inputs = keras.Input((16, 16, 3))
    x = block(conv("stem")(layers.Rescaling(1 / 255)(inputs)))
    return keras.Model(inputs, layers.Conv2D(4, 1, name="logits")(x))


def branches():
    """A layer called twice, and a gate whose saturated answer is right even if its input is not."""
    keras.utils.set_random_seed(5)
    inputs = keras.Input((16, 16, 3))
    x = conv("stem")(layers.Rescaling(1 / 255)(inputs))
    shared = conv("shared")
    x = layers.Add(name="sum")([shared(x), shared(conv("between")(x))])
    gate = keras.ops.sigmoid(100 + layers.GlobalAveragePooling2D(keepdims=True)(x))
    x = layers.Multiply(name="gated")([x, gate])
    return keras.Model(inputs, layers.Conv2D(4, 1, name="logits")(conv("last")(x)))


@pytest.mark.parametrize(
    "build, layer, named",
    [(auto_named, f"conv2d{number}", f"conv2d{number}") for number in ("", "_1", "_2", "_1_1")]
    + [(nested, "first", "block/first"), (nested, "second", "block/second")]
    + [(branches, name, name) for name in ("stem", "between", "shared", "last", "logits")],
)
def test_changed_layer_is_the_first_to_diverge(tmp_path, build, layer, named):
    model = build()
    path = export(model, tmp_path / "x.tflite").path
    images = nets.images(1, (16, 16))
    check_parity(model, path, images)
    owner = model.get_layer("block") if "/" in named else model
    weights = owner.get_layer(layer).get_weights()
    owner.get_layer(layer).set_weights([weight[..., ::-1] for weight in weights])
    with pytest.raises(ParityError) as caught:
        check_parity(model, path, images)
    assert caught.value.divergence.layer == named
