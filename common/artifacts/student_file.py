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
from common.artifacts.model_file import contents_digest, holds_one_set, identify
from common.errors import InputError
from common.files.official import Checkpoint
from common.models.distilled_decoding import DistilledDecoder, DistilledDecoderConfig
from common.models.one_pass import OnePassConfig, require_codes
from common.models.velocity_model import VelocityModel
from common.spec import SequenceSpec, require_same_spec
from common.tokenization.tokenizer import load_tokenizer


@dataclass(frozen=True, slots=True)
class StudentFile:
    """Where weights are and what they must be, as `ModelFile` for backbones."""

    path: Path
    role: str
    """The config section, for messages."""
    architecture: OnePassConfig
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
            self._require_released()
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

    def _require_released(self) -> DistilledDecoderConfig:
        """Of a kind that has released files, and one of them."""
        checkpoint, architecture = Checkpoint(self.path, ema=self.ema), self.architecture
        if isinstance(architecture, DistilledDecoderConfig):
            require_released(checkpoint, architecture)
            return architecture
        found = identify(checkpoint.shapes)
        held = "no student of ours" if found is None else f"autoregressive weights ({found[0]})"
        raise InputError(
            f"{self.path} holds {held}, but {self.role} is a {architecture.kind}, of which only "
            "files of varkd are read; leave learner.weights out to start from the teacher, or give "
            "the student.safetensors of a run"
        )

    def load(self, dtype: torch.dtype | None = None) -> DistilledDecoder | VelocityModel:
        """The module in eval mode on the CPU, split as the run's config says.

        Raises:
            InputError: as `check`, or its codes are not the tokenizer's.
        """
        self.check()
        code_VD = load_tokenizer(self.tokenizer).codebook_VD
        if not is_ours(self.path):
            config = self._require_released()
            return load_released(self.path, config, self.spec, code_VD, ema=self.ema, dtype=dtype)
        model, _ = load_generator(self.path, dtype, used_as=self.architecture)
        assert isinstance(model, DistilledDecoder | VelocityModel)
        require_codes(model.codebook_VD, code_VD, of=f"the tokenizer {self.tokenizer}")
        return model

    def digest(self) -> str:
        """Of every tensor in the file; its other contents do not count."""
        return contents_digest(Checkpoint(self.path, ema=self.ema))
