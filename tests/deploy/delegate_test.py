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

from tests.deploy import gpu_nets, nets
from tfseg_prune.deploy import ExportError, check_gpu, delegate, export
from tfseg_prune.deploy.contents import load_contents
from tfseg_prune.deploy.delegate import SOFTWARE_GPU, check_gpu_files
from tfseg_prune.deploy.quiet import quiet

layers = keras.layers


@pytest.fixture
def no_gpu(tmp_path, monkeypatch):
    """A machine whose Vulkan has no driver."""
    folder = tmp_path / "no_gpu"
    folder.mkdir()
    (folder / "env.sh").write_text(f"export VK_ICD_FILENAMES='{folder}/none.json'\n")
    monkeypatch.setenv(SOFTWARE_GPU, str(folder))
    return folder


def test_without_a_gpu_nothing_is_checked_and_nothing_passes(files, images, no_gpu):
    check = check_gpu(files().path, images)
    assert check.status == "unavailable" and not check.passed and not check
    assert "NOT checked" in check.says and "tools/software_gpu.sh" in check.says
    assert check.fully_accelerated is None and check.argmax_agreement is None


def test_a_file_that_takes_too_long_is_no_pass(files, images, no_gpu):
    check = check_gpu(files().path, images, timeout=0)
    assert check.status == "timeout" and not check and "after 0 s" in check.says


@pytest.fixture
def python(tmp_path, monkeypatch):
    """`python(script)`: what runs in place of the process that runs the delegate."""

    def replace(*lines):
        path = tmp_path / "python"
        # Its arguments: -P, the worker, the folder.
        path.write_text("\n".join(["#!/bin/sh", 'cd "$3"', *lines, ""]))
        path.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(path))

    return replace


STARTED = "echo 'Selected adapter: GeForce, arch=' >0.log; printf 'compiling' >0.stage"


@pytest.mark.skipif(os.name != "posix", reason="a system without signals")
@pytest.mark.parametrize(
    "lines, status, says, name",
    [
        ((STARTED, "kill -ILL $$"), "crashed", "died compiling, of SIGILL.", "SIGILL"),
        ((STARTED, "exit 3"), "crashed", "died compiling, of exit status 3.", None),
        ((STARTED, "exit 0"), "crashed", "died compiling, of exit status 0.", None),
        (
            (STARTED, """echo '{"failed": "no room"}' >0.json"""),
            *("failed", "the GPU gives no answer: no room.", None),
        ),
        ((STARTED, "exec sleep 60"), "timeout", "still compiling after 1 s", None),
        (("printf starting >0.stage", "kill -SEGV $$"), "unavailable", "of SIGSEGV", None),
    ],
)
def test_how_the_process_ended_is_told(files, images, python, lines, status, says, name):
    python(*lines)
    check = check_gpu(files().path, images, timeout=1)
    assert (check.status, check.signal, bool(check)) == (status, name, False)
    assert says in check.says and check.driver == ("GeForce" if STARTED in lines else None)


@pytest.mark.skipif(os.name != "posix", reason="a system without sh")
@pytest.mark.parametrize(
    "end, status, says, name",
    [
        ("kill -SEGV $$", "crashed", "of SIGSEGV", "SIGSEGV"),
        ("""echo '{"refused": "no model"}' >0.json""", "failed", "can't open it: no model", None),
    ],
)
def test_what_dies_before_it_has_a_gpu_is_not_the_gpus_want(
    files, images, python, tmp_path, end, status, says, name
):
    """The plain file that comes next has one."""
    seen = f"[ -e {tmp_path}/again ] && {{ {STARTED}; exit 3; }}; touch {tmp_path}/again"
    python(seen, "printf starting >0.stage", end)
    check = check_gpu(files().path, images)
    assert (check.status, check.signal, bool(check)) == (status, name, False)
    assert says in check.says


@pytest.mark.skipif(os.name != "posix", reason="a system without sh")
@pytest.mark.parametrize(
    "lines, why",
    [
        (("printf 'running the file on the CPU' >0.stage", "kill -SEGV $$"), "CPU, of SIGSEGV"),
        (("touch 0.stage", """echo '{"error": "no such op"}' >0.json"""), "no such op"),
    ],
)
def test_what_the_cpu_cannot_run_says_nothing_about_gpus(files, images, python, lines, why):
    python(*lines)
    with pytest.raises(ValueError, match=f"one that runs on the CPU.*{why}"):
        check_gpu(files().path, images)


