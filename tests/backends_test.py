"""The same training and pruning code runs on both backends, each in its own process."""

import os
import subprocess
import sys

import pytest

CODE = """
import sys
import keras, numpy as np, tfseg_prune as tsp
from tfseg_prune import data, models, training

keras.utils.set_random_seed(0)
streets = data.load("streets", "train", size=(32, 48), count=8)
train = data.Batches(
    streets, batch_size=4, image_size=(32, 48), augment=data.Augment(), shuffle=True
)
model = models.{network}
training.compile_segmenter(
    model,
    optimizer=training.optimizer("adamw", learning_rate=1e-3, steps=4),
    num_classes=streets.num_classes,
    ignore_index=streets.ignore_index,
)
before = [np.array(v) for v in model.trainable_variables]
history = training.fit(model, train, epochs=2, checkpoint_dir=sys.argv[1], verbose=False)
assert len(history) == 2 and all(np.isfinite(row["loss"]) for row in history)
assert any((a != np.array(b)).any() for a, b in zip(before, model.trainable_variables))
plan = tsp.plan(model, budget=tsp.Budget(macs=0.5), align=2)
small = tsp.shrink(model, plan)  # raises unless it equals the masked twin
assert tsp.check_equal(tsp.masked_twin(model, plan), small) < 1e-5
assert 0.45 < tsp.cost(small).macs / tsp.cost(model).macs <= 0.5
print(keras.backend.backend())
"""


@pytest.mark.parametrize("backend", ["tensorflow", "jax"])
@pytest.mark.parametrize(
    "network", ["unet(8, (32, 48, 3), width=4)", "deeplab_v3_plus(8, (32, 48, 3))"]
)
def test_trains_and_shrinks(backend, network, tmp_path):
    if backend == "jax" and network.startswith("deeplab"):
        pytest.skip("XLA compiles it for a minute; the UNet shows the same code")
    run = subprocess.run(
        [sys.executable, "-c", CODE.format(network=network), str(tmp_path / "checkpoints")],
        env={**os.environ, "KERAS_BACKEND": backend},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    assert run.stdout.split()[-1] == backend
