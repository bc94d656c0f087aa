"""Committed results say where they come from and can be shown; the limits judge as they say."""

import copy
import importlib.util
import itertools
import json
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest
from keras import layers

import tfseg_prune as tsp

HERE = pathlib.Path(__file__).parents[1] / "benchmarks"
RESULTS = sorted((HERE / "results").glob("*.json"))

BUDGET = {
    "macs": [1_000_000, 500_000],
    "budget_error": 0.0,
    "plan_s": {"median": 0.1},
    "shrink_s": {"median": 3.0},
    "keras_s": {"median": 2.5},
    "difference": 1e-6,
    "loaded_difference": 0.0,
}
CASE = {
    "graph_ms": {"median": 10.0},
    "prunable": {"share": 0.9, "reasons": {"mixed by LayerNormalization": 5}},
    "budgets": {"0.5": BUDGET},
}


@pytest.fixture
def scripts(monkeypatch):
    monkeypatch.syspath_prepend(str(HERE))


@pytest.fixture
def coverage(scripts):
    # Not by `import`: the package that measures how much of the code tests run has its name.
    spec = importlib.util.spec_from_file_location("coverage_of_networks", HERE / "coverage.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_results_say_where_they_come_from(path):
    result = json.loads(path.read_text())
    for key in ("command", "commit", "versions", "machine", "date"):
        assert result[key], key
    assert isinstance(result["seed"], int)
    assert not result["commit"].endswith("-dirty"), "no commit holds the code that was measured"


def test_one_command_prints_every_result():
    command = [sys.executable, str(HERE / "show.py"), *map(str, RESULTS)]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    for path in RESULTS:
        assert json.loads(path.read_text())["date"] in out, path.name


@pytest.mark.parametrize(
    "where, value, limit",
    [
        (("graph_ms", "median"), 26.0, "graph_ms"),
        (("budgets", "0.5", "shrink_s", "median"), 4.6, "surgery_s"),
        (("budgets", "0.5", "budget_error"), 0.011, "budget_error"),
        (("budgets", "0.5", "difference"), 1.1e-5, "difference"),
        (("budgets", "0.5", "loaded_difference"), 1e-9, "loaded_difference"),
    ],
)
def test_a_row_misses_a_limit_if_any_of_its_cases_does(coverage, where, value, limit):
    row = {"name": "VGG16", "cases": {"with top": CASE, "without top": copy.deepcopy(CASE)}}
    assert all(coverage.judge(row)["passes"].values())
    *path, last = where
    figures = row["cases"]["without top"]
    for key in path:
        figures = figures[key]
    figures[last] = value
    passes = coverage.judge(row)["passes"]
    assert [key for key, met in passes.items() if not met] == [limit]


def test_only_segmentation_networks_have_a_limit_on_what_is_prunable(coverage):
    judged = coverage.judge({"name": "UNet", "cases": {"whole": CASE}})
    assert not judged["passes"]["prunable"]
    assert "prunable" not in coverage.judge({"name": "VGG16", "cases": {"x": CASE}})["passes"]


def test_an_error_anywhere_fails_the_row(coverage):
    row = {"name": "VGG16", "cases": {"with top": CASE, "without top": {"error": "no rule"}}}
    assert coverage.judge(row)["error"] == "no rule"


def small_network():
    i = keras.Input((16, 16, 3))
    x = layers.BatchNormalization()(layers.Conv2D(6, 3)(i))
    x = layers.GlobalAveragePooling2D()(layers.ReLU()(x))
    return keras.Model(i, layers.Dense(5, activation="softmax")(x))


def test_random_weights_hide_nothing(scripts):
    import networks

    model = small_network()
    images = networks.random_images(model)
    networks.randomise(model, images)
    for variable in model.variables:
        assert np.std(variable) > 1e-3, variable.path
    answers = np.asarray(model(images, training=False))
    assert 0.1 < np.log(answers).std() < 3


def test_the_time_of_keras_is_that_of_construction_and_leaves_keras_as_it_was(scripts, monkeypatch):
    import keras_time

    # A clock that goes on by one whenever it is read counts what is timed.
    clock = itertools.count()
    monkeypatch.setattr(keras_time.time, "perf_counter", lambda: next(clock))
    before = layers.Layer.__call__, layers.Layer.__new__
    model = small_network()
    config = model.layers[-1].get_config()
    with keras_time.KerasTime() as timed:
        layer = layers.Dense.from_config(config)
        assert timed.seconds == 1, "what is constructed inside is not counted again"
        layer(model.layers[-2].output)
        assert timed.seconds == 2
        model(np.zeros((1, 16, 16, 3), "float32"))
        assert timed.seconds == 2, "calls on values are no construction"
        keras.Model(model.inputs, model.outputs)
        assert timed.seconds > 2
    assert before == (layers.Layer.__call__, layers.Layer.__new__)


def test_a_random_graph_that_ends_its_process_is_one_failure(scripts, monkeypatch, tmp_path):
    import random_graphs

    worker = tmp_path / "worker.py"
    worker.write_text(
        "import os, sys\n"
        "for seed in sys.argv[-1].split(','):\n"
        "    if seed == '2': os._exit(3)\n"
        "    print('row: {\"seed\": %s}' % seed, flush=True)\n"
    )
    monkeypatch.setattr(random_graphs, "__file__", str(worker))
    rows = []
    random_graphs.Workers(2, rows.append).check([1, 2, 3])
    assert sorted(rows, key=lambda row: row["seed"]) == [
        {"seed": 1},
        {"seed": 2, "error": "ended the process with 3"},
        {"seed": 3},
    ]


def test_a_run_on_random_graphs_goes_on_with_the_rows_of_the_same_code(scripts, tmp_path):
    import random_graphs

    path = tmp_path / "random_graphs.rows"
    random_graphs.Rows(path, "old code").add({"seed": 1})
    random_graphs.Rows(path, "code").add({"seed": 2})
    random_graphs.Rows(path, "code").add({"seed": 3})
    assert list(random_graphs.Rows(path, "code").rows) == [2, 3]


def test_failures_of_random_graphs_are_kept_in_full(scripts):
    import random_graphs

    passed = dict.fromkeys(random_graphs.MEASURED, 0.5) | {"operations": {"Add": 2}}
    failed = {"seed": 7, "error": "wrong", "recipe": {"steps": []}}
    found = random_graphs.summarised([passed, passed, failed])
    assert (found["graphs"], found["passed"], found["failures"]) == (3, 2, [failed])
    assert found["operations"] == {"Add": {"calls": 4, "graphs": 2}}


@pytest.mark.parametrize(
    "params, gflops, equal",
    [(40, 3.0, (True, True)), (40, 3.001, (True, True)), (41, 3.0015, (False, False))],
)
def test_a_row_of_the_family_saves_what_the_papers_does(scripts, params, gflops, equal):
    """However far both are from each other in all."""
    import erfnet_family

    def row(params, gflops):
        return {"params": params, "paper_flops": round(gflops * 1e9)}

    rows = [
        {"ours": row(110, 10.5), "printed": row(100, 10.0)},
        {"ours": row(110 - params, 10.5 - gflops), "printed": row(60, 7.0)},
    ]
    saved = erfnet_family.compare(rows)[1]["saved"]
    assert (saved["params"]["equal"], saved["gflops"]["equal"]) == equal


def test_files_are_timed_against_the_first_and_split_ones_against_grouped(scripts):
    import grouped_export

    names = [("ERFNet", None, 400), ("DG2*", "grouped", 100), ("DG2*", "split", 100)]
    rows = [
        {"name": name, "lowering": way, "macs": macs, "path": str(i)}
        for i, (name, way, macs) in enumerate(names)
    ]
    results = {str(i): timed_result(ms) for i, ms in enumerate((8.0, 2.0, 4.0))}
    found = grouped_export.timed(rows, results)
    assert "ratio" not in found[0] and "path" not in found[0]
    assert [row["ratio"]["value"] for row in found[1:]] == [0.25, 0.5]
    assert [row["realised"] for row in found[1:]] == [1.0, 0.5]
    assert found[2]["to_grouped"]["value"] == 2.0 and "to_grouped" not in found[1]


def test_the_exponent_of_a_power_law_is_found(scripts):
    import redundancy

    sizes = [2, 4, 8, 64]
    assert redundancy.exponent(sizes, [3 * size**1.7 for size in sizes]) == pytest.approx(1.7)
    assert redundancy.exponent([4, 4], [1, 2]) is None


def test_sums_taken_anew_let_channels_fall_in_the_same_order(scripts):
    import redundancy

    row = redundancy.elimination(24, rounds=1)
    assert row["same_order"] and row["ratio"] > 0 and row["matrix_mib"] == 24 * 24 * 8 / 2**20
    matrix = redundancy.likenesses(24, np.random.default_rng(1))
    before = matrix.copy()
    assert sorted(redundancy.resummed(matrix)) == list(range(24))
    np.testing.assert_array_equal(matrix, before)


def test_growth_is_that_of_rows_that_differ_in_one_size(scripts):
    import redundancy

    def looked(channels, side, images, seconds):
        found = {"median": seconds}
        size = {"channels": channels, "side": side, "images": images}
        return size | {"full": found, "sampled": found}

    maps = [looked(8, 9, 2, 1.0), looked(16, 9, 2, 4.0), looked(8, 18, 2, 2.0)]
    found = redundancy.growth({"elimination": [], "metric": maps})
    assert found["metric_full_by_channels"] == pytest.approx(2)
    assert found["metric_sampled_by_side"] == pytest.approx(1)
    assert found["metric_full_by_images"] is None and found["elimination_seconds"] is None


def test_a_claim_needs_all_seeds_and_an_interval(scripts):
    import camvid_criteria as study

    def verdict(*apart):
        rows = [
            {"method": method, "removed": 0.6, "seed": seed, "miou": 0.5 + value * ahead}
            for seed, value in enumerate(apart)
            for method, ahead in (("sirfp", 1), ("random", 0))
        ]
        (claim,) = study.claims(rows, "miou")
        assert claim["mean"] == pytest.approx(np.mean(apart)) and claim["seeds"] == len(apart)
        return claim["verdict"]

    assert verdict(0.01, 0.012, 0.011) == "shown"
    assert verdict(-0.01, -0.012, -0.011) == "contradicted"
    assert verdict(0.01, 0.012, -0.001) == "not shown"
    assert verdict(0.001, 0.05, 0.002) == "not shown", "ahead always, but by chance alone"
    assert verdict(0.01, 0.012) == "not shown", "two seeds"


def test_the_study_compares_everything_once(scripts):
    import argparse

    import camvid_criteria as study

    options = argparse.Namespace(seeds=(0, 1), removed=(0.4, 0.6, 0.8))
    rows = study.wanted(options)
    assert len(set(rows)) == len(rows) == 2 * (1 + 6 * 3 + 5 + 3)
    named = {name for ahead, behind, _ in study.CLAIMS for name in (ahead, behind)}
    assert named <= {method for _, method, _ in rows} == {"dense", *study.SIRFP, *study.CRITERIA}


def test_what_is_grouped_at_once_trains_the_same_inside_dense_kernels(scripts):
    import camvid_grouping

    from tests.training import toys

    def network(groups):
        keras.utils.set_random_seed(1)
        i = keras.Input((toys.SIZE, toys.SIZE, 3))
        x = layers.Rescaling(1 / 128, offset=-1)(i)
        x = layers.Conv2D(8, 3, padding="same", use_bias=False, name="backbone_stem")(x)
        x = layers.BatchNormalization(momentum=0.5, name="backbone_bn")(x)
        x = layers.Conv2D(8, 1, groups=groups, activation="relu", name="backbone_a")(x)
        return keras.Model(i, layers.Conv2D(toys.NUM_CLASSES, 1, name="decoder_logits")(x))

    def train(model):
        tsp.training.compile_segmenter(
            model,
            optimizer=tsp.training.optimizer(
                "adamw", learning_rate=0.01, steps=8, weight_decay=0.1
            ),
            num_classes=toys.NUM_CLASSES,
            ignore_index=toys.IGNORE,
        )
        model.run_eagerly = True  # tracing would take longer than the steps
        model.fit(toys.Toy(2), epochs=2, shuffle=False, verbose=0)

    native = network(groups=4)
    faded = camvid_grouping.embedded(native, network(groups=1), 4)
    kernel = native.get_layer("backbone_a").kernel
    first = np.array(kernel)
    train(native)
    train(faded.model)
    assert np.abs(np.array(kernel) - first).mean() > 0.01, "it has learnt"
    small = tsp.shrink(faded.model, faded.plan())
    for ours, theirs in zip(small.weights, native.weights, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6, err_msg=theirs.path)


def test_a_study_that_is_stopped_early_says_what_it_has(scripts):
    import camvid_grouping

    def row(name, seed, score):
        return {"name": name, "seed": seed, "large": score}

    rows = [row("gradual DG4*", seed, 0.5 + seed / 1000) for seed in range(3)]
    rows += [row("DG4*", seed, 0.4) for seed in range(3)] + [row("D*", 1, 0.6), row("DG2*", 0, 0.5)]
    rows += [row("gradual DG4S*", seed, 0.4 - seed / 1000) for seed in range(3)]
    found = {claim["pair"]: claim for claim in camvid_grouping.compared(rows)}
    assert len(found) == len(camvid_grouping.CLAIMS) + len(camvid_grouping.ASKED)
    assert found["gradual DG4* over DG4*"]["verdict"] == "shown"
    assert found["gradual DG4* over DG4*"]["mean"] == pytest.approx(0.101)
    assert found["gradual DG4S* over gradual DG4*"]["verdict"] == "the other is ahead"
    assert found["DG2* over DG4*"]["verdict"] == "not shown", "one seed"
    assert found["D* over DG2*"]["verdict"] == "not run", "no seed has both"


def test_the_study_of_grouping_makes_what_it_claims_about_in_the_order_of_claims(scripts):
    import argparse

    import camvid_grouping as grouping

    rows = grouping.wanted(argparse.Namespace(seeds=(0, 1)))
    assert len(set(rows)) == len(rows) == 2 * len(grouping.NETS)
    order = [name for seed, name in rows if seed == 0]
    assert order == [name for seed, name in rows if seed == 1]
    compared = (*grouping.CLAIMS, *grouping.ASKED)
    pairs = [{ahead, behind} for ahead, behind, _ in compared]
    assert set(order) == set.union(*pairs)
    assert set(order[:4]) == pairs[0] | pairs[1], "the key claim first"
    for ahead, behind, says in compared:
        one, other = grouping.NETS[ahead], grouping.NETS[behind]
        if says.startswith(("grouping gradually", "gradually or")):
            assert one.gradual == {} and other.gradual is None and one.block == other.block
        if says.startswith("some blocks"):
            assert (one.block, one.placement) == (other.block, "selective")


def test_whatever_is_no_error_of_the_house_fails_a_try_on_broken_files(scripts):
    import fuzz_tflite

    def says(error):
        def step():
            raise error

        return fuzz_tflite._outcome(step)[0]

    assert fuzz_tflite._outcome(lambda: None) == ["answers", ""]
    assert says(ValueError("Bad. Expected: a. Received: b.")) == "refused"
    died = "Expected: a. Received: x.tflite: the process that ran it ended by signal 11."
    assert says(ValueError(died)) == "sandbox: SIGSEGV"
    for error in (ValueError("bare"), IndexError(3), MemoryError(), RecursionError()):
        assert says(error) == fuzz_tflite.FAILURE
    fine = {"seed": 1, "mutation": "flipped", "seconds": 1.0, "memory_mib": 3.0}
    rows = [
        {**fine, "stages": {"read": ["refused", ""], "predict": ["sandbox: SIGFPE", died]}},
        {**fine, "stages": {"read": ["failure", "IndexError"], "predict": ["refused", ""]}},
        {"seed": 2, "error": "ended the process with -11"},
    ]
    found = fuzz_tflite.summarised(rows)
    assert (found["tries"], found["passed"]) == (3, 1) and found["failures"] == rows[1:]
    assert found["stages"]["predict"] == {"sandbox: SIGFPE": 1, "refused": 1}
    assert found["mutations"]["flipped"]["sandbox dies"] == 1


def timed_result(ms):
    from tfseg_prune.bench import schema, stats

    return schema.Result(
        model=None,
        device=None,
        backend=None,
        conditions=None,
        latency_ms=schema.Latency(init=1, first=1, **stats.summarise([ms])),
        samples_ms=(ms,) * 9,
        warmup_runs=9,
        steady=True,
        session="one",
    )


def test_aligned_files_are_judged_by_what_their_macs_promise(scripts):
    import alignment

    sizes = [("dense", None, 800, 8.0), ("1", 1, 400, 5.0), ("4", 4, 380, 4.0)]
    files = [
        {"name": name, "align": align, "macs": macs, "padded_macs": 2 * macs}
        for name, align, macs, _ in sizes
    ]
    results = {name: timed_result(ms) for name, _, _, ms in sizes}
    dense, any_width, aligned = alignment.judged(files, results, {})
    assert "realised" not in dense and "to_any_width" not in any_width
    assert any_width["realised"] == pytest.approx(0.8) and not any_width["meets_goal"]
    assert aligned["realised"] == pytest.approx(0.95) and aligned["meets_goal"]
    assert aligned["to_any_width"]["latency"]["value"] == pytest.approx(0.8)
    assert aligned["to_any_width"]["padded_macs"] == pytest.approx(0.95)


def test_what_is_missing_to_the_promised_time_is_divided_without_a_rest(scripts):
    import op_profile

    def ops(*rows):
        return [op_profile.OpTime(kind, ms, layer, macs) for kind, ms, layer, macs in rows]

    conv, add = "Convolution (NHWC, F32) GEMM", "Add (ND)"
    dense = ops((conv, 6.0, "a", 600), (add, 1.0, "", 0), (conv, 3.0, "b", 200))
    small = ops((conv, 4.0, "a", 300), (add, 0.9, "", 0), (conv, 1.5, "b", 100))
    found = op_profile.why(dense, small)
    realised = (10.0 / 6.4) / 2
    lost = found["kernels"] + found["mix"] + found["without_macs"]
    assert lost == pytest.approx(1 - realised)
    assert found["mix"] == pytest.approx(0), "all layers lost the same share"
    assert [op["layer"] for op in found["ops"]] == ["a", "b"]
    assert found["kinds"][add] == {"ms": [1.0, 0.9], "macs": [0, 0]}
    parts = ops((conv, 3.0, "a_group_0", 150), (add, 0.9, "", 0), (conv, 1.0, "a_group_1", 150))
    split = op_profile.why(dense, [*parts, *small[2:]])
    assert {**split, "kinds": None, "ops": None} == {**found, "kinds": None, "ops": None}
    assert [(op["layer"], op["ms"], op["macs"]) for op in split["ops"]] == [
        (op["layer"], op["ms"], op["macs"]) for op in found["ops"]
    ]


def test_operators_that_multiply_get_the_names_of_the_files_ops(scripts):
    import collections

    import op_profile

    op = collections.namedtuple("op", "op layer macs")
    ops = [op("CONV_2D", "stem", 9), op("ADD", "add", 1), op("FULLY_CONNECTED", "head", 4)]
    runs = [
        [("Convolution (NHWC, F32) IGEMM", ms), ("Add (ND)", 1.0), ("Fully Connected (NC)", 2.0)]
        for ms in (3.0, 9.0, 4.0)
    ]
    found = op_profile.named(runs, ops)
    assert [(one.layer, one.macs, one.ms) for one in found] == [
        ("stem", 9, 4.0),
        ("", 0, 1.0),
        ("head", 4, 2.0),
    ]
    with pytest.raises(RuntimeError, match="2 operators of XNNPACK multiply, and 1 ops"):
        op_profile.named(runs, ops[:1])


def test_the_profiler_in_the_library_tells_the_ops_of_a_file(scripts, tmp_path):
    import op_profile

    path = tmp_path / "small.tflite"
    i = keras.Input((16, 16, 3))
    x = layers.MaxPooling2D()(layers.Conv2D(8, 3, name="stem", activation="relu")(i))
    tsp.export(keras.Model(i, layers.Conv2D(5, 1, name="head")(x)), path, tail="logits")
    try:
        found = op_profile.profiles({"small": path}, rounds=2, warmup=1)["small"]
    except RuntimeError as error:
        pytest.skip(f"no profiler: {error}")
    assert [one.layer for one in found if one.macs] == ["stem", "head"]
    assert [one.macs for one in found if one.macs] == [14 * 14 * 27 * 8, 7 * 7 * 8 * 5]
    assert any("Pool" in one.kind for one in found) and all(one.ms >= 0 for one in found)


def test_a_row_of_the_gpu_table_says_why_it_misses_a_goal(scripts):
    import gpu_table_row

    expected = np.zeros((1, 10, 100, 2), "float32")
    expected[..., 0] = np.linspace(0, 1, 1000).reshape(1, 10, 100)
    answers = expected.copy()
    answers[0, 0, :3, 1] += 0.01
    found = gpu_table_row.compared(answers, expected)
    assert found["agreement"] == pytest.approx(0.997)
    assert 0 <= found["margin"] <= found["largest_margin"] < 0.01

    same = gpu_table_row.compared(expected, expected)
    row = {"status": "passed", "says": "", "fully_accelerated": True, "findings": []}
    assert gpu_table_row.judged({**row, "cpu": same, "gpu": same}, "float32")["passes"]
    missed = gpu_table_row.judged({**row, "cpu": found, "gpu": found}, "float32")
    assert not missed["passes"] and len(missed["reasons"]) == 1, "the goal on the GPU is lower"
    assert missed["reasons"][0].startswith("CPU: 99.700% of the pixels, not 99.9%")
    refused = {**row, "status": "refused", "says": "CONV_3D", "fully_accelerated": False}
    reasons = gpu_table_row.judged({**refused, "cpu": same, "gpu": None}, "int8")["reasons"]
    assert reasons == ["refused: CONV_3D"]
    wrong = {**row, "status": "wrong", "says": "logits differ", "cpu": same, "gpu": same}
    wrong["gpu_in_float32"] = {"status": "passed", **same}
    reasons = gpu_table_row.judged(wrong, "int8")["reasons"]
    assert reasons[0] == "GPU to CPU: logits differ" and "in float32" in reasons[1]


@pytest.mark.parametrize("transposed", [False, True])
def test_classes_are_clusters_and_no_rounding_decides(scripts, transposed):
    import segmenters

    rng = np.random.default_rng(0)
    truth = rng.integers(0, 3, (4, 16, 16))
    images = 30 * np.eye(8)[truth] + 2 * rng.normal(size=(4, 16, 16, 8)) + 50
    i = keras.Input((16, 16, 8))
    x = layers.Conv2DTranspose(5, 2, strides=2)(i) if transposed else layers.Conv2D(5, 1)(i)
    model = keras.Model(i, x)
    segmenters.fit_classifier(model, images.astype("float32"))
    answers = np.asarray(model(images))
    found = answers.argmax(-1)[:, ::2, ::2] if transposed else answers.argmax(-1)
    for one in range(3):
        assert len(set(found[truth == one])) == 1, "a cluster is a class"
    assert len(set(found.ravel())) == 3
    noise = 0.01 * answers.std() * rng.normal(size=answers.shape)
    assert (answers.argmax(-1) == (answers + noise).argmax(-1)).all()


def test_trained_networks_are_named_with_their_variant(scripts, tmp_path):
    import gpu_table

    needed = [f"--data_dir={tmp_path}", f"--workdir={tmp_path}", f"--out={tmp_path / 'o.json'}"]
    options = gpu_table.parse([*needed, "--trained=UNet=a.keras", "--trained=UNet:pruned=b.keras"])
    assert options.trained == {("UNet", "dense"): "a.keras", ("UNet", "pruned"): "b.keras"}
    assert len(set(gpu_table.wanted(options))) == len(gpu_table.segmenters.NETWORKS) * 2 * 3
    with pytest.raises(SystemExit):
        gpu_table.parse([*needed, "--trained=Unet=a.keras"])


def test_plainest_way_to_integers_within_the_goal(scripts):
    import quantisation

    def row(network, way, loss):
        return {"network": network, "way": way, "loss_points": loss}

    rows = [row("a", "int8, trained", -1.0), row("a", "mixed", 1.0), row("a", "float16", 0.0)]
    rows += [row("a", "int8, ai_edge", 1.1), row("b", "int8, trained", 1.1)]
    assert quantisation.verdicts(rows) == {"a": "mixed", "b": None}
