"""The figures of a run, with their provenance."""

import dataclasses
import datetime
import pathlib
import platform
import subprocess
from importlib import metadata

import keras

from tfseg_prune import graph
from tfseg_prune.bench import host, schema, stats
from tfseg_prune.pipeline import phases

# The control and the pruned network, in the order in which they are shown.
MODELS = ("dense", "pruned")


def summarise(store, results, config, dataset, *, command):
    """What `summary.json` holds.

    Args:
        store: `Store` of the run.
        results: {stage: what it found}.
        config: `ConfigDict` of the run.
        dataset: The test split.
        command: The command line.

    Returns:
        Plain values.
    """
    latencies = {
        (result.model.name, result.model.precision): dataclasses.asdict(result.latency_ms)
        for result in schema.load(store.path("bench.json"))
    }
    summary = {
        "name": config.name,
        **provenance(command=command, seed=config.seed),
        "dataset": {
            "name": dataset.name,
            "split": "test",
            "images": len(dataset),
            "image_size": list(config.data.image_size),
            "classes": [{"name": item.name, "color": list(item.color)} for item in dataset.classes],
        },
        "config": config.to_dict(),
    }
    for name, stages in phases.stages(config).items():
        found = dict(results[f"evaluate_{name}"])
        for key in ("epochs", "train_seconds"):
            found[key] = sum(results[stage][key] for stage in stages)
        found["tflite"] = {
            precision: {
                **results[f"export_{name}_{precision}"],
                "latency_ms": latencies[name, precision],
            }
            for precision in config.export.precisions
        }
        summary[name] = found
    dense, pruned = summary["dense"], summary["pruned"]
    by_precision = {}
    for precision, ratio in results["bench"]["ratios"].items():
        by_precision[precision] = {
            "latency": ratio["value"],
            "latency_interval": [ratio["low"], ratio["high"]],
            "realised": stats.realised_speedup(1.0, ratio["value"], dense["macs"], pruned["macs"]),
            "bytes": pruned["tflite"][precision]["bytes"] / dense["tflite"][precision]["bytes"],
        }
    first = by_precision["float32" if "float32" in by_precision else config.export.precisions[0]]
    summary["ratios"] = {
        "macs": pruned["macs"] / dense["macs"],
        "params": pruned["params"] / dense["params"],
        "latency": first["latency"],
        "realised": first["realised"],
        "by_precision": by_precision,
    }
    plan = graph.PruningPlan.load(store.path("plan.json"))
    summary["plan"] = {
        "method": plan.method,
        "criterion": plan.scores.get("criterion", plan.method),
        "budget": dict(plan.budget),
        "scores": dict(plan.scores),
        "groups": dict(plan.groups),
        "fingerprint": plan.fingerprint,
    }
    summary["layers"] = [
        {"name": name, "before": plan.widths[name], "after": len(kept)}
        for name, kept in plan.keep.items()
    ]
    return summary


def provenance(*, command, seed):
    """Where figures come from: what every result says beside them.

    Args:
        command: The command line that measured them.
        seed: Its seed.

    Returns:
        Plain values `command`, `date`, `commit`, `seed`, `versions` and `machine`.
    """
    return {
        "command": command,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "seed": seed,
        "versions": _versions(),
        "machine": f"{host.cpu_name()}, {host.device().cores} cores",
    }


def _commit():
    """The commit of the package's checkout, `None` where it is no checkout."""
    where = pathlib.Path(__file__).resolve().parents[2]
    if not (where / ".git").exists():
        return None
    try:
        found = subprocess.run(
            ["git", "-C", str(where), "describe", "--always", "--dirty", "--abbrev=12"],
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return found.stdout.strip() or None


def _versions():
    found = {"python": platform.python_version(), "keras_backend": keras.backend.backend()}
    for name in ("tfseg-prune", "keras", "tensorflow", "ai-edge-litert", "numpy"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
