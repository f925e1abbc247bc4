"""What counts as data in folders: which files are read, what is left out, which class is which."""

import json
import os
import pickle
import socket
from pathlib import Path

import numpy as np
import pytest
from building.pictures import draw, opened, picture, png, reds, settings, summary, table

from common.errors import InputError
from common.images.opening import open_images
from deploy.run_folder.opening import rooted


@pytest.fixture
def train(tmp_path):
    return draw(tmp_path / "train", "cat", "dog")


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


def test_a_path_is_the_same_from_anywhere(tmp_path, monkeypatch):
    draw(tmp_path / "train", "cat")
    monkeypatch.chdir(tmp_path)
    config = rooted(settings(("train", "tr*n"), class_ids=Path("ids.txt"), classes=4))
    (tmp_path / "ids.txt").write_text("dog\ncat\n")
    monkeypatch.chdir("/")
    assert np.unique(open_images(config, "train").label_N).tolist() == [1]
    assert not config.missing("train")
    assert settings((Path("train"), Path("*.none"))).missing("train") == (
        Path("train"),
        Path("*.none"),
    )
