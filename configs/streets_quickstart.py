"""Quick start: UNet-8 on the synthetic streets, half of the MACs.

tfseg-prune run --config=configs/streets_quickstart.py --workdir=runs/quickstart
"""

from tfseg_prune.pipeline import default_config


def get_config():
    config = default_config()
    config.name = "streets_quickstart"
    config.data.name = "streets"
    config.data.image_size = (96, 128)
    config.data.train.count = 120
    config.data.val.count = 24
    config.data.test.count = 48
    for split in (config.data.train, config.data.val, config.data.test):
        split.size = (96, 128)
    config.model.name = "unet"
    config.model.options.width = 16
    config.train.epochs = 6
    config.train.learning_rate = 2e-3
    config.train.scale = (0.8, 1.5)
    config.finetune.epochs = 4
    config.finetune.learning_rate = 1e-3
    config.pruning.budget.macs = 0.5
    config.export.precisions = ("float32", "float16", "int8")
    config.export.parity_images = 24
    config.bench.max_seconds = 5.0
    return config
