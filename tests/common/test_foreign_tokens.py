"""Token files and records of anybody's: each is data, or one sentence, in bounded memory."""

import json
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common.data.tokens import (
    count_images,
    load_tokens,
    read_header,
)
from common.errors import InputError
from common.exchange.trajectory import from_arrow, to_arrow
from common.spec import SequenceSpec

SPEC = SequenceSpec(50, 4, (2, 2), 3)
HEADER = {
    "format": "varkd-1",
    "spec": {"vocab_size": 50, "length": 4, "grid": [2, 2], "num_classes": 3, "scales": []},
    "classes": ["a", "b", "c"],
    "tokenizer": "digest",
    "variants": 2,
    "facts": {},
}
TOKENS = list(range(24))


def write(path, *, token=None, label=None, header=None, **changes):
    """Three images of two variants; every part may be another."""
    if token is None:
        token = pa.FixedSizeListArray.from_arrays(pa.array(TOKENS, pa.int16()), 8)
    label = pa.array([0, 1, 2]) if label is None else label
    text = json.dumps(HEADER | changes) if header is None else header
    table = pa.table({"token": token, "label": label})
    pq.write_table(table.replace_schema_metadata({"varkd": text}), path)


def lists(values, width, kind):
    return pa.FixedSizeListArray.from_arrays(pa.array(values, kind), width)


FAULTS = {
    "float tokens": {"token": lists([v + 0.5 for v in TOKENS], 8, pa.float32())},
    "whole floats": {"token": lists([float(v) for v in TOKENS], 8, pa.float64())},
    "texts": {"token": lists([str(v) for v in TOKENS], 8, pa.string())},
    "ragged lists": {"token": pa.array([TOKENS[:8], TOKENS[:7], TOKENS[:9]])},
    "other lengths": {"token": lists(TOKENS, 4, pa.int16()), "label": pa.array([0] * 6)},
    "one number": {"token": pa.array([1, 2, 3])},
    "missing rows": {"token": pa.array([TOKENS[:8], None, TOKENS[:8]], pa.list_(pa.int16(), 8))},
    "missing tokens": {"token": lists([None, *TOKENS[1:]], 8, pa.int16())},
    "missing label": {"label": pa.array([0, None, 2])},
    "negative token": {"token": lists([-1, *TOKENS[1:]], 8, pa.int16())},
    "token of the next vocabulary": {"token": lists([50, *TOKENS[1:]], 8, pa.int16())},
    "huge token": {"token": lists([2**40, *TOKENS[1:]], 8, pa.int64())},
    "a token that becomes 0 in 16 bits": {"token": lists([2**16, *TOKENS[1:]], 8, pa.int64())},
    "negative label": {"label": pa.array([0, -1, 2])},
    "label of the null class": {"label": pa.array([0, 3, 2])},
    "label of 2^64 - 1": {"label": pa.array([0, 2**64 - 1, 2], pa.uint64())},
    "float label": {"label": pa.array([0.0, 1.0, 2.0])},
    "label by name": {"label": pa.array(["a", "b", "c"])},
    "no rows": {"token": lists([], 8, pa.int16()), "label": pa.array([], pa.int64())},
    "wrong JSON": {"header": "{"},
    "no object": {"header": "[1]"},
    "deep JSON": {"header": "[" * 50_000},
    "no UTF-8": {"header": b"\xff\xfe"},
    "no spec": {"header": json.dumps({k: v for k, v in HEADER.items() if k != "spec"})},
    "another format": {"format": "other-1"},
    "a strange entry": {"strange": 1},
    "text for a number": {"variants": "2"},
    "a truth for a number": {"variants": True},
    "no variants": {"variants": 0},
    "many variants": {"variants": 10**9},
    "other variants": {"variants": 3},
    "classes that are numbers": {"classes": [1, 2, 3]},
    "fewer classes": {"classes": ["a"]},
    "endless length": {"spec": HEADER["spec"] | {"length": 10**12}},
    "wide rows": {"spec": HEADER["spec"] | {"length": 2**23}},
    "negative vocabulary": {"spec": HEADER["spec"] | {"vocab_size": -5}},
    "scales of another length": {"spec": HEADER["spec"] | {"scales": [1, 2]}},
}


def test_the_file_without_a_fault_is_read(tmp_path):
    write(tmp_path / "t.parquet")
    data = load_tokens(tmp_path / "t.parquet")
    assert data.token_NAL.flatten().tolist() == TOKENS
    assert data.label_N.tolist() == [0, 1, 2]
    assert (data.spec, data.classes) == (SPEC, ("a", "b", "c"))
    assert count_images(tmp_path / "t.parquet") == 3


@pytest.mark.parametrize("fault", FAULTS)
def test_token_files_of_another_meaning_are_refused(tmp_path, fault):
    path = tmp_path / "t.parquet"
    write(path, **FAULTS[fault])
    with pytest.raises(InputError, match=r"t\.parquet") as caught:
        load_tokens(path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_columns_that_are_absent_or_double_are_refused(tmp_path):
    path = tmp_path / "t.parquet"
    label = pa.array([0, 1, 2])
    for columns in ({"token": label}, {"label": label}, {"a": label, "b": label}):
        table = pa.table(columns).replace_schema_metadata({"varkd": json.dumps(HEADER)})
        pq.write_table(table, path)
        with pytest.raises(InputError, match="expected token and label"):
            read_header(path)
    double = pa.Table.from_arrays([label, label, label], ["token", "label", "label"])
    pq.write_table(double.replace_schema_metadata({"varkd": json.dumps(HEADER)}), path)
    with pytest.raises(InputError, match="expected token and label"):
        read_header(path)


def write_64_rows(path, length):
    token = pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(length * 64, np.int16)), length)
    table = pa.table({"token": token, "label": pa.array(np.zeros(64, np.int64))})
    spec = HEADER["spec"] | {"length": length}
    header = json.dumps(HEADER | {"spec": spec, "variants": 1})
    pq.write_table(table.replace_schema_metadata({"varkd": header}), path)


