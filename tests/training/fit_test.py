import errno
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import keras
import numpy as np
import pytest

from tests.training import toys
from tfseg_prune import training
from tfseg_prune.training import checkpoints

ROOT = pathlib.Path(__file__).parents[2]


def _names(directory):
    return sorted(os.listdir(os.path.join(directory, "checkpoints")))


class _Stop(keras.callbacks.Callback):
    """Raises `error` when `epoch` has seen `batch`; or does it between epochs (batch None)."""

    def __init__(self, epoch, batch=None, error=RuntimeError):
        super().__init__()
        self._at, self._error = (epoch, batch), error

    def on_epoch_begin(self, epoch, logs=None):
        self._epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        if (self._epoch, batch) == self._at:
            raise self._error

    def on_epoch_end(self, epoch, logs=None):
        if (epoch, None) == self._at:
            raise self._error


class _Poison(keras.callbacks.Callback):
    """Makes the weights nan when `epoch` has seen `batch`."""

    def __init__(self, epoch, batch):
        super().__init__()
        self._at, self.last = (epoch, batch), None

    def on_epoch_begin(self, epoch, logs=None):
        self._epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        self.last = (self._epoch, batch)
        if self.last == self._at:
            kernel = self.model.trainable_variables[0]
            kernel.assign(np.full(kernel.shape, np.nan))


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    directory = tmp_path_factory.mktemp("uninterrupted")
    final, history = toys.run(directory)
    return directory, final, history


def _python(code, *args, backend, cache):
    environment = {
        **os.environ,
        "KERAS_BACKEND": backend,
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "PYTHONPATH": str(ROOT),
        "TF_CPP_MIN_LOG_LEVEL": "2",
    }
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, args)],
        env=environment,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _kill_at_a_random_moment(directory, backend, cache):
    """`kill -9` at some moment between the first checkpoint and about the end of epoch 3."""
    code = (
        "import sys; from tests.training import toys;"
        "toys.run(sys.argv[1], delay=0.1, workers=2, eager=False)"
    )
    process = _python(code, directory, backend=backend, cache=cache)
    deadline = time.monotonic() + 120
    while not os.path.isdir(os.path.join(directory, "checkpoints", "epoch-0001")):
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    delay = random.SystemRandom().uniform(0.0, 1.2)
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    return f"killed {delay:.3f} s after the first checkpoint; {_names(directory)}"


def test_resumes_after_kill_9_with_the_same_result(tmp_path):
    moment = _kill_at_a_random_moment(tmp_path / "killed", "tensorflow", tmp_path)
    print(moment)
    final, history = toys.run(tmp_path / "whole", eager=False)
    # Another seed, and no workers: nothing may depend on either.
    tmp_path /= "killed"
    resumed, resumed_history = toys.run(tmp_path, seed=99, eager=False)
    toys.assert_same(resumed, final)
    assert [row["epoch"] for row in toys.logged(tmp_path)] == [0, 1, 2, 3], moment
    assert toys.logged(tmp_path) == resumed_history
    for ours, theirs in zip(resumed_history, history):
        np.testing.assert_allclose(ours["loss"], theirs["loss"], rtol=1e-4)
        np.testing.assert_allclose(ours["learning_rate"], theirs["learning_rate"], rtol=1e-6)


_JAX = """
import sys, tempfile
import keras, numpy as np
from tests.training import toys
from tfseg_prune import training
assert keras.backend.backend() == "jax"
final, history = toys.run(tempfile.mkdtemp(), workers=2, eager=False)
assert history[-1]["loss"] < history[0]["loss"]
resumed, _ = toys.run(sys.argv[1], seed=99, eager=False)
toys.assert_same(resumed, final)
assert [row["epoch"] for row in toys.logged(sys.argv[1])] == [0, 1, 2, 3]
model = toys.compiled()
assert training.recalibrate(model, toys.Toy(), steps=2) == 1
mean = np.asarray(model.layers[3].moving_mean)
features = keras.Model(model.inputs, model.layers[3].input)
batch = [features.predict_on_batch(toys.Toy()[i][0]).mean((0, 1, 2)) for i in range(2)]
np.testing.assert_allclose(mean, np.mean(batch, axis=0), rtol=1e-3, atol=1e-5)
score = training.evaluate(model, toys.Toy(), num_classes=3, ignore_index=toys.IGNORE)
assert 0 <= score.miou <= 1
class Poison(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 1:
            self.model.trainable_variables[0].assign(np.full((3, 3, 3, 8), np.nan))
try:
    toys.run(tempfile.mkdtemp(), callbacks=[Poison()], eager=False)
except training.TrainingError as error:
    assert "epoch 2 of 4" in str(error) and "epoch-0001" in str(error), error
else:
    raise AssertionError("no error")
print("all well")
"""


