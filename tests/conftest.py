"""The tiny run that several tests look at."""

import types

import pytest


@pytest.fixture(scope="session")
def network(tmp_path_factory):
    from tests.pipeline import tiny

    return tiny.save_network(tmp_path_factory.mktemp("network") / "own.keras")


@pytest.fixture(scope="session")
def finished(network, tmp_path_factory):
    """One whole run. Tests that change its folder work on a copy."""
    from tests.pipeline import tiny

    workdir = tmp_path_factory.mktemp("finished") / "run"
    summary, ran, said = tiny.start(tiny.config(network), workdir)
    return types.SimpleNamespace(workdir=workdir, summary=summary, ran=ran, said=said)
