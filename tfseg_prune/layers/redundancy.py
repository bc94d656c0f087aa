"""Redundancy between the channels of a feature map, measured while a network trains."""

import itertools
import math

import keras
from keras import ops

METRICS = ("cosine", "correlation", "official")
_EPSILON = 1e-5


def check_metric(metric):
    """Raises a ValueError unless there is such a metric."""
    if metric not in METRICS:
        raise ValueError(
            f"Unknown redundancy metric. Expected: one of {', '.join(METRICS)}. Received:"
            f" {metric!r}"
        )


def redundancy(features, *, metric="cosine", pooled=False):
    """The redundancy matrix of one batch of features.

    Args:
        features: Tensor `[batch, height, width, channels]`, unpooled.
        metric: "cosine" (maps of Euclidean norm 1, so that a map weighs the same at any resolution;
            maps of a few pixels are still more alike by chance), "correlation" (the same without
            each map's mean: what all pixels share says nothing about places) or "official" (maps of
            L1 norm 1, as in the released code: entries grow as the maps get smaller).
        pooled: Whether each map is averaged to one number first, which leaves one vector over the
            batch per channel: the ablation that forgets where things are. Batches of one image say
            nothing then.

    Returns:
        float32 tensor `[channels, channels]`, symmetric, diagonal included.

    Raises:
        ValueError: On an unknown metric.
    """
    check_metric(metric)
    features = ops.cast(features, "float32")
    channels = features.shape[-1]
    if pooled:
        maps = ops.expand_dims(ops.mean(features, axis=(1, 2)), 0)
    else:
        maps = ops.reshape(features, (ops.shape(features)[0], -1, channels))
    if metric == "correlation":
        maps = maps - ops.mean(maps, axis=1, keepdims=True)
    if metric == "official":
        norm = ops.sum(ops.abs(maps), axis=1, keepdims=True) + _EPSILON
    else:
        norm = ops.sqrt(ops.sum(ops.square(maps), axis=1, keepdims=True)) + _EPSILON
    maps = maps / norm
    count = ops.cast(ops.shape(maps)[0], "float32")
    return ops.einsum("bpc,bpd->cd", maps, maps) / count


def edge_strength(features):
    """How strongly each channel draws edges: the spread of its Sobel magnitude.

    `e_c = mean_b std_xy |Sobel F_bc|` with the kernel [[-.5, 0, .5], [-1, 0, 1], [-.5, 0, .5]]
    and its transpose, zero padding, and the standard deviation over pixels.

    Args:
        features: Tensor `[batch, height, width, channels]`.

    Returns:
        float32 tensor `[channels]`.
    """
    x = ops.pad(ops.cast(features, "float32"), ((0, 0), (1, 1), (1, 1), (0, 0)))
    across = x[:, :, 2:] - x[:, :, :-2]
    down = x[:, 2:] - x[:, :-2]
    gx = 0.5 * across[:, :-2] + across[:, 1:-1] + 0.5 * across[:, 2:]
    gy = 0.5 * down[:, :, :-2] + down[:, :, 1:-1] + 0.5 * down[:, :, 2:]
    magnitude = ops.sqrt(ops.square(gx) + ops.square(gy))
    return ops.mean(ops.std(magnitude, axis=(1, 2)), axis=0)


@keras.saving.register_keras_serializable("tfseg_prune")
class RedundancyObserver(keras.layers.Layer):
    """Passes features on and keeps moving averages of how redundant their channels are.

    In training it adds to `R <- decay R + (1 - decay) R_new` (and likewise for the edges), in
    float32 and as non-trainable weights, so that checkpoints hold them; otherwise it does nothing.

    Args:
        metric: See `redundancy`.
        pooled: See `redundancy`.
        edges: Whether to keep the `edge_strength`, too.
        every: Observes every so many training steps. Defaults to `1`.
        pixels: R is taken from at most so many pixels per image, on a regular grid; `None` takes
            all. Edges always see the full resolution. Defaults to `None`.
        decay: Of the moving average, per observation. Defaults to `0.999`, the paper's.
    """

    def __init__(
        self,
        *,
        metric="cosine",
        pooled=False,
        edges=False,
        every=1,
        pixels=None,
        decay=0.999,
        **options,
    ):
        # Features of half precision stay so, and what is kept of them is float32 all the same.
        super().__init__(autocast=False, **options)
        check_metric(metric)
        for name, value, wanted in (
            ("every", every, every >= 1),
            ("pixels", pixels, pixels is None or pixels >= 1),
            ("decay", decay, 0 <= decay < 1),
        ):
            if not wanted:
                raise ValueError(
                    f"Invalid `{name}` of an observer. Expected: `every` and `pixels` of 1 or more"
                    f" (or pixels=None), and `decay` in [0, 1). Received: {name}={value!r}"
                )
        self.metric = metric
        self.pooled = pooled
        self.edges = edges
        self.every = every
        self.pixels = pixels
        self.decay = decay

    def build(self, input_shape):
        channels = input_shape[-1]

        def state(name, shape, dtype="float32"):
            return self.add_weight(
                name=name,
                shape=shape,
                dtype=dtype,
                initializer="zeros",
                trainable=False,
                autocast=False,
            )

        self.redundancy = state("redundancy", (channels, channels))
        self.edge = state("edge", (channels,)) if self.edges else None
        self.seen = state("seen", (), "int32")
        self.steps = state("steps", (), "int32")

    def call(self, x, training=False):
        if training:
            values = [v for v in (self.redundancy, self.edge) if v is not None]
            due = ops.equal(self.steps % self.every, 0)
            unchanged = [ops.convert_to_tensor(value) for value in values]
            now = ops.cond(due, lambda: self._observed(x, values), lambda: unchanged)
            for variable, value in zip(values, now):
                variable.assign(value)
            self.seen.assign_add(ops.cast(due, "int32"))
            self.steps.assign_add(1)
        return x

    def _observed(self, x, values):
        x = ops.stop_gradient(ops.cast(x, "float32"))
        new = [redundancy(self._sampled(x), metric=self.metric, pooled=self.pooled)]
        if self.edges:
            new.append(edge_strength(x))
        return [self.decay * old + (1 - self.decay) * fresh for old, fresh in zip(values, new)]

    def _sampled(self, x):
        height, width = x.shape[1:3]
        if self.pixels is None or self.pooled or None in (height, width):
            return x
        fits = (
            stride
            for stride in itertools.count(1)
            if math.ceil(height / stride) * math.ceil(width / stride) <= self.pixels
        )
        stride = next(fits)
        return x[:, ::stride, ::stride]

    def averages(self):
        """(R, edges or None) as arrays, freed of their start at zero: divided by 1 - decay^n.

        Raises:
            ValueError: If nothing was observed yet.
        """
        count = int(ops.convert_to_numpy(self.seen))
        if not count:
            raise ValueError(
                f"The observer '{self.name}' has seen nothing. Expected: some steps of training"
                " with it. Received: none"
            )
        weight = 1 - self.decay**count
        return tuple(
            None if variable is None else ops.convert_to_numpy(variable) / weight
            for variable in (self.redundancy, self.edge)
        )

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        names = ("metric", "pooled", "edges", "every", "pixels", "decay")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}