def test_jax_trains_resumes_after_kill_9_recalibrates_and_stops_on_nan(tmp_path):
    cache = tmp_path / "cache"
    moment = _kill_at_a_random_moment(tmp_path / "killed", "jax", cache)
    process = _python(_JAX, tmp_path / "killed", backend="jax", cache=cache)
    output, _ = process.communicate(timeout=300)
    assert "all well" in output, f"{moment}\n{output}"


@pytest.mark.parametrize("stop", [(0, 1), (1, 2), (2, None)])
def test_an_exception_anywhere_loses_nothing(tmp_path, uninterrupted, stop):
    _, final, _ = uninterrupted
    with pytest.raises(RuntimeError):
        toys.run(tmp_path, callbacks=[_Stop(*stop)])
    toys.assert_same(toys.run(tmp_path, seed=5)[0], final)
    assert [row["epoch"] for row in toys.logged(tmp_path)] == [0, 1, 2, 3]


def test_data_arrive_in_the_order_of_the_epoch(tmp_path, uninterrupted):
    train = toys.Toy()
    training.fit(toys.compiled(), train, epochs=3, checkpoint_dir=tmp_path, verbose=False)
    # Keras draws the first batches once or twice more to learn their shapes.
    drawn = train.seen[train.seen.index((0, len(train) - 1)) - len(train) + 1 :]
    assert drawn[-9:] == [(e, i) for e in range(3) for i in range(3)]


def test_a_data_set_without_epoch_resumes_its_shuffle(tmp_path):
    def run(directory, epochs, **kwargs):
        keras.utils.set_random_seed(0)
        model = toys.compiled()
        training.fit(model, toys.Plain(), epochs=epochs, checkpoint_dir=directory, **kwargs)
        return toys.values(model)

    final = run(tmp_path / "a", 4)
    with pytest.raises(RuntimeError):
        run(tmp_path / "b", 4, callbacks=[_Stop(2, 1)])
    toys.assert_same(run(tmp_path / "b", 4), final)


def test_callbacks_resume_their_state(tmp_path):
    class Counter(keras.callbacks.Callback):
        def __init__(self):
            super().__init__()
            self.batches = 0

        def on_train_batch_end(self, batch, logs=None):
            self.batches += 1

        def get_state(self):
            return {"batches": np.array(self.batches)}

        def set_state(self, state):
            self.batches = int(state["batches"])

    with pytest.raises(RuntimeError):
        toys.run(tmp_path, callbacks=[Counter(), _Stop(2, 1)])
    counter = Counter()
    toys.run(tmp_path, callbacks=[counter, keras.callbacks.Callback()])
    assert counter.batches == 12


def test_the_last_two_checkpoints_are_kept_and_leftovers_go(tmp_path, uninterrupted):
    directory, final, _ = uninterrupted
    assert _names(directory) == ["epoch-0003", "epoch-0004"]
    with pytest.raises(RuntimeError):
        toys.run(tmp_path, callbacks=[_Stop(2, 1)])
    half = tmp_path / "checkpoints" / ".writing-epoch-0003"
    half.mkdir()
    (half / "state.npz").write_bytes(b"PK half")
    # A newest checkpoint that the disk damaged: the one before it serves.
    newest = tmp_path / "checkpoints" / "epoch-0002" / "state.npz"
    newest.write_bytes(newest.read_bytes()[:-200])
    with pytest.warns(UserWarning, match="unreadable"):
        resumed, _ = toys.run(tmp_path, seed=3)
    toys.assert_same(resumed, final)
    assert _names(tmp_path) == ["epoch-0003", "epoch-0004"]


