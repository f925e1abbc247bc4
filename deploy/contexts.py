"""What contexts must agree on with the student and the tokens."""

from collections.abc import Callable

from common.config.plugins import PluginConfig
from common.models.backbone import BackboneConfig
from common.spec import SequenceSpec
from rollout.context import ContextsConfig
from rollout.forced import ForcedContext
from rollout.prefix import PrefixDistribution


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
