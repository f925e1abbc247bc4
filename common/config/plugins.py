"""What plug-ins have in common; how they are found is in common/config/registry.py."""

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import computed_field, model_validator

from common.config.registry import from_package as from_package
from common.config.registry import kinds as kinds
from common.config.registry import load_plugin as load_plugin
from common.config.registry import make as make
from common.config.registry import named_by_kind as named_by_kind
from common.config.schema import Config


class PluginConfig(Config):
    """Base of every plug-in config."""

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """What the values of a field `preset` stand for: published sizes, by field."""
    preset_gives: ClassVar[frozenset[str]] = frozenset()
    """Fields whose defaults follow the preset, but which may be given beside it."""

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
