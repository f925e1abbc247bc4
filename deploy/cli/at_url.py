"""Commands on a run that lives at a URL: they work in a folder of this machine, which is fetched
before and copied back while they last and at their end."""

import argparse
import hashlib
from pathlib import Path
from shlex import quote

from common.cache import cache_folder
from common.errors import InputError
from common.files.atomic import unwritable
from common.files.paths import absolute, is_url
from deploy.console.progress import console
from deploy.run_folder.mirror import Mirror
from deploy.run_folder.remote import Remote
from deploy.run_folder.workspace import Workspace


def bring(arguments: argparse.Namespace) -> None:
    """Put folders in the place of the URLs of `config`, `out` and `source`; `url` is that of the
    run.

    Raises:
        InputError: the storage cannot be reached, holds no run or half of one, or another command
            is at work on it.
    """
    given, out, lender = arguments.config, arguments.out, getattr(arguments, "source", None)
    if is_url(given) and out in (None, given):
        arguments.config = arguments.out = _begin(arguments, given, "", is_source=True)
    else:
        if is_url(given):
            arguments.config = _fetched(arguments, given, "", snapshots=_goes_on(arguments))
        if is_url(out):
            arguments.out = _begin(arguments, out, "--out", is_source=False)
    if isinstance(lender, str):
        here = {given: arguments.config, out: arguments.out}
        arguments.source = here.get(lender) or _fetched(
            arguments, lender, "--from", snapshots=False
        )


def working_folder(url: str) -> Path:
    """Of a run that lives at a URL, unless somebody names another; only its owner may look into
    it, for the bucket may be private as well.

    Raises:
        InputError: it cannot be made.
    """
    parent = cache_folder() / "runs"
    try:
        parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(parent, error) from error
    digest = hashlib.blake2b(url.encode(), digest_size=4).hexdigest()
    name = url.partition("?")[0].rstrip("/").rpartition("/")[2]
    return absolute(parent / f"{name}-{digest}")


def _fetched(arguments: argparse.Namespace, url: str, option: str, *, snapshots: bool) -> Path:
    """A folder with what is there of a run that this command only reads."""
    remote = Remote(url, option)
    workspace, mirror = _working(arguments, remote, None)
    _require_run(remote, mirror)
    mirror.fetch(snapshots=snapshots)
    return workspace.root


def _begin(arguments: argparse.Namespace, url: str, option: str, *, is_source: bool) -> Path:
    """The folder of the run that this command works on; it is copied from here on."""
    remote = Remote(url, option)
    workspace, mirror = _working(arguments, remote, arguments.local_out)
    if is_source:
        _require_run(remote, mirror)
        if _goes_on(arguments) and not mirror.has_tokens():
            raise InputError(
                f"{remote}: holds what --mirror copies, and neither tokens nor teacher; go on in a "
                f"folder that has them, with --out FOLDER --resume --mirror {quote(remote.url)}"
            )
    if getattr(arguments, "mirror", None) is not None:
        raise InputError(f"{remote}: a run that lives at a URL needs no --mirror; leave it out")
    going = ("resume", "restart", "resume_from", "dry_run")
    begins = _goes_on(arguments) and not any(
        getattr(arguments, name) not in (None, False) for name in going
    )
    if begins:
        mirror.require_free()
    snapshots = _goes_on(arguments) and not arguments.dry_run
    everything = getattr(arguments, "resume_from", None) is not None
    mirror.fetch(snapshots=snapshots, all_snapshots=snapshots and everything)
    if not getattr(arguments, "dry_run", False):
        arguments.held.enter_context(mirror)
    arguments.url = remote.url
    return workspace.root


def _working(
    arguments: argparse.Namespace, remote: Remote, chosen: Path | None
) -> tuple[Workspace, Mirror]:
    """The folder, which this command holds from here on."""
    root = working_folder(remote.url) if chosen is None else absolute(chosen)
    workspace, target = Workspace(root), console()
    arguments.held.enter_context(workspace.locked(arguments.command))
    target.print(f"{remote.url}: working in {root}")
    command = arguments.command
    return workspace, Mirror(remote, workspace, target.print, command=command, is_complete=True)


def _require_run(remote: Remote, mirror: Mirror) -> None:
    if not mirror.is_there():
        raise InputError(f"{remote}: nothing is there; give the URL of a run, as --out named it")


def _goes_on(arguments: argparse.Namespace) -> bool:
    """Whether the command trains by snapshots."""
    return getattr(arguments, "needs_snapshots", False)
