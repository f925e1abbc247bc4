"""What counts as data: which files and columns are read, what is left out, what labels mean."""

import io
import json
import os
import pickle
import socket
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import settings as settings_of_fuzz
from hypothesis import strategies as st
from PIL import Image

from common.data.config import Split
from common.errors import InputError
from common.images import ImagesConfig, open_images


def picture(value):
    return Image.new("RGB", (8, 8), (value, 0, 255 - value))


def png(value):
    data = io.BytesIO()
    picture(value).save(data, "PNG")
    return data.getvalue()


def settings(train, kind="folder", **changes):
    options = {"kind": kind, "train": train, "size": 8, "channels": 3, **changes}
    return ImagesConfig.model_validate(options)


def opened(train, kind="folder", split: Split = "train", **changes):
    return open_images(settings(train, kind, **changes), split)


def reds(source):
    return source.pixels()[:, 0, 0, 0].tolist()


def draw(root, *names, suffix=".png"):
    """Pictures whose red tells them apart: 10 * class + number."""
    for row, name in enumerate(names):
        (root / name).mkdir(parents=True, exist_ok=True)
        for number in range(2):
            picture(10 * row + number).save(root / name / f"{number}{suffix}")
    return root


@pytest.fixture
def train(tmp_path):
    return draw(tmp_path / "train", "cat", "dog")


def summary(source):
    return source.found.lines(source.name)[0]


def test_hidden_and_system_files_are_left_out_and_said(train):
    for name in (".ipynb_checkpoints", "__MACOSX/cat", "@eaDir"):
        draw(train, name)
    for name in ("._0.png", ".DS_Store", "Thumbs.db", "notes.txt", "more.TXT"):
        (train / "cat" / name).write_bytes(b"no image")
    (train / "README").write_text("see notes")
    source = opened(train)
    assert source.classes == ("cat", "dog")
    assert reds(source) == [0, 1, 10, 11]
    assert summary(source) == (
        f"read 4 images of 2 classes in {train}; left out: 2 .txt (cat/more.TXT, cat/notes.txt), "
        "1 beside the class folders (README), 6 hidden (.ipynb_checkpoints, @eaDir, ...)"
    )
    facts = json.loads(json.dumps(source.found.as_dict()))
    assert facts["left_out"] == {"hidden": 6, "beside the class folders": 1, ".txt": 2}
    assert pickle.loads(pickle.dumps(source.subset(range(2)))).found == source.found


def test_every_suffix_of_a_format_that_is_read_is_read(train):
    for number, name in enumerate(
        ["a.TIF", "a.tiff", "a.gif", "a.ppm", "a.jfif", "a.JPEG", "a.jp2", "a.webp", "a.avif"], 20
    ):
        kind = {"TIF": "TIFF", "jfif": "JPEG", "jp2": "JPEG2000"}
        suffix = name.split(".")[1]
        picture(number).save(train / "dog" / name, kind.get(suffix, suffix))
    (train / "dog" / "drawing.eps").write_bytes(b"%!PS")
    source = opened(train)
    assert len(source.pixels()) == 13
    assert "left out: 1 .eps (dog/drawing.eps)" in summary(source)


def test_the_content_decides_what_a_file_holds_not_its_suffix(train):
    (train / "cat" / "0.png").rename(train / "cat" / "0.jpg")
    assert reds(opened(train)) == [0, 1, 10, 11]


