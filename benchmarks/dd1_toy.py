"""Distilled Decoding 1 where everything is known: three dependent tokens of eight codes.

    python -m benchmarks.dd1_toy
    python -m benchmarks.dd1_toy --steps 2000 --seed 1

The teacher is a table, so that the joint distribution of its sequences is exact, and so is the
best that slots alone could do. The pairs of noise and codes are made by a worker, each once, and
the student learns in the pipeline's learner (`benchmarks/table_run.py`). Total variation between
sequences and the table's joint distribution, by class, and the share of held-out codes that one
step hits.

Shape letters: B sequences, L = 3 slots, D code width.
"""

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console

from benchmarks.measuring import machine, parser, report
from benchmarks.table_run import TableRun, averaged, held_out, of_held_out
from benchmarks.tabular import AT_ONCE, CLASSES, Tabular
from common.models.distilled_decoding import DistilledDecoder
from common.models.generator import Generator
from learner.train import Trained

POSITIONS = 1, 3
MARKS = 200, 500, 1000, 1500, 2000


def distances(
    table: Tabular, student: Generator, positions: Sequence[int], count: int = 20_000
) -> list[float]:
    """Total variation by class, from noise that nobody trained on."""
    assert isinstance(student, DistilledDecoder)
    make = of_held_out(lambda label_B, noise_BLD: student.steps(label_B, noise_BLD, positions))
    return table.distances(make, count)


@torch.no_grad()
def hits(table: Tabular, student: Generator, count: int = 20_000) -> list[float]:
    """By slot: the share of codes of one step that are the flow's."""
    label_B, found = torch.arange(AT_ONCE) % CLASSES, []
    for first in range(0, count, AT_ONCE):
        noise_BLD = held_out(first, AT_ONCE)
        right_BL = student(label_B, noise_BLD).token_BL == table.carried(label_B, noise_BLD)
        found.append(right_BL.double().mean(0))
    return torch.stack(found).mean(0).tolist()


def main() -> None:
    found = parser(str(__doc__).partition("\n")[0])
    found.add_argument("--steps", type=int, default=1500)
    found.add_argument("--rate", type=float, default=3e-3, help="learning rate")
    found.add_argument("--seed", type=int, default=0)
    options = found.parse_args()
    on, rows, table = machine(options), [], Tabular()
    console, started = Console(stderr=True), time.process_time()

    def say(what: str, values: list[float]) -> None:
        spent = time.process_time() - started
        rows.extend(
            {"what": what, "at": at, "value": value, "CPU s": spent}
            for at, value in enumerate(values)
        )
        console.print(f"{spent:6.0f} s  {what:40} {' '.join(f'{v:.4f}' for v in values)}")

    def measure(learner: Trained, metrics: dict[str, float]) -> None:
        done = learner.steps_done
        if done in MARKS or done == options.steps:
            student = averaged(run, learner)
            say(f"{done} steps: one step", distances(table, student, (1,)))
            say(f"{done} steps: two steps", distances(table, student, POSITIONS))
            say(f"{done} steps: codes hit, by slot", hits(table, student))

    say("slots alone", table.independent())
    given = f"learner.steps={options.steps}", f"learner.optimizer.learning_rate={options.rate}"
    with tempfile.TemporaryDirectory() as folder:
        run = TableRun(table, Path(folder), "dd1", *given, f"seed={options.seed}")
        run.train(run.student(), after_step=measure)
    report("dd1_toy", options, on, rows)


if __name__ == "__main__":
    main()
