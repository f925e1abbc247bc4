"""What a run's training state depends on: a snapshot goes on only with the same.

Files count by their contents. Every field of the config counts that is not listed here, so that a
new one is safe until somebody says that it is harmless.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.config.parts import parts
from common.config.sections import Section
from common.data.tokens import TokenDataset
from common.exchange.segments import Segments
from common.perceptual.lpips import LpipsConfig
from deploy.config import RunConfig
from deploy.run_folder.workspace import Workspace

HARMLESS = (
    "out",
    "plugins",  # what is taken from them counts
    "images",  # what was made of them counts: the tokens
    "tokenizer",
    "tokens",
    "models.teacher",  # its file counts
    "pretrain",
    "generate",  # its dataset counts
    "buffer",
    "evaluate",
    "sample",
    "cluster",
    "loggers",
    *(
        f"{role}.{name}"
        for role in ("rollout", "teacher", "learner")
        for name in ("device", "cpus", "gpus")
    ),
    *(f"rollout.{name}" for name in ("workers", "min_workers", "max_workers", "max_restarts")),
    *(f"rollout.{name}" for name in ("in_flight", "keep_noise", "weights_folder")),
    *(f"teacher.{name}" for name in ("weights", "weights_ema", "batching")),
    *(f"teacher.{name}" for name in ("replicas", "max_replicas", "max_restarts")),
    *(f"learner.{name}" for name in ("weights", "weights_ema", "micro_batch", "chunk_tokens")),
    *(f"learner.{name}" for name in ("profile_every", "checkpoint_every", "export_every")),
    *(f"learner.{name}" for name in ("max_failures", "stall_seconds", "checkpoint_minutes")),
    *(f"learner.{name}" for name in ("max_minutes", "stop_seconds", "keep_last", "keep_best")),
    "learner.keep_best_by",
    "learner.activation_checkpointing",
)
"""Fields that may change between a stop and --resume without a word."""
LENS = ("evaluate.size", "evaluate.classifier")
"""Harmless too, but where a loss looks through the run's own classifier: images and seed count
anyway."""
ROUNDING = frozenset({"evaluate.classifier.dtype"})
NOTED = {
    "learner.steps": "learning rate and annealing follow the schedule of the new number from here",
    "learner.max_staleness": "samples of this age are trained from here on",
    "learner.publish_every": "workers get new weights as often from here on",
    "learner.world_size": "sums are rounded, and dropout is drawn, in another way from here on",
    "learner.parallel": "sums are rounded in another way from here on",
    "learner.dtype": "another precision from here on",
    "rollout.dtype": "another precision from here on",
    "teacher.dtype": "another precision from here on",
}
"""Fields that may change too, and what that means."""
LATER = {
    "conditions.kind": "classes",
    "rollout.group.size": 1,
    "contexts.sources.teacher.draft_tokens": 0,
    "scorers.teacher.kind": "teacher",
    "learner.parallel": "ddp",
}
"""Fields that the first snapshots do not know, and what was so then."""


@dataclass(frozen=True)
class Identity:
    """Fields by dotted key, as JSON values, and digests of files by what they are to the run."""

    fields: dict[str, Any]
    contents: dict[str, str]
    paths: dict[str, Path]
    """Where those files are now; they may have been moved."""

    def as_dict(self) -> dict[str, Any]:
        return {"fields": self.fields, "contents": self.contents}

    def differences(self, before: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        """(key or file, "was this, is that") of what `before` (an `as_dict`) had otherwise."""
        section = Section.of(RunConfig)
        earlier = {section.present(key): value for key, value in before["fields"].items()}
        keys = earlier.keys() | self.fields.keys()
        for key in sorted(keys, key=lambda key: (not key.endswith(".kind"), key)):
            old, new = (of.get(key, LATER.get(key)) for of in (earlier, self.fields))
            if _is_below(key, LENS) and key not in earlier:  # of a snapshot before they counted
                continue
            if old != new:
                yield key, f"was {_spelt(old)}, is {_spelt(new)}"
        for name in sorted(before["contents"].keys() | self.contents.keys()):
            old, new = before["contents"].get(name), self.contents.get(name)
            if old != new:
                where = f"{name} ({self.paths[name]})" if name in self.paths else name
                yield where, f"has other contents: its digest was {old}, is {new}"


def identify(
    config: RunConfig,
    workspace: Workspace,
    data: TokenDataset,
    generated: TokenDataset | None,
) -> Identity:
    """Of the run that would start now; reads the models' files whole.

    Raises:
        InputError: a file is missing or cannot be read.
    """
    teacher = workspace.model(config, "teacher")
    files = {
        "the teacher": (teacher.path, teacher.digest()),
        "the token dataset": (workspace.train_tokens, data.digest()),
    }
    if workspace.has_model(config, "student_before"):
        student = workspace.model(config, "student_before")
        files["the base student"] = (student.path, student.digest())
    if (replay := config.rollout.replay) is not None:
        kept = Segments(replay)
        kept.require(config.rollout.batch_size)
        files["the kept rollouts"] = (replay, kept.digest())
    for key, net in parts(config, LpipsConfig):
        files[network_of(key)] = (net.weights, net.digest())
    if generated is not None:
        dataset = (workspace.teacher_tokens, generated.digest())
        files["the teacher's token dataset"] = dataset
    return Identity(
        _fields(config),
        contents={name: digest for name, (_, digest) in files.items()},
        paths={name: path for name, (path, _) in files.items()},
    )


def network_of(key: str) -> str:
    """What a network by which images are compared is called, whose table is at `key`."""
    return f"the network of {key}"


def _fields(config: RunConfig) -> dict[str, Any]:
    tree = config.model_dump(mode="json")
    looks = config.uses_classifier
    moved = tuple(f"{key}.weights" for key, _ in parts(config, LpipsConfig))  # contents count
    return {
        key: value
        for key, value in _flat(tree, "")
        if not _is_below(key, (*HARMLESS, *moved))
        or (looks and _is_below(key, LENS) and key not in ROUNDING)
    }


def _is_below(key: str, names: tuple[str, ...]) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in names)


def _flat(tree: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _spelt(value: Any) -> str:
    return "not set" if value is None else value if isinstance(value, str) else json.dumps(value)
