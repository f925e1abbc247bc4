"""The contract of a distillation objective: a config, and what it is built of.

`ObjectiveConfig.build(resources)` makes the `Objective`: a loss per token of a chunk, and if it
likes one per whole sequence. Which tokens count, and how much, it says beforehand for a whole
batch. Everything else (chunking, denominators across micro-batches and ranks) is shared.

What needs more than one token at a time has four ways to get it, and each stays exact under any
split into chunks, micro-batches and ranks:

- numbers from the whole sequence or batch (returns, a median) are computed in `token_weights`,
  where whole sequences and all ranks are at hand, and come back per token in `TokenChunk.column`
  or per sequence in `SequenceRows.sequence_column`;
- tokens that must be compared with one another share a group, and groups are never cut;
- what is a function of a whole sequence with gradient (its decoded image) is `sequence_loss`;
- numbers from step to step live in an `ObjectiveState`, fed by `diagnostics` and `update_state`.

Shape letters: B sequences, L slots, N tokens of a chunk, C width, V codes.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import model_validator
from torch import Tensor

from common.config.plugins import PluginConfig, kinds, load_plugin
from common.errors import InputError
from common.exchange.provenance import TEACHER, Policy, is_on_policy
from common.exchange.schedule import Phase
from common.exchange.trajectory import TrajectoryBatch
from common.models.backbone import Backbone, BackboneConfig
from learner.divergence import Divergence, filled
from learner.process_group import ProcessGroup
from learner.reading import Reading as Reading
from learner.reading import SequenceRows as SequenceRows
from learner.reading import Student as Student
from learner.reading import TokenChunk as TokenChunk
from learner.resources import Resources
from learner.teacher_targets import Quantity
from learner.token_weights import ObjectiveState, TokenWeights


class ObjectiveConfig(PluginConfig, ABC):
    """The [objective] section: what is known of a loss before anything is loaded."""

    needs_teacher: ClassVar[bool] = True
    """Whether losses look at what the teacher says (`asks_teacher`, where settings decide)."""
    uses_data: ClassVar[bool] = True
    """Whether sequences of data and of the teacher have a loss."""
    uses_rollouts: ClassVar[bool] = True
    """Whether the student's samples have a loss."""
    is_scored: ClassVar[bool] = True
    """Whether records pass the teacher on their way; what it says is for diagnostics as well."""
    needs_pairs: ClassVar[bool] = False
    """Whether rows must be tokens that known noise was carried to (sampling.flow)."""
    needs_secret: ClassVar[bool] = False
    """Whether the teacher must know something that the student does not."""
    reads_target: ClassVar[bool] = False
    """Whether it asks for the data sequences that rows began as (`target_token`)."""
    learns_labels: ClassVar[bool] = False
    """Whether the codes of the student's rows are labels, which it is to say, and not samples."""
    needs_one_input: ClassVar[bool] = False
    """Whether samples of a condition must be drawn from one pass over the same sequence."""
    students: ClassVar[type[PluginConfig]] = BackboneConfig
    """Configs of the students that it trains."""
    with_dropout: ClassVar[bool] = True
    """Whether the student's dropout is on while it is trained; it never is while it samples."""
    columns: ClassVar[tuple[str, ...]] = ()
    """Names in `TokenChunk.column`."""
    diagnosed: ClassVar[tuple[str, ...]] = ()
    """Names that `diagnostics` may return."""

    reduction: Literal["suffix_mean", "seq_mean", "weight_norm"] = "suffix_mean"
    """Divide by all suffix tokens, by each sequence's, or by the sum of weights (docs/method.md,
    "Loss")."""

    @model_validator(mode="before")
    @classmethod
    def _keep_defaults_of_divergences(cls, values: Any) -> Any:
        """divergence.alpha=0.2 alone changes no name: the objective's own default stays."""
        if not isinstance(values, dict):
            return values
        own = {n: f.default for n, f in cls.model_fields.items()}
        own = {n: default for n, default in own.items() if isinstance(default, Divergence)}
        return values | {n: filled(default, values.get(n)) for n, default in own.items()}

    def asks_teacher(self) -> bool:
        """`needs_teacher`, with these settings."""
        return self.needs_teacher

    def wants_scores(self) -> bool:
        """`is_scored`, with these settings."""
        return self.is_scored

    def reads_entropy(self) -> bool:
        """Whether `token_weights` or `sequence_loss` may look at `entropy` in batch.signal.

        Where neither the objective nor a scorer does, the teacher saves a pass through its head.
        """
        return self.asks_teacher()

    def phases(self) -> tuple[Phase, ...]:
        """When the student changes, where it does not in every step: it is trained in turns with
        something else, from samples of its newest version alone."""
        return ()

    def within(self) -> tuple["ObjectiveConfig", ...]:
        """Objectives that it is made of; what they need, it needs."""
        return ()

    def observes(self) -> tuple[str, ...]:
        """Names that `diagnostics` may return."""
        return sum((part.observes() for part in self.within()), self.diagnosed)

    def rewarded(self) -> Mapping[str, float]:
        """Weights of what scorers say of whole rows, where the loss compares samples of one
        condition by it."""
        return {}

    def resources(self) -> frozenset[str]:
        """Names in learner/resources.py of what `build` asks for; nothing else is loaded."""
        return frozenset[str]().union(*(part.resources() for part in self.within()))

    def freeze(self, student: Student) -> None:
        """Take parameters that are not trained out of training; by default none."""
        for part in self.within():
            part.freeze(student)

    @abstractmethod
    def build(self, resources: Resources) -> "Objective":
        """The objective, with what it owns.

        Raises:
            InputError: a file of the run does not allow what the config asks for.
        """

    def check(self, shares: Mapping[Policy, float]) -> None:
        """Refuse a mixture of contexts (probability by policy) that the objective can't use.

        Raises:
            InputError: no context has a loss, or the mixture defeats the objective.
        """
        used = [policy for policy, share in shares.items() if share and self.uses(policy)]
        if not used:
            kind = "data or teacher sequences" if self.uses_data else "rollouts"
            raise InputError(
                f"objective.kind={self.kind} learns from {kind} only, but contexts.sources has "
                f"{', '.join(p for p, share in shares.items() if share)}; add such a source"
            )
        if "behaviour" in self.columns and shares.get(TEACHER):
            raise InputError(
                f"objective.kind={self.kind} corrects by the probability with which the student "
                "itself drew a code, but one of contexts.sources holds samples of the teacher; "
                "drop that source, or choose another objective"
            )

    def check_student(self, student: PluginConfig) -> None:
        """Refuse a student that the objective does not train.

        Raises:
            InputError: it decodes in one pass and should not, or the other way round.
        """
        if not isinstance(student, self.students):
            packages = "common.models.backbones", "common.models.generators"
            known = {kind: load_plugin(packages, kind).Config for kind in kinds(packages)}
            fitting = [kind for kind, its in known.items() if issubclass(its, self.students)]
            raise InputError(
                f"objective.kind={self.kind} trains a student of kind {', '.join(fitting)}, but "
                f"models.student.kind is {student.kind}; choose another one of the two"
            )

    def check_rows(self, batch: TrajectoryBatch) -> None:
        """Refuse samples whose probabilities the objective cannot correct by.

        Raises:
            InputError: it reads with which probability the student drew a code, and that was not
                the student's own.
        """
        if "behaviour" not in self.columns:
            return
        for policy, law, context in zip(batch.policy, batch.law, batch.context, strict=True):
            if is_on_policy(policy) and law != "exact":
                raise InputError(
                    f"objective.kind={self.kind} corrects by the probability with which the "
                    f"student itself drew a code, but rows of context {context} were drawn from "
                    "another distribution; sample them without filters, guidance or ZipAR"
                )

    def uses(self, policy: Policy) -> bool:
        """Whether rows that `policy` sampled have a loss."""
        return self.uses_rollouts if is_on_policy(policy) else self.uses_data


