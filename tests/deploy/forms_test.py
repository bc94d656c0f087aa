"""What GPU delegates refuse or get wrong, each in the other form that `lower` gives it."""

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import layers, ops

from tests.deploy import gpu_nets, nets
from tests.deploy.gpu_nets import Case, chain, conv, norm, relu, relu6
from tests.deploy.lowering_test import answer, largest_difference, operations
from tfseg_prune.deploy import ParityError, check_parity, export, lower
from tfseg_prune.deploy.contents import load_contents, read_contents
from tfseg_prune.deploy.convert import convert
from tfseg_prune.deploy.delegate import check_gpu_files
from tfseg_prune.deploy.lowered_shapes import Moves

ODD = layers.Cropping2D(((0, 1), (0, 1)))
SHIFT = np.linspace(0.1, 0.8, 8, dtype="float32")


class Enlarging(layers.Conv2DTranspose):
    """Of the same computation, of another class."""


def transposed(kernel=3, strides=2, **options):
    options = {"padding": "same", "bias_initializer": "random_normal", **options}
    return lambda x: layers.Conv2DTranspose(8, kernel, strides, **options)(x)


def shuffle(x):
    x = ops.reshape(x, (-1, 8, 12, 2, 4))
    return ops.reshape(ops.transpose(x, (0, 1, 2, 4, 3)), (-1, 8, 12, 8))


def shuffle_of_layers(x):
    x = layers.Permute((1, 2, 4, 3))(layers.Reshape((8, 12, 4, 2))(x))
    return layers.Reshape((8, 12, 8))(x)


def pixel_shuffle(x):
    x = ops.transpose(ops.reshape(x, (-1, 8, 12, 2, 2, 2)), (0, 1, 4, 2, 5, 3))
    return ops.reshape(x, (-1, 16, 24, 2))


def windows(x):
    x = ops.swapaxes(ops.reshape(x, (-1, 2, 4, 3, 4, 8)), 2, 3)
    x = layers.Dense(8)(ops.reshape(x, (-1, 16, 8)))
    x = ops.moveaxis(ops.reshape(x, (-1, 2, 3, 4, 4, 8)), 2, 3)
    return ops.reshape(x, (-1, 8, 12, 8))


def joint_attention(x):
    x = layers.Dense(24)(layers.Reshape((96, 8))(x))
    x = ops.transpose(ops.reshape(x, (-1, 96, 3, 2, 4)), (2, 0, 3, 1, 4))
    query, key, value = x[0], x[1], x[-1, ...]
    weights = ops.softmax(ops.matmul(query, ops.swapaxes(key, 2, 3)) / 2.0)
    x = ops.reshape(ops.transpose(ops.matmul(weights, value), (0, 2, 1, 3)), (-1, 96, 8))
    return layers.Reshape((8, 12, 8))(x)


def attention(*axes, shared=True):
    def build(x):
        other = x if shared else layers.MaxPooling2D(2)(x)
        return layers.MultiHeadAttention(2, 4, attention_axes=axes or None)(x, other)

    return build


