"""What one-pass students that begin as their teacher have in common, whatever method trains them
(docs/one_step.md).

Shape letters: V codes, D code width.
"""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from common.errors import InputError
from common.models.backbone import Backbone, BackboneConfig
from common.models.generator import Generator, GeneratorConfig
from common.spec import SequenceSpec, require_same_spec


class OnePassConfig(GeneratorConfig):
    """A student with its teacher's sizes, in a field `backbone`, and what is new in it."""

    unread: ClassVar[frozenset[str]] = frozenset()
    """Fields of the teacher's sizes that have no meaning here."""
    usage: ClassVar[frozenset[str]] = frozenset()
    """Own fields that say how weights are used, not what they are."""

    @property
    @abstractmethod
    def sizes(self) -> BackboneConfig:
        """The teacher's, in the field `backbone`, or its family's defaults."""

    def sized_as(self, teacher: BackboneConfig) -> Self:
        """With the teacher's sizes, without its dropout, where `backbone` was left out.

        Raises:
            ValueError: the teacher is of another family or has other sizes.
        """
        if teacher.kind != self.sizes.kind:
            raise ValueError(
                f"student is a {self.kind}, which starts from a {self.sizes.kind}, but teacher is "
                f"a {teacher.kind}; choose the kind of the teacher's family"
            )
        if getattr(self, "backbone", None) is None:
            dropped = {"dropout", "drop_path"} & type(teacher).model_fields.keys()
            return self.model_copy(
                update={"backbone": teacher.model_copy(update=dict.fromkeys(dropped, 0.0))}
            )
        skipped = {*self.unread, *teacher.training_only}
        ours, its = (sizes.model_dump(exclude=skipped) for sizes in (self.sizes, teacher))
        differing = [name for name in ours if ours[name] != its[name]]
        if differing:
            name = differing[0]
            raise ValueError(
                f"student.backbone.{name} is {ours[name]}, but the teacher's is {its[name]}; a "
                f"{self.kind} has its teacher's sizes: leave student.backbone out"
            )
        return self

    def network(self) -> dict[str, Any]:
        """What weights of the student belong to: `usage` and dropout are no part of it."""
        skipped = {*self.unread, *self.sizes.training_only}
        own = self.model_dump(mode="json", exclude={*self.usage, "backbone"})
        return own | self.sizes.model_dump(mode="json", exclude=skipped | {"kind"})


class OnePassStudent(Generator):
    """Carries the codes that its vectors mean, and can begin as a teacher."""

    def __init__(self, spec: SequenceSpec, codebook_VD: Tensor) -> None:
        super().__init__()
        if len(codebook_VD) != spec.vocab_size:
            raise InputError(
                f"the tokens have {spec.vocab_size} codes, but there are {len(codebook_VD)} code "
                "vectors; take both from one tokenizer"
            )
        self.spec, self.code_width = spec, codebook_VD.shape[1]
        self.register_buffer("codebook_VD", codebook_VD.detach().clone().float())

    @abstractmethod
    def inherited(self, teacher: Backbone) -> dict[str, Tensor]:
        """All that a student takes over, by its own names and in its own shapes.

        Raises:
            InputError: the teacher is of another family, or has other codes.
        """

    @abstractmethod
    def is_new(self, name: str) -> bool:
        """Whether no teacher has this entry of the state."""

    @torch.no_grad()
    def start_from(self, teacher: Backbone) -> None:
        """Take over all that a teacher has of this network; what is new stays as it was drawn.

        Raises:
            InputError: another family, other tokens, sizes or codes.
        """
        require_same_spec(self.spec, teacher.spec, us="the student", them="the teacher")
        ours, taken = self.state_dict(), self.inherited(teacher)
        take_over({n: v for n, v in ours.items() if not self.is_new(n)}, taken)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """The codes follow to another device, but never to another precision."""
        code_VD = self.codebook_VD
        super()._apply(fn, recurse)
        if not code_VD.is_meta:
            self.codebook_VD = code_VD.to(self.codebook_VD.device)
        return self


def take_over(wanted: Mapping[str, Tensor], taken: Mapping[str, Tensor]) -> None:
    """Copy tensors by name, all or none.

    Raises:
        InputError: one is missing, too many, or of another shape.
    """
    for name in sorted(wanted.keys() | taken.keys()):
        mine, its = (_shape(values.get(name)) for values in (wanted, taken))
        if mine != its:
            raise InputError(
                f"{name} has shape {its} in the teacher and {mine} in the student; give the "
                "student the teacher's sizes"
            )
    for name, value in taken.items():
        wanted[name].copy_(value)


def require_codes(ours_VD: Tensor, theirs_VD: Tensor, *, of: str = "the teacher") -> None:
    """Refuse a teacher (or tokenizer) with other codes than those that noise was carried to.

    Raises:
        InputError: they differ.
    """
    if ours_VD.shape != theirs_VD.shape or not torch.equal(ours_VD.cpu(), theirs_VD.cpu().float()):
        raise InputError(
            f"the student's codebook ({len(ours_VD)} codes of width {ours_VD.shape[1]}) is not "
            f"that of {of} ({len(theirs_VD)} of width {theirs_VD.shape[1]}); take the tokenizer "
            "that teacher and student were trained on"
        )


def _shape(value: Tensor | None) -> str:
    return "none" if value is None else str(list(value.shape))
