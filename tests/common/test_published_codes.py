"""Published codes: what is read from their layouts, and every kind of damage by name."""

import os
import shutil

import numpy as np
import pytest
import torch

from common.data.token_sources import arpg_codes, llamagen_codes
from common.errors import InputError
from common.images.config import ImagesConfig
from common.spec import SequenceSpec

SHAPE = SequenceSpec(vocab_size=50, length=4, grid=(2, 2), num_classes=0)


def open_codes(config, shape):
    return config.open(ImagesConfig(), shape)


@pytest.fixture
def llamagen(tmp_path):
    """Write codes as extract_codes_c2i.py does; returns the tokens by image and folder."""

    def write(name, rows=12, variants=3, seed=0, size=384):
        token = np.random.default_rng(seed).integers(50, size=(rows, variants, 4))
        codes = tmp_path / name / f"imagenet{size}_codes"
        labels = tmp_path / name / f"imagenet{size}_labels"
        codes.mkdir(parents=True)
        labels.mkdir()
        for index in range(rows):
            np.save(codes / f"{index}.npy", token[index][None])
            np.save(labels / f"{index}.npy", np.array([index % 5]))
        return token

    return write


def llamagen_config(root, *names, **changes):
    return llamagen_codes.Config(paths=tuple(root / n for n in names), **changes)


def test_llamagen_codes_come_in_numeric_order(llamagen, tmp_path):
    token = llamagen("ten_crop")
    codes = open_codes(llamagen_config(tmp_path, "ten_crop"), SHAPE)
    assert (len(codes), codes.variants) == (12, 3)
    read, label = codes.read()
    assert torch.equal(read, torch.from_numpy(token)), "2.npy comes before 10.npy"
    assert label.tolist() == [index % 5 for index in range(12)]
    part, label = codes.subset(range(9, 11)).read()
    assert torch.equal(part, torch.from_numpy(token[9:11]))
    assert label.tolist() == [4, 0]


def test_variants_of_several_llamagen_folders_are_joined(llamagen, tmp_path):
    first, second = llamagen("ten_crop"), llamagen("ten_crop_105", seed=1)
    codes = open_codes(llamagen_config(tmp_path, "ten_crop", "ten_crop_105"), SHAPE)
    assert codes.variants == 6
    joined = np.concatenate([first, second], axis=1)
    assert torch.equal(codes.read()[0], torch.from_numpy(joined))


def save(*path_and_array):
    *parents, name, array = path_and_array
    np.save(parents[0].joinpath(*parents[1:], name), array)


CODES, LABELS = "a/imagenet384_codes", "a/imagenet384_labels"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda d: (d / CODES / "7.npy").unlink(), r"codes/7\.npy: no such file, but .* to 11"),
        (lambda d: (d / LABELS / "7.npy").unlink(), r"labels/7\.npy: no such file"),
        (lambda d: (d / LABELS / "11.npy").unlink(), r"labels/11\.npy: no such file, but .*codes"),
        (lambda d: (d / "b/imagenet384_codes/11.npy").unlink(), r"b/.*codes/11\.npy: no such file"),
        (lambda d: save(d, CODES, "x.npy", np.zeros(1)), r"codes/x\.npy: no image number"),
        (lambda d: shutil.rmtree(d / LABELS), r"imagenet384_labels: no such folder"),
        (lambda d: (d / "a/imagenet256_codes").mkdir(), "found imagenet256_codes, imagenet384_c"),
        (lambda d: shutil.rmtree(d / CODES), r"a: expected one folder .*found imagenet384_labels"),
        (lambda d: shutil.rmtree(d / "a"), r"a: no such folder; tokens\.paths"),
        (lambda d: save(d, CODES, "0.npy", np.zeros((3, 4), int)), r"0\.npy: has shape \(3, 4\)"),
        (lambda d: save(d, CODES, "0.npy", np.zeros((1, 3, 9), int)), r"0\.npy: holds 9 tokens"),
        (lambda d: save(d, CODES, "0.npy", np.zeros((1, 2, 4), int)), "variants per image 3"),
        (lambda d: save(d, CODES, "5.npy", np.zeros((1, 2, 4), int)), r"codes/5\.npy: has shape"),
        (lambda d: save(d, CODES, "5.npy", np.zeros((1, 3, 4))), r"5\.npy: holds float64"),
        (lambda d: save(d, CODES, "5.npy", np.full((1, 3, 4), 50)), r"5\.npy: tokens run from 50"),
        (lambda d: save(d, CODES, "5.npy", np.full((1, 3, 4), -1)), r"5\.npy: tokens run from -1"),
        (lambda d: (d / CODES / "5.npy").write_bytes(b"?"), r"5\.npy: not a readable \.npy"),
        (lambda d: (d / CODES / "5.npy").write_bytes(b""), r"5\.npy: not a readable \.npy"),
        (lambda d: save(d, CODES, "5.npy", np.array([{}])), r"5\.npy: not a readable \.npy"),
        (lambda d: save(d, LABELS, "5.npy", np.array([5])), r"labels/5\.npy: label 5, .*classes 5"),
        (lambda d: save(d, LABELS, "5.npy", np.array([-1])), r"labels/5\.npy: label -1"),
        (lambda d: save(d, LABELS, "5.npy", np.array(1)), r"labels/5\.npy: has shape \(\)"),
        (lambda d: save(d, LABELS, "5.npy", np.array([4])), r"b/.*labels/5\.npy: label 0, but .*a"),
    ],
)
def test_bad_llamagen_codes_name_the_file(llamagen, tmp_path, spoil, message):
    llamagen("a"), llamagen("b")
    config = llamagen_config(tmp_path, "a", "b", classes=5)
    open_codes(config, SHAPE).read()
    spoil(tmp_path)
    with pytest.raises(InputError, match=message):
        open_codes(config, SHAPE).read()


