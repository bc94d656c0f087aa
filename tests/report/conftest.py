"""A summary, a history and strips such as a run leaves them."""

import numpy as np
import pytest

from tfseg_prune.report import strips


def _model(params, macs, miou, factor):
    iou = {"road": 0.91 * factor, "pole": 0.23 * factor, "fence": None}
    files = {
        precision: {
            "bytes": int(params * width) + 777,
            "latency_ms": {
                "p50": 41.37 * factor, "p90": 43.91 * factor, "p99": 52.83 * factor,
                "first": 77.19 * factor, "init": 12.61 * factor,
            },
            "argmax_agreement": agreement,
            "max_abs_diff": 0.00041,
            "miou": miou - 0.0017,
            "per_class_iou": iou,
        }
        for precision, width, agreement in (("float32", 4, 0.99998), ("int8", 1, 0.99513))
    }
    return {
        "params": params, "macs": macs, "miou": miou, "per_class_iou": iou,
        "pixel_accuracy": 0.9123 * factor, "epochs": 12, "train_seconds": 754.2, "tflite": files,
    }


@pytest.fixture
def summary():
    """A whole `summary.json`, of two precisions."""
    return {
        "name": "demo", "date": "2026-11-20T10:00:00+00:00", "commit": "abc1234", "seed": 7,
        "versions": {"keras": "3.15.1"}, "machine": "Some CPU, 2 cores",
        "dataset": {
            "name": "camvid", "split": "test", "images": 233, "image_size": [176, 240],
            "classes": [
                {"name": "road", "color": [128, 64, 128]},
                {"name": "pole", "color": [192, 192, 128]},
                {"name": "fence", "color": [64, 64, 128]},
            ],
        },
        "dense": _model(2_570_123, 3_214_567_890, 0.6021, 1.0),
        "pruned": _model(1_034_567, 1_603_456_789, 0.5893, 0.97),
        "ratios": {
            "macs": 0.4988, "params": 0.40254, "latency": 0.6124, "realised": 0.8145,
            "by_precision": {
                "float32": {"latency": 0.6124, "realised": 0.8145, "bytes": 0.403},
                "int8": {"latency": 0.7311, "realised": 0.6823, "bytes": 0.403},
            },
        },
        "plan": {"method": "magnitude", "criterion": "l1", "budget": {"macs": 0.5}},
        "layers": [
            {"name": f"backbone_block_{i}_expand", "before": 96 + i, "after": 48} for i in range(62)
        ],
    }


@pytest.fixture
def history():
    """Three epochs of every stage."""
    return [
        {
            "stage": stage, "epoch": epoch, "loss": 1 / (epoch + 1), "val_loss": 1.2 / (epoch + 1),
            "miou": 0.1 * epoch, "val_miou": 0.09 * epoch, "learning_rate": 0.01, "seconds": 2.5,
        }
        for stage in ("train", "control", "finetune")
        for epoch in range(3)
    ]


@pytest.fixture
def samples():
    """Two strips, the second without an answer of the pruned network."""
    rng = np.random.default_rng(0)
    label = rng.integers(0, 3, (12, 16))
    label[0] = 255
    image = rng.uniform(0, 255, (12, 16, 3))
    return [
        strips.Strip(image, label, label, label[::2, ::2], "first"),
        strips.Strip(image, label, label, None, "second"),
    ]
