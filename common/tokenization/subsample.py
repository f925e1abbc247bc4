"""A fair sample of a stream that is too long to hold.

Shape letters: n rows of a piece, k rows kept; rows may have any shape.
"""

from collections.abc import Iterable

import torch
from torch import Tensor


def draw_rows(pieces: Iterable[Tensor], limit: int, seed: int) -> Tensor:
    """`limit` rows in their order, each with the same chance, or all where there are no more.

    Every n-th row would do only where rows have no period: a stride that divides the width of a
    grid of patches sees one column of every image. Each row gets a random number, and those with
    the lowest are kept, so that no more than `limit` rows and one piece are held.
    """
    generator = torch.Generator().manual_seed(seed)
    row_k = torch.zeros(0)
    number_k = torch.zeros(0, dtype=torch.double)
    for piece_n in pieces:
        number_n = torch.rand(len(piece_n), generator=generator, dtype=torch.double)
        number_k = torch.cat([number_k, number_n])
        row_k = torch.cat([row_k, piece_n]) if len(row_k) else piece_n.clone()
        if len(row_k) > 2 * limit:
            row_k, number_k = _lowest(row_k, number_k, limit)
    return _lowest(row_k, number_k, limit)[0]


def _lowest(row_k: Tensor, number_k: Tensor, limit: int) -> tuple[Tensor, Tensor]:
    if len(row_k) <= limit:
        return row_k, number_k
    kept = number_k.topk(limit, largest=False).indices.sort().values
    return row_k[kept], number_k[kept]
