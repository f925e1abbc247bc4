"""Distilled Decoding 2 of LlamaGen: a slot's features come from the class and the vectors of the
slots before it, in raster order (arXiv 2510.21003, section 3.3 and appendix E.4; docs/one_step.md,
"Networks").

Shape letters: B sequences, L slots, C width, D code width, V codes.
"""

from typing import Annotated, Self, cast

from torch import Tensor

from common.config.plugins import from_package
from common.errors import InputError
from common.models.backbone import Backbone
from common.models.backbones import llamagen
from common.models.generator import Generator
from common.models.vector_embedding import VectorEmbedding
from common.models.velocity_model import VelocityModel, VelocityModelConfig
from common.spec import SequenceSpec


class Config(VelocityModelConfig):
    backbone: Annotated[
        llamagen.Config | None,
        from_package("common.models.backbones", default="llamagen", only=True),
    ] = None
    """The teacher's sizes; by default those of models.teacher, without dropout."""

    @property
    def sizes(self) -> llamagen.Config:
        return self.backbone or llamagen.Config()

    def build(self, spec: SequenceSpec, codebook_VD: Tensor) -> Generator:
        return DD2LlamaGen(self, spec, codebook_VD)

    @classmethod
    def tiny(cls) -> Self:
        return cls(backbone=llamagen.Config.tiny(), head_width=16, head_depth=2)


class DD2LlamaGen(VelocityModel[llamagen.LlamaGen]):
    """Reads vectors through a perceptron in the place of the table of tokens."""

    def __init__(self, config: Config, spec: SequenceSpec, codebook_VD: Tensor) -> None:
        width = config.sizes.width
        network = llamagen.LlamaGen(config.sizes, spec)
        network._modules["tok_embeddings"] = VectorEmbedding(codebook_VD, width)
        super().__init__(config, network, feature_width=width, codebook_VD=codebook_VD, spec=spec)

    @property
    def embedding(self) -> VectorEmbedding:
        return cast(VectorEmbedding, self.network._modules["tok_embeddings"])

    def features(self, label_B: Tensor, vector_BLD: Tensor) -> Tensor:
        return self.network.read(label_B, self.embedding(vector_BLD[:, :-1]))

    def inherited(self, teacher: Backbone) -> dict[str, Tensor]:
        """With the perceptron fitted to the teacher's table at the codes."""
        if not isinstance(teacher, llamagen.LlamaGen):
            raise InputError(
                f"dd2_llamagen starts from a LlamaGen, not from a {type(teacher).__name__}; choose "
                "the generator of the teacher's family"
            )
        found = self.of_network(teacher)
        table_VC = found.pop("network.tok_embeddings.weight")
        if table_VC.shape[1] == self.embedding.second.out_features:
            fitted = self.embedding.fitted(self.codebook_VD, table_VC)
            found |= {f"network.tok_embeddings.{name}": value for name, value in fitted.items()}
        return found
