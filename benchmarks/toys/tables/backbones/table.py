"""A teacher that looks its logits up (`benchmarks/tabular.py`), as a family of backbones.

Shape letters: B sequences, L slots, V codes.
"""

from collections.abc import Mapping, Sequence
from typing import Self

import torch
from torch import Tensor, nn

from benchmarks.tabular import Tabular, looked_up
from common.models.backbone import Backbone, BackboneConfig, Official
from common.models.decoding import DecodingConfig
from common.models.plan import DecodePlan, raster_plan
from common.spec import SequenceSpec


class Config(BackboneConfig):
    """Of the spec's sizes; the weights are the table."""

    def build(self, spec: SequenceSpec) -> Backbone:
        return Table(spec)

    @classmethod
    def tiny(cls) -> Self:
        return cls()

    @classmethod
    def sizes_in(cls, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int] | None:
        return None


class Table(Backbone):
    """Its hidden vectors are log-probabilities, so that its head changes nothing."""

    official = Official(None)

    def __init__(self, spec: SequenceSpec) -> None:
        super().__init__()
        codes, self.spec = spec.vocab_size, spec
        self.table = nn.Parameter(torch.zeros(spec.num_classes, codes + 1, codes + 1, codes))
        self._add_head(nn.Linear(codes, codes, bias=False))

    @classmethod
    @torch.no_grad()
    def of(cls, table: Tabular) -> Self:
        made = cls(table.spec)
        made.table.copy_(table.logprob_table)
        nn.init.eye_(made.head.weight)
        return made

    def plan(self, seeds: Sequence[int], decoding: DecodingConfig | None = None) -> DecodePlan:
        return raster_plan(len(seeds), self.spec.length)

    def features(self, class_B: Tensor, token_BL: Tensor, plan: DecodePlan) -> Tensor:
        return looked_up(self.table, class_B, token_BL)
