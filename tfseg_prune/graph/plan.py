"""PruningPlan: which channels stay. What every method ends in and everything else starts from."""

import dataclasses
import hashlib
import itertools
import json
import pathlib
import types

import keras
import numpy as np

from tfseg_prune import atomic
from tfseg_prune.graph.nodes import functional, is_nested, walk

_VERSION = 1


@dataclasses.dataclass(frozen=True)
class PruningPlan:
    """A decision about one architecture, and nothing else.

    ```python
    plan = tsp.plan(model, criterion="l1", budget=tsp.Budget(macs=0.5))
    plan.save("plan.json")
    small = tsp.shrink(model, tsp.PruningPlan.load("plan.json"))
    ```

    Attributes:
        keep: {layer name: indices of the output channels that stay}, of layers that lose some.
        widths: {layer name: number of output channels before}, of the same layers.
        groups: {layer name: groups} of dense convolutions that become grouped: of the channels
            that stay, equal runs of inputs and outputs remain connected.
        method: Name of the method that decided.
        budget: What was asked, as plain values: `{"macs": 0.5}`.
        scores: Summary of the scores, as plain values.
        architecture: One line per operation of the model that the plan was made for.
    """

    keep: dict = dataclasses.field(default_factory=dict)
    widths: dict = dataclasses.field(default_factory=dict)
    groups: dict = dataclasses.field(default_factory=dict)
    method: str = ""
    budget: dict = dataclasses.field(default_factory=dict)
    scores: dict = dataclasses.field(default_factory=dict)
    architecture: tuple = ()

    def __post_init__(self):
        keep = {name: tuple(sorted(int(i) for i in kept)) for name, kept in self.keep.items()}
        object.__setattr__(self, "architecture", tuple(self.architecture))
        for name in ("widths", "groups", "budget", "scores"):
            object.__setattr__(self, name, types.MappingProxyType(dict(getattr(self, name))))
        object.__setattr__(self, "keep", types.MappingProxyType(keep))
        for name, kept in keep.items():
            width = self.widths.get(name)
            if (
                width is None
                or not kept
                or len(set(kept)) < len(kept)
                or kept[0] < 0
                or kept[-1] >= width
            ):
                raise ValueError(
                    f"The plan's channels of '{name}' make no sense. Expected: distinct indices"
                    f" in [0, {width}), at least one. Received: {_short(kept)}"
                )
        for name, groups in self.groups.items():
            if not isinstance(groups, int) or groups < 1:
                raise ValueError(
                    f"The plan's groups of '{name}' make no sense. Expected: a positive integer."
                    f" Received: {groups!r}"
                )

    @property
    def fingerprint(self):
        """SHA-256 of the architecture, 16 hexadecimal digits."""
        return hashlib.sha256("\n".join(self.architecture).encode()).hexdigest()[:16]

    @classmethod
    def from_units(cls, graph, keep_units, **fields):
        """The plan that keeps these units of a graph.

        Args:
            graph: `ChannelGraph`.
            keep_units: Boolean array of `graph.num_units`.
            **fields: `groups`, `method`, `budget`, `scores`.

        Raises:
            ValueError: If no such model can exist (`ChannelGraph.check`).
        """
        keep_units = np.asarray(keep_units, bool)
        graph.check(keep_units)
        keep, widths = {}, {}
        for name, units in graph.producers.items():
            stays = keep_units[units]
            if not stays.all():
                keep[name] = np.flatnonzero(stays).tolist()
                widths[name] = len(units)
        return cls(
            keep=keep, widths=widths, architecture=describe_architecture(graph.model), **fields
        )

    def followed_by(self, later):
        """One plan for what two do in turn.

        Args:
            later: `PruningPlan` for the model that this one leaves.

        Returns:
            A `PruningPlan` for the model that this one is for; method, budget and scores are those
            of `later`.

        Raises:
            ValueError: If `later` is for another number of channels than this one leaves.
        """
        keep, widths = dict(self.keep), dict(self.widths)
        for name, kept in later.keep.items():
            if len(keep.get(name, range(later.widths[name]))) != later.widths[name]:
                raise ValueError(
                    f"The later plan doesn't follow. Expected: {len(keep[name])} channels of"
                    f" '{name}', which the first leaves. Received: one for {later.widths[name]}"
                )
            stays = keep.get(name, range(later.widths[name]))
            keep[name] = [stays[index] for index in kept]
            widths.setdefault(name, later.widths[name])
        return dataclasses.replace(
            later,
            keep=keep,
            widths=widths,
            groups={**self.groups, **later.groups},
            architecture=self.architecture,
        )

    def keep_units(self, graph):
        """Boolean array of the units of `graph` that stay.

        Raises:
            ValueError: If the plan was made for another architecture, or drops part of what is
                coupled, or what can't be dropped.
        """
        renamed = self.check(graph.model)
        keep_units = np.ones(graph.num_units, bool)
        dropped_by = {}
        for name, kept in self.keep.items():
            width = self.widths[name]
            name = renamed(name)
            units = graph.producers.get(name, ())
            if len(units) != width:
                raise ValueError(
                    f"The plan prunes '{name}' to {len(kept)} of {width} channels. Expected: the"
                    f" name of a layer that creates {width} channels. Received: one that creates"
                    f" {len(units)}"
                )
            dropped = np.setdiff1d(np.arange(len(units)), kept)
            keep_units[units[dropped]] = False
            dropped_by[name] = set(dropped.tolist())
        for name, units in graph.producers.items():
            torn = set(np.flatnonzero(~keep_units[units]).tolist()) - dropped_by.get(name, set())
            if torn:
                where = sorted(torn)
                partners = [
                    other
                    for other, dropped in dropped_by.items()
                    if np.isin(graph.producers[other][sorted(dropped)], units[where]).any()
                ]
                raise ValueError(
                    f"The plan keeps channels {_short(where)} of '{name}' but drops what they are"
                    f" coupled to in {', '.join(partners)}. Expected: coupled layers keep the same"
                    " channels. Remedy: make the plan with `tsp.plan` or `PruningPlan.from_units`."
                )
        graph.check(keep_units)
        return keep_units

    def groups_in(self, model):
        """`groups` by the layer names of `model`; errors as of `check`."""
        renamed = self.check(model)
        return {renamed(name): groups for name, groups in self.groups.items()}

    def check(self, model):
        """Compares the architecture of `model` with the one that the plan was made for.

        Names don't matter, so that a network that the same code built again (`conv2d_7` for
        `conv2d`) fits.

        Returns:
            Function from a layer name in the plan to the layer's name in `model`.

        Raises:
            ValueError: With the first differences, if it is another architecture.
        """
        lines = describe_architecture(model)
        if _anonymous(lines) == _anonymous(self.architecture):
            new_names = dict(zip(_paths(self.architecture), _paths(lines)))

            def renamed(name):
                path, part, rest = name.partition(":")
                return new_names.get(path, path) + part + rest

            return renamed
        pairs = itertools.zip_longest(
            self.architecture, lines, _anonymous(self.architecture), _anonymous(lines)
        )
        differences = [
            f"  plan:  {planned or 'nothing more'}\n  model: {present or 'nothing more'}"
            for planned, present, ours, theirs in pairs
            if ours != theirs
        ]
        more = f"\n  and {len(differences) - 3} more" if len(differences) > 3 else ""
        shown = "\n".join(differences[:3])
        raise ValueError(
            f"The plan was made for another architecture than '{model.name}'.\n"
            f"Expected: fingerprint {self.fingerprint}, {len(self.architecture)} operations.\n"
            f"Received: fingerprint {PruningPlan(architecture=lines).fingerprint},"
            f" {len(lines)} operations.\nFirst differences:\n{shown}{more}"
        )

    def to_json(self):
        """JSON text that a person can read: one layer a line."""
        layers = ",\n".join(
            f"    {json.dumps(name)}: {json.dumps({'of': self.widths[name], 'keep': list(kept)})}"
            for name, kept in self.keep.items()
        )
        lines = ",\n".join(f"    {json.dumps(line)}" for line in self.architecture)
        parts = [
            f'  "version": {_VERSION}',
            f'  "method": {json.dumps(self.method)}',
            f'  "budget": {json.dumps(dict(self.budget))}',
            f'  "scores": {json.dumps(dict(self.scores))}',
            f'  "groups": {json.dumps(dict(self.groups))}',
            f'  "layers": {{\n{layers}\n  }}',
            f'  "fingerprint": {json.dumps(self.fingerprint)}',
            f'  "architecture": [\n{lines}\n  ]',
        ]
        return "{\n" + ",\n".join(parts) + "\n}\n"

    @classmethod
    def from_json(cls, text):
        """The plan in a JSON text.

        Raises:
            ValueError: If it isn't one, or was changed by hand so that it contradicts itself.
        """
        try:
            data = json.loads(text)
            if data["version"] != _VERSION:
                raise KeyError(f"version {data['version']!r}")
            plan = cls(
                keep={name: layer["keep"] for name, layer in data["layers"].items()},
                widths={name: layer["of"] for name, layer in data["layers"].items()},
                groups=data["groups"],
                method=data["method"],
                budget=data["budget"],
                scores=data["scores"],
                architecture=data["architecture"],
            )
        except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                "This is no pruning plan. Expected: JSON as `PruningPlan.save` writes it, version"
                f" {_VERSION}. Received: {text[:60]!r}... ({type(error).__name__}: {error})"
            ) from error
        if plan.fingerprint != data.get("fingerprint"):
            raise ValueError(
                "The plan's fingerprint doesn't fit its architecture, so the file was changed or"
                f" cut. Expected: {plan.fingerprint}. Received: {data.get('fingerprint')}"
            )
        return plan

    def save(self, path):
        """Writes the plan as JSON, atomically."""
        atomic.write_text(path, self.to_json())

    @classmethod
    def load(cls, path):
        """Reads a plan; errors name the file."""
        try:
            return cls.from_json(pathlib.Path(path).read_text())
        except ValueError as error:
            raise ValueError(f"'{path}': {error}") from error


