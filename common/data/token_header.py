"""What a token file says about its rows, and how that is read back from a file of anybody's."""

import json
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import Field

from common.config.schema import Config, validate
from common.errors import InputError
from common.files.official import FORMAT
from common.spec import SequenceSpec

MOST_VARIANTS = 1024
MOST_CLASSES = 10**6
MOST_TOKENS = 2**24
"""Tokens of one row, all variants together."""


@dataclass(frozen=True)
class TokenHeader:
    """What a token file says about its rows."""

    spec: SequenceSpec
    classes: tuple[str, ...]
    tokenizer: str
    """Digest of the tokenizer's state."""
    variants: int = 1
    facts: dict[str, Any] = field(default_factory=dict)
    seeds: bool = False
    """Whether every row has the seed that it was sampled with."""

    @property
    def dtype(self) -> torch.dtype:
        """The smallest type that holds every token."""
        return torch.int16 if self.spec.vocab_size <= 2**15 else torch.int32

    @property
    def width(self) -> int:
        """Tokens per row."""
        return self.variants * self.spec.length

    def to_json(self) -> str:
        return json.dumps({"format": FORMAT, **asdict(self)})

    @classmethod
    def from_json(cls, text: bytes) -> Self:
        """The inverse of `to_json`.

        Raises:
            ValueError: no JSON, or an entry is missing, of another type, or contradicts another.
        """
        fields = validate(_Fields, json.loads(text), source="the header")
        spec = SequenceSpec.from_dict(fields.spec)
        if fields.classes and len(fields.classes) != spec.num_classes:
            raise InputError(
                f"{len(fields.classes)} names of classes, but num_classes is {spec.num_classes}"
            )
        header = cls(
            spec, fields.classes, fields.tokenizer, fields.variants, fields.facts, fields.seeds
        )
        if header.width > MOST_TOKENS:
            raise InputError(f"{header.width} tokens per row, more than {MOST_TOKENS}")
        return header


class _Fields(Config):
    format: Literal["varkd-1"]
    spec: dict[str, Any]
    classes: Annotated[tuple[str, ...], Field(max_length=MOST_CLASSES)]
    tokenizer: str
    variants: Annotated[int, Field(ge=1, le=MOST_VARIANTS)] = 1
    """Files of one variant once did not say so."""
    facts: dict[str, Any] = Field(default_factory=dict)
    seeds: bool = False
