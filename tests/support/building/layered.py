"""Models that decode layer by layer, as torch has it."""

import copy

from common.models.backbone import Backbone
from common.models.backbones import llamagen


class Layered(llamagen.LlamaGen):
    """Lays nothing open to steps in C."""

    def token_layers(self):
        return None


def layered(model: Backbone) -> Backbone:
    """A copy with the same weights."""
    found = copy.deepcopy(model)
    if isinstance(found, llamagen.LlamaGen):
        found.__class__ = Layered
    return found
