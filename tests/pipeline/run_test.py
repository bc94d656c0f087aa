import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import keras
import numpy as np
import pytest

import tfseg_prune as tsp
from tests.pipeline import tiny
from tfseg_prune.bench import runtime
from tfseg_prune.graph import PruningPlan
from tfseg_prune.pipeline import STAGES, files

ROOT = pathlib.Path(__file__).parents[2]
MODELS = ("dense", "pruned")


@pytest.fixture
def copy(finished, tmp_path):
    """A copy of the finished run, for tests that change it."""
    return shutil.copytree(finished.workdir, tmp_path / "run")


def digests(workdir):
    return {
        path.name: files.digest(path) for path in pathlib.Path(workdir).iterdir() if path.is_file()
    }


def weights(path):
    return keras.saving.load_model(path, compile=False).get_weights()


def test_the_working_directory_holds_what_was_promised(finished):
    names = {path.name for path in finished.workdir.iterdir() if path.is_file()}
    exported = [f"{name}_{precision}.tflite" for name in MODELS for precision in tiny.PRECISIONS]
    assert names == {
        *("base.keras", "small.keras", "dense.keras", "pruned.keras", "plan.json", "bench.json"),
        *("metrics.jsonl", "summary.json", "report.html"),
        *exported,
        *(f"{name}.json" for name in exported),
    }
    assert not list(finished.workdir.glob("checkpoints/*"))


def test_exported_files_say_what_their_classes_are(finished):
    classes = finished.summary["dataset"]["classes"]
    with tsp.Segmenter(finished.workdir / "pruned_int8.tflite") as segmenter:
        labels = segmenter.metadata.labels
        assert [{"name": one.name, "color": list(one.color)} for one in labels] == classes
        assert segmenter(np.zeros((50, 70, 3), np.uint8)).class_map.shape == (50, 70)


def test_the_summary_agrees_with_the_files(finished):
    summary = json.loads((finished.workdir / "summary.json").read_text())
    assert summary == finished.summary
    for name in MODELS:
        found = summary[name]
        cost = tsp.cost(files.load_model(finished.workdir / f"{name}.keras"))
        assert (found["macs"], found["params"]) == (cost.macs, cost.params)
        assert 0 <= found["miou"] <= 1 and set(found["per_class_iou"]) >= {"road", "sky"}
        known = [v for v in found["per_class_iou"].values() if v is not None]
        assert np.mean(known) == pytest.approx(found["miou"], abs=1e-6)
        assert found["epochs"] == 4 and found["train_seconds"] > 0
        assert set(found["tflite"]) == set(tiny.PRECISIONS)
        for precision, values in found["tflite"].items():
            path = finished.workdir / f"{name}_{precision}.tflite"
            assert values["bytes"] == path.stat().st_size
            assert values["images"] == 4 and 0 <= values["miou"] <= 1
            latency = values["latency_ms"]
            assert 0 < latency["p50"] <= latency["p90"] <= latency["p99"]
            assert latency["init"] > 0 and latency["first"] > 0
        assert found["tflite"]["float32"]["argmax_agreement"] >= 0.999
        assert found["tflite"]["float32"]["miou"] == pytest.approx(found["miou"], abs=1e-3)
        assert found["tflite"]["int8"]["max_abs_diff"] > found["tflite"]["float32"]["max_abs_diff"]


def test_the_ratios_are_the_quotients(finished):
    dense, pruned, ratios = (finished.summary[key] for key in ("dense", "pruned", "ratios"))
    assert ratios["macs"] == pruned["macs"] / dense["macs"]
    assert ratios["params"] == pruned["params"] / dense["params"]
    for precision in tiny.PRECISIONS:
        one = ratios["by_precision"][precision]
        assert one["realised"] == pytest.approx((1 / one["latency"]) / (1 / ratios["macs"]))
        assert one["latency_interval"][0] <= one["latency"] <= one["latency_interval"][1]
        assert one["bytes"] == (
            pruned["tflite"][precision]["bytes"] / dense["tflite"][precision]["bytes"]
        )
    for key in ("latency", "realised"):
        assert ratios[key] == ratios["by_precision"]["float32"][key]


