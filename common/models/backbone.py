"""The contract of a visual autoregressive model.

A backbone says how it orders tokens (`plan`), turns a whole sequence into post-norm hidden
vectors at once (`features`) and owns one linear `head`. Step-by-step decoding then works,
slowly; override `begin` and `step_features` to use a cache. Guidance, filtering and drawing live
outside (rollout/sampler.py).

Shape letters: B sequences, L slots, n slots in the current step, C width, V vocabulary,
D code width.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self, cast

import torch
from torch import Tensor, nn

from common.config.plugins import PluginConfig
from common.errors import InputError
from common.models.decoding import DecodingConfig
from common.models.key_value_cache import KeyValueCache
from common.models.plan import DecodePlan
from common.models.static_caches import TokenSteps
from common.models.token_layers import TokenLayers
from common.spec import SequenceSpec


@dataclass(slots=True)
class DecodeState:
    """Progress through one plan; `cache` belongs to the backbone and to nobody else."""

    class_B: Tensor
    plan: DecodePlan
    token_BL: Tensor
    step: int
    cache: Any = None

    @property
    def slots(self) -> slice:
        return self.plan.slots(self.step)


@dataclass(frozen=True, slots=True)
class Official:
    """The layout of a family's published checkpoints (docs/backbones.md, "LlamaGen files")."""

    top_level: str | None
    """Key of the state dict in the file; None for a bare one."""
    ignored: tuple[str, ...] = ()
    """Patterns of entries that hold no weights, tolerated on reading."""
    suffix: str = ".pt"
    head: str = "head"
    """Name of the output layer."""
    hub: str = ""
    """Where the family publishes weights on the Hugging Face hub."""
    published: str = ""
    """Pattern of the names of those files."""


