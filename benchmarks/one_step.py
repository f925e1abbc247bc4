"""What a one-pass student gives up and what it saves, beside its teacher.

    varkd smoke --method dd1 && python -m benchmarks.one_step runs/smoke_dd1
    python -m benchmarks.one_step runs/smoke_dd1 --batch 1

FID of a run's teacher, of its student (averaged weights) in one pass, in each further number of
them and with the teacher between two, and of tokens whose slots know nothing of each other: those
of the teacher's dataset, each slot drawn by itself within a class, which is all that a pass over no
noise could learn. Milliseconds are CPU time of an image, sampled and decoded, medians of
interleaved rounds.
"""

from argparse import Namespace
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from benchmarks.measuring import interleaved, machine, parser, report
from common.data.tokens import load_tokens
from common.models.distilled_decoding import DistilledDecoder
from deploy.run_folder.opening import open_run
from deploy.run_folder.workspace import Workspace
from deploy.stages.draw import Drawn, load_for_sampling, teacher_between
from deploy.stages.judge import Judge
from deploy.stages.quality import own_classifier
from rollout.evaluation.one_pass import Passes

SEED = 0


def independent_slots(workspace: Workspace, label_N: Tensor) -> Tensor:
    """token_NL of these labels: every slot another row of the class's own, drawn by itself."""
    made = load_tokens(workspace.existing_generated())
    generator, found = torch.Generator().manual_seed(SEED), []
    rows = {label: (made.label_N == label).nonzero()[:, 0] for label in label_N.unique().tolist()}
    slot_L = torch.arange(made.spec.length)
    for label in label_N.tolist():
        of = rows[label]
        row_L = of[torch.randint(len(of), (made.spec.length,), generator=generator)]
        found.append(made.token_NAL[row_L, 0, slot_L].long())
    return torch.stack(found)


def drawing(options: Namespace) -> Iterator[tuple[str, float, Callable[[], object]]]:
    """(what, its FID, a batch of it) one after the other."""
    config, workspace = open_run(options.run, [], options.run)
    judge = Judge(config, workspace)
    own_classifier(config, workspace, Console(quiet=True))
    judge.read(Console(quiet=True))
    names = {"teacher": "teacher", "student": "student_ema"}
    models = {
        name: load_for_sampling(workspace.model(config, of), workspace, options.device)
        for name, of in names.items()
    }
    student, tokenizer = models["student"]
    assert isinstance(student, DistilledDecoder), "of a run of dd1"
    positions, last = student.positions, student.positions[-1]
    ways: dict[str, tuple[Drawn, Passes]] = {"teacher": (models["teacher"][0], Passes())}
    for steps in range(1, len(positions) + 1):
        ways[f"{steps} step" + "s" * (steps > 1)] = student, Passes(steps)
    if last > 1:
        first = (last + 1) // 2
        between = teacher_between(config, workspace, (first, last), options.device)
        ways[f"teacher from {first} to {last}"] = student, between
    small = Judge(config, workspace)
    small.label_N = judge.label_N[: options.batch]
    for what, (model, passes) in ways.items():
        draw = partial(judge.draw, model, tokenizer, config.evaluate.sampling, passes=passes)
        once = partial(small.draw, model, tokenizer, config.evaluate.sampling, passes=passes)
        yield what, judge.compare(draw())["fid"], once
    token_NL = independent_slots(workspace, judge.label_N).to(options.device)
    yield "independent slots", judge.compare(tokenizer.decode(token_NL).cpu())["fid"], lambda: None


def main() -> None:
    found = parser(str(__doc__).partition("\n")[0])
    found.add_argument("run", type=Path, help="the folder of a finished run of dd1")
    found.add_argument("--batch", type=int, default=250, help="images drawn together")
    options = found.parse_args()
    on, made = machine(options), list(drawing(options))
    timed = interleaved({what: once for what, _, once in made[:-1]}, options.rounds)
    rows: list[dict[str, Any]] = []
    for what, fid, _ in made:
        spent = 1000 * timed[what].cpu / options.batch if what in timed else None
        teacher = 1000 * timed["teacher"].cpu / options.batch
        faster = teacher / spent if spent else None
        rows.append({"images": what, "FID": fid, "CPU ms": spent, "of the teacher's speed": faster})
    report(f"one_step {options.run}", options, on, rows)


if __name__ == "__main__":
    main()
