import pytest

from tests.deploy import nets
from tfseg_prune.deploy import export


@pytest.fixture(scope="session")
def model():
    return nets.segmenter()


@pytest.fixture(scope="session")
def images():
    return nets.images()


@pytest.fixture(scope="session")
def files(model, images, tmp_path_factory):
    """`files(precision, tail)`: the model's `Export`, written once."""
    folder = tmp_path_factory.mktemp("files")
    written = {}

    def get(precision="float32", tail="upsampled"):
        if (precision, tail) not in written:
            path = folder / f"{precision}_{tail}.tflite"
            written[precision, tail] = export(
                model, path, precision=precision, tail=tail, representative=images
            )
        return written[precision, tail]

    return get
