"""Tests of report.coupling: the picture is whole, self-contained, and nothing lies on another."""

import re
from xml.etree import ElementTree

import keras
import numpy as np
import pytest
from keras import layers

import tfseg_prune as tsp
from tfseg_prune.graph.inspection import Call, ChannelSet, Inspection
from tfseg_prune.report import coupling

SVG = "{http://www.w3.org/2000/svg}"


class _Picture:
    """The parts of a written file, which must be well-formed XML as well as HTML."""

    def __init__(self, found, folder):
        self.text = coupling.write_coupling(found, folder / "c.html").read_text(encoding="utf-8")
        self.root = ElementTree.fromstring(self.text)
        self.rows = [g for g in self.root.iter(f"{SVG}g") if g.get("class") == "row"]
        self.names = [row.get("data-name") for row in self.rows]
        self.lines = list(self.root.iter(f"{SVG}path"))
        dots = (row.find(f"{SVG}circle") for row in self.rows)
        places = ((float(dot.get("cx")), float(dot.get("cy"))) for dot in dots)
        self.dots = dict(zip(self.names, places))

    def bars(self, name):
        row = self.rows[self.names.index(name)]
        return [bar for bar in row.iter(f"{SVG}rect") if bar.get("class") is None]


def _by_hand(feeds, names=None):
    """An inspection of calls that read the earlier ones of `feeds`, each with a set of its own."""
    names = names or [f"layer_{k}" for k in range(len(feeds))]
    sets = tuple(
        ChannelSet({name: 8}, 8, (), 80, 8, 0.1, 0.1, (), None if k else "a <b>bold</b> reason")
        for k, name in enumerate(names)
    )
    calls = tuple(
        Call(name, "Conv2D", tuple(names[feed] for feed in given), {k: 8}, True, 80, 8, False)
        for k, (name, given) in enumerate(zip(names, feeds))
    )
    return Inspection("by hand", len(feeds), len(feeds), 80, 8, 80, 0, 8, 72, sets, calls, ())


@pytest.fixture(scope="module")
def found():
    i = keras.Input((16, 16, 3), name="image")
    a = layers.Conv2D(8, 3, padding="same", name="left")(i)
    b = layers.Conv2D(24, 3, padding="same", name="right")(layers.ReLU(name="relu")(i))
    x = layers.Concatenate(name="both")([a, b, a])
    x = layers.Softmax(name="mixing")(layers.Conv2D(6, 1, name="mixed")(x))
    return tsp.inspect(keras.Model(i, layers.Conv2D(4, 1, name="classes")(x), name="tiny"))


@pytest.fixture
def picture(found, tmp_path):
    return _Picture(found, tmp_path)


def test_nothing_outside_the_file_is_referred_to(picture):
    for element in picture.root.iter():
        assert element.tag not in ("link", "iframe", "object", "img")
        assert not {"src", "href"} & set(element.attrib)
    text = picture.text.replace('xmlns="http://www.w3.org/2000/svg"', "")
    assert "http" not in text and "@import" not in text
    assert set(re.findall(r"url\([^)]*\)", text)) == {"url(#kept)"}


def test_every_call_is_one_row_and_every_set_one_line_of_the_tables(picture, found):
    assert sorted(picture.names) == sorted(call.name for call in found.calls)
    listed = [row.get("data-sets") for row in picture.root.iter("tr") if row.get("data-sets")]
    assert sorted(map(int, listed)) == list(range(len(found.sets)))
    table = " ".join("".join(picture.root.find(".//aside").itertext()).split())
    for one in found.sets:
        assert ", ".join(one.layers) in table and (one.reason or "") in table
        assert f"{100 * one.macs_share:.1f} %" in table


