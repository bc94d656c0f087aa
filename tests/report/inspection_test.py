"""Tests of report.inspection: what the console says of a model's channels."""

import io

import keras
import pytest
import rich.console
from keras import layers

import tfseg_prune as tsp
from tfseg_prune.report import inspection


def _printed(found, width):
    console = rich.console.Console(width=width, file=io.StringIO())
    inspection.print_inspection(found, console=console)
    return console.file.getvalue()


def _network(size=16):
    i = keras.Input((size, size, 3), name="image")
    stem = x = layers.Conv2D(8, 3, padding="same", name="stem")(i)
    for k in range(4):
        x = layers.Conv2D(8, 3, padding="same", groups=2, name=f"block_{k}_[b]conv")(x)
        x = layers.Add()([x, stem])
    x = layers.Softmax(name="mixing")(layers.Conv2D(6, 1, name="mixed")(x))
    return keras.Model(i, layers.Conv2D(4, 1, name="classes")(x), name="net[bold]")


@pytest.fixture(scope="module")
def found():
    return tsp.inspect(_network())


@pytest.mark.parametrize("width", [80, 160])
def test_every_set_is_there_with_its_figures(found, width):
    text = _printed(found, width)
    assert max(map(len, text.splitlines())) <= width
    for word in ("net[bold]", f"{found.macs:,}", f"{found.params:,}", "a model output"):
        assert word in text
    words = " ".join(text.split())
    assert "mixed along the channel axis by" in words and "'mixing'" in words
    assert "46 created" in words and "87.0 % can be pruned" in words
    assert "4 of the model's outputs" in words and "Without a rule no layer" in words
    assert "stem and 4 more 8 " in words  # five layers, abbreviated
    assert words.count("keep equally many") == 4
    for one in found.sets:
        assert f"{100 * one.macs_share:.1f} % {100 * one.params_share:.1f} %" in words
    assert ("Read by" in text) == (width > 100)


def test_an_open_input_size_is_said():
    i = keras.Input((None, None, 3), name="image")
    x = layers.Conv2D(8, 3, name="stem")(i)
    text = _printed(tsp.inspect(keras.Model(i, layers.Conv2D(4, 1)(x))), 80)
    assert "input size is open" in text
    header = next(line for line in text.splitlines() if "Coupled layers" in line)
    assert "Params" in header and "MACs" not in header


def test_nothing_to_prune_is_said():
    i = keras.Input((8, 8, 3))
    text = _printed(tsp.inspect(keras.Model(i, layers.Conv2D(4, 1)(i))), 120)
    assert "none can be pruned" in text and "a model output" in text


@pytest.mark.parametrize(
    "given, text",
    [([], ""), (["a"], "a"), (["a", "b"], "a, b"), (list("abc"), "a and 2 more")],
)
def test_names_are_abbreviated(given, text):
    assert inspection.names(given) == text
