"""A file that ends or stops the process that runs it is an error, and this process goes on."""

import os
import signal
import time

import numpy as np
import pytest

from tfseg_prune.bench import runtime
from tfseg_prune.bench.sandbox import Sandbox


@pytest.fixture
def image():
    return np.linspace(0, 255, 16 * 24 * 3, dtype=np.float32).reshape(1, 16, 24, 3)


def test_it_answers_as_an_interpreter_here(tiny_tflite, image):
    here = runtime.interpreter(tiny_tflite, preserve_all_tensors=True, xnnpack=False)
    here.set_tensor(here.get_input_details()[0]["index"], image)
    here.invoke()
    with Sandbox(tiny_tflite, preserve_all_tensors=True, xnnpack=False) as model:
        (answer,) = model.run([image])
        index = here.get_output_details()[0]["index"]
        np.testing.assert_array_equal(answer, here.get_tensor(index))
        inner = [entry["index"] for entry in here.get_tensor_details()]
        for index, value in model.read(inner).items():
            np.testing.assert_array_equal(value, here.get_tensor(index))
        for mine, theirs in zip(model.inputs, here.get_input_details()):
            assert {key: theirs[key] for key in ("name", "index", "quantization", "dtype")} == {
                key: mine[key] for key in ("name", "index", "quantization", "dtype")
            }
            np.testing.assert_array_equal(mine["shape"], theirs["shape"])


def test_a_process_that_dies_is_one_error_that_names_the_signal(tiny_tflite, image):
    with Sandbox(tiny_tflite) as model:
        os.kill(model._process.pid, signal.SIGSEGV)
        with pytest.raises(ValueError, match="tiny.tflite.*ended by signal 11.*Remedy"):
            model.run([image])
        with pytest.raises(ValueError, match="does not run"):
            model.run([image])


def test_a_process_that_hangs_is_ended(tiny_tflite, image):
    with Sandbox(tiny_tflite) as model:
        model._seconds = 0.2
        os.kill(model._process.pid, signal.SIGSTOP)
        started = time.monotonic()
        with pytest.raises(ValueError, match="no answer in 0.2 s"):
            model.run([image])
        assert time.monotonic() - started < 10
        assert model._process.poll() is not None


def test_a_wrong_array_is_refused_here(tiny_tflite, image):
    with Sandbox(tiny_tflite) as model:
        for wrong in ([image[:, :-1]], [image.astype("float64")], [], [image, image]):
            with pytest.raises(ValueError, match="Expected"):
                model.run(wrong)
        assert model.run([image])


def test_a_file_that_the_runtime_refuses_says_why(tiny_tflite):
    with pytest.raises(ValueError, match="Invalid threads"):
        Sandbox(tiny_tflite, threads=0)
    with pytest.raises(ValueError, match="no such file"):
        Sandbox(tiny_tflite.with_name("none.tflite"))


def test_nothing_is_left_of_a_closed_one(tiny_tflite):
    model = Sandbox(tiny_tflite)
    process = model._process
    del model
    assert process.poll() is not None


def test_a_closed_one_says_so(tiny_tflite, image):
    with Sandbox(tiny_tflite) as model:
        pass
    with pytest.raises(ValueError, match="was closed. Expected"):
        model.run([image])
