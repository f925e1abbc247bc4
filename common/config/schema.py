"""Strict configuration models, and TOML plus dotted overrides as the only way to fill them."""

import hashlib
import json
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar, get_args, get_origin

import tomli_w
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from common.config.known_keys import suggestion
from common.config.merge import Layer, merge
from common.config.secret_names import SECRET
from common.config.toml_tree import apply_override, read_toml
from common.errors import InputError
from common.files.paths import shortened, user_path

SAY = logging.getLogger("varkd")
"""Unless an application configures logging, a warning is a line on stderr."""

UserPath = Annotated[Path, Field(strict=False), AfterValidator(user_path)]
"""A path in a config; `~` stands for the home folder."""


class Config(BaseModel):
    """Base of every config: unknown keys are errors and values never change after load.

    Values have the type that the field says: `true` is no number, "3" neither, and no number is
    infinite. Every number has two bounds (common/config/quantities.py).
    """

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        validate_default=True,
        strict=True,
        allow_inf_nan=False,
    )

    alternatives: ClassVar[tuple[frozenset[str], ...]] = ()
    """Fields of which one is given: a later layer's choice takes the place of an earlier one's."""
    renamed: ClassVar[Mapping[str, str]] = {}
    """Present names of fields by their former ones, which are taken as before and said."""

    @model_validator(mode="before")
    @classmethod
    def _takes_former_names(cls, values: Any) -> Any:
        if not isinstance(values, dict) or not (found := values.keys() & cls.renamed.keys()):
            return values
        for old in sorted(found):
            new = cls.renamed[old]
            if new in values:
                raise ValueError(f"{old} and {new} are two names of one key; keep the second")
            SAY.warning("%s is called %s now; taken as that", old, new)
        return {cls.renamed.get(name, name): value for name, value in values.items()}

    @model_validator(mode="before")
    @classmethod
    def _lists_are_tuples(cls, values: Any) -> Any:
        """TOML and JSON have lists where a frozen config has tuples."""
        if not isinstance(values, dict):
            return values
        return {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}

    @field_validator("*", mode="before")
    @classmethod
    def _choices_have_a_type(cls, value: Any, info: ValidationInfo) -> Any:
        """Literal compares by `==`, for which 1, 1.0 and true are the same."""
        kind = cls.model_fields[str(info.field_name)].annotation
        choices = get_args(kind) if get_origin(kind) is Literal else ()
        if any(value == c for c in choices) and type(value) not in {type(c) for c in choices}:
            raise ValueError(f"Input should be {' or '.join(map(repr, choices))}")
        return value


C = TypeVar("C", bound=Config)
SHOWN = 6
"""Mistakes that are named before the rest is counted."""


def load_config(cls: type[C], path: Path, overrides: Iterable[str] = ()) -> C:
    """Read `path` as TOML, lay `a.b=value` overrides over it, and validate into `cls`.

    Raises:
        InputError: the file is missing or no TOML, an override is malformed, a key is unknown or
            a value has the wrong type. The message names the file and the key.
    """
    own: dict[str, Any] = {}
    for override in overrides:
        apply_override(own, override)
    beside = path.parent
    layers = [Layer(read_toml(path), str(path), beside), Layer(own, "the command line", beside)]
    merged = merge(cls, layers)
    for sentence in merged.told:
        SAY.warning(sentence)
    return validate(cls, merged.tree, source=str(path))


def validate(cls: type[C], tree: dict[str, Any], *, source: str) -> C:
    try:
        return cls.model_validate(tree)
    except ValidationError as error:
        errors = error.errors()
        lines = [_sentence(cls, item) for item in errors[:SHOWN]]
        if len(errors) > SHOWN:
            lines.append(f"and {len(errors) - SHOWN} more")
        raise InputError(f"{source}: " + "; ".join(lines)) from None


def dump_toml(config: Config) -> str:
    """The resolved config as TOML; reading it back gives an equal config."""
    return tomli_w.dumps(config.model_dump(mode="json", exclude_none=True))


def digest(config: Config) -> str:
    """Sixteen hex digits that change whenever any resolved value changes."""
    canonical = json.dumps(config.model_dump(mode="json"), sort_keys=True)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def _sentence(cls: type[BaseModel], item: Any) -> str:
    path = [part for part in item["loc"] if isinstance(part, str)]
    key = shortened(".".join(path))
    if item["type"] != "extra_forbidden":
        said = item["msg"].removeprefix("Value error, ")
        # A rule between sections names its keys and values itself.
        return f"{key}: {said} (found {_shorten(item['input'])})" if path else said
    return f"{key}: unknown key; {suggestion(cls, path)}"


def _without_secrets(value: Any) -> Any:
    """The same value with *** where a key says that nobody should read it."""
    if isinstance(value, dict):
        return {
            name: "***" if SECRET.search(str(name)) else _without_secrets(inner)
            for name, inner in value.items()
        }
    return value


def _shorten(value: Any) -> str:
    value = _without_secrets(value)
    return shortened(repr(list(value) if isinstance(value, tuple) else value))
