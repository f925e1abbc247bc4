"""Where what can be made or fetched again is kept."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """$XDG_CACHE_HOME/varkd, by default ~/.cache/varkd; it need not be there."""
    given = os.environ.get("XDG_CACHE_HOME", "")
    parent = Path(given) if os.path.isabs(given) else Path("~/.cache").expanduser()
    return parent / "varkd"
