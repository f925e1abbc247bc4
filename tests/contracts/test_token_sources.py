"""Every token source, found by listing its folder, keeps the contract of its rows."""

import pickle

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from common.config.plugins import kinds, load_plugin
from common.config.schema import validate
from common.data.token_source import TokenSourceConfig
from common.errors import InputError
from common.images.config import ImagesConfig
from common.images.contents import Reading
from common.spec import SequenceSpec
from deploy.config import RunConfig

PACKAGE = "common.data.token_sources"
SHAPE = SequenceSpec(vocab_size=8, length=4, grid=(2, 2), num_classes=0)


class Brightness:
    """The tokenizer of a test: a code per quarter of the image."""

    def encode(self, pixel_BCHW):
        mean_BCHW = F.adaptive_avg_pool2d(pixel_BCHW.float(), 2)
        return (mean_BCHW[:, 0].flatten(1) / 256 * SHAPE.vocab_size).long()

    def measure(self, pixel_BCHW, token_BL):
        assert len(pixel_BCHW) == len(token_BL)


@pytest.fixture(params=kinds(PACKAGE))
def source(request, tmp_path) -> TokenSourceConfig:
    return load_plugin(PACKAGE, request.param).Config.tiny(tmp_path, SHAPE)


def read(rows):
    reading, told = Reading(), []
    token_nAL, label_n = rows.read(Brightness(), reading, told.append)
    return token_nAL, label_n, reading


def test_rows_have_shape_type_and_range(source):
    rows = source.open(ImagesConfig(), SHAPE)
    token_nAL, label_n, _ = read(rows)
    assert token_nAL.shape[0] == label_n.shape[0] == len(rows) >= 2
    assert token_nAL.shape[2] == SHAPE.length
    assert token_nAL.shape[1] >= 1
    assert label_n.dtype == torch.int64
    assert not token_nAL.is_floating_point()
    assert 0 <= int(token_nAL.min()) <= int(token_nAL.max()) < SHAPE.vocab_size
    assert int(label_n.min()) >= 0
    if rows.classes is not None:
        assert int(label_n.max()) < len(rows.classes)
    assert source.count(ImagesConfig()) in (None, len(rows))
    assert source.variants >= 1
    assert source.doing


def test_parts_sent_elsewhere_are_the_whole(source):
    rows = source.open(ImagesConfig(), SHAPE)
    whole = read(rows)
    cut = len(rows) // 2
    parts = [rows.subset(range(cut)), rows.subset(range(cut, len(rows)))]
    made = [read(pickle.loads(pickle.dumps(part))) for part in parts]
    for column in (0, 1):
        assert torch.equal(torch.cat([part[column] for part in made]), whole[column])
    assert [h for part in made for h in part[2].hashes] == whole[2].hashes
    assert len(rows) == len(whole[1]), "a subset leaves its rows as they were"


def test_what_was_read_is_known_again_and_a_change_is_seen(source):
    rows = source.open(ImagesConfig(), SHAPE)
    reading = read(rows)[2]
    assert [found for _, found in rows.contents()] == reading.hashes
    assert len(set(map(str, rows.files()))) <= len(reading.files)
    assert reading.contents().difference(rows) is None
    arrays = [path for path in rows.files() if path.suffix == ".npy"]
    if arrays:  # of the kinds with arrays of numbers
        changed = np.load(arrays[0])
        np.save(arrays[0], np.where(changed < 3, changed + 1, changed))
        said = reading.contents().difference(rows)
        assert said is not None
        assert said.endswith("has changed")


def test_a_source_is_a_kind_of_the_config(source):
    section = validate(
        RunConfig,
        {
            "tokens": source.model_dump(mode="json"),
            "tokenizer": {"kind": "patch_kmeans"},
            "models": {"teacher": {"kind": "llamagen"}, "student": {"kind": "llamagen"}},
            "contexts": {"sources": {"data": {}}},
            "objective": {"kind": "kd"},
        },
        source="here",
    ).tokens
    assert section == source
    assert section.kind == source.kind


def test_a_config_without_a_kind_reads_images_and_another_kind_is_listed():
    tree = {
        "tokenizer": {"kind": "patch_kmeans"},
        "models": {"teacher": {"kind": "llamagen"}, "student": {"kind": "llamagen"}},
        "contexts": {"sources": {"data": {}}},
        "objective": {"kind": "kd"},
    }
    assert validate(RunConfig, tree, source="here").tokens.kind == "images"
    flip = validate(RunConfig, {**tree, "tokens": {"crops": "flip"}}, source="here").tokens
    assert (flip.kind, flip.variants) == ("images", 2)
    with pytest.raises(InputError, match=r"tokens: .*'video'; choose one of: arpg_codes, images, "):
        validate(RunConfig, {**tree, "tokens": {"kind": "video"}}, source="here")
