"""The contract of a visual autoregressive model.

A backbone says how it orders tokens (`plan`), turns a whole sequence into post-norm hidden
vectors at once (`features`) and owns one linear `head`. Step-by-step decoding then works,
slowly; override `begin` and `predict` to use a cache. Guidance, filtering and drawing live
outside (rollout/sampler.py).

Shape letters: B sequences, L slots, n slots in the current step, C width, V vocabulary.
"""

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

import torch
from torch import Tensor, nn

from common.errors import InputError
from common.plan import DecodePlan
from common.plugins import PluginConfig


@dataclass(frozen=True, slots=True)
class SequenceSpec:
    """What teacher and student must agree on before one can judge the other."""

    vocab_size: int
    length: int
    grid: tuple[int, int]
    num_classes: int

    @property
    def null_class(self) -> int:
        """The label that stands for "no condition" in classifier-free guidance."""
        return self.num_classes

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "SequenceSpec":
        rows, cols = values["grid"]
        return cls(**{**values, "grid": (int(rows), int(cols))})


def require_same_spec(ours: SequenceSpec, theirs: SequenceSpec, *, us: str, them: str) -> None:
    """Refuse a pair that cannot be compared, naming both values.

    Raises:
        InputError: vocabulary, length, grid or classes differ.
    """
    for field in fields(SequenceSpec):
        mine, other = getattr(ours, field.name), getattr(theirs, field.name)
        if mine != other:
            raise InputError(
                f"{them} has {field.name} {other}, but {us} has {field.name} {mine}; "
                "both must be trained on the same tokens: choose another file or tokenizer"
            )


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


class Backbone(nn.Module, ABC):
    """A network that scores and decodes; ignorant of guidance and of sampling."""

    spec: SequenceSpec

    @property
    @abstractmethod
    def head(self) -> nn.Linear:
        """Maps `features` to logits; linear in all families, as `guided_hidden` needs."""

    @abstractmethod
    def plan(self, batch: int, generator: torch.Generator | None = None) -> DecodePlan:
        """Choose the decoding order for a batch; drawn from `generator` where it is random."""

    @abstractmethod
    def features(self, class_B: Tensor, token_BL: Tensor, plan: DecodePlan) -> Tensor:
        """Return post-norm h_BLC; slot i may depend only on slots of earlier steps."""

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

    def predict(self, state: DecodeState) -> Tensor:
        """Return logits_BnV for the slots of the current step."""
        return self(state.class_B, state.token_BL, state.plan)[:, state.slots]

    def commit(self, state: DecodeState, token_Bn: Tensor) -> None:
        """Write the tokens of the current step and move to the next."""
        state.token_BL[:, state.slots] = token_Bn
        state.step += 1


class BackboneConfig(PluginConfig, ABC):
    """Sizes of a backbone; what depends on the data comes as a `SequenceSpec`."""

    @abstractmethod
    def build(self, spec: SequenceSpec) -> Backbone:
        """Construct with fresh weights drawn from torch's global generator."""

    @classmethod
    @abstractmethod
    def tiny(cls) -> Self:
        """The smallest useful instance; contract tests build it."""


def build_seeded(config: BackboneConfig, spec: SequenceSpec, seed: int) -> Backbone:
    """Build with weights that depend on `seed` alone; the global generator is left as it was."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return config.build(spec)