def test_links_and_levels_are_followed_and_loops_are_not(train, tmp_path):
    elsewhere = draw(tmp_path / "elsewhere", "deep/er")
    (train / "cat" / "below").mkdir()
    (train / "cat" / "below" / "linked").symlink_to(elsewhere / "deep")
    (train / "dog" / "up").symlink_to(train)
    (train / "dog" / "self").symlink_to(train / "dog")
    (train / "dog" / "ring.png").symlink_to("ring.png")
    (train / "dog" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (train / "dog" / "2.png").symlink_to(elsewhere / "deep" / "er" / "1.png")
    (train / "eel").symlink_to(elsewhere / "deep")
    source = opened(train)
    assert source.classes == ("cat", "dog", "eel")
    assert reds(source) == [0, 1, 0, 1, 10, 11, 1, 0, 1]
    assert "2 broken links (gone.png, ring.png), 2 linked back to a folder above (" in summary(
        source
    )


def test_pipes_sockets_and_devices_are_never_opened(train):
    os.mkfifo(train / "cat" / "pipe.png")
    with socket.socket(socket.AF_UNIX) as unix:
        place = os.getcwd()
        os.chdir(train / "dog")  # a socket's path may have 107 bytes
        unix.bind("socket.png")
        os.chdir(place)
        source = opened(train)
    (train / "dog" / "zero.png").symlink_to("/dev/zero")
    assert reds(source) == [0, 1, 10, 11]
    assert "2 not regular files (pipe.png, socket.png)" in summary(source)
    assert "3 not regular files" in summary(opened(train))
    (train / "cat" / "0.png").unlink()
    os.mkfifo(train / "cat" / "0.png")
    with pytest.raises(InputError, match=r"cat/0\.png: is no regular file"):
        source.pixels()
    os.mkfifo(train / "p.parquet")
    with pytest.raises(InputError, match=r"p\.parquet: is no regular file; expected Parquet"):
        opened(train / "p.parquet", "parquet")


def test_names_in_any_bytes_survive(train):
    os.makedirs(os.fsencode(train) + b"/latin-\xe9")
    odd = Path(os.fsdecode(os.fsencode(train) + b"/latin-\xe9/caf\xe9\n.png"))
    picture(99).save(odd)
    source = opened(train)
    assert source.classes == ("cat", "dog", "latin-\\xe9")
    assert reds(source)[-1] == 99
    odd.write_bytes(b"rubbish")
    with pytest.raises(InputError, match=r"latin-\\xe9/caf\\xe9\\n\.png: not a readable") as caught:
        source.pixels()
    str(caught.value).encode()


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ["train", "test"],
            r"test, train look like splits, not classes; set images\.train=.*data/train,",
        ),
        (["Training", "val", "other"], "Training, val look like splits"),
        (["train/cat", "train/dog"], "train look like splits"),
        (["test/cat", "val/cat"], "test, val look like splits"),
    ],
)
def test_folders_of_splits_are_no_classes(tmp_path, names, message):
    draw(tmp_path / "data", *names)
    with pytest.raises(InputError, match=message):
        opened(tmp_path / "data")


def test_a_class_may_be_called_like_a_split(tmp_path):
    assert opened(draw(tmp_path / "a", "bus", "car", "train")).classes == ("bus", "car", "train")
    assert opened(draw(tmp_path / "b", "test")).classes == ("test",)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda d: (d / "ape").mkdir(), r"ape: class folder without images .*; add some or remove"),
        (
            lambda d: (
                draw(d, "ape") and [f.rename(f.with_suffix(".heic")) for f in (d / "ape").iterdir()]
            ),
            r"ape: class folder without images .*left out were 2 \.heic \(ape/0\.heic, ape/1",
        ),
    ],
)
def test_a_class_without_images_is_refused_with_what_is_there(train, make, message):
    make(train)
    with pytest.raises(InputError, match=message):
        opened(train)


def test_what_is_no_folder_of_class_folders_is_refused_with_a_way(tmp_path):
    draw(tmp_path, "flat")
    with pytest.raises(
        InputError, match=r"holds no class folders.*into a folder such as .*flat/all"
    ):
        opened(tmp_path / "flat")
    table(tmp_path / "data" / "a.parquet", [(png(1), None, 0)])
    with pytest.raises(InputError, match=r"holds no class folders.*set images\.kind=parquet"):
        opened(tmp_path / "data")
    with pytest.raises(
        InputError, match=r"is no folder of class folders; set images\.kind=parquet"
    ):
        opened(tmp_path / "data" / "a.parquet")
    with pytest.raises(InputError, match=r"holds no \.parquet files; found 2 \.png"):
        opened(tmp_path / "flat", "parquet")


def test_numbered_folders_are_sorted_as_text_with_a_warning_or_as_numbers(tmp_path):
    draw(tmp_path, *[str(number) for number in range(11)])
    source = opened(tmp_path)
    assert source.classes == ("0", "1", "10", *"23456789")
    assert "label 2 is folder 10; images.class_order=numeric" in source.found.remarks[0]
    numeric = opened(tmp_path, class_order="numeric")
    assert numeric.classes == tuple(map(str, range(11)))
    assert reds(numeric)[::2] == [10 * number for number in range(11)]
    assert not numeric.found.remarks
    assert not opened(draw(tmp_path / "few", *"012")).found.remarks
    draw(tmp_path, "cat")
    with pytest.raises(
        InputError, match="class_order is numeric, but class folder cat is no number"
    ):
        opened(tmp_path, class_order="numeric")