# {name: (network, whether every number stays what it was)}
FORMS = {
    "nearest": (Case(layers.UpSampling2D(2)), True),
    "nearest-5-channels": (Case(layers.UpSampling2D((3, 2)), channels=5), True),
    "nearest-int8": (Case(layers.UpSampling2D(2), precision="int8"), True),
    "repeated": (Case(lambda x: ops.repeat(ops.repeat(x, 2, axis=1), 3, axis=-2)), True),
    "shuffle": (Case(shuffle), True),
    "shuffle-of-layers": (Case(shuffle_of_layers), True),
    "pixel-shuffle": (Case(pixel_shuffle), True),
    "windows": (Case(windows), False),
    "joint-attention": (Case(joint_attention), False),
    "attention": (Case(attention()), False),
    "attention-rows": (Case(attention(2)), False),
    "attention-columns": (Case(attention(1)), False),
    "attention-elsewhere": (Case(attention(shared=False)), False),
    "bn-relu": (Case(chain(transposed(use_bias=False), norm, relu)), True),
    "bias-relu6": (Case(chain(transposed(), relu6)), True),
    "relu-1": (Case(chain(transposed(), layers.ReLU(1.0))), True),
    "maximum": (Case(chain(transposed(), lambda x: ops.maximum(x, 0.0))), True),
    "clip": (Case(chain(transposed(), lambda x: ops.clip(x, 0.0, 6.0))), True),
    "raw-relu": (Case(chain(transposed(), layers.Activation(ops.relu))), True),
    "raw-relu-inside": (Case(transposed(activation=ops.relu)), True),
    "scaled-relu": (Case(chain(transposed(), layers.Rescaling(2.0, 0.5), relu)), True),
    "shifted-relu": (Case(chain(transposed(use_bias=False), lambda x: x * 2 + SHIFT, relu)), True),
    "noise-relu": (Case(chain(transposed(), layers.SpatialDropout2D(0.1), relu)), True),
    "subclass-relu": (Case(chain(Enlarging(8, 3, 2, bias_initializer="normal"), relu)), True),
    "relu-inside": (Case(transposed(2, activation="relu")), True),
    "relu6-inside": (Case(transposed(activation="relu6")), True),
    "relu-int8": (Case(chain(transposed(), norm, relu), precision="int8"), True),
    "odd": (Case(chain(ODD, transposed())), False),
    "odd-bn-relu": (Case(chain(ODD, transposed(use_bias=False), norm, relu)), False),
    "odd-bn-relu-int8": (Case(chain(ODD, transposed(), norm, relu), precision="int8"), False),
    "odd-5x5-relu6-inside": (Case(chain(ODD, transposed(5, activation="relu6"))), False),
    "odd-7x7-sigmoid-inside": (Case(chain(ODD, transposed(7, activation="sigmoid"))), False),
    "strided-int8": (Case(conv(8, 1, strides=2, activation="relu"), precision="int8"), True),
    "strided-odd-int8": (Case(chain(ODD, conv(8, 1, strides=3)), precision="int8"), True),
    "strided-grouped-int8": (Case(conv(16, 1, strides=2, groups=2), precision="int8"), False),
    "small-kernel": (Case(chain(layers.Cropping2D(((0, 3), (0, 3))), transposed(3, 4))), False),
    **{
        f"argmax-{classes}-{precision}": (
            Case(conv(), tail="argmax", classes=classes, precision=precision),
            True,
        )
        for classes in (2, 5, 19)
        for precision in ("float32", "int8")
    },
}


@pytest.mark.parametrize("name", FORMS)
def test_another_form_of_equal_values(name):
    case, exact = FORMS[name]
    model = gpu_nets.model(case)
    lowered, log = lower(model, tail=case.tail, precision=case.precision)
    images = gpu_nets.images()
    expected, found = answer(model, images), answer(lowered, images)
    if case.tail == "argmax":
        assert found.shape[-1] % 4 == 0 and (found.argmax(-1) == expected.argmax(-1)).all()
        np.testing.assert_allclose(found[..., : case.classes], expected, rtol=0, atol=1e-6)
    elif exact:
        np.testing.assert_array_equal(found, expected)
    else:
        assert largest_difference(model, lowered) < 1e-6
    assert log and lower(lowered, tail=case.tail, precision=case.precision) == (lowered, ())
    names = [operation.name for operation in model.operations]
    kept = {operation.name for operation in lowered.operations}
    assert all(line.split(":")[0] in names for line in log)
    assert {line.split(":")[0] for line in log} <= kept, "what a layer answers keeps its name"


OPTIONS = {"tail": "upsampled", "io": "float32", "image_size": None}


def written(case, path):
    """Writes the case's file as export would; returns its lowered model."""
    lowered, _ = lower(gpu_nets.model(case), tail=case.tail, precision=case.precision)
    representative = gpu_nets.images(16, seed=1)
    options = {**OPTIONS, "precision": case.precision, "tail": case.tail}
    path.write_bytes(convert(lowered, images=representative, **options))
    return lowered


