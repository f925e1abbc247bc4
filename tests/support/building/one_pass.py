"""Runs of a one-pass student on the files of other tests' runs."""

from pathlib import Path

from building.runs import TINY, go
from rich.console import Console

from deploy.run_folder.opening import open_run
from deploy.stages.generate import generate

SMALL = [
    *(o for o in TINY if not o.startswith(("models.student", "pretrain.student"))),
    "contexts.sources.teacher.sequences=48",
    "learner.steps=4",
    "learner.checkpoint_every=2",
    "learner.ordered=true",
    "objective.distance=vectors",
]
LENT = ("teacher.safetensors", "tokenizer.safetensors", "tokens/train.parquet")


def borrow(prepared, root):
    """A folder that reads tokens, tokenizer and teacher of another."""
    (root / "tokens").mkdir(parents=True, exist_ok=True)
    for name in (*LENT, "tokens/test.parquet"):
        if not (root / name).exists():
            (root / name).symlink_to(prepared / name)
    return root


def open_pairs(prepared, root, *overrides):
    """A run of dd1 in such a folder; its dataset of pairs is still to be made."""
    return open_run(Path("smoke_dd1"), [*SMALL, *overrides], borrow(prepared, root))


def distilled(prepared, root, *overrides):
    """One that is done, with its pairs."""
    run = open_pairs(prepared, root, *overrides)
    generate(*run, Console(quiet=True), local=True)
    go(run)
    return run
