"""A convolution that is dense when its training starts and grouped when it ends."""

import numbers

import keras
import numpy as np
from keras import ops

from tfseg_prune.layers.settings import config_of

# What a gradual convolution can't honour, and what to do instead.
_REFUSED = {
    "groups": (1, "it fades the connections of a dense convolution; give `target_groups` alone"),
    "kernel_constraint": (
        None,
        "a constraint would look at the faded weights, too; use a regularizer",
    ),
    "lora_rank": (None, "merge the adaptation into the kernel first"),
}


def channel_order(channels, groups, assigned=None):
    """Positions of the channels group by group, within a group in the order that they had.

    Args:
        channels: int, number of channels.
        groups: int, at least 1, divides `channels`.
        assigned: The group of each channel, `channels` ints in [0, groups), each group equally
            often. Defaults to `None`: equal runs.

    Returns:
        int array `[channels]`; its `argsort` is the way back.

    Raises:
        ValueError: If the channels can't be grouped so.

    Example:

    >>> channel_order(4, 2, [1, 0, 1, 0]).tolist()
    [1, 3, 0, 2]
    """
    return np.argsort(_assigned("the channels", channels, groups, assigned), kind="stable")


def group_mask(in_channels, out_channels, groups, inputs=None, outputs=None):
    """Which channels a grouped convolution connects: M, block-diagonal by default.

    Args:
        in_channels: int, divisible by `groups`.
        out_channels: int, divisible by `groups`.
        groups: int, at least 1.
        inputs: The group of each input channel, as `assigned` of `channel_order`.
        outputs: The group of each output channel.

    Returns:
        Boolean array `[in_channels, out_channels]`.

    Raises:
        ValueError: If the channels can't be grouped so.

    Example:

    >>> group_mask(4, 2, 2).astype(int).tolist()
    [[1, 0], [1, 0], [0, 1], [0, 1]]
    """
    rows = _assigned("the inputs", in_channels, groups, inputs)
    columns = _assigned("the outputs", out_channels, groups, outputs)
    return rows[:, None] == columns


def grouped_kernel(kernel, groups, inputs=None, outputs=None):
    """What stays of a dense kernel: that of a Keras convolution with `groups`.

    Its channels stand group by group: it reads `x[..., channel_order(in, groups, inputs)]` and
    writes the dense convolution's outputs in `channel_order(out, groups, outputs)`.

    Args:
        kernel: Array `[..., in, out]`.
        groups: int, at least 1, divides both.
        inputs: The group of each input channel, as `assigned` of `channel_order`.
        outputs: The group of each output channel.

    Returns:
        Array `[..., in / groups, out]`.

    Raises:
        ValueError: If the channels can't be grouped so.
    """
    kernel = np.asarray(kernel)
    rows = channel_order(kernel.shape[-2], groups, inputs)
    columns = channel_order(kernel.shape[-1], groups, outputs)
    blocks = zip(np.split(rows, groups), np.split(columns, groups))
    return np.concatenate([kernel[..., ins, :][..., outs] for ins, outs in blocks], axis=-1)


