"""What a decoded record must satisfy before anybody computes with it (see trajectory.py).

Shape letters: B sequences, L slots, D code width.
"""

import torch

from common.errors import InputError
from common.exchange.provenance import LAWS, POLICIES
from common.exchange.trajectory_batch import OF_ROWS, TrajectoryBatch
from common.finite import is_finite


def require_sound(batch: TrajectoryBatch) -> None:
    """Refuse what no worker and no scorer writes.

    Raises:
        InputError: names the column, what it holds and what was expected.
    """
    _check_shapes(batch)
    spec = batch.spec
    for name, value, limit in (
        ("tokens", batch.token_BL, spec.vocab_size),
        ("input tokens", batch.input_BL, spec.vocab_size),
        ("target tokens", batch.target_BL, spec.vocab_size),
        ("labels", batch.label_B, _conditions(batch)),
        ("prefixes", batch.prefix_B, spec.length + 1),
        ("history", batch.plan.history(), len(batch.plan.step_sizes) + 1),
    ):
        low, high = int(value.min()), int(value.max())
        if low < 0 or high >= limit:
            known = "the vocabulary has" if "tokens" in name else "the spec allows less than"
            raise InputError(f"record holds {name} {low}..{high}, but {known} {limit}")
    if not (batch.plan.order_BL.sort().values == torch.arange(spec.length)).all():
        raise InputError("record column order holds rows that do not visit every position once")
    _check_groups(batch)
    numbers = {
        "logprob": batch.logprob_BL,
        **batch.optional_columns,
        **batch.signal,
        **batch.sequence,
    }
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
    for name, value in batch.optional_columns.items():
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