@pytest.fixture(scope="module")
def checks(tmp_path_factory, gpu):
    """`{name: GpuCheck}` of the lowered files."""
    folder = tmp_path_factory.mktemp("forms")
    files = []
    for name, (case, _) in {**FORMS, **RIGHT_AS_THEY_ARE}.items():
        path = folder / f"{name}.tflite"
        files.append((path, gpu_nets.images(), written(case, path)))
    return {check.path.stem: check for check in check_gpu_files(files, float32=True, timeout=120)}


def six(x):
    return ops.relu6(x + 3.0) / 6.0


def plain_attention(x):
    x = layers.Reshape((96, 8))(x)
    return layers.Reshape((8, 12, 8))(layers.MultiHeadAttention(2, 4)(x, x))


def einsum_attention(x):
    x = ops.reshape(x, (-1, 96, 2, 4))
    weights = ops.softmax(ops.einsum("bqhd,bkhd->bhqk", x, 2.0 * x))
    return ops.reshape(ops.einsum("bhqk,bkhd->bqhd", weights, x), (-1, 8, 12, 8))


RIGHT_AS_THEY_ARE = {
    "hard-sigmoid": (Case(chain(conv(), layers.Activation("hard_sigmoid"))), True),
    "hard-sigmoid-raw": (Case(chain(conv(), ops.hard_sigmoid)), True),
    "hard-sigmoid-int8": (
        Case(chain(conv(), layers.Activation("hard_sigmoid")), precision="int8"),
        True,
    ),
    "relu6-of-x-plus-3": (Case(chain(conv(), six)), True),
    "hard-swish-raw": (Case(chain(conv(), ops.hard_swish)), True),
    "hard-swish-of-5": (Case(chain(conv(5), layers.Activation("hard_swish"))), True),
    "x-times-relu6": (Case(chain(conv(), lambda x: x * six(x))), True),
    "plain-attention": (Case(plain_attention), True),
    "einsum-attention": (Case(einsum_attention), True),
    "transposed-leaky": (Case(chain(transposed(), layers.LeakyReLU(0.1))), True),
    "transposed-even": (Case(chain(transposed(use_bias=False), norm)), True),
    "nearest-resize-odd": (Case(layers.Resizing(13, 19, interpolation="nearest")), True),
}


@pytest.mark.parametrize("name", RIGHT_AS_THEY_ARE)
def test_what_is_right_stays_as_it_is(name):
    model = gpu_nets.model(RIGHT_AS_THEY_ARE[name][0])
    assert lower(model) == (model, ())


@pytest.mark.slow
@pytest.mark.gpu
@pytest.mark.parametrize("name", {**FORMS, **RIGHT_AS_THEY_ARE})
def test_the_delegate_takes_every_form(checks, name):
    check = checks[name]
    assert check.passed and check.fully_accelerated and not check.findings, check
    if check.rms_diff is None:
        assert check.argmax_agreement == 1
    else:
        assert check.rms_diff < (0.1 if "int8" in name else 1e-5)


@pytest.mark.slow
@pytest.mark.gpu
@pytest.mark.parametrize("as_written", [True, False])
def test_the_delegate_errs_without(gpu, tmp_path, as_written):
    """The same networks as they are: nothing here is lowered in vain. What an argmax of unfilled
    slices answers is right where a score is positive, so that there only the rule tells."""
    names = [n for n in FORMS if as_written == (FORMS[n][0].tail != "argmax")]
    files = []
    for name in names:
        path = tmp_path / f"{name}.tflite"
        files.append((path, gpu_nets.images(), gpu_nets.write(FORMS[name][0], path)))
    for check in check_gpu_files(files, float32=True, timeout=120):
        assert check.findings and not (as_written and check.passed), check


@st.composite
def chains(draw):
    """`(shape, order)`: a reshape to more than four axes, and a transposition of these."""
    sizes = draw(st.lists(st.integers(1, 3), min_size=4, max_size=6))
    batch_first = draw(st.booleans())
    order = draw(st.permutations(range(1, len(sizes) + 1)))
    return sizes, ((0, *order) if batch_first else tuple(draw(st.permutations((0, *order)))))


