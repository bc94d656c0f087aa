"""Surgery on the segmentation networks of keras-hub, random weights: DeepLabV3+ and SegFormer.

pip install keras-hub
python benchmarks/hub.py                               # about two minutes on 2 cores
python benchmarks/show.py benchmarks/results/keras_hub.json

Both hide layers inside layers of their own. `tsp.to_functional` opens those; a row says what could
be pruned before and after that, and how far the opened network's answers are from the original's.
It is then pruned to half of the MACs by the L1 norm, rebuilt with the check, saved, loaded, and
compared with its masked twin. `coverage.py` says what the figures mean; the prunable share is that
of the output channels of convolutions, dense layers and attention, the classifier and what is
coupled to inputs aside.
"""

import argparse
import importlib.metadata
import json
import pathlib
import shlex
import sys
import time
import warnings

import keras_hub
import networks
from coverage_row import SEED, difference, measure_pruning, prunable_channels
from rich.console import Console

import tfseg_prune as tsp
from tfseg_prune import atomic
from tfseg_prune.graph import proof
from tfseg_prune.pipeline import summary

HERE = pathlib.Path(__file__).parent
BUDGET = 0.5
SIZE = (512, 512, 3)
CLASSES = 21


def deeplab_v3_plus():
    """As the preset `deeplab_v3_plus_resnet50_pascalvoc`, but for the classes' number."""
    encoder = keras_hub.models.ResNetBackbone(
        input_conv_filters=[64],
        input_conv_kernel_sizes=[7],
        stackwise_num_filters=[64, 128, 256, 512],
        stackwise_num_blocks=[3, 4, 6, 3],
        stackwise_num_strides=[1, 2, 2, 2],
        block_type="bottleneck_block",
        image_shape=SIZE,
    )
    backbone = keras_hub.models.DeepLabV3Backbone(
        image_encoder=encoder,
        low_level_feature_key="P2",
        spatial_pyramid_pooling_key="P5",
        upsampling_size=8,
        dilation_rates=[6, 12, 18],
        image_shape=SIZE,
    )
    return keras_hub.models.DeepLabV3ImageSegmenter(backbone=backbone, num_classes=CLASSES)


def segformer_b0():
    """As the preset `segformer_b0_ade20k_512`, but for the classes' number."""
    encoder = keras_hub.models.MiTBackbone(
        num_layers=4,
        layerwise_depths=[2, 2, 2, 2],
        hidden_dims=[32, 64, 160, 256],
        layerwise_num_heads=[1, 2, 5, 8],
        layerwise_sr_ratios=[8, 4, 2, 1],
        layerwise_patch_sizes=[7, 3, 3, 3],
        layerwise_strides=[4, 2, 2, 2],
        max_drop_path_rate=0.1,
        image_shape=SIZE,
    )
    backbone = keras_hub.models.SegFormerBackbone(image_encoder=encoder, projection_filters=256)
    return keras_hub.models.SegFormerImageSegmenter(backbone=backbone, num_classes=CLASSES)


NETWORKS = {"DeepLabV3+ ResNet-50": deeplab_v3_plus, "SegFormer B0": segformer_b0}


def measure(name):
    """The row of one network; plain values."""
    original = NETWORKS[name]()
    images = networks.random_images(original, seed=SEED)
    networks.randomise(original, images, seed=SEED)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # which layers have no rule is one of the figures
        closed = _seen(original)
    start = time.perf_counter()
    model = tsp.to_functional(original)
    opened = _seen(model) | {"seconds": time.perf_counter() - start}
    expected, answers = proof.answers_of(original, images), proof.answers_of(model, images)
    return {
        "name": name,
        "input_size": list(SIZE),
        "params": model.count_params(),
        "closed": closed,
        "opened": opened | {"difference": difference(expected, answers)},
        "budgets": {str(BUDGET): measure_pruning(model, images, BUDGET)},
    }


def _seen(model):
    """What the graph of a model shows."""
    found = tsp.inspect(model)
    return {
        "operations": found.operations,
        "without_rule": list(found.without_rule),
        "prunable": prunable_channels(model),
    }


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=pathlib.Path, default=HERE / "results" / "keras_hub.json")
    options = parser.parse_args()
    given = [word for word in sys.argv[1:] if not word.startswith("--out")]
    command = shlex.join(["python", "benchmarks/hub.py", *given])
    origin = summary.provenance(command=command, seed=SEED)
    origin["versions"]["keras-hub"] = importlib.metadata.version("keras-hub")
    result = {
        "kind": "keras_hub",
        "name": "Surgery on the segmentation networks of keras-hub",
        **origin,
        "rows": [measure(name) for name in NETWORKS],
    }
    atomic.write_text(options.out, json.dumps(result, indent=1) + "\n")
    import tables_surgery

    tables_surgery.keras_hub(result, Console(width=None if sys.stdout.isatty() else 160))


if __name__ == "__main__":
    main()
