"""What the students of Distilled Decoding 1 have in common (arXiv 2412.17153, appendix B;
docs/one_step.md, "Students").

A transformer of the teacher's make reads, after the class, one vector for each slot: of a code
where the slot is data, of noise where it is not yet, with an embedding that says which. Two heads
say what the slot will be: the teacher's own (logits over codes) and a new one (a code vector).
Names of parameters are those of the released checkpoints.

Shape letters: B sequences, L slots, n some of them, C width, D code width, V codes.
"""

from abc import abstractmethod
from collections.abc import Sequence
from functools import partial
from typing import ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.errors import InputError
from common.models.adaln import plain_norm
from common.models.backbone import Official
from common.models.distilled_config import DistilledDecoderConfig as DistilledDecoderConfig
from common.models.distilled_config import shown
from common.models.few_steps import few_steps, nearest
from common.models.generator import Generated
from common.models.one_pass import OnePassStudent
from common.models.one_pass import require_codes as require_codes
from common.spec import SequenceSpec

NOISE, DATA = 0, 1
"""Rows of the type embedding; the class is data."""


class EmbeddingHead(nn.Module):
    """Layer norm, scaled and shifted by a learned table plus the class, then a linear map."""

    def __init__(self, width: int, code_width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, code_width)
        self.scale_shift_table = nn.Parameter(torch.randn(2, width) / width**0.5)

    def forward(self, x_BnC: Tensor, class_BC: Tensor) -> Tensor:
        shift, scale = (self.scale_shift_table + class_BC[:, None]).chunk(2, dim=1)
        return self.linear(plain_norm(x_BnC) * (1 + scale) + shift)


class DistilledDecoder(OnePassStudent):
    """`trunk` reads; `head(normed(...))` and `embed` say what the slots will be."""

    official: ClassVar[Official]
    """Layout of the released files, as a backbone's."""
    new: ClassVar[frozenset[str]] = frozenset({"codebook_VD", "n_d_embed", "final_layer_conti"})
    """Submodules and tensors that no teacher has."""

    def __init__(
        self, config: DistilledDecoderConfig, spec: SequenceSpec, codebook_VD: Tensor
    ) -> None:
        config.check(spec)
        super().__init__(spec, codebook_VD)
        self.split, self.positions = config.split, config.positions

    @property
    def head(self) -> nn.Linear:
        """Maps what `read` returns to logits."""
        return cast(nn.Linear, self._modules[self.official.head])

    def slots_before(self, position: int) -> int:
        """How many leading slots are data at this point of the trajectory, counted from 1."""
        return self.spec.slots_before(position)

    @abstractmethod
    def trunk(self, label_B: Tensor, vector_BLD: Tensor, is_data_BL: Tensor) -> Tensor:
        """deep_BLC, not normalised: of every slot, from its own vector and those that it sees.

        `vector_BLD` are codes' vectors where `is_data_BL`, else raw noise.
        """

    @abstractmethod
    def normed(self, deep_BnC: Tensor, label_B: Tensor) -> Tensor:
        """hidden_BnC of what `trunk` returns, under the teacher's last norm."""

    @abstractmethod
    def embed(self, deep_BnC: Tensor, label_B: Tensor) -> Tensor:
        """vector_BnD, float32, of what `trunk` returns: the embedding head has a norm of its own
        and reads, as released, what is not under the teacher's."""

    def is_new(self, name: str) -> bool:
        return name.partition(".")[0] in self.new

    def official_buffers(self) -> dict[str, Tensor]:
        """Entries of a released file that are no parameters."""
        return {}

    def read(self, label_B: Tensor, vector_BLD: Tensor, is_data_BL: Tensor) -> Tensor:
        """hidden_BLC of all slots: what `head` reads. Where both heads are asked, call `trunk` once
        and `normed` and `embed` on what it returns."""
        return self.normed(self.trunk(label_B, vector_BLD, is_data_BL), label_B)

    def jump(self, label_B: Tensor, vector_BLD: Tensor, known: int) -> Generated:
        """F of the paper: the first `known` slots are data and stay as they are, their logits 0 at
        the nearest code and -inf elsewhere; the others are predicted, all at once."""
        vector_BLD = vector_BLD.float()
        given_BnD, rest = vector_BLD[:, :known], slice(known, None)
        token_Bn = nearest(given_BnD, self.codebook_VD)
        logit_BnV = given_BnD.new_full((*token_Bn.shape, self.spec.vocab_size), -torch.inf)
        given = Generated(token_Bn, given_BnD, logit_BnV.scatter(2, token_Bn[..., None], 0.0))
        if known == self.spec.length:
            return given
        is_data_L = torch.arange(self.spec.length, device=label_B.device) < known
        deep_BLC = self.trunk(label_B, vector_BLD, is_data_L.expand(len(label_B), -1))
        return _joined(given, self._said(deep_BLC[:, rest], label_B, max(self.split - known, 0)))

    def _said(self, deep_BnC: Tensor, label_B: Tensor, early: int) -> Generated:
        """Of both heads; the first `early` slots take the likeliest code."""
        logit_BnV = self.head(self.normed(deep_BnC, label_B)).float()
        vector_BnD = self.embed(deep_BnC, label_B)
        token_Bn = logit_BnV.detach().argmax(-1)
        code_BnD = F.embedding(token_Bn[:, :early], self.codebook_VD)
        return Generated(token_Bn, torch.cat([code_BnD, vector_BnD[:, early:]], 1), logit_BnV)

    def forward(self, label_B: Tensor, noise_BLD: Tensor) -> Generated:
        """One jump, from noise."""
        return self.jump(label_B, noise_BLD, 0)

    def steps(self, label_B: Tensor, noise_BLD: Tensor, positions: Sequence[int]) -> Generated:
        """Algorithm 3 over trained positions, counted as in the config.

        Raises:
            InputError: one was not trained, or they do not rise from 1.
        """
        known = [self.slots_before(position) for position in self.trained(positions)]
        return few_steps(partial(self.jump, label_B), noise_BLD.float(), known)

    def trained(self, positions: Sequence[int]) -> Sequence[int]:
        """`positions` themselves.

        Raises:
            InputError: as `steps`.
        """
        chosen = sorted(set(positions) & set(self.positions))
        if chosen != list(positions) or chosen[:1] != [1]:
            raise InputError(
                f"steps at positions {shown(positions)} are asked for, but the student was "
                f"trained at {shown(self.positions)}; choose some of these, rising from 1"
            )
        return positions


def draw_new(modules: Sequence[nn.Module], std: float) -> None:
    """Normal weights of linear maps and embeddings, biases of 0."""
    for module in (part for whole in modules for part in whole.modules()):
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(cast(Tensor, module.weight), std=std)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)


def _joined(first: Generated, second: Generated) -> Generated:
    return Generated(
        torch.cat([first.token_BL, second.token_BL], 1),
        torch.cat([first.vector_BLD, second.vector_BLD], 1),
        torch.cat([first.logit_BLV, second.logit_BLV], 1),
    )
