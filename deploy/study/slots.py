"""Images whose slots know nothing of each other: what a pass over no noise could learn at best.

Shape letters: N images, L slots, n rows of a class.
"""

import torch
from torch import Tensor

from common.data.tokens import load_tokens
from common.tokenization.tokenizer import Tokenizer
from deploy.run_folder.workspace import Workspace


def slots_alone(workspace: Workspace, label_N: Tensor, seed: int) -> Tensor:
    """token_NL of these labels: every slot that of another of the teacher's sequences of the
    class, so that each slot has the teacher's distribution and all are independent."""
    made = load_tokens(workspace.existing_generated())
    generator, length = torch.Generator().manual_seed(seed), made.spec.length
    token_NL = torch.empty(len(label_N), length, dtype=torch.long)
    for label in label_N.unique().tolist():
        of_n = (made.label_N == label).nonzero()[:, 0]
        here = label_N == label
        row_KL = of_n[torch.randint(len(of_n), (int(here.sum()), length), generator=generator)]
        token_NL[here] = made.token_NAL[row_KL, 0, torch.arange(length)].long()
    return token_NL


def decoded(
    tokenizer: Tokenizer, token_NL: Tensor, batch_size: int, size: int | None = None
) -> Tensor:
    """uint8 pixel_NCHW on the CPU, `batch_size` images at a time."""
    device = tokenizer.codebook_VD.device
    parts = token_NL.split(batch_size)
    return torch.cat([tokenizer.decode(token_BL.to(device), size).cpu() for token_BL in parts])