def test_all_checkpoints_damaged_is_an_error(tmp_path):
    toys.run(tmp_path, epochs=1)
    for path in (tmp_path / "checkpoints").glob("*/state.json"):
        path.write_text("{")
    with pytest.raises(training.TrainingError, match="Remove the directory"):
        toys.run(tmp_path, epochs=2)


def test_a_finished_run_restores_without_training(tmp_path, uninterrupted):
    directory, final, history = uninterrupted
    before = toys.logged(directory)
    again, again_history = toys.run(directory, seed=7, callbacks=[_Stop(0, 0)])
    for ours, theirs in zip(again, final):
        np.testing.assert_array_equal(ours, theirs)
    assert again_history == history == before


def test_a_run_that_a_callback_stopped_stays_stopped(tmp_path):
    class Enough(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.stop_training = epoch == 1

    _, history = toys.run(tmp_path, callbacks=[Enough()])
    _, again = toys.run(tmp_path, callbacks=[Enough()])
    assert len(history) == 2 and again == history


def test_more_epochs_go_on_from_the_last(tmp_path, uninterrupted):
    _, final, _ = uninterrupted
    toys.run(tmp_path, epochs=2)
    toys.assert_same(toys.run(tmp_path, epochs=4, seed=1)[0], final)


@pytest.mark.parametrize("at", [(1, 0), (1, 1), (1, 2)])
def test_nan_stops_at_once_and_keeps_the_last_good(tmp_path, at):
    poison = _Poison(*at)
    keras.utils.set_random_seed(0)
    model = toys.compiled()
    with pytest.raises(training.TrainingError) as caught:
        training.fit(
            model,
            toys.Toy(),
            epochs=4,
            checkpoint_dir=tmp_path / "checkpoints",
            log_path=tmp_path / "metrics.jsonl",
            callbacks=[poison],
        )
    good = tmp_path / "checkpoints" / "epoch-0001"
    for part in ("epoch 2 of 4", str(good), "learning rate"):
        assert part in str(caught.value)
    assert poison.last <= (1, at[1] + 1)
    assert _names(tmp_path) == ["epoch-0000", "epoch-0001"]
    assert [row["epoch"] for row in toys.logged(tmp_path)] == [0]
    # Its weights are in the model, and a run without the poison goes on from them.
    saved = checkpoints.read(good).arrays
    np.testing.assert_array_equal(toys.values(model)[0], saved["model/0000"])
    _, history = toys.run(tmp_path)
    assert len(history) == 4


def test_a_lower_rate_is_honoured_on_resumption(tmp_path):
    def run(rate, epochs):
        keras.utils.set_random_seed(0)
        return training.fit(
            toys.compiled(optimizer=keras.optimizers.SGD(rate)),
            toys.Toy(),
            epochs=epochs,
            checkpoint_dir=tmp_path,
        )

    run(0.1, 1)
    rates = [row["learning_rate"] for row in run(0.01, 3)]
    np.testing.assert_allclose(rates, [0.1, 0.01, 0.01], rtol=1e-6)


@pytest.mark.parametrize("call", ["savez", "fsync"])
def test_a_full_disk_leaves_the_previous_checkpoint(tmp_path, monkeypatch, uninterrupted, call):
    _, final, _ = uninterrupted

    class Fill(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                monkeypatch.setattr(np if call == "savez" else os, call, full)

    def full(*args, **kwargs):
        if call == "savez":
            args[0].write(b"half of it")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(training.TrainingError, match="No space left") as caught:
        toys.run(tmp_path, callbacks=[Fill()])
    assert "epoch-0002" in str(caught.value)
    assert _names(tmp_path) == ["epoch-0001", "epoch-0002"]
    monkeypatch.undo()
    toys.assert_same(toys.run(tmp_path, seed=2)[0], final)
    assert [row["epoch"] for row in toys.logged(tmp_path)] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (lambda: toys.compiled(width=12), "another model"),
        (lambda: toys.compiled(optimizer=keras.optimizers.Adam(0.1)), "optimizer Adam"),
    ],
)
def test_a_checkpoint_of_another_model_is_refused(uninterrupted, other, message):
    directory, _, _ = uninterrupted
    before = _names(directory)
    with pytest.raises(ValueError, match=message):
        training.fit(
            other(), toys.Toy(), epochs=9, checkpoint_dir=os.path.join(directory, "checkpoints")
        )
    assert _names(directory) == before