@settings(max_examples=30, deadline=None, derandomize=True)
@given(chains(), st.integers(1, 3))
def test_any_transposition_in_four_dimensions(chain, batch):
    sizes, order = chain
    images = keras.Input((1, 1, int(np.prod(sizes))))
    x = ops.transpose(ops.reshape(images, (-1, *sizes)), order)
    x = ops.reshape(x, (-1, 1, 1, int(np.prod(sizes))))
    model = keras.Model(images, x)
    lowered, log = lower(model)
    numbers = np.arange(batch * np.prod(sizes)).reshape(batch, 1, 1, -1).astype("float32")
    np.testing.assert_array_equal(answer(model, numbers), answer(lowered, numbers))
    assert bool(log) == any(isinstance(op, Moves) for op in lowered.operations)
    assert bool(log) or order[0] != 0
    for operation in lowered.operations:
        if isinstance(operation, Moves):
            assert max(len(numbers) for _, numbers in operation.steps) <= 4


ENDS = st.lists(st.sampled_from(["norm", "relu", "dropout", "relu6"]), max_size=2)
SIDE, KERNEL, STRIDE = st.integers(2, 6), st.integers(1, 6), st.integers(1, 4)
TRANSPOSED = st.tuples(SIDE, SIDE, KERNEL, STRIDE, st.sampled_from([None, "relu", "tanh"]), ENDS)


@settings(max_examples=10, deadline=None, derandomize=True)
@given(TRANSPOSED)
def test_transposed_convolutions_of_any_size(options):
    check_transposed(*options)


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(TRANSPOSED)
def test_many_transposed_convolutions(options):
    check_transposed(*options)


def check_transposed(height, width, kernel, stride, activation, ends):
    keras.utils.set_random_seed(kernel)
    images = keras.Input((height, width, 3))
    options = {"padding": "same", "bias_initializer": "normal", "activation": activation}
    x = layers.Conv2DTranspose(2, kernel, stride, name="enlarge", **options)(images)
    ways = {"norm": norm, "relu": relu, "relu6": relu6, "dropout": layers.Dropout(0.1)}
    model = nets.randomised(keras.Model(images, chain(*(ways[end] for end in ends))(x)))
    lowered, _ = lower(model)
    assert largest_difference(model, lowered) < 1e-6
    assert lowered.output_shape == model.output_shape
    assert lowered.operations[-1].name == model.operations[-1].name


def everything(size=(12, 20)):
    """A network of all that is lowered but groups, of any size."""
    keras.utils.set_random_seed(7)
    images = keras.Input((*size, 3))
    x = conv(8, name="stem", strides=4)(images)
    x = layers.Conv2DTranspose(8, 3, 2, padding="same", use_bias=False, name="enlarge")(x)
    x = layers.ReLU(name="enlarge_relu")(layers.BatchNormalization(name="enlarge_norm")(x))
    x = layers.UpSampling2D(2, name="nearest")(x)
    x = layers.Add(name="add")([x, Gate(name="gate")(x)])
    return nets.randomised(keras.Model(images, conv(5, 1, name="logits")(x), name="everything"))


@keras.saving.register_keras_serializable(package="tests")
class Gate(layers.Layer):
    """Reads the shape as it runs."""

    def call(self, inputs):
        batch, height, width, channels = ops.shape(inputs)
        x = ops.reshape(inputs, (batch, height * width, channels))
        return ops.reshape(ops.sigmoid(x), (batch, height, width, channels))


