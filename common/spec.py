"""What teacher and student must share: vocabulary, length, grid, classes."""

from dataclasses import asdict, dataclass, fields
from typing import Annotated, Any

from pydantic import Field

from common.config.quantities import ClassesOrNone, Side, Tokens, Vocabulary
from common.config.schema import Config, validate
from common.errors import InputError


@dataclass(frozen=True, slots=True)
class SequenceSpec:
    """What teacher and student must agree on before one can judge the other."""

    vocab_size: int
    length: int
    grid: tuple[int, int]
    num_classes: int
    scales: tuple[int, ...] = ()
    """Sides of the token maps of a multi-scale sequence, coarse to fine; empty: one raster."""

    @property
    def null_class(self) -> int:
        """The label that stands for "no condition" in classifier-free guidance."""
        return self.num_classes

    def slots_before(self, position: int) -> int:
        """Slots before a trajectory position, which counts slots from 1, or scales where there are
        several (Distilled Decoding, docs/one_step.md)."""
        known = position - 1
        return sum(side**2 for side in self.scales[:known]) if self.scales else known

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Any) -> "SequenceSpec":
        """The inverse of `as_dict`, for values from a file.

        Raises:
            InputError: a field is missing, of another type or size, or the scales don't add up.
        """
        spec = cls(**dict(validate(_SpecFields, values, source="the sequences' spec")))
        if spec.scales and spec.length != sum(side**2 for side in spec.scales):
            raise InputError(
                f"the sequences' spec has length {spec.length} and scales {list(spec.scales)}, "
                "whose squares add up to something else"
            )
        return spec


class _SpecFields(Config):
    vocab_size: Vocabulary
    length: Tokens
    grid: tuple[Tokens, Tokens]
    num_classes: ClassesOrNone
    scales: Annotated[tuple[Side, ...], Field(max_length=64)] = ()


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


def require_raster(kind: str, spec: SequenceSpec) -> None:
    """For families with one token per grid cell.

    Raises:
        InputError: the tokens are of several scales, or do not fill the grid.
    """
    if spec.scales or spec.length != spec.grid[0] * spec.grid[1]:
        raise InputError(
            f"{kind} needs one token per grid cell, but these tokens have length {spec.length}, "
            f"grid {spec.grid[0]}x{spec.grid[1]} and scales {list(spec.scales)}; choose another "
            "tokenizer.kind or another model"
        )
