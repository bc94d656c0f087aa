"""Silence for C++ libraries, which print to the process' stderr whatever Python thinks of it."""

import contextlib
import io
import os
import sys


@contextlib.contextmanager
def quiet():
    """Hides what is printed to stdout by Python and to stderr by anyone, while the block runs.

    `sys.stderr` itself is not replaced, as a logger that is born meanwhile keeps hold of it.

    Example:

    >>> with quiet():
    ...     print("unheard")
    """
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        sys.stderr.flush()
        os.dup2(kept, 2)
        os.close(kept)
