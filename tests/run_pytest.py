"""Runs pytest on its arguments; fails when a test fails and when no test ran."""

import os
import sys

import pytest

if __name__ == "__main__":
    # Bazel's own file for results, and its `--test_filter`.
    report = os.environ.get("XML_OUTPUT_FILE")
    chosen = os.environ.get("TESTBRIDGE_TEST_ONLY")
    options = ["-p", "no:cacheprovider"]
    options += [f"--junitxml={report}"] if report else []
    options += ["-k", chosen] if chosen else []
    sys.exit(pytest.main([*options, *sys.argv[1:]]))
