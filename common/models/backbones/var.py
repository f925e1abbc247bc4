"""VAR next-scale transformer (arXiv 2404.02905; docs/backbones.md, "VAR layers").

All tokens of a scale are predicted at once from the canvas that the coarser scales have painted
(common/models/residual_quantizer.py). The quantiser that paints is part of the module, in buffers,
so that a stored model is complete; an official file leaves it to the tokenizer's. Parameter names
are the official ones.

Shape letters: B sequences, L slots, n new slots, C width, V vocabulary, D code width,
K scales.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar, Literal, Self, cast

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from common.config.quantities import Depth, Factor, Fraction, Width
from common.errors import InputError
from common.models.adaln import Block, BlockSizes, HeadNorm
from common.models.backbone import Backbone, BackboneConfig, DecodeState, Official
from common.models.decoding import DecodingConfig, own_choice
from common.models.key_value_cache import KeyValueCache
from common.models.layers import drop_path_rates
from common.models.packed_linear import Linear
from common.models.painting import Painting
from common.models.plan import DecodePlan, next_scale_plan
from common.models.residual_quantizer import ResidualQuantizer
from common.models.scale_mask import seen_scales
from common.models.top_p import drop_from_bottom
from common.spec import SequenceSpec


def _preset(depth: int, adaln_gamma: float, *, shared_aln: bool = False) -> dict[str, float | bool]:
    return {
        "width": 64 * depth,
        "depth": depth,
        "heads": depth,
        "adaln_gamma": adaln_gamma,
        "shared_aln": shared_aln,
    }


PRESETS = {
    "d16": _preset(16, 1e-3),
    "d20": _preset(20, 1e-3),
    "d24": _preset(24, 1e-4),
    "d30": _preset(30, 1e-5),
    "d36-s": _preset(36, 5e-6, shared_aln=True),
}
"""Published sizes and their initial gate scales (docs/backbones.md, "VAR layers")."""


def var_scales(cfg: float, plan: DecodePlan, interval: int) -> tuple[float, ...]:
    """1 + cfg k / (K - 1): none at the first token map, 1 + cfg at the last (docs/backbones.md,
    "VAR sampling")."""
    last = max(len(plan.step_sizes) - 1, 1)
    return tuple(1 + cfg * step / last for step in range(len(plan.step_sizes)))


GUIDANCE_RULES = {"var": var_scales}
TOP_P_RULES = {"var": drop_from_bottom}


class Config(BackboneConfig):
    has_rows: ClassVar[bool] = False

    preset: Literal["d16", "d20", "d24", "d30", "d36-s"] | None = None
    """A published size; sets width, depth, heads, shared_aln and adaln_gamma."""
    width: Width = 128
    """Channels of the residual stream."""
    depth: Depth = 4
    """Transformer blocks."""
    heads: Depth = 4
    """Attention heads."""
    mlp_ratio: Annotated[float, Field(gt=0, le=64)] = 4.0
    """Feed-forward width over width."""
    code_width: Width = 32
    """Channels of the tokenizer's codes."""
    phis: Depth = 4
    """Shared convolutions of the tokenizer's residual quantiser."""
    l2_norm: bool = True
    """Attention on normalised queries and keys with a learned temperature (all 256 px models)."""
    shared_aln: bool = False
    """One modulation projection for all blocks instead of one each (the 512 px model)."""
    dropout: Fraction = 0.0
    """Dropout after attention and feed-forward while training."""
    drop_path: Fraction = 0.0
    """Drop-path rate of the last block, rising from 0; published for training: depth / 240."""
    adaln_gamma: Factor = 1e-3
    """Factor on the initial weights that make the residual gates."""

    presets = PRESETS

    @property
    def reads_vectors(self) -> bool:
        return True

    @model_validator(mode="after")
    def _heads_divide_width(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is no multiple of heads {self.heads}")
        return self

    def block_sizes(self) -> BlockSizes:
        return BlockSizes(
            width=self.width,
            heads=self.heads,
            inner=round(self.width * self.mlp_ratio),
            l2_norm=self.l2_norm,
            shared=self.shared_aln,
            dropout=self.dropout,
        )

    def build(self, spec: SequenceSpec) -> Backbone:
        return VAR(self, spec)

    @classmethod
    def tiny(cls) -> Self:
        return cls(width=16, depth=2, heads=2, code_width=4)

    @classmethod
    def sizes_in(cls, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int] | None:
        if "pos_1LC" not in shapes or "word_embed.weight" not in shapes:
            return None
        sizes = {
            "length": shapes["pos_1LC"][1],
            "width": shapes["pos_1LC"][2],
            "depth": sum(name.endswith("attn.mat_qkv.weight") for name in shapes),
            "code_width": shapes["word_embed.weight"][1],
        }
        if "head.weight" in shapes and "class_emb.weight" in shapes:  # else loading will say
            sizes["vocab_size"] = shapes["head.weight"][0]
            sizes["num_classes"] = shapes["class_emb.weight"][0] - 1
        return sizes


class VAR(Backbone):
    """`features` of a slot predict its own token, from the scales before."""

    guidance_rule = "var"
    joins = True
    borrowed = ("quantizer",)
    official = Official(
        None,
        ("lvl_1L", "attn_bias_for_masking", "blocks.*.attn.zero_k_bias"),
        suffix=".pth",
        hub="FoundationVision/var",
        published="var_d*.pth",
    )

    def __init__(self, config: Config, spec: SequenceSpec) -> None:
        super().__init__()
        if not spec.scales:
            raise InputError(
                "var needs tokens of several scales, but the tokenizer makes one raster; use "
                "tokenizer.kind var_vqvae or multiscale_kmeans"
            )
        width, count = config.width, len(spec.scales)
        self.spec = spec
        self._shared = config.shared_aln
        # A plain list: real even if the module is built on the meta device.
        self._scale_L = [k for k, side in enumerate(spec.scales) for _ in range(side * side)]
        self.quantizer = ResidualQuantizer(
            spec.vocab_size, config.code_width, spec.scales, phis=config.phis
        )
        self.word_embed = nn.Linear(config.code_width, width)
        self.class_emb = nn.Embedding(spec.num_classes + 1, width)
        self.pos_start = nn.Parameter(torch.empty(1, spec.scales[0] ** 2, width))
        self.pos_1LC = nn.Parameter(torch.empty(1, spec.length, width))
        self.lvl_embed = nn.Embedding(count, width)
        if config.shared_aln:
            self.shared_ada_lin = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))
        rates = drop_path_rates(config.drop_path, config.depth)
        self.blocks = nn.ModuleList(Block(config.block_sizes(), rate) for rate in rates)
        self.head_nm = HeadNorm(width)
        self._add_head(Linear(width, spec.vocab_size))
        self._initialise(config)

    def plan(self, seeds: Sequence[int], decoding: DecodingConfig | None = None) -> DecodePlan:
        own_choice("var", decoding, DecodingConfig)
        return next_scale_plan(len(seeds), self.spec.scales)

    def attach(self, lent: Mapping[str, nn.Module]) -> None:
        self.quantizer.take_over(lent, "var")

    def features(self, class_B: Tensor, token_BL: Tensor, plan: DecodePlan) -> Tensor:
        inputs = self.quantizer.inputs(token_BL)
        return self._run(class_B, inputs, first=0, history_B=plan.history_B)

    def features_of(self, class_B: Tensor, vector_BLD: Tensor, plan: DecodePlan) -> Tensor:
        inputs = self.quantizer.inputs_of(vector_BLD)
        return self._run(class_B, inputs, first=0, history_B=plan.history_B)

    def begin(
        self, class_B: Tensor, plan: DecodePlan, *, given_BL: Tensor | None = None, step: int = 0
    ) -> DecodeState:
        state = super().begin(class_B, plan, given_BL=given_BL, step=step)
        pending, canvas = self.quantizer.inputs_to(state.token_BL, step)
        caches = [KeyValueCache(self.spec.length) for _ in self.blocks]
        state.cache = Painting(canvas, pending, 0, caches)
        return state

    def step_features(self, state: DecodeState) -> Tensor:
        """Feed all scales that are not cached: the given ones at first, then one at a time."""
        painting: Painting = state.cache
        hidden_BnC = self._run(
            state.class_B, painting.pending_BnD, first=painting.fed, caches=painting.caches
        )
        painting.fed = state.step + 1
        count = state.slots.stop - state.slots.start
        return hidden_BnC[:, -count:]

    def commit(self, state: DecodeState, token_Bn: Tensor) -> None:
        painting: Painting = state.cache
        painting.canvas_BDHH = painting.canvas_BDHH + self.quantizer.contribution(
            token_Bn, state.step
        )
        super().commit(state, token_Bn)
        if state.step < len(self.spec.scales):
            shrunk = self.quantizer.shrink(painting.canvas_BDHH, state.step)
            painting.pending_BnD = shrunk.flatten(2).transpose(1, 2)

    def _join_caches(self, cache: Painting, other: Painting) -> Painting:
        return cache.joined(other)

    def _run(
        self,
        class_B: Tensor,
        input_BnD: Tensor,
        *,
        first: int,
        caches: list[KeyValueCache] | None = None,
        history_B: Tensor | None = None,
    ) -> Tensor:
        """Post-norm vectors of the scales from `first` on, after those in the caches; each sees the
        first scale, so many before its own (by default all), and itself."""
        class_BC = self.class_emb(class_B)
        x_BnC = self.word_embed(input_BnD.to(self.word_embed.weight.dtype))
        start = sum(side**2 for side in self.spec.scales[:first])
        if first == 0:
            count = self.pos_start.shape[1]
            opening = class_BC[:, None].expand(-1, count, -1) + self.pos_start
            x_BnC = torch.cat([opening, x_BnC], dim=1)
        end = start + x_BnC.shape[1]
        scale_n = torch.tensor(self._scale_L[start:end], device=x_BnC.device)
        position = self.pos_1LC[:, start:end] + self.lvl_embed(scale_n)
        x_BnC = x_BnC + position
        seen = seen_scales(self._scale_L[:end], start, history_B, x_BnC.device)
        condition = class_BC
        if self._shared:
            condition = self.shared_ada_lin(class_BC).unflatten(-1, (6, -1))[:, None]
        for depth, block in enumerate(self.blocks):
            x_BnC = block(x_BnC, condition, seen, caches[depth] if caches else None)
        return self.head_nm(x_BnC, class_BC)

    def official_buffers(self) -> dict[str, Tensor]:
        scale_L = torch.tensor(self._scale_L)
        hidden = torch.zeros(len(scale_L), len(scale_L))
        hidden.masked_fill_(scale_L[:, None] < scale_L, -torch.inf)
        found = {"lvl_1L": scale_L[None], "attn_bias_for_masking": hidden[None, None]}
        for index in range(len(self.blocks)):
            found[f"blocks.{index}.attn.zero_k_bias"] = torch.zeros(self.pos_1LC.shape[-1])
        return found

    def _initialise(self, config: Config) -> None:
        """Truncated normal with std sqrt(1 / 3C); near-zero gates and head (docs/backbones.md, "VAR
        layers")."""
        std = math.sqrt(1 / (3 * config.width))
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.trunc_normal_(cast(Tensor, module.weight), std=std)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        for position in (self.pos_start, self.pos_1LC):
            nn.init.trunc_normal_(position, std=std)
        with torch.no_grad():
            self.head.weight.mul_(0.02)
            cast(nn.Linear, self.head_nm.ada_lin[1]).weight.mul_(0.5)
            for block in cast("list[Block]", list(self.blocks)):
                block.attn.proj.weight.div_(math.sqrt(2 * config.depth))
                block.ffn.fc2.weight.div_(math.sqrt(2 * config.depth))
                modulation = block.modulation_weight
                gates = len(modulation) // 3  # two of the six chunks
                modulation[gates:].mul_(0.5)
                modulation[:gates].mul_(config.adaln_gamma)
