"""ARPG: randomised parallel decoding with guided queries (arXiv 2503.10568; docs/backbones.md,
"ARPG layers").

A self-decoder reads the class and the known tokens in decoding order and yields one shared set of
keys and values; a guided decoder starts from mask tokens, rotated to the positions that are asked
for, and only ever looks at those. Parameter names are the official ones.

Tokens of one step see each other and all earlier ones, so the scoring pass is block-causal and
equals cached generation; where every step has one token, that is the published strictly causal
training pass.

Shape letters: B sequences, L slots, n new slots, S seen slots, C width, V vocabulary, P rotary
pairs.
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal, Self

import torch
from pydantic import model_validator
from torch import Tensor, nn

from common.config.quantities import Depth, Fraction, Tokens, Width
from common.models.arpg_decoder import Memory, TwoPassDecoder, TwoPassSizes, keys_and_values
from common.models.backbone import Backbone, BackboneConfig, DecodeState, Official
from common.models.cpu import native_rows
from common.models.decoding import DecodingConfig, own_choice
from common.models.key_value_cache import KeyValueCache
from common.models.layers import RMSNorm, RotaryTable, require_rotary_heads, start_uniform
from common.models.packed_linear import Linear
from common.models.plan import (
    RANDOM_ORDER_STEPS,
    DecodePlan,
    arpg_step_sizes,
    random_order_plan,
)
from common.spec import SequenceSpec, require_raster

PRESETS = {
    "L": {"width": 1024, "depth": 24, "heads": 16},
    "XL": {"width": 1280, "depth": 36, "heads": 20},
    "XXL": {"width": 1536, "depth": 48, "heads": 24},
}
"""Published sizes; half of the depth is self-decoder, half guided decoder (docs/backbones.md, "ARPG
layers")."""


def arpg_linear_scales(scale: float, plan: DecodePlan, interval: int) -> tuple[float, ...]:
    """1 + (g - 1) done / N, `done` with the current step's tokens included (docs/backbones.md,
    "ARPG decoding")."""
    return tuple(1 + (scale - 1) * end / plan.starts[-1] for end in plan.starts[1:])


def arpg_constant_scales(scale: float, plan: DecodePlan, interval: int) -> tuple[float, ...]:
    """The same at every step."""
    return (scale,) * len(plan.step_sizes)


GUIDANCE_RULES = {"arpg_linear": arpg_linear_scales, "arpg_constant": arpg_constant_scales}


class Decoding(DecodingConfig):
    refusals: ClassVar[Mapping[str, str]] = {"steps": "decodes in a fixed number of steps"}

    steps: Tokens | None = None
    """Steps of a random-order model (ARPG); by default 64, or one per token where that is less."""
    schedule: Literal["arccos", "cosine"] = "arccos"
    """How many tokens each of those steps decodes (ARPG's names)."""


class Config(BackboneConfig):
    has_rows: ClassVar[bool] = False

    preset: Literal["L", "XL", "XXL"] | None = None
    """A published size; sets width, depth and heads."""
    width: Width = 128
    """Channels of the residual stream."""
    depth: Depth = 4
    """Blocks of both decoders together; even."""
    heads: Depth = 4
    """Attention heads; width / heads must be a multiple of 4."""
    multiple_of: Width = 256
    """The feed-forward width is rounded up to a multiple of this."""
    dropout: Fraction = 0.1
    """Token, residual and feed-forward dropout while training."""

    presets = PRESETS

    @model_validator(mode="after")
    def _sizes_fit(self) -> Self:
        require_rotary_heads(self.width, self.heads)
        if self.depth % 2:
            raise ValueError(f"depth {self.depth} is odd; ARPG splits it into two equal decoders")
        return self

    def decoder_sizes(self) -> TwoPassSizes:
        return TwoPassSizes(self.width, self.depth, self.heads, self.multiple_of, self.dropout)

    def build(self, spec: SequenceSpec) -> Backbone:
        return ARPG(self, spec)

    @classmethod
    def tiny(cls) -> Self:
        return cls(width=16, depth=4, heads=2, multiple_of=8)

    @classmethod
    def sizes_in(cls, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int] | None:
        table, head = shapes.get("embeddings.weight"), shapes.get("head.weight")
        if table is None or "layers.to_k.weight" not in shapes:
            return None
        blocks = sum(name.endswith("attn.to_q.weight") for name in shapes)
        sizes = {"width": table[1], "depth": blocks}
        if head is not None:  # else it is missing, which loading will say
            classes = table[0] - head[0] - SPECIAL_ROWS
            sizes |= {"vocab_size": head[0], "num_classes": classes}
        return sizes


SPECIAL_ROWS = 3
"""Rows of the table beside tokens and classes: mask token, null class, and one unused."""


class ARPG(Backbone):
    """`features` of a slot predict the token that the plan decodes there."""

    guidance_rule = "arpg_linear"
    joins = True
    official = Official(
        "state_dict",
        ("freqs_cis", "layers.*.kv_cache.*"),
        hub="hp-l33/ARPG",
        published="arpg_*.pt",
    )

    def __init__(self, config: Config, spec: SequenceSpec) -> None:
        super().__init__()
        require_raster("arpg", spec)
        self.spec = spec
        self._heads = config.heads
        rows = spec.vocab_size + spec.num_classes + SPECIAL_ROWS
        self.embeddings = nn.Embedding(rows, config.width)
        self.dropout = nn.Dropout(config.dropout)
        self.layers = TwoPassDecoder(config.decoder_sizes())
        self.norm = RMSNorm(config.width)
        self._add_head(Linear(config.width, spec.vocab_size, bias=False))
        self._rotary = RotaryTable(spec.grid, config.width // config.heads)
        start_uniform(self, self.head)

    def plan(self, seeds: Sequence[int], decoding: DecodingConfig | None = None) -> DecodePlan:
        chosen = own_choice("arpg", decoding, Decoding)
        steps = chosen.steps or min(RANDOM_ORDER_STEPS, self.spec.length)
        sizes = arpg_step_sizes(self.spec.length, steps, chosen.schedule)
        return random_order_plan(seeds, sizes)

    def training_plan(self, seeds: Sequence[int]) -> DecodePlan:
        """A fresh order per sample and one token per step, as published (docs/backbones.md, "ARPG
        training")."""
        return random_order_plan(seeds, (1,) * self.spec.length)

    def features(self, class_B: Tensor, token_BL: Tensor, plan: DecodePlan) -> Tensor:
        order_BL = plan.order_BL.to(token_BL.device)
        memory = self._read(class_B, token_BL, order_BL, plan, 0, self.spec.length, None)
        return self._ask(order_BL, memory)

    def begin(
        self, class_B: Tensor, plan: DecodePlan, *, given_BL: Tensor | None = None, step: int = 0
    ) -> DecodeState:
        state = super().begin(class_B, plan, given_BL=given_BL, step=step)
        count = len(self.layers.self_dec) + 1  # and the shared keys and values
        state.cache = [KeyValueCache(self.spec.length) for _ in range(count)]
        return state

    def step_features(self, state: DecodeState) -> Tensor:
        """Read what was decoded since the last call (at first the class and the given tokens), then
        ask for the positions of this step; queries are never cached."""
        order_BL = state.plan.order_BL.to(state.token_BL.device)
        start, end = state.cache[-1].filled, state.slots.start + 1
        memory = self._read(
            state.class_B, state.token_BL, order_BL, state.plan, start, end, state.cache
        )
        return self._ask(order_BL[:, state.slots], memory)

    def _read(
        self,
        class_B: Tensor,
        token_BL: Tensor,
        order_BL: Tensor,
        plan: DecodePlan,
        start: int,
        end: int,
        caches: list[KeyValueCache] | None,
    ) -> Memory:
        """The self-decoder over inputs [start, end): 0 is the class, input i is slot i - 1."""
        tokens = slice(max(start - 1, 0), end - 1)
        x_BnC = self.embeddings(token_BL[:, tokens])
        rows_Bn = order_BL[:, tokens] + 1
        if start == 0:
            label_B1 = (class_B + self.spec.vocab_size + 1)[:, None]
            x_BnC = torch.cat([self.embeddings(label_B1), x_BnC], dim=1)
            rows_Bn = torch.cat([torch.zeros_like(label_B1), rows_Bn], dim=1)
        rotary_BnP = self._rotary.on(x_BnC.device)[rows_Bn]
        x_BnC = native_rows.dropped(x_BnC, self.dropout)
        # Input i belongs to the step after the one that decoded it.
        group_S = torch.cat([torch.zeros(1, dtype=torch.long), plan.step_L[: end - 1] + 1])
        whole = caches is None
        is_causal = whole and plan.is_sequential
        visible_nS = None
        if not is_causal and group_S[start] != group_S[-1]:
            visible_nS = (group_S[start:, None] >= group_S).to(x_BnC.device)
        for depth, block in enumerate(self.layers.self_dec):
            cache = None if caches is None else caches[depth]
            x_BnC = block(x_BnC, rotary_BnP, visible_nS, is_causal, cache)
        key, value = keys_and_values(self.layers, self.layers.norm(x_BnC), rotary_BnP, self._heads)
        if caches is not None:
            key, value = caches[-1].append(key, value)
            return Memory(key, value)
        visible_LS = (plan.step_L[:, None] >= group_S).to(x_BnC.device)
        return Memory(key, value, None if is_causal else visible_LS, is_causal)

    def _ask(self, order_Bn: Tensor, memory: Memory) -> Tensor:
        """The guided decoder: post-norm vectors for the positions order_Bn."""
        rotary_BnP = self._rotary.on(order_Bn.device)[order_Bn + 1]
        mask_C = self.embeddings.weight[self.spec.vocab_size]
        x_BnC = mask_C.expand(*order_Bn.shape, -1)
        for block in self.layers.cross_dec:
            x_BnC = block(x_BnC, rotary_BnP, memory)
        return self.norm(x_BnC)