@pytest.mark.parametrize("size", [(12, 20), (None, None)])
def test_files_hold_nothing_that_delegates_refuse(tmp_path, size):
    """Whether the model has a size or is given one; (3, 5) pixels are padded wrongly."""
    model = everything(size)
    images = np.random.default_rng(0).uniform(-1, 1, (2, 12, 20, 3)).astype("float32")
    done = export(model, tmp_path / "x.tflite", tail="argmax", image_size=(12, 20), images=images)
    assert not done.findings and done.parity.argmax_agreement == 1
    expected = {"RESIZE_NEAREST_NEIGHBOR": 1, "TRANSPOSE_CONV": 1, "RELU": 1, "ARG_MAX": 1}
    assert done.ops.items() >= expected.items() and "SHAPE" not in done.ops
    assert [line.split(":")[0] for line in done.lowered] == ["enlarge", "nearest", "logits"]
    versions = [op.version for op in load_contents(done.path).ops if op.name == "TRANSPOSE_CONV"]
    assert max(versions) <= 3
    (left,) = model.inputs
    assert tuple(left.shape[1:3]) == size and type(model.get_layer("nearest")) is (
        layers.UpSampling2D
    )


@pytest.mark.slow
@pytest.mark.parametrize("tail", ["logits", "argmax"])
@pytest.mark.parametrize("layer", ["stem", "enlarge", "logits"])
def test_a_changed_layer_is_named(tmp_path, layer, tail):
    model = everything()
    images = np.random.default_rng(0).uniform(-1, 1, (2, 12, 20, 3)).astype("float32")
    path = export(model, tmp_path / "x.tflite", tail=tail, images=images).path
    changed = model.get_layer(layer)
    changed.set_weights([-3.0 * w[..., ::-1] - 1.0 for w in changed.get_weights()])
    with pytest.raises(ParityError) as caught:
        check_parity(model, path, images, tail=tail, threshold=1.0)
    divergence = caught.value.divergence
    assert layer in (divergence.layer, *divergence.fused_with)


def test_a_layer_of_several_calls_is_lowered_where_it_must_be():
    """One ReLU for all: it leaves the transposed convolution, and stays in the convolution."""
    images = keras.Input((8, 12, 3))
    one = layers.ReLU(name="one")
    x = one(conv()(images))
    x = one(layers.Conv2DTranspose(8, 2, 2)(x))
    enlarge = layers.UpSampling2D(2, name="twice")
    model = keras.Model(images, enlarge(enlarge(x)))
    lowered, log = lower(model)
    assert len(log) == 2 and largest_difference(model, lowered) == 0
    names = [operation.name for operation in operations(lowered)]
    assert {"one", "one_", "twice"} <= set(names) and len(set(names)) == len(names)
    inside = read_contents(
        convert(
            lowered,
            precision="float32",
            tail="upsampled",
            io="float32",
            image_size=None,
            images=None,
        )
    )
    assert inside.counts()["LEAKY_RELU"] == 1 and "RELU" not in inside.counts()


def test_what_looks_alike_stays():
    """Channels first, other types, masks, more than one open size, and what others read."""
    images = keras.Input((3, 8, 12))
    first = layers.UpSampling2D(2, data_format="channels_first")(images)
    model = keras.Model(images, first)
    assert lower(model) == (model, ())
    images = keras.Input((8, 12, 8))
    masked = layers.MultiHeadAttention(2, 4)(images, images, use_causal_mask=True)
    model = keras.Model(images, masked)
    assert lower(model) == (model, ())
    images = keras.Input((None, None, 8))
    mixed = ops.reshape(ops.transpose(ops.expand_dims(images, 3), (0, 2, 1, 3, 4)), (-1, 8))
    model = keras.Model(images, mixed)
    assert lower(model) == (model, ())


@pytest.mark.slow
@pytest.mark.gpu
def test_mobilenet_v3_is_taken_whole(gpu, tmp_path):
    """Hard sigmoids and hard swishes, squeeze and excite, all of it."""
    backbone = keras.applications.MobileNetV3Small(
        (96, 128, 3), weights=None, include_top=False, minimalistic=False
    )
    x = layers.Conv2D(5, 1, name="logits")(backbone.output)
    x = layers.UpSampling2D(4, interpolation="bilinear", name="enlarge")(x)
    model = nets.randomised(keras.Model(backbone.input, x))
    images = nets.images(2, (96, 128))
    done = export(model, tmp_path / "x.tflite", images=images, require_gpu=True)
    assert done.gpu.passed and not done.lowered and done.ops["HARD_SWISH"] > 5
