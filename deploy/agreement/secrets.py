"""What a run's sections must agree on where the teacher knows more than the student."""

from common.exchange.condition import ConditionsConfig
from learner.objective import ObjectiveConfig
from teacher_server.teacher import TeacherConfig


def require_secret(
    objective: ObjectiveConfig, teacher: TeacherConfig, conditions: ConditionsConfig
) -> None:
    """Refuse a privileged teacher without a privilege.

    Raises:
        ValueError: neither its table nor what it reads tells it more.
    """
    if objective.needs_secret and not teacher.peek and conditions.teacher_table(1) is None:
        raise ValueError(
            f"objective.kind={objective.kind} learns from a teacher that knows more, but "
            f"conditions.kind={conditions.kind} has nothing for it alone and teacher.peek is 0; "
            "set conditions.kind=hidden_classes, or teacher.peek to the share of the image that it "
            "sees, or choose objective.kind=gkd"
        )
