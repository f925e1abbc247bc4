"""Distilled Decoding 2 of VAR: a slot's features come from the class and the canvas that the
vectors of the scales before its own have painted (arXiv 2510.21003, section 3.3; docs/one_step.md,
"Networks").

Shape letters: V codes, D code width.
"""

from typing import Annotated, ClassVar, Self

from torch import Tensor

from common.config.plugins import from_package
from common.errors import InputError
from common.models.backbone import Backbone
from common.models.backbones import var
from common.models.generator import Generator
from common.models.one_pass import require_codes
from common.models.velocity_model import VelocityModel, VelocityModelConfig
from common.spec import SequenceSpec


class Config(VelocityModelConfig):
    backbone: Annotated[
        var.Config | None, from_package("common.models.backbones", default="var", only=True)
    ] = None
    """The teacher's sizes, of which `code_width` is not read, for the codes are given; by default
    those of models.teacher, without dropout."""

    unread: ClassVar[frozenset[str]] = frozenset({"code_width"})

    @property
    def sizes(self) -> var.Config:
        return self.backbone or var.Config()

    def build(self, spec: SequenceSpec, codebook_VD: Tensor) -> Generator:
        return DD2VAR(self, spec, codebook_VD)

    @classmethod
    def tiny(cls) -> Self:
        return cls(backbone=var.Config.tiny(), head_width=16, head_depth=2)


class DD2VAR(VelocityModel):
    """Paints with the teacher's convolutions, which are part of it."""

    def __init__(self, config: Config, spec: SequenceSpec, codebook_VD: Tensor) -> None:
        width = config.sizes.width
        sizes = config.sizes.model_copy(update={"code_width": codebook_VD.shape[1]})
        network = var.VAR(sizes, spec)
        super().__init__(config, network, feature_width=width, codebook_VD=codebook_VD, spec=spec)
        network.quantizer.code_VD.copy_(self.codebook_VD)

    def inherited(self, teacher: Backbone) -> dict[str, Tensor]:
        if not isinstance(teacher, var.VAR):
            raise InputError(
                f"dd2_var starts from a VAR, not from a {type(teacher).__name__}; choose the "
                "generator of the teacher's family"
            )
        require_codes(self.codebook_VD, teacher.quantizer.code_VD)
        return self.of_network(teacher)