class Objective(ABC):
    """A config with its resources; holds nothing that changes from step to step."""

    @property
    @abstractmethod
    def config(self) -> ObjectiveConfig:
        """What it was built from."""

    def reads(self) -> Mapping[str, Quantity]:
        """Numbers of the teacher's distribution that `token_weights` wants in batch.signal; what
        the record holds under that name already is not computed again."""
        return {}

    def token_weights(
        self, batch: TrajectoryBatch, state: ObjectiveState, ranks: ProcessGroup
    ) -> TokenWeights:
        """Weight of every token, from this rank's share of the step and what all ranks know.

        All ranks make the same sums in the same order, whatever their rows hold.

        Raises:
            InputError: the first rollouts leave nothing to learn from (learner/gate.py).
        """
        support_BL = self.support(batch)
        return TokenWeights(support_BL.float(), support_BL, support_BL)

    def support(self, batch: TrajectoryBatch) -> Tensor:
        """Slots with a loss: all of a data row, the suffix of any other."""
        used_B = batch.rows_where(self.config.uses)
        return (batch.suffix_BL | batch.data_B[:, None]) & used_B[:, None]

    def read(self, student: Student, condition_B: Tensor, batch: TrajectoryBatch) -> Reading:
        """One pass of the student over a micro-batch; `condition_B` is what it is given for the
        labels. By default a backbone's teacher-forced pass over the tokens."""
        if not isinstance(student, Backbone):
            raise ValueError(
                f"objective.kind={self.config.kind} trains students that decode token by token, "
                f"not a {type(student).__name__}"
            )
        return Reading(student.features(condition_B, batch.input_BL, batch.plan))

    @abstractmethod
    def token_loss(self, chunk: TokenChunk) -> Tensor:
        """Unweighted loss_N of the chunk's tokens, in nats or what the objective likes."""

    def sequence_loss(self, rows: SequenceRows) -> Tensor:
        """Unweighted loss_B of whole sequences, added to the token loss as its mean over all rows
        of the step (learner/reduction.py); an objective that leaves this alone has none.

        A row's loss depends on that row alone, so any split gives the same; what compares rows is
        computed in `token_weights` and comes back in `sequence_column`.
        """
        raise NotImplementedError(f"objective.kind={self.config.kind} has no sequence_loss")

    @property
    def has_sequence_loss(self) -> bool:
        return type(self).sequence_loss is not Objective.sequence_loss

    def parts(self) -> Mapping[str, "Objective"]:
        """Terms that add up to this one, two by name, the weights of which depend on how large
        their gradients are: profiled steps say that. They are given what `token_weights` found."""
        return {}

    def diagnostics(self, chunk: TokenChunk) -> dict[str, Tensor]:
        """Numbers of each token to plot and to remember; of rollouts or data, or of both.

        Called without gradient, on every eighth token alone (learner/gathered_tokens.py).
        """
        return {}

    def update_state(self, state: ObjectiveState, mean: Mapping[str, float]) -> None:
        """After a step with rollouts: means over their tokens and all ranks.

        Of `divergence` and `student_entropy`, and of what was observed.
        """
        return

    def owned(self) -> dict[str, dict[str, Any]]:
        """What a run must never change, by its name in the run folder: {"digest": str, tensors}.

        It goes into every snapshot, and a run with another digest refuses to go on from it.
        """
        return {}


class PlainObjective(ObjectiveConfig, Objective):
    """An objective that needs no resources is its own config."""

    @property
    def config(self) -> ObjectiveConfig:
        return self

    def reads_entropy(self) -> bool:
        """Only what an objective writes itself can look at it."""
        weighs = type(self).token_weights is not Objective.token_weights
        return self.asks_teacher() and (weighs or self.has_sequence_loss)

    def build(self, resources: Resources) -> Objective:
        return self
