"""Snapshots say when they are not what was written, and never load then."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch

from common.errors import Diverged, InputError
from common.files.snapshots import Snapshots

STATE = {"student": {"w": torch.arange(4.0)}, "objective": {"mean": 0.5}}


@pytest.fixture
def kept(tmp_path):
    snapshots = Snapshots(tmp_path / "snapshots", facts={"run": {"seed": 3}}, finite=("student",))
    for step in (2, 4):
        snapshots.save(step, STATE, {"ledger": {"step": step}})
    return snapshots


def test_what_was_saved_comes_back_and_only_the_newest_stay(kept):
    (kept.root / ".step-00000005.77.tmp").mkdir()  # of somebody who was killed while he wrote
    kept.save(6, STATE, {"ledger": {"step": 6}})
    assert kept.steps() == [4, 6]
    tensors, facts = kept.latest()
    assert torch.equal(tensors["student"]["w"], STATE["student"]["w"])
    assert tensors["objective"] == {"mean": 0.5}
    assert facts == {"run": {"seed": 3}, "ledger": {"step": 6}}
    kept.drop_after(4)
    assert kept.steps() == [4]
    assert not [path for path in kept.folder(4).parent.iterdir() if path.name.startswith(".")]


def truncated(folder):
    path = folder / "tensors.pt"
    path.write_bytes(path.read_bytes()[:-100])


def flipped(folder):
    path = folder / "tensors.pt"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def foreign(folder):
    """A whole snapshot's tensors, but another one's."""
    torch.save({"student": {"w": torch.ones(4)}, "objective": {"mean": 0.5}}, folder / "tensors.pt")


def edited(folder):
    path = folder / "facts.json"
    path.write_text(path.read_text().replace('"seed": 3', '"seed": 4'))


def renamed(folder):
    shutil.rmtree(folder)
    shutil.copytree(folder.with_name("step-00000002"), folder)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (truncated, r"tensors\.pt is damaged: \d+ bytes of \d+"),
        (flipped, r"tensors\.pt is damaged: other contents"),
        (foreign, r"tensors\.pt is damaged: (other contents|\d+ bytes)"),
        (edited, r"facts\.json is damaged: other contents"),
        (renamed, r"facts\.json is damaged: it is of step 2"),
        (lambda folder: (folder / "tensors.pt").unlink(), r"tensors\.pt is damaged: No such file"),
        (lambda folder: (folder / "facts.json").unlink(), r"facts\.json is damaged: No such file"),
        (
            lambda folder: (folder / "facts.json").write_text(""),
            r"facts\.json is damaged: no facts",
        ),
        (lambda folder: (folder / "facts.json").write_text("[1]"), r"facts\.json is damaged"),
        (lambda folder: (folder / "facts.json").write_bytes(b"\xff"), r"facts\.json is damaged"),
        (lambda folder: (folder / "facts.json").write_text("[" * 99999), r"facts\.json is damaged"),
        (shutil.rmtree, None),
    ],
)
def test_damage_is_named_and_the_snapshot_beside_it_still_loads(kept, damage, words):
    damage(kept.folder(4))
    if words is None:
        assert kept.steps() == [2]
    else:
        for read in (kept.verify, kept.load):
            with pytest.raises(InputError, match=words):
                read(4)
    assert kept.load(2)[1]["ledger"] == {"step": 2}


def test_what_is_sealed_and_still_no_state_of_ours_never_loads(tmp_path):
    """As somebody could write it who knows the format: code to run, or numbers that are none."""
    snapshots = Snapshots(tmp_path, finite=("student",))
    snapshots.save(1, {"student": SimpleNamespace()}, {})
    with pytest.raises(InputError, match=r"tensors\.pt is damaged: no tensors of ours"):
        snapshots.load(1)
    Snapshots(tmp_path).save(2, {"student": {"w": torch.tensor([1.0, torch.nan])}}, {})
    with pytest.raises(InputError, match=r"student\.w is not finite"):
        snapshots.load(2)


def test_a_state_that_is_not_finite_is_not_kept(kept):
    broken = {"student": {"w": torch.tensor([0.0, torch.inf])}}
    with pytest.raises(Diverged, match=r"step 6: student\.w is not finite"):
        kept.save(6, broken, {"ledger": {"step": 6}})
    assert kept.steps() == [2, 4]


def test_facts_are_json_that_says_what_it_is(kept):
    found = json.loads((kept.folder(4) / "facts.json").read_text())
    assert (found["format"], found["step"]) == ("varkd-snapshot-1", 4)
    assert found["tensors"]["bytes"] == (kept.folder(4) / "tensors.pt").stat().st_size
