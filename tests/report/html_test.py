"""Tests of report.html: self-contained, complete, escaped, and honest about what is missing."""

import base64
import copy
import html.parser as parsing
import io
import json
import re

import pytest
from PIL import Image

from tfseg_prune.report import html, table


class _Parser(parsing.HTMLParser):
    """Collects tags with attributes and the text that a reader sees."""

    def __init__(self):
        super().__init__()
        self.tags, self.texts, self.open = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag in ("style", "script"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if self.open and self.open[-1] == tag:
            self.open.pop()

    def handle_data(self, data):
        if not self.open:
            self.texts.append(data)


def _read(path):
    parser = _Parser()
    parser.feed(path.read_text(encoding="utf-8"))
    parser.text = re.sub(r"\s+", " ", " ".join(parser.texts))
    return parser


@pytest.fixture
def report(summary, history, samples, tmp_path):
    path = html.write_report(
        summary, tmp_path / "report.html", history=history, strips=samples, command="tfseg run"
    )
    return _read(path)


def test_nothing_outside_the_file_is_referred_to(report, tmp_path):
    for tag, attrs in report.tags:
        assert tag not in ("script", "link", "iframe", "object")
        for name in ("src", "href", "srcset", "data", "poster"):
            assert attrs.get(name, "data:").startswith("data:")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "url(" not in text and "@import" not in text and "http" not in text
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


def test_every_image_decodes(report):
    sources = [attrs["src"] for tag, attrs in report.tags if tag == "img"]
    assert len(sources) == 1 + 7 + 2 + 1  # classes, strips, curves, layers
    for source in sources:
        kind, content = source.split(";base64,")
        content = base64.b64decode(content)
        if kind == "data:image/png":
            assert Image.open(io.BytesIO(content)).size == (16, 12)
        else:
            assert kind == "data:image/svg+xml" and content.rstrip().endswith(b"</svg>")


def test_every_number_of_the_summary_is_there(report, summary):
    raw = report.text[report.text.index("{ ") :]
    assert json.loads(raw) == summary
    seen = report.text[: report.text.index("{ ")]
    for model in ("dense", "pruned"):
        values = summary[model]
        expected = [
            table.count(values["params"]), table.count(values["macs"]),
            table.score(values["miou"]), table.score(values["pixel_accuracy"]), "12 min 34 s",
        ]
        for file in values["tflite"].values():
            expected += [table.milliseconds(ms) for ms in file["latency_ms"].values()]
            expected += [
                table.size(file["bytes"]), table.agreement(file["argmax_agreement"]),
                table.score(file["miou"]), table.tiny(file["max_abs_diff"]),
            ]
            expected += [table.score(v) for v in file["per_class_iou"].values() if v]
        for text in expected:
            assert text in seen
    for text in ("0.612×", "0.731×", "0.81", "0.68", "50.0 % of the MACs", "49.9 %", "absent",
                 "tfseg run", "abc1234", "keras 3.15.1", "Some CPU", "2026-11-20", "−0.0128",
                 "62 of 62 layers", "not of a phone"):
        assert text in seen
    for layer in summary["layers"]:
        assert f"{layer['name']} {layer['before']} {layer['after']}" in seen


def test_hostile_names_are_text(summary, history, samples, tmp_path):
    evil = "<script>alert('$x_$')</script>"
    text = json.dumps(summary).replace('"road"', json.dumps(evil))
    summary = json.loads(text)
    summary.update(name=evil, machine=evil, commit=evil, date=evil)
    summary["layers"][0]["name"] = evil
    summary["plan"]["budget"] = evil
    history[0]["stage"] = evil
    read = _read(
        html.write_report(
            summary, tmp_path / "r.html", history=history, strips=samples, command=evil
        )
    )
    assert not [tag for tag, _ in read.tags if tag == "script"]
    assert read.text.count(evil) > 8


def test_missing_precision_and_bench_read_not_measured(summary, tmp_path):
    del summary["pruned"]["tflite"]["int8"]
    for model in ("dense", "pruned"):
        for file in summary[model]["tflite"].values():
            del file["latency_ms"]
    for key in ("latency", "realised", "by_precision"):
        del summary["ratios"][key]
    read = _read(html.write_report(summary, tmp_path / "r.html"))
    seen = read.text.split("{ ")[0]
    assert "Latency was not measured" in seen
    assert "Not exported, hence not measured: float16, dynamic." in seen
    assert "No history was kept" in seen and "No images were kept" in seen
    assert not re.search(r"(?<![\d.])0(\.0+)?( ms| %|×)", seen) and "None" not in seen
    assert "Latency, median not measured not measured not measured" in seen


@pytest.mark.parametrize("value", [float("nan"), None])
def test_no_number_reads_not_measured(summary, tmp_path, value):
    summary["pruned"]["miou"] = value
    seen = _read(html.write_report(summary, tmp_path / "r.html")).text
    assert "mIoU 0.6021 not measured" in seen.split("{ ")[0]
    assert "nan" not in seen.split("{ ")[0]


def test_each_part_may_be_missing(summary, tmp_path):
    summary["layers"] = summary["layers"][:2]
    for key in summary:
        part = copy.deepcopy(summary)
        del part[key]
        html.write_report(part, tmp_path / "r.html")
    seen = _read(html.write_report({}, tmp_path / "r.html")).text
    assert "No LiteRT file was exported" in seen and "budget was not recorded" in seen
    assert seen.count("not measured") > 10 and "None" not in seen


def test_unequal_training_and_synthetic_images_are_said(summary, tmp_path):
    summary["pruned"]["epochs"] = 20
    summary["dataset"].update(name="streets", images=8)
    seen = _read(html.write_report(summary, tmp_path / "r.html")).text
    assert "differs by more than the pruning" in seen
    assert "synthetic" in seen and "Few: differences" in seen


def test_errors_come_before_anything_is_written(summary, tmp_path):
    with pytest.raises(ValueError, match="existing folder"):
        html.write_report(summary, tmp_path / "no" / "r.html")
    with pytest.raises(ValueError, match="Received: list"):
        html.write_report([], tmp_path / "r.html")
    assert not list(tmp_path.iterdir())
