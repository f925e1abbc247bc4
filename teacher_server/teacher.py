"""The teacher role: one frozen, guided forward pass per batch, as columns of the record.

Shape letters: B sequences, L slots, C width.
"""

import math
import time
from dataclasses import replace
from typing import Annotated, Literal

import pyarrow as pa
import torch
from pydantic import SerializeAsAny
from torch import Tensor, nn

from common.artifacts.model_file import ModelFile
from common.config.plugins import from_package
from common.config.quantities import Probability
from common.config.schema import UserPath
from common.device import place, precision
from common.errors import Diverged, InputError
from common.exchange.condition import ClassConditions, Conditions, ConditionTables
from common.exchange.signal import SignalConfig
from common.exchange.signals import guided_hidden
from common.exchange.trajectory import TrajectoryBatch, concatenate, from_arrow, to_arrow
from common.files.tensors import state_digest
from common.finite import is_finite
from common.models.backbone import Backbone
from common.models.guidance import Guidance, guide, scale_per_slot
from common.spec import require_same_spec
from teacher_server.batching import Batcher, BatchingConfig
from teacher_server.replicas import ReplicasConfig

JOINED_TOKENS = 256
"""Up to so many tokens both branches of guidance go through the model together, which saves calls.
Beyond, two smaller passes are as fast or faster, for their activations stay in the caches. Measured
on one thread, CPU seconds of one pass over those of two: 0.58 for 16 tokens of a model 64 wide,
0.80 for 64 of one 256 wide, 0.93 for 256 of 384 and of 768, but 1.17 for 512 of 256 wide and for
4,096 of 384 wide."""


class TeacherConfig(ReplicasConfig):
    weights: UserPath | None = None
    """The teacher's file: an official checkpoint (.pt, .pth, .safetensors, FSDP folder) or one of
    ours; by default teacher.safetensors in the run folder."""
    weights_ema: bool = False
    """Read the averaged weights of an official trainer's file."""
    guidance: Guidance | None = None
    """Classifier-free guidance of the target distribution; without it, one pass is enough."""
    prefix: Literal["codes", "vectors"] = "codes"
    """What is read of rows of a one-pass student, whose code vectors lie between the codes: the
    nearest codes, or the vectors themselves, where the family can (VAR, through its canvas)."""
    peek: Probability = 0.0
    """Share of the sequence, from its first slot on, that the teacher reads of the data instead of
    what the student sampled there: it judges with a part of the image before it (the coarser
    scales, of a next-scale model), which the student does not have."""
    signal: Annotated[SerializeAsAny[SignalConfig], from_package("common.exchange.signals")] = (
        guided_hidden.Config()
    )
    """What the teacher sends per token."""
    batching: BatchingConfig = BatchingConfig()
    """How requests are joined; `ordered` runs score every lease by itself."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the teacher scores."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the forward pass; the entropy is always computed in float32."""


class Teacher:
    """Scores records; thread-safe, so that many workers may wait on one forward pass."""

    def __init__(
        self,
        config: TeacherConfig,
        weights: ModelFile,
        *,
        coalesce: bool,
        conditions: ConditionTables | None = None,
        entropy: bool = True,
    ) -> None:
        """With `coalesce`, requests that wait together share a pass (`config.batching`);
        `conditions` are all of the run, by default the classes; `entropy` as `signal_columns`."""
        self._config = config
        self._entropy = entropy
        self._conditions = conditions
        self._device = place(config.device)
        # In float32 of its own: the forward pass may run in bfloat16, the distribution may not.
        self._head = weights.head().to(self._device)
        self._head_digest = state_digest(self._head)
        backbone = weights.load(precision(config.dtype))
        self._backbone = backbone.to(self._device).requires_grad_(False)
        batching = config.batching if coalesce else BatchingConfig(max_images=1, wait_ms=0)
        self._batcher = Batcher(
            batching, self._score_all, size=len, tokens=lambda batch: batch.token_BL.numel()
        )
        self._ended = time.perf_counter()

    def score(self, record: pa.RecordBatch) -> pa.RecordBatch:
        """The record with the teacher's signal: `teacher_server.scorer.Scorer`."""
        return to_arrow(self.opinion(from_arrow(record)))

    def opinion(self, batch: TrajectoryBatch) -> TrajectoryBatch:
        """`batch` with the teacher's signal, scored together with whatever else is waiting.

        Raises:
            InputError: the batch is of other tokens than the teacher's, or of conditions that its
                table lacks.
            Diverged: the teacher's hidden vectors are not finite.
        """
        require_same_spec(self._backbone.spec, batch.spec, us="the teacher", them="the record")
        if self._conditions is not None:
            self._conditions.require_known(batch.teacher_condition_B)
        return self._batcher.call(batch)

    def _score_all(self, batches: list[TrajectoryBatch]) -> list[TrajectoryBatch]:
        started, waiting = time.perf_counter(), self._batcher.waiting()
        joined = peeked(concatenate(batches), self._config.peek).to(self._device)
        models = self._backbone, self._head
        signal = signal_columns(
            self._config, *models, joined, self._conditions, entropy=self._entropy
        )
        columns = {name: value.cpu() for name, value in signal.items()}
        before, self._ended = self._ended, time.perf_counter()
        took = self._ended - started
        facts = {
            "head": self._head_digest,
            "teacher_seconds": f"{took * len(batches[0]) / len(joined):.6f}",
            "teacher_busy": f"{took / (self._ended - before):.6f}",
            "teacher_waiting": str(waiting),
        }
        scored, first = [], 0
        for batch in batches:
            rows = slice(first, first + len(batch))
            own = {name: value[rows] for name, value in columns.items()}
            scored.append(batch.scored(batch.signal | own, facts))
            first += len(batch)
        return scored


