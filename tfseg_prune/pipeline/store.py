"""What has been done in a working directory, so that it isn't done twice."""

import contextlib
import fcntl
import hashlib
import json
import pathlib
import shutil
import time

from tfseg_prune import atomic
from tfseg_prune.pipeline import files


class Store:
    """Remembers, for every stage, what went in, what came out and what it found.

    A stage is skipped if its inputs (settings and the content of files) are those of last time and
    its outputs are still the files that it wrote. A change of the package's own code is not
    noticed: remove the working directory to start over.

    Args:
        workdir: Folder; made if it isn't there.

    Raises:
        ValueError: If there can be no such folder.
    """

    def __init__(self, workdir):
        self.workdir = pathlib.Path(workdir)
        self._folder = self.workdir / ".stages"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(
                "The working directory can't be used. Expected: a folder to write to, or a path"
                f" where one can be made. Received: '{self.workdir}' ({error.strerror})"
            ) from error

    @contextlib.contextmanager
    def locked(self):
        """Keeps other processes out, and clears away what a killed one left half-written.

        Raises:
            ValueError: If another process works in the folder.
        """
        with open(self._folder / "lock", "w") as lock:
            try:
                # The system lifts the lock when the process ends, however it ends.
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise ValueError(
                    f"Another process is at work in '{self.workdir}'. Expected: one at a time."
                    " Remedy: wait for it, stop it, or choose another --workdir"
                ) from error
            for folder in (self.workdir, self._folder):
                for leftover in folder.glob(f"{atomic.TEMPORARY}*"):
                    shutil.rmtree(leftover, ignore_errors=True)
            yield

    def path(self, name):
        return self.workdir / name

    def key(self, settings, inputs=()):
        """Digest of plain settings and of the content of files in the working directory."""
        content = {name: files.digest(self.path(name)) for name in inputs}
        text = json.dumps([settings, content], sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def done(self, stage, key, outputs):
        """The result of a stage if it need not run again, else `None`."""
        try:
            stamp = json.loads((self._folder / f"{stage}.json").read_text())
            written = {name: files.digest(self.path(name)) for name in outputs}
            same = (stamp["key"], stamp["outputs"]) == (key, written)
            return dict(stamp["result"]) if same else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def run(self, stage, work, *, settings, inputs=(), outputs=(), say=print):
        """Runs `work(key) -> result` unless it was done, and answers its result (plain values).

        Args:
            stage: Its name.
            work: Function, or `None` where the stage must have been done.
            settings: What it depends on, as plain values.
            inputs: Names of the files in the working directory that it reads.
            outputs: Names of those that it writes.
            say: Function that tells the user what happens.

        Raises:
            ValueError: If an input isn't there, or without `work` if the stage is to be done.
        """
        missing = [name for name in inputs if not self.path(name).is_file()]
        if missing:
            raise ValueError(
                f"The stage '{stage}' can't run. Expected: {', '.join(inputs)} in"
                f" '{self.workdir}'. Received: a folder without {', '.join(missing)}. Remedy: run"
                " the stages before it, or `tfseg-prune run`, which runs all that is missing"
            )
        key = self.key(settings, inputs)
        result = self.done(stage, key, outputs)
        if work is None:
            if result is None:
                raise ValueError(
                    f"The stage '{stage}' isn't up to date in '{self.workdir}'. Expected: that it"
                    " has run with these settings and that its files are as it left them. Remedy:"
                    " run it again, or `tfseg-prune run`, which runs all that is not up to date"
                )
            return result
        if result is not None:
            say(f"{stage}: done before, nothing changed")
            return result
        say(f"{stage}: running")
        start = time.monotonic()
        result = dict(work(key) or {}, seconds=round(time.monotonic() - start, 1))
        stamp = {
            "key": key,
            "outputs": {name: files.digest(self.path(name)) for name in outputs},
            "result": result,
        }
        files.write_json(self._folder / f"{stage}.json", stamp)
        say(f"{stage}: {result['seconds']:.0f} s")
        return result
