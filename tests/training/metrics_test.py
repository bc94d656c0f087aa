import keras
import numpy as np
import pytest

from tfseg_prune.training.metrics import MeanIoU


def _reference(labels, predictions, classes, ignore):
    valid = labels != ignore
    ious = []
    for c in range(classes):
        union = (valid & ((labels == c) | (predictions == c))).sum()
        hits = (valid & (labels == c) & (predictions == c)).sum()
        ious.append(np.nan if union == 0 or c == ignore else hits / union)
    return np.array(ious)


@pytest.mark.parametrize("ignore", [255, -1, 0, 2])
def test_matches_the_definition_over_several_batches(ignore):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, (3, 2, 6, 7))
    labels[:, :, 0] = ignore
    logits = rng.normal(size=(*labels.shape, 5)).astype("float32")
    logits[..., 4] = -100.0
    metric = MeanIoU(5, ignore)
    for batch in range(3):
        metric.update_state(labels[batch], logits[batch])
    expected = _reference(labels, logits.argmax(-1), 5, ignore)
    np.testing.assert_allclose(metric.per_class(), expected, rtol=1e-12)
    assert np.isnan(metric.per_class()[4])
    np.testing.assert_allclose(float(metric.result()), np.nanmean(expected), rtol=1e-6)


def test_class_maps_and_logits_agree():
    rng = np.random.default_rng(1)
    labels, logits = rng.integers(0, 3, (1, 4, 4)), rng.normal(size=(1, 4, 4, 3))
    dense, sparse = MeanIoU(3, 255), MeanIoU(3, 255, sparse_predictions=True)
    dense.update_state(labels, logits)
    sparse.update_state(labels, logits.argmax(-1))
    assert float(dense.result()) == float(sparse.result())


def test_survives_serialisation():
    metric = MeanIoU(3, 1, sparse_predictions=True, name="iou")
    copy = keras.metrics.deserialize(keras.metrics.serialize(metric))
    assert copy.get_config() == metric.get_config()
    assert copy.target_class_ids == [0, 2]
