"""Times Torch-Pruning for `surgery.py`: one network per line of standard input.

Needs torch, torchvision and torch-pruning, and neither Keras nor this package.
"""

import copy
import functools
import json
import sys
import time
import warnings
from importlib import metadata

import torch
import torch_pruning
import torchvision

# The graph doesn't depend on it, and its forward pass is part of Torch-Pruning's time: the usual
# size is given also to networks that are made for larger images.
EXAMPLE_SIZE = (224, 224)
# Of the channels of every layer; about half of the MACs stay.
PRUNING_RATIO = 0.3


@functools.lru_cache(maxsize=1)
def build(name):
    options = {"init_weights": False} if name == "inception_v3" else {}
    return torchvision.models.get_model(name, weights=None, **options).eval()


def measure(name):
    """Seconds of one round on a fresh copy of the network, and what it came to."""
    example = torch.randn(1, 3, *EXAMPLE_SIZE)
    model = copy.deepcopy(build(name))
    classifier = [m for m in model.modules() if isinstance(m, torch.nn.Linear)][-1:]
    start = time.perf_counter()
    model(example)
    forward_s = time.perf_counter() - start
    start = time.perf_counter()
    graph = torch_pruning.DependencyGraph().build_dependency(model, example_inputs=example)
    build_s = time.perf_counter() - start
    groups = list(graph.get_all_groups(ignored_layers=classifier))
    graph_s = time.perf_counter() - start
    before = torch_pruning.utils.count_ops_and_params(model, example)
    start = time.perf_counter()
    pruner = torch_pruning.pruner.BasePruner(
        model,
        example,
        importance=torch_pruning.importance.MagnitudeImportance(p=1),
        pruning_ratio=PRUNING_RATIO,
        ignored_layers=classifier,
    )
    construct_s = time.perf_counter() - start
    pruner.step()
    whole_s = time.perf_counter() - start
    after = torch_pruning.utils.count_ops_and_params(model, example)
    return {
        "forward_s": forward_s,
        "build_dependency_s": build_s,
        "graph_s": graph_s,
        "construct_s": construct_s,
        "step_s": whole_s - construct_s,
        "whole_s": whole_s,
        "groups": len(groups),
        "macs": [int(before[0]), int(after[0])],
        "params": [int(before[1]), int(after[1])],
    }


def main():
    warnings.simplefilter("ignore")
    packages = ("torch", "torchvision", "torch-pruning")
    print(json.dumps({package: metadata.version(package) for package in packages}), flush=True)
    for line in sys.stdin:
        try:
            answer = measure(**json.loads(line))
        except Exception as error:  # it is the figure: this network can't be pruned
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