def test_bars_show_the_sets_and_why_they_are_kept(picture, found):
    for call in found.calls:
        bars = picture.bars(call.name)
        assert [int(bar.get("data-sets")) for bar in bars] == list(call.channels)
        widths = np.array([float(bar.get("width")) for bar in bars])
        counts = np.array(list(call.channels.values()))
        np.testing.assert_allclose(widths / widths.sum(), counts / counts.sum(), atol=1e-3)
        for bar, index in zip(bars, call.channels):
            title, one = bar.find(f"{SVG}title").text, found.sets[index]
            assert next(iter(one.layers)) in title and (one.reason or "can be pruned") in title
            assert (bar.get("fill") == "url(#kept)") == (not one.prunable)
    left, right = (picture.bars(name)[0].get("fill") for name in ("left", "right"))
    assert [bar.get("fill") for bar in picture.bars("both")] == [left, right] and left != right


@pytest.mark.parametrize("seed", range(12))
def test_layers_stand_below_what_they_read_and_no_line_runs_through_another(seed, tmp_path):
    generator = np.random.default_rng(seed)
    feeds = [()] + [
        tuple(sorted(set(generator.integers(max(0, k - 6), k, generator.integers(1, 4)).tolist())))
        for k in range(1, 40)
    ]
    picture = _Picture(_by_hand(feeds), tmp_path)
    dots = [picture.dots[f"layer_{k}"] for k in range(40)]
    assert len({y for _, y in dots}) == 40
    ends = {k: set() for k in range(40)}
    for k, given in enumerate(feeds):
        assert all(dots[feed][1] < dots[k][1] for feed in given)
        for feed in given:
            ends[feed].add(dots[k])
    starts = {dot: k for k, dot in enumerate(dots)}
    for line in picture.lines:
        pieces = re.findall(r"([MVC])([^MVC]*)", line.get("d"))
        x, y = place = tuple(map(float, pieces[0][1].split()))
        readers, reached = ends[starts[place]], set()
        for kind, numbers in pieces:
            values = [float(number) for number in numbers.split()]
            place = (x, *values) if kind == "V" else tuple(values[-2:])
            if kind == "V":
                met = {dot for dot in dots if dot[0] == x and y < dot[1] <= values[0]}
                assert met <= readers & {place}
            reached |= {place} & set(dots)
        assert readers <= reached


def test_texts_stand_clear_of_each_other(found, tmp_path):
    long = [f"backbone/block_{k}/separable_convolution_{'and_more_' * k}" for k in range(12)]
    picture = _Picture(_by_hand([(), *((k,) for k in range(11))], long), tmp_path)
    heights = sorted(y for _, y in picture.dots.values())
    assert min(np.diff(heights)) >= 18
    for row, name in zip(picture.rows, picture.names):
        label, kind, *_ = row.iter(f"{SVG}text")
        shown = "".join(label.itertext()).removeprefix(name) or name
        room = float(kind.get("x")) - float(label.get("x"))
        assert room >= 7.5 * len(shown) and len(shown) <= 60
        assert picture.bars(name)[0].get("x") > kind.get("x")
        assert float(label.get("x")) > picture.dots[name][0] + 8


def test_names_are_escaped_and_an_open_size_shows_parameters(tmp_path):
    picture = _Picture(_by_hand([(), (0,)], ['<i>"x"&', "]]>'"]), tmp_path)
    assert picture.names == ['<i>"x"&', "]]>'"]
    assert picture.root.find(".//i") is None and picture.root.find(".//b") is None
    i = keras.Input((None, None, 3))
    model = keras.Model(i, layers.Conv2D(4, 1)(layers.Conv2D(8, 3)(i)))
    picture = _Picture(tsp.inspect(model), tmp_path)
    assert "MACs" not in [cell.text for cell in picture.root.iter("th")]
    assert "input size is open" in picture.text


def test_errors_come_before_anything_is_written(found, tmp_path):
    with pytest.raises(ValueError, match="existing folder"):
        coupling.write_coupling(found, tmp_path / "no" / "c.html")
    assert not list(tmp_path.iterdir())
