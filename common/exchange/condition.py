"""What sequences are conditioned on: rows carry ids, tables say what the ids stand for.

Every role is handed the table that all share. What only the teacher may know is a table of its own
under second ids: workers write those ids into their records and nobody but the teacher holds what
they stand for (`ConditionTables.for_student`).

Shape letters: B sequences, N conditions with the null one.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor

from common.config.plugins import PluginConfig
from common.errors import InputError

Role = Literal["teacher", "student"]


class Conditions(ABC):
    """A table of conditions with ids 0 to len - 1, the null one among them."""

    @property
    @abstractmethod
    def null(self) -> int:
        """The id of "no condition": of rows whose own was dropped, and of guidance."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def resolve(self, id_B: Tensor) -> Tensor:
        """What a backbone is given for these ids, (B, ...), on their device."""


@dataclass(frozen=True, slots=True)
class ClassConditions(Conditions):
    """The trivial table: a class is its own id, and the null class comes after the last one."""

    num_classes: int

    @property
    def null(self) -> int:
        return self.num_classes

    def __len__(self) -> int:
        return self.num_classes + 1

    def resolve(self, id_B: Tensor) -> Tensor:
        return id_B


@dataclass(frozen=True, slots=True)
class BySecondIds(Conditions):
    """What the teacher alone knows, for who asks by the ids that all share."""

    shared: Conditions
    teacher_only: Conditions
    teacher_id_N: Tensor

    @property
    def null(self) -> int:
        return self.shared.null

    def __len__(self) -> int:
        return len(self.shared)

    def resolve(self, id_B: Tensor) -> Tensor:
        return self.teacher_only.resolve(self.teacher_id_N.to(id_B.device)[id_B])


@dataclass(frozen=True)
class ConditionTables:
    """The tables of a run."""

    shared: Conditions
    """What student and teacher know."""
    teacher_only: Conditions | None = None
    """What the teacher alone knows; it then judges by this instead."""
    teacher_id_N: Tensor | None = None
    """The id in `teacher_only` that goes with every id of `shared`, int64."""

    def __post_init__(self) -> None:
        """Refuse tables that do not fit.

        Raises:
            ValueError: an id has no counterpart, one that the teacher's table lacks, or "no
                condition" has another one than itself.
        """
        if self.teacher_id_N is None:
            if self.teacher_only is not None:
                raise ValueError("a table for the teacher alone needs an id for every shared one")
            return
        if len(self.teacher_id_N) != len(self.shared):
            raise ValueError(f"{len(self.teacher_id_N)} teacher ids for {len(self.shared)} shared")
        only = self.teacher_only
        if only is None:
            return
        if lacked := _lacked(self.teacher_id_N, only):
            raise ValueError(f"{lacked}, which the teacher's own table lacks: it has {len(only)}")
        if int(self.teacher_id_N[self.shared.null]) != only.null:
            raise ValueError("a row whose condition was dropped must be null for the teacher too")

    def of(self, role: Role) -> Conditions:
        """The table by which a model of that role is trained and sampled by itself, under the ids
        that all share."""
        only, id_N = self.teacher_only, self.teacher_id_N
        if role == "student" or only is None or id_N is None:
            return self.shared
        return BySecondIds(self.shared, only, id_N)

    def for_student(self) -> "ConditionTables":
        """Without what only the teacher may know; the ids stay."""
        return replace(self, teacher_only=None)

    def require_known(self, id_B: Tensor | None) -> None:
        """Refuse second ids of a record that the teacher's table lacks.

        Raises:
            InputError: names the first of them.
        """
        only = self.teacher_only
        if only is None or id_B is None or not (lacked := _lacked(id_B, only)):
            return
        raise InputError(
            f"record holds {lacked} in teacher_condition, but the table that the teacher alone "
            f"knows has {len(only)} conditions; take the [conditions] that the record was sampled "
            "with"
        )

    def teacher_ids(self, id_B: Tensor) -> Tensor | None:
        """The second ids of rows, if there are any."""
        return None if self.teacher_id_N is None else self.teacher_id_N[id_B]


class ConditionsConfig(PluginConfig, ABC):
    """[conditions]: what the labels of the token dataset, 0 to `num_classes` - 1, are ids of.

    Whoever asks gets what he may know: the driver and scorers `tables`, all others `table`.
    """

    @abstractmethod
    def table(self, num_classes: int) -> Conditions:
        """What student and teacher know, with an id for every label and the null one.

        Raises:
            InputError: a file that it is read from is not as it should be.
        """

    def teacher_table(self, num_classes: int) -> tuple[Conditions, Tensor] | None:
        """What the teacher alone knows, and its ids for those of `table`, int64; None: nothing.

        Raises:
            InputError: as `table`.
        """
        return None

    def of(self, role: Role, num_classes: int) -> Conditions:
        """What a model of that role is trained and sampled with by itself.

        Raises:
            InputError: as `tables`.
        """
        return self.tables(num_classes).of(role)

    def tables(self, num_classes: int) -> ConditionTables:
        """Both, checked against the labels.

        Raises:
            InputError: as `table`, labels have no condition, or what the teacher alone knows does
                not go with what all share.
        """
        shared, secret = self.table(num_classes), self.teacher_table(num_classes)
        if len(shared) <= num_classes:
            raise InputError(
                f"conditions.kind={self.kind} has {len(shared)} conditions with the null one, but "
                f"the tokens have {num_classes} labels; give it one for each and a null one"
            )
        only, id_N = secret or (None, None)
        try:
            return ConditionTables(shared, only, id_N)
        except ValueError as error:
            raise InputError(
                f"conditions.kind={self.kind}, teacher_table: {error}; give every shared condition "
                "the id of one that the teacher's table has"
            ) from None


def _lacked(id_B: Tensor, table: Conditions) -> str:
    """Of ids that are not in the table, the first; empty where all are."""
    strange_n = id_B[(id_B < 0) | (id_B >= len(table))]
    return f"id {int(strange_n[0])}" if len(strange_n) else ""
