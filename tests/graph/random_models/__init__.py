"""Random functional models: recipes (`.recipes`) that are drawn move by move.

One drawer serves hypothesis (`models()`) and `random.Random`. A *move* (`.moves`, `.meetings`,
`.parts`, `.attention`, `.operations`) takes a tensor and adds some steps to the recipe; which
tensor, and which other ones it meets, is drawn too, so that branches meet in ways that nobody
thought of.
"""

import contextlib
import dataclasses
import json
import random

import keras
from hypothesis import strategies as st

from tests.graph.random_models import (  # noqa: F401 - they register moves
    attention,
    meetings,
    moves,
    operations,
    parts,
)
from tests.graph.random_models.drawing import Drawing, HoldsSize
from tests.graph.random_models.recipes import build, fill
from tfseg_prune.graph import proof

__all__ = ["Drawn", "build", "draw", "models"]


@dataclasses.dataclass(frozen=True, repr=False)
class Drawn:
    """A random model and the recipe that builds it again; its `repr` is the recipe."""

    recipe: dict
    model: keras.Model

    def __repr__(self):
        return json.dumps(self.recipe)


def models():
    """Hypothesis strategy for `Drawn`."""

    def draw_apart(rng):
        state = random.getstate()  # Keras draws seeds of its own, which hypothesis doesn't want
        try:
            return draw(rng)
        finally:
            random.setstate(state)

    return st.randoms(use_true_random=False).map(draw_apart)


def draw(rng):
    """A random model with everything on board.

    Args:
        rng: `random.Random`, or what hypothesis gives for one.
    """
    if rng.randrange(12) == 0:
        drawn = _draw_for_any_size(rng)
        if drawn is not None:
            return drawn
    size = rng.choice([8, 8, 12, 16])
    inputs = [[size, rng.choice([8, size]), rng.choice([3, 3, 4])]]
    if rng.randrange(4) == 0:
        inputs.append(rng.choice([[size, size, 2], [6, 5], [7], ["int", 6]]))
    drawing = Drawing(rng, inputs)
    recipe = _finished(drawing)
    return Drawn(recipe, fill(drawing.building.model(recipe), recipe["seed"]))


def _draw_for_any_size(rng):
    """A model for images of any size; `None` where what was drawn takes one size only."""
    with contextlib.suppress(HoldsSize):
        recipe = _finished(Drawing(rng, [[8, 8, 3]], any_size=True)) | {"open": True}
        # Two ways of halving may meet at the size that was drawn and not at another.
        with contextlib.suppress(Exception):
            model = build(recipe)
            proof.answers_of(model, proof.random_batch(model, seed=0))
            return Drawn(recipe, model)
    return None


def _finished(drawing):
    """The recipe of a drawing that holds nothing but its inputs yet."""
    rng = drawing.rng
    for i in range(len(drawing.recipe["inputs"])):
        drawing.latest = drawing.stem(i)
    for _ in range(rng.randint(4, 10)):
        drawing.go_on()
    drawing.finish()
    named = {"named": True} if rng.randrange(10) == 0 else {}
    return drawing.recipe | named | {"seed": rng.randrange(10**6)}
