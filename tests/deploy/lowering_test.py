import os
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.deploy import nets
from tfseg_prune import models
from tfseg_prune.deploy import ExportError, ParityError, check_parity, export, lower, summarised
from tfseg_prune.graph.nodes import is_nested
from tfseg_prune.layers.gradual_conv import GradualConv2D
from tfseg_prune.models import erfnet_blocks

layers = keras.layers
# Wider than any network here has channels: Keras 3.15 adds the bias of a channels-first convolution
# along the width where that equals the filters.
SIZE = (9, 50)


def operations(model):
    for operation in model.operations:
        yield operation
        if is_nested(operation):
            yield from operations(operation)


def grouped_in(model):
    return [op.name for op in operations(model) if isinstance(op, layers.Conv2D) and op.groups > 1]


def answer(model, images):
    return keras.ops.convert_to_numpy(model(images, training=False))


def largest_difference(first, second):
    """Of what two models answer to one random batch, over the largest answer."""
    shape = first.inputs[0].shape[1:]
    images = np.random.default_rng(0).normal(size=(2, *shape)).astype("float32")
    expected = answer(first, images)
    return np.abs(expected - answer(second, images)).max() / np.abs(expected).max()


@st.composite
def recipes(draw):
    """Options of `network`."""
    twice = draw(st.booleans())
    ins = draw(st.integers(1, 4))
    strides, dilation = draw(st.sampled_from([(1, (1, 2)), (1, (2, 1)), (2, 1), ((2, 1), 1)]))
    ends = st.sampled_from(["norm", "other norm", "relu", "dropout", "add 0", "add 1", "add 2"])
    return {
        "seed": draw(st.integers(0, 99)),
        "groups": draw(st.integers(2, 5)),
        "ins": ins,
        "outs": ins if twice else draw(st.integers(1, 4)),
        "twice": twice and strides == 1,
        "ends": draw(st.lists(ends, max_size=4)),
        "data_format": draw(st.sampled_from(["channels_last", "channels_first"])),
        "convolution": {
            "kernel_size": (draw(st.integers(1, 3)), draw(st.integers(1, 3))),
            "strides": strides,
            "dilation_rate": dilation,
            "padding": "same" if twice else draw(st.sampled_from(["same", "valid"])),
            "use_bias": draw(st.booleans()),
            "activation": draw(st.sampled_from([None, "relu", "tanh", "softmax"])),
        },
    }


def network(*, seed, groups, ins, outs, twice, ends, data_format, convolution):
    """A grouped convolution, called twice perhaps, and what stands behind it."""
    keras.utils.set_random_seed(seed)
    axis = -1 if data_format == "channels_last" else 1
    channels = groups * ins
    images = keras.Input((*SIZE, channels) if axis == -1 else (channels, *SIZE))
    layer = layers.Conv2D(
        groups * outs,
        groups=groups,
        data_format=data_format,
        bias_initializer="normal",
        name="convolution",
        **convolution,
    )
    x = layer(layer(images)) if twice else layer(images)
    behind = [x]
    for end in ends:
        if "norm" in end:
            x = layers.BatchNormalization(axis=axis if end == "norm" else 2)(x)
        elif "add" in end:  # somebody else reads what stands in the middle
            x = layers.Add()([x, behind[int(end[-1]) % len(behind)]])
        else:
            x = layers.ReLU(6.0)(x) if end == "relu" else layers.Dropout(0.5)(x)
        behind.append(x)
    return nets.randomised(keras.Model(images, x))


def check_lowered(recipe, choice):
    model = network(**recipe)
    groups, ins, outs = (recipe[key] for key in ("groups", "ins", "outs"))
    lowered, log = lower(model, grouped=choice)
    assert largest_difference(model, lowered) < 1e-5
    stays = choice == "grouped" or choice == "auto" and ins % 4 == 0 and outs % 4 == 0
    kind = f"split into {groups} convolutions"
    if stays:
        kind = "one grouped convolution"
    elif ins == 1 and len(set(model.get_layer("convolution").strides)) == 1:
        kind = "one depthwise convolution"
    (sentence,) = log
    assert sentence.startswith("convolution: ") and kind in sentence
    assert grouped_in(lowered) == (["convolution"] if stays else [])
    depthwise = [op for op in lowered.operations if isinstance(op, layers.DepthwiseConv2D)]
    assert bool(depthwise) == ("depthwise" in kind) and (lowered is model) == stays
    names = [op.name for op in lowered.operations]
    assert len(set(names)) == len(names)
    assert names[-1] == model.operations[-1].name, "what a layer answers keeps its name"


