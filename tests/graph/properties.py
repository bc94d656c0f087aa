"""What must hold of every model that is pruned, whatever it looks like."""

import collections
import pathlib
import tempfile
import time
import warnings

import keras
import numpy as np

from tests.graph.recount import recount
from tfseg_prune.graph import (
    ChannelGraph,
    PruningPlan,
    check_equal,
    cost,
    masked_twin,
    proof,
    shrink,
)
from tfseg_prune.graph.nodes import is_nested, walk


def random_units(graph, rng):
    """Boolean per unit: a random legal choice, unit by unit.

    A share of all units is drawn and dropped at random; what `ChannelGraph.check` then misses is
    given back, again at random.

    Args:
        graph: `ChannelGraph`.
        rng: `np.random.Generator`.
    """
    keep = ~(graph.prunable & (rng.random(graph.num_units) < rng.uniform(0.1, 0.9)))
    wanted = [*graph.producers.values()]
    for record in graph.records.values():
        wanted += [graph.unit_of[ids] for ids in record.read_sets]
    for units in wanted:
        if not keep[units].any():
            keep[rng.choice(units)] = True
    while True:
        before = keep.sum()
        for rows in graph.balanced:
            most = keep[rows].sum(axis=1).max()
            for row in rows:
                for unit in rng.permutation(row):
                    if keep[row].sum() >= most:
                        break
                    keep[unit] = True
        if keep.sum() == before:
            graph.check(keep)
            return keep


def check_pruning(model, seed):
    """Prunes a random legal subset of a model and asserts all that must hold.

    Args:
        model: Functional `keras.Model`; where its input size is open nothing is counted.
        seed: What is dropped.

    Returns:
        {fact: value} about this model, for statistics: `difference` to the twin, `effect` of the
        pruning on the answers (both relative), the share of prunable units that was `kept`,
        `seconds`, and those of `describe`.

    Raises:
        AssertionError, SurgeryError, or whatever the surgery ran into.
    """
    started = time.perf_counter()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="No rule says")
        graph = ChannelGraph(model)
    keep = random_units(graph, np.random.default_rng(seed))
    plan = PruningPlan.from_units(graph, keep)
    small = shrink(model, plan)
    twin = masked_twin(model, plan)
    difference = check_equal(twin, small)

    if all(None not in tensor.shape[1:] for tensor in model.inputs):
        planned, built = cost(model, plan), cost(small)
        # Padded MACs aside: which axis of a smaller model holds one channel, nobody can see.
        promised, found = (
            (one.macs, one.params, {k: (v.macs, v.params) for k, v in one.layers.items()})
            for one in (planned, built)
        )
        assert promised == found, f"the plan promised {planned}, the smaller model costs {built}"
        assert (built.macs, built.params) == recount(small), "the cost model counts something else"

    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "small.keras"
        small.save(path)
        keras.backend.clear_session()  # as in a new process: names are counted from 0
        saved = check_equal(small, keras.saving.load_model(path))
    assert saved == 0.0, f"after saving and loading the answers differ by {saved}"

    again = PruningPlan.from_json(plan.to_json())
    assert again == plan
    assert shrink(model, again, check=False).to_json() == small.to_json()
    return {
        "seconds": time.perf_counter() - started,
        "difference": difference,
        "effect": _effect(model, twin),
        "kept": float(keep[graph.prunable].mean()) if graph.prunable.any() else 1.0,
        **describe(model, graph),
    }


def _effect(model, twin):
    """How much the dropped channels mattered: the largest change relative to the largest answer."""
    batch = proof.random_batch(model, seed=0)
    changes = [
        np.abs(one - other).max() / max(np.abs(one).max(), np.finfo("float32").tiny)
        for before, after in zip(proof.answers_of(model, batch), proof.answers_of(twin, batch))
        for one, other in zip(before, after)
    ]
    return float(max(changes))


def describe(model, graph):
    """How large and how prunable a model is.

    Returns:
        `layers`, how many operations are called, those of nested models included; `depth`, how many
        are called in turn; `channels`, how many are produced; `prunable`, the share of them that
        can be removed; `operations`, {type: calls}.
    """
    operations = collections.Counter()
    _count(model, operations)
    prunable = np.concatenate([graph.prunable[units] for units in graph.producers.values()])
    return {
        "layers": sum(operations.values()),
        "depth": max(model._nodes_by_depth),
        "prunable": float(prunable.mean()),
        "channels": int(prunable.size),
        "operations": dict(operations),
    }


def _count(model, operations):
    for node in walk(model):
        if is_nested(node.operation):
            operations["Model"] += 1
            _count(node.operation, operations)
        else:
            operations[type(node.operation).__name__] += 1
