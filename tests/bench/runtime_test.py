"""Tests of bench.runtime: it opens whole files, and refuses all others without dying."""

import numpy as np
import pytest

from tfseg_prune.bench import runtime


def test_interpreter_answers_alike_with_and_without_xnnpack(tiny_tflite):
    answers = []
    for xnnpack in (True, False):
        model = runtime.interpreter(tiny_tflite, threads=2, xnnpack=xnnpack)
        image = np.linspace(0, 255, 16 * 24 * 3, dtype=np.float32).reshape(1, 16, 24, 3)
        model.set_tensor(model.get_input_details()[0]["index"], image)
        model.invoke()
        answers.append(model.get_tensor(model.get_output_details()[0]["index"]))
    np.testing.assert_allclose(answers[0], answers[1], rtol=1e-4, atol=1e-4)
    assert np.ptp(answers[0]) > 0


def test_preserved_tensors_can_be_read(tiny_tflite):
    model = runtime.interpreter(tiny_tflite, preserve_all_tensors=True, xnnpack=False)
    model.invoke()
    for detail in model.get_tensor_details():
        assert model.get_tensor(detail["index"]).shape == tuple(detail["shape"])


def test_every_truncation_is_found_without_a_runtime(tiny_tflite, tmp_path):
    data = tiny_tflite.read_bytes()
    cut = tmp_path / "cut.tflite"
    for size in [*range(8, len(data), 211), *range(len(data) - 200, len(data))]:
        cut.write_bytes(data[:size])
        with pytest.raises(ValueError, match="damaged or cut short"):
            runtime.check_file(cut)


@pytest.mark.parametrize(
    "content, message",
    [(b"", "Not a LiteRT model"), (b"<html>404 not found</html>", "Not a LiteRT model"),
     (b"\0\0\0\0TFL3" + b"\xff" * 64, "damaged")],
)
def test_other_files_are_one_clear_error(tmp_path, content, message):
    path = tmp_path / "m.tflite"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        runtime.interpreter(path)
    assert "Expected:" in str(caught.value) and str(path) in str(caught.value)


def test_missing_file_and_folder_are_told_apart(tmp_path):
    with pytest.raises(ValueError, match="no such file"):
        runtime.interpreter(tmp_path / "none.tflite")
    with pytest.raises(ValueError, match="a folder"):
        runtime.interpreter(tmp_path)


def test_operator_that_the_runtime_lacks_names_the_file(tiny_tflite, tmp_path):
    path = tmp_path / "future.tflite"
    data = bytearray(tiny_tflite.read_bytes())
    flat = runtime._Flatbuffer(bytes(data))
    for code in flat.tables(flat.table(0), 1):
        for field in (0, 3):  # the op's number, in its old place and in its new one
            at = flat.field(code, field)
            if at:
                data[at] = 126
    path.write_bytes(data)
    with pytest.raises(ValueError, match="future.tflite"):
        runtime.interpreter(path)


@pytest.mark.parametrize("threads", [0, -1, 1.5, True, "2"])
def test_threads_must_be_a_whole_number(tiny_tflite, threads):
    with pytest.raises(ValueError, match="threads"):
        runtime.interpreter(tiny_tflite, threads=threads)


def test_no_runtime_says_what_to_install(monkeypatch):
    def absent(name):
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(runtime.importlib, "import_module", absent)
    runtime._load.cache_clear()
    try:
        with pytest.raises(ValueError, match="pip install ai-edge-litert"):
            runtime.describe()
    finally:
        runtime._load.cache_clear()


def test_unknown_runtime_lists_the_known():
    with pytest.raises(ValueError, match="ai_edge_litert, tflite_runtime, tensorflow"):
        runtime.describe("torch")