def describe_architecture(model):
    """One line per operation: what a plan depends on, whatever the weights and the input size.

    A line holds the operation's path, its type, the shapes of its weights, its groups and the
    operations that it reads: `conv1: Conv2D 3x3x3x32 32 <- image`.
    """
    lines = []
    seen = set()

    def describe(model, prefix):
        names = {}
        for tensor in functional(model).inputs:
            names[id(tensor)] = tensor.name
            lines.append(f"{prefix}{tensor.name}: Input {tensor.shape[-1] if tensor.shape else ''}")
        for node in walk(model):
            operation = node.operation
            sources = [names[id(x)] for x in node.arguments.keras_tensors]
            for position, x in enumerate(node.outputs):
                names[id(x)] = operation.name + (f"[{position}]" if position else "")
            shapes, groups = [], getattr(operation, "groups", 1)
            if not is_nested(operation):
                weights = getattr(operation, "weights", [])
                shapes = ["x".join(map(str, weight.shape)) for weight in weights]
            elif id(operation) not in seen:
                describe(operation, f"{prefix}{operation.name}/")
            seen.add(id(operation))
            if isinstance(groups, int) and groups > 1:
                shapes.append(f"groups={groups}")
            shapes += _settings(operation)
            what = " ".join([type(operation).__name__, *shapes])
            lines.append(f"{prefix}{operation.name}: {what} <- {', '.join(sources)}")
        answers = [names[id(x)] for x in functional(model).outputs]
        lines.append(f"{prefix}output: <- {', '.join(answers)}")

    describe(model, "")
    return tuple(lines)


