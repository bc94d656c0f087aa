"""DeepLabV3+ with MobileNetV2 on CamVid: half of the MACs by L1 magnitude, fine-tuned.

tfseg-prune run --config=configs/camvid_deeplab_magnitude.py --workdir=runs/camvid \
    --data_dir=DATA/camvid --weights=mobilenet_v2_1.0_imagenet_fp16.npz
"""

from tfseg_prune.pipeline import default_config


def get_config():
    config = default_config()
    config.name = "camvid_deeplab_magnitude"
    config.data.name = "camvid"
    config.data.image_size = (176, 240)
    config.model.name = "deeplab_v3_plus"
    config.train.epochs = 20
    config.train.learning_rate = 7e-4
    config.train.class_weights = "log"
    config.train.scale = (0.6, 1.8)
    config.pruning.criterion = "l1"
    config.pruning.budget.macs = 0.5
    config.pruning.align = 8
    config.pruning.ranking = "layer"
    config.finetune.epochs = 15
    config.finetune.learning_rate = 5e-4
    config.bench.max_seconds = 60.0
    return config
