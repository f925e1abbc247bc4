"""Snapshots of which every rank writes its rows: whole or not there, whoever is slow or wrong."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor, wait

import pytest
import torch
from building.objectives import Company

from common.errors import Diverged, InputError
from common.files.rows import Rows, without_rows
from common.files.sealed import _seal
from common.files.snapshots import Snapshots
from learner.process_group import first_says
from learner.spread_checkpoints import SpreadCheckpoints


class Slow(Snapshots):
    """Writes its rows when it is let."""

    let: threading.Event

    def write_part(self, step, part, parts, rows):
        assert self.let.wait(10)
        return super().write_part(step, part, parts, rows)


def of_two(tmp_path, work):
    """What `work` returns on each of two ranks, which are threads."""
    shared, barrier = {}, threading.Barrier(2)

    def rank(number):
        snapshots = Slow(tmp_path, keep=1, finite=("student",), file_bytes=1)
        snapshots.let = threading.Event()
        ranks = Company(number, shared, barrier)
        checkpoints = SpreadCheckpoints(snapshots, ranks, every=2, minutes=0)
        try:
            return work(number, snapshots, checkpoints)
        finally:
            snapshots.let.set()
            checkpoints.close()

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(rank, range(2)))


def state(rank):
    """Two rows of four, as a learner's snapshot has them."""
    student, ema = (
        {"w": Rows(torch.arange(4.0).view(2, 2) + 4 * rank, 2 * rank, 4)} for _ in range(2)
    )
    return {"student": student, "ema": ema, "optimizer": {"state": {0: {"step": 3}}}}


def test_a_snapshot_is_there_when_all_have_written(tmp_path):
    def work(rank, snapshots, checkpoints):
        found = [checkpoints.is_due(1), checkpoints.is_due(2)]
        for step in (2, 4):
            now = state(rank)
            versions = {"versions": torch.tensor([step])} if rank == 0 else {}
            checkpoints.save(step, now, versions, {"by": rank})
            now["student"]["w"].value.add_(100)  # training goes on
            if rank == 0 and step == 2:
                snapshots.let.set()
                wait([checkpoints._part])
            checkpoints.check()
            found.append([(done, snapshots.verify(done)) for done in snapshots.steps()])
            snapshots.let.set()
        checkpoints.settle()
        return [*found, checkpoints.is_missing(4), snapshots.steps()]

    assert of_two(tmp_path, work) == [[False, True, [], [(2, {"by": 0})], False, [4]]] * 2
    snapshots = Snapshots(tmp_path)
    tensors, facts = snapshots.load(4)
    for name in ("student", "ema"):
        assert tensors[name]["w"].tolist() == torch.arange(8.0).view(4, 2).tolist()
    assert tensors["optimizer"] == state(0)["optimizer"]
    assert tensors["versions"].tolist() == [4]
    assert facts == {"by": 0}
    of_three = [snapshots.load(4, own=(part, 3))[0]["student"]["w"] for part in range(3)]
    assert [rows.value.tolist() for rows in of_three] == [[[0, 1], [2, 3]], [[4, 5], [6, 7]], []]


def test_all_hear_of_a_part_that_is_not_finite(tmp_path):
    def work(rank, snapshots, checkpoints):
        now = state(rank)
        if rank == 1:
            now["student"]["w"].value[0] = torch.nan
        with pytest.raises(Diverged) as refused:
            checkpoints.save(2, now, {}, {})
        return str(refused.value), checkpoints.describe()

    (one, nothing), (other, _) = of_two(tmp_path, work)
    assert "step 2: a tensor of another rank is not finite" in one
    assert "step 2: student.w is not finite" in other
    assert nothing == "there is no snapshot"


def test_ranks_go_by_the_first_one():
    shared, barrier = {}, threading.Barrier(2)
    ranks = [Company(number, shared, barrier) for number in range(2)]
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(first_says, ranks, (7, 5))) == [7, 7]


def sealed(root, parts):
    """A snapshot of step 2 by so many processes."""
    snapshots, found = Snapshots(root), []
    for part in range(parts):
        rows = {}
        rest = without_rows(state(part), rows)
        found += snapshots.write_part(2, part, parts, rows)
    snapshots.seal(2, rest, {}, found)
    return snapshots


def test_what_other_ranks_left_half_written_does_not_stay(tmp_path):
    Snapshots(tmp_path).write_part(2, 2, 3, {"w": Rows(torch.ones(1), 2, 3)})
    folder = sealed(tmp_path, 2).folder(2)
    names = ["facts.json", "rows-1-of-2-1.safetensors", "rows-2-of-2-1.safetensors", "tensors.pt"]
    assert sorted(path.name for path in folder.iterdir()) == names
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]


def test_no_file_outside_of_the_snapshot_is_read(tmp_path):
    """As somebody could write it who knows the format."""
    snapshots = sealed(tmp_path, 2)
    path = snapshots.folder(2) / "facts.json"
    found = json.loads(path.read_text())
    del found["digest"]
    found["rows"][1]["name"] = "../rows-2-of-2-1.safetensors"
    path.write_text(json.dumps({**found, "digest": _seal(found)}))
    with pytest.raises(InputError, match=r"facts\.json is damaged: other contents"):
        snapshots.verify(2)
