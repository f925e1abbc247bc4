"""Runs of a few steps that are gone on with, and what they leave in their folder."""

import hashlib
import io
import json
from typing import Any

from rich.console import Console

from deploy.config import RunConfig
from deploy.run_folder.workspace import Workspace
from deploy.stages.distill import distill

TINY = [
    "tokenizer.vocab_size=32",
    "models.teacher.width=32",
    "models.teacher.depth=2",
    "models.student.width=16",
    "models.student.heads=2",
    "pretrain.teacher.steps=30",
    "pretrain.student.steps=5",
    "contexts.mix_per=sample",
    "rollout.batch_size=8",
    "learner.global_batch_size=16",
    "learner.micro_batch=8",
    "learner.steps=6",
    "learner.stall_seconds=60",
    "evaluate.samples=100",
    "evaluate.classifier.steps=20",
]
"""Overrides that make any smoke config a matter of seconds."""
BASE = ("learner.checkpoint_every=2", "learner.ordered=true")


def tree(root):
    """Digest of every file below a folder by its name."""
    return {
        str(path.relative_to(root)): hashlib.blake2b(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def rows_of(workspace):
    return [json.loads(line) for line in workspace.metrics.open()]


def go(run: tuple[RunConfig, Workspace], **how: Any) -> tuple[dict[str, Any], str]:
    """(facts, what was said)."""
    said = io.StringIO()
    facts = distill(*run, Console(file=said, soft_wrap=True), local=True, **how)
    return facts, said.getvalue()
