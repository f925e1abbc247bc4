"""The Arrow record: exact, checked, documented; token datasets likewise."""

import gc
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch

from common.data.tokens import load_tokens, save_tokens
from common.errors import InputError
from common.exchange.trajectory import concatenate, from_arrow, to_arrow


@pytest.fixture
def scored(sampled, tiny):
    batch = sampled(tiny("llamagen"))
    hidden = torch.randn(5, batch.spec.length, 4)
    entropy = torch.rand(5, batch.spec.length)
    return batch.scored({"hidden": hidden, "entropy": entropy}, {"head": "abc"})


def test_arrow_round_trip_is_exact(scored):
    back = from_arrow(to_arrow(scored))
    assert (back.spec, back.context, back.facts) == (scored.spec, scored.context, scored.facts)
    assert (back.policy, back.law) == (scored.policy, scored.law)
    assert back.plan.step_sizes == scored.plan.step_sizes
    assert torch.equal(back.plan.order_BL, scored.plan.order_BL)
    for name in ("id_B", "version_B", "label_B", "prefix_B", "token_BL", "logprob_BL", "noise_BL"):
        assert torch.equal(getattr(back, name), getattr(scored, name)), name
    for name, value in scored.signal.items():
        assert torch.equal(back.signal[name], value)


@pytest.mark.parametrize(
    ("vocab_size", "kind"), [(24, "uint16"), (2**16, "uint16"), (2**16 + 1, "uint32")]
)
def test_ids_take_as_few_bytes_as_the_vocabulary_needs(scored, vocab_size, kind):
    token_BL = scored.token_BL.clone()
    token_BL[1, 2] = vocab_size - 1
    spec = replace(scored.spec, vocab_size=vocab_size)
    record = to_arrow(replace(scored, spec=spec, token_BL=token_BL, input_token_BL=token_BL))
    for name, expected in (("token", kind), ("input_token", kind), ("order", "uint16")):
        assert record.column(name).to_numpy_ndarray().dtype == expected, name
    back = from_arrow(record)
    assert torch.equal(back.token_BL, token_BL)
    assert torch.equal(back.input_BL, token_BL)
    assert back.token_BL.dtype == back.plan.order_BL.dtype == torch.int64


@pytest.mark.parametrize("code", [-1, 2**16])
def test_no_code_becomes_another_one_by_being_cut_short(scored, code):
    spec = replace(scored.spec, vocab_size=2**16)
    token_BL = scored.token_BL.clone()
    token_BL[1, 2] = code
    with pytest.raises(InputError, match="vocabulary has 65536"):
        from_arrow(to_arrow(replace(scored, spec=spec, token_BL=token_BL)))


def test_a_record_of_version_2_is_read_as_it_was(scored):
    record = to_arrow(scored)
    for name in ("order", "token"):
        wide = record.column(name).to_numpy_ndarray().astype(np.int32)
        at = record.schema.get_field_index(name)
        record = record.set_column(at, name, pa.FixedShapeTensorArray.from_numpy_ndarray(wide))
    old = record.replace_schema_metadata(to_arrow(scored).schema.metadata | {b"schema": b"2"})
    assert to_arrow(from_arrow(old)).equals(to_arrow(scored), check_metadata=True)


def test_ids_that_are_no_integers_are_refused(scored):
    record = to_arrow(scored)
    at, name = record.schema.get_field_index("token"), "token"
    numbers = record.column(name).to_numpy_ndarray().astype(np.float32)
    broken = record.set_column(at, name, pa.FixedShapeTensorArray.from_numpy_ndarray(numbers))
    with pytest.raises(InputError, match="column token is float32, expected an integer"):
        from_arrow(broken.replace_schema_metadata(record.schema.metadata))


def test_what_the_teacher_says_is_read_where_it_lies_and_keeps_it_alive(scored):
    arrived = bytearray(to_arrow(scored).serialize())
    record = pa.ipc.read_record_batch(pa.py_buffer(arrived), to_arrow(scored).schema)
    batch = from_arrow(record)
    for name in scored.signal:
        lies = record.column(f"signal.{name}").to_numpy_ndarray().ctypes.data
        assert batch.signal[name].data_ptr() == lies, name
    assert concatenate([batch]).signal["hidden"].data_ptr() == batch.signal["hidden"].data_ptr()
    both = concatenate([batch, batch]).signal["hidden"]
    assert torch.equal(both, torch.cat([scored.signal["hidden"]] * 2))
    del record
    gc.collect()
    with pytest.raises(BufferError):  # somebody holds these bytes
        arrived.clear()
    del batch
    gc.collect()
    arrived.clear()


