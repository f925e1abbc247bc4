"""What a method of a study may be: the tables of its own, and how they go together."""

from collections.abc import Mapping
from typing import Any

from common.models.backbone import BackboneConfig
from common.models.one_pass import OnePassConfig
from deploy.config import RunConfig
from deploy.stages.draw import way_names
from deploy.study.analysis.results import REFERENCES
from learner.alternating_config import AlternatingConfig

OWN = frozenset({"objective", "contexts", "rollout", "teacher", "scorers", "buffer", "learner"})
"""Sections of a run that a method may change; everything else is the shared start."""
PARTLY = {
    "models": frozenset({"student"}),
    "evaluate": frozenset({"steps", "inserted", "classifier"}),
}
"""Of these it may change some: its student, where that has one pass and begins as the teacher; in
how many passes that draws, and the classifier that its own loss looks through."""
LINKS = ("like", "after")
"""Keys that name another method."""
BUDGETED = frozenset({"steps", "global_batch_size", "weights", "weights_ema"})
"""Fields of [learner] that are the study's, equal for all methods."""


def require_own(name: str, tree: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    """Refuse a method's name, or tables that are not its own.

    Raises:
        ValueError: the first of them, with what it may be.
    """
    if name in REFERENCES or not name.replace("_", "").replace("-", "").isalnum():
        raise ValueError(
            f"a method is called {name!r}; use letters, digits, - and _, and another name "
            f"than {' and '.join(sorted(REFERENCES))}"
        )
    strange = sorted(tree.keys() - OWN - PARTLY.keys() - {*LINKS})
    for section, some in PARTLY.items():
        strange += sorted(f"{section}.{key}" for key in tree.get(section, {}) if key not in some)
    if strange:
        some = (f"{section}.{key}" for section, keys in PARTLY.items() for key in keys)
        raise ValueError(
            f"methods.{name} sets {strange[0]!r}, which is part of the shared start; a "
            f"method may set {', '.join(sorted({*OWN, *some}))}; put the rest under [set]"
        )
    budgeted = sorted(BUDGETED & tree.get("learner", {}).keys())
    if budgeted:
        raise ValueError(
            f"methods.{name}.learner sets {budgeted[0]!r}, which must be equal for all "
            "methods; put it under [budget] or [set.learner]"
        )
    for link in LINKS:
        if tree.get(link, name) not in known:
            raise ValueError(
                f"methods.{name} is {link} {tree[link]!r}, but there is no such method"
            )


def require_student(start: RunConfig, run: RunConfig) -> None:
    """Refuse a student of a method's own that would have to be trained before.

    Raises:
        ValueError: it has more than one pass.
    """
    student = run.models.student
    if isinstance(student, BackboneConfig) and student != start.models.student:
        raise ValueError(
            f"models.student.kind is {student.kind}, which is pretrained and so part of the shared "
            "start; put it under [set], or choose a student of one pass"
        )


def require_first(run: RunConfig, first: RunConfig | None, start: RunConfig) -> None:
    """Refuse a second stage without its first, or with one of another student.

    Raises:
        ValueError: a key to mend.
    """
    objective = run.objective
    if first is None:
        if isinstance(objective, AlternatingConfig) and start.learner.weights is None:
            raise ValueError(
                f"objective.kind={objective.kind} begins with what another method's student "
                'learned, but after is not set; name that method, as in after = "dd2_gts"'
            )
    elif run.models.student != first.models.student:
        raise ValueError(
            f"after names a method with another student (kind {first.models.student.kind}, here "
            f"{run.models.student.kind}); give both the same models.student"
        )


def is_one_pass(run: RunConfig) -> bool:
    return isinstance(run.models.student, OnePassConfig)


def row_names(method: str, run: RunConfig) -> tuple[str, ...]:
    """Names of a method's rows: its own, and one for each further way its student draws in."""
    return tuple(f"{method}{way}" for way in way_names(run))
