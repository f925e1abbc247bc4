"""The directory is the registry: `kind = "varkd"` means the file `varkd.py`."""

import importlib
import pkgutil
from types import ModuleType
from typing import Any

from pydantic import BeforeValidator

from common.errors import InputError


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
    """Applies `make` to a table that names its kind, or else is of the default one."""

    def __init__(self, package: str, default: str | None = None) -> None:
        self.package = package
        self.default = default

    def __call__(self, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        if self.default is not None:
            value = {"kind": self.default, **value}
        if "kind" not in value:
            raise InputError(f'needs a kind: kind = "..." with one of {kinds(self.package)}')
        return make(self.package, value)


class NamedByKind:
    """Applies `make` to tables that are called by their kind."""

    def __init__(self, package: str) -> None:
        self.package = package

    def __call__(self, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {
            kind: make(self.package, {**fields, "kind": kind})
            if isinstance(fields, dict)
            else fields
            for kind, fields in value.items()
        }


def from_package(package: str, default: str | None = None) -> BeforeValidator:
    """Pydantic validator of a section whose fields are those of its kind."""
    return BeforeValidator(FromPackage(package, default))


def named_by_kind(package: str) -> BeforeValidator:
    """Pydantic validator of a section of tables, each called by its kind."""
    return BeforeValidator(NamedByKind(package))