def peeked(batch: TrajectoryBatch, share: float) -> TrajectoryBatch:
    """With the data's codes as what is read in the first slots of the student's rows.

    Raises:
        InputError: the rows do not have them.
    """
    if not share:
        return batch
    if batch.target_token_BL is None:
        raise InputError(
            "teacher.peek lets the teacher read the data's codes, but a record came without them; "
            "leave rollout.keep_target to the run, or set teacher.peek to 0"
        )
    slots = math.ceil(share * batch.spec.length)
    seen_BL = batch.on_policy_B[:, None] & (torch.arange(batch.spec.length) < slots)
    return replace(batch, input_token_BL=torch.where(seen_BL, batch.target_BL, batch.input_BL))


@torch.no_grad()
def signal_columns(
    config: TeacherConfig,
    backbone: Backbone,
    head: nn.Linear,
    batch: TrajectoryBatch,
    conditions: ConditionTables | None = None,
    *,
    entropy: bool = True,
) -> dict[str, Tensor]:
    """What the teacher says of every token, each (B, L, ...): the signal's columns, and `entropy`,
    which takes a pass through the head and can be left out where nobody reads it.

    Everything is on one device; `head` is in float32, whatever the backbone is in.

    Raises:
        Diverged: hidden vectors are not finite.
    """
    hidden_BLC = guided_features(
        backbone, batch, config.guidance, conditions, vectors=config.prefix == "vectors"
    ).float()
    if not is_finite(hidden_BLC):
        raise Diverged(
            f"the teacher's hidden vectors are not finite for images {_range(batch.id_B)}; "
            "check teacher.weights and teacher.guidance, or set teacher.dtype=float32"
        )
    signal = config.signal.encode(hidden_BLC, head)
    if entropy:
        signal["entropy"] = config.signal.entropy(signal, hidden_BLC, head)
    return signal


def _range(id_B: Tensor) -> str:
    return f"{int(id_B.min())} to {int(id_B.max())}"


def guided_features(
    backbone: Backbone,
    batch: TrajectoryBatch,
    guidance: Guidance | None,
    conditions: ConditionTables | None = None,
    *,
    vectors: bool = False,
) -> Tensor:
    """Guided post-norm h_BLC: u + s (h_c - h_u), s by step; rows of the null class stay.

    The teacher reads what the student reads, `batch.input_BL`, or with `vectors` the code vectors
    of rows that have some; whoever asks for the probability of a code asks for that of
    `batch.token_BL`. It resolves what it alone may know, where a row has an
    id of that, and else what the student resolves, by default the class. What a whole group reads
    alike is read once.
    """
    if (size := _alike(batch)) > 1:
        firsts = batch.rows(slice(None, None, size))
        once = guided_features(backbone, firsts, guidance, conditions, vectors=vectors)
        return once.repeat_interleave(size, 0)
    table, id_B = ClassConditions(backbone.spec.num_classes), batch.label_B
    if conditions is not None:
        table = conditions.shared
        if conditions.teacher_only is not None and batch.teacher_condition_B is not None:
            table, id_B = conditions.teacher_only, batch.teacher_condition_B
    scales = guidance.scales(batch.plan, backbone.guidance_rule) if guidance else ()
    if all(scale == 1 for scale in scales):
        return _features(backbone, table.resolve(id_B), batch, vectors)
    null_B = torch.full_like(id_B, table.null)
    conditional, unconditional = _both_branches(backbone, batch, table, (id_B, null_B), vectors)
    scale_L1 = scale_per_slot(scales, batch.plan)[:, None].to(conditional.device)
    # For a row whose label is the null class both passes agree, so the rule leaves it as it is.
    return guide(conditional, unconditional, scale_L1)


def _alike(batch: TrajectoryBatch) -> int:
    """How many neighbours read the same, throughout: a group's size, or 1."""
    size = int(batch.facts.get("group_size", 1))
    if size == 1 or batch.group_B is None or batch.input_token_BL is None or len(batch) % size:
        return 1
    for value in (batch.group_B, batch.label_B, batch.input_token_BL, batch.plan.order_BL):
        of_groups = value.unflatten(0, (-1, size))
        if not torch.equal(of_groups, of_groups[:, :1].expand_as(of_groups)):
            return 1
    return size


def _both_branches(
    backbone: Backbone,
    batch: TrajectoryBatch,
    table: Conditions,
    ids: tuple[Tensor, Tensor],
    vectors: bool,
) -> tuple[Tensor, Tensor]:
    """h_BLC of the conditional and of the null branch.

    No row sees another, so one pass or two give the same numbers; kernels may round differently
    (on the CPU they were equal to the bit at all sizes of `benchmarks.teacher`).
    """
    if batch.input_BL.numel() > JOINED_TOKENS:
        first, second = (_features(backbone, table.resolve(i), batch, vectors) for i in ids)
        return first, second
    twice = concatenate([batch, batch])
    hidden = _features(backbone, table.resolve(torch.cat(ids)), twice, vectors)
    return hidden[: len(batch)], hidden[len(batch) :]


def _features(
    backbone: Backbone, condition: Tensor, batch: TrajectoryBatch, vectors: bool
) -> Tensor:
    """One pass over what is read of the rows, see `guided_features`."""
    if vectors and batch.vector_BLD is not None:
        return backbone.features_of(condition, batch.vector_BLD, batch.plan)
    return backbone.features(condition, batch.input_BL, batch.plan)
