"""The directory is the registry: `kind = "varkd"` means the file `varkd.py`."""

import importlib
import pkgutil
from collections.abc import Mapping
from types import ModuleType
from typing import Any, ClassVar

from pydantic import BeforeValidator, computed_field, model_validator

from common.config.schema import Config
from common.errors import InputError


class PluginConfig(Config):
    """Base of every plug-in config."""

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """What the values of a field `preset` stand for: published sizes, by field."""

    @model_validator(mode="before")
    @classmethod
    def _fill_in_preset(cls, values: Any) -> Any:
        """Refuses a field that is also given, with another value."""
        sizes = cls.presets.get(str(values.get("preset"))) if isinstance(values, dict) else None
        if sizes is None:
            return values
        for name, size in sizes.items():
            if values.get(name, size) != size:
                found = f"preset {values['preset']} has {name} {size}, not {values[name]}"
                raise ValueError(f"{found}; drop one")
        return {**values, **sizes}

    @computed_field
    @property
    def kind(self) -> str:
        """The name of the file that defines this plug-in: said once, by the file itself."""
        return type(self).__module__.rpartition(".")[2]


def kinds(package: str) -> list[str]:
    """Names of all plug-ins in `package`, found by listing its files."""
    path = importlib.import_module(package).__path__
    return sorted(module.name for module in pkgutil.iter_modules(path))


def load_plugin(package: str, kind: str) -> ModuleType:
    """Import the one file that implements `kind`.

    Raises:
        InputError: there is no such file; the message lists those that exist.
    """
    if kind not in kinds(package):
        known = ", ".join(kinds(package))
        raise InputError(f"no {package} plug-in called {kind!r}; choose one of: {known}")
    return importlib.import_module(f"{package}.{kind}")


def make(package: str, fields: dict[str, Any]) -> Any:
    """Turn `{kind = ..., ...}` into that plug-in's own Config."""
    rest = {name: value for name, value in fields.items() if name != "kind"}
    return load_plugin(package, str(fields["kind"])).Config.model_validate(rest)


class FromPackage:
    """Applies `make` to tables that name a kind."""

    def __init__(self, package: str) -> None:
        self.package = package

    def __call__(self, value: Any) -> Any:
        if isinstance(value, dict):
            if "kind" not in value:
                raise InputError(f'needs a kind: kind = "..." with one of {kinds(self.package)}')
            return make(self.package, value)
        return value


def from_package(package: str) -> BeforeValidator:
    """Pydantic validator of a section whose fields are those of its kind."""
    return BeforeValidator(FromPackage(package))
