"""The directory is the registry: `kind = "varkd"` means the file `varkd.py`, here or in a package
of the user's own."""

import importlib
import importlib.util
import os
import pkgutil
import traceback
from functools import lru_cache
from types import ModuleType
from typing import Any, get_args

from pydantic import BaseModel, BeforeValidator, SecretStr, ValidationError, create_model
from pydantic.fields import FieldInfo
from pydantic_core import InitErrorDetails

from common.config.plugin_path import plugin_packages
from common.config.secret_names import SECRET
from common.errors import InputError

MISTAKES = SyntaxError, ImportError, NameError, AttributeError, TypeError, ValueError
"""What files that are wrong raise when they are imported."""
Packages = str | tuple[str, ...]
"""A package of plug-ins, or several whose kinds are one choice."""


def modules(package: Packages) -> dict[str, str]:
    """Modules by kind, of `package` and of the folders of its name in the plug-in path.

    Raises:
        InputError: two of them have the same name.
    """
    places: list[str] = []
    for each in (package,) if isinstance(package, str) else package:
        folder = each.rpartition(".")[2]
        places.append(each)
        for name in plugin_packages():
            if importlib.util.find_spec(place := f"{name}.{folder}") is not None:
                places.append(place)
    return dict(_listed(tuple((place, _as_it_is(place)) for place in places)))


def _as_it_is(place: str) -> tuple[tuple[str, int], ...]:
    """The folders of a package, each with the time when a file was last put there or taken away."""
    found = importlib.import_module(place).__path__
    return tuple((path, os.stat(path).st_mtime_ns if os.path.isdir(path) else 0) for path in found)


@lru_cache(maxsize=64)  # asked hundreds of times while a config is read
def _listed(places: tuple[tuple[str, tuple[tuple[str, int], ...]], ...]) -> dict[str, str]:
    found: dict[str, str] = {}
    for place, folders in places:
        for module in pkgutil.iter_modules([path for path, _ in folders]):
            name = f"{place}.{module.name}"
            if module.name in found:
                raise InputError(
                    f"plugins: {name} and {found[module.name]} are two plug-ins of one kind; "
                    "rename the file of one"
                )
            found[module.name] = name
    return found


def kinds(package: Packages) -> list[str]:
    """Names of all plug-ins in `package` and the plug-in path, found by listing their files."""
    return sorted(modules(package))


def load_plugin(package: Packages, kind: str) -> ModuleType:
    """Import the one file that implements `kind`.

    Raises:
        InputError: there is no such file; the message lists those that exist. Or it is a user's and
            cannot be imported, or a field of its Config is a secret.
    """
    found = modules(package)
    if kind not in found:
        known = ", ".join(sorted(found))
        where = package if isinstance(package, str) else " or ".join(package)
        raise InputError(f"no {where} plug-in called {kind!r}; choose one of: {known}")
    module = _imported(found[kind])
    _require_no_secret(module)
    return module


