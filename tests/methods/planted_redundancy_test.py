"""Channels that say the same twice are found, where norms only see that both are large.

In a trained network half of the channels of every layer get a twin, and the weights that read a
channel are split between the two at random, so that the network answers as before. A method that
is asked for the MACs of the original should remove one twin of each pair and nothing else. It
decides by itself; what it leaves of a pair then takes over what the other one was to its readers,
which surgery doesn't do, so that the change of the answers shows the choice and not the split.
"""

import collections

import keras
import numpy as np
import pytest
from keras import layers, ops

import tfseg_prune as tsp
from tfseg_prune import data, training
from tfseg_prune.graph import ChannelGraph

SIZE = (32, 48)
Found = collections.namedtuple("Found", "one both single change")


def _network(num_classes, widths):
    """Residual, depthwise, concatenated; `widths` of layers by name where not as usual."""

    def conv(x, filters, name, size=3, stride=1, relu=True):
        x = layers.Conv2D(
            widths.get(name, filters), size, stride, "same", use_bias=False, name=name
        )(x)
        x = layers.BatchNormalization(momentum=0.9, name=f"{name}_bn")(x)
        return layers.ReLU()(x) if relu else x

    i = keras.Input((*SIZE, 3))
    stem = conv(layers.Rescaling(1 / 128, offset=-1)(i), 12, "backbone_stem", stride=2)
    x = conv(conv(stem, 18, "backbone_a"), 12, "backbone_b", relu=False)
    x = layers.ReLU()(layers.Add()([x, stem]))
    down = conv(x, 24, "backbone_down", stride=2)
    x = conv(down, 36, "backbone_expand", 1)
    x = layers.DepthwiseConv2D(3, padding="same", use_bias=False, name="backbone_depthwise")(x)
    x = layers.ReLU()(layers.BatchNormalization(momentum=0.9, name="backbone_depthwise_bn")(x))
    x = layers.Add()([conv(x, 24, "backbone_project", 1, relu=False), down])
    x = layers.UpSampling2D(2, interpolation="bilinear")(x)
    x = conv(layers.Concatenate()([x, stem]), 24, "decoder_a")
    x = layers.Conv2D(num_classes, 1, name="decoder_logits")(conv(x, 18, "decoder_b"))
    return keras.Model(i, layers.UpSampling2D(2, interpolation="bilinear")(x))


class _Planted:
    """A trained network and which of its channels have a twin.

    Args:
        model: The trained network.
        twice: Boolean `[units]`, those that get one.
        shares: float `[units]`, what the first twin's readers have of the weight.
    """

    def __init__(self, model, twice, shares):
        self.model, self.shares = model, shares
        self.graph = ChannelGraph(model)
        self.times = 1 + (twice & self.graph.prunable)

    def network(self, shares=None):
        """The network with its twins, side by side in every layer."""
        shares = self.shares if shares is None else shares
        widths = {name: self.times[units].sum() for name, units in self.graph.producers.items()}
        wide = _network(self.model.output_shape[-1], {k: int(v) for k, v in widths.items()})
        for record in filter(lambda record: record.slots, self.graph.records.values()):
            layer = wide.get_layer(record.operation.name)
            position = {id(v): k for k, v in enumerate(record.operation.weights)}
            for slot in record.slots:
                value = np.array(slot.variable)
                depthwise = isinstance(layer, layers.DepthwiseConv2D)
                for axis, ids in slot.axes.items():
                    units = self.graph.unit_of[ids]
                    value = np.repeat(value, self.times[units], axis)
                    if axis in slot.reads and not depthwise:
                        rows = np.moveaxis(value, axis, -1)  # a view
                        rows *= np.concatenate([self._parts(unit, shares) for unit in units])
                layer.weights[position[id(slot.variable)]].assign(value)
        return wide

    def _parts(self, unit, shares):
        return [1.0] if self.times[unit] == 1 else [shares[unit], 1 - shares[unit]]

    def judge(self, plan, images):
        """Of how many pairs one twin goes or both, how many others go, and what that changes."""
        shares, outcome = self.shares.copy(), {}
        for name, units in self.graph.producers.items():
            kept = np.zeros(self.times[units].sum(), bool)
            kept[list(plan.keep.get(name, range(len(kept))))] = True
            for unit, stays in zip(units, np.split(kept, np.cumsum(self.times[units])[:-1])):
                outcome[int(unit)] = stays
                if stays.sum() == 1 and len(stays) == 2:
                    shares[unit] = float(stays[0])
        pairs = [stays.sum() for stays in outcome.values() if len(stays) == 2]
        small = tsp.shrink(self.network(shares), plan)
        before, after = (ops.convert_to_numpy(m(images)) for m in (self.model, small))
        return Found(
            one=pairs.count(1) / len(pairs),
            both=pairs.count(0),
            single=sum(not stays.any() for stays in outcome.values()),
            change=np.linalg.norm(after - before) / np.linalg.norm(before),
        )


@pytest.fixture(scope="module")
def train():
    keras.utils.set_random_seed(0)
    streets = data.load("streets", "train", size=SIZE, count=32)
    return data.Batches(streets, batch_size=8, image_size=SIZE)


@pytest.fixture(scope="module")
def planted(train):
    model = _network(train.dataset.num_classes, {})
    _compile(model, train, training.optimizer("adamw", learning_rate=5e-3, steps=40))
    losses = model.fit(train, epochs=10, shuffle=False, verbose=0).history["loss"]
    assert losses[-1] < 0.8 * losses[0], "it learnt"
    training.recalibrate(model, train)
    graph, rng = ChannelGraph(model), np.random.default_rng(0)
    twice = np.zeros(graph.num_units, bool)
    for group in graph.groups:
        twice[rng.permutation(group.members)[: len(group.members) // 2]] = True
    return _Planted(model, twice, rng.uniform(0.2, 0.8, graph.num_units))


def _compile(model, train, optimizer):
    training.compile_segmenter(
        model,
        optimizer=optimizer,
        num_classes=train.dataset.num_classes,
        ignore_index=train.dataset.ignore_index,
    )


def _observed(wide, train, budget, **options):
    """What SIRFP plans after an epoch without learning."""
    pruner = tsp.SIRFP(wide, budget=budget, every=1, **options)
    _compile(pruner.model, train, keras.optimizers.SGD(0.0))
    pruner.model.run_eagerly = True
    pruner.model.fit(train, callbacks=[pruner], shuffle=False, verbose=0)
    return pruner.plan()


def test_twins_go_first(planted, train):
    images, wide = train[0][0], planted.network()
    np.testing.assert_allclose(wide(images), planted.model(images), atol=1e-4)
    budget = tsp.Budget(macs=tsp.cost(planted.model).macs)
    assert 0.4 < budget.macs / tsp.cost(wide).macs < 0.6
    found = planted.judge(_observed(wide, train, budget, power=64), images)
    assert found.one >= 0.95, found
    assert found.change < 0.01, found
    # Norms of twins are equal: both go or both stay.
    by_norm = tsp.plan(wide, criterion="l1", budget=budget, ranking="scope", floor=0.02)
    failed = planted.judge(by_norm, images)
    assert failed.one < 0.1 and failed.both > 5 and failed.change > 0.3, failed
    # The paper's sum is about likeness on the whole: it takes both of some pairs, and others.
    paper = planted.judge(_observed(wide, train, budget, power=1), images)
    assert paper.one < 0.6 and paper.change > 0.1, paper
