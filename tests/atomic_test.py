import errno
import os

import pytest

from tfseg_prune import atomic


def test_a_block_that_fails_leaves_what_was_there(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")
    for error in (RuntimeError("stop"), KeyboardInterrupt(), OSError(errno.ENOSPC, "full")):
        with pytest.raises(type(error)), atomic.replacing(path) as temporary:
            temporary.write_text("half")
            raise error
        assert path.read_text() == "old" and os.listdir(tmp_path) == ["file.txt"]


def test_a_block_that_ends_well_replaces_the_file(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")
    with atomic.replacing(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new" and os.listdir(tmp_path) == ["file.txt"]


def test_others_may_read_what_was_written(tmp_path):
    atomic.write_text(tmp_path / "by_us", "text")
    (tmp_path / "by_python").write_text("text")
    ours, usual = (os.stat(tmp_path / name).st_mode for name in ("by_us", "by_python"))
    assert ours == usual
