import pytest

from tests.deploy import nets
from tfseg_prune.deploy import check_gpu, export


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


@pytest.fixture(scope="session")
def gpu(files, images):
    """Name of the GPU that LiteRT finds; tests that need one are skipped where there is none."""
    check = check_gpu(files(tail="logits").path, images[:1])
    if check.status == "unavailable":
        pytest.skip(check.says)
    return check.driver
