"""Times graph, plan and shrink side by side with Torch-Pruning, on 12 architectures that both have.

python benchmarks/surgery.py --torch-python=VENV/bin/python

Torch-Pruning is needed by this benchmark alone: `pip install torch torchvision torch-pruning`, best
in an environment of its own, whose interpreter `--torch-python` names. Each library lives in a
process of its own with one thread; they take turns, network by network and round by round, each
round on a new network. (Surgery is no faster with more threads, and those of torch wait by
spinning: with them Torch-Pruning is many times slower as soon as anything else runs.) The result is
the least and the median of the rounds, and ratios of both.

The two cut the work differently, so the phases hold:

- graph: which channels belong together. Ours: `ChannelGraph(model).groups`. Theirs:
  `DependencyGraph().build_dependency(model, example)`, which runs the network once (the time of a
  forward pass is given apart), and `get_all_groups()`.
- whole: from the network to the smaller network, by the L1 norm. Ours: `tsp.plan` (graph, scores,
  the search for exactly half of the MACs) and `tsp.shrink(check=False)`, which constructs new Keras
  layers; also without Keras' own layer construction, and with the check that the smaller network
  answers as it must. Theirs: the pruner's constructor (graph) and `.step()`, which scores and cuts
  the network in place, a fixed 30 % of the channels of every layer, which is about half of the
  MACs; it has no budget to search for and no check.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from tfseg_prune import atomic
from tfseg_prune.pipeline import summary

HERE = pathlib.Path(__file__).parent
# Names in keras.applications and in torchvision.models.
NETWORKS = {
    "VGG16": "vgg16",
    "ResNet50": "resnet50",
    "ResNet101": "resnet101",
    "DenseNet121": "densenet121",
    "DenseNet201": "densenet201",
    "MobileNetV2": "mobilenet_v2",
    "MobileNetV3Large": "mobilenet_v3_large",
    "EfficientNetB0": "efficientnet_b0",
    "EfficientNetB7": "efficientnet_b7",
    "EfficientNetV2S": "efficientnet_v2_s",
    "InceptionV3": "inception_v3",
    "ConvNeXtTiny": "convnext_tiny",
}
ONE_THREAD = {"OMP_NUM_THREADS": "1", "TF_NUM_INTRAOP_THREADS": "1"}
# {ratio: (their phase, our phase)}; above 1 ours is faster.
RATIOS = {
    "graph": ("graph_s", "graph_s"),
    "whole": ("whole_s", "whole_s"),
    "whole_without_keras": ("whole_s", "whole_without_keras_s"),
    "whole_checked": ("whole_s", "whole_checked_s"),
}


class Worker:
    """A process that measures one network per request: lines of JSON in and out."""

    def __init__(self, python, script):
        self._command = [python, str(HERE / script)]
        self._start()

    def _start(self):
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | ONE_THREAD,
        )
        self.versions = json.loads(self._process.stdout.readline() or "null")
        if self.versions is None:
            sys.exit(f"{' '.join(self._command)} doesn't start; what it said stands above.")

    def ask(self, **request):
        """The figures of one round, or `{"error": ...}`."""
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            status = self._process.wait()
            self._start()
            return {"error": f"the process died with status {status}"}
        return json.loads(answer)

    def close(self):
        self._process.stdin.close()
        self._process.wait()


def summarise(rounds):
    """{figure: {"min", "median"} over the rounds}; what is no time is the last round's."""
    if "error" in rounds[-1]:
        return rounds[-1]
    summarised = {}
    for key, value in rounds[-1].items():
        if key.endswith("_s"):
            values = [figures[key] for figures in rounds]
            value = {"min": min(values), "median": statistics.median(values)}
        summarised[key] = value
    return summarised


def ratios(ours, theirs):
    """{name: {"min", "median"}}: how many times as long theirs takes; `None` where one failed."""
    if "error" in ours or "error" in theirs:
        return None
    return {
        name: {of: theirs[their][of] / ours[our][of] for of in ("min", "median")}
        for name, (their, our) in RATIOS.items()
    }


def compare(name, keras, torch, rounds):
    """One row: both libraries on one network, taking turns."""
    ours, theirs = [], []
    for _ in range(rounds):
        ours.append(keras.ask(name=name))
        theirs.append(torch.ask(name=NETWORKS[name]))
        if "error" in ours[-1] or "error" in theirs[-1]:
            break
    ours, theirs = summarise(ours), summarise(theirs)
    return {"name": name, "ours": ours, "theirs": theirs, "ratios": ratios(ours, theirs)}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--torch-python", default=sys.executable)
    parser.add_argument("--only", default=",".join(NETWORKS), help="names, separated by commas")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=pathlib.Path, default=HERE / "results" / "surgery.json")
    options = parser.parse_args()
    names = options.only.split(",")
    unknown = sorted(set(names) - set(NETWORKS))
    if unknown:
        parser.error(f"unknown networks {unknown}. Expected: some of {', '.join(NETWORKS)}")
    keras = Worker(sys.executable, "surgery_keras.py")
    torch = Worker(options.torch_python, "surgery_torch.py")
    # The interpreter's own path says nothing to others.
    command = f"python benchmarks/surgery.py --torch-python=python --rounds={options.rounds}"
    if names != list(NETWORKS):
        command += f" --only={options.only}"
    result = {
        "kind": "surgery",
        "name": "Surgery beside Torch-Pruning",
        **summary.provenance(command=command, seed=0),
        "rounds": options.rounds,
        "rows": [],
    }
    result["versions"] |= torch.versions
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeRemainingColumn()) as progress:
        task = progress.add_task("", total=len(names))
        for name in names:
            progress.update(task, description=name)
            row = compare(name, keras, torch, options.rounds)
            result["rows"].append(row)
            progress.console.print(name, row["ratios"] or (row["ours"], row["theirs"]))
            progress.advance(task)
    for worker in (keras, torch):
        worker.close()
    atomic.write_text(options.out, json.dumps(result, indent=1) + "\n")
    print(f"python benchmarks/show.py {options.out} prints the table.")


if __name__ == "__main__":
    main()
