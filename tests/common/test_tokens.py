"""Token data: views of an image, and datasets with variants in files and in memory."""

import json
import pickle
from collections import Counter
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from common.data.crops import VIEWS, cut_views, source_side
from common.data.tokens import (
    ROW_GROUP_TOKENS,
    TokenDataset,
    TokenHeader,
    load_tokens,
    read_header,
    read_tokens,
    save_tokens,
    write_tokens,
)
from common.errors import InputError
from common.images.opening import center_crop
from common.randomness import Draws
from common.spec import SequenceSpec
from rollout.evaluation.torchvision_compat import ensure_torchvision


def noise_image(height=75, width=60):
    noise = np.random.default_rng(0).integers(256, size=(height, width, 3), dtype=np.uint8)
    return Image.fromarray(noise)


def as_tensor(image):
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def test_the_published_crop_ranges_cut_from_the_published_sides():
    sides = [source_side(size, "ten_crop", by) for size in (256, 384) for by in (1.1, 1.05)]
    assert sides == [281, 268, 422, 403]
    assert source_side(256, "flip", 1.1) == source_side(256, "center", 1.1) == 256


@pytest.mark.parametrize("side", [32, 33, 35, 37, 40])
def test_ten_crops_are_torchvisions(side):
    """Margins of 0, 1, 3, 5 and 8 pixels: halves are rounded to even."""
    ensure_torchvision()
    from torchvision.transforms import TenCrop

    image = center_crop(noise_image(), side)
    expected = torch.stack([as_tensor(view) for view in TenCrop(32)(image)])
    views = cut_views(as_tensor(image)[None], "ten_crop", 32)
    assert torch.equal(views[0], expected)


def test_other_crops_are_the_image_and_its_mirror_image():
    image = as_tensor(center_crop(noise_image(), 32))[None]
    assert torch.equal(cut_views(image, "center", 32), image[:, None])
    assert torch.equal(cut_views(image, "flip", 32), torch.stack([image, image.flip(-1)], 1))
    for crops, views in VIEWS.items():
        assert cut_views(image, crops, 32).shape == (1, views, 3, 32, 32)


def dataset(variants, rows=300, vocab=50, length=4):
    generator = torch.Generator().manual_seed(0)
    spec = SequenceSpec(vocab, length, (1, length), 3)
    return TokenDataset(
        torch.randint(vocab, (rows, variants, length), generator=generator),
        torch.randint(3, (rows,), generator=generator),
        spec,
        ("a", "b", "c"),
        "digest",
    )


@pytest.mark.parametrize(
    ("variants", "vocab", "dtype"),
    [(1, 50, torch.int16), (3, 2**15, torch.int16), (2, 2**15 + 1, torch.int32)],
)
def test_datasets_survive_a_round_trip_in_the_smallest_type(tmp_path, variants, vocab, dtype):
    data = dataset(variants, vocab=vocab)
    path = tmp_path / "t.parquet"
    save_tokens(path, data)
    back = load_tokens(path)
    assert back.token_NAL.dtype == dtype
    assert torch.equal(back.token_NAL.long(), data.token_NAL)
    assert torch.equal(back.label_N, data.label_N)
    assert (back.spec, back.classes, back.tokenizer_digest) == (data.spec, data.classes, "digest")
    assert back.variants == read_header(path).variants == variants
    _, cells = back.pick(range(5), Draws(0, 300), 0.0)
    assert cells.dtype == torch.int64


def test_a_file_without_variants_is_one_of_a_single_variant(tmp_path):
    """As written before there were variants: int32, and no word on them in the header."""
    data = dataset(1)
    facts = {"format": "varkd-1", "spec": data.spec.as_dict(), "classes": data.classes}
    token = pa.array(data.token_NAL.flatten().numpy().astype(np.int32))
    columns = {"token": pa.FixedSizeListArray.from_arrays(token, 4), "label": data.label_N.numpy()}
    metadata = {"varkd": json.dumps({**facts, "tokenizer": "digest"})}
    path = tmp_path / "old.parquet"
    pq.write_table(pa.table(columns).replace_schema_metadata(metadata), path)
    assert torch.equal(load_tokens(path).token_NAL.long(), data.token_NAL)