def test_ipc_bytes_are_the_record(scored, tmp_path):
    record = to_arrow(scored)
    with (
        pa.OSFile(str(tmp_path / "r.arrow"), "wb") as sink,
        pa.ipc.new_file(sink, record.schema) as writer,
    ):
        writer.write_batch(record)
    with pa.memory_map(str(tmp_path / "r.arrow")) as source:
        assert pa.ipc.open_file(source).get_batch(0).equals(record, check_metadata=True)


def test_metadata_names_the_oldest_on_policy_version(scored):
    versions = torch.tensor([0, 0, 5, 4, 6])
    record = to_arrow(replace(scored, version_B=versions))
    assert record.schema.metadata[b"oldest"] == b"4"
    data_only = to_arrow(replace(scored, version_B=versions).rows(slice(0, 2)))
    assert data_only.schema.metadata[b"oldest"] == b"-1"


def test_rows_and_concatenate_are_inverse(scored):
    parts = [scored.rows(slice(0, 2)), scored.rows(slice(2, 5))]
    whole = concatenate(parts)
    assert to_arrow(whole).equals(to_arrow(scored), check_metadata=True)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("token_BL", 99, "vocabulary has 24"),
        ("token_BL", -1, "vocabulary has 24"),
        ("logprob_BL", float("nan"), "logprob holds values that are not finite"),
    ],
)
def test_damaged_rows_never_become_data(scored, field, value, message):
    broken = getattr(scored, field).clone()
    broken[3, 1] = value
    with pytest.raises(InputError, match=message):
        from_arrow(to_arrow(replace(scored, **{field: broken})))


@pytest.mark.parametrize(
    ("schema", "found"),
    [("1", "trajectory schema 1"), ("99", "trajectory schema 99"), (None, "no trajectory schema")],
)
def test_a_record_of_another_schema_is_refused_in_a_sentence(scored, schema, found):
    facts = {k: v for k, v in to_arrow(scored).schema.metadata.items() if k != b"schema"}
    facts |= {} if schema is None else {b"schema": schema.encode()}
    with pytest.raises(InputError) as caught:
        from_arrow(to_arrow(scored).replace_schema_metadata(facts))
    assert str(caught.value) == (
        f"record has {found}, but this version reads schemas 2 and 3, whose rows say who sampled "
        "them; sample and score it again"
    )


def test_provenance_and_not_a_contexts_name_says_what_goes_stale(scored):
    """Rows of one context called student: read, sampled by the teacher, and by the student."""
    policies = ("data", "teacher", "student", "student", "teacher")
    versions = torch.tensor([0, 1, 5, 4, 2])
    batch = replace(scored, context=("student",) * 5, policy=policies, version_B=versions)
    back = from_arrow(to_arrow(batch))
    assert back.policy == policies
    assert to_arrow(batch).schema.metadata[b"oldest"] == b"4"
    assert back.data_B.tolist() == [True, False, False, False, False]
    assert back.on_policy_B.tolist() == [False, False, True, True, False]
    assert torch.equal(back.rollout_BL, back.suffix_BL & back.on_policy_B[:, None])
    others = replace(batch, context=("x",) * 5, policy=("teacher",) * 5)
    assert to_arrow(others).schema.metadata[b"oldest"] == b"-1"


@pytest.mark.parametrize(
    ("column", "known"), [("policy", "data or teacher or student"), ("law", "exact or approximate")]
)
def test_words_that_no_reader_knows_are_refused(scored, column, known):
    words = ("exact" if column == "law" else "data",) * 4 + ("late",)
    with pytest.raises(InputError, match=f"column {column} holds 'late', expected {known}"):
        from_arrow(to_arrow(replace(scored, **{column: words})))


