"""Small networks, one per way in which channels can be coupled: `NETS` holds them all."""

from tests.graph.nets import attention, coupling, moves, operations, others  # noqa: F401 - they register
from tests.graph.nets.base import NETS, conv, head, image, net, scramble

__all__ = ["NETS", "conv", "head", "image", "net", "scramble"]
