"""Runs of a few steps that are gone on with, and what they leave in their folder."""

import hashlib
import io
import json

from rich.console import Console

from deploy.stages.distill import distill

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


def go(run, **how):
    """(facts, what was said)."""
    said = io.StringIO()
    facts = distill(*run, Console(file=said, soft_wrap=True), local=True, **how)
    return facts, said.getvalue()
