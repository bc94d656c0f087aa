"""Every committed config is one that a run takes, and says how to start it."""

import importlib.util
import pathlib

import numpy as np
import pytest

import tfseg_prune as tsp
from tests.pipeline import tiny
from tfseg_prune import models
from tfseg_prune.layers.gradual_conv import GradualConv2D
from tfseg_prune.pipeline import rounds
from tfseg_prune.pipeline.config import check_config

CONFIGS = sorted((pathlib.Path(__file__).parents[1] / "configs").glob("*.py"))
SIZE = (32, 32, 3)


def by_name(paths):
    return pytest.mark.parametrize("path", paths, ids=lambda path: path.stem)


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@by_name(CONFIGS)
def test_a_run_would_take_it(path):
    module = load(path)
    config = module.get_config()
    check_config(config)
    assert config.name == path.stem
    assert f"tfseg-prune run --config=configs/{path.name}" in module.__doc__


@by_name([path for path in CONFIGS if "erfnet" in path.stem])
def test_what_fades_is_the_grouped_network_of_the_paper(path):
    """The encoder by which it is planned, and the whole network that takes plan and weights."""
    config = load(path).get_config()
    options = config.model.options.to_dict()
    whole = models.erfnet(11, SIZE, **options)
    parts = {name: value for name, value in options.items() if name != "decoder"}
    head = "classification" if config.pretrain.fade == "classification" else "segmentation"
    encoder = models.erfnet_encoder(11, SIZE, head=head, **parts)
    pruner = rounds.pruner(encoder, config.pruning, None, seed=0)
    for layer in pruner.model.layers:
        if isinstance(layer, GradualConv2D):
            layer.alpha.assign(0.0)
    plan = pruner.plan()
    graph = tsp.ChannelGraph(whole)
    everything = np.ones(graph.num_units, bool)
    of_whole = tsp.PruningPlan.from_units(graph, everything, groups=plan.groups)
    small = tsp.shrink(whole, of_whole, check=False)
    models.copy_weights(tsp.shrink(pruner.model, plan, check=False), small)
    twin = models.erfnet(11, SIZE, **{**options, "block": "DG4"})
    assert [w.shape for w in small.weights] == [w.shape for w in twin.weights]


@pytest.mark.parametrize(
    "options, words",
    [
        ({"block": "DG44"}, "Invalid `block`.*'DG44'"),
        ({"blok": "DG4"}, "model.options don't fit 'erfnet'.*blok"),
        ({"decoder": "lite"}, "Invalid `decoder`.*'lite'"),
    ],
)
def test_options_that_no_network_has_are_found_before_training(tmp_path, options, words):
    config = tiny.config("")
    config.model.path, config.model.name = "", "erfnet"
    config.model.options.update(options)
    with pytest.raises(ValueError, match=words):
        tiny.start(config, tmp_path, "train")
    assert not (tmp_path / "checkpoints").exists()
