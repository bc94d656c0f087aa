"""Tests of bench.host: what it records and refuses; no time is asserted."""

import json
import os
import pathlib
import subprocess
import sys
import venv

import numpy as np
import pytest

from tfseg_prune.bench import fresh, host, inputs, runtime, schema, stats

QUICK = dict(min_runs=7, max_seconds=0.01, max_warmup_runs=3)


def test_two_models_in_turns(tiny_tflite, wide_tflite):
    seen = []
    results = host.time_models(
        {"wide": wide_tflite, "tiny": tiny_tflite},
        precisions={"tiny": "float32"},
        progress=lambda *args: seen.append(args),
        **QUICK,
    )
    assert list(results) == ["wide", "tiny"]
    wide, tiny = results.values()
    assert wide.session == tiny.session
    assert len(wide.samples_ms) == len(tiny.samples_ms) >= 7
    assert wide.warmup_runs == 3 and not wide.steady
    assert tiny.model.bytes == tiny_tflite.stat().st_size != wide.model.bytes
    assert tiny.model.sha256 != wide.model.sha256
    assert (wide.model.precision, tiny.model.precision) == (None, "float32")
    assert wide.backend.runtime == runtime.describe()["name"]
    assert wide.peak_memory_bytes > 0
    assert stats.compare(tiny, wide).rounds == len(tiny.samples_ms)
    assert schema.Result.from_json(wide.to_json()) == wide
    assert {phase for phase, _, _ in seen} == {"open", "warm-up", "time"}
    text = host.table(results)
    assert "not steady" in text and f"{tiny.latency_ms.p50:.2f}" in text


def test_images_reach_the_model_quantised_as_it_says():
    class Fake:
        def get_input_details(self):
            shape = np.array([1, 2, 2, 1])
            return [{"shape": shape, "dtype": np.int8, "quantization": (2.0, -100)}]

    array = np.array([0, 100, 254, 999], np.float32).reshape(2, 2, 1)
    (batch,) = inputs.image(Fake(), array)
    assert batch.dtype == np.int8
    assert batch.ravel().tolist() == [-100, -50, 27, 127]
    (noise,) = inputs.random(Fake())
    assert noise.dtype == np.int8 and noise.shape == (1, 2, 2, 1)


def test_real_images_are_used(tiny_tflite):
    images = np.zeros((2, 16, 24, 3), np.float32)
    result = host.time_models({"m": tiny_tflite}, images=images, **QUICK)["m"]
    assert len(result.samples_ms) == 7
    with pytest.raises(ValueError, match=r"\(16, 24, 3\)"):
        host.time_models({"m": tiny_tflite}, images=images[:, :8], **QUICK)
    with pytest.raises(ValueError, match="number, height, width, channels"):
        host.time_models({"m": tiny_tflite}, images=images[0], **QUICK)


def test_random_input_stays_in_the_range(tiny_tflite):
    model = runtime.interpreter(tiny_tflite)
    (values,) = inputs.random(model, value_range=(-1.0, 1.0))
    assert values.dtype == np.float32 and -1 <= values.min() < -0.9 and 0.9 < values.max() <= 1


@pytest.mark.skipif(not pathlib.Path("/proc/self/status").exists(), reason="needs /proc")
def test_peak_memory_is_the_models_not_the_callers(tiny_tflite):
    ballast = np.ones(40_000_000)  # 320 MB here, none of it the model's
    measured = fresh.measure(tiny_tflite)
    assert ballast.nbytes > 10 * measured["peak_memory_bytes"] > 0


def test_process_that_dies_is_a_clear_error(tiny_tflite, monkeypatch):
    real = subprocess.run

    def dies(command, **options):
        return real([sys.executable, "-c", "import os; os.kill(os.getpid(), 11)"], **options)

    monkeypatch.setattr(fresh.subprocess, "run", dies)
    with pytest.raises(ValueError, match="killed by signal 11"):
        fresh.measure(tiny_tflite)


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(min_runs=0), "min_runs"),
        (dict(max_seconds=float("nan")), "max_seconds"),
        (dict(threads=0), "threads"),
    ],
)
def test_options_out_of_range(tiny_tflite, change, message):
    with pytest.raises(ValueError, match=message):
        host.time_models({"m": tiny_tflite}, **change)


def test_one_bad_file_stops_it_before_any_timing(tiny_tflite, tmp_path):
    cut = tmp_path / "cut.tflite"
    cut.write_bytes(tiny_tflite.read_bytes()[:-100])
    phases = []
    with pytest.raises(ValueError, match="cut.tflite"):
        host.time_models({"a": tiny_tflite, "b": cut}, progress=lambda *a: phases.append(a))
    with pytest.raises(ValueError, match="at least one"):
        host.time_models({})
    assert not phases


def test_command_line(tiny_tflite, tmp_path, capsys):
    out = tmp_path / "out.json"
    quick = ["--runs", "3", "--seconds", "0.01", "--json", str(out)]
    assert host.main([str(tiny_tflite), str(tiny_tflite), *quick]) == 0
    assert [result.model.name for result in schema.load(out)] == ["tiny", "tiny#2"]
    printed = capsys.readouterr().out
    assert "tiny#2" in printed and "1 thread(s)" in printed


def test_command_line_errors_are_one_line(tiny_tflite, tmp_path, capsys):
    for argv in (
        [str(tmp_path / "none.tflite")],
        [str(tiny_tflite), "--json", str(tmp_path / "no" / "out.json")],
        [str(tiny_tflite), "--images", str(tiny_tflite)],
    ):
        assert host.main(argv) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1


def test_bench_imports_neither_keras_nor_tensorflow(tiny_tflite):
    code = (
        "import sys; from tfseg_prune.bench import fresh, host, inputs, runtime, schema, stats; "
        "host.main(sys.argv[1:]); print([m for m in sys.modules if m.split('.')[0] in "
        "('keras', 'tensorflow', 'PIL', 'rich', 'matplotlib')])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tiny_tflite), "--runs", "1", "--seconds", "0.01"],
        capture_output=True, text=True, check=True, cwd=pathlib.Path(host.__file__).parents[2],
    )
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.slow
def test_bare_board(tiny_tflite, tmp_path):
    """NumPy 1 and tflite-runtime alone, as on a small Linux board."""
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    install = [python, "-m", "pip", "install", "-q", "numpy==1.26.4", "tflite-runtime==2.14.0"]
    if subprocess.run(install, capture_output=True, timeout=300, check=False).returncode:
        pytest.skip("tflite-runtime cannot be installed here")
    out = tmp_path / "out.json"
    root = pathlib.Path(host.__file__).parents[2]
    cut = tmp_path / "cut.tflite"
    data = tiny_tflite.read_bytes()
    cut.write_bytes(data[: len(data) // 2])  # tflite-runtime 2.14 by itself dies of this
    run = [python, "-P", "-m", "tfseg_prune.bench.host", "--runs", "3", "--json", out]
    options = dict(
        env={**os.environ, "PYTHONPATH": str(root)}, capture_output=True, text=True, check=False
    )
    done = subprocess.run([*run, tiny_tflite, tiny_tflite], **options)
    assert done.returncode == 0, done.stderr
    assert "tflite_runtime 2.14.0" in done.stdout
    assert json.loads(out.read_text())["results"][0]["backend"]["runtime"] == "tflite_runtime"
    done = subprocess.run([*run, cut], **options)
    assert done.returncode == 2 and "cut short" in done.stderr
