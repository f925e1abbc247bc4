"""What a run's sections must agree on where the student is rewarded."""

from collections.abc import Mapping

from common.config.plugins import kinds, load_plugin
from common.data.token_source import TokenSourceConfig
from common.exchange.provenance import STUDENT
from learner.objective import ObjectiveConfig
from rollout.config import RolloutConfig
from rollout.context import ContextsConfig
from rollout.prefix import PrefixDistribution
from teacher_server.reward import ComparedConfig
from teacher_server.scorer import ScorerConfig

SCORERS = "teacher_server.scorers"


def require_rewards(
    objective: ObjectiveConfig, scorers: Mapping[str, ScorerConfig], rollout: RolloutConfig
) -> None:
    """Refuse rewards that nobody gives, or that nobody could compare.

    Raises:
        ValueError: a part is no scorer's, two scorers write it, or rows have no group.
    """
    written = [name for scorer in scorers.values() for name in scorer.sequence_columns]
    twice = sorted({name for name in written if written.count(name) > 1})
    if twice:
        raise ValueError(
            f"scorers has several tables that write {', '.join(twice)}; keep one of each kind"
        )
    weights = objective.rewarded()
    if not weights:
        return
    if missing := [name for name in weights if name not in written]:
        known = ", ".join(name for name in written if not name.endswith("_failed"))
        raise ValueError(
            f"objective.rewards has {', '.join(missing)}, but no scorer writes that (they write "
            f"{known or 'nothing of whole rows'}); {_remedy(missing[0])}"
        )
    if rollout.group.size < 2:
        raise ValueError(
            f"objective.kind={objective.kind} compares samples of one condition, but "
            "rollout.group.size is 1; set it to 4 or 8"
        )
    if rollout.replay is not None:
        raise ValueError(
            f"objective.kind={objective.kind} learns from the student's newest samples, but "
            "rollout.replay reads old ones; leave it out"
        )


def settled_targets(
    scorers: Mapping[str, ScorerConfig], tokens: TokenSourceConfig
) -> dict[str, ScorerConfig]:
    """The tables with what they leave to the run: what rows are compared with.

    Raises:
        ValueError: one asks for pixels that there are not.
    """
    found = dict(scorers)
    for name, scorer in scorers.items():
        if isinstance(scorer, ComparedConfig):
            try:
                found[name] = scorer.settled(has_pixels=tokens.has_pixels)
            except ValueError as error:
                raise ValueError(f"scorers.{name}.{error}") from None
    return found


def _remedy(name: str) -> str:
    """Which kind writes that number."""
    every = {kind: load_plugin(SCORERS, kind).Config for kind in kinds(SCORERS)}
    writing = [kind for kind, config in every.items() if name in config.sequence_columns]
    if writing:
        return f'add a table to scorers, e.g. [scorers.{name}] with kind = "{writing[0]}"'
    every_name = dict.fromkeys(
        name for config in every.values() for name in config.sequence_columns
    )
    rewards = ", ".join(name for name in every_name if not name.endswith("_failed"))
    return f"choose one of {rewards}, or write a scorer of that name"


def require_targets(scorers: Mapping[str, ScorerConfig], contexts: ContextsConfig) -> None:
    """Refuse to compare with data sequences that rows have nothing to do with.

    Raises:
        ValueError: a source lets the student begin with nothing.
    """
    asking = [name for name, scorer in scorers.items() if scorer.reads_target]
    for kind, source in contexts.sources.items():
        free = isinstance(source, PrefixDistribution) and source.max_prefix == 0
        if asking and free and source.ratio and source.policy == STUDENT:
            raise ValueError(
                f"scorers.{asking[0]} compares rows with the data sequence that they began as, but "
                f"contexts.sources.{kind}.max_prefix is 0, so they begin with nothing; raise it"
            )
