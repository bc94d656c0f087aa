"""Quick start: DeepLabV3+ on the synthetic streets, from scratch, to half of its MACs.

tfseg-prune run --config=configs/streets_quickstart.py --workdir=runs/quickstart
"""

from tfseg_prune.pipeline import default_config


def get_config():
    config = default_config()
    config.name = "streets_quickstart"
    config.data.name = "streets"
    config.data.image_size = (96, 128)
    for split, count in (("train", 120), ("val", 16), ("test", 40)):
        config.data[split].count = count
        config.data[split].size = (96, 128)
    config.model.name = "deeplab_v3_plus"
    config.train.epochs = 6
    config.train.learning_rate = 3e-3
    config.train.scale = (0.8, 1.5)
    config.pruning.budget.macs = 0.5
    config.finetune.epochs = 4
    config.finetune.learning_rate = 2e-3
    config.export.precisions = ("float32", "float16", "int8")
    config.bench.max_seconds = 5.0
    return config
