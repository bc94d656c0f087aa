"""DeepLabV3+ with MobileNetV2 on CamVid: half of the MACs by L1 magnitude, fine-tuned.

tfseg-prune run --config=configs/camvid_deeplab_magnitude.py --workdir=runs/camvid \
    --data_dir=DATA/camvid --weights=mobilenet_v2_1.0_imagenet_fp16.npz

At 240x176 on 2 CPU cores, shared with other work, about an hour: 17 minutes of training, 8 of
fine-tuning, 10 of the control, the rest export, proof and timing. Expected (seed 0, one run):
test mIoU 0.569 dense and 0.486 pruned, at 50.0 % of the MACs and 51.5 % of the parameters;
float32 files agree with Keras at 100.000 % of the pixels of all 233 test images, int8 at 96.7 %
(dense) and 94.2 % (pruned); pruned / dense latency 0.539 in float32, realised speed-up fraction
0.93. The run is benchmarks/results/camvid_deeplab_magnitude.json.
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
    return config
