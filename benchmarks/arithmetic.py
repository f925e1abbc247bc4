"""How many operations products take, for shares of a machine's rate."""

import torch

from common.models.backbone import Backbone
from common.models.layers import CausalAttention


def forward_gflop(model: Backbone) -> float:
    """Of one sequence by a LlamaGen, with its head; causal attention counts half of the square.
    Decoding it token by token takes as many."""
    layers = sum(weight.numel() for weight in model.parameters() if weight.ndim == 2)
    tables = sum(m.weight.numel() for m in model.modules() if isinstance(m, torch.nn.Embedding))
    depth = sum(isinstance(module, CausalAttention) for module in model.modules())
    length, width = model.spec.length, model.head.in_features
    attention = 2 * depth * width * length  # 2 products, half of the square, 2 operations
    return length * (2 * (layers - tables) + attention) / 1e9
