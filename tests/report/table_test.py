"""Tests of report.table: the console's table and the history file."""

import json

import pytest
import rich.console

from tfseg_prune.report import table


def _printed(summary):
    console = rich.console.Console(width=100, record=True, file=open("/dev/null", "w"))
    table.print_summary(summary, console=console)
    return console.export_text()


def test_console_table_holds_the_headline_numbers(summary):
    text = _printed(summary)
    for expected in ("demo", "2.57 M", "1.03 M", "40.3 %", "3.21 G", "0.6021", "0.612×", "0.81",
                     "LiteRT int8", "0.731×", "99.513 %", "−0.0128"):
        assert expected in text
    assert table.NOT_MEASURED not in text


def test_markup_in_names_is_text():
    assert "[red]x[/nope]" in _printed({"name": "[red]x[/nope]"})


def test_missing_numbers_are_said():
    text = _printed({"dense": {"tflite": {"float32": {"bytes": 2048}}}})
    assert "2.00 KiB" in text
    assert text.count(table.NOT_MEASURED) > 10


@pytest.mark.parametrize(
    "value, text",
    [(0, "0"), (999, "999"), (1500, "1.50 k"), (25_701_230, "25.7 M"), (3.2e9, "3.20 G"),
     (None, "not measured")],
)
def test_counts(value, text):
    assert table.count(value) == text


@pytest.mark.parametrize(
    "seconds, text", [(12.4, "12 s"), (200, "3 min 20 s"), (7500, "2 h 5 min")]
)
def test_durations(seconds, text):
    assert table.duration(seconds) == text


def test_ratio_of_float32_falls_back_to_the_overall_one(summary):
    del summary["ratios"]["by_precision"]
    assert table.ratio(summary, "float32", "latency") == 0.6124
    assert table.ratio(summary, "int8", "latency") is None


def test_history_round_trip_and_half_written_last_line(history, tmp_path):
    path = tmp_path / "metrics.jsonl"
    text = "".join(json.dumps(row) + "\n" for row in history)
    path.write_text(text)
    assert table.load_history(path) == history
    path.write_text(text + '{"stage": "finetune", "epo')
    assert table.load_history(path) == history


def test_broken_history_names_the_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"stage": "train", "epoch": 0}\noops\n{"stage": "train", "epoch": 1}\n')
    with pytest.raises(ValueError, match="line 2: 'oops'"):
        table.load_history(path)
    path.write_text('{"epoch": 0}\n')
    with pytest.raises(ValueError, match="line 1"):
        table.load_history(path)
    with pytest.raises(ValueError, match="none.jsonl"):
        table.load_history(tmp_path / "none.jsonl")
