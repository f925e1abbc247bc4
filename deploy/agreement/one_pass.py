"""What a run's sections must agree on where the student needs one pass for an image."""

from collections.abc import Mapping

from common.exchange.condition import ConditionsConfig
from common.models.backbone import BackboneConfig
from common.models.distilled_config import DistilledDecoderConfig
from common.models.one_pass import OnePassConfig
from common.models.velocity_model import VelocityModelConfig
from common.spec import SequenceSpec
from deploy.sections import SampleConfig
from learner.config import LearnerConfig
from learner.objective import ObjectiveConfig
from rollout.config import RolloutConfig
from rollout.context import ContextConfig
from rollout.evaluation.config import EvaluateConfig
from rollout.prefix import PrefixDistribution
from teacher_server.teacher import TeacherConfig


def require_steps(
    student: OnePassConfig, spec: SequenceSpec, evaluate: EvaluateConfig, sample: SampleConfig
) -> None:
    """Refuse passes that the student cannot draw in.

    Raises:
        ValueError: more than it was trained at, or than its teacher takes.
    """
    wanted = {"evaluate": max(evaluate.steps), "sample": sample.steps or 1}
    parts = {"evaluate": evaluate.inserted, "sample": sample.inserted}
    if isinstance(student, DistilledDecoderConfig):
        student.check(spec)
        known = len(student.positions)
        why = (
            f"but models.student.positions has {known}: a student takes as many steps as it was "
            "trained at; lower it, or train with more"
        )
        for key, part in parts.items():
            if part and not (part[0] < part[1] and part[1] in student.positions):
                raise ValueError(
                    f"{key}.inserted is {list(part)}, but models.student.positions is "
                    f"{list(student.positions)}; the teacher draws from the first of the two up to "
                    "a position that is trained"
                )
    else:
        known = len(spec.scales) or spec.length
        why = (
            f"but a sequence has {known}: beside its one pass, a {student.kind} has the last ones "
            "drawn by the teacher; lower it"
        )
        for key, part in parts.items():
            if part:
                raise ValueError(
                    f"{key}.inserted is {list(part)}, but a {student.kind} cannot go on behind the "
                    f"teacher; with {key}.steps the teacher draws the last ones"
                )
    for key, steps in wanted.items():
        if steps > known:
            raise ValueError(f"{key}.steps is {steps}, {why}")


def require_classes(why: str, rollout: RolloutConfig, conditions: ConditionsConfig) -> None:
    """Refuse rows that do not belong to their class; `why` begins the sentence.

    Raises:
        ValueError: classes are dropped, or labels stand for something else.
    """
    if rollout.class_dropout:
        raise ValueError(
            f"{why}, which belong to their class, but rollout.class_dropout is "
            f"{rollout.class_dropout:g}; set it to 0"
        )
    if conditions.kind != "classes":
        raise ValueError(
            f"{why} of classes, but conditions.kind is {conditions.kind}; set it to classes"
        )


def require_pairs(objective: ObjectiveConfig, sources: Mapping[str, ContextConfig]) -> None:
    """Refuse sources without noise, where the objective learns from it.

    Raises:
        ValueError: one has no flow.
    """
    for kind, source in sources.items():
        if source.ratio and not source.has_pairs:
            raise ValueError(
                f"{pairs_of(objective)}, but contexts.sources.{kind}.sampling has no flow to make "
                "them; set sampling.flow"
            )


def pairs_of(objective: ObjectiveConfig) -> str:
    return f"objective.kind={objective.kind} learns from pairs of noise and tokens"


def require_newest(
    objective: ObjectiveConfig,
    sources: Mapping[str, ContextConfig],
    learner: LearnerConfig,
    rollout: RolloutConfig,
) -> None:
    """Refuse what keeps a learner from making the rows of its newest generator again.

    Raises:
        ValueError: rows may be stale or begin with data, or are rounded otherwise.
    """
    why = f"objective.kind={objective.kind} learns from the newest generator's own sequences"
    if rollout.replay is not None:
        raise ValueError(f"{why}, and cannot be trained on kept rollouts; leave rollout.replay out")
    if learner.max_staleness or learner.publish_every != 1:
        raise ValueError(
            f"{why}, but learner.max_staleness is {learner.max_staleness} and publish_every "
            f"{learner.publish_every}; set them to 0 and 1 (a version is published when the "
            "generator has changed)"
        )
    for kind, source in sources.items():
        if isinstance(source, PrefixDistribution) and source.ratio and source.max_prefix:
            raise ValueError(
                f"{why}, which are whole, but contexts.sources.{kind}.max_prefix is "
                f"{source.max_prefix:g}; set min_prefix and max_prefix to 0"
            )
    if learner.parallel == "fsdp":
        raise ValueError(
            f"{why} by looking through its guidance network, so every rank needs both whole, but "
            "learner.parallel is fsdp; set it to ddp"
        )
    for key, dtype in (("rollout", rollout.dtype), ("learner", learner.dtype)):
        if dtype != "float32":
            raise ValueError(
                f"{why} and makes them again, but {key}.dtype is {dtype}, which rounds otherwise; "
                "set it to float32"
            )


def require_readable(teacher: TeacherConfig, family: BackboneConfig, student: object) -> None:
    """Refuse vectors that the teacher cannot read.

    Raises:
        ValueError: teacher.prefix asks for them.
    """
    if teacher.prefix != "vectors":
        return
    if not family.reads_vectors:
        raise ValueError(
            f"teacher.prefix is vectors, but a {family.kind} reads codes; set it to codes, for the "
            "nearest ones"
        )
    if not isinstance(student, VelocityModelConfig):
        raise ValueError(
            "teacher.prefix is vectors, which only sequences of one-pass generators have; set it "
            "to codes"
        )
