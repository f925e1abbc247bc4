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
    target_token  uint16/32[L]       the data sequence that the row is compared with, by slot of its
                                     plan, e.g. by a reward (absent: nobody asks for it)
    group,        int64              which rows are samples of one condition, and which of them a
    member                           row is, from 0 (absent: every row is alone in its group)
    history       int64              how many steps before its own a step of the row sees, beside
                                     the first one (absent: all)
    signal.NAME   float16/32[L, ..]  what the teacher says (absent before scoring)
    sequence.NAME number[..]         what a scorer says of whole rows, e.g. a reward (optional)

Schema metadata: schema, lease, generation, oldest (lowest version of any row whose policy is
student, or -1), group_size (rows of every group; absent: 1), conditions (how many ids
there are; absent: the classes and the null one), step_sizes, spec, worker, rollout_seconds, late
(who had the lease before and was waited for; absent: nobody), guesses.WAY and kept.WAY (tokens
that were guessed ahead for rows made that way and checked, and how many were kept), and after
scoring teacher_seconds, teacher_busy, teacher_waiting, busy.NAME of every other scorer,
failure.NAME (why a reward judged some row not), and head (digest of the teacher's output head). A
record holds whole groups.

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
from common.exchange.soundness import require_sound
from common.exchange.trajectory_batch import OF_ROWS, TrajectoryBatch, concatenate
from common.exchange.views import view_of
from common.models.plan import DecodePlan
from common.spec import SequenceSpec

__all__ = ["TrajectoryBatch", "concatenate"]
PolicyVersion = NewType("PolicyVersion", int)
"""Learner steps behind a set of weights."""

SCHEMA_VERSION = 3
READABLE = ("2", "3")
"""Versions that `from_arrow` reads."""
GUESSES, KEPT = "guesses.", "kept."
"""Beginnings of metadata: tokens that were guessed ahead, checked, and kept."""
FAILURE = "failure."
"""Beginning of metadata: why a scorer could not judge rows, in its own words."""
TEXT = ("context", "policy", "law")
"""Columns of words."""
INTEGERS = ("id", "version", "label", "prefix", "order", "token")
OPTIONAL_IDS = ("input_token", "target_token")
OPTIONAL_INTEGERS = (*OPTIONAL_IDS, *OF_ROWS)
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
    columns |= {name: _to_column(value) for name, value in batch.optional_columns.items()}
    for name in OPTIONAL_IDS:
        if (value_BL := getattr(batch, f"{name}_BL")) is not None:
            columns[name] = _to_ids(value_BL, batch.spec.vocab_size)
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
    require_sound(batch)
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
        plan=DecodePlan(column["order"], step_sizes, history_B=column.get("history")),
        token_BL=column["token"],
        logprob_BL=column["logprob"],
        noise_BL=column.get("noise"),
        input_token_BL=column.get("input_token"),
        target_token_BL=column.get("target_token"),
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