def _settings(operation):
    """The settings of a layer that make it another one at the same weights, where not default."""
    if not isinstance(operation, keras.layers.Layer):
        return []
    shown = []
    for name, default in (("strides", 1), ("dilation_rate", 1), ("padding", "valid"), ("axis", -1)):
        value = getattr(operation, name, default)
        many = (default,) * len(value) if isinstance(value, tuple) else default
        if value != many:
            shown.append(f"{name}={value}".replace(", ", ","))
    activation = getattr(operation, "activation", None)
    name = getattr(activation, "__name__", "linear")
    return shown + ([] if name == "linear" else [f"activation={name}"])


def _paths(lines):
    return [line.split(": ", 1)[0] for line in lines]


def _anonymous(lines):
    """The lines with a number for every name, so that auto-numbered names don't matter."""
    numbers = {}
    for path in _paths(lines):
        numbers.setdefault(path, len(numbers))
    anonymous = []
    for line in lines:
        path, rest = line.split(": ", 1)
        what, arrow, sources = rest.partition("<- ")
        prefix = path[: path.rfind("/") + 1]
        reads = []
        for source in sources.split(", ") if arrow else []:
            name, bracket, position = source.partition("[")
            reads.append(f"{numbers.get(prefix + name)}{bracket}{position}")
        anonymous.append((numbers[path], what, tuple(reads)))
    return anonymous


def _short(values):
    values = list(values)
    return f"{values[:8]}" + (f" and {len(values) - 8} more" if len(values) > 8 else "")