def test_several_roots_and_patterns_add_up(tmp_path):
    draw(tmp_path / "a1", "cat", "dog")
    draw(tmp_path / "a2", "dog", "eel")
    for train in ([tmp_path / "a1", tmp_path / "a2"], tmp_path / "a?"):
        source = opened(train)
        assert source.classes == ("cat", "dog", "eel")
        assert source.label_N.tolist() == [0, 0, 1, 1, 1, 1, 2, 2]
        assert reds(source) == [0, 1, 10, 11, 0, 1, 10, 11]
    with pytest.raises(InputError, match=r"images\.train: .*b\* matches no file; correct the path"):
        opened(tmp_path / "b*")
    draw(tmp_path / "b[1]", "cat")
    assert len(opened(tmp_path / "b[1]")) == 2


MAPPING = "n01440764 tench, Tinca tinca\nn01443537 goldfish\nn02123045 tabby, tabby cat\n"


def test_folders_get_the_ids_of_a_published_model(tmp_path):
    draw(tmp_path / "some", "n02123045", "n01440764")
    (tmp_path / "mapping.txt").write_text(MAPPING)
    for ids in (
        tmp_path / "mapping.txt",
        ["n01440764", "n01443537", "n02123045"],
        {"n01440764": 0, "n02123045": 2},
    ):
        source = opened(tmp_path / "some", class_ids=ids, classes=3)
        assert source.label_N.tolist() == [0, 0, 2, 2]
        assert reds(source) == [10, 11, 0, 1], "folders stay in order, labels follow the ids"
        assert (source.classes[0], len(source.classes)) == ("n01440764", 3)
        assert "read 4 images of 2 classes" in summary(source)
        assert source.found.remarks == ["1 class of 3 without an image"]
    assert len(opened(tmp_path / "some", class_ids=tmp_path / "mapping.txt").classes) == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"class_ids": ["cat"]}, "class dog has no id in images.class_ids, which knows cat"),
        ({"class_ids": ["cat", "dog", "cat"]}, "images.class_ids: names cat twice"),
        ({"class_ids": {"cat": 0, "dog": 7}, "classes": 5}, "dog has id 7 .* images.classes is 5"),
        ({"class_ids": Path("/nowhere.txt")}, "nowhere.txt: cannot be read"),
        ({"classes": 3}, r"has 2 classes, but images\.classes is 3; .*images\.class_ids"),
    ],
)
def test_ids_that_do_not_fit_are_refused(train, changes, message):
    with pytest.raises(InputError, match=message):
        opened(train, **changes)


def test_a_table_of_ids_needs_the_number_of_classes():
    with pytest.raises(ValueError, match=r"set images\.classes to the number of classes"):
        settings(Path("x"), class_ids={"cat": 281})


