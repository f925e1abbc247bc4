"""A smaller model's file that guesses while the teacher is sampled (`generate.draft`)."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from common.artifacts.backbone_file import describe, is_ours, load_backbone
from common.artifacts.model_file import ModelFile, contents_digest
from common.data.tokens import TokenHeader
from common.errors import InputError
from common.exchange.condition import ConditionsConfig
from common.files.official import Checkpoint
from common.models.backbone import BackboneConfig
from common.outline import outlines
from common.spec import SequenceSpec, require_same_spec
from deploy.config import RunConfig
from rollout.model_draft import Draft, instead_of_guesses
from rollout.sampler import SamplingConfig


@dataclass(frozen=True, slots=True)
class DraftFile:
    """Where it is, and how far it guesses ahead."""

    path: Path
    tokens: int

    @classmethod
    def of(
        cls, config: RunConfig, teacher: ModelFile, sampling: SamplingConfig
    ) -> "DraftFile | None":
        """The one that the config names, checked by its header.

        Raises:
            InputError: it is none of ours, has other tokens, or one of the two reads no windows;
                or the sampling leaves nothing to guess.
        """
        path = config.generate.draft
        if path is None:
            return None
        if not path.exists() or not is_ours(path):
            raise InputError(
                f"generate.draft: {path} is no model that varkd wrote; give the .safetensors of a "
                "smaller one on the same tokens, or leave it out"
            )
        spec, architecture = describe(path)
        require_same_spec(teacher.spec, spec, us="the teacher", them=f"generate.draft {path}")
        for name, found in ("the draft", architecture), ("the teacher", teacher.architecture):
            _require_windows(name, found, spec)
        if key := instead_of_guesses(sampling):
            raise InputError(
                f"generate.draft: the teacher's sampling has {key}, which decides itself what is "
                "read in a pass; leave one of the two out"
            )
        return cls(path, config.generate.draft_tokens)

    def facts(self) -> dict[str, Any]:
        """What decides about the sequences, as JSON."""
        return {"draft": contents_digest(Checkpoint(self.path)), "draft_tokens": self.tokens}

    def load(self, device: torch.device, dtype: torch.dtype, conditions: ConditionsConfig) -> Draft:
        model, _ = load_backbone(self.path, dtype)
        table = conditions.of("student", model.spec.num_classes)
        return Draft(model.to(device).requires_grad_(False), self.tokens, conditions=table)


def acceptance(headers: Iterable[TokenHeader]) -> dict[str, float]:
    """The share of its guesses that were kept, over all parts; nothing where there were none."""
    found = [header.facts for header in headers if "guesses" in header.facts]
    guesses = sum(facts["guesses"] for facts in found)
    return {"acceptance": sum(facts["kept"] for facts in found) / guesses} if guesses else {}


def _require_windows(name: str, architecture: BackboneConfig, spec: SequenceSpec) -> None:
    with outlines():
        reads = architecture.build(spec).reads_windows
    if not reads:
        raise InputError(
            f"generate.draft: {name} is of kind {architecture.kind}, which does not decode slot by "
            "slot in raster order; leave generate.draft out"
        )
