"""Imports go down: from a room to a lower floor, or inside the room; never up, never sideways."""

import ast
import pathlib
import subprocess
import sys

import pytest

import tfseg_prune

PACKAGE = pathlib.Path(tfseg_prune.__file__).parent
FLOORS = {
    "atomic": 0,
    "layers": 0,
    "graph": 1,
    "models": 1,
    "data": 1,
    "bench": 1,
    "criteria": 2,
    "search": 2,
    "deploy": 2,
    "methods": 3,
    "training": 3,
    "report": 3,
    "pipeline": 4,
    "main": 5,
    "__main__": 6,
}
# Rooms that import no deep-learning framework at all, and the only ones that import TensorFlow.
NO_KERAS = {"bench"}
TENSORFLOW = {"deploy", "bench"}  # bench only to find tf.lite where nothing else is installed


def room_of(path):
    parts = path.relative_to(PACKAGE).parts
    return parts[0].removesuffix(".py")


def imported_modules(source):
    """Every module named in an import statement, wherever it stands."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def violations(room, source):
    for module in imported_modules(source):
        parts = module.split(".")
        if parts[0] == "tfseg_prune" and len(parts) > 1 and parts[1] in FLOORS:
            other = parts[1]
            if other != room and FLOORS[other] >= FLOORS[room]:
                yield f"{room} (floor {FLOORS[room]}) imports {module} (floor {FLOORS[other]})"
        elif parts[0] == "tfseg_prune" and len(parts) > 1 and module != "tfseg_prune.__version__":
            yield f"{room} imports {module}, which stands on no floor"
        elif parts[0] in ("tensorflow", "tf_keras") and room not in TENSORFLOW:
            yield f"{room} imports {module}"
        elif parts[0] == "keras" and room in NO_KERAS:
            yield f"{room} imports {module}"


SOURCES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_down(path):
    assert room_of(path) in FLOORS, "a new room needs a floor"
    assert list(violations(room_of(path), path.read_text())) == []


@pytest.mark.parametrize(
    "room, line",
    [
        ("graph", "from tfseg_prune.search import Budget"),
        ("graph", "from tfseg_prune.models import unet"),
        ("layers", "from tfseg_prune.graph import rules"),
        ("deploy", "import tfseg_prune.training.fit"),
        ("training", "from tfseg_prune import pipeline"),
        ("models", "def f():\n    import tensorflow as tf"),
        ("bench", "import keras"),
        ("graph", "from tfseg_prune import shrink"),
    ],
)
def test_a_wrong_import_would_be_found(room, line):
    assert len(list(violations(room, line))) >= 1


def run(code, **env):
    import os

    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **env},
        check=True,
        capture_output=True,
        text=True,
    ).stdout


def test_importing_the_package_imports_nothing_else():
    out = run(
        "import sys; before = set(sys.modules); import tfseg_prune;"
        "print(*sorted({m.split('.')[0] for m in set(sys.modules) - before}))"
    )
    assert set(out.split()) <= {"tfseg_prune"} | sys.stdlib_module_names


def test_another_backend_works_where_tensorflow_is_not_installed():
    """Pruning and training need no TensorFlow: here its import fails."""
    out = run(
        "import sys\n"
        "sys.modules['tensorflow'] = None\n"
        "import keras, numpy as np, tfseg_prune as tsp\n"
        "i = keras.Input((8, 8, 3))\n"
        "x = keras.layers.Conv2D(8, 3)(i)\n"
        "m = keras.Model(i, keras.layers.Conv2D(2, 1)(x))\n"
        "s = tsp.shrink(m, tsp.plan(m, budget=tsp.Budget(macs=0.5)))\n"
        "tsp.training, tsp.data, tsp.models\n"
        "s.compile('sgd', 'mse')\n"
        "s.fit(np.ones((2, 8, 8, 3)), np.ones((2, 6, 6, 2)), verbose=0)\n"
        "print(keras.backend.backend(), s.count_params() < m.count_params())",
        KERAS_BACKEND="jax",
    )
    assert out.split() == ["jax", "True"]


def test_every_public_name_is_there():
    for name in tfseg_prune.__all__:
        assert getattr(tfseg_prune, name) is not None
    assert 15 <= len(tfseg_prune.__all__) <= 30
    with pytest.raises(AttributeError, match="prun"):
        tfseg_prune.prun