@settings(max_examples=10, deadline=None, derandomize=True)
@given(recipes(), st.sampled_from(["auto", "split"]))
def test_lowered_model_answers_the_same(recipe, choice):
    check_lowered(recipe, choice)


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(recipes(), st.sampled_from(["auto", "grouped", "split"]))
def test_many_lowered_models_answer_the_same(recipe, choice):
    check_lowered(recipe, choice)


@pytest.mark.parametrize("ins, outs", [(4, 4), (4, 8), (12, 4), (4, 6), (6, 4), (2, 2), (1, 4)])
def test_one_convolution_stays_where_groups_are_whole_slices(ins, outs):
    images = keras.Input((*SIZE, 2 * ins))
    model = keras.Model(images, layers.Conv2D(2 * outs, 1, groups=2)(images))
    stays = ins % 4 == 0 and outs % 4 == 0
    assert bool(grouped_in(lower(model)[0])) == stays
    assert grouped_in(lower(model, grouped="grouped")[0])
    assert not grouped_in(lower(model, grouped="split")[0])


@pytest.mark.parametrize("precision", ["dynamic", "int8", "int8x16", "mixed"])
def test_no_convolution_of_1x1_integers_stays_grouped(precision):
    images = keras.Input((*SIZE, 16))
    for size, groups, stays in ((1, 2, False), (1, 16, False), (3, 2, True), ((1, 3), 4, True)):
        model = keras.Model(images, layers.Conv2D(16, size, groups=groups)(images))
        lowered, _ = lower(model, precision=precision)
        assert bool(grouped_in(lowered)) == stays, (size, groups)
        assert largest_difference(model, lowered) < 1e-5


def test_what_reads_one_channel_and_answers_several_is_no_1x1_depthwise_convolution():
    images = keras.Input((*SIZE, 4))
    for size, kind in ((1, layers.Conv2D), (3, layers.DepthwiseConv2D)):
        model = keras.Model(images, layers.Conv2D(8, size, groups=4)(images))
        lowered, _ = lower(model)
        weighted = [type(op) for op in operations(lowered) if getattr(op, "weights", ())]
        assert set(weighted) == {kind} and not grouped_in(lowered)
        assert largest_difference(model, lowered) < 1e-5


def small(widths=(12, 12), groups=(4,)):
    """A network of one grouped convolution with batch normalisation after another."""
    keras.utils.set_random_seed(2)
    images = keras.Input((*nets.SIZE, 3))
    x = layers.Rescaling(1 / 255, name="rescale")(images)
    x = layers.Conv2D(widths[0], 3, strides=2, padding="same", activation="relu", name="stem")(x)
    for i, (width, count) in enumerate(zip(widths[1:], groups)):
        name = f"mix{i or ''}"
        x = layers.Conv2D(width, 3, padding="same", groups=count, use_bias=False, name=name)(x)
        x = layers.BatchNormalization(name=f"{name}_bn")(x)
        x = layers.ReLU(name=f"{name}_relu")(x)
    x = layers.Conv2D(nets.CLASSES, 1, name="decoder_logits")(x)
    return nets.randomised(keras.Model(images, x, name="small"))


def test_files_hold_what_the_log_says(tmp_path):
    """Of 4 per group, of 3, of one: one op each, or one per group; normalisation is folded."""
    model = small(widths=(16, 16, 12, 12, 12), groups=(4, 4, 4, 12))
    written = export(model, tmp_path / "x.tflite", images=nets.images())
    assert written.lowered == (
        "mix: 4 channels per group: one grouped convolution",
        "mix1: 4 channels in and 3 out per group: split into 4 convolutions",
        "mix2: 3 channels per group: split into 4 convolutions",
        "mix3: 1 channel per group: one depthwise convolution",
    )
    expected = {"CONV_2D": 1 + 1 + 4 + 4 + 1, "SPLIT": 2, "CONCATENATION": 2}
    assert written.ops == expected | {"DEPTHWISE_CONV_2D": 1, "RESIZE_BILINEAR": 1}
    assert written.parity.relative_diff < 2e-6
    written = export(model, tmp_path / "x.tflite", grouped="grouped", images=nets.images())
    assert written.ops == {"CONV_2D": 6, "RESIZE_BILINEAR": 1}
    assert [line.endswith("get wrong") for line in written.lowered] == [False, True, True, True]
    assert written.parity.relative_diff < 2e-6


