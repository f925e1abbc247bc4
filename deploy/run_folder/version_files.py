"""Where a run's versions lie as files: in a folder of its own below `rollout.weights_folder`, which
runs may share."""

import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from common.errors import InputError
from common.files.atomic import write_text
from common.files.paths import read_text, refusal
from deploy.config import RunConfig

NOTE = ".versions"
"""Holds the folder's name while it is there, in the run folder."""
NAME = re.compile(r"varkd-[0-9a-f]{16}")


@contextmanager
def version_files(config: RunConfig, root: Path) -> Iterator[Path | None]:
    """A folder that lasts as long as the block; None where versions do not travel as files.

    The command holds the run folder `root`, so a note that is found there is of a run that was
    killed: its folder is removed.

    Raises:
        InputError: `rollout.weights_folder` is not there or cannot be written.
    """
    shared, note = config.rollout.weights_folder, root / NOTE
    if shared is None or not config.samples_student:
        yield None
        return
    _remove_left(shared, note)
    folder = shared / f"varkd-{secrets.token_hex(8)}"
    try:
        write_text(note, folder.name)
        try:
            folder.mkdir()
        except OSError as error:
            raise InputError(
                f"rollout.weights_folder: {shared}: {refusal(error)}; expected a folder that the "
                "driver, the learner and all workers see and write to: make it, or mount it"
            ) from None
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            note.unlink(missing_ok=True)


def _remove_left(shared: Path, note: Path) -> None:
    try:
        name = read_text(note, "the name of a folder")
    except (FileNotFoundError, InputError):
        return
    if NAME.fullmatch(name):
        shutil.rmtree(shared / name, ignore_errors=True)
