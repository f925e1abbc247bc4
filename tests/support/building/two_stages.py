"""Runs of Distilled Decoding 2 on the files of other tests' runs: a first stage, then a second."""

from pathlib import Path

from building.one_pass import borrow
from building.runs import TINY, go
from rich.console import Console

from deploy.run_folder.opening import open_run
from deploy.stages.generate import generate
from deploy.stages.pretrain import pretrain_model
from deploy.stages.second_stage import second_stage
from deploy.stages.tokenize import tokenize

TEACHERS = ("models.student", "pretrain.student", "contexts")
"""What `TINY` says of other students."""
QUICK = [
    *(o for o in TINY if not o.startswith(TEACHERS)),
    "models.student.head_width=16",
    "learner.checkpoint_every=1",
    "learner.ordered=true",
]
OF_STAGES = {
    "smoke_dd2_gts": ["contexts.sources.teacher.sequences=48", "learner.steps=3"],
    "smoke_dd2": ["objective.guidance.steps=2", "learner.steps=6", "evaluate.steps=[1,3]"],
}


VAR = ["tokenizer.rounds=1", "tokenizer.fit_vectors=2000", "pretrain.teacher.steps=5"]
"""What makes a tokenizer and a teacher of several scales a matter of seconds."""


def open_stage(prepared, root, name, *overrides):
    """One that is still to be run."""
    given = [*QUICK, *OF_STAGES[name], *overrides]
    return open_run(Path(name), given, borrow(prepared, root))


def var_done(folder):
    """Both stages of VAR, whose teacher reads the generator's vectors; nothing is borrowed."""
    quiet = Console(quiet=True)
    given = [*QUICK, *VAR]
    first = open_run(
        Path("smoke_dd2_var_gts"), [*given, *OF_STAGES["smoke_dd2_gts"]], folder / "first"
    )
    tokenize(*first, quiet, local=True)
    pretrain_model(*first, "teacher", quiet)
    generate(*first, quiet, local=True)
    go(first)
    overrides = [*given, *OF_STAGES["smoke_dd2"], "evaluate.steps=[1,2]"]
    config, workspace = open_run(Path("smoke_dd2_var"), overrides, folder / "second")
    run = second_stage(config, workspace, first[1]), workspace
    go(run)
    return run


def first_done(prepared, root):
    run = open_stage(prepared, root, "smoke_dd2_gts")
    generate(*run, Console(quiet=True), local=True)
    go(run)
    return run


def open_second(prepared, root, first, *overrides):
    """That begins with what the first learned."""
    weights = f"learner.weights={first[1].student_ema}"
    return open_stage(prepared, root, "smoke_dd2", weights, *overrides)
