"""Grouping gradually against grouping at once, on CamVid: ERFNet's family, trained from scratch.

python benchmarks/camvid_grouping.py --data_dir=DATA/camvid --workdir=runs/x
python benchmarks/show.py benchmarks/results/camvid_grouping.json

Each row is one training of equally many epochs, those in which connections fade included, with the
batches of its seed and ERFNet's recipe: Adam with decoupled weight decay, a poly schedule, weighted
classes. Names are the paper's: a star says that all blocks of the encoder are such, without one
they are selected; S shuffles. What is "gradual" starts as the D net, whose 1x1 convolutions of the
encoder then fade into groups: linearly, by step, alpha 0 from 65 % of the training on, unless the
row says otherwise. In the end it is shrunk to real grouped convolutions, whose parameters and MACs
must be those of the net that was grouped at once, and scored as that.

On a CPU, TensorFlow trains grouped convolutions three times slower than dense ones. By default what
is grouped at once therefore trains inside dense kernels, `--direct=embedded`: gradual convolutions
with alpha at 0 from the start, whose weights within groups are the grouped convolutions' own first
ones. Same network, same gradients, same steps up to float noise; `--direct=native` trains Keras'.

Scores are IoU on all 233 test images: their mean, and "large", their mean without poles and signs,
whose scores in images of this size are noise: all verdicts are of that. A claim "a over b" is
"shown" if a is ahead with every seed and the 90 % interval of the mean difference (Student's,
paired by seed) lies above 0; "contradicted" likewise; else, or with fewer than three seeds, "not
shown"; "not run" if no seed has both rows. Of 17 pairs without any difference, one or two would
get a verdict by chance.

An interrupted study goes on where it was when the command is given again, with the same settings
and code. Several processes may share the work if each has seeds of its own (`--seeds=0`); the
command with all seeds then writes the result. The most telling rows come first: with `--write` the
command trains nothing and writes the result of the rows that there are.
"""

import argparse
import dataclasses
import json
import pathlib

import keras
import numpy as np
import study

import tfseg_prune as tsp
from tfseg_prune import atomic
from tfseg_prune.layers.gradual_conv import GradualConv2D, group_mask
from tfseg_prune.models import erfnet_blocks
from tfseg_prune.pipeline import summary

HERE = pathlib.Path(__file__).resolve().parent
DIRECT = ("embedded", "native")


@dataclasses.dataclass(frozen=True)
class Net:
    """A network of the family and how it becomes grouped.

    Attributes:
        block: Of `tsp.models.erfnet`.
        placement: Of `tsp.models.erfnet`.
        gradual: Arguments of `tsp.GradualGrouping`, or None: grouped at once.
    """

    block: str
    placement: str = "all"
    gradual: dict | None = None

    @property
    def groups(self):
        return erfnet_blocks.SEPARABLE_BLOCKS.get(self.block, (1, False))[0]


# The most telling first.
NETS = {
    "DG4*": Net("DG4"),
    "gradual DG4*": Net("DG4", gradual={}),
    "DG2*": Net("DG2"),
    "gradual DG2*": Net("DG2", gradual={}),
    "D*": Net("D"),
    "ERFNet": Net("Non-bt-1D"),
    "DG8*": Net("DG8"),
    "DG4": Net("DG4", "selective"),
    "DG2": Net("DG2", "selective"),
    "D": Net("D", "selective"),
    "DG8": Net("DG8", "selective"),
    "DG4S*": Net("DG4S"),
    "gradual DG4S*": Net("DG4S", gradual={}),
    "gradual DG4*, by epoch": Net("DG4", gradual={"per": "epoch"}),
    "gradual DG4*, cosine": Net("DG4", gradual={"schedule": "cosine"}),
    "gradual DG4*, until 0.35": Net("DG4", gradual={"until": 0.35}),
    "gradual DG4*, until 0.9": Net("DG4", gradual={"until": 0.9}),
}
# (ahead, behind, what the paper says)
CLAIMS = (
    ("gradual DG4*", "DG4*", "grouping gradually is ahead of grouping at once"),
    ("gradual DG2*", "DG2*", "grouping gradually is ahead of grouping at once"),
    ("ERFNet", "D*", "what is larger is ahead"),
    ("D*", "DG2*", "what is larger is ahead"),
    ("DG2*", "DG4*", "what is larger is ahead"),
    ("DG4*", "DG8*", "what is larger is ahead"),
    ("D", "D*", "some blocks are ahead of all"),
    ("DG2", "DG2*", "some blocks are ahead of all"),
    ("DG4", "DG4*", "some blocks are ahead of all"),
    ("DG8", "DG8*", "some blocks are ahead of all"),
)
# (one, other, what is asked): the paper says nothing of it, or sees next to no difference.
ASKED = (
    ("DG4S*", "DG4*", "shuffled or not"),
    ("gradual DG4S*", "gradual DG4*", "shuffled or not"),
    ("gradual DG4S*", "DG4S*", "gradually or at once"),
    ("gradual DG4*", "gradual DG4*, by epoch", "by step or by epoch"),
    ("gradual DG4*", "gradual DG4*, cosine", "linear or cosine"),
    ("gradual DG4*", "gradual DG4*, until 0.35", "alpha 0 from 0.65 on or sooner"),
    ("gradual DG4*", "gradual DG4*, until 0.9", "alpha 0 from 0.65 on or later"),
)
ANSWERS = {"shown": "the first is ahead", "contradicted": "the other is ahead"}
# So small in images of this size that their scores are noise.
SMALL = ("Pole", "SignSymbol")


