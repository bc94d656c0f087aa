"""Tests of report.plots: what the figures say, read from their SVG text."""

import io
import re

import pytest
from PIL import Image

from tfseg_prune.report import plots


def _texts(svg):
    return re.findall(r"<text[^>]*>([^<]*)</text>", svg.decode("utf-8"))


def test_every_layer_is_named_with_its_widths(summary):
    texts = _texts(plots.widths(summary["layers"]))
    for layer in summary["layers"]:
        assert layer["name"] in texts
        assert f"{layer['before']} → {layer['after']}" in texts


def test_layers_do_not_overlap(summary):
    def height(layers):
        svg = plots.widths(layers).decode()
        return float(re.search(r'<svg [^>]*height="([\d.]+)pt"', svg).group(1))

    # In points per layer: text of 7.5 pt needs more than that.
    assert (height(summary["layers"]) - height(summary["layers"][:2])) / 60 > 10


def test_classes_show_both_values_and_absence(summary):
    texts = _texts(
        plots.per_class(summary["dense"]["per_class_iou"], summary["pruned"]["per_class_iou"])
    )
    assert {"road", "pole", "fence", "0.910", "0.883"} <= set(texts)
    assert texts.count("absent") == 2
    assert "absent" not in _texts(plots.per_class({"road": 0.5}, {}))


def test_stages_are_told_apart_and_gaps_said(history):
    texts = _texts(plots.curves(history, "loss"))
    for label in ("dense, training", "dense, control", "pruned, fine-tuning"):
        assert texts.count(label) == 1
    bare = [{"stage": "train", "epoch": 0, "loss": float("nan")}]
    assert "not measured" in _texts(plots.curves(bare, "loss"))


def test_resumed_epoch_counts_once(history):
    again = [{**history[1], "loss": 9e9, "val_loss": 9e9}, *history]
    assert plots.curves(again, "loss") == plots.curves(history, "loss")


def test_figures_are_the_same_every_time(summary):
    assert plots.widths(summary["layers"]) == plots.widths(summary["layers"])


def test_mathtext_and_markup_in_names_are_text():
    (name,) = {"$\\frac{<b>$"}
    svg = plots.widths([{"name": name, "before": 4, "after": 2}])
    assert b"frac{&lt;b&gt;$" in svg


def test_png_and_unknown_kinds(history):
    assert Image.open(io.BytesIO(plots.curves(history, "miou", kind="png"))).format == "PNG"
    with pytest.raises(ValueError, match="'gif'"):
        plots.curves(history, "miou", kind="gif")
