"""A backbone's weights on disk, ours or official, and how to rebuild the module from them.

Our own files describe themselves. An official checkpoint holds only tensors, so the run's config
says what it is, and everything is compared with the file's shapes before memory is allocated.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from common.artifacts.backbone_file import describe, is_ours, load_head
from common.config.plugins import kinds, load_plugin
from common.errors import InputError
from common.files.loading import below, ignoring, load
from common.files.official import Checkpoint
from common.models.backbone import Backbone, BackboneConfig
from common.outline import outlines
from common.spec import SequenceSpec, require_same_spec
from common.tokenization.tokenizer import load_tokenizer

ONE_PASS = "n_d_embed.weight"
"""What only a student of Distilled Decoding has: the embedding that says noise or data."""


@dataclass(frozen=True, slots=True)
class ModelFile:
    """Where weights are and what they must be; `role` is the config section for messages."""

    path: Path
    role: str
    architecture: BackboneConfig
    spec: SequenceSpec
    tokenizer: Path
    """Official files leave what the family borrows of its tokenizer to the tokenizer's file."""
    ema: bool = False
    """Read the averaged weights of an official trainer's file."""

    def check(self) -> None:
        """Refuse a file that is something else, without reading its weights.

        Raises:
            InputError: another family, size, vocabulary, grid or class count; both are named.
        """
        if is_ours(self.path):
            self._check_ours(*describe(self.path))
        else:
            self._open()

    def load(self, dtype: torch.dtype | None = None) -> Backbone:
        """The module in eval mode on the CPU; parameters are cast while they are read.

        Raises:
            InputError: as `check`, or names are missing or unexpected.
        """
        if is_ours(self.path):
            self.check()
            model = self._skeleton()  # not as stored: dropout is this run's
            load(model, Checkpoint(self.path), lambda name: name, dtype=dtype)
            return model.eval()
        checkpoint = self._open()
        model = self._skeleton()
        # Built on the meta device, what is borrowed comes from the tokenizer, if at all.
        if model.borrowed:
            model.attach(load_tokenizer(self.tokenizer).lent())
        given = {name: value for name, value in model.state_dict().items() if not value.is_meta}
        load(model, checkpoint, ignoring(*model.official.ignored), given=given, dtype=dtype)
        return model.eval()

    def head(self) -> nn.Linear:
        """Only the output head, in float32: a learner needs no copy of its teacher."""
        if is_ours(self.path):
            head, spec, config = load_head(self.path)
            self._check_ours(spec, config)
            return head
        checkpoint = self._open()
        model = self._skeleton()
        load(model.head, checkpoint, below(model.official.head), dtype=torch.float32)
        return model.head.requires_grad_(False)

    def digest(self) -> str:
        """Of every tensor in the file; its other contents do not count."""
        return contents_digest(Checkpoint(self.path, ema=self.ema))

    def _open(self) -> Checkpoint:
        checkpoint = Checkpoint(self.path, ema=self.ema)
        expected = self.architecture.model_dump() | self.spec.as_dict()
        require_family(self.path, checkpoint.shapes, self.architecture.kind, expected, self.role)
        return checkpoint

    def _skeleton(self) -> Backbone:
        with outlines():
            return self.architecture.build(self.spec)

    def _check_ours(self, spec: SequenceSpec, config: BackboneConfig) -> None:
        if self.ema:
            section = "teacher" if self.role == "models.teacher" else "learner"
            raise holds_one_set(section, self.path)
        require_same_spec(self.spec, spec, us="the token dataset", them=str(self.path))
        if not config.same_network(self.architecture):
            ours, theirs = self.architecture.model_dump(), config.model_dump()
            names = [n for n in ours.keys() | theirs.keys() if ours.get(n) != theirs.get(n)]
            different = sorted(set(names) - self.architecture.training_only)
            found, expected = (
                ", ".join(f"{name} {values.get(name)}" for name in different)
                for values in (theirs, ours)
            )
            raise InputError(
                f"{self.path} holds a model with {found}, but {self.role} has {expected}; make "
                "them equal or train again"
            )


def holds_one_set(section: str, path: Path) -> InputError:
    """For averaged weights that are asked of a file of ours."""
    return InputError(
        f"{section}.weights_ema asks for averaged weights, but {path} is a file of varkd and holds "
        "one set; drop it, or choose a student_ema.safetensors"
    )


def contents_digest(checkpoint: Checkpoint) -> str:
    """Sixteen hex digits of all tensors."""
    hasher = hashlib.blake2b(digest_size=8)
    for name, value in checkpoint.tensors(sorted(checkpoint.entries), finite=False):
        hasher.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        hasher.update(value.flatten().view(torch.uint8).numpy().data)
    return hasher.hexdigest()


def require_family(
    path: Path,
    shapes: Mapping[str, tuple[int, ...]],
    kind: str,
    expected: Mapping[str, Any],
    role: str,
) -> None:
    """Compare what official weights are with what the config says they are.

    Raises:
        InputError: another family, or other sizes; the message names both.
    """
    found = identify(shapes)
    if ONE_PASS in shapes:
        raise InputError(
            f"{path} holds a student of one pass (Distilled Decoding), but {role} is a {kind} that "
            "decodes step by step; choose a file of the teacher's kind"
        )
    if found is None:
        some = ", ".join(sorted(shapes)[:3])
        known = ", ".join(kinds("common.models.backbones"))
        raise InputError(f"{path}: neither of {known} (it holds {some}, ...); {role} is {kind}")
    family, sizes = found
    text = ", ".join(f"{name} {value}" for name, value in sizes.items())
    if family != kind:
        raise InputError(f"{path} holds a {family} ({text}), but {role} is {kind}; set its kind")
    wrong = {name: expected[name] for name, value in sizes.items() if expected[name] != value}
    if wrong:
        ours = ", ".join(f"{name} {value}" for name, value in wrong.items())
        raise InputError(
            f"{path} holds a {family} with {text}, but the run expects {ours}; "
            f"correct {role}, the tokenizer or the image size, or choose another file"
        )


def identify(shapes: Mapping[str, tuple[int, ...]]) -> tuple[str, dict[str, int]] | None:
    """(family, its sizes) of official weights, or None where no family knows them."""
    for kind in kinds("common.models.backbones"):
        config: type[BackboneConfig] = load_plugin("common.models.backbones", kind).Config
        sizes = config.sizes_in(shapes)
        if sizes is not None:
            return kind, sizes
    return None


def official_state(model: Backbone) -> dict[str, Tensor]:
    """Everything that the family's own loader expects, under its names (strict loading works)."""
    own = model.own_entries(model.state_dict())
    state = {name: value.detach().cpu().contiguous() for name, value in own.items()}
    return state | model.official_buffers()
