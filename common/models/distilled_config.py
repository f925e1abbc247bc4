"""How a student of Distilled Decoding 1 is sized and used (arXiv 2412.17153, appendix B;
docs/one_step.md, "Students")."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import ClassVar, Self

from pydantic import model_validator

from common.config.quantities import Tokens, TokensOrNone
from common.errors import InputError
from common.models.one_pass import OnePassConfig
from common.spec import SequenceSpec


class DistilledDecoderConfig(OnePassConfig):
    """How a student is used; its sizes are the family's."""

    split: TokensOrNone = 0
    """The first slots take the code of the largest logit, the others what the embedding head says
    (published: 130 for LlamaGen-L and 80 for LlamaGen-B; 55, five scales, for VAR-d16 and 30, four
    scales, for d20 and d24)."""
    positions: tuple[Tokens, ...] = (1,)
    """Points of the trajectory that are trained, counted from 1 as in the paper: how many tokens
    (LlamaGen) or scales (VAR) come before the first noise, plus 1 (published: 1, 81 and 1, 6)."""

    usage: ClassVar[frozenset[str]] = frozenset({"split"})

    def check(self, spec: SequenceSpec) -> None:
        """Refuse tokens with which a student cannot be used so.

        Raises:
            InputError: its split or its positions are not in such a sequence.
        """
        if self.split > spec.length:
            raise InputError(f"split is {self.split}, but a sequence has {spec.length} tokens")
        if spec.slots_before(self.positions[-1]) >= spec.length:
            raise InputError(
                f"positions {shown(self.positions)} end behind the sequence of {spec.length} "
                "tokens, where no noise is left; lower the last one"
            )

    @model_validator(mode="after")
    def _positions_rise_from_1(self) -> Self:
        rising = all(before < after for before, after in pairwise(self.positions))
        if self.positions[:1] != (1,) or not rising:
            raise ValueError(f"positions {shown(self.positions)} do not rise from 1")
        return self

    @classmethod
    @abstractmethod
    def fits(cls, shapes: Mapping[str, tuple[int, ...]]) -> bool:
        """Whether released weights of these shapes are a student of this family."""


def shown(positions: Sequence[int]) -> str:
    return ", ".join(map(str, positions)) or "none"
