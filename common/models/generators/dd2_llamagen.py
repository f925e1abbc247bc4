"""Distilled Decoding 2 of LlamaGen: a slot's features come from the class and the vectors of the
slots before it, in raster order (arXiv 2510.21003, section 3.3 and appendix E.4; docs/one_step.md,
"Networks").

Shape letters: V codes, D code width, C width.
"""

from typing import Annotated, ClassVar, Self, cast

from torch import Tensor

from common.config.plugins import from_package
from common.errors import InputError
from common.models.backbone import Backbone
from common.models.backbones import llamagen
from common.models.generator import Generator
from common.models.one_pass import require_codes
from common.models.vector_embedding import VectorEmbedding
from common.models.velocity_model import VelocityModel, VelocityModelConfig
from common.spec import SequenceSpec


class Config(VelocityModelConfig):
    backbone: Annotated[
        llamagen.Config | None,
        from_package("common.models.backbones", default="llamagen", only=True),
    ] = None
    """The teacher's sizes, of which `vector_width` is not read, for the codes are given; by default
    those of models.teacher, without dropout."""

    unread: ClassVar[frozenset[str]] = frozenset({"vector_width"})

    @property
    def sizes(self) -> llamagen.Config:
        return self.backbone or llamagen.Config()

    def build(self, spec: SequenceSpec, codebook_VD: Tensor) -> Generator:
        return DD2LlamaGen(self, spec, codebook_VD)

    @classmethod
    def tiny(cls) -> Self:
        return cls(backbone=llamagen.Config.tiny(), head_width=16, head_depth=2)


class DD2LlamaGen(VelocityModel):
    """Reads vectors through a perceptron in the place of the table of tokens."""

    def __init__(self, config: Config, spec: SequenceSpec, codebook_VD: Tensor) -> None:
        width = config.sizes.width
        sizes = config.sizes.model_copy(update={"vector_width": codebook_VD.shape[1]})
        network = llamagen.LlamaGen(sizes, spec)
        super().__init__(config, network, feature_width=width, codebook_VD=codebook_VD, spec=spec)
        self.reader.codes.code_VD.copy_(self.codebook_VD)

    @property
    def reader(self) -> VectorEmbedding:
        """What embeds vectors."""
        return cast(VectorEmbedding, self.network.get_submodule("tok_embeddings"))

    def inherited(self, teacher: Backbone) -> dict[str, Tensor]:
        """Where the teacher looks tokens up, with the perceptron fitted to its table."""
        if not isinstance(teacher, llamagen.LlamaGen):
            raise InputError(
                f"dd2_llamagen starts from a LlamaGen, not from a {type(teacher).__name__}; choose "
                "the generator of the teacher's family"
            )
        if isinstance(teacher.tok_embeddings, VectorEmbedding):
            require_codes(self.codebook_VD, teacher.tok_embeddings.codes.code_VD)
        return self.reader.adapted(self.of_network(teacher), "network.tok_embeddings.")
