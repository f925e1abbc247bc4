"""Distilled Decoding 1 of VAR: every scale's noise at the scale's own places, after the class
(arXiv 2412.17153, appendix B; docs/one_step.md, "Students").

The class has a place and a scale of its own before all others, so the tables of positions and
scales have one row more than the teacher's. Vectors are fed as they are, not painted first. What
says noise or data is added once at the input, in every block and before the heads, each time
through a linear map of its own. Parameter names are those of the released checkpoints.

Shape letters: B sequences, L slots, n some of them, C width, D code width, K scales, S the slots
and the class before them.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, ClassVar, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.config.plugins import from_package
from common.errors import InputError
from common.models.backbone import Backbone, Official
from common.models.backbones import var
from common.models.distilled_decoding import (
    DATA,
    DistilledDecoder,
    DistilledDecoderConfig,
    EmbeddingHead,
    draw_new,
    require_codes,
)
from common.models.generator import Generator
from common.models.scale_mask import Seen
from common.spec import SequenceSpec

WIDENED = {"pos_1LC": 1, "lvl_embed.weight": 0}
"""Tables with a new row after the first one, and along which axis."""


class Config(DistilledDecoderConfig):
    backbone: Annotated[
        var.Config | None, from_package("common.models.backbones", default="var", only=True)
    ] = None
    """The teacher's sizes, of which `code_width` and `phis` are not read, for the codes are given;
    by default those of models.teacher, without dropout, as released."""
    mask: Literal["released", "paper"] = "released"
    """What a slot sees of its own scale: only itself, as in the released code (no code depends on
    its neighbours' noise), or the whole scale, as the paper says."""

    unread: ClassVar[frozenset[str]] = frozenset({"code_width", "phis"})

    @property
    def sizes(self) -> var.Config:
        return self.backbone or var.Config()

    def build(self, spec: SequenceSpec, codebook_VD: Tensor) -> Generator:
        return DD1VAR(self, spec, codebook_VD)

    def check(self, spec: SequenceSpec) -> None:
        if spec.scales[:1] != (1,):
            raise InputError(
                f"dd1_var needs tokens of several scales from side 1 on, not {list(spec.scales)}; "
                "choose another tokenizer or dd1_llamagen"
            )
        super().check(spec)
        ends = [spec.slots_before(k + 1) for k in range(len(spec.scales) + 1)]
        if self.split not in ends:
            raise InputError(
                f"split is {self.split}, but it counts the tokens of whole scales; choose one of "
                f"{', '.join(map(str, ends))}"
            )

    @classmethod
    def tiny(cls) -> Self:
        return cls(backbone=var.Config.tiny())

    @classmethod
    def fits(cls, shapes: Mapping[str, tuple[int, ...]]) -> bool:
        return {"n_d_embed.weight", "pos_1LC"} <= shapes.keys()


class DD1VAR(DistilledDecoder):
    """Every slot sees the class, the scales before its own, and itself."""

    official = Official(
        None,
        ("lvl_1L", "attn_bias_for_masking", "blocks.*.attn.zero_k_bias"),
        suffix=".pth",
        hub="microsoft/distilled_decoding",
        published="VAR-DD/var-d*.pth",
    )
    new = DistilledDecoder.new | {"layerwise_n_d_embed"}

    def __init__(self, config: Config, spec: SequenceSpec, codebook_VD: Tensor) -> None:
        super().__init__(config, spec, codebook_VD)
        width, depth = config.sizes.width, config.sizes.depth
        with_class = replace(spec, scales=(1, *spec.scales), length=spec.length + 1)
        network = var.VAR(config.sizes, with_class)
        self._shared, self._mask = config.sizes.shared_aln, config.mask
        # A plain list: real even if the module is built on the meta device.
        self._scale_S = [k for k, side in enumerate(with_class.scales) for _ in range(side**2)]
        self.word_embed = nn.Linear(self.code_width, width)
        self.class_emb, self.pos_start = network.class_emb, network.pos_start
        self.pos_1LC, self.lvl_embed = network.pos_1LC, network.lvl_embed
        if self._shared:
            self.shared_ada_lin = network.shared_ada_lin
        self.blocks, self.head_nm = network.blocks, network.head_nm
        self._modules["head"] = network.head
        self.n_d_embed = nn.Embedding(2, width)
        self.layerwise_n_d_embed = nn.ModuleList(nn.Linear(width, width) for _ in range(depth + 1))
        self.final_layer_conti = EmbeddingHead(width, self.code_width)
        new = (self.word_embed, self.n_d_embed, self.layerwise_n_d_embed, self.final_layer_conti)
        draw_new(new, (1 / (3 * width)) ** 0.5)

    def visible(self, device: torch.device | None = None) -> Tensor:
        """visible_SS: whether a place (row) sees another."""
        scale_S = torch.tensor(self._scale_S, device=device)
        if self._mask == "paper":
            return scale_S[:, None] >= scale_S
        itself_SS = torch.eye(len(scale_S), dtype=torch.bool, device=device)
        return (scale_S[:, None] > scale_S) | itself_SS

    def trunk(self, label_B: Tensor, vector_BLD: Tensor, is_data_BL: Tensor) -> Tensor:
        class_BC, device = self.class_emb(label_B), label_B.device
        slot_BLC = self.word_embed(vector_BLD.to(self.word_embed.weight.dtype))
        x_BSC = torch.cat([class_BC[:, None] + self.pos_start, slot_BLC], dim=1)
        x_BSC = x_BSC + self.lvl_embed(torch.tensor(self._scale_S, device=device)) + self.pos_1LC
        kind_BS = F.pad(is_data_BL.long(), (1, 0), value=DATA)
        x_BSC = x_BSC + self.n_d_embed(kind_BS)
        # There are two rows to map, however many places.
        added = [F.embedding(kind_BS, to(self.n_d_embed.weight)) for to in self.layerwise_n_d_embed]
        condition = class_BC
        if self._shared:
            condition = self.shared_ada_lin(class_BC).unflatten(-1, (6, -1))[:, None]
        seen = Seen(self.visible(device))
        for block, added_BSC in zip(self.blocks, added, strict=False):
            x_BSC = block(x_BSC, condition, seen, None, added_BSC)
        return (x_BSC + added[-1])[:, 1:]

    def normed(self, deep_BnC: Tensor, label_B: Tensor) -> Tensor:
        return self.head_nm(deep_BnC, self.class_emb(label_B))

    def embed(self, deep_BnC: Tensor, label_B: Tensor) -> Tensor:
        return self.final_layer_conti(deep_BnC, self.class_emb(label_B)).float()

    def inherited(self, teacher: Backbone) -> dict[str, Tensor]:
        if not isinstance(teacher, var.VAR):
            raise InputError(
                f"dd1_var starts from a VAR, not from a {type(teacher).__name__}; choose the "
                "generator of the teacher's family"
            )
        require_codes(self.codebook_VD, teacher.quantizer.code_VD)
        state, ours = teacher.state_dict(), self.state_dict()
        found = {n: v for n, v in state.items() if not n.startswith("quantizer.")}
        for name, axis in WIDENED.items():
            found[name] = _widened(state[name], ours[name], axis)
        return found

    def official_buffers(self) -> dict[str, Tensor]:
        hidden_SS = torch.zeros(len(self._scale_S), len(self._scale_S), device="cpu")
        hidden_SS.masked_fill_(~self.visible(hidden_SS.device), -torch.inf)
        found = {
            "lvl_1L": torch.tensor(self._scale_S, device="cpu")[None],
            "attn_bias_for_masking": hidden_SS[None, None],
        }
        for index in range(len(self.blocks)):
            zeros = torch.zeros(self.pos_1LC.shape[-1], device="cpu")
            found[f"blocks.{index}.attn.zero_k_bias"] = zeros
        return found


def _widened(theirs: Tensor, ours: Tensor, axis: int) -> Tensor:
    """The teacher's table with the student's own second row in the place of none; as it is where
    the widths differ, which is for others to refuse."""
    if theirs.shape[-1] != ours.shape[-1]:
        return theirs
    first, rest = theirs.split([1, theirs.shape[axis] - 1], axis)
    return torch.cat([first, ours.narrow(axis, 1, 1), rest], axis)