def test_the_log_is_short_where_much_is_said_alike():
    log = ("a: 3 channels per group: split", "b/c: 3 channels per group: split", "d: stays")
    assert summarised(log) == ["a and 1 more: 3 channels per group: split", "d: stays"]


def test_the_model_is_left_as_it_was(tmp_path):
    model = small()
    before = model.get_config(), model.get_weights(), list(model.operations)

    def notes():
        return [(len(op._inbound_nodes), len(op._outbound_nodes)) for op in model.operations]

    counts = notes()
    export(model, tmp_path / "x.tflite", grouped="split")
    assert counts == notes() and model.get_config() == before[0]
    assert all(a is b for a, b in zip(model.operations, before[2], strict=True))
    for value, expected in zip(model.get_weights(), before[1]):
        np.testing.assert_array_equal(value, expected)
    for plain in (small(groups=(1,)), small(widths=(16, 16))):
        assert lower(plain)[0] is plain, "there are no groups, or they have 4 channels"


@pytest.mark.parametrize("alpha", [0.0, 0.25])
def test_gradual_convolutions_stay_and_say_so(alpha):
    images = keras.Input((*SIZE, 6))
    model = keras.Model(images, GradualConv2D(6, 3, 2, name="mix")(images))
    model.get_layer("mix").alpha.assign(alpha)
    for choice in ("auto", "split"):
        lowered, log = lower(model, grouped=choice)
        assert lowered is model and log[0].startswith("mix: a dense convolution")
        assert ("alpha = 0.25" if alpha else "shrink the model") in log[0]


class Scaled(layers.Conv2D):
    """A convolution whose kernel isn't what it convolves with."""

    def convolution_op(self, inputs, kernel):
        return super().convolution_op(inputs, 2 * kernel)


def test_a_convolution_of_somebodys_own_stays_and_says_so():
    images = keras.Input((*SIZE, 6))
    model = keras.Model(images, Scaled(6, 3, groups=2, name="mine")(images))
    lowered, log = lower(model)
    assert lowered is model and "Scaled, which can't be split" in log[0]
    with pytest.raises(ExportError, match="'mine'.*Conv2D.*Scaled.*Remedy"):
        lower(model, grouped="split")
    with pytest.raises(ValueError, match="auto, grouped, split.*'dense'"):
        lower(model, grouped="dense")


def nested():
    """A model in a model, called twice, with names that a loaded model may have."""
    keras.utils.set_random_seed(4)
    inner = keras.Input((*nets.SIZE, 6))
    x = layers.Conv2D(6, 3, groups=2, padding="same", name="mix")(inner)
    x = layers.BatchNormalization(name="mix_group_0")(x)
    block = nets.randomised(keras.Model(inner, layers.ReLU(name="mix_split")(x), name="block"))
    images = keras.Input((*nets.SIZE, 3))
    x = layers.Conv2D(6, 3, padding="same", activation="relu", name="mix")(images / 255)
    x = layers.Conv2D(6, 1, groups=3, name="split")(block(block(x)))
    return keras.Model(images, layers.Conv2D(nets.CLASSES, 1, name="logits")(x), name="nested")


SLOW_CASES = [(small, "mix"), (nested, "split")]


def test_nested_models_are_walked_into_and_names_stay_apart():
    model = nested()
    lowered, log = lower(model)
    assert [line.split(":")[0] for line in log] == ["block/mix", "split"]
    assert not grouped_in(lowered) and largest_difference(model, lowered) < 1e-5
    assert len(grouped_in(model)) == 2
    sequential = keras.Sequential([keras.Input((*SIZE, 6)), layers.Conv2D(6, 3, groups=2)])
    assert largest_difference(sequential, lower(sequential)[0]) < 1e-5


def test_types_of_layers_stay():
    images = keras.Input((*SIZE, 6))
    x = layers.Conv2D(6, 3, groups=2, dtype="mixed_bfloat16")(images)
    model = keras.Model(images, layers.BatchNormalization(dtype="float32")(x))
    lowered, _ = lower(model)
    policies = {op.name.split("_")[0]: op.dtype_policy.name for op in lowered.layers[1:]}
    assert policies == {"conv2d": "mixed_bfloat16", "batch": "float32"}
    assert lowered.output.dtype == model.output.dtype


