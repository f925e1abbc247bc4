"""Versions of packages, read from their metadata: nothing is imported."""

import importlib.metadata
import platform


def installed(package: str) -> str:
    """A version; "not installed" also where varkd runs from a bare copy of its sources."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def python() -> str:
    return platform.python_version()
