"""Training that survives being killed: one `model.fit`, a checkpoint at each epoch."""

import contextlib
import math
import time

import keras
import numpy as np

from tfseg_prune.training import checkpoints, log
from tfseg_prune.training.checkpoints import TrainingError
from tfseg_prune.training.progress import ProgressReporter


class DivergedError(TrainingError):
    """The loss or the weights are no longer finite."""


class _Recorder(keras.callbacks.Callback):
    """Restores the run at its start; logs it and saves it at the end of each epoch."""

    async_safe = True

    def __init__(self, run):
        super().__init__()
        self._run = run

    def on_train_begin(self, logs=None):
        # Here and not before `model.fit`, so that it comes after whatever other callbacks set up.
        self._run.restore_or_save_start()

    def on_epoch_begin(self, epoch, logs=None):
        self._run.begin(epoch)

    def on_train_batch_end(self, batch, logs=None):
        loss = (logs or {}).get("loss", 0.0)
        if not math.isfinite(loss):
            raise self._run.diverged(f"loss={loss} in batch {batch + 1}")

    def on_epoch_end(self, epoch, logs=None):
        self._run.end(epoch, logs or {}, stopped=self.model.stop_training)


class _Run:
    """One stage of training: its data, its history and where both are kept."""

    def __init__(
        self, model, train, validation, callbacks, *, directory, log_path, stage, epochs, keep
    ):
        self.model = model
        self.train = train
        self.validation = validation
        self.callbacks = callbacks
        self.directory = directory
        self.log_path = log_path
        self.stage = stage
        self.epochs = epochs
        self.keep = keep
        self.learning_rate = _learning_rate(model)
        self.checkpoint = checkpoints.load(self.directory)
        state = self.checkpoint.state if self.checkpoint else {}
        if state.get("stage", self.stage) != self.stage:
            raise ValueError(
                f"Invalid `checkpoint_dir`. Expected: checkpoints of stage '{self.stage}'. "
                f"Received: {self.directory}, which holds stage '{state['stage']}'. "
                "Give each stage a directory of its own."
            )
        if self.checkpoint:
            checkpoints.check(self.checkpoint, model)
        self.first_epoch = state.get("epoch", 0)
        self.history = state.get("history", [])
        self.epoch = self.first_epoch
        self.finished = state.get("finished", False) or self.first_epoch >= self.epochs

    def restore_or_save_start(self):
        if self.checkpoint is None:
            self._check_weights("before the first step")
            self._save(0)
            return
        checkpoints.restore(self.checkpoint, self.model, self.callbacks)
        asked = self.checkpoint.state["learning_rate"]
        if self.learning_rate != asked and isinstance(self.learning_rate, float):
            # The checkpoint holds the rate of the run so far; a new one was compiled on purpose.
            self.model.optimizer.learning_rate = self.learning_rate

    def begin(self, epoch):
        self.epoch = epoch
        self._start = time.monotonic()
        self._rate = float(self.model.optimizer.learning_rate)
        # Keras calls `on_epoch_end` once before the first epoch too, so counting would be wrong.
        for batches in (self.train, self.validation):
            if hasattr(batches, "epoch"):
                batches.epoch = epoch

    def end(self, epoch, logs, stopped):
        self._check_weights("after the last step")
        row = {"stage": self.stage, "epoch": epoch}
        row.update({k: _finite_or_none(v) for k, v in logs.items() if np.ndim(v) == 0})
        row["learning_rate"] = self._rate
        row["seconds"] = round(time.monotonic() - self._start, 3)
        self.history = [*self.history, row]
        # First the line, then the checkpoint: a kill in between repeats the epoch and its line.
        if self.log_path is not None:
            try:
                log.append(self.log_path, row)
            except OSError as error:
                raise TrainingError(
                    f"Cannot write the metrics log {self.log_path}: {error}. "
                    f"{checkpoints.last_good(self.directory)} Make room and run the same command "
                    "again: it resumes there."
                ) from error
        self._save(epoch + 1, finished=stopped)
        checkpoints.prune(self.directory, self._kept(epoch + 1))

    def best_epoch(self):
        return _best_epoch(self.history)

    def restore_best(self):
        path = checkpoints.path_of(self.directory, self.best_epoch() + 1)
        if not path.exists():
            raise ValueError(
                f"Invalid `keep`. Expected: 'last', since epoch {self.best_epoch() + 1}, the "
                f"best, was not kept by the run in {self.directory}. Received: keep='best'. "
                "Remove the directory and train again to keep the best."
            )
        checkpoints.restore(checkpoints.read(path), self.model, optimizer=False)

    def diverged(self, what):
        where = f"epoch {self.epoch + 1} of {self.epochs}, stage '{self.stage}'"
        return DivergedError(
            f"Training diverged in {where}. Expected: a finite loss and finite weights. "
            f"Received: {what}. {checkpoints.last_good(self.directory)} The model holds its "
            "weights again and nothing of the bad epoch was saved. Lower the learning rate, clip "
            "the gradient (`global_clipnorm=1.0`), or check images, labels and class weights; "
            "then run again to resume there, or with an empty checkpoint directory from the start."
        )

    def _check_weights(self, when):
        for variable in self.model.trainable_variables:
            if not np.isfinite(keras.ops.convert_to_numpy(variable).astype("float32")).all():
                raise self.diverged(f"nan or inf in {variable.path} {when}")

    def _save(self, epoch, finished=False):
        state = {
            "stage": self.stage,
            "finished": finished,
            "learning_rate": self.learning_rate,
            "history": self.history,
        }
        checkpoints.save(self.directory, epoch, self.model, self.callbacks, state)

    def _kept(self, epoch):
        kept = {epoch, epoch - 1}
        if self.keep == "best":
            # The best as of both: should the newest prove unreadable, the other still has its own.
            kept |= {_best_epoch(history) + 1 for history in (self.history, self.history[:-1])}
        return kept


