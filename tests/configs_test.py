"""Every committed config is one that a run takes, and says how to start it."""

import importlib.util
import pathlib

import pytest

from tfseg_prune.pipeline.config import check_config

CONFIGS = sorted((pathlib.Path(__file__).parents[1] / "configs").glob("*.py"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_run_would_take_it(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config()
    check_config(config)
    assert config.name == path.stem
    assert f"tfseg-prune run --config=configs/{path.name}" in module.__doc__
