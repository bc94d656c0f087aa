"""Compares what decides about channels, on CamVid: SIRFP, its ablations and the usual criteria.

python benchmarks/camvid_criteria.py --data_dir=DATA/camvid --weights=WEIGHTS.npz --workdir=runs/x

For each seed, DeepLabV3+ with MobileNetV2 is trained (the base). It then trains on for some epochs
while the gradients are collected, and all criteria but SIRFP score that network; each variant of
SIRFP watches epochs of its own, from the same base with the same batches. Each plan meets its
budget, with one threshold for the backbone and one for the decoder ("layer": the same fraction of
every layer), and at least a tenth of every layer stays. Coupled scores count by their mean, with
SIRFP by their maximum, as in the paper; its two rounds are one here. Batch statistics are set anew,
and every smaller network is fine-tuned equally long at the same rate. The control is the dense
network that trained as long in all.

Scores are IoU on all 233 test images: their mean, and the mean of the thin classes (pole, sign,
pedestrian). A claim "a over b" is "shown" if a is ahead with every seed and the 90 % interval of
the mean difference (Student's, paired by seed) lies above 0; "contradicted" likewise; else, or with
fewer than three seeds, "not shown". Of many claims without substance one in ten would get a verdict
by chance.

An interrupted run goes on where it was when the command is given again, with the same settings and
code. Several processes may share the work if each has seeds of its own (`--seeds=0`); the command
with all seeds then writes the result.
"""

import argparse
import json
import pathlib
import time

import keras
import numpy as np
import study

import tfseg_prune as tsp
from tfseg_prune import atomic, training
from tfseg_prune.pipeline import files, summary

HERE = pathlib.Path(__file__).resolve().parent

# Name -> arguments of `tsp.SIRFP`, or of `tsp.plan`. "sirfp" is the released code. Its second
# version has gradients that mixed precision scaled by up to 65536, so that they alone rank.
RELEASED = {"metric": "official", "prior": "edge"}
SIRFP = {
    "sirfp": RELEASED,
    "sirfp, R only": {"metric": "official"},
    "sirfp, gradient prior": {"metric": "official", "prior": "gradient", "prior_weight": 26214.4},
    "sirfp, pooled": {**RELEASED, "pooled": True},
    "sirfp, scale-free": {"metric": "cosine"},
    "sirfp, centred": {"metric": "correlation"},
}
CRITERIA = {
    "fpgm": {"criterion": "fpgm"},
    "taylor": {"criterion": "taylor"},
    "l1": {"criterion": "l1"},
    "bn_gamma": {"criterion": "bn_gamma"},
    "random": {"criterion": "random"},
    "dcfp": {"criterion": "dcfp"},
    "fpgm, layer": {"criterion": "fpgm", "ranking": "layer"},
    "l1, layer": {"criterion": "l1", "ranking": "layer"},
}
MAIN = ("sirfp", "fpgm", "taylor", "l1", "bn_gamma", "random")
ABLATED = 0.6  # the fraction of the MACs that the others are compared at
# (ahead, behind, what it says) at every fraction that both have.
CLAIMS = (
    *(("sirfp", other, "SIRFP is ahead of the criterion") for other in MAIN[1:]),
    ("sirfp", "dcfp", "SIRFP is ahead of the criterion"),
    ("sirfp", "sirfp, pooled", "where things are matters"),
    ("sirfp", "sirfp, R only", "the edge prior helps"),
    ("sirfp, gradient prior", "sirfp, R only", "the gradient prior helps"),
    ("sirfp, scale-free", "sirfp, R only", "scale-free likeness is better"),
    ("sirfp, centred", "sirfp, scale-free", "what all pixels share does not count"),
)


class Study(study.CamVid):
    """One seed: its networks and what they are worth."""

    def base(self):
        path = self.folder / "base.keras"
        if not path.exists():
            keras.utils.set_random_seed(self.seed)
            model = tsp.models.deeplab_v3_plus(
                len(self.classes), (*self.options.size, 3), weights=str(self.options.weights)
            )
            self.fit(model, self.options.epochs, self.options.rate, "base")
            files.save_model(model, path)
        return files.load_model(path)

    def observe(self, name):
        """Path of the network that a variant of SIRFP, or "criteria", saw; makes the plans, too."""
        path = self.folder / f"observed_{study.plain(name)}.keras"
        if path.exists():
            return path
        self.base()
        # Before loading, which draws the seeds of dropout.
        keras.utils.set_random_seed(100 + self.seed)
        model = self.base()
        if name == "criteria":
            pruner, trained = tsp.Gradients(model), model
        else:
            options = {"budget": tsp.Budget(macs=0.5), "floor": self.options.floor}
            pruner = tsp.SIRFP(model, **options, **SIRFP[name])
            trained = pruner.model
        stage = f"observe_{study.plain(name)}"
        self.fit(trained, self.options.observe, self.options.observe_rate, stage, [pruner])
        for removed in self.options.removed:
            budget = tsp.Budget(macs=1.0 - removed)
            if name != "criteria":
                pruner.plan(budget).save(self.plan_path(name, removed))
                continue
            for method, chosen in CRITERIA.items():
                options = {"ranking": "scope", "floor": self.options.floor, **chosen}
                plan = tsp.plan(model, budget=budget, gradients=pruner, seed=self.seed, **options)
                plan.save(self.plan_path(method, removed))
        files.save_model(model, path)  # last, so that what exists is whole
        keras.backend.clear_session()
        return path

    def plan_path(self, method, removed):
        return self.folder / f"plan_{study.plain(method)}_{removed}.json"

    def row(self, method, removed):
        """The row of one smaller network, or of the control (`method="dense"`)."""
        keras.backend.clear_session()
        path = self.observe(method if method in SIRFP else "criteria")
        keras.utils.set_random_seed(200 + self.seed)
        model = files.load_model(path)
        whole = tsp.cost(model)
        start = time.monotonic()
        if method != "dense":
            model = tsp.shrink(model, tsp.PruningPlan.load(self.plan_path(method, removed)))
            training.recalibrate(model, self.batches("train"), steps=self.options.recalibrate)
        cost = tsp.cost(model)
        name = f"{study.plain(method)}_{removed}"
        self.fit(model, self.options.finetune, self.options.finetune_rate, name)
        return {
            "seed": self.seed,
            "method": method,
            "removed": removed,
            "macs": cost.macs / whole.macs,
            "params": cost.params / whole.params,
            **self.score(model, "test"),
            "seconds": time.monotonic() - start,
        }


