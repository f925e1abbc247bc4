"""What models of a raster may be told about decoding: the `Decoding` of such families."""

from collections.abc import Mapping
from typing import ClassVar, Self

from pydantic import model_validator

from common.models.decoding import DecodingConfig
from common.models.jacobi import JacobiConfig
from common.models.plan import ZipARConfig


class Decoding(DecodingConfig):
    refusals: ClassVar[Mapping[str, str]] = {
        "zipar": "does not decode a raster row by row and has parallel steps of its own",
        "sjd": "does not decode slot by slot in raster order",
    }

    zipar: ZipARConfig | None = None
    """Parallel decoding of raster models (LlamaGen); approximate, scored in raster order."""
    sjd: JacobiConfig | None = None
    """Speculative Jacobi decoding of raster models (LlamaGen): several tokens a pass, exact."""

    @model_validator(mode="after")
    def _one_way_to_be_fast(self) -> Self:
        if self.zipar and self.sjd:
            raise ValueError("zipar and sjd are set, two ways of decoding; leave one out")
        return self

    @property
    def is_exact(self) -> bool:
        return self.zipar is None and super().is_exact

    @property
    def speculation(self) -> JacobiConfig | None:
        return self.sjd
