"""Bring what lies at a URL into a folder, every file as its list says that it was written."""

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from common.errors import InputError
from common.files.sealed import FACTS, Part
from deploy.run_folder.manifest import NAME, Manifest, read_manifest
from deploy.run_folder.remote import TROUBLE, Remote, reason
from deploy.run_folder.synced import Synced

SNAPSHOTS = "snapshots/"
ROLLOUTS = "rollouts/"
SILENT_SECONDS = 90.0
"""After so long without a sign of life whoever was at work there is taken for dead."""


def known(remote: Remote) -> Manifest | None:
    """The list of what is there; None where nothing is.

    Raises:
        InputError: it cannot be read, or there are files without one.
    """
    try:
        found, names = read_manifest(remote), remote.names()
    except InputError:
        raise
    except TROUBLE as error:
        raise InputError(f"{remote}: {reason(error)}") from None
    if found is None and names:
        raise InputError(
            f"{remote}: holds files ({names[0]}) without {NAME}, the list that a whole copy of a "
            "run has; choose another URL, or remove them"
        )
    return found


def require_nobody(remote: Remote, manifest: Manifest, synced: Synced) -> None:
    """
    Raises:
        InputError: a command copies another folder there right now.
    """
    writer = manifest.writer
    if not writer.is_open or writer.folder == synced.folder:  # whose lock decides
        return
    if writer.has_died:
        return
    age = max(0.0, remote.age(NAME))
    if age < SILENT_SECONDS:
        raise InputError(
            f"{remote}: `varkd {writer.command}` is at work there (process {writer.pid} on "
            f"{writer.host}, heard of {age:.0f} s ago); wait for it, or choose another URL"
        )


def fetch(
    remote: Remote,
    manifest: Manifest,
    synced: Synced,
    root: Path,
    here: Mapping[str, Path],
    wanted: Collection[str],
) -> None:
    """The wanted files that are not in `root` or are newer there; `here` are those of `root`.

    Where this folder was the last to write there, what it has is as new or newer, and stays.

    Raises:
        InputError: a file is missing there or is not as it was written; the copy is not whole; or
            both were changed. What was fetched until then stays, and is whole.
    """
    is_ours = manifest.writer.folder == synced.folder
    if not is_ours:
        if not manifest.is_whole:
            writer = manifest.writer
            raise InputError(
                f"{remote}: holds half a copy: `varkd {writer.command}` on {writer.host} ended "
                "before all of it was there; run it again there, or choose another URL"
            )
        _require_unchanged(remote, manifest, synced, root, here)
        for name in [name for name in synced.files if not any(manifest.allowed(name))]:
            (root / name).unlink(missing_ok=True)
            synced.forget(name)
    try:
        for name in _in_order(wanted):
            path = root / name
            if path.exists() and (is_ours or synced.part(name) in manifest.allowed(name)):
                continue
            _get(remote, manifest, synced, name, path)
    finally:
        synced.save()


def whole_files(remote: Remote, manifest: Manifest) -> list[str]:
    """What may be there, but nothing of a snapshot that was on its way when its writer died: its
    facts come last.

    Raises:
        InputError: the storage cannot be reached.
    """
    names = [name for name in manifest.names() if any(manifest.allowed(name))]
    coming = {name for name in manifest.changing if is_facts(name)}
    try:
        half = coming - {*remote.names(SNAPSHOTS.rstrip("/"))} if coming else set()
    except TROUBLE as error:
        raise InputError(f"{remote}: {reason(error)}") from None
    folders = {name.rpartition("/")[0] for name in half}
    return [name for name in names if name.rpartition("/")[0] not in folders]


def without_older_snapshots(names: Iterable[str]) -> list[str]:
    """All, but of the snapshots the newest alone."""
    names = [*names]
    newest = max((name.rpartition("/")[0] for name in names if is_facts(name)), default="")
    return [n for n in names if not n.startswith(SNAPSHOTS) or n.rpartition("/")[0] == newest]


def is_facts(name: str) -> bool:
    return name.startswith(SNAPSHOTS) and name.endswith(f"/{FACTS}")


def _require_unchanged(
    remote: Remote, manifest: Manifest, synced: Synced, root: Path, here: Mapping[str, Path]
) -> None:
    """Refuse to replace what only this folder has."""
    for name, path in here.items():
        if synced.has(name, path):
            continue
        with path.open("rb") as file:
            found = path.stat()
            part = Part.of_open(name, file, found.st_size)
        if part not in manifest.allowed(name):
            raise InputError(
                f"{root}: {name} is not as at {remote}, which was written from another folder "
                "since; give another folder with --local-out, or remove what is in this one"
            )
        synced.note(part, found)


def _in_order(names: Iterable[str]) -> list[str]:
    """A snapshot's facts, without which it is none, after its tensors."""
    return sorted(names, key=lambda name: (is_facts(name), name))


def _get(remote: Remote, manifest: Manifest, synced: Synced, name: str, path: Path) -> None:
    half = path.with_name(f".{path.name}.part")
    allowed = [part for part in manifest.allowed(name) if part is not None]
    try:
        try:
            remote.get(name, half)
            found = half.stat()
            with half.open("rb") as file:
                part = Part.of_open(name, file, found.st_size)
        except FileNotFoundError:
            if None in manifest.allowed(name):
                return
            raise _damaged(remote, name, "is missing") from None
        except TROUBLE as error:
            raise InputError(f"{remote}: {name}: {reason(error)}") from None
        if part not in allowed:
            sizes = " or ".join(str(one.bytes) for one in allowed)
            is_cut = part.bytes not in [one.bytes for one in allowed]
            cut = f"has {part.bytes} bytes of {sizes}"
            raise _damaged(remote, name, cut if is_cut else "has other contents than were written")
        half.replace(path)
        synced.note(part, found)
    finally:
        half.unlink(missing_ok=True)


def _damaged(remote: Remote, name: str, what: str) -> InputError:
    return InputError(
        f"{remote}: {name} {what}: the copy is half-written or was damaged; copy it anew from the "
        "folder that it is of, or begin again at another URL"
    )
