"""Parts of an interrupted `varkd tokenize` are taken by what they were made of, not by name."""

import io
import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from rich.console import Console

from common.data.tokens import load_tokens, read_header
from common.errors import InputError
from common.images.contents import Contents
from common.images.opening import open_images
from deploy.run_folder.opening import open_run
from deploy.stages.tokenize import tokenize

WEIGHTS = Path(__file__).parents[1] / "golden" / "llamagen_vq" / "vq_tiny.pt"
CONFIG = f"""
[images]
kind = "folder"
train = "train"
size = 8
channels = 3
[tokenizer]
kind = "llamagen_vq"
weights = "{WEIGHTS}"
base = 32
ch_mult = [2, 1]
res_blocks = 1
z_channels = 16
vocab_size = 64
[tokens]
part_images = 4
[models.teacher]
kind = "llamagen"
[models.student]
kind = "llamagen"
[contexts.sources.data]
[objective]
kind = "kd"
"""


def draw(folder, seed=0):
    generator = np.random.default_rng(seed)
    for label in ("ant", "bee"):
        (folder / label).mkdir(parents=True)
        for index in range(6):
            pixels = generator.integers(256, size=(8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / label / f"{index}.bmp")  # all of one size


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """12 pictures: three parts."""
    draw(tmp_path / "train")
    (tmp_path / "tiny.toml").write_text(CONFIG)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def encode(name, *overrides):
    """(what was said, run folder)."""
    said = io.StringIO()
    config, workspace = open_run(Path("tiny.toml"), list(overrides), Path(name))
    tokenize(config, workspace, Console(file=said, width=300), local=True)
    return said.getvalue(), workspace


def interrupted(name, *overrides):
    """All parts are made, and the file of all of them cannot be."""
    sealed = Path(name, "tokens", "train.parquet")
    sealed.mkdir(parents=True)
    with pytest.raises(InputError, match=r"train\.parquet: could not be written"):
        encode(name, *overrides)
    sealed.rmdir()
    return sorted(Path(name).glob("tokens/*.parts/*/part-*.parquet"))


def change(path, seed=99):
    """Other pixels; size and time of change stay."""
    before = path.stat()
    pixels = np.random.default_rng(seed).integers(256, size=(8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size


def same_tokens(one, other):
    left, right = load_tokens(one.train_tokens), load_tokens(other.train_tokens)
    return left.token_NAL.tolist() == right.token_NAL.tolist()


def test_only_parts_of_changed_images_are_made_again_and_the_image_is_named(photos):
    interrupted("run")
    change(photos / "train" / "ant" / "5.bmp")
    said, workspace = encode("run")
    assert "making part-00001.parquet again: " in said
    assert "train/ant/5.bmp has changed" in said
    assert said.count("making") == 1
    assert "2 of 3 parts were finished before" in said
    assert same_tokens(workspace, encode("fresh")[1])


def test_parts_of_images_that_only_look_changed_are_kept(photos):
    """Touched, copied elsewhere, in another folder: all the same content."""
    interrupted("run")
    for file in (photos / "train").rglob("*.bmp"):
        os.utime(file)
    shutil.copytree("train", "copy")
    for overrides in ([], ["images.train=copy"], ["images.test=copy", "tokens.workers=3"]):
        shutil.copytree("run", "again")
        said, _ = encode("again", *overrides)
        assert "making" not in said
        assert "3 of 3" in said or "3 of 6" in said
        shutil.rmtree("again")


def test_half_written_leftovers_are_made_again(photos):
    parts = interrupted("run")
    parts[0].write_bytes(b"")
    parts[1].write_bytes(parts[1].read_bytes()[:-100])
    gone = subprocess.Popen(["true"])
    gone.wait()
    halves = [
        parts[2].with_name(f".part-00002.parquet.{gone.pid}.tmp"),
        Path(f"run/tokens/.train.parquet.{gone.pid}.tmp"),
    ]
    living = Path(f"run/tokens/.train.parquet.{os.getppid()}.tmp")
    for half in (*halves, living):
        half.write_bytes(b"PAR1")
    said, workspace = encode("run")
    assert said.count("again: ") == 2
    assert "1 of 3 parts were finished before" in said
    assert not any(half.exists() for half in halves)
    assert living.exists(), "somebody writes it"
    fresh = encode("fresh")[1]
    assert workspace.train_tokens.read_bytes() == fresh.train_tokens.read_bytes()


def test_images_that_a_table_only_names_are_looked_at_too(photos):
    files = sorted((photos / "train").rglob("*.bmp"))
    paths = pa.array([{"path": f"train/{f.parent.name}/{f.name}"} for f in files])
    labels = [int(f.parent.name == "bee") for f in files]
    pq.write_table(pa.table({"image": paths, "label": labels}), "t.parquet")
    table = ["images.kind=parquet", "images.train=t.parquet"]
    interrupted("run", *table)
    change(files[11])
    said, workspace = encode("run", *table)
    assert "making part-00002.parquet again: " in said
    assert "t.parquet, row 11 has changed" in said
    assert same_tokens(workspace, encode("fresh", *table)[1])


def test_a_missing_image_is_named_where_a_part_is_looked_at(photos):
    parts = interrupted("run")
    assert len(parts) == 3
    config, _ = open_run(Path("tiny.toml"), [], Path("run"))
    source = open_images(config.images, "train")
    facts = read_header(parts[0]).facts["contents"]
    (photos / "train" / "ant" / "2.bmp").unlink()
    found = Contents.from_dict(facts).difference(source.subset(range(4)))
    assert found is not None
    assert "ant/2.bmp: cannot be read: No such file" in found


def test_parts_of_changed_codes_are_made_again(photos):
    for kind in ("codes", "labels"):
        Path("codes", f"imagenet8_{kind}").mkdir(parents=True)
    for index in range(12):
        token = np.random.default_rng(index).integers(64, size=(1, 2, 16))
        np.save(f"codes/imagenet8_codes/{index}.npy", token)
        np.save(f"codes/imagenet8_labels/{index}.npy", np.array([index % 3]))
    codes = ["tokens.kind=llamagen_codes", "tokens.paths=['codes']"]
    interrupted("run", *codes)
    np.save("codes/imagenet8_labels/5.npy", np.array([1]))
    said, workspace = encode("run", *codes)
    assert "making part-00001.parquet again: " in said
    assert "imagenet8_codes/5.npy has changed" in said
    assert load_tokens(workspace.train_tokens).label_N.tolist() == [
        0,
        1,
        2,
        0,
        1,
        1,
        *[0, 1, 2] * 2,
    ]


def test_codes_that_leave_a_class_out_are_refused(photos):
    Path("codes", "1").mkdir(parents=True)
    Path("codes", ".cache").mkdir()
    np.save("codes/1/a.npy", np.zeros((1, 16), int))
    Path("codes/1/._a.npy").write_bytes(b"a Mac was here")
    codes = ["tokens.kind=arpg_codes", "tokens.paths=['codes']"]
    with pytest.raises(InputError, match=r"no image has label 0, .* set tokens\.classes=2 if"):
        encode("run", *codes)
    _, workspace = encode("run", *codes, "tokens.classes=2")
    assert read_header(workspace.train_tokens).spec.num_classes == 2


def test_tokens_of_a_few_classes_have_the_classes_of_published_weights(photos):
    ids = ["images.class_ids={ant=7,bee=3}", "images.classes=10"]
    said, workspace = encode("run", *ids, "images.test=train")
    assert said.count("8 classes of 10 without an image") == 2
    for path in (workspace.train_tokens, workspace.test_tokens):
        data = load_tokens(path)
        assert data.spec.num_classes == 10
        assert data.label_N.tolist() == [7] * 6 + [3] * 6
        assert (data.classes[3], data.classes[7]) == ("bee", "ant")


def test_what_was_read_left_out_and_done_is_said_and_kept(photos):
    clear = Image.new("RGBA", (8, 8), (9, 9, 9, 0))
    clear.save(photos / "train" / "ant" / "clear.png")
    (photos / "train" / "bee" / "notes.txt").write_text("nothing")
    said, workspace = encode("run", "images.background=black")
    assert "read 13 images of 2 classes in" in said
    assert "left out: 1 .txt (bee/notes.txt)" in said
    assert "train images: 1 transparent (shown on black)" in said
    facts = read_header(workspace.train_tokens).facts
    assert facts["pixels"] == {"transparent": 1}
    assert facts["images"]["left_out"] == {".txt": 1}
    config, _ = open_run(Path("run"), [])
    assert facts["digest"] == open_images(config.images, "train").digest()
    assert str(photos) not in json.dumps(facts), "the same images make the same file anywhere"
