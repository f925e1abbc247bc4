"""What a run's sections must agree on where the teacher knows more than the student."""

from common.exchange.condition import ConditionsConfig
from learner.objective import ObjectiveConfig
from rollout.context import ContextsConfig
from teacher_server.teacher import TeacherConfig


def require_secret(
    objective: ObjectiveConfig,
    teacher: TeacherConfig,
    conditions: ConditionsConfig,
    contexts: ContextsConfig,
) -> None:
    """Refuse a privileged teacher without a privilege, or one that samples where the student does.

    Raises:
        ValueError: neither its table nor what it reads tells it more; or rollout workers, who do
            not know its table, would sample it.
    """
    has_table = conditions.teacher_table(1) is not None
    if has_table and contexts.teacher_sampling is not None:
        raise ValueError(
            f"conditions.kind={conditions.kind} has a table for the teacher alone, but rollout "
            "workers, which do not know it, are to sample from the teacher; set "
            "contexts.sources.teacher.source=dataset"
        )
    needing = [each for each in (objective, *objective.within()) if each.needs_secret]
    if needing and not teacher.peek and not has_table:
        where = "objective" if needing[0] is objective else "objective.inner"
        raise ValueError(
            f"{where}.kind={needing[0].kind} learns from a teacher that knows more, but "
            f"conditions.kind={conditions.kind} has nothing for it alone and teacher.peek is 0; "
            "set conditions.kind=hidden_classes, or teacher.peek to the share of the image that it "
            f"sees, or choose {where}.kind=gkd"
        )