def table(path, rows, image="image", label="label", kind=None, label_type=None, **extra):
    """rows: (bytes, path, label)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = kind or pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    both = [{"bytes": data, "path": place} for data, place, _ in rows]
    if not pa.types.is_struct(kind):
        both = [one["bytes"] if pa.types.is_binary(kind) else one["path"] for one in both]
    columns = {image: pa.array(both, kind)}
    columns[label] = pa.array([value for *_, value in rows], label_type)
    pq.write_table(pa.table(columns | extra), path)
    return path


def rows_of(*labels, first=0):
    return [(png(first + number), None, label) for number, label in enumerate(labels)]


def test_shards_of_splits_in_one_folder_are_told_apart(tmp_path):
    data = tmp_path / "data"
    table(data / "train-00000-of-00002.parquet", rows_of(0, 1))
    table(data / "train-00001-of-00002.parquet", rows_of(0, 1, first=10))
    table(data / "test-00000-of-00001.parquet", rows_of(0, 1, 1, first=20))
    (data / "README.md").write_text("a card")
    source = opened(data, "parquet")
    assert reds(source) == [0, 1, 10, 11]
    assert "left out: 1 .md (README.md), 1 of split test (test-00000-of-00001.parquet)" in summary(
        source
    )
    assert reds(opened(data, "parquet", "test", test=data)) == [20, 21, 22]
    assert reds(opened(data / "t*-00000*.parquet", "parquet")) == [20, 21, 22, 0, 1]
    both = [data / "train-00001-of-00002.parquet", data / "test-00000-of-00001.parquet"]
    assert reds(opened(both, "parquet")) == [10, 11, 20, 21, 22]
    table(data / "validation-0.parquet", rows_of(0, first=30))
    assert reds(opened(data, "parquet", "test", test=data)) == [20, 21, 22]
    (data / "test-00000-of-00001.parquet").unlink()
    assert reds(opened(data, "parquet", "test", test=data)) == [30]
    table(data / "extra.parquet", rows_of(0))
    with pytest.raises(InputError, match=r"shards of several splits: .*1 of no split \(extra"):
        opened(data, "parquet")


def test_shards_below_are_read_and_splits_without_the_wanted_one_refused(tmp_path):
    table(tmp_path / "deep" / "data" / "a.parquet", rows_of(0, 1))
    table(tmp_path / "deep" / ".cache" / "b.parquet", rows_of(0, 1))
    assert len(opened(tmp_path / "deep", "parquet")) == 2
    table(tmp_path / "sets" / "test" / "0.parquet", rows_of(0, 1))
    assert len(opened(tmp_path / "sets", "parquet")) == 2
    table(tmp_path / "sets" / "val" / "0.parquet", rows_of(0, 1))
    with pytest.raises(InputError, match=r"holds shards of several splits.*name those for images"):
        opened(tmp_path / "sets", "parquet")


def test_columns_are_named_or_found_and_said(tmp_path):
    path = table(tmp_path / "a.parquet", rows_of(0, 1), image="img", label="fine")
    source = opened(path, "parquet")
    assert reds(source) == [0, 1]
    assert source.found.remarks == ["images are in column img", "labels are in column fine"]
    two = table(tmp_path / "b.parquet", rows_of(0, 1), "photo", "fine", coarse=pa.array([1, 0]))
    with pytest.raises(InputError, match=r"hold labels: fine, coarse; set images\.label_column"):
        opened(two, "parquet")
    named = opened(two, "parquet", label_column="coarse")
    assert (named.label_N.tolist(), reds(named)) == ([1, 0], [0, 1])
    for key in ("image_column", "label_column"):
        with pytest.raises(
            InputError, match=rf"column none of .*; found photo: .*set images\.{key}"
        ):
            opened(two, "parquet", **{"label_column": "fine", key: "none"})


@pytest.mark.parametrize("kind", [None, pa.struct([("path", pa.string())]), pa.string()])
def test_paths_are_read_from_beside_the_file(tmp_path, kind):
    draw(tmp_path / "t" / "pics", "cat")
    away = draw(tmp_path / "away", "dog", "eel") / "eel" / "1.png"
    rows = [(None, "pics/cat/1.png", 0), (None, str(away), 1)]
    both = kind or pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    path = tmp_path / "t" / "a.parquet"
    columns = {
        "image": pa.array([r[1] if kind == pa.string() else {"path": r[1]} for r in rows], both)
    }
    path.parent.mkdir(exist_ok=True)
    pq.write_table(pa.table(columns | {"label": [0, 1]}), path)
    source = opened(path, "parquet")
    assert reds(source) == [1, 11]
    away.unlink()
    with pytest.raises(InputError, match=r"a\.parquet, row 1: has no bytes, and its path .*embed"):
        source.pixels()


def test_plain_bytes_and_missing_images(tmp_path):
    plain = table(tmp_path / "a.parquet", rows_of(0, 1), kind=pa.binary())
    assert reds(opened(plain, "parquet")) == [0, 1]
    nulls = table(tmp_path / "b.parquet", [(png(1), None, 0), (None, None, 1), (b"", "", 1)])
    source = opened(nulls, "parquet")
    with pytest.raises(InputError, match=r"row 1: holds no image, neither bytes nor a path"):
        source.pixels()
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    column = pa.StructArray.from_arrays(
        [pa.array([png(1), png(2)]), pa.array([None, None], pa.string())],
        fields=list(kind),
        mask=pa.array([False, True]),
    )
    pq.write_table(pa.table({"image": column, "label": [0, 1]}), tmp_path / "c.parquet")
    with pytest.raises(InputError, match=r"c\.parquet, row 1: holds no image"):
        opened(tmp_path / "c.parquet", "parquet").pixels()


@pytest.mark.parametrize(
    ("labels", "kind", "changes", "message"),
    [
        ([1, 2, 3], None, {}, r"no image has label 0 \(1 label .*; set images\.first_label=1 if"),
        ([1, 2, 3], None, {}, r"below the largest, 3\); .* or images\.classes=4 if classes"),
        ([0, 2, 5], None, {}, r"no image has label 1, 3, 4 \(3 labels .*; set images\.classes=6"),
        ([0, 1], None, {"first_label": 1}, r"column label has 0, below images\.first_label 1"),
        ([0, -1], None, {}, "column label has negative values; labels are integers from 0"),
        ([0, None], None, {}, "column label has missing values"),
        ([0, 2**64 - 1], pa.uint64(), {}, "has 18446744073709551615, more than the 1,000,000"),
        ([0, 10**9], None, {}, "has 1000000000, more than the 1,000,000 classes"),
        ([0.0, 1.0], None, {}, "no integer column label of integers; found image: .*label: double"),
        (["a", "b"], None, {}, "no integer column label of integers; found .*label: string"),
        ([], pa.int64(), {}, "holds no images"),
        ([0, 1, 2], None, {"classes": 2}, r"has 3 classes, but images\.classes is 2"),
    ],
)  # fmt: skip
def test_labels_that_are_no_classes_are_refused(tmp_path, labels, kind, changes, message):
    path = table(tmp_path / "a.parquet", rows_of(*labels), label_type=kind)
    with pytest.raises(InputError, match=message):
        opened(path, "parquet", **changes)


def test_the_ways_out_of_gaps_work(tmp_path):
    path = table(tmp_path / "a.parquet", rows_of(1, 2, 3))
    moved = opened(path, "parquet", first_label=1)
    assert (moved.label_N.tolist(), moved.classes) == ([0, 1, 2], ("1", "2", "3"))
    declared = opened(path, "parquet", classes=5)
    assert (declared.label_N.tolist(), len(declared.classes)) == ([1, 2, 3], 5)
    assert declared.found.remarks == ["2 classes of 5 without an image"]
    mapped = opened(path, "parquet", class_ids={"1": 7, "2": 0, "3": 9}, classes=10)
    assert mapped.label_N.tolist() == [7, 0, 9]


def test_names_in_the_schema_name_the_classes(tmp_path):
    path = table(tmp_path / "a.parquet", rows_of(0, 2))
    names = {"label": {"names": ["ant", "bee", "cat"], "_type": "ClassLabel"}}
    facts = json.dumps({"info": {"features": names}})
    whole = pq.read_table(path).replace_schema_metadata({"huggingface": facts})
    pq.write_table(whole, path)
    source = opened(path, "parquet")
    assert (source.classes, source.label_N.tolist()) == (("ant", "bee", "cat"), [0, 2])
    assert source.found.remarks == ["1 class of 3 without an image"]
    assert opened(path, "parquet", class_ids=["cat", "ant", "bee"]).label_N.tolist() == [1, 0]


@settings_of_fuzz(max_examples=300, deadline=None, derandomize=True, database=None)
@given(
    changes=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=4),
    length=st.integers(0, 20000),
)
def test_damaged_tables_are_read_or_refused(tmp_path_factory, changes, length):
    folder = tmp_path_factory.getbasetemp() / "damaged"
    data = bytearray(table(folder / "whole.parquet", rows_of(0, 1, 0, 1)).read_bytes())
    data = data[: max(length, 4)]
    for place, value in changes:
        data[place % len(data)] = value
    (folder / "damaged.parquet").write_bytes(data)
    try:
        found = opened(folder / "damaged.parquet", "parquet").pixels()
    except InputError as error:
        sentence = str(error)
        assert "damaged.parquet" in sentence
    else:
        assert len(found)


def test_a_path_is_the_same_from_anywhere(tmp_path, monkeypatch):
    draw(tmp_path / "train", "cat")
    monkeypatch.chdir(tmp_path)
    config = settings(("train", "tr*n"), class_ids=Path("ids.txt"), classes=4).absolute()
    (tmp_path / "ids.txt").write_text("dog\ncat\n")
    monkeypatch.chdir("/")
    assert np.unique(open_images(config, "train").label_N).tolist() == [1]
    assert not config.missing("train")
    assert settings((Path("train"), Path("*.none"))).missing("train") == (
        Path("train"),
        Path("*.none"),
    )