def test_the_budget_is_met_and_the_plan_says_how(finished):
    summary, workdir = finished.summary, finished.workdir
    assert 0.44 < summary["ratios"]["macs"] <= 0.5
    assert summary["plan"]["budget"] == {"macs": 0.5} and summary["plan"]["criterion"] == "l1"
    plan = PruningPlan.load(workdir / "plan.json")
    assert summary["plan"]["fingerprint"] == plan.fingerprint
    pruned = files.load_model(workdir / "pruned.keras")
    for layer in summary["layers"]:
        assert layer["before"] == plan.widths[layer["name"]]
        assert layer["after"] == len(plan.keep[layer["name"]])
        assert pruned.get_layer(layer["name"]).filters == layer["after"]
    # Surgery took these weights from the trained network, before fine-tuning changed them.
    again = tsp.shrink(files.load_model(workdir / "base.keras"), plan)
    small = files.load_model(workdir / "small.keras")
    for name in ("first", "second", "logits"):
        for a, b in zip(again.get_layer(name).get_weights(), small.get_layer(name).get_weights()):
            np.testing.assert_array_equal(a, b)


def test_fine_tuning_and_control_trained_on(finished):
    for start, end in (("base", "dense"), ("small", "pruned")):
        before, after = (weights(finished.workdir / f"{name}.keras") for name in (start, end))
        assert [w.shape for w in before] == [w.shape for w in after]
        assert any(not np.array_equal(a, b) for a, b in zip(before, after))


def test_the_log_has_one_line_an_epoch(finished):
    rows = [json.loads(x) for x in (finished.workdir / "metrics.jsonl").read_text().splitlines()]
    assert [(row["stage"], row["epoch"]) for row in rows] == [
        *(("train", 0), ("train", 1), ("train", 2), ("finetune", 0), ("control", 0))
    ]
    wanted = {"loss", "miou", "val_loss", "val_miou", "learning_rate", "seconds"}
    assert all(wanted <= set(row) for row in rows)


def test_the_files_take_and_answer_what_they_should(finished):
    for name in MODELS:
        for precision in tiny.PRECISIONS:
            opened = runtime.interpreter(finished.workdir / f"{name}_{precision}.tflite")
            assert opened.get_input_details()[0]["shape"].tolist() == [1, *tiny.SIZE, 3]
            assert opened.get_output_details()[0]["shape"].tolist() == [1, *tiny.SIZE, 8]


def test_the_report_stands_alone_and_shows_the_run(finished):
    text = (finished.workdir / "report.html").read_text()
    assert "tiny" in text and "data:image" in text
    assert not any(word in text for word in ('src="http', 'href="http', "@import"))
    assert finished.said.rstrip().endswith(str((finished.workdir / "report.html").resolve()))


