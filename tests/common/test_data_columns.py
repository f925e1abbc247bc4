"""What counts as data in tables: which shards and columns are read and what labels mean."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from building.pictures import draw, opened, png, reds, rows_of, summary, table
from hypothesis import given
from hypothesis import settings as settings_of_fuzz
from hypothesis import strategies as st

from common.errors import InputError


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
