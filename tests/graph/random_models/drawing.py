"""A recipe under construction, and how its tensors are chosen and made to meet."""

import contextlib
import dataclasses
import math

import keras

from tests.graph.random_models.any_size import is_free
from tests.graph.random_models.recipes import Building

MOVES = []
_WIDTHS = (4, 5, 6, 8, 9, 10, 12, 16)
_MOST_VALUES = 16 * 16 * 32


@dataclasses.dataclass(frozen=True)
class Move:
    """A way to go on from a tensor.

    Attributes:
        function: `(drawing, number of a tensor) -> number of a tensor or None`; `None` says that
            the move can't be made on this tensor.
        weight: How often it is tried.
        ranks: Ranks, without the batch, of the tensors that it takes.
    """

    function: object
    weight: int
    ranks: tuple


def move(weight, *ranks):
    """Decorator: adds a move for tensors of these ranks, the batch not counted."""

    def register(function):
        MOVES.append(Move(function, weight, ranks))
        return function

    return register


class HoldsSize(Exception):
    """A step can't be part of a model for images of any size."""


class Drawing:
    """A recipe under construction, and the Keras tensors that it stands for.

    Attributes:
        level: How many models this one is nested in.
        any_size: Whether only steps are wanted that hold no size of an image.
    """

    def __init__(self, rng, inputs, *, level=0, any_size=False):
        self.rng = rng
        self.level = level
        self.any_size = any_size
        self.building = Building(inputs)
        self.recipe = {"inputs": inputs, "steps": [], "outputs": []}
        self.inputs = set(range(len(inputs)))
        self.sources = []
        self.read = set()
        self.latest = 0

    # What moves draw with.

    def chance(self, percent):
        return self.rng.randrange(100) < percent

    def choice(self, *values):
        return self.rng.choice(values)

    def width(self):
        return self.rng.choice(_WIDTHS)

    def divisor(self, number, most=4):
        """A divisor of `number` above 1, or 1 where there is none."""
        found = [n for n in range(2, min(most, number) + 1) if number % n == 0]
        return self.rng.choice(found) if found else 1

    # What moves add.

    def shape(self, i):
        """Shape of a tensor without the batch."""
        return tuple(self.building.tensors[i].shape[1:])

    def add(self, step):
        """Adds a step; answers the number of its tensor, a list of numbers where it has several."""
        if self.any_size and not is_free(step):
            raise HoldsSize
        numbers = self.building.add(step)
        self.recipe["steps"].append(step)
        on = [i for i in keras.tree.flatten(step["on"]) if not isinstance(i, str)]
        self.sources.append((on, numbers))
        self.read.update(on)
        return numbers[0] if len(numbers) == 1 else numbers

    def layer(self, name, *on, **settings):
        return self.add({"layer": name, "with": settings, "on": list(on)})

    def op(self, name, *on, **settings):
        return self.add({"op": name, "with": settings, "on": list(on)})

    def with_constant(self, name, i, shape, first=False):
        step = {"op": name, "constant": list(shape), "on": [i]}
        return self.add(step | {"first": True} if first else step)

    def slice(self, i, *key):
        return self.add({"slice": list(key), "on": [i]})

    def reshape(self, i, shape):
        """By the layer or by the operation, with or without a size to be found out."""
        shape = [int(size) for size in shape]
        if self.shape(i) == tuple(shape):
            return i
        kind = self.rng.randrange(3)
        if kind == 0:
            return self.layer("Reshape", i, target_shape=shape)
        if kind == 1 and len(shape) > 1:
            free = self.rng.randrange(len(shape))
            shape = [-1 if axis == free else size for axis, size in enumerate(shape)]
            return self.layer("Reshape", i, target_shape=shape)
        return self.op("reshape", i, newshape=[-1, *shape])

    def transpose(self, i, axes):
        """`axes` count the batch, which stays first."""
        if self.chance(50):
            return self.layer("Permute", i, dims=list(axes[1:]))
        return self.op("transpose", i, axes=list(axes))

    # Which tensors meet.

    def go_on(self):
        """Makes one random move from some tensor."""
        for _ in range(50):
            i = self.real(self.latest if self.chance(60) else self.any_tensor())
            if len(self.shape(i)) > 4:
                i = self.to_rank(i, (1, 1, 1))
            fitting = [m for m in MOVES if len(self.shape(i)) in m.ranks]
            place = self.rng.randrange(sum(m.weight for m in fitting))
            for m in fitting:
                place -= m.weight
                if place < 0:
                    break
            if math.prod(self.shape(i)) > _MOST_VALUES:
                self.latest = self.smaller(i)
                return
            with contextlib.suppress(HoldsSize):
                answer = m.function(self, i)
                if answer is not None:
                    self.latest = answer
                    return

    def stem(self, i):
        """What reads an input first; without it all that meets the input is frozen."""
        if "int" in self.building.tensors[i].dtype:
            i = self.real(i)
        else:
            # The check's images reach up to 255, where attention amplifies rounding beyond bounds.
            i = self.layer("Rescaling", i, scale=1 / 64)
            self.inputs.add(i)
        if self.chance(10):
            return i
        if len(self.shape(i)) == 1:
            return self.layer("Dense", i, units=self.width())
        name = f"Conv{len(self.shape(i)) - 1}D"
        return self.layer(name, i, filters=self.width(), kernel_size=3, padding="same")

    def usable(self):
        """The numbers of all tensors but comparisons, which a rounding turns round."""
        return [i for i, tensor in enumerate(self.building.tensors) if tensor.dtype != "bool"]

    def any_tensor(self, but=None):
        """Some tensor, rather one that nothing reads yet."""
        numbers = [i for i in self.usable() if i != but]
        inner = [i for i in numbers if i not in self.inputs]
        if inner and self.level == 0 and self.chance(90):
            numbers = inner
        loose = [i for i in numbers if i not in self.read]
        if loose and self.chance(40):
            return self.rng.choice(loose)
        return self.rng.choice(numbers) if numbers else but

    def smaller(self, i):
        """Few channels again, of a tensor that has become too large."""
        if len(self.shape(i)) == 3 and min(self.shape(i)[:2]) > 1:
            i = self.layer("Conv2D", i, filters=8, kernel_size=2, strides=2, padding="same")
            return i
        return self.layer("Dense", i, units=8)

    def partner(self, i, exact=False):
        """Another tensor, adapted so that it can meet `i` elementwise."""
        return self.adapt(self.any_tensor(but=i), self.shape(i), exact)

    def real(self, i):
        """Tensor `i`, embedded where it holds whole numbers."""
        if "float" in self.building.tensors[i].dtype:
            return i
        return self.layer("Embedding", i, input_dim=300, output_dim=self.width())

    def adapt(self, i, shape, exact=True):
        """Tensor `i` brought to a shape; where not `exact` sometimes to one that broadcasts."""
        i = self.to_rank(i, shape)
        here = self.shape(i)
        if here[:-1] != shape[:-1] and (exact or set(here[:-1]) != {1}):
            i = self.to_size(i, shape)
        if self.shape(i)[-1] != shape[-1]:
            wide = 1 if not exact and len(shape) > 1 and self.chance(10) else shape[-1]
            i = self.project(i, wide)
        return i

    def project(self, i, width):
        """Another number of channels."""
        if len(self.shape(i)) == 3 and self.chance(80):
            return self.layer("Conv2D", i, filters=width, kernel_size=1)
        if self.chance(15):
            letters = "bcdefg"[: len(self.shape(i))]
            return self.layer(
                "EinsumDense",
                i,
                equation=f"{letters}x,xy->{letters}y",
                output_shape=[*self.shape(i)[:-1], width],
                bias_axes=self.choice("y", None),
            )
        return self.layer("Dense", i, units=width)

    def to_rank(self, i, shape):
        """Tensor `i` with as many axes as `shape`."""
        i = self.real(i)
        while len(self.shape(i)) > max(len(shape), 1):
            here = self.shape(i)
            rank = len(here)
            if rank == 3 and len(shape) == 2 and self.chance(60):
                i = self.reshape(i, (here[0] * here[1], here[2]))
            elif rank == 3 and len(shape) == 1:
                kind = self.choice("Average", "Max")
                i = self.layer(f"Global{kind}Pooling2D", i)
            elif rank > 3 and self.chance(50):
                i = self.reshape(i, (*here[:-2], here[-2] * here[-1]))
            else:
                i = self.op("mean", i, axis=self.rng.randrange(1, rank))
        here = self.shape(i)
        if len(here) == 2 and len(shape) == 3 and here[0] == shape[0] * shape[1]:
            return self.reshape(i, (*shape[:2], here[1]))
        while len(self.shape(i)) < len(shape):
            here = self.shape(i)
            if self.chance(50):
                i = self.op("expand_dims", i, axis=1)
            else:
                i = self.reshape(i, (1, *here))
        return i

    def to_size(self, i, shape):
        """Tensor `i` with the sizes of `shape`, the channels aside."""
        here = self.shape(i)
        if len(here) == 3:
            height, width = shape[:2]
            times = (height // here[0], width // here[1])
            interpolation = self.choice("bilinear", "nearest")
            if (here[0] * times[0], here[1] * times[1]) == (height, width) and self.chance(40):
                return self.layer("UpSampling2D", i, size=list(times), interpolation=interpolation)
            if self.chance(50):
                settings = {"height": height, "width": width, "interpolation": interpolation}
                return self.layer("Resizing", i, **settings)
            return self.op("image.resize", i, size=[height, width], interpolation=interpolation)
        for axis in range(len(shape) - 1):
            if self.shape(i)[axis] == shape[axis]:
                continue
            # A dense layer along that axis: it mixes places, and the channels pass beside it.
            rank = len(shape)
            axes = [0, *(a + 1 for a in range(rank) if a != axis), axis + 1]
            back = [0, *(axes.index(a + 1) for a in range(rank))]
            i = self.layer("Dense", self.transpose(i, axes), units=shape[axis])
            i = self.transpose(i, back)
        return i

    # The end.

    def nested(self, inputs, moves):
        """A recipe for a model inside this one."""
        inner = Drawing(self.rng, [list(shape) for shape in inputs], level=self.level + 1)
        for _ in range(moves):
            inner.go_on()
        inner.finish()
        return inner.recipe | {"named": True} if self.chance(10) else inner.recipe

    def finish(self):
        """Reads what nothing reads yet, and chooses the outputs."""
        loose = [i for i in self.usable() if i not in self.read and i != self.latest]
        loose.append(self.latest)
        last = loose.pop()
        ends = []
        for i in loose:
            if len(ends) < 2 and self.chance(25):
                ends.append(i)
                continue
            with contextlib.suppress(HoldsSize):
                partner = self.adapt(i, self.shape(last))
                kind = self.choice("Add", "Concatenate")
                last = self.layer(kind, [last, partner])
        ends.append(last)
        if self.level == 0:
            ends = [self.head(i) for i in ends]
            inner = [i for i in self.usable() if i in self.read and i not in self.inputs]
            if inner and self.chance(15):
                ends.append(self.rng.choice(inner))
        self.recipe["outputs"] = list(dict.fromkeys(ends))

    def head(self, i):
        """What most networks end in: a layer that reads the channels, which so aren't outputs."""
        i = self.project(self.to_rank(i, self.shape(i)), 3)
        if self.chance(15):
            i = self.layer("Softmax", i)
        return i
