"""What an objective is handed of the student: tokens of a chunk, whole sequences.

Shape letters: B sequences, L slots, N tokens of a chunk, C width, V codes.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn

from common.exchange.provenance import Policy, is_on_policy
from common.exchange.trajectory import TrajectoryBatch
from common.models.backbone import Backbone
from common.models.distilled_decoding import DistilledDecoder
from common.models.velocity_model import VelocityModel
from learner.categorical import Categorical
from learner.teacher_targets import TeacherTargets

Student = Backbone | DistilledDecoder | VelocityModel
"""What a learner trains."""


def head_of(student: Student) -> nn.Linear:
    """The output layer whose logits are of codes.

    Raises:
        ValueError: it has none, so no token of it can have a loss.
    """
    if isinstance(student, VelocityModel):
        raise ValueError(f"a {type(student).__name__} has no layer of logits")
    return student.head


@dataclass(frozen=True, slots=True)
class TokenChunk:
    """Tokens of one policy: codes, distributions of student (with gradient) and teacher."""

    policy: Policy
    """Who sampled them; objectives never see the name of a context."""
    token_N: Tensor
    student: Categorical
    teacher: Categorical | None
    column: Mapping[str, Tensor] = field(default_factory=dict)
    """The objective's own numbers per token, from `TokenWeights.column`."""
    groups: tuple[int, ...] = ()
    """Sizes of the groups in this chunk, in order, where the objective asked for groups."""

    def only(self, index_n: Tensor) -> "TokenChunk":
        """Some of the tokens; groups don't survive that."""
        teacher = None if self.teacher is None else self.teacher.only(index_n)
        column = {name: value[index_n] for name, value in self.column.items()}
        student, token_n = self.student.only(index_n), self.token_N[index_n]
        return TokenChunk(self.policy, token_n, student, teacher, column)

    @property
    def is_on_policy(self) -> bool:
        """Whether the student sampled them."""
        return is_on_policy(self.policy)

    @property
    def student_NV(self) -> Tensor:
        """The student's log-probabilities, with gradient."""
        return self.student.logprob_NV

    @property
    def required_teacher(self) -> Categorical:
        """The teacher's distribution.

        Raises:
            ValueError: the record was not scored.
        """
        if self.teacher is None:
            raise ValueError("this objective needs scored records; send them to the teacher first")
        return self.teacher

    @property
    def required_teacher_NV(self) -> Tensor:
        """The teacher's log-probabilities.

        Raises:
            ValueError: the record was not scored.
        """
        return self.required_teacher.logprob_NV

    @property
    def student_token_N(self) -> Tensor:
        """log q of the sequence's own codes, with gradient."""
        return self.student_NV.gather(-1, self.token_N[:, None])[:, 0]


@dataclass(frozen=True, slots=True)
class Reading:
    """What the student made of a micro-batch, in plan order, with gradient."""

    hidden_BLC: Tensor
    """What its head makes logits of."""
    beside: Mapping[str, Tensor] = field(default_factory=dict)
    """What else `sequence_loss` needs of the same pass, by the objective's own names."""


@dataclass(frozen=True, slots=True)
class SequenceRows:
    """Whole sequences of a micro-batch, as the student reads them; float32, without autocast."""

    batch: TrajectoryBatch
    """Conditions, ids, tokens in plan order, plan, the teacher's columns."""
    hidden_BLC: Tensor
    """The student's hidden vectors in plan order, with gradient: `head` makes logits of them."""
    student: Student
    """Itself, with gradient."""
    column: Mapping[str, Tensor]
    """The objective's own numbers per token (B, L), from `TokenWeights.column`."""
    sequence_column: Mapping[str, Tensor]
    """Its numbers per sequence (B, ...), from `TokenWeights.sequence_column`."""
    beside: Mapping[str, Tensor] = field(default_factory=dict)
    """What `Objective.read` gave beside the hidden vectors."""
    teacher: TeacherTargets | None = None
    """Who reads the teacher's columns, where the learner has one."""

    @property
    def head(self) -> nn.Linear:
        """The student's output layer, with gradient."""
        return head_of(self.student)

    @property
    def teacher_logprob_BLV(self) -> Tensor:
        """log p of all slots: B * L * V numbers at once."""
        if self.teacher is None:
            raise ValueError("this objective needs scored records; send them to the teacher first")
        column = {name: value.flatten(0, 1) for name, value in self.batch.signal.items()}
        return self.teacher.logprob(column).unflatten(0, self.batch.token_BL.shape)

    @property
    def student_BLV(self) -> Tensor:
        """log q of all slots, with gradient: B * L * V numbers at once."""
        return self.head(self.hidden_BLC).log_softmax(-1)

    def in_grid_order(self, value_BL: Tensor) -> Tensor:
        """Anything (B, L, ...) by slot to the tokenizer's order of tokens, differentiable."""
        slot_BL = self.batch.plan.order_BL.to(value_BL.device).argsort(1)
        shape = *slot_BL.shape, *[1] * (value_BL.ndim - 2)
        return value_BL.gather(1, slot_BL.view(shape).expand_as(value_BL))
