"""`metrics.jsonl`: one JSON object a line, one line an epoch, shared by all stages of a run."""

import json
import os
from pathlib import Path

from tfseg_prune import atomic


def append(path, row):
    """Appends one row and syncs it to the disk."""
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(row, allow_nan=False) + "\n")
        file.flush()
        os.fsync(file.fileno())


def rewind(path, stage, epoch):
    """Makes the log ready for `stage` to write `epoch` next.

    The stage's lines from `epoch` on are dropped, since those epochs are trained again, and so is
    a last line that a kill cut short.

    Args:
        path: Path of the log, which need not exist.
        stage: String.
        epoch: Integer. First epoch (0-based) that will be written again.

    Raises:
        ValueError: If the file is something else than a log.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        return
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()
    kept = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            stale = row["stage"] == stage and row["epoch"] >= epoch
        except (ValueError, KeyError, TypeError) as error:
            if number == len(lines) and not text.endswith("\n"):
                continue
            raise ValueError(
                f"Invalid metrics log {path}, line {number}. Expected: a JSON object with `stage` "
                f"and `epoch`. Received: {line[:80]!r}. Give another `log_path`."
            ) from error
        if not stale:
            kept.append(line + "\n")
    if "".join(kept) == text:
        return
    atomic.write_text(path, "".join(kept))
