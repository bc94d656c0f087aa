import doctest
import importlib

import pytest


@pytest.mark.parametrize(
    "name",
    ["compiling", "evaluate", "fit", "losses", "metrics", "optimizers", "recalibrate"],
)
def test_the_examples_of_the_docstrings_run(name):
    module = importlib.import_module(f"tfseg_prune.training.{name}")
    failed, tried = doctest.testmod(module)
    assert tried and not failed
