"""`varkd tokenize`: parts, resuming, Ray against one process, and refusals."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from common.data.crops import cut_views
from common.data.image_rows import ImageRows
from common.data.tokens import load_tokens, read_header
from common.errors import InputError, RunFailed
from common.images.opening import open_images
from common.tokenization.tokenizer import load_tokenizer
from deploy.backend.actor_pool import ActorPool
from deploy.backend.partitions import PartitionJob
from deploy.main import main
from deploy.run_folder.opening import open_run
from deploy.stages.encoder import ImagesPart
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
[models.teacher]
kind = "llamagen"
[models.student]
kind = "llamagen"
[contexts.sources.data]
[objective]
kind = "kd"
"""
"""An official tokenizer looks at no image before it encodes: bad ones are met in the parts."""


def draw_photos(folder, count=12, seed=0, names=("ant", "bee")):
    generator = np.random.default_rng(seed)
    for label in names:
        (folder / label).mkdir(parents=True)
        for index in range(count):
            pixels = generator.integers(256, size=(10, 13, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / label / f"{index:02d}.png")


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """24 pictures in two class folders, beside a config; relative paths start there."""
    draw_photos(tmp_path / "train")
    (tmp_path / "tiny.toml").write_text(CONFIG)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def opened(photos, name, *overrides):
    settings = ["tokens.part_images=5", *overrides]
    return open_run(photos / "tiny.toml", settings, photos / name)


def parts_of(workspace):
    return sorted(workspace.root.glob("tokens/*.parts/*/part-*.parquet"))


def test_tokens_are_those_of_the_tokenizer_on_every_view(photos, quiet):
    config, workspace = opened(photos, "run", "tokens.crops=ten_crop", "tokens.crop_range=1.3")
    facts = tokenize(config, workspace, quiet, local=True)
    data = load_tokens(workspace.train_tokens)
    assert (facts["images"], facts["variants"]) == (24, 10)
    assert facts["psnr"] > 5
    assert (data.classes, data.spec.num_classes) == (("ant", "bee"), 2)
    assert data.label_N.tolist() == [0] * 12 + [1] * 12
    larger = config.images.model_copy(update={"size": 10})
    views = cut_views(open_images(larger, "train").pixels(), "ten_crop", 8)
    tokenizer = load_tokenizer(workspace.tokenizer)
    expected = tokenizer.encode(views.flatten(0, 1)).view(24, 10, 16)
    assert torch.equal(data.token_NAL.long(), expected)
    assert not workspace.train_tokens.with_suffix(".parts").exists()


def test_held_out_images_are_encoded_once_each(photos, quiet):
    draw_photos(photos / "test", count=3, seed=1)
    config, workspace = opened(photos, "run", "tokens.crops=flip", "images.test=test")
    tokenize(config, workspace, quiet, local=True)
    assert load_tokens(workspace.train_tokens).token_NAL.shape == (24, 2, 16)
    assert load_tokens(workspace.test_tokens).token_NAL.shape == (6, 1, 16)


def spoil(photos, *names):
    """Replace images by rubbish; returns what puts the first of them right again."""
    kept = {name: (photos / "train" / name).read_bytes() for name in names}
    for name in names:
        (photos / "train" / name).write_bytes(b"rubbish")
    return lambda name: (photos / "train" / name).write_bytes(kept[name])


def test_a_second_run_encodes_only_the_unfinished_parts(photos, quiet):
    """Two bad images stop two runs; the files of finished parts are never written again."""
    whole = opened(photos, "whole")
    tokenize(*whole, quiet, local=True)
    mend = spoil(photos, "ant/11.png", "bee/08.png")  # rows 11 and 20: parts 2 and 4
    config, workspace = opened(photos, "run")
    with pytest.raises(InputError, match=r"ant/11\.png: not a readable image"):
        tokenize(config, workspace, quiet, local=True)
    first = {path.name: path.stat().st_mtime_ns for path in parts_of(workspace)}
    assert sorted(first) == ["part-00000.parquet", "part-00001.parquet"]
    assert not workspace.train_tokens.exists()
    assert not workspace.tokenizer.exists()
    mend("ant/11.png")
    with pytest.raises(InputError, match=r"bee/08\.png"):
        tokenize(config, workspace, quiet, local=True)
    second = {path.name: path.stat().st_mtime_ns for path in parts_of(workspace)}
    assert len(second) == 4
    assert {name: second[name] for name in first} == first
    mend("bee/08.png")
    facts = tokenize(config, workspace, quiet, local=True)
    assert workspace.train_tokens.read_bytes() == whole[1].train_tokens.read_bytes()
    assert facts["psnr"] == pytest.approx(tokenize(*whole, quiet, local=True)["psnr"])


KMEANS = "tokenizer={kind='patch_kmeans',patch=4,vocab_size=8}"


@pytest.mark.parametrize(
    ("tokenizer", "change"),
    [
        ("", "tokens.crops=flip"),
        ("", "tokens.part_images=6"),
        ("", "images.background=black"),
        ("", "images.exif=ignore"),
        (KMEANS, "images.channels=1"),
        (KMEANS, "seed=1"),
    ],
)
def test_parts_of_another_config_are_not_taken(photos, quiet, tokenizer, change):
    base = [tokenizer] if tokenizer else []
    config, workspace = opened(photos, "run", *base)
    sealed = photos / "run" / "tokens" / "train.parquet"
    sealed.mkdir(parents=True)  # nothing can be put there: the run ends after its parts
    with pytest.raises(InputError, match=r"train\.parquet: could not be written"):
        tokenize(config, workspace, quiet, local=True)
    before = {path: path.stat().st_mtime_ns for path in parts_of(workspace)}
    other, _ = opened(photos, "run", *base, change)
    with pytest.raises(InputError, match=r"train\.parquet: could not be written"):
        tokenize(other, workspace, quiet, local=True)
    after = {path: path.stat().st_mtime_ns for path in parts_of(workspace)}
    assert {path: after[path] for path in before} == before
    assert len(after) > len(before), "new parts in a folder of their own"


@pytest.mark.ray
def test_ray_makes_the_same_file_and_goes_on_after_finished_parts(ray_cluster, photos, quiet):
    here, there = (
        opened(photos, "here", "tokens.crops=flip"),
        opened(photos, "there", "tokens.crops=flip"),
    )
    tokenize(*here, quiet, local=True)
    mend = spoil(photos, "bee/03.png")
    with pytest.raises(InputError, match=r"bee/03\.png: not a readable image"):
        tokenize(*there, quiet, local=False)
    kept = {path.name for path in parts_of(there[1])}
    assert kept <= {f"part-{n:05d}.parquet" for n in (0, 1, 2, 4)}
    mend("bee/03.png")
    tokenize(*there, quiet, local=False)
    assert there[1].train_tokens.read_bytes() == here[1].train_tokens.read_bytes()
    stored = [load_file(run[1].tokenizer) for run in (here, there)]
    assert all(torch.equal(stored[0][name], stored[1][name]) for name in stored[0])
    assert not list(photos.glob("there/tokens/*.parts"))


@pytest.mark.ray
def test_a_bad_image_met_by_an_actor_is_exit_code_2(ray_cluster, photos, capsys):
    spoil(photos, "bee/03.png")
    with pytest.raises(SystemExit) as caught:
        main(["tokenize", "tiny.toml", "--out", "run", "tokens.part_images=5"])
    assert caught.value.code == 2
    shown = capsys.readouterr().err
    assert "varkd tokenize:" in shown
    assert "bee/03.png: not a readable image" in shown
    assert "Traceback" not in shown


@pytest.mark.ray
def test_resources_that_no_node_has_are_refused(ray_cluster, photos, quiet, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    config, workspace = opened(photos, "run", "tokens.gpus=60")
    with pytest.raises(InputError, match=r"tokens\.gpus is 60, but the cluster has"):
        tokenize(config, workspace, quiet, local=False)


@pytest.mark.ray
def test_a_part_whose_actors_die_is_given_up(ray_cluster, photos, quiet):
    tries = photos / "tries"

    class Deadly:
        """Dies over every part, and leaves a mark of it."""

        def make(self, part, watch):
            with tries.open("a") as file:
                file.write("x")
            os._exit(1)

    source = open_images(opened(photos, "run")[0].images, "train").subset(range(3))
    parts = [ImagesPart(photos / "part-00000.parquet", ImageRows(source, 8))]
    pool = ActorPool("encode", 1, 0, most=2)
    job = PartitionJob(
        opened(photos, "run")[0],
        Deadly,
        pool,
        section="tokens",
        lower="tokens.workers",
        local=False,
    )
    with pytest.raises(RunFailed, match=r"died 3 times: .* lower tokens\.workers"):
        job.finish(parts, quiet)
    assert tries.read_text() == "xxx"


@pytest.fixture
def codes(photos):
    """LlamaGen's layout for the tiny tokenizer: 16 tokens of 64, labels up to 6."""
    for name, seed in (("ten_crop", 0), ("ten_crop_105", 1)):
        token = np.random.default_rng(seed).integers(64, size=(23, 1, 2, 16))
        folders = [photos / name / f"imagenet8_{kind}" for kind in ("codes", "labels")]
        for folder in folders:
            folder.mkdir(parents=True)
        for index in range(23):
            np.save(folders[0] / f"{index}.npy", token[index])
            np.save(folders[1] / f"{index}.npy", np.array([index % 7]))
    return ["tokens.kind=llamagen_codes", "tokens.paths=['ten_crop','ten_crop_105']"]


def test_published_codes_become_a_dataset_with_their_tokenizer(codes, photos, quiet):
    config, workspace = opened(photos, "run", *codes)
    facts = tokenize(config, workspace, quiet, local=True)
    assert facts == {"images": 23, "variants": 4, "psnr": None}
    data = load_tokens(workspace.train_tokens)
    expected, label = config.tokens.open(config.images, data.spec).read()
    assert torch.equal(data.token_NAL.long(), expected)
    assert torch.equal(data.label_N, label)
    assert data.spec == load_tokenizer(workspace.tokenizer).spec(7)
    assert not workspace.test_tokens.exists()
    config, workspace = opened(photos, "more", *codes, "tokens.classes=1000", "images.test=train")
    tokenize(config, workspace, quiet, local=True)
    assert read_header(workspace.train_tokens).spec.num_classes == 1000
    assert read_header(workspace.test_tokens).spec.num_classes == 1000
    assert len(load_tokens(workspace.test_tokens)) == 24
    draw_photos(photos / "eight", count=1, names="abcdefgh")
    with pytest.raises(InputError, match=r"eight: has 8 classes, but the codes .* have 7"):
        tokenize(*opened(photos, "less", *codes, "images.test=eight"), quiet, local=True)


@pytest.mark.ray
def test_published_codes_are_the_same_by_ray(ray_cluster, codes, photos, quiet):
    here, there = opened(photos, "here", *codes), opened(photos, "there", *codes)
    tokenize(*here, quiet, local=True)
    tokenize(*there, quiet, local=False)
    assert there[1].train_tokens.read_bytes() == here[1].train_tokens.read_bytes()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["tokens.kind=llamagen_codes"], "paths must name the folders"),
        (["tokens.paths=['a']"], "paths and classes are for published codes"),
        (["tokens.kind=arpg_codes", "tokens.paths=['a','b']"], "paths has 2"),
        (["tokens.crops=five"], "tokens.crops"),
        (["tokens.crop_range=0.9"], "tokens.crop_range"),
        (["images.classes=3"], r"train: has 2 classes, but images\.classes is 3"),
        (["images.test=other"], r"other: its 2 classes are not those of .*train, which has 2"),
    ],
)
def test_bad_settings_are_refused_before_anything_is_made(photos, quiet, overrides, message):
    draw_photos(photos / "other", count=1)
    (photos / "other" / "ant").rename(photos / "other" / "cat")
    with pytest.raises(InputError, match=message):
        tokenize(*opened(photos, "run", *overrides), quiet, local=True)
    assert not (photos / "run").exists()
