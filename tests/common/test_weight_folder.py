"""Versions as files: what may happen to a file on its way, and which files there are."""

import resource
import shutil
from contextlib import contextmanager
from threading import Timer

import pytest

from common.errors import InputError
from common.exchange.weight_folder import FiledVersions, WeightFolder
from common.exchange.weights import Weights

PART = bytes(range(256)) * 2**9


@pytest.fixture
def folder(tmp_path):
    """A run's own one."""
    (own := tmp_path / "shared" / "run").mkdir(parents=True)
    return own


@pytest.fixture
def weights(folder):
    return WeightFolder(FiledVersions(1), folder, 1)


def versions(folder):
    """Of the files that are there."""
    return sorted(int(path.name.partition("-")[0]) for path in folder.iterdir())


def the_file(folder):
    [path] = folder.iterdir()
    return path


def test_files_go_one_version_after_the_store_forgot_them(weights, folder):
    there = []
    for version in (0, 2, 4, 6, 8, 9, 10):
        weights.publish(Weights(version, [PART]))
        there.append(versions(folder))
    assert there == [[0], [0, 2], [2, 4], [4, 6], [6, 8], [8, 9], [8, 9, 10]]
    (folder / ".half.tmp").touch()
    weights.rewind()
    assert versions(folder) == [], "those included that a learner left which died"
    weights.publish(Weights(4, [PART]))
    with pytest.raises(ValueError, match="version 4 is not newer than 4"):
        weights.publish(Weights(4, [PART]))
    assert versions(folder) == [4], "and the version that was there before"
    weights.get(4, 0).verified()


def test_a_learner_that_began_again_and_a_worker_meet_by_the_store_and_the_folder(folder):
    """Each has a client of its own, and no other word of the files."""
    store = FiledVersions(1)
    first, second, worker = (WeightFolder(store, folder, 1) for _ in range(3))
    first.publish(Weights(3, [PART, b"lost"]))
    second.rewind()
    second.publish(Weights(3, [PART, b"more"]))
    assert versions(folder) == [3]
    assert worker.newest(0) == 3
    assert [bytes(part) for part in worker.get(3, 0).verified()] == [PART, b"more"]


def test_a_damaged_file_is_named(weights, folder):
    weights.publish(Weights(5, [b"head", PART]))
    with (path := the_file(folder)).open("r+b") as file:
        file.seek(2**14)
        file.write(b"?")
    with pytest.raises(InputError, match=rf"{path}: weights of version 5 arrived damaged"):
        weights.get(5, 0).verified()


@pytest.mark.parametrize("harm", ["gone", "short"])
def test_a_file_that_is_not_whole_is_awaited_until_the_time_is_over(folder, harm):
    """A cache may be older than the word that the file is there."""
    store = FiledVersions(1)
    weights, impatient = WeightFolder(store, folder, 1), WeightFolder(store, folder, 1, 0.1)
    weights.publish(Weights(5, [PART]))
    path = the_file(folder)
    if harm == "gone":
        path.unlink()
    else:
        path.write_bytes(PART[:-7])
    reason = "no such file" if harm == "gone" else "ends 7 bytes before"
    with pytest.raises(
        TimeoutError, match=rf"{path}: version 5 .* could not be read in .*{reason}"
    ):
        weights.get(5, 0.15)
    with pytest.raises(TimeoutError):
        impatient.get(5, 0)
    with pytest.raises(InputError, match=rf"{path}: version 5 .*{reason}"):
        impatient.get(5, 20)
    late = Timer(0.1, path.write_bytes, [PART])
    late.start()
    weights.get(5, 20).verified()
    late.join()
    path.unlink()
    weights.rewind()
    with pytest.raises(TimeoutError, match="version 5 of the student's weights was not there"):
        weights.get(5, 0)


def test_a_machine_without_the_folder_is_told_so(weights, folder):
    weights.publish(Weights(5, [PART]))
    shutil.rmtree(folder.parent)
    with pytest.raises(InputError, match=rf"rollout.weights_folder: {folder.parent} is not there"):
        weights.get(5, 20)
    with pytest.raises(InputError, match=rf"{folder}: version 6 .*: no such file or directory; "):
        weights.publish(Weights(6, [PART]))


@contextmanager
def no_file_over(size):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_version_without_room_leaves_nothing_and_those_before(weights, folder):
    weights.publish(Weights(5, [PART]))
    with no_file_over(2**16), pytest.raises(InputError, match=r"could not be written.*make room"):
        weights.publish(Weights(6, [PART]))
    assert (versions(folder), weights.newest(0)) == ([5], 5)
    weights.publish(Weights(6, [PART]))
    assert weights.newest(0) == 6
