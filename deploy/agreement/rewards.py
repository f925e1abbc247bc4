"""What a run's sections must agree on where the student is rewarded."""

from collections.abc import Mapping

from common.exchange.provenance import STUDENT
from learner.objective import ObjectiveConfig
from rollout.config import RolloutConfig
from rollout.context import ContextsConfig
from rollout.prefix import PrefixDistribution
from teacher_server.scorer import ScorerConfig


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
            f"{known or 'nothing of whole rows'}); add a table to scorers, e.g. "
            f'[scorers.{missing[0]}] with kind = "{missing[0]}"'
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
