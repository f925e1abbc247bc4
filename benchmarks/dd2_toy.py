"""Distilled Decoding 2 where everything is known: three dependent tokens of eight codes.

    python -m benchmarks.dd2_toy
    python -m benchmarks.dd2_toy --rule dmd --generator-steps 300

The teacher is a table, so that the joint distribution of its sequences is exact, and so is the
best that slots alone could do. Both stages are runs of the pipeline (`benchmarks/table_run.py`).
Total variation between 20,000 sequences and the table's joint distribution, worst of both classes.

Shape letters: B sequences, L = 3 slots, D code width.
"""

import copy
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor

from benchmarks.measuring import machine, parser, report
from benchmarks.table_run import TableRun, averaged, held_out, of_held_out
from benchmarks.tabular import CLASSES, Tabular
from common.models.few_steps import nearest
from common.models.generator import Generated, Generator
from common.models.velocity_model import VelocityModel
from learner.train import Trained

MARKS = (100, 200, 300, 500, 700, 1000, 1500)
"""Steps of the generator after which it is measured."""


def one_step(table: Tabular, generator: Generator, count: int = 20_000) -> list[float]:
    """Total variation by class of what a generator makes."""
    return table.distances(of_held_out(generator), count)


@torch.no_grad()
def rms_to_codes(table: Tabular, generator: Generator, count: int = 10_000) -> float:
    """Root of the mean square between what a generator means and the code nearest to it."""
    made = generator(torch.arange(count) % CLASSES, held_out(0, count))
    away = made.vector_BLD - table.codes.code_VD[made.token_BL]
    return float(away.square().sum(-1).mean().sqrt())


def diffused(table: Tabular, model: Generator, steps: int = 20, count: int = 20_000) -> list[float]:
    """Total variation by class of the model as an autoregressive diffusion model: every slot by
    Euler steps from its noise, then its nearest code."""
    assert isinstance(model, VelocityModel)
    code_VD = table.codes.code_VD

    def draw(label_B: Tensor, noise_BLD: Tensor) -> Generated:
        vector_BLD = torch.zeros_like(noise_BLD)
        for slot in range(noise_BLD.shape[1]):
            feature_B1C = model.features(label_B, vector_BLD)[:, slot : slot + 1]
            x_B1D = noise_BLD[:, slot : slot + 1]
            for k in range(steps):
                time_1 = torch.full((1,), 1 - k / steps)
                x_B1D = x_B1D - model.velocity(x_B1D, time_1, feature_B1C) / steps
            vector_BLD[:, slot : slot + 1] = code_VD[nearest(x_B1D, code_VD)]
        token_BL = nearest(vector_BLD, code_VD)
        return Generated(token_BL, vector_BLD, torch.empty(0))

    return table.distances(of_held_out(draw), count)


def first_stage(table: Tabular, folder: Path, *overrides: str) -> Generator:
    """An autoregressive diffusion model."""
    run = TableRun(table, folder, "dd2_gts", *overrides)
    return run.train(run.student())


def second_stage(
    table: Tabular,
    start: Generator | None,
    folder: Path,
    *overrides: str,
    after_step: Callable[[TableRun, Trained, dict[str, float]], object] = lambda *_: None,
) -> Generator:
    """The averaged generator; it and the guidance network begin as `start`, or fresh."""
    run = TableRun(table, folder, "dd2_csd", *overrides)
    generator = run.student()
    if start is not None:
        generator.load_state_dict(start.state_dict())
    return run.train(
        generator,
        copy.deepcopy(generator),
        after_step=lambda learner, metrics: after_step(run, learner, metrics),
    )


def measured(options: Namespace, folder: Path, say: Callable[[str, float], None]) -> None:
    """Both stages."""
    table, seed = Tabular(), f"seed={options.seed}"
    say("slots alone", min(table.independent()))
    start = None
    if options.stage1_steps:
        kind = "diffusion" if options.diffusion else "dd2_gts"
        given = f"learner.steps={options.stage1_steps}", f"objective.kind={kind}", seed
        start = first_stage(table, folder / "first", *given)
        say("stage 1: 20 Euler steps a slot", max(diffused(table, start)))
        say("stage 1: one step", max(one_step(table, start)))
        say("stage 1: rms distance to codes", rms_to_codes(table, start))

    def measure(run: TableRun, learner: Trained, metrics: dict[str, float]) -> None:
        done = int(metrics["generator/steps"])
        if "loss" in metrics and done in (*MARKS, options.generator_steps):
            average = averaged(run, learner)
            say(f"stage 2, {done} steps: averaged", max(one_step(table, average)))
            say(f"stage 2, {done} steps: rms distance", rms_to_codes(table, average))

    given = (
        f"learner.steps={6 * options.generator_steps}",
        f"objective.distance.rule={options.rule}",
        f"objective.position.first={options.first}",
        seed,
    )
    second_stage(table, start, folder / "second", *given, after_step=measure)


def main() -> None:
    found = parser(str(__doc__).partition("\n")[0])
    found.add_argument("--stage1-steps", type=int, default=1000)
    found.add_argument("--generator-steps", type=int, default=500)
    found.add_argument("--rule", default="sid", choices=["sid", "dmd"])
    found.add_argument("--first", type=float, default=1.0, help="weight of the first slot")
    found.add_argument("--diffusion", action="store_true", help="stage 1 by the diffusion loss")
    found.add_argument("--seed", type=int, default=0)
    options = found.parse_args()
    on, rows = machine(options), []
    console, started = Console(stderr=True), time.process_time()

    def say(what: str, value: float) -> None:
        spent = time.process_time() - started
        rows.append({"what": what, "value": value, "CPU s": spent})
        console.print(f"{spent:6.0f} s  {what:40} {value:.4f}")

    with tempfile.TemporaryDirectory() as folder:
        measured(options, Path(folder), say)
    report("dd2_toy", options, on, rows)


if __name__ == "__main__":
    main()
