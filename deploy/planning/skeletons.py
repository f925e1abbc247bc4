"""Models without content: their shapes, and what they weigh."""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

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
from teacher_server.scorer import ScorerFiles


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


@dataclass(frozen=True, slots=True)
class BlankImages:
    """Training images that need not be there."""

    config: RunConfig
    device: torch.device

    def pixels(self, index_B: Tensor) -> Tensor:
        """As `teacher_server.scorer.TargetImages`."""
        images = self.config.images
        shape = len(index_B), images.channels, images.size, images.size
        return torch.zeros(shape, dtype=torch.uint8, device=self.device)


@dataclass(frozen=True, slots=True)
class BlankScorerFiles(ScorerFiles):
    """Of the run's shapes, before anything is learned or loaded; on another device than META what
    they hold is drawn."""

    run: RunConfig = field(kw_only=True)
    device: torch.device = META

    def load_tokenizer(self, device: torch.device) -> Tokenizer:
        return tokenizer_like(self.run, self.device)

    def load_classifier(self, device: torch.device) -> Classifier:
        return classifier_like(self.run, self.teacher.spec, self.device)

    def load_lpips(self, net: LpipsConfig, device: torch.device) -> Lpips:
        return lpips_like(net, self.device)


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def state_bytes(model: nn.Module, dtype: torch.dtype | None = None) -> int:
    """Parameters (in `dtype`) and buffers."""
    size = sum(p.numel() * (dtype or p.dtype).itemsize for p in model.parameters())
    return size + sum(buffer.numel() * buffer.dtype.itemsize for buffer in model.buffers())
