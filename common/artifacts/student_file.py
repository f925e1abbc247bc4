"""A one-pass student's weights on disk, ours or released, beside the run that they belong to."""

from dataclasses import dataclass
from pathlib import Path

import torch

from common.artifacts.backbone_file import is_ours
from common.artifacts.generator_file import (
    describe_generator,
    load_generator,
    load_released,
    require_released,
)
from common.artifacts.model_file import contents_digest, holds_one_set
from common.errors import InputError
from common.files.official import Checkpoint
from common.models.distilled_decoding import (
    DistilledDecoder,
    DistilledDecoderConfig,
    require_codes,
)
from common.spec import SequenceSpec, require_same_spec
from common.tokenization.tokenizer import load_tokenizer


@dataclass(frozen=True, slots=True)
class StudentFile:
    """Where weights are and what they must be, as `ModelFile` for backbones."""

    path: Path
    role: str
    """The config section, for messages."""
    architecture: DistilledDecoderConfig
    spec: SequenceSpec
    tokenizer: Path
    """Its codes are those that noise was carried to; released files leave them out."""
    ema: bool = False
    """Read the averaged weights of a released file."""

    def check(self) -> None:
        """Refuse a file that is something else, without reading its weights.

        Raises:
            InputError: plain autoregressive weights, another family, size, vocabulary, grid, class
                count or trained positions; both are named.
        """
        if not is_ours(self.path):
            require_released(Checkpoint(self.path, ema=self.ema), self.architecture)
            return
        if self.ema:
            raise holds_one_set("learner", self.path)
        spec, config = describe_generator(self.path)
        require_same_spec(self.spec, spec, us="the token dataset", them=str(self.path))
        ours, theirs = self.architecture.network(), config.network()
        names = sorted(n for n in ours.keys() | theirs.keys() if ours.get(n) != theirs.get(n))
        if names:
            found, expected = (
                ", ".join(f"{name} {values.get(name)}" for name in names)
                for values in (theirs, ours)
            )
            raise InputError(
                f"{self.path} holds a student with {found}, but {self.role} has {expected}; make "
                "them equal or train again"
            )

    def load(self, dtype: torch.dtype | None = None) -> DistilledDecoder:
        """The module in eval mode on the CPU, split as the run's config says.

        Raises:
            InputError: as `check`, or its codes are not the tokenizer's.
        """
        self.check()
        code_VD = load_tokenizer(self.tokenizer).codebook_VD
        if not is_ours(self.path):
            config, spec = self.architecture, self.spec
            return load_released(self.path, config, spec, code_VD, ema=self.ema, dtype=dtype)
        model, _ = load_generator(self.path, dtype, used_as=self.architecture)
        assert isinstance(model, DistilledDecoder)
        require_codes(model.codebook_VD, code_VD, of=f"the tokenizer {self.tokenizer}")
        return model

    def digest(self) -> str:
        """Of every tensor in the file; its other contents do not count."""
        return contents_digest(Checkpoint(self.path, ema=self.ema))
