"""A run's place by what the command line was given."""

from pathlib import Path

from deploy.control.client import Place, RunFolder


def place_of(where: Path | str) -> Place:
    """Of a run folder, or of the URL at which a run lives.

    Raises:
        InputError: the storage cannot be reached.
    """
    if isinstance(where, Path):
        return RunFolder(where)
    from deploy.control.far import RunAtUrl  # with Arrow, which takes a second

    return RunAtUrl(where)