def test_parts_are_streamed_into_row_groups_of_bounded_size(tmp_path):
    """Four rows are the limit: small parts share a row group, large ones are cut."""
    length = ROW_GROUP_TOKENS // 4
    header = TokenHeader(SequenceSpec(50, length, (1, length), 0), (), "digest")
    asked = []

    def parts():
        for start, rows in ((0, 1), (1, 2), (3, 7), (10, 1)):
            asked.append(start)
            label = torch.arange(start, start + rows)
            yield label[:, None, None].expand(rows, 1, length), label

    path = tmp_path / "t.parquet"
    write_tokens(path, header, parts())
    file = pq.ParquetFile(path)
    groups = [file.metadata.row_group(g).num_rows for g in range(file.num_row_groups)]
    assert groups == [1 + 2 + 4, 3 + 1]
    assert asked == [0, 1, 3, 10]
    rows = list(read_tokens(path))
    assert torch.equal(torch.cat([label for _, label in rows]), torch.arange(11))
    assert torch.equal(torch.cat([token[:, 0, -1] for token, _ in rows]).long(), torch.arange(11))


def test_a_failing_source_leaves_no_file(tmp_path):
    data = dataset(1)

    def parts():
        yield data.token_NAL, data.label_N
        raise InputError("bad image")

    with pytest.raises(InputError, match="bad image"):
        write_tokens(tmp_path / "t.parquet", TokenHeader(data.spec, (), "digest"), parts())
    assert not list(tmp_path.iterdir())


def test_tokens_and_labels_out_of_range_are_refused(tmp_path):
    data = dataset(2)
    path = tmp_path / "t.parquet"
    data.token_NAL[5, 1, 2] = -1
    save_tokens(path, data)
    with pytest.raises(InputError, match=r"t\.parquet: tokens run from -1 .* vocabulary has 50"):
        load_tokens(path)
    data.token_NAL[5, 1, 2] = 0
    data.label_N[7] = 3
    save_tokens(path, data)
    with pytest.raises(InputError, match=r"labels run from 0 to 3, but the number of classes is 3"):
        load_tokens(path)


def test_variants_are_drawn_evenly_and_as_a_function_of_seed_and_index():
    """Every row holds its own number and that of the variant, so that a pick says what it took."""
    rows, variants = 20, 10
    token = torch.arange(rows * variants).view(rows, variants, 1)
    spec = SequenceSpec(rows * variants, 1, (1, 1), 1)
    data = TokenDataset(token, torch.zeros(rows, dtype=torch.long), spec, ("a",), "digest")
    draws = Draws(3, rows)
    cells = data.pick(range(4000), draws, 0.0)[1][:, 0]
    assert (cells // variants).tolist() == [draws.row(index) for index in range(4000)]
    counts = Counter((cells % variants).tolist())
    assert sorted(counts) == list(range(variants))
    assert sum((n - 400) ** 2 / 400 for n in counts.values()) < 27.9, "chi-square, p = 0.001"
    # Neither the batch nor the order decides what an index draws; epochs draw anew.
    assert data.pick([17, 3999], draws, 0.0)[1][:, 0].tolist() == [cells[17], cells[3999]]
    other = data.pick(range(4000), Draws(4, rows), 0.0)[1][:, 0]
    assert not torch.equal(cells % variants, other % variants)
    of_row_0 = {int(cell) for cell in cells if cell < variants}
    assert len(of_row_0) == variants, "200 epochs see every variant of an image"


def test_seeds_come_back_and_belong_to_the_digest(data, tmp_path):
    path, seed_N = tmp_path / "t.parquet", torch.arange(len(data)) + 2**62
    data = replace(data, token_NAL=data.token_NAL.short())  # as files have them
    seeded = replace(data, seed_N=seed_N)
    save_tokens(path, seeded)
    back = load_tokens(path)
    assert back.seed_N is not None
    assert torch.equal(back.seed_N, seed_N)
    assert back.digest() == seeded.digest() != data.digest()
    again = pickle.loads(pickle.dumps(back))
    assert torch.equal(again.seed_N, seed_N)


def test_a_file_that_lost_its_seeds_is_refused(data, tmp_path):
    path = tmp_path / "t.parquet"
    save_tokens(path, replace(data, seed_N=torch.arange(len(data))))
    pq.write_table(pq.read_table(path).drop_columns("seed"), path)
    with pytest.raises(InputError, match=r"no column seed .*varkd generate"):
        load_tokens(path)
