"""LlamaGen class-conditional transformer (arXiv 2406.06525; docs/backbones.md, "LlamaGen layers").

Llama-style decoder over raster-ordered tokens after one class slot: RMSNorm, 2-D rotary
positions, SwiGLU, no biases. Parameter names are the official ones.

Shape letters: B sequences, L slots, n new slots, C width, V vocabulary, P rotary pairs.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self, cast

import torch
from pydantic import model_validator
from torch import Tensor, nn

from common.config.quantities import Depth, Fraction, Width, WidthOrNone
from common.models.backbone import Backbone, BackboneConfig, DecodeState, Official
from common.models.cpu import native_rows
from common.models.cuda.captured_steps import fuses
from common.models.decoding import DecodingConfig, own_choice
from common.models.key_value_cache import KeyValueCache, Placement
from common.models.layers import (
    CausalBlock,
    DropPath,
    LabelEmbedder,
    RMSNorm,
    RotaryTable,
    drop_path_rates,
    require_rotary_heads,
    start_uniform,
)
from common.models.packed_linear import Linear
from common.models.plan import DecodePlan, ZipARPlan, raster_plan, zipar_plan
from common.models.raster_decoding import Decoding
from common.models.static_caches import StaticCaches
from common.models.token_layers import TokenLayers
from common.models.top_p import drop_from_top
from common.models.vector_embedding import VectorEmbedding
from common.models.zipar import BLANK, ZipARCache, feeds
from common.spec import SequenceSpec, require_raster

PRESETS = {
    "B": {"width": 768, "depth": 12, "heads": 12},
    "L": {"width": 1024, "depth": 24, "heads": 16},
    "XL": {"width": 1280, "depth": 36, "heads": 20},
    "XXL": {"width": 1536, "depth": 48, "heads": 24},
    "3B": {"width": 3200, "depth": 24, "heads": 32},
    "XXXL": {"width": 2560, "depth": 48, "heads": 40},
    "1B": {"width": 2048, "depth": 22, "heads": 32},
    "7B": {"width": 4096, "depth": 32, "heads": 32},
}
"""Published sizes; the last three have no checkpoint (docs/backbones.md, "LlamaGen sizes")."""


def llamagen_scales(scale: float, plan: DecodePlan, interval: int) -> tuple[float, ...]:
    """Constant and active only above 1, as published (docs/backbones.md, "LlamaGen sampling").

    `interval` counts decoding steps after the class slot's, hence the off-by-one: tokens
    0..interval+1 are guided.
    """
    scale = max(scale, 1.0)
    return tuple(
        scale if interval < 0 or start <= interval + 1 else 1.0 for start in plan.starts[:-1]
    )


GUIDANCE_RULES = {"llamagen": llamagen_scales}
TOP_P_RULES = {"llamagen": drop_from_top}


class Config(BackboneConfig):
    preset: Literal["B", "L", "XL", "XXL", "3B", "XXXL", "1B", "7B"] | None = None
    """A published size; sets width, depth and heads."""
    width: Width = 128
    """Channels of the residual stream."""
    depth: Depth = 4
    """Transformer blocks."""
    heads: Depth = 4
    """Attention heads; width / heads must be a multiple of 4."""
    multiple_of: Width = 256
    """The feed-forward width is rounded up to a multiple of this."""
    dropout: Fraction = 0.1
    """Token, residual and feed-forward dropout while training."""
    drop_path: Fraction = 0.0
    """Drop-path rate of the last block, rising from 0; as published, it replaces residual and
    feed-forward dropout (token dropout stays)."""
    vector_width: WidthOrNone = 0
    """Channels of the tokenizer's codes, where their vectors are read, through a perceptron: so are
    vectors between them (Distilled Decoding 2). 0: tokens are looked up, as published."""

    presets = PRESETS

    @property
    def reads_vectors(self) -> bool:
        return self.vector_width > 0

    def origins(self) -> tuple[BackboneConfig, ...]:
        plain = self.model_copy(update={"vector_width": 0})
        return (self, plain) if self.reads_vectors else (self,)

    def branch(self, drop_path: float) -> nn.Module:
        """What a block's residual branches pass while training."""
        return DropPath(drop_path) if self.drop_path else nn.Dropout(self.dropout)

    @model_validator(mode="after")
    def _heads_divide_width(self) -> Self:
        require_rotary_heads(self.width, self.heads)
        return self

    def build(self, spec: SequenceSpec) -> Backbone:
        return LlamaGen(self, spec)

    @classmethod
    def tiny(cls) -> Self:
        return cls(width=16, depth=2, heads=2, multiple_of=8)

    @classmethod
    def sizes_in(cls, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int] | None:
        table = shapes.get("cls_embedding.embedding_table.weight")
        tokens = shapes.get("tok_embeddings.weight")
        first = shapes.get("tok_embeddings.first.weight")
        if table is None or (tokens is None and first is None):
            return None
        return {
            "vocab_size": tokens[0] if tokens else shapes["output.weight"][0],
            "num_classes": table[0] - 1,
            "width": table[1],
            "depth": sum(name.endswith("attention.wqkv.weight") for name in shapes),
            "vector_width": first[1] if first else 0,
        }


