"""Whether two models answer the same, up to the noise of float arithmetic."""

import math

import keras
import numpy as np
from keras import ops
from keras.src import backend

from tfseg_prune.graph.nodes import functional, interpret, tensors_in

# Largest difference between two float32 networks that sum the same numbers in another order,
# relative to the largest output. Networks that amplify noise (a saturated softmax, the norm of what
# is nearly constant, a difference of what is nearly equal) get what a change of one in a million in
# the input and of one rounding in every operation's answer does to them, ten times over, but never
# more than the cap.
TOLERANCE = 1e-5
_PERTURBATION = 1e-6
_ROUNDING = 1e-7
_NOISE_FACTOR = 10
_TOLERANCE_CAP = 1e-3
# What noise could change by half of it is rounding in the place of a zero (the spread of what is
# constant) and says nothing.
_SAYS_NOTHING = 0.5
# Largest difference where layers compute in half precision: 16 units in the last place.
_COARSE = {"float16": 16 * 2.0**-10, "bfloat16": 16 * 2.0**-7}


class SurgeryError(RuntimeError):
    """The smaller model doesn't answer as its masked twin does."""


def check_equal(first, second, *, tolerance=TOLERANCE, seed=0):
    """Compares two models on random input.

    One image is normal noise, one is uniform in [0, 255], so that networks with either input
    range are driven through their working range.

    Args:
        first: `keras.Model`, the reference.
        second: `keras.Model` with the same inputs and outputs.
        tolerance: Largest difference, relative to the largest absolute output of `first` for the
            same image.
        seed: Seed of the input.

    Returns:
        The largest relative difference found.

    Raises:
        SurgeryError: If shapes differ, an answer isn't finite, or the difference is larger.
    """
    outputs = functional(first).outputs
    batch = random_batch(first, seed)

    def reference(batch, rounded=None):
        if rounded is None:
            return answers_of(first, batch)

        def call(operation, node, args, kwargs):
            return rounded(operation(*args, **kwargs), tensors_in((args, kwargs)))

        answers = interpret(first, batch, call, outputs)
        return [np.asarray(ops.convert_to_numpy(answer)) for answer in answers]

    names = [tensor.name for tensor in outputs]
    tolerance = scaled_tolerance(first, tolerance)
    return compare(names, reference, answers_of(second, batch), batch, tolerance)


def scaled_tolerance(model, tolerance):
    """The tolerance of float32, or what the coarsest type that a layer computes in allows."""
    types = {str(layer.compute_dtype) for layer in model.layers} & set(_COARSE)
    return max([tolerance, *(_COARSE[name] for name in types)])


def compare(names, reference, answers, batch, tolerance, final=None):
    """The largest relative difference; `check_equal` says what is an error.

    Args:
        names: Names of what is compared.
        reference: Function from a batch to the arrays that `answers` must equal. With a second
            argument, a function, it lets that change what every operation answers, given what it
            read.
        answers: Arrays.
        batch: Input that gave the answers.
        tolerance: See `check_equal`.
        final: Positions of what must not be rounding noise altogether. Defaults to all.
    """
    final = range(len(names)) if final is None else final
    references = reference(batch)
    perturbed = None
    worst = 0.0
    unsaid = set()
    for position, (name, expected, answer) in enumerate(zip(names, references, answers)):
        if expected.shape != answer.shape:
            raise SurgeryError(
                f"The smaller model and the masked twin differ at '{name}'. Expected: shape"
                f" {expected.shape}. Received: {answer.shape}"
            )
        if not np.isfinite(expected).all():
            raise SurgeryError(
                f"The masked twin answers NaN or infinity at '{name}', so nothing can be compared."
                " Remedy: look for NaN in the model's weights or a division by zero (where what is"
                " divided by is zeroed), or pass `check=False`."
            )
        relative = _relative_difference(expected, answer)
        allowed = tolerance
        if not relative <= allowed:
            if perturbed is None:
                rng = np.random.default_rng(1)
                perturbed = reference(_perturb(batch, rng, _PERTURBATION), _rounding(rng))
            noise = _relative_difference(expected, perturbed[position])
            if _NOISE_FACTOR * noise > _SAYS_NOTHING:
                unsaid.add(position)
                continue
            allowed = max(allowed, min(_TOLERANCE_CAP, _NOISE_FACTOR * noise))
        worst = max(worst, relative)
        if not relative <= allowed:
            raise SurgeryError(
                f"The smaller model and the masked twin first differ at '{name}': by"
                f" {np.abs(expected - answer).max():.3g}, {relative:.3g} of the largest value"
                f" there. Expected: at most {allowed:.1e} of it. A rule is wrong at that layer or"
                " before, or a layer has channel numbers built in. Remedy: teach it with"
                " `tfseg_prune.register_rule`, or exclude it from the plan."
            )
    if unsaid.issuperset(final):
        raise SurgeryError(
            f"All that the masked twin answers is rounding noise ('{names[final[-1]]}'), so nothing"
            " can be compared. Expected: answers that a rounding of the input doesn't change by"
            f" {_SAYS_NOTHING / _NOISE_FACTOR:.0%}. Remedy: look for what is constant and"
            " normalised, or for weights of wild sizes, or pass `check=False`."
        )
    return worst


def _relative_difference(reference, answer):
    """Largest difference per image over the image's largest absolute value; the worst image's."""
    reference, answer = (np.reshape(x, (len(x), -1)) for x in (reference, answer))
    reference = reference.astype("float64")
    scale = np.maximum(np.abs(reference).max(axis=1), np.finfo("float32").tiny)
    return float((np.abs(reference - answer).max(axis=1) / scale).max())


def answers_of(model, batch):
    answers = keras.tree.flatten(model(batch, training=False))
    return [np.asarray(ops.convert_to_numpy(answer)) for answer in answers]


def random_batch(model, seed, *, shrink_input=1):
    """Two images for every input of a model, of its size divided by `shrink_input`."""
    rng = np.random.default_rng(seed)
    structure = functional(model)._inputs_struct
    return keras.tree.map_structure(lambda x: _random_input(rng, x, shrink_input), structure)


def _rounding(rng):
    """Function that rounds what an operation answers, more where that sums over many numbers."""

    def rounded(answers, given):
        read, answered = (sum(math.prod(x.shape) for x in tensors_in(t)) for t in (given, answers))
        return _perturb(answers, rng, _ROUNDING * math.sqrt(max(1, read / answered)))

    return rounded


def _perturb(tensors, rng, size):
    """The same arrays or tensors, every float larger or smaller by `size` times itself."""

    def change(x):
        if "float" not in str(x.dtype):
            return x
        changed = x * ops.cast(1 + size * rng.choice((-1, 1), tuple(x.shape)), x.dtype)
        mask = backend.get_keras_mask(x)
        if mask is not None:
            backend.set_keras_mask(changed, mask)
        return changed

    return keras.tree.map_structure(change, tensors)


def _random_input(rng, tensor, shrink_input):
    shape = [2 if tensor.shape[0] is None else tensor.shape[0]]
    shape += [64 if size is None else size for size in tensor.shape[1:]]
    if len(shape) == 4:
        shape[1:3] = [max(1, size // shrink_input) for size in shape[1:3]]
    if "int" in tensor.dtype or tensor.dtype == "bool":
        return rng.integers(0, 2, shape).astype(tensor.dtype)
    noise = rng.normal(size=shape)
    noise[-1] = rng.uniform(0, 255, shape[1:])
    return noise.astype(tensor.dtype)
