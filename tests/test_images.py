"""Image sources and tokenizer: layouts, the crop, and every kind of bad input by name."""

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from common.errors import InputError
from common.images import ImagesConfig, center_crop, open_images
from common.plugins import kinds, load_plugin
from common.tokenizer import load_tokenizer, save_tokenizer

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


def test_real_cifar10_opens(shared):
    path = shared / "data" / "cifar10" / "test-00000-of-00001.parquet"
    source = open_images(settings(path, "parquet", size=32), "train")
    assert len(source) == 10000
    assert next(source.batches(16)).shape == (16, 3, 32, 32)
    assert torch.bincount(source.label_N).tolist() == [1000] * 10


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
    pq.write_table(pa.table({"label": [0], "picture": [b"x"]}), no_image)
    with pytest.raises(InputError, match=r"image\.parquet: no column image.*found \['label'"):
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


def test_center_crop_equals_the_official_one(shared):
    folder = shared / "golden" / "adm_crop"
    tensors = load_file(folder / "io.safetensors")
    cases = [name for name in tensors if name.startswith("crop_")]
    for name in cases:
        _, image, size = name.split("_")
        cropped = center_crop(Image.fromarray(tensors[f"image_{image}"].numpy()), int(size))
        assert torch.equal(torch.from_numpy(np.asarray(cropped).copy()), tensors[name]), name
    assert cases


@pytest.fixture(params=kinds("common.tokenizers"))
def tokenizer_config(request):
    return load_plugin("common.tokenizers", request.param).Config(vocab_size=32)


def test_tokenizer_contract(tokenizer_config, tmp_path):
    """Every tokenizer: shapes, range, determinism, a reconstruction better than the mean image."""
    source = open_images(ImagesConfig(), "train")
    fitted = [
        tokenizer_config.fit(source.batches(512), size=8, channels=1, seed=3) for _ in range(2)
    ]
    pixels = source.pixels(200)
    tokens = fitted[0].encode(pixels)
    assert torch.equal(tokens, fitted[1].encode(pixels))
    spec = fitted[0].spec(10)
    assert tokens.shape == (200, spec.length)
    assert 0 <= int(tokens.min()) <= int(tokens.max()) < spec.vocab_size
    assert len(fitted[0].codebook_VD) == spec.vocab_size
    decoded = fitted[0].decode(tokens)
    assert (decoded.shape, decoded.dtype) == (pixels.shape, torch.uint8)
    error = (decoded.float() - pixels.float()).square().mean()
    assert error < 0.3 * (pixels.float() - pixels.float().mean(0)).square().mean()
    path = tmp_path / "tokenizer.safetensors"
    save_tokenizer(path, fitted[0], tokenizer_config, size=8, channels=1)
    assert torch.equal(load_tokenizer(path).encode(pixels), tokens)


def test_patch_kmeans_refuses_what_cannot_work():
    from common.tokenizers.patch_kmeans import Config

    with pytest.raises(InputError, match=r"tokenizer\.patch is 3.*images\.size 8"):
        Config(patch=3).describe(8)
    flat = iter([torch.zeros(4, 1, 8, 8, dtype=torch.uint8)])
    with pytest.raises(InputError, match="only 1 different patches"):
        Config(vocab_size=32).fit(flat, size=8, channels=1, seed=0)
