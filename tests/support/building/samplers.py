"""What a worker needs to sample alone: weights that never change, tokens of a family's shape."""

from dataclasses import replace

import torch

from common.exchange.packed_weights import pack
from common.exchange.weights import Weights


class Unchanging:
    """One version of the student's weights."""

    def __init__(self, student):
        self.bundle = Weights.of(0, pack(student, torch.float32))

    def newest(self, timeout):
        return 0

    def get(self, version, timeout):
        return self.bundle


def tokens_of(spec, data):
    """The data's tokens, repeated where the family's sequences are longer."""
    tokens = replace(data, spec=spec)
    if spec.length == data.spec.length:
        return tokens
    return replace(tokens, token_NAL=data.token_NAL.repeat(1, 1, 3)[..., : spec.length])