class Backbone(nn.Module, ABC):
    """A network that scores and decodes; ignorant of guidance and of sampling."""

    guidance_rule: ClassVar[str] = "llamagen"
    """The rule that the family publishes its results with: one of `GUIDANCE_RULES` of its file, or
    of another family's."""
    official: ClassVar[Official]
    """How the family's own repository stores weights; parameter names are the official ones."""
    borrowed: tuple[str, ...] = ()
    """Submodules that are the tokenizer's, which lends them under the same names (its `lent`);
    official files leave them out."""
    joins: ClassVar[bool] = False
    """Whether sequences may join others that are being decoded (`join`). Where not, a batch begins
    at its shortest prefix, and what is given beyond that is decoded as well, to no end."""

    reads_windows: ClassVar[bool] = False
    """Whether there are `window_caches` and `window`: guesses can be checked."""
    has_token_step: ClassVar[bool] = False
    """Whether there is a `step_token`."""
    token_steps: TokenSteps | None = None
    """The steps that single tokens are decoded with, while somebody lends them
    (common/models/token_steps.py)."""

    spec: SequenceSpec

    def __init_subclass__(cls, **how: Any) -> None:
        super().__init_subclass__(**how)
        own = vars(cls)
        if "predict" in own and "step_features" not in own:
            raise InputError(
                f"{cls.__module__}.{cls.__name__} overrides predict, which not every step calls; "
                "override step_features, what the head is given (docs/plugins.md)"
            )

    @property
    def head(self) -> nn.Linear:
        """Maps `features` to logits; linear in all families, as `guided_hidden` needs."""
        return cast(nn.Linear, self._modules[self.official.head])

    def _add_head(self, head: nn.Linear) -> None:
        """Register it by its official name, for which a property may stand in the way."""
        self._modules[self.official.head] = head

    def drop_head(self) -> None:
        """Leave only what `features` needs, for those that put another head on it."""
        del self._modules[self.official.head]

    @abstractmethod
    def plan(self, seeds: Sequence[int], decoding: DecodingConfig | None = None) -> DecodePlan:
        """The order in which to decode one sequence per seed; random orders are drawn from it.

        Raises:
            InputError: `decoding` asks for what the family cannot do.
        """

    def drawing_plan(
        self, plan: DecodePlan, decoding: DecodingConfig, *, given: int = 0
    ) -> DecodePlan:
        """The order in which a sampler fills the slots of `plan` after the first `given`.

        Only approximate decoding (not `decoding.is_exact`) differs from `plan`, by which its
        sequences are recorded and scored all the same.
        """
        return plan

    def training_plan(self, seeds: Sequence[int]) -> DecodePlan:
        """The order that maximum-likelihood training uses, as published."""
        return self.plan(seeds)

    def attach(self, lent: Mapping[str, nn.Module]) -> None:
        """Take over what the family borrows of its tokenizer; most borrow nothing.

        Raises:
            InputError: something is not in `lent`, or is of other sizes.
        """

    def begin_as(self, other: "Backbone") -> None:
        """Take over the weights of a model of one of `BackboneConfig.origins`, on the same
        tokenizer; what that lends stays."""
        self.load_state_dict(self.state_dict() | self.own_entries(other.state_dict()))

    def own_entries(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A state without what is borrowed of the tokenizer."""
        borrowed = tuple(f"{name}." for name in self.borrowed)
        return {name: value for name, value in state.items() if not name.startswith(borrowed)}

    def official_buffers(self) -> dict[str, Tensor]:
        """Entries of an official file that are no parameters but are expected by its loader."""
        return {}

    @abstractmethod
    def features(self, class_B: Tensor, token_BL: Tensor, plan: DecodePlan) -> Tensor:
        """Return post-norm h_BLC; slot i may depend only on slots of earlier steps."""

    def features_of(self, class_B: Tensor, vector_BLD: Tensor, plan: DecodePlan) -> Tensor:
        """As `features`, of vectors in the place of codes; only where the family's config
        `reads_vectors`. The vectors of codes give what those codes give."""
        raise NotImplementedError(f"{type(self).__name__} reads codes")

    def forward(self, class_B: Tensor, token_BL: Tensor, plan: DecodePlan) -> Tensor:
        """Return logits_BLV of a whole sequence."""
        return self.head(self.features(class_B, token_BL, plan))

    def begin(
        self, class_B: Tensor, plan: DecodePlan, *, given_BL: Tensor | None = None, step: int = 0
    ) -> DecodeState:
        """Start decoding at `step`; slots of earlier steps are copied from `given_BL`."""
        token_BL = torch.zeros(plan.order_BL.shape, dtype=torch.long, device=class_B.device)
        if given_BL is not None and step:
            end = plan.starts[step]
            token_BL[:, :end] = given_BL[:, :end]
        return DecodeState(class_B, plan, token_BL, step)

    def step_features(self, state: DecodeState) -> Tensor:
        """Return post-norm h_BnC for the slots of the current step."""
        return self.features(state.class_B, state.token_BL, state.plan)[:, state.slots]

    def predict(self, state: DecodeState) -> Tensor:
        """Return logits_BnV for the slots of the current step. A step calls this or
        `step_features`, once."""
        return self.head(self.step_features(state))

    def commit(self, state: DecodeState, token_Bn: Tensor) -> None:
        """Write the tokens of the current step and move to the next."""
        state.token_BL[:, state.slots] = token_Bn
        state.step += 1

    def step_token(
        self, token_R: Tensor, slot_1: Tensor, caches: Sequence[tuple[Tensor, Tensor]]
    ) -> Tensor:
        """logit_RV after feeding one token a row at this slot of the caches, key and value
        (R, H, S, D) of every layer, where its own are written. All that changes between calls is
        in tensors, so that a CUDA graph can replay it."""
        raise NotImplementedError

    def token_layers(self) -> TokenLayers | None:
        """What a token passes, where it is nothing but such layers in this order."""
        return None

    def window_caches(self, capacity: int) -> list[KeyValueCache]:
        """For `window`, with room for so many slots."""
        raise NotImplementedError(f"{type(self).__name__} reads no windows")

    def window(
        self, class_B: Tensor, token_Bn: Tensor, first_B: Tensor, caches: list[KeyValueCache]
    ) -> Tensor:
        """Post-norm h_BnC of n slots from first_B on, where each sequence is: token_Bn lie one slot
        before, and what came earlier was read into `caches`. What is read again replaces what was
        there. Slots beyond the sequence may be asked for and mean nothing."""
        raise NotImplementedError(f"{type(self).__name__} reads no windows")

    def join(self, state: DecodeState, other: DecodeState) -> DecodeState:
        """One state for the sequences of both, in this order; the current step of both was just
        read, at the same step of plans that differ in their orders alone. Only where the family
        `joins`."""
        order_BL = torch.cat([state.plan.order_BL, other.plan.order_BL])
        return DecodeState(
            torch.cat([state.class_B, other.class_B]),
            replace(state.plan, order_BL=order_BL),
            torch.cat([state.token_BL, other.token_BL]),
            state.step,
            self._join_caches(state.cache, other.cache),
        )

    def _join_caches(self, cache: Any, other: Any) -> Any:
        """The caches of `join`, here a list with one for each layer."""
        return [mine.joined(its) for mine, its in zip(cache, other, strict=True)]


class BackboneConfig(PluginConfig, ABC):
    """Sizes of a backbone; what depends on the data comes as a `SequenceSpec`."""

    training_only: ClassVar[frozenset[str]] = frozenset(
        {"preset", "dropout", "drop_path", "adaln_gamma"}
    )
    """Fields that change how a network is trained or written down, not which function it is."""
    has_rows: ClassVar[bool] = True
    """Whether tokens are ordered row by row, so that a prefix can end with a row of the grid."""

    @property
    def reads_vectors(self) -> bool:
        """Whether vectors between the codes can be read as well (`Backbone.features_of`)."""
        return False

    def same_network(self, other: "BackboneConfig") -> bool:
        """Whether weights of one fit the other."""
        skipped = set(self.training_only)
        return self.model_dump(exclude=skipped) == other.model_dump(exclude=skipped)

    def origins(self) -> "tuple[BackboneConfig, ...]":
        """What weights may be of that such a model is trained on from."""
        return (self,)

    @abstractmethod
    def build(self, spec: SequenceSpec) -> Backbone:
        """Construct with fresh weights drawn from torch's global generator."""

    @classmethod
    @abstractmethod
    def tiny(cls) -> Self:
        """The smallest useful instance; contract tests build it."""

    @classmethod
    @abstractmethod
    def sizes_in(cls, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int] | None:
        """What official weights of these shapes are: names of config and spec fields with values;
        None where they belong to another family."""


def build_seeded(config: BackboneConfig, spec: SequenceSpec, seed: int) -> Backbone:
    """Build with weights that depend on `seed` alone; the global generator is left as it was."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return config.build(spec)
