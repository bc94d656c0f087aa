"""Times this package for `surgery.py`: one network per line of standard input."""

import json
import sys
import time

import keras
import networks
from keras_time import KerasTime

import tfseg_prune as tsp

BUDGET = 0.5


def measure(name):
    """Seconds of one round on a newly built network, and what it came to."""
    model = networks.architecture(name)
    start = time.perf_counter()
    groups = tsp.ChannelGraph(model).groups
    graph_s = time.perf_counter() - start
    start = time.perf_counter()
    plan = tsp.plan(model, criterion="l1", budget=tsp.Budget(macs=BUDGET))
    plan_s = time.perf_counter() - start
    with KerasTime() as keras_time:
        start = time.perf_counter()
        tsp.shrink(model, plan, check=False)
        shrink_s = time.perf_counter() - start
    start = time.perf_counter()
    tsp.shrink(model, plan)
    checked_s = time.perf_counter() - start
    return {
        "graph_s": graph_s,
        "plan_s": plan_s,
        "shrink_s": shrink_s,
        "keras_s": keras_time.seconds,
        "whole_s": plan_s + shrink_s,
        "whole_without_keras_s": plan_s + shrink_s - keras_time.seconds,
        "whole_checked_s": plan_s + checked_s,
        "groups": len(groups),
        "macs": plan.scores["macs"],
        "params": plan.scores["params"],
        "input_size": list(model.inputs[0].shape[1:3]),
    }


def main():
    print(json.dumps({}), flush=True)
    for line in sys.stdin:
        try:
            answer = measure(**json.loads(line))
        except Exception as error:  # it is the figure: this network can't be pruned
            answer = {"error": f"{type(error).__name__}: {error}"}
        keras.backend.clear_session()
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
