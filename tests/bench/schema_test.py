"""Tests of bench.schema: what is written is read back, and what is wrong is named."""

import dataclasses
import json

import pytest

from tfseg_prune import atomic
from tfseg_prune.bench import schema, stats


def make(name="dense", session="s", **changes):
    values = dict(
        model=schema.Model(name=name, sha256="0" * 64, bytes=1234, precision="int8"),
        device=schema.Device(
            kind="phone", name="Pixel", os="Android 15", cpu="Tensor", cores=8, gpu="Mali"
        ),
        backend=schema.Backend(
            runtime="litert", version="2.3.0", delegate="gpu", threads=1, build="a1", nodes=70,
            delegated=68, left=("RESIZE_BILINEAR", "ARG_MAX"),
        ),
        conditions=schema.Conditions(
            date="2026-11-20T10:00:00+00:00", battery_celsius=-3.5, charging=False
        ),
        latency_ms=schema.Latency(
            init=900, first=20.5, p50=2.0, p90=2.5, p99=3, mean=2.1, stdev=0.2, min=1.9
        ),
        samples_ms=(2.0, 2.5),
        warmup_runs=10,
        steady=True,
        session=session,
        peak_memory_bytes=5_000_000,
        sustained=(schema.Sustained(seconds=60.0, p50_ms=2.4, thermal_status="light"),),
        argmax_agreement=0.998,
        invalid=("throttled",),
    )
    return schema.Result(**{**values, **changes})


def test_round_trip():
    result = make()
    again = schema.Result.from_json(result.to_json())
    assert again == result
    assert isinstance(again.latency_ms.p99, float)


def test_optional_fields_may_be_left_out():
    document = json.loads(make().to_json())
    for key in ("peak_memory_bytes", "sustained", "argmax_agreement", "invalid", "waited"):
        del document[key]
    result = schema.Result.from_json(json.dumps(document))
    assert result.peak_memory_bytes is None and result.invalid == ()


def test_files_round_trip_and_leave_nothing_else(tmp_path):
    results = (make("dense"), make("pruned"))
    schema.save(tmp_path / "bench.json", results)
    assert schema.load(tmp_path / "bench.json") == results
    assert [p.name for p in tmp_path.iterdir()] == ["bench.json"]


def test_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "bench.json"
    schema.save(path, [make("old")])

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(atomic.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        schema.save(path, [make("new")])
    assert schema.load(path)[0].model.name == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["bench.json"]


def test_all_problems_are_listed_at_once():
    document = json.loads(make().to_json())
    del document["model"]["sha256"]
    document["device"]["cores"] = "eight"
    document["samples_ms"] = [1.0, True]
    document["fps"] = 30
    with pytest.raises(ValueError) as caught:
        schema.Result.from_json(json.dumps(document))
    for part in ("model.sha256 is missing", "device.cores is 'eight', no int",
                 "samples_ms[1] is True", "fps is unknown"):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda d: d.update(schema_version=99), "schema_version 1"),
        (lambda d: d.pop("schema_version"), "schema_version 1"),
        (lambda d: d["latency_ms"].update(p50=9.0), "p50 <= p90"),
        (lambda d: d["latency_ms"].update(stdev=-1), "stdev=-1"),
        (lambda d: d["latency_ms"].update(mean=float("nan")), "mean=nan"),
        (lambda d: d.update(argmax_agreement=99.8), "share in"),
        (lambda d: d.update(samples_ms=[]), "one or more"),
        (lambda d: d.update(model=None), "model is no object"),
        (lambda d: d["model"].update(sha256="abc"), "64 lower-case"),
        (lambda d: d["backend"].update(delegated=71), "71 of 70"),
        (lambda d: d["device"].update(kind="toaster"), "toaster"),
    ],
)
def test_wrong_values_are_refused(change, message):
    document = json.loads(make().to_json())
    change(document)
    with pytest.raises(ValueError, match=message):
        schema.Result.from_json(json.dumps(document))


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "3"])
def test_no_result_at_all(text, tmp_path):
    with pytest.raises(ValueError, match="Expected: "):
        schema.Result.from_json(text)
    path = tmp_path / "bench.json"
    path.write_text(text)
    with pytest.raises(ValueError, match="bench.json"):
        schema.load(path)


def test_missing_places(tmp_path):
    with pytest.raises(ValueError, match="none.json"):
        schema.load(tmp_path / "none.json")
    with pytest.raises(ValueError, match="existing folder"):
        schema.save(tmp_path / "no" / "bench.json", [make()])


def test_only_results_of_one_session_compare():
    dense, small = make(), make("pruned", samples_ms=(1.0, 1.25))
    assert stats.compare(small, dense).value == 0.5
    with pytest.raises(ValueError, match="not timed in turns"):
        stats.compare(dataclasses.replace(small, session="t"), dense)
