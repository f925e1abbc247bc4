"""Sample quality by torch-fidelity: FID, KID, precision and recall, Inception score.

The only module that imports torch-fidelity. Features come from a classifier trained on the
user's images (rollout/evaluation/features.py) or from Inception; the two are not comparable, and
the result says which.

Shape letters: N images, L slots.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch
from numpy.linalg import LinAlgError
from torch import Tensor

from common.errors import InputError
from common.exchange.condition import Conditions
from common.files.pickled import read_pickle
from common.finite import is_finite
from common.flow.laws import FlowCodes
from common.models.backbone import Backbone
from common.perceptual.classifier import Classifier, as_rgb, load_classifier
from common.randomness import derive_seed
from rollout.evaluation.config import EvaluateConfig as EvaluateConfig
from rollout.evaluation.torchvision_compat import ensure_torchvision
from rollout.sampler import SamplingConfig, sample

EXTRACTOR = "varkd-classifier"
NAMES = {
    "frechet_inception_distance": "fid",
    "kernel_inception_distance_mean": "kid",
    "precision": "precision",
    "recall": "recall",
    "inception_score_mean": "inception_score",
}

NEIGHBOURS, SPLITS = 3, 10
"""Of precision and recall, and of the Inception score, as published."""
LEAST = {
    "fid": 2,
    "precision": NEIGHBOURS + 1,
    "recall": NEIGHBOURS + 1,
    "inception_score": SPLITS,
}
"""Images without which a metric is not defined (KID as FID): of samples, and but for the last one
of real images too."""
REASONS = {
    "precision": f"each with {NEIGHBOURS} neighbours",
    "recall": f"each with {NEIGHBOURS} neighbours",
    "inception_score": f"{SPLITS} splits",
}

REMEDIES = {
    "classifier": "train another classifier (evaluate.classifier.learning_rate lower, fewer steps)",
    "inception": "evaluate.inception_weights must be torch-fidelity's own file, whole",
}
"""What to do where features are not numbers."""


def sample_batches(
    backbone: Backbone,
    label_N: Tensor,
    *,
    sampling: SamplingConfig,
    batch_size: int,
    seed: int,
    conditions: Conditions | None = None,
    codes: FlowCodes | None = None,
) -> Iterator[Tensor]:
    """token_BL by grid position, `batch_size` images at a time.

    Image i of N depends on (weights, label, seed, i) alone. `codes` are the tokenizer's, where
    sampling.flow carries noise to them.
    """
    for first in range(0, len(label_N), batch_size):
        label_B = label_N[first : first + batch_size]
        seeds = image_seeds(seed, len(label_B), first)
        drawn = sample(backbone, label_B, seeds, sampling, conditions=conditions, codes=codes)
        yield drawn.cell_BL


def image_seeds(seed: int, images: int, first: int = 0) -> list[int]:
    """Of the images from number `first` on."""
    return [derive_seed(seed, "sample", first + i) for i in range(images)]


def balanced_labels(samples: int, class_K: Tensor) -> Tensor:
    """Classes in equal shares, as VAR and ARPG evaluate (docs/backbones.md, "Evaluation protocol").

    `class_K` are the labels of the classes, in order; of fewer samples than classes each has
    another one, from all over them.
    """
    count = len(class_K)
    place_N = torch.arange(samples)
    return class_K[place_N * count // samples if samples < count else place_N % count]


def left_out(samples: int, reals: int) -> dict[str, str]:
    """Metrics that so few images do not define, each with the reason.

    Raises:
        InputError: there are too few of either for a FID.
    """
    for key, found, what in (
        ("evaluate.samples", samples, "samples"),
        ("evaluate.reference_images", reals, "real images"),
    ):
        if found < LEAST["fid"]:
            raise InputError(
                f"{key}: FID compares covariances, which takes {LEAST['fid']} {what} at least, "
                f"here {found}; raise it or give more images"
            )
    reasons = {}
    for name, least in LEAST.items():
        found = samples if name == "inception_score" else min(samples, reals)
        if found < least:
            both = "samples" if name == "inception_score" else "samples and real images"
            reasons[name] = f"needs {least} {both} ({REASONS[name]}), has {found}"
    return reasons


class Pixels(torch.utils.data.Dataset):
    """uint8 images in the form that torch-fidelity reads, one after the other."""

    def __init__(self, pixel_NCHW: Tensor, seen: Callable[[], None]) -> None:
        self._pixel_N3HW = as_rgb(pixel_NCHW)
        self._seen = seen

    def __len__(self) -> int:
        return len(self._pixel_N3HW)

    def __getitem__(self, index: int) -> Tensor:
        self._seen()
        return self._pixel_N3HW[index].clone()


def measure(
    config: EvaluateConfig,
    generated_NCHW: Tensor,
    reference_NCHW: Tensor,
    *,
    classifier: Path | None = None,
    cache: Path | None = None,
    seen: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """fid, kid, precision, recall and inception_score of generated against real images, but for
    those that so few images do not define (`left_out`).

    With `cache` the features of the real images are computed once. It must be a folder of this
    process alone, for these images and features: torch-fidelity unpickles freely what it finds.
    `seen` is called for every image whose features are computed.

    Raises:
        InputError: there are too few images, Inception weights are neither at hand nor
            downloadable or unsafe to load, or features are not finite.
    """
    ensure_torchvision()
    import torch_fidelity

    options = _options(len(generated_NCHW), len(reference_NCHW))
    if cache is not None:
        options |= {"cache": True, "cache_root": str(cache), "input2_cache_name": "reference"}
    options |= _extractor(config, classifier)
    inputs = {"input1": Pixels(generated_NCHW, seen), "input2": Pixels(reference_NCHW, seen)}
    try:
        found = torch_fidelity.calculate_metrics(**inputs, **options)
    except LinAlgError:
        raise InputError(f"FID: features are not finite; {REMEDIES[config.features]}") from None
    except URLError as error:
        raise InputError(
            f"evaluate.features is inception, but its weights could not be downloaded ({error}); "
            "set evaluate.inception_weights to the file, or evaluate.features=classifier"
        ) from error
    values = {short: float(found[long]) for long, short in NAMES.items() if long in found}
    return _finite(values, config)


def _finite(values: dict[str, float], config: EvaluateConfig) -> dict[str, float]:
    for name, value in values.items():
        if not math.isfinite(value):
            remedy = REMEDIES[config.features]
            raise InputError(f"{name} is {value}: features are not finite or too large; {remedy}")
    return values


def _options(samples: int, reals: int) -> dict[str, Any]:
    """What torch-fidelity computes of so many images, and how."""
    absent = left_out(samples, reals)
    return {
        "batch_size": 256,
        "verbose": False,
        "cache": False,
        "save_cpu_ram": True,
        "cuda": torch.cuda.is_available(),
        "fid": True,
        "kid": True,
        "kid_subset_size": min(1000, samples, reals),
        "kid_subsets": 20,
        "prc": "precision" not in absent,
        "prc_neighborhood": NEIGHBOURS,
        "isc": "inception_score" not in absent,
        "isc_splits": SPLITS,
    }


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
            self.path = Path(options["feature_extractor_weights_path"])
            self.classifier: Classifier = load_classifier(self.path)[0]

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
            if not all(is_finite(value) for value in found.values()):
                raise InputError(f"{self.path}: gives no numbers; {REMEDIES['classifier']}")
            return tuple(found[name] for name in self.features_list)

    register_feature_extractor(EXTRACTOR, Extractor)
