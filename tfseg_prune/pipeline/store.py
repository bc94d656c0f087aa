"""What has been done in a working directory, so that it isn't done twice."""

import hashlib
import json
import pathlib
import time

from tfseg_prune.pipeline import files


class Store:
    """Remembers, for every stage, what went in, what came out and what it found.

    A stage is skipped if its inputs (settings and the content of files) are those of last time and
    its outputs are still the files that it wrote. A change of the package's own code is not
    noticed: remove the working directory to start over.

    Args:
        workdir: Folder; made if it isn't there.
    """

    def __init__(self, workdir):
        self.workdir = pathlib.Path(workdir)
        self.workdir.mkdir(parents=True, exist_ok=True)
        self._folder = self.workdir / ".stages"
        self._folder.mkdir(exist_ok=True)

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
        except (OSError, ValueError):
            return None
        return stamp["result"] if (stamp["key"], stamp["outputs"]) == (key, written) else None

    def result(self, stage):
        """What a stage found when it last ran.

        Raises:
            ValueError: If it never did.
        """
        try:
            return json.loads((self._folder / f"{stage}.json").read_text())["result"]
        except OSError as error:
            raise ValueError(
                f"The stage '{stage}' has not run in '{self.workdir}'. Remedy: run it first, or"
                " `tfseg-prune run`, which runs all"
            ) from error

    def run(self, stage, work, *, settings, inputs=(), outputs=(), say=print):
        """Runs `work(key) -> result` unless it was done, and answers its result (plain values)."""
        missing = [name for name in inputs if not self.path(name).is_file()]
        if missing:
            raise ValueError(
                f"The stage '{stage}' needs {', '.join(missing)} in '{self.workdir}', which isn't"
                " there. Remedy: run the stages before it, or `tfseg-prune run`, which runs all"
            )
        key = self.key(settings, inputs)
        result = self.done(stage, key, outputs)
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