@pytest.fixture
def arpg(tmp_path):
    for label in (2, 10):
        (tmp_path / "codes" / str(label)).mkdir(parents=True)
        for index in range(3):
            save(tmp_path, f"codes/{label}", f"n{index}.npy", np.full((2, 4), label + index))
    return tmp_path / "codes"


def arpg_config(path, **changes):
    return arpg_codes.Config(paths=(path,), **changes)


def pipe(path):
    path.unlink()
    os.mkfifo(path)


def claim(path, rows):
    """A header that promises petabytes."""
    with path.open("wb") as file:
        facts = {"descr": "<i8", "fortran_order": False, "shape": (rows, 4)}
        np.lib.format.write_array_header_1_0(file, facts)


def test_arpg_codes_are_labelled_by_their_folders(arpg):
    codes = open_codes(arpg_config(arpg), SHAPE)
    token, label = codes.read()
    assert (token.shape, codes.variants) == ((6, 2, 4), 2)
    assert label.tolist() == [2, 2, 2, 10, 10, 10]
    assert token[:, 0, 0].tolist() == [2, 3, 4, 10, 11, 12]
    assert codes.subset(range(2, 4)).read()[1].tolist() == [2, 10]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda d: (d / "cat").mkdir(), r"cat: no class number"),
        (lambda d: (d / "3").mkdir(), r"3: holds no \.npy files"),
        (
            lambda d: save(d, "10", "n1.npy", np.zeros((1, 4), int)),
            r"10/n1\.npy: has shape \(1, 4\)",
        ),
        (lambda d: save(d, "2", "n0.npy", np.zeros(4, int)), r"2/n0\.npy: has shape \(4,\)"),
        (lambda d: (d / "10").rename(d / "11"), r"11: label 11, expected one below .*classes 11"),
        (lambda d: [shutil.rmtree(d / name) for name in ("2", "10")], "holds no class folders"),
        (lambda d: pipe(d / "2" / "n1.npy"), r"2/n1\.npy: is no regular file"),
        (lambda d: claim(d / "2" / "n1.npy", 10**15), r"2/n1\.npy: not a readable \.npy array"),
        (
            lambda d: save(d, "2", "n1.npy", np.full((2, 4), 2**64 - 1, np.uint64)),
            r"2/n1\.npy: holds 18446744073709551615, which is neither",
        ),
    ],
)
def test_bad_arpg_codes_name_the_file(arpg, spoil, message):
    config = arpg_config(arpg, classes=11)
    open_codes(config, SHAPE).read()
    spoil(arpg)
    with pytest.raises(InputError, match=message):
        open_codes(config, SHAPE).read()
