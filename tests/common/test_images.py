"""Image sources and tokenizer: layouts, the crop, and every kind of bad input by name."""

import io
import os
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from common.data.token_sources import llamagen_codes
from common.errors import InputError
from common.images.opening import ImagesConfig, open_images

UNREADABLE = r"ant/1\.png: not a readable"


def png(value, size=(8, 8), mode="RGB"):
    data = io.BytesIO()
    colour = value if mode == "L" else (value, 0, 255 - value)
    Image.new(mode, size, colour).save(data, "PNG")
    return data.getvalue()


def photo():
    data = io.BytesIO()
    noise = np.random.default_rng(0).integers(256, size=(64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(data, "PNG")
    return data.getvalue()


@pytest.fixture
def folder(tmp_path):
    for label, name in enumerate(("ant", "bee")):
        (tmp_path / "train" / name).mkdir(parents=True)
        for index in range(3):
            (tmp_path / "train" / name / f"{index}.png").write_bytes(png(50 * label + index))
    return tmp_path / "train"


def parquet(path, rows, **extra):
    image = [{"bytes": data, "path": None} for data, _ in rows]
    columns = {"image": image, "label": [label for _, label in rows]} | extra
    pq.write_table(pa.table(columns), path)
    return path


def settings(path, kind, **changes):
    options = {"kind": kind, "train": path, "size": 8, "channels": 3} | changes
    return ImagesConfig.model_validate(options)


def test_digits_are_split_without_overlap():
    config = ImagesConfig()
    train, test = open_images(config, "train"), open_images(config, "test")
    assert len(train) + len(test) == 1797
    pixels = torch.cat([train.pixels(), test.pixels()])
    assert pixels.shape == (1797, 1, 8, 8)
    assert pixels.dtype == torch.uint8
    assert int(pixels.max()) == 255
    assert train.classes == tuple("0123456789")
    assert sorted(set(test.label_N.tolist())) == list(range(10))


def test_a_folder_and_a_parquet_of_the_same_images_agree(folder, tmp_path):
    by_folder = open_images(settings(folder, "folder"), "train")
    rows = [(f.read_bytes(), i // 3) for i, f in enumerate(sorted(folder.rglob("*.png")))]
    table = parquet(tmp_path / "t.parquet", rows)
    by_parquet = open_images(settings(table, "parquet"), "train")
    assert torch.equal(by_folder.pixels(), by_parquet.pixels())
    assert torch.equal(by_folder.label_N, by_parquet.label_N)
    assert by_folder.classes == ("ant", "bee")
    assert [len(batch) for batch in by_folder.batches(4)] == [4, 2]
    assert by_folder.pixels(limit=2).shape[0] == 2


def test_the_digest_follows_pixels_and_labels_but_not_places(folder, tmp_path):
    def digest(path=folder, kind="folder", **changes):
        return open_images(settings(path, kind, **changes), "train").digest()

    first = digest()
    rows = [(f.read_bytes(), i // 3) for i, f in enumerate(sorted(folder.rglob("*.png")))]
    assert digest(parquet(tmp_path / "t.parquet", rows), "parquet") == first
    (folder / "ant").rename(folder / "aardvark")
    moved = folder.rename(tmp_path / "moved")
    assert digest(moved) == first
    others = [digest(moved, size=4), digest(moved, channels=1)]
    rows[0], rows[1] = rows[1], rows[0]
    others.append(digest(parquet(tmp_path / "order.parquet", rows), "parquet"))
    rows[0], rows[1], rows[2] = rows[1], rows[0], (rows[2][0], 1)
    others.append(digest(parquet(tmp_path / "label.parquet", rows), "parquet"))
    changed = moved / "bee" / "2.png"
    time, data = changed.stat().st_mtime_ns, changed.read_bytes()
    changed.write_bytes(data[:60] + bytes([data[60] ^ 1]) + data[61:])
    os.utime(changed, ns=(time, time))
    others.append(digest(moved))
    assert len({first, *others}) == 6
    digits = [open_images(ImagesConfig(), split) for split in ("train", "test")]
    assert digits[0].digest() == open_images(ImagesConfig(), "train").digest()
    assert digits[0].digest() != digits[1].digest() != digits[1].subset(range(9)).digest()


def test_a_tilde_is_the_home_folder_in_every_path(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert ImagesConfig(kind="folder", train=Path("~/train")).train == tmp_path / "train"
    codes = llamagen_codes.Config(paths=(Path("~/a"), Path("b~")))
    assert codes.paths == (tmp_path / "a", Path("b~"))
    with pytest.raises(ValueError, match="~nobody-at-all/x names the home folder of an unknown"):
        ImagesConfig(kind="folder", train=Path("~nobody-at-all/x"))


def test_real_cifar10_opens(shared):
    path = shared / "data" / "cifar10" / "test-00000-of-00001.parquet"
    source = open_images(settings(path, "parquet", size=32), "train")
    assert len(source) == 10000
    assert next(source.batches(16)).shape == (16, 3, 32, 32)
    assert torch.bincount(source.label_N).tolist() == [1000] * 10


@pytest.fixture
def table(tmp_path):
    """320 images in two files, one of small row groups and one of a single large one."""
    (tmp_path / "table").mkdir()
    for name, count, group in ((0, 20, 5), (1, 300, 300)):
        rows = [(png((20 * name + index) % 256), index % 3) for index in range(count)]
        image = [{"bytes": data, "path": None} for data, _ in rows]
        columns = pa.table({"image": image, "label": [label for _, label in rows]})
        pq.write_table(columns, tmp_path / "table" / f"{name}.parquet", row_group_size=group)
    return tmp_path / "table"


@pytest.mark.parametrize(
    "rows", [range(3, 9), range(18, 33), [0, 4, 5, 19, 20, 300, 319], range(0)]
)
def test_a_subset_is_those_rows(table, folder, rows):
    for source in (
        open_images(settings(table, "parquet"), "train"),
        open_images(settings(folder, "folder"), "train"),
        open_images(ImagesConfig(), "train"),
    ):
        inside = [row for row in rows if row < len(source)]
        part = pickle.loads(pickle.dumps(source.subset(inside)))
        assert part.label_N.tolist() == source.label_N[inside].tolist()
        batches = list(part.batches(4))
        assert [len(batch) for batch in batches[:-1]] == [4] * (len(batches) - 1)
        found = torch.cat(batches) if inside else source.pixels()[:0]
        assert torch.equal(found, source.pixels()[inside])
        if len(inside) > 2:
            assert torch.equal(part.subset([1, 2]).pixels(), source.pixels()[inside[1:3]])


def test_a_subset_reads_no_other_rows(table):
    """A bad row is met by those who want it, and named by its place in its file."""
    rows = [(b"bad" if index == 12 else png(index), 0) for index in range(20)]
    parquet(table / "1.parquet", rows)
    source = open_images(settings(table, "parquet"), "train")
    assert len(source.subset(range(33, 40)).pixels()) == 7
    assert len(source.subset(range(32)).pixels()) == 32
    with pytest.raises(InputError, match=r"1\.parquet, row 12: not a readable image"):
        source.subset(range(30, 35)).pixels()


def test_a_declared_number_of_classes_is_held_against_the_images(table, folder):
    assert len(open_images(settings(table, "parquet"), "train").classes) == 3
    assert len(open_images(settings(table, "parquet", classes=4), "train").classes) == 4
    for kind, path, found in (("parquet", table, 3), ("folder", folder, 2)):
        with pytest.raises(InputError, match=f"has {found} classes, but images.classes is 1"):
            open_images(settings(path, kind, classes=1), "train")
    with pytest.raises(InputError, match=r"has 10 classes, but images\.classes is 9"):
        open_images(ImagesConfig(classes=9), "train")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda d: (d / "ant" / "1.png").write_bytes(b"not a png"), UNREADABLE),
        (
            lambda d: (d / "ant" / "1.png").write_bytes(photo()[:3000]),
            UNREADABLE,
        ),
        (lambda d: (d / "cat").mkdir(), r"cat: class folder without images"),
    ],
)
def test_bad_folders_name_the_file(folder, make, message):
    make(folder)
    with pytest.raises(InputError, match=message):
        open_images(settings(folder, "folder"), "train").pixels()


def test_bad_parquet_names_the_file_the_column_and_the_row(tmp_path):
    good = [(png(1), 0), (png(2), 1)]

    def opened(path):
        return open_images(settings(path, "parquet"), "train")

    bad_row = parquet(tmp_path / "row.parquet", [*good, (b"xx", 1)])
    with pytest.raises(InputError, match=r"row\.parquet, row 2: not a readable image"):
        opened(bad_row).pixels()
    no_image = tmp_path / "image.parquet"
    pq.write_table(pa.table({"label": [0], "picture": ["x"]}), no_image)
    with pytest.raises(InputError, match=r"image\.parquet: no column image.*found label: int64"):
        opened(no_image)
    no_label = tmp_path / "label.parquet"
    pq.write_table(pa.table({"image": [{"bytes": png(1), "path": None}]}), no_label)
    with pytest.raises(InputError, match=r"label\.parquet: no integer column label"):
        opened(no_label)
    garbage = tmp_path / "garbage.parquet"
    garbage.write_bytes(b"hello")
    with pytest.raises(InputError, match=r"garbage\.parquet: not a readable Parquet"):
        opened(garbage)
    with pytest.raises(InputError, match="does not exist"):
        opened(tmp_path / "nowhere.parquet")
    with pytest.raises(InputError, match=r"images\.test is not set"):
        open_images(settings(bad_row, "parquet"), "test")
