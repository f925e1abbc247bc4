"""`varkd tokenize` decodes an image once, whoever looks at it: the fit, then the encoder."""

import cProfile
import pickle
import pstats

import numpy as np
import pytest
import torch
from PIL import Image

from common.data.tokens import load_tokens, read_header
from common.images.contents import Reading
from common.images.decoded import DecodedImages
from common.images.opening import ImagesConfig, open_images
from common.tokenization.tokenizer import load_tokenizer
from deploy.run_folder.opening import open_run
from deploy.stages.tokenize import tokenize

CONFIG = """
[images]
kind = "folder"
train = "train"
size = 8
channels = 3
[tokenizer]
kind = "patch_kmeans"
patch = 4
vocab_size = 8
[models.teacher]
kind = "llamagen"
[models.student]
kind = "llamagen"
[contexts.sources.data]
[objective]
kind = "kd"
"""


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """Eighty pictures, two batches; six in the first are transparent in places."""
    generator = np.random.default_rng(0)
    for label in "ab":
        (tmp_path / "train" / label).mkdir(parents=True)
        for index in range(40):
            pixels = generator.integers(256, size=(10, 13, 4), dtype=np.uint8)
            image = Image.fromarray(pixels)
            if label == "b" or index >= 6:
                image = image.convert("RGB")
            image.save(tmp_path / "train" / label / f"{index:02d}.png")
    (tmp_path / "tiny.toml").write_text(CONFIG)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def counted(photos, quiet, *overrides):
    """The run's files, and how many images were decoded."""
    config, workspace = open_run(photos / "tiny.toml", [*overrides], photos / "run")
    with cProfile.Profile() as profile:
        tokenize(config, workspace, quiet, local=True)
    calls = pstats.Stats(profile).stats
    return workspace, sum(v[1] for key, v in calls.items() if key[2] == "decode_image")


def test_what_the_fit_has_decoded_is_encoded_and_not_decoded_again(photos, quiet):
    """But for the batch in which something was done to pixels, which is told."""
    workspace, decoded = counted(photos, quiet)
    assert decoded == 80 + 64
    assert read_header(workspace.train_tokens).facts["pixels"] == {"transparent": 6}
    source = open_images(ImagesConfig(kind="folder", train=photos / "train", channels=3), "train")
    expected = load_tokenizer(workspace.tokenizer).encode(source.pixels())
    assert torch.equal(load_tokens(workspace.train_tokens).token_NAL[:, 0].long(), expected)
    assert not list((workspace.root / "tokens").glob("*.parts"))


def test_crops_of_larger_images_are_decoded_for_themselves(photos, quiet):
    _, decoded = counted(photos, quiet, "tokens.crops=ten_crop", "tokens.crop_range=1.5")
    assert decoded == 2 * 80


@pytest.fixture
def source(photos):
    config = ImagesConfig(kind="folder", train=photos / "train", channels=3)
    return open_images(config, "train").subset(range(40, 80))  # opaque


def kept(source, folder):
    decoded = DecodedImages(folder, (3, 8, 8), source.decoding)
    batches = list(decoded.keeping(lambda reading: source.batches(16, reading), len(source)))
    assert torch.equal(torch.cat(batches), source.pixels())
    return pickle.loads(pickle.dumps(decoded))


def test_pixels_are_found_by_the_content_of_a_file(source, photos):
    """In another process, in any order; a file that is another now is decoded."""
    decoded, before = kept(source, photos / "kept"), source.pixels()
    part = source.subset([3, 20, 21])
    part.decoded = decoded
    for path in (photos / "train" / "b").glob("*.png"):
        path.rename(path.with_name(f"was-{path.name}"))
    last = sorted((photos / "train" / "b").iterdir())
    renamed = open_images(ImagesConfig(kind="folder", train=photos / "train", channels=3), "train")
    renamed = renamed.subset(range(40, 80))
    renamed.decoded = decoded
    Image.new("RGB", (10, 10), "red").save(last[20])
    with cProfile.Profile() as profile:
        found = renamed.pixels()
    calls = pstats.Stats(profile).stats
    assert sum(v[1] for key, v in calls.items() if key[2] == "decode_image") == 1
    before[20] = torch.tensor([255, 0, 0], dtype=torch.uint8)[:, None, None]
    assert torch.equal(found, before)


def test_without_room_images_are_decoded_as_they_were(source, photos):
    (photos / "file").write_text("")
    decoded = kept(source, photos / "file" / "kept")
    source.decoded = decoded
    reading = Reading()
    assert torch.equal(torch.cat(list(source.batches(7, reading))), source.pixels())
    assert decoded.find(reading.hashes[0]) is None