def wanted(options):
    """(seed, method, fraction of the MACs that goes) of all rows, the most telling first."""
    first = [ABLATED] if ABLATED in options.removed else []
    others = [removed for removed in reversed(options.removed) if removed not in first]
    methods = [("dense", 0.0), *((method, removed) for removed in first for method in MAIN)]
    methods += [(method, removed) for removed in first for method in SIRFP if method not in MAIN]
    methods += [(method, removed) for removed in others for method in MAIN]
    methods += [(method, removed) for removed in first for method in CRITERIA if method not in MAIN]
    return [(seed, method, removed) for seed in options.seeds for method, removed in methods]


def claims(rows, score):
    """One dict per claim and fraction: the mean difference over the seeds and the verdict."""
    values = {(row["method"], row["removed"], row["seed"]): row[score] for row in rows}
    found = []
    for ahead, behind, says in CLAIMS:
        for removed in sorted({row["removed"] for row in rows}):
            apart = [
                value - values[behind, removed, seed]
                for (method, where, seed), value in values.items()
                if (method, where) == (ahead, removed) and (behind, removed, seed) in values
            ]
            if apart:
                verdict = study.verdict(np.array(apart))
                found.append(
                    {
                        "claim": f"{ahead} over {behind}",
                        "says": says,
                        "removed": removed,
                        "score": score,
                        "mean": float(np.mean(apart)),
                        "seeds": len(apart),
                        "verdict": verdict,
                    }
                )
    return found


def parse():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data_dir", type=pathlib.Path, required=True)
    parser.add_argument("--weights", type=pathlib.Path, required=True, help="ImageNet MobileNetV2")
    parser.add_argument("--workdir", type=pathlib.Path, required=True)
    parser.add_argument("--seeds", type=study.numbers(int), default=(0, 1, 2))
    parser.add_argument("--removed", type=study.numbers(float), default=(0.4, 0.6, 0.8))
    parser.add_argument("--size", type=study.numbers(int), default=(176, 240), help="height,width")
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=20, help="of the base")
    parser.add_argument("--rate", type=float, default=7e-4)
    parser.add_argument("--observe", type=int, default=2, help="epochs of observation")
    parser.add_argument("--observe_rate", type=float, default=1e-4)
    parser.add_argument("--finetune", type=int, default=8, help="epochs after pruning")
    parser.add_argument("--finetune_rate", type=float, default=5e-4)
    parser.add_argument("--recalibrate", type=int, default=20)
    parser.add_argument("--floor", type=float, default=0.1)
    parser.add_argument(
        "--out", type=pathlib.Path, default=HERE / "results" / "camvid_criteria.json"
    )
    return parser.parse_args()


def main():
    options = parse()
    options.workdir.mkdir(parents=True, exist_ok=True)
    rows = {seed: study.read_rows(options, seed) for seed in options.seeds}
    done = {(row["seed"], row["method"], row["removed"]) for own in rows.values() for row in own}
    todo = [key for key in wanted(options) if key not in done]
    settings = study.settings_of(options)
    command = study.command_of(
        "camvid_criteria.py",
        settings,
        *("--data_dir=DATA/camvid", "--weights=WEIGHTS.npz", "--workdir=RUN"),
    )
    origin = summary.provenance(command=command, seed=options.seeds[0])
    study.hold(options.workdir, {**settings, "seeds": None, "commit": origin["commit"]})
    study.make_rows(
        options,
        rows,
        todo,
        lambda seed, *what: Study(options, seed).row(*what),
        lambda row: (
            f"MACs {row['macs']:.3f}, mIoU {row['miou']:.4f}, thin {row['thin']:.4f},"
            f" {row['seconds']:.0f} s"
        ),
    )
    rows = [row for own in rows.values() for row in own]
    if len(options.seeds) < 3:
        print("The command with all seeds writes the result.")
        return
    result = {
        "kind": "criteria",
        "name": "Criteria on CamVid, DeepLabV3+ with MobileNetV2",
        **origin,
        "seeds": list(options.seeds),
        "settings": settings,
        "claims": [claim for score in ("miou", "thin") for claim in claims(rows, score)],
        "rows": rows,
    }
    atomic.write_text(options.out, json.dumps(result, indent=1) + "\n")
    print(f"python benchmarks/show.py {options.out} prints the table.")


if __name__ == "__main__":
    main()