@keras.saving.register_keras_serializable("tfseg_prune")
class GradualConv2D(keras.layers.Conv2D):
    """A dense 2-D convolution whose connections between groups fade by a factor alpha.

    It convolves with `W_eff = M W + alpha (1 - M) W`, where M is 1 between channels of one group
    and else 0 (Vallurupalli et al., Efficient Semantic Segmentation using Gradual Grouping). At
    alpha = 1, where it starts, it is the `Conv2D`, at alpha = 0 the grouped one, whose kernel is
    `grouped_kernel(layer.kernel, target_groups, ...)`. In between, the gradients of the weights
    between groups are scaled by alpha as well.

    `kernel` holds W, so at alpha = 0 the faded weights are still stored, and an optimizer with
    momentum or decay goes on moving them. Nothing reads them: not the convolution, not its
    gradients, and not the kernel's regularizer, which sees W_eff.

    Args:
        filters: int, number of output channels.
        kernel_size: As of `keras.layers.Conv2D`, as are all options that are not named here.
        target_groups: int, at least 1, divides the input channels and the filters. With 1 nothing
            ever fades.
        input_groups: The group of each input channel, ints in [0, target_groups), each equally
            often. Defaults to `None`: equal runs, as Keras groups.
        output_groups: The same of each output channel.

    Attributes:
        alpha: Non-trainable float32 scalar weight, 1 at first; `layer.alpha.assign(0.5)`.

    Raises:
        ValueError: If the channels can't be grouped so (those of the input when it is built), if
            it is to be grouped already, or with a kernel constraint or LoRA.
    """

    def __init__(
        self,
        filters,
        kernel_size,
        target_groups,
        *,
        input_groups=None,
        output_groups=None,
        **options,
    ):
        super().__init__(filters, kernel_size, **options)
        for key, (value, remedy) in _REFUSED.items():
            if options.get(key, value) != value:
                raise ValueError(
                    f"Invalid `{key}` of the gradual convolution '{self.name}'. Expected: {value}."
                    f" Received: {options[key]!r}. Remedy: {remedy}."
                )
        _assigned(f"the outputs of '{self.name}'", filters, target_groups, output_groups)
        self.target_groups = target_groups
        self.input_groups = _listed(input_groups)
        self.output_groups = _listed(output_groups)

    @classmethod
    def from_conv(cls, conv, target_groups, *, input_groups=None, output_groups=None):
        """A gradual convolution, not built yet, with the name and settings of a dense one.

        Args:
            conv: `keras.layers.Conv2D`.
            target_groups: See above, as of the rest.

        Raises:
            ValueError: If `conv` is something else, or grouped already.
        """
        if type(conv) is not keras.layers.Conv2D:
            raise ValueError(
                f"The layer '{conv.name}' can't become a gradual convolution. Expected: a"
                f" `keras.layers.Conv2D`. Received: a {type(conv).__name__}."
            )
        return cls(
            target_groups=target_groups,
            input_groups=input_groups,
            output_groups=output_groups,
            **config_of(conv),
        )

    def why_not_grouped(self):
        """What keeps this layer from being a plain grouped convolution now, or `None`."""
        if self.input_groups is not None or self.output_groups is not None:
            return "a gradual one whose channels are assigned to groups in an order of their own"
        alpha = float(ops.convert_to_numpy(self.alpha))
        return f"a gradual one that hasn't faded, at alpha = {alpha:.3g}" if alpha else None

    def to_grouped(self):
        """The plain `keras.layers.Conv2D`, not built yet, that this layer is at alpha = 0."""
        config = config_of(self)
        for key in ("target_groups", "input_groups", "output_groups"):
            config.pop(key)
        return keras.layers.Conv2D.from_config({**config, "groups": self.target_groups})

    def build(self, input_shape):
        channels = input_shape[1 if self.data_format == "channels_first" else -1]
        _assigned(f"the inputs of '{self.name}'", channels, self.target_groups, self.input_groups)
        self._mask = group_mask(
            channels, self.filters, self.target_groups, self.input_groups, self.output_groups
        )
        super().build(input_shape)
        if self.kernel_regularizer is not None:
            self._kernel.regularizer = _OfEffectiveKernel(self)
        self.alpha = self.add_weight(
            name="alpha", shape=(), initializer="ones", trainable=False, dtype="float32"
        )

    def effective_kernel(self, kernel=None):
        """W_eff, a tensor `[height, width, in, out]`, of the layer's own kernel by default."""
        kernel = ops.convert_to_tensor(self.kernel if kernel is None else kernel)
        alpha = ops.cast(self.alpha, kernel.dtype)
        return kernel * ops.where(self._mask, ops.ones_like(alpha), alpha)

    def convolution_op(self, inputs, kernel):
        return super().convolution_op(inputs, self.effective_kernel(kernel))

    def save_own_variables(self, store):
        super().save_own_variables(store)
        if self.built:
            store["alpha"] = self.alpha

    def load_own_variables(self, store):
        super().load_own_variables(store)
        if self.built:
            self.alpha.assign(store["alpha"])

    def get_config(self):
        names = ("target_groups", "input_groups", "output_groups")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}


class _OfEffectiveKernel(keras.regularizers.Regularizer):
    """The regularizer of a gradual convolution, as what the convolution reads would have it."""

    def __init__(self, layer):
        self.layer = layer

    def __call__(self, kernel):
        return self.layer.kernel_regularizer(self.layer.effective_kernel(kernel))


def _listed(assigned):
    return None if assigned is None else [int(group) for group in assigned]


def _assigned(what, channels, groups, assigned):
    """The group of each channel as an int array `[channels]`."""
    if isinstance(groups, bool) or not isinstance(groups, numbers.Integral) or groups < 1:
        raise ValueError(
            f"Can't group {what}. Expected: a positive integer as the number of groups. Received:"
            f" {groups!r}."
        )
    if channels is None or channels % groups:
        raise ValueError(
            f"Can't group {what}. Expected: a number of channels that {groups} divides. Received:"
            f" {channels}. Remedy: another number of groups, or leave this layer dense."
        )
    if assigned is None:
        return np.repeat(np.arange(groups), channels // groups)
    found = np.asarray(assigned)
    if (
        found.shape != (channels,)
        or found.dtype.kind not in "iu"
        or found.min() < 0
        or found.max() >= groups
        or (np.bincount(found) != channels // groups).any()
    ):
        raise ValueError(
            f"Can't group {what} as assigned. Expected: the group of each of {channels} channels,"
            f" from 0 to {groups - 1}, each {channels // groups} times. Received: {assigned!r}."
        )
    return found
