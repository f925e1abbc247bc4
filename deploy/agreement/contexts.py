"""What contexts must agree on with the student, the tokens and the objective."""

from collections.abc import Callable

from common.config.plugins import PluginConfig
from common.exchange.provenance import is_on_policy
from common.models.backbone import BackboneConfig
from common.spec import SequenceSpec
from learner.objective import ObjectiveConfig
from rollout.context import ContextsConfig
from rollout.forced import ForcedContext
from rollout.prefix import PrefixDistribution
from rollout.sampler import SamplingConfig


def require_rows(
    contexts: ContextsConfig, student: PluginConfig, describe: Callable[[], SequenceSpec]
) -> None:
    """Refuse prefixes of whole rows where there are none; `describe` says what tokens there are.

    Raises:
        ValueError: the student does not decode row by row.
        InputError: no row ends where a prefix may.
    """
    for kind, source in contexts.sources.items():
        if not isinstance(source, PrefixDistribution) or source.align == "none":
            continue
        if not (isinstance(student, BackboneConfig) and student.has_rows):
            raise ValueError(
                f"contexts.sources.{kind}.align is {source.align}, but a {student.kind} does "
                "not decode row by row; set it to none"
            )
        source.lengths(describe())


def require_guesses(contexts: ContextsConfig, student: PluginConfig, teacher: PluginConfig) -> None:
    """Refuse a student that cannot guess ahead for the teacher.

    Raises:
        ValueError: one of the two does not decode slot by slot in raster order.
    """
    for source in contexts.used:
        for role, family in (("student", student), ("teacher", teacher)):
            if source.guesses and not (isinstance(family, BackboneConfig) and family.has_rows):
                raise ValueError(
                    f"contexts.sources.{source.kind}.draft_tokens is {source.guesses}, but "
                    f"models.{role}.kind is {family.kind}, which does not decode slot by slot in "
                    "raster order, so that nothing can be guessed ahead; set it to 0"
                )


def require_passes(
    contexts: ContextsConfig, student: PluginConfig, describe: Callable[[], SequenceSpec]
) -> None:
    """Refuse sources that the student cannot make rows of by whole passes.

    Raises:
        ValueError: it needs one pass for an image, or has no scales where there must be some.
    """
    for source in contexts.used:
        if not isinstance(source, ForcedContext):
            continue
        if not isinstance(student, BackboneConfig):
            raise ValueError(
                f"contexts.sources.{source.kind} reads data by a student that decodes token by "
                f"token, but models.student.kind is {student.kind}; drop that source"
            )
        if source.needs_scales and not describe().scales:
            raise ValueError(
                f"contexts.sources.{source.kind} reads one scale and predicts the next, but the "
                "tokens are of one raster; use a tokenizer of several scales, or drop that source"
            )


def require_labels(contexts: ContextsConfig, objective: ObjectiveConfig) -> None:
    """Refuse samples where labels are learned, and labels where samples are.

    Raises:
        ValueError: names the source and the objective.
    """
    for source in contexts.used:
        if not objective.uses(source.policy) or not is_on_policy(source.policy):
            continue
        labels = isinstance(source, ForcedContext) and source.has_labels
        if labels and not objective.learns_labels:
            raise ValueError(
                f"contexts.sources.{source.kind}.target gives codes to be learned, but "
                f"objective.kind={objective.kind} learns from its own samples what a teacher says "
                "of them; set target to teacher, or objective.kind to sar"
            )
        if objective.learns_labels and not labels:
            raise ValueError(
                f"objective.kind={objective.kind} takes the codes of the student's rows for "
                f"labels, but contexts.sources.{source.kind} has samples; drop it, or of stagger "
                "set target to own, data or requantised"
            )


def require_exact(contexts: ContextsConfig, objective: ObjectiveConfig) -> None:
    """Refuse rows of another law where a ratio of probabilities is learned from.

    Raises:
        ValueError: names the source and the objective.
    """
    if "behaviour" not in objective.columns:
        return
    for source in contexts.used:
        if is_on_policy(source.policy) and source.law(SamplingConfig()) != "exact":
            raise ValueError(
                f"objective.kind={objective.kind} corrects by the probability with which the "
                f"student itself drew a code, but the rows of contexts.sources.{source.kind} were "
                "not drawn from what it says behind them; drop that source, or choose another "
                "objective"
            )


def require_one_input(contexts: ContextsConfig, objective: ObjectiveConfig) -> None:
    """Refuse samples that were drawn behind themselves where one pass must give all of a group.

    Raises:
        ValueError: names the sources and the objective.
    """
    if not objective.needs_one_input:
        return
    others = [
        source.kind
        for source in contexts.used
        if not (isinstance(source, ForcedContext) and source.shares_input)
    ]
    if others:
        raise ValueError(
            f"objective.kind={objective.kind} learns from draws of one pass, but contexts.sources "
            f"has {', '.join(others)}; have contexts.sources.parallel alone (ratio 0 takes another "
            "source out)"
        )