@pytest.mark.parametrize(
    "build, layer",
    [(nested, "block/mix"), *(pytest.param(*c, marks=pytest.mark.slow) for c in SLOW_CASES)],
)
def test_a_changed_layer_is_named_though_the_file_holds_another(tmp_path, build, layer):
    model = build()
    path = export(model, tmp_path / "x.tflite", grouped="split", images=nets.images()).path
    owner = model.get_layer("block") if "/" in layer else model
    changed = owner.get_layer(layer.split("/")[-1])
    changed.set_weights([weight[..., ::-1] for weight in changed.get_weights()])
    with pytest.raises(ParityError) as caught:
        check_parity(model, path, nets.images(), threshold=1.0)
    divergence = caught.value.divergence
    assert not divergence.gradual
    assert layer in (divergence.layer, *divergence.fused_with)


def erfnet(build, block):
    keras.utils.set_random_seed(3)
    return nets.randomised(build(nets.CLASSES, (*nets.SIZE, 3), block=block))


@pytest.mark.parametrize("groups", [8, pytest.param(4, marks=pytest.mark.slow)])
def test_shuffled_groups_answer_as_keras(tmp_path, groups):
    """A block of ERFNet's family behind a stem: 4 channels per group, or 2."""
    keras.utils.set_random_seed(5)
    images = keras.Input((*nets.SIZE, 3))
    x = layers.Conv2D(16, 3, strides=4, padding="same", name="stem")(images)
    x = erfnet_blocks.separable(
        x,
        "block",
        lambda x, name: layers.BatchNormalization(name=f"{name}_bn")(x),
        2,
        0.0,
        groups=groups,
        shuffle=groups,
    )
    x = layers.Conv2D(nets.CLASSES, 1, name="logits")(x)
    model = nets.randomised(keras.Model(images, x))
    written = export(model, tmp_path / "x.tflite", images=nets.images(2), threshold=0.0)
    assert written.ops.get("SPLIT", 0) == (0 if groups == 4 else 2)
    assert written.parity.relative_diff < 1e-5


@pytest.mark.slow
def test_shuffled_groups_of_erfnet_answer_as_keras(tmp_path):
    model = erfnet(models.erfnet_encoder, "DG4S")
    written = export(model, tmp_path / "x.tflite", images=nets.images(2), threshold=0.0)
    assert "SPLIT" not in written.ops
    assert len(written.lowered) == 26 and len(summarised(written.lowered)) == 2
    assert written.parity.relative_diff < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("grouped", ["grouped", "split"])
@pytest.mark.parametrize("block", ["DG2", "DG4", "DG8", "DG8S"])
def test_every_erfnet_answers_as_keras(tmp_path, block, grouped):
    model, images = erfnet(models.erfnet, block), nets.images(2)
    path = tmp_path / "x.tflite"
    written = export(model, path, grouped=grouped, images=images, threshold=0.0)
    splits = 26 if grouped == "split" else 0
    assert written.ops.get("SPLIT", 0) == splits
    assert written.ops["CONCATENATION"] == 3 + splits
    assert written.parity.relative_diff < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float16", "dynamic", "int8"])
def test_every_precision_survives(tmp_path, precision):
    model, images = small(widths=(12, 24, 24), groups=(4, 24)), nets.images()
    written = export(
        model, tmp_path / "x.tflite", precision=precision, representative=images, images=images
    )
    assert written.ops["CONV_2D"] == 6 and written.ops["DEPTHWISE_CONV_2D"] == 1


OTHER_BACKEND = """
import keras
from tests.deploy import nets
from tests.deploy.lowering_test import small
from tfseg_prune.deploy import export
written = export(small(), r"{path}", images=nets.images())
print(keras.backend.backend(), written.ops["SPLIT"], written.lowered)
"""


@pytest.mark.slow
def test_other_backend_lowers_too(tmp_path):
    root = pathlib.Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", OTHER_BACKEND.format(path=tmp_path / "x.tflite")],
        env={**os.environ, "KERAS_BACKEND": "jax", "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "jax 1 ('mix: 3 channels per group: split into 4 convolutions',)" in done.stdout
