import keras
import numpy as np
import pytest

from tests.training import toys
from tfseg_prune.training import MeanIoU, evaluate


def test_agrees_with_the_metric_over_the_whole_set():
    model, batches = toys.network(), toys.Toy(num_batches=3)
    metric, right, labelled = MeanIoU(toys.NUM_CLASSES, toys.IGNORE), 0, 0
    for i in range(3):
        images, labels = batches[i]
        logits = model.predict_on_batch(images)
        metric.update_state(labels, logits)
        right += (logits.argmax(-1) == labels).sum()
        labelled += (labels != toys.IGNORE).sum()
    result = evaluate(model, batches, num_classes=toys.NUM_CLASSES, ignore_index=toys.IGNORE)
    np.testing.assert_allclose(result.miou, float(metric.result()), rtol=1e-6)
    np.testing.assert_allclose(result.per_class_iou, metric.per_class(), rtol=1e-12)
    assert result.pixel_accuracy == right / labelled
    # A list of batches serves as well, and evaluating changed nothing in the model.
    listed = [batches[i] for i in range(3)]
    again = evaluate(model, listed, num_classes=toys.NUM_CLASSES, ignore_index=toys.IGNORE)
    assert again == result


def test_a_perfect_answer_scores_one_and_absent_classes_are_nan():
    labels = np.array([[[0, 1], [1, 7]]])
    logits = np.eye(3, dtype="float32")[np.where(labels == 7, 2, labels)]
    model = keras.Sequential([keras.Input((2, 2, 3)), keras.layers.Identity()])
    result = evaluate(model, [(logits, labels)], num_classes=3, ignore_index=7)
    assert result.miou == result.pixel_accuracy == 1.0
    assert result.per_class_iou[:2] == (1.0, 1.0) and np.isnan(result.per_class_iou[2])


def test_bad_input_is_refused():
    model = keras.Sequential([keras.Input((2, 2, 3)), keras.layers.Identity()])
    images = np.zeros((1, 2, 2, 3), "float32")
    with pytest.raises(ValueError, match="one channel a class"):
        evaluate(model, [], num_classes=4, ignore_index=255)
    with pytest.raises(ValueError, match="ids from 3 to 3"):
        evaluate(model, [(images, np.full((1, 2, 2), 3))], num_classes=3, ignore_index=255)
    with pytest.raises(ValueError, match="Nothing to evaluate"):
        evaluate(model, [(images, np.full((1, 2, 2), 255))], num_classes=3, ignore_index=255)
