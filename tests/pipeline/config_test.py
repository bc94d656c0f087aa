import pytest
from ml_collections import config_dict

from tfseg_prune.pipeline.config import budget_values, check_config, default_config


def good():
    config = default_config()
    config.pruning.budget.macs = 0.5
    return config


def changed(path, value):
    config = good().copy_and_resolve_references()
    config.unlock()
    *rooms, key = path.split(".")
    room = config
    for name in rooms:
        room = room[name]
    # Without type safety, as in a config that was not made from the default one.
    with room.ignore_type():
        room[key] = value
    return config


def test_the_default_config_lacks_only_a_budget():
    check_config(good())
    with pytest.raises(ValueError, match="budget"):
        check_config(default_config())


def test_every_default_config_is_its_own():
    first = default_config()
    first.train.epochs = 999
    first.data.train.count = 3
    assert default_config().train.epochs != 999
    assert "count" not in default_config().data.train


@pytest.mark.parametrize(
    "path, value",
    [
        ("seed", -1),
        ("train.epochs", 1.5),
        ("train.epochs", -1),
        ("train.epochs", True),
        ("train.batch_size", 0),
        ("train.learning_rate", 0.0),
        ("train.learning_rate", float("nan")),
        ("train.learning_rate", float("inf")),
        ("train.power", -1.0),
        ("train.weight_decay", -1e-4),
        ("train.optimizer", "adamm"),
        ("train.class_weights", "logg"),
        ("train.keep", "first"),
        ("train.scale", (2.0, 0.5)),
        ("train.scale", 1.0),
        ("train.jitter", 2.0),
        ("finetune.learning_rate", "fast"),
        ("finetune.recalibrate", -1),
        ("data.image_size", 96),
        ("data.image_size", (96,)),
        ("data.image_size", (96.0, 128.0)),
        ("data.image_size", (4, 128)),
        ("data.scale", 0.0),
        ("data.offset", float("nan")),
        ("data.workers", 0),
        ("pruning.criterion", "l3"),
        ("pruning.ranking", "globally"),
        ("pruning.align", 0),
        ("pruning.floor", 1.5),
        ("pruning.exclude", "first"),
        ("pruning.budget.macs", "half"),
        ("export.precisions", ("float32", "int4")),
        ("export.precisions", ("float32", "float32")),
        ("export.precisions", ()),
        ("export.tail", "softmax"),
        ("export.thresholds.int8", 98),
        ("export.thresholds.int8", float("nan")),
        ("export.representative_images", 0),
        ("bench.threads", 0),
        ("bench.max_seconds", float("inf")),
        ("report.strips", -1),
        ("name", None),
        ("train", 3),
    ],
)
def test_a_senseless_value_is_named_with_what_was_given(path, value):
    with pytest.raises(ValueError) as caught:
        check_config(changed(path, value))
    message = str(caught.value)
    assert f"'{path}'" in message and "must" in message
    assert f"Received: {value!r}" in message


@pytest.mark.parametrize(
    "path, value",
    [
        ("train.epochs", 0),
        ("train.scale", [0.5, 2]),
        ("train.weight_decay", 0),
        ("data.image_size", [96, 128]),
        ("pruning.exclude", ["^decoder_"]),
        ("export.thresholds.int8", 0),
        ("export.parity_images", 0),
        ("data.train.count", 7),
        ("model.options.width", 7),
    ],
)
def test_what_can_be_meant_passes(path, value):
    check_config(changed(path, value))


def test_a_misspelt_setting_gets_a_hint_wherever_it_stands():
    for path, hint in (("trainn", "'train'"), ("pruning.budget.mcas", "'pruning.budget.macs'")):
        with pytest.raises(ValueError, match=f"no setting '{path}'.*Did you mean {hint}"):
            check_config(changed(path, 1))


def test_all_problems_are_named_at_once_and_missing_settings_too():
    config = changed("train.epochs", -1)
    config.bench.threads = 0
    with pytest.raises(ValueError, match=r"(?s)bench\.threads.*train\.epochs"):
        check_config(config)
    with pytest.raises(ValueError, match="'data' is missing.*default_config"):
        check_config(config_dict.ConfigDict())


def test_weights_beside_a_model_of_ones_own_are_not_passed_over():
    config = changed("model.path", "own.keras")
    check_config(config)
    config.model.weights = "w.npz"
    with pytest.raises(ValueError, match=r"model\.weights"):
        check_config(config)


def test_a_misspelt_setting_fails_where_it_is_written():
    config = default_config()
    with pytest.raises((KeyError, AttributeError)):
        config.prunning.budget.macs = 0.5
    with pytest.raises((KeyError, AttributeError)):
        config.pruning.budgget = 0.5
    with pytest.raises(TypeError):
        config.train.epochs = "many"


@pytest.mark.parametrize("value, meant", [(0.5, 0.5), (1, 1.0), (2e9, 2_000_000_000), (1.5, 1.5)])
def test_whole_numbers_above_one_are_absolute(value, meant):
    found = budget_values(changed("pruning.budget.macs", float(value)))
    assert found == {"macs": meant} and type(found["macs"]) is type(meant)


def test_a_budget_may_be_in_padded_macs():
    config = default_config()
    config.pruning.budget.padded_macs = 0.5
    check_config(config)
    assert budget_values(config) == {"padded_macs": 0.5}


def test_budgets_that_are_no_numbers_reach_the_budget_as_they_are():
    assert budget_values(changed("pruning.budget.macs", float("inf"))) == {"macs": float("inf")}