def fit(
    model,
    train,
    *,
    epochs,
    checkpoint_dir,
    log_path=None,
    stage="train",
    validation=None,
    callbacks=(),
    keep="last",
    verbose=True,
):
    """Trains a compiled model, or goes on with the training where it was killed.

    Each epoch ends with an atomic checkpoint of the weights, the optimizer, the
    batch-normalisation statistics and the seeds of dropout; the last two are kept. Called again
    with the same arguments after a kill at any moment, it begins the interrupted epoch anew, and
    ends with the weights of an uninterrupted run up to float noise. If all epochs are done, it
    restores the model and trains nothing.

    For this the content of `train` must be a function of the epoch. A data set with an attribute
    `epoch` has it set before each epoch. For any other, the calls of `on_epoch_begin` and
    `on_epoch_end` that it missed are made up for, which serves data sets that shuffle there from
    a seed. Callbacks with methods `get_state()`, which answers a dict of arrays, and
    `set_state(dict)` are saved and restored with the model, by their place in `callbacks`.

    Args:
        model: Compiled and built Keras model.
        train: `keras.utils.PyDataset` of known length.
        epochs: Integer > 0. Epochs of the whole run, the ones already done included.
        checkpoint_dir: Path of a directory that belongs to this run and stage alone.
        log_path: Path of a `metrics.jsonl` to append one line an epoch to, or None. Stages may
            share it. Defaults to None.
        stage: String. Name of the run in the log. Defaults to `"train"`.
        validation: `keras.utils.PyDataset` evaluated after each epoch, or None.
        callbacks: Sequence of Keras callbacks. Defaults to none.
        keep: `"last"` leaves the weights of the last epoch in the model; `"best"` those of the
            epoch with the highest `val_miou`. Defaults to `"last"`.
        verbose: Whether to show progress. Defaults to True.

    Returns:
        The history: one dict an epoch of this stage, from its first epoch on, as in the log:
        `stage`, `epoch` (0-based), `loss`, `miou`, `val_loss`, `val_miou` (null where not finite;
        `val_*` only with `validation`), `learning_rate` of the first step, `seconds`.

    Raises:
        ValueError: If an argument is invalid, or the checkpoint is of another model.
        TrainingError: If the loss or a weight is nan or inf, or the disk cannot be written. The
            last good checkpoint stays, and after a nan its weights are in the model.
        KeyboardInterrupt: On Ctrl-C; the message says how to resume.

    Example:

    >>> import tempfile
    >>> from tfseg_prune import data, training
    >>> streets = data.load("streets", "train", size=(32, 48), count=2)
    >>> train = data.Batches(streets, batch_size=2, image_size=(32, 48), shuffle=True)
    >>> images = keras.Input((32, 48, 3))
    >>> model = keras.Model(images, keras.layers.Conv2D(streets.num_classes, 3, padding="same")(
    ...     keras.layers.Rescaling(1 / 255)(images)))
    >>> training.compile_segmenter(
    ...     model,
    ...     optimizer=training.optimizer("sgd", learning_rate=0.1, steps=2),
    ...     num_classes=streets.num_classes,
    ...     ignore_index=streets.ignore_index,
    ... )
    >>> with tempfile.TemporaryDirectory() as run:
    ...     history = fit(model, train, epochs=2, checkpoint_dir=run, verbose=False)
    >>> history[1]["loss"] < history[0]["loss"]
    True
    """
    callbacks = list(callbacks)
    _check_arguments(model, train, validation, epochs, keep)
    _build(model, train)
    for callback in callbacks:
        callback.set_model(model)  # some add variables to the optimizer, which checkpoints hold
    if keep == "best" and "miou" not in model.get_metrics_result():
        raise ValueError(
            "Invalid `keep`. Expected: a model compiled with a metric named 'miou' for "
            f"keep='best'. Received: metrics {sorted(model.get_metrics_result())}. "
            "Compile with `compile_segmenter`."
        )
    run = _Run(
        model,
        train,
        validation,
        callbacks,
        directory=checkpoint_dir,
        log_path=log_path,
        stage=stage,
        epochs=epochs,
        keep=keep,
    )
    if log_path is not None:
        log.rewind(log_path, stage, run.first_epoch)
    if run.finished:
        run.restore_or_save_start()
        model.optimizer.finalize_variable_values(model.trainable_variables)
    else:
        _fit(run, verbose)
    if keep == "best":
        run.restore_best()
    return run.history


