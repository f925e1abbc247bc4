"""Distilled Decoding 1 of LlamaGen: a slot's vector at its own place in the raster, after the class
(arXiv 2412.17153, appendix B; docs/one_step.md, "Students").

The teacher predicts token i from the place before; the student reads the noise of token i at the
place of token i and predicts it there. Parameter names are those of the released checkpoints.

Shape letters: B sequences, L slots, n some of them, C width, D code width.
"""

from collections.abc import Mapping
from typing import Annotated, Self

import torch
from torch import Tensor, nn

from common.config.plugins import from_package
from common.errors import InputError
from common.models.backbone import Backbone, Official
from common.models.backbones import llamagen
from common.models.distilled_decoding import (
    DistilledDecoder,
    DistilledDecoderConfig,
    EmbeddingHead,
    draw_new,
)
from common.models.generator import Generator
from common.models.layers import RotaryTable
from common.spec import SequenceSpec

STD = 0.02
"""Of new weights, as published for the teacher's."""


class Config(DistilledDecoderConfig):
    backbone: Annotated[
        llamagen.Config | None,
        from_package("common.models.backbones", default="llamagen", only=True),
    ] = None
    """The teacher's sizes; by default those of models.teacher, without dropout, as released."""

    @property
    def sizes(self) -> llamagen.Config:
        return self.backbone or llamagen.Config()

    def build(self, spec: SequenceSpec, codebook_VD: Tensor) -> Generator:
        return DD1LlamaGen(self, spec, codebook_VD)

    @classmethod
    def tiny(cls) -> Self:
        return cls(backbone=llamagen.Config.tiny())

    @classmethod
    def fits(cls, shapes: Mapping[str, tuple[int, ...]]) -> bool:
        return {"n_d_embed.weight", "tok_embeddings.bias"} <= shapes.keys()


class DD1LlamaGen(DistilledDecoder):
    """Causal, a slot's own noise included."""

    official = Official(
        "model",
        ("freqs_cis",),
        head="output",
        hub="microsoft/distilled_decoding",
        published="LlamaGen-DD/llamagen-*.pt",
    )
    new = DistilledDecoder.new | {"tok_embeddings"}

    def __init__(self, config: Config, spec: SequenceSpec, codebook_VD: Tensor) -> None:
        super().__init__(config, spec, codebook_VD)
        width = config.sizes.width
        network = llamagen.LlamaGen(config.sizes, spec)
        self.cls_embedding = network.cls_embedding
        self.tok_embeddings = nn.Linear(self.code_width, width)
        self.n_d_embed = nn.Embedding(2, width)
        self.dropout = network.dropout
        self.layers = network.layers
        self.norm = network.norm
        self._modules["output"] = network.head
        self.final_layer_conti = EmbeddingHead(width, self.code_width)
        self._rotary = RotaryTable(spec.grid, width // config.sizes.heads)
        # The head as well: at the published zeros, nothing before it would learn from logits.
        draw_new((self.tok_embeddings, self.n_d_embed, self.final_layer_conti, self.head), STD)

    def trunk(self, label_B: Tensor, vector_BLD: Tensor, is_data_BL: Tensor) -> Tensor:
        class_B1C = self.cls_embedding(label_B)[:, None]
        slot_BLC = self.tok_embeddings(vector_BLD.to(self.tok_embeddings.weight.dtype))
        kind_BL = torch.cat([torch.ones_like(is_data_BL[:, :1]), is_data_BL], dim=1).long()
        x_BLC = torch.cat([class_B1C, slot_BLC], dim=1) + self.n_d_embed(kind_BL)
        x_BLC, rotary_LP = self.dropout(x_BLC), self._rotary.on(x_BLC.device)
        for block in self.layers:
            x_BLC = block(x_BLC, rotary_LP, None, None)
        return x_BLC[:, 1:]

    def normed(self, deep_BnC: Tensor, label_B: Tensor) -> Tensor:
        return self.norm(deep_BnC)

    def embed(self, deep_BnC: Tensor, label_B: Tensor) -> Tensor:
        return self.final_layer_conti(deep_BnC, self.cls_embedding(label_B)).float()

    def inherited(self, teacher: Backbone) -> dict[str, Tensor]:
        if not isinstance(teacher, llamagen.LlamaGen):
            raise InputError(
                f"dd1_llamagen starts from a LlamaGen, not from a {type(teacher).__name__}; choose "
                "the generator of the teacher's family"
            )
        state = teacher.state_dict()
        return {n: v for n, v in state.items() if not n.startswith("tok_embeddings.")}