def test_keep_best_restores_the_best_epoch_also_after_a_resumption(tmp_path):
    class Spoil(keras.callbacks.Callback):
        """Makes the network useless from epoch 2 on, so that an earlier one is the best."""

        def on_epoch_begin(self, epoch, logs=None):
            if epoch >= 2:
                kernel = self.model.trainable_variables[-2]
                kernel.assign(np.zeros(kernel.shape))

    def run(**kwargs):
        return toys.run(tmp_path, epochs=6, keep="best", **kwargs)

    with pytest.raises(RuntimeError):
        run(callbacks=[Spoil(), _Stop(4, 1)])
    final, history = run(seed=4, callbacks=[Spoil()])
    best = int(np.argmax([row["val_miou"] for row in history]))
    names = _names(tmp_path)
    assert names == sorted({f"epoch-{best + 1:04d}", "epoch-0005", "epoch-0006"})
    saved = checkpoints.read(tmp_path / "checkpoints" / f"epoch-{best + 1:04d}").arrays
    np.testing.assert_array_equal(final[0], saved["model/0000"])
    np.testing.assert_array_equal(run(seed=5)[0][0], saved["model/0000"])


def test_ctrl_c_says_how_to_resume(tmp_path):
    with pytest.raises(KeyboardInterrupt, match="epoch 2 of 4.*epoch-0001.*resumes"):
        toys.run(tmp_path, callbacks=[_Stop(1, 1, KeyboardInterrupt)])


def test_the_log_is_shared_and_mended(tmp_path):
    toys.run(tmp_path, epochs=1)
    path = tmp_path / "metrics.jsonl"
    other = {"stage": "finetune", "epoch": 3, "loss": 1.0}
    stale = {"stage": "train", "epoch": 1, "loss": 2.0}
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(other) + "\n" + json.dumps(stale) + "\n" + '{"stage": "tra')
    toys.run(tmp_path, epochs=2)
    rows = toys.logged(tmp_path)
    assert [(r["stage"], r["epoch"]) for r in rows] == [("train", 0), ("finetune", 3), ("train", 1)]
    assert rows[2]["loss"] != 2.0
    keys = {"stage", "epoch", "loss", "miou", "val_loss", "val_miou", "learning_rate", "seconds"}
    assert set(rows[0]) == keys


def test_a_file_that_is_no_log_is_left_alone(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("my notes\n")
    with pytest.raises(ValueError, match="line 1"):
        toys.run(tmp_path)
    assert path.read_text() == "my notes\n"
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": toys.network}, "compile_segmenter"),
        ({"train": lambda: np.zeros((2, 8, 8, 3))}, "PyDataset"),
        ({"train": lambda: toys.Toy(num_batches=0)}, "at least one batch"),
        ({"epochs": lambda: 0}, "epochs"),
        ({"keep": lambda: "first"}, "keep"),
        ({"keep": lambda: "best"}, "validation"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_written(tmp_path, change, message):
    arguments = {"model": toys.compiled, "train": toys.Toy, "epochs": lambda: 2, **change}
    built = {name: make() for name, make in arguments.items()}
    directory = tmp_path / "checkpoints"
    with pytest.raises(ValueError, match=message):
        training.fit(built.pop("model"), built.pop("train"), checkpoint_dir=directory, **built)
    assert not directory.exists()


def test_another_stage_needs_another_directory(uninterrupted):
    directory, _, _ = uninterrupted
    with pytest.raises(ValueError, match="stage 'train'"):
        toys.run(directory, stage="finetune")


def test_progress_is_plain_lines_without_a_terminal(tmp_path, capsys):
    toys.run(tmp_path, epochs=2)
    lines = capsys.readouterr().out.strip().splitlines()
    assert len(lines) == 2 and lines[1].startswith("train epoch 2/2  loss ")
    assert "val_miou" in lines[0] and "ETA" in lines[0] and "\x1b" not in "".join(lines)
    toys.run(tmp_path, epochs=3)
    assert capsys.readouterr().out.startswith("train resumes at epoch 3\ntrain epoch 3/3")
    toys.run(tmp_path, epochs=4, verbose=False)
    assert capsys.readouterr().out == ""