def test_optional_columns_travel_and_absent_ones_stay_absent(scored):
    plain = from_arrow(to_arrow(scored))
    assert plain.input_token_BL is plain.group_B is plain.member_B is None
    assert plain.sequence == {}
    assert plain.input_BL is plain.token_BL
    pairs = scored.rows(slice(0, 4))
    whole = replace(
        pairs,
        label_B=torch.tensor([0, 0, 2, 2]),
        prefix_B=torch.tensor([6, 6, 2, 2]),
        input_token_BL=(pairs.token_BL + 1) % 24,
        target_token_BL=(pairs.token_BL + 2) % 24,
        group_B=torch.tensor([7, 7, 8, 8]),
        member_B=torch.tensor([0, 1, 0, 1]),
        sequence={"reward": torch.rand(4), "features": torch.rand(4, 3, 2)},
        facts=pairs.facts | {"group_size": "2"},
    )
    back = from_arrow(to_arrow(whole))
    for name in ("input_token_BL", "target_token_BL", "group_B", "member_B"):
        assert torch.equal(getattr(back, name), getattr(whole, name)), name
    for name, value in whole.sequence.items():
        assert torch.equal(back.sequence[name], value)
        assert torch.equal(back.rows(slice(1, 3)).sequence[name], value[1:3])
    halves = [whole.rows(slice(0, 2)), whole.rows(slice(2, 4))]
    assert to_arrow(concatenate(halves)).equals(to_arrow(whole), check_metadata=True)
    assert torch.equal(back.to(torch.device("cpu")).input_BL, whole.input_token_BL)
    mixed = concatenate([halves[0], replace(halves[1], input_token_BL=None)])
    wanted_BL = torch.cat([halves[0].input_BL, halves[1].token_BL])
    assert torch.equal(mixed.input_BL, wanted_BL)
    mixed = concatenate([halves[0], replace(halves[1], target_token_BL=None)])
    wanted_BL = torch.cat([whole.target_BL[:2], halves[1].token_BL])
    assert torch.equal(mixed.target_BL, wanted_BL), "a row without a target is its own"


GROUPS = {
    "holds input tokens 0..24, but the vocabulary has 24": {
        "input_token_BL": torch.tensor([[24] + [0] * 5] * 4)
    },
    "holds target tokens 0..24, but the vocabulary has 24": {
        "target_token_BL": torch.tensor([[24] + [0] * 5] * 4)
    },
    "column input_token is .4, 5., expected .4, 6.": {"input_token_BL": torch.zeros(4, 5).long()},
    "does not hold whole groups of 2": {"member_B": torch.tensor([0, 1, 0, 0])},
    "no columns group and member": {"group_B": None, "member_B": None},
    "different labels or prefixes": {"label_B": torch.tensor([0, 1, 2, 2])},
    "column reward holds values that are not finite": {
        "sequence": {"reward": torch.full((4,), torch.nan)}
    },
}


@pytest.mark.parametrize("message", GROUPS)
def test_optional_columns_that_do_not_fit_are_refused(scored, message):
    whole = replace(
        scored.rows(slice(0, 4)),
        label_B=torch.tensor([0, 0, 2, 2]),
        prefix_B=torch.tensor([6, 6, 2, 2]),
        input_token_BL=torch.zeros(4, 6).long(),
        group_B=torch.tensor([7, 7, 8, 8]),
        member_B=torch.tensor([0, 1, 0, 1]),
        facts=scored.facts | {"group_size": "2"},
    )
    assert len(from_arrow(to_arrow(whole))) == 4
    with pytest.raises(InputError, match=message):
        from_arrow(to_arrow(replace(whole, **GROUPS[message])))


def test_token_dataset_round_trip_and_refusals(data, tmp_path):
    path = tmp_path / "train.parquet"
    save_tokens(path, data)
    back = load_tokens(path)
    assert torch.equal(back.token_NAL, data.token_NAL)
    assert torch.equal(back.label_N, data.label_N)
    assert (back.spec, back.classes) == (data.spec, data.classes)
    bad = data.token_NAL.clone()
    bad[0, 0, 0] = 24
    save_tokens(path, replace(data, token_NAL=bad))
    with pytest.raises(InputError, match="vocabulary has 24"):
        load_tokens(path)
    path.write_bytes(b"PAR1 nonsense")
    with pytest.raises(InputError, match=r"train\.parquet: no readable token dataset"):
        load_tokens(path)


def test_dropped_labels_become_the_null_class_at_the_given_rate(data):
    from common.randomness import Draws

    label_B, cell_BL = data.pick(range(4000), Draws(0, len(data)), 0.25)
    dropped = label_B == data.spec.null_class
    assert float(dropped.double().mean()) == pytest.approx(0.25, abs=0.03)
    rows = torch.tensor([Draws(0, len(data)).row(i) for i in range(4000)])
    assert torch.equal(label_B[~dropped], data.label_N[rows][~dropped])
    assert torch.equal(cell_BL, data.token_NAL[rows, 0])
