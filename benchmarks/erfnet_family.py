"""The tables of "Efficient Semantic Segmentation using Gradual Grouping", recounted.

python benchmarks/erfnet_family.py                     # about half a minute, nothing is trained
python benchmarks/show.py benchmarks/results/erfnet_family.json

All rows are built for 20 classes at 512x1024. The authors' ERFNet has 25,808 parameters less than
the published one that we build, so what is compared is what each row saves against ERFNet: the
parameters to the digit, and the GFLOPs as the authors count them (see `paper_flops`), up to the
rounding of the two printed figures. MACs are those of `tsp.cost`.

One row of the paper, D, contradicts its neighbours: from ERFNet's and the blocks' sizes it would
have 1,312,688 parameters and 19.803 GFLOPs. It is compared like all others, and differs.
"""

import argparse
import json
import math
import pathlib
import shlex
import sys

import keras
from keras import layers
from rich.console import Console

import tfseg_prune as tsp
from tfseg_prune import atomic, models
from tfseg_prune.pipeline import summary

HERE = pathlib.Path(__file__).parent
SIZE = (512, 1024, 3)
CLASSES = 20
SEED = 0  # of weights that no figure depends on

# Name in the paper: (options of `models.erfnet`, printed parameters, printed GFLOPs).
PRINTED = {
    "ERFNet": ({}, 2_038_448, 27.705),
    "D*": ({"block": "D"}, 547_120, 10.597),
    "DG2*": ({"block": "DG2"}, 395_568, 8.852),
    "DG4*": ({"block": "DG4"}, 319_792, 7.980),
    "DG8*": ({"block": "DG8"}, 281_904, 7.543),
    "DG2S*": ({"block": "DG2S"}, 395_568, 8.852),
    "DG4S*": ({"block": "DG4S"}, 319_792, 7.980),
    "DG8S*": ({"block": "DG8S"}, 281_904, 7.543),
    "D": ({"block": "D", "placement": "selective"}, 1_291_648, 19.025),
    "DG2": ({"block": "DG2", "placement": "selective"}, 1_238_960, 18.998),
    "DG4": ({"block": "DG4", "placement": "selective"}, 1_202_096, 18.595),
    "DG8": ({"block": "DG8", "placement": "selective"}, 1_183_664, 18.394),
    "DG2S": ({"block": "DG2S", "placement": "selective"}, 1_238_960, 18.998),
    "DG4S": ({"block": "DG4S", "placement": "selective"}, 1_202_096, 18.595),
    "DG8S": ({"block": "DG8S", "placement": "selective"}, 1_183_664, 18.394),
    "D*-proposed": ({"block": "D", "decoder": "light"}, 431_312, 5.773),
    "DG2*-proposed": ({"block": "DG2", "decoder": "light"}, 279_760, 4.029),
    "DG4*-proposed": ({"block": "DG4", "decoder": "light"}, 203_984, 3.156),
}
ROUNDING = 0.001 + 1e-9  # of the difference of two figures with three decimals


def paper_flops(model):
    """Operations as the authors count them.

    One per multiplication with its addition, transposed convolutions at the resolution that they
    answer, one per output for a bias and two for a batch normalisation.
    """
    total = 0
    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization):
            total += 2 * math.prod(layer.output.shape[1:])
        elif hasattr(layer, "kernel"):
            pixels = math.prod(layer.output.shape[1:3])
            if isinstance(layer, layers.Conv2DTranspose):  # what is cropped isn't counted
                pixels = math.prod(layer.input.shape[1:3]) * math.prod(layer.strides)
            biases = math.prod(layer.bias.shape) if layer.use_bias else 0
            total += pixels * (math.prod(layer.kernel.shape) + biases)
    return total


def count(options):
    """Figures of one network; plain values."""
    model = models.erfnet(CLASSES, SIZE, **options)
    cost = tsp.cost(model)
    found = {"params": cost.params, "macs": cost.macs, "paper_flops": paper_flops(model)}
    keras.backend.clear_session()
    return found


def compare(rows):
    """The rows with what each saves against the first, ours and as printed, and if it is equal."""
    first = rows[0]
    compared = []
    for row in rows:
        params, flops = (
            {who: first[who][key] - row[who][key] for who in ("ours", "printed")}
            for key in ("params", "paper_flops")
        )
        gflops = {who: value / 1e9 for who, value in flops.items()}
        saved = {
            "params": params | {"equal": params["ours"] == params["printed"]},
            "gflops": gflops | {"equal": abs(gflops["ours"] - gflops["printed"]) <= ROUNDING},
        }
        compared.append(row | {"saved": saved})
    return compared


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=pathlib.Path, default=HERE / "results" / "erfnet_family.json")
    options = parser.parse_args()
    given = [word for word in sys.argv[1:] if not word.startswith("--out")]
    command = shlex.join(["python", "benchmarks/erfnet_family.py", *given])
    origin = summary.provenance(command=command, seed=SEED)
    rows = [
        {
            "name": name,
            "options": options,
            "ours": count(options),
            "printed": {"params": params, "paper_flops": round(gflops * 1e9)},
        }
        for name, (options, params, gflops) in PRINTED.items()
    ]
    result = {
        "kind": "erfnet_family",
        "name": "ERFNet and its grouped family, 20 classes, 512x1024",
        **origin,
        "rows": compare(rows),
    }
    atomic.write_text(options.out, json.dumps(result, indent=1) + "\n")
    import tables_surgery

    tables_surgery.erfnet_family(result, Console(width=None if sys.stdout.isatty() else 160))


if __name__ == "__main__":
    main()
