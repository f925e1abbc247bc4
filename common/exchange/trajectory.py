"""The one record that travels between roles, live and at rest.

A record is one Arrow batch, one row per sequence. Columns (schema version 3):

    id            int64              image index of the run; never re-used for other content
    version       int64              learner steps behind the student's weights that the worker
                                     held, with which it sampled the row if `policy` is student
    label         int64              id of the condition (common/exchange/condition.py): the class,
                                     or the null class where the label was dropped
    teacher_condition  int64         id of what only the teacher knows of the row (absent: it knows
                                     what the student knows)
    context       string             file name in rollout/contexts; a name, nothing goes by it
    policy        string             who sampled the row: data, teacher or student
    law           string             exact or approximate (common/exchange/provenance.py)
    prefix        int64              ground-truth slots at the start, in plan order
    order, token  uint16/32[L]       grid position and code of every slot, in the fewest bytes that
                                     hold the grid's cells, and the vocabulary
    logprob       float32[L]         behaviour log-probability; 0 on slots that were given
    noise         float64[L]         the uniforms that drew the row (optional)
    seed          int64              what gives the Gaussian noise that was carried to the row's
                                     tokens, or -1 (absent: no row was made so; docs/one_step.md)
    vector        float32[L, D]      the code vectors that a one-pass student means, of which
                                     `token` are the nearest codes (absent: the codes' own)
    input_token   uint16/32[L]       what student and teacher read in every slot, where that differs
                                     from `token`, which both are asked for (absent: the same)
    group,        int64              which rows are samples of one condition, and which of them a
    member                           row is, from 0 (absent: every row is alone in its group)
    signal.NAME   float16/32[L, ..]  what the teacher says (absent before scoring)
    sequence.NAME number[..]         what a scorer says of whole rows, e.g. a reward (optional)

Schema metadata: schema, lease, generation, oldest (lowest version of any row whose policy is
student, or -1), group_size (rows of every group; absent: 1), conditions (how many ids
there are; absent: the classes and the null one), step_sizes, spec, worker, rollout_seconds, and
after scoring teacher_seconds, teacher_busy, teacher_waiting and head (digest of the teacher's
output head). A record holds whole groups.

Version 2 had int32 where version 3 has uint16 and uint32: it is read alike. Version 1 did not say
who sampled a row: its readers took the context called "student" for that.

Shape letters: B sequences, L slots, D code width.
"""

import json
from typing import NewType

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from common.errors import InputError
from common.exchange.provenance import LAWS, POLICIES
from common.exchange.trajectory_batch import TrajectoryBatch, concatenate
from common.exchange.views import view_of
from common.finite import is_finite
from common.models.plan import DecodePlan
from common.spec import SequenceSpec

__all__ = ["TrajectoryBatch", "concatenate"]
PolicyVersion = NewType("PolicyVersion", int)
"""Learner steps behind a set of weights."""

SCHEMA_VERSION = 3
READABLE = ("2", "3")
"""Versions that `from_arrow` reads."""
TEXT = ("context", "policy", "law")
"""Columns of words."""
INTEGERS = ("id", "version", "label", "prefix", "order", "token")
OF_ROWS = ("group", "member", "teacher_condition", "seed")
OPTIONAL_INTEGERS = ("input_token", *OF_ROWS)
INTEGER_TYPES = (np.int32, np.int64, np.uint16, np.uint32)


def to_arrow(batch: TrajectoryBatch) -> pa.RecordBatch:
    """Encode; the inverse of `from_arrow` to the bit."""
    columns: dict[str, pa.Array] = {
        "id": _to_column(batch.id_B),
        "version": _to_column(batch.version_B),
        "label": _to_column(batch.label_B),
        **{name: pa.array(getattr(batch, name), pa.string()) for name in TEXT},
        "prefix": _to_column(batch.prefix_B),
        "order": _to_ids(batch.plan.order_BL, batch.spec.length),
        "token": _to_ids(batch.token_BL, batch.spec.vocab_size),
        "logprob": _to_column(batch.logprob_BL),
    }
    columns |= {name: _to_column(value) for name, value in _optional(batch).items()}
    if batch.input_token_BL is not None:
        columns["input_token"] = _to_ids(batch.input_token_BL, batch.spec.vocab_size)
    columns |= {f"signal.{name}": _to_column(value) for name, value in batch.signal.items()}
    columns |= {f"sequence.{name}": _to_column(value) for name, value in batch.sequence.items()}
    on_policy = batch.version_B[batch.on_policy_B]
    metadata = batch.facts | {
        "schema": str(SCHEMA_VERSION),
        "oldest": str(int(on_policy.min()) if len(on_policy) else -1),
        "step_sizes": ",".join(map(str, batch.plan.step_sizes)),
        "spec": json.dumps(batch.spec.as_dict()),
    }
    return pa.RecordBatch.from_pydict(columns).replace_schema_metadata(metadata)


