import keras
import numpy as np
import pytest

from tfseg_prune.training import SegmentationCrossEntropy


def _batch(seed=0, ignore=255):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 4, (2, 3, 5))
    labels[rng.random(labels.shape) < 0.3] = ignore
    return labels.astype("int32"), rng.normal(0, 3, (2, 3, 5, 4)).astype("float32")


def _reference(labels, logits, ignore, weights):
    total = norm = 0.0
    for y, z in zip(labels.ravel(), logits.reshape(-1, 4).astype("float64")):
        if y != ignore:
            total += weights[y] * (np.log(np.exp(z).sum()) - z[y])
            norm += weights[y]
    return total / norm


@pytest.mark.parametrize("ignore", [255, -1, 2])
@pytest.mark.parametrize("weights", [None, [1.0, 0.5, 4.0, 0.0]])
def test_is_the_weighted_mean_over_labelled_pixels(ignore, weights):
    labels, logits = _batch(ignore=ignore)
    loss = SegmentationCrossEntropy(ignore, weights)(labels, logits)
    expected = _reference(labels, logits, ignore, weights or [1.0] * 4)
    np.testing.assert_allclose(float(loss), expected, rtol=1e-6)


def test_ignored_pixels_have_no_influence():
    labels, logits = _batch()
    other = np.where((labels == 255)[..., None], 1e4, logits).astype("float32")
    loss = SegmentationCrossEntropy(255)
    assert float(loss(labels, logits)) == float(loss(labels, other))


def test_all_ignored_is_zero_and_huge_logits_stay_finite():
    labels, logits = _batch()
    assert float(SegmentationCrossEntropy(255)(np.full_like(labels, 255), logits)) == 0.0
    assert np.isfinite(float(SegmentationCrossEntropy(255)(labels, logits * 1e6)))


def test_probabilities_and_trailing_label_axis():
    labels, logits = _batch()
    probabilities = keras.ops.softmax(logits)
    from_logits = float(SegmentationCrossEntropy(255)(labels, logits))
    from_probabilities = SegmentationCrossEntropy(255, from_logits=False)(
        labels[..., None], probabilities
    )
    np.testing.assert_allclose(float(from_probabilities), from_logits, rtol=1e-4)


def test_all_ignored_batch_leaves_weights_alone():
    model = keras.Sequential([keras.Input((3, 5, 4)), keras.layers.Conv2D(4, 1)])
    model.compile(keras.optimizers.SGD(1.0), SegmentationCrossEntropy(255), jit_compile=False)
    before = [w.copy() for w in model.get_weights()]
    model.train_on_batch(np.ones((2, 3, 5, 4)), np.full((2, 3, 5), 255))
    for a, b in zip(before, model.get_weights()):
        np.testing.assert_array_equal(a, b)


def test_survives_serialisation():
    labels, logits = _batch()
    loss = SegmentationCrossEntropy(255, (1, 2, 3, 4))
    copy = keras.losses.deserialize(keras.losses.serialize(loss))
    assert float(copy(labels, logits)) == float(loss(labels, logits))


@pytest.mark.parametrize("weights", [[1.0, -1.0], [0.0, 0.0], [float("nan"), 1.0]])
def test_bad_class_weights_are_refused(weights):
    with pytest.raises(ValueError, match="class_weights"):
        SegmentationCrossEntropy(255, weights)


def test_class_weights_must_match_the_classes():
    labels, logits = _batch()
    with pytest.raises(ValueError, match="Expected: 4 weights"):
        SegmentationCrossEntropy(255, [1.0, 2.0])(labels, logits)
