"""What loggers have in common: sinks of a run's rows beside its own files (deploy/loggers).

They are told after the files are, from a thread of their own, and a run goes on without one that
fails: see deploy/stages/run_logs.py.
"""

import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, ClassVar

from common.config.plugins import PluginConfig
from common.errors import InputError
from common.exchange.metrics import UNPLOTTED, RowLogger


@dataclass(frozen=True, slots=True)
class LoggedRun:
    """What a logger may know of a run."""

    name: str
    """For people."""
    id: str
    """The same for all commands in a run folder, and another one in each."""
    folder: Path
    config: Mapping[str, Any]
    """As it was resolved, as JSON values; no field of it is a secret."""

    @classmethod
    def of(cls, folder: Path, config: Mapping[str, Any]) -> "LoggedRun":
        return cls(folder.name, run_id(folder), folder, config)


class LoggerConfig(PluginConfig, ABC):
    """One way to keep rows elsewhere. Keys and passwords are no fields of it: its package finds
    them in the environment."""

    package: ClassVar[str]
    """What it imports, which not everybody has; the extra of that name installs it."""

    def require(self) -> None:
        """Called before anything starts.

        Raises:
            InputError: the package is not installed.
        """
        if importlib.util.find_spec(self.package) is None:
            raise InputError(
                f"loggers.{self.kind} needs the package {self.package}, which is not installed; "
                f"pip install {self.package}, or leave the table out"
            )

    @abstractmethod
    def open(self, run: LoggedRun) -> RowLogger:
        """Called with the first rows, in the thread that will hand them over."""


def run_id(folder: Path) -> str:
    """Letters, digits, dots and dashes: the folder's name and six digits of where it lies."""
    name = "".join(c if (c.isalnum() and c.isascii()) or c in "._-" else "-" for c in folder.name)
    return f"{name[:60]}-{sha256(str(folder.resolve()).encode()).hexdigest()[:6]}"


def numbers(row: Mapping[str, Any]) -> dict[str, float]:
    """What of a row can be plotted against its step."""
    return {
        name: float(value)
        for name, value in row.items()
        if name not in UNPLOTTED and isinstance(value, int | float)
    }