def test_the_networks_load_without_this_package(finished):
    code = (
        "import sys, keras\n"
        "sys.modules['tfseg_prune'] = None\n"
        "for path in sys.argv[1:]:\n"
        "    model = keras.saving.load_model(path)\n"
        "    print(model(keras.ops.ones((1, 32, 48, 3))).shape)\n"
    )
    paths = [finished.workdir / f"{name}.keras" for name in MODELS]
    done = subprocess.run(
        [sys.executable, "-c", code, *paths], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == ["(1, 32, 48, 8)"] * 2


def test_a_second_run_does_nothing(finished, network):
    before = digests(finished.workdir)
    start = time.monotonic()
    summary, ran, said = tiny.start(tiny.config(network), finished.workdir)
    assert ran == set() and "nothing changed" in said
    assert time.monotonic() - start < 5
    assert digests(finished.workdir) == before and summary == finished.summary
    assert "Realised speed-up" in said and "report.html" in said


@pytest.mark.parametrize(
    "path, value, must_run, may_run",
    [
        ("name", "another", {"report"}, set()),
        ("data.workers", 1, {"report"}, set()),
        ("report.strips", 0, {"report"}, set()),
        ("bench.min_runs", 6, {"bench", "report"}, set()),
        (
            "export.representative_images",
            8,
            {"export_dense_int8", "export_pruned_int8", "report"},
            {"bench"},
        ),
        (
            "export.thresholds.float32",
            0.99,
            {"export_dense_float32", "export_pruned_float32", "report"},
            {"bench"},
        ),
        (
            "pruning.budget.macs",
            0.7,
            {
                *("check_model", "prune", "finetune", "evaluate_pruned", "bench", "report"),
                *("export_pruned_float32", "export_pruned_int8"),
            },
            set(),
        ),
    ],
)
def test_a_changed_setting_runs_what_depends_on_it(copy, network, path, value, must_run, may_run):
    config = tiny.config(network)
    config.update_from_flattened_dict({path: value})
    summary, ran, _ = tiny.start(config, copy)
    assert must_run <= ran <= must_run | may_run
    assert summary["config"]["name"] == config.name
    assert tiny.start(config, copy)[1] == set()
    if path == "pruning.budget.macs":
        assert 0.64 < summary["ratios"]["macs"] <= 0.7


def test_lost_and_damaged_files_are_made_again(copy, network, finished):
    before = digests(copy)
    (copy / "pruned_int8.tflite").unlink()
    (copy / "dense_float32.tflite").write_bytes(b"TFL3")
    (copy / "report.html").unlink()
    (copy / "metrics.jsonl").write_text("{")
    dense = (copy / "dense.keras").read_bytes()
    (copy / "dense.keras").write_bytes(dense[:1000])
    _, ran, _ = tiny.start(tiny.config(network), copy)
    assert {"control", "export_pruned_int8", "export_dense_float32", "report"} <= ran
    assert not ran & {"check", "train", "prune", "finetune", "export_pruned_float32"}
    after = digests(copy)
    assert set(after) == set(before) and after["pruned.keras"] == before["pruned.keras"]
    for a, b in zip(weights(copy / "dense.keras"), weights(finished.workdir / "dense.keras")):
        np.testing.assert_allclose(a, b, atol=1e-5)
    assert len((copy / "metrics.jsonl").read_text().splitlines()) == 5


def test_stages_one_by_one_and_without_any_training(network, tmp_path):
    config = tiny.config(network)
    config.train.epochs = config.finetune.epochs = config.finetune.recalibrate = 0
    config.export.precisions = ("float32",)
    for stage in STAGES:
        summary, ran, _ = tiny.start(config, tmp_path / "run", stage)
        assert ran
    assert summary["dense"]["epochs"] == 0 and summary["pruned"]["epochs"] == 0
    assert 0.44 < summary["ratios"]["macs"] <= 0.5
    for a, b in zip(weights(tmp_path / "run" / "dense.keras"), weights(network)):
        np.testing.assert_array_equal(a, b)
    assert tiny.start(config, tmp_path / "run")[1] == set()


def test_a_report_of_other_settings_than_the_files_is_refused(copy, network):
    before = digests(copy)
    config = tiny.config(network)
    config.pruning.budget.macs = 0.3
    with pytest.raises(ValueError, match="'prune' isn't up to date"):
        tiny.start(config, copy, "report")
    assert digests(copy) == before


@pytest.mark.parametrize("stage", STAGES[1:])
def test_a_stage_without_what_it_reads_is_one_clear_error(network, tmp_path, stage):
    with pytest.raises(ValueError, match=f"'{stage}'.*{tmp_path / 'new'}"):
        tiny.start(tiny.config(network), tmp_path / "new", stage)
    assert not (tmp_path / "new").exists()
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="'[a-z_0-9]+'.*Remedy"):
        tiny.start(tiny.config(network), tmp_path / "empty", stage)
    assert digests(tmp_path / "empty") == {}


def test_a_file_that_does_not_answer_as_its_model_is_not_kept(copy, network):
    before = digests(copy)
    config = tiny.config(network)
    config.export.thresholds.int8 = 1.0
    with pytest.raises(ValueError, match=r"dense_int8.tflite' was not written.*100.00%") as caught:
        tiny.start(config, copy)
    assert ".writing" not in str(caught.value)
    assert digests(copy) == before


def test_a_budget_out_of_reach_is_found_before_training(network, tmp_path):
    config = tiny.config(network)
    config.pruning.budget.macs = 0.001
    with pytest.raises(ValueError, match="can't be reached.*least reachable"):
        tiny.start(config, tmp_path / "run")
    assert digests(tmp_path / "run") == {} and not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize("wrong", [{"classes": 7}, {"size": (32, 64)}])
