"""Sample quality by torch-fidelity: FID, KID, precision and recall, Inception score.

The only module that imports torch-fidelity. Features come from a classifier trained on the
user's images (rollout/features.py) or from Inception; the two are not comparable, and the
result says which.

Shape letters: N images, L slots.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal
from urllib.error import URLError

import torch
from torch import Tensor

from common.backbone import Backbone
from common.config import Config, UserPath
from common.errors import InputError
from common.ledger import derive_seed
from common.pickled import read_pickle
from common.quantities import Batch, Count, CountOrNone, Side
from rollout.features import Classifier, ClassifierConfig, as_rgb, load_classifier
from rollout.sampler import SamplingConfig, decode, noise
from rollout.torchvision_compat import ensure_torchvision

EXTRACTOR = "varkd-classifier"
NAMES = {
    "frechet_inception_distance": "fid",
    "kernel_inception_distance_mean": "kid",
    "precision": "precision",
    "recall": "recall",
    "inception_score_mean": "inception_score",
}


class EvaluateConfig(Config):
    samples: Count = 2000
    """Images sampled per model; classes in equal shares."""
    batch_size: Batch = 250
    """Images decoded together."""
    sampling: SamplingConfig = SamplingConfig()
    """How evaluation samples are drawn."""
    size: Side | None = None
    """Side at which images are compared and stored as .npz; samples are resized to it before they
    are rounded (bicubic, no antialias), as LlamaGen's 384 px models are judged at 256. By default
    images.size."""
    features: Literal["classifier", "inception"] = "classifier"
    """classifier: trained on the training images; inception: torch-fidelity's own."""
    classifier: ClassifierConfig = ClassifierConfig()
    """The classifier behind `features = "classifier"`."""
    inception_weights: UserPath | None = None
    """torch-fidelity's Inception weights; without a path it downloads them itself."""
    reference: Literal["train", "test"] = "train"
    """Split of real images to compare with (the ImageNet convention is train)."""
    reference_images: CountOrNone = 10000
    """At most this many reference images; 0 uses all."""


def sample_batches(
    backbone: Backbone,
    label_N: Tensor,
    *,
    sampling: SamplingConfig,
    batch_size: int,
    seed: int,
) -> Iterator[Tensor]:
    """token_BL by grid position, `batch_size` images at a time.

    Image i of N depends on (weights, label, seed, i) alone.
    """
    device = next(backbone.parameters()).device
    for first in range(0, len(label_N), batch_size):
        label_B = label_N[first : first + batch_size]
        seeds = [derive_seed(seed, "sample", first + i) for i in range(len(label_B))]
        plan = backbone.plan(seeds, sampling.decoding)
        decoded = decode(
            backbone,
            label_B.to(device),
            sampling=sampling,
            noise_BL=noise(seeds, backbone.spec.length, device),
            plan=plan,
        )
        cell_BL = torch.empty_like(decoded.token_BL)
        yield cell_BL.scatter(1, plan.order_BL.to(device), decoded.token_BL)


def balanced_labels(samples: int, num_classes: int) -> Tensor:
    """Classes in equal shares, as VAR and ARPG evaluate (backbones.md 6)."""
    return torch.arange(samples) % num_classes


class Pixels(torch.utils.data.Dataset):
    """uint8 images in the form that torch-fidelity reads."""

    def __init__(self, pixel_NCHW: Tensor) -> None:
        self._pixel_N3HW = as_rgb(pixel_NCHW)

    def __len__(self) -> int:
        return len(self._pixel_N3HW)

    def __getitem__(self, index: int) -> Tensor:
        return self._pixel_N3HW[index].clone()


def measure(
    config: EvaluateConfig,
    generated_NCHW: Tensor,
    reference_NCHW: Tensor,
    *,
    classifier: Path | None = None,
    cache: Path | None = None,
) -> dict[str, float]:
    """fid, kid, precision, recall and inception_score of generated against real images.

    With `cache` the features of the real images are computed once. It must be a folder of this
    process alone, for these images and features: torch-fidelity unpickles freely what it finds.

    Raises:
        InputError: Inception weights are neither at hand nor downloadable, or unsafe to load.
    """
    ensure_torchvision()
    import torch_fidelity

    options: dict[str, Any] = {"batch_size": 256, "verbose": False, "cache": False}
    options |= {"save_cpu_ram": True, "cuda": torch.cuda.is_available()}
    if cache is not None:
        options |= {"cache": True, "cache_root": str(cache), "input2_cache_name": "reference"}
    options |= {"isc": True, "fid": True, "kid": True, "prc": True}
    smallest = min(len(generated_NCHW), len(reference_NCHW))
    options |= {"kid_subset_size": min(1000, smallest), "kid_subsets": 20}
    options |= _extractor(config, classifier)
    try:
        found = torch_fidelity.calculate_metrics(
            input1=Pixels(generated_NCHW), input2=Pixels(reference_NCHW), **options
        )
    except URLError as error:
        raise InputError(
            f"evaluate.features is inception, but its weights could not be downloaded ({error}); "
            "set evaluate.inception_weights to the file, or evaluate.features=classifier"
        ) from error
    return {short: float(found[long]) for long, short in NAMES.items() if long in found}


def _extractor(config: EvaluateConfig, classifier: Path | None) -> dict[str, Any]:
    if config.features == "classifier":
        if classifier is None:
            raise ValueError("features = classifier needs the classifier's file")
        _register()
        return {"feature_extractor": EXTRACTOR, "feature_extractor_weights_path": str(classifier)}
    options: dict[str, Any] = {
        "feature_extractor": "inception-v3-compat",
        "feature_layer_prc": "2048",
    }
    if config.inception_weights is not None:
        _require_plain_weights(config.inception_weights)
        options["feature_extractor_weights_path"] = str(config.inception_weights)
    return options


def _require_plain_weights(path: Path) -> None:
    """torch-fidelity unpickles this file freely, so first make sure that it is only tensors."""
    try:
        read_pickle(path)
    except InputError as error:
        raise InputError(f"evaluate.inception_weights: {error}") from None


def _register() -> None:
    """Make the classifier known to torch-fidelity, once per process."""
    from torch_fidelity.feature_extractor_base import FeatureExtractorBase
    from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY, register_feature_extractor

    if EXTRACTOR in FEATURE_EXTRACTORS_REGISTRY:
        return

    class Extractor(FeatureExtractorBase):
        """Penultimate features for FID, KID and PRC, logits for the Inception score."""

        def __init__(self, name: str, features_list: Sequence[str], **options: Any) -> None:
            super().__init__(name, features_list)
            path = Path(options["feature_extractor_weights_path"])
            self.classifier: Classifier = load_classifier(path)[0]

        @staticmethod
        def get_provided_features_list() -> tuple[str, ...]:
            return ("features", "logits")

        @staticmethod
        def get_default_feature_layer_for_metric(metric: str) -> str:
            return "logits" if metric == "isc" else "features"

        @staticmethod
        def can_be_compiled() -> bool:
            return False

        def forward(self, input: Tensor) -> tuple[Tensor, ...]:
            features = self.classifier.features(input)
            found = {"features": features, "logits": self.classifier.output(features)}
            return tuple(found[name] for name in self.features_list)

    register_feature_extractor(EXTRACTOR, Extractor)
