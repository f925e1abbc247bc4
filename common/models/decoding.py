"""What a sampler may choose about the order of decoding, as far as a family leaves a choice.

A family declares its fields in a class `Decoding` of its file; a config's table `decoding` has the
fields of all families, for teacher and student need not be of one.
"""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import SerializeAsAny

from common.config.registry import FieldsOfAll, fields_of_all
from common.config.schema import Config
from common.errors import InputError
from common.models.jacobi import JacobiConfig


class DecodingConfig(Config):
    """Base of every family's `Decoding`; by itself the choice of those that leave none."""

    refusals: ClassVar[Mapping[str, str]] = {}
    """By field: why a family that does not have it refuses it, after "but <family> "."""

    @property
    def is_exact(self) -> bool:
        """Whether codes are drawn from the distributions by which their sequence is scored."""
        return True

    @property
    def speculation(self) -> JacobiConfig | None:
        """How to guess ahead, where a pass reads several slots; that leaves the law as it is."""
        return None

    def __reduce__(self) -> tuple[Any, ...]:
        """The class is put together anew where it arrives: it lies in no module."""
        return _again, (self.model_dump(),)


PACKAGE = "common.models.backbones"
AnyDecoding = Annotated[
    SerializeAsAny[DecodingConfig], fields_of_all(PACKAGE, "Decoding", DecodingConfig)
]
D = TypeVar("D", bound=DecodingConfig)


def own_choice(family: str, decoding: DecodingConfig | None, own: type[D]) -> D:
    """What `decoding` chooses for a family whose class is `own`; the defaults where it is None.

    Raises:
        InputError: it sets a field that the family has to refuse.
    """
    if decoding is None:
        return own()
    fields = type(decoding).model_fields
    for name, why in _refusals(type(decoding)).items():
        value = getattr(decoding, name)
        if name not in own.model_fields and value != fields[name].default:
            raise InputError(
                f"decoding.{name} is {_shown(value)}, but {family} {why}; leave it out"
            )
    return own(**{name: getattr(decoding, name) for name in own.model_fields if name in fields})


def _shown(value: Any) -> str:
    """Of a table only how it begins."""
    if not isinstance(value, Config):
        return str(value)
    first, number = next(iter(value.model_dump().items()))
    return f"set ({first} {number})"


def _refusals(kind: type[DecodingConfig]) -> dict[str, str]:
    """Of all families whose fields a class has."""
    found: dict[str, str] = {}
    for ancestor in reversed(kind.__mro__):
        found |= vars(ancestor).get("refusals", {})
    return {name: why for name, why in found.items() if name in kind.model_fields}


def _again(fields: dict[str, Any]) -> DecodingConfig:
    return FieldsOfAll(PACKAGE, "Decoding", DecodingConfig)(fields)
