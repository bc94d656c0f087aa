"""ERFNet on CamVid whose encoder becomes DG4 by gradual grouping, trained in phases.

tfseg-prune run --config=configs/camvid_erfnet_gradual.py --workdir=runs/camvid_gradual \
    --data_dir=DATA/camvid

The encoder (block D, depthwise separable) learns to segment at 1/8 of the resolution, while the
connections between the 4 groups of its 1x1 convolutions fade over the first 65 % of the steps. Then
it is DG4*, with real grouped convolutions; a decoder trains behind it, first alone, then both. The
dense control D* goes through the same phases with the same epochs.

With the encoder pre-trained on whole images, and connections that fade there (as in the rows
"proposed" of the paper, which used ImageNet), add

    --config.pretrain.data=tinyimagenet100 --config.pretrain.data_dir=DATA/tinyimagenet100 \
    --config.pretrain.classification_epochs=40 --config.pretrain.fade=classification
"""

from tfseg_prune.pipeline import default_config


def get_config():
    config = default_config()
    config.name = "camvid_erfnet_gradual"
    config.data.name = "camvid"
    config.data.image_size = (176, 240)
    config.model.name = "erfnet"
    config.model.options.block = "D"
    config.pretrain.encoder_epochs = 30
    config.pretrain.decoder_epochs = 5
    config.pretrain.fade = "encoder"
    config.train.epochs = 25
    config.train.batch_size = 6
    config.train.optimizer = "adam"  # with an L2 penalty, as the paper's
    config.train.learning_rate = 5e-4
    config.train.class_weights = "log"
    config.train.scale = (0.6, 1.8)
    config.pruning.method = "gradual_grouping"
    config.pruning.gradual_grouping.groups = 4
    config.finetune.epochs = 0  # all training is in the phases
    config.finetune.recalibrate = 0
    return config
