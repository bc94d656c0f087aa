"""Files written whole or not at all: a killed process or a full disk leaves the old one."""

import contextlib
import os
import pathlib
import shutil
import tempfile

# Prefix of the folders that hold unfinished files, beside the finished ones.
TEMPORARY = ".writing-"


@contextlib.contextmanager
def replacing(path):
    """A temporary path that takes the place of `path` if the block ends well.

    ```python
    with replacing("model.keras") as temporary:
        model.save(temporary)
    ```

    Args:
        path: Path of the file; its folder must exist.

    Raises:
        OSError: If it can't be written; what was there before is untouched.
    """
    path = pathlib.Path(path)
    folder = None
    try:
        folder = tempfile.mkdtemp(dir=path.parent, prefix=TEMPORARY)
        temporary = pathlib.Path(folder) / path.name
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise OSError(
            error.errno,
            f"'{path}' could not be written ({error.strerror or error}); what was there before is"
            " untouched. Remedy: make room or choose another folder, and try again",
        ) from error
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def write_text(path, text):
    """Writes UTF-8 text."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_bytes(path, data):
    with replacing(path) as temporary:
        temporary.write_bytes(data)
