"""Rows that torch.distributed.checkpoint stores: all of them come back, to any number of processes,
and nothing is followed that somebody laid beside them."""

import json
import pickle
import warnings
from dataclasses import replace

import pytest
import torch
from torch.distributed.checkpoint import HuggingFaceStorageReader, load

from common.errors import InputError
from common.files.rows import Rows, own_rows, row_files, without_rows
from common.files.sealed import _seal
from common.files.snapshots import Snapshots

WHOLE = {
    "student": {"w": torch.arange(10.0).view(5, 2), "bias": torch.arange(2)},
    "optimizer": {"state": {0: {"exp_avg": torch.arange(10.0).view(5, 2).bfloat16()}}},
}


def parts_of(value, part, parts):
    """What one of several processes has of it."""
    if isinstance(value, torch.Tensor):
        span = own_rows(len(value), part, parts)
        return Rows(value[span], span.start, len(value))
    return {key: parts_of(inner, part, parts) for key, inner in value.items()}


def stored(root, parts, *, by=None, change=lambda state, part: state, **settings):
    """A snapshot of step 2, in so many parts, of which those `by` whom it is have written."""
    snapshots, written, rest = Snapshots(root, **settings), [], {}
    for part in range(parts) if by is None else by:
        rows = {}
        rest = without_rows(change(parts_of(WHOLE, part, parts), part), rows)
        written += snapshots.write_part(2, part, parts, rows)
    snapshots.seal(2, rest, {"by": parts}, written)
    return snapshots


def assert_same(found, wanted):
    if isinstance(wanted, dict):
        assert found.keys() == wanted.keys()
        for key, value in wanted.items():
            assert_same(found[key], value)
    else:
        assert isinstance(found, Rows) == isinstance(wanted, Rows)
        if isinstance(wanted, Rows):
            assert (found.first, found.count) == (wanted.first, wanted.count)
            found, wanted = found.value, wanted.value
        torch.testing.assert_close(found, wanted, atol=0, rtol=0)


@pytest.mark.parametrize(("parts", "file_bytes", "files"), [(1, 100, 1), (2, 24 + 8, 2), (4, 1, 3)])
def test_any_number_of_processes_reads_what_any_number_wrote(tmp_path, parts, file_bytes, files):
    """The last of four has no row of any tensor."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        snapshots = stored(tmp_path, parts, file_bytes=file_bytes)
    tensors, facts = snapshots.load(2)
    assert len([*snapshots.folder(2).glob("rows-*")]) == parts * files
    assert_same(tensors, WHOLE)
    assert facts == {"by": parts}
    for readers in (1, 3, 4):
        for part in range(readers):
            own, _ = snapshots.load(2, own=(part, readers))
            assert_same(own, parts_of(WHOLE, part, readers))


class Trap:
    def __init__(self, sprung):
        self.sprung = sprung

    def __reduce__(self):
        return open, (str(self.sprung), "w")


def test_pickles_that_lie_beside_them_are_not_opened(tmp_path):
    """Where torch's own format has one."""
    sprung, trap = tmp_path / "sprung", pickle.dumps(Trap(tmp_path / "sprung"))
    folder = stored(tmp_path / "snapshots", 2).folder(2)
    for name in (".metadata", "__0.metadata", "__0_0.distcp"):
        (folder / name).write_bytes(trap)
    snapshots = Snapshots(folder.parent)
    snapshots.load(2)
    snapshots.load(2, own=(1, 3))
    assert not sprung.exists()
    pickle.loads(trap).close()
    assert sprung.exists(), "it would have told"


def test_torch_reads_them_by_their_names(tmp_path):
    folder = stored(tmp_path, 2).folder(2)
    found = {"student": {"w": torch.zeros(5, 2)}}
    load(found, storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=True)
    assert_same(found, {"student": {"w": WHOLE["student"]["w"]}})
    modes = {path.stat().st_mode & 0o777 for path in folder.iterdir()}
    assert len(modes) == 1, "readable by those who read the others"


def of_part(number, change):
    """`change` of what one process has of a tensor."""

    def changed(state, part):
        if part != number:
            return state
        return {**state, "student": {"w": change(state["student"]["w"])}}

    return {"change": changed}


WRONG = {
    "rows 0:2, 2:4 of 5": {"by": (0, 1)},
    "rows 0:2, 4:5 of 5": {"by": (0, 2)},
    "rows 0:2, 1:3, 4:5 of 5": of_part(1, lambda rows: replace(rows, first=1)),
    "rows 0:1, 2:4, 4:5 of 5": of_part(0, lambda rows: replace(rows, value=rows.value[:1])),
    "torch.float64, not torch.float32": of_part(
        0, lambda rows: replace(rows, value=rows.value.double())
    ),
    r"\[2, 1\] from \[0, 0\] on, which is no part of \[5, 2\]": of_part(
        0, lambda rows: replace(rows, value=rows.value[:, :1])
    ),
}


@pytest.mark.parametrize("said", WRONG)
def test_rows_that_are_not_there_once_are_missed(tmp_path, said):
    snapshots = stored(tmp_path, 3, **WRONG[said])
    for own in (None, (0, 3)):
        with pytest.raises(
            InputError, match=rf"step-00000002 is damaged: student\.w (has|is) {said}"
        ):
            snapshots.load(2, own=own)


def test_other_files_than_those_that_were_written_are_not_read(tmp_path):
    snapshots = stored(tmp_path, 2)
    folder = snapshots.folder(2)
    other = folder / "a.safetensors"
    other.write_bytes((folder / "rows-1-of-2-1.safetensors").read_bytes())
    with pytest.raises(InputError, match=r"damaged: a\.safetensors does not belong to it"):
        snapshots.load(2)


def test_rows_of_an_earlier_version_are_refused(tmp_path):
    snapshots = stored(tmp_path, 2)
    path = snapshots.folder(2) / "facts.json"
    found = json.loads(path.read_text()) | {"format": "varkd-snapshot-1"}
    del found["digest"]
    path.write_text(json.dumps({**found, "digest": _seal(found)}))
    with pytest.raises(InputError, match=r"as an earlier version .*learner\.parallel=ddp"):
        snapshots.verify(2)


def test_what_keeps_them_from_being_written_is_said(tmp_path):
    parts = tmp_path / ".step-00000002.parts"
    parts.mkdir()
    (parts / "rows-1-of-2-1.safetensors.tmp").touch()
    with pytest.raises(InputError, match="step-00000002"):
        Snapshots(tmp_path).write_part(2, 0, 2, {"w": Rows(torch.ones(1), 0, 1)})


def test_a_torch_that_cannot_store_them_is_named():
    with pytest.raises(InputError, match=r"of torch .* has no safetensors, .*parallel=fsdp"):
        row_files("torch.distributed.checkpoint.nothing_yet")
