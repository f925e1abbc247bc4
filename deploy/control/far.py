"""What a run that lives at a URL is doing, by what was copied there."""

from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from common.errors import InputError
from deploy.control.client import Seen
from deploy.control.rendezvous import Rendezvous
from deploy.run_folder.copied_files import STATUS
from deploy.run_folder.fetching import SILENT_SECONDS, known
from deploy.run_folder.manifest import NAME, Writer
from deploy.run_folder.records import read_facts
from deploy.run_folder.remote import TROUBLE, Remote, reason

FACTS = "distill.json"


def look_there(url: str) -> Seen:
    """As `look` into a folder; what is there may be half a minute old.

    Raises:
        InputError: the storage cannot be reached, or nothing is there.
    """
    remote = Remote(url, "")
    manifest = known(remote)
    if manifest is None:
        raise InputError(f"{remote}: nothing is there; give the URL of a run, as --out named it")
    with TemporaryDirectory(prefix="varkd-") as folder:
        root, facts = Path(folder), {}
        for name in (STATUS, FACTS):
            try:
                remote.get(name, root / name)
            except FileNotFoundError:
                (root / name).unlink(missing_ok=True)
            except TROUBLE as error:
                raise InputError(f"{remote}: {name}: {reason(error)}") from None
        status = Rendezvous(root).status()
        with suppress(InputError):
            facts = read_facts(root / FACTS, "distill")
    return Seen(remote.url, _live(remote, manifest.writer), status, facts)


def _live(remote: Remote, writer: Writer) -> dict[str, Any] | None:
    """Who is at work there, by whether anything is copied still."""
    if not writer.is_open or remote.age(NAME) > SILENT_SECONDS:
        return None
    return {"command": writer.command, "pid": writer.pid, "host": writer.host}