class Study(study.CamVid):
    """One seed: its networks and what they are worth."""

    def network(self, net, grouped=True):
        keras.utils.set_random_seed(self.seed)
        return tsp.models.erfnet(
            len(self.classes),
            (*self.options.size, 3),
            block=net.block,
            placement=net.placement,
            grouped=grouped,
        )

    def row(self, name):
        keras.backend.clear_session()
        net = NETS[name]
        final = model = self.network(net)
        gradual, callbacks = None, []
        if net.gradual is not None:
            dense = self.network(net, grouped=False)
            gradual = tsp.GradualGrouping(dense, net.groups, **net.gradual)
            callbacks = [gradual]
        elif net.groups > 1 and self.options.direct == "embedded":
            gradual = embedded(model, self.network(net, grouped=False), net.groups)
        if gradual:
            model = gradual.model
        stage = study.plain(name.replace("*", " all"))
        history = self.fit(model, self.options.epochs, self.options.rate, stage, callbacks)
        if gradual:
            model = tsp.shrink(model, gradual.plan())
        cost = tsp.cost(model)
        if cost != tsp.cost(final):
            raise ValueError(
                f"'{name}' ends as another network. Expected: that of {net}, {tsp.cost(final)}."
                f" Received: {cost}"
            )
        score = self.score(model, "test")
        large = [iou for one, iou in score["per_class_iou"].items() if one not in SMALL]
        return {
            "seed": self.seed,
            "name": name,
            "params": cost.params,
            "macs": cost.macs,
            **score,
            "large": float(np.mean(large)),
            "loss": history[-1]["loss"],
            "seconds": sum(epoch["seconds"] for epoch in history),
        }


def embedded(model, dense, groups):
    """A network whose grouped convolutions train inside dense kernels.

    Args:
        model: Network with 1x1 convolutions in `groups`, whose weights it starts with.
        dense: The network of the same layers in which these are dense.
        groups: int, at least 2.

    Returns:
        `tsp.GradualGrouping` that has faded; its `model` answers as `model` does.
    """
    faded = tsp.GradualGrouping(dense, groups)
    for layer, twin in zip(model.layers, faded.model.layers, strict=True):
        values = layer.get_weights()
        if isinstance(twin, GradualConv2D):
            mask = group_mask(*twin.kernel.shape[-2:], groups)
            values = [np.tile(values[0], (groups, 1)) * mask, *values[1:], np.zeros((), "float32")]
        twin.set_weights(values)
    return faded


def wanted(options):
    """(seed, name) of all rows, the most telling first."""
    return [(seed, name) for name in NETS for seed in options.seeds]


def compared(rows):
    """One dict per claim and question: the mean difference over the seeds and what follows."""
    values = {(row["name"], row["seed"]): row["large"] for row in rows}
    found = []
    for kind, pairs in (("claimed", CLAIMS), ("asked", ASKED)):
        for ahead, behind, says in pairs:
            apart = {
                seed: value - values[behind, seed]
                for (name, seed), value in values.items()
                if name == ahead and (behind, seed) in values
            }
            verdict = study.verdict(np.array(list(apart.values()))) if apart else "not run"
            if kind == "asked":
                verdict = ANSWERS.get(verdict, verdict)
            found.append(
                {
                    "kind": kind,
                    "pair": f"{ahead} over {behind}",
                    "says": says,
                    "mean": float(np.mean(list(apart.values()))) if apart else None,
                    "by_seed": apart,
                    "verdict": verdict,
                }
            )
    return found


def parse():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data_dir", type=pathlib.Path, required=True)
    parser.add_argument("--workdir", type=pathlib.Path, required=True)
    parser.add_argument("--seeds", type=study.numbers(int), default=(0, 1, 2))
    parser.add_argument("--size", type=study.numbers(int), default=(176, 240), help="height,width")
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--rate", type=float, default=5e-4)
    parser.add_argument("--direct", choices=DIRECT, default=DIRECT[0])
    parser.add_argument("--write", action="store_true", help="write the result, train nothing")
    parser.add_argument(
        "--out", type=pathlib.Path, default=HERE / "results" / "camvid_grouping.json"
    )
    return parser.parse_args()


def main():
    options = parse()
    options.workdir.mkdir(parents=True, exist_ok=True)
    rows = {seed: study.read_rows(options, seed) for seed in options.seeds}
    done = {(row["seed"], row["name"]) for own in rows.values() for row in own}
    todo = [key for key in wanted(options) if key not in done]
    settings = study.settings_of(options)
    del settings["write"]
    paths = ("--data_dir=DATA/camvid", "--workdir=RUN")
    command = study.command_of("camvid_grouping.py", settings, *paths)
    origin = summary.provenance(command=command, seed=options.seeds[0])
    study.hold(options.workdir, {**settings, "seeds": None, "commit": origin["commit"]})
    if not options.write:
        study.make_rows(
            options,
            rows,
            todo,
            lambda seed, name: Study(options, seed).row(name),
            lambda row: (
                f"mIoU {row['miou']:.4f}, large {row['large']:.4f}, loss {row['loss']:.4f},"
                f" {row['seconds']:.0f} s"
            ),
        )
        if len(options.seeds) < 3:
            print("The command with all seeds writes the result.")
            return
    rows = [row for own in rows.values() for row in own]
    result = {
        "kind": "grouping",
        "name": "Grouping gradually and at once on CamVid, ERFNet's family",
        **origin,
        "seeds": list(options.seeds),
        "settings": settings,
        "claims": compared(rows),
        "wanted": len(wanted(options)),
        "rows": rows,
    }
    atomic.write_text(options.out, json.dumps(result, indent=1) + "\n")
    print(f"python benchmarks/show.py {options.out} prints the table.")


if __name__ == "__main__":
    main()
