"""Which steps also stand in a model for images of any size."""

_LAYERS = set(
    "Conv2D DepthwiseConv2D SeparableConv2D Conv2DTranspose BatchNormalization ReLU LeakyReLU ELU"
    " Activation PReLU Dropout GaussianDropout SpatialDropout2D Add Subtract Multiply Maximum"
    " Minimum Average Concatenate GlobalAveragePooling2D GlobalMaxPooling2D GlobalAveragePooling1D"
    " GlobalMaxPooling1D MaxPooling2D AveragePooling2D UpSampling2D Dense GroupNormalization"
    " LayerNormalization RMSNormalization UnitNormalization MultiHeadAttention Rescaling Softmax"
    " GroupQueryAttention".split()
)
_OPERATIONS = set(
    "relu relu6 silu gelu tanh sigmoid elu softplus hard_silu leaky_relu abs sin erf square"
    " softsign negative hard_tanh add multiply subtract maximum minimum divide concatenate split"
    " take pad roll repeat mean max sum min max_pool average_pool greater less_equal where norm"
    " normalize rms_normalization glu softmax cumsum sort".split()
)


def is_free(step):
    """Whether nothing in a step holds the size of the image that it was drawn for."""
    settings = step.get("with", {})
    if "again" in step:
        return True
    if "slice" in step:
        return step["slice"][0] == "..."
    if step.get("layer") == "Reshape":
        return settings["target_shape"][:-1] == [-1]
    if settings.get("padding", "same") != "same" or len(step.get("constant", [])) > 1:
        return False
    if step.get("layer") == "UpSampling2D":
        return settings["size"] == [2, 2]
    if step.get("layer") in ("PReLU", "BatchNormalization"):
        return settings.get("shared_axes", [1, 2]) == [1, 2] and settings.get("axis", -1) == -1
    return step.get("layer") in _LAYERS or step.get("op") in _OPERATIONS
