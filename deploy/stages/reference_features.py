"""Features of the real images, kept in the run folder for the next evaluation.

torch-fidelity pickles what it computed into a folder, which therefore is this process's alone; only
tensors go from there to the run folder and back.
"""

import hashlib
import re
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from common.errors import InputError
from common.files.made_from import difference
from common.files.tensors import load_tensors, save_tensors, tensors_digest
from common.perceptual.classifier import load_classifier
from rollout.evaluation.metrics import EvaluateConfig

NAME = re.compile(r"reference-[\w.-]+-features-\w+")
"""Of torch-fidelity's files, one per layer, of an input that is called "reference"."""
MOST_BYTES = 2**30
"""More is computed anew: a million images have gigabytes of Inception features."""


class ReferenceFeatures:
    """What torch-fidelity is to find in `folder`, and the file in which it stays."""

    def __init__(self, path: Path, images: str, extractor: dict[str, Any]) -> None:
        """`images`: digest of the real images as they are compared; `extractor`: what decides
        their features (`extractor_facts`)."""
        self._path = path
        self._made_from = {"images": images, "extractor": extractor}
        self._cache = TemporaryDirectory(prefix="varkd-")  # gone with this object
        self._stored: set[str] = set()

    @property
    def folder(self) -> Path:
        return Path(self._cache.name)

    def fetch(self) -> bool:
        """Whether the file had them, of just these images and this extractor, undamaged."""
        if not self._path.exists():
            return False
        try:
            tensors, facts = load_tensors(self._path)
        except InputError:
            return False
        is_same = difference(facts.get("made_from"), self._made_from) is None
        if not is_same or facts.get("digest") != tensors_digest(tensors):
            return False
        named = {name: value for name, value in tensors.items() if NAME.fullmatch(name)}
        for name, value in named.items():
            torch.save(value, self.folder / f"{name}.pt")
        self._stored = set(named)
        return bool(named)

    def keep(self) -> None:
        """Store what was computed since; figures do not depend on it, so no error ends anything."""
        tensors = self._computed()
        size = sum(value.nbytes for value in tensors.values())
        if tensors.keys() <= self._stored or size > MOST_BYTES:
            return
        facts = {"made_from": self._made_from, "digest": tensors_digest(tensors)}
        try:
            save_tensors(self._path, tensors, facts)
        except InputError:  # no room
            return
        self._stored = set(tensors)

    def _computed(self) -> dict[str, Tensor]:
        found = [path for path in self.folder.glob("*.pt") if NAME.fullmatch(path.stem)]
        return {path.stem: torch.load(path, weights_only=True) for path in found}


def extractor_facts(settings: EvaluateConfig, classifier: Path | None) -> dict[str, Any]:
    """What decides the features of an image, to the last bits."""
    facts: dict[str, Any] = {
        "kind": settings.features,
        "torch_fidelity": version("torch-fidelity"),
        "device": "cuda" if torch.cuda.is_available() else "cpu",
    }
    if classifier is not None:
        digest = load_classifier(classifier)[1]["digest"]
        return facts | {"digest": digest, "dtype": "float32", "layout": "channels_last"}
    weights = settings.inception_weights
    if weights is None:  # torch-fidelity's own, of its version
        return facts
    with weights.open("rb") as file:
        return facts | {"weights": hashlib.file_digest(file, "sha256").hexdigest()}