def test_what_a_rule_is_against_is_no_pass(tmp_path, python):
    images, path = gpu_nets.images(), tmp_path / "argmax.tflite"
    gpu_nets.write(gpu_nets.CASES["argmax-5-classes"], path)
    found = {"finite": True, "fully_accelerated": True, "argmax_agreement": 1.0}
    python(STARTED, f"echo '{json.dumps(found)}' >0.json")
    check = check_gpu(path, images)
    assert check.status == "passed" and not check and "by the rules" in str(check)


def test_what_would_be_compared_in_part_is_an_error(tmp_path):
    images = keras.Input((8, 8, 3))
    two = keras.Model(images, [layers.Conv2D(4, 1)(images), layers.Conv2D(4, 3)(images)])
    path = tmp_path / "two.tflite"
    with quiet():
        two.export(path, format="litert", verbose=False)
    with pytest.raises(ValueError, match="one output and one graph.*2 outputs"):
        check_gpu(path, np.zeros((1, 8, 8, 3), "float32"))


@pytest.mark.parametrize("name", ["none/a.npy", "a.txt", "."])
def test_answers_must_have_a_place(files, images, tmp_path, name):
    with pytest.raises(ValueError, match="answers can't be written"):
        check_gpu(files().path, images, answers=tmp_path / name)


@pytest.mark.skipif(os.name != "posix", reason="a system without sh")
@pytest.mark.parametrize(
    "precision, agreement, half, single, status",
    [
        ("int8", 0.95, 0.25, 0.1, "passed"),
        ("int8", 0.95, 0.3, 0.3, "wrong"),
        ("int8", 0.85, 0.25, 0.1, "wrong"),
        ("int8", 0.95, 0.17, 1.0, "passed"),
        ("float32", 0.999, 0.15, 0.03, "wrong"),
    ],
)
def test_float32_decides_whether_int8_was_only_rounded(
    files, images, python, precision, agreement, half, single, status
):
    found = {"finite": True, "fully_accelerated": True, "argmax_agreement": agreement}
    answers = [json.dumps({**found, "rms_diff": rms}) for rms in (half, single)]
    asked = """grep -q '"float32": true' jobs.json"""
    python(STARTED, f"{asked} && echo '{answers[1]}' >0.json || echo '{answers[0]}' >0.json")
    check = check_gpu(files(precision).path, images)
    assert (check.status, check.rms_diff) == (status, half)
    assert ("In float32: " in check.says) == (
        precision == "int8" and half > 0.2 and agreement > 0.9
    )


@pytest.mark.skipif(os.name != "posix", reason="a system without sh")
def test_a_process_that_cannot_start_is_an_error(files, images, python):
    python("echo No room >&2; exit 1")
    with pytest.raises(RuntimeError, match="can't start.*status 1: No room"):
        check_gpu(files().path, images)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems don't tell children")