def _imported(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except InputError:
        raise
    except MISTAKES as error:
        if name.partition(".")[0] not in plugin_packages():
            raise
        at = traceback.extract_tb(error.__traceback__)[-1]
        # A SyntaxError names its own line; what reads the file is not where the mistake is.
        where = "" if isinstance(error, SyntaxError) else f" (line {at.lineno} of {at.filename})"
        raise InputError(
            f"plugins: {name} cannot be imported: {type(error).__name__}: "
            f"{error}{where}; correct it"
        ) from error


@lru_cache(maxsize=256)
def _require_no_secret(module: ModuleType) -> None:
    """Every field is written to config.toml, reports and loggers."""
    fields: dict[str, FieldInfo] = getattr(getattr(module, "Config", None), "model_fields", {})
    for name, field in fields.items():
        kinds_of_it = {field.annotation, *get_args(field.annotation)}
        if SECRET.search(name) and kinds_of_it & {str, SecretStr}:
            raise InputError(
                f"{module.__name__} has a field {name}, and what a config holds is in reports and "
                "logs; let the plug-in read it from the environment, or call the field otherwise "
                "if it is no secret"
            )


def make(package: Packages, fields: dict[str, Any]) -> Any:
    """Turn `{kind = ..., ...}` into that plug-in's own Config."""
    rest = {name: value for name, value in fields.items() if name != "kind"}
    return load_plugin(package, str(fields["kind"])).Config.model_validate(rest)


def declared(package: str, name: str) -> dict[str, Any]:
    """What the tables `name` of the plug-ins in `package` hold together; few files have one."""
    return dict(_declared(package, name, tuple(plugin_packages())))


@lru_cache(maxsize=64)  # asked in every step of decoding, and a folder is listed for it
def _declared(package: str, name: str, packages: tuple[str, ...]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for kind in kinds(package):
        found |= getattr(load_plugin(package, kind), name, {})
    return found


class FromPackage:
    """Applies `make` to a table that names its kind, or else is of the default one; `only` that one
    where the field takes no other."""

    def __init__(
        self, package: Packages, default: str | None = None, *, only: bool = False
    ) -> None:
        self.package = package
        self.default = default
        self.some = (default,) if only and default is not None else ()

    def __call__(self, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        if self.default is not None:
            value = {"kind": self.default, **value}
        if "kind" not in value:
            raise InputError(f'needs a kind: kind = "..." with one of {kinds(self.package)}')
        if self.some and value["kind"] not in self.some:
            raise InputError(f"kind is {value['kind']}, but here it can only be {self.default}")
        return make(self.package, value)


class NamedByKind:
    """Applies `make` to tables that are called by their kind."""

    def __init__(self, package: str) -> None:
        self.package = package

    def __call__(self, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {
            kind: self._made(kind, fields) if isinstance(fields, dict) else fields
            for kind, fields in value.items()
        }

    def _made(self, kind: str, fields: dict[str, Any]) -> Any:
        try:
            return make(self.package, {**fields, "kind": kind})
        except ValidationError as error:  # whose keys begin below the table
            below = [
                InitErrorDetails(
                    type=item["type"],
                    loc=(kind, *item["loc"]),
                    input=item["input"],
                    ctx=item.get("ctx", {}),
                )
                for item in error.errors()
            ]
            raise ValidationError.from_exception_data(error.title, below) from None


class FieldsOfAll:
    """Gives a table the fields of the class `name` of every plug-in that has one, all of them
    subclasses of `root`; what it makes is of all these classes."""

    def __init__(self, package: str, name: str, root: type[BaseModel]) -> None:
        self.package, self.name, self.root = package, name, root

    def model(self) -> type[BaseModel]:
        """The class of the table, the same one as long as the plug-ins are the same."""
        loaded = [load_plugin(self.package, kind) for kind in kinds(self.package)]
        found = [vars(module)[self.name] for module in loaded if self.name in vars(module)]
        return _joined(self.root, tuple(dict.fromkeys(found)))

    def __call__(self, value: Any) -> Any:
        model = self.model()
        if isinstance(value, self.root) and not isinstance(value, model):
            names = type(value).model_fields.keys() & model.model_fields.keys()
            return model(**{name: getattr(value, name) for name in names})
        return model.model_validate(value) if isinstance(value, dict) else value


@lru_cache(maxsize=16)
def _joined(root: type[BaseModel], parts: tuple[type[BaseModel], ...]) -> type[BaseModel]:
    return create_model(root.__name__, __base__=parts or (root,), __module__=root.__module__)


def fields_of_all(package: str, name: str, root: type[BaseModel]) -> BeforeValidator:
    """Pydantic validator of a section whose fields are those of all plug-ins of a package."""
    return BeforeValidator(FieldsOfAll(package, name, root))


def from_package(
    package: Packages, default: str | None = None, *, only: bool = False
) -> BeforeValidator:
    """Pydantic validator of a section whose fields are those of its kind."""
    return BeforeValidator(FromPackage(package, default, only=only))


def named_by_kind(package: str) -> BeforeValidator:
    """Pydantic validator of a section of tables, each called by its kind."""
    return BeforeValidator(NamedByKind(package))
