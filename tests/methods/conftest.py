"""What the tests of gradual grouping share."""

import pytest

import tfseg_prune as tsp
from tests.methods.gradual import network, trained


@pytest.fixture(scope="module")
def model():
    return network()


@pytest.fixture(scope="module")
def finished(model):
    """A training in which alpha reached 0 and stayed there."""
    return trained(tsp.GradualGrouping(model, until=0.5))
