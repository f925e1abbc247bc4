"""Versions of packages, read from their metadata: nothing is imported."""

import importlib.metadata
import platform
import subprocess
from pathlib import Path


def installed(package: str) -> str:
    """A version; "not installed" also where varkd runs from a bare copy of its sources."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def python() -> str:
    return platform.python_version()


PACKAGES = ("torch", "ray", "pyarrow", "torch-fidelity", "numpy", "pydantic", "scikit-learn")


def versions() -> dict[str, str]:
    found = {name: installed(name) for name in PACKAGES}
    return {"python": python(), "varkd": installed("varkd"), **found}


def commit() -> str:
    """Of the working tree that the code runs from, and whether it has uncommitted changes."""
    here = Path(__file__).parent
    try:
        found = [
            subprocess.run(
                ["git", *words], cwd=here, capture_output=True, text=True, check=True, timeout=10
            ).stdout.strip()
            for words in (["rev-parse", "--short", "HEAD"], ["status", "--porcelain"])
        ]
    except (OSError, subprocess.SubprocessError):  # installed without its repository
        return "unknown"
    return found[0] + (" with uncommitted changes" if found[1] else "")