def test_no_process_outlives_its_parent(tmp_path):
    # Who opens a pipe waits for a writer: the worker would never end.
    os.mkfifo(tmp_path / "0.npy")
    job = {"path": "x.tflite", "images": str(tmp_path / "0.npy"), "float32": False}
    (tmp_path / "jobs.json").write_text(json.dumps([job]))
    worker = pathlib.Path(delegate.__file__).with_name("_gpu_worker.py")
    code = "import subprocess, sys; print(subprocess.Popen(sys.argv[1:]).pid, flush=True); input()"
    parent = subprocess.Popen(
        [sys.executable, "-c", code, sys.executable, str(worker), str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(pathlib.Path(__file__).parents[2])},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with parent:
        child = int(parent.stdout.readline())
        assert within(60, (tmp_path / "0.log").exists)
        parent.kill()
    try:
        assert within(10, lambda: not alive(child))
    finally:
        if alive(child):
            os.kill(child, signal.SIGKILL)


def within(seconds, happens):
    end = time.monotonic() + seconds
    while not happens() and time.monotonic() < end:
        time.sleep(0.02)
    return happens()


def alive(process):
    """Whether a process runs; one that is dead but not yet reaped does not."""
    try:
        status = pathlib.Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return False
    return status.rpartition(") ")[2][0] != "Z"


def test_the_software_gpu_leaves_what_python_needs(tmp_path, monkeypatch):
    lines = ["# Mesa", "export VK_ICD_FILENAMES='/g/icd.json'", "export LD_LIBRARY_PATH='/g:/h'"]
    (tmp_path / "env.sh").write_text("\n".join(lines))
    monkeypatch.setenv("LD_LIBRARY_PATH", "/opt/python/lib")
    monkeypatch.setenv("VK_DRIVER_FILES", "/usr/share/vulkan/other.json")
    monkeypatch.delenv(SOFTWARE_GPU, raising=False)
    own = delegate.environment()
    assert own["VK_DRIVER_FILES"] and own["LD_LIBRARY_PATH"] == "/opt/python/lib"
    monkeypatch.setenv(SOFTWARE_GPU, str(tmp_path))
    software = delegate.environment()
    assert software["VK_ICD_FILENAMES"] == "/g/icd.json" and "VK_DRIVER_FILES" not in software
    assert software["LD_LIBRARY_PATH"] == "/g:/h:/opt/python/lib"


def test_a_folder_without_a_software_gpu_is_an_error(files, images, tmp_path, monkeypatch):
    monkeypatch.setenv(SOFTWARE_GPU, str(tmp_path))
    with pytest.raises(ValueError, match="no software GPU.*software_gpu.sh"):
        check_gpu(files().path, images)


@pytest.mark.parametrize(
    "given, message",
    [
        ({"images": []}, "No images"),
        ({"images": nets.images(size=(16, 16))}, "do not fit the model.*32, 48, 3.*16, 16"),
        ({"threshold": 2}, "threshold.*2"),
        ({"timeout": None}, "timeout.*None"),
    ],
)
def test_bad_input_is_one_clear_error(files, images, given, message):
    given = {"images": images, **given}
    with pytest.raises(ValueError, match=message):
        check_gpu(files().path, given.pop("images"), **given)


def test_a_damaged_file_is_a_clear_error(files, images, tmp_path):
    short = tmp_path / "short.tflite"
    short.write_bytes(files().path.read_bytes()[:5000])
    with pytest.raises(ValueError, match="damaged or cut short"):
        check_gpu(short, images)


def grouped_model():
    images = keras.Input((*nets.SIZE, 3))
    x = layers.Conv2D(8, 3, padding="same", activation="relu")(images)
    x = layers.Conv2D(8, 3, groups=4, padding="same", name="mix")(x)
    return keras.Model(images, layers.Conv2D(5, 1, name="logits")(x))


def test_what_must_run_on_a_gpu_and_would_not_leaves_no_file(tmp_path, no_gpu):
    model, path = grouped_model(), tmp_path / "out" / "x.tflite"
    path.parent.mkdir()
    with pytest.raises(ValueError, match="require_gpu needs images"):
        export(model, path, require_gpu=True)
    with pytest.raises(ExportError, match="x.tflite' was not written.*mix: .*2 channels per group"):
        export(model, path, grouped="grouped", images=nets.images(), require_gpu=True)
    with pytest.raises(ExportError, match="x.tflite' was not written.*unavailable: .*NOT checked"):
        export(model, path, images=nets.images(), require_gpu=True)
    assert not list(path.parent.iterdir())
    # Without being asked to, the rules only say so.
    (finding,) = export(model, path, grouped="grouped").findings
    assert finding.layer == "mix" and path.exists()


def segmenter():
    """Half the resolution, then a resize; what delegates take as it is."""
    keras.utils.set_random_seed(2)
    images = keras.Input((*nets.SIZE, 3))
    x = layers.Conv2D(16, 3, strides=2, padding="same", use_bias=False)(images / 255)
    x = layers.ReLU(6.0)(layers.BatchNormalization()(x))
    y = layers.DepthwiseConv2D(3, dilation_rate=2, padding="same")(x)
    y = layers.Activation("hard_swish")(layers.Conv2D(16, 1)(y))
    y = layers.Conv2D(12, 3, groups=2, padding="same")(layers.Add()([x, y]))
    pooled = layers.GlobalAveragePooling2D(keepdims=True)(y)
    y = layers.Concatenate()([y, layers.Resizing(16, 24)(pooled), x])
    x = layers.Conv2D(nets.CLASSES, 1, name="decoder_logits")(y)
    x = layers.UpSampling2D(2, interpolation="bilinear")(x)
    return nets.randomised(keras.Model(images, x, name="segmenter"))


@pytest.mark.gpu
def test_a_small_segmenter_runs_on_the_gpu_of_this_machine(gpu, tmp_path):
    """The one of these tests that is no slow one: where it is skipped, they all would be."""
    export(segmenter(), tmp_path / "x.tflite", tail="logits")
    assert check_gpu(tmp_path / "x.tflite", nets.images()[:1]).passed


@pytest.mark.slow
@pytest.mark.gpu
@pytest.mark.parametrize("tail", ["logits", "upsampled"])
@pytest.mark.parametrize("precision", ["float32", "float16", "dynamic", "int8"])
def test_a_segmenter_runs_whole_and_rightly(gpu, images, tmp_path, tail, precision):
    model, path = segmenter(), tmp_path / "x.tflite"
    export(model, path, tail=tail, precision=precision, representative=images)
    check = check_gpu(path, images, model=model)
    assert check.passed and check.fully_accelerated and check.driver == gpu, check
    assert check.images == len(images) and not check.findings and not check.left
    assert check.first_run_seconds > check.warm_seconds > 0
    assert check.rms_diff < {"float32": 0.01, "float16": 0.01}.get(precision, 0.1)


@pytest.mark.slow
@pytest.mark.gpu
def test_export_that_must_run_on_a_gpu_tells_what_it_saw(gpu, tmp_path):
    images = nets.images()
    written = export(
        grouped_model(),
        tmp_path / "x.tflite",
        images=iter([images[:3], images[3:]]),
        require_gpu=True,
    )
    assert written.gpu and written.gpu.images == 4 and written.gpu.path == written.path
    assert written.parity.images == 4 and not written.findings


@pytest.mark.slow
@pytest.mark.gpu
def test_each_file_has_its_own_end(gpu, tmp_path):
    names = ["grouped-6-6x2", "conv-bn-relu", "product-with-itself", "shuffle-rank-5"]
    names += ["grouped-2-2x4", "argmax-8-classes"]
    files = []
    for name in names:
        path = tmp_path / f"{name}.tflite"
        files.append((path, gpu_nets.images(), gpu_nets.write(gpu_nets.CASES[name], path)))
    checks = check_gpu_files(files, threshold=0.98)
    expected = ["crashed", "passed", "crashed", "refused", "wrong", "passed"]
    assert [check.status for check in checks] == expected
    assert [bool(check) for check in checks] == [status == "passed" for status in expected]
    assert checks[0].signal == "SIGILL" and "compiling" in checks[0].says
    assert checks[2].signal is None and "already a consumer" in checks[2].says
    assert [line.split(":")[0] for line in checks[3].left] == ["RESHAPE", "RESHAPE", "TRANSPOSE"]
    assert all(check.driver == gpu for check in checks)


@pytest.mark.slow
@pytest.mark.gpu
def test_what_the_gpu_answers_is_kept_where_it_ran(gpu, tmp_path):
    names, images = ["int8", "shuffle-rank-5"], gpu_nets.images(3)
    files = [(tmp_path / f"{name}.tflite", images, None) for name in names]
    models = [gpu_nets.write(gpu_nets.CASES[name], path) for name, (path, *_) in zip(names, files)]
    answers = [tmp_path / f"{name}.npy" for name in names]
    answers[1].write_text("of an earlier run")
    ran, _ = check_gpu_files(files, answers=answers)
    kept = np.load(answers[0])
    expected = keras.ops.convert_to_numpy(models[0](images))
    assert ran.passed and kept.shape == expected.shape and kept.dtype == np.float32
    assert np.abs(kept - expected).max() < 0.1 * np.abs(expected).max()
    assert not answers[1].exists()


@pytest.mark.slow
@pytest.mark.gpu
def test_float32_leaves_no_rounding(gpu, tmp_path):
    path = tmp_path / "x.tflite"
    gpu_nets.write(gpu_nets.CASES["separable"], path)
    half = check_gpu(path, gpu_nets.images(), threshold=0.9)
    single = check_gpu(path, gpu_nets.images(), threshold=0.9, float32=True)
    assert single.rms_diff < 1e-5 < half.rms_diff < 0.01
    assert single.argmax_agreement == 1


@pytest.mark.slow
@pytest.mark.gpu
def test_answers_that_are_no_finite_numbers_are_wrong(gpu, files, images, tmp_path):
    path, model = tmp_path / "broken.tflite", segmenter()
    written = export(model, path, tail="logits")
    tensor = load_contents(written.path).names[load_contents(written.path).ops[0].outputs[0]]
    nets.break_weights(path, path, tensor, lambda w: np.where(np.arange(w.size) == 0, np.nan, w))
    check = check_gpu(path, images)
    assert check.status == "wrong" and "no finite numbers" in check.says


@pytest.mark.slow
@pytest.mark.gpu
@pytest.mark.skipif(not shutil.which("apt-get"), reason="a system without apt")
def test_software_gpu_can_be_asked_for_again(gpu, monkeypatch):
    """The script answers with the same settings and downloads nothing."""
    folder = os.environ.get(SOFTWARE_GPU)
    if not folder:
        pytest.skip(f"no {SOFTWARE_GPU}: the GPU is another one")
    script = pathlib.Path(__file__).parents[2] / "tools" / "software_gpu.sh"
    done = subprocess.run([script, folder], capture_output=True, text=True, timeout=5, check=True)
    assert (pathlib.Path(folder) / "env.sh").read_text() in done.stdout and not done.stderr
