"""Packaging of tfseg_prune."""

import pathlib

import setuptools

HERE = pathlib.Path(__file__).parent
# int8 by the other quantizer, and mixed precision.
QUANTIZER = ["ai-edge-quantizer>=0.10.0"]
# Quantisation-aware training, on a tf_keras copy.
TFMOT = ["tensorflow-model-optimization>=0.8.1", "tf-keras>=2.21.0"]

setuptools.setup(
    name="tfseg-prune",
    version="0.1.0",
    description=(
        "Structured pruning for semantic segmentation in Keras 3, proven equal"
        " to its masked twin and exported to LiteRT"
    ),
    long_description=(HERE / "README.md").read_text() if (HERE / "README.md").exists() else "",
    long_description_content_type="text/markdown",
    packages=setuptools.find_packages(include=["tfseg_prune", "tfseg_prune.*"]),
    package_data={"tfseg_prune.report": ["*.html"]},
    python_requires=">=3.11",
    # Lower bounds are the versions that the tests ran with, nothing older was tried.
    install_requires=[
        "absl-py>=1.4.0",
        "ai-edge-litert>=2.3.0",  # the LiteRT interpreter that times and checks exports
        "jinja2>=3.1",  # the HTML report
        "keras>=3.15.1",
        "matplotlib>=3.11",
        "ml_collections>=1.1.0",  # configs with command-line overrides
        "numpy>=2.4",
        "pillow>=13.0",  # image decoding and resizing
        "rich>=15.0",  # progress with ETA, tables
        "tensorflow>=2.21.0",  # the LiteRT converter, and the default backend
    ],
    extras_require={
        "quantizer": QUANTIZER,
        "tfmot": TFMOT,
        # A Linux board that only times files: `pip install --no-deps tfseg-prune` beside these two.
        # tflite-runtime 2.14 cannot work with numpy 2, hence an environment of its own.
        "edge": ["tflite-runtime>=2.14.0; python_version < '3.12'"],
        "dev": [
            *QUANTIZER,  # what an extra does is tested, too
            *TFMOT,
            "hypothesis>=6.170",
            "jax>=0.10.2",
            "pytest>=9.2",
            "pytest-xdist>=3.8",  # the suite in several processes: half the time on two cores
        ],
    },
    entry_points={"console_scripts": ["tfseg-prune = tfseg_prune.main:console"]},
)