def claim(path, rows):
    """Make the footer of a file of 64 rows count others; thrift has zigzag varints."""
    content = path.read_bytes()
    footer = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    at = content.index(b"\x80\x01", footer)  # 64
    varint, value = b"", 2 * rows
    while value > 127:
        varint, value = varint + bytes([value & 127 | 128]), value >> 7
    grown = content[footer:at] + varint + bytes([value]) + content[at + 2 : -8]
    path.write_bytes(content[:footer] + grown + len(grown).to_bytes(4, "little") + b"PAR1")
    assert pq.read_metadata(path).num_rows == rows


def test_a_small_file_that_unpacks_to_more_than_memory_is_not_unpacked(tmp_path):
    """Runs of one number take no room on disk: 2^26 rows of 2^14 tokens would be 2 TB."""
    path = tmp_path / "t.parquet"
    write_64_rows(path, 2**14)
    assert path.stat().st_size < 2**20
    claim(path, 2**26)
    with pytest.raises(InputError, match=r"takes 204\d\.\d GB of memory"):
        load_tokens(path)


@pytest.mark.parametrize("rows", [63, 65, 100])
def test_a_count_of_rows_that_is_not_true_is_found_out(tmp_path, rows):
    path = tmp_path / "t.parquet"
    write_64_rows(path, 4)
    assert len(load_tokens(path)) == 64
    claim(path, rows)
    with pytest.raises(InputError, match=r"t\.parquet"):
        load_tokens(path)


def test_no_file_is_no_dataset(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "nothing", tmp_path, tmp_path / "pipe"):
        for read in (load_tokens, read_header, count_images):
            with pytest.raises(InputError, match=r"no such file|is a"):
                read(path)


@given(cut=st.integers(0, 3000), flip=st.integers(0, 8 * 2500))
@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_a_damaged_token_file_is_read_or_refused(tmp_path, cut, flip):
    path = tmp_path / "t.parquet"
    write(path)
    content = bytearray(path.read_bytes())
    content[flip // 8 % len(content)] ^= 1 << flip % 8
    for candidate in (bytes(content), bytes(content[:cut])):
        path.write_bytes(candidate)
        try:
            data = load_tokens(path)
        except InputError:
            continue
        assert 0 <= int(data.token_NAL.min()) <= int(data.token_NAL.max()) < data.spec.vocab_size


def replaced(record, name, column):
    index = record.schema.get_field_index(name)
    changed = record.set_column(index, name, column)
    return changed.replace_schema_metadata(record.schema.metadata)


def with_facts(record, **changes):
    facts = {k.decode(): v.decode() for k, v in record.schema.metadata.items()} | changes
    return record.replace_schema_metadata({k: v for k, v in facts.items() if v is not None})


def matrix(value, kind):
    return pa.FixedShapeTensorArray.from_numpy_ndarray(np.full((5, 6), value, kind))


RECORDS = {
    "float tokens": lambda r: replaced(r, "token", matrix(1.5, np.float32)),
    "float order": lambda r: replaced(r, "order", matrix(0.0, np.float32)),
    "an order that visits one position": lambda r: replaced(r, "order", matrix(0, np.int32)),
    "shorter rows": lambda r: replaced(
        r, "logprob", pa.FixedShapeTensorArray.from_numpy_ndarray(np.zeros((5, 4), np.float32))
    ),
    "a missing context": lambda r: replaced(r, "context", pa.array(["data"] * 4 + [None])),
    "a negative prefix": lambda r: replaced(r, "prefix", pa.array([0, 0, 0, 0, -1])),
    "a long prefix": lambda r: replaced(r, "prefix", pa.array([0, 0, 0, 0, 7])),
    "a class too many": lambda r: replaced(r, "label", pa.array([0, 0, 0, 0, 4])),
    "a label of 2^64 - 1": lambda r: replaced(r, "label", pa.array([2**64 - 1] * 5, pa.uint64())),
    "a label that is none": lambda r: replaced(r, "label", pa.array([0, 0, 0, 0, None])),
    "no noise": lambda r: replaced(r, "noise", matrix(np.nan, np.float64)),
    "no rows": lambda r: r.slice(0, 0),
    "no spec": lambda r: with_facts(r, spec=None),
    "another spec": lambda r: with_facts(r, spec='{"vocab_size": 1}'),
    "no JSON": lambda r: with_facts(r, spec="{"),
    "no steps": lambda r: with_facts(r, step_sizes=None),
    "empty steps": lambda r: with_facts(r, step_sizes=""),
    "steps of other lengths": lambda r: with_facts(r, step_sizes="1,1"),
    "negative steps": lambda r: with_facts(r, step_sizes="7,-1"),
    "no token": lambda r: r.drop_columns(["token"]),
}


@pytest.mark.parametrize("fault", RECORDS)
def test_records_that_are_none_never_become_data(tiny, sampled, fault):
    record = to_arrow(sampled(tiny("llamagen")))
    assert len(from_arrow(record)) == 5
    with pytest.raises(InputError, match="record") as caught:
        from_arrow(RECORDS[fault](record))
    assert "\n" not in str(caught.value)