def _fit(run, verbose):
    if not hasattr(run.train, "epoch"):
        for _ in range(run.first_epoch):
            run.train.on_epoch_begin()
            run.train.on_epoch_end()
    recorder = _Recorder(run)
    reporter = ProgressReporter(
        run.stage, epochs=run.epochs, initial_epoch=run.first_epoch, steps=len(run.train)
    )
    try:
        with reporter if verbose else contextlib.nullcontext():
            run.model.fit(
                run.train,
                epochs=run.epochs,
                initial_epoch=run.first_epoch,
                validation_data=run.validation,
                callbacks=[*run.callbacks, recorder, *([reporter] if verbose else [])],
                # True, Keras' default, would shuffle the batches from an unsaved global seed.
                shuffle=False,
                verbose=0,
            )
    except DivergedError:
        good = checkpoints.load(run.directory)
        if good is not None:
            checkpoints.restore(good, run.model, run.callbacks)
        raise
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"Stopped in epoch {run.epoch + 1} of {run.epochs}, stage '{run.stage}'. "
            f"{checkpoints.last_good(run.directory)} Run the same command again: it resumes there."
        ) from None


def _build(model, train):
    # On JAX, `model.fit` would build metrics from a batch of the running data loader, and with
    # several workers Keras then serves that loader's leftovers as the first batches.
    if hasattr(train, "epoch"):
        train.epoch = 0
    model._symbolic_build(data_batch=train[0])


def _check_arguments(model, train, validation, epochs, keep):
    if not getattr(model, "compiled", False) or model.optimizer is None:
        raise ValueError(
            f"Invalid model '{model.name}'. Expected: a compiled one. Received: one that was not "
            "compiled. Call `compile_segmenter(model, ...)` or `model.compile(...)` first."
        )
    for name, batches in (("train", train), ("validation", validation)):
        if batches is None and name == "validation":
            continue
        if not isinstance(batches, keras.utils.PyDataset) or batches.num_batches is None:
            raise ValueError(
                f"Invalid `{name}`. Expected: a keras.utils.PyDataset of known length. "
                f"Received: {type(batches).__name__}."
            )
        if batches.num_batches < 1:
            raise ValueError(
                f"Invalid `{name}`. Expected: at least one batch. Received: 0 batches. "
                "Check the data directory, the split and `drop_remainder`."
            )
    if not isinstance(epochs, int) or epochs < 1:
        raise ValueError(f"Invalid `epochs`. Expected: an integer >= 1. Received: {epochs!r}")
    if keep not in ("last", "best"):
        raise ValueError(f"Invalid `keep`. Expected: 'last' or 'best'. Received: {keep!r}")
    if keep == "best" and validation is None:
        raise ValueError(
            "Invalid `keep`. Expected: `validation` data for keep='best'. Received: None. "
            "Give validation data, or keep='last'."
        )


def _best_epoch(history):
    scores = [row.get("val_miou") for row in history]
    return int(np.argmax([-1.0 if score is None else score for score in scores])) if scores else -1


def _learning_rate(model):
    # None under a schedule, which the checkpoint does not hold.
    rate = model.optimizer.get_config().get("learning_rate")
    return rate if isinstance(rate, float) else None


def _finite_or_none(value):
    value = float(value)
    return value if math.isfinite(value) else None
