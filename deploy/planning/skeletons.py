"""Models without content: their shapes, and what they weigh."""

from dataclasses import dataclass

import torch
from torch import nn

from common.artifacts.model_file import ModelFile
from common.models.backbone import Backbone, BackboneConfig
from common.models.distilled_decoding import DistilledDecoder
from common.models.velocity_model import VelocityModel
from common.outline import META, outlines
from common.perceptual.classifier import Classifier
from common.perceptual.lpips import Lpips, LpipsConfig
from common.spec import SequenceSpec
from common.tokenization.tokenizer import Tokenizer
from deploy.config import RunConfig
from learner.objective import Student


def skeleton(config: BackboneConfig, spec: SequenceSpec) -> Backbone:
    with outlines():
        return config.build(spec)


def blank_student(config: RunConfig, spec: SequenceSpec, device: torch.device = META) -> Student:
    """The run's student on the meta device, or drawn on another."""
    student = config.models.student
    if isinstance(student, BackboneConfig):
        if device == META:
            return skeleton(student, spec)
        with device:
            return student.build(spec)
    code_VD = tokenizer_like(config, device).codebook_VD
    with outlines() if device == META else device:
        built = student.build(spec, code_VD)
    assert isinstance(built, DistilledDecoder | VelocityModel)
    return built


def tokenizer_like(config: RunConfig, device: torch.device) -> Tokenizer:
    """The run's tokenizer as it is before anything is learned or loaded."""
    with device:
        tokenizer = config.tokenizer.build(size=config.images.size, channels=config.images.channels)
    return tokenizer.requires_grad_(False).eval()


def classifier_like(config: RunConfig, spec: SequenceSpec, device: torch.device) -> Classifier:
    """The run's classifier, the same."""
    with device:
        model = Classifier(config.evaluate.classifier.width, max(1, spec.num_classes))
    return model.requires_grad_(False).eval()


def lpips_like(config: LpipsConfig, device: torch.device) -> Lpips:
    """The published network without its files, the same."""
    with outlines() if device == META else device:
        model = Lpips(config.network)
    return model.requires_grad_(False).eval()


@dataclass(frozen=True, slots=True)
class BlankModelFile(ModelFile):
    """A file that need not be there; on another device than META its model is drawn."""

    device: torch.device = META

    def check(self) -> None:
        """Nothing can be wrong with it."""

    def load(self, dtype: torch.dtype | None = None) -> Backbone:
        return self._built().to(dtype).eval()

    def head(self) -> nn.Linear:
        return self._built().head.requires_grad_(False)

    def _built(self) -> Backbone:
        if self.device == META:
            return skeleton(self.architecture, self.spec)
        with self.device:
            return self.architecture.build(self.spec)


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def state_bytes(model: nn.Module, dtype: torch.dtype | None = None) -> int:
    """Parameters (in `dtype`) and buffers."""
    size = sum(p.numel() * (dtype or p.dtype).itemsize for p in model.parameters())
    return size + sum(buffer.numel() * buffer.dtype.itemsize for buffer in model.buffers())
