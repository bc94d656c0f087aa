"""Training in phases: each hands its encoder on, and connections fade before there is a decoder."""

import json
import pathlib
import shutil

import keras
import numpy as np
import pytest
from rich.console import Console

import tfseg_prune as tsp
from tests.pipeline import phased, tiny
from tfseg_prune.graph import PruningPlan
from tfseg_prune.pipeline import files, phases
from tfseg_prune.pipeline.config import check_config
from tfseg_prune.pipeline.store import Store

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(autouse=True, scope="module")
def small_networks():
    with phased.small_networks():
        yield


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    return phased.config(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="module")
def finished(settings, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    _, ran, _ = tiny.start(settings, workdir, "train", "prune")
    assert ran == {"check", "check_pretrain", "check_model", *phased.STAGES}
    return workdir


def changed(settings, **values):
    made = settings.copy_and_resolve_references()
    with made.ignore_type():
        made.update_from_flattened_dict(values)
    return made


def weights(path, prefix=""):
    model = files.load_model(path)
    found = {
        f"{layer.name}/{weight.name}": keras.ops.convert_to_numpy(weight)
        for layer in model.layers
        for weight in layer.weights
        if layer.name.startswith(prefix)
    }
    assert found
    return found


def same(one, two, **tolerance):
    return one.keys() == two.keys() and all(
        np.allclose(one[name], two[name], **{"rtol": 0, "atol": 0, **tolerance}) for name in one
    )


def test_the_decoder_trains_behind_an_encoder_at_rest(finished):
    for name in ("base", "small"):
        before = weights(finished / f"{name}_encoder.keras", "backbone_")
        model = files.load_model(finished / f"{name}_decoder.keras")
        assert same(before, weights(finished / f"{name}_decoder.keras", "backbone_"))
        assert all(layer.trainable for layer in model.layers)
        after = weights(finished / f"{name}.keras")
        for part in ("backbone_stem/kernel", "backbone_stem_bn/moving_mean"):
            assert not np.array_equal(before[part], after[part])


def test_every_phase_begins_with_the_encoder_of_the_one_before(settings, finished):
    run = phases.Phases(settings, Store(finished), Console())
    images = np.random.default_rng(0).uniform(0, 255, (2, *tiny.SIZE, 3)).astype("float32")

    def features(model):
        inner = keras.Model(model.input, model.get_layer("backbone_out").output)
        return keras.ops.convert_to_numpy(inner(images, training=False))

    for phase, left in (
        ("encoder", ["base_classification.keras"]),
        ("decoder", ["base_encoder.keras"]),
        # Its channels have another order, by which the groups kept more of their weights.
        ("decoder", ["small_encoder.keras", "plan_encoder.json"]),
        (None, ["small_encoder.keras", "plan_encoder.json"]),
        (None, ["small_decoder.keras", "plan_encoder.json"]),
    ):
        started = run._start(left, phase)
        before = weights(finished / left[0], "backbone_")
        now = {
            f"{layer.name}/{weight.name}": keras.ops.convert_to_numpy(weight)
            for layer in started.layers
            for weight in layer.weights
            if layer.name.startswith("backbone_")
        }
        assert same(before, now)
        assert started.get_layer("backbone_1x1").groups == (4 if len(left) == 2 else 1)
        if phase != "encoder":  # which saw images of another size
            encoder = files.load_model(finished / left[0])
            np.testing.assert_allclose(features(started), features(encoder), atol=1e-6)


def test_each_phase_has_its_labels_and_class_weights(settings, tmp_path):
    run = phases.Phases(settings, Store(tmp_path), Console())
    pixels = np.arange(1.0, 9.0)
    run.results["check"] = {"pixels": {"train": pixels.tolist()}}
    for phase, constant, size in (("encoder", 1.2, (4, 6)), ("decoder", 1.1, tiny.SIZE)):
        task = run._task(phase, run._start([], phase))
        weights = task.compile.keywords["class_weights"]
        np.testing.assert_allclose(weights, 1 / np.log(constant + pixels / pixels.sum()))
        for batches in (task.train, task.validation):
            images, labels = batches[0]
            assert images.shape[1:3] == tiny.SIZE and labels.shape[1:] == size
    images, labels = run._task("classification", None).train[0]
    assert images.shape == (4, 16, 16, 3) and labels.shape == (4,)


def test_connections_fade_into_the_network_that_the_plan_describes(finished):
    plan = PruningPlan.load(finished / "plan.json")
    assert plan.groups == {"backbone_1x1": 4} and not plan.keep
    assert plan.method == "gradual_grouping" and plan.scores["assign"] == "balanced"
    base, small = (files.load_model(finished / f"{name}.keras") for name in ("base", "small"))
    again = tsp.shrink(base, plan)
    assert [w.shape for w in again.weights] == [w.shape for w in small.weights]
    costs = tsp.cost(base), tsp.cost(small)
    assert plan.scores["macs"] == [cost.macs for cost in costs] and costs[1].macs < costs[0].macs
    assert all(type(layer).__module__.startswith("keras.") for layer in small.layers)


def test_the_log_tells_what_each_phase_learnt(finished):
    rows = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert [row["stage"] for row in rows] == [*phased.STAGES]
    for row in rows:
        score = "accuracy" if "classification" in row["stage"] else "miou"
        assert {score, f"val_{score}", "val_loss"} <= set(row)


def test_what_is_done_is_not_done_again(settings, finished):
    assert tiny.start(settings, finished, "train", "prune")[1] == set()


def test_statistics_are_measured_anew_where_connections_have_faded(settings, finished, tmp_path):
    made = changed(settings, **{"finetune.recalibrate": 2, "pretrain.decoder_epochs": 0})
    made.train.epochs = 0
    workdir = shutil.copytree(finished, tmp_path / "run")
    ran = tiny.start(made, workdir, "train", "prune")[1]
    assert "prune_encoder" in ran and not ran & {"train_classification", "train_encoder"}
    before, now = (
        weights(folder / "small_encoder.keras", "backbone_") for folder in (finished, workdir)
    )
    differ = {name for name in now if not np.array_equal(before[name], now[name])}
    assert differ == {name for name in now if "moving_" in name}


@pytest.mark.slow
def test_a_change_reaches_what_depends_on_it(settings, finished, tmp_path):
    workdir = shutil.copytree(finished, tmp_path / "run")
    for path, ran in (
        ("train.epochs", {"check_model", "train", "prune"}),
        ("pretrain.decoder_epochs", {"check_model", "train_decoder", "prune_decoder"}),
    ):
        made = changed(settings, **{path: 2})
        found = tiny.start(made, workdir, "train", "prune")[1]
        assert ran <= found <= {*ran, "train", "prune"}
    made.pruning.gradual_grouping.groups = 2
    ran = tiny.start(made, workdir, "train", "prune")[1]
    assert ran == {"check_model", "prune_encoder", "prune_decoder", "prune"}
    assert files.load_model(workdir / "small.keras").get_layer("backbone_1x1").groups == 2


@pytest.mark.slow
def test_an_interrupted_run_ends_where_one_that_was_not_does(tmp_path):
    settings = phased.config(tmp_path / "pictures", epochs=2)
    whole, workdir, said = tmp_path / "whole", tmp_path / "run", []
    tiny.start(settings, whole, "train", "prune")
    with phased.interruptions(phased.STAGES) as left:
        while left:
            with pytest.raises(KeyboardInterrupt, match="Run the same command again") as caught:
                tiny.start(settings, workdir, "train", "prune")
            said.append(str(caught.value))
        tiny.start(settings, workdir, "train", "prune")
    assert len(said) == len(phased.STAGES)
    assert all(f"'{stage}'" in words for stage, words in zip(phased.STAGES, said))
    assert len(list(whole.glob("*.keras"))) == len(phased.STAGES)
    for path in whole.glob("*.keras"):
        assert same(weights(path), weights(workdir / path.name), rtol=1e-4, atol=1e-5), path.name
    assert not list(workdir.glob("checkpoints/*"))


@pytest.mark.slow
def test_connections_may_fade_while_the_encoder_classifies(settings, tmp_path):
    made = changed(settings, **{"pretrain.fade": "classification", "pretrain.decoder_epochs": 0})
    _, ran, _ = tiny.start(made, tmp_path, "train", "prune")
    assert {"train_classification", "prune_classification", "prune_encoder"} <= ran
    assert not any("decoder" in stage for stage in ran)
    for name in ("small_classification", "small_encoder", "small"):
        assert files.load_model(tmp_path / f"{name}.keras").get_layer("backbone_1x1").groups == 4


def test_both_networks_train_as_long(settings):
    for fade in ("", "classification", "encoder"):
        made = changed(settings, **{"pretrain.fade": fade})
        dense, pruned = phases.stages(made).values()
        kinds = [
            [stage.removeprefix("train_").removeprefix("prune_") for stage in stages]
            for stages in (dense, pruned)
        ]
        if fade:
            assert kinds[0][:3] == kinds[1][:3] == [*phases.NAMES]
            assert pruned[3:] == ["prune", "finetune"] and dense[3:] == ["train", "control"]
            assert pruned[:3].index(f"prune_{fade}") == phases.NAMES.index(fade)
        else:
            assert dense[:-1] == pruned[:-2] and pruned[-2:] == ["prune", "finetune"]


@pytest.mark.slow
def test_phases_without_fading_come_before_a_prune_of_any_kind(settings, tmp_path):
    made = changed(
        settings,
        **{
            "pretrain.fade": "",
            "pretrain.classification_epochs": 0,
            "pretrain.data": "",
            "pretrain.data_dir": "",
            "pretrain.decoder_epochs": 0,
            "pruning.method": "oneshot",
            "pruning.budget.macs": 0.8,
        },
    )
    _, ran, _ = tiny.start(made, tmp_path, "train", "prune")
    assert ran == {"check", "check_model", "train_encoder", "train", "prune"}
    base, small = (tsp.cost(files.load_model(tmp_path / f"{n}.keras")) for n in ("base", "small"))
    assert small.macs <= 0.8 * base.macs


@pytest.mark.parametrize(
    "values, words",
    [
        ({"pretrain.data": ""}, "'pretrain.data' must name"),
        ({"pretrain.data": "imagenet"}, "'pretrain.data' must be one of , tinyimagenet100"),
        ({"pretrain.data_dir": ""}, "must be set together"),
        ({"pretrain.classification_epochs": 0}, "'pretrain.classification_epochs' must be 1"),
        ({"pretrain.encoder_epochs": 0}, "'pretrain.encoder_epochs' must be 1 or more for"),
        ({"pretrain.fade": "decoder"}, "'pretrain.fade' must be one of"),
        (
            {
                "pretrain.classification_epochs": 0,
                "pretrain.encoder_epochs": 0,
                "pretrain.data": "",
                "pretrain.data_dir": "",
                "pretrain.fade": "",
                "pruning.observe_epochs": 1,
            },
            "behind a frozen encoder",
        ),
        ({"model.name": "unet"}, r"its encoder alone \(erfnet\).*Received: 'unet'"),
        ({"model.path": "own.keras"}, r"its encoder alone \(erfnet\).*Received: 'own.keras'"),
        (
            {"pruning.method": "oneshot", "pruning.budget.macs": 0.5},
            "(?s)'pruning.method' must be gradual_grouping.*'pruning.budget' must be left out",
        ),
        ({"pruning.observe_epochs": 3}, "'pruning.observe_epochs' must be left out.*: 3"),
        ({"pruning.gradual_grouping.per": "epoch"}, "'.*until' must leave a whole epoch"),
        ({"pretrain.batch_size": 0}, "'pretrain.batch_size' must be 1 or more"),
        ({"pretrain.decoder_epochs": -1}, "'pretrain.decoder_epochs' must be 0 or more"),
        ({"pretrain.image_size": (64,)}, "'pretrain.image_size' must be"),
        ({"pretrain.fade": ""}, "'pruning.observe_epochs' must be 1"),
    ],
)
def test_what_cannot_be_meant_is_named(settings, values, words):
    check_config(settings)
    with pytest.raises(ValueError, match=words):
        check_config(changed(settings, **values))


@pytest.mark.parametrize(
    "values, words",
    [
        ({"pretrain.data_dir": "/nowhere"}, "holds classes.json and tinyimagenet100.npz"),
        ({"pretrain.images": 9}, r"\[1, 8\]. Received: 9"),
        ({"pretrain.batch_size": 9}, "batch_size=9"),
        ({"pruning.gradual_grouping.where": ("decoder_conv",)}, "matches no convolution"),
        (
            {"pruning.gradual_grouping.where": ("1x1", "logits")},
            "what the encoder has in the phase 'encoder' only.*Received: decoder_logits",
        ),
        ({"pruning.gradual_grouping.groups": 3}, "No convolution"),
        ({"model.options.blok": "D"}, "model.options don't fit 'erfnet'.*blok"),
        ({"data.image_size": (36, 48)}, "label_stride"),
    ],
)
def test_what_cannot_work_is_found_before_training(settings, tmp_path, values, words):
    with pytest.raises(ValueError, match=words):
        tiny.start(changed(settings, **values), tmp_path, "train", "prune")
    assert not list(tmp_path.glob("*.keras")) and not (tmp_path / "checkpoints").exists()


@pytest.mark.slow
def test_a_whole_run_ends_in_a_report_that_compares_equal_trainings(settings, tmp_path):
    summary, _, _ = tiny.start(settings, tmp_path)
    assert summary["dense"]["epochs"] == summary["pruned"]["epochs"] == 4 + 1
    assert summary["plan"]["groups"] == {"backbone_1x1": 4}
    assert 0 < summary["ratios"]["macs"] < 1
    assert tiny.start(settings, tmp_path)[1] == set()
