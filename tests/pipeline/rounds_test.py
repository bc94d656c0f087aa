"""Pruning in rounds, by methods that look on while the network trains."""

import json

import pytest

import tfseg_prune as tsp
from tests.pipeline import tiny
from tfseg_prune.graph import PruningPlan
from tfseg_prune.pipeline import files, rounds
from tfseg_prune.pipeline.config import check_config


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rounds")
    made = tiny.config(tiny.save_network(folder / "tiny.keras"))
    made.train.epochs = 1
    made.pruning.method = "sirfp"
    made.pruning.rounds = 2
    made.pruning.observe_epochs = 2
    made.pruning.sirfp.every = 1
    made.export.precisions = ("float32",)
    return made


@pytest.fixture(scope="module")
def finished(settings, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    summary, ran, _ = tiny.start(settings, workdir)
    assert {"prune_1", "prune"} <= ran
    return workdir, summary


def test_each_round_removes_as_much_and_the_last_meets_the_budget(finished):
    workdir, summary = finished
    macs = [
        tsp.cost(files.load_model(workdir / f"{name}.keras")).macs
        for name in ("base", "small_1", "small")
    ]
    assert 0.7 < macs[1] / macs[0] <= 0.75 and 0.44 < macs[2] / macs[0] <= 0.5
    assert summary["plan"]["method"] == "sirfp"
    assert summary["ratios"]["macs"] == macs[2] / macs[0]


def test_one_plan_says_what_all_rounds_did(finished):
    workdir, _ = finished
    plan = PruningPlan.load(workdir / "plan.json")
    first, second = (PruningPlan.load(workdir / f"plan_{n}.json") for n in (1, 2))
    again = tsp.shrink(files.load_model(workdir / "base.keras"), plan)
    small = files.load_model(workdir / "small.keras")
    assert [w.shape for w in again.weights] == [w.shape for w in small.weights]
    for name, kept in second.keep.items():
        stays = first.keep.get(name, range(first.widths.get(name, second.widths[name])))
        assert plan.keep[name] == tuple(stays[i] for i in kept)
    with pytest.raises(ValueError, match="doesn't follow"):
        second.followed_by(first)


def test_the_control_trains_as_long_in_all(finished):
    workdir, summary = finished
    assert summary["dense"]["epochs"] == summary["pruned"]["epochs"] == 1 + 2 * 2 + 1
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    stages = [row["stage"] for row in rows]
    assert stages == [
        *("train", "prune_1", "prune_1", "prune", "prune", "finetune"),
        *["control"] * 5,
    ]


def test_what_is_done_is_not_done_again(finished, settings):
    workdir, summary = finished
    again, ran, _ = tiny.start(settings, workdir)
    assert again == summary and not ran


def test_a_criterion_of_gradients_trains_before_it_ranks(settings, tmp_path):
    settings = settings.copy_and_resolve_references()
    settings.pruning.method, settings.pruning.criterion = "oneshot", "taylor"
    settings.pruning.rounds = 1
    tiny.start(settings, tmp_path, "train", "prune")
    plan = PruningPlan.load(tmp_path / "plan.json")
    assert plan.scores["criterion"] == "taylor" and plan.keep


def test_convolutions_become_grouped_before_channels_go(settings, tmp_path):
    settings = settings.copy_and_resolve_references()
    settings.pruning.method, settings.pruning.rounds = "gradual_grouping", 1
    settings.pruning.gradual_grouping.where = ("second",)
    tiny.start(settings, tmp_path, "train", "prune")
    plan = PruningPlan.load(tmp_path / "plan.json")
    small = files.load_model(tmp_path / "small.keras")
    assert plan.groups == {"second": 4} and plan.keep
    assert small.get_layer("second").groups == 4 and small.get_layer("second").filters < 16
    settings.pruning.budget.macs, settings.pruning.align = None, 8
    _, ran, _ = tiny.start(settings, tmp_path, "prune")
    assert ran == {"prune"} and not PruningPlan.load(tmp_path / "plan.json").keep


@pytest.mark.parametrize(
    "name, value",
    [
        ("criterion", "l2"),
        ("ranking", "layer"),
        ("align", 4),
        ("floor", 0.2),
        ("scopes", {"all": "."}),
        ("exclude", ["second"]),
        ("fold_constants", "beta"),
    ],
)
def test_settings_of_channels_are_refused_where_none_go(settings, name, value):
    settings = settings.copy_and_resolve_references()
    settings.pruning.method, settings.pruning.rounds = "gradual_grouping", 1
    settings.pruning.align = 8
    settings.pruning[name] = value
    check_config(settings)
    settings.pruning.budget.macs = None
    with pytest.raises(ValueError, match=f"'pruning.{name}' is about channels that go.*Received"):
        check_config(settings)


@pytest.mark.parametrize(
    "method, criterion", [("sirfp", "l1"), ("oneshot", "dcfp"), ("gradual_grouping", "l1")]
)
def test_what_looks_on_needs_something_to_see(settings, method, criterion):
    settings = settings.copy_and_resolve_references()
    settings.pruning.observe_epochs = 0
    settings.pruning.method, settings.pruning.criterion = method, criterion
    with pytest.raises(ValueError, match="observe_epochs"):
        check_config(settings)


def test_a_budget_out_of_reach_is_told_before_anything_trains(settings, tmp_path):
    settings = settings.copy_and_resolve_references()
    settings.pruning.budget.macs = 1e-5
    with pytest.raises(tsp.BudgetError, match="can't be reached"):
        tiny.start(settings, tmp_path)
    assert not (tmp_path / "base.keras").exists()


def test_budgets_of_rounds():
    full = tsp.cost(tsp.models.erfnet(2, (8, 8, 3)))
    macs = [b.macs for b in rounds.budgets(tsp.Budget(macs=0.4), full, 3)]
    assert macs == [int(full.macs * share) for share in (0.8, 0.6, 0.4)]
    assert rounds.budgets(tsp.Budget(macs=0.4), full, 1) == [tsp.Budget(macs=0.4)]


def test_a_limit_that_was_met_before_limits_no_more():
    small = tsp.cost(tsp.models.erfnet(2, (8, 8, 3), block="D"))
    both = tsp.Budget(macs=small.macs + 1, params=small.params - 1)
    assert rounds.within(both, small) == tsp.Budget(params=small.params - 1)
    met = tsp.Budget(macs=small.macs + 1)
    assert rounds.within(met, small).targets(small) == {"macs": small.macs}
