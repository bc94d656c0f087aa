"""Progress of a training run on the terminal, with the time that is left."""

import datetime
import time

import keras
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

_SHOWN = ("loss", "miou", "accuracy", "val_loss", "val_miou", "val_accuracy")


class ProgressReporter(keras.callbacks.Callback):
    """One line an epoch, and below it a bar over the whole run where stdout is a terminal.

    Use as a context manager round `model.fit`, so that the bar goes away on any exception.

    Args:
        stage: String. What the run is called.
        epochs: Integer. Number of epochs of the whole run.
        initial_epoch: Integer. First epoch (0-based) that will be trained.
        steps: Integer. Batches an epoch.
    """

    # Batch ends need not wait for the device.
    async_safe = True

    def __init__(self, stage, *, epochs, initial_epoch, steps):
        super().__init__()
        self._stage = stage
        self._epochs = epochs
        self._initial_epoch = initial_epoch
        self._steps = steps
        self._console = Console(highlight=False)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[loss]}"),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            console=self._console,
            # Validation pauses the steps: the estimate must look further back than one of them.
            speed_estimate_period=3600,
            transient=True,
            disable=not self._console.is_terminal,
        )
        self._task = self._progress.add_task(
            stage, total=epochs * steps, completed=initial_epoch * steps, loss=""
        )
        self._start = time.monotonic()

    def __enter__(self):
        if self._initial_epoch:
            self._console.print(f"{self._stage} resumes at epoch {self._initial_epoch + 1}")
        self._progress.start()
        self._start = time.monotonic()
        return self

    def __exit__(self, *_):
        self._progress.stop()

    def on_epoch_begin(self, epoch, logs=None):
        self._epoch = epoch
        self._epoch_start = time.monotonic()
        self._progress.update(self._task, description=f"{self._stage} {epoch + 1}/{self._epochs}")

    def on_train_batch_end(self, batch, logs=None):
        done = self._epoch * self._steps + batch + 1
        self._progress.update(self._task, completed=done, loss=f"loss {(logs or {})['loss']:.4f}")

    def on_epoch_end(self, epoch, logs=None):
        values = "  ".join(f"{k} {logs[k]:.4f}" for k in _SHOWN if logs and k in logs)
        now = time.monotonic()
        mean = (now - self._start) / (epoch + 1 - self._initial_epoch)
        left = datetime.timedelta(seconds=round(mean * (self._epochs - epoch - 1)))
        self._console.print(
            f"{self._stage} epoch {epoch + 1}/{self._epochs}  {values}  "
            f"{now - self._epoch_start:.1f} s  ETA {left}",
            soft_wrap=True,
        )
