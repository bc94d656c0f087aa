"""SIRFP drops what says the same twice, wherever it is, and disturbs nothing while it looks."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import tfseg_prune as tsp
from tests.training import toys
from tfseg_prune.criteria import redundancy
from tfseg_prune.graph import ChannelGraph

BUDGET = tsp.Budget(macs=0.5)


def _network(width=8):
    """A residual backbone, and a decoder with an image-pooling branch and a bare convolution."""
    keras.utils.set_random_seed(0)

    def conv(x, filters, name, size=3, relu=True):
        x = layers.Conv2D(filters, size, padding="same", use_bias=False, name=name)(x)
        x = layers.BatchNormalization(momentum=0.9, name=f"{name}_bn")(x)
        return layers.ReLU(name=f"{name}_relu")(x) if relu else x

    i = keras.Input((toys.SIZE, toys.SIZE, 3))
    x = layers.Rescaling(1 / 128, offset=-1)(i)
    stem = conv(x, width, "backbone_stem")
    x = conv(conv(stem, 2 * width, "backbone_a"), width, "backbone_b", relu=False)
    x = layers.ReLU()(layers.Add()([x, stem]))
    pooled = layers.GlobalAveragePooling2D(keepdims=True)(x)
    pooled = conv(pooled, width, "decoder_pool", 1)
    pooled = layers.UpSampling2D(toys.SIZE)(pooled)
    x = layers.Concatenate()([conv(x, width, "decoder_conv"), pooled])
    x = layers.Conv2D(width, 3, padding="same", activation="relu", name="decoder_bare")(x)
    return keras.Model(i, layers.Conv2D(toys.NUM_CLASSES, 1, name="decoder_logits")(x))


def _compile(model, optimizer=None):
    tsp.training.compile_segmenter(
        model,
        optimizer=optimizer or keras.optimizers.SGD(0.05),
        num_classes=toys.NUM_CLASSES,
        ignore_index=toys.IGNORE,
    )
    model.run_eagerly = True  # tracing would take longer than the steps


def _trained(model, **options):
    pruner = tsp.SIRFP(model, **{"budget": BUDGET, "every": 1, "decay": 0.9, **options})
    _compile(pruner.model)
    pruner.model.fit(toys.Toy(), callbacks=[pruner], shuffle=False, verbose=0)
    return pruner


def _units(model, *names):
    """Units of the channels that a layer creates, as an array [channels] each."""
    graph = ChannelGraph(model)
    return [graph.unit_of[graph.records[name].produced[name]] for name in names]


@pytest.fixture(scope="module")
def model():
    return _network()


@pytest.fixture(scope="module")
def pruner(model):
    return _trained(model)


def test_maps_of_one_pixel_are_not_ranked_unless_asked(model, pruner):
    pool, bare, logits, stem = _units(
        model, "decoder_pool", "decoder_bare", "decoder_logits", "backbone_stem"
    )
    scores = pruner.scores()
    assert scores.shape == (ChannelGraph(model).num_units,)
    assert np.isnan(scores[pool]).all() and np.isnan(scores[logits]).all()
    assert np.isfinite(scores[bare]).all() and np.isfinite(scores[stem]).all()
    assert "decoder_pool" not in pruner.plan().keep
    everything = _trained(_network(), smallest=1)
    assert np.isfinite(everything.scores()[pool]).all()


def test_a_residual_unit_is_worth_what_it_is_to_the_branch_that_needs_it_most(model, pruner):
    stem, branch = _units(model, "backbone_stem", "backbone_b")
    np.testing.assert_array_equal(stem, branch)
    alone = []
    for name in ("backbone_stem_bn", "backbone_b_bn"):
        matrix, edges = pruner.model.get_layer(f"{name}_observer").averages()
        assert edges is None
        alone.append(redundancy.eliminate(matrix).scores)
    assert (alone[0] > alone[1]).any() and (alone[0] < alone[1]).any()
    np.testing.assert_allclose(pruner.scores()[stem], np.maximum(*alone), rtol=1e-6)


@pytest.mark.parametrize("metric", ["cosine", "official"])
def test_a_prior_is_added_per_layer(model, metric):
    plain = _trained(_network(), metric=metric)
    edged = _trained(_network(), metric=metric, prior="edge", prior_weight=0.3)
    (units,) = _units(model, "backbone_a")
    _, edges = edged.model.get_layer("backbone_a_bn_observer").averages()
    expected = redundancy.with_prior(
        plain.scores()[units], edges, weight=0.3, normalize=metric == "cosine"
    )
    np.testing.assert_allclose(edged.scores()[units], expected, rtol=1e-3)


def test_the_gradient_prior_is_that_of_dcfp(model):
    plain = _trained(_network())
    sloped = _trained(_network(), prior="gradient")
    units, bare = _units(model, "backbone_a", "decoder_bare")
    other = _network()
    gradients = tsp.Gradients(other, decay=0.9)
    _compile(other)
    other.fit(toys.Toy(), callbacks=[gradients], shuffle=False, verbose=0)
    slopes = gradients.scores("dcfp")[id(other.get_layer("backbone_a_bn").gamma), 0]
    expected = redundancy.with_prior(plain.scores()[units], slopes)
    np.testing.assert_allclose(sloped.scores()[units], expected, rtol=1e-3)
    # Without a batch normalisation there is no such prior.
    np.testing.assert_allclose(sloped.scores()[bare], plain.scores()[bare], rtol=1e-4)


def test_backbone_and_decoder_have_thresholds_of_their_own(model, pruner):
    """Whatever separates their scores, the same fraction of each goes."""
    graph, scores = ChannelGraph(model), pruner.scores()
    plan = pruner.plan()
    dropped = {}
    for scope in ("backbone", "decoder"):
        units = {
            unit
            for name in graph.producers
            if name.startswith(scope)
            for unit in graph.producers[name].tolist()
            if not np.isnan(scores[unit])
        }
        gone = {
            unit
            for name, kept in plan.keep.items()
            if name.startswith(scope)
            for unit in np.delete(graph.producers[name], list(kept)).tolist()
        }
        dropped[scope] = len(gone) / len(units)
        highest, lowest = max(scores[list(gone)]), min(scores[list(units - gone)])
        assert highest <= lowest
    assert abs(dropped["backbone"] - dropped["decoder"]) < 0.15, dropped
    one = _trained(_network(), scopes={"all": "."})
    assert one.plan().keep != plan.keep


@pytest.mark.parametrize("share", [0.4, 0.6])
def test_the_budget_is_met_and_the_small_model_is_the_masked_twin(share):
    model = _network(width=32)
    pruner = tsp.SIRFP(model, budget=tsp.Budget(macs=share), every=1)
    _compile(pruner.model)
    pruner.model.train_on_batch(*toys.Toy()[0])
    plan = pruner.plan()
    assert share - 0.01 <= tsp.cost(model, plan).macs / tsp.cost(model).macs <= share
    for fold in (False, "beta"):
        small = tsp.shrink(model, plan, fold_constants=fold)
        tsp.check_equal(tsp.masked_twin(model, plan, fold_constants=fold), small)
        assert tsp.cost(small) == tsp.cost(model, plan)
        assert not any("observer" in layer.name for layer in small.layers)
    assert tsp.PruningPlan.from_json(plan.to_json()) == plan
    assert plan.method == "sirfp" and plan.scores["macs"][1] == tsp.cost(small).macs


def test_looking_changes_nothing_in_training():
    found = []
    for watch in (False, True):
        model = _network()
        pruner = tsp.SIRFP(model, budget=BUDGET, prior="gradient", every=2)
        trained = pruner.model if watch else model
        _compile(trained, keras.optimizers.Adam(0.01))
        callbacks = [pruner] if watch else []
        trained.fit(toys.Toy(), callbacks=callbacks, shuffle=False, verbose=0)
        found.append(model.get_weights())
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_the_observed_model_answers_the_same(model, pruner):
    images = toys.Toy()[0][0]
    ours, theirs = (ops.convert_to_numpy(m(images)) for m in (pruner.model, model))
    np.testing.assert_array_equal(ours, theirs)


def test_excluded_layers_stay_whole():
    pruner = _trained(_network(), exclude=["^decoder_conv$", "^backbone_b$"])
    kept = pruner.plan().keep
    assert not {"decoder_conv", "backbone_b", "backbone_stem"} & kept.keys()
    assert {"backbone_a", "decoder_bare"} <= kept.keys()
    with pytest.raises(ValueError, match="matches no layer"):
        tsp.SIRFP(_network(), budget=BUDGET, exclude=["^nothing$"])


def test_another_model_in_fit_is_one_clear_error(model):
    pruner = tsp.SIRFP(model, budget=BUDGET)
    _compile(model)
    with pytest.raises(ValueError, match=r"Expected: `pruner.model.fit.*Received: a training of"):
        model.fit(toys.Toy(), callbacks=[pruner], verbose=0)


@pytest.mark.parametrize("prior", ["none", "edge", "gradient"])
def test_nothing_seen_is_one_clear_error(prior):
    pruner = tsp.SIRFP(_network(), budget=BUDGET, prior=prior)
    with pytest.raises(ValueError, match="Expected: some steps of .*Received: none"):
        pruner.plan()


@pytest.mark.parametrize(
    "options, message",
    [
        ({"prior": "edges"}, "Expected: one of none, edge, gradient. Received: 'edges'"),
        ({"metric": "l3"}, "Expected: one of cosine, correlation, official. Received: 'l3'"),
        ({"budget": 0.5}, r"Expected: `tsp.Budget\(macs=0.5\)`. Received: 0.5"),
        ({"scopes": {"all": "("}}, r"'\(' is no regular expression"),
        ({"power": 0}, "Invalid `power`.*Received: 0"),
        ({"every": 0}, "every=0"),
        ({"pixels": 0}, "pixels=0"),
        ({"decay": 1.0}, "decay=1.0"),
    ],
)
def test_senseless_options_are_one_clear_error(model, options, message):
    with pytest.raises(ValueError, match=message):
        tsp.SIRFP(model, **{"budget": BUDGET, **options})


def test_nothing_to_observe_is_one_clear_error():
    i = keras.Input((8, 8, 3))
    one = keras.Model(i, layers.Conv2D(2, 3)(i), name="one")
    with pytest.raises(ValueError, match="nothing to observe in 'one'.*Received: none"):
        tsp.SIRFP(one, budget=BUDGET)


@pytest.mark.parametrize("kind", ["Conv2D", "Conv2DTranspose", "SeparableConv2D"])
def test_convolutions_without_normalisation_are_observed_themselves(kind):
    i = keras.Input((toys.SIZE, toys.SIZE, 3))
    x = getattr(layers, kind)(6, 3, padding="same", name="bare")(i)
    model = keras.Model(i, layers.Conv2D(toys.NUM_CLASSES, 1)(x))
    (units,) = _units(model, "bare")
    pruner = _trained(model, budget=tsp.Budget(macs=0.9))
    assert np.isfinite(pruner.scores()[units]).all()


def _observers(pruner):
    return {x.name: x for x in pruner.model.layers if x.name.endswith("_observer")}


def test_a_depthwise_convolution_ranks_nothing_again():
    i = keras.Input((toys.SIZE, toys.SIZE, 3))
    x = layers.BatchNormalization(name="first")(layers.Conv2D(6, 1, name="expand")(i))
    x = layers.DepthwiseConv2D(3, padding="same")(layers.ReLU()(x))
    x = layers.ReLU()(layers.BatchNormalization(name="second")(x))
    model = keras.Model(i, layers.Conv2D(toys.NUM_CLASSES, 1)(x))
    pruner = _trained(model)
    (observer,) = _observers(pruner).values()
    matrix, _ = observer.averages()
    (units,) = _units(model, "expand")
    fall = redundancy.eliminate(matrix, tolerance=1e-5)
    np.testing.assert_allclose(pruner.scores()[units], fall.scores, rtol=1e-6)


def test_a_channel_without_a_sign_of_life_falls_first():
    i = keras.Input((toys.SIZE, toys.SIZE, 3))
    x = layers.Conv2D(6, 3, padding="same", activation="relu", name="bare")(i)
    model = keras.Model(i, layers.Conv2D(toys.NUM_CLASSES, 1)(x))
    conv = model.get_layer("bare")
    kernel, bias = conv.get_weights()
    kernel[..., 2], bias[2] = 0, -1
    conv.set_weights([kernel, bias])
    (units,) = _units(model, "bare")
    assert np.argmin(_trained(model).scores()[units]) == 2


def test_every_call_of_a_shared_layer_counts():
    i = keras.Input((toys.SIZE, toys.SIZE, 3))
    shared = layers.Conv2D(6, 3, padding="same", name="shared")
    norm = layers.BatchNormalization(name="norm")
    x = layers.Add()([norm(shared(i)), norm(shared(layers.ReLU()(i * -1.0 + 100.0)))])
    model = keras.Model(i, layers.Conv2D(toys.NUM_CLASSES, 1)(x))
    pruner = _trained(model, every=2)
    seen = [x.averages()[0] for x in pruner.model.layers if "observer" in x.name]
    assert len(seen) == 2 and not np.allclose(*seen)
    (units,) = _units(model, "shared")
    fall = redundancy.eliminate(np.mean(seen, axis=0), tolerance=1e-5)
    np.testing.assert_allclose(pruner.scores()[units], fall.scores, rtol=1e-6)


def test_as_released_edges_count_in_the_backbone_alone():
    model = _network()
    plain, edged = (_trained(_network(), metric="official", prior=p) for p in ("none", "edge"))
    for name, differs in (("backbone_a", True), ("decoder_conv", False)):
        (units,) = _units(model, name)
        same = np.allclose(plain.scores()[units], edged.scores()[units], rtol=1e-3)
        assert same != differs, name


@pytest.mark.parametrize(
    "options, message",
    [
        ({"align": 0}, "align"),
        ({"floor": 2}, "floor"),
        ({"prior_weight": float("nan")}, "prior_weight"),
        ({"smallest": 0}, "smallest"),
        ({"metric": "official", "power": 2}, "official"),
        ({"budget": tsp.Budget(macs=1e-6)}, "can't be reached"),
    ],
)
def test_what_can_not_be_meant_is_told_before_training(options, message):
    with pytest.raises(ValueError, match=message):
        tsp.SIRFP(_network(), **{"budget": BUDGET, **options})


def test_the_gradient_prior_needs_scales():
    i = keras.Input((toys.SIZE, toys.SIZE, 3))
    x = layers.Conv2D(6, 3, padding="same", activation="relu")(i)
    model = keras.Model(i, layers.Conv2D(toys.NUM_CLASSES, 1)(x))
    with pytest.raises(ValueError, match="needs scales"):
        tsp.SIRFP(model, budget=tsp.Budget(macs=0.9), prior="gradient")


class _Stop(keras.callbacks.Callback):
    """Ends the training in its second epoch, as a kill would."""

    def on_train_batch_end(self, batch, logs=None):
        if self.model.optimizer.iterations >= 4:
            raise RuntimeError("stopped")


def _resumable(directory, *others, seed=0):
    model = _network()
    keras.utils.set_random_seed(seed)
    for variable in model.trainable_variables:
        variable.assign(np.random.default_rng(seed).normal(size=variable.shape) / 4)
    pruner = tsp.SIRFP(model, budget=BUDGET, prior="gradient", every=2, decay=0.9)
    _compile(pruner.model)
    options = dict(epochs=3, checkpoint_dir=directory, verbose=False)
    try:
        tsp.fit(pruner.model, toys.Toy(), callbacks=[pruner, *others], **options)
    except RuntimeError:
        return None
    return pruner


def test_resumed_training_ends_with_the_same_scores(tmp_path):
    whole = _resumable(tmp_path / "whole").scores()
    assert _resumable(tmp_path / "killed", _Stop()) is None
    # Other random weights at the start: all that counts comes from the checkpoint.
    resumed = _resumable(tmp_path / "killed", seed=1).scores()
    np.testing.assert_allclose(resumed, whole, rtol=1e-4)
    # All epochs are done: nothing trains, all is restored.
    restored = _resumable(tmp_path / "whole", seed=2)
    np.testing.assert_array_equal(restored.scores(), whole)
    assert restored.plan().keep