def _optional(batch: TrajectoryBatch) -> dict[str, Tensor]:
    """The columns that are there, of those that need not be."""
    found = {
        "noise": batch.noise_BL,
        "input_token": batch.input_token_BL,
        "group": batch.group_B,
        "member": batch.member_B,
        "teacher_condition": batch.teacher_condition_B,
        "seed": batch.seed_B,
        "vector": batch.vector_BLD,
    }
    return {name: value for name, value in found.items() if value is not None}


def from_arrow(record: pa.RecordBatch) -> TrajectoryBatch:
    """Decode and check, without a copy: what is not an integer stays where it lies in the record,
    which lives as long as these tensors. Nobody writes to them.

    Raises:
        InputError: another schema version, columns of other names, types or lengths, a token
            outside the vocabulary, a value that is not finite, or a group that is not whole.
            Nothing that failed becomes data.
    """
    try:
        batch = _decoded(record)
    except InputError:
        raise
    except (pa.ArrowException, AttributeError, LookupError, TypeError, ValueError) as error:
        absent = f"no {error}" if isinstance(error, KeyError) else error
        raise InputError(f"record is damaged: {absent}") from None
    _check(batch)
    return batch


def _decoded(record: pa.RecordBatch) -> TrajectoryBatch:
    facts = {key.decode(): value.decode() for key, value in (record.schema.metadata or {}).items()}
    _require_schema(facts.pop("schema", None))
    facts.pop("oldest")
    try:
        spec = SequenceSpec.from_dict(json.loads(facts.pop("spec")))
    except InputError as error:
        raise InputError(f"record is damaged: {error}") from None
    step_sizes = tuple(int(n) for n in facts.pop("step_sizes").split(","))
    column = {
        name: _to_tensor(name, record.column(name))
        for name in record.schema.names
        if name not in TEXT
    }
    return TrajectoryBatch(
        spec=spec,
        id_B=column["id"],
        version_B=column["version"],
        label_B=column["label"],
        context=tuple(record.column("context").to_pylist()),
        policy=tuple(record.column("policy").to_pylist()),
        law=tuple(record.column("law").to_pylist()),
        prefix_B=column["prefix"],
        plan=DecodePlan(column["order"], step_sizes),
        token_BL=column["token"],
        logprob_BL=column["logprob"],
        noise_BL=column.get("noise"),
        input_token_BL=column.get("input_token"),
        group_B=column.get("group"),
        member_B=column.get("member"),
        teacher_condition_B=column.get("teacher_condition"),
        seed_B=column.get("seed"),
        vector_BLD=column.get("vector"),
        signal=_named(column, "signal."),
        sequence=_named(column, "sequence."),
        facts=facts,
    )


def _named(column: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): value
        for name, value in column.items()
        if name.startswith(prefix)
    }


def _require_schema(version: str | None) -> None:
    if version not in READABLE:
        found = "no trajectory schema" if version is None else f"trajectory schema {version}"
        raise InputError(
            f"record has {found}, but this version reads schemas {' and '.join(READABLE)}, "
            "whose rows say who sampled them; sample and score it again"
        )


def id_type(count: int) -> torch.dtype:
    """The narrowest of the record's types for numbers below `count`."""
    return torch.uint16 if count <= 2**16 else torch.uint32


def _check(batch: TrajectoryBatch) -> None:
    _check_shapes(batch)
    spec = batch.spec
    for name, value, limit in (
        ("tokens", batch.token_BL, spec.vocab_size),
        ("input tokens", batch.input_BL, spec.vocab_size),
        ("labels", batch.label_B, _conditions(batch)),
        ("prefixes", batch.prefix_B, spec.length + 1),
    ):
        low, high = int(value.min()), int(value.max())
        if low < 0 or high >= limit:
            known = "the vocabulary has" if "tokens" in name else "the spec allows less than"
            raise InputError(f"record holds {name} {low}..{high}, but {known} {limit}")
    if not (batch.plan.order_BL.sort().values == torch.arange(spec.length)).all():
        raise InputError("record column order holds rows that do not visit every position once")
    _check_groups(batch)
    numbers = {"logprob": batch.logprob_BL, **_optional(batch), **batch.signal, **batch.sequence}
    for name, value in numbers.items():
        if not is_finite(value):
            raise InputError(f"record column {name} holds values that are not finite")


