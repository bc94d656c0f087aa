"""ERFNet on Cityscapes as in the paper of gradual grouping: DG4*-proposed, trained in phases.

tfseg-prune run --config=configs/cityscapes_erfnet_gradual.py --workdir=runs/cityscapes_gradual \
    --data_dir=DATA/cityscapes --config.pretrain.data_dir=DATA/tinyimagenet100

Needs a GPU; it hasn't been run. The schedule is ERFNet's and the paper's: the encoder (block D)
classifies while the connections between the 4 groups of its 1x1 convolutions fade; then it segments
at 1/8 of the resolution (class weights 1 / ln(1.20 + frequency)); then the light decoder trains
behind the frozen encoder for some epochs, and both together (1 / ln(1.10 + frequency)) for the
rest. Adam with an L2 penalty of 1e-4, rate 5e-4, poly decay with power 0.9 in each phase, batches
of 6; flips and shifts by up to 2 pixels.

What differs from the paper: 100 classes of ImageNet at 64x64 pixels in place of all; alpha falls
linearly over the first 65 % of the steps, since the paper doesn't say how. Its IoU is of half the
resolution, this one's of the images as resized here.

`val` and `test` are the same 500 images, as the labels of the true test images are not public: so
nothing may be chosen on `val` (train.keep = "last").
"""

from tfseg_prune.pipeline import default_config


def get_config():
    config = default_config()
    config.name = "cityscapes_erfnet_gradual"
    config.data.name = "cityscapes"
    config.data.image_size = (512, 1024)
    config.data.test.source = "val"
    config.data.workers = 8
    config.model.name = "erfnet"
    config.model.options.block = "D"
    config.model.options.decoder = "light"
    config.pretrain.data = "tinyimagenet100"
    config.pretrain.data_dir = "DATA/tinyimagenet100"
    config.pretrain.classification_epochs = 100
    config.pretrain.encoder_epochs = 150
    config.pretrain.decoder_epochs = 10
    config.pretrain.fade = "classification"
    config.train.epochs = 140
    config.train.batch_size = 6
    config.train.optimizer = "adam"
    config.train.learning_rate = 5e-4
    config.train.power = 0.9
    config.train.weight_decay = 1e-4
    config.train.class_weights = "log"
    config.train.scale = (1.0, 1.0)
    config.train.shift = 2
    config.train.jitter = 0.0
    config.pruning.method = "gradual_grouping"
    config.pruning.gradual_grouping.groups = 4
    config.finetune.epochs = 0  # all training is in the phases
    config.finetune.recalibrate = 0
    config.export.parity_images = 50
    return config