def test_a_model_that_does_not_fit_the_data_is_found_before_training(tmp_path, wrong):
    path = tiny.save_network(tmp_path / "wrong.keras", **wrong)
    with pytest.raises(ValueError, match="wrong.keras' doesn't fit the data.*Expected.*Received"):
        tiny.start(tiny.config(path), tmp_path / "run")
    assert digests(tmp_path / "run") == {}


@pytest.mark.parametrize(
    "path, value, words",
    [
        ("pruning.exclude", ("nothing",), "matches no layer"),
        ("train.batch_size", 9, "batch_size=9"),
        ("data.name", "street", "Did you mean 'streets'"),
        ("data.train.cuont", 9, "Did you mean 'count'"),
        ("data.data_dir", "/nowhere", "drawn, not read"),
        ("model.path", "nowhere.keras", "nowhere.keras"),
    ],
)
def test_what_cannot_work_is_found_before_training(network, tmp_path, path, value, words):
    config = tiny.config(network)
    with config.unlocked():
        *rooms, key = path.split(".")
        room = config
        for name in rooms:
            room = room[name]
        room[key] = value
    with pytest.raises(ValueError, match=words):
        tiny.start(config, tmp_path / "run")
    assert digests(tmp_path / "run") == {}


def test_an_unknown_network_is_named(network, tmp_path):
    config = tiny.config(network)
    config.model.path = ""
    config.model.name = "unett"
    with pytest.raises(ValueError, match="'unett'.*unet"):
        tiny.start(config, tmp_path / "run")
    config.model.name = "unet"
    config.model.options.wdith = 4
    with pytest.raises(ValueError, match="model.options don't fit 'unet'.*wdith"):
        tiny.start(config, tmp_path / "run")


def test_a_full_disk_keeps_the_previous_model_and_the_run_goes_on_after(copy, network, monkeypatch):
    before = digests(copy)
    (copy / "dense.keras").unlink()
    save = keras.Model.save

    def full_disk(model, path, **options):
        with open(path, "wb") as file:
            file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(keras.Model, "save", full_disk)
    with pytest.raises(OSError, match="dense.keras' could not be written.*No space left"):
        tiny.start(tiny.config(network), copy, "finetune")
    assert set(digests(copy)) == set(before) - {"dense.keras"}
    monkeypatch.setattr(keras.Model, "save", save)
    log = (copy / "metrics.jsonl").read_text()
    # The control's epoch was done and is not trained again: only its file is written.
    assert tiny.start(tiny.config(network), copy, "finetune")[1] == {"control"}
    assert (copy / "metrics.jsonl").read_text() == log
    assert (copy / "dense.keras").is_file() and not list(copy.glob(".writing-*"))


def test_a_killed_run_ends_with_the_weights_of_one_that_was_not(network, finished, tmp_path):
    workdir = tmp_path / "run"
    # Slow batches, so that the kill comes in mid-training.
    (tmp_path / "slow.py").write_text(
        "import time\n"
        "from tests.pipeline import tiny\n"
        "from tfseg_prune.data import Batches\n"
        "get = Batches.__getitem__\n"
        "def slow(self, index):\n"
        "    time.sleep(0.5)\n"
        "    return get(self, index)\n"
        "Batches.__getitem__ = slow\n"
        f"def get_config():\n    return tiny.config({str(network)!r})\n"
    )
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "tfseg_prune", "train"),
            *(f"--config={tmp_path / 'slow.py'}", f"--workdir={workdir}"),
        ],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        end = time.monotonic() + 120
        while not list(workdir.glob("checkpoints/train-*/epoch-0001")):
            assert process.poll() is None and time.monotonic() < end
            time.sleep(0.05)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not (workdir / "base.keras").exists()
    _, ran, _ = tiny.start(tiny.config(network), workdir, "train")
    assert ran == {"train"}
    for a, b in zip(weights(workdir / "base.keras"), weights(finished.workdir / "base.keras")):
        np.testing.assert_allclose(a, b, atol=1e-5)
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [0, 1, 2]
    # The killed process trained the first epoch, slowly; this one the last.
    assert rows[0]["seconds"] > 1 and rows[2]["seconds"] < rows[0]["seconds"]
    assert not list(workdir.glob("checkpoints/*"))