def _conditions(batch: TrajectoryBatch) -> int:
    """How many ids there are."""
    found = batch.facts.get("conditions", str(batch.spec.num_classes + 1))
    if not found.isdecimal():
        raise InputError(f"record has conditions {found!r}, expected how many there are")
    return int(found)


def _check_shapes(batch: TrajectoryBatch) -> None:
    count, length = len(batch.context), batch.spec.length
    if not count or not all(isinstance(name, str) for name in batch.context):
        raise InputError("record has no rows, or rows without a context")
    for name, known in (("policy", POLICIES), ("law", LAWS)):
        if strange := set(getattr(batch, name)) - set(known):
            found = ", ".join(sorted(map(repr, strange)))
            raise InputError(f"record column {name} holds {found}, expected {' or '.join(known)}")
    if min(batch.plan.step_sizes) < 1:
        raise InputError(f"record has steps of {batch.plan.step_sizes} slots")
    row, whole = (count,), (count, length)
    columns = {
        "id": (batch.id_B, row),
        "version": (batch.version_B, row),
        "label": (batch.label_B, row),
        "prefix": (batch.prefix_B, row),
        "order": (batch.plan.order_BL, whole),
        "token": (batch.token_BL, whole),
        "logprob": (batch.logprob_BL, whole),
        **{name: (value, (*whole, *value.shape[2:])) for name, value in batch.signal.items()},
    }
    for name, value in _optional(batch).items():
        columns[name] = (value, row if name in OF_ROWS else whole)
    if (vector_BLD := batch.vector_BLD) is not None:
        columns["vector"] = (vector_BLD, (*whole, vector_BLD.shape[-1]))
    columns |= {name: (v, (*row, *v.shape[1:])) for name, v in batch.sequence.items()}
    for name, (value, shape) in columns.items():
        if tuple(value.shape) != shape:
            raise InputError(f"record column {name} is {list(value.shape)}, expected {list(shape)}")


def _check_groups(batch: TrajectoryBatch) -> None:
    """Every group has its members 0 to group_size - 1, of one label and one prefix."""
    size = batch.facts.get("group_size", "1")
    if batch.group_B is None or batch.member_B is None:
        if size != "1" or batch.group_B is not batch.member_B:
            raise InputError(f"record has groups of {size}, but no columns group and member")
        return
    rows = sorted(zip(batch.group_B.tolist(), batch.member_B.tolist(), strict=True))
    groups = sorted({group for group, _ in rows})
    members = range(int(size) if size.isdecimal() else 0)
    if rows != [(group, member) for group in groups for member in members]:
        raise InputError(f"record does not hold whole groups of {size}: (group, member) are {rows}")
    alike = torch.stack([batch.group_B, batch.label_B, batch.prefix_B]).unique(dim=1)
    if alike.shape[1] != len(groups):
        raise InputError("record holds groups whose rows have different labels or prefixes")


def _to_column(value: Tensor) -> pa.Array:
    array = np.ascontiguousarray(value.cpu().numpy())
    if array.ndim == 1:
        return pa.array(array)
    return pa.FixedShapeTensorArray.from_numpy_ndarray(array)


def _to_ids(value: Tensor, count: int) -> pa.Array:
    """Numbers below `count` in the fewest bytes. What is not below it stays as it is, for readers
    to refuse: cut short it could become another number that is."""
    fits = not value.numel() or (int(value.min()) >= 0 and int(value.max()) < count)
    return _to_column(value.to(id_type(count)) if fits else value)


def _to_tensor(name: str, column: pa.Array) -> Tensor:
    is_tensor = isinstance(column, pa.FixedShapeTensorArray)
    array = column.to_numpy_ndarray() if is_tensor else column.to_numpy()
    if name in INTEGERS or name in OPTIONAL_INTEGERS:
        if array.dtype not in INTEGER_TYPES:
            raise InputError(f"record column {name} is {array.dtype}, expected an integer")
        return torch.from_numpy(array.astype(np.int64))
    return view_of(array)