class LlamaGen(Backbone):
    """`features` of slot t predict token t; slot 0 of the input is the class embedding."""

    joins = True
    has_token_step = True
    reads_windows = True
    official = Official(
        "model",
        ("freqs_cis", "layers.*.attention.kv_cache.*"),
        head="output",
        hub="FoundationVision/LlamaGen",
        published="c2i_*.pt",
    )

    def __init__(self, config: Config, spec: SequenceSpec) -> None:
        super().__init__()
        require_raster("llamagen", spec)
        self.spec = spec
        self.cls_embedding = LabelEmbedder(spec.num_classes, config.width)
        table = nn.Embedding(spec.vocab_size, config.width)
        self.tok_embeddings: nn.Embedding | VectorEmbedding = table
        self.dropout = nn.Dropout(config.dropout)
        rates = drop_path_rates(config.drop_path, config.depth)
        sizes = config.width, config.heads, config.multiple_of
        self.layers = nn.ModuleList(CausalBlock(*sizes, config.branch(rate)) for rate in rates)
        self.norm = RMSNorm(config.width)
        self._add_head(Linear(config.width, spec.vocab_size, bias=False))
        self._rotary = RotaryTable(spec.grid, config.width // config.heads)
        start_uniform(self, self.head)
        if config.reads_vectors:
            self.borrowed = ("tok_embeddings.codes",)
            sizes = spec.vocab_size, config.vector_width, config.width
            self.tok_embeddings = VectorEmbedding(*sizes)

    def attach(self, lent: Mapping[str, nn.Module]) -> None:
        if isinstance(self.tok_embeddings, VectorEmbedding):
            self.tok_embeddings.attach(lent)

    def begin_as(self, other: Backbone) -> None:
        state = self.own_entries(other.state_dict())
        if isinstance(self.tok_embeddings, VectorEmbedding):
            state = self.tok_embeddings.adapted(state, "tok_embeddings.")
        self.load_state_dict(self.state_dict() | state)

    def plan(self, seeds: Sequence[int], decoding: DecodingConfig | None = None) -> DecodePlan:
        own_choice("llamagen", decoding, Decoding)
        return raster_plan(len(seeds), self.spec.length)

    def drawing_plan(
        self, plan: DecodePlan, decoding: DecodingConfig, *, given: int = 0
    ) -> DecodePlan:
        zipar = own_choice("llamagen", decoding, Decoding).zipar
        if zipar is None:
            return plan
        return zipar_plan(len(plan.order_BL), self.spec.grid, zipar, given)

    def features(self, class_B: Tensor, token_BL: Tensor, plan: DecodePlan) -> Tensor:
        if isinstance(plan, ZipARPlan):
            raise ValueError("sequences drawn with ZipAR are scored by their raster plan")
        return self._read(class_B, self.tok_embeddings(token_BL[:, :-1]))

    def features_of(self, class_B: Tensor, vector_BLD: Tensor, plan: DecodePlan) -> Tensor:
        if isinstance(self.tok_embeddings, nn.Embedding):
            return super().features_of(class_B, vector_BLD, plan)
        return self._read(class_B, self.tok_embeddings.of(vector_BLD[:, :-1]))

    def _read(self, class_B: Tensor, embedded_BnC: Tensor) -> Tensor:
        x_BLC = torch.cat([self.cls_embedding(class_B)[:, None], embedded_BnC], dim=1)
        return self._run(x_BLC, self._rotary.on(x_BLC.device))

    def begin(
        self, class_B: Tensor, plan: DecodePlan, *, given_BL: Tensor | None = None, step: int = 0
    ) -> DecodeState:
        state = super().begin(class_B, plan, given_BL=given_BL, step=step)
        by_rows = isinstance(plan, ZipARPlan)
        # Such steps have room of their own for all that follows the first pass.
        capacity = self.spec.length if self.token_steps is None or by_rows else step + 1
        state.cache = caches = [KeyValueCache(capacity) for _ in self.layers]
        if by_rows:
            state.cache = ZipARCache(step, feeds(plan, step, class_B.device), caches)
        return state

    def predict(self, state: DecodeState) -> Tensor:
        if self.token_steps is not None and not isinstance(state.cache, ZipARCache):
            logit_BnV = self.token_steps.predict(self, state)
            if logit_BnV is not None:
                return logit_BnV
        return super().predict(state)

    def step_features(self, state: DecodeState) -> Tensor:
        """Feed whatever is not cached yet: the class slot and prefix at first, then what the last
        step decoded."""
        if isinstance(state.cache, ZipARCache):
            return self._row_features(state, state.cache)
        slot = state.slots.start
        filled = state.cache[0].filled
        x_BnC = self.tok_embeddings(state.token_BL[:, max(filled - 1, 0) : slot])
        if filled == 0:
            x_BnC = torch.cat([self.cls_embedding(state.class_B)[:, None], x_BnC], dim=1)
        rotary_nP = self._rotary.on(x_BnC.device)[filled:]
        return self._run(x_BnC, rotary_nP, caches=state.cache)[:, -1:]

    def step_token(
        self, token_R: Tensor, slot_1: Tensor, caches: Sequence[tuple[Tensor, Tensor]]
    ) -> Tensor:
        from common.models.cuda.fused_layers import token_hidden  # Triton, on a GPU alone

        x_RC, turn_SP2 = self.tok_embeddings(token_R), self._rotary.on(token_R.device)
        return self.head(token_hidden(x_RC, self.layers, self.norm, turn_SP2, slot_1, caches))

    def token_layers(self) -> TokenLayers | None:
        table, blocks = self.tok_embeddings, cast(list[CausalBlock], [*self.layers])
        if not isinstance(table, nn.Embedding):
            return None
        first, turn_SP2 = self.cls_embedding.embedding_table, self._rotary.on(torch.device("cpu"))
        found = TokenLayers(first, table, blocks, self.norm, self.head, turn_SP2)
        return found if found.are_plain else None

    def _join_caches(self, cache: Any, other: Any) -> Any:
        if not isinstance(cache, StaticCaches):
            return super()._join_caches(cache, other)
        cache.admit(other)
        return cache

    def _row_features(self, state: DecodeState, cache: ZipARCache) -> Tensor:
        """One token of every open row, each from its left neighbour or from a stand-in."""
        feed = cache.feed(state.step)
        slot_n = feed.token_slot_n
        x_BnC = self.tok_embeddings(state.token_BL[:, slot_n.clamp_min(0)])
        x_BnC = x_BnC.masked_fill((slot_n == BLANK)[:, None], 0)
        if state.step == cache.first:
            class_B1C = self.cls_embedding(state.class_B)[:, None]
            x_BnC = torch.cat([class_B1C, x_BnC[:, 1:]], dim=1)
        rotary_nP = self._rotary.on(x_BnC.device)[feed.placement.slot_n]
        h_BnC = self._run(x_BnC, rotary_nP, caches=cache.layers, placement=feed.placement)
        return h_BnC[:, state.slots.start - state.slots.stop :]

    def window_caches(self, capacity: int) -> list[KeyValueCache]:
        return [KeyValueCache(capacity) for _ in self.layers]

    def window(
        self, class_B: Tensor, token_Bn: Tensor, first_B: Tensor, caches: list[KeyValueCache]
    ) -> Tensor:
        slot_Bn = first_B[:, None] + torch.arange(token_Bn.shape[1], device=first_B.device)
        x_BnC, class_B1C = self.tok_embeddings(token_Bn), self.cls_embedding(class_B)[:, None]
        x_BnC = torch.where((slot_Bn == 0)[..., None], class_B1C, x_BnC)
        rotary_BnP = self._rotary.on(x_BnC.device)[slot_Bn.clamp_max(self.spec.length - 1)]
        return self._run(x_BnC, rotary_BnP, caches=caches, placement=Placement.windows(slot_Bn))

    def _run(
        self,
        x_BnC: Tensor,
        rotary_nP: Tensor,
        *,
        caches: list[KeyValueCache] | None = None,
        placement: Placement | None = None,
    ) -> Tensor:
        x_BnC = native_rows.dropped(x_BnC, self.dropout)
        rotary_nP = rotary_nP[..., : x_BnC.shape[1], :, :]  # of the cells, all but the last is fed
        if placement is None and fuses(self, x_BnC):
            from common.models.cuda.fused_layers import sequence_hidden

            return sequence_hidden(x_BnC, self.layers, self.norm, rotary_nP, caches)
        for depth, block in enumerate(self.layers):
            x_BnC = block(x_BnC, rotary_nP, caches[depth] if caches else None, placement)
        return self.norm(x_BnC)
