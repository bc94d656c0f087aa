"""Measures one network for `coverage.py`, in a process of its own.

python benchmarks/coverage_row.py MobileNetV2 row.json
"""

import collections
import json
import pathlib
import re
import sys
import tempfile
import time
import warnings

import keras
import networks
import numpy as np
from keras_time import KerasTime

import tfseg_prune as tsp
from tfseg_prune.graph import proof
from tfseg_prune.graph.nodes import walk

SEED = 0
BUDGET = 0.5
# Those that are also pruned to more and to less: one of every kind.
MORE_BUDGETS = (0.3, 0.7)
MANY_BUDGETS = (
    "ConvNeXtTiny",
    "DenseNet121",
    "EfficientNetB0",
    "InceptionV3",
    "MobileNetV2",
    "ResNet50",
)
OTHER_SIZE = (160, 192)
GRAPH_REPEATS = 15
SURGERY_REPEATS = 3


def measure(name):
    """All figures of one network.

    Args:
        name: Of an architecture of keras.applications or a network of `networks.SEGMENTATION`.

    Returns:
        Plain values; what went wrong stands as `"error"` beside what was measured before.
    """
    row = {"name": name, "cases": {}}
    if name in networks.SEGMENTATION:
        cases = {"whole": networks.SEGMENTATION[name]}
    else:
        cases = {
            "with top": lambda: networks.architecture(name),
            "without top": lambda: networks.architecture(name, OTHER_SIZE),
        }
    for case, build in cases.items():
        more = name in MANY_BUDGETS and case == "with top"
        budgets = sorted((BUDGET, *MORE_BUDGETS)) if more else [BUDGET]
        row["cases"][case] = found = {"budgets": {}}
        try:
            _measure_case(name, build, budgets, found)
        except Exception as error:  # it is the figure: this network can't be pruned
            found["error"] = f"{type(error).__name__}: {error}"
        keras.backend.clear_session()
    return row


def _measure_case(name, build, budgets, found):
    start = time.perf_counter()
    model = build()
    found["build_s"] = time.perf_counter() - start
    found["input_size"] = list(model.inputs[0].shape[1:])
    found["operations"] = sum(1 for _ in walk(model))
    found["params"] = model.count_params()
    images = networks.random_images(model, name, seed=SEED)
    networks.randomise(model, images, seed=SEED)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found["graph_ms"] = _times(lambda: tsp.ChannelGraph(model), GRAPH_REPEATS, 1e3)
    found["warnings"] = sorted({str(w.message) for w in said if "No rule" in str(w.message)})
    found["prunable"] = prunable_channels(model)
    for budget in budgets:
        found["budgets"][str(budget)] = measure_pruning(model, images, budget)


def measure_pruning(model, images, budget):
    """Plain values: times, MACs, parameters and differences of one pruning of a model."""

    def make_plan():
        return tsp.plan(model, criterion="l1", budget=tsp.Budget(macs=budget))

    keras_times = []

    def shrink():
        with KerasTime() as keras_time:
            small = tsp.shrink(model, plan, check=False)
        keras_times.append(keras_time.seconds)
        return small

    found = {"plan_s": _times(make_plan, SURGERY_REPEATS)}
    plan = make_plan()
    full, reached = plan.scores["macs"]
    found["macs"] = [full, reached]
    found["budget_error"] = abs(reached - budget * full) / (budget * full)
    found["shrink_s"] = _times(shrink, SURGERY_REPEATS)
    found["keras_s"] = _summary(keras_times)
    start = time.perf_counter()
    small = tsp.shrink(model, plan)
    found["checked_shrink_s"] = time.perf_counter() - start
    recount = tsp.cost(small).macs
    if recount != reached:
        raise AssertionError(f"the plan said {reached} MACs, the smaller model has {recount}")
    found["params"] = [tsp.cost(model).params, tsp.cost(small).params]
    start = time.perf_counter()
    expected = proof.answers_of(tsp.masked_twin(model, plan), images)
    answers = proof.answers_of(small, images)
    found["twin_s"] = time.perf_counter() - start
    found["difference"] = difference(expected, answers)
    found["alive"] = min(float((np.abs(x) > 0.01 * np.abs(x).max()).mean()) for x in expected)
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/small.keras"
        start = time.perf_counter()
        small.save(path)
        loaded = keras.saving.load_model(path)
        found["save_and_load_s"] = time.perf_counter() - start
    found["loaded_difference"] = difference(answers, proof.answers_of(loaded, images))
    return found


def difference(expected, answers):
    """Largest difference over all outputs: the norm that the issue asks to state.

    For one image and one output, the largest absolute difference over the largest absolute value.
    """
    worst = 0.0
    for first, second in zip(expected, answers, strict=True):
        if first.shape != second.shape:
            raise AssertionError(f"{first.shape} became {second.shape}")
        for a, b in zip(first.astype("float64"), second.astype("float64"), strict=True):
            worst = max(worst, float(np.abs(a - b).max() / np.abs(a).max()))
    return worst


def prunable_channels(model):
    """`tsp.inspect`'s figures; how many channels each reason keeps, outputs and inputs aside."""
    found = tsp.inspect(model)
    ends = [call for call in found.calls if call.output or call.kind == "Input"]
    apart = {index for call in ends for index in call.channels}
    creating = {call.name for call in found.calls if call.creates}
    reasons = collections.Counter()
    for index, kept in enumerate(found.sets):
        if not kept.prunable and index not in apart:
            counts = [n for name, n in kept.layers.items() if name.split(":")[0] in creating]
            reasons[re.sub(r"'[^']*'", "…", kept.reason)] += sum(counts)
    return {
        "share": found.prunable_share,
        "created": found.created,
        "classifier": found.classifier,
        "from_input": found.from_input,
        "prunable": found.prunable,
        "reasons": dict(reasons.most_common(5)),
    }


def _times(function, repeats, unit=1.0):
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(unit * (time.perf_counter() - start))
    return _summary(times)


def _summary(times):
    return {"min": min(times), "median": float(np.median(times)), "first": times[0]}


if __name__ == "__main__":
    name, path = sys.argv[1:]
    pathlib.Path(path).write_text(json.dumps(measure(name)))
