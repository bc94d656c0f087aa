"""DeepLabV3+ with MobileNetV2 on CamVid by SIRFP: 60 % of the MACs go, in two rounds.

tfseg-prune run --config=configs/camvid_sirfp.py --workdir=runs/camvid_sirfp \
    --data_dir=DATA/camvid --weights=mobilenet_v2_1.0_imagenet_fp16.npz

The schedule is the paper's in kind: after training, some epochs in which the redundancy of all
channels is averaged, then 30 % of the MACs go; some more epochs, then 60 %; then the fine-tuning.
The metric is the released one, with its second prior, the gradients: of SIRFP's variants it kept the
most mIoU at 60 % (`benchmarks/results/camvid_criteria.json`, where the criterion "taylor" kept more).
No layer but the classifier is exempt, and neither the loss (GSRL) nor the resampling of the paper's
predecessor is used.
"""

from tfseg_prune.pipeline import default_config


def get_config():
    config = default_config()
    config.name = "camvid_sirfp"
    config.data.name = "camvid"
    config.data.image_size = (176, 240)
    config.model.name = "deeplab_v3_plus"
    config.train.epochs = 20
    config.train.learning_rate = 7e-4
    config.train.class_weights = "log"
    config.train.scale = (0.6, 1.8)
    config.pruning.method = "sirfp"
    config.pruning.sirfp.metric = "official"
    config.pruning.sirfp.prior = "gradient"
    # 0.4 times the scale by which mixed precision had multiplied the gradients: they alone rank.
    config.pruning.sirfp.prior_weight = 26214.4
    config.pruning.budget.macs = 0.4
    config.pruning.align = 8
    config.pruning.floor = 0.02
    config.pruning.fold_constants = "beta"
    config.pruning.rounds = 2
    config.pruning.observe_epochs = 3
    config.pruning.observe_learning_rate = 3e-4
    config.finetune.epochs = 15
    config.finetune.learning_rate = 5e-4
    return config
